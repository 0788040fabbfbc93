//! Who nodes are told of. A small fleet's nodes know everybody; those of a large one know their site, which is whom they share
//! with. A node that is a little behind is told what has changed since, and not everything again: in a fleet of thousands
//! somebody renews a certificate all the time.
//!
//! Invariants: a number is of one roster only, and told once that is durable; what is remembered of changes is bounded, and lost with the process: who
//! asks for more is told everything. So is who asks for the same twice: the answer was lost, or he did not understand it.

use std::collections::{BTreeSet, VecDeque};

use firmesh_protocol::{
    api::RosterChanges,
    ids::{NodeId, TopologyPath},
    trust::Envelope,
};

use crate::world::World;

/// Fleets of at most so many nodes are told of everybody.
const WHOLE_MAX: usize = 192;

/// Changes that are remembered.
const CHANGES_MAX: usize = 20_000;

/// The last changes of the roster.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Of which roster everything that came after it is remembered.
    since: u64,
    /// Whether nodes are told of their site, and not of everybody.
    by_site: bool,
    changes: VecDeque<Change>,
}

#[derive(Debug)]
struct Change {
    version: u64,
    node: NodeId,
    /// Where the node stood before, and stands now.
    paths: [Option<TopologyPath>; 2],
}

/// The site of a path: `region/site/.../rack/node`, or `site/rack/node`. Below that there are no sites.
fn site(path: &TopologyPath) -> Option<TopologyPath> {
    match path.depth() {
        0..=2 => None,
        3 => Some(path.prefix(1)),
        _ => Some(path.prefix(2)),
    }
}

impl Changes {
    /// None since this roster, of a fleet of so many nodes.
    pub(crate) fn since(version: u64, nodes: usize) -> Self {
        Self {
            since: version,
            by_site: nodes > WHOLE_MAX,
            changes: VecDeque::new(),
        }
    }

    /// Another record of a node, or none any more, makes the roster of this number.
    pub(crate) fn note(&mut self, version: u64, node: NodeId, paths: [Option<&TopologyPath>; 2]) {
        let paths = paths.map(|path| path.cloned());
        self.changes.push_back(Change { version, node, paths });
        if self.changes.len() > CHANGES_MAX
            && let Some(forgotten) = self.changes.pop_front()
        {
            self.since = forgotten.version;
        }
    }

    /// Whose record has changed after one roster and up to another, at a site or anywhere; nothing if that is not known any
    /// more.
    fn between(&self, after: u64, last: u64, site: Option<&TopologyPath>) -> Option<BTreeSet<&NodeId>> {
        if after < self.since {
            return None;
        }
        let [first, end] =
            [after, last].map(|version| self.changes.partition_point(|change| change.version <= version));
        let changed = self.changes.range(first..end.max(first));
        let is_there =
            |change: &&Change| site.is_none_or(|site| change.paths.iter().flatten().any(|path| path.is_within(site)));
        Some(changed.filter(is_there).map(|change| &change.node).collect())
    }
}

/// What a node is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing: it has the roster.
    Nothing,
    /// What has changed.
    Changes(RosterChanges),
    /// Everybody it is to know of.
    All(Vec<Envelope>),
}

impl World {
    /// What a node at `path` is told that has the roster `has`, of what was so up to `last`. `told`: which one it had when it
    /// was told of changes last.
    pub(crate) fn roster_for(&self, path: &TopologyPath, (has, last): (u64, u64), told: Option<u64>) -> Told {
        if has == last {
            return Told::Nothing;
        }
        let site = self.roster_changes.by_site.then(|| site(path)).flatten();
        let is_told_of = |path: &TopologyPath| site.as_ref().is_none_or(|site| path.is_within(site));
        // Who has none may know somebody from before who has left.
        let is_known = (1..last).contains(&has) && told != Some(has);
        let changed = is_known.then(|| self.roster_changes.between(has, last, site.as_ref()));
        let Some(changed) = changed.flatten() else {
            let records = self.nodes.values().filter_map(|node| node.stored.record.as_ref());
            let told = records.filter(|(record, _)| is_told_of(&record.path));
            return Told::All(told.map(|(_, envelope)| envelope.clone()).collect());
        };
        let mut changes = RosterChanges {
            since: has,
            records: Vec::new(),
            left: Vec::new(),
        };
        for node in changed {
            let record = self.nodes.get(node).and_then(|state| state.stored.record.as_ref());
            match record.filter(|(record, _)| is_told_of(&record.path)) {
                Some((_, envelope)) => changes.records.push(envelope.clone()),
                None => changes.left.push(node.clone()),
            }
        }
        Told::Changes(changes)
    }

