//! Room in the store: what must stay, what may go, and what waits until there is room for it.
//!
//! Pinned are the images of campaigns that are on, of attempts that are not over, what each device runs and what it ran
//! before, and what the configuration names. Everything else goes when room is needed, the need that lies longest back
//! first (`firmesh_node_core::retention`).
//!
//! Invariants: an artifact is begun only after there is room for all of it; peers are told before an artifact goes, and it
//! stays readable for a while after, for those who had asked already; an artifact on its way out is not taken up again
//! before it has gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use firmesh_executors::{Goal, JournalError};
use firmesh_node_core::{
    install::AttemptStanding,
    retention::{Bounds, Full, Kept, Wanted, give_up},
    swarm,
};
use firmesh_protocol::{
    ids::{ArtifactId, DeviceId, Sha256},
    manifest::{Priority, Release},
    report::{DeviceFacts, PermitKind},
    time::WallTime,
    wire::PeerMessage,
};
use tracing::{info, warn};

use super::{DISK_AGAIN, Event, Runtime};
use crate::{
    config::RoomSettings,
    journal::DeviceImages,
    status::StoreStatus,
    store::{PieceStore, StoreError, Survey, bytes_whole},
};

/// What a refusal for want of room is called.
pub(super) const STORE_FULL: &str = "store_full";

/// How long an artifact that peers were told is gone stays readable: for what they had asked for before they heard.
const LEAVES_AFTER: Duration = Duration::from_secs(2);

/// How often it is looked whether the store keeps within its bounds, and needs are noted.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// How soon it is written down that an artifact is whole.
const NOTE_WITHIN: Duration = Duration::from_secs(1);

/// The disk's share that stays free where the configuration does not say: one part in so many, and no more than a GiB.
const RESERVE_PART: u64 = 20;
const RESERVE_MAX: u64 = 1 << 30;

/// The store's room.
pub(super) struct Room {
    pub(super) store: PieceStore,
    settings: RoomSettings,
    /// What is to be begun, or gone on with, once there is room, and not before a moment.
    waiting: BTreeMap<ArtifactId, Instant>,
    /// What peers were told is gone, and is not yet.
    leaving: BTreeSet<ArtifactId>,
    /// What each device runs and ran before, as far as this node installed it.
    images: BTreeMap<DeviceId, DeviceImages>,
    surveying: bool,
    /// Something changed while the store was being looked at.
    outdated: bool,
    look_at: Instant,
    seen: Option<Survey>,
    pinned: BTreeSet<ArtifactId>,
    evicted: u64,
    pub(super) bundle_bytes: u64,
}

impl Room {
    pub(super) fn new(store: PieceStore, settings: RoomSettings, images: BTreeMap<DeviceId, DeviceImages>) -> Self {
        Self {
            store,
            settings,
            waiting: BTreeMap::new(),
            leaving: BTreeSet::new(),
            images,
            surveying: false,
            outdated: false,
            look_at: Instant::now(),
            seen: None,
            pinned: BTreeSet::new(),
            evicted: 0,
            bundle_bytes: 0,
        }
    }

    pub(super) fn is_leaving(&self, artifact: &ArtifactId) -> bool {
        self.leaving.contains(artifact)
    }

    /// The whole of an artifact was read and has this SHA-256. Written down soon: reading it again costs more.
    pub(super) fn note_whole(&mut self, artifact: ArtifactId, sha256: Sha256, now: WallTime) {
        if self.store.sha256(artifact) != Some(sha256) {
            self.store.note_sha256(artifact, sha256, now);
            self.look_at = self.look_at.min(Instant::now() + NOTE_WITHIN);
        }
    }

    /// When the store is looked at next.
    pub(super) fn look_at(&self) -> Option<Instant> {
        (!self.surveying).then_some(self.look_at)
    }

