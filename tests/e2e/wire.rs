//! Every way in is TLS 1.3 with both sides known: whoever comes with plaintext, another CA's certificate, an expired or a
//! revoked one, or an older TLS stays outside, on the data plane, on the control plane of the mesh and at the coordinator
//! alike. Beside each, the same way in opens to a member.

use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    first_packet::{self, Answer, PROTOCOL_VERSION},
    setup::{OLD, place},
    stranger::{self, Card, OtherCa, Shut},
    wait::{Seen, until},
};
use libp2p::{Multiaddr, multiaddr::Protocol};
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};

const NODE: &str = "r1-n1";
const MEMBER: &str = "x-member";

/// Long enough for a stranger to lose its certificate to age, with a machine that is busy.
const WITHIN: Duration = Duration::from_secs(120);

/// One coordinator, one node, and where they listen.
struct Listeners {
    fleet_ca: PathBuf,
    coordinator: SocketAddr,
    data: SocketAddr,
    mesh: Multiaddr,
    mesh_udp: SocketAddr,
}

#[tokio::test]
async fn plaintext_older_tls_and_strangers_stay_outside_on_every_plane() -> Result<()> {
    Cluster::with(small("90d"), async |fleet| {
        let listeners = Listeners::of(fleet)?;
        let member = listeners.enrol(fleet, MEMBER).await?;
        listeners.member_is_let_in(fleet, &member).await?;
        let before = state(fleet).await?;

        listeners.plaintext_gets_nothing().await?;
        listeners.older_tls_gets_nothing(&member).await?;

        let stranger = OtherCa::new()?.card(MEMBER, &place(MEMBER, 1))?;
        shut(
            "another CA, coordinator",
            listeners.https(&stranger).await?,
            "UnknownCA",
        )?;
        let outcome = listeners.data_plane(Some(&stranger)).await?;
        shut("another CA, data plane", outcome, "error 48")?;
        shut(
            "another CA, mesh",
            listeners.mesh(&stranger).await?,
            "ApplicationClosed",
        )?;
        // A card of the fleet opens nothing at the mesh's own TLS either, which wants a certificate of libp2p's kind.
        for card in [None, Some(&stranger), Some(&member)] {
            let tls = stranger::config(None, card, &[&TLS13])?;
            let said = stranger::foreign_handshake(listeners.mesh_udp, tls).await?;
            shut(
                "not libp2p's certificate, mesh",
                Err::<(), _>(said),
                "aborted by peer: the cryptographic handshake failed",
            )?;
        }

        let outcome = listeners.data_plane(None).await?;
        shut("no certificate, data plane", outcome, "error 116")?;
        let tls = stranger::config(Some(&listeners.fleet_ca), None, &[&TLS13])?;
        let request = member.heartbeat(MEMBER, &place(MEMBER, 1))?;
        let answer = stranger::https(listeners.coordinator, tls, request).await?;
        unauthorized("no certificate, coordinator", &answer, "problem:no_certificate")?;

        listeners.member_is_let_in(fleet, &member).await.context("afterwards")?;
        ensure!(before == state(fleet).await?, "{before} became {}", state(fleet).await?);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_certificate_that_expired_or_was_revoked_opens_no_plane_any_more() -> Result<()> {
    Cluster::with(small("40s"), async |fleet| {
        let listeners = Listeners::of(fleet)?;
        let lapsing = listeners.enrol(fleet, MEMBER).await?;
        listeners.member_is_let_in(fleet, &lapsing).await?;
        let node = fleet.node(NODE)?;
        until("the certificate of a member to lapse", WITHIN, async || {
            let status = node.status().await?;
            Ok(Seen::when(status["members"] == 1, || status.to_string()))
        })
        .await?;
        shut(
            "expired, coordinator",
            listeners.https(&lapsing).await?,
            "CertificateExpired",
        )?;
        let outcome = listeners.data_plane(Some(&lapsing)).await?;
        shut("expired, data plane", outcome, "error 45")?;
        shut("expired, mesh", listeners.mesh(&lapsing).await?, "ApplicationClosed")?;

        let stolen = listeners.enrol(fleet, "x-stolen").await?;
        listeners.let_in(fleet, "x-stolen", &stolen).await?;
        fleet
            .operator
            .ok(&["node", "revoke", "x-stolen", "--reason", "stolen"])?;
        let node = fleet.node(NODE)?;
        until("the revocation to arrive", WITHIN, async || {
            let status = node.status().await?;
            let is_here = status["revocations_version"] == 1 && status["members"] == 1;
            Ok(Seen::when(is_here, || status.to_string()))
        })
        .await?;
        let answer = listeners.https_as("x-stolen", &stolen).await?;
        unauthorized("revoked, coordinator", &answer, "problem:revoked")?;
        let outcome = listeners.data_plane(Some(&stolen)).await?;
        shut("revoked, data plane", outcome, "not in the roster")?;
        shut("revoked, mesh", listeners.mesh(&stolen).await?, "ApplicationClosed")?;

        // Everything goes on as it was, and whoever is a member today gets in.
        let devices = fleet.versions().await?;
        ensure!(
            devices.values().all(|version| version.as_deref() == Some(OLD)),
            "{devices:?}"
        );
        let successor = listeners.enrol(fleet, "x-successor").await?;
        listeners.let_in(fleet, "x-successor", &successor).await
    })
    .await
}

fn small(certificates: &'static str) -> Shape {
    Shape {
        racks: 1,
        nodes: 1,
        certificates,
        ..Shape::default()
    }
}

/// What no stranger may change: what the node and the coordinator know, and what the devices run.
async fn state(fleet: &mut Cluster) -> Result<Value> {
    let status = fleet.node(NODE)?.status().await?;
    let kept = [
        "timestamp_version",
        "members",
        "holdings",
        "banned",
        "campaigns",
        "devices",
        "attempts",
        "refusals",
        "brakes",
        "revocations_version",
        "certificate_until",
        "last_error",
    ];
    let node: Vec<_> = kept.map(|field| status[field].clone()).into();
    let listed = fleet.operator.ok(&["node", "list"])?;
    let listed = listed["items"].as_array().cloned().unwrap_or_default();
    let listed: Vec<_> = listed
        .iter()
        .map(|node| json!([node["node"], node["path"], node["enrolled"], node["revoked"]]))
        .collect();
    ensure!(listed.len() == 2, "two nodes are in the inventory: {listed:?}");
    Ok(json!([node, listed, fleet.versions().await?]))
}

/// The way in stayed shut, with this word.
fn shut(what: &str, outcome: Result<impl std::fmt::Debug, Shut>, word: &str) -> Result<()> {
    println!("{what}: {outcome:?}");
    let is_named = outcome.as_ref().is_err_and(|shut| shut.contains(word));
    ensure!(is_named, "{what} should be shut with {word:?}: {outcome:?}");
    Ok(())
}

/// TLS stood, and the coordinator refused what came over it.
fn unauthorized(what: &str, answer: &Result<String, Shut>, code: &str) -> Result<()> {
    println!("{what}: {answer:?}");
    let is_named = answer
        .as_ref()
        .is_ok_and(|answer| answer.starts_with("HTTP/1.1 401") && answer.contains(code));
    ensure!(is_named, "{what} should be refused with {code}: {answer:?}");
    Ok(())
}

impl Listeners {
    fn of(fleet: &mut Cluster) -> Result<Self> {
        let coordinator = fleet.about.node_url.trim_start_matches("https://").parse()?;
        let fleet_ca = fleet.folder().join("fleet-ca.pem");
        let node = fleet.node(NODE)?;
        let mesh: Multiaddr = node.address("mesh")?.parse()?;
        let port = mesh.iter().find_map(|part| match part {
            Protocol::Udp(port) => Some(port),
            _ => None,
        });
        Ok(Self {
            fleet_ca,
            coordinator,
            data: node.address("data")?.parse()?,
            mesh_udp: SocketAddr::from(([127, 0, 0, 1], port.context("the mesh listens on UDP")?)),
            mesh,
        })
    }

    async fn enrol(&self, fleet: &Cluster, name: &str) -> Result<Card> {
        let token = fleet.token(name, 1)?;
        Card::enrol(&fleet.about.node_url, &self.fleet_ca, name, token).await
    }

    async fn https(&self, card: &Card) -> Result<Result<String, Shut>> {
        self.https_as(MEMBER, card).await
    }

    async fn https_as(&self, name: &str, card: &Card) -> Result<Result<String, Shut>> {
        let tls = stranger::config(Some(&self.fleet_ca), Some(card), &[&TLS13])?;
        stranger::https(self.coordinator, tls, card.heartbeat(name, &place(name, 1))?).await
    }

    async fn data_plane(&self, card: Option<&Card>) -> Result<Result<(), Shut>> {
        let tls = stranger::config(Some(&self.fleet_ca), card, &[&TLS13])?;
        stranger::data_plane(self.data, NODE, tls).await
    }

    async fn mesh(&self, card: &Card) -> Result<Result<(), Shut>> {
        stranger::mesh(&self.mesh, card).await
    }

    async fn member_is_let_in(&self, fleet: &mut Cluster, card: &Card) -> Result<()> {
        self.let_in(fleet, MEMBER, card).await
    }

    /// The positive control: heartbeat, control stream and mesh, all with the one card.
    async fn let_in(&self, fleet: &mut Cluster, name: &str, card: &Card) -> Result<()> {
        let answer = self.https_as(name, card).await?;
        ensure!(
            answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")),
            "{answer:?}"
        );
        let node = fleet.node(NODE)?;
        until("the node to know the member", WITHIN, async || {
            let status = node.status().await?;
            Ok(Seen::when(status["members"] == 2, || status.to_string()))
        })
        .await?;
        let data = self.data_plane(Some(card)).await?;
        ensure!(data.is_ok(), "the data plane: {data:?}");
        let mesh = self.mesh(card).await?;
        ensure!(mesh.is_ok(), "the mesh: {mesh:?}");
        Ok(())
    }

    async fn plaintext_gets_nothing(&self) -> Result<()> {
        let request = b"GET /node/v1/metadata/timestamp.json HTTP/1.1\r\nhost: coordinator\r\n\r\n".to_vec();
        let answer = stranger::plain_tcp(self.coordinator, request.clone()).await?;
        // Nothing, or a TLS alert: record type 21.
        ensure!(answer.is_empty() || answer.first() == Some(&21), "{answer:?}");
        for plane in [self.data, self.mesh_udp] {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let hello = stranger::config(None, None, &[&TLS12])?;
            let record = [&[22, 3, 1][..], &first_packet::hello_of_tls_1_2(hello, NODE)?].concat();
            for datagram in [&request, &record] {
                socket.send_to(datagram, plane)?;
            }
            // By the time the same socket's handshake is answered, these two would have been.
            let mut tls = stranger::config(None, None, &[&TLS13])?;
            tls.alpn_protocols = vec![b"libp2p".to_vec(), b"firmesh/control/1".to_vec()];
            let hello = first_packet::hello_of_tls_1_3(tls, NODE)?;
            let answer = tokio::task::spawn_blocking(move || first_packet::exchange(&socket, plane, &hello)).await??;
            ensure!(answer == Answer::Handshake, "{plane}: {answer:?}");
        }
        Ok(())
    }

    async fn older_tls_gets_nothing(&self, member: &Card) -> Result<()> {
        let tls = stranger::config(Some(&self.fleet_ca), Some(member), &[&TLS12])?;
        let request = member.heartbeat(MEMBER, &place(MEMBER, 1))?;
        let outcome = stranger::https(self.coordinator, tls, request).await?;
        shut("TLS 1.2, coordinator", outcome, "ProtocolVersion")?;
        for plane in [self.data, self.mesh_udp] {
            let tls = stranger::config(None, Some(member), &[&TLS12])?;
            let hello = first_packet::hello_of_tls_1_2(tls, NODE)?;
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let answer = tokio::task::spawn_blocking(move || first_packet::exchange(&socket, plane, &hello)).await??;
            ensure!(answer == Answer::Closed(PROTOCOL_VERSION), "{plane}: {answer:?}");
        }
        Ok(())
    }
}
