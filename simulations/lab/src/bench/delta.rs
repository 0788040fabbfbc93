//! What a new version of an image costs a node that holds the old one: the bytes that must travel, the index included, by
//! blocks of a fixed place and by content-defined chunks of several sizes (decision 0010).
//!
//! Everything is counted, nothing is estimated: the chunk groups of 16 KiB that are not wholly found in the old version are
//! encoded with their proof as a peer would send them, and the index is as long as it would be sent.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use firmesh_protocol::{
    chunk::{ENCODED_PIECE_BYTES_MAX, GROUP_BYTES, HashTree, PieceLayout, encode, encode_groups},
    groups::Groups,
    recipe::{CHUNK_SIZES, Chunk, ChunkName, ChunkSizes, Chunker, RECIPE_IMAGE_BYTES_MAX, Recipe},
};
use serde::Serialize;

/// Which versions to compare.
#[derive(Debug, Args)]
pub(crate) struct DeltaArgs {
    /// The old and the new version of an image; may be given several times.
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], required = true)]
    pair: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Mean lengths of chunks that are compared.
const MEANS_KIB: [usize; 5] = [2, 4, 8, 16, 32];

/// A chunk in an index: its length and a short name.
const ENTRY_BYTES: u64 = 10;

/// One pair.
#[derive(Debug, Serialize)]
struct Pair {
    old: PathBuf,
    new: PathBuf,
    old_bytes: u64,
    new_bytes: u64,
    /// What the new version costs without any index: all pieces with their proofs.
    whole_bytes: u64,
    /// Blocks of 16 KiB at multiples of 16 KiB, found anywhere in the old version at such a place.
    fixed: Cost,
    chunked: Vec<Chunked>,
    /// What travels with the recipes that this version makes: recipe and missing groups. Absent for too long an image.
    firmesh_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Chunked {
    mean_kib: usize,
    chunks: usize,
    /// If chunks could travel alone: the least, and what other systems pay.
    chunk_bytes: u64,
    #[serde(flatten)]
    cost: Cost,
}

/// What travels.
#[derive(Debug, Clone, Copy, Serialize)]
struct Cost {
    index_bytes: u64,
    /// With the index: chunk groups of 16 KiB that are not wholly found, with their proofs.
    group_bytes: u64,
    /// With the index: pieces that are not wholly found, with their proofs.
    piece_bytes: u64,
}

/// Compares the pairs and prints what was found.
pub(crate) fn run(args: &DeltaArgs) -> Result<()> {
    let pairs = args.pair.chunks_exact(2).map(|pair| measure(&pair[0], &pair[1]));
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    if args.json {
        println!("{}", serde_json::to_string(&pairs)?);
        return Ok(());
    }
    println!("percent of the whole new version that travels, index and proofs included");
    println!("groups: chunk groups of 16 KiB that are not wholly found; chunks: the same if chunks could travel alone");
    print!("{:<44} {:>9} {:>7} {:>8}", "new version", "KiB", "pieces", "fixed 16");
    MEANS_KIB
        .iter()
        .for_each(|mean| print!(" {:>13}", format!("cdc {mean} KiB")));
    println!(" {:>8}", "firmesh");
    for pair in &pairs {
        let share = |bytes: u64| format!("{:.1}", bytes as f64 * 100.0 / pair.whole_bytes as f64);
        let name = pair.new.file_name().unwrap_or_default().to_string_lossy();
        let name: String = name.chars().take(43).collect();
        let ours = pair.chunked.iter().find(|of| of.mean_kib << 10 == CHUNK_SIZES.mean);
        let pieces = ours.map_or_else(String::new, |of| share(of.cost.piece_bytes));
        print!(
            "{name:<44} {:>9} {pieces:>7} {:>8}",
            pair.new_bytes >> 10,
            share(pair.fixed.group_bytes)
        );
        for of in &pair.chunked {
            print!(
                " {:>13}",
                format!("{} ({})", share(of.cost.group_bytes), share(of.chunk_bytes))
            );
        }
        println!(" {:>8}", pair.firmesh_bytes.map_or_else(|| "-".to_owned(), share));
    }
    Ok(())
}

fn measure(old_path: &Path, new_path: &Path) -> Result<Pair> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let (old, new) = (read(old_path)?, read(new_path)?);
    let tree = HashTree::build(&new[..], new.len() as u64)?;
    let layout = PieceLayout::new(tree.length);
    let mut whole_bytes = 0;
    for piece in 0..layout.pieces() {
        whole_bytes += encode(&new[..], &tree, &layout.bytes(piece))?.len() as u64;
    }
    let chunked = MEANS_KIB.map(|mean| {
        let sizes = ChunkSizes::around(mean << 10);
        let (old, chunks) = (cut(&old, sizes), cut(&new, sizes));
        let missing = missing(&old, &chunks);
        let index_bytes = chunks.len() as u64 * ENTRY_BYTES;
        anyhow::Ok(Chunked {
            mean_kib: mean,
            chunks: chunks.len(),
            chunk_bytes: index_bytes + missing.iter().map(|range| range.end - range.start).sum::<u64>(),
            cost: cost(&new, &tree, &missing, index_bytes)?,
        })
    });
    let chunked = chunked.into_iter().collect::<Result<Vec<_>>>()?;
    let blocks = |data: &[u8]| -> Vec<Chunk> {
        let blocks = data.chunks(GROUP_BYTES as usize).map(|block| Chunk {
            name: ChunkName::of(block),
            bytes: block.len() as u32,
        });
        blocks.collect()
    };
    let new_blocks = blocks(&new);
    let fixed = cost(
        &new,
        &tree,
        &missing(&blocks(&old), &new_blocks),
        new_blocks.len() as u64 * ENTRY_BYTES,
    )?;
    let recipe = match tree.length <= RECIPE_IMAGE_BYTES_MAX {
        true => Recipe::build(&new[..], tree.root, tree.length)?,
        false => None,
    };
    let firmesh_bytes = match recipe {
        Some(recipe) => {
            let bytes = recipe.to_bytes();
            let lies = HashTree::build(&bytes[..], bytes.len() as u64)?;
            let missing = missing(&cut(&old, CHUNK_SIZES), recipe.chunks());
            let mut sent = 0;
            let of_recipe = PieceLayout::new(lies.length);
            for piece in 0..of_recipe.pieces() {
                sent += encode(&bytes[..], &lies, &of_recipe.bytes(piece))?.len() as u64;
            }
            Some(cost(&new, &tree, &missing, sent)?.group_bytes)
        }
        None => None,
    };
    Ok(Pair {
        old: old_path.to_owned(),
        new: new_path.to_owned(),
        old_bytes: old.len() as u64,
        new_bytes: tree.length,
        whole_bytes,
        fixed,
        chunked,
        firmesh_bytes,
    })
}

