//! Hosts that step aside before an attempt touches a device of theirs, and are given back after its end.
//!
//! Invariants: an attempt on a device with a host acts only after the host was granted; what the host is owed is durable before
//! it is touched, and taken up again after a crash; a host that cannot be given back is tried again, and shown.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use firmesh_executors::{
    AttemptRecord, Goal, Host, HostInput, HostOutput, HostRecord, HostState, HostStep, Journal as _, JournalError,
    News, Report, Start,
    host::{HostBackend, HostSettings},
};
use firmesh_protocol::{
    brake::Braked,
    ids::{DeviceId, Sha256},
    report::AttemptState,
    time::Timestamp,
};
use tracing::{error, info, warn};

use super::{Event, Runtime};
use crate::status::HostStatus;

/// After so many failures in a row the log calls for a person.
const PERSON_AFTER: u32 = 5;

/// The hosts of this node.
#[derive(Default)]
pub(super) struct Hosts {
    hosts: BTreeMap<String, Kept>,
    /// Hosts that are owed their way back, and are not in the configuration any more.
    lost: Vec<String>,
}

struct Kept {
    backend: Arc<HostBackend>,
    within: Duration,
    machine: Host,
    waiting: BTreeMap<DeviceId, Waiting>,
    /// What was last said of it in the log.
    told: (HostState, u32),
}

/// An attempt that waits for its host.
struct Waiting {
    record: AttemptRecord,
    since: Timestamp,
}

impl Hosts {
    pub(super) fn new(
        backends: Vec<HostBackend>,
        settings: &[HostSettings],
        mut records: BTreeMap<String, Vec<u8>>,
        now: Timestamp,
    ) -> Self {
        let hosts = backends.into_iter().zip(settings).map(|(backend, settings)| {
            let name = settings.name.clone();
            let record = records.remove(&name).map(|bytes| {
                HostRecord::from_bytes(&bytes).unwrap_or_else(|error| {
                    error!(host = name, %error, "a host's record cannot be read: it is given back as if it were aside");
                    HostRecord::unreadable()
                })
            });
            let digest = Sha256::of(name.as_bytes());
            let seed = digest.as_bytes()[..8].try_into().map_or(0, u64::from_be_bytes);
            let kept = Kept {
                backend: Arc::new(backend),
                within: Duration::from_secs(settings.within_s.into()),
                machine: Host::new(record.as_ref(), seed, now),
                waiting: BTreeMap::new(),
                told: (HostState::Back, 0),
            };
            (name, kept)
        });
        let hosts = hosts.collect();
        let lost: Vec<String> = records.into_keys().collect();
        for host in &lost {
            error!(
                host,
                "a host is owed its way back and is not in the configuration: put it back, or give it back by hand"
            );
        }
        Self { hosts, lost }
    }

    /// When one of them wants to be heard again.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.hosts.values().filter_map(|kept| kept.machine.deadline()).min()
    }

    pub(super) fn status(&self, now: Timestamp) -> Vec<HostStatus> {
        let known = self.hosts.iter().map(|(name, kept)| {
            let machine = &kept.machine;
            let problem = machine.problem();
            HostStatus {
                host: name.clone(),
                state: machine.state(),
                since_s: now.since(machine.since()).as_secs(),
                owed: machine.is_owed(),
                devices: machine.users().cloned().collect(),
                failures: problem.map_or(0, |(_, tries)| tries),
                problem: problem.map(|(problem, _)| problem.to_owned()),
            }
        });
        let lost = self.lost.iter().map(|name| HostStatus {
            host: name.clone(),
            state: HostState::Leaving,
            since_s: 0,
            owed: true,
            devices: Vec::new(),
            failures: 0,
            problem: Some("it is not in the configuration any more, and still owed its way back".to_owned()),
        });
        known.chain(lost).collect()
    }
}

impl Runtime {
    /// Everything that goes on after a restart has been named: hosts that nobody needs any more are given back.
    pub(super) fn begin_hosts(&mut self) -> Result<(), JournalError> {
        let now = self.now();
        let names: Vec<_> = self.hosts.hosts.keys().cloned().collect();
        for name in names {
            if let Some(kept) = self.hosts.hosts.get_mut(&name) {
                kept.machine.begin(now);
            }
            self.drive_host(&name)?;
        }
        Ok(())
    }

