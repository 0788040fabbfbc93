//! Which nodes of a campaign have proven that they hold the images of their devices.
//!
//! Invariant: a node is asked for every image that one of its devices gets, and for every one that a device may have to go
//! back to; what was proven stays proven for this campaign, unless the node enrols again, perhaps with an empty store.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    api::PossessionView,
    ids::{ArtifactId, NodeId},
    manifest::Artifact,
};
use serde::{Deserialize, Serialize};

use crate::{campaign::Campaign, seat::Stand};

/// How a node stands towards one image of a campaign, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PossessionRecord {
    /// The node.
    pub node: NodeId,
    /// The image.
    pub artifact: ArtifactId,
    /// Whether a proof of it held.
    pub proven: bool,
    /// Proofs that did not.
    pub wrong_proofs: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    proven: bool,
    wrong_proofs: u32,
}

/// How the nodes of one campaign stand.
#[derive(Debug, Default)]
pub(crate) struct Possession {
    nodes: BTreeMap<NodeId, BTreeMap<ArtifactId, Standing>>,
    dirty: BTreeSet<(NodeId, ArtifactId)>,
}

impl Possession {
    /// A device of `node` needs these images.
    pub(crate) fn need(&mut self, node: &NodeId, needs: &[ArtifactId]) {
        let standings = self.nodes.entry(node.clone()).or_default();
        for artifact in needs {
            standings.entry(*artifact).or_default();
        }
    }

    /// Puts what was stored in place of what nobody has said yet.
    fn restore(&mut self, records: Vec<PossessionRecord>) {
        for record in records {
            if let Some(standing) = self.standing(&record.node, record.artifact) {
                *standing = Standing {
                    proven: record.proven,
                    wrong_proofs: record.wrong_proofs,
                };
            }
        }
    }

    /// Whether a node has proven all of these.
    fn covers(&self, node: &NodeId, needs: &[ArtifactId]) -> bool {
        let standings = self.nodes.get(node);
        let is_proven = |artifact: &ArtifactId| standings?.get(artifact).map(|standing| standing.proven);
        needs.iter().all(|artifact| is_proven(artifact) == Some(true))
    }

    /// What every node has proven.
    pub(crate) fn proven(&self) -> impl Iterator<Item = (&NodeId, ArtifactId)> {
        let of_node = |(node, standings): (_, &BTreeMap<ArtifactId, Standing>)| {
            let proven = standings.iter().filter(|(_, standing)| standing.proven);
            proven.map(|(artifact, _)| (node, *artifact)).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of_node)
    }

    /// What a node has not proven yet.
    pub(crate) fn unproven(&self, node: &NodeId) -> impl Iterator<Item = ArtifactId> {
        let standings = self.nodes.get(node).into_iter().flatten();
        standings
            .filter(|(_, standing)| !standing.proven)
            .map(|(artifact, _)| *artifact)
    }

    /// Proofs of a node that did not hold, by image.
    pub(crate) fn wrong_proofs(&self, node: &NodeId) -> impl Iterator<Item = (ArtifactId, u32)> {
        let standings = self.nodes.get(node).into_iter().flatten();
        standings
            .map(|(artifact, standing)| (*artifact, standing.wrong_proofs))
            .filter(|(_, count)| *count > 0)
    }

    /// Takes note of a proof that was checked. Answers whether that is any news.
    fn judged(&mut self, node: &NodeId, artifact: ArtifactId, holds: bool) -> bool {
        let Some(standing) = self.standing(node, artifact).filter(|standing| !standing.proven) else {
            return false;
        };
        match holds {
            true => standing.proven = true,
            false => standing.wrong_proofs = standing.wrong_proofs.saturating_add(1),
        }
        self.dirty.insert((node.clone(), artifact));
        true
    }

    /// The node begins anew: what it held before says nothing of what it holds now. Answers whether anything changed.
    fn forget(&mut self, node: &NodeId) -> bool {
        let before = self.dirty.len();
        for (artifact, standing) in self.nodes.get_mut(node).into_iter().flatten() {
            if std::mem::take(&mut standing.proven) {
                self.dirty.insert((node.clone(), *artifact));
            }
        }
        self.dirty.len() > before
    }

    /// What changed since this was asked last.
    pub(crate) fn changed(&mut self) -> Vec<PossessionRecord> {
        let changed = std::mem::take(&mut self.dirty).into_iter();
        changed
            .map(|(node, artifact)| {
                let Standing { proven, wrong_proofs } = self.nodes[&node][&artifact];
                PossessionRecord {
                    node,
                    artifact,
                    proven,
                    wrong_proofs,
                }
            })
            .collect()
    }

    pub(crate) fn view(&self) -> PossessionView {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let is_proven = |standings: &&BTreeMap<_, Standing>| standings.values().all(|standing| standing.proven);
        let wrong = self.nodes.iter().filter_map(|(node, standings)| {
            let count = standings.values().map(|standing| standing.wrong_proofs);
            let count = count.fold(0, u32::saturating_add);
            (count > 0).then(|| (node.clone(), count))
        });
        PossessionView {
            nodes: count(self.nodes.len()),
            proven: count(self.nodes.values().filter(is_proven).count()),
            wrong_proofs: wrong.collect(),
        }
    }

    fn standing(&mut self, node: &NodeId, artifact: ArtifactId) -> Option<&mut Standing> {
        self.nodes.get_mut(node)?.get_mut(&artifact)
    }
}

impl Campaign {
    pub(crate) fn restore_proofs(&mut self, records: Vec<PossessionRecord>) {
        self.possession.restore(records);
        let possession = &self.possession;
        self.attempts.change_all(|attempt| {
            let Stand { seat, course, .. } = &*attempt.stand;
            attempt.is_proven = possession.covers(&seat.node, &course.needs);
        });
    }

    /// Takes note of proofs of a node that were checked.
    pub(crate) fn judge_proofs(&mut self, node: &NodeId, proven: &BTreeSet<ArtifactId>, wrong: &BTreeSet<ArtifactId>) {
        let judged = proven.iter().map(|id| (id, true));
        let mut is_news = false;
        for (artifact, holds) in judged.chain(wrong.iter().map(|id| (id, false))) {
            is_news |= self.possession.judged(node, *artifact, holds);
        }
        if is_news {
            self.look_at_proofs(node);
        }
    }

    /// The node may have another store than before.
    pub(crate) fn forget_proofs(&mut self, node: &NodeId) {
        if self.possession.forget(node) {
            self.look_at_proofs(node);
        }
    }

    /// The images that a node has not proven yet.
    pub(crate) fn unproven_images(&self, node: &NodeId) -> impl Iterator<Item = &Artifact> {
        let unproven: BTreeSet<_> = self.possession.unproven(node).collect();
        self.images.values().filter(move |image| unproven.contains(&image.id))
    }

    fn look_at_proofs(&mut self, node: &NodeId) {
        for place in self.attempts.of_node(node).to_vec() {
            let possession = &self.possession;
            self.attempts.change(place, |attempt| {
                attempt.is_proven = possession.covers(node, &attempt.stand.course.needs);
            });
            self.look_again_with_neighbours(place);
        }
    }
}
