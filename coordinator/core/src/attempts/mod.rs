//! A campaign's attempts: side by side in the order of the plan, so that a wave is a range and a look at all of them needs
//! no search, and found by device and by node.
//!
//! Invariants: there is one for every planned device, and none comes or goes; whoever reads one cannot tell whether it is
//! [packed](packed).

mod packed;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use firmesh_protocol::{
    gate::Fate,
    health::DeviceHealth,
    ids::{DeviceId, NodeId},
    manifest::GateRule,
    report::{AttemptReport, AttemptState, FailureClass, PermitKind},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::packed::Look;
use self::packed::{Packed, Still};
use crate::{
    campaign::bounded,
    index::{Counted, Standing},
    retries::{FailedAttempt, RetryRecord},
    seat::{Own, Stand},
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) record: AttemptRecord,
    /// Where its device stands and what it gets, as many others do.
    pub(crate) stand: Arc<Stand>,
    /// What is its device's own.
    pub(crate) own: Arc<Own>,
    /// Whether its node has proven that it holds what its course needs.
    pub(crate) is_proven: bool,
    /// When its last permit was issued. Of one that does not run, nobody may ask.
    pub(crate) permitted_at: Timestamp,
    /// When the first permit of this kind was issued: a word from its node is awaited since. Of one that does not run, nobody
    /// may ask.
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
    /// One that nothing has happened to.
    pub(crate) fn fresh(device: DeviceId, stand: Arc<Stand>, own: Arc<Own>) -> Self {
        let record = AttemptRecord {
            device,
            kind: PermitKind::Update,
            state: AttemptState::Pending,
            reason: String::new(),
            version: Some(stand.course.initial_version().to_owned()),
            failure: None,
            health: None,
            permit: None,
            report_sequence: 0,
            end_report: None,
            presumed: false,
            cleared: false,
            halfway: None,
            ordered_back: false,
            retry: None,
        };
        Self {
            record,
            stand,
            own,
            is_proven: false,
            permitted_at: Timestamp::default(),
            awaited_since: Timestamp::default(),
            started_at: None,
            pauses_until: None,
            standing: None,
            counted: Counted::default(),
            due: None,
        }
    }

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
        let is_halfway = has_failed && self.stand.course.steps().is_some_and(has_left);
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

/// All attempts of a campaign.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    all: Vec<Packed>,
    /// What packed attempts are, each once.
    stills: BTreeSet<Arc<Still>>,
    /// How many of these there may be until those are looked for that nobody is any more.
    stills_most: usize,
    /// Places in the order of their devices.
    by_device: Vec<Place>,
    by_node: BTreeMap<NodeId, Vec<Place>>,
    waves: Vec<Range<usize>>,
}

impl Attempts {
    /// Adds the next wave. Afterwards the devices have to be made [known by their names](Self::find_by_name).
    pub(crate) fn add_wave(&mut self, wave: impl ExactSizeIterator<Item = Attempt>, names: &mut Names) {
        let begins = self.all.len();
        self.all.reserve_exact(wave.len());
        for attempt in wave {
            let device = names.kept(&attempt.record.device);
            self.all.push(Packed::of(device, attempt, &mut self.stills));
        }
        self.waves.push(begins..self.all.len());
    }

    /// All waves are there, with each device once.
    pub(crate) fn find_by_name(&mut self) {
        let all = &self.all;
        self.by_device = (0..).take(all.len()).collect();
        self.by_device
            .sort_unstable_by(|a, b| device_at(all, *a).cmp(device_at(all, *b)));
        for (place, packed) in (0..).zip(all) {
            let node = &packed.stand.seat.node;
            match self.by_node.get_mut(node) {
                Some(places) => places.push(place),
                None => drop(self.by_node.insert(node.clone(), vec![place])),
            }
        }
        self.by_node.values_mut().for_each(Vec::shrink_to_fit);
    }

    pub(crate) fn place(&self, device: &DeviceId) -> Option<Place> {
        let found = self
            .by_device
            .binary_search_by(|place| device_at(&self.all, *place).cmp(device));
        found.ok().map(|rank| self.by_device[rank])
    }

