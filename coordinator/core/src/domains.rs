//! Racks and fault domains as the engine counts them: numbers in place of names, domains only for the rules that some
//! campaign has.
//!
//! Invariant: the same domain has the same number in every campaign, so that all campaigns count together.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use firmesh_protocol::{
    ids::{LabelValue, NodeId, TopologyPath},
    labels::Labels,
    manifest::{Caps, Dimension, DomainShare, NeverTogether},
};

/// What a device takes while it is in flight, beside its place in its rack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Takes {
    /// Capped domains.
    pub(crate) domains: Vec<u32>,
    /// Places in groups that stand in for each other.
    pub(crate) groups: Vec<Seat>,
}

/// A place in a redundancy group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) rule: u32,
    /// The group, of this rule only.
    pub(crate) group: u32,
    /// The domain of the group.
    pub(crate) domain: u32,
}

/// The rules of one campaign, by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnRules {
    /// The cap of each of its domains.
    pub(crate) caps: BTreeMap<u32, u32>,
    pub(crate) together: BTreeSet<u32>,
}

/// The rules of all campaigns, and the numbers of what they name.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    dimensions: BTreeSet<Dimension>,
    together: Vec<NeverTogether>,
    domains: BTreeMap<(Dimension, TopologyPath), u32>,
    groups: BTreeMap<(u32, Option<TopologyPath>), u32>,
    units: BTreeMap<(NodeId, LabelValue), u32>,
    racks: BTreeMap<TopologyPath, u32>,
    /// Most devices of a rack take the same.
    spots: BTreeMap<(TopologyPath, Labels), Arc<Takes>>,
}

fn number<K: Ord>(names: &mut BTreeMap<K, u32>, name: K) -> u32 {
    let next = u32::try_from(names.len()).expect("a fleet has fewer domains than that");
    *names.entry(name).or_insert(next)
}

impl Domains {
    /// Takes up the rules of a campaign. If there are new ones, what devices take is to be asked again.
    pub(crate) fn learn(&mut self, caps: &Caps) -> bool {
        let known = self.dimensions.len() + self.together.len();
        self.dimensions.extend(caps.domains.iter().map(|cap| cap.by.clone()));
        for rule in &caps.never_together {
            if !self.together.contains(rule) {
                self.together.push(rule.clone());
            }
        }
        let has_new = known < self.dimensions.len() + self.together.len();
        if has_new {
            self.spots.clear();
        }
        has_new
    }

    /// The rules of a campaign whose caps were learned.
    pub(crate) fn own_rules(
        &mut self,
        caps: &Caps,
        shares: &BTreeMap<Dimension, BTreeMap<TopologyPath, DomainShare>>,
    ) -> OwnRules {
        let mut own = OwnRules::default();
        for (by, of_dimension) in shares {
            for (domain, share) in of_dimension {
                let domain = number(&mut self.domains, (by.clone(), domain.clone()));
                own.caps.insert(domain, share.at_most);
            }
        }
        let rules = self.together.iter().enumerate();
        let is_own = |(_, rule): &(usize, &NeverTogether)| caps.never_together.contains(rule);
        own.together = rules.filter(is_own).map(|(number, _)| rule_number(number)).collect();
        own
    }

    /// What a device takes that stands there.
    pub(crate) fn takes(&mut self, rack: &TopologyPath, labels: &Labels) -> Option<Arc<Takes>> {
        if self.dimensions.is_empty() && self.together.is_empty() {
            return None;
        }
        let spot = (rack.clone(), labels.clone());
        if let Some(known) = self.spots.get(&spot) {
            return Some(Arc::clone(known));
        }
        let mut takes = Takes::default();
        for by in &self.dimensions {
            if let Some(domain) = by.domain(rack, labels) {
                takes.domains.push(number(&mut self.domains, (by.clone(), domain)));
            }
        }
        for (rule, together) in self.together.iter().enumerate() {
            if let Some((within, domain)) = together.takes(rack, labels) {
                let rule = rule_number(rule);
                takes.groups.push(Seat {
                    rule,
                    group: number(&mut self.groups, (rule, within)),
                    domain: number(&mut self.domains, (together.by.clone(), domain)),
                });
            }
        }
        let takes = Arc::new(takes);
        self.spots.insert(spot, Arc::clone(&takes));
        Some(takes)
    }

    /// The number of a rack.
    pub(crate) fn rack(&mut self, rack: &TopologyPath) -> u32 {
        match self.racks.get(rack) {
            Some(number) => *number,
            None => number(&mut self.racks, rack.clone()),
        }
    }

    /// The number of a unit.
    pub(crate) fn unit(&mut self, unit: Option<(&NodeId, &LabelValue)>) -> Option<u32> {
        let (node, unit) = unit?;
        Some(number(&mut self.units, (node.clone(), unit.clone())))
    }

    /// The name of a domain.
    pub(crate) fn name(&self, domain: u32) -> String {
        let named = self.domains.iter().find(|(_, number)| **number == domain);
        named.map_or_else(String::new, |((by, name), _)| format!("{by} {name}"))
    }
}

fn rule_number(place: usize) -> u32 {
    u32::try_from(place).expect("campaigns have few rules")
}
