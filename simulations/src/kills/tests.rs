use super::*;

/// More than a thousand deaths, at every boundary of every executor.
#[test]
fn no_death_of_a_process_flashes_twice_loses_an_attempt_or_leaves_a_device_that_does_not_start() {
    let summary = kill(1, 60);
    println!(
        "{} attempts, {} kills, ended {:?}",
        summary.attempts, summary.kills, summary.ended
    );
    assert!(
        summary.broken.is_empty(),
        "{} broken: {:#?}",
        summary.broken.len(),
        &summary.broken[..summary.broken.len().min(5)]
    );
    assert!(summary.kills >= 1_000, "{summary:#?}");
    for executor in Executor::ALL {
        let name = format!("{executor:?}");
        assert!(summary.kills_of[&name] >= 100, "{summary:#?}");
        assert!(summary.boundaries_of[&name] >= 10, "{summary:#?}");
    }
}
