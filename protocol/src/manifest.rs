//! What gets signed, as data: artifacts, releases, campaigns and plans.
//!
//! Invariants: no floats, every list bounded, unknown fields refused in what Firmesh alone defines; a value that was
//! read from bytes has passed `check`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{ArtifactId, CampaignId, Component, DeviceId, NodeId, Sha256, TopologyPath},
    limits::{ARTIFACT_BYTES_MAX, PLAN_DEVICES_MAX, REASON_BYTES_MAX, WAVES_MAX},
    time::WallTime,
    trust::PublicKey,
    units::BasisPoints,
    window::{Blackout, WINDOWS_MAX, Window},
};

/// The schema name of a campaign manifest.
pub const MANIFEST_SCHEMA: &str = "firmesh-campaign/1";
/// The schema name of a plan.
pub const PLAN_SCHEMA: &str = "firmesh-plan/1";
/// The schema name of a release.
pub const RELEASE_SCHEMA: &str = "firmesh-release/1";

/// Why a manifest, release or plan was refused after its signatures were found good.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the expected shape.
    #[error("{what} does not have the expected form")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A later or foreign schema.
    #[error("{what} has the schema {found:?}, this version reads {expected:?}")]
    Schema {
        /// Which document.
        what: &'static str,
        /// The schema it names.
        found: String,
        /// The schema this version reads.
        expected: &'static str,
    },
    /// A value outside its bounds.
    #[error("{what}: {field} {problem}")]
    Bounds {
        /// Which document.
        what: &'static str,
        /// The field at fault.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Immutable bytes, by every name they have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// BLAKE3 root: the name in the mesh.
    pub id: ArtifactId,
    /// SHA-256: the name in TUF and outside.
    pub sha256: Sha256,
    /// Length in bytes.
    pub length: u64,
}

/// What it takes to go back from a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reversibility {
    /// The previous image is still on the device (a slot, a backup bank).
    Reversible,
    /// The previous image has to be written again.
    Reflash,
    /// The hardware refuses older versions: never rolled back automatically.
    OneWay,
}

/// The `custom` object of a target under `firmware/`: what the image is and which devices may take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseInfo {
    /// [`RELEASE_SCHEMA`].
    pub schema: String,
    /// BLAKE3 root of the image.
    pub blake3: ArtifactId,
    /// Who makes the devices.
    pub vendor: String,
    /// Device models that may take the image, exactly as the devices report them.
    pub models: Vec<String>,
    /// The component the image is for.
    pub component: Component,
    /// The version a device reports once it runs the image.
    pub version: String,
    /// Counts security floors: a device never goes to a release with a lower epoch.
    pub security_epoch: u32,
    /// The versions from which this release may be installed; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_versions: Vec<String>,
    /// What it takes to go back.
    pub reversibility: Reversibility,
    /// What shows where the image comes from, as the one who staged the release has judged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// The evidence that was presented for a release, by digest. Nodes do not need it; auditors do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The verdict, which names the vendor's signatures by their digests.
    pub verdict: FileRef,
    /// The software bill of materials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<FileRef>,
}

/// A file by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// SHA-256 of its bytes.
    pub sha256: Sha256,
    /// Length in bytes.
    pub length: u64,
}

/// A release: a signed target under `firmware/`, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The TUF target name, such as `firmware/acme-r1-bmc-1.1.0.bin`.
    pub target: String,
    /// The image.
    pub artifact: Artifact,
    /// What it is for.
    pub info: ReleaseInfo,
}

