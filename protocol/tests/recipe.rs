//! Recipes as somebody else may write them: bounded, refused by name, and never believed about the image's hashes.

use firmesh_protocol::{
    chunk::{PIECE_BYTES_MAX, PIECE_BYTES_MIN},
    ids::ArtifactId,
    recipe::{CHUNK_SIZES, CHUNKS_MAX, Chunk, Chunker, RECIPE_BYTES_MAX, RECIPE_IMAGE_BYTES_MAX, Recipe, RecipeError},
};
use proptest::prelude::*;

/// Bytes that do not compress and are the same every time.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn recipe_of(image: &[u8]) -> Recipe {
    let recipe = Recipe::build(image, ArtifactId::of(image), image.len() as u64).unwrap();
    recipe.expect("an image of this length has one")
}

fn read(bytes: &[u8], image: &[u8]) -> Result<Recipe, RecipeError> {
    Recipe::from_bytes(bytes, ArtifactId::of(image), image.len() as u64)
}

fn chunks(parts: &[&[u8]]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(CHUNK_SIZES);
    for part in parts {
        chunker.push(part, |chunk| chunks.push(chunk));
    }
    chunker.finish(|chunk| chunks.push(chunk));
    chunks
}

#[test]
fn what_does_not_fit_the_image_is_refused_by_name() {
    let (image, other) = (
        noise(1, 3 * PIECE_BYTES_MIN as usize),
        noise(2, 3 * PIECE_BYTES_MIN as usize),
    );
    let good = recipe_of(&image).to_bytes();
    assert_eq!(read(&good, &image).unwrap(), recipe_of(&image));
    let code = |bytes: &[u8], image: &[u8]| read(bytes, image).unwrap_err().code();
    assert_eq!(code(&good, &other), "recipe_root");
    assert_eq!(code(&good, &image[1..]), "recipe_root");
    assert_eq!(code(&good, b"an image of one piece"), "recipe_length");
    assert_eq!(code(b"", &image), "recipe_format");
    let mut later = good.clone();
    later[7] += 1;
    assert_eq!(code(&later, &image), "recipe_format");
    assert_eq!(code(&good[..good.len() - 1], &image), "recipe_length");
    assert_eq!(code(&good[..good.len() - 10], &image), "recipe_chunks");
    assert_eq!(
        code(&[&good[..], &good[good.len() - 10..]].concat(), &image),
        "recipe_chunks"
    );
    let mut short = good.clone();
    short[8 + 3 * 32..][..2].copy_from_slice(&[0, 0]);
    assert_eq!(code(&short, &image), "recipe_chunks");
    let none = Recipe::from_bytes(&good, ArtifactId::of(&image), RECIPE_IMAGE_BYTES_MAX + 1).unwrap_err();
    assert_eq!(none.code(), "recipe_unexpected");
    let nothing = Recipe::from_bytes(&good, ArtifactId::of(&image), 0).unwrap_err();
    assert_eq!(nothing.code(), "recipe_unexpected");
    let longest = 8 + RECIPE_IMAGE_BYTES_MAX / PIECE_BYTES_MAX * 32 + CHUNKS_MAX as u64 * 10;
    assert_eq!(RECIPE_BYTES_MAX, longest);
}

#[test]
fn an_image_that_cannot_be_read_to_its_end_has_no_recipe() {
    let image = noise(1, 100_000);
    assert!(Recipe::build(&image[..], ArtifactId::of(&image), 100_001).is_err());
    assert!(Recipe::build(&image[..], ArtifactId::of(b"other"), 100_000).is_err());
}

/// The index is what everybody pays: it may not grow by content that is all alike.
#[test]
fn a_recipe_is_a_small_part_of_its_image() {
    for image in [noise(1, 4 << 20), vec![0; 4 << 20]] {
        let bytes = recipe_of(&image).to_bytes().len();
        assert!(bytes * 300 < image.len(), "{bytes} bytes for {}", image.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_recipe_survives_being_written_and_no_change_of_it_is_believed_about_the_hashes(
        length in 1_usize..900_000, at in any::<prop::sample::Index>(), bit in 0_u8..8
    ) {
        let image = noise(7, length);
        let recipe = recipe_of(&image);
        let mut bytes = recipe.to_bytes();
        prop_assert_eq!(&read(&bytes, &image).unwrap(), &recipe);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(changed) = read(&bytes, &image) {
            prop_assert_eq!(changed.tree(), recipe.tree());
            prop_assert_eq!(changed.to_bytes(), bytes);
        }
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3_000), length in any::<u64>(), magic in any::<bool>()) {
        let bytes = if magic { [b"FMRECIP\x01", &bytes[..]].concat() } else { bytes };
        prop_assert!(Recipe::from_bytes(&bytes, ArtifactId::of(b"x"), length).is_err());
    }

    #[test]
    fn the_cuts_do_not_depend_on_how_the_bytes_come(cuts in prop::collection::vec(0_usize..300_000, 0..6)) {
        let image = noise(3, 300_000);
        let mut cuts = cuts;
        cuts.extend([0, image.len()]);
        cuts.sort_unstable();
        let parts: Vec<_> = cuts.windows(2).map(|pair| &image[pair[0]..pair[1]]).collect();
        prop_assert_eq!(chunks(&parts), chunks(&[&image]));
        prop_assert_eq!(chunks(&[&image]), recipe_of(&image).chunks().to_vec());
    }

    #[test]
    fn an_insertion_changes_few_chunks(at in 0_usize..500_000, bytes in 1_usize..3_000) {
        let old = noise(4, 500_000);
        let new = [&old[..at], &noise(5, bytes), &old[at..]].concat();
        let known = chunks(&[&old]);
        let unknown: u64 = chunks(&[&new]).iter().filter(|chunk| !known.contains(chunk)).map(|chunk| u64::from(chunk.bytes)).sum();
        prop_assert!(unknown < (bytes + 6 * CHUNK_SIZES.max) as u64, "{} bytes changed", unknown);
    }
}
