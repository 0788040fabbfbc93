//! Updates that go over other releases: the node follows the approved way and no other, one step after the other.

use firmesh_executors_core::Goal;

use super::*;
use crate::install::way::go_on;

/// Releases of which each may be installed from the one before only; 2 comes after 1.6, that after 1.3, that after 1.
fn step(version: &str) -> Release {
    let mut release = release(version);
    let from = ["1", "1.3", "1.6", "2"].windows(2).find(|pair| pair[1] == version);
    release.info.from_versions = from.map(|pair| pair[0].to_owned()).into_iter().collect();
    release
}

fn known(target: &str) -> Option<Release> {
    let mut all = ["1", "1.3", "1.6", "2"].map(step).into_iter();
    all.find(|release| release.target == target)
}

/// The campaign over 1.3 and 1.6, as it is after a change that its approvers have signed.
fn assembled(edit: impl FnOnce(&mut CampaignManifest, &mut Plan)) -> Result<ApprovedCampaign, AssembleError> {
    let (mut manifest, mut plan) = (manifest(), plan());
    let pin = |version: &str| ReleaseRef {
        target: step(version).target,
        sha256: step(version).artifact.sha256,
    };
    manifest.hops = vec![pin("1.3"), pin("1.6")];
    for planned in plan.waves.iter_mut().flatten() {
        planned.hops = ["1.3", "1.6"].map(|version| step(version).target).to_vec();
    }
    edit(&mut manifest, &mut plan);
    manifest.plan_sha256 = Sha256::of(&plan.to_bytes());
    ApprovedCampaign::assemble(manifest, Sha256::of(b"manifest"), &plan.to_bytes(), known)
}

fn case() -> Case {
    Case {
        campaign: assembled(|_, _| ()).unwrap(),
        ..Case::new()
    }
}

fn runs(case: &mut Case, version: &str) {
    case.device.version = Some(version.to_owned());
}

fn all_here() -> BTreeSet<ArtifactId> {
    ["1", "1.3", "1.6", "2"]
        .map(|version| release(version).artifact.id)
        .into()
}

fn next(case: &Case, done: &str) -> Result<Admission, Hold> {
    case.with_facts(&all_here(), |facts| go_on(&case.campaign, &step(done), facts))
}

fn shown(admission: &Admission) -> (&str, u32, u32) {
    let step = admission.step.as_ref().unwrap();
    (&admission.release.info.version, step.number, step.of)
}

#[test]
fn a_way_is_taken_step_by_step_from_what_was_read_back() {
    let mut case = case();
    let first = case.decide().unwrap();
    assert_eq!(shown(&first), ("1.3", 1, 3));
    assert_eq!(first.previous, Some(step("1")));
    runs(&mut case, "1.3");
    assert_eq!(shown(&next(&case, "1.3").unwrap()), ("1.6", 2, 3));
    runs(&mut case, "1.6");
    let last = next(&case, "1.6").unwrap();
    assert_eq!(shown(&last), ("2", 3, 3));
    assert!(last.step.unwrap().is_last());
}

#[test]
fn a_device_that_is_begun_again_goes_on_where_it_stopped() {
    let mut case = case();
    for (runs, next) in [("1", "1.3"), ("1.3", "1.6"), ("1.6", "2"), ("2", "2")] {
        case.device.version = Some(runs.to_owned());
        assert_eq!(case.decide().unwrap().release, step(next), "{runs}");
    }
    // What it runs is not on its way, or nobody knows.
    runs(&mut case, "1.4");
    let off = case.decide().unwrap_err();
    assert_eq!(
        (off.code(), off.state()),
        ("off_its_way", Some(AttemptState::Failed)),
        "{off}"
    );
    assert_eq!(
        off.to_string(),
        "the device runs 1.4, which is not on its approved way 1 -> 1.3 -> 1.6 -> 2"
    );
    case.device.version = None;
    let unknown = case.decide().unwrap_err();
    assert!(unknown == Hold::PlaceUnknown && unknown.passes_with_time());
    case.last_version = Some("1.3");
    assert_eq!(case.decide().unwrap().release, step("1.6"));
}

