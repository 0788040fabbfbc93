//! What goes wrong in a run: a list made from the seed, so that a failure can be told with the fewest entries of it.

use std::fmt;

use firmesh_coordinator_core::Input;
use firmesh_protocol::brake::Braked;
use serde::Serialize;

use super::{
    Event, MAIN, NodeEvent, OLD, Profile, World,
    dice::Dice,
    network::Flap,
    operator::Order,
    scenario::{Kind, Scenario, image},
};
use crate::device::Misbehaviour;

/// All faults have ended by then, in milliseconds of virtual time; what is healed is healed then.
pub(super) const QUIET_AFTER_MS: u64 = 2_400_000;
/// Most faults strike while something goes on.
const BUSY_MS: u64 = 900_000;

/// Something that goes wrong, or that a person does, at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub fault: Fault,
}

/// What can go wrong. Numbers of nodes, devices and campaigns are those of the seed's fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub enum Fault {
    /// A device misbehaves from now on.
    Misbehave { device: usize, how: Misbehaviour },
    /// Power fails and comes back at once.
    PowerCut { device: usize },
    /// Power fails after such a part of the device's next write of a slot.
    PowerCutInWrite { device: usize, permille: u64 },
    /// Power fails in the middle of so many of a thousand of the device's writes of a slot, and right before or after as
    /// many of what it writes for its boot loader.
    Shaky { device: usize, permille: u64 },
    /// A node's process is killed, and started again later.
    KillNode { node: usize, down_ms: u64 },
    /// A node's process is killed at one of its next writes, before or after it is durable.
    KillNodeAtWrite {
        node: usize,
        writes: u64,
        durable: bool,
        down_ms: u64,
    },
    /// A node is gone for good, with all that it had to say.
    LoseNode { node: usize },
    /// The coordinator's process is killed, and started again later.
    KillCoordinator { down_ms: u64 },
    /// The coordinator's process is killed at one of its next commits, before or after it is durable.
    KillCoordinatorAtCommit { commits: u64, durable: bool, down_ms: u64 },
    /// The coordinator's database refuses its next commits.
    RefuseCommits { commits: u64 },
    /// Another coordinator, on a copy of the database, takes over; the old one goes on for those who still reach it.
    TakeOver { old_keeps: Vec<usize>, for_ms: u64 },
    /// What a node sends, what it is sent, or both, is lost.
    Cut {
        node: usize,
        up: bool,
        down: bool,
        for_ms: u64,
    },
    /// Nodes do not hear each other.
    CutMesh { for_ms: u64 },
    /// So many of a thousand messages are lost.
    Lose { permille: u64, for_ms: u64 },
    /// Messages take longer.
    Slow { by_ms: u64, for_ms: u64 },
    /// A node's link comes and goes.
    Flap {
        node: usize,
        on_ms: u64,
        off_ms: u64,
        for_ms: u64,
    },
    /// So many of a thousand messages are overtaken by later ones.
    HoldBack { permille: u64, by_ms: u64, for_ms: u64 },
    /// So many of a thousand messages come a second time, up to so much later.
    Replay { permille: u64, by_ms: u64, for_ms: u64 },
    /// A device answers nobody, whatever it is at.
    Silence { device: usize, for_ms: u64 },
    /// A node's clock is off by this, and drifts by so many parts in a million.
    Skew { node: usize, by_ms: i64, drift_ppm: i64 },
    /// The coordinator's clock is off by this.
    SkewCoordinator { by_ms: i64 },
    /// The coordinator signs permits that nobody should follow, for as long.
    Lie { for_ms: u64 },
    /// An operator pauses a campaign, and resumes it later.
    Pause { campaign: usize, for_ms: u64 },
    /// An operator cancels a campaign.
    Cancel { campaign: usize },
    /// An operator sends devices back: of a wave, or one, or all.
    SendBack {
        campaign: usize,
        wave: Option<u32>,
        device: Option<usize>,
    },
    /// An operator closes an attempt by force, or a campaign.
    Close { campaign: usize, device: Option<usize> },
    /// An administrator takes a host into service.
    TakeBack { host: usize },
    /// An approver pulls the brake on a campaign, at one node.
    Brake { campaign: usize, node: usize },
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} s  {:?}", self.at_ms as f64 / 1e3, self.fault)
    }
}

