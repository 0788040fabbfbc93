//! The operator's policy: whose signatures count for which vendor's images, what must be there, and what is too bad.
//!
//! Everything the policy names is read when it is loaded, so a policy that loads can be applied without another error.
//! Paths start at the policy's own folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use firmesh_protocol::ids::Sha256;
use serde::Deserialize;

use super::{
    advisory::{ADVISORIES_BYTES_MAX, Advisories, AdvisoryError, Severity},
    cms::VendorCa,
    openpgp::Certificates,
    rsa::RsaKey,
    signature::{Kind, SignatureError},
};
use crate::ceremony::{ReadFileError, read_bounded};

/// The schema name of a policy file.
pub const POLICY_SCHEMA: &str = "firmesh-provenance-policy/1";
/// The longest policy file, key file or certificate file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest revocation list.
const CRL_BYTES_MAX: u64 = 16 << 20;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyLoadError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// Not TOML of the expected form.
    #[error("the provenance policy {} does not have the expected form", path.display())]
    Malformed {
        /// The policy.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value outside the rules.
    #[error("the provenance policy {}: {problem}", path.display())]
    Value {
        /// The policy.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A key or certificate cannot be used.
    #[error("the key file {} of signer {signer:?}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// Whose it is.
        signer: String,
        /// What is wrong.
        source: SignatureError,
    },
    /// An advisory file cannot be used.
    #[error("the advisory file {}", path.display())]
    Advisories {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: AdvisoryError,
    },
}

/// A policy, with all it names.
#[derive(Debug)]
pub struct Policy {
    /// Digest over the policy and every file it names.
    pub sha256: Sha256,
    pub(super) accept_unlisted: bool,
    pub(super) vendors: BTreeMap<String, VendorPolicy>,
    pub(super) advisories: Advisories,
}

/// What holds for one vendor.
#[derive(Debug)]
pub(super) struct VendorPolicy {
    pub(super) enforce: bool,
    pub(super) signers_min: usize,
    pub(super) require_kinds: BTreeSet<Kind>,
    pub(super) require_signers: BTreeSet<String>,
    pub(super) sbom_required: bool,
    pub(super) block_severity: Option<Severity>,
    pub(super) accepted: BTreeMap<String, String>,
    pub(super) signers: Vec<Signer>,
}

/// Somebody whose signature counts.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) name: String,
    pub(super) key: SignerKey,
}

#[derive(Debug)]
pub(super) enum SignerKey {
    Rsa(RsaKey),
    Cms(VendorCa),
    Openpgp(Certificates),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    schema: String,
    #[serde(default)]
    unlisted_vendors: Unlisted,
    #[serde(default)]
    advisories: Vec<PathBuf>,
    #[serde(default)]
    vendor: Vec<VendorFile>,
}

/// Images of vendors that the policy does not list. Refused unless said otherwise: a policy that a typing error in a
/// vendor's name turns off would be none.
#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Unlisted {
    #[default]
    Refuse,
    Accept,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VendorFile {
    name: String,
    #[serde(default = "enforced")]
    enforce: bool,
    /// One, because a policy without any signature is for SBOMs only, which should be said.
    #[serde(default = "one")]
    signers_min: usize,
    #[serde(default)]
    require_kinds: BTreeSet<Kind>,
    #[serde(default)]
    require_signers: BTreeSet<String>,
    #[serde(default)]
    sbom: SbomRule,
    #[serde(default)]
    block_severity: BlockSeverity,
    #[serde(default)]
    accept_advisory: Vec<AcceptedFile>,
    #[serde(default)]
    signer: Vec<SignerFile>,
}

fn enforced() -> bool {
    true
}

fn one() -> usize {
    1
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "snake_case")]
enum SbomRule {
    Required,
    #[default]
    Optional,
}

/// From which severity on a known vulnerability blocks. High, because hardly any image is without a lesser one.
#[derive(Deserialize, Default)]
#[serde(rename_all = "snake_case")]
enum BlockSeverity {
    Low,
    Medium,
    #[default]
    High,
    Critical,
    Never,
}

/// A vulnerability that the operator has looked at and lives with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptedFile {
    id: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignerFile {
    name: String,
    kind: Kind,
    file: PathBuf,
    #[serde(default)]
    crls: Vec<PathBuf>,
    subject: Option<String>,
}

/// Reads what a policy names, and remembers what was read.
struct Reader<'a> {
    path: &'a Path,
    digest: Vec<u8>,
}

