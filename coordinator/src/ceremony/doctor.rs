//! What a trust folder's keepers should see to: what expires, which thresholds hang by a thread, what is set weakly.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use firmesh_protocol::{
    limits::MANIFEST_BYTES_MAX,
    manifest::CampaignManifest,
    time::WallTime,
    trust::{FileStatus, PublicKey, RoleStatus, SignerRole, Signers},
};
use serde::Serialize;
use x509_parser::pem::Pem;

use super::{
    files::{ReadFileError, read_bounded},
    folder::{FolderError, TrustFolder},
    keys::is_encrypted_file,
};

/// A certificate file holds a few certificates of a few kilobytes.
const CERTIFICATE_BYTES_MAX: u64 = 256 << 10;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Somebody should see to it.
    Warning,
    /// Something does not work, or soon anybody could break it.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check: `expiry`, `signatures`, `threshold`, `separation`, `mode`, `certificate`, `campaign`, `key`.
    pub what: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What it is about: a file, a role, a certificate.
    pub subject: String,
    /// What was found, and what to do.
    pub detail: String,
    /// When it expires, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<WallTime>,
}

impl Finding {
    /// A finding without an expiry.
    pub fn new(what: &'static str, level: Level, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            what,
            level,
            subject: subject.into(),
            detail: detail.into(),
            expires: None,
        }
    }
}

/// What to look at, beside the folder itself.
#[derive(Debug, Clone)]
pub struct Examination {
    /// The time it is.
    pub now: WallTime,
    /// What expires within so long is a warning.
    pub within: Duration,
    /// Keys to be reckoned as lost.
    pub lost: Vec<PublicKey>,
    /// Certificates in PEM.
    pub certificates: Vec<PathBuf>,
    /// Secret key files, or folders of them.
    pub keys: Vec<PathBuf>,
}

impl Examination {
    /// Looks at everything.
    pub fn examine(&self, folder: &TrustFolder) -> Result<Vec<Finding>, FolderError> {
        let mut found = self.metadata(folder)?;
        found.extend(self.roles(folder)?);
        found.extend(self.campaigns(folder)?);
        found.extend(self.certificates.iter().flat_map(|path| self.certificate(path)));
        found.extend(mode(folder.path(), 0o022, "trust folder", "others can write in it"));
        for path in &self.keys {
            found.extend(key_files(path));
        }
        Ok(found)
    }

    /// How much longer something is good.
    #[must_use]
    pub fn expiry(&self, what: &'static str, subject: impl Into<String>, expires: WallTime) -> Finding {
        let days = (expires.unix_seconds() - self.now.unix_seconds()) / 86_400;
        let (level, detail) = if expires <= self.now {
            (
                Level::Failure,
                format!("expired at {expires}: sign a new version (firmesh trust renew)"),
            )
        } else if expires <= self.now + self.within {
            (
                Level::Warning,
                format!("expires in {days} days, at {expires}: sign a new version (firmesh trust renew)"),
            )
        } else {
            (Level::Ok, format!("expires in {days} days, at {expires}"))
        };
        Finding {
            expires: Some(expires),
            ..Finding::new(what, level, subject, detail)
        }
    }

    fn metadata(&self, folder: &TrustFolder) -> Result<Vec<Finding>, FolderError> {
        let (files, mut found) = (folder.status()?, Vec::new());
        let is_root = |status: &FileStatus| status.file.ends_with(".root.json");
        let newest = files.iter().rposition(is_root).unwrap_or(0);
        for status in &files[newest..] {
            let FileStatus {
                file, version, expires, ..
            } = status;
            found.push(self.expiry("expiry", format!("{file} version {version}"), *expires));
            let lacks = |role: &&RoleStatus| role.have < role.need;
            for RoleStatus { role, have, need } in status.roles.iter().filter(lacks) {
                let detail = format!("has {have} of the {need} signatures of {role}: firmesh trust sign");
                found.push(Finding::new("signatures", Level::Warning, file, detail));
            }
        }
        Ok(found)
    }

    fn roles(&self, folder: &TrustFolder) -> Result<Vec<Finding>, FolderError> {
        let mut found = Vec::new();
        let groups = SignerRole::ALL.map(|role| Ok((role, folder.signers(role)?)));
        let groups = groups.into_iter().collect::<Result<Vec<_>, FolderError>>()?;
        for (role, Signers { keys, threshold }) in &groups {
            let left = keys.iter().filter(|key| !self.lost.contains(key)).count() as u64;
            let lost = keys.len() as u64 - left;
            let of = format!("{threshold} of {} must sign", keys.len());
            let gone = if lost == 0 {
                String::new()
            } else {
                format!(", {lost} of them lost")
            };
            let (level, advice) = if left < *threshold {
                let way = if *role == SignerRole::Root {
                    "no new root can ever be signed: pin a new root on every node by hand"
                } else {
                    "it can never be met: give the role other keys (firmesh trust signers)"
                };
                (Level::Failure, way)
            } else if *threshold < 2 && !role.is_online() {
                (
                    Level::Warning,
                    "one stolen key is enough to speak for this role: raise the threshold",
                )
            } else if left == *threshold && !role.is_online() {
                (Level::Warning, "one more lost key, and it cannot be met: add a key")
            } else {
                (Level::Ok, "")
            };
            let colon = if advice.is_empty() { "" } else { ": " };
            found.push(Finding::new(
                "threshold",
                level,
                role.name(),
                format!("{of}{gone}{colon}{advice}"),
            ));
        }
        for (at, (first, a)) in groups.iter().enumerate() {
            for (second, b) in &groups[at + 1..] {
                let Some(key) = a.keys.iter().find(|key| b.keys.contains(key)) else {
                    continue;
                };
                let subject = format!("{first} and {second}");
                let usual = [
                    (SignerRole::Root, SignerRole::Targets),
                    (SignerRole::Snapshot, SignerRole::Timestamp),
                ];
                if first.must_differ_from(*second) {
                    let detail = format!("share the key {key}, and must not: nodes refuse such metadata");
                    found.push(Finding::new("separation", Level::Failure, subject, detail));
                } else if !usual.contains(&(*first, *second)) {
                    let detail = format!("share the key {key}: whoever steals it speaks for both");
                    found.push(Finding::new("separation", Level::Warning, subject, detail));
                }
            }
        }
        Ok(found)
    }

