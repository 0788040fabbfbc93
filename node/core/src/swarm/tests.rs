//! A site in virtual time: every node runs the real core, links take a fixed time per piece, and the test counts what
//! crosses racks.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use firmesh_protocol::{
    ids::{ArtifactId, NodeId, TopologyPath},
    pieces::PieceSet,
    time::Timestamp,
};
use proptest::prelude::*;

use super::*;

const PIECE_TIME: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    Corrupt,
    /// Announces everything, serves nothing.
    Liar,
    /// Takes part, and never asks or answers.
    Silent,
    /// Announces everything, keeps saying so, and never answers a request.
    Tarpit,
    Dead,
}

/// When, a serial number that keeps the order, then node, request and piece.
type Delivery = (Timestamp, u64, usize, u64, u32);

struct Site {
    now: Timestamp,
    nodes: Vec<(NodeId, TopologyPath, Manner, Swarm)>,
    artifact: ArtifactId,
    pieces: u32,
    origin: bool,
    origin_pieces: u32,
    crossed_racks: u32,
    crossed_sites: u32,
    in_flight: BinaryHeap<Reverse<Delivery>>,
    sources: BTreeMap<(usize, u64), Source>,
    cancelled: BTreeSet<(usize, u64)>,
    serial: u64,
}

/// A piece came that had no way to go.
fn brought(id: FetchId) -> Input {
    let waited = Duration::ZERO;
    Input::Fetched { id, waited }
}

impl Site {
    fn new(racks: usize, per_rack: usize, pieces: u32) -> Self {
        Self::of_several(1, racks, per_rack, pieces)
    }

    /// Sites of so many racks each, every one in a region of its own.
    fn of_several(sites: usize, racks: usize, per_rack: usize, pieces: u32) -> Self {
        let tuning = Tuning::default();
        let nodes: Vec<_> = (0..sites * racks * per_rack)
            .map(|at| {
                let id = NodeId::new(format!("n{at}")).unwrap();
                let (region, rack) = (at / (racks * per_rack), at / per_rack);
                let path: TopologyPath = format!("g{region}/s1/r{rack}/n{at}").parse().unwrap();
                let swarm = Swarm::new(id.clone(), path.clone(), tuning.clone(), at as u64);
                (id, path, Manner::Honest, swarm)
            })
            .collect();
        Self {
            now: Timestamp::default(),
            nodes,
            artifact: ArtifactId::of(b"image"),
            pieces,
            origin: true,
            origin_pieces: 0,
            crossed_racks: 0,
            crossed_sites: 0,
            in_flight: BinaryHeap::new(),
            sources: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            serial: 0,
        }
    }

