//! The two faces of a coordinator that does not lead: every connection is handed on to the one that leads, byte by byte.
//!
//! TLS is not ended here: a node and the leader see each other's certificates, as if nobody stood between them. What a
//! follower answers by itself, on the operators' face, is `GET /health`, `GET /metrics`, and that nobody leads. Invariants: a connection is
//! handed on to one epoch's leader, and ends when another one leads; while nobody leads it waits for [`HELD_FOR`]; nothing is
//! handed on to the address that others reach this coordinator at, as its own former lead or a balancer's address would have it.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use firmesh_protocol::api::Problem;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::Sight;
use crate::{store::Member, telemetry::LED_EPOCH};

/// How long a connection waits for somebody to lead: longer than that usually takes.
const HELD_FOR: Duration = Duration::from_secs(10);

/// A leader that does not take a connection by then is asked again, or another one is.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// Between two tries to connect to a leader that does not listen.
const CONNECT_EVERY: Duration = Duration::from_millis(100);

/// How long a client may take for the head of a request, and for hearing that nobody leads.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Of a request's head, what is read here.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Connections at once. When there are so many, others wait to be accepted.
const CONNECTIONS_MAX: usize = 4_096;

/// A database that was last heard of before so long may be gone.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// An end that was not heard of for so long is asked whether it is there.
const SILENT_FOR: Duration = Duration::from_secs(60);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    Operators,
    Nodes,
}

/// This coordinator.
#[derive(Debug)]
pub(crate) struct Own {
    /// As the others know it.
    pub(crate) member: Member,
    /// Where it listens.
    pub(crate) operators: SocketAddr,
    pub(crate) nodes: SocketAddr,
}

/// What hands connections on.
#[derive(Debug, Clone)]
pub(crate) struct Faces {
    sight: watch::Receiver<Sight>,
    own: Arc<Own>,
    held_for: Duration,
    connections: TaskTracker,
    places: Arc<Semaphore>,
    cancel: CancellationToken,
}

impl Faces {
    pub(crate) fn new(sight: watch::Receiver<Sight>, own: Own, cancel: CancellationToken) -> Self {
        Self {
            sight,
            own: Arc::new(own),
            held_for: HELD_FOR,
            connections: TaskTracker::new(),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            cancel,
        }
    }

    /// Accepts connections until it is dropped. Those that were accepted go on by themselves.
    pub(crate) async fn accept(&self, face: Face, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let place = self.places.clone().acquire_owned().await.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let faces = self.clone();
                    self.connections.spawn(async move {
                        let _place = place;
                        let cancel = faces.cancel.clone();
                        tokio::select! {
                            () = cancel.cancelled() => {}
                            ended = faces.serve(face, stream) => if let Err(error) = ended {
                                debug!(%error, ?face, "a connection that was handed on broke");
                            }
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, ?face, "a connection was not accepted");
                    tokio::time::sleep(CONNECT_EVERY).await;
                }
            }
        }
    }

    /// Waits for the last connection, after they were cancelled.
    pub(crate) async fn end(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    async fn serve(mut self, face: Face, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut head = Vec::new();
        if face == Face::Operators {
            let read = tokio::time::timeout(HEAD_WITHIN, read_head(&mut client, &mut head)).await;
            read.map_err(io::Error::other)??;
            match own_path(&head) {
                Some("/health") => return self.tell_health(client).await,
                Some(_) => return tell_metrics(client).await,
                None => {}
            }
        }
        let Some((mut leader, epoch)) = self.connect(face).await else {
            return match face {
                Face::Operators => tell_nobody_leads(client).await,
                // A node that is hung up on tries again.
                Face::Nodes => Ok(()),
            };
        };
        leader.set_nodelay(true)?;
        [&client, &leader].into_iter().try_for_each(keep_alive)?;
        leader.write_all(&head).await?;
        tokio::select! {
            copied = copy_bidirectional(&mut client, &mut leader) => copied.map(drop),
            _ = self.sight.wait_for(|sight| sight.epoch() != epoch) => Ok(()),
        }
    }

    /// A connection to whoever leads, and the epoch; `None` if nobody does for too long.
    async fn connect(&mut self, face: Face) -> Option<(TcpStream, u64)> {
        let until = tokio::time::Instant::now() + self.held_for;
        let own = self.own.clone();
        loop {
            let leads = |sight: &Sight| sight.address(face, &own).is_some();
            let sight = tokio::time::timeout_at(until, self.sight.wait_for(leads)).await;
            let (address, epoch) = {
                let sight = sight.ok()?.ok()?;
                (sight.address(face, &own)?, sight.epoch())
            };
            match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Some((stream, epoch)),
                _ if tokio::time::Instant::now() >= until => return None,
                // It may be gone with its lease still good: then another one leads soon.
                _ => {
                    let other = self.sight.wait_for(|sight| sight.epoch() != epoch);
                    // Either is a reason to try again.
                    let _ = tokio::time::timeout(CONNECT_EVERY, other).await;
                }
            }
        }
    }

    async fn tell_health(&self, client: TcpStream) -> io::Result<()> {
        let is_heard = {
            let sight = self.sight.borrow();
            sight.leader.is_some() && Instant::now().saturating_duration_since(sight.at) < HEARD_WITHIN
        };
        let (status, body) = match is_heard {
            true => ("200 OK", "ok\n"),
            false => ("503 Service Unavailable", "the database does not answer\n"),
        };
        answer(client, status, "text/plain; charset=utf-8", body).await
    }
}

