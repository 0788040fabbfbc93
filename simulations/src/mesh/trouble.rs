//! What goes wrong with single nodes and their connections, at moments that are known before: members that lie, processes
//! that crash, requests that get lost, disks that take nothing.
//!
//! Troubles are data: a seed draws them, and of a failure the fewest that still make it can be told by leaving some out.
//!
//! Invariants: who lies does so from the beginning and collects nothing itself; a crash leaves what was durable, and of what
//! was being written anything.

use std::{fmt, time::Duration};

use clap::ValueEnum as _;
use firmesh_node_core::swarm::{FetchFailure, Input, Source};
use firmesh_protocol::{pieces::PieceSet, time::Timestamp};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use serde::Serialize;

use super::{Event, LATENCY, START, Topology, World, fluid::FlowId};

/// How a member lies. All are connected, and rank as importers like everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// Serves bytes that it made up.
    WrongBytes,
    /// Serves the bytes of another piece, and says again and again what it said at first.
    Replay,
    /// Announces what it does not hold, and says so when it is asked.
    NotHeld,
    /// Takes requests and answers nothing.
    Silence,
    /// Serves what is right at a fiftieth of its link's rate.
    Drip,
    /// Serves the first half of each piece and no more.
    Stall,
    /// Announces a piece now and then, so that it seems to take part, and answers nothing.
    Dawdle,
}

impl Lie {
    /// Whether what it serves does not hash to the root.
    pub(super) fn corrupts(self) -> bool {
        matches!(self, Self::WrongBytes | Self::Replay)
    }

    /// Whether it answers no request.
    pub(super) fn is_mute(self) -> bool {
        matches!(self, Self::Silence | Self::Dawdle)
    }
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Trouble {
    /// A node lies from the beginning, and claims so many percent of the pieces.
    Liar {
        /// Counted rack by rack.
        node: usize,
        /// How.
        lie: Lie,
        /// Of the pieces.
        claims_percent: u32,
    },
    /// A node's process is killed.
    Crash {
        /// Counted rack by rack.
        node: usize,
        /// When.
        at_ms: u64,
        /// After how long it is started again, if ever.
        back_after_ms: Option<u64>,
    },
    /// Of so many requests one is lost, and of so many transfers one broken off; connections break too, which is the only way
    /// to lose a word.
    Loss {
        /// How seldom.
        one_in: u32,
        /// Until when.
        until_ms: u64,
    },
    /// A node's disk refuses every write.
    DiskFails {
        /// Counted rack by rack.
        node: usize,
        /// From when.
        from_ms: u64,
        /// Until when.
        until_ms: u64,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Liar {
                node,
                lie,
                claims_percent,
            } => write!(
                f,
                "node {node} lies ({lie:?}) and claims {claims_percent} % of the pieces"
            ),
            Self::Crash {
                node,
                at_ms,
                back_after_ms: Some(back),
            } => write!(f, "node {node} crashes at {at_ms} ms and is back after {back} ms"),
            Self::Crash { node, at_ms, .. } => write!(f, "node {node} dies at {at_ms} ms"),
            Self::Loss { one_in, until_ms } => write!(f, "one in {one_in} requests is lost until {until_ms} ms"),
            Self::DiskFails {
                node,
                from_ms,
                until_ms,
            } => write!(
                f,
                "the disk of node {node} refuses writes from {from_ms} to {until_ms} ms"
            ),
        }
    }
}

/// How much goes wrong, in percent of the nodes, and of the requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub struct Adversity {
    /// Percent of the nodes that lie.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..100))]
    pub byzantine: u32,
    /// How they lie; each draws one of all if none is given.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub lies: Vec<Lie>,
    /// Percent of the others that crash; one in four of these for good.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub crashes: u32,
    /// Percent of the requests and transfers that are lost.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=50))]
    pub loss: u32,
    /// Percent of the honest nodes whose disk refuses writes for some seconds.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub bad_disks: u32,
}

