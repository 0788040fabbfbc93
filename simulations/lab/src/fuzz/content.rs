//! Parsers of content: slices of images, parts of pieces, and recipes.

use anyhow::{Context as _, Result};
use firmesh_protocol::{
    chunk::{ChunkRanges, HashTree, PIECE_BYTES_MIN, PieceLayout, decode, decode_groups, encode, encode_groups},
    groups::Groups,
    recipe::Recipe,
};

use super::targets::{Target, said};

/// Every target.
pub(super) fn all() -> Result<Vec<Target>> {
    Ok(vec![encoded_piece()?, encoded_groups()?, recipe()?])
}

fn image(length: u32) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 7) as u8).collect()
}

fn encoded_piece() -> Result<Target> {
    let image = image(50_000);
    let length = image.len() as u64;
    let tree = HashTree::build(&image[..], length)?;
    let (root, range) = (tree.root, 0..length);
    let seed = encode(&image[..], &tree, &range)?;
    let about = "a slice of an image with its hashes, from a peer or the origin";
    Ok(Target::new("encoded-slice", about, vec![seed], move |input| {
        let bytes = decode(input, root, length, &range).map_err(said)?;
        assert!(bytes == image, "bytes that are not the image's were verified");
        Ok(())
    }))
}

fn encoded_groups() -> Result<Target> {
    let image = image(PIECE_BYTES_MIN as u32 + 50_000);
    let tree = HashTree::build(&image[..], image.len() as u64)?;
    let (root, layout) = (tree.root, PieceLayout::new(tree.length));
    let groups: Groups = "000a".parse()?;
    let seed = encode_groups(&image[..], &tree, 1, groups)?;
    // What is asked for is written as text in one protocol, and as ranges in the other.
    let text = groups.to_string().into_bytes();
    let about = "some groups of a piece with their hashes, from a peer or the origin; or which are asked for";
    Ok(Target::new("encoded-groups", about, vec![seed, text], move |input| {
        if let Some(asked) = std::str::from_utf8(input)
            .ok()
            .and_then(|text| text.parse::<Groups>().ok())
        {
            let chunks: ChunkRanges = asked.chunks(layout, 1);
            let existing = asked.without(asked.without(Groups::all(layout, 1)));
            assert!(existing.is_empty() || Groups::of_chunks(layout, &chunks) == Some((1, existing)));
            return Ok(());
        }
        for (at, bytes) in decode_groups(input, root, layout, 1, groups).map_err(said)? {
            assert!(
                image[at as usize..].starts_with(&bytes),
                "bytes that are not the image's were verified"
            );
        }
        Ok(())
    }))
}

fn recipe() -> Result<Target> {
    let image = image(3 * PIECE_BYTES_MIN as u32 + 5_000);
    let length = image.len() as u64;
    let root = firmesh_protocol::ids::ArtifactId::of(&image);
    let recipe = Recipe::build(&image[..], root, length)?.context("an image of this length has a recipe")?;
    let (seed, tree) = (recipe.to_bytes(), recipe.tree().clone());
    let about = "how to put an image together from others, from the coordinator or a peer";
    Ok(Target::new("recipe", about, vec![seed], move |input| {
        let recipe = Recipe::from_bytes(input, root, length).map_err(said)?;
        assert!(*recipe.tree() == tree, "other hashes were taken for the image's");
        let sum: u64 = recipe.chunks().iter().map(|chunk| u64::from(chunk.bytes)).sum();
        assert!(
            sum == length && recipe.to_bytes() == input,
            "a recipe has a second spelling"
        );
        Ok(())
    }))
}
