//! TUF metadata as data: what the files of specification 1.0.x say, read strictly and written canonically.
//!
//! Invariants: fields this version does not know survive inside `signed`; the bytes that signatures cover come from the
//! file as it was received, never from a struct that forgot something.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, Error as _},
};
use serde_json::{Value, json};

use super::{
    delegation::{BadDelegation, DelegatedRole, Delegations},
    json::{canonical, parse_strict},
    key_set::{KeySet, KeySetError, Signature, SignatureError},
    keys::{Key, KeyId, SecretKey},
    verifying::KeyPolicy,
};
use crate::{
    ids::Sha256,
    limits::{ROOT_BYTES_MAX, SNAPSHOT_BYTES_MAX, TARGETS_BYTES_MAX, TIMESTAMP_BYTES_MAX},
    time::WallTime,
};

/// The specification that files written here follow.
pub const SPEC_VERSION: &str = "1.0.31";

/// Why a metadata file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Not JSON of the expected shape.
    #[error("{file} is not well-formed TUF metadata")]
    Malformed {
        /// Which file.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Another role's file.
    #[error("{file} holds {found} metadata, expected {expected}")]
    WrongKind {
        /// Which file.
        file: String,
        /// What it should hold.
        expected: Kind,
        /// What it holds.
        found: Kind,
    },
    /// Another major version of the specification.
    #[error("{file} follows TUF specification {found:?}, this version reads 1.x")]
    SpecVersion {
        /// Which file.
        file: String,
        /// The version it names.
        found: String,
    },
    /// Versions count from one.
    #[error("{file} has version 0, versions count from 1")]
    VersionZero {
        /// Which file.
        file: String,
    },
    /// Delegations that cannot be followed.
    #[error("{file} has delegations that cannot be followed")]
    Delegation {
        /// Which file.
        file: String,
        /// Which, and why.
        source: BadDelegation,
    },
}

/// Why a file was refused when it was read with a role's keys.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not readable.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Not signed by enough of the role's keys.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// The four kinds of metadata; every delegated role is a `targets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Who may sign what.
    Root,
    /// Which snapshot is current.
    Timestamp,
    /// Which versions belong together.
    Snapshot,
    /// What there is, and who else may say so.
    Targets,
}

impl Kind {
    /// The name of the top-level role.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
        }
    }

    /// The longest file that is read when nothing signed gives its length.
    #[must_use]
    pub fn bytes_max(self) -> u64 {
        match self {
            Self::Root => ROOT_BYTES_MAX,
            Self::Timestamp => TIMESTAMP_BYTES_MAX,
            Self::Snapshot => SNAPSHOT_BYTES_MAX,
            Self::Targets => TARGETS_BYTES_MAX,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Fields this version does not know, kept.
pub type Extra = BTreeMap<String, Value>;

/// What every metadata file says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Which kind of metadata.
    #[serde(rename = "_type")]
    pub kind: Kind,
    /// The specification it follows.
    pub spec_version: String,
    /// Counts up from 1.
    pub version: u64,
    /// No longer believed after this moment.
    pub expires: WallTime,
}

impl Header {
    /// The header of a first version.
    #[must_use]
    pub fn first(kind: Kind, expires: WallTime) -> Self {
        Self {
            kind,
            spec_version: SPEC_VERSION.to_owned(),
            version: 1,
            expires,
        }
    }
}

/// The content of a kind of metadata file.
pub trait Role: Serialize + DeserializeOwned {
    /// Which kind.
    const KIND: Kind;
    /// What the file says about itself.
    fn header(&self) -> &Header;
    /// The same, to edit.
    fn header_mut(&mut self) -> &mut Header;
    /// Who else may speak, where the kind of file can say so.
    fn delegations(&self) -> Option<&Delegations> {
        None
    }
}

macro_rules! role {
    ($type:ident, $kind:ident $(, $delegations:ident)?) => {
        impl Role for $type {
            const KIND: Kind = Kind::$kind;
            fn header(&self) -> &Header {
                &self.header
            }
            fn header_mut(&mut self) -> &mut Header {
                &mut self.header
            }
            $(fn $delegations(&self) -> Option<&Delegations> {
                self.$delegations.as_ref()
            })?
        }
    };
}

/// The keys of one role, by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Whose signatures count.
    pub keyids: Vec<KeyId>,
    /// How many are needed.
    pub threshold: u64,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Who may sign what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Kind, version and expiry.
    #[serde(flatten)]
    pub header: Header,
    /// Whether files are also named by version.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// Every key of the top-level roles.
    pub keys: BTreeMap<KeyId, Key>,
    /// The top-level roles.
    pub roles: BTreeMap<String, RoleKeys>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}
