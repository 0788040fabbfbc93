use std::{fs, os::unix::fs::FileExt, time::Duration};

use super::*;
use bao_tree::ChunkNum;
use firmesh_protocol::chunk::{DecodeError, HashTree, PIECE_BYTES_MIN, encode, encode_groups};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::sync::CancellationToken;

struct Image {
    bytes: Vec<u8>,
    tree: HashTree,
    layout: PieceLayout,
}

impl Image {
    fn new(length: u64) -> Self {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        blake3::Hasher::new()
            .update(b"an image")
            .finalize_xof()
            .fill(&mut bytes);
        let tree = HashTree::build(&bytes[..], length).unwrap();
        let layout = PieceLayout::new(length);
        Self { bytes, tree, layout }
    }

    fn encoded(&self, range: &Range<u64>) -> Bytes {
        encode(&self.bytes[..], &self.tree, range).unwrap().into()
    }

    async fn put(&self, store: &PieceStore, pieces: impl IntoIterator<Item = u32>) {
        for piece in pieces {
            let encoded = self.encoded(&self.layout.bytes(piece));
            store.put(self.tree.root, self.layout, piece, encoded).await.unwrap();
        }
    }

    async fn held(&self, store: &PieceStore) -> Vec<u32> {
        store
            .pieces(self.tree.root, self.layout)
            .await
            .unwrap()
            .iter()
            .collect()
    }

    async fn slice(&self, store: &PieceStore, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut slice = store.slice(self.tree.root, range);
        let mut bytes = Vec::new();
        while let Some(part) = slice.next().await {
            bytes.extend_from_slice(&part?);
        }
        Ok(bytes)
    }

    async fn read(&self, store: &PieceStore, from: u64) -> io::Result<Vec<u8>> {
        let mut reader = store.reader(self.tree.root);
        let mut bytes = Vec::new();
        reader.seek(io::SeekFrom::Start(from)).await?;
        reader.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }
}

async fn open(folder: &Path, key: Option<&StoreKey>) -> (PieceStore, mpsc::Receiver<Lost>) {
    let (lost, lost_rx) = mpsc::channel(64);
    (PieceStore::open(folder, key.cloned(), lost).await.unwrap(), lost_rx)
}

async fn refused(folder: &Path, key: Option<&StoreKey>) -> &'static str {
    let (lost, _) = mpsc::channel(1);
    PieceStore::open(folder, key.cloned(), lost).await.unwrap_err().code()
}

fn keys() -> [Option<StoreKey>; 2] {
    [None, Some(StoreKey::from([5; 32]))]
}

#[tokio::test]
async fn pieces_go_in_verified_survive_and_come_out_as_they_came() {
    for key in keys() {
        let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(2 * PIECE_BYTES_MIN + 20_000));
        let (store, _lost) = open(folder.path(), key.as_ref()).await;
        assert_eq!(image.held(&store).await, [0_u32; 0]);
        image.put(&store, [2, 0]).await;
        assert_eq!(image.held(&store).await, [0, 2]);
        let sent = image.slice(&store, image.layout.bytes(2)).await.unwrap();
        assert_eq!(sent, image.encoded(&image.layout.bytes(2)));
        let missing = image.slice(&store, image.layout.bytes(1)).await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(image.read(&store, PIECE_BYTES_MIN).await.is_err());
        drop(store);

        let (store, _lost) = open(folder.path(), key.as_ref()).await;
        assert_eq!(image.held(&store).await, [0, 2]);
        image.put(&store, [1, 1]).await;
        assert_eq!(image.held(&store).await, [0, 1, 2]);
        for from in [0, PIECE_BYTES_MIN - 5, PIECE_BYTES_MIN + 20_000, image.layout.length()] {
            assert_eq!(image.read(&store, from).await.unwrap(), image.bytes[from as usize..]);
        }
    }
}

