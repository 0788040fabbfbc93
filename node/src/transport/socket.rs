//! The UDP socket of the data plane: datagrams are taken in some at a time.
//!
//! A shaped or slow link delivers every datagram alone, and waking a task for each costs more than what is in it. After
//! the queue was emptied it is left alone for [`PAUSE`], while the kernel gathers what comes. Where datagrams come so fast
//! that the kernel's buffer could overflow in that time, there is no pause, and none is needed: they come in heaps.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, getsockopt, sendmsg, setsockopt, sockopt},
};
use quinn::{
    AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use serde::Deserialize;
use tokio::time::Sleep;

use super::class::Marking;

/// How long arrivals are gathered: the resolution of tokio's timers.
const PAUSE: Duration = Duration::from_millis(1);

/// The time over which arrivals are counted.
const SPAN: Duration = Duration::from_millis(5);

/// Bytes in a [`SPAN`] above which there are no pauses: two pauses' worth fill a third of the kernel's default buffer of
/// 208 KiB, which counts about half as much again for every datagram.
const SPAN_BYTES_MAX: usize = 120_000;

/// What the kernel is asked to hold of what has come in, in bytes. With its usual 208 KiB, a burst of a few large sends
/// overflows it wherever the link is fast, and half of the rate is lost to sending again. Whoever measures against the data
/// plane needs it, too.
pub const RECEIVE_BUFFER_BYTES: usize = 2 << 20;

/// IPv4's header, without options, and UDP's.
const HEADER_BYTES: i32 = 28;

/// The largest datagram that is taken from a peer and tried towards one, as UDP payload in bytes. By default the most there
/// can be: what fits a path is found out by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "u16")]
pub struct DatagramBound(u16);

/// A bound on datagrams that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "datagrams of {bytes} bytes: the bound is from {min} to {max} bytes of UDP payload",
    min = DatagramBound::MIN,
    max = DatagramBound::MAX
)]
pub struct DatagramBoundError {
    /// What was wanted.
    pub bytes: u16,
}

impl DatagramBound {
    /// What every path carries.
    pub const MIN: u16 = 1_200;

    /// Ten datagrams of this size in one GSO send must stay below 65,507 bytes, or the kernel refuses the send and QUIC sees
    /// only silence.
    pub const MAX: u16 = 6_500;

    /// The bound in bytes.
    #[must_use]
    pub fn bytes(self) -> u16 {
        self.0
    }

    /// The largest datagram that may fit the way to `peer`, as far as this machine knows: the search for what does fit ends
    /// there, and a search beyond what the first link carries finds nothing but silence.
    pub(super) fn towards(self, peer: SocketAddr) -> u16 {
        link_carries(peer)
            .map_or(self.0, |bytes| bytes.min(self.0))
            .max(Self::MIN)
    }
}

const _: () = assert!(DatagramBound::MAX as u32 * 10 < 65_507);

impl TryFrom<u16> for DatagramBound {
    type Error = DatagramBoundError;

    fn try_from(bytes: u16) -> Result<Self, DatagramBoundError> {
        match bytes {
            Self::MIN..=Self::MAX => Ok(Self(bytes)),
            _ => Err(DatagramBoundError { bytes }),
        }
    }
}

impl Default for DatagramBound {
    fn default() -> Self {
        Self(Self::MAX)
    }
}

/// The largest datagram that the first link on the way to `peer` carries, if the kernel says so.
fn link_carries(peer: SocketAddr) -> Option<u16> {
    let SocketAddr::V4(_) = peer else { return None };
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(peer).ok()?; // nothing is sent: the kernel looks up the route
    let mtu = getsockopt(&socket, sockopt::IpMtu).ok()?;
    u16::try_from((mtu - HEADER_BYTES).min(u16::MAX.into())).ok()
}

