//! When an image may go to a device: the node's own check of everything a coordinator could get wrong or lie about.
//!
//! Invariant: [`admit`] says yes only to a device that stands in this wave of the approved plan and in a live permit, of
//! a model the release is signed for, with the whole image proven here, under the caps of the manifest. A coordinator
//! that lies can only delay.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256, TopologyPath},
    manifest::{CampaignManifest, Plan, PlannedDevice, Release, ReleaseRef, Reversibility},
    report::{DeviceFacts, Permit, PermitKind},
    time::WallTime,
};

/// A verified campaign as a node acts on it: the manifest, the plan it names, and the releases it pins.
#[derive(Debug, Clone)]
pub struct ApprovedCampaign {
    /// The manifest.
    pub manifest: CampaignManifest,
    /// SHA-256 of the manifest's bytes.
    pub manifest_sha256: Sha256,
    /// The plan.
    pub plan: Plan,
    /// The releases of `manifest.releases` and `manifest.previous`, by target name.
    pub releases: BTreeMap<String, Release>,
}

/// Why an approved campaign could not be put together from its parts.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The plan's bytes are not the approved ones.
    #[error("the plan has the digest {found}, the approvers signed {approved}")]
    WrongPlan {
        /// The digest of the plan at hand.
        found: Sha256,
        /// The digest in the manifest.
        approved: Sha256,
    },
    /// The plan was not readable.
    #[error("the approved plan cannot be used")]
    BadPlan(#[source] firmesh_protocol::manifest::ManifestError),
    /// The plan belongs to another campaign.
    #[error("the plan names the campaign {0}")]
    OtherCampaign(String),
    /// A release is not signed by the release keys.
    #[error("release {0} is not signed by the release keys")]
    UnsignedRelease(String),
    /// A release has another image than the campaign pins.
    #[error("release {target} has the image {found}, the approvers signed {approved}")]
    OtherImage {
        /// The release.
        target: String,
        /// The image's digest in the release.
        found: Sha256,
        /// The digest in the manifest.
        approved: Sha256,
    },
    /// The plan gives a device a release that the manifest does not name.
    #[error("the plan gives {device} the release {target}, which the manifest does not name")]
    UnplannedRelease {
        /// The device.
        device: DeviceId,
        /// The release.
        target: String,
    },
}

impl ApprovedCampaign {
    /// Puts a campaign together. `signed_release` answers with releases that the release keys signed, and no others.
    pub fn assemble(
        manifest: CampaignManifest,
        manifest_sha256: Sha256,
        plan_bytes: &[u8],
        signed_release: impl Fn(&str) -> Option<Release>,
    ) -> Result<Self, AssembleError> {
        let found = Sha256::of(plan_bytes);
        if found != manifest.plan_sha256 {
            return Err(AssembleError::WrongPlan {
                found,
                approved: manifest.plan_sha256,
            });
        }
        let plan = Plan::from_bytes(plan_bytes).map_err(AssembleError::BadPlan)?;
        if plan.campaign != manifest.id {
            return Err(AssembleError::OtherCampaign(plan.campaign.to_string()));
        }
        let mut releases = BTreeMap::new();
        for ReleaseRef { target, sha256 } in manifest.releases.iter().chain(&manifest.previous) {
            let release = signed_release(target).ok_or_else(|| AssembleError::UnsignedRelease(target.clone()))?;
            if release.artifact.sha256 != *sha256 {
                let found = release.artifact.sha256;
                return Err(AssembleError::OtherImage {
                    target: target.clone(),
                    found,
                    approved: *sha256,
                });
            }
            releases.insert(target.clone(), release);
        }
        let named = |refs: &[ReleaseRef], target: &String| refs.iter().any(|r| r.target == *target);
        for (_, planned) in plan.devices() {
            let previous_is_named = planned.previous.as_ref().is_none_or(|p| named(&manifest.previous, p));
            if !named(&manifest.releases, &planned.release) || !previous_is_named {
                let target = planned.release.clone();
                return Err(AssembleError::UnplannedRelease {
                    device: planned.device.clone(),
                    target,
                });
            }
        }
        Ok(Self {
            manifest,
            manifest_sha256,
            plan,
            releases,
        })
    }

