//! An artifact as a file that can be read and sought in: a piece at a time, checked as it is read.

use std::{
    io::{self, SeekFrom},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use firmesh_protocol::{
    chunk::{GROUP_BYTES, PieceLayout},
    ids::ArtifactId,
    piece_shape::Shape,
};
use tokio::{
    io::{AsyncRead, AsyncSeek, ReadBuf},
    task::JoinHandle,
};

use super::{PieceStore, blocking_failed};

type Loaded = (u32, Shape, Bytes);

/// Reads what the store holds; an error where a piece is not held.
#[derive(Debug)]
pub(super) struct PieceReader {
    store: PieceStore,
    artifact: ArtifactId,
    layout: PieceLayout,
    position: u64,
    loaded: Option<Loaded>,
    loading: Option<JoinHandle<io::Result<Loaded>>>,
}

impl PieceReader {
    /// A reader over `length` bytes.
    pub(super) fn new(store: PieceStore, artifact: ArtifactId, length: u64) -> Self {
        Self {
            store,
            artifact,
            layout: PieceLayout::new(length),
            position: 0,
            loaded: None,
            loading: None,
        }
    }

    fn load(&self, piece: u32) -> JoinHandle<io::Result<Loaded>> {
        let (store, artifact) = (self.store.clone(), self.artifact);
        tokio::task::spawn_blocking(move || {
            let (shape, encoded) = store.opened(artifact)?.encoded(piece)?;
            Ok((piece, shape, encoded))
        })
    }
}

impl AsyncRead for PieceReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.position >= self.layout.length() || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(loading) = &mut self.loading {
                let loaded = ready!(Pin::new(loading).poll(context));
                self.loading = None;
                self.loaded = Some(loaded.unwrap_or_else(|error| Err(blocking_failed(&error)))?);
            }
            let piece = self.layout.piece_at(self.position);
            match &self.loaded {
                Some((loaded, shape, encoded)) if *loaded == piece => {
                    let (skip, mut taken) = (self.position % self.layout.piece_bytes(), 0);
                    let (first, mut offset) = ((skip / GROUP_BYTES) as usize, (skip % GROUP_BYTES) as usize);
                    for (at, bytes) in shape.groups().skip(first) {
                        let part = &encoded[at + offset..at + bytes];
                        let part = &part[..part.len().min(buffer.remaining())];
                        buffer.put_slice(part);
                        (offset, taken) = (0, taken + part.len());
                    }
                    self.position += taken as u64;
                    return Poll::Ready(Ok(()));
                }
                _ => {
                    self.loaded = None;
                    self.loading = Some(self.load(piece));
                }
            }
        }
    }
}

impl AsyncSeek for PieceReader {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        let target = match position {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.layout.length().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position =
            target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a seek before the beginning"))?;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}
