//! What the three kinds of vendor signature have in common: what is signed, what was found, why it was refused.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use firmesh_protocol::{ids::Sha256, limits::ARTIFACT_BYTES_MAX, manifest::Artifact, time::WallTime};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::ceremony::ReadFileError;

/// The longest signature file that is read: a CMS signature with a chain of certificates stays far below.
pub const SIGNATURE_BYTES_MAX: u64 = 1 << 20;
/// Signatures of one release.
pub const SIGNATURES_MAX: usize = 16;
/// How far a signer's clock may be ahead of ours, in seconds.
pub(super) const CLOCK_SLACK_S: i64 = 300;
/// RSA keys below have been factored, or soon will be.
pub(super) const RSA_BITS_MIN: usize = 2048;
/// RSA keys above cost a verifier more than they bring.
pub(super) const RSA_BITS_MAX: usize = 8192;

/// How a vendor signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A bare RSA PKCS#1 v1.5 signature with SHA-256 (RFC 8017).
    Rsa,
    /// CMS `SignedData` without content (RFC 5652), by an X.509 certificate.
    Cms,
    /// A detached OpenPGP signature (RFC 9580).
    Openpgp,
}

impl Kind {
    /// Its name in policy files, verdicts and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Cms => "cms",
            Self::Openpgp => "openpgp",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A signature as the vendor delivered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureFile {
    /// Of which kind it is said to be.
    pub kind: Kind,
    /// The file, byte by byte.
    pub bytes: Vec<u8>,
}

/// Why a signature was refused. The code is stable, the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct SignatureError {
    /// Stable name of the reason, such as `weak_digest`.
    pub code: &'static str,
    /// What was found, and what was expected.
    pub detail: String,
}

impl SignatureError {
    pub(super) fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }

    /// How much was right before something was wrong: of several keys tried, the one that came furthest explains best.
    pub(super) fn progress(&self) -> u8 {
        match self.code {
            "malformed" => 0,
            "wrong_key" | "unknown_key" | "unknown_issuer" | "no_certificate" => 1,
            _ => 2,
        }
    }
}

/// Who signed, as far as the policy's keys show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedBy {
    /// The signer's name in the policy.
    pub signer: String,
    /// SHA-256 of the public key or certificate (DER), or the OpenPGP fingerprint, in hexadecimal.
    pub fingerprint: String,
    /// The certificate's subject or the OpenPGP user, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Such as `rsa-2048-sha256`.
    pub algorithm: String,
    /// When, by the signer's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_at: Option<WallTime>,
}

/// What is signed: an image that was measured, and perhaps still lies somewhere to be read again.
#[derive(Debug, Clone)]
pub struct Image {
    sha256: Sha256,
    length: u64,
    long: Option<([u8; 48], [u8; 64])>,
    path: Option<PathBuf>,
}

impl Image {
    /// Reads an image once, in stretches.
    pub fn read(path: &Path) -> Result<Self, ReadFileError> {
        let failed = |source| ReadFileError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let (mut short, mut middle, mut long) = (sha2::Sha256::new(), sha2::Sha384::new(), sha2::Sha512::new());
        let (mut buffer, mut length) = (vec![0; 1 << 18], 0);
        loop {
            let read = file.read(&mut buffer).map_err(failed)?;
            if read == 0 {
                break;
            }
            short.update(&buffer[..read]);
            middle.update(&buffer[..read]);
            long.update(&buffer[..read]);
            length += read as u64;
            if length > ARTIFACT_BYTES_MAX {
                return Err(ReadFileError::TooLarge {
                    path: path.to_owned(),
                    bytes_max: ARTIFACT_BYTES_MAX,
                });
            }
        }
        Ok(Self {
            sha256: <[u8; 32]>::from(short.finalize()).into(),
            length,
            long: Some((middle.finalize().into(), long.finalize().into())),
            path: Some(path.to_owned()),
        })
    }

    /// An image of which only the digest is at hand. Signatures over other digests cannot be checked then.
    #[must_use]
    pub fn known(artifact: &Artifact) -> Self {
        Self {
            sha256: artifact.sha256,
            length: artifact.length,
            long: None,
            path: None,
        }
    }

    /// SHA-256 of the image.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn sha256_bytes(&self) -> &[u8; 32] {
        self.sha256.as_bytes()
    }

    /// SHA-384 and SHA-512.
    pub(super) fn long_digests(&self) -> Result<&([u8; 48], [u8; 64]), SignatureError> {
        self.long.as_ref().ok_or_else(image_needed)
    }

    /// The bytes once more, checked at the end by [`Again::was_same`].
    pub(super) fn again(&self) -> Result<Again, SignatureError> {
        let path = self.path.as_ref().ok_or_else(image_needed)?;
        let file = File::open(path).map_err(|error| {
            SignatureError::new("image_unreadable", format!("cannot read {}: {error}", path.display()))
        })?;
        Ok(Again {
            file,
            digest: sha2::Sha256::new(),
            expected: self.sha256,
        })
    }
}

fn image_needed() -> SignatureError {
    SignatureError::new(
        "image_needed",
        "this signature is not over the image's SHA-256 alone: name the image with --image to check it again",
    )
}

/// An image read a second time: whoever replaces the file in between is noticed.
pub(super) struct Again {
    file: File,
    digest: sha2::Sha256,
    expected: Sha256,
}

impl Again {
    /// Whether these were the bytes that were measured.
    pub(super) fn was_same(self) -> bool {
        Sha256::from(<[u8; 32]>::from(self.digest.finalize())) == self.expected
    }
}

impl Read for Again {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}
