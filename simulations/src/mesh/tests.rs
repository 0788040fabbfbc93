//! The table of the mesh in virtual time: what scheduling alone makes of each network, against the bound of that network.
//!
//! A wire carries 1.058 bytes per byte of the image, so nothing can be nearer to the bound than that.

use firmesh_coordinator_core::TURNS;

use super::{topology::Named, *};

/// A millionth of an image, for sums of fractions.
const ROUNDING: f64 = 1e-6;

fn run(topology: Topology, fault: Option<Fault>) -> Summary {
    World::new(topology, fault, Tuning::default(), TURNS, 1).run(Duration::from_secs(300))
}

/// Everybody has the image within `ratio` of the bound, and no wire was paid twice.
fn ends_within(named: Named, ratio: f64) {
    let summary = run(named.topology(), None);
    println!("{named:?}: {:.3}", summary.to_bound());
    assert_eq!(summary.complete, summary.nodes);
    assert!(summary.to_bound() <= ratio, "{named:?}: {summary:?}");
    let wires = [summary.origin, summary.import, summary.export.unwrap_or(WIRE)];
    assert!(
        wires.iter().all(|images| (images - WIRE).abs() < ROUNDING),
        "{named:?}: {summary:?}"
    );
}

#[test]
fn a_narrow_origin_is_kept_busy_from_the_first_piece_to_the_last() {
    ends_within(Named::A, 1.09);
    ends_within(Named::B, 1.10);
    ends_within(Named::C, 1.10);
    ends_within(Named::S, 1.11);
}

#[test]
fn narrow_node_links_are_all_kept_busy() {
    ends_within(Named::N, 1.10);
}

/// Every uplink, of racks and of nodes, has to be more than eight tenths full all the time: 1.16 to 1.24, by which node the
/// hashing gives most.
#[test]
fn narrow_racks_are_kept_busy() {
    ends_within(Named::O, 1.22);
}

/// 3 racks of 4 nodes, with links as in B.
fn three_racks() -> Topology {
    Topology {
        racks: 3,
        nodes: 4,
        ..Named::B.topology()
    }
}

/// Every node that lives has the image within `ratio` of the bound of the undisturbed network, of at most `origin` images
/// from the origin.
fn survives(fault: Fault, ratio: f64, origin: f64) {
    let summary = run(fault.topology(three_racks()), Some(fault));
    println!("{fault:?}: {:.3}, origin {:.3}", summary.to_bound(), summary.origin);
    assert_eq!(summary.complete, summary.nodes, "{fault:?}: {summary:?}");
    assert!(summary.to_bound() <= ratio, "{fault:?}: {summary:?}");
    assert!(summary.origin <= origin, "{fault:?}: {summary:?}");
    let liars = usize::from(fault == Fault::GarbagePeer);
    assert_eq!(summary.banned, liars, "{fault:?}: {summary:?}");
}

#[test]
fn the_mesh_outlives_the_origin() {
    survives(Fault::OriginKilled, 1.10, 1.08);
}

#[test]
fn the_death_of_importers_costs_next_to_nothing() {
    survives(Fault::PeersKilled, 1.10, 1.08);
}

#[test]
fn a_slow_node_slows_nobody_else() {
    survives(Fault::SlowNode, 1.12, 1.08);
}

#[test]
fn a_member_that_serves_garbage_is_banned_and_missed_by_nobody() {
    survives(Fault::GarbagePeer, 1.15, 1.08);
}

/// The bound knows nothing of the ten seconds.
#[test]
fn a_rack_that_was_cut_off_catches_up() {
    survives(Fault::UplinkCut, 1.34, 1.11);
}

#[test]
fn a_site_that_restarts_fetches_nothing_again() {
    survives(Fault::SiteRestart, 1.20, 1.09);
}

#[test]
fn whoever_joins_late_is_fed_by_the_others() {
    survives(Fault::LateJoiners, 1.28, 1.10);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let once = || {
        let topology = Topology {
            size_mib: 8,
            ..three_racks()
        };
        World::new(topology, Some(Fault::PeersKilled), Tuning::default(), TURNS, 7).run(Duration::from_secs(60))
    };
    let summary = once();
    assert_eq!(summary.complete, 10);
    assert_eq!(once(), summary);
}
