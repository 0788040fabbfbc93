//! The permits that are in force, found by node and by campaign: a heartbeat asks for those of one node.
//!
//! Invariant: a permit is listed for its campaign and for each of its nodes, until it has expired or its campaign is dropped.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use firmesh_protocol::{
    ids::{CampaignId, NodeId},
    time::WallTime,
};

use crate::store::StoredPermit;

/// In the order in which they were issued.
type Issued = VecDeque<Arc<StoredPermit>>;

#[derive(Debug, Default)]
pub(crate) struct Permits {
    by_campaign: BTreeMap<CampaignId, Issued>,
    by_node: BTreeMap<NodeId, BTreeMap<CampaignId, Issued>>,
}

impl Permits {
    /// Takes a permit up, and drops those beside it that have expired.
    pub(crate) fn issue(&mut self, permit: StoredPermit, wall: WallTime) {
        let permit = Arc::new(permit);
        let campaign = || permit.campaign.clone();
        push(self.by_campaign.entry(campaign()).or_default(), &permit, wall);
        for node in &permit.nodes {
            let of_node = self.by_node.entry(node.clone()).or_default();
            push(of_node.entry(campaign()).or_default(), &permit, wall);
        }
    }

    /// The permits of a campaign that name devices of a node.
    pub(crate) fn of_node(&self, node: &NodeId, campaign: &CampaignId) -> impl Iterator<Item = &StoredPermit> {
        let issued = self.by_node.get(node).and_then(|of_node| of_node.get(campaign));
        issued.into_iter().flatten().map(Arc::as_ref)
    }

    /// The permits of a campaign.
    pub(crate) fn of_campaign(&self, campaign: &CampaignId) -> impl Iterator<Item = &StoredPermit> {
        let issued = self.by_campaign.get(campaign).into_iter().flatten();
        issued.map(Arc::as_ref)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &StoredPermit> {
        self.by_campaign.values().flatten().map(Arc::as_ref)
    }

    /// Another edition of the campaign was published.
    pub(crate) fn drop_campaign(&mut self, campaign: &CampaignId) {
        self.by_campaign.remove(campaign);
        self.by_node
            .values_mut()
            .for_each(|of_node| drop(of_node.remove(campaign)));
    }
}

impl FromIterator<StoredPermit> for Permits {
    fn from_iter<T: IntoIterator<Item = StoredPermit>>(stored: T) -> Self {
        let mut permits = Self::default();
        let nothing_expires = WallTime::from_unix_seconds(i64::MIN);
        stored
            .into_iter()
            .for_each(|permit| permits.issue(permit, nothing_expires));
        permits
    }
}

fn push(issued: &mut Issued, permit: &Arc<StoredPermit>, wall: WallTime) {
    // All are good for as long, so that the oldest expire first.
    while issued.front().is_some_and(|oldest| oldest.expires <= wall) {
        issued.pop_front();
    }
    issued.push_back(Arc::clone(permit));
}
