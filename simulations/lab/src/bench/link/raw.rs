//! A plain QUIC stream: bytes from memory on one end, counted on the other.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use firmesh_node::transport::DatagramBound;
use firmesh_protocol::chunk::PIECE_BYTES_MAX;

use super::{
    Load,
    ends::{Ends, PlainQuic},
};
use crate::bench::Spent;

/// Moves the image; what both ends spent.
pub(super) async fn transfer(ends: Ends, most: DatagramBound, load: &Load) -> Result<Spent> {
    let quic = Arc::new(PlainQuic::open(&ends, most)?);
    let serving = tokio::spawn(serve(quic.from.clone(), load.image.clone()));
    let receiving = Arc::clone(&quic);
    let (spent, received) = Spent::on(async { tokio::spawn(receive(receiving)).await? }).await?;
    serving.await?.context("the sending end failed")?;
    ensure!(received == load.tree.length, "{received} bytes arrived");
    if let Some(quic) = Arc::into_inner(quic) {
        quic.close().await;
    }
    Ok(spent)
}

async fn serve(endpoint: quinn::Endpoint, image: Bytes) -> Result<()> {
    let connection = endpoint.accept().await.context("nobody connects")?.await?;
    let (mut send, mut recv) = connection.accept_bi().await?;
    recv.read_to_end(1).await?;
    let (mut rest, piece) = (image, usize::try_from(PIECE_BYTES_MAX)?);
    while !rest.is_empty() {
        send.write_chunk(rest.split_to(piece.min(rest.len()))).await?;
    }
    send.finish()?;
    connection.closed().await;
    Ok(())
}

async fn receive(quic: Arc<PlainQuic>) -> Result<u64> {
    let connection = quic.connect().await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(b"?").await?;
    send.finish()?;
    let mut received = 0;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await? {
        received += chunk.bytes.len() as u64;
    }
    connection.close(0_u32.into(), b"done");
    Ok(received)
}
