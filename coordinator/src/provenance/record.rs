//! What was presented for a release, kept beside it under the names of its digests, and judged again from there.
//!
//! The release names the verdict's digest, the verdict those of everything else: nothing can be exchanged afterwards.

use std::path::{Path, PathBuf};

use firmesh_protocol::{
    ids::Sha256,
    manifest::{FileRef, Provenance, Release},
    time::WallTime,
};

use super::{
    policy::Policy,
    sbom::SBOM_BYTES_MAX,
    signature::{Image, SIGNATURE_BYTES_MAX, SIGNATURES_MAX, SignatureFile},
    verdict::{Evidence, VERDICT_BYTES_MAX, VERDICT_SCHEMA, Verdict},
};
use crate::ceremony::{ReadFileError, WriteFileError, read_bounded, write_file};

/// Why a release's evidence cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not here.
    #[error("{what} {sha256} of {target} is not in {}: whoever staged the release has it", folder.display())]
    Missing {
        /// Which file.
        what: &'static str,
        /// Its digest.
        sha256: Sha256,
        /// The release.
        target: String,
        /// The folder it should be in.
        folder: PathBuf,
    },
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// It is not what the release names.
    #[error("{what} {sha256} of {target} has been changed since the release was staged")]
    Changed {
        /// Which file.
        what: &'static str,
        /// The digest it should have.
        sha256: Sha256,
        /// The release.
        target: String,
    },
    /// It does not hold together.
    #[error("the verdict on {target}: {problem}")]
    Malformed {
        /// The release.
        target: String,
        /// What is wrong.
        problem: String,
    },
}

impl RecordError {
    /// Stable name of the reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "evidence_missing",
            Self::Read(_) => "evidence_unreadable",
            Self::Changed { .. } => "evidence_changed",
            Self::Malformed { .. } => "evidence_malformed",
        }
    }
}

/// A folder of evidence, every file under the SHA-256 of its bytes.
#[derive(Debug, Clone)]
pub struct EvidenceFolder(PathBuf);

impl EvidenceFolder {
    /// The evidence in a trust folder.
    #[must_use]
    pub fn beside(trust: &Path) -> Self {
        Self(trust.join("provenance"))
    }

    /// A folder of its own.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Stores a file under its digest.
    pub fn put(&self, bytes: &[u8]) -> Result<FileRef, WriteFileError> {
        let file = FileRef {
            sha256: Sha256::of(bytes),
            length: bytes.len() as u64,
        };
        write_file(&self.0.join(file.sha256.to_string()), bytes)?;
        Ok(file)
    }

    /// Reads a file back by its digest.
    pub fn get(&self, what: &'static str, file: FileRef, bytes_max: u64, target: &str) -> Result<Vec<u8>, RecordError> {
        let sha256 = file.sha256;
        let bytes = match read_bounded(&self.0.join(sha256.to_string()), bytes_max.min(file.length)) {
            Err(error) if error.is_not_found() => {
                return Err(RecordError::Missing {
                    what,
                    sha256,
                    target: target.to_owned(),
                    folder: self.0.clone(),
                });
            }
            result => result,
        };
        match bytes {
            Ok(bytes) if Sha256::of(&bytes) == sha256 && bytes.len() as u64 == file.length => Ok(bytes),
            Err(error @ ReadFileError::Io { .. }) => Err(error.into()),
            _ => Err(RecordError::Changed {
                what,
                sha256,
                target: target.to_owned(),
            }),
        }
    }

    /// The bytes under a digest, as they lie there.
    pub fn read(&self, sha256: Sha256, bytes_max: u64) -> Result<Vec<u8>, ReadFileError> {
        read_bounded(&self.0.join(sha256.to_string()), bytes_max)
    }

    /// Stores a verdict with all it speaks of; what comes back is what the release has to name.
    pub fn keep(&self, verdict: &Verdict, evidence: &Evidence) -> Result<Provenance, WriteFileError> {
        for signature in &evidence.signatures {
            self.put(&signature.bytes)?;
        }
        let sbom = evidence.sbom.as_ref().map(|bytes| self.put(bytes)).transpose()?;
        Ok(Provenance {
            verdict: self.put(&verdict.to_bytes())?,
            sbom,
        })
    }

    /// Reads a release's record: the verdict, and what it was given on.
    pub fn load(&self, release: &Release, provenance: &Provenance) -> Result<(Verdict, Evidence), RecordError> {
        let target = release.target.as_str();
        let malformed = |problem: String| RecordError::Malformed {
            target: target.to_owned(),
            problem,
        };
        let bytes = self.get("the verdict", provenance.verdict, VERDICT_BYTES_MAX, target)?;
        let verdict: Verdict = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if verdict.schema != VERDICT_SCHEMA {
            let found: String = verdict.schema.chars().take(80).collect();
            return Err(malformed(format!(
                "its schema is {found:?}, this version reads {VERDICT_SCHEMA:?}"
            )));
        }
        if verdict.image_sha256 != release.artifact.sha256 || verdict.vendor != release.info.vendor {
            return Err(malformed("it is about another image, or another vendor's".to_owned()));
        }
        let stated = verdict.sbom.as_ref().map(|sbom| sbom.sha256);
        if stated != provenance.sbom.map(|sbom| sbom.sha256) {
            return Err(malformed("it is about another SBOM than the release names".to_owned()));
        }
        if verdict.signatures.len() > SIGNATURES_MAX {
            return Err(malformed(format!("more than {SIGNATURES_MAX} signatures")));
        }
        let signature = |told: &super::SignatureVerdict| {
            let file = FileRef {
                sha256: told.sha256,
                length: told.length,
            };
            Ok(SignatureFile {
                kind: told.kind,
                bytes: self.get("a signature", file, SIGNATURE_BYTES_MAX, target)?,
            })
        };
        let signatures = verdict
            .signatures
            .iter()
            .map(signature)
            .collect::<Result<_, RecordError>>()?;
        let sbom = provenance
            .sbom
            .map(|file| self.get("the SBOM", file, SBOM_BYTES_MAX, target));
        let evidence = Evidence {
            signatures,
            sbom: sbom.transpose()?,
        };
        Ok((verdict, evidence))
    }

    /// Judges a release by one's own policy, from its record. A release without a record has nothing to show.
    ///
    /// Where the image itself is needed and is not at hand, the record's word is taken if `believe` says so, and the
    /// new verdict tells. Dates are then judged as of the day of the record, so that a release can be signed again
    /// after its vendor's certificate has expired.
    pub fn judge(
        &self,
        policy: &Policy,
        release: &Release,
        image: &Image,
        now: WallTime,
        believe: bool,
    ) -> Result<Verdict, RecordError> {
        let vendor = &release.info.vendor;
        let Some(provenance) = &release.info.provenance else {
            return Ok(Verdict::of(policy, vendor, image, &Evidence::default(), now, None));
        };
        let (recorded, evidence) = self.load(release, provenance)?;
        let (as_of, record) = match believe {
            true => (recorded.checked_at.min(now), Some(&recorded)),
            false => (now, None),
        };
        Ok(Verdict::of(policy, vendor, image, &evidence, as_of, record))
    }
}
