//! Requests in flight: which piece was asked of whom, since when, and until when.

use std::collections::BTreeMap;

use firmesh_protocol::{ids::ArtifactId, time::Timestamp};

use super::{FetchId, Source, window::Distance};

/// One request in flight.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) source: Source,
    pub(super) distance: Distance,
    pub(super) artifact: ArtifactId,
    pub(super) piece: u32,
    pub(super) since: Timestamp,
    pub(super) answer_by: Timestamp,
}

/// All requests in flight. Small: bounded by the tuning.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_id: BTreeMap<FetchId, Claim>,
    next_id: u64,
}

impl Claims {
    pub(super) fn begin(&mut self, claim: Claim) -> FetchId {
        let id = FetchId(self.next_id);
        self.next_id += 1;
        self.by_id.insert(id, claim);
        id
    }

    pub(super) fn finish(&mut self, id: FetchId) -> Option<Claim> {
        self.by_id.remove(&id)
    }

    pub(super) fn count(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.by_id.values().map(|claim| claim.answer_by).min()
    }

    pub(super) fn overdue(&self, now: Timestamp) -> Vec<FetchId> {
        self.select(|claim| claim.answer_by <= now)
    }

    pub(super) fn of_source(&self, source: &Source) -> Vec<FetchId> {
        self.select(|claim| claim.source == *source)
    }

    pub(super) fn of_artifact(&self, artifact: &ArtifactId) -> Vec<FetchId> {
        self.select(|claim| claim.artifact == *artifact)
    }

    pub(super) fn of_piece(&self, artifact: &ArtifactId, piece: u32) -> Vec<FetchId> {
        self.select(|claim| claim.artifact == *artifact && claim.piece == piece)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.by_id.values()
    }

    fn select(&self, wanted: impl Fn(&Claim) -> bool) -> Vec<FetchId> {
        self.by_id
            .iter()
            .filter(|(_, claim)| wanted(claim))
            .map(|(id, _)| *id)
            .collect()
    }
}
