//! Secret keys at rest under a passphrase: PKCS#8 `ENCRYPTED PRIVATE KEY`, PBES2 with scrypt and AES-256-CBC, so that
//! `openssl pkey` reads them and we read what it writes (PBKDF2 too).

use std::ops::Deref;

use firmesh_protocol::trust::{KeyError, SecretKey};
use pkcs8::{
    EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, SecretDocument,
    der::{Decode as _, pem::LineEnding},
    pkcs5::{
        EncryptionScheme,
        pbes2::{EncryptionScheme as Cipher, Kdf, Parameters, Salt, ScryptParams},
    },
};

const LABEL: &str = "ENCRYPTED PRIVATE KEY";

/// scrypt with 16 MiB and five passes: the strength that OWASP's password storage guide asks for, in a shape whose memory
/// OpenSSL accepts by default (32 MiB).
const COST: u64 = 1 << 14;
const BLOCK_SIZE: u16 = 8;
const PASSES: u16 = 5;

/// What opening a key may cost at most, whatever its file says: 1 GiB of memory, ten million rounds.
const SCRYPT_BYTES_MAX: u64 = 1 << 30;
const SCRYPT_WORK_MAX: u64 = 1 << 34;
const PBKDF2_ROUNDS_MAX: u32 = 10_000_000;

/// Why a key could not be encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// The system gave no randomness.
    #[error("the system gave no randomness for the salt")]
    NoRandomness(#[source] getrandom::Error),
    /// Not the form that it says to be.
    #[error("not an encrypted key in PKCS#8 PEM: {0}")]
    Malformed(String),
    /// The encryption is none we can open.
    #[error("encrypted in a way that is not supported ({0}): use PBES2 with scrypt or PBKDF2 and AES-CBC or AES-GCM")]
    Unsupported(String),
    /// Opening it would cost more than any honest key does.
    #[error("opening it would take absurdly much memory or time: this is not a key file that somebody made in earnest")]
    TooCostly,
    /// Wrong passphrase, or damaged.
    #[error("the passphrase is wrong (or the file is damaged)")]
    WrongPassphrase,
    /// It holds another kind of key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Whether a text is an encrypted key.
pub(super) fn is_encrypted(text: &str) -> bool {
    text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
}

/// Encrypts a key; PEM.
pub(super) fn encrypt(
    key: &SecretKey,
    passphrase: &str,
) -> Result<impl Deref<Target = String> + use<>, EncryptionError> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    getrandom::fill(&mut salt)
        .and_then(|()| getrandom::fill(&mut iv))
        .map_err(EncryptionError::NoRandomness)?;
    let malformed = |error: &dyn std::fmt::Display| EncryptionError::Malformed(error.to_string());
    let parameters = Parameters {
        kdf: Kdf::Scrypt(ScryptParams {
            salt: Salt::new(salt).map_err(|error| malformed(&error))?,
            cost_parameter: COST,
            block_size: BLOCK_SIZE,
            parallelization: PASSES,
            key_length: None,
        }),
        encryption: Cipher::Aes256Cbc { iv },
    };
    let (_, plain) = SecretDocument::from_pem(&key.to_pem()).map_err(|error| malformed(&error))?;
    let info = PrivateKeyInfoRef::from_der(plain.as_bytes()).map_err(|error| malformed(&error))?;
    let sealed = info
        .encrypt_with_params(parameters, passphrase.as_bytes())
        .map_err(|error| malformed(&error))?;
    sealed.to_pem(LABEL, LineEnding::LF).map_err(|error| malformed(&error))
}