/// Only the store knows how an artifact is cut: who asks for groups may know it otherwise, or lie.
#[tokio::test]
async fn groups_are_given_of_one_piece_and_nothing_else() {
    let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(2 * PIECE_BYTES_MIN + 20_000));
    let (store, _lost) = open(folder.path(), None).await;
    image.put(&store, [0, 1]).await;
    let (root, layout) = (image.tree.root, image.layout);
    let groups: Groups = "0009".parse().unwrap();
    let encoded = store.groups(root, groups.chunks(layout, 1)).await.unwrap();
    let expected = encode_groups(&image.bytes[..], &image.tree, 1, groups).unwrap();
    assert_eq!(encoded, expected);
    let chunks = |ranges: &[std::ops::Range<u64>]| {
        ranges.iter().fold(ChunkRanges::empty(), |all, range| {
            all | ChunkRanges::from(ChunkNum(range.start)..ChunkNum(range.end))
        })
    };
    // Of two pieces, not on a boundary of groups, and behind the end.
    for bad in [
        chunks(&[0..16, 64..80]),
        chunks(&[0..16, 33..48]),
        chunks(&[128..144, 160..176]),
    ] {
        let error = store.groups(root, bad.clone()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad:?}");
    }
    let absent = store.groups(root, chunks(&[128..144, 144..148])).await.unwrap_err();
    assert_eq!(absent.kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn pieces_that_come_all_at_once_are_all_there() {
    for key in keys() {
        let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(12 * PIECE_BYTES_MIN + 1));
        let (store, _lost) = open(folder.path(), key.as_ref()).await;
        let puts = (0..image.layout.pieces()).chain(0..image.layout.pieces()).map(|piece| {
            let encoded = image.encoded(&image.layout.bytes(piece));
            store.put(image.tree.root, image.layout, piece, encoded)
        });
        futures_util::future::join_all(puts)
            .await
            .into_iter()
            .for_each(Result::unwrap);
        drop(store);
        let (store, _lost) = open(folder.path(), key.as_ref()).await;
        assert_eq!(image.read(&store, 0).await.unwrap(), image.bytes);
    }
}

#[tokio::test]
async fn a_corrupt_piece_is_refused_and_nothing_is_stored() {
    let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(PIECE_BYTES_MIN + 20_000));
    let (store, _lost) = open(folder.path(), None).await;
    let whole = image.encoded(&image.layout.bytes(0));
    let put = async |encoded: Vec<u8>| {
        store
            .put(image.tree.root, image.layout, 0, encoded.into())
            .await
            .unwrap_err()
    };
    for at in [8, 100, whole.len() / 2, whole.len() - 1] {
        let mut bad = whole.to_vec();
        bad[at] ^= 1;
        let error = put(bad).await;
        assert!(
            matches!(error, PutError::Corrupt(DecodeError::Corrupt { .. })),
            "{error:?}"
        );
        let error = put(whole[..at].to_vec()).await;
        assert!(
            matches!(error, PutError::Corrupt(DecodeError::Truncated { .. })),
            "{error:?}"
        );
    }
    let mut longer = whole.to_vec();
    longer[0] ^= 1;
    let error = put(longer).await;
    assert!(
        matches!(error, PutError::Corrupt(DecodeError::WrongLength { .. })),
        "{error:?}"
    );
    // Another piece's bytes, a piece that does not exist, another length.
    let error = put(image.encoded(&image.layout.bytes(1)).to_vec()).await;
    assert!(matches!(error, PutError::Corrupt(_)), "{error:?}");
    let root = image.tree.root;
    assert!(matches!(
        store.put(root, image.layout, 2, whole.clone()).await,
        Err(PutError::Store(_))
    ));
    assert!(matches!(
        store.put(root, PieceLayout::new(7), 0, whole).await,
        Err(PutError::Store(_))
    ));
    assert_eq!(image.held(&store).await, [0_u32; 0]);
    let stored = fs::metadata(folder.path().join(file_name(root, image.layout.length(), CONTENT)));
    assert_eq!(stored.unwrap().len(), 0);
}

#[tokio::test]
async fn an_encrypted_store_has_no_window_of_the_image_on_disk() {
    let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(PIECE_BYTES_MIN + 20_000));
    let seen = async |key: Option<&StoreKey>, folder: &Path| {
        let (store, _lost) = open(folder, key).await;
        image.put(&store, [0, 1]).await;
        let windows: std::collections::HashSet<&[u8]> = image.bytes.chunks_exact(64).collect();
        let files = fs::read_dir(folder)
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap());
        files
            .map(|file| file.windows(64).filter(|window| windows.contains(window)).count())
            .sum::<usize>()
    };
    assert_eq!(seen(keys()[1].as_ref(), &folder.path().join("encrypted")).await, 0);
    assert_eq!(seen(None, &folder.path().join("plain")).await, image.bytes.len() / 64);
}

