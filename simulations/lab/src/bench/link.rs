//! One link: a whole image from one node's store over QUIC into another's, every piece verified on the way in. Beside it,
//! in the same run: BLAKE3 over the same bytes, and the same bytes written to a file and made durable.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_coordinator::authority::Authority;
use firmesh_node::{
    identity::{Identity, NodeKey},
    store::{ChunkStore, IrohStore},
    transport::{Member, Transport},
};
use firmesh_protocol::{
    chunk::{HashTree, PieceLayout, encode},
    ids::{NodeId, TopologyPath},
    time::WallTime,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use nix::sys::resource::{UsageWho, getrusage};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{LinkArgs, median};

/// Pieces asked for at once, as a node would.
const IN_FLIGHT: usize = 4;

struct End {
    id: NodeId,
    member: Member,
    transport: Transport,
    store: Arc<dyn ChunkStore>,
}

/// The certificates outlive any measurement.
const VALIDITY: Duration = Duration::from_secs(86_400);

impl End {
    async fn open(authority: &Authority, folder: &Path, name: &str, now: WallTime) -> Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let key = NodeKey::load_or_create(&folder.join("node.key"))?;
        let (id, path): (NodeId, TopologyPath) = (name.parse()?, format!("bench/rack/{name}").parse()?);
        let request = key.certificate_request(&id, &[])?;
        let certificate = authority.issue_node(&id, &path, &request, now, VALIDITY)?;
        let certificate = CertificateDer::from_pem_slice(certificate.pem.as_bytes())?;
        let identity = Identity::new(key, certificate, authority.ca_der().clone())?;
        let store: Arc<dyn ChunkStore> = Arc::new(IrohStore::open(&folder.join("store")).await?);
        let (events, mut ignored) = mpsc::channel(64);
        tokio::spawn(async move { while ignored.recv().await.is_some() {} });
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let cancel = CancellationToken::new();
        let transport = Transport::open(&identity, id.clone(), &path, listen, Arc::clone(&store), events, cancel)?;
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
    link_mb_per_s: f64,
    link_cpu_s_per_gib: f64,
    hash_mb_per_s: f64,
    disk_mb_per_s: f64,
    link_over_hash: f64,
    link_over_disk: f64,
}

pub(super) async fn run(args: &LinkArgs) -> Result<()> {
    let length = args.size << 20;
    let image = image(usize::try_from(length)?);
    let tree = HashTree::build(&image[..], length)?;
    let (mut link, mut cpu, mut hash, mut disk) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..args.runs {
        let folder = tempfile::tempdir()?;
        let (wall, spent) = transfer(folder.path(), &image, &tree).await?;
        link.push(wall);
        cpu.push(spent);
        let start = Instant::now();
        ensure!(
            blake3::hash(&image).as_bytes() == tree.root.as_bytes(),
            "the image changed in memory"
        );
        hash.push(start.elapsed());
        let start = Instant::now();
        let mut file = File::create(folder.path().join("plain"))?;
        file.write_all(&image)?;
        file.sync_all()?;
        disk.push(start.elapsed());
        eprintln!("run {} of {}: link {:.2} s", run + 1, args.runs, wall.as_secs_f64());
    }
    let rate = |durations: &[Duration]| length as f64 / 1e6 / median(durations.to_vec()).as_secs_f64();
    let figures = Figures {
        mib: args.size,
        runs: args.runs,
        link_mb_per_s: rate(&link),
        link_cpu_s_per_gib: median(cpu).as_secs_f64() * f64::from(1 << 30) / length as f64,
        hash_mb_per_s: rate(&hash),
        disk_mb_per_s: rate(&disk),
        link_over_hash: rate(&link) / rate(&hash),
        link_over_disk: rate(&link) / rate(&disk),
    };
    if args.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        println!(
            "one link over loopback, {} MiB, median of {} interleaved runs",
            figures.mib, figures.runs
        );
        println!("  verified into the store  {:>7.0} MB/s", figures.link_mb_per_s);
        println!("  CPU, both ends           {:>7.2} s/GiB", figures.link_cpu_s_per_gib);
        println!(
            "  BLAKE3 alone             {:>7.0} MB/s  (link / hash {:.2})",
            figures.hash_mb_per_s, figures.link_over_hash
        );
        println!(
            "  file write and fsync     {:>7.0} MB/s  (link / disk {:.2})",
            figures.disk_mb_per_s, figures.link_over_disk
        );
    }
    Ok(())
}

/// Moves the image over one link; wall time and CPU time of both ends.
async fn transfer(folder: &Path, image: &[u8], tree: &HashTree) -> Result<(Duration, Duration)> {
    let now = firmesh_node::trust_store::system_time();
    let authority = Authority::load_or_create(&folder.join("authority"), Vec::new(), now)?;
    let from = End::open(&authority, folder, "from", now).await?;
    let to = End::open(&authority, folder, "to", now).await?;
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
    let (start, cpu_before) = (Instant::now(), cpu_time()?);
    let (receiver, source) = (&to, &from.id);
    futures_util::stream::iter(0..layout.pieces())
        .map(|piece| async move {
            let encoded = receiver.transport.fetch(source, tree.root, layout, piece).await?;
            receiver.store.put(tree.root, layout, piece, encoded).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>()
        .await?;
    let (wall, cpu) = (start.elapsed(), cpu_time()? - cpu_before);
    let held = to.store.pieces(tree.root, layout).await?;
    ensure!(
        held.is_full(),
        "only {} of {} pieces arrived",
        held.count(),
        held.total()
    );
    to.close().await?;
    from.close().await?;
    Ok((wall, cpu))
}

fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("the process's CPU time")?;
    let micros = |time: nix::sys::time::TimeVal| -> Result<Duration> {
        Ok(Duration::from_secs(time.tv_sec().try_into()?) + Duration::from_micros(time.tv_usec().try_into()?))
    };
    Ok(micros(usage.user_time())? + micros(usage.system_time())?)
}

/// Bytes that do not compress and are the same every time.
fn image(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(b"firmesh bench image")
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}
