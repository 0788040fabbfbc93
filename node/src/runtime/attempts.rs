//! Devices: what was read from them, which of them may start, and the attempts that run.

mod reports;
mod resume;
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use firmesh_executors::{
    AttemptRecord, Backend, Ended, Goal, Journal, JournalError, News, Outcome, Report, RunError as AttemptError, Start,
    run_attempt, traced,
};
use firmesh_node_core::{
    approved::ApprovedCampaign,
    install::{Admission, AttemptStanding, Facts, Hold, Neighbour, admit},
    retries::{Tries, may_start_again},
};
use firmesh_protocol::{
    api::{DeviceFinding, FindingLevel},
    ids::{ArtifactId, CampaignId, DeviceId},
    report::{AttemptState, DeviceFacts, Permit, PermitKind},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, info_span, warn};

use super::{Event, Runtime, Sha256Check, evidence::Shown};
use crate::{
    journal::{AllTries, Declined, Standings},
    status::{AttemptStatus, DoctorRequest, Refusal},
};

/// How often an idle device is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How long before a device that did not answer is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long a look may take: a device that does not answer for so long is one that does not answer.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// The longest that an examination may take: a BMC answers a few dozen questions a minute at its worst.
const EXAMINED_WITHIN: Duration = Duration::from_secs(120);

/// The devices of this node.
pub(super) struct Devices {
    devices: BTreeMap<DeviceId, Device>,
    standings: Standings,
    tries: AllTries,
    declined: Declined,
    /// What was last reported of an attempt, and under which permit.
    told: BTreeMap<(CampaignId, DeviceId, PermitKind), (AttemptStatus, u64)>,
    /// Held by whoever has a device looked at.
    examining: Arc<tokio::sync::Semaphore>,
}

struct Device {
    backend: Arc<Backend>,
    facts: Option<DeviceFacts>,
    /// What it ran when it last answered.
    last_version: Option<String>,
    running: Option<Goal>,
    /// Interrupted, to be resumed once its image is complete here again.
    parked: Option<AttemptRecord>,
    /// By when what runs is over, with the wait after it if it is a step of a longer way.
    ends: Option<Instant>,
    /// Whether what runs is done, as a step of a longer way, and the next one is not begun.
    between: bool,
    /// Whether a look at the device is under way or planned.
    looking: bool,
}

impl Devices {
    pub(super) fn new(backends: Vec<Backend>, standings: Standings, tries: AllTries, declined: Declined) -> Self {
        let device = |backend: Backend| {
            let id = backend.device().clone();
            (
                id,
                Device {
                    backend: Arc::new(backend),
                    facts: None,
                    last_version: None,
                    running: None,
                    parked: None,
                    ends: None,
                    between: false,
                    looking: false,
                },
            )
        };
        Self {
            devices: backends.into_iter().map(device).collect(),
            standings,
            tries,
            declined,
            told: BTreeMap::new(),
            examining: Arc::new(tokio::sync::Semaphore::new(1)),
        }
    }

    pub(super) fn facts(&self) -> Vec<DeviceFacts> {
        self.devices
            .values()
            .filter_map(|device| device.facts.clone())
            .collect()
    }

    pub(super) fn attempts(&self) -> Vec<AttemptStatus> {
        self.told.values().map(|(told, _)| told.clone()).collect()
    }

    /// Whether an interrupted attempt goes on when an image is here.
    pub(super) fn is_awaited(&self, image: ArtifactId) -> bool {
        let awaits = |record: &AttemptRecord| record.goal.image.artifact.id == image;
        self.devices
            .values()
            .any(|device| device.parked.as_ref().is_some_and(awaits))
    }

    /// The transcript of what is said to a device, where one is written.
    pub(super) fn transcript_of(&self, device: &DeviceId) -> Option<PathBuf> {
        self.devices.get(device)?.backend.transcript()
    }

    /// The host that steps aside for a device, if one does.
    pub(super) fn host_of(&self, device: &DeviceId) -> Option<String> {
        let host = self.devices.get(device)?.backend.host()?;
        Some(host.to_owned())
    }

