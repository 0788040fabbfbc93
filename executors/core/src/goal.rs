//! What an attempt is to reach.

use std::time::Duration;

use firmesh_protocol::{
    health::{DeviceHealth, HealthRule},
    ids::{CampaignId, DeviceId, Sha256},
    manifest::{Deadlines, Release, WayStep},
    report::{AttemptState, FailureClass, PermitKind},
};
use serde::{Deserialize, Serialize};

use crate::{
    record::bounded,
    step::{Outcome, Report},
};

/// The image an attempt installs: a verified release.
pub type Image = Release;

/// One device, one image, one permit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// The device.
    pub device: DeviceId,
    /// The campaign.
    pub campaign: CampaignId,
    /// SHA-256 of the manifest's bytes: which edition of the campaign.
    pub manifest_sha256: Sha256,
    /// The wave, counted from 0.
    pub wave: u32,
    /// Update, or back to the previous release.
    pub kind: PermitKind,
    /// The permit that allowed the start; passed through to the reports.
    pub permit_sequence: u64,
    /// What to install: the planned release, or for a rollback the previous one.
    pub image: Image,
    /// Which step of the device's way to its release this is, if that has more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<WayStep>,
    /// The highest security epoch the device is known to have reached; an update below it is refused.
    pub security_epoch_min: u32,
    /// The campaign's time limits.
    pub deadlines: Deadlines,
    /// How the device is watched before the update counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthRule>,
    /// Good answers in a row that count as "back".
    pub answers_min: u32,
    /// Time between two of these answers, in milliseconds. Default: a sixteenth of the time to come back, at most 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers_apart_ms: Option<u64>,
    /// Time between two looks at the device, in milliseconds.
    pub pace_ms: u64,
}

impl Goal {
    /// Good answers in a row that count as "back", unless somebody knows better: one could be the last gasp of the old
    /// system, two could straddle a restart.
    pub const ANSWERS_MIN: u32 = 3;
    /// Time between two looks, unless somebody knows better: a BMC answers about two requests a second.
    pub const PACE_MS: u64 = 500;

    /// How long the attempt may take, with whatever it waits for.
    #[must_use]
    pub fn attempt_limit(&self) -> Duration {
        Duration::from_secs(self.deadlines.attempt_s.into())
    }

    pub(crate) fn back_limit(&self) -> Duration {
        Duration::from_secs(self.deadlines.back_s.into())
    }

    /// Ironic's defaults for firmware are 3 answers, 30 s apart, within 480 s.
    pub(crate) fn answers_apart(&self) -> Duration {
        let default = (self.back_limit() / 16).min(Duration::from_secs(30));
        self.answers_apart_ms.map_or(default, Duration::from_millis)
    }

    pub(crate) fn pace(&self) -> Duration {
        Duration::from_millis(self.pace_ms.max(1))
    }

    /// How long the device is watched.
    pub(crate) fn watch_limit(&self) -> Duration {
        let watch_s = self.health.as_ref().map_or(0, |health| health.watch_s);
        Duration::from_secs(watch_s.into())
    }

    /// What the end of this attempt is for the whole update: nothing if it ended well and another step follows. A device that
    /// is not well is not taken further.
    #[must_use]
    pub fn whole(&self, outcome: Outcome) -> Option<Outcome> {
        let Some(step) = &self.step else {
            return Some(outcome);
        };
        let is_well = outcome.state.is_success() && outcome.health != Some(DeviceHealth::Breached);
        if is_well {
            return Some(outcome).filter(|_| step.is_last());
        }
        let reason = bounded(format!("{}: {}", self.name_of(step), outcome.reason));
        // What was never read back is what ran before the step: every other end says that it does not know.
        let from = (!step.from.is_empty()).then(|| step.from.clone());
        let version = outcome.version.clone().or(from);
        Some(match (outcome.state.is_success(), step.is_last()) {
            (true, false) => Outcome {
                state: AttemptState::Failed,
                failure: Some(FailureClass::Health),
                health: None,
                reason,
                version,
            },
            (true, true) => outcome,
            (false, _) => Outcome {
                reason,
                version,
                ..outcome
            },
        })
    }

    /// The end of an update that is given up after this step of its way has ended well.
    #[must_use]
    pub fn given_up(&self, why: &str) -> Outcome {
        let step = self.step.as_ref().map(|step| self.name_of(step)).unwrap_or_default();
        Outcome {
            state: AttemptState::Failed,
            reason: bounded(format!("{step}, was the last one: {why}")),
            version: Some(self.version().to_owned()),
            failure: Some(FailureClass::Preflight),
            health: None,
        }
    }

    /// What is told of this attempt: of one step among several, as a part of the update.
    #[must_use]
    pub fn told(&self, report: Report) -> Report {
        let Some(step) = &self.step else { return report };
        if report.state.is_terminal() {
            let version = report.version.clone();
            return match self.whole(report.into()) {
                Some(whole) => whole.into(),
                None => Report {
                    reason: format!("{} is done", self.name_of(step)),
                    ..Report::on_the_way(AttemptState::Validating, version)
                },
            };
        }
        let reason = match report.reason.is_empty() {
            true => self.name_of(step),
            false => bounded(format!("{}: {}", self.name_of(step), report.reason)),
        };
        Report { reason, ..report }
    }

    fn name_of(&self, step: &WayStep) -> String {
        format!("step {} of {}, to {}", step.number, step.of, self.version())
    }

    /// The version the device reports once the goal is reached.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.image.info.version
    }
}
