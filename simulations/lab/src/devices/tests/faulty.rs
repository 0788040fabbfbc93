//! The real client against faults of the catalogue, over HTTPS.

use firmesh_simulations::device::faulty::{End, Fault};

use super::*;

/// What the client gets through, or fails at in the right way. Attempts run beside each other: most of them wait.
const MET: &[Fault] = &[
    Fault::CompletedButUnchanged,
    Fault::StallsOnce,
    Fault::TaskNeverSaysCompleted,
    Fault::TaskVanishesWhenDone,
    Fault::TaskIsLostByItsOwnRestart,
    Fault::FirstUploadBreaks,
    Fault::LicenceMissing,
    Fault::SignatureRefused,
    Fault::BusyWithAnotherUpdate,
    Fault::GatewayTimeouts,
    Fault::NeedsAColdRestart,
    Fault::RestartIgnored,
    Fault::RestartRefused,
    Fault::RestartBeginsLate,
    Fault::ConnectionBreaksAtRestart,
    Fault::RestartsItself,
    Fault::FirstAnswersAreErrors,
    Fault::NeverBack,
    Fault::CredentialsGone,
    Fault::SessionsForgotten,
    Fault::HtmlErrorPages,
    Fault::NoLocation,
    Fault::LocationElsewhere,
    Fault::TaskAnswersWithoutABody,
    Fault::TransferProtocolRequired,
    Fault::IfMatchRefused,
    Fault::ApplyTimeRefused,
    Fault::InventoryRenamed,
];

#[tokio::test]
async fn the_real_client_ends_right_on_faulty_bmcs() {
    let mut attempts = tokio::task::JoinSet::new();
    for &fault in MET {
        attempts.spawn(async move {
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
            let begun = lab.events("d").await;
            let begun = begun.iter().filter(|event| **event == EventKind::UpdateBegun).count();
            (fault, outcome, begun)
        });
    }
    let mut wrong = Vec::new();
    while let Some(ended) = attempts.join_next().await {
        let (fault, outcome, begun) = ended.unwrap();
        let is_right = match fault.entry().end {
            End::Updated => outcome.state == AttemptState::Success && outcome.version.as_deref() == Some(NEW),
            End::Fails { class, says } => outcome.failure == Some(class) && outcome.reason.contains(says),
        };
        // A stalled update is begun once more.
        let once = begun <= 1 || fault == Fault::StallsOnce;
        if !is_right || !once {
            wrong.push((fault, outcome, begun));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
