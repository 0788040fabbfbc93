//! The scavenger's window: what may be in flight without others noticing.
//!
//! After RFC 6817 (LEDBAT), with the changes of draft-irtf-iccrg-ledbat-plus-plus: round trips instead of one-way delays,
//! gentle growth, a cut in proportion to the delay, and slowdowns that let the queues drain, so that whoever comes later does
//! not take others' queues for the length of the way.
//!
//! Invariants: the window never falls below two datagrams; beyond where it was before a
//! slowdown it grows only while the queue on the way is shorter than [`TARGET`].

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The delay by queues that is too much. The draft has 60 ms, for the buffers of home routers; those of a site's switches are
/// full before that.
const TARGET: Duration = Duration::from_millis(25);

/// The shortest round trips of so many minutes are remembered: ways change.
const BASE_MINUTES: usize = 10;

/// Batches of acknowledgements of which the shortest way counts: an acknowledgement that was late is no queue.
const SAMPLES: usize = 4;

/// The slowest growth, in datagrams a round trip, is one in so many.
const GAIN_DIVISOR_MAX: f64 = 16.0;

/// A slowdown lasts so many round trips, and comes again after so many times what it and the way back took.
const SLOWDOWN_ROUNDS: u32 = 2;
const SLOWDOWN_SPACING: u32 = 9;

/// The window of one connection, in bytes.
#[derive(Debug, Clone)]
pub(super) struct Ledbat {
    window: f64,
    datagram: f64,
    /// Below it the window grows by what was acknowledged.
    slow_start_until: f64,
    base: VecDeque<(Instant, Duration)>,
    /// The batch that comes in: the last round trip, and the way there and back as far as it is known.
    batch: Option<Trip>,
    /// The ways of the last batches.
    samples: VecDeque<Duration>,
    /// The last round trip.
    round: Duration,
    round_ends: Instant,
    /// Losses of what was sent before are one loss.
    cut_at: Option<Instant>,
    slowdown: Slowdown,
}

/// There and back again.
#[derive(Debug, Clone, Copy)]
struct Trip {
    /// Until the acknowledgement was here: what a window waits for.
    round: Duration,
    /// Without the time for which the peer kept the acknowledgement: what queues make longer.
    way: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Slowdown {
    /// None before the first slow start is over.
    NotYet,
    Next(Instant),
    Slow {
        since: Instant,
        until: Instant,
    },
    /// On the way back to where it was, whatever the queue says: others were there before, too.
    Recovering {
        since: Instant,
    },
}

impl Ledbat {
    /// A window of so many bytes at first.
    pub(super) fn new(now: Instant, window: u64, datagram: u16) -> Self {
        Self {
            window: window as f64,
            datagram: f64::from(datagram),
            slow_start_until: f64::INFINITY,
            base: VecDeque::new(),
            batch: None,
            samples: VecDeque::new(),
            round: Duration::ZERO,
            round_ends: now,
            cut_at: None,
            slowdown: Slowdown::NotYet,
        }
    }

    /// Bytes that may be in flight.
    pub(super) fn window(&self) -> u64 {
        self.window as u64
    }

    /// Takes over a window that was in use, when the connection begins to carry what can wait.
    pub(super) fn set_window(&mut self, bytes: u64) {
        self.window = (bytes as f64).max(self.least());
    }

    /// The path carries datagrams of so many bytes.
    pub(super) fn set_datagram(&mut self, bytes: u16) {
        self.datagram = f64::from(bytes);
        self.window = self.window.max(self.least());
    }

    /// Bytes sent at `sent` were acknowledged. `way`: how long it takes there and back, without what the peer waited before
    /// it acknowledged. `is_idle`: the sender had nothing more to send.
    pub(super) fn acked(&mut self, now: Instant, sent: Instant, way: Duration, bytes: u64, is_idle: bool) {
        let round = now.saturating_duration_since(sent);
        let round = self.batch.map_or(round, |batch| batch.round.min(round));
        self.batch = Some(Trip { round, way });
        let may_grow = match self.slowdown {
            Slowdown::Slow { .. } => false,
            Slowdown::Recovering { .. } => true,
            Slowdown::NotYet | Slowdown::Next(_) => self.queueing() <= TARGET,
        };
        if is_idle || !may_grow {
            return;
        }
        let acked = bytes as f64 * self.gain();
        self.window += match self.window < self.slow_start_until {
            true => acked,
            false => acked * self.datagram / self.window,
        };
    }

