//! Taking out of what was said what nobody but the BMC and its node may know.
//!
//! By name first: whatever stands under a name that secrets have goes, whatever it is. Then by value: the account's password and
//! every session's key, wherever they stand; the user's name where it stands as a word; and which session a link names.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

/// What stands in place of a secret.
const REMOVED: &str = "(removed)";
const USER: &str = "(user)";
const SESSION: &str = "(session)";
/// Parts of names that secrets have, in small letters.
const NAMES: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "sessionkey",
    "session_key",
    "privatekey",
    "private_key",
    "apikey",
    "username",
    "user_name",
];
/// Where the node's image is to be had: its address is the node's, and another one in a replay.
const IMAGE_URI: &str = "ImageURI";
const IMAGE: &str = "(image)";
/// Links to sessions, up to the session's name.
const SESSIONS: &str = "/Sessions/";
/// Session keys remembered: more than one process opens.
const TOKENS_MAX: usize = 256;

/// The secrets of one BMC, so that they can be recognised.
#[derive(Default)]
pub(in crate::redfish) struct Redaction {
    user: String,
    secrets: Mutex<BTreeSet<String>>,
}

impl std::fmt::Debug for Redaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redaction")
    }
}

impl Redaction {
    pub(in crate::redfish) fn new(user: &str, password: &str) -> Self {
        let redaction = Self {
            user: user.to_owned(),
            ..Self::default()
        };
        redaction.add(password);
        redaction
    }

    /// One more secret to take out from here on.
    pub(in crate::redfish) fn add(&self, secret: &str) {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        if !secret.is_empty() && secrets.len() < TOKENS_MAX {
            secrets.insert(secret.to_owned());
        }
    }

    pub(in crate::redfish) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        {
            let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
            // The longest first: one may be a part of another.
            let mut secrets: Vec<&String> = secrets.iter().collect();
            secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
            for secret in secrets {
                if text.contains(secret.as_str()) {
                    text = text.replace(secret.as_str(), REMOVED);
                }
            }
        }
        without_session(&without_word(&text, &self.user))
    }

    pub(in crate::redfish) fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => self.text(&text).into(),
            Value::Array(values) => values.into_iter().map(|value| self.value(value)).collect(),
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| {
                    let kept = match value {
                        // Whether there is one is no secret.
                        Value::Null | Value::Bool(_) => value,
                        _ if is_secret(&name) => REMOVED.into(),
                        _ if name == IMAGE_URI => IMAGE.into(),
                        value => self.value(value),
                    };
                    (self.text(&name), kept)
                });
                Value::Object(fields.collect())
            }
            other => other,
        }
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    NAMES.iter().any(|part| name.contains(part))
}

/// A text without a word in it; a part of a longer word stays, for `admin` is one of `Administrator`.
fn without_word(text: &str, word: &str) -> String {
    if word.is_empty() {
        return text.to_owned();
    }
    let is_within = |c: char| c.is_alphanumeric() || c == '_';
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(word) {
        let after = &rest[at + word.len()..];
        let before = kept.chars().next_back().filter(|_| at == 0);
        let before = rest[..at].chars().next_back().or(before);
        let is_word = !before.is_some_and(is_within) && !after.starts_with(is_within);
        kept.push_str(&rest[..at]);
        kept.push_str(if is_word { USER } else { word });
        rest = after;
    }
    kept.push_str(rest);
    kept
}

/// Some BMCs name a session by its key or its user.
fn without_session(text: &str) -> String {
    let Some(at) = text.find(SESSIONS) else {
        return text.to_owned();
    };
    let (head, session) = text.split_at(at + SESSIONS.len());
    let end = session.find(['/', '?', '#', '"', ' ']).unwrap_or(session.len());
    match end {
        0 => text.to_owned(),
        _ => format!("{head}{SESSION}{}", &session[end..]),
    }
}
