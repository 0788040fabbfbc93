//! What changes from one plan to another: for whoever is asked to approve the second after the first.
//!
//! Invariant: a device stands in the difference exactly if the two plans say something else about it.

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::DeviceId,
    manifest::{Plan, PlannedDevice},
};
use serde::Serialize;

/// What a plan says about one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It is updated.
    Wave {
        /// In this wave, counted from 1.
        wave: usize,
        /// How.
        #[serde(flatten)]
        planned: PlannedDevice,
    },
    /// It is left out.
    Held {
        /// Why.
        reason: String,
    },
}

/// One device of which two plans say different things; `None` is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The device.
    pub device: DeviceId,
    /// What the first plan says.
    pub before: Option<Place>,
    /// What the second plan says.
    pub after: Option<Place>,
}

/// The devices of which the plans say different things, by name.
#[must_use]
pub fn diff(before: &Plan, after: &Plan) -> Vec<Difference> {
    let (mut old, mut new) = (places(before), places(after));
    let devices: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
    let differences = devices.into_iter().map(|device| Difference {
        before: old.remove(&device),
        after: new.remove(&device),
        device,
    });
    differences.filter(|found| found.before != found.after).collect()
}

fn places(plan: &Plan) -> BTreeMap<DeviceId, Place> {
    let planned = plan.devices().map(|(number, planned)| {
        let place = Place::Wave {
            wave: number + 1,
            planned: planned.clone(),
        };
        (planned.device.clone(), place)
    });
    let held = plan.held.iter().map(|held| {
        let reason = held.reason.clone();
        (held.device.clone(), Place::Held { reason })
    });
    planned.chain(held).collect()
}

impl Difference {
    /// One line for a person.
    #[must_use]
    pub fn line(&self) -> String {
        let device = &self.device;
        match (&self.before, &self.after) {
            (Some(Place::Wave { wave: from, planned: a }), Some(Place::Wave { wave: to, planned: b })) => {
                let mut changes = Vec::new();
                let mut note = |what: &str, a: &dyn ToString, b: &dyn ToString| {
                    let (a, b) = (a.to_string(), b.to_string());
                    if a != b {
                        changes.push(format!("{what} {a} -> {b}"));
                    }
                };
                let or_none = |target: &Option<String>| target.clone().unwrap_or_else(|| "none".to_owned());
                note("wave", from, to);
                note("release", &a.release, &b.release);
                note("from version", &a.from_version, &b.from_version);
                let over = |planned: &PlannedDevice| match planned.hops.is_empty() {
                    true => "nothing".to_owned(),
                    false => planned.hops.join(", then "),
                };
                note("over", &over(a), &over(b));
                note("way back", &or_none(&a.previous), &or_none(&b.previous));
                note("node", &a.node, &b.node);
                note("rack", &a.rack, &b.rack);
                note("labels", &a.labels, &b.labels);
                let turn = |after: &Option<DeviceId>| {
                    after
                        .as_ref()
                        .map_or_else(|| "first".to_owned(), |id| format!("after {id}"))
                };
                note("in its unit", &turn(&a.after), &turn(&b.after));
                format!("~ {device}: {}", changes.join(", "))
            }
            (Some(Place::Held { reason: a }), Some(Place::Held { reason: b })) => {
                format!("~ {device}: left out, {a} -> {b}")
            }
            (before, Some(Place::Wave { wave, planned })) => {
                let was = match before {
                    Some(Place::Held { reason }) => format!(", was left out: {reason}"),
                    _ => String::new(),
                };
                format!("+ {device}: wave {wave}, {}{was}", planned.release)
            }
            (before, Some(Place::Held { reason })) => {
                let was = match before {
                    Some(Place::Wave { wave, .. }) => format!(", was in wave {wave}"),
                    _ => String::new(),
                };
                format!("- {device}: left out, {reason}{was}")
            }
            (Some(Place::Wave { wave, .. }), None) => format!("- {device}: not in the campaign, was in wave {wave}"),
            (_, None) => format!("- {device}: not in the campaign, was left out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::{
        ids::CampaignId,
        labels::Labels,
        manifest::{HeldDevice, PLAN_SCHEMA},
    };

    use super::*;

    fn planned(device: &str) -> PlannedDevice {
        PlannedDevice {
            device: device.parse().unwrap(),
            node: "n1".parse().unwrap(),
            rack: "eu/s1/r1".parse().unwrap(),
            release: "firmware/new".to_owned(),
            from_version: "1.0".to_owned(),
            previous: Some("firmware/old".to_owned()),
            labels: Labels::default(),
            hops: Vec::new(),
            after: None,
        }
    }

    fn plan(waves: &[&[PlannedDevice]], held: &[(&str, &str)]) -> Plan {
        Plan {
            schema: PLAN_SCHEMA.to_owned(),
            campaign: CampaignId::new("spring").unwrap(),
            waves: waves.iter().map(|wave| wave.to_vec()).collect(),
            nodes: BTreeMap::new(),
            held: held
                .iter()
                .map(|(device, reason)| HeldDevice {
                    device: device.parse().unwrap(),
                    reason: (*reason).to_owned(),
                })
                .collect(),
            domains: BTreeMap::new(),
            servers: Vec::new(),
        }
    }

    #[test]
    fn a_device_stands_in_the_difference_exactly_if_something_else_is_said_of_it() {
        let (same, moved, gone, back) = (planned("a"), planned("b"), planned("c"), planned("d"));
        let changed = PlannedDevice {
            previous: None,
            from_version: "1.05".to_owned(),
            ..moved.clone()
        };
        let before = plan(
            &[&[same.clone(), moved], &[gone]],
            &[("d", "silent"), ("e", "silent"), ("f", "silent")],
        );
        let after = plan(
            &[&[same], &[changed, back]],
            &[("c", "quarantined"), ("e", "current"), ("f", "silent")],
        );
        let lines: Vec<_> = diff(&before, &after).iter().map(Difference::line).collect();
        assert_eq!(
            lines,
            [
                "~ b: wave 1 -> 2, from version 1.0 -> 1.05, way back firmware/old -> none",
                "- c: left out, quarantined, was in wave 2",
                "+ d: wave 2, firmware/new, was left out: silent",
                "~ e: left out, silent -> current",
            ]
        );
        assert_eq!(diff(&after, &after), []);
        let nothing = plan(&[], &[]);
        let gone: Vec<_> = diff(&before, &nothing).iter().map(Difference::line).collect();
        assert_eq!(gone[0], "- a: not in the campaign, was in wave 1");
        assert_eq!(gone[5], "- f: not in the campaign, was left out");
        assert!(diff(&nothing, &before)[0].line().starts_with("+ a: wave 1"));
    }
}
