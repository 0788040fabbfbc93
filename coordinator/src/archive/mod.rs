//! Campaigns that ended long ago: what is stored of single devices (attempts, permits, proofs, reports) goes out of the tables
//! into compressed files beside the images, where it stays readable.
//!
//! Invariants: rows go only after the files that have them are durable, and the table `archived` and the audit log name these
//! with their digests; a move that breaks off is gone on with by the next one; each transaction is short; a campaign that a
//! device still waits in, in flight or in quarantine, stays. The audit log itself is never moved: it is whole for as long as the
//! fleet is, and has what was signed. A campaign's record, manifest and plan stay as well, so that no other takes its name.

mod mover;
mod segment;

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use firmesh_protocol::{
    api::{ArchiveSegment, ArchiveView, ArchivedAttempt},
    ids::{CampaignId, DeviceId, Sha256},
};
use serde::Deserialize;

use self::segment::{Row, SEGMENT_BYTES_MAX, rows};
use crate::{
    ConfigError,
    files::Shelf,
    rows::unreadable,
    runtime::{ActionError, Coordinator},
    store::{Store, StoreError},
};

/// `[retention]` of the configuration: how long what is kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// How long attempts, permits, proofs and reports of a campaign that has ended stay in the database. Default: 90 days.
    pub campaigns: String,
    /// How long archives are kept after that, in days. Default: for ever.
    pub archives_days: Option<u32>,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            campaigns: "90d".to_owned(),
            archives_days: None,
        }
    }
}

/// The same, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    pub(crate) campaigns: Duration,
    archives: Option<Duration>,
}

impl RetentionConfig {
    pub(crate) fn check(
        &self,
        duration: impl Fn(&'static str, &str) -> Result<Duration, ConfigError>,
    ) -> Result<Retention, ConfigError> {
        if self.archives_days.is_some_and(|days| !(1..=36_500).contains(&days)) {
            return Err(ConfigError::Value {
                field: "retention.archives_days",
                problem: "must be 1 to 36500 days".to_owned(),
            });
        }
        let days = |days: u32| Duration::from_secs(u64::from(days) * 86_400);
        Ok(Retention {
            campaigns: duration("retention.campaigns", &self.campaigns)?,
            archives: self.archives_days.map(days),
        })
    }
}

/// Why something was not archived, or cannot be read back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder or the bucket.
    #[error("the archive {name} cannot be written or read: check the disk or the bucket")]
    Files {
        /// Which file.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// Not what was archived.
    #[error("the archive {name} has the SHA-256 {found}, archived was {expected}: restore it from a backup")]
    Changed {
        /// Which file.
        name: String,
        /// What was archived.
        expected: Sha256,
        /// What is there.
        found: String,
    },
    /// The campaign is needed again.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// Another run is not over.
    #[error("another run of the archive is not over")]
    Busy,
}

/// The archive. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    store: Store,
    /// Whoever else may have use for a campaign, if anybody works with the database.
    coordinator: Option<Coordinator>,
    shelf: Shelf,
    retention: Retention,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Archive {
    pub(crate) fn new(store: Store, shelf: Shelf, retention: Retention, coordinator: Option<Coordinator>) -> Self {
        Self {
            store,
            coordinator,
            shelf,
            retention,
            turn: Arc::default(),
        }
    }

    /// Attempts of an archived campaign after `after`, in the order of their devices, at most `count`.
    pub(crate) async fn attempts(
        &self,
        archive: &ArchiveView,
        after: Option<&DeviceId>,
        count: usize,
    ) -> Result<Vec<ArchivedAttempt>, ArchiveError> {
        let mut found = Vec::new();
        for segment in &archive.segments {
            let is_behind = segment
                .last_device
                .as_ref()
                .is_none_or(|last| after.is_some_and(|after| last <= after));
            if is_behind || found.len() >= count {
                continue;
            }
            for row in self.rows(segment).await? {
                if let Row::Attempts { device, record } = row
                    && after.is_none_or(|after| device > *after)
                    && found.len() < count
                {
                    let record = serde_json::from_str(&record);
                    let record = record.map_err(|error| files(&segment.name, error.into()))?;
                    found.push(ArchivedAttempt { device, record });
                }
            }
        }
        Ok(found)
    }

    /// Reads a file whole and compares it with its digest.
    async fn rows(&self, segment: &ArchiveSegment) -> Result<Vec<Row>, ArchiveError> {
        let ArchiveSegment { name, sha256, .. } = segment;
        let read = self
            .shelf
            .get(name, SEGMENT_BYTES_MAX)
            .await
            .map_err(|error| files(name, error))?;
        let found = read.as_ref().map(|bytes| Sha256::of(bytes));
        match read {
            Some(bytes) if found == Some(*sha256) => {
                let parsed = tokio::task::spawn_blocking(move || rows(&bytes).collect::<io::Result<Vec<Row>>>()).await;
                let parsed = parsed.map_err(|error| files(name, io::Error::other(error)))?;
                parsed.map_err(|error| files(name, error))
            }
            _ => Err(ArchiveError::Changed {
                name: name.clone(),
                expected: *sha256,
                found: found.map_or_else(|| "none, it is gone".to_owned(), |found| found.to_string()),
            }),
        }
    }

    /// Reads all files of a campaign and compares them with their digests.
    pub(crate) async fn verify(&self, archive: &ArchiveView) -> Result<(), ArchiveError> {
        for segment in &archive.segments {
            let rows = self.rows(segment).await?.len() as u64;
            if rows != segment.rows {
                let problem = format!("it has {rows} rows, archived were {}", segment.rows);
                return Err(files(
                    &segment.name,
                    io::Error::new(io::ErrorKind::InvalidData, problem),
                ));
            }
        }
        Ok(())
    }
}

fn files(name: &str, source: io::Error) -> ArchiveError {
    ArchiveError::Files {
        name: name.to_owned(),
        source,
    }
}

impl Store {
    /// The campaigns that are archived, in the order of their names.
    pub(crate) async fn archives(&self) -> Result<Vec<ArchiveView>, StoreError> {
        self.rows(
            "archived",
            "SELECT record FROM archived ORDER BY campaign",
            |(text,): (String,)| Ok(serde_json::from_str(&text)?),
        )
        .await
    }

    /// One of them.
    pub(crate) async fn archive(&self, campaign: &CampaignId) -> Result<Option<ArchiveView>, StoreError> {
        let query = sqlx::query_scalar::<_, String>("SELECT record FROM archived WHERE campaign = $1");
        let query = query.bind(campaign.to_string());
        let text = query.fetch_optional(self.reader()).await.map_err(StoreError::read)?;
        let read = |text: String| serde_json::from_str(&text).map_err(|error| unreadable("archived")(error.into()));
        text.map(read).transpose()
    }

    /// Their names.
    pub(crate) async fn archived_campaigns(&self) -> Result<BTreeSet<CampaignId>, StoreError> {
        let names = self.rows("archived", "SELECT campaign FROM archived", |(id,): (String,)| {
            Ok(CampaignId::new(id)?)
        });
        Ok(names.await?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