/// An end that has vanished without a word gives its place back.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let often = TcpKeepalive::new().with_time(SILENT_FOR).with_interval(SILENT_FOR / 4);
    SockRef::from(stream).set_tcp_keepalive(&often)
}

impl Sight {
    /// Where a connection goes. Nowhere, while nobody else leads: where the lease is this coordinator's from before its restart, and
    /// where the leader says that it is reached at this one's address, nothing may be handed on, or it would come back without
    /// end. What was accepted before this coordinator took the lead goes to its own listener.
    fn address(&self, face: Face, own: &Own) -> Option<String> {
        let leader = self.leader.as_ref().filter(|leader| leader.leads)?;
        let (there, here, listens) = match face {
            Face::Operators => (&leader.member.operators, &own.member.operators, own.operators),
            Face::Nodes => (&leader.member.nodes, &own.member.nodes, own.nodes),
        };
        match self.is_here {
            true => Some(listens.to_string()),
            false => (there != here).then(|| there.clone()),
        }
    }
}

/// What a request asks this coordinator itself, whether or not it leads.
fn own_path(head: &[u8]) -> Option<&'static str> {
    let asked = |path: &&str| head.starts_with(format!("GET {path} ").as_bytes());
    ["/health", "/metrics"].into_iter().find(asked)
}

/// Reads at least the first line, and all of the head of a request that is answered here.
async fn read_head(client: &mut TcpStream, head: &mut Vec<u8>) -> io::Result<()> {
    let mut bytes = [0; 2_048];
    loop {
        let count = client.read(&mut bytes).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&bytes[..count]);
        let has = |end: &[u8]| head.windows(end.len()).any(|found| found == end);
        if head.len() >= HEAD_BYTES_MAX || has(b"\r\n\r\n") || (has(b"\r\n") && own_path(head).is_none()) {
            return Ok(());
        }
    }
}

/// A collector asks every coordinator, and must not count the leader's numbers for each.
async fn tell_metrics(client: TcpStream) -> io::Result<()> {
    let name = "firmesh_coordinator_epoch";
    let body = format!("# HELP {name} {LED_EPOCH}.\n# TYPE {name} gauge\n{name} 0\n# EOF\n");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    answer(client, "200 OK", kind, &body).await
}

async fn tell_nobody_leads(client: TcpStream) -> io::Result<()> {
    let problem = Problem {
        kind: "urn:firmesh:problem:nobody_leads".to_owned(),
        title: "Service Unavailable".to_owned(),
        status: 503,
        detail: "no coordinator leads at the moment: ask again in a few seconds; if it lasts, look at the database"
            .to_owned(),
        refused: false,
        request_id: None,
    };
    let body = serde_json::to_string(&problem).map_err(io::Error::other)?;
    answer(client, "503 Service Unavailable", "application/problem+json", &body).await
}

