//! How many requests are worth having in flight: as many as keep a link full, and no more.
//!
//! Every request beyond that waits in a queue somewhere on the way, and with it a piece that others wait for. A window
//! grows while pieces come in quickly and shrinks while they take long (additive increase, gentle decrease), so that on
//! any link a piece takes about [`TARGET`] from its first byte, down to a floor. There is one window for each distance, as what is far is
//! often slow, and must not keep a node from its neighbours:
//!
//! - Neighbours in the rack keep ten in flight at least. All links of a rack are full only if every node asks nearly
//!   every other one at any time; with a floor of four a third of the rack's rate is lost (`firmesh-sim mesh` on the
//!   topologies N and O).
//! - What a whole rack shares, the uplink and the origin, is shared by the windows of all its nodes: one or two in flight
//!   from each are a queue already.

use std::time::Duration;

/// What a piece should take from its first byte to durable. More than the 50 ms that a switch queues would be lost and sent again.
const TARGET: Duration = Duration::from_millis(80);

/// How far away a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Distance {
    /// In the same rack.
    Inside,
    /// Across a boundary of the topology.
    Across,
    /// The origin.
    Origin,
}

/// Requests worth having in flight to one peer whose answers take `mean`: `most` where they come at once, `least` where
/// each takes [`TARGET`] or longer. The mean holds the requests in flight, so that their number settles.
pub(super) fn per_peer(mean: Duration, least: usize, most: usize) -> usize {
    let fit = TARGET.as_micros() / mean.as_micros().max(1);
    usize::try_from(fit).unwrap_or(usize::MAX).clamp(least, most.max(least))
}

/// One thing for each distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Windows<T> {
    inside: T,
    across: T,
    origin: T,
}

impl<T> Windows<T> {
    pub(super) fn of(&self, distance: Distance) -> &T {
        match distance {
            Distance::Inside => &self.inside,
            Distance::Across => &self.across,
            Distance::Origin => &self.origin,
        }
    }

    pub(super) fn of_mut(&mut self, distance: Distance) -> &mut T {
        match distance {
            Distance::Inside => &mut self.inside,
            Distance::Across => &mut self.across,
            Distance::Origin => &mut self.origin,
        }
    }
}

impl Distance {
    /// From a node whose path has `depth` levels to a peer with which it shares so many.
    pub(super) fn between(shared: usize, depth: usize) -> Self {
        if shared + 1 < depth { Self::Across } else { Self::Inside }
    }

    /// Requests below which a window never shrinks, and with which it begins.
    fn least(self) -> f64 {
        match self {
            Self::Inside => 10.0,
            Self::Across => 2.0,
            Self::Origin => 1.0,
        }
    }
}

impl Default for Windows<Window> {
    fn default() -> Self {
        let [inside, across, origin] = [Distance::Inside, Distance::Across, Distance::Origin];
        Self {
            inside: Window(inside.least()),
            across: Window(across.least()),
            origin: Window(origin.least()),
        }
    }
}

impl Windows<usize> {
    /// Whether there is no room at any distance.
    pub(super) fn are_full(&self) -> bool {
        (self.inside, self.across, self.origin) == (0, 0, 0)
    }
}

impl Windows<Window> {
    /// A piece took so long from its first byte.
    pub(super) fn arrived(&mut self, distance: Distance, took: Duration, most: usize) {
        self.of_mut(distance).arrived(took, distance.least(), most);
    }

    /// Whole requests, at most `most` each.
    pub(super) fn requests(&self, most: usize) -> Windows<usize> {
        Windows {
            inside: self.inside.requests(most),
            across: self.across.requests(most),
            origin: self.origin.requests(most),
        }
    }
}

/// The bound on requests in flight.
#[derive(Debug)]
pub(super) struct Window(f64);

impl Window {
    fn arrived(&mut self, took: Duration, least: f64, most: usize) {
        let step = if took <= TARGET { 1.0 } else { -0.5 };
        self.0 = (self.0 + step / self.0).clamp(least, (most as f64).max(least));
    }

    /// Whole requests, at most `most`.
    fn requests(&self, most: usize) -> usize {
        // Some dozens at most.
        (self.0 as usize).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_fast_is_asked_for_more() {
        let of = |millis| per_peer(Duration::from_millis(millis), 2, 8);
        assert_eq!([0, 5, 10, 20, 40, 80, 5_000].map(of), [8, 8, 8, 4, 2, 2, 2]);
    }

    #[test]
    fn the_window_follows_the_link() {
        let least = Distance::Across.least();
        let mut window = Window(least);
        (0..1_000).for_each(|_| window.arrived(Duration::from_millis(20), least, 16));
        assert_eq!(window.requests(16), 16);
        (0..1_000).for_each(|_| window.arrived(Duration::from_millis(900), least, 16));
        assert_eq!(window.requests(16), 2);
        // Where a piece takes 10 ms alone and the others queue behind it, eight keep the link full.
        for _ in 0..1_000 {
            let took = Duration::from_millis(10) * u32::try_from(window.requests(16)).unwrap();
            window.arrived(took, least, 16);
        }
        assert!((7..=9).contains(&window.requests(16)));
    }
}