/// Versions on the way of the first campaign, where it has one, and the one at its end.
const STEPS: [&str; 3] = ["1.1", "1.2", "2.0"];

/// The faults of a seed.
pub(super) fn draw(profile: Profile, scenario: &Scenario, dice: &mut Dice, later: Option<&mut Dice>) -> Vec<Planned> {
    let mut faults = Vec::new();
    if profile == Profile::Slots {
        for device in 0..scenario.devices.len() {
            let permille = dice.between(300, 1_000);
            let fault = Fault::Shaky { device, permille };
            faults.push(Planned { at_ms: 0, fault });
        }
        for _ in 0..dice.between(0, 4) {
            let at_ms = dice.below(QUIET_AFTER_MS);
            let fault = match dice.one_in(3) {
                true => process_fault(scenario, dice),
                false => Fault::Silence {
                    device: dice.index(scenario.devices.len()),
                    for_ms: 1_000 * dice.between(20, 200),
                },
            };
            faults.push(Planned { at_ms, fault });
        }
        return faults;
    }
    if profile != Profile::Network || dice.one_in(2) {
        bad_images(profile, scenario, dice, &mut faults);
    }
    let count = match profile {
        Profile::Power => dice.between(5, 40),
        Profile::Hosts => dice.between(3, 14),
        _ => dice.between(0, 10),
    };
    for _ in 0..count {
        let at_ms = if dice.one_in(4) {
            dice.below(QUIET_AFTER_MS)
        } else {
            dice.below(BUSY_MS)
        };
        let fault = match profile {
            Profile::Devices => device_fault(scenario, dice),
            Profile::Rollback if dice.one_in(2) => process_fault(scenario, dice),
            Profile::Rollback => network_fault(scenario, dice),
            Profile::Power | Profile::Slots => power_fault(scenario, dice),
            Profile::Network => network_fault(scenario, dice),
            Profile::Liar => match dice.below(8) {
                0 => device_fault(scenario, dice),
                1 => network_fault(scenario, dice),
                2 => process_fault(scenario, dice),
                3 => Fault::Brake {
                    campaign: dice.index(scenario.campaigns.len()),
                    node: dice.index(scenario.places.len()),
                },
                _ => Fault::Lie {
                    for_ms: 1_000 * dice.between(10, 1_200),
                },
            },
            Profile::Retries | Profile::Hops => match dice.below(24) {
                0 => Fault::Lie {
                    for_ms: 1_000 * dice.between(10, 1_200),
                },
                1 => operator_fault(scenario, dice),
                2..=5 => process_fault(scenario, dice),
                6..=8 => network_fault(scenario, dice),
                9..=11 => power_fault(scenario, dice),
                _ => device_fault(scenario, dice),
            },
            Profile::Batches => match dice.below(16) {
                0 | 1 => Fault::Lie {
                    for_ms: 1_000 * dice.between(10, 1_200),
                },
                2 => operator_fault(scenario, dice),
                3..=7 => process_fault(scenario, dice),
                8..=10 => network_fault(scenario, dice),
                11 => power_fault(scenario, dice),
                _ => device_fault(scenario, dice),
            },
            Profile::Hosts => match dice.below(16) {
                0 | 1 => Fault::TakeBack {
                    host: dice.index(scenario.hosts.len()),
                },
                2 => device_fault(scenario, dice),
                3 => power_fault(scenario, dice),
                4 => operator_fault(scenario, dice),
                5 => network_fault(scenario, dice),
                _ => process_fault(scenario, dice),
            },
            Profile::Orders if dice.one_in(2) => send_back(scenario, dice),
            Profile::Answers if dice.one_in(4) => close(scenario, dice),
            Profile::Chaos | Profile::Orders | Profile::Answers | Profile::Units | Profile::Pools => {
                match dice.below(6) {
                    0 => device_fault(scenario, dice),
                    1 => power_fault(scenario, dice),
                    2 => operator_fault(scenario, dice),
                    _ => network_fault(scenario, dice),
                }
            }
        };
        faults.push(Planned { at_ms, fault });
    }
    faults.sort_by_key(|planned| planned.at_ms);
    if let Some(dice) = later {
        for _ in 0..dice.between(0, 4) {
            let at_ms = dice.below(BUSY_MS);
            let fault = later_fault(profile, scenario, dice);
            faults.push(Planned { at_ms, fault });
        }
    }
    faults
}

