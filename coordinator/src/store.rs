//! The database: one SQLite file, written in transactions that are on disk when they return.
//!
//! Invariant: what one [`Store::commit`] is given becomes durable together or not at all, and so do the entries of the
//! audit log that follow from it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use firmesh_coordinator_core::{AttemptRecord, CampaignRecord, PossessionRecord};
use firmesh_protocol::{
    audit::Event,
    ids::{ArtifactId, CampaignId, NodeId, Sha256, TopologyPath},
    manifest::Artifact,
    report::{AttemptReport, DeviceFacts, NodeRecord, PermitKind},
    time::WallTime,
    trust::{Envelope, PublicKey},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::{
    Row as _, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard, watch};

use crate::{
    audit::{Document, Draft, Drafts, Log, LogKey, LogProblem},
    authority::Authority,
    notify::{self, Notice},
};

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened.
    #[error("the database {} cannot be opened: check that this user may write there and that the disk is not full", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: sqlx::Error,
    },
    /// It belongs to another version.
    #[error("the database {} cannot be brought to this version: check that the disk is neither full nor read-only", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// It cannot be read or written.
    #[error("the database cannot be {operation}: check that the disk is neither full nor read-only")]
    Access {
        /// `read` or `written`.
        operation: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// It holds something that this version cannot read.
    #[error(
        "the database holds a row of {table} that cannot be read: restore a backup, or use the version that wrote it"
    )]
    Row {
        /// The table.
        table: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] LogProblem),
}

/// A permission to enrol one key, without its token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ticket {
    /// Where the node will stand.
    pub path: TopologyPath,
    /// Digest of the token.
    pub token_sha256: Sha256,
    /// The token is void after this moment.
    pub expires: WallTime,
    /// The key that was enrolled with it: from then on it is good for this key only, whose owner may have died before
    /// he could keep the answer.
    #[serde(default)]
    pub key: Option<PublicKey>,
}

/// A node as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredNode {
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
    /// Its open ticket.
    pub ticket: Option<Ticket>,
    /// Its certificate, DER.
    pub certificate: Option<Vec<u8>>,
    /// The certificate before that, for the same key: good until the node shows the new one.
    #[serde(default)]
    pub certificate_before: Option<Vec<u8>>,
    /// Its signed record.
    pub record: Option<(NodeRecord, Envelope)>,
    /// Reports up to this one are stored.
    pub acked: u64,
    /// When it was last heard of, as far as it was written down.
    pub last_seen: Option<WallTime>,
    /// Whether people were told that it is silent.
    #[serde(default)]
    pub silent: bool,
}

/// A device as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredDevice {
    /// What was last read from it.
    pub facts: DeviceFacts,
    /// The node that looks after it.
    pub node: NodeId,
    /// When the node last told, as far as it was written down.
    pub last_seen: WallTime,
}

/// A permit as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredPermit {
    /// The campaign.
    pub campaign: CampaignId,
    /// Update or rollback.
    pub kind: PermitKind,
    /// Its sequence.
    pub sequence: u64,
    /// The nodes of its devices.
    pub nodes: Vec<NodeId>,
    /// No start after this moment.
    pub expires: WallTime,
    /// The signed permit.
    pub envelope: Envelope,
}

/// One change. Rows replace what was stored under the same key.
#[derive(Debug)]
pub(crate) enum Write {
    /// A file that nodes fetch.
    Metadata(String, Vec<u8>),
    /// A file that is fetched no more.
    DropMetadata(String),
    /// A file as a client trusts it.
    Trusted(String, Vec<u8>),
    /// A campaign's manifest.
    Manifest(CampaignId, Vec<u8>),
    /// A node.
    Node(Box<StoredNode>),
    /// A device.
    Device(StoredDevice),
    /// A campaign's record.
    Campaign(CampaignRecord),
    /// An attempt.
    Attempt(CampaignId, AttemptRecord),
    /// How a node of a campaign stands towards an image.
    Possession(CampaignId, PossessionRecord),
    /// A campaign's attempts, permits and proofs are forgotten: another edition takes its place before it has started.
    Restart(CampaignId),
    /// A permit.
    Permit(StoredPermit),
    /// A report, verified.
    Report(Box<AttemptReport>, Envelope),
    /// A permit that was given out, signed again for another epoch.
    PermitAgain(StoredPermit),
    /// The roster's version.
    RosterVersion(u64),
    /// A brake, by the digest of its bytes.
    Brake(Sha256, Envelope),
    /// Evidence for a gate, by the digest of its bytes.
    Evidence(Sha256, Vec<u8>),
    /// Devices are sent back by people.
    Rollback {
        /// The campaign.
        campaign: CampaignId,
        /// Who.
        scope: String,
        /// Why.
        reason: String,
        /// The approvers' signed order, with the digest of its bytes.
        order: Option<(Sha256, Vec<u8>)>,
    },
    /// The revocation list, one node longer.
    Revocations {
        /// Whose key was added.
        node: NodeId,
        /// Why.
        reason: String,
        /// The list.
        envelope: Envelope,
    },
    /// Something to tell people, beside what other writes tell.
    Notice(Box<Notice>),
}