/// Binds a socket that gathers.
pub(super) fn bind(listen: SocketAddr, marking: Arc<Marking>) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = std::net::UdpSocket::bind(listen)?;
    // The kernel gives what its administrator allows, which may be less.
    setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
    let marked = Marked {
        socket: socket.try_clone()?,
        marking,
    };
    let inner = TokioRuntime.wrap_udp_socket(socket)?;
    Ok(Arc::new(Gathering {
        inner,
        marked,
        state: Mutex::default(),
    }))
}

#[derive(Debug)]
struct Gathering {
    inner: Arc<dyn AsyncUdpSocket>,
    marked: Marked,
    state: Mutex<State>,
}

/// The same socket again, for datagrams with a mark: quinn's own way of sending leaves no room for one.
#[derive(Debug)]
struct Marked {
    socket: std::net::UdpSocket,
    marking: Arc<Marking>,
}

impl Marked {
    /// Sends datagrams with the mark that is due; `None` if none is.
    fn send(&self, transmit: &Transmit<'_>) -> Option<nix::Result<usize>> {
        let mark = self.marking.of(transmit.destination);
        if mark == 0 {
            return None;
        }
        let field = mark | transmit.ecn.map_or(0, |ecn| ecn as u8);
        let wide = i32::from(field);
        let is_v4 = transmit.destination.ip().to_canonical().is_ipv4();
        let mut control = vec![match is_v4 {
            true => ControlMessage::Ipv4Tos(&field),
            false => ControlMessage::Ipv6TClass(&wide),
        }];
        let segment = transmit
            .segment_size
            .filter(|bytes| *bytes < transmit.contents.len())
            .and_then(|bytes| u16::try_from(bytes).ok());
        control.extend(segment.as_ref().map(ControlMessage::UdpGsoSegments));
        // An answer comes from the address that was asked.
        let (from_v4, from_v6) = match transmit.src_ip {
            Some(IpAddr::V4(from)) => (Some(source_v4(from)), None),
            Some(IpAddr::V6(from)) => (None, Some(source_v6(from))),
            None => (None, None),
        };
        control.extend(from_v4.as_ref().map(ControlMessage::Ipv4PacketInfo));
        control.extend(from_v6.as_ref().map(ControlMessage::Ipv6PacketInfo));
        let to = SockaddrStorage::from(transmit.destination);
        let parts = [io::IoSlice::new(transmit.contents)];
        let flags = MsgFlags::MSG_DONTWAIT;
        Some(sendmsg(self.socket.as_raw_fd(), &parts, &control, flags, Some(&to)))
    }
}

fn source_v4(from: Ipv4Addr) -> libc::in_pktinfo {
    libc::in_pktinfo {
        ipi_ifindex: 0, // by whichever link leads there
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from_ne_bytes(from.octets()),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    }
}

fn source_v6(from: Ipv6Addr) -> libc::in6_pktinfo {
    libc::in6_pktinfo {
        ipi6_ifindex: 0,
        ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
    }
}

