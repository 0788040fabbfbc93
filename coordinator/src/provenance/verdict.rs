//! The verdict: what was presented for an image, what it was worth under the policy, and whether it may be published.
//!
//! A signature that is presented must be good: a bad one refuses the image even if another would do. A verdict is a
//! record, never a permission: whoever relies on it checks it against his own policy again.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{ids::Sha256, time::WallTime};
use serde::{Deserialize, Serialize};

use super::{
    advisory::{MATCHES_MAX, Match},
    policy::{Policy, Signer, SignerKey, VendorPolicy},
    sbom::{Sbom, SbomFormat},
    signature::{Image, Kind, SIGNATURES_MAX, SignatureError, SignatureFile, SignedBy},
};

/// The schema name of a verdict.
pub const VERDICT_SCHEMA: &str = "firmesh-provenance-verdict/1";
/// The longest verdict.
pub const VERDICT_BYTES_MAX: u64 = 4 << 20;

/// What is presented for an image.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// The vendor's signatures.
    pub signatures: Vec<SignatureFile>,
    /// The SBOM's bytes.
    pub sbom: Option<Vec<u8>>,
}

/// Whether an image may be published, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// [`VERDICT_SCHEMA`].
    pub schema: String,
    /// Accepted: nothing in `findings` blocks.
    pub accepted: bool,
    /// Whose image it is.
    pub vendor: String,
    /// SHA-256 of the image.
    pub image_sha256: Sha256,
    /// Its length in bytes.
    pub image_length: u64,
    /// When it was looked at.
    pub checked_at: WallTime,
    /// Which policy, by the digest over all its files.
    pub policy_sha256: Sha256,
    /// What was wrong.
    pub findings: Vec<Finding>,
    /// The signatures that were presented, in their order.
    pub signatures: Vec<SignatureVerdict>,
    /// The SBOM that was presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<SbomVerdict>,
    /// Known vulnerabilities of what the SBOM lists, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advisories: Vec<Match>,
}

/// Something that is wrong with an image's provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Stable name, such as `signature_missing` or `certificate_expired`.
    pub code: String,
    /// What was found, and what was expected.
    pub detail: String,
    /// Whether the policy keeps the image from being published for it.
    pub blocks: bool,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignatureVerdict {
    /// Of which kind.
    pub kind: Kind,
    /// SHA-256 of the signature file.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub length: u64,
    /// Who made it, if it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<SignedBy>,
}

/// The SBOM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SbomVerdict {
    /// SHA-256 of the file.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub length: u64,
    /// Its format, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<SbomFormat>,
    /// The format's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_version: Option<String>,
    /// How many components it lists.
    pub components: usize,
}

impl Verdict {
    /// Judges an image by a policy. `record` is an earlier verdict whose word is taken for signatures that cannot be
    /// checked without the image, where the image is not at hand.
    #[must_use]
    pub fn of(
        policy: &Policy,
        vendor: &str,
        image: &Image,
        evidence: &Evidence,
        now: WallTime,
        record: Option<&Self>,
    ) -> Self {
        let mut verdict = Self {
            schema: VERDICT_SCHEMA.to_owned(),
            accepted: true,
            vendor: vendor.to_owned(),
            image_sha256: image.sha256(),
            image_length: image.length(),
            checked_at: now,
            policy_sha256: policy.sha256,
            findings: Vec::new(),
            signatures: Vec::new(),
            sbom: None,
            advisories: Vec::new(),
        };
        let listed = policy.vendors.get(vendor);
        if listed.is_none() && !policy.accept_unlisted {
            let detail = format!("the policy does not list the vendor {vendor:?}");
            verdict.find(true, "vendor_unlisted", detail);
        }
        verdict.judge_signatures(listed, image, evidence, now, record);
        verdict.judge_sbom(policy, listed, evidence);
        verdict.accepted = !verdict.findings.iter().any(|finding| finding.blocks);
        verdict
    }