    pub(super) fn status(&self) -> StoreStatus {
        let seen = self.seen.as_ref();
        let artifacts = || seen.into_iter().flat_map(|seen| &seen.artifacts);
        StoreStatus {
            quota_bytes: self.settings.quota_bytes,
            reserve_bytes: seen.map_or(0, |seen| self.reserve(seen)),
            used_bytes: artifacts().map(|artifact| artifact.bytes_now).sum(),
            promised_bytes: artifacts().map(|artifact| bytes_whole(artifact.length)).sum(),
            free_bytes: seen.map_or(0, |seen| seen.free_bytes),
            artifacts: artifacts().count(),
            pinned: self.pinned.iter().copied().collect(),
            waiting_for_room: self.waiting.keys().copied().collect(),
            evicted: self.evicted,
            bundle_bytes: self.bundle_bytes,
            scrub: self.store.scrubbed(),
        }
    }

    fn reserve(&self, seen: &Survey) -> u64 {
        let usual = (seen.disk_bytes / RESERVE_PART).min(RESERVE_MAX);
        self.settings.reserve_bytes.unwrap_or(usual)
    }
}

impl Runtime {
    /// Waits for room for an artifact of which something is missing.
    pub(super) fn await_room(&mut self, artifact: ArtifactId) {
        let now = Instant::now();
        self.room.waiting.entry(artifact).or_insert(now);
        self.room.look_at = now;
    }

    /// The disk refused a piece for want of room: nothing more is asked for until there is some. What is here is still
    /// served.
    pub(super) fn on_store_full(&mut self, artifact: ArtifactId) -> Result<(), JournalError> {
        let Some(tracked) = self.tracked.get_mut(&artifact).filter(|tracked| tracked.has_room) else {
            return Ok(());
        };
        tracked.has_room = false;
        // What the disk says of itself may be rosier than what it does.
        let again = Instant::now() + DISK_AGAIN;
        self.room.waiting.insert(artifact, again);
        self.room.look_at = self.room.look_at.min(again);
        let problem = "the disk has no room for the next piece; make room on it: it goes on by itself";
        self.refuse_for_room(artifact, problem);
        self.tell_swarm(swarm::Input::Forget { artifact })
    }

    pub(super) fn look_at_room_if_due(&mut self) {
        if self.room.surveying || Instant::now() < self.room.look_at {
            return;
        }
        self.room.surveying = true;
        let store = self.room.store.clone();
        self.spawn(async move {
            let notes = store.keep_notes().await;
            Event::Surveyed(match store.survey().await {
                Ok(survey) => notes.map(|()| survey),
                Err(error) => Err(error),
            })
        });
    }

    pub(super) fn on_surveyed(&mut self, survey: Result<Survey, StoreError>) -> Result<(), JournalError> {
        self.room.surveying = false;
        // Whoever made it outdated has said when to look again.
        if std::mem::take(&mut self.room.outdated) {
            return Ok(());
        }
        self.room.look_at = Instant::now() + LOOK_EVERY;
        let survey = match survey {
            Ok(survey) => survey,
            Err(error) => {
                self.local_error(&error);
                self.room.look_at = Instant::now() + DISK_AGAIN;
                return Ok(());
            }
        };
        self.room.pinned = self.pinned();
        let now = self.fleet.now();
        self.room.store.note_needs(self.room.pinned.iter().copied(), now);
        // What is on its way out makes room first.
        if self.room.leaving.is_empty() {
            self.divide(&survey)?;
        }
        self.room.seen = Some(survey);
        Ok(())
    }

