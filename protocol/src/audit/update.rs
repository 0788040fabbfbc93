//! One device's update, proven from files alone: who allowed it, by which permit it started, and how it ended.
//!
//! The verifier needs a checkpoint whose signature he has checked, this file, and, if he has it, the root that he trusts.
//! Approvals are verified as a node verifies them, at the time they came into force; permits with the keys that the
//! manifest names; reports with the key in the certificate that the fleet CA issued, whose name is the log's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    check::{LogError, document},
    checkpoint::Checkpoint,
    entry::{Entry, Event, log_origin},
    proof::{ProofError, verify_inclusion},
    tree::leaf_hash,
};
use crate::{
    api::GateVerdict,
    identity::{IdentityError, NodeIdentity},
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    manifest::CampaignManifest,
    report::{AttemptReport, AttemptState, PERMIT_TYPE, Permit, PermitKind, REPORT_TYPE},
    time::WallTime,
    trust::{
        Envelope, EnvelopeError, Input, KeySet, KeySetError, PolicyError, PublicKey, Refresh, RefreshError,
        StoredMetadata, TrustedFleet, Verified,
    },
};

/// The schema name of a proof file.
const PROOF_SCHEMA: &str = "firmesh-audit-proof/1";

/// Roots, approvals, gates, permits and reports of one device in one campaign.
const ENTRIES_MAX: usize = 100_000;

/// Entries of the log about one device in one campaign, each with its audit path to one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofFile {
    schema: String,
    /// The device.
    pub device: DeviceId,
    /// The campaign.
    pub campaign: CampaignId,
    /// The size of the checkpoint that the paths lead to.
    pub size: u64,
    /// The entries, in the log's order.
    pub entries: Vec<ProvenEntry>,
}

/// An entry with its audit path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenEntry {
    /// The exact text that is hashed.
    pub entry: String,
    /// The document, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// The audit path, from the leaf to the root.
    pub path: Vec<Sha256>,
}

/// What a proof file shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpdateProof {
    /// The device.
    pub device: DeviceId,
    /// The campaign.
    pub campaign: CampaignId,
    /// The node that looks after it.
    pub node: NodeId,
    /// The wave of the plan, counted from 0.
    pub wave: u32,
    /// The release that was approved for it: the target's name.
    pub release: String,
    /// SHA-256 of the approved image.
    pub image_sha256: Sha256,
    /// SHA-256 of the first root that approvals were verified from: compare it with the root you hold.
    pub root_sha256: Sha256,
    /// SHA-256 of the approved manifest.
    pub manifest_sha256: Sha256,
    /// When the approval came into force.
    pub approved_at: WallTime,
    /// The verdicts on the waves, in the log's order.
    pub gates: Vec<(u32, GateVerdict)>,
    /// The permits that name it: kind, sequence and time of issue.
    pub permits: Vec<(PermitKind, u64, WallTime)>,
    /// How its attempts ended, by its node's signed word.
    pub results: Vec<AttemptReport>,
}

impl UpdateProof {
    /// How it ended last; `None` while it goes on.
    #[must_use]
    pub fn outcome(&self) -> Option<AttemptState> {
        self.results.last().map(|report| report.state)
    }
}

