//! What is asked of the store, and the two kinds of documents that are put there by themselves: plans and artifacts.

use std::collections::{BTreeMap, VecDeque};

use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256},
    manifest::Artifact,
    trust::Envelope,
};
use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, Row as _};

use super::{RowError, Store, StoreError, Stored, StoredDevice};

/// Devices of one row that is read: some megabytes.
const DEVICES_AT_ONCE: i64 = 10_000;

/// Such rows that are read as JSON while the next one comes.
const PAGES_AT_ONCE: usize = 3;

/// Reports that one query asks for.
const ASKED_AT_ONCE: usize = 256;

impl Store {
    /// Reads what the audit log was last told of.
    pub(super) async fn load_logged(&self) -> Result<Stored, StoreError> {
        Ok(Stored {
            nodes: self.rows("nodes", "SELECT record FROM nodes", json).await?,
            campaigns: self.rows("campaigns", "SELECT record FROM campaigns", json).await?,
            ..Stored::default()
        })
    }

    /// Reads the devices, in the order of their names: many to a row, and read as JSON on another thread while the next ones
    /// come, so that a million takes about a second.
    async fn devices(&self) -> Result<Vec<StoredDevice>, StoreError> {
        let query = "SELECT MAX(device), '[' || string_agg(record, ',') || ']' FROM \
                     (SELECT device, record FROM devices WHERE device > $1 ORDER BY device LIMIT $2) AS page";
        let unreadable = |source| StoreError::Row {
            table: "devices",
            source,
        };
        let (mut devices, mut parsing) = (Vec::new(), VecDeque::new());
        let mut after = Some(String::new());
        loop {
            if let Some(from) = after.take() {
                let row: (Option<String>, Option<String>) = sqlx::query_as(query)
                    .bind(from)
                    .bind(DEVICES_AT_ONCE)
                    .fetch_one(self.reader())
                    .await
                    .map_err(StoreError::read)?;
                if let (Some(last), Some(page)) = row {
                    after = Some(last);
                    parsing.push_back(tokio::task::spawn_blocking(move || {
                        serde_json::from_str::<Vec<StoredDevice>>(&page)
                    }));
                }
            }
            if after.is_some() && parsing.len() < PAGES_AT_ONCE {
                continue;
            }
            let Some(page) = parsing.pop_front() else {
                return Ok(devices);
            };
            let page = page.await.map_err(|error| unreadable(error.into()))?;
            devices.extend(page.map_err(|error| unreadable(error.into()))?);
        }
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
            devices: self.devices().await?,
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
                .rows("brakes", "SELECT envelope FROM brakes ORDER BY number", json)
                .await?,
            revocations: self
                .rows("meta", "SELECT value FROM meta WHERE key = 'revocations'", json)
                .await?
                .pop(),
            archived: self.archived_campaigns().await?,
            erased: self
                .rows(
                    "erased_devices",
                    "SELECT device FROM erased_devices",
                    |(device,): (String,)| Ok(DeviceId::new(device)?),
                )
                .await?
                .into_iter()
                .collect(),
        })
    }

    /// All reports of nodes with these sequences: usually one each, more if the node lost its journal.
    pub(crate) async fn reports_of(
        &self,
        wanted: &[(NodeId, u64)],
    ) -> Result<BTreeMap<(NodeId, u64), Vec<Envelope>>, StoreError> {
        let mut by_node: BTreeMap<&NodeId, Vec<u64>> = BTreeMap::new();
        for (node, sequence) in wanted {
            by_node.entry(node).or_default().push(*sequence);
        }
        let row = |source| StoreError::Row {
            table: "reports",
            source,
        };
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (node, sequences) in by_node {
            for sequences in sequences.chunks(ASKED_AT_ONCE) {
                let places: Vec<_> = (2..sequences.len() + 2).map(|place| format!("${place}")).collect();
                let query = format!(
                    "SELECT sequence, envelope FROM reports WHERE node = $1 AND sequence IN ({}) ORDER BY sequence, envelope",
                    places.join(", ")
                );
                let mut query = sqlx::query_as::<_, (i64, String)>(AssertSqlSafe(query)).bind(node.to_string());
                for sequence in sequences {
                    query = query.bind(sequence.cast_signed());
                }
                for (sequence, text) in query.fetch_all(self.reader()).await.map_err(StoreError::read)? {
                    let place = found.entry((node.clone(), sequence.cast_unsigned())).or_default();
                    place.push(json((text,)).map_err(row)?);
                }
            }
        }
        Ok(found)
    }

    /// The newest reports of a node, at most so many: as they were signed, and verified before they were stored.
    pub(crate) async fn newest_reports(&self, node: &NodeId, count: u32) -> Result<Vec<Envelope>, StoreError> {
        let query = "SELECT envelope FROM reports WHERE node = $1 ORDER BY sequence DESC LIMIT $2";
        let query = sqlx::query_as::<_, (String,)>(query)
            .bind(node.to_string())
            .bind(i64::from(count));
        let rows = query.fetch_all(self.reader()).await.map_err(StoreError::read)?;
        let row = |source| StoreError::Row {
            table: "reports",
            source,
        };
        rows.into_iter().map(|text| json(text).map_err(row)).collect()
    }

    /// Evidence by its digest.
    pub(crate) async fn evidence(&self, sha256: Sha256) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query("SELECT envelope FROM evidence WHERE sha256 = $1").bind(sha256.to_string());
        let row = query.fetch_optional(self.reader()).await;
        let row = row.map_err(StoreError::read)?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Stores a plan under its digest.
    pub(crate) async fn put_plan(&self, sha256: Sha256, bytes: &[u8]) -> Result<(), StoreError> {
        let query = sqlx::query("INSERT INTO plans VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(sha256.to_string())
            .bind(bytes);
        self.execute(query).await.map(drop)
    }

    /// The plan of this digest.
    pub(crate) async fn plan(&self, sha256: Sha256) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query("SELECT bytes FROM plans WHERE sha256 = $1").bind(sha256.to_string());
        let row = query.fetch_optional(self.reader()).await;
        let row = row.map_err(StoreError::read)?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Stores that an artifact is here. Its files are durable before.
    pub(crate) async fn put_artifact(&self, artifact: &Artifact) -> Result<(), StoreError> {
        let query = "INSERT INTO artifacts VALUES ($1, $2, $3) \
                     ON CONFLICT (id) DO UPDATE SET sha256 = excluded.sha256, length = excluded.length";
        let query = sqlx::query(query)
            .bind(artifact.id.to_string())
            .bind(artifact.sha256.to_string())
            .bind(artifact.length.cast_signed());
        self.execute(query).await.map(drop)
    }

    /// One artifact.
    pub(crate) async fn artifact(&self, id: ArtifactId) -> Result<Option<Artifact>, StoreError> {
        let query = sqlx::query("SELECT sha256, length FROM artifacts WHERE id = $1").bind(id.to_string());
        let row = query.fetch_optional(self.reader()).await;
        let Some(row) = row.map_err(StoreError::read)? else {
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
        let query = "SELECT id, sha256, length FROM artifacts WHERE id > $1 ORDER BY id LIMIT $2";
        let query = sqlx::query_as(query).bind(after.map(|id| id.to_string()).unwrap_or_default());
        let rows = query.bind(i64::try_from(count).unwrap_or(i64::MAX));
        let rows = rows.fetch_all(self.reader()).await.map_err(StoreError::read)?;
        let unreadable = |source| StoreError::Row {
            table: "artifacts",
            source,
        };
        rows.into_iter().map(|row| artifact(row).map_err(unreadable)).collect()
    }
}

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
