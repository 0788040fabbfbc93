//! One link: a whole image from one node's store over QUIC into another's, every piece verified on the way in, with each of
//! the stores at both ends. Beside it, in the same run: BLAKE3 over the same bytes, and the same bytes written to a file and
//! made durable.

use std::{collections::BTreeMap, io::Write as _, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Result, ensure};
use firmesh_coordinator::authority::Authority;
use firmesh_node::{
    identity::{Identity, NodeKey},
    store::ChunkStore,
    transport::{DatagramBound, Member, Plane, Transport},
};
use firmesh_protocol::{
    chunk::{HashTree, PieceLayout, encode},
    ids::{NodeId, TopologyPath},
    time::WallTime,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Engine, MeasureArgs, Rate, Spent, image};

/// Pieces asked for at once, as a node would.
const IN_FLIGHT: usize = 4;

struct End {
    id: NodeId,
    member: Member,
    transport: Transport,
    store: Arc<dyn ChunkStore>,
}

/// The certificates outlive any measurement.
const VALIDITY: std::time::Duration = std::time::Duration::from_secs(86_400);

impl End {
    async fn open(authority: &Authority, engine: Engine, folder: &Path, name: &str, now: WallTime) -> Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let key = NodeKey::load_or_create(&folder.join("node.key"))?;
        let (id, path): (NodeId, TopologyPath) = (name.parse()?, format!("bench/rack/{name}").parse()?);
        let request = key.certificate_request(&id, &[])?;
        let certificate = authority.issue_node(&id, &path, &request, now, VALIDITY)?;
        let certificate = CertificateDer::from_pem_slice(certificate.pem.as_bytes())?;
        let identity = Identity::new(key, certificate, authority.ca_der().clone())?;
        let store = engine.open(&folder.join("store")).await?;
        let (events, mut ignored) = mpsc::channel(64);
        tokio::spawn(async move { while ignored.recv().await.is_some() {} });
        let plane = Plane {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            budgets: Vec::new(),
            datagram_bytes_max: DatagramBound::default(),
        };
        let cancel = CancellationToken::new();
        let transport = Transport::open(&identity, id.clone(), &path, plane, Arc::clone(&store), events, cancel)?;
        let member = Member {
            path,
            addr: transport.local_addr()?,
            key: identity.key.public(),
        };
        Ok(Self {
            id,
            member,
            transport,
            store,
        })
    }

    async fn close(self) -> Result<()> {
        self.transport.shutdown().await;
        Ok(self.store.shutdown().await?)
    }
}

/// The medians of one measurement.
#[derive(Debug, Serialize)]
struct Figures {
    mib: u64,
    runs: u32,
    link: BTreeMap<Engine, Rate>,
    hash: Rate,
    disk: Rate,
}

pub(super) async fn run(args: &MeasureArgs) -> Result<()> {
    let length = args.size << 20;
    let image = image(usize::try_from(length)?);
    let tree = HashTree::build(&image[..], length)?;
    let (mut link, mut hash, mut disk) = (BTreeMap::<_, Vec<_>>::new(), Vec::new(), Vec::new());
    for run in 0..args.runs {
        for engine in Engine::ALL {
            let folder = tempfile::tempdir()?;
            let spent = transfer(engine, folder.path(), &image, &tree).await?;
            link.entry(engine).or_default().push(spent);
            eprintln!(
                "run {} of {}: {} {:.2} s",
                run + 1,
                args.runs,
                engine.name(),
                spent.wall.as_secs_f64()
            );
        }
        let hashed = Spent::on(async { Ok(blake3::hash(&image)) }).await?;
        ensure!(
            hashed.1.as_bytes() == tree.root.as_bytes(),
            "the image changed in memory"
        );
        hash.push(hashed.0);
        let mut file = tempfile::tempfile()?;
        let written = Spent::on(async {
            file.write_all(&image)?;
            Ok(file.sync_all()?)
        });
        disk.push(written.await?.0);
    }
    let figures = Figures {
        mib: args.size,
        runs: args.runs,
        link: link
            .iter()
            .map(|(engine, runs)| (*engine, Rate::of(runs, length)))
            .collect(),
        hash: Rate::of(&hash, length),
        disk: Rate::of(&disk, length),
    };
    if args.json {
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    println!(
        "one link over loopback, {} MiB, median of {} interleaved runs",
        figures.mib, figures.runs
    );
    let row = |name: &str, rate: &Rate| {
        println!(
            "  {name:<24} {:>7.0} MB/s {:>7.2} CPU s/GiB   link / hash {:.2}, link / disk {:.2}",
            rate.mb_per_s,
            rate.cpu_s_per_gib,
            rate.mb_per_s / figures.hash.mb_per_s,
            rate.mb_per_s / figures.disk.mb_per_s
        );
    };
    for (engine, rate) in &figures.link {
        row(&format!("store: {}", engine.name()), rate);
    }
    row("BLAKE3 alone", &figures.hash);
    row("file write and fsync", &figures.disk);
    Ok(())
}

/// Moves the image over one link; what both ends spent.
async fn transfer(engine: Engine, folder: &Path, image: &[u8], tree: &HashTree) -> Result<Spent> {
    let now = firmesh_node::trust_store::system_time();
    let authority = Authority::load_or_create(&folder.join("authority"), Vec::new(), now)?;
    let from = End::open(&authority, engine, folder, "from", now).await?;
    let to = End::open(&authority, engine, folder, "to", now).await?;
    let mut roster = BTreeMap::new();
    for end in [&from, &to] {
        roster.insert(end.id.clone(), end.member.clone());
    }
    from.transport.set_roster(roster.clone());
    to.transport.set_roster(roster);
    let layout = PieceLayout::new(tree.length);
    for piece in 0..layout.pieces() {
        let encoded = encode(image, tree, &layout.bytes(piece))?;
        from.store.put(tree.root, layout, piece, encoded.into()).await?;
    }
    let (receiver, source) = (&to, &from.id);
    let moved = futures_util::stream::iter(0..layout.pieces())
        .map(|piece| async move {
            let encoded = receiver.transport.fetch(source, tree.root, layout, piece).await?.bytes;
            receiver.store.put(tree.root, layout, piece, encoded).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>();
    let (spent, ()) = Spent::on(moved).await?;
    let held = to.store.pieces(tree.root, layout).await?;
    ensure!(
        held.is_full(),
        "only {} of {} pieces arrived",
        held.count(),
        held.total()
    );
    to.close().await?;
    from.close().await?;
    Ok(spent)
}
