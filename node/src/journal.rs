//! What the node must not forget, in sled: attempts, permits, reports not yet acknowledged, counters.
//!
//! Invariant: whatever a method here has returned from survives power loss. sled's own `flush` stops short of the disk's
//! cache (it uses `sync_file_range`), so the database file is synchronised after it. Everything in here can be verified
//! again (signed envelopes) or is checked when read (records).

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use firmesh_executors::{Journal, JournalError, Outcome};
use firmesh_node_core::{install::AttemptStanding, retries::Tries};
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, DeviceId},
    report::PermitKind,
    trust::Envelope,
};
use serde::{Deserialize, Serialize};

/// Where devices stand, by campaign, device and kind of attempt.
pub type Standings = BTreeMap<(CampaignId, DeviceId, PermitKind), AttemptStanding>;

/// Permits on which a device will not be started whatever comes, because its coordinator was told so: campaign, device,
/// kind and sequence.
pub type Declined = BTreeSet<(CampaignId, DeviceId, PermitKind, u64)>;

/// How updates ended, by campaign and device.
pub type AllTries = BTreeMap<CampaignId, BTreeMap<DeviceId, Tries>>;

/// The images of one device, as far as this node installed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceImages {
    /// What it runs.
    pub now: ArtifactId,
    /// What it ran before: what a rollback needs.
    pub before: Option<ArtifactId>,
}

/// The node's journal.
#[derive(Debug)]
pub struct NodeJournal {
    db: sled::Db,
    attempts: sled::Tree,
    permits: sled::Tree,
    reports: sled::Tree,
    facts: sled::Tree,
    asking: sled::Tree,
    barrier: Mutex<File>,
}

/// What is known of devices that ask for their updates: a record for each, beside that of its attempt.
#[derive(Debug)]
pub struct AskingNotes(pub Arc<NodeJournal>);

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the journal in {folder} cannot be opened; is another node running on it, or the disk full or read-only?")]
pub struct OpenError {
    folder: PathBuf,
    source: Box<dyn Error + Send + Sync>,
}

/// How long the lock of a journal is waited for: whoever had it may be on its way out, and so may be what it started.
const UNLOCKED_WITHIN: Duration = Duration::from_secs(3);
const LOOKS_AGAIN: Duration = Duration::from_millis(20);

/// Whether another process, or another part of this one, has the journal open: sled says so in words alone.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