    fn campaigns(&self, folder: &TrustFolder) -> Result<Vec<Finding>, FolderError> {
        let mut found = Vec::new();
        for (id, _) in folder.campaigns() {
            let bytes = match read_bounded(&folder.manifest_path(&id), MANIFEST_BYTES_MAX) {
                Err(error) if error.is_not_found() => {
                    let detail = "its manifest is not in this folder: take in a bundle (firmesh trust import)";
                    found.push(Finding::new("campaign", Level::Warning, id.as_str(), detail));
                    continue;
                }
                bytes => bytes?,
            };
            found.push(match CampaignManifest::from_bytes(&bytes) {
                Err(error) => Finding::new(
                    "campaign",
                    Level::Failure,
                    id.as_str(),
                    format!("cannot be used: {error}"),
                ),
                // An old campaign expires as it should.
                Ok(manifest) if manifest.expires <= self.now => {
                    let detail = format!("expired at {}: it starts nothing any longer", manifest.expires);
                    Finding::new("campaign", Level::Ok, id.as_str(), detail)
                }
                Ok(manifest) => Finding {
                    detail: format!("starts devices until {}", manifest.expires),
                    ..self.expiry("campaign", id.as_str(), manifest.expires)
                },
            });
        }
        Ok(found)
    }

    /// When the certificates of a file expire.
    #[must_use]
    pub fn certificate(&self, path: &Path) -> Vec<Finding> {
        let subject = path.display().to_string();
        match read_bounded(path, CERTIFICATE_BYTES_MAX) {
            Ok(bytes) => self.certificates_of(&subject, &bytes),
            Err(error) => {
                let detail = chain(&error);
                vec![Finding::new("certificate", Level::Failure, subject, detail)]
            }
        }
    }

    /// When the certificates of a PEM text expire.
    #[must_use]
    pub fn certificates_of(&self, subject: &str, pem: &[u8]) -> Vec<Finding> {
        let mut found = Vec::new();
        for block in Pem::iter_from_buffer(pem) {
            let Ok(block) = block else { break };
            let Ok(parsed) = block.parse_x509() else {
                found.push(Finding::new(
                    "certificate",
                    Level::Failure,
                    subject,
                    "holds a block that is no certificate",
                ));
                continue;
            };
            let expires = WallTime::from_unix_seconds(parsed.validity().not_after.timestamp());
            let name = format!("{subject} ({})", parsed.subject());
            let mut finding = self.expiry("certificate", name, expires);
            finding.detail = finding
                .detail
                .replace(": sign a new version (firmesh trust renew)", ": renew it");
            found.push(finding);
        }
        if found.is_empty() {
            found.push(Finding::new(
                "certificate",
                Level::Failure,
                subject,
                "holds no certificate in PEM",
            ));
        }
        found
    }
}

fn chain(error: &ReadFileError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// A finding if any of the bits of `forbidden` is set.
fn mode(path: &Path, forbidden: u32, subject: &str, problem: &str) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    (mode & forbidden != 0).then(|| {
        let path = path.display();
        let detail = format!("{problem} ({path} has mode {mode:04o}): chmod go-w {path}");
        Finding::new("mode", Level::Warning, subject, detail)
    })
}

/// Looks at a secret key file, or at all of a folder.
fn key_files(path: &Path) -> Vec<Finding> {
    let subject = path.display().to_string();
    let unreadable =
        |error: &std::io::Error| vec![Finding::new("key", Level::Failure, subject.clone(), error.to_string())];
    if path.is_dir() {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return unreadable(&error),
        };
        let mut files: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        return files
            .iter()
            .filter(|file| is_encrypted_file(file).is_some())
            .flat_map(|file| key_files(file))
            .collect();
    }
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode() & 0o7777,
        Err(error) => return unreadable(&error),
    };
    let (level, detail) = match is_encrypted_file(path) {
        None => (Level::Failure, "holds no secret key".to_owned()),
        Some(_) if mode & 0o077 != 0 => (
            Level::Failure,
            format!("others can read it (mode {mode:04o}): chmod 600 {subject}, and replace the key"),
        ),
        Some(false) => (
            Level::Warning,
            format!("is not encrypted: firmesh key passphrase {subject}"),
        ),
        Some(true) => (Level::Ok, "is encrypted".to_owned()),
    };
    vec![Finding::new("key", level, subject, detail)]
}
