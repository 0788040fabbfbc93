//! A campaign's attempts: side by side in the order of the plan, so that a wave is a slice and a look at all of them needs
//! no search, and found by device and by node.
//!
//! Invariant: there is one for every planned device, and none comes or goes.

use std::{
    collections::BTreeMap,
    ops::{Index, Range},
    slice,
    sync::Arc,
};

use firmesh_protocol::{
    gate::Fate,
    health::DeviceHealth,
    ids::{DeviceId, NodeId},
    labels::Labels,
    manifest::GateRule,
    report::{AttemptReport, AttemptState, FailureClass, PermitKind},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    campaign::bounded,
    domains::Takes,
    index::{Counted, Standing},
    retries::{FailedAttempt, RetryRecord},
    seat::{Course, Seat},
};

/// Where an attempt stands among all of its campaign, in the order of the plan.
pub(crate) type Place = u32;

/// One device's attempt as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// The device.
    pub device: DeviceId,
    /// On its way to the new release, or back.
    pub kind: PermitKind,
    /// Where it stands.
    pub state: AttemptState,
    /// Why.
    pub reason: String,
    /// The version last read back.
    pub version: Option<String>,
    /// In which way it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureClass>,
    /// What its node made of the device after the update; kept when the device goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<DeviceHealth>,
    /// The last permit of this kind that names it.
    pub permit: Option<u64>,
    /// The last report taken into account.
    pub report_sequence: u64,
    /// The report that said how its update ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_report: Option<u64>,
    /// Whether the coordinator, not the node, said that it ended.
    pub presumed: bool,
    /// Whether a person has looked at it since it was quarantined.
    pub cleared: bool,
    /// How its update ended, if it has stopped on its way over other releases: it runs neither what it ran before nor the new
    /// version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halfway: Option<Box<FailedAttempt>>,
    /// Whether people have sent it back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ordered_back: bool,
    /// Its attempts before this one, if it failed in a way after which it may be started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Box<RetryRecord>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) record: AttemptRecord,
    pub(crate) wave: u32,
    pub(crate) seat: Arc<Seat>,
    pub(crate) course: Arc<Course>,
    pub(crate) labels: Labels,
    /// Its rack, by number.
    pub(crate) rack_number: u32,
    /// Its unit, by number.
    pub(crate) unit: Option<u32>,
    /// What it takes in fault domains, if any are looked at.
    pub(crate) takes: Option<Arc<Takes>>,
    /// Who of its unit comes right before it, and right after it.
    pub(crate) after: Option<Place>,
    pub(crate) next: Option<Place>,
    /// Whether its node has proven that it holds what its course needs.
    pub(crate) is_proven: bool,
    /// When its last permit was issued.
    pub(crate) permitted_at: Timestamp,
    /// When the first permit of this kind was issued: a word from its node is awaited since.
    pub(crate) awaited_since: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    /// Until when it is left alone before it is started again.
    pub(crate) pauses_until: Option<Timestamp>,
    /// As what it is indexed.
    pub(crate) standing: Option<Standing>,
    /// As what the engine has counted it.
    pub(crate) counted: Counted,
    /// When it is to be looked at although nobody speaks of it.
    pub(crate) due: Option<Timestamp>,
}

impl Attempt {
    /// Whether the device was, or may be, touched.
    pub(crate) fn has_started(&self) -> bool {
        use AttemptState::{Installing, Rebooting, Staged, Validating};
        matches!(self.record.state, Staged | Installing | Rebooting | Validating)
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.record.state.is_terminal() && (self.record.permit.is_some() || self.has_started())
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.record.state == AttemptState::Quarantined && !self.record.cleared
    }

    /// Whether its update has ended on its way over other releases.
    pub(crate) fn is_halfway(&self) -> bool {
        use AttemptState::{Failed, RolledBack, TimedOut};
        self.record.halfway.is_some() && matches!(self.record.state, Failed | RolledBack | TimedOut)
    }

    /// Takes a report on its update into account: whether the device was left halfway.
    pub(crate) fn note_place(&mut self, report: &AttemptReport) {
        use AttemptState::{Failed, RolledBack, TimedOut};
        let has_failed = matches!(report.state, Failed | RolledBack | TimedOut);
        let has_left = |(_, from)| report.version.as_deref().is_some_and(|version| version != from);
        let is_halfway = has_failed && self.course.steps().is_some_and(has_left);
        self.record.halfway = is_halfway.then(|| {
            Box::new(FailedAttempt {
                state: report.state,
                failure: report.failure.unwrap_or(FailureClass::Install),
                reason: bounded(&report.reason),
            })
        });
    }

    /// Whether it runs the new version, and is well as far as that is asked for.
    pub(crate) fn ended_well(&self, gate: &GateRule) -> bool {
        self.record.state.is_success() && self.fate(gate) == Fate::Good
    }

    /// What a gate makes of it.
    pub(crate) fn fate(&self, gate: &GateRule) -> Fate {
        let AttemptRecord {
            kind,
            state,
            failure,
            health,
            ..
        } = self.record;
        match kind {
            // Only who runs the new version, or one on the way, can be sent back, and the report on how that went stays.
            PermitKind::Rollback => match &self.record.halfway {
                Some(failed) => gate.fate(failed.state, Some(failed.failure), None),
                None => gate.fate(AttemptState::Success, None, health),
            },
            PermitKind::Update => gate.fate(state, failure, health),
        }
    }

