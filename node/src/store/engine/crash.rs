//! Power loss at any point of a recorded sequence of writes: what was acknowledged is there, and nothing else is believed.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IoSlice, IoSliceMut},
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use firmesh_protocol::{
    chunk::{HashTree, PIECE_BYTES_MIN, PieceLayout, encode},
    ids::ArtifactId,
    time::WallTime,
};
use nix::errno::Errno;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::{
    PieceStore,
    artifact::{Artifact, PutFailure},
    eviction::{self, Folder, artifacts_in},
    medium::Medium,
    seal::{Seal, StoreKey},
};
use crate::store::ChunkStore as _;

const PIECES: u32 = 5;
const LENGTH: u64 = 4 * PIECE_BYTES_MIN + 20_000;

/// What happened to two files, in order.
#[derive(Debug, Clone)]
enum Event {
    Written {
        file: usize,
        offset: u64,
        bytes: Vec<u8>,
    },
    Synced {
        file: usize,
    },
    /// A barrier failed: what was written before it may be lost, and no later barrier makes up for that.
    SyncFailed {
        file: usize,
    },
    Acknowledged {
        piece: u32,
    },
}

/// What becomes of a write that no barrier followed.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Kept,
    Forgotten,
    /// Only the beginning, up to a share of 256.
    Cut(u8),
    /// The file grew, its new bytes are zero.
    Zeroed,
    /// Of every two sectors one, beginning with this one.
    Sectors(u8),
}

/// Two files in memory.
#[derive(Debug, Default)]
struct Disk {
    files: [Vec<u8>; 2],
    events: Vec<Event>,
    /// Bytes that may still be written, if there is a bound.
    room: Option<usize>,
    /// Barriers that may still be made before one fails, if one does.
    barriers: Option<usize>,
}

#[derive(Debug, Clone)]
struct OnDisk {
    disk: Arc<Mutex<Disk>>,
    file: usize,
}

impl Disk {
    fn write(&mut self, file: usize, offset: u64, bytes: &[u8]) {
        let (file, start) = (&mut self.files[file], offset as usize);
        file.resize(file.len().max(start + bytes.len()), 0);
        file[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// The disk as the first `count` events and a power cut leave it.
    fn after(events: &[Event], fates: &[Fate]) -> Self {
        let mut disk = Self::default();
        let mut fates = fates.iter().cycle();
        for (at, event) in events.iter().enumerate() {
            let Event::Written { file, offset, bytes } = event else {
                continue;
            };
            let barrier = events[at..].iter().find(
                |event| matches!(event, Event::Synced { file: of } | Event::SyncFailed { file: of } if of == file),
            );
            let fate = match barrier {
                Some(Event::Synced { .. }) => &Fate::Kept,
                _ => fates.next().unwrap(),
            };
            match *fate {
                Fate::Kept => disk.write(*file, *offset, bytes),
                Fate::Forgotten => {}
                Fate::Cut(share) => disk.write(*file, *offset, &bytes[..bytes.len() * usize::from(share) / 256]),
                Fate::Zeroed => disk.write(*file, *offset, &vec![0; bytes.len()]),
                Fate::Sectors(first) => {
                    for (number, sector) in bytes.chunks(512).enumerate() {
                        if (number + usize::from(first)) % 2 == 0 {
                            disk.write(*file, offset + number as u64 * 512, sector);
                        }
                    }
                }
            }
        }
        disk
    }
}

impl Medium for OnDisk {
    fn read(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        let disk = self.disk.lock().unwrap();
        let mut at = offset as usize;
        for buffer in buffers {
            let part = disk.files[self.file].get(at..at + buffer.len());
            buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            at += buffer.len();
        }
        Ok(())
    }

    fn write(&self, buffers: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
        let fits = disk.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        disk.room = disk.room.map(|room| room - fits);
        let (file, is_all) = (self.file, fits == bytes.len());
        disk.write(file, offset, &bytes[..fits]);
        let bytes = bytes[..fits].to_vec();
        disk.events.push(Event::Written { file, offset, bytes });
        is_all.then_some(()).ok_or_else(|| Errno::ENOSPC.into())
    }

    fn sync(&self) -> io::Result<()> {
        let (file, mut disk) = (self.file, self.disk.lock().unwrap());
        match disk.barriers.as_mut() {
            Some(0) => {
                disk.barriers = None;
                disk.events.push(Event::SyncFailed { file });
                return Err(Errno::EIO.into());
            }
            Some(left) => *left -= 1,
            None => {}
        }
        disk.events.push(Event::Synced { file });
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.lock().unwrap().files[self.file].len() as u64)
    }

    fn let_go(&self, _bytes: std::ops::Range<u64>) {}
}

struct Image {
    tree: HashTree,
    layout: PieceLayout,
    encoded: Vec<Bytes>,
}

impl Image {
    fn new() -> Self {
        let bytes: Vec<u8> = (0..LENGTH).map(|at| (at * 7 + at / 999) as u8 | 1).collect();
        let tree = HashTree::build(&bytes[..], LENGTH).unwrap();
        let layout = PieceLayout::new(LENGTH);
        let encoded = (0..PIECES).map(|piece| encode(&bytes[..], &tree, &layout.bytes(piece)).unwrap().into());
        Self {
            encoded: encoded.collect(),
            tree,
            layout,
        }
    }