#[tokio::test]
async fn a_store_opens_only_with_its_own_key_and_says_what_to_do() {
    let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(5_000));
    let [_, key] = keys();
    let other = StoreKey::from([6; 32]);
    let at = |name: &str| folder.path().join(name);
    for (name, made_with) in [("plain", None), ("encrypted", key.as_ref())] {
        let (store, _lost) = open(&at(name), made_with).await;
        assert_eq!(refused(&at(name), made_with).await, "store_in_use");
        image.put(&store, [0]).await;
    }
    assert_eq!(refused(&at("plain"), key.as_ref()).await, "store_not_encrypted");
    assert_eq!(refused(&at("encrypted"), None).await, "store_key_missing");
    assert_eq!(refused(&at("encrypted"), Some(&other)).await, "store_wrong_key");
    // Nothing was harmed by the attempts; and what holds nothing belongs to whoever comes.
    for (name, key) in [("plain", None), ("encrypted", key.as_ref())] {
        assert_eq!(image.read(&open(&at(name), key).await.0, 0).await.unwrap(), image.bytes);
    }
    for key in [None, key.as_ref(), Some(&other), None] {
        open(&at("empty"), key).await;
    }
    fs::write(at("plain/format.json"), "{\"version\":\"2\"}").unwrap();
    assert_eq!(refused(&at("plain"), None).await, "store_header");
    fs::write(at("file"), "").unwrap();
    assert_eq!(refused(&at("file"), None).await, "store_folder");
}

#[tokio::test]
async fn what_the_earlier_engine_left_is_removed_and_foreign_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data")).unwrap();
    for file in ["blobs.db", "data/x.data", "notes.txt", "zz.12.content"] {
        fs::write(folder.path().join(file), "plaintext").unwrap();
    }
    open(folder.path(), keys()[1].as_ref()).await;
    let mut left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["format.json", "lock", "notes.txt", "zz.12.content"]);
}

/// Runs a case of a property test.
fn run<T>(case: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(case)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_range_comes_out_as_the_reference_encodes_it(
        length in 1_u64..3_500_000,
        at in any::<prop::sample::Index>(),
        bytes in prop_oneof![1_u64..40_000, 1_u64..3_500_000],
        encrypted in any::<bool>(),
    ) {
        let image = Image::new(length);
        let start = at.index(usize::try_from(length).unwrap()) as u64 / 1024 * 1024;
        let range = start..(start + bytes).min(length);
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let (store, _lost) = open(folder.path(), keys()[usize::from(encrypted)].as_ref()).await;
            image.put(&store, 0..image.layout.pieces()).await;
            assert_eq!(image.slice(&store, range.clone()).await.unwrap(), image.encoded(&range));
            assert_eq!(image.read(&store, start).await.unwrap(), image.bytes[start as usize..]);
        });
    }

    #[test]
    fn a_flipped_bit_anywhere_is_never_served_and_its_piece_comes_again(
        records in any::<bool>(),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
        encrypted in any::<bool>(),
        while_open in any::<bool>(),
    ) {
        let image = Image::new(2 * PIECE_BYTES_MIN + 40_000);
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let key = keys()[usize::from(encrypted)].clone();
            let (mut store, mut lost) = open(folder.path(), key.as_ref()).await;
            image.put(&store, 0..3).await;
            let kind = if records { RECORDS } else { CONTENT };
            let path = folder.path().join(file_name(image.tree.root, image.layout.length(), kind));
            let at = at.index(usize::try_from(fs::metadata(&path).unwrap().len()).unwrap()) as u64;
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            FileExt::read_exact_at(&file, &mut byte, at).unwrap();
            FileExt::write_all_at(&file, &[byte[0] ^ 1 << bit], at).unwrap();
            if !while_open {
                drop(store);
                (store, lost) = open(folder.path(), key.as_ref()).await;
            }
            let believed = image.held(&store).await;
            assert!(while_open || records || believed.len() == 3);
            // Neighbours get from memory what came in lately, devices never do: reading finds the damage.
            assert!(image.read(&store, 0).await.is_err());
            let mut served = Vec::new();
            for &piece in &believed {
                match image.slice(&store, image.layout.bytes(piece)).await {
                    Ok(encoded) => {
                        assert_eq!(encoded, image.encoded(&image.layout.bytes(piece)));
                        served.push(piece);
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                        assert_eq!(lost.recv().await, Some(Lost { artifact: image.tree.root, piece }));
                    }
                }
            }
            assert_eq!(served.len(), 2);
            assert_eq!(image.held(&store).await, served);
            assert!(image.read(&store, 0).await.is_err());
            image.put(&store, 0..3).await;
            assert_eq!(image.read(&store, 0).await.unwrap(), image.bytes);
            assert_eq!(image.held(&store).await, [0, 1, 2]);
        });
    }
}