/// What was added when seeds had names already.
fn later_fault(profile: Profile, scenario: &Scenario, dice: &mut Dice) -> Fault {
    let node = dice.index(scenario.places.len());
    let for_ms = 1_000 * dice.between(20, 900);
    let kind = match profile {
        Profile::Devices => dice.between(0, 2) * 8,
        // A liar may name an order that is about others.
        Profile::Orders if dice.one_in(2) => return Fault::Lie { for_ms },
        Profile::Power
        | Profile::Slots
        | Profile::Orders
        | Profile::Answers
        | Profile::Units
        | Profile::Retries
        | Profile::Batches
        | Profile::Hops
        | Profile::Pools
        | Profile::Hosts => 0,
        Profile::Network => dice.between(2, 8),
        Profile::Rollback | Profile::Chaos | Profile::Liar => dice.below(9),
    };
    match kind {
        0 | 1 => Fault::Silence {
            device: dice.index(scenario.devices.len()),
            for_ms,
        },
        2 | 3 => Fault::Flap {
            node,
            on_ms: dice.between(500, 30_000),
            off_ms: dice.between(500, 15_000),
            for_ms,
        },
        8.. => Fault::LoseNode { node },
        4 | 5 => Fault::HoldBack {
            permille: dice.between(10, 500),
            by_ms: dice.between(1_000, 60_000),
            for_ms,
        },
        _ => Fault::Replay {
            permille: dice.between(100, 900),
            by_ms: 1_000 * dice.between(1, 900),
            for_ms,
        },
    }
}

/// An image that does not work on some of its devices: what gates are for.
fn bad_images(profile: Profile, scenario: &Scenario, dice: &mut Dice, faults: &mut Vec<Planned>) {
    // From the beginning, or once devices have been updated that will have to go back.
    let at_ms = match profile {
        Profile::Rollback => dice.between(60_000, 300_000),
        _ if dice.one_in(2) => return,
        _ if dice.one_in(3) => 0,
        _ => dice.below(600_000),
    };
    let share = dice.between(2, 4);
    for (device, placed) in scenario.devices.iter().enumerate() {
        if dice.below(4) >= share {
            continue;
        }
        let how = match placed.kind {
            Kind::Host => {
                let version = match profile {
                    Profile::Hops => *dice.pick(&STEPS),
                    _ => "2.0",
                };
                let sha256 = image(Kind::Host, version);
                Misbehaviour::FailBoot { sha256 }
            }
            Kind::Bmc | Kind::Bios => Misbehaviour::FailUpdate,
        };
        faults.push(Planned {
            at_ms,
            fault: Fault::Misbehave { device, how },
        });
    }
}

fn device_fault(scenario: &Scenario, dice: &mut Dice) -> Fault {
    let device = dice.index(scenario.devices.len());
    let how = match dice.below(8) {
        0 => Misbehaviour::Stall,
        1 => Misbehaviour::Lie,
        2 => Misbehaviour::NeverBack,
        3 => Misbehaviour::FailUpdate,
        4 => Misbehaviour::SlowBoot {
            ms: 1_000 * dice.between(5, 400),
        },
        5 => return Fault::PowerCut { device },
        _ => return process_fault(scenario, dice),
    };
    Fault::Misbehave { device, how }
}

fn power_fault(scenario: &Scenario, dice: &mut Dice) -> Fault {
    let device = dice.index(scenario.devices.len());
    match dice.below(8) {
        0 => Fault::PowerCut { device },
        1 => process_fault(scenario, dice),
        _ => Fault::PowerCutInWrite {
            device,
            permille: dice.below(1_001),
        },
    }
}