    /// Whether an attempt on the node itself is under way.
    pub(super) fn updates_node(&self) -> bool {
        let mut own = self.devices.values().filter(|device| device.backend.is_the_node());
        own.any(|device| device.running.is_some())
    }

    /// Devices other than the node itself whose attempts are at work, by where they stand.
    pub(super) fn at_work(&self, is_at_work: impl Fn(Option<AttemptState>) -> bool) -> Vec<DeviceId> {
        let at_work = |(id, device): &(&DeviceId, &Device)| {
            let waits = device.between || device.parked.is_some() || device.backend.is_the_node();
            let state = device.running.as_ref().filter(|_| !waits).map(|goal| {
                let key = (goal.campaign.clone(), (*id).clone(), goal.kind);
                self.told.get(&key).map(|(told, _)| told.state)
            });
            state.is_some_and(&is_at_work)
        };
        let devices = self.devices.iter().filter(at_work);
        devices.map(|(id, _)| id.clone()).collect()
    }

    /// What runs, or waits to be gone on with.
    pub(super) fn goals(&self) -> impl Iterator<Item = &Goal> {
        self.devices.values().filter_map(|device| device.running.as_ref())
    }

    /// Devices that stand so, with the campaign.
    pub(super) fn standing_at(&self, at: AttemptStanding) -> impl Iterator<Item = (&CampaignId, &DeviceId)> {
        let standing = self.standings.iter().filter(move |(_, standing)| **standing == at);
        standing.map(|((campaign, device, _), _)| (campaign, device))
    }

    /// How updates of this node's devices ended in a campaign.
    fn tries_in(&self, campaign: &CampaignId) -> &BTreeMap<DeviceId, Tries> {
        static NONE: BTreeMap<DeviceId, Tries> = BTreeMap::new();
        self.tries.get(campaign).unwrap_or(&NONE)
    }

    fn engaged_elsewhere(&self, device: &DeviceId, campaign: &CampaignId) -> Option<CampaignId> {
        let engaged = |(key, standing): &(&(CampaignId, DeviceId, PermitKind), &AttemptStanding)| {
            key.1 == *device && key.0 != *campaign && **standing == AttemptStanding::InFlight
        };
        self.standings.iter().find(engaged).map(|(key, _)| key.0.clone())
    }

    /// All devices as others of this node look at them.
    fn neighbours(&self) -> BTreeMap<DeviceId, Neighbour> {
        let in_flight: BTreeSet<_> = self.standing_at(AttemptStanding::InFlight).map(|(_, id)| id).collect();
        let neighbour = |(id, device): (&DeviceId, &Device)| {
            let neighbour = Neighbour {
                labels: device.backend.labels().clone(),
                component: device.backend.component().clone(),
                version: device.facts.as_ref().and_then(|facts| facts.version.clone()),
                in_flight: in_flight.contains(id),
            };
            (id.clone(), neighbour)
        };
        self.devices.iter().map(neighbour).collect()
    }

    fn in_flight_elsewhere(&self, campaign: &CampaignId) -> usize {
        let in_flight = |(key, standing): &(&(CampaignId, DeviceId, PermitKind), &AttemptStanding)| {
            key.0 != *campaign && **standing == AttemptStanding::InFlight
        };
        self.standings.iter().filter(in_flight).count()
    }
}

impl Runtime {
    fn look(&mut self, device: &DeviceId, after: Duration) {
        let Some(known) = self.devices.devices.get_mut(device).filter(|known| !known.looking) else {
            return;
        };
        known.looking = true;
        let (backend, device) = (Arc::clone(&known.backend), device.clone());
        self.spawn(async move {
            tokio::time::sleep(after).await;
            let facts = match tokio::time::timeout(LOOK_WITHIN, backend.facts()).await {
                Ok(Ok(facts)) => Some(facts),
                Ok(Err(error)) => {
                    warn!(%device, %error, "a device does not answer");
                    None
                }
                Err(_late) => {
                    warn!(%device, "a device has not answered for {} s", LOOK_WITHIN.as_secs());
                    None
                }
            };
            Event::Facts { device, facts }
        });
    }

