//! Bytes as a fluid: every connection gets its max-min fair share of the links it crosses, and its transfers share that
//! equally (progressive filling, Bertsekas and Gallager, "Data Networks", section 6.5.2).
//!
//! There are no packets: no loss, no queue, no slow start. What a real network adds to these times is transport, not
//! scheduling.

use std::{collections::BTreeMap, time::Duration};

use firmesh_protocol::time::Timestamp;

/// A link in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinkId(usize);

/// A transfer under way; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlowId(u64);

/// The two ends of a connection, by any numbers the caller likes.
pub(super) type Ends = (usize, usize);

#[derive(Debug)]
struct Link {
    /// Bytes per second.
    rate: f64,
    carried: f64,
}

/// A connection. Its transfers move at the same rate, so each ends when `moved` reaches a mark that was known at its
/// beginning.
#[derive(Debug)]
struct Lane {
    route: Vec<LinkId>,
    /// Bytes per second, of all its transfers together.
    rate: f64,
    /// Bytes of a transfer that was there from the beginning.
    moved: f64,
    /// Where in `moved` each transfer ends.
    marks: Vec<(FlowId, f64)>,
}

impl Lane {
    fn rate_of_each(&self) -> f64 {
        self.rate / self.marks.len().max(1) as f64
    }

    /// Seconds until its next transfer ends.
    fn next_end(&self) -> Option<f64> {
        let rate = self.rate_of_each();
        let mark = self.marks.iter().map(|(_, mark)| *mark).min_by(f64::total_cmp)?;
        (rate > 0.0).then(|| (mark - self.moved).max(0.0) / rate)
    }
}

/// Links and what moves over them.
#[derive(Debug, Default)]
pub(super) struct Fluid {
    now: Timestamp,
    links: Vec<Link>,
    lanes: BTreeMap<Ends, Lane>,
    flows: BTreeMap<FlowId, Ends>,
    next_flow: u64,
    /// Whether the rates still have to be worked out.
    is_stale: bool,
}

/// Less than this is rounding.
const NOTHING: f64 = 0.01;

impl Fluid {
    /// Adds a link of so many Mbit/s.
    pub(super) fn link(&mut self, mbit: f64) -> LinkId {
        self.links.push(Link {
            rate: mbit * 125e3,
            carried: 0.0,
        });
        LinkId(self.links.len() - 1)
    }

    /// Changes a link's rate; nothing moves at 0.
    pub(super) fn set_rate(&mut self, link: LinkId, mbit: f64) {
        self.links[link.0].rate = mbit * 125e3;
        self.is_stale = true;
    }

    /// Bytes that a link has carried, those of transfers that were broken off included.
    pub(super) fn carried(&self, link: LinkId) -> f64 {
        self.links[link.0].carried
    }

    /// Begins a transfer over a connection, whose route is the same at every call.
    pub(super) fn begin(&mut self, ends: Ends, route: impl FnOnce() -> Vec<LinkId>, bytes: f64) -> FlowId {
        let lane = self.lanes.entry(ends).or_insert_with(|| Lane {
            route: route(),
            rate: 0.0,
            moved: 0.0,
            marks: Vec::new(),
        });
        let id = FlowId(self.next_flow);
        self.next_flow += 1;
        lane.marks.push((id, lane.moved + bytes));
        // The others of the same connection make room for it, nobody else.
        self.is_stale |= lane.marks.len() == 1;
        self.flows.insert(id, ends);
        id
    }

    /// Breaks a transfer off, if it is still under way.
    pub(super) fn stop(&mut self, flow: FlowId) {
        let Some(ends) = self.flows.remove(&flow) else { return };
        if let Some(lane) = self.lanes.get_mut(&ends) {
            lane.marks.retain(|(id, _)| *id != flow);
            if lane.marks.is_empty() {
                self.lanes.remove(&ends);
                self.is_stale = true;
            }
        }
    }

    /// When the next transfer ends if nothing else happens.
    pub(super) fn next_end(&mut self) -> Option<Timestamp> {
        self.share_out();
        let seconds = self.lanes.values().filter_map(Lane::next_end).min_by(f64::total_cmp)?;
        // Rounded up, or time might stand still.
        Some(self.now + Duration::from_secs_f64(seconds) + Duration::from_nanos(1))
    }