fn process_fault(scenario: &Scenario, dice: &mut Dice) -> Fault {
    let node = dice.index(scenario.places.len());
    let down_ms = 1_000
        * if dice.one_in(4) {
            dice.between(60, 1_500)
        } else {
            dice.between(1, 60)
        };
    let (durable, ordinal) = (dice.one_in(2), dice.between(1, 30));
    match dice.below(6) {
        0 => Fault::KillNode { node, down_ms },
        1 => Fault::KillCoordinator { down_ms },
        2 => Fault::KillCoordinatorAtCommit {
            commits: ordinal,
            durable,
            down_ms,
        },
        3 => Fault::RefuseCommits {
            commits: ordinal % 4 + 1,
        },
        _ => Fault::KillNodeAtWrite {
            node,
            writes: ordinal,
            durable,
            down_ms,
        },
    }
}

fn network_fault(scenario: &Scenario, dice: &mut Dice) -> Fault {
    let node = dice.index(scenario.places.len());
    let for_ms = 1_000
        * if dice.one_in(4) {
            dice.between(60, 1_500)
        } else {
            dice.between(1, 90)
        };
    match dice.below(10) {
        0 | 1 => {
            let way = dice.below(3);
            Fault::Cut {
                node,
                up: way != 1,
                down: way != 0,
                for_ms,
            }
        }
        2 => Fault::CutMesh { for_ms },
        3 => Fault::Lose {
            permille: dice.between(10, 600),
            for_ms,
        },
        4 => Fault::Slow {
            by_ms: dice.between(100, 20_000),
            for_ms,
        },
        5 => Fault::Skew {
            node,
            by_ms: dice.below(50_000).cast_signed() - 25_000,
            drift_ppm: dice.below(1_000).cast_signed() - 500,
        },
        6 => Fault::SkewCoordinator {
            by_ms: dice.below(50_000).cast_signed() - 25_000,
        },
        7 => Fault::TakeOver {
            old_keeps: (0..scenario.places.len()).filter(|_| dice.one_in(2)).collect(),
            for_ms,
        },
        _ => process_fault(scenario, dice),
    }
}

fn operator_fault(scenario: &Scenario, dice: &mut Dice) -> Fault {
    let campaign = dice.index(scenario.campaigns.len());
    match dice.below(3) {
        0 => Fault::Pause {
            campaign,
            for_ms: 1_000 * dice.between(5, 600),
        },
        1 => Fault::Cancel { campaign },
        _ => Fault::Brake {
            campaign,
            node: dice.index(scenario.places.len()),
        },
    }
}

fn send_back(scenario: &Scenario, dice: &mut Dice) -> Fault {
    let campaign = dice.index(scenario.campaigns.len());
    let (wave, device) = match dice.below(4) {
        0 => (None, None),
        1 => (Some(dice.below(3) as u32), None),
        _ => (None, Some(dice.index(scenario.devices.len()))),
    };
    Fault::SendBack { campaign, wave, device }
}

fn close(scenario: &Scenario, dice: &mut Dice) -> Fault {
    let campaign = dice.index(scenario.campaigns.len());
    let device = (!dice.one_in(5)).then(|| dice.index(scenario.devices.len()));
    Fault::Close { campaign, device }
}