    /// The findings that keep the image from being published, for a person.
    #[must_use]
    pub fn refusal(&self) -> String {
        let blocking = self.findings.iter().filter(|finding| finding.blocks);
        let told: Vec<_> = blocking
            .map(|finding| format!("{}: {}", finding.code, finding.detail))
            .collect();
        told.join("; ")
    }

    /// The verdict as it is stored: its digest is what a release names.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a verdict has only text, numbers and lists")
    }

    fn find(&mut self, blocks: bool, code: &str, detail: String) {
        self.findings.push(Finding {
            code: code.to_owned(),
            detail,
            blocks,
        });
    }

    fn judge_signatures(
        &mut self,
        vendor: Option<&VendorPolicy>,
        image: &Image,
        evidence: &Evidence,
        now: WallTime,
        record: Option<&Self>,
    ) {
        let blocks = vendor.is_some_and(|vendor| vendor.enforce);
        if evidence.signatures.len() > SIGNATURES_MAX {
            let detail = format!(
                "{} signatures, at most {SIGNATURES_MAX} are looked at",
                evidence.signatures.len()
            );
            self.find(true, "too_many_signatures", detail);
            return;
        }
        let (mut signers, mut kinds) = (BTreeSet::new(), BTreeSet::new());
        for (at, file) in evidence.signatures.iter().enumerate() {
            let sha256 = Sha256::of(&file.bytes);
            let mut verified = vendor.map(|vendor| verify(&vendor.signers, file, image, now));
            let needs_image = matches!(&verified, Some(Err(error)) if error.code == "image_needed");
            let recorded = record
                .filter(|_| needs_image)
                .and_then(|record| record.word_on(vendor?, file.kind, sha256));
            if let Some(recorded) = recorded {
                let detail = format!(
                    "the {} signature ({}) is good by the record of {}; give the image to check it again",
                    file.kind,
                    at + 1,
                    record.map_or(now, |record| record.checked_at)
                );
                self.find(false, "as_recorded", detail);
                verified = Some(Ok(recorded));
            }
            let signed_by = match verified {
                None => None,
                Some(Ok(signed)) => {
                    signers.insert(signed.signer.clone());
                    kinds.insert(file.kind);
                    Some(signed)
                }
                Some(Err(SignatureError { code, detail })) => {
                    self.find(
                        blocks,
                        code,
                        format!("the {} signature ({}): {detail}", file.kind, at + 1),
                    );
                    None
                }
            };
            self.signatures.push(SignatureVerdict {
                kind: file.kind,
                sha256,
                length: file.bytes.len() as u64,
                signed_by,
            });
        }
        let Some(vendor) = vendor else {
            return;
        };
        if signers.len() < vendor.signers_min {
            let (have, need) = (signers.len(), vendor.signers_min);
            let detail = format!(
                "{have} of the {need} signers that vendor {} needs have signed",
                self.vendor
            );
            self.find(blocks, "signature_missing", detail);
        }
        for kind in vendor.require_kinds.difference(&kinds) {
            self.find(
                blocks,
                "signature_missing",
                format!("there is no good {kind} signature"),
            );
        }
        for signer in vendor.require_signers.difference(&signers) {
            self.find(
                blocks,
                "signature_missing",
                format!("there is no good signature of {signer}"),
            );
        }
    }

    /// Who made a signature by this record, if the policy still knows the signer.
    fn word_on(&self, vendor: &VendorPolicy, kind: Kind, sha256: Sha256) -> Option<SignedBy> {
        let found = self
            .signatures
            .iter()
            .find(|told| told.kind == kind && told.sha256 == sha256)?;
        let signed = found.signed_by.as_ref()?;
        let known = |signer: &Signer| signer.name == signed.signer && signer.key.kind() == kind;
        vendor.signers.iter().any(known).then(|| signed.clone())
    }

    fn judge_sbom(&mut self, policy: &Policy, vendor: Option<&VendorPolicy>, evidence: &Evidence) {
        let blocks = vendor.is_some_and(|vendor| vendor.enforce);
        let Some(bytes) = &evidence.sbom else {
            if vendor.is_some_and(|vendor| vendor.sbom_required) {
                self.find(
                    blocks,
                    "sbom_missing",
                    "there is no SBOM, and the policy requires one".to_owned(),
                );
            }
            return;
        };
        let (sha256, length) = (Sha256::of(bytes), bytes.len() as u64);
        let sbom = match Sbom::from_bytes(bytes) {
            Ok(sbom) => sbom,
            Err(error) => {
                self.find(blocks, error.code(), crate::chain(&error));
                self.sbom = Some(SbomVerdict {
                    sha256,
                    length,
                    format: None,
                    spec_version: None,
                    components: 0,
                });
                return;
            }
        };
        let image = self.image_sha256.to_string();
        if !sbom.subjects.is_empty() && !sbom.subjects.contains(&image) {
            let detail = format!(
                "the SBOM is about an image with the SHA-256 {}",
                sbom.subjects.join(", ")
            );
            self.find(blocks, "sbom_other_image", detail);
        }
        self.judge_advisories(policy, vendor, &sbom);
        self.sbom = Some(SbomVerdict {
            sha256,
            length,
            format: Some(sbom.format),
            spec_version: Some(sbom.spec_version),
            components: sbom.components.len(),
        });
    }

    fn judge_advisories(&mut self, policy: &Policy, vendor: Option<&VendorPolicy>, sbom: &Sbom) {
        let mut matches = policy.advisories.matches(sbom);
        let worst = vendor.and_then(|vendor| vendor.block_severity);
        let accepted = vendor.map(|vendor| &vendor.accepted);
        let reason = |found: &Match| {
            let accepted: &BTreeMap<String, String> = accepted?;
            let mut names = std::iter::once(&found.id).chain(&found.aliases);
            names.find_map(|name| accepted.get(name))
        };
        let mut told = Vec::new();
        for found in &matches {
            let version = found.version.as_deref().unwrap_or("of unknown version");
            let fixed = found
                .fixed
                .as_ref()
                .map_or_else(String::new, |fixed| format!(", fixed in {fixed}"));
            let severity = format!("{:?}", found.severity).to_lowercase();
            let what = format!("{} ({severity}): {} {version}{fixed}", found.id, found.component);
            match reason(found) {
                Some(reason) => told.push((
                    false,
                    "advisory_accepted",
                    format!("{what}; the operator says: {reason}"),
                )),
                None if worst.is_some_and(|worst| found.severity >= worst) => told.push((true, "advisory", what)),
                None => {}
            }
        }
        let enforce = vendor.is_some_and(|vendor| vendor.enforce);
        let count = told.len();
        for (bad, code, detail) in told.into_iter().take(MATCHES_MAX) {
            self.find(bad && enforce, code, detail);
        }
        if count > MATCHES_MAX {
            let detail = format!("{} more advisories match than are listed", count - MATCHES_MAX);
            self.find(enforce, "advisory", detail);
        }
        matches.truncate(MATCHES_MAX);
        self.advisories = matches;
    }
}

/// Who of the vendor's signers made a signature. If nobody did, the reason of the one who came closest.
fn verify(signers: &[Signer], file: &SignatureFile, image: &Image, now: WallTime) -> Result<SignedBy, SignatureError> {
    let mut closest: Option<SignatureError> = None;
    for signer in signers {
        let verified = match &signer.key {
            SignerKey::Rsa(key) if file.kind == Kind::Rsa => key.verify(&file.bytes, image),
            SignerKey::Cms(ca) if file.kind == Kind::Cms => ca.verify(&file.bytes, image, now),
            SignerKey::Openpgp(keys) if file.kind == Kind::Openpgp => keys.verify(&file.bytes, image, now),
            _ => continue,
        };
        match verified {
            Ok(signed) => {
                return Ok(SignedBy {
                    signer: signer.name.clone(),
                    ..signed
                });
            }
            Err(error)
                if closest
                    .as_ref()
                    .is_none_or(|closest| closest.progress() < error.progress()) =>
            {
                closest = Some(error);
            }
            Err(_) => {}
        }
    }
    Err(closest.unwrap_or_else(|| {
        SignatureError::new(
            "unknown_key",
            format!("the policy lists no {} signer of this vendor", file.kind),
        )
    }))
}
