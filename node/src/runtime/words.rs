//! What the coordinator is told beside heartbeats, for people to read: which profile each device's credentials come from, and
//! what was said to a device in an attempt that has ended.
//!
//! Invariants: names and no secrets; nothing waits for any of it, and nothing is decided by it; what waits to be told is bounded,
//! and lost with the process, as the transcript itself stays in its folder.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use firmesh_executors::{Goal, Outcome, redfish::pack};
use firmesh_protocol::{
    api::{CredentialsReport, TranscriptReport, is_profile_name},
    ids::DeviceId,
    report::AttemptState,
};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::{Chain, Event, Runtime};
use crate::uplink::UplinkError;

/// Profiles are read at the start of a node and change with it. They are told again now and then, for a coordinator whose
/// database was restored.
const PROFILES_EVERY: Duration = Duration::from_secs(6 * 3_600);

/// Transcripts that wait for the coordinator, at most: some 350 KiB each. The oldest goes.
const WAITING_MAX: usize = 16;

/// One at a time: a hundred BMCs that fail together would take gigabytes.
static PACKING: Semaphore = Semaphore::const_new(1);

/// What there is to tell.
#[derive(Default)]
pub(super) struct Words {
    /// When the profiles are told again; at once, if they were not told yet.
    profiles_at: Option<Instant>,
    is_telling_profiles: bool,
    waiting: VecDeque<TranscriptReport>,
    is_telling_transcript: bool,
}

impl Words {
    fn wait(&mut self, report: TranscriptReport) {
        // The first one may be on its way.
        let oldest = usize::from(self.is_telling_transcript);
        if self.waiting.len() >= WAITING_MAX
            && let Some(lost) = self.waiting.remove(oldest)
        {
            let most = WAITING_MAX;
            warn!(device = %lost.device, "the coordinator does not hear of a transcript: {most} others wait for it");
        }
        self.waiting.push_back(report);
    }
}

impl Runtime {
    /// Has the transcript of an attempt that has ended told, if there is one: its words only where a person may look for them.
    pub(super) fn note_transcript(&mut self, device: &DeviceId, goal: &Goal, outcome: &Outcome) {
        let Some(path) = self.devices.transcript_of(device) else {
            return;
        };
        let state = outcome.state;
        let with_words = !state.is_success() && state != AttemptState::Cancelled;
        let (device, campaign, kind) = (device.clone(), goal.campaign.clone(), goal.kind);
        let ended = self.fleet.now();
        self.spawn(async move {
            let _turn = PACKING.acquire().await;
            let packed = tokio::task::spawn_blocking(move || pack(&path, with_words)).await;
            let packed = packed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            Event::Packed(packed.map(|transcript| {
                Box::new(TranscriptReport {
                    device,
                    campaign,
                    kind,
                    state,
                    ended,
                    transcript,
                })
            }))
        });
    }

    pub(super) fn on_packed(&mut self, packed: std::io::Result<Box<TranscriptReport>>) {
        match packed {
            Ok(report) => {
                self.words.wait(*report);
                self.tell_words();
            }
            // It was one of the oldest by now, or the disk says so to others as well.
            Err(error) => warn!(%error, "a transcript cannot be read, and is not told"),
        }
    }

    /// Tells what there is to tell, one thing of a kind at a time, if the coordinator is there.
    pub(super) fn tell_words(&mut self) {
        if !self.fleet.coordinator_reachable {
            return;
        }
        let are_due = self.words.profiles_at.is_none_or(|at| at <= Instant::now());
        if are_due && !self.words.is_telling_profiles {
            self.words.is_telling_profiles = true;
            let devices = self.settings.devices.iter();
            let named = devices.filter_map(|device| Some((device.device.clone(), device.profile.clone()?)));
            let profiles = named.filter(|(_, profile)| is_profile_name(profile)).collect();
            let (uplink, report) = (self.uplink.clone(), CredentialsReport { profiles });
            self.spawn(async move { Event::ProfilesTold(uplink.tell_profiles(&report).await) });
        }
        if let Some(report) = self.words.waiting.front().filter(|_| !self.words.is_telling_transcript) {
            let (uplink, report) = (self.uplink.clone(), report.clone());
            self.words.is_telling_transcript = true;
            self.spawn(async move { Event::TranscriptTold(uplink.tell_transcript(&report).await) });
        }
    }

    pub(super) fn on_profiles_told(&mut self, result: Result<(), UplinkError>) {
        self.words.is_telling_profiles = false;
        match result {
            // With the next heartbeat that is answered.
            Err(error) if error.is_passing() => debug!(error = %Chain(&error), "profiles were not told"),
            Err(error) => {
                info!(error = %Chain(&error), "the coordinator does not take the names of profiles");
                self.words.profiles_at = Some(Instant::now() + PROFILES_EVERY);
            }
            Ok(()) => self.words.profiles_at = Some(Instant::now() + PROFILES_EVERY),
        }
    }

    pub(super) fn on_transcript_told(&mut self, result: Result<(), UplinkError>) {
        self.words.is_telling_transcript = false;
        match result {
            Err(error) if error.is_passing() => {
                debug!(error = %Chain(&error), "a transcript was not told");
                return;
            }
            Err(error) => {
                let lost = self.words.waiting.pop_front();
                let device = lost.map(|lost| lost.device.to_string()).unwrap_or_default();
                info!(device, error = %Chain(&error), "the coordinator does not take a transcript");
            }
            Ok(()) => drop(self.words.waiting.pop_front()),
        }
        self.tell_words();
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::{
        api::PackedTranscript,
        ids::{CampaignId, Sha256},
        report::PermitKind,
        time::WallTime,
    };

    use super::*;

    fn report(number: usize) -> TranscriptReport {
        TranscriptReport {
            device: DeviceId::new(format!("d{number}")).unwrap(),
            campaign: CampaignId::new("spring").unwrap(),
            kind: PermitKind::Update,
            state: AttemptState::Failed,
            ended: WallTime::from_unix_seconds(0),
            transcript: PackedTranscript {
                exchanges: 0,
                bytes: 0,
                sha256: Sha256::of(b""),
                left_out: 0,
                content: None,
            },
        }
    }

    fn waiting(words: &Words) -> Vec<String> {
        words.waiting.iter().map(|report| report.device.to_string()).collect()
    }

    #[test]
    fn with_the_coordinator_gone_the_newest_transcripts_wait_and_the_one_on_its_way_stays_first() {
        let mut words = Words::default();
        (0..WAITING_MAX + 2).for_each(|number| words.wait(report(number)));
        assert_eq!(words.waiting.len(), WAITING_MAX);
        assert_eq!(waiting(&words)[..2], ["d2", "d3"]);
        words.is_telling_transcript = true;
        words.wait(report(100));
        assert_eq!(waiting(&words)[..2], ["d2", "d4"]);
        assert_eq!(waiting(&words).last().map(String::as_str), Some("d100"));
    }
}
