//! Servers in their final validation, found by number, by node, and by how long they have waited.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{ids::NodeId, time::Timestamp};

/// A server whose components have all ended well.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) since: Timestamp,
    /// What was not as it is to be, when it was read last.
    pub(super) seen: Option<String>,
    node: NodeId,
}

/// Invariant: the three name the same servers.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_number: BTreeMap<u32, Awaited>,
    by_node: BTreeMap<NodeId, BTreeSet<u32>>,
    by_time: BTreeSet<(Timestamp, u32)>,
}

impl Waiting {
    /// Waits for a server from now on, if it is not waited for.
    pub(super) fn begin(&mut self, number: u32, node: &NodeId, now: Timestamp) {
        if self.by_number.contains_key(&number) {
            return;
        }
        let (node, seen) = (node.clone(), None);
        self.by_node.entry(node.clone()).or_default().insert(number);
        self.by_time.insert((now, number));
        let since = now;
        self.by_number.insert(number, Awaited { since, seen, node });
    }

    /// Waits for it no more.
    pub(super) fn end(&mut self, number: u32) {
        let Some(Awaited { since, node, .. }) = self.by_number.remove(&number) else {
            return;
        };
        self.by_time.remove(&(since, number));
        if let Some(at_node) = self.by_node.get_mut(&node) {
            at_node.remove(&number);
            if at_node.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    pub(super) fn get(&self, number: u32) -> Option<&Awaited> {
        self.by_number.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Awaited> {
        self.by_number.get_mut(&number)
    }

    /// Those of a node.
    pub(super) fn at(&self, node: &NodeId) -> impl Iterator<Item = u32> {
        self.by_node.get(node).into_iter().flatten().copied()
    }

    /// The one that has waited for longest.
    pub(super) fn oldest(&self) -> Option<(Timestamp, u32)> {
        self.by_time.first().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }
}