role!(Root, Root);

impl Root {
    /// The ed25519 keys of a top-level role. A role that is not listed has no keys, so its threshold can never be met.
    pub fn key_set(&self, kind: Kind) -> Result<KeySet, KeySetError> {
        self.key_set_under(kind, KeyPolicy::default())
    }

    /// The same, with every key that the policy accepts.
    pub fn key_set_under(&self, kind: Kind, policy: KeyPolicy) -> Result<KeySet, KeySetError> {
        match self.roles.get(kind.name()) {
            Some(role) => key_set(kind.name(), &role.keyids, role.threshold, &self.keys, policy),
            None => KeySet::of(kind.name(), 1, []),
        }
    }
}

/// A metadata file as named by timestamp or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaFile {
    /// The version that is current.
    pub version: u64,
    /// Its length, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Its digests, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<BTreeMap<String, String>>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl MetaFile {
    /// A file by version, length and SHA-256.
    #[must_use]
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        let hashes = BTreeMap::from([("sha256".to_owned(), Sha256::of(bytes).to_string())]);
        Self {
            version,
            length: Some(bytes.len() as u64),
            hashes: Some(hashes),
            extra: Extra::new(),
        }
    }
}

/// Which snapshot is current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Kind, version and expiry.
    #[serde(flatten)]
    pub header: Header,
    /// The one file `snapshot.json`.
    pub meta: TimestampMeta,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}
role!(Timestamp, Timestamp);

/// The `meta` of a timestamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimestampMeta {
    /// The current snapshot.
    #[serde(rename = "snapshot.json")]
    pub snapshot: MetaFile,
}

/// Which versions belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Kind, version and expiry.
    #[serde(flatten)]
    pub header: Header,
    /// Every targets file, by the name it has without its version.
    pub meta: BTreeMap<String, MetaFile>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}
role!(Snapshot, Snapshot);

/// A target: bytes that somebody vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Length in bytes.
    pub length: u64,
    /// Digests in hexadecimal, by algorithm.
    pub hashes: BTreeMap<String, String>,
    /// What the signers say about the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Value>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Target {
    /// A target by length and SHA-256.
    #[must_use]
    pub fn new(length: u64, sha256: Sha256, custom: Option<Value>) -> Self {
        let hashes = BTreeMap::from([("sha256".to_owned(), sha256.to_string())]);
        Self {
            length,
            hashes,
            custom,
            extra: Extra::new(),
        }
    }

    /// The SHA-256 digest, if there is a well-formed one.
    #[must_use]
    pub fn sha256(&self) -> Option<Sha256> {
        self.hashes.get("sha256")?.parse().ok()
    }
}

/// What there is, and who else may say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// Kind, version and expiry.
    #[serde(flatten)]
    pub header: Header,
    /// What the role vouches for, by name.
    pub targets: BTreeMap<String, Target>,
    /// Who else may speak, and about what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}
role!(Targets, Targets, delegations);

impl Targets {
    /// A first, empty version.
    #[must_use]
    pub fn first(expires: WallTime) -> Self {
        let header = Header::first(Kind::Targets, expires);
        Self {
            header,
            targets: BTreeMap::new(),
            delegations: None,
            extra: Extra::new(),
        }
    }

    /// The delegation to a role.
    #[must_use]
    pub fn delegation(&self, role: &str) -> Option<&DelegatedRole> {
        self.delegations
            .as_ref()?
            .roles
            .iter()
            .find(|delegated| delegated.name == role)
    }

    /// The ed25519 keys of a delegated role; `None` if nothing is delegated to it.
    pub fn delegated_keys(&self, role: &str) -> Result<Option<KeySet>, KeySetError> {
        let Some((delegations, role)) = self.delegations.as_ref().zip(self.delegation(role)) else {
            return Ok(None);
        };
        let (keys, policy) = (&delegations.keys, KeyPolicy::default());
        key_set(&role.name, &role.keyids, role.threshold, keys, policy).map(Some)
    }
}

