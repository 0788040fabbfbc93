//! What is asked about the log: checkpoint, entries, proofs. Reads a few tiles of entries per proof.

use std::{collections::BTreeMap, time::Duration};

use data_encoding::BASE64;
use firmesh_protocol::{
    api::{AuditEntries, AuditNews, AuditSeen},
    audit::{Entry, Event, LoggedEntry, ProofFile, ProvenEntry, RangeError, TILE_LEAVES, Tiles, Tree},
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    manifest::Plan,
    report::Permit,
};
use sqlx::Row as _;

use super::{LogProblem, log::recheck};
use crate::store::{Store, StoreError};

/// Between two stretches of the log that are read again: whoever is served comes first.
const RECHECK_PAUSE: Duration = Duration::from_millis(5);

/// Entries of one answer.
const ENTRIES_MAX: u64 = 1_000;

/// Bytes of one answer, after which it ends early. A single document may be longer.
const ENTRIES_BYTES: usize = 8 << 20;

/// Entries about one campaign that a proof goes through.
const ROWS_MAX: i64 = 100_000;

impl Store {
    /// The newest checkpoint, a signed note.
    pub(crate) async fn audit_checkpoint(&self) -> Result<String, StoreError> {
        Ok(self.log().await?.note.clone())
    }

    /// Reads what was not read of the log at the start of this term.
    pub(crate) async fn audit_recheck(&self) -> Result<(), StoreError> {
        const AT_ONCE: usize = 16;
        let hashes = {
            let log = self.log().await?;
            let unread = usize::try_from(log.read_from / TILE_LEAVES).unwrap_or(usize::MAX);
            log.tree.whole_tiles().iter().take(unread).copied().collect::<Vec<_>>()
        };
        for (number, hashes) in (0..).zip(hashes.chunks(AT_ONCE)) {
            recheck(self.reader(), number * AT_ONCE as u64, hashes).await?;
            tokio::time::sleep(RECHECK_PAUSE).await;
        }
        Ok(())
    }

    /// Entries in the log.
    pub(crate) async fn audit_size(&self) -> Result<u64, StoreError> {
        Ok(self.log().await?.tree.size())
    }

    /// What a node has to be told: the newest checkpoint, and that it continues what the node knows. Where there is
    /// nothing to prove it with, there is no proof, and the node will say so.
    pub(crate) async fn audit_news(&self, seen: &AuditSeen) -> Result<AuditNews, StoreError> {
        let (checkpoint, size) = {
            let log = self.log().await?;
            (log.note.clone(), log.tree.size())
        };
        let mut heard = Vec::new();
        for old in &seen.heard {
            heard.push(self.proven(*old, size).await?);
        }
        Ok(AuditNews {
            checkpoint,
            consistency: self.proven(seen.size, size).await?,
            heard,
        })
    }

    async fn proven(&self, old: u64, new: u64) -> Result<Vec<Sha256>, StoreError> {
        if old > new {
            return Ok(Vec::new());
        }
        self.audit_consistency(old, new).await
    }

    /// The audit path of an entry in the first `size` entries.
    pub(crate) async fn audit_inclusion(&self, index: u64, size: u64) -> Result<Vec<Sha256>, StoreError> {
        self.prove(|tree, tiles| tree.inclusion(index, size, tiles)).await
    }

    /// The proof that the first `new` entries begin with the first `old`.
    pub(crate) async fn audit_consistency(&self, old: u64, new: u64) -> Result<Vec<Sha256>, StoreError> {
        self.prove(|tree, tiles| tree.consistency(old, new, tiles)).await
    }

    async fn prove(
        &self,
        ask: impl Fn(&Tree, &Tiles) -> Result<Vec<Sha256>, RangeError>,
    ) -> Result<Vec<Sha256>, StoreError> {
        let mut loaded = Tiles::new();
        loop {
            let answer = {
                let mut log = self.log().await?;
                for (tile, leaves) in std::mem::take(&mut loaded) {
                    log.keep(tile, leaves);
                }
                ask(&log.tree, &log.tiles)
            };
            match answer {
                Err(RangeError::Tile(tile)) => loaded = [(tile, self.tile(tile).await?)].into(),
                answer => return Ok(answer.map_err(LogProblem::Beyond)?),
            }
        }
    }