    /// Everybody meets everybody and wants the image; nodes in `seeds` have it already.
    fn start(&mut self, seeds: &[usize]) {
        let places = self.nodes.iter().map(|(id, path, _, _)| (id.clone(), path.clone()));
        let members: Arc<Roster> = Arc::new(places.collect());
        for at in 0..self.nodes.len() {
            let members = Arc::clone(&members);
            self.tell(at, Input::Roster { members });
            self.tell(at, Input::Origin { available: self.origin });
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].2 == Manner::Dead {
                continue;
            }
            let full = seeds.contains(&at) || matches!(self.nodes[at].2, Manner::Liar | Manner::Tarpit);
            let have = if full {
                PieceSet::full(self.pieces)
            } else {
                PieceSet::empty(self.pieces)
            };
            for other in 0..self.nodes.len() {
                if other != at && self.nodes[other].2 != Manner::Dead {
                    let me = self.nodes[at].0.clone();
                    self.tell(other, Input::PeerUp { peer: me.clone() });
                    let artifact = self.artifact;
                    self.tell(
                        other,
                        Input::PeerHolds {
                            peer: me,
                            artifact,
                            pieces: have.clone(),
                        },
                    );
                }
            }
        }
        for at in 0..self.nodes.len() {
            let have = PieceSet::full(self.pieces);
            let have = if seeds.contains(&at) {
                have
            } else {
                PieceSet::empty(self.pieces)
            };
            self.tell(
                at,
                Input::Want {
                    artifact: self.artifact,
                    have,
                    priority: Priority::Normal,
                },
            );
        }
    }

    fn tell(&mut self, at: usize, input: Input) {
        if matches!(self.nodes[at].2, Manner::Dead | Manner::Silent | Manner::Tarpit) {
            return;
        }
        self.nodes[at].3.handle(self.now, input);
        while let Some(output) = self.nodes[at].3.poll() {
            self.carry_out(at, output);
        }
    }

    fn carry_out(&mut self, at: usize, output: Output) {
        match output {
            Output::Fetch { id, source, piece, .. } => {
                self.serial += 1;
                self.in_flight
                    .push(Reverse((self.now + PIECE_TIME, self.serial, at, id.0, piece)));
                self.sources.insert((at, id.0), source);
            }
            Output::Cancel { id, .. } => {
                self.cancelled.insert((at, id.0));
            }
            Output::Announce {
                artifact,
                pieces,
                audience,
            } => {
                let peer = self.nodes[at].0.clone();
                for other in (0..self.nodes.len()).filter(|other| *other != at) {
                    let in_rack = self.nodes[other].1.parent() == self.nodes[at].1.parent();
                    let heard = match audience {
                        Audience::Everyone => true,
                        Audience::Rack => in_rack,
                        Audience::OtherRacks => !in_rack,
                    };
                    if !heard {
                        continue;
                    }
                    self.tell(
                        other,
                        Input::PeerGot {
                            peer: peer.clone(),
                            artifact,
                            pieces: pieces.clone(),
                        },
                    );
                }
            }
            Output::Ban { .. } | Output::Withdraw { .. } | Output::Complete { .. } => {}
        }
    }

    /// Runs until every honest node is complete or the time is over; answers whether they all are.
    fn run(&mut self, limit: Duration) -> bool {
        let end = Timestamp::after_start(limit);
        while self.now < end && !self.all_complete() {
            let delivery = self.in_flight.peek().map(|Reverse((due, ..))| *due);
            let tick = (0..self.nodes.len())
                .filter(|at| self.nodes[*at].2 != Manner::Dead)
                .filter_map(|at| self.nodes[at].3.deadline())
                .min();
            let Some(next) = delivery.into_iter().chain(tick).min() else {
                break;
            };
            self.now = next.max(self.now);
            while self.in_flight.peek().is_some_and(|Reverse((due, ..))| *due <= self.now) {
                let Some(Reverse((_, _, at, id, piece))) = self.in_flight.pop() else {
                    break;
                };
                self.deliver(at, id, piece);
            }
            for at in 0..self.nodes.len() {
                if self.nodes[at].3.deadline().is_some_and(|due| due <= self.now) {
                    self.tell(at, Input::Tick);
                }
            }
        }
        self.all_complete()
    }

    fn deliver(&mut self, at: usize, id: u64, piece: u32) {
        let source = self.sources.remove(&(at, id)).expect("every request has a source");
        if self.cancelled.contains(&(at, id)) {
            return;
        }
        let why = match &source {
            Source::Origin if !self.origin => Some(FetchFailure::Unreachable),
            Source::Origin => {
                self.origin_pieces += 1;
                None
            }
            Source::Peer(peer) => {
                let from = self
                    .nodes
                    .iter()
                    .position(|(id, ..)| id == peer)
                    .expect("sources are members");
                let serves = self.nodes[from]
                    .3
                    .have(&self.artifact)
                    .is_some_and(|have| have.contains(piece));
                self.crossed_racks += u32::from(self.nodes[from].1.parent() != self.nodes[at].1.parent());
                self.crossed_sites += u32::from(self.nodes[from].1.shared_levels(&self.nodes[at].1) == 0);
                match self.nodes[from].2 {
                    Manner::Honest => (!serves).then_some(FetchFailure::NotHeld),
                    Manner::Corrupt => Some(FetchFailure::Corrupt),
                    Manner::Liar => Some(FetchFailure::NotHeld),
                    Manner::Silent | Manner::Tarpit => return,
                    Manner::Dead => Some(FetchFailure::Unreachable),
                }
            }
        };
        let id = FetchId(id);
        self.tell(at, why.map_or_else(|| brought(id), |why| Input::Failed { id, why }));
    }

    fn all_complete(&self) -> bool {
        self.nodes
            .iter()
            .filter(|(_, _, manner, _)| *manner == Manner::Honest)
            .all(|(_, _, _, swarm)| swarm.have(&self.artifact).is_some_and(PieceSet::is_full))
    }
}

