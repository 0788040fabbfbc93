//! What goes wrong in a run: a list made from the seed, so that a failure can be told with the fewest entries of it.

use std::fmt;

use serde::Serialize;

use super::{
    Profile,
    dice::Dice,
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
    /// A node's process is killed, and started again later.
    KillNode { node: usize, down_ms: u64 },
    /// A node's process is killed at one of its next writes, before or after it is durable.
    KillNodeAtWrite {
        node: usize,
        writes: u64,
        durable: bool,
        down_ms: u64,
    },
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
    /// An approver pulls the brake on a campaign, at one node.
    Brake { campaign: usize, node: usize },
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} s  {:?}", self.at_ms as f64 / 1e3, self.fault)
    }
}

/// The faults of a seed.
pub(super) fn draw(profile: Profile, scenario: &Scenario, dice: &mut Dice) -> Vec<Planned> {
    let mut faults = Vec::new();
    if profile != Profile::Network || dice.one_in(2) {
        bad_images(profile, scenario, dice, &mut faults);
    }
    let count = match profile {
        Profile::Power => dice.between(5, 40),
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
            Profile::Power => power_fault(scenario, dice),
            Profile::Network => network_fault(scenario, dice),
            Profile::Liar => match dice.below(4) {
                0 => device_fault(scenario, dice),
                1 => network_fault(scenario, dice),
                _ => Fault::Lie {
                    for_ms: 1_000 * dice.between(10, 1_200),
                },
            },
            Profile::Chaos => match dice.below(6) {
                0 => device_fault(scenario, dice),
                1 => power_fault(scenario, dice),
                2 => operator_fault(scenario, dice),
                _ => network_fault(scenario, dice),
            },
        };
        faults.push(Planned { at_ms, fault });
    }
    faults.sort_by_key(|planned| planned.at_ms);
    faults
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
            Kind::Host => Misbehaviour::FailBoot {
                sha256: image(Kind::Host, "2.0"),
            },
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
