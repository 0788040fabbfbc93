use std::sync::Arc;

use firmesh_protocol::chunk::{HashTree, decode_groups, encode, encode_groups};
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::store::{PieceStore, StoreKey};

/// Bytes that do not compress and are the same every time.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// A store that holds some images whole, and their names.
async fn store_with(
    key: Option<StoreKey>,
    images: &[&[u8]],
) -> (tempfile::TempDir, Arc<dyn ChunkStore>, Vec<(ArtifactId, u64)>) {
    let folder = tempfile::tempdir().unwrap();
    let (lost, _) = mpsc::channel(1);
    let store: Arc<dyn ChunkStore> = Arc::new(PieceStore::open(folder.path(), key, lost).await.unwrap());
    let mut names = Vec::new();
    for image in images {
        names.push(put(&*store, image).await);
    }
    names.sort_unstable();
    assert_eq!(store.whole().await.unwrap(), names);
    (folder, store, names)
}

async fn put(store: &dyn ChunkStore, image: &[u8]) -> (ArtifactId, u64) {
    let tree = HashTree::build(image, image.len() as u64).unwrap();
    let layout = PieceLayout::new(tree.length);
    for piece in 0..layout.pieces() {
        let encoded = encode(image, &tree, &layout.bytes(piece)).unwrap();
        store.put(tree.root, layout, piece, encoded.into()).await.unwrap();
    }
    (tree.root, tree.length)
}

async fn plan(
    store: &dyn ChunkStore,
    recipe: &[u8],
    image: &[u8],
    sources: Vec<(ArtifactId, u64)>,
) -> Result<Plan, DeltaError> {
    let recipe = put(store, recipe).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let (id, length) = (ArtifactId::of(image), image.len() as u64);
    Plan::make(store, id, length, recipe, sources, deadline).await
}

fn recipe_of(image: &[u8]) -> Vec<u8> {
    let recipe = Recipe::build(image, ArtifactId::of(image), image.len() as u64).unwrap();
    recipe.unwrap().to_bytes()
}

/// Puts an image together as a node would, fetching what is missing. How many bytes came from here and how many did not.
async fn assemble(store: &dyn ChunkStore, plan: &Plan, image: &[u8]) -> (u64, u64) {
    let tree = HashTree::build(image, image.len() as u64).unwrap();
    let layout = plan.layout();
    let (mut reused, mut fetched) = (0, 0);
    for piece in 0..layout.pieces() {
        let part = plan.part(store, piece).await.unwrap();
        assert_eq!(part.groups == Groups::all(layout, piece), plan.whole().contains(piece));
        let missing = Groups::all(layout, piece).without(part.groups);
        reused += part.groups.bytes(layout, piece);
        fetched += missing.bytes(layout, piece);
        let rest = match missing.is_empty() {
            true => Vec::new(),
            false => {
                let encoded = encode_groups(image, &tree, piece, missing).unwrap();
                decode_groups(&encoded, tree.root, layout, piece, missing).unwrap()
            }
        };
        let encoded = plan.encode(piece, part, &rest).expect("the recipe is honest");
        store.put(tree.root, layout, piece, encoded).await.unwrap();
    }
    let mut bytes = Vec::new();
    store.reader(tree.root).read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == image, "the image came out different");
    (reused, fetched)
}

#[tokio::test]
async fn a_new_image_comes_out_of_two_old_ones_in_a_plain_and_in_an_encrypted_store() {
    let (first, second) = (noise(1, 1_500_000), noise(2, 1_300_000));
    let new = [&second[..700_000], &noise(3, 50_000)[..], &first[300_000..1_500_000]].concat();
    for key in [None, Some(StoreKey::from([7; 32]))] {
        let (_folder, store, sources) = store_with(key, &[&first, &second]).await;
        let plan = plan(&*store, &recipe_of(&new), &new, sources).await.unwrap();
        let (reused, fetched) = assemble(&*store, &plan, &new).await;
        assert_eq!(reused + fetched, new.len() as u64);
        assert!(fetched < 300_000, "{fetched} bytes were fetched for 50,000 new ones");
    }
}

#[tokio::test]
async fn without_an_old_image_or_in_no_time_nothing_is_found() {
    let image = noise(1, 600_000);
    let (_folder, store, sources) = store_with(None, &[&image]).await;
    let nothing = plan(&*store, &recipe_of(&image), &image, Vec::new()).await.unwrap();
    assert_eq!(nothing.whole().count(), 0);
    let recipe = put(&*store, &recipe_of(&image)).await;
    let (id, length) = sources[0];
    let late = Plan::make(&*store, id, length, recipe, sources.clone(), Instant::now())
        .await
        .unwrap();
    assert!((0..10).all(|piece| late.groups(piece).is_empty()));
}

