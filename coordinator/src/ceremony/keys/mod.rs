//! Keys of people: in files, encrypted or not, in the environment, and in tokens.
//!
//! Wherever a key is asked for, a reference names it: `PATH` or `file:PATH`, `env:NAME`, `pkcs11:...` (RFC 7512); a
//! public key also its 64 hexadecimal digits.

mod encrypted;
mod files;
mod secrets;
mod token;
mod uri;

use std::{convert::Infallible, env, fmt, path::PathBuf, str::FromStr};

use firmesh_protocol::trust::{KeyError, PublicKey, SecretKey};
use zeroize::Zeroizing;

pub use encrypted::EncryptionError;
pub use files::{
    KeyFileError, generate_key, is_encrypted_file, load_public_key, load_secret, load_secret_key, unlock_secret_key,
    write_encrypted_key, write_key, write_public_key,
};
pub use secrets::{Prompt, SecretError, Secrets};
pub use token::{TokenError, TokenKey};
pub use uri::{TokenUri, UriError};

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRef {
    /// In a file.
    File(PathBuf),
    /// In an environment variable, as PKCS#8 PEM.
    Environment(String),
    /// In a token.
    Token(String),
}

impl FromStr for KeyRef {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.split_once(':') {
            Some(("env", name)) => Self::Environment(name.to_owned()),
            Some(("pkcs11", rest)) => Self::Token(rest.to_owned()),
            Some(("file", path)) => Self::File(path.into()),
            _ => Self::File(text.into()),
        })
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "env:{name}"),
            Self::Token(rest) => write!(f, "pkcs11:{rest}"),
        }
    }
}

/// Why a key reference did not lead to a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyRefError {
    /// A key file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// An address.
    #[error("the address of the key is not understood")]
    Uri(#[from] UriError),
    /// A token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No such variable.
    #[error("the environment has no {0} (or it is not text)")]
    NoVariable(String),
    /// The variable holds something else.
    #[error("the environment variable {name} does not hold a usable key")]
    Variable {
        /// The variable.
        name: String,
        /// Why.
        source: KeyError,
    },
    /// The variable holds an encrypted key that does not open.
    #[error("the key in the environment variable {name} cannot be opened")]
    Locked {
        /// The variable.
        name: String,
        /// Why.
        source: EncryptionError,
    },
    /// No passphrase.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A key cannot be made there.
    #[error("a new key goes into a file or a token, not into {0}")]
    NotAPlace(KeyRef),
}

/// Something that signs, wherever its secret is.
#[derive(Debug)]
pub enum SigningKey {
    /// The secret is in memory.
    Here(SecretKey),
    /// A token keeps it.
    Token(TokenKey),
}

/// What signs for one key.
pub trait Signer {
    /// The public half.
    fn public_key(&self) -> PublicKey;
    /// Signs exactly these bytes.
    fn signature(&self, bytes: &[u8]) -> Result<[u8; 64], TokenError>;
}

impl Signer for SecretKey {
    fn public_key(&self) -> PublicKey {
        self.public()
    }

    fn signature(&self, bytes: &[u8]) -> Result<[u8; 64], TokenError> {
        Ok(self.sign(bytes))
    }
}

impl Signer for SigningKey {
    fn public_key(&self) -> PublicKey {
        match self {
            Self::Here(key) => key.public(),
            Self::Token(key) => key.public(),
        }
    }

    fn signature(&self, bytes: &[u8]) -> Result<[u8; 64], TokenError> {
        match self {
            Self::Here(key) => Ok(key.sign(bytes)),
            Self::Token(key) => key.sign(bytes),
        }
    }
}

impl KeyRef {
    /// The key, ready to sign.
    pub fn open(&self, secrets: &Secrets) -> Result<SigningKey, KeyRefError> {
        match self {
            Self::File(path) => Ok(SigningKey::Here(unlock_secret_key(path, secrets)?)),
            Self::Environment(name) => Ok(SigningKey::Here(from_environment(name, secrets)?)),
            Self::Token(rest) => Ok(SigningKey::Token(TokenKey::open(&TokenUri::parse(rest)?, secrets)?)),
        }
    }