/// Why a proof file proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofFileError {
    /// Not a proof file.
    #[error("not a proof file")]
    Malformed(#[source] serde_json::Error),
    /// A later or foreign schema.
    #[error("the proof file has the schema {0:?}, this version reads {PROOF_SCHEMA:?}")]
    Schema(String),
    /// Bytes that say the same in another way.
    #[error("the proof file was changed: it is not written as a proof file is")]
    Spelling,
    /// For another checkpoint.
    #[error("the proof file leads to the checkpoint of {found} entries, the checkpoint at hand has {expected}")]
    OtherCheckpoint {
        /// The file's size.
        found: u64,
        /// The checkpoint's size.
        expected: u64,
    },
    /// An entry is not in the log.
    #[error("entry {index} is not in the log of the checkpoint")]
    NotIncluded {
        /// The place it claims.
        index: u64,
        /// Why not.
        source: ProofError,
    },
    /// An entry or a document is unreadable or changed.
    #[error(transparent)]
    Entry(#[from] LogError),
    /// Entries that are not in the log's order, or too many of them.
    #[error("the entries are not in the log's order, or more than {ENTRIES_MAX}")]
    Order,
    /// Something that a proof needs is not in it.
    #[error("the proof has no {0}")]
    Missing(&'static str),
    /// The root that the verifier trusts is none of the logged ones.
    #[error("the root you trust is none of those in the proof")]
    OtherRoot,
    /// The log is another fleet's.
    #[error("the fleet CA in the proof is not that of the log {0}")]
    OtherFleet(String),
    /// The approvals do not verify.
    #[error("the approval in entry {index} does not verify")]
    Metadata {
        /// The entry of the manifest.
        index: u64,
        /// Why not.
        source: RefreshError,
    },
    /// The approvals do not cover the campaign.
    #[error("the approval in entry {index} does not cover it")]
    Policy {
        /// The entry of the manifest or plan.
        index: u64,
        /// Why not.
        source: PolicyError,
    },
    /// A permit or report does not verify.
    #[error("the {what} in entry {index} does not verify")]
    Envelope {
        /// Its place.
        index: u64,
        /// `permit` or `report`.
        what: &'static str,
        /// Why not.
        source: EnvelopeError,
    },
    /// A key that cannot be used.
    #[error("a key in the proof cannot be used")]
    Key(#[from] KeySetError),
    /// A node's certificate is not the fleet's.
    #[error("the certificate in entry {index} is not the fleet's")]
    Certificate {
        /// Its place.
        index: u64,
        /// Why not.
        source: IdentityError,
    },
    /// A document about something else than the proof.
    #[error("entry {index} is about something else than this update: {what}")]
    Unrelated {
        /// Its place.
        index: u64,
        /// What is wrong.
        what: &'static str,
    },
}

impl ProofFileError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Schema(_) | Self::Spelling => "audit_malformed",
            Self::OtherCheckpoint { .. } => "audit_other_checkpoint",
            Self::NotIncluded { .. } => "audit_not_included",
            Self::Entry(error) => error.code(),
            Self::Order | Self::Missing(_) | Self::Unrelated { .. } => "audit_incomplete",
            Self::OtherRoot | Self::OtherFleet(_) => "audit_other_fleet",
            Self::Metadata { .. } | Self::Policy { .. } => "audit_approval",
            Self::Envelope { .. } | Self::Key(_) | Self::Certificate { .. } => "audit_signature",
        }
    }
}

impl ProofFile {
    /// A proof for a checkpoint of `size` entries.
    #[must_use]
    pub fn new(device: DeviceId, campaign: CampaignId, size: u64, entries: Vec<ProvenEntry>) -> Self {
        Self {
            schema: PROOF_SCHEMA.to_owned(),
            device,
            campaign,
            size,
            entries,
        }
    }

    /// Reads a file. Bytes that would say the same in another way are refused: no byte of it is free to change.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProofFileError> {
        let file: Self = serde_json::from_slice(bytes).map_err(ProofFileError::Malformed)?;
        if file.schema != PROOF_SCHEMA {
            return Err(ProofFileError::Schema(file.schema.chars().take(80).collect()));
        }
        if file.to_bytes() == bytes {
            Ok(file)
        } else {
            Err(ProofFileError::Spelling)
        }
    }

    /// The file's bytes: compact JSON and a newline.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a proof file has only text, numbers and lists");
        bytes.push(b'\n');
        bytes
    }

    /// Whether an entry belongs into the proof about a device and a campaign. `is_named` tells whether a permit's
    /// document names the device. Approvals and roots have to be chosen by [`Self::approvals`].
    #[must_use]
    pub fn wants(event: &Event, device: &DeviceId, campaign: &CampaignId, node: &NodeId) -> bool {
        match event {
            Event::Log { .. } => true,
            Event::Enrolment { node: enrolled, .. } => enrolled == node,
            Event::Result { device: about, .. } => about == device && event.campaign() == Some(campaign),
            Event::Gate { .. } | Event::Campaign { .. } => event.campaign() == Some(campaign),
            _ => false,
        }
    }

    /// Verifies everything against a checkpoint whose signature was checked before. `trusted_root` is the root the
    /// verifier holds; without it, the first root in the proof is taken at its word and named in the result.
    pub fn verify(&self, checkpoint: &Checkpoint, trusted_root: Option<&[u8]>) -> Result<UpdateProof, ProofFileError> {
        let entries = self.included(checkpoint)?;
        let mut story = Story::read(&entries, checkpoint)?;
        let approved = story.approved(&self.campaign, &self.device, trusted_root)?;
        story.permits(self, &approved)?;
        story.results(self, &approved)?;
        let gates = entries.iter().filter_map(|(entry, _)| match &entry.event {
            Event::Gate {
                campaign,
                wave,
                verdict,
                ..
            } if *campaign == self.campaign => Some((*wave, *verdict)),
            _ => None,
        });
        Ok(UpdateProof {
            device: self.device.clone(),
            campaign: self.campaign.clone(),
            node: approved.node,
            wave: approved.wave,
            release: approved.release,
            image_sha256: approved.image_sha256,
            root_sha256: approved.root_sha256,
            manifest_sha256: approved.manifest_sha256,
            approved_at: approved.at,
            gates: gates.collect(),
            permits: story.permits,
            results: story.results,
        })
    }

    /// The entries, once they are found to be in the log.
    fn included(&self, checkpoint: &Checkpoint) -> Result<Vec<Found>, ProofFileError> {
        if self.size != checkpoint.size {
            return Err(ProofFileError::OtherCheckpoint {
                found: self.size,
                expected: checkpoint.size,
            });
        }
        if self.entries.len() > ENTRIES_MAX {
            return Err(ProofFileError::Order);
        }
        let mut found: Vec<Found> = Vec::new();
        for proven in &self.entries {
            let after = found.last().map_or(0, |(entry, _)| entry.index + 1);
            let entry = Entry::from_bytes(proven.entry.as_bytes())
                .map_err(|source| LogError::Unreadable { index: after, source })?;
            let (index, leaf) = (entry.index, leaf_hash(proven.entry.as_bytes()));
            verify_inclusion(index, self.size, &leaf, &proven.path, &checkpoint.root)
                .map_err(|source| ProofFileError::NotIncluded { index, source })?;
            if index < after {
                return Err(ProofFileError::Order);
            }
            let document = document(&entry, proven.document.as_deref())?;
            found.push((entry, document.unwrap_or_default()));
        }
        Ok(found)
    }
}

