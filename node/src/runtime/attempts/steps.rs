//! Devices that go over other releases, between two steps of their way. What comes next is the core's to say.

use std::time::Duration;

use firmesh_executors::{AttemptRecord, Goal, Journal as _, JournalError, News, Report, Start};
use firmesh_node_core::install::{AttemptStanding, Hold, Next, next};
use firmesh_protocol::{ids::DeviceId, report::AttemptState};
use tokio::time::Instant;

use super::{Device, Runtime, Shown};

/// How much of a wait a restart of the node may forget: as long as it takes to look at the device once.
const WAIT_KEPT_EVERY: Duration = super::LOOK_INTERVAL;

impl Runtime {
    /// Takes the next step of every device that may, or ends its update where it is.
    pub(super) fn go_on_with_steps(&mut self) -> Result<(), JournalError> {
        let between = |(id, device): (&DeviceId, &Device)| {
            let ends = device.ends.filter(|_| device.between)?;
            Some((id.clone(), device.running.clone()?, ends))
        };
        let between: Vec<_> = self.devices.devices.iter().filter_map(between).collect();
        for (device, done, ends) in between {
            let left = ends.saturating_duration_since(Instant::now());
            self.go_on(&device, &done, left)?;
        }
        Ok(())
    }

    fn go_on(&mut self, device: &DeviceId, done: &Goal, left: Duration) -> Result<(), JournalError> {
        let campaign = (&done.campaign, done.wave);
        let known = self.with_facts(device, campaign, &Shown::Nothing, |campaign, facts| {
            next(done, Some((campaign, facts)), left)
        });
        match known.unwrap_or_else(|| next(done, None, left)) {
            Next::Step(admission) => {
                let goal = Goal {
                    image: admission.release,
                    step: admission.step,
                    security_epoch_min: self.journal.security_floor(device)?,
                    ..done.clone()
                };
                if let Some(known) = self.devices.devices.get_mut(device) {
                    known.between = false;
                }
                // Its standing is durable since the first step, and the record of the last one until that of this one is.
                self.report(News::of(&goal, Report::on_the_way(AttemptState::Installing, None)))?;
                self.start_attempt(device, goal.clone(), Start::Fresh(goal))
            }
            Next::Wait(hold) => {
                if let Hold::NotPossessed(image) = hold {
                    self.check_whole(image);
                }
                self.keep_wait(device, left)?;
                let version = Some(done.version().to_owned());
                let report = Report::on_the_way(AttemptState::Validating, version);
                let reason = format!("done; the next one waits: {hold}");
                self.report(News::of(done, Report { reason, ..report }))
            }
            Next::End(hold, outcome) => {
                self.refuse(hold.code(), format!("{device}: {hold}"));
                if let Some(known) = self.devices.devices.get_mut(device) {
                    (known.between, known.running) = (false, None);
                }
                self.keep_outcome(device, done, &outcome)?;
                self.stand(device, &done.campaign, done.kind, AttemptStanding::Ended)?;
                let news = News::of(done, Report::on_the_way(AttemptState::Installing, None));
                let report = outcome.into();
                self.report(News { report, ..news })?;
                self.release_host(device)?;
                self.look(device, Duration::ZERO);
                Ok(())
            }
        }
    }

    /// Time that was waited stays spent over a restart.
    fn keep_wait(&mut self, device: &DeviceId, left: Duration) -> Result<(), JournalError> {
        let Some(bytes) = self.journal.load(device)? else {
            return Ok(());
        };
        match AttemptRecord::from_bytes(&bytes) {
            Ok(record) => {
                let waited = record.left().saturating_sub(left);
                if waited >= WAIT_KEPT_EVERY {
                    self.journal.save(device, &record.having_waited(waited).to_bytes())?;
                }
            }
            Err(error) => self.local_error(&error),
        }
        Ok(())
    }
}