impl NodeJournal {
    /// Opens or creates the journal in `folder`.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let failed = |source: Box<dyn Error + Send + Sync>| OpenError {
            folder: folder.to_owned(),
            source,
        };
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity(8 << 20)
            .flush_every_ms(None);
        let began = Instant::now();
        let db = loop {
            match config.open() {
                Err(error) if is_locked(&error) && began.elapsed() < UNLOCKED_WITHIN => thread::sleep(LOOKS_AGAIN),
                opened => break opened.map_err(|error| failed(error.into()))?,
            }
        };
        let tree = |name: &str| db.open_tree(name).map_err(|error| failed(error.into()));
        Ok(Self {
            attempts: tree("attempts")?,
            permits: tree("permits")?,
            reports: tree("reports")?,
            facts: tree("facts")?,
            asking: tree("asking")?,
            barrier: Mutex::new(File::open(folder.join("db")).map_err(|error| failed(error.into()))?),
            db,
        })
    }

    /// Keeps a verified permit. Returns whether it is new.
    pub fn keep_permit(&self, campaign: &CampaignId, sequence: u64, permit: &Envelope) -> Result<bool, JournalError> {
        let key = permit_key(campaign, sequence);
        let before = self
            .permits
            .insert(key, permit.to_bytes())
            .map_err(failed("keep a permit"))?;
        self.make_durable("keep a permit")?;
        Ok(before.is_none())
    }

    /// The permits of all campaigns, oldest first in each.
    pub fn permits(&self) -> Result<Vec<Envelope>, JournalError> {
        self.permits
            .iter()
            .values()
            .filter_map(|bytes| readable(bytes, "read permits"))
            .collect()
    }

    /// Keeps a signed report until it is acknowledged.
    pub fn keep_report(&self, sequence: u64, report: &Envelope) -> Result<(), JournalError> {
        self.reports
            .insert(sequence.to_be_bytes(), report.to_bytes())
            .map_err(failed("keep a report"))?;
        self.make_durable("keep a report")
    }

    /// Up to `count` reports not yet acknowledged, oldest first.
    pub fn reports(&self, count: usize) -> Result<Vec<Envelope>, JournalError> {
        self.reports
            .iter()
            .values()
            .filter_map(|bytes| readable(bytes, "read reports"))
            .take(count)
            .collect()
    }

    /// Forgets reports up to `sequence`: the coordinator has them.
    pub fn acknowledge(&self, sequence: u64) -> Result<(), JournalError> {
        let acknowledged: Vec<_> = self.reports.range(..=sequence.to_be_bytes()).keys().flatten().collect();
        for key in acknowledged {
            self.reports.remove(key).map_err(failed("forget a report"))?;
        }
        Ok(())
    }

    /// The next number of a counter; never the same twice, over restarts too.
    pub fn next(&self, counter: &str) -> Result<u64, JournalError> {
        self.next_at_least(counter, 0)
    }

    /// The next number of a counter, and no less than `floor`.
    pub fn next_at_least(&self, counter: &str, floor: u64) -> Result<u64, JournalError> {
        let add_one = |value: Option<&[u8]>| {
            let value = value
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_be_bytes);
            Some(value.saturating_add(1).max(floor).to_be_bytes().to_vec())
        };
        let key = format!("counter/{counter}");
        let next = self.facts.update_and_fetch(key, add_one).map_err(failed("count"))?;
        self.make_durable("count")?;
        let next = next
            .as_deref()
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_be_bytes);
        Ok(next.expect("the counter was just written"))
    }

    /// Notes that a device ran a release of this security epoch. Floors only rise.
    pub fn raise_security_floor(&self, device: &DeviceId, epoch: u32) -> Result<(), JournalError> {
        if epoch > self.security_floor(device)? {
            let key = format!("floor/{device}");
            self.facts
                .insert(key, &epoch.to_be_bytes())
                .map_err(failed("raise a security floor"))?;
            self.make_durable("raise a security floor")?;
        }
        Ok(())
    }

    /// The highest security epoch a device is known to have run.
    pub fn security_floor(&self, device: &DeviceId) -> Result<u32, JournalError> {
        let stored = self
            .facts
            .get(format!("floor/{device}"))
            .map_err(failed("read a security floor"))?;
        Ok(stored
            .as_deref()
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_be_bytes))
    }

    /// Notes which images a device has.
    pub fn keep_images(&self, device: &DeviceId, images: DeviceImages) -> Result<(), JournalError> {
        let bytes = serde_json::to_vec(&images).map_err(failed("keep a device's images"))?;
        self.facts
            .insert(format!("images/{device}"), bytes)
            .map_err(failed("keep a device's images"))?;
        self.make_durable("keep a device's images")
    }

    /// Keeps the record of a host that is owed its way back, or forgets it.
    pub fn keep_host(&self, name: &str, record: Option<&[u8]>) -> Result<(), JournalError> {
        let key = format!("host/{name}");
        let result = match record {
            Some(record) => self.facts.insert(key, record),
            None => self.facts.remove(key),
        };
        result.map_err(failed("keep a host"))?;
        self.make_durable("keep a host")
    }

    /// The records of hosts that are owed their way back, by name.
    pub fn hosts(&self) -> Result<BTreeMap<String, Vec<u8>>, JournalError> {
        let entries = self.facts.scan_prefix(b"host/").map(|entry| {
            let (key, record) = entry.map_err(failed("read hosts"))?;
            let name = String::from_utf8(key[b"host/".len()..].to_vec()).map_err(failed("read hosts"))?;
            Ok((name, record.to_vec()))
        });
        entries.collect()
    }

    /// Which images the devices have.
    pub fn images(&self) -> Result<BTreeMap<DeviceId, DeviceImages>, JournalError> {
        self.facts
            .scan_prefix(b"images/")
            .map(|entry| {
                let (key, value) = entry.map_err(failed("read devices' images"))?;
                let device = device_of(&key[b"images/".len()..])?;
                Ok((
                    device,
                    serde_json::from_slice(&value).map_err(failed("read devices' images"))?,
                ))
            })
            .collect()
    }

    /// Notes where a device stands in a campaign: started, or ended.
    pub fn keep_standing(
        &self,
        campaign: &CampaignId,
        device: &DeviceId,
        kind: PermitKind,
        standing: AttemptStanding,
    ) -> Result<(), JournalError> {
        let value = [u8::from(standing == AttemptStanding::InFlight)];
        self.facts
            .insert(format!("standing/{}", attempt_key(campaign, device, kind)), &value)
            .map_err(failed("keep a standing"))?;
        self.make_durable("keep a standing")
    }

    /// Where devices stand in campaigns in which they were started.
    pub fn standings(&self) -> Result<Standings, JournalError> {
        let entries = self.facts.scan_prefix("standing/").map(|entry| {
            let (key, value) = entry.map_err(failed("read standings"))?;
            let standing = match &value[..] {
                [0] => AttemptStanding::Ended,
                _ => AttemptStanding::InFlight,
            };
            let malformed = || failed("read standings")("a malformed key");
            Ok((attempt_of(&key).ok_or_else(malformed)?, standing))
        });
        entries.collect()
    }

    /// Notes that a device will not be started on this permit.
    pub fn keep_declined(
        &self,
        campaign: &CampaignId,
        device: &DeviceId,
        kind: PermitKind,
        permit: u64,
    ) -> Result<(), JournalError> {
        let key = format!("declined/{}/{permit}", attempt_key(campaign, device, kind));
        self.facts.insert(key, &[]).map_err(failed("keep a refusal"))?;
        self.make_durable("keep a refusal")
    }

    /// The permits that devices will not be started on.
    pub fn declined(&self) -> Result<Declined, JournalError> {
        let entries = self.facts.scan_prefix("declined/").keys().map(|key| {
            let key = key.map_err(failed("read refusals"))?;
            let malformed = || failed("read refusals")("a malformed key");
            let text = std::str::from_utf8(&key).ok().and_then(|text| text.rsplit_once('/'));
            let (attempt, permit) = text.ok_or_else(malformed)?;
            let (campaign, device, kind) = attempt_of(attempt.as_bytes()).ok_or_else(malformed)?;
            Ok((campaign, device, kind, permit.parse().map_err(|_| malformed())?))
        });
        entries.collect()
    }

    /// Notes how a device's attempt in a campaign ended, and of an update which one it was: its record goes when the device's
    /// next one begins.
    pub fn keep_outcome(
        &self,
        campaign: &CampaignId,
        device: &DeviceId,
        kind: PermitKind,
        outcome: &Outcome,
        tries: Option<&Tries>,
    ) -> Result<(), JournalError> {
        let mut batch = sled::Batch::default();
        let bytes = serde_json::to_vec(outcome).map_err(failed("keep an outcome"))?;
        let key = format!("outcome/{}", attempt_key(campaign, device, kind));
        batch.insert(key.as_str(), bytes);
        if let Some(tries) = tries {
            let bytes = serde_json::to_vec(tries).map_err(failed("keep an outcome"))?;
            batch.insert(format!("tries/{campaign}/{device}").as_str(), bytes);
        }
        self.facts.apply_batch(batch).map_err(failed("keep an outcome"))?;
        self.make_durable("keep an outcome")
    }

    /// How updates of devices ended.
    pub fn tries(&self) -> Result<AllTries, JournalError> {
        let mut all = AllTries::new();
        for entry in self.facts.scan_prefix("tries/") {
            let (key, value) = entry.map_err(failed("read tries"))?;
            let malformed = || failed("read tries")("a malformed key");
            let text = std::str::from_utf8(&key).map_err(failed("read tries"))?;
            let mut parts = text.split('/').skip(1);
            let (Some(campaign), Some(device), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(malformed());
            };
            let campaign: CampaignId = campaign.parse().map_err(|_| malformed())?;
            let device: DeviceId = device.parse().map_err(|_| malformed())?;
            let tries = serde_json::from_slice(&value).map_err(failed("read tries"))?;
            all.entry(campaign).or_default().insert(device, tries);
        }
        Ok(all)
    }

    /// How a device's attempt in a campaign ended, if it has.
    pub fn outcome(
        &self,
        campaign: &CampaignId,
        device: &DeviceId,
        kind: PermitKind,
    ) -> Result<Option<Outcome>, JournalError> {
        let stored = self
            .facts
            .get(format!("outcome/{}", attempt_key(campaign, device, kind)))
            .map_err(failed("read an outcome"))?;
        stored
            .map(|bytes| serde_json::from_slice(&bytes).map_err(failed("read an outcome")))
            .transpose()
    }

    /// Notes the epoch of the coordinator that is followed.
    pub fn keep_epoch(&self, epoch: u64) -> Result<(), JournalError> {
        self.facts
            .insert("epoch", &epoch.to_be_bytes())
            .map_err(failed("keep the epoch"))?;
        self.make_durable("keep the epoch")
    }

    /// The epoch of the coordinator that is followed; 0 before the first.
    pub fn epoch(&self) -> Result<u64, JournalError> {
        let stored = self.facts.get("epoch").map_err(failed("read the epoch"))?;
        Ok(stored
            .as_deref()
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_be_bytes))
    }

    /// Notes that a campaign was stopped, or goes on again.
    pub fn keep_halted(&self, campaign: &CampaignId, halted: bool) -> Result<(), JournalError> {
        let key = format!("halted/{campaign}");
        let result = if halted {
            self.facts.insert(key, &[])
        } else {
            self.facts.remove(key)
        };
        result.map_err(failed("keep a halt"))?;
        self.make_durable("keep a halt")
    }

    /// Whether a campaign was stopped.
    pub fn is_halted(&self, campaign: &CampaignId) -> Result<bool, JournalError> {
        self.facts
            .contains_key(format!("halted/{campaign}"))
            .map_err(failed("read a halt"))
    }

    /// The attempt records of all devices.
    pub fn attempts(&self) -> Result<BTreeMap<DeviceId, Vec<u8>>, JournalError> {
        self.attempts
            .iter()
            .map(|entry| {
                let (key, record) = entry.map_err(failed("list"))?;
                Ok((device_of(&key)?, record.to_vec()))
            })
            .collect()
    }

    fn make_durable(&self, operation: &'static str) -> Result<(), JournalError> {
        self.db.flush().map_err(failed(operation))?;
        let barrier = self.barrier.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        barrier.sync_data().map_err(failed(operation))
    }
}