/// Opens a key.
pub(super) fn decrypt(pem: &str, passphrase: &str) -> Result<SecretKey, EncryptionError> {
    let malformed = |error: &dyn std::fmt::Display| EncryptionError::Malformed(error.to_string());
    let (label, sealed) = SecretDocument::from_pem(pem.trim()).map_err(|error| malformed(&error))?;
    if label != LABEL {
        return Err(EncryptionError::Malformed(format!("it is labelled {label:?}")));
    }
    let info = EncryptedPrivateKeyInfoRef::from_der(sealed.as_bytes()).map_err(|error| malformed(&error))?;
    check_cost(&info.encryption_algorithm)?;
    let plain = info.decrypt(passphrase.as_bytes()).map_err(|error| match error {
        pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::UnsupportedAlgorithm { oid }) => {
            EncryptionError::Unsupported(oid.to_string())
        }
        _ => EncryptionError::WrongPassphrase,
    })?;
    // A wrong passphrase leaves well-formed padding once in 256 times, and no well-formed key.
    let pem = plain
        .to_pem("PRIVATE KEY", LineEnding::LF)
        .map_err(|_| EncryptionError::WrongPassphrase)?;
    if PrivateKeyInfoRef::from_der(plain.as_bytes()).is_err() {
        return Err(EncryptionError::WrongPassphrase);
    }
    Ok(SecretKey::from_pem(&pem)?)
}

fn check_cost(scheme: &EncryptionScheme) -> Result<(), EncryptionError> {
    let EncryptionScheme::Pbes2(parameters) = scheme else {
        return Err(EncryptionError::Unsupported("PBES1".to_owned()));
    };
    let affordable = match &parameters.kdf {
        Kdf::Pbkdf2(parameters) => parameters.iteration_count <= PBKDF2_ROUNDS_MAX,
        Kdf::Scrypt(parameters) => {
            let (n, r, p) = (
                parameters.cost_parameter,
                u64::from(parameters.block_size),
                u64::from(parameters.parallelization),
            );
            let bytes = n.checked_mul(128 * r);
            let work = bytes.and_then(|bytes| bytes.checked_mul(p));
            bytes.is_some_and(|bytes| bytes <= SCRYPT_BYTES_MAX) && work.is_some_and(|work| work <= SCRYPT_WORK_MAX)
        }
        _ => return Err(EncryptionError::Unsupported("its key derivation".to_owned())),
    };
    affordable.then_some(()).ok_or(EncryptionError::TooCostly)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl genpkey -algorithm ed25519 | openssl pkcs8 -topk8 -passout pass:firmesh -v2 aes-256-cbc -v2prf hmacWithSHA256`.
    const BY_OPENSSL: &str = include_str!("../../../tests/golden/openssl_encrypted.pem");

    #[test]
    fn an_encrypted_key_opens_with_its_passphrase_only() {
        let key = SecretKey::from_seed(&[7; 32]);
        let pem = encrypt(&key, "correct horse").unwrap();
        assert!(is_encrypted(&pem) && !pem.contains("BEGIN PRIVATE KEY"));
        assert_eq!(decrypt(&pem, "correct horse").unwrap().public(), key.public());
        assert!(matches!(decrypt(&pem, "wrong"), Err(EncryptionError::WrongPassphrase)));
        let other = encrypt(&key, "correct horse").unwrap();
        assert_ne!(*pem, *other, "the salt is not random");
    }

    #[test]
    fn what_openssl_encrypted_opens_here() {
        let (pem, public) = BY_OPENSSL.split_once("public ").unwrap();
        assert_eq!(decrypt(pem, "firmesh").unwrap().public().to_string(), public.trim());
    }

    #[test]
    fn a_file_that_asks_for_absurd_work_is_refused_before_any_of_it() {
        let scrypt = |cost_parameter, block_size, parallelization| {
            EncryptionScheme::Pbes2(Parameters {
                kdf: Kdf::Scrypt(ScryptParams {
                    salt: Salt::new([0; 16]).unwrap(),
                    cost_parameter,
                    block_size,
                    parallelization,
                    key_length: None,
                }),
                encryption: Cipher::Aes256Cbc { iv: [0; 16] },
            })
        };
        assert!(check_cost(&scrypt(COST, BLOCK_SIZE, PASSES)).is_ok());
        assert!(check_cost(&scrypt(1 << 17, 8, 1)).is_ok());
        for (n, r, p) in [(1 << 24, 8, 1), (u64::MAX, u16::MAX, u16::MAX), (1 << 20, 8, u16::MAX)] {
            assert!(
                matches!(check_cost(&scrypt(n, r, p)), Err(EncryptionError::TooCostly)),
                "{n} {r} {p}"
            );
        }
        assert!(matches!(decrypt("hello", "x"), Err(EncryptionError::Malformed(_))));
    }
}
