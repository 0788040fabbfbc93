//! What a fleet does millions of times: `cargo bench`. Each group holds what its members are to be compared with, and every
//! member says per how many bytes, messages or devices it counts.

use std::{collections::VecDeque, hint::black_box, sync::Arc, time::Duration};

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use firmesh_coordinator_core::{Inventory, KnownDevice, plan};
use firmesh_node_core::swarm::{FetchId, Input, Output, Swarm, Tuning};
use firmesh_protocol::{
    chunk::{HashTree, PIECE_BYTES_MAX, PieceLayout, encode, verified_items},
    ids::{ArtifactId, CampaignId, Component, DeviceId, NodeId, Sha256, TopologyPath},
    labels::Labels,
    manifest::{
        Artifact, CampaignManifest, Caps, Constraints, Deadlines, GateRule, MANIFEST_SCHEMA, Priority, RELEASE_SCHEMA,
        Release, ReleaseInfo, ReleaseRef, Reversibility, Selector, Strategy,
    },
    piece_shape::Shape,
    pieces::{PIECES_MAX, PieceSet},
    report::DeviceFacts,
    time::{self, Timestamp},
    trust::{Envelope, KeySet, SecretKey, SignedFile, Target, Targets},
    units::BasisPoints,
    wire::PeerMessage,
};

/// Pieces of the artifact that the swarm collects: 256 MiB.
const PIECES: u32 = 1_024;

/// Members of a rack.
const RACK: usize = 4;

criterion_group! {
    name = hot_paths;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(50);
    targets = pieces, swarm, messages, signatures, planner
}
criterion_main!(hot_paths);

/// One piece: hashed, proven to a neighbour, and checked on the way in.
fn pieces(criterion: &mut Criterion) {
    let image = image(256 * PIECE_BYTES_MAX);
    let tree = HashTree::build(&image[..], image.len() as u64).expect("an image in memory is hashed");
    let layout = PieceLayout::new(tree.length);
    let (piece, range) = (21, layout.bytes(21));
    let content = &image[range.start as usize..range.end as usize];
    let encoded = encode(&image[..], &tree, &range).expect("a piece that exists");
    let mut group = criterion.benchmark_group("piece of 256 KiB");
    group.throughput(Throughput::Bytes(PIECE_BYTES_MAX));
    group.bench_function("BLAKE3 alone", |bencher| {
        bencher.iter(|| blake3::hash(black_box(content)))
    });
    group.bench_function("encode, checked", |bencher| {
        bencher.iter(|| encode(black_box(&image[..]), &tree, &range).expect("a piece that exists"));
    });
    group.bench_function("verify as the store does", |bencher| {
        bencher.iter(|| {
            let shape = Shape::of(layout, piece);
            shape.check(black_box(&encoded), tree.root, true).expect("a true piece")
        });
    });
    group.bench_function("verify into items", |bencher| {
        bencher.iter(|| verified_items(black_box(&encoded), tree.root, tree.length, &range).expect("a true piece"));
    });
    group.finish();
}

/// One node's swarm core, in fleets of two sizes: with half of the pieces, and at the beginning.
fn swarm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("swarm, 1024 pieces");
    group.throughput(Throughput::Elements(1));
    for members in [12, 200] {
        group.bench_function(
            format!("a piece came, the next is asked for: {members} members"),
            |bencher| {
                let collecting = || Node::new(members, PIECES / 2, |piece, member| (piece * 31 + member * 17) % 4 != 0);
                bencher.iter_custom(|steps| timed(steps, collecting, Node::piece_came));
            },
        );
        group.bench_function(format!("a peer has one more: {members} members"), |bencher| {
            let starting = || Node::new(members, 0, |_, _| false);
            bencher.iter_custom(|steps| timed(steps, starting, Node::peer_got));
        });
    }
    group.finish();
}

/// What nodes tell each other.
fn messages(criterion: &mut Criterion) {
    let artifact = ArtifactId::of(b"image");
    let half = |total: u32| PeerMessage::Holds {
        artifact,
        pieces: set(total, (0..total).step_by(2)),
    };
    let cases = [
        ("holds half of 1024 pieces", half(PIECES)),
        ("holds half of 131072 pieces", half(PIECES_MAX)),
        (
            "got 64 pieces",
            PeerMessage::Got {
                artifact,
                pieces: (0..64).map(|piece| piece * 16).collect(),
            },
        ),
    ];
    let mut group = criterion.benchmark_group("peer messages");
    for (name, message) in &cases {
        let frame = message.to_frame();
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(format!("write: {name}"), |bencher| {
            bencher.iter(|| black_box(message).to_frame());
        });
        group.bench_function(format!("read: {name}"), |bencher| {
            bencher.iter(|| PeerMessage::from_body(black_box(&frame[4..])).expect("a message of ours"));
        });
    }
    group.finish();
}

