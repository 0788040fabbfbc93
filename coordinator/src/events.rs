//! What watchers are told: a bounded ring for those who come back, and a channel for those who are here.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use firmesh_protocol::{
    api::{Event, EventKind},
    time::WallTime,
};
use tokio::sync::broadcast;

/// Events kept for watchers that lost their connection: minutes of a busy campaign.
const RING_MAX: usize = 4_096;

/// The events of this process.
#[derive(Debug)]
pub(crate) struct Events {
    ring: Mutex<(u64, VecDeque<Arc<Event>>)>,
    live: broadcast::Sender<Arc<Event>>,
}

/// What a watcher gets.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// Whether events since the last one it saw are kept no more, or were another process's: it has to read everything
    /// again.
    pub(crate) lost: bool,
    /// The kept events that it missed.
    pub(crate) missed: Vec<Arc<Event>>,
    /// Those to come.
    pub(crate) live: broadcast::Receiver<Arc<Event>>,
}

impl Events {
    /// No events yet. Ids go on from the time, so that they grow over a restart as well.
    #[must_use]
    pub(crate) fn new(now: WallTime) -> Self {
        let first = now.unix_seconds().max(0).cast_unsigned() * 1_000;
        Self {
            ring: Mutex::new((first, VecDeque::new())),
            live: broadcast::channel(RING_MAX).0,
        }
    }

    /// Tells everybody. A watcher that is [`RING_MAX`] events behind loses the oldest and is told to reload.
    pub(crate) fn send(&self, at: WallTime, what: EventKind) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.0 += 1;
        let event = Arc::new(Event { id: ring.0, at, what });
        if ring.1.len() == RING_MAX {
            ring.1.pop_front();
        }
        ring.1.push_back(event.clone());
        // Nobody listening is no fault.
        let _ = self.live.send(event);
    }

    /// The events after `last`, and those to come.
    #[must_use]
    pub(crate) fn subscribe(&self, last: Option<u64>) -> Subscription {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let kept_after = ring.1.front().map_or(ring.0, |event| event.id - 1);
        let after = last.filter(|last| (kept_after..=ring.0).contains(last));
        let missed = ring
            .1
            .iter()
            .filter(|event| after.is_some_and(|last| event.id > last))
            .cloned()
            .collect();
        Subscription {
            lost: last.is_some() && after.is_none(),
            missed,
            live: self.live.subscribe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::{
        ids::{ArtifactId, Sha256},
        manifest::Artifact,
    };

    use super::*;

    #[test]
    fn a_watcher_that_comes_back_misses_nothing_that_is_kept() {
        let now = WallTime::from_unix_seconds(1_800_000_000);
        let events = Events::new(now);
        let what = EventKind::Artifact(Artifact {
            id: ArtifactId::of(b""),
            sha256: Sha256::of(b""),
            length: 1,
        });
        let Subscription { lost, missed, mut live } = events.subscribe(None);
        assert!(missed.is_empty() && !lost);
        for _ in 0..3 {
            events.send(now, what.clone());
        }
        let first = live.try_recv().unwrap().id;
        let Subscription { lost, missed, .. } = events.subscribe(Some(first));
        assert_eq!(
            missed.iter().map(|event| event.id).collect::<Vec<_>>(),
            [first + 1, first + 2]
        );
        assert!(!lost);
        for gone in [first - 2, first + 9] {
            let Subscription { lost, missed, .. } = events.subscribe(Some(gone));
            assert!(
                lost && missed.is_empty(),
                "a process before this one, or one whose clock was ahead"
            );
        }
        for _ in 0..RING_MAX {
            events.send(now, what.clone());
        }
        assert!(events.subscribe(Some(first)).lost, "fallen out of the ring");
    }
}