    /// The artifacts a node needs for its own devices: every release and every previous release planned for them.
    #[must_use]
    pub fn artifacts_for(&self, node: &NodeId) -> BTreeSet<ArtifactId> {
        self.plan
            .devices()
            .filter(|(_, planned)| planned.node == *node)
            .flat_map(|(_, planned)| [Some(&planned.release), planned.previous.as_ref()])
            .flatten()
            .filter_map(|target| self.releases.get(target))
            .map(|release| release.artifact.id)
            .collect()
    }

    /// Every artifact of the campaign.
    #[must_use]
    pub fn artifacts(&self) -> BTreeSet<ArtifactId> {
        self.releases.values().map(|release| release.artifact.id).collect()
    }

    /// A device's place in the plan, with its wave.
    #[must_use]
    pub fn planned(&self, device: &DeviceId) -> Option<(u32, &PlannedDevice)> {
        self.plan
            .devices()
            .find(|(_, planned)| planned.device == *device)
            .map(|(wave, planned)| (u32::try_from(wave).expect("waves are bounded"), planned))
    }
}

/// One attempt of this node: what was started, and whether it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptStanding {
    /// Started and not ended, or ended quarantined: counts against the caps.
    InFlight,
    /// Ended, out of the caps' way.
    Ended,
}

/// What the node knows when it decides on one device.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The time, never earlier than the latest time the node has proof of.
    pub now: WallTime,
    /// This node.
    pub node: &'a NodeId,
    /// Where it stands.
    pub path: &'a TopologyPath,
    /// The device as last read.
    pub device: &'a DeviceFacts,
    /// Artifacts that are complete and verified here.
    pub complete: &'a BTreeSet<ArtifactId>,
    /// This node's attempts of this campaign, by device and kind.
    pub attempts: &'a BTreeMap<(DeviceId, PermitKind), AttemptStanding>,
    /// Attempts of other campaigns in flight on this node.
    pub other_in_flight: usize,
    /// The other campaign in which this device is in flight or quarantined, if there is one.
    pub engaged_elsewhere: Option<CampaignId>,
    /// The highest security epoch that ever ran on the device, if known.
    pub security_epoch: u32,
}

/// An attempt that may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The wave.
    pub wave: u32,
    /// The release to install.
    pub release: Release,
    /// The release to go back to, if one is known.
    pub previous: Option<Release>,
}