async fn answer(mut client: TcpStream, status: &str, kind: &str, body: &str) -> io::Result<()> {
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nfirmesh-role: follower\r\nretry-after: 1\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await?;
    // What is still on its way would have the answer lost if the connection were closed at once.
    let mut rest = [0; 4_096];
    let drained = async { while matches!(client.read(&mut rest).await, Ok(count) if count > 0) {} };
    let _ = tokio::time::timeout(CONNECT_WITHIN, drained).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Leader;

    fn own(listener: &std::net::TcpListener) -> Own {
        let at = listener.local_addr().unwrap();
        let address = at.to_string();
        Own {
            member: Member {
                name: "own".to_owned(),
                operators: address.clone(),
                nodes: address,
            },
            operators: at,
            nodes: at,
        }
    }

    /// It was killed and started again while its lease was good: what it handed on to itself came back without end.
    #[tokio::test]
    async fn nothing_is_handed_on_to_oneself_unless_one_leads() {
        let (listener, address) = listen().await;
        let (sight, known) = watch::channel(leader(6, &address));
        let mut faces = Faces::new(known, own(&listener), CancellationToken::new());
        faces.held_for = Duration::from_millis(200);
        let (accepting, places) = (faces.clone(), faces.places.clone());
        let accepting = tokio::spawn(async move { accepting.accept(Face::Operators, listener).await });
        let asked = "GET /api/v1/about HTTP/1.1\r\nhost: x\r\n\r\n";
        let told = said(&address, asked).await;
        assert!(
            told.starts_with("HTTP/1.1 503 ") && told.contains("nobody_leads"),
            "{told}"
        );
        assert!(places.available_permits() >= CONNECTIONS_MAX - 2);
        accepting.abort();
        let _ = accepting.await;

        // What it holds when it takes the lead goes to what it serves then.
        let serving = TcpListener::bind(&address).await.unwrap();
        sight.send_replace(Sight {
            is_here: true,
            ..leader(7, &address)
        });
        let connected = faces.connect(Face::Operators).await.unwrap();
        assert_eq!(connected.1, 7);
        serving.accept().await.unwrap();
    }

    async fn listen() -> (std::net::TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    fn leader(epoch: u64, address: &str) -> Sight {
        Sight {
            leader: Some(Leader {
                epoch,
                member: Member {
                    name: "a".to_owned(),
                    operators: address.to_owned(),
                    nodes: address.to_owned(),
                },
                leads: true,
                is_alive: true,
            }),
            at: Instant::now(),
            is_here: false,
        }
    }

    async fn said(address: &str, text: &str) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A connection is not refused because somebody has just died, and does not stay with one that was replaced.
    #[tokio::test]
    async fn a_connection_waits_for_a_leader_is_handed_on_whole_and_ends_with_its_epoch() {
        let (sight, known) = watch::channel(Sight::none());
        let (listener, address) = listen().await;
        let faces = Faces::new(known, own(&listener), CancellationToken::new());
        let accepting = tokio::spawn(async move { faces.accept(Face::Operators, listener).await });
        let health = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
        assert!(said(&address, health).await.starts_with("HTTP/1.1 503 "));

        let mut client = TcpStream::connect(&address).await.unwrap();
        client.write_all(b"POST /x HTTP/1.1\r\n\r\nbody").await.unwrap();
        let (leads, own) = listen().await;
        let leads = TcpListener::from_std(leads).unwrap();
        // Its lease is good, and it is gone.
        let (_, gone) = listen().await;
        sight.send_replace(leader(6, &gone));
        sight.send_replace(leader(7, &own));
        let (mut taken, _) = leads.accept().await.unwrap();
        let mut asked = [0; 24];
        taken.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"POST /x HTTP/1.1\r\n\r\nbody");
        taken.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");

        let told = said(&address, health).await;
        assert!(
            told.starts_with("HTTP/1.1 200 ") && told.contains("firmesh-role: follower"),
            "{told}"
        );
        let told = said(&address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(told.contains("\nfirmesh_coordinator_epoch 0\n"), "{told}");

        sight.send_replace(leader(8, &own));
        assert_eq!(client.read(&mut answer).await.unwrap(), 0);
        accepting.abort();
    }
}