#[test]
fn the_image_leaves_the_origin_once_and_enters_each_rack_once() {
    let mut site = Site::new(3, 4, 64);
    site.start(&[]);
    assert!(site.run(Duration::from_secs(60)));
    assert_eq!(site.origin_pieces, 64);
    assert_eq!(site.crossed_racks, 2 * 64);
}

/// Sites that have nothing in common but the fleet take from each other before they ask the origin.
#[test]
fn the_image_leaves_the_origin_once_for_all_sites() {
    let mut fleet = Site::of_several(3, 2, 3, 64);
    fleet.start(&[]);
    assert!(fleet.run(Duration::from_secs(60)));
    assert_eq!(fleet.origin_pieces, 64);
    // Who lags is relieved of pieces, one of which it may have asked for already: one more for each that brings in.
    let (sites, racks) = (2, 5);
    assert!(
        (sites * 64..=sites * 65).contains(&fleet.crossed_sites),
        "{}",
        fleet.crossed_sites
    );
    assert!(
        (racks * 64..=racks * 65).contains(&fleet.crossed_racks),
        "{}",
        fleet.crossed_racks
    );
}

#[test]
fn without_an_origin_one_copy_in_the_mesh_is_enough() {
    let mut site = Site::new(3, 4, 64);
    site.origin = false;
    site.start(&[5]);
    assert!(site.run(Duration::from_secs(60)));
    assert_eq!(site.crossed_racks, 2 * 64);
}

#[test]
fn members_that_never_show_up_are_waited_for_only_so_long() {
    let mut site = Site::new(2, 4, 32);
    for dead in [0, 1, 4] {
        site.nodes[dead].2 = Manner::Dead;
    }
    site.start(&[]);
    assert!(site.run(Duration::from_secs(60)));
    assert_eq!(site.origin_pieces, 32);
}

/// A peer that goes quiet mid-transfer must not keep its share of the pieces to itself.
#[test]
fn silent_importer_loses_its_rank_and_the_site_completes() {
    let mut site = Site::new(2, 3, 32);
    site.nodes[1].2 = Manner::Silent;
    site.start(&[]);
    assert!(site.run(Duration::from_secs(60)));
}

/// A peer that announces everything and answers nothing must not keep any piece out of its rack or site.
#[test]
fn a_tarpit_does_not_keep_the_site_from_completing() {
    let mut site = Site::new(2, 3, 32);
    site.nodes[1].2 = Manner::Tarpit;
    site.start(&[]);
    assert!(site.run(Duration::from_secs(120)));
}

#[test]
fn a_peer_that_announces_endless_artifacts_is_banned() {
    let site = Site::new(1, 2, 8);
    let (me, path) = (site.nodes[0].0.clone(), site.nodes[0].1.clone());
    let peer = site.nodes[1].0.clone();
    let mut swarm = Swarm::new(me, path, Tuning::default(), 1);
    let members = site
        .nodes
        .iter()
        .map(|(id, path, ..)| (id.clone(), path.clone()))
        .collect();
    let members = Arc::new(members);
    swarm.handle(Timestamp::default(), Input::Roster { members });
    swarm.handle(Timestamp::default(), Input::PeerUp { peer: peer.clone() });
    for at in 0..1_000_u32 {
        let (artifact, pieces) = (ArtifactId::of(&at.to_le_bytes()), PieceSet::empty(8));
        let peer = peer.clone();
        swarm.handle(Timestamp::default(), Input::PeerHolds { peer, artifact, pieces });
    }
    assert_eq!(swarm.banned().count(), 1);
}

#[test]
fn a_peer_that_serves_corrupt_bytes_is_banned_and_the_image_completes() {
    let mut site = Site::new(2, 3, 32);
    site.nodes[2].2 = Manner::Corrupt;
    site.start(&[2]);
    assert!(site.run(Duration::from_secs(60)));
    let bans: Vec<_> = site.nodes.iter().flat_map(|(_, _, _, swarm)| swarm.banned()).collect();
    assert!(!bans.is_empty());
    assert!(
        bans.iter()
            .all(|(peer, reason)| *peer == &site.nodes[2].0 && reason.contains("do not hash"))
    );
}

