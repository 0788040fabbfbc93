//! Links that carry one piece after the other: what is booked is known to the moment, and never changes.

use std::time::Duration;

use firmesh_protocol::time::Timestamp;

/// A link in one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wire {
    /// Nanoseconds that a byte takes.
    ns_per_byte: f64,
    free_at: Timestamp,
}

impl Wire {
    /// A link of so many Mbit/s.
    pub(super) fn of(mbit: u64) -> Self {
        Self {
            ns_per_byte: 8e3 / mbit as f64,
            free_at: Timestamp::default(),
        }
    }

    /// When it has nothing booked any more.
    pub(super) fn free_at(&self) -> Timestamp {
        self.free_at
    }

    /// How long so many bytes take on a link that has nothing else to do.
    fn time(&self, bytes: u64) -> Duration {
        Duration::from_nanos((bytes as f64 * self.ns_per_byte) as u64)
    }

    /// Books bytes from a moment on, over this link and then that one, which takes them as they come; answers when the last of
    /// them is through.
    pub(super) fn book(&mut self, onto: &mut Self, from: Timestamp, bytes: u64) -> Timestamp {
        let begins = self.free_at.max(from);
        self.free_at = begins + self.time(bytes);
        onto.free_at = (onto.free_at.max(begins) + onto.time(bytes)).max(self.free_at);
        onto.free_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::after_start(Duration::from_millis(ms))
    }

    #[test]
    fn the_narrower_link_and_who_was_there_first_decide() {
        let [mut narrow, mut wide] = [8, 80].map(Wire::of);
        assert_eq!(narrow.book(&mut wide, at(10), 1_000), at(11));
        // It waits for the one before it.
        assert_eq!(narrow.book(&mut wide, at(10), 2_000), at(13));
        let mut other = Wire::of(80);
        // The wide link has been free for long, and takes a tenth of a millisecond.
        assert_eq!(
            other.book(&mut wide, at(20), 1_000),
            at(20) + Duration::from_micros(100)
        );
        let mut slow = Wire::of(8);
        assert_eq!(other.book(&mut slow, at(30), 1_000), at(31));
        assert_eq!(other.book(&mut slow, at(30), 10_000), at(41));
    }
}
