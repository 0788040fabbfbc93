//! iroh-blobs as it comes: its provider, its getter and its stores, over plain QUIC. It is tied to another QUIC library, and
//! takes any streams that do what that one's do.

use std::{io, sync::Arc};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use firmesh_node::transport::DatagramBound;
use iroh::endpoint::VarInt;
use iroh_blobs::{
    Hash,
    api::Store,
    get,
    protocol::GetRequest,
    provider::{self, events::EventSender},
    store::fs::FsStore,
    util,
};

use super::{
    Load,
    ends::{End, Ends, PlainQuic},
    settle,
};
use crate::bench::Spent;

/// Moves the image from one store into the other; what both ends spent.
pub(super) async fn transfer(ends: Ends, most: DatagramBound, load: &Load) -> Result<Spent> {
    let (from, to) = (open(&ends.from).await?, open(&ends.to).await?);
    let added = from.blobs().add_bytes(load.image.clone()).await?;
    let hash = added.hash;
    ensure!(
        hash.as_bytes() == load.tree.root.as_bytes(),
        "iroh-blobs gives the image another hash"
    );
    let quic = Arc::new(PlainQuic::open(&ends, most)?);
    settle().await?;
    let serving = tokio::spawn(serve(quic.from.clone(), from.clone()));
    let (receiving, store) = (Arc::clone(&quic), to.clone());
    let (spent, ()) = Spent::on(async { tokio::spawn(receive(receiving, store, hash)).await? }).await?;
    serving.await?.context("the sending end failed")?;
    ensure!(to.blobs().has(hash).await?, "the image did not arrive");
    if let Some(quic) = Arc::into_inner(quic) {
        quic.close().await;
    }
    for store in [to, from] {
        store.shutdown().await?;
    }
    Ok(spent)
}

async fn open(end: &End) -> Result<Store> {
    let folder = end.folder.join("store");
    let store = FsStore::load(&folder).await;
    Ok(store.map_err(|error| anyhow!("{error:#}"))?.into())
}

async fn serve(endpoint: quinn::Endpoint, store: Store) -> Result<()> {
    let connection = endpoint.accept().await.context("nobody connects")?.await?;
    let (send, recv) = connection.accept_bi().await?;
    let pair = provider::StreamPair::new(0, Receiving(recv), Sending(send), EventSender::DEFAULT);
    let served = provider::handle_stream(pair, store).await;
    connection.closed().await;
    served.map_err(|error| anyhow!("{error:#}"))
}

async fn receive(quic: Arc<PlainQuic>, store: Store, hash: Hash) -> Result<()> {
    let connection = quic.connect().await?;
    let (send, recv) = connection.open_bi().await?;
    let pair = get::StreamPair::new(0, Receiving(recv), Sending(send));
    let got = store.remote().execute_get(pair, GetRequest::blob(hash)).await;
    connection.close(0_u32.into(), b"done");
    got.map_err(|error| anyhow!("{error:#}"))?;
    Ok(())
}

struct Sending(quinn::SendStream);

impl util::SendStream for Sending {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        Ok(self.0.write_chunk(bytes).await?)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        Ok(self.0.write_all(bytes).await?)
    }

    async fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        Ok(self.0.reset(quinns(code)?)?)
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        let code = self.0.stopped().await?;
        let irohs = |code: quinn::VarInt| VarInt::from_u64(code.into_inner()).map_err(io::Error::other);
        code.map(irohs).transpose()
    }

    fn id(&self) -> u64 {
        self.0.id().index()
    }
}

struct Receiving(quinn::RecvStream);

impl util::RecvStream for Receiving {
    async fn recv_bytes(&mut self, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        match self.0.read_exact(&mut bytes).await {
            Ok(()) => {}
            Err(quinn::ReadExactError::FinishedEarly(read)) => bytes.truncate(read),
            Err(quinn::ReadExactError::ReadError(error)) => return Err(error.into()),
        }
        Ok(bytes.into())
    }

    async fn recv_bytes_exact(&mut self, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.recv_exact(&mut bytes).await?;
        Ok(bytes.into())
    }

    async fn recv_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(bytes).await.map_err(|error| match error {
            // Nothing at all is the end; something is half of what should be there.
            quinn::ReadExactError::FinishedEarly(0) => io::ErrorKind::UnexpectedEof.into(),
            quinn::ReadExactError::FinishedEarly(_) => io::ErrorKind::InvalidData.into(),
            quinn::ReadExactError::ReadError(error) => error.into(),
        })
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        Ok(self.0.stop(quinns(code)?)?)
    }

    fn id(&self) -> u64 {
        self.0.id().index()
    }
}

fn quinns(code: VarInt) -> io::Result<quinn::VarInt> {
    quinn::VarInt::from_u64(code.into_inner()).map_err(io::Error::other)
}
