//! Real endpoints on loopback, real certificates, real stores.

use std::{sync::atomic::Ordering, time::Instant};

use firmesh_protocol::{
    chunk::{GROUP_BYTES, HashTree, PieceLayout, SLICE_BYTES_MAX, decode_groups},
    groups::Groups,
    pieces::PieceSet,
};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt as _, GetRequest, Request};
use proptest::{collection::vec, prelude::*, sample::Index};
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ED25519, SanType};
use rustls::pki_types::CertificateDer;

use super::{slices::Wanted, *};
use crate::{identity::NodeKey, store::PieceStore};

/// A certificate authority of a fleet.
struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, node: &str, path: &str, key: &NodeKey) -> CertificateDer<'static> {
        let request = key.certificate_request(&NodeId::new(node).unwrap(), &[]).unwrap();
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(&request).unwrap();
        request.params.distinguished_name.push(DnType::CommonName, node);
        let uri = Ia5String::try_from(format!("firmesh:path/{path}")).unwrap();
        request.params.subject_alt_names = vec![
            SanType::DnsName(Ia5String::try_from(node.to_owned()).unwrap()),
            SanType::URI(uri),
        ];
        request.signed_by(&self.issuer).unwrap().der().clone()
    }
}

struct Peer {
    id: NodeId,
    path: TopologyPath,
    transport: Transport,
    key: PublicKey,
    store: Arc<dyn ChunkStore>,
    events: mpsc::Receiver<TransportEvent>,
    _folder: tempfile::TempDir,
}

impl Peer {
    async fn start(trusted: &Ca, issuer: &Ca, name: &str) -> Self {
        Self::bounded(trusted, issuer, name, DatagramBound::default()).await
    }

    async fn bounded(trusted: &Ca, issuer: &Ca, name: &str, datagram_bytes_max: DatagramBound) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("eu/s1/r1/{name}");
        let key = NodeKey::load_or_create(&folder.path().join("node.key")).unwrap();
        let public = key.public();
        let certificate = issuer.issue(name, &path, &key);
        let identity = Identity::new(key, certificate, trusted.certificate.clone()).unwrap();
        let (lost, _) = mpsc::channel(1);
        let store = PieceStore::open(&folder.path().join("store"), None, lost)
            .await
            .unwrap();
        let store: Arc<dyn ChunkStore> = Arc::new(store);
        let (tx, events) = mpsc::channel(64);
        let (id, path) = (NodeId::new(name).unwrap(), path.parse().unwrap());
        let plane = Plane {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            budgets: Vec::new(),
            datagram_bytes_max,
            dscp: DscpMarks::default(),
        };
        let cancel = CancellationToken::new();
        let transport = Transport::open(&identity, id.clone(), &path, plane, Arc::clone(&store), tx, cancel).unwrap();
        Self {
            id,
            path,
            transport,
            key: public,
            store,
            events,
            _folder: folder,
        }
    }

    async fn event(&mut self) -> Option<TransportEvent> {
        tokio::time::timeout(Duration::from_secs(5), self.events.recv())
            .await
            .ok()
            .flatten()
    }
}

fn roster(peers: &[&Peer]) -> Roster {
    let entry = |peer: &&Peer| {
        let (path, addr) = (peer.path.clone(), peer.transport.local_addr().unwrap());
        (
            peer.id.clone(),
            Member {
                path,
                addr,
                key: peer.key,
                is_neighbour: true,
            },
        )
    };
    peers.iter().map(entry).collect()
}

fn introduce(peers: &[&Peer]) {
    for peer in peers {
        peer.transport.set_roster(roster(peers));
    }
    for peer in peers {
        peer.transport.dial_missing();
    }
}

async fn holds_one_piece(store: &Arc<dyn ChunkStore>) -> (HashTree, PieceLayout) {
    let bytes: Vec<u8> = (0..1_500_000_u32).map(|at| (at * 13 + at / 777) as u8).collect();
    let tree = HashTree::build(&bytes[..], bytes.len() as u64).unwrap();
    let layout = PieceLayout::new(tree.length);
    let encoded = firmesh_protocol::chunk::encode(&bytes[..], &tree, &layout.bytes(1)).unwrap();
    store.put(tree.root, layout, 1, encoded.into()).await.unwrap();
    (tree, layout)
}

#[tokio::test]
async fn members_meet_talk_and_serve_what_they_hold_and_nothing_else() {
    let ca = Ca::new();
    let (mut a, mut b) = (Peer::start(&ca, &ca, "a").await, Peer::start(&ca, &ca, "b").await);
    introduce(&[&a, &b]);
    assert!(matches!(a.event().await, Some(TransportEvent::Up(peer)) if peer == b.id));
    assert!(matches!(b.event().await, Some(TransportEvent::Up(peer)) if peer == a.id));

    let (tree, layout) = holds_one_piece(&a.store).await;
    let said = PeerMessage::Holds {
        artifact: tree.root,
        pieces: PieceSet::empty(layout.pieces()),
    };
    a.transport.send(&b.id, said.clone());
    assert!(matches!(b.event().await, Some(TransportEvent::Said(peer, message)) if peer == a.id && message == said));

    let encoded = b.transport.fetch(&a.id, tree.root, layout, 1).await.unwrap().bytes;
    b.store.put(tree.root, layout, 1, encoded).await.unwrap();
    let piece = layout.bytes(1);
    assert!(a.transport.served().to_rack.load(Ordering::Relaxed) > piece.end - piece.start);
    let missing = b.transport.fetch(&a.id, tree.root, layout, 0).await;
    assert!(matches!(missing, Err(FetchError::NotServed)), "{missing:?}");

    // The first and the third group, and some that are all of what is between two places.
    for (groups, count) in [("0005", 2), ("0006", 2), ("000f", 4)] {
        let groups: Groups = groups.parse().unwrap();
        let encoded = b
            .transport
            .fetch_groups(&a.id, tree.root, layout, 1, groups)
            .await
            .unwrap()
            .bytes;
        let found = decode_groups(&encoded, tree.root, layout, 1, groups).unwrap();
        assert_eq!(
            found.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(),
            count * GROUP_BYTES as usize
        );
        assert!(encoded.len() < (count + 1) * GROUP_BYTES as usize);
    }
    let missing = b
        .transport
        .fetch_groups(&a.id, tree.root, layout, 0, "0005".parse().unwrap())
        .await;
    assert!(matches!(missing, Err(FetchError::NotServed)), "{missing:?}");

    b.transport.ban(&a.id, "test");
    assert!(matches!(
        b.transport.fetch(&a.id, tree.root, layout, 1).await,
        Err(FetchError::Unreachable(_))
    ));
    assert!(matches!(a.event().await, Some(TransportEvent::Down(peer)) if peer == b.id));
}