/// Why a device may not start. Some of these pass with time, some never do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Hold {
    /// The permit is for another edition of the campaign.
    #[error("the permit is for the manifest {0}, not for the one the approvers signed")]
    OtherManifest(Sha256),
    /// The permit does not name the device.
    #[error("the permit does not name the device")]
    NotPermitted,
    /// The plan does not have the device in the permit's wave at this node.
    #[error("the approved plan does not have the device at this node in wave {0}")]
    NotPlanned(u32),
    /// The permit has lapsed.
    #[error("the permit expired at {0}")]
    PermitExpired(WallTime),
    /// The campaign has lapsed.
    #[error("the campaign expired at {0}")]
    CampaignExpired(WallTime),
    /// The device was started once for this campaign.
    #[error("the device was already started in this campaign")]
    AlreadyStarted,
    /// A rollback without an update before it.
    #[error("the campaign did not touch the device, so there is nothing to roll back")]
    NothingToRollBack,
    /// A rollback without a previous release.
    #[error("no previous release is approved for the device")]
    NoPrevious,
    /// A rollback of a component that cannot go back.
    #[error("release {0} is one-way: the hardware refuses older versions")]
    OneWay(String),
    /// The release is for other models.
    #[error("release {target} is for {models}, the device is a {model}")]
    WrongModel {
        /// The release.
        target: String,
        /// Its models.
        models: String,
        /// The device's model.
        model: String,
    },
    /// The release is for another component or vendor.
    #[error("release {target} is for the {component} of {vendor} devices")]
    WrongComponent {
        /// The release.
        target: String,
        /// Its component.
        component: String,
        /// Its vendor.
        vendor: String,
    },
    /// The release is older than the security floor of the device.
    #[error("release {target} has the security epoch {epoch}, the device has run {floor}")]
    BelowSecurityFloor {
        /// The release.
        target: String,
        /// Its epoch.
        epoch: u32,
        /// The device's floor.
        floor: u32,
    },
    /// An image is not all here.
    #[error("the image {0} is not complete here yet")]
    NotPossessed(ArtifactId),
    /// Another campaign has the device.
    #[error("the device is in flight or quarantined in campaign {0}")]
    Engaged(CampaignId),
    /// The cap is full.
    #[error("{in_flight} devices are in flight at this node, the cap is {cap}")]
    CapFull {
        /// Devices in flight.
        in_flight: usize,
        /// The cap.
        cap: u32,
    },
}

impl Hold {
    /// Whether waiting can help.
    #[must_use]
    pub fn passes_with_time(&self) -> bool {
        matches!(self, Self::NotPossessed(_) | Self::CapFull { .. } | Self::Engaged(_))
    }
}

/// Whether `permit` lets a device of this node start now. The permit's signature was verified with one of the manifest's
/// permit keys before.
pub fn admit(campaign: &ApprovedCampaign, permit: &Permit, facts: &Facts<'_>) -> Result<Admission, Hold> {
    let (manifest, device) = (&campaign.manifest, &facts.device.device);
    if permit.manifest_sha256 != campaign.manifest_sha256 || permit.campaign != manifest.id {
        return Err(Hold::OtherManifest(permit.manifest_sha256));
    }
    if !permit.devices.contains(device) {
        return Err(Hold::NotPermitted);
    }
    let (wave, planned) = campaign
        .planned(device)
        .filter(|(wave, planned)| {
            *wave == permit.wave && planned.node == *facts.node && facts.path.parent().as_ref() == Some(&planned.rack)
        })
        .ok_or(Hold::NotPlanned(permit.wave))?;
    if facts.now >= permit.expires {
        return Err(Hold::PermitExpired(permit.expires));
    }
    // An expired campaign starts nothing new; going back stays allowed.
    if permit.kind == PermitKind::Update && facts.now >= manifest.expires {
        return Err(Hold::CampaignExpired(manifest.expires));
    }
    if facts.attempts.contains_key(&(device.clone(), permit.kind)) {
        return Err(Hold::AlreadyStarted);
    }
    let release = &campaign.releases[&planned.release];
    if let Some(other) = &facts.engaged_elsewhere {
        return Err(Hold::Engaged(other.clone()));
    }
    let previous = planned.previous.as_ref().map(|target| &campaign.releases[target]);
    let target = match permit.kind {
        PermitKind::Update => release,
        PermitKind::Rollback => rollback_target(facts, device, release, previous)?,
    };
    check_fit(target, facts)?;
    if permit.kind == PermitKind::Update && target.info.security_epoch < facts.security_epoch {
        let (epoch, floor) = (target.info.security_epoch, facts.security_epoch);
        return Err(Hold::BelowSecurityFloor {
            target: target.target.clone(),
            epoch,
            floor,
        });
    }
    // The way back is held here before the way forward is taken: rollback needs no network.
    for needed in [Some(target), previous].into_iter().flatten() {
        if !facts.complete.contains(&needed.artifact.id) {
            return Err(Hold::NotPossessed(needed.artifact.id));
        }
    }
    check_caps(campaign, permit, facts)?;
    Ok(Admission {
        wave,
        release: target.clone(),
        previous: previous.cloned(),
    })
}

