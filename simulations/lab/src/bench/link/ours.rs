//! Ours: two nodes' data planes and stores.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Result, ensure};
use firmesh_node::{
    store::ChunkStore,
    transport::{DatagramBound, DscpMarks, Member, Plane, Transport},
};
use firmesh_protocol::{
    chunk::{PieceLayout, encode},
    ids::{ArtifactId, NodeId},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Load,
    ends::{End, Ends, LOOPBACK},
    settle,
};
use crate::bench::{Engine, Spent};

/// Moves the image over one link; what both ends spent.
pub(super) async fn transfer(engine: Engine, ends: Ends, most: DatagramBound, load: &Load) -> Result<Spent> {
    let from = Node::open(&ends.from, engine, most).await?;
    let to = Node::open(&ends.to, engine, most).await?;
    let mut roster = BTreeMap::new();
    for (end, node) in [(&ends.from, &from), (&ends.to, &to)] {
        roster.insert(end.id.clone(), node.member.clone());
    }
    from.transport.set_roster(roster.clone());
    to.transport.set_roster(roster);
    let (tree, layout) = (&load.tree, PieceLayout::new(load.tree.length));
    for piece in 0..layout.pieces() {
        let encoded = encode(&load.image[..], tree, &layout.bytes(piece))?;
        from.store.put(tree.root, layout, piece, encoded.into()).await?;
    }
    settle().await?;
    let collecting = Collecting {
        source: ends.from.id.clone(),
        transport: to.transport.clone(),
        store: Arc::clone(&to.store),
        artifact: tree.root,
        layout,
    };
    let (in_flight, seed) = (load.in_flight, load.seed);
    let (spent, ()) = Spent::on(async { tokio::spawn(collecting.run(in_flight, seed)).await? }).await?;
    let held = to.store.pieces(tree.root, layout).await?;
    ensure!(
        held.is_full(),
        "only {} of {} pieces arrived",
        held.count(),
        held.total()
    );
    to.close().await?;
    from.close().await?;
    Ok(spent)
}

struct Node {
    member: Member,
    transport: Transport,
    store: Arc<dyn ChunkStore>,
}

impl Node {
    async fn open(end: &End, engine: Engine, datagram_bytes_max: DatagramBound) -> Result<Self> {
        let store = engine.open(&end.folder.join("store")).await?;
        let (events, mut ignored) = mpsc::channel(64);
        tokio::spawn(async move { while ignored.recv().await.is_some() {} });
        let plane = Plane {
            listen: LOOPBACK,
            budgets: Vec::new(),
            datagram_bytes_max,
            dscp: DscpMarks::default(),
        };
        let (id, path, held) = (end.id.clone(), &end.path, Arc::clone(&store));
        let cancel = CancellationToken::new();
        let transport = Transport::open(&end.identity, id, path, plane, held, events, cancel)?;
        let member = Member {
            path: end.path.clone(),
            addr: transport.local_addr()?,
            key: end.identity.key.public(),
            is_neighbour: true,
        };
        Ok(Self {
            member,
            transport,
            store,
        })
    }

    async fn close(self) -> Result<()> {
        self.transport.shutdown().await;
        Ok(self.store.shutdown().await?)
    }
}

/// What a request of the receiving node needs.
#[derive(Clone)]
struct Collecting {
    source: NodeId,
    transport: Transport,
    store: Arc<dyn ChunkStore>,
    artifact: ArtifactId,
    layout: PieceLayout,
}

impl Collecting {
    /// Every piece, so many at once, in an order of chance: the way a node with one neighbour asks.
    async fn run(self, in_flight: usize, seed: u64) -> Result<()> {
        let mut pieces: Vec<_> = (0..self.layout.pieces()).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut pieces);
        let mut fetches = JoinSet::new();
        for piece in pieces {
            if fetches.len() == in_flight
                && let Some(done) = fetches.join_next().await
            {
                done??;
            }
            fetches.spawn(self.clone().fetch(piece));
        }
        while let Some(done) = fetches.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn fetch(self, piece: u32) -> Result<()> {
        let asked = self.transport.fetch(&self.source, self.artifact, self.layout, piece);
        let encoded = asked.await?.bytes;
        Ok(self.store.put(self.artifact, self.layout, piece, encoded).await?)
    }
}