/// Once nothing larger than 1,472 bytes was ever found: every endpoint said that it takes no more.
#[tokio::test]
async fn datagrams_grow_to_the_smaller_of_both_sides_bounds() {
    let ca = Ca::new();
    let bound = |bytes: u16| DatagramBound::try_from(bytes).unwrap();
    let a = Peer::bounded(&ca, &ca, "a", bound(3_000)).await;
    let b = Peer::start(&ca, &ca, "b").await;
    introduce(&[&a, &b]);
    let (tree, layout) = holds_one_piece(&a.store).await;
    holds_one_piece(&b.store).await;
    // A few round trips find what loopback carries.
    for _ in 0..30 {
        a.transport.fetch(&b.id, tree.root, layout, 1).await.unwrap();
        b.transport.fetch(&a.id, tree.root, layout, 1).await.unwrap();
    }
    for (from, to) in [(&a, &b), (&b, &a)] {
        let largest = from.transport.peers().blobs[&to.id].stats().path.current_mtu;
        assert!(largest > 1_472 && largest <= 3_000, "{}: {largest}", from.id);
    }
}

/// Completing TLS is not membership: an outsider with a good certificate is closed, one of another CA never gets so far.
#[tokio::test]
async fn outsiders_and_strangers_get_nothing() {
    let (ca, other_ca) = (Ca::new(), Ca::new());
    let mut a = Peer::start(&ca, &ca, "a").await;
    let (tree, layout) = holds_one_piece(&a.store).await;
    for (name, issuer) in [("outsider", &ca), ("stranger", &other_ca)] {
        let outsider = Peer::start(&ca, issuer, name).await;
        // The outsider knows everybody; nobody knows the outsider.
        outsider.transport.set_roster(roster(&[&a, &outsider]));
        a.transport.set_roster(roster(&[&a]));
        let refused = outsider.transport.fetch(&a.id, tree.root, layout, 1).await;
        assert!(refused.is_err(), "{name} was served");
    }
    assert_eq!(a.transport.connected(), 0);
    assert!(a.events.try_recv().is_err());
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_reported() {
    let ca = Ca::new();
    let (mut a, evil) = (Peer::start(&ca, &ca, "a").await, Peer::start(&ca, &ca, "evil").await);
    a.transport.set_roster(roster(&[&a, &evil]));
    evil.transport.set_roster(roster(&[&a, &evil]));
    let addr = a.transport.local_addr().unwrap();
    let config = evil.transport.0.control_client.clone();
    let connection = evil.transport.connect(&a.id, addr, config).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match a.event().await {
            Some(TransportEvent::Misbehaved(peer, reason)) => {
                assert_eq!((peer, reason), (evil.id, "announced a frame that is too long"));
                break;
            }
            Some(_) if Instant::now() < deadline => {}
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    /// What a peer sends as its request for a slice.
    #[test]
    fn a_request_is_one_bounded_range_or_groups_of_one_piece_or_refused(
        start in any::<u64>(), end in any::<u64>(), groups in any::<u16>(), here_and_there in any::<bool>(),
        at in any::<Index>(), flips in vec(any::<(Index, u8)>(), 0..4),
    ) {
        let ranges = match here_and_there {
            true => format!("{groups:04x}").parse::<Groups>().unwrap().chunks(PieceLayout::new(1 << 30), start as u32 % 4_096),
            false => ChunkRanges::chunks(start.min(end)..start.max(end)),
        };
        let seed = GetRequest::builder().root(ranges).build(iroh_blobs::Hash::from_bytes([7; 32]));
        let mut bytes = postcard::to_allocvec(&Request::Get(seed)).unwrap();
        for (place, flip) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
        }
        bytes.truncate(at.index(bytes.len() * 4));
        let Ok(Request::Get(request)) = postcard::from_bytes::<Request>(&bytes) else { return Ok(()) };
        match Wanted::of(&request) {
            Some(Wanted::Range(range)) => prop_assert!(range.start < range.end && range.end - range.start <= SLICE_BYTES_MAX),
            Some(Wanted::Groups(chunks)) => {
                let bounds = chunks.boundaries();
                prop_assert!(bounds.len() >= 4 && bounds[bounds.len() - 1].0 - bounds[0].0 <= 256, "{:?}", chunks);
            }
            None => {}
        }
    }
}