#[tokio::test]
async fn an_evicted_artifact_is_gone_and_can_come_again_and_what_is_open_stays_readable() {
    for key in keys() {
        let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(2 * PIECE_BYTES_MIN + 1));
        let (store, _lost) = open(folder.path(), key.as_ref()).await;
        image.put(&store, 0..3).await;
        let root = image.tree.root;
        let opened = store.opened(root).unwrap();
        let mut reader = store.reader(root);
        let mut first = [0; 100];
        reader.read_exact(&mut first).await.unwrap();
        store.evict(root).await.unwrap();
        store.evict(root).await.unwrap();
        assert!(!store.lists(root));
        assert_eq!(image.held(&store).await, [0_u32; 0]);
        let refused = image.slice(&store, image.layout.bytes(0)).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        // Whoever reads on reads the truth to the end of what it has, and then a named error.
        let mut rest = Vec::new();
        let error = reader.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!([&first[..], &rest].concat(), image.bytes[..PIECE_BYTES_MIN as usize]);
        assert_eq!(opened.encoded(1).unwrap().1, image.encoded(&image.layout.bytes(1)));
        assert_eq!(artifacts_in(folder.path()).unwrap(), BTreeMap::new());

        image.put(&store, [1]).await;
        drop((store, opened, reader));
        let (store, _lost) = open(folder.path(), key.as_ref()).await;
        assert_eq!(image.held(&store).await, [1]);
    }
}

#[tokio::test]
async fn pieces_that_come_while_their_artifact_is_evicted_are_held_or_not_but_never_wrong() {
    let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(24 * PIECE_BYTES_MIN));
    let (store, _lost) = open(folder.path(), None).await;
    for _ in 0..4 {
        let puts = (0..24).map(|piece| {
            let encoded = image.encoded(&image.layout.bytes(piece));
            store.put(image.tree.root, image.layout, piece, encoded)
        });
        let (evicted, put) = tokio::join!(store.evict(image.tree.root), futures_util::future::join_all(puts));
        evicted.unwrap();
        put.into_iter().for_each(Result::unwrap);
        for piece in image.held(&store).await {
            let bytes = image.layout.bytes(piece);
            assert_eq!(image.slice(&store, bytes.clone()).await.unwrap(), image.encoded(&bytes));
        }
        image.put(&store, 0..24).await;
        assert_eq!(image.read(&store, 0).await.unwrap(), image.bytes);
    }
}

#[tokio::test]
async fn a_survey_counts_what_lies_on_the_disk_and_what_will() {
    let (folder, image) = (tempfile::tempdir().unwrap(), Image::new(8 * PIECE_BYTES_MIN));
    let (store, _lost) = open(folder.path(), None).await;
    assert!(store.survey().await.unwrap().artifacts.is_empty());
    image.put(&store, [7]).await;
    let survey = store.survey().await.unwrap();
    let [seen] = &survey.artifacts[..] else {
        panic!("{survey:?}")
    };
    assert_eq!((seen.artifact, seen.length), (image.tree.root, image.layout.length()));
    assert!(
        (PIECE_BYTES_MIN..2 * PIECE_BYTES_MIN).contains(&seen.bytes_now),
        "a hole was counted: {seen:?}"
    );
    assert_eq!(bytes_whole(image.layout.length()), 8 * (PIECE_BYTES_MIN + 4096));
    assert!(
        seen.last_needed.unix_seconds() > 1_700_000_000,
        "nothing was noted: the file's own time counts"
    );
    store.note_needs(
        [image.tree.root, ArtifactId::of(b"absent")],
        WallTime::from_unix_seconds(5_000_000_000),
    );
    store.note_sha256(image.tree.root, Sha256::of(b"x"), WallTime::from_unix_seconds(5));
    store.shutdown().await.unwrap();
    drop(store);

    let (store, _lost) = open(folder.path(), None).await;
    assert_eq!(
        store.survey().await.unwrap().artifacts[0].last_needed.unix_seconds(),
        5_000_000_000
    );
    assert_eq!(store.sha256(image.tree.root), Some(Sha256::of(b"x")));
    assert_eq!(store.sha256(ArtifactId::of(b"absent")), None);
    // What was served to a neighbour was needed by one.
    image.slice(&store, image.layout.bytes(7)).await.unwrap();
    store.note_needs([], WallTime::from_unix_seconds(6_000_000_000));
    assert_eq!(
        store.survey().await.unwrap().artifacts[0].last_needed.unix_seconds(),
        6_000_000_000
    );
}

