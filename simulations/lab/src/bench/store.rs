//! One piece store alone: pieces verified and made durable, served with their proof, and the whole read as a device's
//! executor would; with each of the engines, several pieces at once as the node does.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bytes::Bytes;
use firmesh_node::store::ChunkStore;
use firmesh_protocol::chunk::{HashTree, PieceLayout, encode};
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use tokio::io::AsyncReadExt as _;

use super::{Engine, MeasureArgs, Rate, Spent, image};

/// Pieces worked on at once.
const IN_FLIGHT: usize = 4;

/// As much as is read at once when an image is served to a device.
const READ_BYTES: usize = 256 << 10;

/// The medians of one engine.
#[derive(Debug, Serialize)]
struct Figures {
    engine: Engine,
    import: Rate,
    serve: Rate,
    read: Rate,
}

#[derive(Debug, Default)]
struct Runs {
    import: Vec<Spent>,
    serve: Vec<Spent>,
    read: Vec<Spent>,
}

pub(super) async fn run(args: &MeasureArgs) -> Result<()> {
    let length = args.size << 20;
    let image = image(usize::try_from(length)?);
    let tree = HashTree::build(&image[..], length)?;
    let layout = PieceLayout::new(length);
    let encoded = (0..layout.pieces())
        .map(|piece| encode(&image[..], &tree, &layout.bytes(piece)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut runs = BTreeMap::<_, Runs>::new();
    for run in 0..args.runs {
        for engine in Engine::ALL {
            measure(engine, &tree, &encoded, runs.entry(engine).or_default()).await?;
            eprintln!("run {} of {}: {}", run + 1, args.runs, engine.name());
        }
    }
    let figures: Vec<_> = runs
        .iter()
        .map(|(engine, runs)| Figures {
            engine: *engine,
            import: Rate::of(&runs.import, length),
            serve: Rate::of(&runs.serve, length),
            read: Rate::of(&runs.read, length),
        })
        .collect();
    if args.json {
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    println!(
        "one piece store, {} MiB, median of {} interleaved runs; MB/s and CPU s/GiB",
        args.size, args.runs
    );
    println!("  {:<12} {:>16} {:>16} {:>16}", "", "import", "serve", "read");
    for figures in &figures {
        let cell = |rate: Rate| format!("{:.0} {:>8.2}", rate.mb_per_s, rate.cpu_s_per_gib);
        println!(
            "  {:<12} {:>16} {:>16} {:>16}",
            figures.engine.name(),
            cell(figures.import),
            cell(figures.serve),
            cell(figures.read)
        );
    }
    Ok(())
}

async fn measure(engine: Engine, tree: &HashTree, encoded: &[Vec<u8>], runs: &mut Runs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = engine.open(folder.path()).await?;
    let (store, layout): (&dyn ChunkStore, _) = (&*store, PieceLayout::new(tree.length));
    // Each put owns its bytes, as those that came over a wire.
    let arrived: Vec<_> = encoded.iter().map(|piece| Bytes::from(piece.clone())).collect();
    let import = futures_util::stream::iter((0..).zip(arrived))
        .map(|(piece, encoded)| async move { anyhow::Ok(store.put(tree.root, layout, piece, encoded).await?) })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>();
    runs.import.push(Spent::on(import).await?.0);
    let held = store.pieces(tree.root, layout).await?;
    ensure!(
        held.is_full(),
        "{} of {} pieces were stored",
        held.count(),
        held.total()
    );

    let serve = futures_util::stream::iter(0..layout.pieces())
        .map(|piece| async move {
            let parts = store.slice(tree.root, layout.bytes(piece));
            anyhow::Ok(parts.try_fold(0, async |sum, part| Ok(sum + part.len())).await?)
        })
        .buffer_unordered(IN_FLIGHT)
        .try_fold(0, async |sum, bytes| Ok(sum + bytes));
    let (spent, served) = Spent::on(serve).await?;
    ensure!(
        served == encoded.iter().map(Vec::len).sum::<usize>(),
        "{served} bytes were served"
    );
    runs.serve.push(spent);

    let read = async {
        let (mut reader, mut buffer, mut sum) = (store.reader(tree.root), vec![0; READ_BYTES], 0);
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok(sum),
                bytes => sum += bytes as u64,
            }
        }
    };
    let (spent, bytes) = Spent::on(read).await?;
    ensure!(bytes == tree.length, "{bytes} bytes were read");
    runs.read.push(spent);
    store.shutdown().await?;
    Ok(())
}
