//! The provenance policy at the coordinator: a release that does not meet it is not published, whoever signed for it.
//!
//! New releases are judged once, before the runtime hears of them: images are read, which takes time. What is in force
//! stays in force when a certificate expires or an advisory appears; recalling it is people's decision.

use std::{collections::BTreeMap, io, path::PathBuf};

use bytes::Bytes;
use firmesh_protocol::{
    api::Publication,
    ids::Sha256,
    manifest::{Artifact, FileRef, Release, ReleaseInfo},
    time::WallTime,
    trust::{SignedFile, Target, Targets},
};
use tokio::runtime::Handle;
use tracing::info;

use crate::{
    ceremony::{ReadFileError, WriteFileError, read_bounded, write_file},
    files::Bucket,
    origin::Origin,
    provenance::{
        EvidenceFolder, Image, Policy, PolicyLoadError, RecordError, SBOM_BYTES_MAX, VERDICT_BYTES_MAX, Verdict,
    },
    publish::{PublicationError, Published},
};

/// Why a release was not vetted. Nothing is published then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VettingError {
    /// The operator's policy cannot be used; without it nothing new is published.
    #[error("the provenance policy cannot be used")]
    Policy(#[from] PolicyLoadError),
    /// The policy refuses.
    #[error("{target} does not meet the provenance policy: {reasons}")]
    Refused {
        /// The release.
        target: String,
        /// Every blocking finding.
        reasons: String,
    },
    /// The evidence is not what the release names, or was not sent.
    #[error("{target} cannot be judged by the provenance policy")]
    Evidence {
        /// The release.
        target: String,
        /// Why not.
        source: RecordError,
    },
    /// The stored image cannot be read, or is not what was stored.
    #[error("the image of {target} cannot be read again: check the disk, or import it again")]
    Image {
        /// The release.
        target: String,
        /// Why not.
        source: ReadFileError,
    },
    /// The verdict could not be stored.
    #[error("the verdict on {target} cannot be stored")]
    Write {
        /// The release.
        target: String,
        /// Why not.
        source: WriteFileError,
    },
    /// The bucket.
    #[error("{0} cannot be kept in the bucket, or fetched from there: check the server and the keys in [files.s3]")]
    Bucket(&'static str, #[source] io::Error),
    /// The judging thread died.
    #[error("a release could not be judged")]
    Stopped(#[source] io::Error),
}

/// Releases that the policy has accepted, or the absence of a policy.
#[derive(Debug, Default)]
pub(crate) struct Vetted {
    accepted: Option<BTreeMap<String, Target>>,
}

impl Vetted {
    /// What a renewal needs: nothing new comes in.
    pub(crate) fn nothing(policy: Option<&PathBuf>) -> Self {
        Self {
            accepted: policy.map(|_| BTreeMap::new()),
        }
    }

    /// Refuses a publication that puts a release in force which was neither in force before nor accepted.
    pub(crate) fn check(&self, before: &Published, next: &Published) -> Result<(), PublicationError> {
        let Some(accepted) = &self.accepted else {
            return Ok(());
        };
        let (known, wanted) = (in_force(before), in_force(next));
        let stranger = wanted
            .iter()
            .find(|(name, target)| known.get(*name) != Some(*target) && accepted.get(*name) != Some(*target));
        match stranger {
            None => Ok(()),
            Some((target, _)) => Err(PublicationError::Unvetted { target: target.clone() }),
        }
    }
}

/// What judging needs.
#[derive(Debug, Clone)]
pub(crate) struct Vetting {
    policy: Option<PathBuf>,
    evidence: EvidenceFolder,
    verdicts: PathBuf,
    origin: Origin,
    /// Where other coordinators find evidence and verdicts too.
    bucket: Option<Bucket>,
}

impl Vetting {
    pub(crate) fn new(
        policy: Option<PathBuf>,
        files: &std::path::Path,
        origin: Origin,
        bucket: Option<Bucket>,
    ) -> Self {
        Self {
            policy,
            evidence: EvidenceFolder::at(files.join("evidence")),
            verdicts: files.join("verdicts"),
            origin,
            bucket,
        }
    }

    /// Whether the policy can be read, for the start.
    pub(crate) fn check_policy(&self) -> Result<(), PolicyLoadError> {
        self.policy.as_deref().map(Policy::load).transpose().map(drop)
    }

    /// Judges what a publication would put in force anew. `known` are the targets in force.
    pub(crate) async fn vet(
        &self,
        publication: &Publication,
        known: BTreeMap<String, Target>,
        artifacts: Vec<Artifact>,
        now: WallTime,
    ) -> Result<Vetted, VettingError> {
        let Some(policy) = self.policy.clone() else {
            return Ok(Vetted::default());
        };
        let sent = publication.metadata.iter().filter(|(name, _)| is_releases(name));
        let mut wanted = BTreeMap::new();
        for (_, text) in sent {
            wanted.extend(targets(text.as_bytes()));
        }
        wanted.retain(|name, target| known.get(name) != Some(target));
        let vetting = self.clone();
        let judged = tokio::task::spawn_blocking(move || vetting.judge(&policy, wanted, &artifacts, now));
        let accepted = judged
            .await
            .map_err(|error| VettingError::Stopped(io::Error::other(error)))??;
        Ok(Vetted {
            accepted: Some(accepted),
        })
    }

    /// Stores a file of evidence.
    pub(crate) async fn put(&self, bytes: Bytes) -> Result<FileRef, VettingError> {
        if let Some(bucket) = &self.bucket {
            let name = format!("evidence/{}", Sha256::of(&bytes));
            let put = bucket.put(&name, bytes.clone()).await;
            put.map_err(|source| VettingError::Bucket("a file of evidence", source))?;
        }
        let evidence = self.evidence.clone();
        let stored = tokio::task::spawn_blocking(move || evidence.put(&bytes)).await;
        let stored = stored.map_err(|error| VettingError::Stopped(io::Error::other(error)))?;
        stored.map_err(|source| VettingError::Write {
            target: "a file of evidence".to_owned(),
            source,
        })
    }

    /// A file of evidence, if it is here. Blocks.
    pub(crate) fn get(&self, sha256: Sha256) -> Result<Vec<u8>, ReadFileError> {
        match self.evidence.read(sha256, SBOM_BYTES_MAX) {
            Err(error) if error.is_not_found() && self.fetch(sha256)? => self.evidence.read(sha256, SBOM_BYTES_MAX),
            read => read,
        }
    }

    /// Brings a file of evidence that another coordinator took in. False if it is not in the bucket either. Blocks.
    fn fetch(&self, sha256: Sha256) -> Result<bool, ReadFileError> {
        let Some(bucket) = &self.bucket else {
            return Ok(false);
        };
        let name = format!("evidence/{sha256}");
        let failed = |source| ReadFileError::Io {
            path: name.clone().into(),
            source,
        };
        let found = Handle::current().block_on(bucket.get(&name, SBOM_BYTES_MAX));
        match found.map_err(failed)? {
            // What is something else by now is as good as missing.
            Some(bytes) if Sha256::of(&bytes) == sha256 => {
                let kept = self.evidence.put(&bytes);
                kept.map_err(|error| failed(io::Error::other(error)))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The coordinators' own verdict on an image, if one has judged it. Blocks.
    pub(crate) fn verdict(&self, image: Sha256) -> Result<Vec<u8>, ReadFileError> {
        let path = self.verdict_path(image);
        let Some(bucket) = &self.bucket else {
            return read_bounded(&path, VERDICT_BYTES_MAX);
        };
        // The one here may be older.
        let found = Handle::current().block_on(bucket.get(&verdict_object(image), VERDICT_BYTES_MAX));
        match found {
            Ok(Some(bytes)) => Ok(bytes.into()),
            Ok(None) => read_bounded(&path, VERDICT_BYTES_MAX),
            Err(source) => Err(ReadFileError::Io { path, source }),
        }
    }

    fn verdict_path(&self, image: Sha256) -> PathBuf {
        self.verdicts.join(format!("{image}.json"))
    }

    fn judge(
        &self,
        policy: &std::path::Path,
        wanted: BTreeMap<String, Target>,
        artifacts: &[Artifact],
        now: WallTime,
    ) -> Result<BTreeMap<String, Target>, VettingError> {
        let policy = Policy::load(policy)?;
        let mut accepted = BTreeMap::new();
        for (name, target) in wanted {
            // What is no release, or has no image here, is refused under its own name when it is published.
            let Some(release) = release(&name, &target) else {
                continue;
            };
            if !artifacts.contains(&release.artifact) {
                continue;
            }
            let verdict = self.judge_one(&policy, &release, now)?;
            if !verdict.accepted {
                return Err(VettingError::Refused {
                    target: name,
                    reasons: verdict.refusal(),
                });
            }
            accepted.insert(name, target);
        }
        Ok(accepted)
    }

    fn judge_one(&self, policy: &Policy, release: &Release, now: WallTime) -> Result<Verdict, VettingError> {
        let target = release.target.clone();
        let local = self
            .origin
            .local(&release.artifact)
            .map_err(|source| VettingError::Image {
                target: target.clone(),
                source: ReadFileError::Io {
                    path: format!("{}.bin", release.artifact.id).into(),
                    source,
                },
            })?;
        let path = local.path().to_owned();
        let image = Image::read(&path).map_err(|source| VettingError::Image {
            target: target.clone(),
            source,
        })?;
        if image.sha256() != release.artifact.sha256 {
            let source = io::Error::new(io::ErrorKind::InvalidData, "its SHA-256 has changed on the disk");
            let source = ReadFileError::Io { path, source };
            return Err(VettingError::Image { target, source });
        }
        let unfit = |source| VettingError::Evidence {
            target: target.clone(),
            source,
        };
        let verdict = loop {
            match self.evidence.judge(policy, release, &image, now, false) {
                // Each is missing once: after that it is here.
                Err(RecordError::Missing { sha256, .. })
                    if self.fetch(sha256).map_err(|error| unfit(error.into()))? => {}
                judged => break judged.map_err(unfit)?,
            }
        };
        if let Some(bucket) = &self.bucket {
            let name = verdict_object(image.sha256());
            let put = Handle::current().block_on(bucket.put(&name, verdict.to_bytes().into()));
            put.map_err(|source| VettingError::Bucket("a verdict", source))?;
        }
        write_file(&self.verdict_path(image.sha256()), &verdict.to_bytes()).map_err(|source| VettingError::Write {
            target: target.clone(),
            source,
        })?;
        info!(release = target, image = %image.sha256(), accepted = verdict.accepted, "provenance judged");
        Ok(verdict)
    }
}

fn verdict_object(image: Sha256) -> String {
    format!("verdicts/{image}.json")
}

/// The release targets in force.
pub(crate) fn in_force(published: &Published) -> BTreeMap<String, Target> {
    published
        .trusted
        .get("releases.json")
        .map_or_else(BTreeMap::new, |bytes| targets(bytes))
}

/// The targets of a file whose signatures are checked elsewhere; none if it cannot be read, which is told elsewhere too.
fn targets(bytes: &[u8]) -> BTreeMap<String, Target> {
    let file = SignedFile::from_bytes("releases", bytes);
    let targets = file.and_then(|file| file.unverified::<Targets>("releases"));
    targets.map_or_else(|_| BTreeMap::new(), |targets| targets.targets)
}

fn is_releases(name: &str) -> bool {
    let stem = name.strip_suffix(".json").unwrap_or(name);
    stem == "releases" || stem.ends_with(".releases")
}

fn release(name: &str, target: &Target) -> Option<Release> {
    let info: ReleaseInfo = serde_json::from_value(target.custom.clone()?).ok()?;
    Some(Release {
        target: name.to_owned(),
        artifact: Artifact {
            id: info.blake3,
            sha256: target.sha256()?,
            length: target.length,
        },
        info,
    })
}