impl ReleaseInfo {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bounds = |field, problem: &str| {
            Err(ManifestError::Bounds {
                what: "release",
                field,
                problem: problem.to_owned(),
            })
        };
        if self.schema != RELEASE_SCHEMA {
            return Err(ManifestError::Schema {
                what: "release",
                found: self.schema.chars().take(80).collect(),
                expected: RELEASE_SCHEMA,
            });
        }
        if !is_label(&self.vendor) {
            return bounds("vendor", "must have 1 to 128 printable characters");
        }
        if !is_label(&self.version) {
            return bounds("version", "must have 1 to 128 printable characters");
        }
        if self.models.is_empty() || self.models.len() > 256 || !self.models.iter().all(|m| is_label(m)) {
            return bounds("models", "must name 1 to 256 models of 1 to 128 printable characters");
        }
        if self.from_versions.len() > 256 || !self.from_versions.iter().all(|v| is_label(v)) {
            return bounds(
                "from_versions",
                "must name at most 256 versions of 1 to 128 printable characters",
            );
        }
        Ok(())
    }
}

/// One release of a campaign, pinned by digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRef {
    /// The TUF target name.
    pub target: String,
    /// SHA-256 of the image.
    pub sha256: Sha256,
}

/// Which devices a campaign is for: all that match every non-empty list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// Places; a device matches if it stands at or below one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<TopologyPath>,
    /// Models, exactly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Devices by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
}

/// How a campaign widens: what its waves are. Between two waves stands the gate, whatever the strategy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// Everybody in one wave: for one device, or a few.
    Direct {},
    /// Waves by growing share of the devices, cut across racks.
    Canary {
        /// Cumulative shares in basis points, strictly growing, the last one 10,000.
        #[serde(default = "Strategy::canary_shares")]
        shares: Vec<BasisPoints>,
    },
    /// One place after another, each in waves of its own.
    Regional {
        /// The places, none inside another. Devices elsewhere are held.
        order: Vec<TopologyPath>,
        /// Cumulative shares of a place's devices, as for [`Strategy::Canary`]; the whole place at once if left out.
        #[serde(default = "Strategy::whole_place")]
        shares: Vec<BasisPoints>,
    },
    /// Batches of one size, cut across racks.
    Rolling {
        /// Devices of a batch.
        #[serde(default = "Strategy::rolling_batch")]
        batch: u32,
    },
    /// Batches that grow with every one that succeeds, cut across racks.
    Growing {
        /// Devices of the first batch.
        first: u32,
        /// How large a batch is, measured by the one before it, in percent: 200 doubles. Above 100.
        percent: u32,
    },
}

/// Places that a regional campaign goes through at most.
const REGIONS_MAX: usize = 1_000;

impl Strategy {
    fn canary_shares() -> Vec<BasisPoints> {
        [1_000, 3_000, 5_000, 10_000]
            .into_iter()
            .filter_map(|share| BasisPoints::new(share).ok())
            .collect()
    }

    fn whole_place() -> Vec<BasisPoints> {
        vec![BasisPoints::WHOLE]
    }

    fn rolling_batch() -> u32 {
        100
    }

    /// The first field that is wrong, and how.
    fn problem(&self) -> Option<(&'static str, String)> {
        let grow = |shares: &[BasisPoints]| {
            let growing = shares.windows(2).all(|pair| pair[0] < pair[1]);
            let starts = shares.first().is_some_and(|share| share.get() > 0);
            growing && starts && shares.last() == Some(&BasisPoints::WHOLE) && shares.len() <= WAVES_MAX
        };
        match self {
            Self::Canary { shares } | Self::Regional { shares, .. } if !grow(shares) => Some((
                "strategy.shares",
                "must grow from above 0 to exactly 10000 basis points".to_owned(),
            )),
            Self::Regional { order, .. } if order.is_empty() || order.len() > REGIONS_MAX => {
                Some(("strategy.order", format!("must name 1 to {REGIONS_MAX} places")))
            }
            Self::Regional { order, .. } => {
                let mut sorted: Vec<_> = order.iter().collect();
                // A place comes right before what is inside it.
                sorted.sort();
                let pair = sorted.windows(2).find(|pair| pair[1].is_within(pair[0]))?;
                let problem = format!("names {} and, inside it, {}", pair[0], pair[1]);
                Some(("strategy.order", problem))
            }
            Self::Rolling { batch: 0 } => Some(("strategy.batch", "must be at least one device".to_owned())),
            Self::Growing { first: 0, .. } => Some(("strategy.first", "must be at least one device".to_owned())),
            Self::Growing { percent: ..=100, .. } => Some((
                "strategy.percent",
                "must be above 100, or no batch would grow".to_owned(),
            )),
            Self::Direct {} | Self::Canary { .. } | Self::Rolling { .. } | Self::Growing { .. } => None,
        }
    }
}

