//! The other devices of a node: what they say about when a device may start. A node sees its own devices only, so of a cap
//! over several nodes it enforces its own share; a unit is behind one node, so of units it enforces everything.

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::{Component, DeviceId, TopologyPath},
    labels::Labels,
    manifest::{OtherComponent, PlannedDevice, Release},
    report::PermitKind,
};

use super::{AttemptStanding, Facts, Hold};
use crate::approved::ApprovedCampaign;

/// A device of the node, as far as others look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// What the node's configuration says of it.
    pub labels: Labels,
    /// The component.
    pub component: Component,
    /// The version last read, if it answers.
    pub version: Option<String>,
    /// Whether an attempt of any campaign is under way on it, or left it quarantined.
    pub in_flight: bool,
}

/// A device that is about to start, with its place in the plan.
pub(super) struct Starter<'a> {
    pub(super) campaign: &'a ApprovedCampaign,
    pub(super) planned: &'a PlannedDevice,
    /// What it gets, or goes back to.
    pub(super) release: &'a Release,
    pub(super) kind: PermitKind,
    pub(super) facts: &'a Facts<'a>,
}

impl<'a> Starter<'a> {
    /// All that others have to do with it.
    pub(super) fn check(&self) -> Result<(), Hold> {
        match self.kind {
            PermitKind::Update => {
                self.check_labels()?;
                self.check_unit()?;
                self.check_turn()?;
                self.check_components()?;
            }
            PermitKind::Rollback => {
                self.check_unit()?;
                self.check_turn_back()?;
            }
        }
        self.check_those_beside()?;
        self.check_domains()
    }