/// Attempt records are kept per device: the running attempt, or the last one.
impl Journal for NodeJournal {
    fn save(&self, device: &DeviceId, record: &[u8]) -> Result<(), JournalError> {
        self.attempts.insert(device.as_str(), record).map_err(failed("save"))?;
        self.make_durable("save")
    }

    fn load(&self, device: &DeviceId) -> Result<Option<Vec<u8>>, JournalError> {
        let record = self.attempts.get(device.as_str()).map_err(failed("load"))?;
        Ok(record.map(|bytes| bytes.to_vec()))
    }

    fn list(&self) -> Result<Vec<DeviceId>, JournalError> {
        self.attempts
            .iter()
            .keys()
            .map(|key| device_of(&key.map_err(failed("list"))?))
            .collect()
    }
}

impl Journal for AskingNotes {
    fn save(&self, device: &DeviceId, record: &[u8]) -> Result<(), JournalError> {
        let Self(journal) = self;
        journal.asking.insert(device.as_str(), record).map_err(failed("save"))?;
        journal.make_durable("save")
    }

    fn load(&self, device: &DeviceId) -> Result<Option<Vec<u8>>, JournalError> {
        let record = self.0.asking.get(device.as_str()).map_err(failed("load"))?;
        Ok(record.map(|bytes| bytes.to_vec()))
    }