    /// Whose time has come goes on.
    pub(super) fn tick_hosts(&mut self) -> Result<(), JournalError> {
        let now = self.now();
        let is_due = |kept: &Kept| kept.machine.deadline().is_some_and(|due| due <= now);
        let due: Vec<_> = self
            .hosts
            .hosts
            .iter()
            .filter(|(_, kept)| is_due(kept))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.on_host(&name, HostInput::Tick)?;
        }
        self.give_up_braked()
    }

    /// An attempt on this device cannot go on yet, and must not find its host given back.
    pub(super) fn keep_host(&mut self, device: &DeviceId) {
        let host = self.devices.host_of(device);
        if let Some(kept) = host.and_then(|host| self.hosts.hosts.get_mut(&host)) {
            kept.machine.keep(device);
        }
    }

    /// Has a device's host step aside, and its attempt wait for it.
    pub(super) fn await_host(&mut self, host: &str, goal: Goal, start: Start) -> Result<(), JournalError> {
        let now = self.now();
        let device = goal.device.clone();
        let record = match start {
            Start::Resumed(record) => record,
            // Durable, so that a node that dies over the preparation goes on with it.
            Start::Fresh(goal) => {
                let record = AttemptRecord::waiting(goal);
                self.journal.save(&device, &record.to_bytes())?;
                record
            }
        };
        let Some(kept) = self.hosts.hosts.get_mut(host) else {
            unreachable!("a device's host is in the configuration that was checked")
        };
        let until = now + kept.within.min(record.may_wait());
        kept.waiting.insert(device.clone(), Waiting { record, since: now });
        kept.machine.want(&device, until, now);
        self.drive_host(host)
    }

    /// The attempt on this device has ended.
    pub(super) fn release_host(&mut self, device: &DeviceId) -> Result<(), JournalError> {
        let now = self.now();
        let Some(host) = self.devices.host_of(device) else {
            return Ok(());
        };
        if let Some(kept) = self.hosts.hosts.get_mut(&host) {
            kept.waiting.remove(device);
            kept.machine.release(device, now);
        }
        self.drive_host(&host)
    }

    /// An act on a host is over.
    pub(super) fn on_host(&mut self, host: &str, input: HostInput) -> Result<(), JournalError> {
        let now = self.now();
        if let Some(kept) = self.hosts.hosts.get_mut(host) {
            kept.machine.handle(now, input);
        }
        self.drive_host(host)
    }

    /// Attempts that have done nothing yet and wait for their hosts are over when what they would install was stopped for good.
    fn give_up_braked(&mut self) -> Result<(), JournalError> {
        let mut braked = Vec::new();
        for (name, kept) in &self.hosts.hosts {
            let untouched = kept.waiting.iter().filter(|(_, waiting)| waiting.record.is_untouched());
            for (device, waiting) in untouched {
                let goal = &waiting.record.goal;
                let subjects = [
                    Braked::Campaign {
                        id: goal.campaign.clone(),
                        manifest_sha256: goal.manifest_sha256,
                    },
                    Braked::Release {
                        target: goal.image.target.clone(),
                        sha256: goal.image.artifact.sha256,
                    },
                ];
                if self.brakes.all().any(|known| subjects.contains(known)) {
                    braked.push((name.clone(), device.clone()));
                }
            }
        }
        for (host, device) in braked {
            let now = self.now();
            let Some(kept) = self.hosts.hosts.get_mut(&host) else {
                continue;
            };
            let Some(waiting) = kept.waiting.remove(&device) else {
                continue;
            };
            kept.machine.release(&device, now);
            let reason = "a brake was pulled while its host stepped aside".to_owned();
            self.give_up(&device, waiting.record, AttemptState::Cancelled, reason)?;
            self.drive_host(&host)?;
        }
        Ok(())
    }

    /// Turns a host's decisions into acts, and says where it stands.
    fn drive_host(&mut self, name: &str) -> Result<(), JournalError> {
        loop {
            let Some(kept) = self.hosts.hosts.get_mut(name) else {
                return Ok(());
            };
            let Some(output) = kept.machine.poll() else {
                break;
            };
            match output {
                HostOutput::Persist(record) => {
                    let bytes = record.map(|record| record.to_bytes());
                    self.journal.keep_host(name, bytes.as_deref())?;
                }
                HostOutput::Step(step) => {
                    let (backend, host) = (Arc::clone(&kept.backend), name.to_owned());
                    self.spawn(async move {
                        let input = carry_out(&backend, step).await;
                        Event::Host { host, input }
                    });
                }
                HostOutput::Granted(device) => {
                    let now = self.now();
                    let waited = self
                        .hosts
                        .hosts
                        .get_mut(name)
                        .and_then(|kept| kept.waiting.remove(&device));
                    if let Some(Waiting { record, since }) = waited {
                        let record = record.having_waited(now.since(since));
                        // Before it goes on: time that was spent stays spent.
                        self.journal.save(&device, &record.to_bytes())?;
                        info!(%device, host = name, "its host has stepped aside");
                        self.run_attempt_on(&device, record.goal.clone(), Start::Resumed(record));
                    }
                }
                HostOutput::Refused { device, reason } => {
                    let waited = kept.waiting.remove(&device);
                    if let Some(Waiting { record, .. }) = waited {
                        let reason = format!("its host {name} does not step aside: {reason}");
                        self.give_up(&device, record, AttemptState::Failed, reason)?;
                    }
                }
            }
        }
        self.tell_of_host(name)
    }

    /// Ends an attempt that may not act any more, as all attempts end: with a record, and from there.
    fn give_up(
        &mut self,
        device: &DeviceId,
        record: AttemptRecord,
        otherwise: AttemptState,
        reason: String,
    ) -> Result<(), JournalError> {
        warn!(%device, reason, "an attempt ends without its host");
        let record = record.given_up(otherwise, reason);
        self.journal.save(device, &record.to_bytes())?;
        self.run_attempt_on(device, record.goal.clone(), Start::Resumed(record));
        Ok(())
    }

    /// In the log what is new, and to the campaign what its devices wait for.
    fn tell_of_host(&mut self, name: &str) -> Result<(), JournalError> {
        let Some(kept) = self.hosts.hosts.get_mut(name) else {
            return Ok(());
        };
        let (state, problem) = (kept.machine.state(), kept.machine.problem());
        let failures = problem.map_or(0, |(_, tries)| tries);
        let problem = problem.map(|(problem, _)| problem.to_owned());
        if std::mem::replace(&mut kept.told, (state, failures)) != (state, failures) {
            match &problem {
                None => info!(host = name, %state, "host"),
                Some(problem) if state == HostState::Leaving && failures >= PERSON_AFTER => {
                    error!(host = name, %state, failures, problem, "a host cannot be given back, and is tried again");
                }
                Some(problem) => warn!(host = name, %state, failures, problem, "host"),
            }
        }
        // Aside it is for others: it is looked at once more for who waits now.
        let reason = match problem {
            None => format!("waits for its host {name} to step aside ({state})"),
            Some(problem) => format!("waits for its host {name} to step aside ({state}): {problem}"),
        };
        let goals: Vec<_> = kept
            .waiting
            .values()
            .map(|waiting| waiting.record.goal.clone())
            .collect();
        for goal in goals {
            let mut report = Report::on_the_way(AttemptState::Installing, None);
            report.reason.clone_from(&reason);
            self.report(News::of(&goal, report))?;
        }
        Ok(())
    }

    /// When a host wants to be heard again.
    pub(super) fn hosts_due_at(&self) -> Option<Instant> {
        self.hosts.deadline().map(|at| self.started + at.since_start())
    }
}

async fn carry_out(backend: &HostBackend, step: HostStep) -> HostInput {
    let acted = |result| match result {
        Ok(()) => HostInput::Acted,
        Err(error) => HostInput::ActFailed(error),
    };
    match step {
        HostStep::Look => HostInput::Looked(backend.look().await),
        HostStep::Enter => acted(backend.enter().await),
        HostStep::Leave => acted(backend.leave().await),
    }
}