/// An entry of the log and its document.
type Found = (Entry, Vec<u8>);

/// The entries as they are read for one device.
struct Story<'e> {
    entries: &'e [Found],
    fleet_ca: &'e [u8],
    permits: Vec<(PermitKind, u64, WallTime)>,
    results: Vec<AttemptReport>,
}

/// What was approved for the device.
struct Approved {
    index: u64,
    at: WallTime,
    manifest: Verified<CampaignManifest>,
    manifest_sha256: Sha256,
    root_sha256: Sha256,
    node: NodeId,
    wave: u32,
    release: String,
    image_sha256: Sha256,
}

impl<'e> Story<'e> {
    fn read(entries: &'e [Found], checkpoint: &Checkpoint) -> Result<Self, ProofFileError> {
        let begins = |(entry, _): &&Found| matches!(entry.event, Event::Log { .. });
        let (_, fleet_ca) = entries
            .iter()
            .find(begins)
            .ok_or(ProofFileError::Missing("beginning of the log"))?;
        if log_origin(fleet_ca) != checkpoint.origin {
            return Err(ProofFileError::OtherFleet(checkpoint.origin.clone()));
        }
        Ok(Self {
            entries,
            fleet_ca,
            permits: Vec::new(),
            results: Vec::new(),
        })
    }

    /// Verifies the approval as a node would have at the time, from the metadata before the manifest.
    fn approved(
        &self,
        campaign: &CampaignId,
        device: &DeviceId,
        trusted_root: Option<&[u8]>,
    ) -> Result<Approved, ProofFileError> {
        let is_manifest =
            |(entry, _): &&Found| matches!(&entry.event, Event::Manifest { campaign: of } if of == campaign);
        let (entry, manifest_bytes) = self
            .entries
            .iter()
            .rfind(is_manifest)
            .ok_or(ProofFileError::Missing("manifest"))?;
        let (index, at) = (entry.index, entry.at);
        let mut files: BTreeMap<&str, &[u8]> = BTreeMap::new();
        let mut roots = Vec::new();
        for (entry, document) in self.entries.iter().take_while(|(entry, _)| entry.index < index) {
            if let Event::Metadata { file } = &entry.event {
                files.insert(file, document);
                if file.ends_with(".root.json") {
                    roots.push(document.as_slice());
                }
            }
        }
        let root = match trusted_root {
            Some(root) if roots.contains(&root) => root,
            Some(_) => return Err(ProofFileError::OtherRoot),
            None => roots.first().ok_or(ProofFileError::Missing("root"))?,
        };
        let mut stored: StoredMetadata = [("root.json".to_owned(), root.to_vec())].into();
        let unverified = |source| ProofFileError::Metadata { index, source };
        let refresh = Refresh::new(stored.clone(), at).map_err(unverified)?;
        let fetch = |name: &str, _| {
            let found = files.get(name);
            found.map_or(Input::NotFound, |bytes| Input::Fetched(bytes.to_vec()))
        };
        let metadata = refresh.run(&mut stored, fetch).map_err(unverified)?;
        let uncovered = |source| ProofFileError::Policy { index, source };
        let fleet = TrustedFleet::new(metadata).map_err(uncovered)?;
        let manifest = fleet.campaign(campaign, manifest_bytes).map_err(uncovered)?;
        let is_plan = |(entry, _): &&Found| {
            entry.index > index && matches!(&entry.event, Event::Plan { campaign: of } if of == campaign)
        };
        let (_, plan) = self
            .entries
            .iter()
            .find(is_plan)
            .ok_or(ProofFileError::Missing("plan"))?;
        let plan = manifest.plan(plan).map_err(uncovered)?;
        let (wave, planned) = plan
            .devices()
            .find(|(_, planned)| planned.device == *device)
            .ok_or(ProofFileError::Missing("place for the device in the plan"))?;
        let pinned = manifest.releases.iter().find(|pinned| pinned.target == planned.release);
        let release = fleet
            .pinned_release(pinned.ok_or(ProofFileError::Missing("release for the device"))?)
            .map_err(uncovered)?;
        Ok(Approved {
            index,
            at,
            manifest_sha256: Sha256::of(manifest_bytes),
            root_sha256: Sha256::of(root),
            node: planned.node.clone(),
            wave: u32::try_from(wave).unwrap_or(u32::MAX),
            release: release.target.clone(),
            image_sha256: release.artifact.sha256,
            manifest,
        })
    }