    /// Lets time pass, not beyond [`next_end`](Self::next_end), and names the transfers that ended.
    pub(super) fn advance(&mut self, now: Timestamp) -> Vec<FlowId> {
        self.share_out();
        let seconds = now.since(self.now).as_secs_f64();
        self.now = now;
        let mut ended = Vec::new();
        for lane in self.lanes.values_mut() {
            lane.moved += lane.rate_of_each() * seconds;
            for link in &lane.route {
                self.links[link.0].carried += lane.rate * seconds;
            }
            let over = lane.marks.iter().filter(|(_, mark)| mark - lane.moved < NOTHING);
            ended.extend(over.map(|(flow, _)| *flow));
        }
        ended.sort_unstable();
        ended.iter().for_each(|flow| self.stop(*flow));
        ended
    }

    /// Progressive filling: the link that gives its connections the least fixes them, again and again.
    fn share_out(&mut self) {
        if !std::mem::take(&mut self.is_stale) {
            return;
        }
        let mut left: Vec<f64> = self.links.iter().map(|link| link.rate).collect();
        let mut open = vec![0_u32; self.links.len()];
        let mut waiting: Vec<&mut Lane> = self.lanes.values_mut().collect();
        for link in waiting.iter().flat_map(|lane| &lane.route) {
            open[link.0] += 1;
        }
        while !waiting.is_empty() {
            let shares = left.iter().zip(&open).enumerate();
            let narrowest = shares
                .filter(|(_, (_, open))| **open > 0)
                .map(|(at, (left, open))| (left.max(0.0) / f64::from(*open), at))
                .min_by(|a, b| a.0.total_cmp(&b.0));
            let Some((share, at)) = narrowest else {
                // A connection without any link has no bound.
                waiting.iter_mut().for_each(|lane| lane.rate = f64::MAX);
                return;
            };
            waiting.retain_mut(|lane| {
                if !lane.route.contains(&LinkId(at)) {
                    return true;
                }
                lane.rate = share;
                for link in &lane.route {
                    left[link.0] -= share;
                    open[link.0] -= 1;
                }
                false
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Timestamp {
        Timestamp::after_start(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn connections_share_a_link_and_transfers_share_their_connection() {
        let mut fluid = Fluid::default();
        let [shared, narrow] = [8.0, 2.0].map(|mbit| fluid.link(mbit));
        let long = fluid.begin((0, 1), || vec![shared], 1_750_000.0);
        let first = fluid.begin((0, 2), || vec![shared, narrow], 125_000.0);
        let second = fluid.begin((0, 2), || vec![shared, narrow], 250_000.0);
        // 2 Mbit/s for the two, the other 6 for the one.
        let end = fluid.next_end().unwrap();
        assert!(end.since(seconds(1.0)) < Duration::from_micros(1), "{end:?}");
        assert_eq!(fluid.advance(end), [first]);
        let end = fluid.next_end().unwrap();
        assert!(end.since(seconds(1.5)) < Duration::from_micros(1), "{end:?}");
        assert_eq!(fluid.advance(end), [second]);
        // 1.125 MB are through; now 8 Mbit/s.
        let end = fluid.next_end().unwrap();
        assert!(end.since(seconds(2.125)) < Duration::from_micros(1), "{end:?}");
        assert_eq!(fluid.advance(end), [long]);
        assert_eq!(fluid.carried(shared).round(), 2_125_000.0);
        assert_eq!(fluid.carried(narrow).round(), 375_000.0);
    }

    #[test]
    fn nothing_moves_over_a_cut_link_and_it_goes_on_afterwards() {
        let mut fluid = Fluid::default();
        let link = fluid.link(8.0);
        let flow = fluid.begin((0, 1), || vec![link], 1e6);
        assert!(fluid.advance(seconds(0.5)).is_empty());
        fluid.set_rate(link, 0.0);
        assert_eq!(fluid.next_end(), None);
        assert!(fluid.advance(seconds(10.0)).is_empty());
        fluid.set_rate(link, 8.0);
        let end = fluid.next_end().unwrap();
        assert!(end.since(seconds(10.5)) < Duration::from_micros(1), "{end:?}");
        fluid.stop(flow);
        assert_eq!(fluid.next_end(), None);
        assert_eq!(fluid.carried(link).round(), 500_000.0);
    }
}