impl Adversity {
    /// Whether nothing goes wrong.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Draws who it befalls and when.
    #[must_use]
    pub fn draw(&self, topology: &Topology, seed: u64) -> Vec<Trouble> {
        let mut chance = Chance::new(seed);
        let mut nodes: Vec<_> = (0..topology.count() as usize).collect();
        chance.shuffle(&mut nodes);
        let percent = |percent: u32, of: usize| (of * percent as usize).div_ceil(100);
        let lies = if self.lies.is_empty() {
            Lie::value_variants()
        } else {
            &self.lies
        };
        let (liars, honest) = nodes.split_at(percent(self.byzantine, nodes.len()));
        let span_ms = (topology.bound_s() * 1e3) as u64;
        let mut troubles: Vec<_> = liars.iter().map(|&node| chance.liar(node, lies)).collect();
        let struck = honest.iter().take(percent(self.crashes, honest.len()));
        troubles.extend(struck.map(|&node| chance.crash(node, span_ms)));
        let refusing = honest.iter().rev().take(percent(self.bad_disks, honest.len()));
        troubles.extend(refusing.map(|&node| chance.disk(node, span_ms)));
        if let Some(one_in) = 100_u32.checked_div(self.loss) {
            troubles.push(Trouble::Loss {
                one_in,
                until_ms: 2 * span_ms,
            });
        }
        troubles
    }
}

/// A seeded source of chance with the draws that troubles need.
#[derive(Debug)]
pub(super) struct Chance(ChaCha8Rng);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Apart from what the world draws from the same seed.
        rng.set_stream(1);
        Self(rng)
    }

    /// Less than `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    pub(super) fn one_in(&mut self, times: u32) -> bool {
        self.below(u64::from(times.max(1))) == 0
    }

    /// One of some; there must be one.
    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    pub(super) fn liar(&mut self, node: usize, lies: &[Lie]) -> Trouble {
        let lie = self.pick(lies);
        Trouble::Liar {
            node,
            lie,
            claims_percent: match lie {
                Lie::Dawdle => 0,
                _ => self.pick(&[30, 60, 100, 100]),
            },
        }
    }

    /// A crash in the first `span_ms`.
    pub(super) fn crash(&mut self, node: usize, span_ms: u64) -> Trouble {
        let at_ms = self.below(span_ms.max(1));
        let back_after_ms = (!self.one_in(4)).then(|| 500 + self.below(8_000));
        Trouble::Crash {
            node,
            at_ms,
            back_after_ms,
        }
    }

    pub(super) fn disk(&mut self, node: usize, span_ms: u64) -> Trouble {
        let from_ms = self.below(span_ms.max(1));
        Trouble::DiskFails {
            node,
            from_ms,
            until_ms: from_ms + 200 + self.below(5_000),
        }
    }

    /// So many of the pieces.
    fn pieces(&mut self, total: u32, percent: u32) -> PieceSet {
        let mut pieces = PieceSet::empty(total);
        for piece in 0..total {
            if self.below(100) < u64::from(percent) {
                pieces.insert(piece);
            }
        }
        pieces
    }
}

/// A liar repeats itself, or says a little more, this often: before it is taken to have stalled.
pub(super) const REPEATS: Duration = Duration::from_secs(4);
/// A connection breaks at one in so many words for each one of the requests that is lost.
const WORDS: u32 = 500;
/// A transfer that is broken off ends within this.
const BREAKS_WITHIN_MS: u64 = 300;

fn at(ms: u64) -> Timestamp {
    Timestamp::after_start(Duration::from_millis(ms))
}

impl World {
    /// Foresees what goes wrong.
    pub(super) fn beset(&mut self, troubles: Vec<Trouble>) {
        for trouble in &troubles {
            match *trouble {
                Trouble::Liar {
                    node,
                    lie,
                    claims_percent,
                } => {
                    let pieces = self.chance.pieces(self.layout.pieces(), claims_percent);
                    let node = &mut self.nodes[node];
                    (node.lie, node.held) = (Some(lie), pieces);
                    if lie == Lie::Drip {
                        node.drip = Some(self.fluid.link(self.topology.node_mbit as f64 / 50.0));
                    }
                }
                Trouble::Crash {
                    node,
                    at_ms,
                    back_after_ms,
                } => {
                    let back = back_after_ms.map(Duration::from_millis);
                    self.later(Duration::from_millis(at_ms), Event::Crash(node, back));
                }
                Trouble::Loss { .. } | Trouble::DiskFails { .. } => {}
            }
        }
        self.troubles = troubles;
    }

