//! Baselines: which release each device is to run, and how far devices are from that. A report, never an order.

use std::{cmp::Ordering, collections::BTreeMap};

use firmesh_protocol::{
    api::{DriftState, DriftView, Reconciliation},
    ids::{Component, TopologyPath},
    manifest::Release,
    report::Facts,
};
use serde::{Deserialize, Serialize};

use crate::{kinds::Kind, provenance::compare_versions, records::Record};

/// A baseline as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BaselineRecord {
    /// What it is for.
    pub(crate) description: String,
    /// The devices it is for; all, if absent. As it is printed.
    pub(crate) filter: Option<String>,
    /// Releases by target name.
    pub(crate) releases: Vec<String>,
    /// How devices that drift are brought back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reconcile: Option<Reconciliation>,
}

impl Record for BaselineRecord {
    const KIND: &'static str = "baseline";
    const COUNT_MAX: i64 = 1_000;
}

/// How far a device is from what it is to run, if that is asked for.
pub(crate) fn drift(
    facts: Facts<'_>,
    path: &TopologyPath,
    releases: &[Release],
    is_asked: impl Fn(DriftState) -> bool,
) -> Option<DriftView> {
    let wanted = wanted(releases, facts.vendor, facts.model, facts.component);
    let state = state(facts.version, wanted);
    is_asked(state).then(|| DriftView {
        device: facts.device.clone(),
        path: path.clone(),
        component: facts.component.clone(),
        version: facts.version.map(str::to_owned),
        wanted: wanted.map(|release| release.info.version.clone()),
        release: wanted.map(|release| release.target.clone()),
        state,
    })
}

/// How far devices of a kind are from what they are to run.
pub(crate) fn drift_of<P, S>(kind: &Kind<'_, P, S>, releases: &[Release]) -> DriftState {
    state(kind.version, wanted(releases, kind.vendor, kind.model, kind.component))
}

fn wanted<'a>(releases: &'a [Release], vendor: &str, model: &str, component: &Component) -> Option<&'a Release> {
    releases.iter().find(|Release { info, .. }| {
        let has_model = info.models.iter().any(|known| known == model);
        has_model && info.vendor == vendor && info.component == *component
    })
}

fn state(version: Option<&str>, wanted: Option<&Release>) -> DriftState {
    match (version, wanted) {
        (_, None) => DriftState::NotCovered,
        (None, _) => DriftState::Unknown,
        (Some(version), Some(release)) if version == release.info.version => DriftState::Compliant,
        (Some(version), Some(release)) => match compare_versions(version, &release.info.version) {
            Ordering::Greater => DriftState::Ahead,
            // Another spelling of the same version is another version: what the release says is what a device reports.
            Ordering::Less | Ordering::Equal => DriftState::Behind,
        },
    }
}

/// Devices by state, in all and by site.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) all: BTreeMap<DriftState, u32>,
    pub(crate) sites: BTreeMap<TopologyPath, BTreeMap<DriftState, u32>>,
}

impl Tally {
    /// So many more of a site.
    pub(crate) fn add(&mut self, site: &TopologyPath, state: DriftState, count: u32) {
        *self.all.entry(state).or_default() += count;
        let site = self.sites.entry(site.clone()).or_default();
        *site.entry(state).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::{
        ids::{ArtifactId, Sha256},
        manifest::{Artifact, RELEASE_SCHEMA, ReleaseInfo, Reversibility},
        report::DeviceFacts,
    };

    use super::*;

    #[test]
    fn a_device_is_compliant_by_equality_and_ordered_otherwise() {
        let release = |version: &str| Release {
            target: "firmware/a".to_owned(),
            artifact: Artifact {
                id: ArtifactId::of(b"a"),
                sha256: Sha256::of(b"a"),
                length: 1,
            },
            info: ReleaseInfo {
                schema: RELEASE_SCHEMA.to_owned(),
                blake3: ArtifactId::of(b"a"),
                vendor: "Acme".to_owned(),
                models: vec!["R1".to_owned()],
                component: Component::new("bmc").unwrap(),
                version: version.to_owned(),
                security_epoch: 1,
                from_versions: Vec::new(),
                version_scheme: None,
                min_from: None,
                requires: Vec::new(),
                conflicts: Vec::new(),
                reversibility: Reversibility::Reflash,
                provenance: None,
            },
        };
        let path: TopologyPath = "eu/fra1/r1/n1".parse().unwrap();
        for (runs, wanted, state) in [
            (Some("1.0"), "1.0", DriftState::Compliant),
            (Some("7.10.30.00"), "7.9.50.00", DriftState::Ahead),
            (Some("U46 v2.42"), "U46 v2.50", DriftState::Behind),
            (Some("1.0.0"), "1.0", DriftState::Behind),
            (None, "1.0", DriftState::Unknown),
        ] {
            let mut facts = DeviceFacts {
                device: "d".parse().unwrap(),
                vendor: "Acme".to_owned(),
                model: "R1".to_owned(),
                component: Component::new("bmc").unwrap(),
                version: runs.map(str::to_owned),
                executor: "redfish".to_owned(),
                labels: firmesh_protocol::labels::Labels::default(),
            };
            let view = drift((&facts).into(), &path, &[release(wanted)], |_| true).unwrap();
            assert_eq!(view.state, state, "{runs:?} of {wanted}");
            facts.model = "R9".to_owned();
            let view = drift((&facts).into(), &path, &[release(wanted)], |asked| {
                asked == DriftState::NotCovered
            });
            assert_eq!(view.unwrap().state, DriftState::NotCovered);
            assert_eq!(
                drift((&facts).into(), &path, &[release(wanted)], |asked| asked == state),
                None
            );
        }
    }
}