    pub(crate) fn at(&self, place: Place) -> Look<'_> {
        self.all[place as usize].look()
    }

    /// Whose attempt that is.
    pub(crate) fn device(&self, place: Place) -> &DeviceId {
        device_at(&self.all, place)
    }

    /// Changes one. What is counted of it is the caller's affair.
    pub(crate) fn change<T>(&mut self, place: Place, change: impl FnOnce(&mut Attempt) -> T) -> T {
        let answer = self.all[place as usize].change(&mut self.stills, change);
        self.forget_stills();
        answer
    }

    /// Changes all of them.
    pub(crate) fn change_all(&mut self, mut change: impl FnMut(&mut Attempt)) {
        for place in 0..self.end_of_first_waves(usize::MAX) {
            self.change(place, &mut change);
        }
    }

    pub(crate) fn get(&self, device: &DeviceId) -> Option<Look<'_>> {
        self.place(device).map(|place| self.at(place))
    }

    /// The attempt of a device that is planned.
    pub(crate) fn known(&self, device: &DeviceId) -> Look<'_> {
        self.get(device).expect("a planned device")
    }

    /// Where a planned device stands.
    pub(crate) fn stand(&self, device: &DeviceId) -> Option<&Stand> {
        let place = self.place(device)?;
        Some(&self.all[place as usize].stand)
    }

    pub(crate) fn contains(&self, device: &DeviceId) -> bool {
        self.place(device).is_some()
    }

    /// All, in the order of the plan.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Look<'_>> {
        self.all.iter().map(Packed::look)
    }

    /// All, in the order of their devices.
    pub(crate) fn by_device(&self) -> impl Iterator<Item = Look<'_>> {
        self.by_device.iter().map(|place| self.at(*place))
    }

    /// Those of the devices after this one, in the order of their devices.
    pub(crate) fn after(&self, device: Option<&DeviceId>) -> impl Iterator<Item = Look<'_>> {
        let is_before = |place: &Place| device.is_some_and(|device| device_at(&self.all, *place) <= device);
        let first = self.by_device.partition_point(is_before);
        self.by_device[first..].iter().map(|place| self.at(*place))
    }

    /// The state of this device's attempt, and the rank among all devices from which those after it are to be looked for;
    /// `rank`: what this said of a device before it.
    pub(crate) fn seek(&self, rank: Option<usize>, device: &DeviceId) -> (usize, Option<AttemptState>) {
        let is_before = |place: &Place| device_at(&self.all, *place) < device;
        let rank = match rank {
            None => self.by_device.partition_point(is_before),
            Some(rank) => {
                let passed = self.by_device[rank..].iter().take_while(|place| is_before(place));
                rank + passed.count()
            }
        };
        let found = self.by_device.get(rank).map(|place| &self.all[*place as usize]);
        let is_it = |packed: &&Packed| *packed.device == *device;
        (rank, found.filter(is_it).map(Packed::state))
    }

    /// The places of a node's devices, in the order of the plan.
    pub(crate) fn of_node(&self, node: &NodeId) -> &[Place] {
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// Those of a wave; none of a wave that is not planned.
    pub(crate) fn of_wave(&self, wave: usize) -> impl ExactSizeIterator<Item = Look<'_>> {
        let packed = self.waves.get(wave).map_or(&[][..], |range| &self.all[range.clone()]);
        packed.iter().map(Packed::look)
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

    /// Lets go of what no packed attempt is any more, now and then.
    fn forget_stills(&mut self) {
        if self.stills.len() > self.stills_most {
            self.stills.retain(|still| Arc::strong_count(still) > 1);
            self.stills_most = STILLS_MIN.max(2 * self.stills.len());
        }
    }
}

/// The names of devices that campaigns plan, each once for all of them.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeSet<Arc<DeviceId>>);

impl Names {
    fn kept(&mut self, device: &DeviceId) -> Arc<DeviceId> {
        if let Some(known) = self.0.get(device) {
            return Arc::clone(known);
        }
        let new = Arc::new(device.clone());
        self.0.insert(Arc::clone(&new));
        new
    }

    /// Lets go of those that no campaign plans any more.
    pub(crate) fn forget(&mut self) {
        self.0.retain(|device| Arc::strong_count(device) > 1);
    }
}

/// So many different ones are kept before it is looked whether all of them are of use.
const STILLS_MIN: usize = 64;

fn device_at(all: &[Packed], place: Place) -> &DeviceId {
    &all[place as usize].device
}
