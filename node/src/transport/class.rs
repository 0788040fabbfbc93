//! How urgent what a connection carries is, and what follows from it: how it makes room for others, and how it is marked.
//!
//! A connection on which slices are served has the urgency of the most urgent of them. What can wait is sent by a window that
//! notices queues before others do ([`Ledbat`]); everything else as QUIC usually does it. Datagrams carry a code point of
//! differentiated services for switches that know what to do with it.

use std::{
    any::Any,
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Instant,
};

use firmesh_protocol::manifest::Priority;
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;
use serde::Deserialize;

use super::ledbat::Ledbat;

/// The urgency of what one connection carries.
#[derive(Debug)]
pub(super) struct Class {
    /// Slices in service, by urgency.
    in_service: [AtomicU32; PRIORITIES.len()],
    /// What the last one was, for the time between slices; normal before the first.
    last: AtomicU8,
}

impl Default for Class {
    fn default() -> Self {
        Self {
            in_service: Default::default(),
            last: AtomicU8::new(number_of(Priority::Normal) as u8),
        }
    }
}

/// The least urgent first.
const PRIORITIES: [Priority; 3] = [Priority::Background, Priority::Normal, Priority::Emergency];

/// A slice that a connection carries.
#[derive(Debug)]
pub(super) struct Carried<'a> {
    class: &'a Class,
    number: usize,
}

impl Class {
    /// A slice of this urgency is carried until what is returned is dropped.
    pub(super) fn carry(&self, priority: Priority) -> Carried<'_> {
        let number = number_of(priority);
        self.in_service[number].fetch_add(1, Ordering::Relaxed);
        self.last.store(number as u8, Ordering::Relaxed);
        Carried { class: self, number }
    }

    /// The urgency of the most urgent slice, or of the last one.
    fn now(&self) -> Priority {
        let busy = |number: &usize| self.in_service[*number].load(Ordering::Relaxed) > 0;
        let last = || usize::from(self.last.load(Ordering::Relaxed));
        PRIORITIES[(0..PRIORITIES.len()).rev().find(busy).unwrap_or_else(last)]
    }
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        self.class.in_service[self.number].fetch_sub(1, Ordering::Relaxed);
    }
}

fn number_of(priority: Priority) -> usize {
    let found = PRIORITIES.iter().position(|known| *known == priority);
    found.expect("every priority is listed")
}

/// A code point of differentiated services (RFC 2474): the upper six bits of IPv4's TOS and IPv6's traffic class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "u8")]
pub struct Dscp(u8);

/// A code point that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("code point {0}: there are those from 0 to 63")]
pub struct DscpError(pub u8);

impl TryFrom<u8> for Dscp {
    type Error = DscpError;

    fn try_from(value: u8) -> Result<Self, DscpError> {
        if value < 64 {
            Ok(Self(value))
        } else {
            Err(DscpError(value))
        }
    }
}

/// The code points of what is sent, by urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DscpMarks {
    /// Default: 1, "lower effort" (RFC 8622).
    pub background: Dscp,
    /// Default: 0, "default forwarding".
    pub normal: Dscp,
    /// Default: 10, "high-throughput data" (AF11, RFC 4594).
    pub emergency: Dscp,
}

impl Default for DscpMarks {
    fn default() -> Self {
        Self {
            background: Dscp(1),
            normal: Dscp(0),
            emergency: Dscp(10),
        }
    }
}

/// Who is sent what, for the socket, which knows datagrams by their destination only.
#[derive(Debug)]
pub(super) struct Marking {
    marks: DscpMarks,
    classes: RwLock<HashMap<SocketAddr, Arc<Class>>>,
}

impl Marking {
    pub(super) fn new(marks: DscpMarks) -> Self {
        Self {
            marks,
            classes: RwLock::default(),
        }
    }

    /// Slices are served to this address from now on.
    pub(super) fn begin(&self, peer: SocketAddr, class: Arc<Class>) {
        let mut classes = self.classes.write().unwrap_or_else(PoisonError::into_inner);
        classes.insert(peer, class);
    }

    /// No slices are served there any more, by this class.
    pub(super) fn end(&self, peer: SocketAddr, class: &Arc<Class>) {
        let mut classes = self.classes.write().unwrap_or_else(PoisonError::into_inner);
        if classes.get(&peer).is_some_and(|known| Arc::ptr_eq(known, class)) {
            classes.remove(&peer);
        }
    }