    /// The labels that it is counted by. Going back must not fail over a label that was changed since.
    fn labels(&self) -> &'a Labels {
        match self.kind {
            PermitKind::Update => &self.facts.device.labels,
            PermitKind::Rollback => &self.planned.labels,
        }
    }

    fn others(&self) -> impl Iterator<Item = (&'a DeviceId, &'a Neighbour)> {
        let own = &self.facts.device.device;
        self.facts.neighbours.iter().filter(move |(id, _)| *id != own)
    }

    fn in_unit(&self) -> impl Iterator<Item = (&'a DeviceId, &'a Neighbour)> {
        let unit = self.labels().unit();
        self.others()
            .filter(move |(_, other)| unit.is_some() && other.labels.unit() == unit)
    }

    /// What the plan counts the device by is still so.
    fn check_labels(&self) -> Result<(), Hold> {
        let caps = &self.campaign.manifest.caps;
        let (rack, now, then) = (&self.planned.rack, &self.facts.device.labels, &self.planned.labels);
        let is_moved = now.unit() != then.unit()
            || caps
                .domains
                .iter()
                .any(|cap| cap.by.domain(rack, now) != cap.by.domain(rack, then))
            || caps
                .never_together
                .iter()
                .any(|rule| rule.takes(rack, now) != rule.takes(rack, then));
        match is_moved {
            true => Err(Hold::OtherLabels),
            false => Ok(()),
        }
    }

    fn check_unit(&self) -> Result<(), Hold> {
        match self.in_unit().find(|(_, other)| other.in_flight) {
            Some((other, _)) => Err(Hold::UnitBusy(other.clone())),
            None => Ok(()),
        }
    }

    /// The device before it in its unit runs what it was to get: read back, not believed.
    fn check_turn(&self) -> Result<(), Hold> {
        let Some(before) = &self.planned.after else {
            return Ok(());
        };
        let wanted = self.campaign.planned(before).map(|(_, planned)| &planned.release);
        let wanted = wanted.and_then(|target| self.campaign.releases.get(target));
        let version = self
            .facts
            .neighbours
            .get(before)
            .and_then(|other| other.version.as_ref());
        if version.is_some() && version == wanted.map(|release| &release.info.version) {
            return Ok(());
        }
        let attempt = self.facts.attempts.get(&(before.clone(), PermitKind::Update));
        let is_over = version.is_some() && attempt == Some(&AttemptStanding::Ended);
        match is_over {
            true => Err(Hold::TurnNeverComes(before.clone())),
            false => Err(Hold::NotItsTurn(before.clone())),
        }
    }

    /// Backwards it comes after all those that came after it and can go back: read back, not believed.
    fn check_turn_back(&self) -> Result<(), Hold> {
        let planned = || self.campaign.plan.devices().map(|(_, planned)| planned);
        let mut before = &self.planned.device;
        while let Some(next) = planned().find(|next| next.after.as_ref() == Some(before)) {
            let version = self.facts.neighbours.get(&next.device);
            let version = version.and_then(|next| next.version.as_ref());
            // Also one that has stopped on its way there.
            let mut way = self.campaign.way(next);
            let has_moved = way.any(|release| Some(&release.info.version) == version);
            if has_moved && next.previous.is_some() {
                return Err(Hold::NotItsTurn(next.device.clone()));
            }
            before = &next.device;
        }
        Ok(())
    }

    /// What others in the unit require of it, and do not go with, as far as they run releases of this campaign.
    fn check_those_beside(&self) -> Result<(), Hold> {
        let own = &self.release.info;
        for (id, other) in self.in_unit() {
            let runs = |release: &&Release| {
                (&release.info.component, Some(&release.info.version)) == (&other.component, other.version.as_ref())
            };
            let Some(running) = self.campaign.releases.values().find(runs) else {
                continue;
            };
            let rules = |rules: &'a [OtherComponent]| rules.iter().filter(|rule| rule.component == own.component);
            let requires = rules(&running.info.requires).map(|rule| (rule, true));
            let mut rules = requires.chain(rules(&running.info.conflicts).map(|rule| (rule, false)));
            if let Some((rule, wanted)) = rules.find(|(rule, wanted)| rule.names(&own.version) == Some(!wanted)) {
                let verb = if wanted { "requires" } else { "does not go with" };
                return Err(Hold::OtherComponent {
                    target: self.release.target.clone(),
                    rule: format!("goes beside {} of {id}, which {verb} {rule}", running.target),
                    found: format!("{} is {}", own.component, own.version),
                    is_known: true,
                });
            }
        }
        Ok(())
    }

    /// What the release requires of other components in the unit, and does not go with.
    pub(super) fn check_components(&self) -> Result<(), Hold> {
        let target = &self.release.target;
        let check = |rule: &OtherComponent, wanted: bool| -> Result<(), Hold> {
            let mut others = self
                .in_unit()
                .filter(|(_, other)| other.component == rule.component)
                .peekable();
            let hold = |found: String, is_known| Hold::OtherComponent {
                target: target.clone(),
                rule: if wanted {
                    format!("requires {rule}")
                } else {
                    format!("does not go with {rule}")
                },
                found,
                is_known,
            };
            if wanted && others.peek().is_none() {
                return Err(hold("its unit has none".to_owned(), true));
            }
            for (id, other) in others {
                match other.version.as_ref().map(|version| (version, rule.names(version))) {
                    Some((_, Some(is_named))) if is_named == wanted => {}
                    Some((version, _)) => return Err(hold(format!("{id} runs {version}"), true)),
                    None => return Err(hold(format!("{id} does not answer"), false)),
                }
            }
            Ok(())
        };
        let info = &self.release.info;
        info.requires.iter().try_for_each(|rule| check(rule, true))?;
        info.conflicts.iter().try_for_each(|rule| check(rule, false))
    }

    /// The node's share of the caps of fault domains.
    fn check_domains(&self) -> Result<(), Hold> {
        let (rack, labels) = (&self.planned.rack, self.labels());
        let in_flight = || self.others().filter(|(_, other)| other.in_flight);
        let caps = &self.campaign.manifest.caps;
        for cap in &caps.domains {
            let shares: Option<&BTreeMap<TopologyPath, _>> = self.campaign.plan.domains.get(&cap.by);
            let share = cap
                .by
                .domain(rack, labels)
                .and_then(|domain| Some((shares?.get(&domain)?, domain)));
            // An approved plan has a share for every planned device: see `Plan::check_caps`.
            let (share, domain) = share.ok_or(Hold::OtherLabels)?;
            let is_there = |other: &Neighbour| cap.by.domain(rack, &other.labels).as_ref() == Some(&domain);
            let count = in_flight().filter(|(_, other)| is_there(other)).count();
            if count >= share.at_most as usize {
                return Err(Hold::CapFull {
                    in_flight: count,
                    cap: share.at_most,
                });
            }
        }
        for rule in &caps.never_together {
            let Some((within, domain)) = rule.takes(rack, labels) else {
                continue;
            };
            let stands_in = |other: &Neighbour| {
                let taken = rule.takes(rack, &other.labels);
                taken.is_some_and(|(where_else, other)| where_else == within && other != domain)
            };
            if let Some((other, _)) = in_flight().find(|(_, other)| stands_in(other)) {
                return Err(Hold::StandsIn {
                    device: other.clone(),
                    by: rule.by.to_string(),
                });
            }
        }
        Ok(())
    }
}