/// Waits until something holds.
async fn until(awaited: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{awaited} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_scrub_finds_what_rots_says_so_once_and_goes_on_after_a_restart_where_it_was() {
    for key in keys() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Image::new(6 * PIECE_BYTES_MIN), Image::new(5 * PIECE_BYTES_MIN + 9));
        let (store, mut lost) = open(folder.path(), key.as_ref()).await;
        one.put(&store, 0..6).await;
        two.put(&store, [0, 2, 5]).await;
        let path = folder
            .path()
            .join(file_name(one.tree.root, one.layout.length(), CONTENT));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let at = 4 * PIECE_BYTES_MIN + 77;
        let mut byte = [0];
        FileExt::read_exact_at(&file, &mut byte, at).unwrap();
        FileExt::write_all_at(&file, &[byte[0] ^ 8], at).unwrap();

        let clock = Arc::new(AtomicU64::new(1_800_000_000));
        let scrub = |store: &PieceStore, bytes_per_second| {
            let (cancel, store, clock) = (CancellationToken::new(), store.clone(), Arc::clone(&clock));
            let every = Duration::from_secs(86_400);
            let pace = Pace {
                bytes_per_second,
                every,
            };
            let now = move || WallTime::from_unix_seconds(clock.load(Ordering::Relaxed) as i64);
            let stop = cancel.clone();
            (cancel, tokio::spawn(async move { store.scrub(pace, now, stop).await }))
        };
        // A piece takes an eighth of a second; stopped after some.
        let (cancel, task) = scrub(&store, 8 * PIECE_BYTES_MIN);
        until("the scrub of two pieces", || {
            store.scrubbed().bytes_checked >= 2 * PIECE_BYTES_MIN
        })
        .await;
        cancel.cancel();
        task.await.unwrap();
        let before = store.scrubbed();
        assert!(before.at.is_some() && before.passes == 0, "{before:?}");
        store.shutdown().await.unwrap();
        drop(store);

        let (store, mut lost_later) = open(folder.path(), key.as_ref()).await;
        assert_eq!(store.scrubbed(), before);
        let (cancel, task) = scrub(&store, 1 << 30);
        until("the first pass", || store.scrubbed().passes == 1).await;
        let after = store.scrubbed();
        // Whole pieces only, and each once: what came before the restart is not read again.
        let sound = 5 * PIECE_BYTES_MIN + 2 * PIECE_BYTES_MIN + 9;
        assert_eq!(
            (after.bytes_checked, after.pieces_lost, after.at),
            (sound, 1, None),
            "{after:?}"
        );
        assert_eq!(one.held(&store).await, [0, 1, 2, 3, 5]);
        let mut told: Vec<_> = std::iter::from_fn(|| lost.try_recv().ok()).collect();
        told.extend(std::iter::from_fn(|| lost_later.try_recv().ok()));
        let artifact = one.tree.root;
        assert_eq!(told, [Lost { artifact, piece: 4 }]);

        // It comes again; a day later everything is looked at again.
        one.put(&store, [4]).await;
        clock.fetch_add(86_400, Ordering::Relaxed);
        until("the second pass", || store.scrubbed().passes == 2).await;
        cancel.cancel();
        task.await.unwrap();
        let again = store.scrubbed();
        assert_eq!(
            (again.bytes_checked, again.pieces_lost),
            (2 * sound + PIECE_BYTES_MIN, 1),
            "{again:?}"
        );
    }
}

#[tokio::test]
async fn a_scrub_of_no_bytes_in_a_second_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _lost) = open(folder.path(), None).await;
    let (bytes_per_second, every) = (0, Duration::from_secs(1));
    let pace = Pace {
        bytes_per_second,
        every,
    };
    store
        .scrub(pace, || WallTime::from_unix_seconds(5), CancellationToken::new())
        .await;
    assert_eq!(store.scrubbed(), Scrubbed::default());
}