    fn permits(&mut self, file: &ProofFile, approved: &Approved) -> Result<(), ProofFileError> {
        let keys = approved.manifest.permit_keys.iter();
        let keys = KeySet::of("permits", 1, keys.filter_map(|key| key.parse::<PublicKey>().ok()))?;
        for (entry, document) in self.entries {
            let Event::Permit { .. } = entry.event else {
                continue;
            };
            let index = entry.index;
            let permit: Permit = open(index, "permit", document, &keys, PERMIT_TYPE)?;
            let unrelated = |what| ProofFileError::Unrelated { index, what };
            if entry.event.campaign() != Some(&permit.campaign) || permit.campaign != file.campaign {
                return Err(unrelated("a permit of another campaign"));
            }
            if permit.manifest_sha256 != approved.manifest_sha256 || index < approved.index {
                return Err(unrelated("a permit for another edition of the campaign"));
            }
            if !permit.devices.contains(&file.device) || permit.wave != approved.wave {
                return Err(unrelated("a permit for other devices or another wave"));
            }
            self.permits.push((permit.kind, permit.sequence, permit.issued));
        }
        Ok(())
    }

    fn results(&mut self, file: &ProofFile, approved: &Approved) -> Result<(), ProofFileError> {
        let mut keys: Vec<PublicKey> = Vec::new();
        for (entry, document) in self.entries {
            let index = entry.index;
            let unrelated = |what| ProofFileError::Unrelated { index, what };
            match &entry.event {
                Event::Enrolment { node, .. } if *node == approved.node => {
                    let identity = NodeIdentity::verify(document, self.fleet_ca, entry.at)
                        .map_err(|source| ProofFileError::Certificate { index, source })?;
                    if identity.node != approved.node {
                        return Err(unrelated("another node's certificate"));
                    }
                    if !keys.contains(&identity.key) {
                        keys.push(identity.key);
                    }
                }
                Event::Result { .. } => {
                    let set = KeySet::of(approved.node.as_str(), 1, keys.iter().copied())?;
                    let report: AttemptReport = open(index, "report", document, &set, REPORT_TYPE)?;
                    let is_its = (&report.campaign, &report.device, &report.node)
                        == (&file.campaign, &file.device, &approved.node);
                    if !is_its {
                        return Err(unrelated("a report about another attempt"));
                    }
                    let is_permitted = |(kind, sequence, _): &(PermitKind, u64, WallTime)| {
                        *kind == report.kind && *sequence == report.permit_sequence
                    };
                    if report.permit_sequence > 0 && !self.permits.iter().any(is_permitted) {
                        return Err(unrelated("an attempt whose permit is not in the proof"));
                    }
                    self.results.push(report);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn open<T: serde::de::DeserializeOwned>(
    index: u64,
    what: &'static str,
    document: &[u8],
    keys: &KeySet,
    payload_type: &str,
) -> Result<T, ProofFileError> {
    let opened = Envelope::from_bytes(document).and_then(|envelope| envelope.open::<T>(keys, payload_type));
    opened
        .map(Verified::into_inner)
        .map_err(|source| ProofFileError::Envelope { index, what, source })
}