    fn list(&self) -> Result<Vec<DeviceId>, JournalError> {
        let keys = self.0.asking.iter().keys();
        keys.map(|key| device_of(&key.map_err(failed("list"))?)).collect()
    }
}

fn attempt_key(campaign: &CampaignId, device: &DeviceId, kind: PermitKind) -> String {
    let kind = match kind {
        PermitKind::Update => "update",
        PermitKind::Rollback => "rollback",
    };
    format!("{campaign}/{device}/{kind}")
}

fn permit_key(campaign: &CampaignId, sequence: u64) -> Vec<u8> {
    [campaign.as_str().as_bytes(), &[0], &sequence.to_be_bytes()].concat()
}

/// A stored envelope; one that cannot be read any more is said so and left out, rather than keep the node from starting.
fn readable(stored: sled::Result<sled::IVec>, operation: &'static str) -> Option<Result<Envelope, JournalError>> {
    match stored.map(|bytes| Envelope::from_bytes(&bytes)) {
        Ok(Ok(envelope)) => Some(Ok(envelope)),
        Ok(Err(error)) => {
            tracing::error!(operation, %error, "a stored envelope cannot be read");
            None
        }
        Err(error) => Some(Err(failed(operation)(error))),
    }
}

fn attempt_of(key: &[u8]) -> Option<(CampaignId, DeviceId, PermitKind)> {
    let mut parts = std::str::from_utf8(key).ok()?.split('/').skip(1);
    let (campaign, device) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let kind = match parts.next()? {
        "update" => PermitKind::Update,
        "rollback" => PermitKind::Rollback,
        _ => return None,
    };
    Some((campaign, device, kind))
}

fn device_of(key: &[u8]) -> Result<DeviceId, JournalError> {
    let name = String::from_utf8(key.to_vec()).map_err(failed("list"))?;
    DeviceId::new(name).map_err(failed("list"))
}