    /// The leaf hashes of a whole tile.
    async fn tile(&self, tile: u64) -> Result<Vec<Sha256>, StoreError> {
        let from = (tile * TILE_LEAVES).cast_signed();
        let rows = sqlx::query("SELECT entry FROM audit_entries WHERE idx >= $1 AND idx < $2 ORDER BY idx")
            .bind(from)
            .bind(from + TILE_LEAVES.cast_signed())
            .fetch_all(self.reader())
            .await
            .map_err(LogProblem::Database)?;
        let leaf = |row: &sqlx::any::AnyRow| firmesh_protocol::audit::leaf_hash(row.get::<&str, _>(0).as_bytes());
        Ok(rows.iter().map(leaf).collect())
    }

    /// A part of the log: at least one entry, if there is one from there on.
    pub(crate) async fn audit_entries(&self, from: u64, count: u64) -> Result<AuditEntries, StoreError> {
        let size = self.audit_size().await?;
        let to = from.saturating_add(count.min(ENTRIES_MAX)).min(size);
        let (mut items, mut bytes) = (Vec::new(), 0);
        // One by one: nobody knows how long the documents are.
        for index in from..to {
            let (entry, leaf, document) = self.audit_entry(index).await?;
            let logged = LoggedEntry {
                entry,
                leaf,
                document: document.map(|document| BASE64.encode(&document)),
            };
            bytes += logged.entry.len() + logged.document.as_ref().map_or(0, String::len);
            items.push(logged);
            if bytes >= ENTRIES_BYTES {
                break;
            }
        }
        Ok(AuditEntries { items, size })
    }

    /// An entry's text, the hash beside it and its document, as they are stored.
    async fn audit_entry(&self, index: u64) -> Result<(String, Sha256, Option<Vec<u8>>), StoreError> {
        let query = "SELECT entry, leaf, coalesce(d.bytes, p.bytes) FROM audit_entries e \
                     LEFT JOIN audit_documents d ON d.sha256 = e.document \
                     LEFT JOIN plans p ON p.sha256 = e.document WHERE idx = $1";
        let row = sqlx::query(query)
            .bind(index.cast_signed())
            .fetch_one(self.reader())
            .await
            .map_err(LogProblem::Database)?;
        let leaf: Option<[u8; 32]> = row.get::<Vec<u8>, _>(1).try_into().ok();
        Ok((row.get(0), leaf.unwrap_or_default().into(), row.get(2)))
    }

    /// Everything in the first `size` entries that is about one device in one campaign, with audit paths. `None` if no
    /// approved plan of the campaign names the device.
    pub(crate) async fn audit_update(
        &self,
        device: &DeviceId,
        campaign: &CampaignId,
        size: u64,
    ) -> Result<Option<ProofFile>, StoreError> {
        let Some(chosen) = self.choose(device, campaign, size).await? else {
            return Ok(None);
        };
        let mut entries = Vec::new();
        for (index, (entry, document)) in chosen {
            entries.push(ProvenEntry {
                entry,
                document: document.map(|bytes| BASE64.encode(&bytes)),
                path: self.audit_inclusion(index, size).await?,
            });
        }
        Ok(Some(ProofFile::new(device.clone(), campaign.clone(), size, entries)))
    }

