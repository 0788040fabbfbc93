//! The loop: observe, ask the core, journal, act, read back.
//!
//! Invariant: a record is durable before the act it names begins. A journal that fails stops the attempt where it is,
//! to be resumed from the last record.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use firmesh_executors_core::{ActError, Attempt, AttemptRecord, Goal, Input, Outcome, Output, Report, Step};
use firmesh_protocol::{
    ids::{CampaignId, DeviceId, Sha256},
    report::PermitKind,
    time::Timestamp,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::DeviceBackend,
    journal::{Journal, JournalError},
};

/// Where an attempt begins.
#[derive(Debug)]
pub enum Start {
    /// At its beginning.
    Fresh(Goal),
    /// At its last record.
    Resumed(AttemptRecord),
}

/// News of an attempt, for the campaign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// The device.
    pub device: DeviceId,
    /// The campaign.
    pub campaign: CampaignId,
    /// SHA-256 of the manifest's bytes: which edition of the campaign.
    pub manifest_sha256: Sha256,
    /// The wave, counted from 0.
    pub wave: u32,
    /// Update or rollback.
    pub kind: PermitKind,
    /// The permit that allowed the start.
    pub permit_sequence: u64,
    /// Where the attempt stands, as a part of the whole update.
    pub report: Report,
}

impl News {
    /// Where an attempt at a goal stands.
    #[must_use]
    pub fn of(goal: &Goal, report: Report) -> Self {
        Self {
            device: goal.device.clone(),
            campaign: goal.campaign.clone(),
            manifest_sha256: goal.manifest_sha256,
            wave: goal.wave,
            kind: goal.kind,
            permit_sequence: goal.permit_sequence,
            report: goal.told(report),
        }
    }
}

/// How the loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The attempt is over.
    Over(Outcome),
    /// The process is going down; the record says where to go on.
    Interrupted,
}

/// Why the loop stopped without an outcome. The record says where to go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No act without a durable record.
    #[error("the attempt on device {device} stopped because its record could not be kept")]
    Journal {
        /// The device.
        device: DeviceId,
        /// Why.
        source: JournalError,
    },
    /// Nobody listens to reports any more.
    #[error("the attempt on device {device} stopped because nobody takes its reports")]
    NobodyListens {
        /// The device.
        device: DeviceId,
    },
}

impl RunError {
    /// Whether the attempt may be resumed in this process.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(self, Self::Journal { .. })
    }
}

/// Runs one attempt to its end, or until `cancel`. A full `reports` channel holds the attempt back.
///
/// A record that has ended already is reported once more and nothing else happens.
pub async fn run_attempt<B: DeviceBackend>(
    backend: &B,
    start: Start,
    journal: &Arc<dyn Journal>,
    reports: &mpsc::Sender<News>,
    cancel: &CancellationToken,
) -> Result<Ended, RunError> {
    let clock = Clock(Instant::now());
    let attempt = match start {
        Start::Fresh(goal) => Attempt::new(goal, clock.now()),
        Start::Resumed(record) => Attempt::resume(record, clock.now()),
    };
    let run = Run {
        backend,
        journal,
        reports,
        clock,
        attempt,
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(Ended::Interrupted),
        ended = run.run() => ended.map(Ended::Over),
    }
}

struct Clock(Instant);

impl Clock {
    fn now(&self) -> Timestamp {
        Timestamp::after_start(self.0.elapsed())
    }

    fn at(&self, timestamp: Timestamp) -> Instant {
        // A deadline so far away that the clock cannot name it is as good as a day.
        let start = self.0;
        start
            .checked_add(timestamp.since_start())
            .unwrap_or_else(|| start + Duration::from_secs(86_400))
    }
}

struct Run<'a, B> {
    backend: &'a B,
    journal: &'a Arc<dyn Journal>,
    reports: &'a mpsc::Sender<News>,
    clock: Clock,
    attempt: Attempt,
}

impl<B: DeviceBackend> Run<'_, B> {
    async fn run(mut self) -> Result<Outcome, RunError> {
        loop {
            while let Some(output) = self.attempt.poll() {
                match output {
                    Output::Persist(record) => self.persist(&record).await?,
                    Output::Report(report) => self.report(report).await?,
                    Output::Done(outcome) => return Ok(outcome),
                    Output::Step(step) => {
                        let input = self.act(step).await;
                        self.attempt.handle(self.clock.now(), input);
                    }
                }
            }
            let Some(deadline) = self.attempt.deadline() else {
                unreachable!("an attempt without a deadline is over")
            };
            tokio::time::sleep_until(self.clock.at(deadline)).await;
            self.attempt.handle(self.clock.now(), Input::Tick);
        }
    }

    async fn act(&self, step: Step) -> Input {
        let deadline = self
            .attempt
            .deadline()
            .map_or_else(Instant::now, |deadline| self.clock.at(deadline));
        let device = &self.attempt.goal().device;
        tracing::debug!(%device, ?step, "step");
        match tokio::time::timeout_at(deadline, carry_out(self.backend, step)).await {
            Ok(input) => {
                if let Input::ActFailed(error) = &input {
                    tracing::warn!(%device, %error, "a step failed");
                }
                input
            }
            Err(_elapsed) => {
                tracing::warn!(%device, "a step was given up at its deadline");
                Input::ActFailed(ActError {
                    reason: "not done by its deadline".to_owned(),
                    retry: true,
                })
            }
        }
    }

    async fn persist(&self, record: &AttemptRecord) -> Result<(), RunError> {
        let device = record.goal.device.clone();
        let (journal, key, bytes) = (Arc::clone(self.journal), device.clone(), record.to_bytes());
        match tokio::task::spawn_blocking(move || journal.save(&key, &bytes)).await {
            Ok(saved) => saved.map_err(|source| RunError::Journal { device, source }),
            Err(died) => {
                let source = JournalError {
                    operation: "save",
                    source: died.into(),
                };
                Err(RunError::Journal { device, source })
            }
        }
    }

    async fn report(&self, report: Report) -> Result<(), RunError> {
        let goal = self.attempt.goal();
        let Report { state, reason, .. } = &report;
        tracing::info!(device = %goal.device, campaign = %goal.campaign, wave = goal.wave, %state, %reason, "attempt");
        let device = goal.device.clone();
        let news = News::of(goal, report);
        self.reports
            .send(news)
            .await
            .map_err(|_closed| RunError::NobodyListens { device })
    }
}

async fn carry_out<B: DeviceBackend>(backend: &B, step: Step) -> Input {
    let acted = |result: Result<(), ActError>| match result {
        Ok(()) => Input::Acted,
        Err(error) => Input::ActFailed(error),
    };
    match step {
        Step::Observe { task } => Input::Observed(backend.observe(task.as_deref()).await),
        Step::Stage { image, slot } => match backend.stage(&image, slot).await {
            Ok(task) => Input::Staged { task },
            Err(error) => Input::ActFailed(error),
        },
        Step::Activate { slot } => acted(backend.activate(slot).await),
        Step::Reset(rung) => acted(backend.reset(rung).await),
        Step::Confirm => acted(backend.confirm().await),
        Step::Abort { task } => acted(backend.abort(task.as_deref()).await),
    }
}
