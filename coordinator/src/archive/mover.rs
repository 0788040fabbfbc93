//! Moves what is old enough, a few rows at a time.

use std::{collections::BTreeMap, time::Duration};

use data_encoding::BASE64;
use firmesh_coordinator_core::{AttemptRecord, CampaignRecord};
use firmesh_protocol::{
    api::{ArchiveResult, ArchiveRun, ArchiveView},
    audit::Entry,
    ids::{CampaignId, DeviceId, NodeId},
    report::{AttemptReport, AttemptState},
    time::WallTime,
};
use sqlx::Row as _;
use tracing::{info, warn};

use super::{
    Archive, ArchiveError, files,
    segment::{Lines, Row},
};
use crate::{
    rows::unreadable,
    runtime::Command,
    store::{RowError, StoreError, Write},
    telemetry::chain,
};

/// Rows that are read or removed at once.
const ROWS_AT_ONCE: i64 = 2_000;

/// Between two looks for campaigns that are old enough.
const EVERY: Duration = Duration::from_secs(3_600);

/// A campaign that may go.
struct Due {
    record: CampaignRecord,
    text: String,
    ended: WallTime,
}

impl Archive {
    /// Moves what is old enough, from time to time.
    pub(crate) async fn keep_moving(&self, wall: impl Fn() -> WallTime) {
        loop {
            match self.run(&ArchiveRun::default(), wall()).await {
                Ok(result) if result.archived.is_empty() => {}
                Ok(result) => info!(
                    campaigns = result.archived.len(),
                    rows = result.rows,
                    "campaigns were archived"
                ),
                Err(error) => warn!(error = %chain(&error), "campaigns could not be archived, it is tried again"),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Moves what is old enough now, or tells what would go.
    pub(crate) async fn run(&self, asked: &ArchiveRun, now: WallTime) -> Result<ArchiveResult, ArchiveError> {
        let _turn = self.turn.try_lock().map_err(|_| ArchiveError::Busy)?;
        let seconds = |span: Duration| span.as_secs().cast_signed();
        let age = asked
            .older_than_s
            .map_or_else(|| seconds(self.retention.campaigns), i64::from);
        let mut result = ArchiveResult {
            dry_run: asked.dry_run,
            ..ArchiveResult::default()
        };
        for due in self
            .due(now.unix_seconds().saturating_sub(age), &mut result.kept)
            .await?
        {
            if !asked.dry_run
                && let Err(error) = self.move_out(&due, now).await
            {
                if let ArchiveError::Store(StoreError::Deposed) = error {
                    return Err(error);
                }
                // The others need not wait for it.
                warn!(campaign = %due.record.id, error = %chain(&error), "a campaign could not be archived");
                result.kept.insert(due.record.id, chain(&error));
                continue;
            }
            result.archived.push(due.record.id);
        }
        if asked.dry_run {
            return Ok(result);
        }
        // Also what an earlier run has left, and what a node said since of a campaign that is over.
        for archive in self.store.archives().await? {
            result.rows += self.purge(&archive.campaign).await?;
            let over = |kept| archive.archived.unix_seconds().saturating_add(seconds(kept)) <= now.unix_seconds();
            if archive.removed.is_none() && self.retention.archives.is_some_and(over) {
                result.removed.push(archive.campaign.clone());
                self.remove(archive, now).await?;
            }
        }
        Ok(result)
    }

    /// Ended campaigns that are old enough, but for those of which a device is not done with.
    async fn due(&self, ended_by: i64, kept: &mut BTreeMap<CampaignId, String>) -> Result<Vec<Due>, ArchiveError> {
        let archived = self.store.archived_campaigns().await?;
        let texts: Vec<String> = (self.store)
            .rows(
                "campaigns",
                "SELECT record FROM campaigns ORDER BY campaign",
                |(text,): (String,)| Ok(text),
            )
            .await?;
        let mut due = Vec::new();
        for text in texts {
            let record: CampaignRecord =
                serde_json::from_str(&text).map_err(|error| unreadable("campaigns")(error.into()))?;
            if !record.state.is_terminal() || archived.contains(&record.id) {
                continue;
            }
            let Some(ended) = self.ended(&record.id).await? else {
                kept.insert(record.id, "the audit log does not say when it ended".to_owned());
                continue;
            };
            if ended.unix_seconds() > ended_by {
                continue;
            }
            match self.waits(&record.id).await {
                Ok(Some(reason)) => drop(kept.insert(record.id, reason)),
                Ok(None) => due.push(Due { record, text, ended }),
                // The others need not wait for it.
                Err(error) => drop(kept.insert(record.id, chain(&error))),
            }
        }
        Ok(due)
    }

    /// When a campaign came to the state that it is in.
    async fn ended(&self, campaign: &CampaignId) -> Result<Option<WallTime>, ArchiveError> {
        let query =
            "SELECT entry FROM audit_entries WHERE campaign = $1 AND kind = 'campaign' ORDER BY idx DESC LIMIT 1";
        let query = sqlx::query_scalar::<_, String>(query).bind(campaign.to_string());
        let entry = query
            .fetch_optional(self.store.reader())
            .await
            .map_err(StoreError::read)?;
        let read = |text: String| Entry::from_bytes(text.as_bytes()).map(|entry| entry.at);
        let at = entry.map(read).transpose();
        at.map_err(|error| unreadable("audit_entries")(error.into()).into())
    }

    /// Whether a device of it is not done with.
    async fn waits(&self, campaign: &CampaignId) -> Result<Option<String>, ArchiveError> {
        let mut after = String::new();
        loop {
            let page = self.attempts_page(campaign, &after).await?;
            let Some((last, _)) = page.last() else {
                return Ok(None);
            };
            after.clone_from(last);
            for (device, text) in page {
                let attempt: AttemptRecord =
                    serde_json::from_str(&text).map_err(|error| unreadable("attempts")(error.into()))?;
                if attempt.state == AttemptState::Quarantined && !attempt.cleared {
                    return Ok(Some(format!(
                        "device {device} is quarantined: a person has to look at it"
                    )));
                }
                if !attempt.state.is_terminal() {
                    return Ok(Some(format!("device {device} has not ended")));
                }
            }
        }
    }

    async fn attempts_page(&self, campaign: &CampaignId, after: &str) -> Result<Vec<(String, String)>, StoreError> {
        let query = "SELECT device, record FROM attempts WHERE campaign = $1 AND device > $2 ORDER BY device LIMIT $3";
        let query = sqlx::query_as(query).bind(campaign.to_string()).bind(after.to_owned());
        query
            .bind(ROWS_AT_ONCE)
            .fetch_all(self.store.reader())
            .await
            .map_err(StoreError::read)
    }

    /// Writes the files, and then, in one transaction, that it is archived.
    async fn move_out(&self, due: &Due, now: WallTime) -> Result<(), ArchiveError> {
        let id = &due.record.id;
        let mut writer = Writer {
            archive: self,
            campaign: id,
            lines: Lines::default(),
            segments: Vec::new(),
        };
        writer
            .push(&Row::Campaigns {
                record: due.text.clone(),
            })
            .await?;
        let mut states: BTreeMap<String, u64> = BTreeMap::new();
        let mut after = String::new();
        loop {
            let page = self.attempts_page(id, &after).await?;
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            for (device, record) in page {
                let attempt: AttemptRecord =
                    serde_json::from_str(&record).map_err(|error| unreadable("attempts")(error.into()))?;
                let state = serde_json::to_value(attempt.state).ok();
                let state = state
                    .and_then(|state| Some(state.as_str()?.to_owned()))
                    .unwrap_or_default();
                *states.entry(state).or_default() += 1;
                let device = device
                    .parse::<DeviceId>()
                    .map_err(|error| malformed("attempts", error))?;
                writer.push(&Row::Attempts { device, record }).await?;
            }
        }
        let mut after = -1;
        loop {
            let query =
                "SELECT sequence, record FROM permits WHERE campaign = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
            let query = sqlx::query_as::<_, (i64, String)>(query)
                .bind(id.to_string())
                .bind(after)
                .bind(ROWS_AT_ONCE);
            let page = query.fetch_all(self.store.reader()).await.map_err(StoreError::read)?;
            let Some((last, _)) = page.last() else { break };
            after = *last;
            for (sequence, record) in page {
                let sequence = sequence.cast_unsigned();
                writer.push(&Row::Permits { sequence, record }).await?;
            }
        }
        // Some for each node and image.
        let query = "SELECT node, artifact, record FROM possession WHERE campaign = $1 ORDER BY node, artifact";
        let rows = sqlx::query_as::<_, (String, String, String)>(query).bind(id.to_string());
        for (node, artifact, record) in rows.fetch_all(self.store.reader()).await.map_err(StoreError::read)? {
            let node = node.parse::<NodeId>().map_err(|error| malformed("possession", error))?;
            writer.push(&Row::Possession { node, artifact, record }).await?;
        }
        for node in self.nodes().await? {
            let mut after = Some((-1, String::new()));
            while let Some(from) = after {
                let page = self.reports_page(&node, &from).await?;
                after = page.last().map(|(sequence, digest, _)| (*sequence, digest.clone()));
                for (sequence, _, envelope) in page.into_iter().filter(|(_, _, text)| is_of(text, id)) {
                    let (node, sequence) = (node.clone(), sequence.cast_unsigned());
                    writer
                        .push(&Row::Reports {
                            node,
                            sequence,
                            envelope,
                        })
                        .await?;
                }
            }
        }
        let segments = writer.finish().await?;
        let view = ArchiveView {
            campaign: id.clone(),
            state: due.record.state,
            ended: due.ended,
            archived: now,
            states,
            segments,
            removed: None,
        };
        // It must be readable before a single row goes.
        self.verify(&view).await?;
        match &self.coordinator {
            // Somebody may have ordered it back meanwhile.
            Some(coordinator) => Ok(coordinator.ask(|reply| Command::Archive(Box::new(view), reply)).await?),
            None => Ok(self.store.commit(vec![Write::Archived(Box::new(view))], now).await?),
        }
    }

    async fn nodes(&self) -> Result<Vec<NodeId>, StoreError> {
        let query = "SELECT node FROM nodes ORDER BY node";
        (self.store)
            .rows("nodes", query, |(id,): (String,)| Ok(id.parse()?))
            .await
    }

    async fn reports_page(
        &self,
        node: &NodeId,
        after: &(i64, String),
    ) -> Result<Vec<(i64, String, String)>, StoreError> {
        let query = "SELECT sequence, digest, envelope FROM reports WHERE node = $1 \
                     AND (sequence > $2 OR (sequence = $2 AND digest > $3)) ORDER BY sequence, digest LIMIT $4";
        let query = sqlx::query_as(query)
            .bind(node.to_string())
            .bind(after.0)
            .bind(after.1.clone());
        query
            .bind(ROWS_AT_ONCE)
            .fetch_all(self.store.reader())
            .await
            .map_err(StoreError::read)
    }

    /// Removes the rows of an archived campaign.
    async fn purge(&self, campaign: &CampaignId) -> Result<u64, ArchiveError> {
        let mut removed = 0;
        let statements = [
            "DELETE FROM attempts WHERE campaign = $1 AND device IN \
             (SELECT device FROM attempts WHERE campaign = $1 ORDER BY device LIMIT $2)",
            "DELETE FROM permits WHERE campaign = $1 AND sequence IN \
             (SELECT sequence FROM permits WHERE campaign = $1 ORDER BY sequence LIMIT $2)",
            "DELETE FROM possession WHERE campaign = $1 AND node IN \
             (SELECT node FROM possession WHERE campaign = $1 ORDER BY node LIMIT $2)",
        ];
        for statement in statements {
            loop {
                let query = sqlx::query(statement).bind(campaign.to_string()).bind(ROWS_AT_ONCE);
                match self.store.execute(query).await? {
                    0 => break,
                    some => removed += some,
                }
            }
        }
        let query = "SELECT purged FROM archived WHERE campaign = $1";
        let purged: i64 = sqlx::query(query)
            .bind(campaign.to_string())
            .fetch_one(self.store.reader())
            .await
            .map_err(StoreError::read)?
            .get(0);
        if purged == 0 {
            for node in self.nodes().await? {
                removed += self.purge_reports(&node, campaign).await?;
            }
            let done = sqlx::query("UPDATE archived SET purged = 1 WHERE campaign = $1").bind(campaign.to_string());
            self.store.execute(done).await?;
        }
        Ok(removed)
    }

    async fn purge_reports(&self, node: &NodeId, campaign: &CampaignId) -> Result<u64, ArchiveError> {
        let (mut removed, mut after) = (0, Some((-1, String::new())));
        while let Some(from) = after {
            let page = self.reports_page(node, &from).await?;
            after = page.last().map(|(sequence, digest, _)| (*sequence, digest.clone()));
            let mut transaction = self.store.begin().await?;
            for (sequence, digest, _) in page.into_iter().filter(|(_, _, text)| is_of(text, campaign)) {
                let query = "DELETE FROM reports WHERE node = $1 AND sequence = $2 AND digest = $3";
                let query = sqlx::query(query).bind(node.to_string()).bind(sequence).bind(digest);
                let done = query.execute(&mut *transaction).await.map_err(StoreError::written)?;
                removed += done.rows_affected();
            }
            transaction.commit().await.map_err(StoreError::written)?;
        }
        Ok(removed)
    }

    /// Removes the files of an archive whose time is over. That there was one stays.
    async fn remove(&self, mut archive: ArchiveView, now: WallTime) -> Result<(), ArchiveError> {
        // Files first: what is broken off is gone on with by the next run.
        for segment in std::mem::take(&mut archive.segments) {
            let removed = self.shelf.remove(&segment.name).await;
            removed.map_err(|error| files(&segment.name, error))?;
        }
        archive.removed = Some(now);
        Ok(self.store.commit(vec![Write::Archived(Box::new(archive))], now).await?)
    }
}

struct Writer<'a> {
    archive: &'a Archive,
    campaign: &'a CampaignId,
    lines: Lines,
    segments: Vec<firmesh_protocol::api::ArchiveSegment>,
}

impl Writer<'_> {
    async fn push(&mut self, row: &Row) -> Result<(), ArchiveError> {
        self.lines
            .push(row)
            .map_err(|error| files(self.campaign.as_str(), error))?;
        if self.lines.is_full() {
            self.put().await?;
        }
        Ok(())
    }

    async fn put(&mut self) -> Result<(), ArchiveError> {
        let lines = std::mem::take(&mut self.lines);
        let finished = lines.finish(self.campaign, self.segments.len());
        let (segment, bytes) = finished.map_err(|error| files(self.campaign.as_str(), error))?;
        let put = self.archive.shelf.put(&segment.name, bytes).await;
        put.map_err(|error| files(&segment.name, error))?;
        self.segments.push(segment);
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<firmesh_protocol::api::ArchiveSegment>, ArchiveError> {
        if !self.lines.is_empty() {
            self.put().await?;
        }
        Ok(self.segments)
    }
}

/// Whether a report is about this campaign. Its signature was verified before it was stored.
fn is_of(envelope: &str, campaign: &CampaignId) -> bool {
    #[derive(serde::Deserialize)]
    struct Payload {
        payload: String,
    }
    let report = || {
        let Payload { payload } = serde_json::from_str(envelope).ok()?;
        serde_json::from_slice::<AttemptReport>(&BASE64.decode(payload.as_bytes()).ok()?).ok()
    };
    report().is_some_and(|report| report.campaign == *campaign)
}

fn malformed(table: &'static str, error: impl Into<RowError>) -> StoreError {
    unreadable(table)(error.into())
}
