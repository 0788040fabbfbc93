//! What a crash or a restart interrupted, taken up where its record says.

use std::{collections::BTreeSet, time::Duration};

use firmesh_executors::{AttemptRecord, JournalError, News, Start};
use firmesh_node_core::{install::AttemptStanding, retries::Tries};
use firmesh_protocol::{
    ids::{ArtifactId, DeviceId},
    manifest::Priority,
    report::{AttemptState, PermitKind},
};
use tracing::info;

use super::{Devices, Runtime};

impl Runtime {
    /// Takes up what a crash or a restart interrupted, and begins to look at the devices.
    pub(in crate::runtime) fn begin_devices(&mut self) -> Result<(), JournalError> {
        let mut taken_up = BTreeSet::new();
        for (device, record) in self.journal.attempts()? {
            let record = match AttemptRecord::from_bytes(&record) {
                Ok(record) => record,
                Err(error) => {
                    // Nobody knows what was done to the device: its standing stays, so that nothing starts on it.
                    self.local_error(&error);
                    taken_up.extend(self.devices.standings.keys().filter(|key| key.1 == device).cloned());
                    continue;
                }
            };
            let key = (record.goal.campaign.clone(), device.clone(), record.goal.kind);
            let in_flight = self.devices.standings.get(&key) == Some(&AttemptStanding::InFlight);
            let is_of_earlier_one = self.has_failed_before(&device, &record);
            if in_flight && !is_of_earlier_one && self.devices.devices.contains_key(&device) {
                info!(%device, campaign = %key.0, "resuming an attempt");
                taken_up.insert((key.0.clone(), device.clone(), PermitKind::Update));
                taken_up.insert(key);
                // In the first word to the coordinator already: who is heard of and says nothing of a device that was
                // permitted has not touched it, and others take its place under the caps.
                self.report(News::of(&record.goal, record.last_known().into()))?;
                self.resume_attempt(&device, record)?;
            }
        }
        // Started, but killed before the first record: not started after all. A record that is there is then of an earlier
        // attempt, for no device begins another one before this one has ended. Where one has failed before, that stays so.
        let Devices { standings, tries, .. } = &mut self.devices;
        standings.retain(|key, standing| {
            if *standing == AttemptStanding::Ended || taken_up.contains(key) {
                return true;
            }
            *standing = AttemptStanding::Ended;
            let (campaign, device, kind) = key;
            *kind == PermitKind::Update && tries.get(campaign).is_some_and(|tries| tries.contains_key(device))
        });
        let all: Vec<_> = self.devices.devices.keys().cloned().collect();
        for device in all {
            self.look(&device, Duration::ZERO);
        }
        self.begin_hosts()
    }

    /// Whether a record is that of an update that has failed, and was counted.
    fn has_failed_before(&self, device: &DeviceId, record: &AttemptRecord) -> bool {
        let tries = self.devices.tries_in(&record.goal.campaign).get(device);
        let has_failed = |tries: &Tries| {
            tries.permit >= record.goal.permit_sequence
                && !tries.state.is_success()
                && tries.state != AttemptState::Quarantined
        };
        record.goal.kind == PermitKind::Update && record.outcome().is_some() && tries.is_some_and(has_failed)
    }

    /// Goes on with an interrupted attempt: at once if it has only its outcome to tell, otherwise when its image is
    /// complete here again, because it may have to be written or served.
    fn resume_attempt(&mut self, device: &DeviceId, record: AttemptRecord) -> Result<(), JournalError> {
        let goal = record.goal.clone();
        if let Some(outcome) = record.outcome() {
            // Between two steps of a longer way its host is needed again soon.
            if goal.whole(outcome.clone()).is_none() {
                self.keep_host(device);
            }
            return self.start_attempt(device, goal, Start::Resumed(record));
        }
        if let Err(error) = self.track(&goal.image.artifact, Priority::Normal) {
            self.local_error(&error);
            return Ok(());
        }
        if let Some(known) = self.devices.devices.get_mut(device) {
            (known.running, known.parked) = (Some(goal), Some(record));
            self.keep_host(device);
        }
        Ok(())
    }

    /// Goes on with the attempts that waited for an image.
    pub(in crate::runtime) fn release_parked(&mut self, artifact: ArtifactId) -> Result<(), JournalError> {
        let waiting: Vec<_> = self
            .devices
            .devices
            .iter_mut()
            .filter(|(_, device)| {
                device
                    .parked
                    .as_ref()
                    .is_some_and(|record| record.goal.image.artifact.id == artifact)
            })
            .filter_map(|(id, device)| Some((id.clone(), device.parked.take()?)))
            .collect();
        for (device, record) in waiting {
            self.start_attempt(&device, record.goal.clone(), Start::Resumed(record))?;
        }
        Ok(())
    }
}
