//! The scrub: every piece that is held is read back from the disk and checked, slowly, in the background, over and over.
//!
//! A pass goes through artifacts and pieces in order; how far it has come is noted, so that a restart goes on there. One
//! begins with every start of the node, where none was under way, and then `every` after the last one began. It reads
//! `bytes_per_second` at most, and stands back for a moment from a store that is being used. What it finds damaged is
//! dropped like anything damaged that is read: not served any more, told to `lost`, fetched again.

use std::{io, sync::atomic::Ordering, time::Duration};

use firmesh_protocol::{ids::ArtifactId, time::WallTime};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{PieceStore, Scrubbed, blocking};

/// How fast, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes of content read in a second; 0 for never.
    pub bytes_per_second: u64,
    /// From the beginning of one pass to that of the next.
    pub every: Duration,
}

/// A store that was used so lately is being used.
const QUIET: Duration = Duration::from_millis(50);

/// How long a store that is being used holds up a piece.
const STAND_BACK_MAX: Duration = Duration::from_secs(1);

/// How often the place is noted.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// How often it is looked whether the next pass is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long before a disk that cannot be read is tried again.
const DISK_AGAIN: Duration = Duration::from_secs(60);

impl PieceStore {
    /// How far the scrub has come.
    #[must_use]
    pub fn scrubbed(&self) -> Scrubbed {
        self.ledger().scrub.clone()
    }

    /// Checks what is held until `cancel`. `now` is the time of day.
    pub async fn scrub(&self, pace: Pace, now: impl Fn() -> WallTime, cancel: CancellationToken) {
        if pace.bytes_per_second == 0 {
            return;
        }
        if self.scrubbed().at.is_none() {
            self.begin_pass(now());
        }
        loop {
            self.go_through(pace, &cancel).await;
            if cancel.is_cancelled() {
                return;
            }
            self.end_pass(now()).await;
            while !self.is_due(pace, now()) {
                if pause(LOOK_EVERY, &cancel).await.is_none() {
                    return;
                }
            }
            self.begin_pass(now());
        }
    }

    fn is_due(&self, pace: Pace, now: WallTime) -> bool {
        let since = now.unix_seconds().saturating_sub(self.scrubbed().began_s);
        // A clock that was set back does not put the next pass off for years.
        since < 0 || since.unsigned_abs() >= pace.every.as_secs()
    }

    fn begin_pass(&self, now: WallTime) {
        let mut ledger = self.ledger();
        ledger.scrub.at = Some((ArtifactId::from([0; 32]), 0));
        ledger.scrub.began_s = now.unix_seconds();
        ledger.changed();
    }

    async fn end_pass(&self, now: WallTime) {
        let lost = {
            let mut ledger = self.ledger();
            ledger.scrub.at = None;
            ledger.scrub.ended_s = now.unix_seconds();
            ledger.scrub.passes += 1;
            ledger.changed();
            ledger.scrub.pieces_lost
        };
        info!(lost_in_all_passes = lost, "a scrub of the store is over");
        self.note_place().await;
    }

    /// Looks at one piece after the other until there are no more. A piece that is begun is finished.
    async fn go_through(&self, pace: Pace, cancel: &CancellationToken) {
        let mut noted_at = Instant::now();
        while let Some((artifact, piece)) = self.next_piece() {
            if self.wait_for_quiet(cancel).await.is_none() {
                return;
            }
            let began = Instant::now();
            let store = self.clone();
            let found = blocking(move || Ok(store.scrub_piece(artifact, piece))).await;
            let rest = match found.and_then(|found| found) {
                Ok(bytes) => {
                    let micros = u128::from(bytes) * 1_000_000 / u128::from(pace.bytes_per_second);
                    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)).saturating_sub(began.elapsed())
                }
                Err(error) => {
                    warn!(%artifact, piece, %error, "the scrub cannot read a piece; it goes on later");
                    DISK_AGAIN
                }
            };
            if noted_at.elapsed() >= NOTE_EVERY {
                noted_at = Instant::now();
                self.note_place().await;
            }
            if pause(rest, cancel).await.is_none() {
                return;
            }
        }
    }

    /// The next piece to look at: of the artifact under way, or the first of the one behind it.
    fn next_piece(&self) -> Option<(ArtifactId, u32)> {
        let (artifact, piece) = self.ledger().scrub.at?;
        let slots = self.slots();
        slots.range(artifact..).find_map(|(id, slot)| {
            let piece = if *id == artifact { piece } else { 0 };
            (piece < slot.layout.pieces()).then_some((*id, piece))
        })
    }

    /// Looks at one piece and moves the place behind it. Answers how many bytes were read.
    fn scrub_piece(&self, artifact: ArtifactId, piece: u32) -> io::Result<u64> {
        let outcome = self.opened(artifact).and_then(|opened| opened.scrub(piece));
        let (bytes, lost) = match outcome {
            Ok(bytes) => (bytes.unwrap_or(0), 0),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => (0, 1),
            // Evicted this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, 0),
            Err(error) => return Err(error),
        };
        let mut ledger = self.ledger();
        ledger.scrub.at = Some((artifact, piece + 1));
        ledger.scrub.bytes_checked += bytes;
        ledger.scrub.pieces_lost += lost;
        ledger.changed();
        Ok(bytes)
    }

    async fn wait_for_quiet(&self, cancel: &CancellationToken) -> Option<()> {
        let began = Instant::now();
        loop {
            let used = Duration::from_millis(self.0.used_ms.load(Ordering::Relaxed));
            let since = Duration::from_millis(self.since_opened_ms()).saturating_sub(used);
            if since >= QUIET || began.elapsed() >= STAND_BACK_MAX {
                return Some(());
            }
            pause(QUIET - since, cancel).await?;
        }
    }

    async fn note_place(&self) {
        if let Err(error) = self.keep_notes().await {
            warn!(%error, "how far the scrub has come could not be noted");
        }
    }
}

/// `None` if it was cancelled.
async fn pause(span: Duration, cancel: &CancellationToken) -> Option<()> {
    cancel.run_until_cancelled(sleep(span)).await
}
