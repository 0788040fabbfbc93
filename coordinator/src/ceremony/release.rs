//! Releases: an image is measured, described and staged for the release keys.

use std::{fs::File, io::Read as _, path::Path};

use firmesh_protocol::{
    ids::{ArtifactId, Component, Sha256},
    limits::ARTIFACT_BYTES_MAX,
    manifest::{
        Artifact, ManifestError, OtherComponent, Provenance, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility,
        is_release_target,
    },
    time::WallTime,
    trust::Target,
    version::VersionScheme,
};
use sha2::Digest as _;

use super::{
    files::ReadFileError,
    folder::{FolderError, TrustFolder},
};

/// Why a release could not be staged.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The image could not be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// An empty image.
    #[error("{path} is empty: not an image")]
    Empty {
        /// The image's file.
        path: String,
    },
    /// What is said about the image does not hold together.
    #[error(transparent)]
    Info(#[from] ManifestError),
    /// The name cannot be a target.
    #[error("{name:?} cannot name a release: firmware/ and then letters, digits, '.', '_', '-' or '+'")]
    BadName {
        /// The name.
        name: String,
    },
    /// The name stands for other bytes already.
    #[error("{name} already stands for the image {known}; a new image needs a new name (or version)")]
    NameTaken {
        /// The name.
        name: String,
        /// SHA-256 of the image it stands for.
        known: String,
    },
    /// The trust folder could not be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// What a release goes with, as an operator writes it.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compatibility {
    /// How its versions are written: `"sem_ver"`, `"dotted"`, `"oem"` or `{ pattern = "{=} v{n}.{n}" }`.
    pub version_scheme: Option<VersionScheme>,
    /// The first version from which it may be installed.
    pub min_from: Option<String>,
    /// What other components of the same unit have to run.
    #[serde(default)]
    pub requires: Vec<OtherComponent>,
    /// What no other component of the same unit may run.
    #[serde(default)]
    pub conflicts: Vec<OtherComponent>,
}

/// What an image is, as far as its bytes do not say.
#[derive(Debug, Clone)]
pub struct NewRelease {
    /// Who makes the devices.
    pub vendor: String,
    /// The models that may take it, exactly as the devices report them.
    pub models: Vec<String>,
    /// The component it is for.
    pub component: Component,
    /// The version a device reports once it runs it.
    pub version: String,
    /// A device never goes to a lower epoch.
    pub security_epoch: u32,
    /// The versions from which it may be installed; any if empty.
    pub from_versions: Vec<String>,
    /// What it goes with.
    pub compatibility: Compatibility,
    /// What it takes to go back.
    pub reversibility: Reversibility,
    /// The target name; made of vendor, model, component and version if absent.
    pub name: Option<String>,
    /// What was presented to show where it comes from.
    pub provenance: Option<Provenance>,
}

/// Reads an image once and names it by all its digests. `progress` hears of every stretch of bytes read.
pub fn measure(path: &Path, mut progress: impl FnMut(u64)) -> Result<Artifact, ReleaseError> {
    let failed = |source| ReadFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let (mut blake3, mut sha256) = (blake3::Hasher::new(), sha2::Sha256::new());
    let (mut buffer, mut length) = (vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        blake3.update(&buffer[..read]);
        sha256.update(&buffer[..read]);
        length += read as u64;
        progress(read as u64);
        if length > ARTIFACT_BYTES_MAX {
            return Err(ReadFileError::TooLarge {
                path: path.to_owned(),
                bytes_max: ARTIFACT_BYTES_MAX,
            }
            .into());
        }
    }
    if length == 0 {
        return Err(ReleaseError::Empty {
            path: path.display().to_string(),
        });
    }
    let (id, sha256) = (
        ArtifactId::from(*blake3.finalize().as_bytes()),
        Sha256::from(<[u8; 32]>::from(sha256.finalize())),
    );
    Ok(Artifact { id, sha256, length })
}

/// Adds a release to `releases.json`, unsigned. The same release again changes nothing but its data.
pub fn stage_release(
    folder: &mut TrustFolder,
    artifact: &Artifact,
    new: NewRelease,
    expires: WallTime,
) -> Result<Release, ReleaseError> {
    let name = new.name.clone().unwrap_or_else(|| default_name(&new));
    if !is_release_target(&name) {
        return Err(ReleaseError::BadName { name });
    }
    let info = ReleaseInfo {
        schema: RELEASE_SCHEMA.to_owned(),
        blake3: artifact.id,
        vendor: new.vendor,
        models: new.models,
        component: new.component,
        version: new.version,
        security_epoch: new.security_epoch,
        from_versions: new.from_versions,
        reversibility: new.reversibility,
        provenance: new.provenance,
        version_scheme: new.compatibility.version_scheme,
        min_from: new.compatibility.min_from,
        requires: new.compatibility.requires,
        conflicts: new.compatibility.conflicts,
    };
    info.check()?;
    let known = folder
        .repository()
        .releases()
        .targets
        .get(&name)
        .and_then(Target::sha256);
    if let Some(known) = known.filter(|known| *known != artifact.sha256) {
        return Err(ReleaseError::NameTaken {
            name,
            known: known.to_string(),
        });
    }
    let custom = serde_json::to_value(&info).expect("a release has only text and numbers");
    let target = Target::new(artifact.length, artifact.sha256, Some(custom));
    folder.edit(|repository| repository.set_release(&name, target, expires))?;
    Ok(Release {
        target: name,
        artifact: artifact.clone(),
        info,
    })
}

fn default_name(new: &NewRelease) -> String {
    let model = new.models.first().map_or("", String::as_str);
    let words = [new.vendor.as_str(), model, new.component.as_str(), new.version.as_str()].join("-");
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+') {
            c
        } else {
            '-'
        }
    };
    format!(
        "firmware/{}",
        words.to_ascii_lowercase().chars().map(plain).collect::<String>()
    )
}