/// The most devices in flight at once. In flight: permitted and not yet ended; a quarantined device stays in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Per rack (the parent of the node's path).
    pub per_rack: u32,
    /// In the whole campaign.
    pub total: u32,
}

/// The test between two waves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateRule {
    /// The wave advances at this success rate or above ...
    pub advance: BasisPoints,
    /// ... is rolled back below this one, and holds between the two.
    pub rollback: BasisPoints,
    /// Ended attempts needed before the gate is judged; fewer is "unknown", which holds. A wave with fewer devices
    /// needs all of them.
    pub sample_min: u32,
    /// How long a wave that passed is watched before the next one starts, in seconds.
    pub soak_s: u32,
}

/// Deadlines, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deadlines {
    /// From a permitted start to the end of the attempt; after it the device is quarantined.
    pub attempt_s: u32,
    /// From a reset to N good answers, before the next rung of the reset ladder.
    pub back_s: u32,
}

/// How urgent the images of a campaign are in the mesh. It hurries their bytes only: caps, gates and windows stay as
/// they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Whenever nothing else moves.
    Background,
    /// As everything else.
    #[default]
    Normal,
    /// Before everything else: transfers of a lower priority wait while this one moves.
    Emergency,
}

impl Priority {
    fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

/// What else must hold before a device starts; all of it is checked by the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// When devices may start; any time if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// When nothing starts, whatever the windows say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blackouts: Vec<Blackout>,
    /// Executors that may act, by name; any that fits the device if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub executors: Vec<String>,
    /// Whether releases that cannot be taken back may be installed: approvers say so, or such a release is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_way_accepted: bool,
}

/// The rules of one campaign, signed by the approvers: the target `campaigns/<id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CampaignManifest {
    /// [`MANIFEST_SCHEMA`].
    pub schema: String,
    /// The campaign.
    pub id: CampaignId,
    /// Grows with every campaign of the fleet; names the order of approvals in the audit.
    pub sequence: u64,
    /// No device starts after this moment.
    pub expires: WallTime,
    /// What is installed: one release per (model, component).
    pub releases: Vec<ReleaseRef>,
    /// What devices go back to, and therefore what nodes fetch and pin before the first start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<ReleaseRef>,
    /// For which devices.
    pub selector: Selector,
    /// How it widens.
    pub strategy: Strategy,
    /// How many at once.
    pub caps: Caps,
    /// The test between waves.
    pub gate: GateRule,
    /// When, by what, and at what price devices may be updated.
    #[serde(default)]
    pub constraints: Constraints,
    /// Time limits.
    pub deadlines: Deadlines,
    /// How urgent its images are in the mesh.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Whether a failed gate rolls the wave back by itself.
    pub automatic_rollback: bool,
    /// The coordinators' ed25519 public keys, in hexadecimal, whose permits count for this campaign.
    pub permit_keys: Vec<String>,
    /// SHA-256 of the plan's bytes: approval is of who gets what and when, not only of the rules.
    pub plan_sha256: Sha256,
    /// SHA-256 of the rehearsal that approvers were shown. For people: nothing that installs looks at it. A node from
    /// before there was such a field refuses a manifest that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal_sha256: Option<Sha256>,
}

impl CampaignManifest {
    /// Reads and checks a manifest. The caller has verified the bytes' digest against signed metadata before.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed {
            what: "manifest",
            source,
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// SHA-256 of what is rehearsed: the manifest with its plan, whatever its layout.
    #[must_use]
    pub fn rules_sha256(&self) -> Sha256 {
        let rules = Self {
            rehearsal_sha256: None,
            ..self.clone()
        };
        Sha256::of(&serde_json::to_vec(&rules).expect("a manifest has only names, numbers and lists"))
    }