    /// Gives room to whoever waits, or makes it.
    fn divide(&mut self, survey: &Survey) -> Result<(), JournalError> {
        let bounds = Bounds {
            quota_bytes: self.room.settings.quota_bytes,
            reserve_bytes: self.room.reserve(survey),
            free_bytes: survey.free_bytes,
        };
        let mut kept: BTreeMap<ArtifactId, Kept> = survey
            .artifacts
            .iter()
            .map(|seen| {
                let kept = Kept {
                    artifact: seen.artifact,
                    bytes_whole: bytes_whole(seen.length),
                    bytes_now: seen.bytes_now,
                    last_needed: seen.last_needed,
                    pinned: self.room.pinned.contains(&seen.artifact),
                };
                (seen.artifact, kept)
            })
            .collect();
        // What has its room already and not its first piece.
        for (artifact, tracked) in self.tracked.iter().filter(|(_, tracked)| tracked.has_room) {
            kept.entry(*artifact).or_insert_with(|| Kept {
                artifact: *artifact,
                bytes_whole: bytes_whole(tracked.layout.length()),
                bytes_now: 0,
                last_needed: self.fleet.now(),
                pinned: self.room.pinned.contains(artifact),
            });
        }
        let mut gone = match self.room.waiting.is_empty() {
            true => give_up(&values(&kept), bounds, None).unwrap_or_default(),
            false => Vec::new(),
        };
        for (artifact, not_before) in self.room.waiting.clone() {
            if Instant::now() < not_before {
                self.room.look_at = self.room.look_at.min(not_before);
                continue;
            }
            let Some(layout) = self.tracked.get(&artifact).map(|tracked| tracked.layout) else {
                self.room.waiting.remove(&artifact);
                continue;
            };
            let before = kept.remove(&artifact);
            let wanted = Wanted {
                bytes_whole: bytes_whole(layout.length()),
                bytes_now: before.as_ref().map_or(0, |before| before.bytes_now),
            };
            match give_up(&values(&kept), bounds, Some(wanted)) {
                Ok(none) if none.is_empty() => {
                    self.room.waiting.remove(&artifact);
                    let granted = Kept {
                        artifact,
                        bytes_whole: wanted.bytes_whole,
                        bytes_now: wanted.bytes_now,
                        last_needed: self.fleet.now(),
                        pinned: true,
                    };
                    kept.insert(artifact, granted);
                    self.begin(artifact);
                }
                Ok(leave) => {
                    gone = leave;
                    break;
                }
                Err(full) => {
                    kept.extend(before.map(|before| (artifact, before)));
                    self.room.look_at = Instant::now() + DISK_AGAIN;
                    self.refuse_for_room(artifact, &full.to_string());
                    if let Full::Disk { .. } = full {
                        self.last_error = Some(format!("artifact {artifact} is not begun: {full}"));
                    }
                }
            }
        }
        gone.into_iter().try_for_each(|artifact| self.dismiss(artifact))
    }

    /// There is room: on with it, from what is here by now.
    fn begin(&mut self, artifact: ArtifactId) {
        if let Some(tracked) = self.tracked.get_mut(&artifact) {
            tracked.has_room = true;
            let layout = tracked.layout;
            self.look_up(artifact, layout, Duration::ZERO);
        }
    }

    /// Tells everybody that an artifact is not to be had here any more, and removes it soon after.
    fn dismiss(&mut self, artifact: ArtifactId) -> Result<(), JournalError> {
        info!(%artifact, "an artifact that nobody here needs makes room");
        self.tracked.remove(&artifact);
        self.deltas.forget_recipe(&artifact);
        self.transport.set_priority(artifact, Priority::Normal);
        self.images.remove(artifact);
        self.room.waiting.remove(&artifact);
        self.room.leaving.insert(artifact);
        self.tell_swarm(swarm::Input::Forget { artifact })?;
        self.transport.broadcast(&PeerMessage::Dropped { artifact });
        let store = self.room.store.clone();
        self.spawn(async move {
            tokio::time::sleep(LEAVES_AFTER).await;
            let result = store.evict(artifact).await;
            Event::Evicted { artifact, result }
        });
        Ok(())
    }

    pub(super) fn on_evicted(
        &mut self,
        artifact: ArtifactId,
        result: Result<(), StoreError>,
    ) -> Result<(), JournalError> {
        self.room.leaving.remove(&artifact);
        self.room.outdated = self.room.surveying;
        match result {
            Ok(()) => {
                self.room.evicted += 1;
                self.room.look_at = Instant::now();
                self.fleet.sync_soon();
            }
            Err(error) => {
                self.local_error(&error);
                self.room.look_at = Instant::now() + DISK_AGAIN;
            }
        }
        // A campaign may have come to need it meanwhile.
        self.track_all()
    }

