//! The real client against faults of the catalogue, over HTTPS.

use firmesh_simulations::device::faulty::{CATALOGUE, End, Fault};
use futures_util::{StreamExt as _, future, stream};

use super::*;

/// So many attempts at once: most of the time they wait.
const AT_ONCE: usize = 16;

#[tokio::test]
async fn the_real_client_ends_right_on_faulty_bmcs() {
    // A quarter of an hour of a BMC that starts in a tenth of a second is over before anybody loses patience.
    let met = CATALOGUE
        .iter()
        .filter(|entry| entry.fault != Fault::SilentForAQuarterOfAnHour);
    let wrong: Vec<_> = stream::iter(met)
        .map(|entry| meets(entry.fault))
        .buffer_unordered(AT_ONCE)
        .filter_map(future::ready)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}: {wrong:#?}", wrong.len());
}

/// What went wrong in an attempt on a BMC with this fault, if anything.
async fn meets(fault: Fault) -> Option<(Fault, Outcome, usize)> {
    let device = DeviceConfig {
        misbehaviour: Some(Misbehaviour::Faulty { fault }),
        ..bmc(fault.entry().component)
    };
    let lab = Lab::start(&[device]).await;
    let mut goal = lab.goal("d", PermitKind::Update, NEW);
    goal.deadlines = Deadlines {
        attempt_s: 40,
        back_s: 4,
    };
    let outcome = lab.run("d", UpdateMethod::Auto, Start::Fresh(goal)).await;
    let events = lab.events("d").await;
    let begun = events.iter().filter(|event| **event == EventKind::UpdateBegun).count();
    let is_right = match fault.entry().end {
        End::Updated => outcome.state == AttemptState::Success && outcome.version.as_deref() == Some(NEW),
        End::Fails { class, says } => outcome.failure == Some(class) && outcome.reason.contains(says),
    };
    // A stalled update is begun once more.
    let once = begun <= 1 || matches!(fault, Fault::StallsOnce | Fault::StallsForEver);
    (!is_right || !once).then_some((fault, outcome, begun))
}