#[test]
fn a_hop_that_the_manifest_does_not_name_is_never_taken() {
    let unnamed = |edit: fn(&mut CampaignManifest, &mut Plan)| assembled(edit).unwrap_err().to_string();
    let missing = unnamed(|manifest, _| drop(manifest.hops.pop()));
    assert!(missing.contains("which the manifest does not name"), "{missing}");
    // Named as something else is not named as something to go over.
    let elsewhere = unnamed(|manifest, _| {
        let hop = manifest.hops.remove(0);
        manifest.previous.push(hop);
    });
    assert!(elsewhere.contains("which the manifest does not name"), "{elsewhere}");
    let unsigned = unnamed(|manifest, plan| {
        manifest.hops[0].target = "firmware/unsigned.bin".to_owned();
        plan.waves
            .iter_mut()
            .flatten()
            .for_each(|planned| planned.hops[0] = "firmware/unsigned.bin".to_owned());
    });
    assert!(unsigned.contains("is not signed by the release keys"), "{unsigned}");
    let other = unnamed(|manifest, _| manifest.hops[0].sha256 = Sha256::of(b"other"));
    assert!(other.contains("the approvers signed"), "{other}");
}

#[test]
fn hops_out_of_order_and_steps_that_are_not_allowed_are_refused_before_the_first() {
    let mut swapped = case();
    swapped.campaign = assembled(|_, plan| plan.waves.iter_mut().flatten().for_each(|p| p.hops.reverse())).unwrap();
    let refused = swapped.decide().unwrap_err();
    assert_eq!(
        refused,
        Hold::NoStep {
            target: step("1.6").target,
            from: "1".to_owned()
        }
    );
    assert_eq!(refused.state(), Some(AttemptState::Failed));
    // One is left out.
    let mut short = case();
    short.campaign = assembled(|_, plan| plan.waves.iter_mut().flatten().for_each(|p| drop(p.hops.remove(1)))).unwrap();
    assert!(matches!(short.decide(), Err(Hold::NoStep { from, .. }) if from == "1.3"));
    // The last step is looked at before the first as well: its epoch, its model, its one-way door.
    let last = |edit: fn(&mut Release)| {
        let mut case = case();
        edit(case.campaign.releases.get_mut(&step("1.6").target).unwrap());
        case.decide().unwrap_err().code()
    };
    assert_eq!(last(|hop| hop.info.security_epoch = 0), "below_security_floor");
    assert_eq!(
        last(|hop| hop.info.security_epoch = 2),
        "below_security_floor",
        "the last is lower"
    );
    assert_eq!(last(|hop| hop.info.models = vec!["R2".to_owned()]), "wrong_model");
    assert_eq!(
        last(|hop| hop.info.reversibility = Reversibility::OneWay),
        "one_way_not_accepted"
    );
}

#[test]
fn the_next_step_is_taken_only_after_the_one_before_it() {
    let mut case = case();
    // It still runs what it ran, or is somewhere else already: whoever says that a step is done is not believed.
    for version in ["1", "1.6", "2"] {
        runs(&mut case, version);
        let refused = next(&case, "1.3").unwrap_err();
        assert!(!refused.passes_with_time(), "{version}: {refused}");
        assert_eq!(refused.code(), "off_its_way");
    }
    runs(&mut case, "1.3");
    assert!(next(&case, "1.6").is_err());
    // What was pulled, withdrawn or lost meanwhile stops it where it is.
    case.brakes.insert(Braked::Release {
        target: step("1.6").target,
        sha256: step("1.6").artifact.sha256,
    });
    assert!(matches!(next(&case, "1.3"), Err(Hold::Braked(_))));
    case.brakes = [Braked::Campaign {
        id: case.campaign.manifest.id.clone(),
        manifest_sha256: case.campaign.manifest_sha256,
    }]
    .into();
    assert!(matches!(next(&case, "1.3"), Err(Hold::Braked(_))));
    case.brakes.clear();
    let without = |missing: &str| {
        let mut here = all_here();
        here.remove(&release(missing).artifact.id);
        case.with_facts(&here, |facts| go_on(&case.campaign, &step("1.3"), facts))
    };
    assert!(without("1.6").unwrap_err().passes_with_time());
    assert!(without("1").unwrap_err().passes_with_time(), "the way back");
    assert!(next(&case, "1.3").is_ok());
}

#[test]
fn every_image_is_here_and_the_window_fits_all_steps_before_the_first() {
    let mut case = case();
    for missing in ["1", "1.3", "1.6", "2"] {
        let mut here = all_here();
        here.remove(&release(missing).artifact.id);
        let held = case.with_facts(&here, |facts| admit(&case.campaign, &case.permit, facts));
        assert_eq!(held, Err(Hold::NotPossessed(release(missing).artifact.id)), "{missing}");
    }
    // Half past midnight: an hour is left, two steps of three would fit.
    use firmesh_protocol::window::{Weekday, Window};
    let window = |duration_s| vec![Window::weekly("UTC", &[Weekday::Thu], "00:00", duration_s)];
    case.campaign.manifest.constraints.windows = window(500 + 3 * 600 - 1);
    assert!(matches!(case.decide(), Err(Hold::WindowClosed { .. })));
    case.campaign.manifest.constraints.windows = window(500 + 3 * 600);
    assert!(case.decide().is_ok());
    // Of a way that is half done, only what is left has to fit.
    case.campaign.manifest.constraints.windows = window(500 + 600);
    runs(&mut case, "1.6");
    assert!(case.decide().is_ok());
}