    pub(crate) fn is_untouched(&self) -> bool {
        !self.record.state.is_terminal() && !self.is_running()
    }
}

#[derive(Debug)]
pub(crate) struct Attempts {
    all: Vec<Attempt>,
    /// Places in the order of their devices.
    by_device: Vec<Place>,
    by_node: BTreeMap<NodeId, Vec<Place>>,
    waves: Vec<Range<usize>>,
}

impl Attempts {
    /// By wave, each device once.
    pub(crate) fn new(by_wave: impl Iterator<Item = Vec<Attempt>>) -> Self {
        let (mut all, mut waves) = (Vec::new(), Vec::new());
        for wave in by_wave {
            let begins = all.len();
            all.extend(wave);
            waves.push(begins..all.len());
        }
        let mut by_device: Vec<_> = (0..).take(all.len()).collect();
        by_device.sort_unstable_by(|a, b| device_at(&all, *a).cmp(device_at(&all, *b)));
        let mut by_node: BTreeMap<NodeId, Vec<Place>> = BTreeMap::new();
        for (place, attempt) in (0..).zip(&all) {
            match by_node.get_mut(&attempt.seat.node) {
                Some(places) => places.push(place),
                None => drop(by_node.insert(attempt.seat.node.clone(), vec![place])),
            }
        }
        Self {
            all,
            by_device,
            by_node,
            waves,
        }
    }

    pub(crate) fn place(&self, device: &DeviceId) -> Option<Place> {
        let found = self
            .by_device
            .binary_search_by(|place| device_at(&self.all, *place).cmp(device));
        found.ok().map(|rank| self.by_device[rank])
    }

    pub(crate) fn at(&self, place: Place) -> &Attempt {
        &self.all[place as usize]
    }

    pub(crate) fn at_mut(&mut self, place: Place) -> &mut Attempt {
        &mut self.all[place as usize]
    }

    pub(crate) fn get(&self, device: &DeviceId) -> Option<&Attempt> {
        self.place(device).map(|place| self.at(place))
    }

    pub(crate) fn get_mut(&mut self, device: &DeviceId) -> Option<&mut Attempt> {
        self.place(device).map(|place| self.at_mut(place))
    }

    pub(crate) fn contains(&self, device: &DeviceId) -> bool {
        self.place(device).is_some()
    }

    /// All, in the order of the plan.
    pub(crate) fn iter(&self) -> slice::Iter<'_, Attempt> {
        self.all.iter()
    }

    /// All, in the order of the plan.
    pub(crate) fn iter_mut(&mut self) -> slice::IterMut<'_, Attempt> {
        self.all.iter_mut()
    }

    /// All, in the order of their devices.
    pub(crate) fn by_device(&self) -> impl Iterator<Item = &Attempt> {
        self.by_device.iter().map(|place| self.at(*place))
    }

    /// Those of the devices after this one, in the order of their devices.
    pub(crate) fn after(&self, device: Option<&DeviceId>) -> impl Iterator<Item = &Attempt> {
        let is_before = |place: &Place| device.is_some_and(|device| device_at(&self.all, *place) <= device);
        let first = self.by_device.partition_point(is_before);
        self.by_device[first..].iter().map(|place| self.at(*place))
    }

    /// The attempt of this device, and the rank among all devices from which those after it are to be looked for;
    /// `rank`: what this said of a device before it.
    pub(crate) fn seek(&self, rank: Option<usize>, device: &DeviceId) -> (usize, Option<&Attempt>) {
        let is_before = |place: &Place| device_at(&self.all, *place) < device;
        let rank = match rank {
            None => self.by_device.partition_point(is_before),
            Some(rank) => {
                let passed = self.by_device[rank..].iter().take_while(|place| is_before(place));
                rank + passed.count()
            }
        };
        let found = self.by_device.get(rank).map(|place| self.at(*place));
        (rank, found.filter(|attempt| attempt.record.device == *device))
    }

    /// The places of a node's devices, in the order of the plan.
    pub(crate) fn of_node(&self, node: &NodeId) -> &[Place] {
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// Those of a wave; none of a wave that is not planned.
    pub(crate) fn of_wave(&self, wave: usize) -> &[Attempt] {
        self.waves.get(wave).map_or(&[], |range| &self.all[range.clone()])
    }

    /// Where those end that belong to the first waves.
    pub(crate) fn end_of_first_waves(&self, count: usize) -> Place {
        let last = self.waves[..count.min(self.waves.len())].last();
        last.map_or(0, |range| {
            Place::try_from(range.end).expect("a plan has fewer devices than that")
        })
    }

    pub(crate) fn waves(&self) -> usize {
        self.waves.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}

fn device_at(all: &[Attempt], place: Place) -> &DeviceId {
    &all[place as usize].record.device
}

impl Index<&DeviceId> for Attempts {
    type Output = Attempt;
    fn index(&self, device: &DeviceId) -> &Attempt {
        self.get(device).expect("a planned device")
    }
}