/// Everything stored, for a start.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub metadata: Vec<(String, Vec<u8>)>,
    pub trusted: Vec<(String, Vec<u8>)>,
    pub manifests: Vec<(CampaignId, Vec<u8>)>,
    pub nodes: Vec<StoredNode>,
    pub devices: Vec<StoredDevice>,
    pub campaigns: Vec<CampaignRecord>,
    pub attempts: Vec<(CampaignId, AttemptRecord)>,
    pub possession: Vec<(CampaignId, PossessionRecord)>,
    pub permits: Vec<StoredPermit>,
    pub roster_version: u64,
    pub brakes: Vec<Envelope>,
    pub revocations: Option<Envelope>,
}

/// The database.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) pool: SqlitePool,
    key: LogKey,
    /// `None` after a commit of which nobody knows whether it came about: then it is read again.
    log: Arc<Mutex<Option<Log>>>,
    /// Changes with every commit that tells people something.
    notices: Arc<watch::Sender<()>>,
}

impl Store {
    /// Opens the database, making or upgrading it.
    pub(crate) async fn open(path: &Path, authority: Arc<Authority>, now: WallTime) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Acknowledged is durable: WAL alone may lose the last commits in a power cut.
            .synchronous(SqliteSynchronous::Full);
        let open = SqlitePoolOptions::new().max_connections(4).connect_with(options).await;
        let pool = open.map_err(|source| StoreError::Open {
            path: path.to_owned(),
            source,
        })?;
        let migrated = sqlx::migrate!("./migrations").run(&pool).await;
        migrated.map_err(|source| StoreError::Migrate {
            path: path.to_owned(),
            source,
        })?;
        let store = Self {
            pool,
            key: LogKey::new(authority),
            log: Arc::default(),
            notices: Arc::default(),
        };
        store.begin_log(now).await?;
        Ok(store)
    }

    /// The first entries: whose log it is, and what was stored before there was one.
    async fn begin_log(&self, now: WallTime) -> Result<(), StoreError> {
        if !self.log().await?.is_empty() {
            return Ok(());
        }
        let mut drafted = vec![Draft {
            event: Event::Log {
                origin: self.key.origin().to_owned(),
            },
            document: Document::Bytes(self.key.fleet_ca().to_vec()),
        }];
        drafted.extend(Drafts::of_the_past(&self.load().await?));
        self.write(Vec::new(), now, drafted).await
    }

    /// The log, read first if need be.
    pub(crate) async fn log(&self) -> Result<MappedMutexGuard<'_, Log>, StoreError> {
        let mut log = self.log.lock().await;
        if log.is_none() {
            let drafts = Drafts::of(&self.load().await?);
            *log = Some(Log::load(&self.pool, &self.key, drafts).await?);
        }
        Ok(MutexGuard::map(log, |log| log.as_mut().expect("it was just read")))
    }

    /// Makes all changes durable together, and what they add to the audit log at `now`.
    pub(crate) async fn commit(&self, writes: Vec<Write>, now: WallTime) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        self.write(writes, now, Vec::new()).await
    }

    /// Logs what no write of a commit says, durably: an image that is about to be given out, a change in a table of its own
    /// that is about to be made.
    pub(crate) async fn log_event(&self, event: Event, now: WallTime) -> Result<(), StoreError> {
        let document = Document::None;
        self.write(Vec::new(), now, vec![Draft { event, document }]).await
    }

    async fn write(&self, writes: Vec<Write>, now: WallTime, first: Vec<Draft>) -> Result<(), StoreError> {
        let failed = |source| StoreError::Access {
            operation: "written",
            source,
        };
        // Held throughout, so that entries are appended in the order in which they become durable.
        let mut log = self.log().await?;
        let mut drafts = log.drafts.clone();
        let mut drafted = first;
        let entries = drafts.of_writes(&writes);
        let of_entries = notify::of_entries(|id| log.drafts.state(id), &entries);
        drafted.extend(entries);
        // It reads before it writes: begun as a reader it would fail where another connection has written in between.
        let begun = self.pool.begin_with("BEGIN IMMEDIATE").await;
        let mut transaction = begun.map_err(failed)?;
        let mut notices = Vec::new();
        for write in writes {
            let before = notify::attempt_before(&mut transaction, &write).await.map_err(failed)?;
            notices.extend(notify::of_write(&write, before.as_ref()));
            for query in queries(write) {
                query.execute(&mut *transaction).await.map_err(failed)?;
            }
        }
        // What happened to devices comes before what the campaign makes of it.
        notices.extend(of_entries);
        notify::insert(&mut transaction, &notices, now).await.map_err(failed)?;
        let appended = match drafted.is_empty() {
            true => None,
            false => Some(log.append(&mut transaction, &self.key, drafted, now).await?),
        };
        if let Err(source) = transaction.commit().await {
            // It may have come about all the same: what is durable is read again before anything is appended.
            drop(log);
            *self.log.lock().await = None;
            return Err(failed(source));
        }
        log.committed(appended, drafts);
        if !notices.is_empty() {
            self.notices.send_replace(());
        }
        Ok(())
    }

    /// Changes whenever there is something new to tell people.
    pub(crate) fn notices(&self) -> watch::Receiver<()> {
        self.notices.subscribe()
    }

    /// The fleet's name, that of its audit log.
    pub(crate) fn fleet(&self) -> String {
        format!("urn:{}", self.key.origin().replace('/', ":"))
    }

    /// Reads everything but plans, artifacts and reports.
    pub(crate) async fn load(&self) -> Result<Stored, StoreError> {
        let bytes = "SELECT file, bytes FROM metadata";
        let named = |(name, bytes): (String, Vec<u8>)| Ok((name, bytes));
        Ok(Stored {
            metadata: self.rows("metadata", bytes, named).await?,
            trusted: self.rows("trusted", "SELECT file, bytes FROM trusted", named).await?,
            manifests: self
                .rows(
                    "manifests",
                    "SELECT campaign, bytes FROM manifests",
                    |(id, bytes): (String, Vec<u8>)| Ok((CampaignId::new(id)?, bytes)),
                )
                .await?,
            nodes: self.rows("nodes", "SELECT record FROM nodes", json).await?,
            devices: self.rows("devices", "SELECT record FROM devices", json).await?,
            campaigns: self.rows("campaigns", "SELECT record FROM campaigns", json).await?,
            attempts: self
                .rows("attempts", "SELECT campaign, record FROM attempts", of_campaign)
                .await?,
            possession: self
                .rows("possession", "SELECT campaign, record FROM possession", of_campaign)
                .await?,
            permits: self
                .rows(
                    "permits",
                    "SELECT record FROM permits ORDER BY campaign, sequence",
                    json,
                )
                .await?,
            roster_version: self
                .rows(
                    "meta",
                    "SELECT value FROM meta WHERE key = 'roster_version'",
                    |(text,): (String,)| Ok(text.parse()?),
                )
                .await?
                .pop()
                .unwrap_or_default(),
            brakes: self
                .rows("brakes", "SELECT envelope FROM brakes ORDER BY rowid", json)
                .await?,
            revocations: self
                .rows("meta", "SELECT value FROM meta WHERE key = 'revocations'", json)
                .await?
                .pop(),
        })
    }

    /// Begins a new epoch: every start of a coordinator has a higher one than all before on this database.
    pub(crate) async fn next_epoch(&self) -> Result<u64, StoreError> {
        let query = "INSERT INTO meta VALUES ('epoch', '1') \
                     ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1 RETURNING CAST(value AS INTEGER)";
        let row = sqlx::query_as::<_, (i64,)>(query).fetch_one(&self.pool).await;
        row.map(|(epoch,)| epoch.cast_unsigned())
            .map_err(|source| StoreError::Access {
                operation: "written",
                source,
            })
    }

    /// All reports of a node with this sequence: usually one, more if the node lost its journal.
    pub(crate) async fn reports(&self, node: &NodeId, sequence: u64) -> Result<Vec<Envelope>, StoreError> {
        let query = "SELECT envelope FROM reports WHERE node = ? AND sequence = ?";
        let query = sqlx::query_as::<_, (String,)>(query)
            .bind(node.to_string())
            .bind(sequence.cast_signed());
        let rows = query.fetch_all(&self.pool).await.map_err(|source| StoreError::Access {
            operation: "read",
            source,
        })?;
        let row = |source| StoreError::Row {
            table: "reports",
            source,
        };
        rows.into_iter().map(|text| json(text).map_err(row)).collect()
    }

    /// The newest reports of a node, at most so many: as they were signed, and verified before they were stored.
    pub(crate) async fn newest_reports(&self, node: &NodeId, count: u32) -> Result<Vec<Envelope>, StoreError> {
        let query = "SELECT envelope FROM reports WHERE node = ? ORDER BY sequence DESC LIMIT ?";
        let query = sqlx::query_as::<_, (String,)>(query).bind(node.to_string()).bind(count);
        let rows = query.fetch_all(&self.pool).await.map_err(|source| StoreError::Access {
            operation: "read",
            source,
        })?;
        let row = |source| StoreError::Row {
            table: "reports",
            source,
        };
        rows.into_iter().map(|text| json(text).map_err(row)).collect()
    }

    /// Evidence by its digest.
    pub(crate) async fn evidence(&self, sha256: Sha256) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query("SELECT envelope FROM evidence WHERE sha256 = ?").bind(sha256.to_string());
        let row = query.fetch_optional(&self.pool).await;
        let row = row.map_err(|source| StoreError::Access {
            operation: "read",
            source,
        })?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Stores a plan under its digest.
    pub(crate) async fn put_plan(&self, sha256: Sha256, bytes: &[u8]) -> Result<(), StoreError> {
        let query = sqlx::query("INSERT OR IGNORE INTO plans VALUES (?, ?)")
            .bind(sha256.to_string())
            .bind(bytes);
        let written = query.execute(&self.pool).await;
        written.map(drop).map_err(|source| StoreError::Access {
            operation: "written",
            source,
        })
    }

    /// The plan of this digest.
    pub(crate) async fn plan(&self, sha256: Sha256) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query("SELECT bytes FROM plans WHERE sha256 = ?").bind(sha256.to_string());
        let row = query.fetch_optional(&self.pool).await;
        let row = row.map_err(|source| StoreError::Access {
            operation: "read",
            source,
        })?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Stores that an artifact is here. Its files are durable before.
    pub(crate) async fn put_artifact(&self, artifact: &Artifact) -> Result<(), StoreError> {
        let query = sqlx::query("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?)")
            .bind(artifact.id.to_string())
            .bind(artifact.sha256.to_string())
            .bind(artifact.length.cast_signed());
        let written = query.execute(&self.pool).await;
        written.map(drop).map_err(|source| StoreError::Access {
            operation: "written",
            source,
        })
    }

    /// One artifact.
    pub(crate) async fn artifact(&self, id: ArtifactId) -> Result<Option<Artifact>, StoreError> {
        let query = sqlx::query("SELECT sha256, length FROM artifacts WHERE id = ?").bind(id.to_string());
        let row = query.fetch_optional(&self.pool).await;
        let Some(row) = row.map_err(|source| StoreError::Access {
            operation: "read",
            source,
        })?
        else {
            return Ok(None);
        };
        let sha256 = row
            .get::<String, _>(0)
            .parse()
            .map_err(|error: firmesh_protocol::ids::DigestError| StoreError::Row {
                table: "artifacts",
                source: error.into(),
            })?;
        Ok(Some(Artifact {
            id,
            sha256,
            length: row.get::<i64, _>(1).cast_unsigned(),
        }))
    }

    /// All artifacts.
    pub(crate) async fn artifacts(&self) -> Result<Vec<Artifact>, StoreError> {
        self.rows(
            "artifacts",
            "SELECT id, sha256, length FROM artifacts ORDER BY id",
            artifact,
        )
        .await
    }

    /// The artifacts after `after` in the order of their ids, at most `count`.
    pub(crate) async fn artifacts_after(
        &self,
        after: Option<ArtifactId>,
        count: usize,
    ) -> Result<Vec<Artifact>, StoreError> {
        let query = "SELECT id, sha256, length FROM artifacts WHERE id > ? ORDER BY id LIMIT ?";
        let query = sqlx::query_as(query).bind(after.map(|id| id.to_string()).unwrap_or_default());
        let rows = query.bind(i64::try_from(count).unwrap_or(i64::MAX));
        let rows = rows.fetch_all(&self.pool).await.map_err(|source| StoreError::Access {
            operation: "read",
            source,
        })?;
        let unreadable = |source| StoreError::Row {
            table: "artifacts",
            source,
        };
        rows.into_iter().map(|row| artifact(row).map_err(unreadable)).collect()
    }

    /// Closes the database, folding its log into it.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    pub(crate) async fn rows<R, T>(
        &self,
        table: &'static str,
        query: &'static str,
        read: impl Fn(R) -> Result<T, RowError>,
    ) -> Result<Vec<T>, StoreError>
    where
        R: for<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow> + Send + Unpin,
    {
        let rows: Vec<R> = sqlx::query_as(query)
            .fetch_all(&self.pool)
            .await
            .map_err(|source| StoreError::Access {
                operation: "read",
                source,
            })?;
        rows.into_iter()
            .map(|row| read(row).map_err(|source| StoreError::Row { table, source }))
            .collect()
    }
}

