//! How many requests are worth having in flight: as many as keep this node's link full, and no more.
//!
//! Every request beyond that waits in a queue somewhere on the way, and with it a piece that others wait for. The window
//! grows while pieces come in quickly and shrinks while they take long (additive increase, gentle decrease), so that on
//! any link a piece takes about [`TARGET`].

use std::time::Duration;

/// What a piece should take from request to durable. More than the 50 ms that a switch queues would be lost and sent again.
const TARGET: Duration = Duration::from_millis(80);
/// Below this a slow disk or a busy machine would leave the link idle.
const LEAST: f64 = 4.0;
const FIRST: f64 = 6.0;

/// The bound on requests in flight to peers and origin together.
#[derive(Debug)]
pub(super) struct Window(f64);

impl Default for Window {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Window {
    /// A piece came in after `took`.
    pub(super) fn arrived(&mut self, took: Duration, most: usize) {
        let step = if took <= TARGET { 1.0 } else { -0.5 };
        self.0 = (self.0 + step / self.0).clamp(LEAST, (most as f64).max(LEAST));
    }

    /// Whole requests, at most `most`.
    pub(super) fn requests(&self, most: usize) -> usize {
        // Between four and some dozens.
        (self.0 as usize).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_link() {
        let mut window = Window::default();
        (0..1_000).for_each(|_| window.arrived(Duration::from_millis(20), 16));
        assert_eq!(window.requests(16), 16);
        (0..1_000).for_each(|_| window.arrived(Duration::from_millis(900), 16));
        assert_eq!(window.requests(16), 4);
        // Where a piece takes 10 ms alone and the others queue behind it, eight keep the link full.
        for _ in 0..1_000 {
            let took = Duration::from_millis(10) * u32::try_from(window.requests(16)).unwrap();
            window.arrived(took, 16);
        }
        assert!((7..=9).contains(&window.requests(16)));
    }
}
