//! What Firmesh promises, checked after every event from the world's own books: what devices really run, what nodes really
//! signed, when things really happened. No rule here is computed with the code that keeps it in production.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    brake::Braked,
    ids::{CampaignId, DeviceId},
    manifest::PoolAct,
    report::{AttemptReport, AttemptState, FailureClass, Permit, PermitKind},
    rollback::RollbackScope,
    time::WallTime,
};
use serde::Serialize;

use super::device::Runs;

/// A promise, by the name that reports use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// No device is written or started with anything that the approvers did not name for it; and permits name the order that
    /// they rest on, where they rest on one.
    Authorised,
    /// No rack, and no campaign, has more devices in flight than any campaign there allows.
    Cap,
    /// No two components of a unit are in flight at once, and none starts before the one before it ended well.
    Unit,
    /// No wave begins before those before it passed and soaked (but for as many as may be open at once), and webhooks and an
    /// approver said yes where they are asked; no pool before it was drained, and the other one switched to; nothing goes back
    /// unless its wave failed, approvers ordered it, or one said no where that sends everybody back.
    Gate,
    /// Nothing starts that cannot end inside a window and outside all blackouts.
    Window,
    /// Every host starts again, whatever happens in between; a slot in use is never written, a trial is started once.
    Bootable,
    /// No act on a device without a record on disk that names it, and nothing is acknowledged that is not stored.
    Durable,
    /// Numbers never come twice; no device goes to a lower security epoch forward.
    Monotonic,
    /// A device is started once for a campaign, or as often, after such failures and pauses, as the manifest allows, each time
    /// by a permit for that attempt; once on its way back; never for two campaigns at a time, and not for another while it
    /// waits for its way back. When more of a wave have failed than its budget is for, none of it is permitted again.
    Once,
    /// No update is permitted, or begun, before the device's node holds the image and the one to go back to.
    Held,
    /// A coordinator that was left behind starts nothing at nodes that know better.
    Fenced,
    /// What was stopped starts nothing, nor does what goes back, or a part of it.
    Halted,
    /// Attempts end in time and do not try without end.
    Bounded,
    /// What is reported is what the device runs, and goes on to run until somebody acts on it again.
    Truthful,
    /// Nothing is done to a device whose host was not seen aside for it, nor while more hosts of its cluster that we had step
    /// aside are worked on than may be; no host is given back in the middle of an update, every one is in the end, and none that
    /// was aside before.
    Aside,
    /// Once nothing goes wrong any more, everything comes to an end, and no failed wave keeps what it should have given
    /// back, unless giving it back was tried.
    Live,
    /// No assertion of ours fails.
    Sound,
}

impl Promise {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authorised => "authorised",
            Self::Cap => "cap",
            Self::Unit => "unit",
            Self::Gate => "gate",
            Self::Window => "window",
            Self::Bootable => "bootable",
            Self::Durable => "durable",
            Self::Monotonic => "monotonic",
            Self::Once => "once",
            Self::Held => "held",
            Self::Fenced => "fenced",
            Self::Halted => "halted",
            Self::Bounded => "bounded",
            Self::Truthful => "truthful",
            Self::Aside => "aside",
            Self::Live => "live",
            Self::Sound => "sound",
        }
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// When, in milliseconds of virtual time.
    pub at_ms: u64,
    /// How.
    pub how: String,
}

/// How often the things happened that promises are about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Attempts that began.
    pub attempts: u64,
    /// Updates that ended well.
    pub updated: u64,
    /// Devices that a failed gate sent back, and that came back.
    pub rolled_back: u64,
    /// Devices that ended quarantined.
    pub quarantined: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Of these, in the middle of writing a slot.
    pub cuts_in_write: u64,
    /// Processes killed.
    pub kills: u64,
    /// Devices that were started again after a failure.
    pub began_again: u64,
    /// Releases that devices went over on their way.
    pub gone_over: u64,
    /// Updates that ended halfway.
    pub halfway: u64,
    /// Hosts that were granted to a device.
    pub stepped_aside: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.updated += other.updated;
        self.rolled_back += other.rolled_back;
        self.quarantined += other.quarantined;
        self.power_cuts += other.power_cuts;
        self.cuts_in_write += other.cuts_in_write;
        self.kills += other.kills;
        self.began_again += other.began_again;
        self.gone_over += other.gone_over;
        self.halfway += other.halfway;
        self.stepped_aside += other.stepped_aside;
    }
}