fn rollback_target<'a>(
    facts: &Facts<'_>,
    device: &DeviceId,
    release: &Release,
    previous: Option<&'a Release>,
) -> Result<&'a Release, Hold> {
    let was_updated = facts.attempts.contains_key(&(device.clone(), PermitKind::Update));
    let version = facts.device.version.as_deref();
    // A device that somebody moved on since is not this campaign's to pull back.
    let runs = |other: &Release| version.is_none_or(|version| version == other.info.version);
    if !was_updated || !(runs(release) || previous.is_some_and(runs)) {
        return Err(Hold::NothingToRollBack);
    }
    if release.info.reversibility == Reversibility::OneWay {
        return Err(Hold::OneWay(release.target.clone()));
    }
    previous.ok_or(Hold::NoPrevious)
}

fn check_fit(release: &Release, facts: &Facts<'_>) -> Result<(), Hold> {
    let (info, device) = (&release.info, facts.device);
    if info.component != device.component || info.vendor != device.vendor {
        return Err(Hold::WrongComponent {
            target: release.target.clone(),
            component: info.component.to_string(),
            vendor: info.vendor.clone(),
        });
    }
    if !info.models.contains(&device.model) {
        return Err(Hold::WrongModel {
            target: release.target.clone(),
            models: info.models.join(", "),
            model: device.model.clone(),
        });
    }
    Ok(())
}

