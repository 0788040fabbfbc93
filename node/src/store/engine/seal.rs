//! The store's key, and what is made of it for one artifact: AES-256-GCM for the content, a keyed BLAKE3 for the records.
//!
//! **Nonces.** Every artifact has a key of its own, derived from the store's key and the artifact's root, and a chunk group
//! is sealed under its number in the artifact. A nonce must never meet two plaintexts under one key. It does not: a group is
//! sealed only after its bytes verified against the root, and for one root and one number there is one such content as long
//! as BLAKE3 has no collisions. Writing a group again, after a crash, from two peers at once, after a damaged piece was
//! dropped, on a node that was given another node's key, seals the same bytes to the same bytes. What would break this, and
//! must never be done: sealing bytes before they verified; sealing anything but whole 16 KiB groups of the artifact under
//! these keys (another use, or another group size, needs another context string); deriving the key from a name that is not
//! the content's hash.
//!
//! **Bounds.** An artifact has at most 2^21 groups of 2^14 bytes, far from what one AES-GCM key may seal.

use std::{fmt, fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use firmesh_protocol::ids::ArtifactId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// The tag of one chunk group.
pub(super) const TAG_BYTES: usize = 16;

const CONTENT_CONTEXT: &str = "firmesh 2026 piece store: AES-256-GCM of 16 KiB groups of one artifact";
const RECORD_CONTEXT: &str =
    "firmesh 2026 piece store: keyed hash of piece records of one artifact, its length giving the pieces'";
const CHECK_CONTEXT: &str = "firmesh 2026 piece store: check value of the key";

/// The key of a node's store: 32 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreKey([u8; 32]);

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(redacted)")
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the store's key {path} cannot be read")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is readable by others.
    #[error("{path} is readable by others (mode {mode:o}); it is the key of this node's store: chmod 600 it")]
    Exposed {
        /// The file.
        path: std::path::PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not a key.
    #[error("{origin} does not hold a key: 64 hexadecimal digits, as `openssl rand -hex 32` prints them")]
    NotAKey {
        /// The file or variable.
        origin: String,
    },
}

/// A key file has 64 digits and the end of a line.
const KEY_FILE_BYTES_MAX: u64 = 4 << 10;

impl StoreKey {
    /// Reads a key from a file that nobody else can read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::metadata(path).map_err(failed)?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        if metadata.len() > KEY_FILE_BYTES_MAX {
            return Err(KeyError::NotAKey {
                origin: path.display().to_string(),
            });
        }
        let text = fs::read(path).map_err(failed)?;
        Self::parse(&String::from_utf8_lossy(&text), &path.display().to_string())
    }

    /// Reads a key as text. `origin` says where it stood, for the error.
    pub fn parse(text: &str, origin: &str) -> Result<Self, KeyError> {
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key).map_err(|_| KeyError::NotAKey {
            origin: origin.to_owned(),
        })?;
        Ok(Self(key))
    }

    /// A key of its own for another use, which `context` names.
    pub(crate) fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }

    /// What a store keeps to know its key again; says nothing about the key.
    pub(super) fn check_value(&self) -> String {
        hex::encode(blake3::derive_key(CHECK_CONTEXT, &self.0))
    }
}

impl From<[u8; 32]> for StoreKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// What one artifact's content is sealed with, or nothing, and what its records are signed with.
#[derive(Debug)]
pub(super) struct Seal {
    cipher: Option<LessSafeKey>,
    record_key: [u8; 32],
}

impl Seal {
    pub(super) fn of(key: Option<&StoreKey>, artifact: ArtifactId, length: u64) -> Self {
        let mut material = [0; 64];
        material[..32].copy_from_slice(&key.map_or([0; 32], |key| key.0));
        material[32..].copy_from_slice(artifact.as_bytes());
        let cipher = key.map(|_| {
            let key = blake3::derive_key(CONTENT_CONTEXT, &material);
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("the key has AES-256's length"))
        });
        // A record of a plain store says nothing to an encrypted one, nor under another length.
        let mut about = material.to_vec();
        about.push(u8::from(key.is_some()));
        about.extend_from_slice(&length.to_le_bytes());
        Self {
            cipher,
            record_key: blake3::derive_key(RECORD_CONTEXT, &about),
        }
    }

    /// Whether content is sealed at all.
    pub(super) fn encrypts(&self) -> bool {
        self.cipher.is_some()
    }

    /// Seals a verified chunk group in place; its tag.
    pub(super) fn seal(&self, group: u64, content: &mut [u8]) -> [u8; TAG_BYTES] {
        let mut tag = [0; TAG_BYTES];
        if let Some(cipher) = &self.cipher {
            let sealed = cipher.seal_in_place_separate_tag(nonce(group), Aad::empty(), content);
            tag.copy_from_slice(sealed.expect("a group is far below the cipher's bound").as_ref());
        }
        tag
    }

    /// Opens a chunk group in place; false if it is not what was sealed.
    pub(super) fn open(&self, group: u64, tag: [u8; TAG_BYTES], content: &mut [u8]) -> bool {
        self.cipher.as_ref().is_none_or(|cipher| {
            cipher
                .open_in_place_separate_tag(nonce(group), Aad::empty(), tag.into(), content, 0..)
                .is_ok()
        })
    }

    /// What proves that a record is one this store wrote for this piece.
    pub(super) fn record_hash(&self, piece: u32, body: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.record_key);
        hasher.update(&piece.to_le_bytes()).update(body);
        *hasher.finalize().as_bytes()
    }
}

fn nonce(group: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&group.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_opens_only_under_its_key_root_and_number() {
        let (root, other) = (ArtifactId::of(b"a"), ArtifactId::of(b"b"));
        let key = StoreKey::from([7; 32]);
        let seal = Seal::of(Some(&key), root, 100);
        let mut sealed = *b"verified bytes";
        let tag = seal.seal(3, &mut sealed);
        assert_ne!(&sealed, b"verified bytes");
        let opens = |seal: &Seal, group, tag| {
            let mut content = sealed;
            seal.open(group, tag, &mut content) && &content == b"verified bytes"
        };
        assert!(opens(&seal, 3, tag));
        assert!(!opens(&seal, 4, tag));
        assert!(!opens(&Seal::of(Some(&key), other, 100), 3, tag));
        assert!(!opens(&Seal::of(Some(&StoreKey::from([8; 32])), root, 100), 3, tag));
        for bit in 0..128 {
            let mut bad = tag;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!opens(&seal, 3, bad));
        }
        assert_ne!(
            seal.record_hash(1, b"x"),
            Seal::of(Some(&key), root, 101).record_hash(1, b"x")
        );
    }

    #[test]
    fn a_key_is_read_from_a_closed_file_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.key");
        fs::write(&path, format!("{}\n", hex::encode([9; 32]))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            StoreKey::load(&path),
            Err(KeyError::Exposed { mode: 0o640, .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let key = StoreKey::load(&path).unwrap();
        assert_eq!(key, StoreKey::from([9; 32]));
        assert_eq!(format!("{key:?}"), "StoreKey(redacted)");
        for bad in ["", "12", "zz", &"0".repeat(63), &"0".repeat(65), &"0".repeat(10_000)] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(StoreKey::load(&path), Err(KeyError::NotAKey { .. })), "{bad}");
        }
        assert!(matches!(
            StoreKey::load(&folder.path().join("no")),
            Err(KeyError::File { .. })
        ));
    }
}