    /// A batch of acknowledgements is over.
    pub(super) fn batch_ended(&mut self, now: Instant) {
        let Some(Trip { round, way }) = self.batch.take() else {
            return;
        };
        self.round = round;
        // What is known of the way is smoothed: a round trip may be shorter.
        let way = way.min(round);
        self.remember(now, way);
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(way);
        self.steer(now);
        if now < self.round_ends {
            return;
        }
        self.round_ends = now + round;
        let excess = self.queueing().as_secs_f64() / TARGET.as_secs_f64() - 1.0;
        if excess > 0.0 && !matches!(self.slowdown, Slowdown::Recovering { .. }) {
            let datagrams = self.window / self.datagram;
            let change = (self.gain() - datagrams * excess).max(-datagrams / 2.0);
            self.window = (self.window + change * self.datagram).max(self.least());
        }
    }

    /// Something sent at `sent` was lost or marked.
    pub(super) fn lost(&mut self, now: Instant, sent: Instant) {
        if self.cut_at.is_none_or(|cut| sent > cut) {
            self.cut_at = Some(now);
            self.window = (self.window / 2.0).max(self.least());
            self.slow_start_until = self.window;
        }
    }

    /// The end of slow start, and the slowdowns after it.
    fn steer(&mut self, now: Instant) {
        let is_back = self.window >= self.slow_start_until;
        match self.slowdown {
            Slowdown::NotYet if is_back || self.queueing() > TARGET * 3 / 4 => {
                self.slow_start_until = self.window;
                self.slow_down(now);
            }
            Slowdown::Next(at) if now >= at => self.slow_down(now),
            Slowdown::Slow { since, until } if now >= until => self.slowdown = Slowdown::Recovering { since },
            Slowdown::Recovering { since } if is_back => {
                self.slowdown = Slowdown::Next(now + (now - since) * SLOWDOWN_SPACING);
            }
            _ => {}
        }
    }

    fn slow_down(&mut self, now: Instant) {
        let rounds = self.round * SLOWDOWN_ROUNDS;
        self.slow_start_until = self.window;
        self.window = self.least();
        self.slowdown = Slowdown::Slow {
            since: now,
            until: now + rounds,
        };
    }

    fn remember(&mut self, now: Instant, way: Duration) {
        match self.base.back_mut() {
            Some((since, least)) if now.saturating_duration_since(*since) < Duration::from_secs(60) => {
                *least = way.min(*least);
            }
            _ => self.base.push_back((now, way)),
        }
        if self.base.len() > BASE_MINUTES {
            self.base.pop_front();
        }
    }

    fn least(&self) -> f64 {
        2.0 * self.datagram
    }

    fn base(&self) -> Duration {
        self.base.iter().map(|(_, least)| *least).min().unwrap_or_default()
    }

    fn queueing(&self) -> Duration {
        let now = self.samples.iter().min().copied().unwrap_or_default();
        now.saturating_sub(self.base())
    }