/// What is believed only because of a signature.
fn signatures(criterion: &mut Criterion) {
    let key = SecretKey::from_seed(&[7; 32]);
    let keys = KeySet::of("bench", 1, [key.public()]).expect("one key is a set");
    let mut group = criterion.benchmark_group("signatures");

    let permit = "application/vnd.firmesh.bench+json";
    let payload = serde_json::json!({"campaign": "spring", "device": "r1-bmc-1", "reason": "x".repeat(400)});
    let envelope = Envelope::sign(permit, payload.to_string().into_bytes(), [&key]).to_bytes();
    group.throughput(Throughput::Elements(1));
    group.bench_function("a DSSE envelope of half a KiB, read and verified", |bencher| {
        bencher.iter(|| {
            let envelope = Envelope::from_bytes(black_box(&envelope)).expect("an envelope");
            envelope.verify(&keys, permit).expect("signed").len()
        });
    });

    let mut content = Targets::first(wall());
    for number in 0..1_000_u64 {
        let name = format!("firmware/acme-r1-bmc-1.{number}.bin");
        let custom = serde_json::json!({"schema": RELEASE_SCHEMA, "vendor": "Acme", "models": ["R1"]});
        let target = Target::new(number + 1, Sha256::of(name.as_bytes()), Some(custom));
        content.targets.insert(name, target);
    }
    let mut file = SignedFile::unsigned(&content);
    file.sign(&key.public().id(), &key);
    let bytes = file.to_bytes();
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("TUF targets of a file with 1000, read and verified", |bencher| {
        bencher.iter(|| {
            let file = SignedFile::from_bytes("targets", black_box(&bytes)).expect("metadata");
            file.verified::<Targets>("targets", &keys).expect("signed")
        });
    });
    group.finish();
}

/// A campaign over ten thousand devices in waves, as the coordinator plans it and every signer plans it again.
fn planner(criterion: &mut Criterion) {
    const DEVICES: usize = 10_000;
    let (inventory, draft, releases) = (fleet(DEVICES), draft(), [release("new", "1.1"), release("old", "1.0")]);
    let mut group: BenchmarkGroup<'_, WallTime> = criterion.benchmark_group("planner");
    group.throughput(Throughput::Elements(DEVICES as u64)).sample_size(20);
    group.bench_function("a campaign over 10000 devices", |bencher| {
        bencher.iter(|| {
            let plan = plan(black_box(&inventory), &draft, &releases, wall()).expect("a draft that can be planned");
            assert!(plan.held.is_empty(), "a device was held: {}", plan.held[0].reason);
            plan
        });
    });
    group.finish();
}

/// Does `steps` steps with as many nodes as that needs; only the steps count.
fn timed(steps: u64, node: impl Fn() -> Node, step: impl Fn(&mut Node) -> bool) -> Duration {
    let (mut spent, mut left) = (Duration::ZERO, steps);
    while left > 0 {
        let mut node = node();
        let before = left;
        #[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
        let start = std::time::Instant::now();
        while left > 0 && step(&mut node) {
            left -= 1;
        }
        spent += start.elapsed();
        assert!(left < before, "a new node has nothing to do");
    }
    spent
}

/// A node that collects an artifact, and what it has asked for.
struct Node {
    swarm: Swarm,
    artifact: ArtifactId,
    now: Timestamp,
    peers: Vec<NodeId>,
    asked: VecDeque<FetchId>,
    /// Of the words of peers, how many were said.
    said: u32,
}

impl Node {
    /// In a fleet of so many, all of them connected. It has so many pieces already; `holds` says which ones a peer has.
    fn new(members: usize, held: u32, holds: impl Fn(u32, u32) -> bool) -> Self {
        let path = |member: usize| -> TopologyPath {
            let path = format!("eu/s1/r{}/n{member}", member / RACK);
            path.parse().expect("a path")
        };
        let name = |member: usize| NodeId::new(format!("n{member}")).expect("a name");
        let now = Timestamp::after_start(Duration::from_secs(1));
        let mut node = Self {
            swarm: Swarm::new(name(0), path(0), Tuning::default(), 1),
            artifact: ArtifactId::of(b"image"),
            now,
            peers: (1..members).map(name).collect(),
            asked: VecDeque::new(),
            said: 0,
        };
        let members = Arc::new((0..members).map(|member| (name(member), path(member))).collect());
        node.swarm.handle(now, Input::Roster { members });
        for (peer, number) in node.peers.clone().into_iter().zip(1..) {
            let (artifact, pieces) = (
                node.artifact,
                set(PIECES, (0..PIECES).filter(|piece| holds(*piece, number))),
            );
            node.swarm.handle(now, Input::PeerUp { peer: peer.clone() });
            node.swarm.handle(now, Input::PeerHolds { peer, artifact, pieces });
        }
        let want = Input::Want {
            artifact: node.artifact,
            have: set(PIECES, (0..PIECES).step_by(2).take(held as usize)),
            priority: Priority::Normal,
        };
        node.swarm.handle(now, want);
        node.take_orders();
        node
    }

