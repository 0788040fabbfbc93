use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use super::*;

/// How long every test run hunts, over all profiles.
const HUNTS_FOR: Duration = Duration::from_secs(30);

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
            began_again,
            gone_over,
            halfway,
            stepped_aside,
            ..
        } = hunted(profile, 0..60, 2).tally;
        assert!(attempts > updated && updated > 100 && kills > 5, "{profile:?}");
        match profile {
            Profile::Devices => assert!(quarantined > 3, "{quarantined} quarantined"),
            Profile::Rollback => assert!(rolled_back > 30, "{rolled_back} went back"),
            Profile::Power => assert!(cuts_in_write > 100, "{cuts_in_write} power cuts in a write"),
            Profile::Slots => assert!(cuts_in_write > 3_000, "{cuts_in_write} power cuts in a write"),
            Profile::Orders => assert!(rolled_back > 40, "{rolled_back} went back"),
            Profile::Answers => assert!(rolled_back > 5, "{rolled_back} went back"),
            Profile::Retries => assert!(began_again > 30, "{began_again} began again"),
            Profile::Batches => assert!(rolled_back > 4, "{rolled_back} went back"),
            Profile::Hops => assert!(
                gone_over > 100 && halfway > 10 && rolled_back > 5,
                "{gone_over} went over, {halfway} stopped halfway, {rolled_back} went back"
            ),
            Profile::Hosts => assert!(
                stepped_aside > 100 && gone_over > 20,
                "{stepped_aside} hosts stepped aside, {gone_over} went over"
            ),
            Profile::Network | Profile::Chaos | Profile::Liar | Profile::Units | Profile::Pools => {}
        }
    }
}

#[test]
fn faults_can_be_told_apart_and_left_out() {
    let seed = (0..).find(|seed| faults_of(Profile::Chaos, *seed).len() > 5).unwrap();
    let faults = faults_of(Profile::Chaos, seed);
    assert_eq!(faults, faults_of(Profile::Chaos, seed));
    let (with, without) = (
        run(Profile::Chaos, seed, None),
        run(Profile::Chaos, seed, Some(Vec::new())),
    );
    assert_eq!(with, run(Profile::Chaos, seed, Some(faults)));
    assert_ne!(with.trace, without.trace);
}

/// Every seed that ever broke a promise.
#[test]
fn no_seed_of_the_corpus_breaks_a_promise_again() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Corpus {
        seed: Vec<Known>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Known {
        profile: Profile,
        seed: u64,
        promise: String,
        what: String,
    }
    let corpus: Corpus = toml::from_str(include_str!("../../corpus/found.toml")).unwrap();
    for Known {
        profile,
        seed,
        promise,
        what,
    } in corpus.seed
    {
        let broken = run(profile, seed, None).broken;
        assert_eq!(broken, None, "{profile:?} {seed}, which once broke `{promise}`: {what}");
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "how long to hunt is a matter of real time, what happens in a seed is not"
)]
fn a_hunt_of_half_a_minute_finds_nothing() {
    let profiles = Profile::value_variants();
    let each = HUNTS_FOR / u32::try_from(profiles.len()).unwrap();
    for profile in profiles {
        let what = Hunt {
            profile: *profile,
            seeds: 1_000_000..2_000_000,
            threads: std::thread::available_parallelism().unwrap(),
            findings_max: 1,
        };
        let began = Instant::now();
        let total = hunt(&what, &|_| began.elapsed() < each);
        assert!(total.findings.is_empty(), "{:#?}", total.findings);
        println!("{}: {} seeds, {} events", profile.as_str(), total.seeds, total.events);
    }
}