type Key = (CampaignId, DeviceId, PermitKind);

#[derive(Debug)]
pub(super) struct Started {
    pub(super) node: usize,
    pub(super) device: usize,
    pub(super) rack: usize,
    /// What the device ran.
    pub(super) from: Runs,
    /// Since when this process has been at it.
    pub(super) since_ms: u64,
    pub(super) worked_ms: u64,
    pub(super) restarts: u64,
    /// How often the device was written, armed, reset ...
    pub(super) acts: BTreeMap<&'static str, u64>,
    pub(super) in_flight: bool,
    pub(super) ended: Option<AttemptState>,
    /// In which way it failed, and when it ended by its node's clock.
    pub(super) failure: Option<FailureClass>,
    pub(super) ended_at: Option<WallTime>,
    /// How many steps of its way it has taken, or is at.
    pub(super) steps: usize,
    /// The start before this one.
    pub(super) before: Option<Box<Self>>,
}

impl Started {
    /// How often the device was started, with this time.
    pub(super) fn starts(&self) -> u32 {
        1 + self.before.as_ref().map_or(0, |before| before.starts())
    }
}

/// What a node has signed of an update that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub(super) good: bool,
    pub(super) at: WallTime,
    /// Whether another attempt may follow, and whether others came before.
    pub(super) may_go_on: bool,
    pub(super) is_again: bool,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) broken: Option<Broken>,
    pub(super) tally: Tally,
    /// Several coordinators, or one that lies: caps over several nodes rest on nobody then.
    pub(super) coordinator_is_sound: bool,
    pub(super) started: BTreeMap<Key, Started>,
    /// Signed words on how updates ended, by campaign and device.
    pub(super) ended: BTreeMap<(CampaignId, DeviceId), Vec<Word>>,
    last_report: BTreeMap<usize, u64>,
    last_permit: BTreeMap<CampaignId, u64>,
    pub(super) epochs: BTreeMap<usize, u32>,
    /// When a node first knew of a wave.
    pub(super) waves: BTreeMap<(usize, CampaignId, u32), u64>,
    /// When campaigns were stopped for good.
    pub(super) stopped: BTreeMap<CampaignId, u64>,
    /// What was stopped for good, by the node that was told.
    pub(super) braked: BTreeSet<(usize, Braked)>,
    /// What approvers have signed between waves.
    pub(super) said: BTreeSet<(CampaignId, u32, bool)>,
    /// What approvers have signed to go back.
    pub(super) ordered: Vec<(CampaignId, RollbackScope)>,
    /// What webhooks have said yes to after a wave, or have done before one.
    pub(super) passed: BTreeSet<(CampaignId, u32, Option<PoolAct>)>,
    paused: BTreeSet<CampaignId>,
    /// Campaigns that said that they are rolled back, or failed.
    pub(super) judged: BTreeSet<CampaignId>,
    /// The highest coordinator's epoch that a node has kept.
    fences: BTreeMap<usize, u64>,
    /// What devices ran for good when their last attempt ended with that known.
    pub(super) left: BTreeMap<usize, Runs>,
    /// Devices that were permitted to go back.
    pub(super) sent_back: BTreeSet<(CampaignId, DeviceId)>,
    /// When a device last lost power.
    pub(super) dark: BTreeMap<usize, u64>,
    /// Since when a device needs its host aside: its attempt, the step of it, or the process that is at it has begun.
    pub(super) asked: BTreeMap<usize, u64>,
    /// When a host was last seen aside, and was.
    pub(super) seen_aside: BTreeMap<usize, u64>,
    /// Devices of a host that something was done to in an update that has not ended, and when it was last.
    pub(super) leaning: BTreeMap<usize, BTreeMap<usize, u64>>,
}

impl Watch {
    pub(super) fn new(coordinator_is_sound: bool) -> Self {
        Self {
            coordinator_is_sound,
            ..Self::default()
        }
    }

    pub(super) fn blame(&mut self, at_ms: u64, promise: Promise, how: impl Into<String>) {
        let how = how.into();
        self.broken.get_or_insert(Broken { promise, at_ms, how });
    }