/// The node's share of the caps: its own devices in flight, which the coordinator's permits must never exceed.
fn check_caps(campaign: &ApprovedCampaign, permit: &Permit, facts: &Facts<'_>) -> Result<(), Hold> {
    let key = (facts.device.device.clone(), PermitKind::Update);
    let own_place = usize::from(
        permit.kind == PermitKind::Rollback && facts.attempts.get(&key) == Some(&AttemptStanding::InFlight),
    );
    let in_flight_here = facts
        .attempts
        .values()
        .filter(|standing| **standing == AttemptStanding::InFlight)
        .count()
        - own_place;
    let in_flight = in_flight_here + facts.other_in_flight;
    let cap = campaign.manifest.caps.per_rack.min(campaign.manifest.caps.total);
    if in_flight >= cap as usize {
        Err(Hold::CapFull { in_flight, cap })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firmesh_protocol::{
        ids::Component,
        manifest::{
            Artifact, Caps, Deadlines, GateRule, MANIFEST_SCHEMA, PLAN_SCHEMA, RELEASE_SCHEMA, ReleaseInfo, Selector,
            Strategy,
        },
        units::BasisPoints,
    };

    fn release(version: &str) -> Release {
        let bytes = version.as_bytes();
        Release {
            target: format!("firmware/r1-{version}.bin"),
            artifact: Artifact {
                id: ArtifactId::of(bytes),
                sha256: Sha256::of(bytes),
                length: bytes.len() as u64,
            },
            info: ReleaseInfo {
                schema: RELEASE_SCHEMA.to_owned(),
                blake3: ArtifactId::of(bytes),
                vendor: "Acme".to_owned(),
                models: vec!["R1".to_owned()],
                component: Component::new("bmc").unwrap(),
                version: version.to_owned(),
                security_epoch: 1,
                from_versions: Vec::new(),
                reversibility: Reversibility::Reflash,
                provenance: None,
            },
        }
    }

    fn planned(device: &str, node: &str) -> PlannedDevice {
        PlannedDevice {
            device: DeviceId::new(device).unwrap(),
            node: NodeId::new(node).unwrap(),
            rack: "eu/s1/r1".parse().unwrap(),
            release: release("2").target,
            from_version: "1".to_owned(),
            previous: Some(release("1").target),
        }
    }

    fn plan() -> Plan {
        Plan {
            schema: PLAN_SCHEMA.to_owned(),
            campaign: CampaignId::new("spring").unwrap(),
            waves: vec![
                vec![planned("d1", "n1"), planned("d2", "n1")],
                vec![planned("d3", "n2")],
            ],
            held: Vec::new(),
        }
    }

    fn manifest() -> CampaignManifest {
        let reference = |r: Release| ReleaseRef {
            target: r.target,
            sha256: r.artifact.sha256,
        };
        CampaignManifest {
            schema: MANIFEST_SCHEMA.to_owned(),
            id: CampaignId::new("spring").unwrap(),
            sequence: 1,
            expires: WallTime::from_unix_seconds(2_000),
            releases: vec![reference(release("2"))],
            previous: vec![reference(release("1"))],
            selector: Selector::default(),
            strategy: Strategy::Canary {
                shares: vec![BasisPoints::WHOLE],
            },
            caps: Caps { per_rack: 1, total: 5 },
            gate: GateRule {
                advance: BasisPoints::WHOLE,
                rollback: BasisPoints::WHOLE,
                sample_min: 1,
                soak_s: 0,
            },
            deadlines: Deadlines {
                attempt_s: 600,
                back_s: 60,
            },
            automatic_rollback: true,
            permit_keys: vec!["00".repeat(32)],
            plan_sha256: Sha256::of(&plan().to_bytes()),
        }
    }

    fn releases(target: &str) -> Option<Release> {
        [release("1"), release("2")].into_iter().find(|r| r.target == target)
    }

    fn campaign() -> ApprovedCampaign {
        ApprovedCampaign::assemble(manifest(), Sha256::of(b"manifest"), &plan().to_bytes(), releases).unwrap()
    }

    fn permit() -> Permit {
        Permit {
            campaign: CampaignId::new("spring").unwrap(),
            manifest_sha256: Sha256::of(b"manifest"),
            kind: PermitKind::Update,
            wave: 0,
            sequence: 1,
            issued: WallTime::from_unix_seconds(0),
            expires: WallTime::from_unix_seconds(1_000),
            devices: vec![DeviceId::new("d1").unwrap(), DeviceId::new("d2").unwrap()],
        }
    }

    /// Decides on one device after changing what is known.
    fn decide(
        change: impl FnOnce(&mut Permit, &mut DeviceFacts, &mut BTreeMap<(DeviceId, PermitKind), AttemptStanding>, &mut i64),
    ) -> Result<Admission, Hold> {
        let (mut permit, mut attempts, mut now) = (permit(), BTreeMap::new(), 500);
        let mut device = DeviceFacts {
            device: DeviceId::new("d1").unwrap(),
            vendor: "Acme".to_owned(),
            model: "R1".to_owned(),
            component: Component::new("bmc").unwrap(),
            version: Some("1".to_owned()),
            executor: "redfish".to_owned(),
        };
        change(&mut permit, &mut device, &mut attempts, &mut now);
        let complete = [release("1"), release("2")].map(|r| r.artifact.id).into();
        admit(
            &campaign(),
            &permit,
            &Facts {
                now: WallTime::from_unix_seconds(now),
                node: &NodeId::new("n1").unwrap(),
                path: &"eu/s1/r1/n1".parse().unwrap(),
                device: &device,
                complete: &complete,
                attempts: &attempts,
                other_in_flight: 0,
                engaged_elsewhere: None,
                security_epoch: 1,
            },
        )
    }

    #[test]
    fn a_planned_permitted_fitting_device_starts_with_its_way_back() {
        let admission = decide(|_, _, _, _| {}).unwrap();
        assert_eq!(admission.release, release("2"));
        assert_eq!(admission.previous, Some(release("1")));
    }

    #[test]
    fn a_lying_coordinator_starts_nothing() {
        let d3 = DeviceId::new("d3").unwrap();
        let other = Sha256::of(b"other");
        assert_eq!(
            decide(|p, _, _, _| p.manifest_sha256 = other),
            Err(Hold::OtherManifest(other))
        );
        assert_eq!(decide(|p, _, _, _| p.devices.clear()), Err(Hold::NotPermitted));
        assert_eq!(decide(|p, _, _, _| p.wave = 1), Err(Hold::NotPlanned(1)));
        // d3 is planned, but at another node.
        let foreign = decide(|p, d, _, _| {
            p.wave = 1;
            p.devices = vec![d3.clone()];
            d.device = d3;
        });
        assert_eq!(foreign, Err(Hold::NotPlanned(1)));
        assert!(matches!(
            decide(|_, _, _, now| *now = 1_000),
            Err(Hold::PermitExpired(_))
        ));
        let late = decide(|p, _, _, now| {
            p.expires = WallTime::from_unix_seconds(9_000);
            *now = 2_000;
        });
        assert!(matches!(late, Err(Hold::CampaignExpired(_))));
    }

    #[test]
    fn an_image_for_another_model_or_component_is_held_for_good() {
        let model = decide(|_, d, _, _| d.model = "R2".to_owned()).unwrap_err();
        assert!(matches!(model, Hold::WrongModel { .. }) && !model.passes_with_time());
        let component = decide(|_, d, _, _| d.component = Component::new("bios").unwrap()).unwrap_err();
        assert!(matches!(component, Hold::WrongComponent { .. }));
    }

    #[test]
    fn the_cap_counts_what_is_in_flight_and_a_device_starts_once() {
        let d1 = DeviceId::new("d1").unwrap();
        let d2 = DeviceId::new("d2").unwrap();
        let full = decide(|_, _, a, _| {
            a.insert((d2, PermitKind::Update), AttemptStanding::InFlight);
        });
        assert_eq!(full, Err(Hold::CapFull { in_flight: 1, cap: 1 }));
        let again = decide(|_, _, a, _| {
            a.insert((d1, PermitKind::Update), AttemptStanding::Ended);
        });
        assert_eq!(again, Err(Hold::AlreadyStarted));
    }

    #[test]
    fn a_rollback_goes_to_the_previous_release_and_only_after_an_update() {
        let d1 = DeviceId::new("d1").unwrap();
        assert_eq!(
            decide(|p, _, _, _| p.kind = PermitKind::Rollback),
            Err(Hold::NothingToRollBack)
        );
        let back = decide(|p, _, a, now| {
            p.kind = PermitKind::Rollback;
            p.expires = WallTime::from_unix_seconds(9_000);
            a.insert((d1, PermitKind::Update), AttemptStanding::InFlight);
            *now = 3_000;
        });
        assert_eq!(back.unwrap().release, release("1"));
        let d1 = DeviceId::new("d1").unwrap();
        let moved_on = decide(|p, d, a, _| {
            p.kind = PermitKind::Rollback;
            d.version = Some("3".to_owned());
            a.insert((d1, PermitKind::Update), AttemptStanding::Ended);
        });
        assert_eq!(moved_on, Err(Hold::NothingToRollBack));
    }

    #[test]
    fn a_plan_or_release_that_was_not_approved_does_not_make_a_campaign() {
        let sha = Sha256::of(b"manifest");
        let mut other = plan();
        other.waves.pop();
        assert!(matches!(
            ApprovedCampaign::assemble(manifest(), sha, &other.to_bytes(), releases),
            Err(AssembleError::WrongPlan { .. })
        ));
        assert!(matches!(
            ApprovedCampaign::assemble(manifest(), sha, &plan().to_bytes(), |_| None),
            Err(AssembleError::UnsignedRelease(_))
        ));
        let swapped = |target: &str| {
            releases(target).map(|r| Release {
                artifact: release("3").artifact,
                ..r
            })
        };
        assert!(matches!(
            ApprovedCampaign::assemble(manifest(), sha, &plan().to_bytes(), swapped),
            Err(AssembleError::OtherImage { .. })
        ));
    }
}
