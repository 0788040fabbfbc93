//! Key files: PKCS#8 PEM for the secret, encrypted or not, and one line of hexadecimal in `<name>.pub` for the public half.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use firmesh_protocol::trust::{KeyError, PublicKey, SecretKey};

use zeroize::Zeroizing;

use super::{
    super::files::{ReadFileError, WriteFileError, read_bounded, write, write_secret},
    encrypted::{self, EncryptionError},
    secrets::{SecretError, Secrets},
};

/// A key or token file is a few hundred bytes; anything much larger is another file.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// Why a key could not be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The system gave no randomness.
    #[error("the system gave no randomness for a new key")]
    NoRandomness(#[source] getrandom::Error),
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] WriteFileError),
    /// The file could not be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// A secret that others could have read.
    #[error("{} can be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file does not hold a key.
    #[error("{} does not hold a usable key", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// The file is encrypted, and cannot be opened.
    #[error("{} cannot be opened", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// Why.
        source: EncryptionError,
    },
    /// A new key could not be encrypted.
    #[error("the new key cannot be encrypted")]
    NotEncrypted(#[source] EncryptionError),
    /// There is no passphrase to be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The file is not text.
    #[error("{} is not text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

/// A new key from the system's randomness.
pub fn generate_key() -> Result<SecretKey, KeyFileError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(KeyFileError::NoRandomness)?;
    let key = SecretKey::from_seed(&seed);
    seed.fill(0);
    Ok(key)
}

/// Writes the secret to `path`, unencrypted, and the public half beside it, as `<path>.pub`. Returns the latter's path.
pub fn write_key(path: &Path, key: &SecretKey, force: bool) -> Result<PathBuf, KeyFileError> {
    write_pem(path, key, &key.to_pem(), force)
}

/// The same, with the secret encrypted under a passphrase.
pub fn write_encrypted_key(
    path: &Path,
    key: &SecretKey,
    passphrase: &str,
    force: bool,
) -> Result<PathBuf, KeyFileError> {
    let pem = encrypted::encrypt(key, passphrase).map_err(KeyFileError::NotEncrypted)?;
    write_pem(path, key, &pem, force)
}

fn write_pem(path: &Path, key: &SecretKey, pem: &str, force: bool) -> Result<PathBuf, KeyFileError> {
    write_secret(path, pem.as_bytes(), force)?;
    let public = path.with_added_extension("pub");
    write_public_key(&public, &key.public(), force)?;
    Ok(public)
}

/// Writes a public key: one line of hexadecimal.
pub fn write_public_key(path: &Path, key: &PublicKey, force: bool) -> Result<(), KeyFileError> {
    Ok(write(path, format!("{key}\n").as_bytes(), 0o644, force)?)
}

/// Reads an unencrypted secret key that only its owner can read.
pub fn load_secret_key(path: &Path) -> Result<SecretKey, KeyFileError> {
    unlock_secret_key(path, &Secrets::none())
}

/// Reads a secret key that only its owner can read; `secrets` open it if it is encrypted.
pub fn unlock_secret_key(path: &Path, secrets: &Secrets) -> Result<SecretKey, KeyFileError> {
    let text = Zeroizing::new(load_secret(path)?);
    if encrypted::is_encrypted(&text) {
        let passphrase = secrets.passphrase(&path.display().to_string())?;
        return encrypted::decrypt(&text, &passphrase).map_err(|source| KeyFileError::Encrypted {
            path: path.to_owned(),
            source,
        });
    }
    SecretKey::from_pem(&text).map_err(|source| KeyFileError::Malformed {
        path: path.to_owned(),
        source,
    })
}

/// Whether the file holds an encrypted secret key; `None` if it holds no secret key at all.
#[must_use]
pub fn is_encrypted_file(path: &Path) -> Option<bool> {
    let text = Zeroizing::new(String::from_utf8(read_bounded(path, KEY_FILE_BYTES_MAX).ok()?).ok()?);
    match encrypted::is_encrypted(&text) {
        true => Some(true),
        false => text.contains("-----BEGIN PRIVATE KEY-----").then_some(false),
    }
}

/// Reads a public key: one line of hexadecimal.
pub fn load_public_key(path: &Path) -> Result<PublicKey, KeyFileError> {
    let text = text(path, read_bounded(path, KEY_FILE_BYTES_MAX)?)?;
    text.trim().parse().map_err(|source| KeyFileError::Malformed {
        path: path.to_owned(),
        source,
    })
}

/// Reads a text that only its owner can read: a key, a token.
pub fn load_secret(path: &Path) -> Result<String, KeyFileError> {
    let failed = |source| ReadFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    text(path, read_bounded(path, KEY_FILE_BYTES_MAX)?)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, KeyFileError> {
    String::from_utf8(bytes).map_err(|_| KeyFileError::NotText { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_key_reads_back_and_an_exposed_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root-1");
        let key = generate_key().unwrap();
        let public = write_key(&path, &key, false).unwrap();
        assert_eq!(public, folder.path().join("root-1.pub"));
        assert_eq!(load_secret_key(&path).unwrap().public(), key.public());
        assert_eq!(load_public_key(&public).unwrap(), key.public());
        assert!(matches!(
            write_key(&path, &key, false),
            Err(KeyFileError::Write(WriteFileError::Exists { .. }))
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_secret_key(&path).unwrap_err();
        assert!(error.to_string().contains("mode 0640"), "{error}");
        assert!(matches!(load_public_key(&path), Err(KeyFileError::Malformed { .. })));
    }
}