    fn open(&self, disk: &Arc<Mutex<Disk>>, key: Option<&StoreKey>) -> Artifact {
        let file = |file| {
            Box::new(OnDisk {
                disk: Arc::clone(disk),
                file,
            })
        };
        let (root, layout) = (self.tree.root, self.layout);
        let (lost, _) = mpsc::channel(1);
        Artifact::open(root, layout, Seal::of(key, root, LENGTH), file(0), file(1), lost).unwrap()
    }

    /// Every piece that counts as held is the right one.
    fn holds_only_the_truth(&self, artifact: &Artifact) {
        let held = artifact.held();
        for piece in held.iter() {
            assert_eq!(
                artifact.encoded(piece).unwrap().1,
                self.encoded[piece as usize],
                "piece {piece}"
            );
        }
        for piece in held.missing() {
            assert_eq!(artifact.encoded(piece).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        Just(Fate::Kept),
        Just(Fate::Forgotten),
        any::<u8>().prop_map(Fate::Cut),
        Just(Fate::Zeroed),
        (0_u8..2).prop_map(Fate::Sectors),
    ]
}

/// As many as `PROPTEST_CASES` says, or a few.
fn cases() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(8),
    }
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn a_power_cut_at_any_write_loses_nothing_acknowledged_and_shows_nothing_else(
        order in Just((0..PIECES).collect::<Vec<_>>()).prop_shuffle(),
        hands in 1_usize..3,
        encrypted in any::<bool>(),
        fates in prop::collection::vec(fate(), 12),
    ) {
        let (image, key) = (Image::new(), encrypted.then(|| StoreKey::from([3; 32])));
        let disk = Arc::<Mutex<Disk>>::default();
        let artifact = image.open(&disk, key.as_ref());
        let put = |pieces: &[u32]| for &piece in pieces {
            artifact.put(piece, image.encoded[piece as usize].clone()).unwrap();
            disk.lock().unwrap().events.push(Event::Acknowledged { piece });
        };
        std::thread::scope(|scope| {
            for pieces in order.chunks(order.len().div_ceil(hands)) {
                scope.spawn(|| put(pieces));
            }
        });
        let events = disk.lock().unwrap().events.clone();
        for count in 0..=events.len() {
            let left = Disk::after(&events[..count], &fates);
            let disk = Arc::new(Mutex::new(left));
            let artifact = image.open(&disk, key.as_ref());
            for event in &events[..count] {
                if let Event::Acknowledged { piece } = event {
                    prop_assert!(artifact.held().contains(*piece), "piece {piece} was acknowledged before event {count}");
                }
            }
            image.holds_only_the_truth(&artifact);
        }
        // From the last of them the rest comes in as if nothing had been.
        let left = Arc::new(Mutex::new(Disk::after(&events[..events.len() / 2], &fates)));
        let artifact = image.open(&left, key.as_ref());
        for piece in 0..PIECES {
            artifact.put(piece, image.encoded[piece as usize].clone()).unwrap();
        }
        prop_assert!(artifact.held().is_full());
        image.holds_only_the_truth(&artifact);
    }