#[derive(Default)]
struct State {
    arrivals: Arrivals,
    /// Whether anything came since the last pause.
    came: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

/// How much comes in.
#[derive(Debug, Default)]
struct Arrivals {
    since: Option<Instant>,
    bytes: usize,
    are_heaps: bool,
}

impl Arrivals {
    fn count(&mut self, now: Instant, bytes: usize) {
        let begun = *self.since.get_or_insert(now);
        self.bytes += bytes;
        // A flood is noticed at once, its end when a span was calm.
        self.are_heaps |= self.bytes > SPAN_BYTES_MAX;
        if now.duration_since(begun) >= SPAN {
            self.are_heaps = self.bytes > SPAN_BYTES_MAX;
            self.since = Some(now);
            self.bytes = 0;
        }
    }
}

impl AsyncUdpSocket for Gathering {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Whatever was wrong, the usual way says it, or waits, or finds a way around.
        let is_sent = self.marked.send(transmit).is_some_and(|sent| sent.is_ok());
        if is_sent { Ok(()) } else { self.inner.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pause) = &mut state.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            state.pause = None;
        }
        let polled = self.inner.poll_recv(cx, bufs, meta);
        match &polled {
            Poll::Ready(Ok(count)) => {
                let bytes = meta.iter().take(*count).map(|datagrams| datagrams.len).sum();
                state.arrivals.count(Instant::now(), bytes);
                state.came = true;
            }
            Poll::Pending if state.came && !state.arrivals.are_heaps => {
                state.came = false;
                let mut pause = Box::pin(tokio::time::sleep(PAUSE));
                // Should it be over already, the next look is at the socket.
                if pause.as_mut().poll(cx).is_pending() {
                    state.pause = Some(pause);
                }
            }
            Poll::Pending | Poll::Ready(Err(_)) => {}
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("arrivals", &self.arrivals)
            .field("is_pausing", &self.pause.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::manifest::Priority;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use quinn::udp::EcnCodepoint;

    use super::*;
    use crate::transport::class::{Class, DscpMarks};

    #[test]
    fn datagrams_are_no_larger_than_the_way_there_carries_or_the_bound_allows() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 9));
        // Loopback carries more than ten of the largest in one send may have.
        assert_eq!(DatagramBound::default().towards(loopback), DatagramBound::MAX);
        for bytes in [DatagramBound::MIN, 1_472, DatagramBound::MAX] {
            assert_eq!(DatagramBound::try_from(bytes).unwrap().towards(loopback), bytes);
        }
        for bytes in [0, DatagramBound::MIN - 1, DatagramBound::MAX + 1, u16::MAX] {
            assert_eq!(DatagramBound::try_from(bytes), Err(DatagramBoundError { bytes }));
        }
    }

    #[tokio::test]
    async fn what_is_marked_arrives_with_its_mark_from_the_address_that_was_asked() {
        let marking = Arc::new(Marking::new(DscpMarks::default()));
        let (sender, taker) = (
            bind(SocketAddr::from(([0, 0, 0, 0], 0)), Arc::clone(&marking)).unwrap(),
            std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
        );
        setsockopt(&taker, sockopt::IpRecvTos, &true).unwrap();
        let to = taker.local_addr().unwrap();
        let class = Arc::new(Class::default());
        marking.begin(to, Arc::clone(&class));
        for (priority, mark) in [
            (Priority::Background, 1),
            (Priority::Normal, 0),
            (Priority::Emergency, 10),
        ] {
            let _carried = class.carry(priority);
            let transmit = Transmit {
                destination: to,
                ecn: Some(EcnCodepoint::Ect0),
                contents: &[7; 3_000],
                segment_size: Some(1_400),
                src_ip: Some(IpAddr::from([127, 0, 0, 2])),
            };
            let mut poller = Arc::clone(&sender).create_io_poller();
            std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx))
                .await
                .unwrap();
            sender.try_send(&transmit).unwrap();
            for bytes in [1_400, 1_400, 200] {
                let (mut buffer, mut space) = ([0; 2_000], nix::cmsg_space!(u8));
                let mut parts = [io::IoSliceMut::new(&mut buffer)];
                let fd = taker.as_raw_fd();
                let came = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
                let field = came.cmsgs().unwrap().find_map(|message| match message {
                    ControlMessageOwned::Ipv4Tos(field) => Some(field),
                    _ => None,
                });
                assert_eq!(field, Some(mark << 2 | 0b10));
                assert_eq!(came.bytes, bytes);
                let from = *came.address.unwrap().as_sockaddr_in().unwrap();
                assert_eq!(from.ip(), Ipv4Addr::new(127, 0, 0, 2));
            }
        }
    }

    #[test]
    fn a_flood_is_noticed_at_once_and_its_end_when_a_span_was_calm() {
        let (mut arrivals, start) = (Arrivals::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        arrivals.count(after(0), 10_000);
        assert!(!arrivals.are_heaps);
        arrivals.count(after(1), SPAN_BYTES_MAX);
        assert!(arrivals.are_heaps);
        arrivals.count(after(6), 1);
        assert!(arrivals.are_heaps);
        arrivals.count(after(12), 1_000);
        assert!(!arrivals.are_heaps);
    }
}
