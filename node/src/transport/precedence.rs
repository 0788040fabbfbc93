//! Whose pieces are served first: what is urgent overtakes, and what waits for it does not wait for ever.
//!
//! Invariant: a slice is held back only while a more urgent one is being served, and no longer than [`YIELD_MAX`].

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use firmesh_protocol::{ids::ArtifactId, manifest::Priority};
use tokio::{sync::Notify, time::Instant};

/// How long a slice stands back for more urgent ones: well below what its request is given.
const YIELD_MAX: Duration = Duration::from_secs(1);

/// What is being served, by urgency.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    state: Mutex<State>,
    one_less: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Of those that are not normal.
    priorities: BTreeMap<ArtifactId, Priority>,
    active: BTreeMap<Priority, usize>,
}

/// A slice that is being served.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    of: &'a Precedence,
    priority: Priority,
}

impl Precedence {
    /// Says how urgent an artifact is; what nobody said anything of is normal.
    pub(super) fn set(&self, artifact: ArtifactId, priority: Priority) {
        let priorities = &mut self.state().priorities;
        match priority {
            Priority::Normal => priorities.remove(&artifact),
            _ => priorities.insert(artifact, priority),
        };
    }

    /// Waits until a slice of an artifact may be served.
    pub(super) async fn turn(&self, artifact: ArtifactId) -> Turn<'_> {
        let give_way_until = Instant::now() + YIELD_MAX;
        loop {
            let one_less = self.one_less.notified();
            {
                let mut state = self.state();
                let priority = state.priorities.get(&artifact).copied().unwrap_or_default();
                let more_urgent = state.active.keys().any(|active| *active > priority);
                if !more_urgent || Instant::now() >= give_way_until {
                    *state.active.entry(priority).or_default() += 1;
                    return Turn { of: self, priority };
                }
            }
            tokio::select! {
                () = one_less => {}
                () = tokio::time::sleep_until(give_way_until) => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// How urgent the slice is.
    pub(super) fn priority(&self) -> Priority {
        self.priority
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.of.state();
        if let Some(active) = state.active.get_mut(&self.priority) {
            *active -= 1;
            if *active == 0 {
                state.active.remove(&self.priority);
            }
        }
        drop(state);
        self.of.one_less.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_urgent_goes_first_and_nobody_waits_for_ever() {
        let precedence = Precedence::default();
        let [urgent, normal, idle] = [b"a", b"b", b"c"].map(|name| ArtifactId::of(name));
        precedence.set(urgent, Priority::Emergency);
        precedence.set(idle, Priority::Background);
        let first = precedence.turn(normal).await;
        let second = precedence.turn(urgent).await;
        let mut waits = Box::pin(precedence.turn(normal));
        assert!((&mut waits).now_or_never().is_none());
        drop(second);
        let third = (&mut waits).now_or_never().expect("nothing urgent is served any more");
        let since = Instant::now();
        let _patient = precedence.turn(idle).await;
        assert_eq!(since.elapsed(), YIELD_MAX);
        drop((first, third));
        assert_eq!(precedence.state().active.len(), 1);
    }
}
