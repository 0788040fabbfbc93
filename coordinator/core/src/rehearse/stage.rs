//! What all runs of a rehearsal have in common: the plan by numbers, the times, and the campaign as the engine takes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_protocol::{
    api::CampaignState,
    ids::{DeviceId, NodeId, TopologyPath},
    manifest::{CampaignKind, CampaignManifest, Plan},
    rehearsal::{Fault, StepTime},
    time::Timestamp,
};

use super::{RehearsalFacts, RehearsalQuestion, RehearseError, times::Times, wires::site_of};
use crate::{CampaignRecord, Loaded, PossessionRecord};

/// A planned device, by numbers.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) device: DeviceId,
    pub(super) node: usize,
    pub(super) site: usize,
    pub(super) rack: usize,
    pub(super) wave: usize,
    pub(super) times: usize,
    /// How many installs its way has.
    pub(super) steps: u32,
}

/// What all runs have in common.
pub(super) struct Stage<'a> {
    pub(super) facts: &'a RehearsalFacts,
    pub(super) question: &'a RehearsalQuestion,
    pub(super) places: Vec<Place>,
    pub(super) numbers: BTreeMap<DeviceId, usize>,
    pub(super) nodes: Vec<NodeId>,
    /// The rack of each node.
    pub(super) node_racks: Vec<usize>,
    pub(super) sites: Vec<TopologyPath>,
    pub(super) racks: Vec<TopologyPath>,
    pub(super) times: Vec<Times>,
    pub(super) expires_at: Timestamp,
}

impl<'a> Stage<'a> {
    pub(super) fn new(facts: &'a RehearsalFacts, question: &'a RehearsalQuestion) -> Result<Self, RehearseError> {
        let (mut nodes, mut node_racks) = (Numbers::default(), Vec::new());
        let (mut sites, mut racks, mut kinds) = (Numbers::default(), Numbers::default(), Numbers::default());
        let (mut places, mut times) = (Vec::new(), Vec::new());
        for (wave, planned) in facts.plan.devices() {
            let id = &planned.device;
            let kind = facts
                .kinds
                .get(id)
                .ok_or_else(|| RehearseError::UnknownDevice(id.clone()))?;
            let image = facts.images.get(&planned.release);
            let image = image.ok_or_else(|| RehearseError::NoImage(planned.release.clone()))?.id;
            let (kind_number, is_new) = kinds.number(&(kind.clone(), planned.release.clone()));
            if is_new {
                let deadline = facts.manifest.deadlines.attempt_s;
                let release = (planned.release.as_str(), image);
                times.push(Times::new(kind, release, &facts.learned, &question.assume, deadline));
            }
            let (rack, _) = racks.number(&planned.rack);
            let (site, _) = sites.number(&site_of(&planned.rack));
            let (node, is_new) = nodes.number(&planned.node);
            if is_new {
                node_racks.push(rack);
            }
            places.push(Place {
                device: id.clone(),
                node,
                site,
                rack,
                wave,
                times: kind_number,
                steps: planned.steps(),
            });
        }
        let left = facts.manifest.expires.unix_seconds() - question.starts.unix_seconds();
        Ok(Self {
            facts,
            question,
            numbers: places
                .iter()
                .enumerate()
                .map(|(number, place)| (place.device.clone(), number))
                .collect(),
            places,
            nodes: nodes.names,
            node_racks,
            sites: sites.names,
            racks: racks.names,
            times,
            expires_at: Timestamp::after_start(Duration::from_secs(left.max(0).cast_unsigned())),
        })
    }

    /// Fills in what a fault leaves open.
    pub(super) fn settle(&self, fault: &Fault) -> Result<Fault, RehearseError> {
        match fault {
            Fault::Silent { rack: Some(rack) } if !self.racks.contains(rack) => {
                Err(RehearseError::UnknownRack(rack.clone()))
            }
            Fault::Silent { rack: None } => {
                let mut first = vec![0_usize; self.racks.len()];
                for place in self.places.iter().filter(|place| place.wave == 0) {
                    first[place.rack] += 1;
                }
                let fullest = self
                    .racks
                    .iter()
                    .zip(first)
                    .max_by_key(|(rack, devices)| (*devices, std::cmp::Reverse(*rack)));
                Ok(Fault::Silent {
                    rack: fullest.map(|(rack, _)| rack.clone()),
                })
            }
            settled => Ok(settled.clone()),
        }
    }

    /// What each step was taken to last.
    pub(super) fn step_times(&self) -> Vec<StepTime> {
        self.times.iter().flat_map(|times| times.said.clone()).collect()
    }

    /// The campaign just published, its nodes having proven what they hold.
    pub(super) fn loaded(&self) -> Loaded {
        let (facts, id) = (self.facts, &self.facts.manifest.id);
        let mut needed = BTreeSet::new();
        for (_, planned) in facts.plan.devices() {
            let images = planned.targets().filter_map(|target| facts.images.get(target));
            needed.extend(images.map(|image| (planned.node.clone(), image.id)));
        }
        let possession = needed.into_iter().map(|(node, artifact)| PossessionRecord {
            node,
            artifact,
            proven: true,
            wrong_proofs: 0,
        });
        let record = CampaignRecord {
            id: id.clone(),
            state: CampaignState::Scheduled,
            gates: Vec::new(),
            last_permit: 0,
            reason: String::new(),
            decisions: Vec::new(),
            rollbacks: Vec::new(),
            approvals: Vec::new(),
            webhooks: Vec::new(),
            resumable: false,
            validated: BTreeMap::new(),
        };
        Loaded {
            // Nobody reads servers in a rehearsal: it ends with the last component.
            manifest: CampaignManifest {
                kind: CampaignKind::Update,
                ..facts.manifest.clone()
            },
            plan: Plan {
                servers: Vec::new(),
                ..facts.plan.clone()
            },
            images: facts.images.clone(),
            expires_at: self.expires_at,
            record: Some(record),
            attempts: Vec::new(),
            possession: possession.collect(),
        }
    }
}

/// Numbers for names, in the order in which they are met.
#[derive(Debug)]
struct Numbers<T> {
    names: Vec<T>,
    known: BTreeMap<T, usize>,
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            known: BTreeMap::new(),
        }
    }
}

impl<T: Ord + Clone> Numbers<T> {
    /// The number of a name, and whether it is new.
    fn number(&mut self, name: &T) -> (usize, bool) {
        if let Some(number) = self.known.get(name) {
            return (*number, false);
        }
        let number = self.names.len();
        self.names.push(name.clone());
        self.known.insert(name.clone(), number);
        (number, true)
    }
}