    /// Only the public half: of a public or a secret key, or of a token, which needs no PIN for it.
    pub fn public(&self, secrets: &Secrets) -> Result<PublicKey, KeyRefError> {
        match self {
            Self::File(path) => match (path.to_str().and_then(|text| text.parse().ok()), load_public_key(path)) {
                (Some(key), Err(_)) => Ok(key),
                (_, Ok(key)) => Ok(key),
                (None, Err(KeyFileError::Malformed { .. })) if is_encrypted_file(path).is_some() => {
                    Ok(unlock_secret_key(path, secrets)?.public())
                }
                (None, Err(error)) => Err(error.into()),
            },
            Self::Environment(name) => match variable(name)?.trim().parse() {
                Ok(key) => Ok(key),
                Err(_) => Ok(from_environment(name, secrets)?.public()),
            },
            Self::Token(rest) => Ok(token::public_key(&TokenUri::parse(rest)?)?),
        }
    }

    /// Makes a new key in a token.
    pub fn generate_in_token(&self, secrets: &Secrets) -> Result<PublicKey, KeyRefError> {
        match self {
            Self::Token(rest) => Ok(TokenKey::generate(&TokenUri::parse(rest)?, secrets)?.public()),
            Self::File(_) | Self::Environment(_) => Err(KeyRefError::NotAPlace(self.clone())),
        }
    }
}

fn variable(name: &str) -> Result<Zeroizing<String>, KeyRefError> {
    env::var(name)
        .map(Zeroizing::new)
        .map_err(|_| KeyRefError::NoVariable(name.to_owned()))
}

fn from_environment(name: &str, secrets: &Secrets) -> Result<SecretKey, KeyRefError> {
    let text = variable(name)?;
    if encrypted::is_encrypted(&text) {
        let passphrase = secrets.passphrase(&format!("env:{name}"))?;
        return encrypted::decrypt(&text, &passphrase).map_err(|source| KeyRefError::Locked {
            name: name.to_owned(),
            source,
        });
    }
    SecretKey::from_pem(&text).map_err(|source| KeyRefError::Variable {
        name: name.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> KeyRef {
        let Ok(reference) = text.parse();
        reference
    }

    #[test]
    fn a_reference_says_where_the_key_is() {
        assert_eq!(reference("keys/root-1"), KeyRef::File("keys/root-1".into()));
        assert_eq!(reference("file:keys/root-1"), KeyRef::File("keys/root-1".into()));
        assert_eq!(reference("env:ROOT_KEY"), KeyRef::Environment("ROOT_KEY".to_owned()));
        let token = reference("pkcs11:object=a");
        assert_eq!(
            (token.to_string().as_str(), token),
            ("pkcs11:object=a", KeyRef::Token("object=a".to_owned()))
        );
    }

    #[test]
    fn an_encrypted_file_opens_with_the_passphrase_and_its_public_half_without() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = (folder.path().join("release-1"), generate_key().unwrap());
        let public = write_encrypted_key(&path, &key, "correct horse", false).unwrap();
        let secrets = Secrets {
            passphrase: Some(Zeroizing::new("correct horse".to_owned())),
            ..Secrets::none()
        };
        let at = |path: &std::path::Path| KeyRef::File(path.to_owned());
        assert_eq!(at(&path).open(&secrets).unwrap().public_key(), key.public());
        assert_eq!(at(&public).public(&Secrets::none()).unwrap(), key.public());
        let error = at(&path).open(&Secrets::none()).unwrap_err().to_string();
        assert!(error.contains("FIRMESH_PASSPHRASE"), "{error}");
        assert_eq!(is_encrypted_file(&path), Some(true));
        assert_eq!(is_encrypted_file(&public), None);
        let typed = reference(&key.public().to_string());
        assert_eq!(typed.public(&Secrets::none()).unwrap(), key.public());
    }

    #[test]
    fn an_absent_variable_is_named() {
        let error = reference("env:FIRMESH_NO_SUCH_KEY").open(&Secrets::none()).unwrap_err();
        assert!(error.to_string().contains("FIRMESH_NO_SUCH_KEY"), "{error}");
    }
}