#[tokio::test]
async fn a_recipe_of_another_image_is_refused_by_name() {
    let (old, new) = (noise(1, 600_000), noise(2, 600_000));
    let (_folder, store, sources) = store_with(None, &[&old]).await;
    let refused = plan(&*store, &recipe_of(&old), &new, sources.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), "recipe_root");
    let refused = plan(&*store, b"no recipe", &new, sources.clone()).await.unwrap_err();
    assert_eq!(refused.code(), "recipe_format");
    let gone = (ArtifactId::of(b"gone"), 4);
    let gone = Plan::make(&*store, ArtifactId::of(&new), 600_000, gone, sources, Instant::now()).await;
    assert_eq!(gone.unwrap_err().code(), "recipe_unreadable");
}

/// Its piece hashes are the image's, or it would be refused; its chunks say that the old image has what it has not.
#[tokio::test]
async fn a_recipe_that_lies_about_chunks_costs_the_piece_and_no_more() {
    let old = noise(1, 600_000);
    let mut new = old.clone();
    new[300_000] ^= 1;
    let honest = recipe_of(&new);
    let chunks_at = honest.len()
        - Recipe::from_bytes(&honest, ArtifactId::of(&new), 600_000)
            .unwrap()
            .chunks()
            .len()
            * 10;
    let of_old = recipe_of(&old);
    let chunks_of_old = of_old.len()
        - Recipe::from_bytes(&of_old, ArtifactId::of(&old), 600_000)
            .unwrap()
            .chunks()
            .len()
            * 10;
    let lie = [&honest[..chunks_at], &of_old[chunks_of_old..]].concat();
    let (_folder, store, sources) = store_with(None, &[&old]).await;
    let plan = plan(&*store, &lie, &new, sources).await.unwrap();
    assert!(plan.whole().is_full(), "the lie says that all is here");
    let made: Vec<bool> = {
        let mut made = Vec::new();
        for piece in 0..10 {
            let part = plan.part(&*store, piece).await.unwrap();
            made.push(plan.encode(piece, part, &[]).is_some());
        }
        made
    };
    // The changed byte lies in the fifth.
    assert!(
        made.iter().enumerate().all(|(piece, made)| *made == (piece != 4)),
        "{made:?}"
    );
    assert!(plan.groups(4).is_empty(), "the next request is for the whole piece");
}

/// What is done to an image between two versions.
#[derive(Debug, Clone)]
enum Edit {
    Change(prop::sample::Index, usize),
    Insert(prop::sample::Index, usize),
    Remove(prop::sample::Index, usize),
    Append(usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<prop::sample::Index>;
    let edit = prop_oneof![
        (at(), 1_usize..5_000).prop_map(|(at, bytes)| Edit::Change(at, bytes)),
        (at(), 1_usize..5_000).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), 1_usize..50_000).prop_map(|(at, bytes)| Edit::Remove(at, bytes)),
        (1_usize..100_000).prop_map(Edit::Append),
    ];
    prop::collection::vec(edit, 0..5)
}

fn edited(mut image: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for (seed, edit) in (100..).zip(edits) {
        match edit {
            Edit::Change(at, bytes) => {
                let at = at.index(image.len());
                let end = (at + bytes).min(image.len());
                let new = noise(seed, end - at);
                image[at..end].copy_from_slice(&new);
            }
            Edit::Insert(at, bytes) => {
                let at = at.index(image.len());
                image.splice(at..at, noise(seed, *bytes));
            }
            Edit::Remove(at, bytes) => {
                let at = at.index(image.len()).max(1);
                let end = (at + bytes).min(image.len());
                image.drain(at..end);
            }
            Edit::Append(bytes) => image.extend(noise(seed, *bytes)),
        }
    }
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_was_edited_the_result_is_the_image_and_what_was_reused_was_not_fetched(
        length in 1_usize..1_200_000, edits in edits()
    ) {
        let old = noise(9, length);
        let new = edited(old.clone(), &edits);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (reused, fetched) = runtime.block_on(async {
            let (_folder, store, sources) = store_with(None, &[&old]).await;
            let plan = plan(&*store, &recipe_of(&new), &new, sources).await.unwrap();
            assemble(&*store, &plan, &new).await
        });
        prop_assert_eq!(reused + fetched, new.len() as u64);
        prop_assert!(!edits.is_empty() || fetched == 0, "{} bytes of the same image were fetched", fetched);
        // An edit spoils the chunks that it touches, and those up to where the cuts fall in with the old ones again.
        let changed: usize = edits.iter().map(|edit| match edit {
            Edit::Change(_, bytes) | Edit::Insert(_, bytes) | Edit::Append(bytes) => *bytes,
            Edit::Remove(..) => 0,
        }).sum();
        let bound = (changed + edits.len() * 8 * CHUNK_SIZES.max) as u64;
        prop_assert!(fetched <= bound, "{} bytes were fetched, {} were expected at most", fetched, bound);
    }
}