    /// A barrier fails or the disk fills up in the middle, and power goes at any moment after.
    #[test]
    fn a_write_or_barrier_that_fails_is_said_and_a_power_cut_after_it_shows_nothing_but_the_truth(
        barriers in prop::option::of(0_usize..2 * PIECES as usize),
        room in prop::option::of(0_usize..LENGTH as usize + 10_000),
        encrypted in any::<bool>(),
        fates in prop::collection::vec(fate(), 12),
    ) {
        let (image, key) = (Image::new(), encrypted.then(|| StoreKey::from([3; 32])));
        let disk = Arc::<Mutex<Disk>>::default();
        let artifact = image.open(&disk, key.as_ref());
        {
            let mut disk = disk.lock().unwrap();
            (disk.barriers, disk.room) = (barriers, room);
        }
        let mut refused = 0;
        for piece in 0..PIECES {
            match artifact.put(piece, image.encoded[piece as usize].clone()) {
                Ok(()) => disk.lock().unwrap().events.push(Event::Acknowledged { piece }),
                Err(PutFailure::Disk(_)) => {
                    refused += 1;
                    prop_assert!(!artifact.held().contains(piece), "piece {piece} counts, and was refused");
                    // Some of it was deleted elsewhere.
                    disk.lock().unwrap().room = None;
                }
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
        let is_first = |bound: Option<usize>| bound == Some(0);
        prop_assert!(refused > 0 || !(is_first(barriers) || is_first(room)), "nothing was refused");
        image.holds_only_the_truth(&artifact);
        let events = disk.lock().unwrap().events.clone();
        for count in 0..=events.len() {
            let left = Arc::new(Mutex::new(Disk::after(&events[..count], &fates)));
            let artifact = image.open(&left, key.as_ref());
            for event in &events[..count] {
                if let Event::Acknowledged { piece } = event {
                    prop_assert!(artifact.held().contains(*piece), "piece {piece} was acknowledged before event {count}");
                }
            }
            image.holds_only_the_truth(&artifact);
        }
        // The barrier that was to fail may lie beyond the first round: a sound disk takes the rest.
        disk.lock().unwrap().barriers = None;
        for piece in 0..PIECES {
            artifact.put(piece, image.encoded[piece as usize].clone()).unwrap();
        }
        prop_assert!(artifact.held().is_full());
    }

    #[test]
    fn files_cut_or_zeroed_anywhere_show_nothing_but_the_truth(
        file in 0_usize..2,
        from in any::<prop::sample::Index>(),
        zeroed in any::<bool>(),
        encrypted in any::<bool>(),
    ) {
        let (image, key) = (Image::new(), encrypted.then(|| StoreKey::from([3; 32])));
        let disk = Arc::<Mutex<Disk>>::default();
        let artifact = image.open(&disk, key.as_ref());
        for piece in 0..PIECES {
            artifact.put(piece, image.encoded[piece as usize].clone()).unwrap();
        }
        {
            let bytes = &mut disk.lock().unwrap().files[file];
            let from = from.index(bytes.len());
            if zeroed { bytes[from..].fill(0) } else { bytes.truncate(from) }
        }
        let artifact = image.open(&disk, key.as_ref());
        for piece in artifact.held().iter() {
            match artifact.encoded(piece) {
                Ok((_, encoded)) => prop_assert_eq!(&encoded, &image.encoded[piece as usize]),
                Err(error) => {
                    prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                    prop_assert!(!artifact.held().contains(piece));
                }
            }
        }
        // What was found damaged is not believed after a restart either, and can be stored again.
        let believed = artifact.held();
        let artifact = image.open(&disk, key.as_ref());
        prop_assert_eq!(artifact.held(), believed);
        for piece in 0..PIECES {
            artifact.put(piece, image.encoded[piece as usize].clone()).unwrap();
        }
        prop_assert!(artifact.held().is_full());
        image.holds_only_the_truth(&artifact);
    }
}

#[test]
fn a_full_disk_is_said_and_what_fits_later_comes_in() {
    let image = Image::new();
    for room in [
        0,
        1,
        125_000,
        PIECE_BYTES_MIN as usize,
        PIECE_BYTES_MIN as usize + 100,
        2 * PIECE_BYTES_MIN as usize,
    ] {
        let disk = Arc::<Mutex<Disk>>::default();
        let artifact = image.open(&disk, None);
        disk.lock().unwrap().room = Some(room);
        let mut stored = 0;
        let error = loop {
            match artifact.put(stored, image.encoded[stored as usize].clone()) {
                Ok(()) => stored += 1,
                Err(error) => break error,
            }
        };
        let PutFailure::Disk(error) = error else {
            panic!("{error:?}")
        };
        assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32));
        assert_eq!(artifact.held().count(), stored);
        image.holds_only_the_truth(&artifact);
        disk.lock().unwrap().room = None;
        image.holds_only_the_truth(&image.open(&disk, None));
        for piece in 0..PIECES {
            artifact.put(piece, image.encoded[piece as usize].clone()).unwrap();
        }
        assert!(image.open(&disk, None).held().is_full());
    }
}

/// What an eviction did to its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Removal {
    Removed(String),
    Synced,
}