    /// The upper six bits of the field that a datagram for this address gets, in their place; 0 for none.
    pub(super) fn of(&self, peer: SocketAddr) -> u8 {
        let classes = self.classes.read().unwrap_or_else(PoisonError::into_inner);
        let Dscp(mark) = match classes.get(&peer).map(|class| class.now()) {
            Some(Priority::Background) => self.marks.background,
            Some(Priority::Emergency) => self.marks.emergency,
            Some(Priority::Normal) | None => self.marks.normal,
        };
        mark << 2
    }
}

/// Makes the controllers of one connection.
#[derive(Debug, Clone)]
pub(super) struct ByClass(pub(super) Arc<Class>);

impl ControllerFactory for ByClass {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let usual = Arc::new(CubicConfig::default()).build(now, mtu);
        Box::new(Control {
            scavenger: Ledbat::new(now, usual.window(), mtu),
            usual,
            class: Arc::clone(&self.0),
            has_acked: false,
        })
    }
}

/// Two windows, of which the class says which counts.
struct Control {
    usual: Box<dyn Controller>,
    scavenger: Ledbat,
    class: Arc<Class>,
    has_acked: bool,
}

impl Control {
    fn gives_way(&self) -> bool {
        self.class.now() == Priority::Background
    }
}

impl Controller for Control {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.usual.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        // The window that does not count must not grow for what the other one held back.
        let held_back = self.gives_way() && self.scavenger.window() < self.usual.window();
        self.usual.on_ack(now, sent, bytes, app_limited || held_back, rtt);
        self.scavenger.acked(now, sent, rtt.get(), bytes, app_limited);
        self.has_acked = true;
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.usual.on_end_acks(now, in_flight, app_limited, largest);
        if std::mem::take(&mut self.has_acked) {
            self.scavenger.batch_ended(now);
        }
        if !self.gives_way() {
            self.scavenger.set_window(self.usual.window());
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.usual
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        self.scavenger.lost(now, sent);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.usual.on_mtu_update(new_mtu);
        self.scavenger.set_datagram(new_mtu);
    }

    fn window(&self) -> u64 {
        let usual = self.usual.window();
        if self.gives_way() {
            usual.min(self.scavenger.window())
        } else {
            usual
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.usual.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            usual: self.usual.clone_box(),
            scavenger: self.scavenger.clone(),
            class: Arc::clone(&self.class),
            has_acked: self.has_acked,
        })
    }

    fn initial_window(&self) -> u64 {
        self.usual.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_as_urgent_as_the_most_urgent_slice_or_the_last() {
        let class = Class::default();
        assert_eq!(class.now(), Priority::Normal);
        let idle = class.carry(Priority::Background);
        assert_eq!(class.now(), Priority::Background);
        let urgent = class.carry(Priority::Emergency);
        let normal = class.carry(Priority::Normal);
        assert_eq!(class.now(), Priority::Emergency);
        drop(urgent);
        assert_eq!(class.now(), Priority::Normal);
        drop(normal);
        assert_eq!(class.now(), Priority::Background);
        drop(idle);
        assert_eq!(class.now(), Priority::Normal);
    }

    #[test]
    fn datagrams_are_marked_by_whom_they_are_for() {
        let marking = Marking::new(DscpMarks::default());
        let [one, other] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let (class, later) = (Arc::new(Class::default()), Arc::new(Class::default()));
        let _idle = class.carry(Priority::Background);
        marking.begin(one, Arc::clone(&class));
        assert_eq!((marking.of(one), marking.of(other)), (1 << 2, 0));
        let urgent = class.carry(Priority::Emergency);
        assert_eq!(marking.of(one), 10 << 2);
        drop(urgent);
        // The peer came again before its first connection was given up.
        marking.begin(one, Arc::clone(&later));
        marking.end(one, &class);
        assert_eq!(marking.classes.read().unwrap().len(), 1);
        marking.end(one, &later);
        assert_eq!(marking.of(one), 0);
        assert_eq!(Dscp::try_from(64), Err(DscpError(64)));
    }

    #[test]
    fn only_what_can_wait_makes_room() {
        let (class, now) = (Arc::new(Class::default()), Instant::now());
        let mut control = Arc::new(ByClass(Arc::clone(&class))).build(now, 1_472);
        let usual = control.window();
        let carried = class.carry(Priority::Background);
        assert_eq!(control.window(), usual);
        control.on_congestion_event(now, now, false, 1_472);
        let cut = control.window();
        drop(carried);
        let _normal = class.carry(Priority::Normal);
        assert!(cut < control.window() && control.window() < usual);
    }
}