#[test]
fn who_stopped_halfway_goes_back_to_what_it_ran() {
    let mut case = case();
    let d1 = DeviceId::new("d1").unwrap();
    case.attempts.insert((d1, PermitKind::Update), AttemptStanding::Ended);
    case.permit.kind = PermitKind::Rollback;
    case.campaign.manifest.operator_rollback = true;
    for version in ["1", "1.3", "1.6", "2"] {
        runs(&mut case, version);
        let back = case.decide().unwrap();
        assert_eq!((back.release, back.step), (step("1"), None), "{version}");
    }
    runs(&mut case, "1.4");
    assert_eq!(case.decide(), Err(Hold::NothingToRollBack));
    runs(&mut case, "1.3");
    let door = case.campaign.releases.get_mut(&step("1.6").target).unwrap();
    door.info.reversibility = Reversibility::OneWay;
    assert!(matches!(case.decide(), Err(Hold::OneWay(_))));
}

/// The wait between two steps had a whole step's time of its own: three steps could take five times that, where windows and the
/// campaign's patience were reckoned by three.
#[test]
fn a_step_and_the_wait_after_it_share_the_time_of_a_step() {
    let mut case = case();
    runs(&mut case, "1.3");
    let goal = goal(&case, "1.3");
    let (all, none) = (all_here(), BTreeSet::new());
    let next = |case: &Case, here: &BTreeSet<ArtifactId>, left_s| {
        let left = Duration::from_secs(left_s);
        case.with_facts(here, |facts| {
            crate::install::next(&goal, Some((&case.campaign, facts)), left)
        })
    };
    assert!(matches!(next(&case, &all, 1), Next::Step(step) if step.release == self::step("1.6")));
    let waits = Hold::NotPossessed(release("1.6").artifact.id);
    assert_eq!(next(&case, &none, 1), Next::Wait(waits.clone()));
    let Next::End(hold, outcome) = next(&case, &none, 0) else {
        panic!("it waits for ever")
    };
    assert_eq!((hold, outcome.state), (waits, AttemptState::Failed));
    assert_eq!(outcome.version.as_deref(), Some("1.3"));
    assert!(
        outcome
            .reason
            .starts_with("step 1 of 3, to 1.3, was the last one: a step and what is waited for after it have 600 s")
            && outcome.reason.contains("is not complete here yet"),
        "{}",
        outcome.reason
    );
    // What has no time left does not begin either, and what waiting does not help is not waited for.
    assert!(matches!(
        next(&case, &all, 0),
        Next::End(Hold::StepTooLong { limit_s: 600 }, _)
    ));
    runs(&mut case, "1.4");
    assert!(matches!(next(&case, &all, 600), Next::End(Hold::OffItsWay { .. }, _)));
    // A campaign that is not known as it was begun: for a while that may be a matter of time.
    let unknown = |left_s| crate::install::next(&goal, None, Duration::from_secs(left_s));
    assert_eq!(unknown(1), Next::Wait(Hold::NotKnown));
    assert!(matches!(unknown(0), Next::End(Hold::NotKnown, outcome) if outcome.state == AttemptState::Failed));
    case.campaign.manifest_sha256 = Sha256::of(b"another edition");
    assert!(matches!(next(&case, &all, 600), Next::End(Hold::OtherManifest(_), _)));
}

/// What a device was to reach with its first step.
fn goal(case: &Case, version: &str) -> Goal {
    Goal {
        device: case.device.device.clone(),
        campaign: case.campaign.manifest.id.clone(),
        manifest_sha256: case.campaign.manifest_sha256,
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        image: step(version),
        step: Some(WayStep {
            number: 1,
            of: 3,
            from: "1".to_owned(),
        }),
        security_epoch_min: 0,
        deadlines: case.campaign.manifest.deadlines,
        health: None,
        answers_min: Goal::ANSWERS_MIN,
        answers_apart_ms: None,
        pace_ms: Goal::PACE_MS,
    }
}
