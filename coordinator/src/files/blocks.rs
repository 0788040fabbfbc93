//! Stretches of a bucket's objects on the local disk: what nodes ask for is asked for again by their neighbours.
//!
//! Invariants: blocks never take more room than they may; a block that is wanted by many is fetched once; nothing here is
//! believed: who reads a block checks it against the hash tree, and has it [forgotten](Blocks::forget) if it does not hold.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bao_tree::io::sync::ReadAt;
use firmesh_protocol::ids::ArtifactId;

use super::Bucket;

/// A few pieces of an image. Smaller ones cost a request each, larger ones keep the first slice waiting.
const BLOCK_BYTES: u64 = 4 << 20;

/// Blocks that are fetched at once, at most; each is in memory meanwhile.
const LOADS_MAX: usize = 16;

/// The blocks. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    bucket: Bucket,
    folder: Arc<Path>,
    bytes_max: u64,
    kept: Arc<Mutex<Kept>>,
    /// One of them is held while a block is fetched, the same one by all who want it.
    loads: Arc<[tokio::sync::Mutex<()>]>,
}

type Key = (ArtifactId, u64);

/// What is on the disk, and in which order it was used.
#[derive(Debug, Default)]
struct Kept {
    blocks: BTreeMap<Key, Block>,
    by_use: BTreeMap<u64, Key>,
    bytes: u64,
    uses: u64,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    length: u64,
    used: u64,
}

