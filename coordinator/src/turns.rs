//! Turns for real: whoever asks for a slice waits in line until one is to be had.
//!
//! Invariants: first come, first served; who goes away leaves the line, or gives its turn back; the line is bounded, in all
//! and for each node, and nobody stands in it longer than [`WAIT_MAX`]. What a slice is made of is not read before its turn.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use firmesh_coordinator_core::{TurnId, Turns as Taken};
use firmesh_protocol::ids::NodeId;
use tokio::{sync::Notify, time};

use crate::runtime::Clock;

/// Requests in line at most. Each takes a few KiB here and a connection of TLS.
const LINE_MAX: usize = 4096;

/// The same for one node, which asks for 20 pieces at once at most, so that no node can fill the line.
const LINE_OF_NODE_MAX: usize = 32;

/// How long a request stands in line: a node takes a coordinator for mute that says nothing for 20 seconds.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Why somebody gets no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoTurn {
    /// Too many wait.
    #[error("{LINE_MAX} requests wait for the origin: ask again in some seconds")]
    LineFull,
    /// Too many of one node wait.
    #[error("{LINE_OF_NODE_MAX} requests of this node wait for the origin: wait for their answers")]
    TooManyOfNode,
    /// It took too long.
    #[error("the origin had no time for this request for {} s: ask again", WAIT_MAX.as_secs())]
    WaitedTooLong,
}

/// The turns of the origin. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Turns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    state: Mutex<State>,
    /// Held by the first in line. Tokio's mutex is fair: it is the line.
    first: tokio::sync::Mutex<()>,
    /// A turn was given back.
    ended: Notify,
}

#[derive(Debug)]
struct State {
    taken: Taken,
    waiting: usize,
    waiting_of: BTreeMap<NodeId, usize>,
    refused: u64,
}

/// For whoever looks after the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnCounts {
    /// Slices in service, within their time.
    pub(crate) taken: usize,
    /// Requests in line.
    pub(crate) waiting: usize,
    /// Turns that were taken away because their time was over and others waited.
    pub(crate) overdue: u64,
    /// Requests that got none.
    pub(crate) refused: u64,
}