/// The keys of one role among those that its delegator lists.
pub(super) fn key_set(
    role: &str,
    keyids: &[KeyId],
    threshold: u64,
    keys: &BTreeMap<KeyId, Key>,
    policy: KeyPolicy,
) -> Result<KeySet, KeySetError> {
    let mut known = Vec::new();
    for id in keyids {
        let bad = |source| KeySetError::BadKey {
            role: role.to_owned(),
            keyid: id.clone(),
            source,
        };
        let key = keys.get(id).map(|key| key.verifying(policy)).transpose().map_err(bad)?;
        known.extend(key.flatten().map(|key| (id.clone(), key)));
    }
    KeySet::new(role, threshold, known)
}

/// A metadata file: what is signed, and the signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedFile {
    signed: Value,
    signed_bytes: Vec<u8>,
    signatures: Vec<Signature>,
}

impl SignedFile {
    /// Reads a file. Says nothing yet about its signatures; `file` is its name for messages.
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<Self, MetadataError> {
        let malformed = |source| MetadataError::Malformed {
            file: file.to_owned(),
            source,
        };
        let missing = |field| malformed(serde_json::Error::missing_field(field));
        let mut form: serde_json::Map<String, Value> = match parse_strict(bytes).map_err(malformed)? {
            Value::Object(form) => form,
            _ => return Err(malformed(serde_json::Error::custom("expected an object"))),
        };
        let signatures = form.remove("signatures").ok_or_else(|| missing("signatures"))?;
        let signed = form.remove("signed").ok_or_else(|| missing("signed"))?;
        Ok(Self {
            signed_bytes: canonical(&signed),
            signed,
            signatures: serde_json::from_value(signatures).map_err(malformed)?,
        })
    }

    /// A file that nobody has signed yet.
    #[must_use]
    pub fn unsigned<T: Role>(content: &T) -> Self {
        let signed = serde_json::to_value(content).expect("metadata has only text, integers and lists");
        Self {
            signed_bytes: canonical(&signed),
            signed,
            signatures: Vec::new(),
        }
    }

    /// The file's bytes: compact JSON.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let file = json!({ "signatures": self.signatures, "signed": self.signed });
        serde_json::to_vec(&file).expect("metadata has only text, integers and lists")
    }

    /// The exact bytes that signatures cover.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.signed_bytes
    }

    /// The signatures, good or not.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Signs, under the id that a role gives the key. A signature that was there under this id is replaced.
    pub fn sign(&mut self, keyid: &KeyId, key: &SecretKey) {
        let signature = key.sign(&self.signed_bytes);
        self.attach(keyid, &signature);
    }

    /// Puts a signature that was made elsewhere under a key id, in the place of one that was there.
    pub(super) fn attach(&mut self, keyid: &KeyId, signature: &[u8; 64]) {
        self.signatures.retain(|known| known.keyid != *keyid);
        self.signatures.push(Signature {
            keyid: keyid.clone(),
            sig: hex::encode(signature),
        });
    }

    /// Takes another file's signatures under these key ids, in the place of those that were there.
    pub(super) fn adopt(&mut self, other: &Self, keyids: &[KeyId]) {
        self.signatures.retain(|known| !keyids.contains(&known.keyid));
        let taken = other
            .signatures
            .iter()
            .filter(|signature| keyids.contains(&signature.keyid));
        self.signatures.extend(taken.cloned());
    }

    /// The content, once enough of `keys` are found to have signed it.
    pub fn verified<T: Role>(&self, file: &str, keys: &KeySet) -> Result<T, ReadError> {
        keys.verify(&self.signed_bytes, &self.signatures)?;
        Ok(self.unverified(file)?)
    }

    /// The content, whoever signed it: for authors and for showing, never for acting on.
    pub fn unverified<T: Role>(&self, file: &str) -> Result<T, MetadataError> {
        let malformed = |source| MetadataError::Malformed {
            file: file.to_owned(),
            source,
        };
        let header = Header::deserialize(&self.signed).map_err(malformed)?;
        let file = || file.to_owned();
        if header.kind != T::KIND {
            return Err(MetadataError::WrongKind {
                file: file(),
                expected: T::KIND,
                found: header.kind,
            });
        }
        if header.spec_version.split('.').next() != Some("1") {
            let found = header.spec_version.chars().take(20).collect();
            return Err(MetadataError::SpecVersion { file: file(), found });
        }
        if header.version == 0 {
            return Err(MetadataError::VersionZero { file: file() });
        }
        let content = T::deserialize(&self.signed).map_err(malformed)?;
        if let Some(delegations) = content.delegations() {
            delegations
                .check()
                .map_err(|source| MetadataError::Delegation { file: file(), source })?;
        }
        Ok(content)
    }
}