fn cut(data: &[u8], sizes: ChunkSizes) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(sizes);
    chunker.push(data, |chunk| chunks.push(chunk));
    chunker.finish(|chunk| chunks.push(chunk));
    chunks
}

/// The ranges of the new version that the old one does not have.
fn missing(old: &[Chunk], new: &[Chunk]) -> Vec<std::ops::Range<u64>> {
    let known: BTreeSet<_> = old.iter().map(|chunk| (chunk.name, chunk.bytes)).collect();
    let mut at = 0;
    let mut missing = Vec::new();
    for chunk in new {
        let end = at + u64::from(chunk.bytes);
        if !known.contains(&(chunk.name, chunk.bytes)) {
            missing.push(at..end);
        }
        at = end;
    }
    missing
}

fn cost(new: &[u8], tree: &HashTree, missing: &[std::ops::Range<u64>], index_bytes: u64) -> Result<Cost> {
    let layout = PieceLayout::new(tree.length);
    let groups: BTreeSet<u64> = missing
        .iter()
        .flat_map(|range| range.start / GROUP_BYTES..range.end.div_ceil(GROUP_BYTES))
        .collect();
    let (mut group_bytes, mut piece_bytes) = (index_bytes, index_bytes);
    for piece in 0..layout.pieces() {
        let first = layout.bytes(piece).start / GROUP_BYTES;
        let mut wanted = Groups::default();
        for group in Groups::all(layout, piece).iter() {
            if groups.contains(&(first + u64::from(group))) {
                wanted.insert(group);
            }
        }
        if !wanted.is_empty() {
            group_bytes += encode_groups(new, tree, piece, wanted)?.len() as u64;
            piece_bytes += encode(new, tree, &layout.bytes(piece))?.len() as u64;
        }
    }
    debug_assert!(group_bytes <= index_bytes + u64::from(layout.pieces()) * ENCODED_PIECE_BYTES_MAX as u64);
    Ok(Cost {
        index_bytes,
        group_bytes,
        piece_bytes,
    })
}