pub(crate) type RowError = Box<dyn std::error::Error + Send + Sync>;

fn json<T: DeserializeOwned>((text,): (String,)) -> Result<T, RowError> {
    Ok(serde_json::from_str(&text)?)
}

fn artifact((id, sha256, length): (String, String, i64)) -> Result<Artifact, RowError> {
    Ok(Artifact {
        id: id.parse::<ArtifactId>()?,
        sha256: sha256.parse()?,
        length: length.cast_unsigned(),
    })
}

fn of_campaign<T: DeserializeOwned>((id, text): (String, String)) -> Result<(CampaignId, T), RowError> {
    Ok((CampaignId::new(id)?, json((text,))?))
}

fn text(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("stored records have only names, numbers, text and lists")
}

type Query = sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn queries(write: Write) -> Vec<Query> {
    use sqlx::query;
    let one = |query| vec![query];
    match write {
        Write::Metadata(file, bytes) => one(query("INSERT OR REPLACE INTO metadata VALUES (?, ?)")
            .bind(file)
            .bind(bytes)),
        Write::DropMetadata(file) => one(query("DELETE FROM metadata WHERE file = ?").bind(file)),
        Write::Trusted(file, bytes) => one(query("INSERT OR REPLACE INTO trusted VALUES (?, ?)")
            .bind(file)
            .bind(bytes)),
        Write::Manifest(id, bytes) => one(query("INSERT OR REPLACE INTO manifests VALUES (?, ?)")
            .bind(id.to_string())
            .bind(bytes)),
        Write::Node(node) => one(query("INSERT OR REPLACE INTO nodes VALUES (?, ?)")
            .bind(node.node.to_string())
            .bind(text(&node))),
        Write::Device(device) => one(query("INSERT OR REPLACE INTO devices VALUES (?, ?)")
            .bind(device.facts.device.to_string())
            .bind(text(&device))),
        Write::Campaign(record) => one(query("INSERT OR REPLACE INTO campaigns VALUES (?, ?)")
            .bind(record.id.to_string())
            .bind(text(&record))),
        Write::Attempt(id, record) => one(query("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?)")
            .bind(id.to_string())
            .bind(record.device.to_string())
            .bind(text(&record))),
        Write::Possession(id, record) => one(query("INSERT OR REPLACE INTO possession VALUES (?, ?, ?, ?)")
            .bind(id.to_string())
            .bind(record.node.to_string())
            .bind(record.artifact.to_string())
            .bind(text(&record))),
        Write::Restart(id) => vec![
            query("DELETE FROM possession WHERE campaign = ?").bind(id.to_string()),
            query("DELETE FROM attempts WHERE campaign = ?").bind(id.to_string()),
            query("DELETE FROM permits WHERE campaign = ?").bind(id.to_string()),
        ],
        Write::PermitAgain(permit) => one(
            query("UPDATE permits SET record = ? WHERE campaign = ? AND sequence = ?")
                .bind(text(&permit))
                .bind(permit.campaign.to_string())
                .bind(permit.sequence.cast_signed()),
        ),
        Write::Permit(permit) => one(query("INSERT INTO permits VALUES (?, ?, ?)")
            .bind(permit.campaign.to_string())
            .bind(permit.sequence.cast_signed())
            .bind(text(&permit))),
        Write::Report(report, envelope) => one(query("INSERT OR IGNORE INTO reports VALUES (?, ?, ?)")
            .bind(report.node.to_string())
            .bind(report.sequence.cast_signed())
            .bind(text(&envelope))),
        Write::Brake(digest, envelope) => one(query("INSERT OR IGNORE INTO brakes VALUES (?, ?)")
            .bind(digest.to_string())
            .bind(text(&envelope))),
        Write::Evidence(digest, bytes) => one(query("INSERT OR IGNORE INTO evidence VALUES (?, ?)")
            .bind(digest.to_string())
            .bind(bytes)),
        Write::Revocations { envelope, .. } => {
            one(query("INSERT OR REPLACE INTO meta VALUES ('revocations', ?)").bind(text(&envelope)))
        }
        // Nodes fetch an order as they fetch evidence.
        Write::Rollback {
            order: Some((digest, bytes)),
            ..
        } => queries(Write::Evidence(digest, bytes)),
        Write::Rollback { order: None, .. } => Vec::new(),
        // Inserted with the other notices of the transaction.
        Write::Notice(_) => Vec::new(),
        Write::RosterVersion(version) => {
            one(query("INSERT OR REPLACE INTO meta VALUES ('roster_version', ?)").bind(version.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(folder: &Path) -> Result<Store, StoreError> {
        let authority = Authority::load_or_create(folder, Vec::new(), at(0)).unwrap();
        Store::open(&folder.join("db.sqlite"), Arc::new(authority), at(0)).await
    }

    fn at(seconds: i64) -> WallTime {
        WallTime::from_unix_seconds(seconds)
    }

    fn node(name: &str) -> StoredNode {
        StoredNode {
            node: NodeId::new(name).unwrap(),
            path: format!("eu/s1/r1/{name}").parse().unwrap(),
            ticket: None,
            certificate: Some(vec![1, 2, 3]),
            certificate_before: None,
            record: None,
            acked: 7,
            last_seen: None,
            silent: false,
        }
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await.unwrap();
        let writes = vec![
            Write::Node(Box::new(node("n1"))),
            Write::Metadata("timestamp.json".to_owned(), b"{}".to_vec()),
            Write::RosterVersion(3),
        ];
        store.commit(writes, at(0)).await.unwrap();
        store.put_plan(Sha256::of(b"plan"), b"plan").await.unwrap();
        store.close().await;
        let store = open(folder.path()).await.unwrap();
        let stored = store.load().await.unwrap();
        assert_eq!(stored.nodes, [node("n1")]);
        assert_eq!(stored.roster_version, 3);
        assert_eq!(store.plan(Sha256::of(b"plan")).await.unwrap().unwrap(), b"plan");
        assert_eq!(store.plan(Sha256::of(b"other")).await.unwrap(), None);
    }

    /// A permit's sequence is never written twice: the second transaction fails as a whole.
    #[tokio::test]
    async fn a_commit_that_fails_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await.unwrap();
        let permit = || {
            Write::Permit(StoredPermit {
                campaign: CampaignId::new("spring").unwrap(),
                kind: PermitKind::Update,
                sequence: 1,
                nodes: Vec::new(),
                expires: WallTime::from_unix_seconds(0),
                envelope: Envelope::sign("x", Vec::new(), []),
            })
        };
        store.commit(vec![permit()], at(0)).await.unwrap();
        let refused = store
            .commit(vec![Write::Node(Box::new(node("n1"))), permit()], at(0))
            .await;
        assert!(matches!(
            refused,
            Err(StoreError::Access {
                operation: "written",
                ..
            })
        ));
        assert!(store.load().await.unwrap().nodes.is_empty());
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sqlite");
        std::fs::write(
            &path,
            "this is not a database, and long enough to have been one".repeat(40),
        )
        .unwrap();
        let error = open(folder.path()).await.unwrap_err();
        assert!(error.to_string().contains("db.sqlite"), "{error}");
    }
}
