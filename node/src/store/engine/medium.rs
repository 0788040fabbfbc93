//! What an artifact is kept on: two of these, files in earnest, and files that lose power in the tests.

use std::{
    fmt,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
};

use nix::{
    errno::Errno,
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::uio::{preadv, pwritev},
};

/// Buffers that one system call takes.
const BUFFERS_MAX: usize = 512;

/// Bytes at offsets, and a barrier.
pub(super) trait Medium: fmt::Debug + Send + Sync {
    /// Fills all buffers, one after the other, from `offset` on.
    fn read(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()>;

    /// Writes all buffers, one after the other, from `offset` on.
    fn write(&self, buffers: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Whatever was written before survives power loss once this returns.
    fn sync(&self) -> io::Result<()>;

    /// Bytes there are.
    fn length(&self) -> io::Result<u64>;

    /// Asks that the next read of these bytes come from the disk, and not from memory. It may be ignored.
    fn let_go(&self, bytes: Range<u64>);
}

impl Medium for File {
    fn read(&self, mut buffers: &mut [IoSliceMut<'_>], mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let some = buffers.len().min(BUFFERS_MAX);
            match preadv(self, &mut buffers[..some], position(offset)?) {
                Ok(0) if buffers.iter().all(|buffer| buffer.is_empty()) => return Ok(()),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    offset += read as u64;
                    IoSliceMut::advance_slices(&mut buffers, read);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn write(&self, mut buffers: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let some = buffers.len().min(BUFFERS_MAX);
            match pwritev(self, &buffers[..some], position(offset)?) {
                Ok(0) if buffers.iter().all(|buffer| buffer.is_empty()) => return Ok(()),
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut buffers, written);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn let_go(&self, bytes: Range<u64>) {
        if let (Ok(start), Ok(length)) = (position(bytes.start), position(bytes.end - bytes.start)) {
            posix_fadvise(self, start, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED).ok(); // an advice, no more
        }
    }
}

fn position(offset: u64) -> io::Result<nix::libc::off_t> {
    offset.try_into().map_err(io::Error::other)
}