    /// Each artifact's want of room is shown once, as it stands now.
    fn refuse_for_room(&mut self, artifact: ArtifactId, problem: &str) {
        let about = format!("artifact {artifact}: ");
        self.refusals
            .retain(|refusal| refusal.code != STORE_FULL || !refusal.detail.starts_with(&about));
        self.refuse(STORE_FULL, format!("{about}{problem}"));
    }

    /// What must stay.
    fn pinned(&self) -> BTreeSet<ArtifactId> {
        let mut pinned = self.room.settings.pins.clone();
        for (id, campaign) in &self.fleet.campaigns {
            if self.fleet.is_on(id) {
                pinned.extend(campaign.artifacts_for(&self.settings.node));
            }
        }
        pinned.extend(self.devices.goals().map(|goal| goal.image.artifact.id));
        // A device that is in the middle of it, quarantined ones included, may have to go forth or back.
        for (campaign, device) in self.devices.standing_at(AttemptStanding::InFlight) {
            let Some(campaign) = self.fleet.campaigns.get(campaign) else {
                continue;
            };
            if let Some((_, planned)) = campaign.planned(device) {
                let releases = planned.targets().filter_map(|target| campaign.releases.get(target));
                pinned.extend(releases.map(|release| release.artifact.id));
            }
        }
        for images in self.room.images.values() {
            pinned.insert(images.now);
            pinned.extend(images.before);
        }
        pinned.extend(self.devices.facts().iter().filter_map(|facts| self.runs(facts)));
        pinned
    }

    /// The image a device runs by its own word, if this node knows a release of that version.
    fn runs(&self, facts: &DeviceFacts) -> Option<ArtifactId> {
        let version = facts.version.as_deref()?;
        let is_it = |release: &&Release| {
            let info = &release.info;
            info.version == version && info.component == facts.component && info.models.contains(&facts.model)
        };
        let mut releases = self
            .fleet
            .campaigns
            .values()
            .flat_map(|campaign| campaign.releases.values());
        Some(releases.find(is_it)?.artifact.id)
    }

    /// An update or a rollback succeeded: the image a device runs changed, and the one before an update is kept beside it.
    pub(super) fn note_image(&mut self, goal: &Goal) -> Result<(), JournalError> {
        let now = goal.image.artifact.id;
        let known = self.room.images.get(&goal.device).copied();
        let before = match (known, goal.kind) {
            (Some(known), _) if known.now == now => known.before,
            // What it goes over is nothing to go back to.
            (Some(known), PermitKind::Update) if goal.step.as_ref().is_some_and(|step| step.number > 1) => known.before,
            (Some(known), PermitKind::Update) => Some(known.now),
            (None, PermitKind::Update) => self.planned_before(goal),
            (_, PermitKind::Rollback) => known.and_then(|known| known.before),
        };
        let images = DeviceImages {
            now,
            before: before.filter(|before| *before != now),
        };
        if known != Some(images) {
            self.journal.keep_images(&goal.device, images)?;
            self.room.images.insert(goal.device.clone(), images);
        }
        Ok(())
    }

    /// What a device ran before an attempt, as the campaign has it.
    fn planned_before(&self, goal: &Goal) -> Option<ArtifactId> {
        let campaign = self.fleet.campaigns.get(&goal.campaign)?;
        let (_, planned) = campaign.planned(&goal.device)?;
        let release = campaign.releases.get(planned.previous.as_ref()?)?;
        Some(release.artifact.id)
    }

    pub(super) fn is_needed(&self, artifact: &ArtifactId) -> bool {
        self.deltas.is_recipe(artifact) || self.pinned().contains(artifact)
    }
}

fn values(kept: &BTreeMap<ArtifactId, Kept>) -> Vec<Kept> {
    kept.values().cloned().collect()
}

/// Warns once at the start of pins that are not here: a pin keeps, it does not fetch.
pub(super) fn warn_of_absent_pins(store: &PieceStore, pins: &BTreeSet<ArtifactId>) {
    for artifact in pins.iter().filter(|pin| !store.lists(**pin)) {
        warn!(%artifact, "store.pin names an artifact that is not here; it is kept once a campaign brings it");
    }
}