    /// A coordinator has stored a permit.
    pub(super) fn issued(&mut self, at_ms: u64, permit: &Permit) {
        let last = self.last_permit.entry(permit.campaign.clone()).or_default();
        let (before, is_next) = (*last, permit.sequence > *last);
        *last = permit.sequence.max(before);
        if !is_next && self.coordinator_is_sound {
            let how = format!("permit {} of {} after {before}", permit.sequence, permit.campaign);
            self.blame(at_ms, Promise::Monotonic, how);
        }
        if permit.kind == PermitKind::Rollback {
            let sent = permit.devices.iter();
            self.sent_back
                .extend(sent.map(|device| (permit.campaign.clone(), device.clone())));
        }
        let is_halted = self.stopped.contains_key(&permit.campaign) || self.paused.contains(&permit.campaign);
        if is_halted && permit.kind == PermitKind::Update && self.coordinator_is_sound {
            let how = format!("permit {} of {}, which was stopped", permit.sequence, permit.campaign);
            self.blame(at_ms, Promise::Halted, how);
        }
    }

    /// A campaign was paused or resumed, and that is stored.
    pub(super) fn paused(&mut self, campaign: &CampaignId, is_paused: bool) {
        match is_paused {
            true => self.paused.insert(campaign.clone()),
            false => self.paused.remove(campaign),
        };
    }

    /// A campaign was stopped for good, and that is stored.
    pub(super) fn stopped(&mut self, at_ms: u64, campaign: &CampaignId) {
        self.stopped.entry(campaign.clone()).or_insert(at_ms);
    }

    /// A node has kept a permit.
    pub(super) fn learned(&mut self, at_ms: u64, n: usize, permit: &Permit) {
        let fence = self.fences.entry(n).or_default();
        let before = *fence;
        *fence = permit.epoch.max(before);
        if permit.epoch < before {
            let how = format!(
                "node {n} keeps a permit of epoch {}, it has seen {before}",
                permit.epoch
            );
            self.blame(at_ms, Promise::Fenced, how);
        }
        if permit.kind == PermitKind::Update {
            let key = (n, permit.campaign.clone(), permit.wave);
            self.waves.entry(key).or_insert(at_ms);
        }
    }

    /// A node has signed a report; whether another attempt may follow the one it is about.
    pub(super) fn reported(&mut self, at_ms: u64, n: usize, report: &AttemptReport, may_go_on: bool) {
        let last = self.last_report.insert(n, report.sequence).unwrap_or_default();
        if report.sequence <= last {
            let how = format!("report {} of node {n} after {last}", report.sequence);
            self.blame(at_ms, Promise::Monotonic, how);
        }
        if report.kind == PermitKind::Update && report.state.is_terminal() {
            let key = (report.campaign.clone(), report.device.clone());
            self.ended.entry(key).or_default().push(Word {
                good: report.state.is_success(),
                at: report.at,
                may_go_on,
                is_again: report.attempt > 1,
            });
        }
    }

    /// A node that is back knows nothing of a start.
    pub(super) fn not_started(&mut self, campaign: &CampaignId, device: &DeviceId, kind: PermitKind) {
        let key = (campaign.clone(), device.clone(), kind);
        // One that has ended was: only the word that it has is not on disk.
        if self.started.get(&key).is_some_and(|started| started.ended.is_some()) {
            return;
        }
        if let Some(before) = self.started.remove(&key).and_then(|started| started.before) {
            self.started.insert(key, *before);
        }
    }

    pub(super) fn interrupted(&mut self, d: usize, at_ms: u64) {
        for started in self
            .started
            .values_mut()
            .filter(|started| started.device == d && started.ended.is_none())
        {
            started.worked_ms += at_ms - started.since_ms;
            started.since_ms = at_ms;
        }
    }

    pub(super) fn resumed(&mut self, d: usize, at_ms: u64) {
        self.asked.insert(d, at_ms);
        for started in self
            .started
            .values_mut()
            .filter(|started| started.device == d && started.ended.is_none())
        {
            started.restarts += 1;
            started.since_ms = at_ms;
        }
    }

    /// Devices that are in flight by what nodes have begun.
    pub(super) fn in_flight(&self, counts: impl Fn(&Started) -> bool) -> BTreeSet<usize> {
        let in_flight = self
            .started
            .values()
            .filter(|started| started.in_flight && counts(started));
        in_flight.map(|started| started.device).collect()
    }

    /// Devices that keep their place until a person looks at them.
    pub(super) fn quarantined(&self) -> impl Iterator<Item = usize> {
        let kept = self
            .started
            .values()
            .filter(|started| started.in_flight && started.ended.is_some());
        kept.map(|started| started.device)
    }
}