impl Blocks {
    /// Uses a folder, which is made. What an earlier process left there is gone on with.
    pub(crate) fn open(bucket: Bucket, folder: PathBuf, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut kept = Kept::default();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let key = entry.file_name().to_str().and_then(key_of);
            match key {
                Some(key) => kept.add(key, entry.metadata()?.len()),
                None => fs::remove_file(entry.path())?,
            }
        }
        let blocks = Self {
            bucket,
            folder: folder.into(),
            bytes_max,
            kept: Arc::new(Mutex::new(kept)),
            loads: (0..LOADS_MAX).map(|_| tokio::sync::Mutex::default()).collect(),
        };
        blocks.make_room(&mut blocks.kept(), 0)?;
        Ok(blocks)
    }

    /// An object, to be read from threads that may block.
    pub(crate) fn reader(&self, artifact: ArtifactId, name: String, length: u64) -> BlockReader {
        BlockReader {
            blocks: self.clone(),
            artifact,
            name,
            length,
            open: Mutex::default(),
        }
    }

    /// Drops the blocks of a stretch, to be fetched anew. True if there was one.
    pub(crate) fn forget(&self, artifact: ArtifactId, range: &Range<u64>) -> bool {
        let mut kept = self.kept();
        let numbers = range.start / BLOCK_BYTES..=range.end.saturating_sub(1) / BLOCK_BYTES;
        let keys: Vec<Key> = kept
            .blocks
            .range((artifact, *numbers.start())..=(artifact, *numbers.end()))
            .map(|(key, _)| *key)
            .collect();
        for key in &keys {
            kept.remove(key);
            // One that cannot be removed is written over.
            let _ = fs::remove_file(self.path(key));
        }
        !keys.is_empty()
    }

    /// The block, from the disk or else from the bucket.
    async fn block(&self, key: Key, name: &str, length: u64) -> io::Result<File> {
        if let Some(file) = self.find(&key)? {
            return Ok(file);
        }
        let lane = usize::from(key.0.as_bytes()[0]).wrapping_add(usize::try_from(key.1).unwrap_or_default());
        let _turn = self.loads[lane % LOADS_MAX].lock().await;
        if let Some(file) = self.find(&key)? {
            return Ok(file);
        }
        let start = key.1 * BLOCK_BYTES;
        let bytes = self.bucket.range(name, start..length.min(start + BLOCK_BYTES)).await?;
        let blocks = self.clone();
        let kept = tokio::task::spawn_blocking(move || blocks.keep(key, &bytes)).await;
        kept.map_err(io::Error::other)?
    }

    fn find(&self, key: &Key) -> io::Result<Option<File>> {
        let mut kept = self.kept();
        if !kept.touch(key) {
            return Ok(None);
        }
        match File::open(self.path(key)) {
            // Somebody cleaned up by hand.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                kept.remove(key);
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    fn keep(&self, key: Key, bytes: &[u8]) -> io::Result<File> {
        let mut part = tempfile::NamedTempFile::new_in(&self.folder)?;
        io::Write::write_all(&mut part, bytes)?;
        let length = bytes.len() as u64;
        let mut kept = self.kept();
        self.make_room(&mut kept, length)?;
        let file = part.persist(self.path(&key))?;
        kept.add(key, length);
        drop(kept);
        File::open(self.path(&key)).or(Ok(file))
    }

    fn make_room(&self, kept: &mut Kept, wanted: u64) -> io::Result<()> {
        while kept.bytes + wanted > self.bytes_max {
            let Some((_, key)) = kept.by_use.pop_first() else {
                return Ok(());
            };
            kept.remove(&key);
            match fs::remove_file(self.path(&key)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, (artifact, number): &Key) -> PathBuf {
        self.folder.join(format!("{artifact}.{number}"))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, key: Key, length: u64) {
        self.remove(&key);
        self.uses += 1;
        let used = self.uses;
        self.blocks.insert(key, Block { length, used });
        self.by_use.insert(used, key);
        self.bytes += length;
    }

    fn remove(&mut self, key: &Key) {
        if let Some(block) = self.blocks.remove(key) {
            self.by_use.remove(&block.used);
            self.bytes -= block.length;
        }
    }

    fn touch(&mut self, key: &Key) -> bool {
        let known = self.blocks.get(key).copied();
        known.inspect(|block| self.add(*key, block.length)).is_some()
    }
}

fn key_of(name: &str) -> Option<Key> {
    let (artifact, number) = name.split_once('.')?;
    Some((artifact.parse().ok()?, number.parse().ok()?))
}

/// One object of the bucket. Reading blocks: it is for threads of their own.
#[derive(Debug)]
pub(crate) struct BlockReader {
    blocks: Blocks,
    artifact: ArtifactId,
    name: String,
    length: u64,
    /// The block that was read last: most reads go on in it.
    open: Mutex<Option<(u64, File)>>,
}

impl ReadAt for BlockReader {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if at >= self.length || buffer.is_empty() {
            return Ok(0);
        }
        let (number, within) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.as_ref().is_none_or(|(known, _)| *known != number) {
            let block = self.blocks.block((self.artifact, number), &self.name, self.length);
            *open = Some((number, tokio::runtime::Handle::current().block_on(block)?));
        }
        let file = open.as_ref().map(|(_, file)| file);
        file.map_or(Ok(0), |file| FileExt::read_at(file, buffer, within))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn read(reader: &BlockReader, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        reader.read_exact_at(range.start as u64, &mut bytes).unwrap();
        bytes
    }

    fn bytes_in(folder: &Path) -> u64 {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn blocks_come_once_stay_within_their_room_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let image: Bytes = (0..21_000_000_u32)
            .map(|at| (at % 251) as u8)
            .collect::<Vec<_>>()
            .into();
        let id = ArtifactId::of(&image);
        let bucket = Bucket::in_memory();
        bucket.put("artifacts/x.bin", image.clone()).await.unwrap();
        let open = || Blocks::open(bucket.clone(), folder.path().to_owned(), 3 * BLOCK_BYTES).unwrap();
        let blocks = open();
        let reader = blocks.reader(id, "artifacts/x.bin".to_owned(), image.len() as u64);
        let length = image.len();
        let expected = image.clone();
        tokio::task::spawn_blocking(move || {
            for range in [
                0..10,
                4_194_300..4_194_310,
                20_999_000..length,
                0..length,
                8_000_000..13_000_000,
            ] {
                assert!(read(&reader, range.clone()) == expected[range.clone()], "{range:?}");
            }
            let mut rest = [0; 10];
            assert_eq!(reader.read_at(length as u64 - 3, &mut rest).unwrap(), 3);
            assert_eq!(reader.read_at(length as u64, &mut rest).unwrap(), 0);
        })
        .await
        .unwrap();
        assert!(bytes_in(folder.path()) <= 3 * BLOCK_BYTES);

        // What is kept is served without the bucket; what is not is an error, not nothing.
        bucket.remove("artifacts/x.bin").await.unwrap();
        fs::write(folder.path().join(".tmpX"), "half").unwrap();
        let blocks = open();
        assert!(!folder.path().join(".tmpX").exists());
        let reader = blocks.reader(id, "artifacts/x.bin".to_owned(), image.len() as u64);
        let expected = image.clone();
        tokio::task::spawn_blocking(move || {
            assert!(read(&reader, 9_000_000..9_100_000) == expected[9_000_000..9_100_000]);
            assert_eq!(
                reader.read_at(0, &mut [0; 4]).unwrap_err().kind(),
                io::ErrorKind::NotFound
            );
        })
        .await
        .unwrap();
        assert!(blocks.forget(id, &(9_000_000..9_000_001)));
        assert!(!blocks.forget(id, &(9_000_000..9_000_001)));
    }
}