fn failed<E: Into<Box<dyn Error + Send + Sync>>>(operation: &'static str) -> impl Fn(E) -> JournalError {
    move |source| JournalError {
        operation,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::{report::AttemptState, time::WallTime};

    use super::*;

    #[test]
    fn what_was_kept_is_there_after_a_restart_and_counters_never_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let device = DeviceId::new("d1").unwrap();
        let campaign = CampaignId::new("spring").unwrap();
        let envelope = Envelope::sign("test", b"permit".to_vec(), []);
        let images = DeviceImages {
            now: ArtifactId::of(b"new"),
            before: Some(ArtifactId::of(b"old")),
        };
        {
            let journal = NodeJournal::open(folder.path()).unwrap();
            journal.save(&device, b"record").unwrap();
            assert!(journal.keep_permit(&campaign, 7, &envelope).unwrap());
            assert!(!journal.keep_permit(&campaign, 7, &envelope).unwrap());
            assert_eq!(journal.next("reports").unwrap(), 1);
            journal.keep_report(1, &envelope).unwrap();
            journal.keep_report(2, &envelope).unwrap();
            journal.acknowledge(1).unwrap();
            journal.raise_security_floor(&device, 3).unwrap();
            journal.raise_security_floor(&device, 2).unwrap();
            journal.keep_images(&device, images).unwrap();
            journal
                .keep_standing(&campaign, &device, PermitKind::Update, AttemptStanding::Ended)
                .unwrap();
        }
        {
            let journal = NodeJournal::open(folder.path()).unwrap();
            journal.keep_host("esx-1", Some(b"aside")).unwrap();
            journal.keep_host("esx-2", Some(b"aside")).unwrap();
            journal.keep_host("esx-2", None).unwrap();
        }
        let kept = NodeJournal::open(folder.path()).unwrap().hosts().unwrap();
        assert_eq!(kept, [("esx-1".to_owned(), b"aside".to_vec())].into());
        let outcome = Outcome {
            state: AttemptState::Success,
            reason: String::new(),
            version: Some("2".to_owned()),
            failure: None,
            health: None,
        };
        let at = WallTime::from_unix_seconds(100);
        let tries = Tries::counted(None, 7, AttemptState::Success, None, at);
        {
            let journal = NodeJournal::open(folder.path()).unwrap();
            journal
                .keep_outcome(&campaign, &device, PermitKind::Update, &outcome, Some(&tries))
                .unwrap();
            journal
                .keep_declined(&campaign, &device, PermitKind::Rollback, 12)
                .unwrap();
        }
        let journal = NodeJournal::open(folder.path()).unwrap();
        assert_eq!(
            journal.outcome(&campaign, &device, PermitKind::Update).unwrap(),
            Some(outcome)
        );
        assert_eq!(journal.outcome(&campaign, &device, PermitKind::Rollback).unwrap(), None);
        assert_eq!(journal.tries().unwrap()[&campaign], [(device.clone(), tries)].into());
        let declined = (campaign.clone(), device.clone(), PermitKind::Rollback, 12);
        assert_eq!(journal.declined().unwrap(), [declined].into());
        assert_eq!(journal.load(&device).unwrap().as_deref(), Some(&b"record"[..]));
        assert_eq!(journal.permits().unwrap().len(), 1);
        assert_eq!(journal.next("reports").unwrap(), 2);
        assert_eq!(journal.reports(10).unwrap().len(), 1);
        assert_eq!(journal.security_floor(&device).unwrap(), 3);
        assert_eq!(journal.images().unwrap(), [(device.clone(), images)].into());
        let standing = (
            (campaign.clone(), device.clone(), PermitKind::Update),
            AttemptStanding::Ended,
        );
        assert_eq!(journal.standings().unwrap().into_iter().collect::<Vec<_>>(), [standing]);
        assert!(!journal.is_halted(&campaign).unwrap());
        journal.keep_halted(&campaign, true).unwrap();
        assert!(journal.is_halted(&campaign).unwrap());
    }

    /// As a process that dies is still there for a moment, or a child of it that has the lock until it runs.
    #[test]
    fn a_lock_that_is_about_to_go_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        drop(NodeJournal::open(folder.path()).unwrap());
        let holder = File::open(folder.path().join("db")).unwrap();
        holder.lock().unwrap();
        let path = folder.path().to_owned();
        let opener = thread::spawn(move || NodeJournal::open(&path).map(drop));
        let began = Instant::now();
        while !opener.is_finished() && began.elapsed() < Duration::from_millis(300) {
            thread::yield_now();
        }
        assert!(!opener.is_finished(), "{:?}", opener.join());
        holder.unlock().unwrap();
        opener.join().unwrap().unwrap();
    }
}
