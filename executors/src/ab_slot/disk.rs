//! The few ways in which a slot backend changes a disk, each with a place where power can fail.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    path::Path,
};

use firmesh_protocol::ids::Sha256;
use sha2::Digest as _;

use super::AbSlotError;

/// Writes to slots, and replacement of small files.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Writes that still succeed; the next one is torn, and nothing happens after it.
    #[cfg(test)]
    pub(crate) writes_left: Option<std::sync::atomic::AtomicUsize>,
}

impl Disk {
    /// Replaces a small file as a whole: after a crash it has the old content or the new one.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("the path names no file"))?;
        let mut fresh = name.to_owned();
        fresh.push(".new");
        let fresh = folder.join(fresh);
        self.power()?;
        let mut file = fs::File::create(&fresh)?;
        if let Err(error) = self.power() {
            file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        self.power()?;
        fs::rename(&fresh, path)?;
        fs::File::open(folder)?.sync_all()
    }

    /// Writes over a part of a file or device; returns once it is durable.
    pub(super) fn write_at(&self, path: &Path, from: io::SeekFrom, bytes: &[u8]) -> io::Result<()> {
        self.power()?;
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        file.seek(from)?;
        if let Err(error) = self.power() {
            file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        file.write_all(bytes)?;
        self.power()?;
        file.sync_all()
    }

    /// Opens a slot for writing from its first byte: a plain file is emptied, a block device is not.
    pub(super) fn open_slot(&self, path: &Path) -> io::Result<fs::File> {
        self.power()?;
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        Ok(file)
    }

    pub(super) fn write(&self, mut file: &fs::File, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.power() {
            file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        file.write_all(bytes)
    }

    pub(super) fn sync(&self, file: &fs::File) -> io::Result<()> {
        self.power()?;
        file.sync_all()
    }

    #[cfg(not(test))]
    fn power(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn power(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(left) = &self.writes_left else { return Ok(()) };
        match left.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_left) => Ok(()),
            Err(_none_left) => Err(io::Error::other("the power failed")),
        }
    }
}

/// Reads a small file, refusing a large one.
pub(crate) fn read_small(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("the file has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// The digest of a slot's first `length` bytes; `None` if it has fewer.
pub(super) fn digest(path: &Path, length: u64) -> io::Result<Option<Sha256>> {
    let mut slot = fs::File::open(path)?.take(length);
    let (mut hash, mut buffer, mut total) = (sha2::Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        match slot.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                total += count as u64;
            }
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    Ok((total == length).then(|| digest.into()))
}

pub(super) fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AbSlotError {
    let path = path.to_owned();
    move |source| AbSlotError::File {
        operation,
        path,
        source,
    }
}