    /// The oldest request is answered a millisecond later; false if there is none.
    fn piece_came(&mut self) -> bool {
        let Some(id) = self.asked.pop_front() else {
            return false;
        };
        self.now = self.now + Duration::from_millis(1);
        let waited = Duration::from_millis(1);
        self.swarm.handle(self.now, Input::Fetched { id, waited });
        self.take_orders();
        true
    }

    /// Another peer tells of another piece; false if there is none left. What follows from it is looked at later.
    fn peer_got(&mut self) -> bool {
        let (piece, peer) = (
            self.said / self.peers.len() as u32,
            self.said as usize % self.peers.len(),
        );
        if piece >= PIECES {
            return false;
        }
        let got = Input::PeerGot {
            peer: self.peers[peer].clone(),
            artifact: self.artifact,
            pieces: vec![piece],
        };
        self.said += 1;
        self.swarm.handle(self.now, got);
        self.take_orders();
        true
    }

    fn take_orders(&mut self) {
        while let Some(output) = self.swarm.poll() {
            match output {
                Output::Fetch { id, .. } => self.asked.push_back(id),
                Output::Cancel { id, .. } => self.asked.retain(|asked| *asked != id),
                other => drop(black_box(other)),
            }
        }
    }
}

fn set(total: u32, pieces: impl Iterator<Item = u32>) -> PieceSet {
    let mut set = PieceSet::empty(total);
    pieces.for_each(|piece| {
        set.insert(piece);
    });
    set
}

/// Bytes that are the same every time.
fn image(length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).expect("it fits memory")];
    let mut stream = blake3::Hasher::new().update(b"firmesh bench image").finalize_xof();
    stream.fill(&mut bytes);
    bytes
}

fn wall() -> time::WallTime {
    time::WallTime::from_unix_seconds(1_800_000_000)
}

/// Nodes with ten devices each, forty nodes to a rack.
fn fleet(devices: usize) -> Inventory {
    let mut inventory = Inventory::default();
    for number in 0..devices {
        let (node, rack) = (number / 10, number / 400);
        let device = DeviceId::new(format!("r{rack}n{node}d{number}")).expect("a name");
        let facts = DeviceFacts {
            device: device.clone(),
            vendor: "Acme".to_owned(),
            model: "R1".to_owned(),
            component: Component::new("bmc").expect("a name"),
            version: Some("1.0".to_owned()),
            executor: "redfish".to_owned(),
            labels: Labels::default(),
        };
        let known = KnownDevice {
            facts,
            node: NodeId::new(format!("n{node}")).expect("a name"),
            node_key: SecretKey::from_seed(Sha256::of(&node.to_le_bytes()).as_bytes()).public(),
            path: format!("eu/fra1/rack{rack}/n{node}").parse().expect("a path"),
            node_reachable: true,
            quarantined: false,
            held_by_operator: None,
        };
        inventory.devices.insert(device, known);
    }
    inventory
}

fn release(name: &str, version: &str) -> Release {
    Release {
        target: target(name),
        artifact: Artifact {
            id: ArtifactId::of(name.as_bytes()),
            sha256: Sha256::of(name.as_bytes()),
            length: 64 << 20,
        },
        info: ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: ArtifactId::of(name.as_bytes()),
            vendor: "Acme".to_owned(),
            models: vec!["R1".to_owned()],
            component: Component::new("bmc").expect("a name"),
            version: version.to_owned(),
            security_epoch: 1,
            from_versions: Vec::new(),
            reversibility: Reversibility::Reflash,
            provenance: None,
            version_scheme: None,
            min_from: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
        },
    }
}

fn target(name: &str) -> String {
    format!("firmware/{name}.bin")
}

fn draft() -> CampaignManifest {
    let release = |name: &str| ReleaseRef {
        target: target(name),
        sha256: Sha256::of(name.as_bytes()),
    };
    let shares = [100, 1_000, 5_000, 10_000].map(|share| BasisPoints::new(share).expect("a share"));
    CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id: CampaignId::new("spring").expect("a name"),
        sequence: 1,
        expires: time::WallTime::from_unix_seconds(1_900_000_000),
        releases: vec![release("new")],
        previous: vec![release("old")],
        selector: Selector::default(),
        strategy: Strategy::Canary {
            shares: shares.to_vec(),
        },
        caps: Caps::new(4, 1_000),
        gate: GateRule::shares(BasisPoints::WHOLE, BasisPoints::WHOLE),
        deadlines: Deadlines {
            attempt_s: 600,
            back_s: 60,
        },
        constraints: Constraints::default(),
        priority: Priority::default(),
        automatic_rollback: true,
        operator_rollback: false,
        retries: None,
        permit_keys: vec![format!("58{}", "66".repeat(31))],
        plan_sha256: Sha256::of(b""),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: firmesh_protocol::manifest::CampaignKind::Update,
    }
}