#[test]
fn a_peer_that_announces_what_it_does_not_hold_is_banned_and_the_image_completes() {
    let mut site = Site::new(2, 3, 32);
    site.nodes[4].2 = Manner::Liar;
    site.start(&[]);
    assert!(site.run(Duration::from_secs(60)));
    let bans: Vec<_> = site.nodes.iter().flat_map(|(_, _, _, swarm)| swarm.banned()).collect();
    assert!(
        bans.iter()
            .any(|(peer, reason)| *peer == &site.nodes[4].0 && reason.contains("does not hold"))
    );
    assert!(bans.iter().all(|(peer, _)| *peer == &site.nodes[4].0));
}

#[test]
fn what_is_held_already_is_never_asked_for() {
    let mut site = Site::new(1, 2, 8);
    site.start(&[]);
    let mut have = PieceSet::empty(8);
    (0..7).for_each(|piece| assert!(have.insert(piece)));
    let mut swarm = Swarm::new(site.nodes[0].0.clone(), site.nodes[0].1.clone(), Tuning::default(), 1);
    swarm.handle(Timestamp::default(), Input::Origin { available: true });
    swarm.handle(
        Timestamp::default(),
        Input::Want {
            artifact: site.artifact,
            have,
            priority: Priority::Normal,
        },
    );
    let asked: Vec<_> = std::iter::from_fn(|| swarm.poll()).collect();
    assert!(matches!(asked[..], [Output::Fetch { piece: 7, .. }]), "{asked:?}");
}

/// A piece whose bytes changed on disk: the peers are told, it is asked for again, and the image is complete once more.
#[test]
fn a_lost_piece_is_withdrawn_and_comes_again() {
    let site = Site::new(1, 1, 8);
    let mut swarm = Swarm::new(site.nodes[0].0.clone(), site.nodes[0].1.clone(), Tuning::default(), 1);
    let mut tell = |input| {
        swarm.handle(Timestamp::default(), input);
        std::iter::from_fn(|| swarm.poll()).collect::<Vec<_>>()
    };
    let (artifact, have) = (site.artifact, PieceSet::full(8));
    tell(Input::Origin { available: true });
    let priority = Priority::Normal;
    assert_eq!(
        tell(Input::Want {
            artifact,
            have,
            priority
        }),
        [Output::Complete { artifact }]
    );
    let outputs = tell(Input::Lost { artifact, piece: 3 });
    let [
        Output::Withdraw { .. },
        Output::Fetch {
            id,
            source: Source::Origin,
            piece: 3,
            ..
        },
    ] = outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(tell(Input::Lost { artifact, piece: 3 }), []);
    let announced = Output::Announce {
        artifact,
        pieces: vec![3],
        audience: Audience::Everyone,
    };
    assert_eq!(tell(brought(id)), [announced, Output::Complete { artifact }]);
}

/// What this node brought into its rack is told to all at once; what came from a neighbour is told together, soon to the
/// rack and later to the others, and at once when nothing more can come.
#[test]
fn word_of_pieces_is_gathered_unless_others_wait_for_it() {
    let site = Site::new(2, 2, 8);
    let mut swarm = Swarm::new(site.nodes[0].0.clone(), site.nodes[0].1.clone(), Tuning::default(), 1);
    let members = site
        .nodes
        .iter()
        .map(|(id, path, ..)| (id.clone(), path.clone()))
        .collect();
    let (neighbour, stranger) = (site.nodes[1].0.clone(), site.nodes[2].0.clone());
    assert_eq!(site.nodes[1].1.parent(), site.nodes[0].1.parent());
    let (artifact, mut now) = (site.artifact, Timestamp::default());
    let mut tell = |now, input| {
        swarm.handle(now, input);
        std::iter::from_fn(|| swarm.poll()).collect::<Vec<_>>()
    };
    let members = Arc::new(members);
    tell(now, Input::Roster { members });
    let mut asked = Vec::new();
    for peer in [&neighbour, &stranger] {
        asked.extend(tell(now, Input::PeerUp { peer: peer.clone() }));
        let pieces = PieceSet::full(8);
        asked.extend(tell(
            now,
            Input::PeerHolds {
                peer: peer.clone(),
                artifact,
                pieces,
            },
        ));
    }
    asked.extend(tell(
        now,
        Input::Want {
            artifact,
            have: PieceSet::empty(8),
            priority: Priority::Normal,
        },
    ));
    let mut told = Vec::new();
    let (mut fetched, mut gathered_from) = (0, None);
    while let Some(output) = (!asked.is_empty()).then(|| asked.remove(0)) {
        let Output::Fetch { id, source, .. } = output else {
            continue;
        };
        fetched += 1;
        now = now + Duration::from_millis(1);
        let outputs = tell(now, brought(id));
        let at_once = outputs.iter().any(|output| {
            matches!(
                output,
                Output::Announce {
                    audience: Audience::Everyone,
                    ..
                }
            )
        });
        assert_eq!(at_once, source != Source::Peer(neighbour.clone()));
        gathered_from = gathered_from.or_else(|| (!at_once).then_some(now));
        told.extend(
            outputs
                .iter()
                .filter(|output| matches!(output, Output::Announce { .. }))
                .cloned(),
        );
        asked.extend(outputs);
    }
    assert_eq!(fetched, 8);
    // The last piece ended the gathering.
    let heard_by = |audience: Audience| {
        let pieces = told.iter().filter_map(move |output| match output {
            Output::Announce {
                pieces, audience: to, ..
            } if *to == audience => Some(pieces.clone()),
            _ => None,
        });
        let mut pieces = pieces.flatten().collect::<Vec<_>>();
        pieces.sort_unstable();
        pieces
    };
    let (everyone, rack, others) = (
        heard_by(Audience::Everyone),
        heard_by(Audience::Rack),
        heard_by(Audience::OtherRacks),
    );
    assert_eq!(rack, others);
    assert_eq!(everyone.len() + rack.len(), 8);
    assert!(!rack.is_empty() && gathered_from.is_some());
}

