//! Turns: how many slices of images the origin serves at once.
//!
//! Served all at once, every answer gets the same small part of the uplink: no piece is whole anywhere for a long time, and
//! until then nothing can be passed on from node to node. A few at a time, the first pieces are whole, and shared, while
//! the others are still being served. Who waits, and in which order, is the caller's business.
//!
//! Invariants: never more turns than allowed; a turn that has had its time ends when somebody else could use it, so that
//! however slow some are, 16 turns begin in a second.

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use firmesh_protocol::time::Timestamp;

/// Slices in service at once, if nothing else is said.
///
/// Too few are slower than none where the nodes' own links are the narrow ones (`firmesh-sim mesh --topology O --turns 8`);
/// more make every piece late. A turn ends when its last byte was handed to the kernel, so what is on its way takes no
/// turn. On a path of 10 Gbit/s and 20 ms a hundred pieces are on their way, but to connections that are warm (a window of
/// a piece or more) the next piece follows as fast as it can be read. One that is cold needs some three round trips for a
/// piece, so 24 fill almost a Gbit/s until they are warm.
pub const TURNS: NonZeroUsize = NonZeroUsize::new(24).expect("24 is not 0");

/// How often a turn begins at least while somebody waits: a turn lasts for so long times the number of turns at most. Pieces
/// of 256 KiB keep to that on an uplink of 34 Mbit/s, however many are served beside each other; and nodes whose own links
/// are slow, or that do not read at all, hold the others up no longer than that.
const BEGINS_EVERY: Duration = Duration::from_micros(62_500);

/// Names a turn; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnId(u64);

/// The turns that are taken.
#[derive(Debug)]
pub struct Turns {
    most: NonZeroUsize,
    longest: Duration,
    /// Since when. In order of age, as ids count up.
    begun: BTreeMap<TurnId, Timestamp>,
    next: u64,
    overdue: u64,
}

impl Turns {
    /// So many turns at once.
    #[must_use]
    pub fn new(most: NonZeroUsize) -> Self {
        let count = u32::try_from(most.get()).unwrap_or(u32::MAX);
        Self {
            most,
            longest: BEGINS_EVERY.saturating_mul(count),
            begun: BTreeMap::new(),
            next: 0,
            overdue: 0,
        }
    }

    /// Begins a turn, in the place of the oldest if that one has had its time. If none is to be had: when to ask again, if
    /// none [ends](Self::end) before.
    pub fn begin(&mut self, now: Timestamp) -> Result<TurnId, Timestamp> {
        if self.begun.len() >= self.most.get()
            && let Some(oldest) = self.begun.first_entry()
        {
            let due = *oldest.get() + self.longest;
            if now < due {
                return Err(due);
            }
            oldest.remove();
            self.overdue += 1;
        }
        let id = TurnId(self.next);
        self.next += 1;
        self.begun.insert(id, now);
        Ok(id)
    }

    /// A turn is over; nothing happens if it was taken away before.
    pub fn end(&mut self, id: TurnId) {
        self.begun.remove(&id);
    }

    /// Turns that are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.begun.len()
    }

    /// Turns that were taken away from whoever had them.
    #[must_use]
    pub fn overdue(&self) -> u64 {
        self.overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_turn_is_for_one_and_then_for_the_next() {
        let mut turns = Turns::new(NonZeroUsize::new(2).unwrap());
        let first = turns.begin(at(0)).unwrap();
        turns.begin(at(10)).unwrap();
        assert_eq!(turns.begin(at(20)), Err(at(125)));
        turns.end(first);
        turns.end(first);
        assert!(turns.begin(at(30)).is_ok());
        assert_eq!(turns.begin(at(40)), Err(at(135)));
        assert_eq!((turns.taken(), turns.overdue()), (2, 0));
    }

    #[test]
    fn who_is_slow_loses_its_turn_and_ends_nobody_elses() {
        let mut turns = Turns::new(NonZeroUsize::MIN);
        let slow = turns.begin(at(0)).unwrap();
        assert_eq!(turns.begin(at(62)), Err(at(62) + Duration::from_micros(500)));
        let next = turns.begin(at(63)).unwrap();
        turns.end(slow);
        assert_eq!((turns.taken(), turns.overdue()), (1, 1));
        assert_eq!(turns.begin(at(100)), Err(at(125) + Duration::from_micros(500)));
        turns.end(next);
        assert_eq!(turns.taken(), 0);
    }
}