/// A folder that only takes down what was to be done to it.
#[derive(Debug, Default)]
struct Recorded(Mutex<Vec<Removal>>);

impl Folder for Recorded {
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().push(Removal::Removed(name.to_owned()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.lock().unwrap().push(Removal::Synced);
        Ok(())
    }
}

/// The disks that power loss after some of an eviction's operations may leave: what no barrier followed is done or not.
fn disks_after(events: &[Removal]) -> Vec<Vec<String>> {
    let barrier = events.iter().rposition(|event| *event == Removal::Synced).unwrap_or(0);
    let removed = |events: &[Removal]| -> Vec<_> {
        let names = events.iter().filter_map(|event| match event {
            Removal::Removed(name) => Some(name.clone()),
            Removal::Synced => None,
        });
        names.collect()
    };
    let (for_good, perhaps) = (removed(&events[..barrier]), removed(&events[barrier..]));
    let subsets = (0..1_u32 << perhaps.len()).map(|bits| {
        let some = perhaps.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
        for_good.iter().chain(some.map(|(_, name)| name)).cloned().collect()
    });
    subsets.collect()
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[tokio::test]
async fn a_power_cut_at_any_operation_of_an_eviction_leaves_all_of_an_artifact_or_nothing() {
    let (image, other) = (Image::new(), ArtifactId::of(b"another artifact"));
    let (before, recorded) = (tempfile::tempdir().unwrap(), Recorded::default());
    let (lost, _lost_rx) = mpsc::channel(8);
    let store = PieceStore::open(before.path(), None, lost.clone()).await.unwrap();
    let root = image.tree.root;
    for piece in 0..PIECES {
        let encoded = image.encoded[piece as usize].clone();
        store.put(root, image.layout, piece, encoded).await.unwrap();
    }
    store.note_needs([root], WallTime::from_unix_seconds(1_000));
    store.shutdown().await.unwrap();
    drop(store);
    eviction::remove(&recorded, root, LENGTH).unwrap();
    let events = recorded.0.into_inner().unwrap();
    assert_eq!(events.len(), 4, "{events:?}");
    let (mut whole, mut gone) = (0, 0);
    for count in 0..=events.len() {
        for removed in disks_after(&events[..count]) {
            let left = tempfile::tempdir().unwrap();
            copy(before.path(), left.path());
            removed
                .iter()
                .for_each(|name| fs::remove_file(left.path().join(name)).unwrap());
            let store = PieceStore::open(left.path(), None, lost.clone()).await.unwrap();
            let held = store.pieces(root, image.layout).await.unwrap();
            let survey = store.survey().await.unwrap();
            if held.is_full() {
                whole += 1;
                image.holds_only_the_truth(&store.opened(root).unwrap());
                assert_eq!(survey.artifacts[0].last_needed.unix_seconds(), 1_000);
            } else {
                gone += 1;
                assert_eq!(held.count(), 0, "after {count} operations, with {removed:?} removed");
                assert!(survey.artifacts.is_empty(), "its remains are still counted: {survey:?}");
                let files: Vec<_> = fs::read_dir(left.path())
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name())
                    .collect();
                let of_it = |name: &&std::ffi::OsString| name.to_string_lossy().starts_with(&root.to_string());
                assert_eq!(files.iter().find(of_it), None, "its remains are still there");
            }
            // It goes, or comes again, as if nothing had been.
            store.evict(root).await.unwrap();
            for piece in 0..PIECES {
                let encoded = image.encoded[piece as usize].clone();
                store.put(root, image.layout, piece, encoded).await.unwrap();
            }
            image.holds_only_the_truth(&store.opened(root).unwrap());
            assert!(store.pieces(root, image.layout).await.unwrap().is_full());
            assert_eq!(artifacts_in(left.path()).unwrap(), BTreeMap::from([(root, LENGTH)]));
            assert!(!store.lists(other));
        }
    }
    assert!(whole > 1 && gone > 1, "{whole} whole, {gone} gone");
}