/// The urgent image has every request while it moves; where it is stuck, the others go on.
#[test]
fn what_is_less_urgent_waits_while_the_urgent_moves() {
    let site = Site::new(1, 1, 8);
    let mut swarm = Swarm::new(site.nodes[0].0.clone(), site.nodes[0].1.clone(), Tuning::default(), 1);
    let mut now = Timestamp::default();
    let mut tell = |now, input| {
        swarm.handle(now, input);
        let asked = std::iter::from_fn(|| swarm.poll()).filter_map(|output| match output {
            Output::Fetch { id, artifact, .. } => Some((id, artifact)),
            _ => None,
        });
        asked.collect::<Vec<_>>()
    };
    let (usual, urgent) = (ArtifactId::of(b"usual"), ArtifactId::of(b"urgent"));
    tell(now, Input::Origin { available: true });
    let want = |artifact, priority| Input::Want {
        artifact,
        have: PieceSet::empty(3),
        priority,
    };
    let of = |asked: &[(FetchId, ArtifactId)]| asked.iter().map(|(_, artifact)| *artifact).collect::<Vec<_>>();
    let first = tell(now, want(usual, Priority::Normal));
    assert_eq!(of(&first), [usual]);
    assert_eq!(tell(now, want(urgent, Priority::Emergency)), []);
    // The request to the origin comes back: the next ones are the urgent image's.
    let next = tell(now, brought(first[0].0));
    assert_eq!(of(&next), [urgent, urgent]);
    let last = tell(now, brought(next[0].0));
    assert_eq!(of(&last), [urgent]);
    // With every urgent piece asked for, the room that is left stays free for what may fail.
    assert_eq!(tell(now, brought(next[1].0)), []);
    // The last request is given up, and its source rests a while.
    now = now + Tuning::default().request_min;
    assert_eq!(tell(now, Input::Tick), []);
    now = now + Tuning::default().stall_after;
    assert_eq!(of(&tell(now, Input::Tick)), [urgent, usual]);
}