    pub(super) fn on_facts(&mut self, device: &DeviceId, facts: Option<DeviceFacts>) -> Result<(), JournalError> {
        let Some(known) = self.devices.devices.get_mut(device) else {
            return Ok(());
        };
        known.looking = false;
        let answered = facts.is_some();
        if let Some(version) = facts.as_ref().and_then(|facts| facts.version.as_ref()) {
            known.last_version = Some(version.clone());
        }
        let changed = match (facts, &mut known.facts) {
            (Some(new), old) => {
                let changed = old.as_ref() != Some(&new);
                *old = Some(new);
                changed
            }
            (None, Some(old)) => old.version.take().is_some(),
            (None, None) => false,
        };
        if known.running.is_none() || known.between || known.parked.is_some() {
            self.look(device, if answered { LOOK_INTERVAL } else { LOOK_AGAIN });
        }
        if changed {
            self.fleet.sync_soon();
        }
        self.consider()
    }

    /// Starts every device that may start now, and says why the others may not.
    pub(super) fn consider(&mut self) -> Result<(), JournalError> {
        // What has not begun can wait for the node to be back.
        if self.restart.is_near() {
            return Ok(());
        }
        self.go_on_with_steps()?;
        let idle: Vec<DeviceId> = self
            .devices
            .devices
            .iter()
            .filter(|(_, device)| device.running.is_none() && device.facts.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for device in idle {
            for permit in self.fleet.permits_for(&device) {
                let key = (permit.campaign.clone(), device.clone(), permit.kind);
                let named = (key.0.clone(), key.1.clone(), key.2, permit.sequence);
                if self.devices.standings.contains_key(&key) && !self.may_start_again(&device, &permit) {
                    continue;
                }
                let shown = self.shown_by(&permit);
                match self.decide(&device, &permit, &shown) {
                    // The coordinator was told that nothing comes of this permit.
                    Some(Ok(_)) if self.devices.declined.contains(&named) => {}
                    Some(Ok(admission)) => {
                        self.start_fresh(&device, &permit, admission)?;
                        break;
                    }
                    Some(Err(hold)) => {
                        if let Hold::NotPossessed(image) = hold {
                            self.check_whole(image);
                        }
                        self.report_hold(&device, &permit, &hold)?;
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Whether the permit may start a device again that was started in the campaign before, now or later.
    fn may_start_again(&self, device: &DeviceId, permit: &Permit) -> bool {
        let id = &permit.campaign;
        let key = |kind| (id.clone(), device.clone(), kind);
        let (standings, campaign) = (&self.devices.standings, self.fleet.campaigns.get(id));
        let is_over = standings.get(&key(PermitKind::Update)) == Some(&AttemptStanding::Ended)
            && !standings.contains_key(&key(PermitKind::Rollback));
        let tries = self.devices.tries_in(id);
        is_over && campaign.is_some_and(|campaign| may_start_again(campaign, permit, device, tries).is_some())
    }

    fn decide(&self, device: &DeviceId, permit: &Permit, shown: &Shown) -> Option<Result<Admission, Hold>> {
        let (id, wave) = (&permit.campaign, permit.wave);
        self.with_facts(device, (id, wave), shown, |campaign, facts| {
            admit(campaign, permit, facts)
        })
    }

    /// Looks at all that is known of a device in a campaign and a wave of it.
    fn with_facts<T>(
        &self,
        device: &DeviceId,
        (id, wave): (&CampaignId, u32),
        shown: &Shown,
        look: impl FnOnce(&ApprovedCampaign, &Facts<'_>) -> T,
    ) -> Option<T> {
        let campaign = self.fleet.campaigns.get(id)?;
        let known = self.devices.devices.get(device)?;
        let complete: BTreeSet<ArtifactId> = self
            .tracked
            .iter()
            .filter(|(_, tracked)| tracked.sha256_check == Sha256Check::Passed)
            .map(|(id, _)| *id)
            .collect();
        let attempts: BTreeMap<_, _> = self
            .devices
            .standings
            .iter()
            .filter(|(key, _)| key.0 == *id)
            .map(|((_, device, kind), standing)| ((device.clone(), *kind), *standing))
            .collect();
        let brakes: BTreeSet<_> = self.brakes.all().cloned().collect();
        let found = match shown {
            Shown::Found(found) => Some(found),
            Shown::Missing | Shown::Nothing => None,
        };
        let neighbours = self.devices.neighbours();
        let facts = Facts {
            now: self.fleet.now(),
            node: &self.settings.node,
            path: &self.settings.path,
            device: known.facts.as_ref()?,
            last_version: known.last_version.as_deref(),
            complete: &complete,
            attempts: &attempts,
            tries: self.devices.tries_in(id),
            other_in_flight: self.devices.in_flight_elsewhere(id),
            engaged_elsewhere: self.devices.engaged_elsewhere(device, id),
            security_epoch: self.journal.security_floor(device).ok()?,
            key: self.identity.key.public(),
            brakes: &brakes,
            gates: found.map_or(&[], |found| &found.gates),
            orders: found.map_or(&[], |found| &found.orders),
            approvals: found.map_or(&[], |found| &found.approvals),
            evidence_is_here: !matches!(shown, Shown::Missing),
            neighbours: &neighbours,
            wave_opened: self.fleet.wave_opened(id, wave),
        };
        Some(look(campaign, &facts))
    }

    fn start_fresh(&mut self, device: &DeviceId, permit: &Permit, admission: Admission) -> Result<(), JournalError> {
        let campaign = &self.fleet.campaigns[&permit.campaign];
        let known = self.devices.devices.get(device);
        let (answers_min, apart) = known.map_or((Goal::ANSWERS_MIN, None), |known| known.backend.answers());
        let goal = Goal {
            device: device.clone(),
            campaign: permit.campaign.clone(),
            manifest_sha256: permit.manifest_sha256,
            wave: admission.wave,
            kind: permit.kind,
            permit_sequence: permit.sequence,
            image: admission.release,
            step: admission.step,
            security_epoch_min: match permit.kind {
                PermitKind::Update => self.journal.security_floor(device)?,
                PermitKind::Rollback => 0,
            },
            deadlines: campaign.manifest.deadlines,
            health: campaign
                .manifest
                .gate
                .health
                .clone()
                .filter(|_| permit.kind == PermitKind::Update),
            answers_min,
            answers_apart_ms: apart.map(|apart| u64::try_from(apart.as_millis()).unwrap_or(u64::MAX)),
            pace_ms: Goal::PACE_MS,
        };
        // Durable before anything happens: a device starts once, whatever crashes.
        self.stand(device, &permit.campaign, permit.kind, AttemptStanding::InFlight)?;
        self.traces.begin(&goal, self.tracked.get(&goal.image.artifact.id));
        // Before the device is even looked at, which may take longer than the permit lasts: see `begin_devices`.
        self.report(News::of(&goal, Report::on_the_way(AttemptState::Installing, None)))?;
        self.start_attempt(device, goal.clone(), Start::Fresh(goal))
    }

    fn stand(
        &mut self,
        device: &DeviceId,
        campaign: &CampaignId,
        kind: PermitKind,
        standing: AttemptStanding,
    ) -> Result<(), JournalError> {
        self.journal.keep_standing(campaign, device, kind, standing)?;
        self.devices
            .standings
            .insert((campaign.clone(), device.clone(), kind), standing);
        Ok(())
    }

    /// A person has looked at a quarantined device: it gives its places up.
    pub(super) fn clear(&mut self, device: &DeviceId) -> Result<Result<(), Refusal>, JournalError> {
        let refused = |code: &str, detail| {
            let code = code.to_owned();
            Ok(Err(Refusal { code, detail }))
        };
        if self
            .devices
            .devices
            .get(device)
            .is_some_and(|device| device.running.is_some())
        {
            return refused("in_flight", format!("an attempt runs on {device}: let it end"));
        }
        let mut quarantined = Vec::new();
        for ((campaign, id, kind), standing) in &self.devices.standings {
            if id == device && *standing == AttemptStanding::InFlight {
                let outcome = self.journal.outcome(campaign, id, *kind)?;
                if outcome.is_some_and(|outcome| outcome.state == AttemptState::Quarantined) {
                    quarantined.push((campaign.clone(), *kind));
                }
            }
        }
        if quarantined.is_empty() {
            return refused("not_quarantined", format!("{device} is not quarantined at this node"));
        }
        for (campaign, kind) in quarantined {
            info!(%device, %campaign, "a person has looked at it: it is not quarantined any more");
            self.stand(device, &campaign, kind, AttemptStanding::Ended)?;
            if kind == PermitKind::Rollback {
                self.stand(device, &campaign, PermitKind::Update, AttemptStanding::Ended)?;
            }
        }
        self.look(device, Duration::ZERO);
        Ok(Ok(()))
    }

    /// Has a device looked at for whoever asks what it supports, one at a time.
    pub(super) fn examine(&mut self, request: DoctorRequest) {
        let DoctorRequest { device, answer } = request;
        let refused = |code: &str, detail: String| {
            let code = code.to_owned();
            Err(Refusal { code, detail })
        };
        let Some(known) = self.devices.devices.get(&device) else {
            let devices: Vec<_> = self.devices.devices.keys().map(DeviceId::as_str).collect();
            let detail = format!("this node has no device {device}: it has {}", devices.join(", "));
            answer.send(refused("not_found", detail)).ok(); // whoever asked may have gone
            return;
        };
        let Ok(turn) = Arc::clone(&self.devices.examining).try_acquire_owned() else {
            let detail = "another device is being looked at: ask again in a moment".to_owned();
            answer.send(refused("busy", detail)).ok(); // whoever asked may have gone
            return;
        };
        let (backend, runs) = (Arc::clone(&known.backend), known.running.is_some());
        self.tasks.spawn(async move {
            let found = tokio::time::timeout(EXAMINED_WITHIN, backend.examine()).await;
            if !runs {
                backend.close().await;
            }
            drop(turn);
            let found = match found {
                Ok(mut examination) => {
                    if runs {
                        let says = "an attempt is at work on the device: what is found is of this moment";
                        examination
                            .findings
                            .insert(0, DeviceFinding::new("attempt", FindingLevel::Warning, says));
                    }
                    Ok(examination)
                }
                Err(_elapsed) => {
                    let limit = EXAMINED_WITHIN.as_secs();
                    refused("slow", format!("{device} did not answer everything within {limit} s"))
                }
            };
            answer.send(found).ok(); // whoever asked may have gone
        });
    }

    /// Starts an attempt, or goes on with one, once the device's host has stepped aside if it has one. One that is over has
    /// only its outcome to tell.
    fn start_attempt(&mut self, device: &DeviceId, goal: Goal, start: Start) -> Result<(), JournalError> {
        let Some(known) = self.devices.devices.get_mut(device) else {
            return Ok(());
        };
        known.running = Some(goal.clone());
        let is_over = matches!(&start, Start::Resumed(record) if record.outcome().is_some());
        let host = known.backend.host().filter(|_| !is_over).map(str::to_owned);
        match host {
            Some(host) => self.await_host(&host, goal, start),
            None => {
                self.run_attempt_on(device, goal, start);
                Ok(())
            }
        }
    }

    pub(super) fn run_attempt_on(&mut self, device: &DeviceId, goal: Goal, start: Start) {
        let Some(known) = self.devices.devices.get_mut(device) else {
            return;
        };
        let trace = self.traces.context(&goal);
        let span = info_span!(
            "attempt", campaign = %goal.campaign, %device, version = goal.version(),
            trace_id = trace.map(|trace| trace.trace_hex())
        );
        let left = match &start {
            Start::Fresh(goal) => goal.attempt_limit(),
            Start::Resumed(record) => record.left(),
        };
        (known.running, known.ends) = (Some(goal), Some(Instant::now() + left));
        let backend = Arc::clone(&known.backend);
        let (journal, cancel): (Arc<dyn Journal>, CancellationToken) = (self.journal.clone(), self.cancel.clone());
        let (device, events) = (device.clone(), self.events.clone());
        self.spawn(async move {
            let (reports, mut news) = tokio::sync::mpsc::channel::<News>(16);
            let passing_on = async {
                while let Some(news) = news.recv().await {
                    events.send(Event::News(news)).await.ok(); // the loop stops listening only at shutdown
                }
            };
            let attempt = async {
                let attempt = run_attempt(&*backend, start, &journal, &reports, &cancel);
                let ended = traced(trace, attempt.instrument(span)).await;
                drop(reports);
                // Before the outcome is kept: what ended must not be gone on with by the device alone.
                if let Ok(Ended::Over(_)) = &ended
                    && let Err(error) = backend.over().await
                {
                    return Err(AttemptError::Journal {
                        device: backend.device().clone(),
                        source: error,
                    });
                }
                backend.close().await;
                ended
            };
            let (result, ()) = tokio::join!(attempt, passing_on);
            Event::AttemptEnded { device, result }
        });
    }

    pub(super) fn on_news(&mut self, news: News) -> Result<(), JournalError> {
        if let (Some(known), Some(version)) = (self.devices.devices.get_mut(&news.device), &news.report.version) {
            known.last_version = Some(version.clone());
            if let Some(facts) = known.facts.as_mut() {
                facts.version = Some(version.clone());
            }
        }
        self.report(news)
    }

    pub(super) fn on_attempt_ended(
        &mut self,
        device: &DeviceId,
        result: Result<Ended, AttemptError>,
    ) -> Result<(), JournalError> {
        let Some(goal) = self
            .devices
            .devices
            .get_mut(device)
            .and_then(|device| device.running.take())
        else {
            return Ok(());
        };
        match result {
            Ok(Ended::Interrupted) => return Ok(()),
            Ok(Ended::Over(outcome)) => {
                if outcome.state.is_success() {
                    self.journal
                        .raise_security_floor(device, goal.image.info.security_epoch)?;
                    self.note_image(&goal)?;
                }
                let Some(outcome) = goal.whole(outcome) else {
                    // It keeps its place: what it goes over is no end.
                    if let Some(known) = self.devices.devices.get_mut(device) {
                        (known.running, known.between) = (Some(goal), true);
                    }
                    self.look(device, Duration::ZERO);
                    return self.consider();
                };
                self.keep_outcome(device, &goal, &outcome)?;
                self.note_transcript(device, &goal, &outcome);
                // A quarantined device keeps its place under the caps until a person has looked at it.
                if outcome.state != AttemptState::Quarantined {
                    self.stand(device, &goal.campaign, goal.kind, AttemptStanding::Ended)?;
                    if goal.kind == PermitKind::Rollback {
                        self.stand(device, &goal.campaign, PermitKind::Update, AttemptStanding::Ended)?;
                    }
                }
                // After its end is durable, whichever it is: a node that dies in between gives the host back when it is
                // there again.
                self.release_host(device)?;
            }
            Err(AttemptError::Journal { source, .. }) => return Err(source),
            Err(error @ AttemptError::NobodyListens { .. }) => self.local_error(&error),
        }
        self.look(device, Duration::ZERO);
        self.consider()
    }

    /// Keeps how an attempt ended, and counts it if it was an update.
    fn keep_outcome(&mut self, device: &DeviceId, goal: &Goal, outcome: &Outcome) -> Result<(), JournalError> {
        let (campaign, kind) = (&goal.campaign, goal.kind);
        let tries = (kind == PermitKind::Update).then(|| {
            let before = self.devices.tries_in(campaign).get(device);
            let Outcome { state, failure, .. } = outcome;
            Tries::counted(before, goal.permit_sequence, *state, *failure, self.fleet.now())
        });
        self.journal
            .keep_outcome(campaign, device, kind, outcome, tries.as_ref())?;
        if let Some(tries) = tries {
            let of_campaign = self.devices.tries.entry(campaign.clone()).or_default();
            of_campaign.insert(device.clone(), tries);
        }
        Ok(())
    }
}