impl World {
    pub(super) fn strike(&mut self, number: usize) {
        let now_ms = self.now_ms;
        let fault = self.faults[number].fault.clone();
        self.tell(|| format!("fault {number}: {fault:?}"));
        let until = |for_ms: u64| (now_ms + for_ms).min(QUIET_AFTER_MS);
        match fault {
            Fault::Misbehave { device, how } => self.misbehave(device, how),
            Fault::PowerCut { device } => self.cut_power(device),
            Fault::PowerCutInWrite { device, permille } => self.cuts_in_write[device].push(permille),
            Fault::Shaky { device, permille } => self.shaky[device] = permille,
            Fault::KillNode { node, down_ms } => {
                self.watch.tally.kills += 1;
                self.kill_node(node, down_ms);
            }
            Fault::KillNodeAtWrite {
                node,
                writes,
                durable,
                down_ms,
            } => {
                self.watch.tally.kills += 1;
                self.nodes[node].dies_at = Some((writes, durable, down_ms));
            }
            Fault::LoseNode { node } => {
                self.watch.tally.kills += 1;
                self.nodes[node].is_lost = true;
                self.kill_node(node, 0);
            }
            Fault::KillCoordinator { down_ms } => {
                self.watch.tally.kills += 1;
                self.coordinators[MAIN].kill();
                self.after(down_ms, Event::CoordinatorUp(MAIN));
            }
            Fault::KillCoordinatorAtCommit {
                commits,
                durable,
                down_ms,
            } => self.coordinators[MAIN].dies_at = Some((commits, durable, down_ms)),
            Fault::RefuseCommits { commits } => self.coordinators[MAIN].refusing = commits,
            Fault::TakeOver { old_keeps, for_ms } => {
                if self.coordinators[MAIN].is_up() && !self.coordinators[OLD].is_up() {
                    let new = self.coordinators[MAIN].copy();
                    self.coordinators[OLD] = std::mem::replace(&mut self.coordinators[MAIN], new);
                    self.coordinators[MAIN].start(&self.scenario, now_ms);
                    old_keeps.into_iter().for_each(|n| self.follows[n] = OLD);
                    self.ask_for_tick(OLD);
                    self.command(MAIN, Input::Tick);
                    self.after(until(for_ms) - now_ms, Event::OldGone);
                }
            }
            Fault::Cut { node, up, down, for_ms } => {
                if up {
                    self.links.up_cut_until[node] = until(for_ms);
                }
                if down {
                    self.links.down_cut_until[node] = until(for_ms);
                }
            }
            Fault::CutMesh { for_ms } => self.links.mesh_cut_until = until(for_ms),
            Fault::Lose { permille, for_ms } => self.links.lose = (permille, until(for_ms)),
            Fault::Slow { by_ms, for_ms } => self.links.slow = (by_ms, until(for_ms)),
            Fault::Flap {
                node,
                on_ms,
                off_ms,
                for_ms,
            } => {
                let (since, until) = (now_ms, until(for_ms));
                self.links.flaps[node] = Some(Flap {
                    since,
                    until,
                    on_ms,
                    off_ms,
                });
            }
            Fault::HoldBack {
                permille,
                by_ms,
                for_ms,
            } => self.links.hold_back = (permille, by_ms, until(for_ms)),
            Fault::Replay {
                permille,
                by_ms,
                for_ms,
            } => self.links.replay = (permille, by_ms, until(for_ms)),
            Fault::Silence { device, for_ms } => self.devices[device].silence(now_ms, until(for_ms)),
            Fault::Skew { node, by_ms, drift_ppm } => {
                (self.nodes[node].skew_ms, self.nodes[node].drift_ppm) = (by_ms, drift_ppm);
            }
            Fault::SkewCoordinator { by_ms } => self.coordinators[MAIN].skew_ms = by_ms,
            Fault::Lie { for_ms } => self.links.lies_until = until(for_ms),
            Fault::Pause { campaign, for_ms } => self.order(Order::Pause(campaign, for_ms)),
            Fault::Cancel { campaign } => self.order(Order::Cancel(campaign)),
            Fault::Close { campaign, device } => self.order(Order::Close(campaign, device)),
            Fault::SendBack { campaign, wave, device } => self.order(Order::SendBack(campaign, wave, device)),
            Fault::TakeBack { host } => self.take_back(host),
            Fault::Brake { campaign, node } => {
                let approved = &self.scenario.campaigns[campaign].campaign;
                let braked = Braked::Campaign {
                    id: approved.manifest.id.clone(),
                    manifest_sha256: approved.manifest_sha256,
                };
                let incarnation = self.nodes[node].incarnation;
                self.after(0, Event::Node(node, incarnation, NodeEvent::Brake(braked)));
            }
        }
    }

    fn misbehave(&mut self, d: usize, how: Misbehaviour) {
        // An image that has come up on a host comes up again.
        let is_proven = |sha256| self.devices[d].has_run(sha256);
        match how {
            Misbehaviour::FailBoot { sha256 } if is_proven(sha256) => {}
            _ => self.devices[d].misbehave(how),
        }
    }

    pub(super) fn cut_power(&mut self, d: usize) {
        self.tell(|| format!("power cut at device {d}"));
        self.watch.tally.power_cuts += 1;
        self.watch.dark.insert(d, self.now_ms);
        if self.devices[d].cut_power(self.now_ms) {
            self.watch.tally.cuts_in_write += 1;
        }
        self.judge_restart(d);
    }
}
