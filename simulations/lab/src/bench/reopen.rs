//! A restart with a large image: how long until the node knows what it holds of it, what memory that takes, and how long a
//! neighbour waits meanwhile for a piece of another image.

use std::{
    fs::{self, File},
    io::{BufReader, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_node::store::{ChunkStore, PieceStore};
use firmesh_protocol::chunk::{HashTree, PieceLayout, encode};
use futures_util::{StreamExt as _, TryStreamExt as _};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::Serialize;
use tokio::sync::mpsc;

use super::MeasureArgs;

/// Pieces stored at once.
const IN_FLIGHT: usize = 4;

/// Length of the other image.
const OTHER_BYTES: u64 = 8 << 20;

#[derive(Debug, Serialize)]
struct Figures {
    image_mib: u64,
    pieces: u32,
    import_s: f64,
    rss_kib_while_importing: u64,
    /// From the store's folder to the set of held pieces, the records read from the disk.
    open_cold_s: f64,
    /// The same with the records in memory.
    open_warm_s: f64,
    rss_kib_more_by_opening: u64,
    /// The longest a piece of the other image took while the large one was opened.
    other_piece_worst_ms: f64,
}

pub(super) async fn run(args: &MeasureArgs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (image, store_folder) = (folder.path().join("image"), folder.path().join("store"));
    let length = args.size << 20;
    write_image(&image, length)?;
    let (tree, other) = (tree_of(&image, length)?, super::image(usize::try_from(OTHER_BYTES)?));
    let other_tree = HashTree::build(&other[..], OTHER_BYTES)?;
    let (layout, other_layout) = (PieceLayout::new(length), PieceLayout::new(OTHER_BYTES));
    let open = || async {
        let (lost, _) = mpsc::channel(1);
        PieceStore::open(&store_folder, None, lost).await
    };
    let store = open().await?;
    for piece in 0..other_layout.pieces() {
        let encoded = encode(&other[..], &other_tree, &other_layout.bytes(piece))?;
        store.put(other_tree.root, other_layout, piece, encoded.into()).await?;
    }
    let (file, began) = (File::open(&image)?, Instant::now());
    futures_util::stream::iter(0..layout.pieces())
        .map(|piece| {
            let encoded = encode(&file, &tree, &layout.bytes(piece));
            let (store, root) = (&store, tree.root);
            async move { anyhow::Ok(store.put(root, layout, piece, encoded?.into()).await?) }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>()
        .await?;
    let (import_s, rss_importing) = (began.elapsed().as_secs_f64(), rss_kib()?);
    drop((store, file));
    fs::remove_file(&image)?;

    let mut opened = Vec::new();
    let (mut more, mut worst) = (0, Duration::ZERO);
    for cold in [true, false] {
        if cold {
            forget_cached(&store_folder)?;
        }
        let before = rss_kib()?;
        let began = Instant::now();
        let store = Arc::new(open().await?);
        let done = Arc::new(AtomicBool::new(false));
        let neighbour = tokio::spawn({
            let (store, done, root) = (Arc::clone(&store), Arc::clone(&done), other_tree.root);
            async move {
                let mut worst = Duration::ZERO;
                let mut pieces = (0..other_layout.pieces()).cycle();
                while !done.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let piece = pieces.next().context("a cycle has no end")?;
                    store
                        .slice(root, other_layout.bytes(piece))
                        .try_collect::<Vec<_>>()
                        .await?;
                    worst = worst.max(asked.elapsed());
                }
                anyhow::Ok(worst)
            }
        });
        let held = store.pieces(tree.root, layout).await?;
        opened.push(began.elapsed().as_secs_f64());
        done.store(true, Ordering::Relaxed);
        worst = worst.max(neighbour.await??);
        ensure!(held.is_full(), "{} of {} pieces were held", held.count(), held.total());
        more = more.max(rss_kib()?.saturating_sub(before));
    }
    let figures = Figures {
        image_mib: args.size,
        pieces: layout.pieces(),
        import_s,
        rss_kib_while_importing: rss_importing,
        open_cold_s: opened[0],
        open_warm_s: opened[1],
        rss_kib_more_by_opening: more,
        other_piece_worst_ms: worst.as_secs_f64() * 1e3,
    };
    println!("{}", serde_json::to_string_pretty(&figures)?);
    Ok(())
}

/// Every MiB is another one.
fn write_image(path: &Path, length: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut part = super::image(1 << 20);
    for number in 0..length >> 20 {
        part[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&part)?;
    }
    Ok(())
}

fn tree_of(path: &Path, length: u64) -> Result<HashTree> {
    Ok(HashTree::build(
        BufReader::with_capacity(1 << 20, File::open(path)?),
        length,
    )?)
}

fn forget_cached(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(())
}

/// Memory of this process that is in use and not a file's.
fn rss_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("the kernel does not tell RssAnon")?.parse()?)
}
