//! Where passphrases and PINs come from: the environment, a file, or a person at the terminal. Never the command line,
//! which every user of the machine can read.

use std::{fmt, io};

use zeroize::Zeroizing;

/// Asks a person, without showing what he types. The argument is the question.
pub type Prompt = fn(&str) -> io::Result<String>;

/// The longest passphrase or PIN.
const SECRET_BYTES_MAX: usize = 1024;

/// Why there is no passphrase or PIN.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Nobody to ask, and nothing set.
    #[error(
        "{what} needs a {kind}: run this at a terminal, or set {variable} or {variable}_FILE (a file only you can read)"
    )]
    Absent {
        /// What is locked.
        what: String,
        /// Passphrase or PIN.
        kind: &'static str,
        /// The environment variable.
        variable: &'static str,
    },
    /// The terminal failed.
    #[error("the {kind} cannot be read from the terminal")]
    Terminal {
        /// Passphrase or PIN.
        kind: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An empty one, or an absurdly long one.
    #[error("a {kind} has 1 to {SECRET_BYTES_MAX} bytes, this one has {length}")]
    Length {
        /// Passphrase or PIN.
        kind: &'static str,
        /// Its length.
        length: usize,
    },
    /// Typed differently the second time.
    #[error("the two passphrases differ: nothing was written")]
    Mismatch,
}

/// What opens locked keys.
#[derive(Clone, Default)]
pub struct Secrets {
    /// The passphrase of key files.
    pub passphrase: Option<Zeroizing<String>>,
    /// The PIN of tokens.
    pub pin: Option<Zeroizing<String>>,
    /// Asks a person for what is not set.
    pub prompt: Option<Prompt>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_set = |secret: &Option<_>| if secret.is_some() { "set" } else { "not set" };
        write!(
            f,
            "Secrets(passphrase {}, PIN {})",
            is_set(&self.passphrase),
            is_set(&self.pin)
        )
    }
}

impl Secrets {
    /// Opens nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The passphrase of `what`.
    pub fn passphrase(&self, what: &str) -> Result<Zeroizing<String>, SecretError> {
        self.get(self.passphrase.as_ref(), what, "passphrase", "FIRMESH_PASSPHRASE")
    }

    /// The PIN of `what`.
    pub fn pin(&self, what: &str) -> Result<Zeroizing<String>, SecretError> {
        self.get(self.pin.as_ref(), what, "PIN", "FIRMESH_PIN")
    }

    /// A passphrase for something new, asked for twice at a terminal.
    pub fn new_passphrase(&self, what: &str) -> Result<Zeroizing<String>, SecretError> {
        let first = self.get(self.passphrase.as_ref(), what, "new passphrase", "FIRMESH_PASSPHRASE")?;
        match (&self.passphrase, self.prompt) {
            (None, Some(prompt)) if *ask(prompt, "The same again", "passphrase")? != *first => {
                Err(SecretError::Mismatch)
            }
            _ => Ok(first),
        }
    }

    fn get(
        &self,
        set: Option<&Zeroizing<String>>,
        what: &str,
        kind: &'static str,
        variable: &'static str,
    ) -> Result<Zeroizing<String>, SecretError> {
        let secret = match (set, self.prompt) {
            (Some(secret), _) => secret.clone(),
            (None, Some(prompt)) => ask(prompt, &format!("The {kind} of {what}"), kind)?,
            (None, None) => {
                return Err(SecretError::Absent {
                    what: what.to_owned(),
                    kind,
                    variable,
                });
            }
        };
        match secret.len() {
            1..=SECRET_BYTES_MAX => Ok(secret),
            length => Err(SecretError::Length { kind, length }),
        }
    }
}

fn ask(prompt: Prompt, question: &str, kind: &'static str) -> Result<Zeroizing<String>, SecretError> {
    let answer = prompt(&format!("{question}: ")).map_err(|source| SecretError::Terminal { kind, source })?;
    Ok(Zeroizing::new(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_taken_asked_for_or_missed_and_never_printed() {
        let set = Secrets {
            passphrase: Some(Zeroizing::new("open sesame".to_owned())),
            ..Secrets::none()
        };
        assert_eq!(*set.passphrase("root-1").unwrap(), "open sesame");
        assert!(!format!("{set:?}").contains("sesame"));
        let error = set.pin("the token").unwrap_err().to_string();
        assert!(
            error.contains("the token needs a PIN") && error.contains("FIRMESH_PIN_FILE"),
            "{error}"
        );
        let asking = Secrets {
            prompt: Some(|question| Ok(question.to_owned())),
            ..Secrets::none()
        };
        assert_eq!(*asking.passphrase("root-1").unwrap(), "The passphrase of root-1: ");
        assert!(matches!(asking.new_passphrase("root-1"), Err(SecretError::Mismatch)));
        let empty = Secrets {
            prompt: Some(|_| Ok(String::new())),
            ..Secrets::none()
        };
        assert!(matches!(
            empty.passphrase("x"),
            Err(SecretError::Length { length: 0, .. })
        ));
    }
}
