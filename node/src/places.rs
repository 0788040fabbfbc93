//! How many connections a listener has at a time. Whoever comes when all places are taken is turned away at once: a socket
//! that waits is open, too.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_server::accept::Accept;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Connections of one listener: two for each of the most devices that a node looks after, which is what clients open.
pub(crate) const CONNECTIONS_MAX: usize = 2 * firmesh_protocol::limits::NODE_DEVICES_MAX;

/// An acceptor behind which there are so many places.
#[derive(Debug, Clone)]
pub(crate) struct Places<A> {
    inner: A,
    free: Arc<Semaphore>,
}

/// A connection that has its place for as long as it lives.
#[derive(Debug)]
pub(crate) struct Placed<I> {
    stream: I,
    _place: OwnedSemaphorePermit,
}

impl<A> Places<A> {
    /// So many places before `inner`.
    pub(crate) fn before(inner: A, places: usize) -> Self {
        Self {
            inner,
            free: Arc::new(Semaphore::new(places)),
        }
    }
}

impl<I, S, A> Accept<I, S> for Places<A>
where
    A: Accept<I, S>,
    A::Stream: Send + 'static,
    A::Service: Send + 'static,
    A::Future: Send + 'static,
{
    type Stream = Placed<A::Stream>;
    type Service = A::Service;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(place) = Arc::clone(&self.free).try_acquire_owned() else {
            tracing::debug!("a connection too many");
            return std::future::ready(Err(io::Error::other("all places are taken"))).boxed();
        };
        let accepting = self.inner.accept(stream, service);
        let placed = async move {
            let (stream, service) = accepting.await?;
            let placed = Placed { stream, _place: place };
            Ok((placed, service))
        };
        placed.boxed()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Placed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Placed<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use axum_server::accept::DefaultAcceptor;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_is_turned_away_until_one_is_left() {
        let places = Places::before(DefaultAcceptor::new(), 2);
        let come = || places.accept(duplex(1).0, ());
        let (first, second) = (come().await.unwrap(), come().await.unwrap());
        assert!(come().await.is_err());
        drop(first);
        let third = come().await.unwrap();
        assert!(come().await.is_err());
        drop((second, third));
        assert!(come().await.is_ok());
    }
}
