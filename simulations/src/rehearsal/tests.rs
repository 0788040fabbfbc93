use std::num::NonZeroUsize;

use super::*;

fn hunted(profile: Profile, seeds: std::ops::Range<u64>, threads: usize) -> Total {
    let what = Hunt {
        profile,
        seeds,
        threads: NonZeroUsize::new(threads).unwrap(),
        findings_max: 1,
    };
    let total = hunt(&what, &|_| true);
    assert!(total.findings.is_empty(), "{:#?}", total.findings);
    total
}

#[test]
fn the_same_seeds_take_the_same_course_on_any_number_of_threads() {
    let alone = hunted(Profile::Chaos, 0..40, 1);
    for threads in [2, 5] {
        let again = hunted(Profile::Chaos, 0..40, threads);
        assert_eq!(
            (again.trace, again.events, again.tally),
            (alone.trace, alone.events, alone.tally)
        );
    }
    assert_ne!(alone.trace, hunted(Profile::Chaos, 40..80, 2).trace);
}

#[test]
fn every_profile_keeps_its_promises_and_gets_to_what_they_are_about() {
    for profile in Profile::value_variants() {
        let profile = *profile;
        let Tally {
            attempts,
            updated,
            rolled_back,
            quarantined,
            kills,
            cuts_in_write,
            ..
        } = hunted(profile, 0..60, 2).tally;
        assert!(attempts > updated && updated > 100 && quarantined > 0, "{profile:?}");
        assert!(profile == Profile::Power || kills > 10, "{profile:?}: {kills} kills");
        assert!(
            profile != Profile::Rollback || rolled_back > 100,
            "{rolled_back} went back"
        );
        assert!(
            profile != Profile::Power || cuts_in_write > 100,
            "{cuts_in_write} power cuts in a write"
        );
    }
}

#[test]
fn faults_can_be_told_apart_and_left_out() {
    let faults = faults_of(Profile::Chaos, 7);
    assert_eq!(faults, faults_of(Profile::Chaos, 7));
    let (with, without) = (run(Profile::Chaos, 7, None), run(Profile::Chaos, 7, Some(Vec::new())));
    assert_eq!(with, run(Profile::Chaos, 7, Some(faults)));
    assert_ne!(with.trace, without.trace);
}
