//! Small fleets: whether everybody gets the image, and every wire is paid about once.

use super::*;

fn plan() -> Plan {
    Plan {
        regions: 1,
        sites: 2,
        racks: 60,
        image: 16 << 20,
        piece: 512 << 10,
        wan_mbit: 200,
        rack_mbit: 1_000,
        byzantine: 0,
        loss: 0,
        crashes: 0,
        limit: 300,
        seed: 1,
    }
}

fn go(plan: &Plan, threads: usize) -> Total {
    let threads = NonZeroUsize::new(threads).expect("there are some");
    run(plan, threads, &|_| true)
}

fn images(bytes: u64, plan: &Plan, among: u64) -> f64 {
    bytes as f64 / plan.image as f64 / among as f64
}

#[test]
fn a_site_of_strangers_is_filled_over_one_copy() {
    let plan = plan();
    let total = go(&plan, 2);
    assert_eq!([total.complete, total.nodes], [120; 2]);
    for (bytes, among) in [(total.wan_bytes, total.sites), (total.rack_bytes, total.nodes)] {
        let images = images(bytes, &plan, among);
        assert!((1.057..1.07).contains(&images), "{images}: {total:?}");
    }
    assert!(
        total.within_s(1_000).is_some_and(|last| last < plan.bound_s() * 1.5),
        "{total:?}"
    );
    assert_eq!(total.bans, 0);
}

#[test]
fn dead_and_lying_strangers_are_passed_over() {
    let bad = Plan {
        byzantine: 30,
        loss: 1,
        crashes: 10,
        ..plan()
    };
    let total = go(&bad, 2);
    assert_eq!(total.complete, total.nodes, "{total:?}");
    assert_eq!(total.bans_of_honest, 0);
    assert!(total.bans > 0);
    assert!(images(total.wan_bytes, &bad, total.sites) < 2.0, "{total:?}");
}

#[test]
fn the_same_fleet_goes_the_same_way_on_any_number_of_threads() {
    let plan = Plan {
        sites: 5,
        byzantine: 10,
        crashes: 10,
        ..plan()
    };
    let one = go(&plan, 1);
    assert_eq!(go(&plan, 3), one);
    let other = Plan { seed: 2, ..plan };
    assert_ne!(go(&other, 1).trace, one.trace);
}