    /// The TUF target name of this campaign.
    #[must_use]
    pub fn target(&self) -> String {
        campaign_target(&self.id)
    }

    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bounds = |field, problem: &str| {
            Err(ManifestError::Bounds {
                what: "manifest",
                field,
                problem: problem.to_owned(),
            })
        };
        if self.schema != MANIFEST_SCHEMA {
            return Err(ManifestError::Schema {
                what: "manifest",
                found: self.schema.chars().take(80).collect(),
                expected: MANIFEST_SCHEMA,
            });
        }
        if self.releases.is_empty() || self.releases.len() > 1_000 {
            return bounds("releases", "must name 1 to 1000 releases");
        }
        if self.previous.len() > 1_000 {
            return bounds("previous", "must name at most 1000 releases");
        }
        if !self
            .releases
            .iter()
            .chain(&self.previous)
            .all(|r| is_target(&r.target, "firmware/"))
        {
            return bounds("releases", "must be targets of the form firmware/<name>");
        }
        if let Some((field, problem)) = self.strategy.problem() {
            return bounds(field, &problem);
        }
        if self.caps.per_rack == 0 || self.caps.total == 0 {
            return bounds("caps", "must be at least 1, or nothing could ever start");
        }
        if self.gate.rollback > self.gate.advance {
            return bounds("gate", "has a rollback threshold above its advance threshold");
        }
        if self.deadlines.attempt_s == 0 || self.deadlines.back_s == 0 {
            return bounds("deadlines", "must be at least one second");
        }
        if self.permit_keys.is_empty() || self.permit_keys.len() > 16 {
            return bounds("permit_keys", "must name 1 to 16 coordinator keys");
        }
        if let Some(error) = self.permit_keys.iter().find_map(|key| key.parse::<PublicKey>().err()) {
            return bounds("permit_keys", &format!("names a key that is none: {error}"));
        }
        if let Some((field, problem)) = self.constraints.problem(&self.deadlines) {
            return bounds(field, &problem);
        }
        if self.selector.devices.len() > PLAN_DEVICES_MAX
            || self.selector.paths.len() > 10_000
            || self.selector.models.len() > 1_000
        {
            return bounds("selector", "names more devices, places or models than a campaign may");
        }
        Ok(())
    }
}

impl Constraints {
    /// The first field that is wrong, and how.
    fn problem(&self, deadlines: &Deadlines) -> Option<(&'static str, String)> {
        let executors: BTreeSet<_> = self.executors.iter().collect();
        if self.windows.len() > WINDOWS_MAX || self.blackouts.len() > WINDOWS_MAX {
            Some(("windows", format!("and blackouts must be at most {WINDOWS_MAX} each")))
        } else if let Some(problem) = self.windows.iter().find_map(Window::problem) {
            Some(("windows", problem))
        } else if self
            .windows
            .iter()
            .any(|window| window.duration_s < deadlines.attempt_s)
        {
            let problem = "are shorter than deadlines.attempt_s, so that nothing could ever start in them";
            Some(("windows", problem.to_owned()))
        } else if self.blackouts.iter().any(|blackout| blackout.from >= blackout.until) {
            Some(("blackouts", "must end after they begin".to_owned()))
        } else if executors.len() > 64 || executors.len() != self.executors.len() {
            Some(("executors", "must be at most 64, each named once".to_owned()))
        } else if !self.executors.iter().all(|name| is_label(name)) {
            Some((
                "executors",
                "must have names of 1 to 128 printable characters".to_owned(),
            ))
        } else {
            None
        }
    }
}

/// The TUF target name of a campaign's manifest.
#[must_use]
pub fn campaign_target(id: &CampaignId) -> String {
    format!("campaigns/{id}.json")
}