    async fn choose(&self, device: &DeviceId, campaign: &CampaignId, size: u64) -> Result<Option<Chosen>, StoreError> {
        let of_campaign = |kind: &'static str, about: Option<&DeviceId>| {
            let query = "SELECT idx FROM audit_entries WHERE campaign = $1 AND kind = $2 AND ($3 IS NULL OR device = $3) \
                         AND idx < $4 ORDER BY idx LIMIT $5";
            let query = sqlx::query_scalar::<_, i64>(query)
                .bind(campaign.to_string())
                .bind(kind)
                .bind(about.map(ToString::to_string))
                .bind(size.cast_signed())
                .bind(ROWS_MAX);
            query.fetch_all(self.reader())
        };
        let database = LogProblem::Database;
        let Some(manifest) = of_campaign("manifest", None).await.map_err(database)?.pop() else {
            return Ok(None);
        };
        let plans = of_campaign("plan", None).await.map_err(database)?;
        let Some(plan) = plans.into_iter().find(|plan| *plan > manifest) else {
            return Ok(None);
        };
        let mut chosen = Chosen::new();
        let bytes = self.take(&mut chosen, plan).await?.unwrap_or_default();
        let node = Plan::from_bytes(&bytes).ok().and_then(|plan| node_of(&plan, device));
        let Some(node) = node else {
            return Ok(None);
        };
        self.take(&mut chosen, 0).await?;
        self.take(&mut chosen, manifest).await?;
        self.take_approvals(&mut chosen, manifest).await?;
        let enrolled = sqlx::query_scalar::<_, i64>(
            "SELECT idx FROM audit_entries WHERE node = $1 AND kind = 'enrolment' AND idx < $2 ORDER BY idx LIMIT $3",
        );
        let enrolled = enrolled
            .bind(node.to_string())
            .bind(size.cast_signed())
            .bind(ROWS_MAX)
            .fetch_all(self.reader())
            .await
            .map_err(database)?;
        let mut rest = enrolled;
        for kind in ["campaign", "gate"] {
            rest.extend(of_campaign(kind, None).await.map_err(database)?);
        }
        rest.extend(of_campaign("result", Some(device)).await.map_err(database)?);
        for index in rest {
            self.take(&mut chosen, index).await?;
        }
        for index in of_campaign("permit", None).await.map_err(database)? {
            let (entry, _, document) = self.audit_entry(index.cast_unsigned()).await?;
            let names = |bytes: &Vec<u8>| permit_names(bytes, device);
            if index > manifest && document.as_ref().is_some_and(names) {
                chosen.insert(index.cast_unsigned(), (entry, document));
            }
        }
        Ok(Some(chosen))
    }

    /// The metadata in force when a manifest was approved: every root, and the last of everything else.
    async fn take_approvals(&self, chosen: &mut Chosen, manifest: i64) -> Result<(), StoreError> {
        let query = "SELECT idx, entry FROM audit_entries WHERE kind = 'metadata' AND idx < $1 ORDER BY idx";
        let rows = sqlx::query_as::<_, (i64, String)>(query).bind(manifest);
        let rows = rows.fetch_all(self.reader()).await.map_err(LogProblem::Database)?;
        let mut wanted = BTreeMap::new();
        for (index, text) in rows {
            if let Ok(Event::Metadata { file }) = Entry::from_bytes(text.as_bytes()).map(|entry| entry.event) {
                let role = file.rsplit_once('.').map_or(file.as_str(), |(stem, _)| stem);
                let (version, role) = role.split_once('.').unwrap_or(("", role));
                // Clients walk through every root.
                let of = if role == "root" { version } else { "" };
                wanted.insert((role.to_owned(), of.to_owned()), index);
            }
        }
        for index in wanted.into_values() {
            self.take(chosen, index).await?;
        }
        Ok(())
    }

    async fn take(&self, chosen: &mut Chosen, index: i64) -> Result<Option<Vec<u8>>, StoreError> {
        let index = index.cast_unsigned();
        let (entry, _, document) = self.audit_entry(index).await?;
        chosen.insert(index, (entry, document.clone()));
        Ok(document)
    }
}

/// Entries by their place, with their documents.
type Chosen = BTreeMap<u64, (String, Option<Vec<u8>>)>;

fn node_of(plan: &Plan, device: &DeviceId) -> Option<NodeId> {
    plan.devices()
        .find(|(_, planned)| planned.device == *device)
        .map(|(_, planned)| planned.node.clone())
}

/// Whether a permit's envelope names a device. Whoever reads the proof verifies it; here it is only looked up.
fn permit_names(envelope: &[u8], device: &DeviceId) -> bool {
    #[derive(serde::Deserialize)]
    struct Payload {
        payload: String,
    }
    let payload = serde_json::from_slice::<Payload>(envelope).ok();
    let payload = payload.and_then(|found| BASE64.decode(found.payload.as_bytes()).ok());
    let permit = payload.and_then(|payload| serde_json::from_slice::<Permit>(&payload).ok());
    permit.is_some_and(|permit| permit.devices.contains(device))
}