    /// Datagrams a round trip: fewer where round trips are many. Not the draft's base of the way decides but the round trips
    /// there are: a peer that keeps acknowledgements makes few of many when the window is small, and a window that grew by
    /// a sixteenth in each of those would never be back.
    fn gain(&self) -> f64 {
        let trips = (2.0 * TARGET.as_secs_f64() / self.round.as_secs_f64()).ceil();
        1.0 / trips.clamp(1.0, GAIN_DIVISOR_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: u16 = 1_472;
    /// 100 Mbit/s.
    const RATE: f64 = 12.5e6;
    const WAY: Duration = Duration::from_millis(20);

    /// Who sends as much as its window lets it through one bottleneck.
    enum Sender {
        Scavenger(Ledbat),
        /// Additive increase, half after a loss: as TCP and QUIC do it.
        Reno {
            window: f64,
            is_started: bool,
            cut_at: Option<Instant>,
        },
    }

    impl Sender {
        fn window(&self) -> f64 {
            match self {
                Self::Scavenger(ledbat) => ledbat.window() as f64,
                Self::Reno { window, .. } => *window,
            }
        }

        fn acked(&mut self, now: Instant, sent: Instant, way: Duration, is_last: bool) {
            match self {
                Self::Scavenger(ledbat) => {
                    ledbat.acked(now, sent, way, DATAGRAM.into(), false);
                    if is_last {
                        ledbat.batch_ended(now);
                    }
                }
                Self::Reno { window, is_started, .. } => {
                    let bytes = f64::from(DATAGRAM);
                    *window += if *is_started { bytes * bytes / *window } else { bytes };
                }
            }
        }

        fn lost(&mut self, now: Instant, sent: Instant) {
            match self {
                Self::Scavenger(ledbat) => ledbat.lost(now, sent),
                Self::Reno {
                    window,
                    is_started,
                    cut_at,
                } => {
                    if cut_at.is_none_or(|cut| sent > cut) {
                        (*window, *is_started, *cut_at) = (*window / 2.0, true, Some(now));
                    }
                }
            }
        }
    }

    /// The way through the bottleneck, and the peer behind it.
    #[derive(Clone, Copy)]
    struct Path {
        /// As long as the bottleneck's queue may be.
        queue: Duration,
        /// There and back.
        way: Duration,
        /// The peer acknowledges so many datagrams at once, or what it has after so long.
        together: usize,
        at_latest: Duration,
    }

    const LONG: Path = Path {
        queue: Duration::from_millis(100),
        way: WAY,
        together: 1,
        at_latest: Duration::ZERO,
    };

    /// Inside a rack, with acknowledgements as this node's transport asks for them.
    const SHORT: Path = Path {
        queue: Duration::from_millis(100),
        way: Duration::from_micros(300),
        together: 30,
        at_latest: Duration::from_millis(25),
    };

    /// What a sender's peer has not acknowledged yet, and the way as the sender knows it.
    #[derive(Default)]
    struct Peer {
        kept: Vec<(Instant, Instant)>,
        way: Option<Duration>,
    }

    /// Datagrams through a bottleneck of [`RATE`]; what each sender brought through between `from` and `to`, as a share of the
    /// bottleneck.
    fn shares(senders: &mut [(Sender, Duration)], start: Instant, path: Path, from: u64, to: u64) -> Vec<f64> {
        let serving = Duration::from_secs_f64(f64::from(DATAGRAM) / RATE);
        let [from, to] = [from, to].map(|seconds| start + Duration::from_secs(seconds));
        let mut brought = vec![0.0; senders.len()];
        let mut in_flight = vec![0.0; senders.len()];
        let mut peers: Vec<Peer> = senders.iter().map(|_| Peer::default()).collect();
        // Until when the bottleneck is busy; what arrives: when, whose, sent when, lost or not.
        let mut busy_until = start;
        let mut arrivals = VecDeque::new();
        let mut now = start;
        while now < to {
            for (number, (sender, begins)) in senders.iter_mut().enumerate() {
                if now < start + *begins {
                    continue;
                }
                // A few at a time, so that no sender fills the queue before the other gets its turn.
                for _ in 0..4 {
                    if in_flight[number] + f64::from(DATAGRAM) > sender.window() {
                        break;
                    }
                    in_flight[number] += f64::from(DATAGRAM);
                    let is_lost = busy_until.saturating_duration_since(now) > path.queue;
                    if !is_lost {
                        busy_until = busy_until.max(now) + serving;
                    }
                    arrivals.push_back((busy_until.max(now) + path.way, number, now, is_lost));
                }
            }
            while arrivals.front().is_some_and(|(at, ..)| *at <= now) {
                let (at, number, sent, is_lost) = arrivals.pop_front().expect("there is one");
                if is_lost {
                    in_flight[number] -= f64::from(DATAGRAM);
                    senders[number].0.lost(now, sent);
                } else {
                    peers[number].kept.push((sent, at));
                    brought[number] += f64::from(u8::from(now >= from));
                }
            }
            for (number, peer) in peers.iter_mut().enumerate() {
                let (Some((_, first)), Some((sent, last))) = (peer.kept.first(), peer.kept.last()) else {
                    continue;
                };
                if peer.kept.len() < path.together && now < *first + path.at_latest {
                    continue;
                }
                // As RFC 9002 smooths it.
                let way = *last - *sent;
                let way = peer.way.map_or(way, |known| (known * 7 + way) / 8);
                peer.way = Some(way);
                let count = peer.kept.len();
                for (place, (sent, _)) in peer.kept.drain(..).enumerate() {
                    in_flight[number] -= f64::from(DATAGRAM);
                    senders[number].0.acked(now, sent, way, place + 1 == count);
                }
            }
            now += serving;
        }
        let all = (to - from).as_secs_f64() / serving.as_secs_f64();
        brought.iter().map(|datagrams| datagrams / all).collect()
    }

    fn scavenger(start: Instant) -> Sender {
        Sender::Scavenger(Ledbat::new(start, 14_720, DATAGRAM))
    }

    #[test]
    fn alone_it_takes_what_there_is() {
        for path in [LONG, SHORT] {
            let start = Instant::now();
            let share = shares(&mut [(scavenger(start), Duration::ZERO)], start, path, 10, 40);
            assert!(share[0] > 0.85, "{share:?}");
        }
    }

    /// As all neighbours of a node do: each so slow that its peer keeps acknowledgements for as long as it may. That is longer
    /// than the target, but no queue.
    #[test]
    fn many_together_take_what_there_is() {
        for path in [LONG, SHORT] {
            let start = Instant::now();
            let mut senders: Vec<_> = (0..24).map(|_| (scavenger(start), Duration::ZERO)).collect();
            let share: f64 = shares(&mut senders, start, path, 10, 40).iter().sum();
            assert!(share > 0.85, "{share}");
        }
    }

    #[test]
    fn it_makes_room_for_others_and_comes_back() {
        for path in [LONG, SHORT] {
            let start = Instant::now();
            let reno = Sender::Reno {
                window: 14_720.0,
                is_started: false,
                cut_at: None,
            };
            let mut senders = [(scavenger(start), Duration::ZERO), (reno, Duration::from_secs(10))];
            let share = shares(&mut senders, start, path, 15, 60);
            assert!(share[0] < 0.15 && share[1] > 0.8, "{share:?}");
            let [(scavenger, _), _] = senders;
            let start = start + Duration::from_secs(61);
            let share = shares(&mut [(scavenger, Duration::ZERO)], start, path, 10, 40);
            assert!(share[0] > 0.8, "{share:?}");
        }
    }

    #[test]
    fn who_comes_later_does_not_starve_who_was_there() {
        for path in [LONG, SHORT] {
            let start = Instant::now();
            let mut senders = [
                (scavenger(start), Duration::ZERO),
                (scavenger(start), Duration::from_secs(10)),
            ];
            let queue = Duration::from_millis(200);
            let share = shares(&mut senders, start, Path { queue, ..path }, 30, 150);
            // Where acknowledgements are kept, small windows hear of the queue late, and are the last to grow.
            let least = if path.together == 1 { 0.1 } else { 0.03 };
            assert!(share.iter().all(|share| *share > least), "{share:?}");
            assert!(share.iter().sum::<f64>() > 0.8, "{share:?}");
        }
    }

    #[test]
    fn it_keeps_two_datagrams_whatever_is_lost() {
        let start = Instant::now();
        let mut ledbat = Ledbat::new(start, 14_720, DATAGRAM);
        for step in 1..100 {
            let now = start + WAY * step;
            ledbat.lost(now, now - Duration::from_millis(1));
        }
        assert_eq!(ledbat.window(), 2 * u64::from(DATAGRAM));
    }
}