/// What a far origin takes to begin says nothing of how wide the way is; what it takes from then on does.
#[test]
fn a_far_origin_is_asked_for_more_at_once_than_a_narrow_one() {
    let in_flight = |waited: Duration| {
        let site = Site::new(1, 1, 8);
        let mut swarm = Swarm::new(site.nodes[0].0.clone(), site.nodes[0].1.clone(), Tuning::default(), 1);
        let (mut now, mut asked) = (Timestamp::default(), Vec::new());
        swarm.handle(now, Input::Origin { available: true });
        let want = Input::Want {
            artifact: ArtifactId::of(b"image"),
            have: PieceSet::empty(500),
            priority: Priority::Normal,
        };
        swarm.handle(now, want);
        for _ in 0..12 {
            let outputs = std::iter::from_fn(|| swarm.poll()).filter_map(|output| match output {
                Output::Fetch { id, .. } => Some(id),
                _ => None,
            });
            asked = outputs.collect();
            now = now + Duration::from_millis(170);
            for &id in &asked {
                swarm.handle(now, Input::Fetched { id, waited });
            }
        }
        asked.len()
    };
    assert_eq!(in_flight(Duration::ZERO), 1);
    assert!(in_flight(Duration::from_millis(150)) > 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a minority does, the honest nodes complete, nobody bans an honest one, and the same run repeats itself.
    #[test]
    fn honest_nodes_complete_among_any_minority(manners in prop::collection::vec(0..6_u8, 9), pieces in 1_u32..40) {
        let run = || {
            let mut site = Site::new(3, 3, pieces);
            for (at, manner) in manners.iter().enumerate().filter(|(at, _)| at % 3 == 1) {
                site.nodes[at].2 =
                    [Manner::Honest, Manner::Corrupt, Manner::Liar, Manner::Silent, Manner::Tarpit, Manner::Dead][*manner as usize];
            }
            site.start(&[]);
            let complete = site.run(Duration::from_secs(300));
            let banned: BTreeSet<_> =
                site.nodes.iter().flat_map(|(_, _, _, swarm)| swarm.banned().map(|(id, _)| id.clone())).collect();
            let honest_banned =
                site.nodes.iter().any(|(id, _, manner, _)| *manner == Manner::Honest && banned.contains(id));
            (complete, honest_banned, site.now, site.origin_pieces, site.crossed_racks)
        };
        let outcome = run();
        prop_assert!(outcome.0 && !outcome.1, "{outcome:?}");
        prop_assert_eq!(run(), outcome);
    }
}

#[test]
fn a_peer_that_drops_an_artifact_is_asked_no_more_and_not_accused() {
    let roster: BTreeMap<NodeId, TopologyPath> = ["n0", "n1", "n2"]
        .map(|id| (NodeId::new(id).unwrap(), format!("eu/s1/r0/{id}").parse().unwrap()))
        .into();
    let (me, now) = (NodeId::new("n0").unwrap(), Timestamp::default());
    let mut swarm = Swarm::new(me.clone(), roster[&me].clone(), Tuning::default(), 1);
    let (artifact, have) = (ArtifactId::of(b"image"), PieceSet::empty(8));
    let members = Arc::new(roster.into_iter().collect());
    swarm.handle(now, Input::Roster { members });
    let priority = Priority::Normal;
    swarm.handle(
        now,
        Input::Want {
            artifact,
            have,
            priority,
        },
    );
    let [leaver, stayer] = ["n1", "n2"].map(|id| NodeId::new(id).unwrap());
    for peer in [&leaver, &stayer] {
        let (peer, pieces) = (peer.clone(), PieceSet::full(8));
        swarm.handle(now, Input::PeerUp { peer: peer.clone() });
        swarm.handle(now, Input::PeerHolds { peer, artifact, pieces });
    }
    let later = now + Duration::from_millis(50);
    swarm.handle(later, Input::Tick);
    let asked = |swarm: &mut Swarm| -> Vec<_> { std::iter::from_fn(|| swarm.poll()).collect() };
    let of_leaver: BTreeSet<_> = asked(&mut swarm)
        .into_iter()
        .filter_map(|output| match output {
            Output::Fetch {
                id,
                source: Source::Peer(peer),
                ..
            } if peer == leaver => Some(id),
            _ => None,
        })
        .collect();
    assert!(!of_leaver.is_empty(), "nothing was asked of the peer that is to leave");
    swarm.handle(
        later,
        Input::PeerDropped {
            peer: leaver.clone(),
            artifact,
        },
    );
    let told = asked(&mut swarm);
    for id in &of_leaver {
        let overdue = false;
        assert!(told.contains(&Output::Cancel { id: *id, overdue }), "{told:?}");
        // What comes back late is nobody's fault.
        swarm.handle(
            later,
            Input::Failed {
                id: *id,
                why: FetchFailure::NotHeld,
            },
        );
    }
    let asks_leaver =
        |output: &Output| matches!(output, Output::Fetch { source: Source::Peer(peer), .. } if *peer == leaver);
    assert!(!told.iter().chain(&asked(&mut swarm)).any(asks_leaver), "{told:?}");
    assert_eq!(swarm.banned().count(), 0);
}