/// One device's place in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedDevice {
    /// The device.
    pub device: DeviceId,
    /// The node that looks after it.
    pub node: NodeId,
    /// The rack whose cap it counts against.
    pub rack: TopologyPath,
    /// The release it gets: a target of the manifest's `releases`.
    pub release: String,
    /// The version it was seen running.
    pub from_version: String,
    /// What it goes back to: a target of the manifest's `previous`, if one matches `from_version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
}

/// A device that matches the selector and is left out, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldDevice {
    /// The device.
    pub device: DeviceId,
    /// Why, for a person.
    pub reason: String,
}

/// The immutable result of planning: who gets what, in which wave, and a reason for everybody held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_SCHEMA`].
    pub schema: String,
    /// The campaign.
    pub campaign: CampaignId,
    /// The waves, in order.
    pub waves: Vec<Vec<PlannedDevice>>,
    /// The key of every node that looks after a planned device: approvers sign whose reports count as evidence.
    pub nodes: BTreeMap<NodeId, PublicKey>,
    /// Who is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldDevice>,
}

impl Plan {
    /// Reads and checks a plan. The caller has compared the bytes with the manifest's `plan_sha256` before.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let plan: Self =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { what: "plan", source })?;
        plan.check()?;
        Ok(plan)
    }

    /// The plan's bytes, the same for the same plan: what `plan_sha256` is taken of.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plan has only names, numbers and lists")
    }

    /// Every planned device with the number of its wave, counted from 0.
    pub fn devices(&self) -> impl Iterator<Item = (usize, &PlannedDevice)> {
        self.waves
            .iter()
            .enumerate()
            .flat_map(|(number, wave)| wave.iter().map(move |device| (number, device)))
    }

    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bounds = |field, problem: String| {
            Err(ManifestError::Bounds {
                what: "plan",
                field,
                problem,
            })
        };
        if self.schema != PLAN_SCHEMA {
            return Err(ManifestError::Schema {
                what: "plan",
                found: self.schema.chars().take(80).collect(),
                expected: PLAN_SCHEMA,
            });
        }
        if self.waves.len() > WAVES_MAX {
            return bounds(
                "waves",
                format!("are {}, at most {WAVES_MAX} are allowed", self.waves.len()),
            );
        }
        let mut devices: Vec<_> = self.devices().map(|(_, planned)| &planned.device).collect();
        if devices.len() + self.held.len() > PLAN_DEVICES_MAX {
            return bounds("waves", format!("name more than {PLAN_DEVICES_MAX} devices"));
        }
        if self.held.iter().any(|held| held.reason.len() > REASON_BYTES_MAX) {
            return bounds("held", format!("has a reason of more than {REASON_BYTES_MAX} bytes"));
        }
        if let Some((_, planned)) = self
            .devices()
            .find(|(_, planned)| !self.nodes.contains_key(&planned.node))
        {
            return bounds("nodes", format!("do not name the key of {}", planned.node));
        }
        devices.sort();
        if let Some(pair) = devices.windows(2).find(|pair| pair[0] == pair[1]) {
            return bounds("waves", format!("name the device {} twice", pair[0]));
        }
        Ok(())
    }
}

impl Artifact {
    /// Whether the length is one Firmesh moves.
    #[must_use]
    pub fn length_is_allowed(&self) -> bool {
        (1..=ARTIFACT_BYTES_MAX).contains(&self.length)
    }
}