impl Policy {
    /// Reads a policy and every file it names.
    pub fn load(path: &Path) -> Result<Self, PolicyLoadError> {
        let mut reader = Reader {
            path,
            digest: Vec::new(),
        };
        let bytes = read_bounded(path, FILE_BYTES_MAX)?;
        reader.digest.extend(Sha256::of(&bytes).as_bytes());
        let text = String::from_utf8(bytes).map_err(|_| reader.wrong("it is not UTF-8".to_owned()))?;
        let file: PolicyFile = toml::from_str(&text).map_err(|source| PolicyLoadError::Malformed {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        if file.schema != POLICY_SCHEMA {
            let found: String = file.schema.chars().take(80).collect();
            return Err(reader.wrong(format!("its schema is {found:?}, this version reads {POLICY_SCHEMA:?}")));
        }
        let mut advisories = Advisories::default();
        for name in &file.advisories {
            let (path, bytes) = reader.read(name, ADVISORIES_BYTES_MAX)?;
            advisories
                .add(&bytes)
                .map_err(|source| PolicyLoadError::Advisories { path, source })?;
        }
        let mut vendors = BTreeMap::new();
        for vendor in file.vendor {
            let name = vendor.name.clone();
            let vendor = reader.vendor(vendor)?;
            if vendors.insert(name.clone(), vendor).is_some() {
                return Err(reader.wrong(format!("the vendor {name:?} is listed twice")));
            }
        }
        Ok(Self {
            sha256: Sha256::of(&reader.digest),
            accept_unlisted: file.unlisted_vendors == Unlisted::Accept,
            vendors,
            advisories,
        })
    }
}

impl Reader<'_> {
    fn wrong(&self, problem: String) -> PolicyLoadError {
        PolicyLoadError::Value {
            path: self.path.to_owned(),
            problem,
        }
    }

    fn read(&mut self, name: &Path, bytes_max: u64) -> Result<(PathBuf, Vec<u8>), PolicyLoadError> {
        let path = self.path.parent().unwrap_or_else(|| Path::new(".")).join(name);
        let bytes = read_bounded(&path, bytes_max)?;
        self.digest.extend(Sha256::of(&bytes).as_bytes());
        Ok((path, bytes))
    }

    fn vendor(&mut self, file: VendorFile) -> Result<VendorPolicy, PolicyLoadError> {
        let name = &file.name;
        let mut signers: Vec<Signer> = Vec::new();
        for signer in file.signer {
            if signers.iter().any(|other| other.name == signer.name) {
                return Err(self.wrong(format!(
                    "the signer {:?} of vendor {name:?} is listed twice",
                    signer.name
                )));
            }
            signers.push(self.signer(signer)?);
        }
        if file.signers_min > signers.len() {
            return Err(self.wrong(format!(
                "vendor {name:?} needs {} signers and lists {}: list them, or set signers_min",
                file.signers_min,
                signers.len()
            )));
        }
        let listed = |wanted: &String| signers.iter().any(|signer| signer.name == *wanted);
        if let Some(stranger) = file.require_signers.iter().find(|wanted| !listed(wanted)) {
            return Err(self.wrong(format!(
                "vendor {name:?} requires the signer {stranger:?}, who is not listed"
            )));
        }
        let able = |kind: &Kind| signers.iter().any(|signer| signer.key.kind() == *kind);
        if let Some(kind) = file.require_kinds.iter().find(|kind| !able(kind)) {
            return Err(self.wrong(format!(
                "vendor {name:?} requires a {kind} signature, for which no signer is listed"
            )));
        }
        if file
            .accept_advisory
            .iter()
            .any(|accepted| accepted.reason.trim().is_empty())
        {
            return Err(self.wrong(format!("vendor {name:?} accepts an advisory without a reason")));
        }
        Ok(VendorPolicy {
            enforce: file.enforce,
            signers_min: file.signers_min,
            require_kinds: file.require_kinds,
            require_signers: file.require_signers,
            sbom_required: file.sbom == SbomRule::Required,
            block_severity: match file.block_severity {
                BlockSeverity::Low => Some(Severity::Low),
                BlockSeverity::Medium => Some(Severity::Medium),
                BlockSeverity::High => Some(Severity::High),
                BlockSeverity::Critical => Some(Severity::Critical),
                BlockSeverity::Never => None,
            },
            accepted: file
                .accept_advisory
                .into_iter()
                .map(|accepted| (accepted.id, accepted.reason))
                .collect(),
            signers,
        })
    }

    fn signer(&mut self, file: SignerFile) -> Result<Signer, PolicyLoadError> {
        let (path, bytes) = self.read(&file.file, FILE_BYTES_MAX)?;
        if file.kind != Kind::Cms && (!file.crls.is_empty() || file.subject.is_some()) {
            return Err(self.wrong(format!(
                "crls and subject are for cms signers, {:?} is {}",
                file.name, file.kind
            )));
        }
        let crls = file.crls.iter().map(|crl| Ok(self.read(crl, CRL_BYTES_MAX)?.1));
        let crls = crls.collect::<Result<Vec<_>, PolicyLoadError>>()?;
        let key = match file.kind {
            Kind::Rsa => RsaKey::from_pem(&bytes).map(SignerKey::Rsa),
            Kind::Cms => VendorCa::new(&bytes, &crls, file.subject).map(SignerKey::Cms),
            Kind::Openpgp => Certificates::read(&bytes).map(SignerKey::Openpgp),
        };
        let key = key.map_err(|source| PolicyLoadError::Key {
            path,
            signer: file.name.clone(),
            source,
        })?;
        Ok(Signer { name: file.name, key })
    }
}

impl SignerKey {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Rsa(_) => Kind::Rsa,
            Self::Cms(_) => Kind::Cms,
            Self::Openpgp(_) => Kind::Openpgp,
        }
    }
}
