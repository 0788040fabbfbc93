use std::{collections::BTreeSet, time::Duration};

use firmesh_protocol::report::AttemptState;

use super::*;
use crate::kills::{NEW, goal, redfish, run};

#[test]
fn every_fault_is_in_the_catalogue_once_under_the_name_that_configurations_use() {
    let names: BTreeSet<_> = CATALOGUE.iter().map(|entry| entry.fault.name()).collect();
    assert_eq!(names.len(), CATALOGUE.len());
    for entry in CATALOGUE {
        let written = serde_json::to_value(entry.fault).unwrap();
        assert_eq!(written, entry.fault.name());
        assert_eq!(entry.fault.entry(), entry);
        assert!(
            entry.repository.split('/').count() == 2 && entry.thread > 0,
            "{entry:?}"
        );
        assert!(entry.what.ends_with('.'), "{entry:?}");
    }
    let on_devices = CATALOGUE.iter().filter(|entry| entry.layer == Layer::Device).count();
    assert!(on_devices >= 30, "{on_devices}");
}

/// The device runs the wanted version and says so, or the attempt fails in the right way with a reason to act on; in time,
/// without a second flash, without a reset while it writes.
#[test]
fn an_attempt_on_every_faulty_device_ends_right() {
    let mut wrong = Vec::new();
    for entry in CATALOGUE.iter().filter(|entry| entry.layer == Layer::Device) {
        let mut model = redfish(entry.component, Some(entry.fault));
        let goal = goal(entry.component);
        let course = run(&mut model, &goal, &mut |_| None);
        let Some(outcome) = &course.outcome else {
            panic!("{entry:?} never ends: {course:?}")
        };
        let in_time = course.took <= Duration::from_secs(u64::from(goal.deadlines.attempt_s) + 60);
        let is_right = match entry.end {
            End::Updated => outcome.state == AttemptState::Success && outcome.version.as_deref() == Some(NEW),
            End::Fails { class, says } => outcome.failure == Some(class) && outcome.reason.contains(says),
        };
        println!(
            "{:<36} {:>6} s {:<12} {}",
            entry.fault.name(),
            course.took.as_secs(),
            outcome.state.as_str(),
            outcome.reason
        );
        if !is_right || !in_time || course.breach.is_some() {
            wrong.push((entry.fault, course));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