/// Text that vendors choose (models, versions): printable, neither empty nor endless.
fn is_label(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// A target name directly under `folder`, safe as a file name.
fn is_target(name: &str, folder: &str) -> bool {
    name.strip_prefix(folder).is_some_and(|rest| {
        (1..=200).contains(&rest.len())
            && !rest.starts_with('.')
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+'))
    })
}

/// Whether `name` is a legal name for a release's target: `firmware/<letters, digits, '.', '_', '-', '+'>`.
#[must_use]
pub fn is_release_target(name: &str) -> bool {
    is_target(name, "firmware/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::SecretKey;

    fn manifest() -> CampaignManifest {
        CampaignManifest {
            schema: MANIFEST_SCHEMA.to_owned(),
            id: CampaignId::new("spring").unwrap(),
            sequence: 1,
            expires: WallTime::from_unix_seconds(2_000_000_000),
            releases: vec![ReleaseRef {
                target: "firmware/a.bin".to_owned(),
                sha256: Sha256::of(b"a"),
            }],
            previous: Vec::new(),
            selector: Selector::default(),
            strategy: Strategy::Canary {
                shares: [1_000, 5_000, 10_000]
                    .map(|share| BasisPoints::new(share).unwrap())
                    .to_vec(),
            },
            caps: Caps { per_rack: 1, total: 10 },
            gate: GateRule {
                advance: BasisPoints::new(9_900).unwrap(),
                rollback: BasisPoints::new(9_000).unwrap(),
                sample_min: 1,
                soak_s: 0,
            },
            deadlines: Deadlines {
                attempt_s: 600,
                back_s: 60,
            },
            constraints: Constraints::default(),
            priority: Priority::Emergency,
            automatic_rollback: true,
            permit_keys: vec![format!("58{}", "66".repeat(31))],
            plan_sha256: Sha256::of(b"plan"),
            rehearsal_sha256: None,
        }
    }

    /// Manifests that were signed before there were rehearsals keep their bytes, and so do those without one.
    #[test]
    fn a_rehearsal_is_a_last_field_that_others_leave_out() {
        let without = serde_json::to_string(&manifest()).unwrap();
        assert!(
            without.ends_with(&format!("\"plan_sha256\":\"{}\"}}", Sha256::of(b"plan"))),
            "{without}"
        );
        let rehearsed = CampaignManifest {
            rehearsal_sha256: Some(Sha256::of(b"rehearsal")),
            ..manifest()
        };
        let with = serde_json::to_vec(&rehearsed).unwrap();
        assert_eq!(CampaignManifest::from_bytes(&with).unwrap(), rehearsed);
        assert_eq!(rehearsed.rules_sha256(), manifest().rules_sha256());
    }

    #[test]
    fn a_manifest_survives_its_own_bytes_and_nothing_unknown_slips_in() {
        let bytes = serde_json::to_vec(&manifest()).unwrap();
        assert_eq!(CampaignManifest::from_bytes(&bytes).unwrap(), manifest());
        let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        value["hurry"] = true.into();
        assert!(CampaignManifest::from_bytes(&serde_json::to_vec(&value).unwrap()).is_err());
    }

    #[test]
    fn rules_that_could_never_or_always_start_are_refused() {
        let refused = |change: fn(&mut CampaignManifest)| {
            let mut changed = manifest();
            change(&mut changed);
            assert!(changed.check().is_err());
        };
        refused(|m| m.caps.per_rack = 0);
        refused(|m| {
            m.strategy = Strategy::Canary {
                shares: vec![BasisPoints::new(5_000).unwrap()],
            }
        });
        refused(|m| {
            m.strategy = Strategy::Canary {
                shares: vec![BasisPoints::WHOLE, BasisPoints::WHOLE],
            }
        });
        refused(|m| m.strategy = Strategy::Rolling { batch: 0 });
        refused(|m| m.strategy = Strategy::Growing { first: 0, percent: 200 });
        refused(|m| m.strategy = Strategy::Growing { first: 1, percent: 100 });
        refused(|m| m.strategy = regional(&[]));
        refused(|m| m.strategy = regional(&["us", "us"]));
        refused(|m| m.strategy = regional(&["eu/ber/hall2", "us", "eu/ber/hall10", "eu", "eu/fra"]));
        refused(|m| m.gate.rollback = BasisPoints::WHOLE);
        refused(|m| m.permit_keys.clear());
        refused(|m| m.permit_keys = vec!["00".repeat(32)]);
        refused(|m| m.releases[0].target = "firmware/../../etc/passwd".to_owned());
        refused(|m| m.releases[0].target = "campaigns/a.json".to_owned());
        refused(|m| m.schema = "firmesh-campaign/2".to_owned());
        refused(|m| m.constraints.executors = vec!["redfish".to_owned(), "redfish".to_owned()]);
        refused(|m| {
            let at = WallTime::from_unix_seconds(0);
            m.constraints.blackouts = vec![Blackout { from: at, until: at }];
        });
        refused(|m| {
            m.constraints.windows = vec![Window {
                zone: "UTC".to_owned(),
                days: vec![crate::window::Weekday::Mon],
                from: "22:00".to_owned(),
                duration_s: 599,
            }];
        });
    }

    fn regional(order: &[&str]) -> Strategy {
        Strategy::Regional {
            order: order.iter().map(|place| place.parse().unwrap()).collect(),
            shares: vec![BasisPoints::WHOLE],
        }
    }

    #[test]
    fn every_strategy_comes_back_as_it_was_written() {
        for strategy in [
            Strategy::Direct {},
            Strategy::Canary {
                shares: Strategy::canary_shares(),
            },
            regional(&["us/nyc", "eu", "us/nyc2"]),
            Strategy::Rolling { batch: 100 },
            Strategy::Growing { first: 1, percent: 200 },
        ] {
            let written = CampaignManifest { strategy, ..manifest() };
            let bytes = serde_json::to_vec(&written).unwrap();
            assert_eq!(CampaignManifest::from_bytes(&bytes).unwrap(), written);
        }
    }

    /// Releases that were signed before there was provenance keep their bytes; with it, the bytes are these.
    #[test]
    fn a_release_has_the_bytes_that_were_signed() {
        let digest = |text: &str| Sha256::of(text.as_bytes());
        let mut info = ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: ArtifactId::from([7; 32]),
            vendor: "Acme".to_owned(),
            models: vec!["R1".to_owned()],
            component: Component::new("bmc").unwrap(),
            version: "1.1.0".to_owned(),
            security_epoch: 1,
            from_versions: Vec::new(),
            reversibility: Reversibility::Reflash,
            provenance: None,
        };
        let golden = include_str!("../tests/golden/release.json").trim_end();
        assert_eq!(serde_json::to_string(&info).unwrap(), golden);
        info.provenance = Some(Provenance {
            verdict: FileRef {
                sha256: digest("verdict"),
                length: 7,
            },
            sbom: Some(FileRef {
                sha256: digest("sbom"),
                length: 4,
            }),
        });
        let golden = include_str!("../tests/golden/release_provenance.json").trim_end();
        assert_eq!(serde_json::to_string(&info).unwrap(), golden);
        assert_eq!(serde_json::from_str::<ReleaseInfo>(golden).unwrap(), info);
    }

    #[test]
    fn a_plan_naming_a_device_twice_is_refused() {
        let planned = PlannedDevice {
            device: DeviceId::new("d1").unwrap(),
            node: NodeId::new("n1").unwrap(),
            rack: "eu/s1/r1".parse().unwrap(),
            release: "firmware/a.bin".to_owned(),
            from_version: "1".to_owned(),
            previous: None,
        };
        let plan = Plan {
            schema: PLAN_SCHEMA.to_owned(),
            campaign: CampaignId::new("spring").unwrap(),
            waves: vec![vec![planned.clone()], vec![planned]],
            nodes: [(NodeId::new("n1").unwrap(), SecretKey::from_seed(&[1; 32]).public())].into(),
            held: Vec::new(),
        };
        let refused = Plan::from_bytes(&plan.to_bytes()).unwrap_err();
        assert!(refused.to_string().contains("twice"), "{refused}");
        let keyless = Plan {
            nodes: BTreeMap::new(),
            waves: plan.waves[..1].to_vec(),
            ..plan
        };
        let refused = Plan::from_bytes(&keyless.to_bytes()).unwrap_err();
        assert!(refused.to_string().contains("key of n1"), "{refused}");
    }
}