impl Turns {
    /// So many at once.
    pub(crate) fn new(most: NonZeroUsize, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            clock,
            state: Mutex::new(State {
                taken: Taken::new(most),
                waiting: 0,
                waiting_of: BTreeMap::new(),
                refused: 0,
            }),
            first: tokio::sync::Mutex::new(()),
            ended: Notify::new(),
        }))
    }

    /// A turn at once, if there is one and nobody is in line for it.
    pub(crate) fn now(&self) -> Option<Turn> {
        let mut state = self.0.state();
        let free = (state.waiting == 0).then(|| state.taken.begin(self.0.clock.now()).ok());
        free.flatten().map(|id| self.turn(id))
    }

    /// A place in the line.
    pub(crate) fn line_up(&self, node: &NodeId) -> Result<Place, NoTurn> {
        let state = &mut *self.0.state();
        let of_node = state.waiting_of.get(node).copied().unwrap_or(0);
        let refused = match (state.waiting < LINE_MAX, of_node < LINE_OF_NODE_MAX) {
            (false, _) => Some(NoTurn::LineFull),
            (true, false) => Some(NoTurn::TooManyOfNode),
            (true, true) => None,
        };
        if let Some(refused) = refused {
            state.refused += 1;
            return Err(refused);
        }
        state.waiting += 1;
        state.waiting_of.insert(node.clone(), of_node + 1);
        Ok(Place {
            turns: self.clone(),
            node: node.clone(),
        })
    }

    pub(crate) fn counts(&self) -> TurnCounts {
        let state = self.0.state();
        TurnCounts {
            taken: state.taken.taken(),
            waiting: state.waiting,
            overdue: state.taken.overdue(),
            refused: state.refused,
        }
    }

    fn turn(&self, id: TurnId) -> Turn {
        Turn {
            turns: self.clone(),
            id,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line; who drops it goes away.
#[derive(Debug)]
pub(crate) struct Place {
    turns: Turns,
    node: NodeId,
}

impl Place {
    /// Waits until it is the turn of this place. The places before are those that were waited with before.
    pub(crate) async fn turn(self) -> Result<Turn, NoTurn> {
        let turn = time::timeout(WAIT_MAX, self.stand()).await;
        turn.map_err(|_| {
            self.turns.0.state().refused += 1;
            NoTurn::WaitedTooLong
        })
    }

    async fn stand(&self) -> Turn {
        let shared = &*self.turns.0;
        let _first = shared.first.lock().await;
        loop {
            let begun = shared.state().taken.begin(shared.clock.now());
            match begun {
                Ok(id) => return self.turns.turn(id),
                // Either way it is asked again. A turn that ended before this line is not missed: `Notify` remembers it.
                Err(due) => drop(time::timeout_at(shared.clock.instant(due), shared.ended.notified()).await),
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let state = &mut *self.turns.0.state();
        state.waiting -= 1;
        if let Some(of_node) = state.waiting_of.get_mut(&self.node) {
            *of_node -= 1;
            if *of_node == 0 {
                state.waiting_of.remove(&self.node);
            }
        }
    }
}

/// A turn; who drops it gives it back.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    id: TurnId,
}

impl Turn {
    /// Bytes that end the turn when they are dropped. Whoever writes an answer does so when the last of them was handed to
    /// the socket, or when the connection is gone.
    pub(crate) fn of(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Served { bytes, _turn: self })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.0.state().taken.end(self.id);
        self.turns.0.ended.notify_one();
    }
}

struct Served {
    bytes: Vec<u8>,
    _turn: Turn,
}

impl AsRef<[u8]> for Served {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use axum::{Router, body::Body, extract::State as Extract, routing::get};
    use futures_util::future::{join_all, poll_immediate};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Long enough for any machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn turns(most: usize) -> Turns {
        Turns::new(NonZeroUsize::new(most).unwrap(), Clock::start())
    }

    fn node(number: usize) -> NodeId {
        format!("n{number}").parse().unwrap()
    }

    #[tokio::test]
    async fn who_came_first_is_served_first_and_nobody_jumps_the_line() {
        let turns = turns(1);
        let mut turn = turns.now().unwrap();
        let served = Mutex::new(Vec::new());
        let mut waiting: Vec<_> = (0..5)
            .map(|number| {
                let (place, served) = (turns.line_up(&node(number)).unwrap(), &served);
                Box::pin(async move {
                    let turn = place.turn().await.unwrap();
                    served.lock().unwrap().push(number);
                    turn
                })
            })
            .collect();
        for place in &mut waiting {
            assert!(poll_immediate(place).await.is_none());
        }
        // The third goes away.
        drop(waiting.remove(2));
        assert_eq!(turns.counts().waiting, 4);
        for place in waiting {
            drop(turn);
            assert!(turns.now().is_none(), "others wait");
            turn = time::timeout(PATIENCE, place).await.unwrap();
        }
        assert_eq!(*served.lock().unwrap(), [0, 1, 3, 4]);
        drop(turn);
        assert!(turns.now().is_some());
        assert_eq!(turns.counts().waiting, 0);
    }

    #[tokio::test]
    async fn who_is_first_in_line_and_goes_away_holds_nobody_up() {
        let turns = turns(1);
        let turn = turns.now().unwrap();
        let [first, second] = [0, 1].map(|number| turns.line_up(&node(number)).unwrap().turn());
        let mut second = pin!(second);
        {
            let mut first = pin!(first);
            assert!(poll_immediate(&mut first).await.is_none());
            assert!(poll_immediate(&mut second).await.is_none());
            drop(turn);
        }
        time::timeout(PATIENCE, second).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_node_does_not_fill_the_line() {
        let turns = turns(1);
        let _turn = turns.now();
        let places: Vec<_> = (0..LINE_OF_NODE_MAX)
            .map(|_| turns.line_up(&node(1)).unwrap())
            .collect();
        assert_eq!(turns.line_up(&node(1)).unwrap_err(), NoTurn::TooManyOfNode);
        assert!(turns.line_up(&node(2)).is_ok());
        drop(places);
        assert!(turns.line_up(&node(1)).is_ok());
        assert_eq!((turns.counts().waiting, turns.counts().refused), (0, 1));
    }

    /// More than sockets hold.
    const LARGE: usize = 64 << 20;

    /// A server whose answers are large and in turns.
    async fn server(turns: Turns) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = async |Extract(turns): Extract<Turns>| {
            let turn = match turns.now() {
                Some(turn) => turn,
                None => turns.line_up(&node(1)).unwrap().turn().await.unwrap(),
            };
            Body::from(turn.of(vec![7; LARGE]))
        };
        let app = Router::new().route("/", get(answer)).with_state(turns);
        tokio::spawn(async { axum::serve(listener, app).await });
        address
    }

    /// Asks, and reads the beginning of the answer.
    async fn ask(server: std::net::SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: origin\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn who_does_not_read_loses_its_turn_and_is_served_all_the_same() {
        let turns = turns(2);
        let server = server(turns.clone()).await;
        let mut asleep = join_all([ask(server), ask(server)]).await;
        assert_eq!((turns.counts().taken, turns.counts().overdue), (2, 0));
        // The beginning of this answer comes after a turn was taken away from one of the two.
        let mut reader = time::timeout(PATIENCE, ask(server)).await.unwrap();
        assert_eq!((turns.counts().taken, turns.counts().overdue), (2, 1));
        for stream in asleep.iter_mut().chain([&mut reader]) {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert!(answer.len() >= LARGE);
        }
        let all_ended = async {
            while turns.counts().taken > 0 {
                tokio::task::yield_now().await;
            }
        };
        time::timeout(PATIENCE, all_ended).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_away_gives_its_turn_back() {
        let turns = turns(1);
        let server = server(turns.clone()).await;
        let gone = ask(server).await;
        assert_eq!(turns.counts().taken, 1);
        drop(gone);
        let ended = async {
            while turns.counts().taken > 0 {
                tokio::task::yield_now().await;
            }
        };
        time::timeout(PATIENCE, ended).await.unwrap();
        assert_eq!(turns.counts().overdue, 0);
    }
}
