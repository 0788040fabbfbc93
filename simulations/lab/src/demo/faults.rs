//! What goes wrong on purpose, and when.

use std::{collections::BTreeMap, str::FromStr};

use anyhow::Result;
use firmesh_node::status::Status;
use firmesh_protocol::{api::Traffic, ids::NodeId};

use super::{
    progress::{Screen, held},
    world::{COORDINATOR, World},
};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A node is killed in the middle of the transfer, and started again.
    KillNode,
    /// A member of the fleet serves corrupted pieces.
    CorruptPeer,
    /// The coordinator, and the origin with it, is killed once a copy is in the mesh, and is back once every node has
    /// the image.
    CoordinatorDown,
    /// A device of the last wave fails its update: the campaign has to roll that wave back.
    DeviceFails,
}

impl Fault {
    const ALL: [(&str, Self); 4] = [
        ("kill-node", Self::KillNode),
        ("corrupt-peer", Self::CorruptPeer),
        ("coordinator-down", Self::CoordinatorDown),
        ("device-fails", Self::DeviceFails),
    ];
}

impl FromStr for Fault {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, fault)| *fault);
        known.ok_or_else(|| format!("there are {}", Self::ALL.map(|(name, _)| name).join(", ")))
    }
}

/// The faults that strike during the transfer.
#[derive(Debug)]
pub(super) struct Faults {
    victim: Option<(NodeId, Stage)>,
    coordinator: Option<Stage>,
    /// What nodes that were killed had moved before.
    pub(super) lost: Traffic,
}

/// How far a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Awaited,
    Struck,
    Mended,
}

impl Faults {
    pub(super) fn new(faults: &[Fault], world: &World) -> Self {
        let wanted = |fault| faults.contains(&fault);
        let victim = world.layout.nodes.last().filter(|_| wanted(Fault::KillNode));
        Self {
            victim: victim.map(|plan| (plan.node.clone(), Stage::Awaited)),
            coordinator: wanted(Fault::CoordinatorDown).then_some(Stage::Awaited),
            lost: Traffic::default(),
        }
    }

    /// Whether every fault has struck and is mended.
    pub(super) fn are_over(&self) -> bool {
        let stages = self.victim.iter().map(|(_, stage)| *stage).chain(self.coordinator);
        stages.into_iter().all(|stage| stage == Stage::Mended)
    }

    /// Whether the coordinator is down on purpose.
    pub(super) fn coordinator_is_down(&self) -> bool {
        self.coordinator == Some(Stage::Struck)
    }

    /// Strikes if the moment has come. `wanted` pieces make a complete node.
    pub(super) async fn strike(
        &mut self,
        world: &mut World,
        nodes: &BTreeMap<NodeId, Status>,
        wanted: u64,
        screen: &Screen,
    ) -> Result<()> {
        if let Some((node, stage)) = &mut self.victim {
            let status = nodes.get(node);
            match stage {
                Stage::Awaited if status.is_some_and(|status| held(status) * 5 >= wanted) => {
                    let (pieces, traffic) = status.map(|status| (held(status), status.traffic)).unwrap_or_default();
                    world.kill(node.as_str())?;
                    self.lost = traffic;
                    screen.say(&format!("fault: {node} was killed with {pieces} of {wanted} pieces"));
                    *stage = Stage::Struck;
                }
                Stage::Struck => {
                    world.restart_node(node).await?;
                    screen.say(&format!("fault: {node} was started again"));
                    *stage = Stage::Mended;
                }
                Stage::Awaited | Stage::Mended => {}
            }
        }
        let complete = nodes.values().filter(|status| held(status) >= wanted).count();
        match self.coordinator {
            Some(Stage::Awaited) if complete > 0 => {
                world.kill(COORDINATOR)?;
                let held: u64 = nodes.values().map(held).sum();
                screen.say(&format!(
                    "fault: the coordinator was killed; one copy is in the mesh, {held} of {} pieces are where they \
                     should be",
                    wanted * nodes.len() as u64
                ));
                self.coordinator = Some(Stage::Struck);
            }
            Some(Stage::Struck) if complete == world.layout.nodes.len() => {
                world.processes.restart(COORDINATOR)?;
                screen.say("fault: every node has the whole image; the coordinator was started again");
                self.coordinator = Some(Stage::Mended);
            }
            _ => {}
        }
        Ok(())
    }
}