    /// The roster is another one: this node's record has changed, from where it stood to where it stands, if it does.
    pub(crate) fn roster_is(&mut self, version: u64, node: NodeId, paths: [Option<&TopologyPath>; 2]) {
        self.roster_version = version;
        let nodes = self.nodes.len();
        match self.roster_changes.by_site == (nodes > WHOLE_MAX) {
            true => self.roster_changes.note(version, node, paths),
            // From now on nodes are told of others than before: all of them anew.
            false => self.roster_changes = Changes::since(version, nodes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn path(text: &str) -> TopologyPath {
        text.parse().unwrap()
    }

    #[test]
    fn changes_are_told_to_the_sites_they_concern() {
        let mut changes = Changes::since(7, 3);
        let (berlin, paris) = (path("eu/berlin/r1/n1"), path("eu/paris/r1/n2"));
        changes.note(8, node("a"), [None, Some(&berlin)]);
        changes.note(9, node("b"), [None, Some(&paris)]);
        // Moves.
        changes.note(10, node("a"), [Some(&berlin), Some(&paris)]);
        changes.note(11, node("b"), [Some(&paris), None]);
        let after = |version, site: Option<&str>| {
            let site = site.map(path);
            let found = changes.between(version, 11, site.as_ref())?;
            Some(found.into_iter().map(NodeId::as_str).collect::<Vec<_>>())
        };
        assert_eq!(after(6, None), None, "that is not known any more");
        assert_eq!(after(7, None), Some(vec!["a", "b"]));
        assert_eq!(after(7, Some("eu/berlin")), Some(vec!["a"]));
        assert_eq!(after(8, Some("eu/berlin")), Some(vec!["a"]));
        assert_eq!(after(10, Some("eu/berlin")), Some(vec![]));
        assert_eq!(after(10, Some("eu/paris")), Some(vec!["b"]));
        assert_eq!(after(11, None), Some(vec![]));
        // What is not durable yet is not told.
        assert_eq!(changes.between(7, 8, None).unwrap(), BTreeSet::from([&node("a")]));
        assert_eq!(changes.between(9, 8, None).unwrap(), BTreeSet::new());
        // Places are as deep as they like.
        changes.note(12, node("c"), [None, Some(&path("eu/berlin/hall-1/r1/c"))]);
        changes.note(13, node("d"), [None, Some(&path("eu/berlin/d"))]);
        let berlin = path("eu/berlin");
        assert_eq!(
            changes.between(11, 13, Some(&berlin)).unwrap(),
            BTreeSet::from([&node("c"), &node("d")])
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut changes = Changes::since(0, 3);
        let most = CHANGES_MAX as u64;
        for version in 1..=most + 10 {
            changes.note(version, node("a"), [None, None]);
        }
        assert_eq!(changes.changes.len(), CHANGES_MAX);
        assert!(
            changes.between(9, most, None).is_none(),
            "the change to 10 is forgotten"
        );
        assert!(changes.between(10, most, None).is_some());
    }

    #[test]
    fn a_place_has_a_site_where_its_path_has_one() {
        let sites = [
            "eu/berlin/hall-1/r1/n1",
            "eu/berlin/r1/n1",
            "berlin/r1/n1",
            "r1/n1",
            "n1",
        ]
        .map(|text| {
            let found = site(&path(text));
            found.map(|site| site.to_string())
        });
        assert_eq!(
            sites.each_ref().map(Option::as_deref),
            [Some("eu/berlin"), Some("eu/berlin"), Some("berlin"), None, None]
        );
    }
}