    /// When the last of the troubles that pass has passed.
    #[must_use]
    pub fn calm_at(&self) -> Duration {
        let ends = self.troubles.iter().map(|trouble| match *trouble {
            Trouble::Liar { .. } => 0,
            Trouble::Crash {
                at_ms, back_after_ms, ..
            } => at_ms + back_after_ms.unwrap_or(0),
            Trouble::Loss { until_ms, .. } | Trouble::DiskFails { until_ms, .. } => until_ms,
        });
        Duration::from_millis(ends.max().unwrap_or(0))
    }

    /// Of so many requests one is lost now, if any.
    fn loss(&self) -> Option<u32> {
        self.troubles.iter().find_map(|trouble| match *trouble {
            Trouble::Loss { one_in, until_ms } => (self.now < at(until_ms)).then_some(one_in),
            _ => None,
        })
    }

    pub(super) fn loses_request(&mut self) -> bool {
        self.loss().is_some_and(|one_in| self.chance.one_in(one_in))
    }

    /// A word that is lost breaks the connection: both sides notice, and connect anew.
    pub(super) fn loses_word(&mut self, from: usize, to: usize) -> bool {
        let lost = self.loss().is_some_and(|one_in| self.chance.one_in(one_in * WORDS));
        if lost && self.nodes[from].connected.contains_key(&to) {
            self.part(from, to);
            self.later(START, Event::Met(from, to));
        }
        lost
    }

    /// Ends a connection, which both sides notice at once.
    pub(super) fn part(&mut self, one: usize, other: usize) {
        for (at, peer) in [(one, other), (other, one)] {
            if self.nodes[at].connected.remove(&peer).is_some() {
                let (life, peer) = (self.nodes[at].life, self.nodes[peer].id.clone());
                self.later(Duration::ZERO, Event::Told(at, life, Input::PeerDown { peer }));
            }
        }
    }

    /// May foresee that a transfer between nodes is broken off.
    pub(super) fn endanger(&mut self, flow: FlowId) {
        if self.loses_request() {
            let after = Duration::from_millis(self.chance.below(BREAKS_WITHIN_MS));
            self.later(after, Event::BrokenOff(flow));
        }
    }

    pub(super) fn broken_off(&mut self, flow: FlowId) {
        if let Some((at, id)) = self.flows.remove(&flow) {
            self.fluid.stop(flow);
            self.line.ended(flow);
            let (why, life) = (FetchFailure::Unreachable, self.nodes[at].life);
            self.later(LATENCY, Event::Told(at, life, Input::Failed { id, why }));
        }
    }

    pub(super) fn disk_fails(&self, node: usize) -> bool {
        let fails = |trouble: &Trouble| {
            matches!(*trouble, Trouble::DiskFails { node: of, from_ms, until_ms }
                if of == node && at(from_ms) <= self.now && self.now < at(until_ms))
        };
        self.troubles.iter().any(fails)
    }

    /// A process ends without a word, and may be started again.
    pub(super) fn crash(&mut self, at: usize, back: Option<Duration>) {
        if self.nodes[at].swarm.is_none() {
            return;
        }
        self.kill(at);
        match back {
            Some(back) => self.later(back, Event::Started(at)),
            None => self.nodes[at].is_dead = true,
        }
    }

    /// How the source of a request lies, if it does.
    pub(super) fn lie_of(&self, source: &Source) -> Option<Lie> {
        self.nodes[self.place(source)?].lie
    }

    /// A liar speaks up again.
    pub(super) fn repeat(&mut self, liar: usize) {
        let total = self.layout.pieces();
        let (peer, artifact) = (self.nodes[liar].id.clone(), self.artifact);
        let word = match self.nodes[liar].lie {
            Some(Lie::Replay) => Input::PeerHolds {
                peer,
                artifact,
                pieces: self.nodes[liar].held.clone(),
            },
            Some(Lie::Dawdle) => Input::PeerGot {
                peer,
                artifact,
                pieces: vec![self.chance.below(u64::from(total)) as u32],
            },
            _ => return,
        };
        for other in self.nodes[liar].connected.keys().copied().collect::<Vec<_>>() {
            self.say(liar, other, word.clone());
        }
        let life = self.nodes[liar].life;
        self.later(REPEATS, Event::Repeats(liar, life));
    }
}
