//! API keys: `fmk_<id>_<secret>`, of which only a digest of the secret is stored.
//!
//! Invariants: a secret is shown once; a key is good for at most [`DAYS_MAX`] days without another secret, and the secret before
//! for at most [`GRACE_MAX`] beside the new one; what was revoked stays so.

use std::time::Duration;

use firmesh_protocol::{
    api::{ApiKeyView, Grant, Limits, NewApiKey, Role},
    ids::{DeviceId, Sha256},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use super::{
    Refusal,
    identity::{Identity, Means, check_limits},
};
use crate::{
    authority::new_token,
    store::{RowError, Store, StoreError, Write},
};

/// How every key begins, so that scanners for leaked secrets know it.
pub(crate) const PREFIX: &str = "fmk_";

/// The most keys: a device may have one.
const KEYS_MAX: i64 = 1_000_000;

/// How long a secret is good for, if nobody says otherwise (S2-SEC-15).
const DAYS: u32 = 90;

/// The longest.
const DAYS_MAX: u32 = 366;

/// How long the old secret stays good beside a new one, if nobody says otherwise: a day to carry it to where it is used.
const GRACE: u32 = 86_400;

/// The longest.
const GRACE_MAX: u32 = 7 * 86_400;

const NAME_BYTES_MAX: usize = 100;
const ID_BYTES: usize = 12;

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApiKey {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) limits: Limits,
    pub(crate) device: Option<DeviceId>,
    pub(crate) created: WallTime,
    pub(crate) created_by: String,
    pub(crate) days: u32,
    /// Digest of the secret.
    secret: Sha256,
    pub(crate) rotated: WallTime,
    pub(crate) expires: WallTime,
    /// The secret before, and until when it is good.
    previous: Option<(Sha256, WallTime)>,
    pub(crate) revoked: Option<WallTime>,
}

/// What became of a key, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyChange {
    Made,
    Rotated,
    Revoked,
}

impl KeyChange {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Rotated => "rotated",
            Self::Revoked => "revoked",
        }
    }
}

/// Why a key is not made or rotated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("{0}")]
    Bad(String),
    #[error("there are {KEYS_MAX} API keys, no more are kept")]
    Full,
    #[error("the key {0} was revoked: make another one")]
    Revoked(String),
    #[error("this machine gives no randomness")]
    NoRandomness(#[from] getrandom::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ApiKey {
    /// A key to be, with its text.
    pub(crate) fn new(new: NewApiKey, by: &str, now: WallTime) -> Result<(Self, String), KeyError> {
        let is_plain = !new.name.chars().any(char::is_control) && new.name.trim() == new.name;
        if !is_plain || !(1..=NAME_BYTES_MAX).contains(&new.name.len()) {
            return Err(KeyError::Bad(format!(
                "name must be 1 to {NAME_BYTES_MAX} printable characters that say whose the key is"
            )));
        }
        if (new.role == Role::Device) != new.device.is_some() {
            return Err(KeyError::Bad(
                "a key of the role device names the device that it is for, and no other key does".to_owned(),
            ));
        }
        check_limits(&new.limits).map_err(|problem| KeyError::Bad(format!("limits: {problem}")))?;
        let days = new.days.unwrap_or(DAYS);
        if !(1..=DAYS_MAX).contains(&days) {
            return Err(KeyError::Bad(format!("days is {days}, it must be 1 to {DAYS_MAX}")));
        }
        let (id, secret) = (new_token()?[..2 * ID_BYTES].to_owned(), new_token()?);
        let text = format!("{PREFIX}{id}_{secret}");
        let key = Self {
            id,
            name: new.name,
            role: new.role,
            limits: new.limits,
            device: new.device,
            created: now,
            created_by: by.to_owned(),
            days,
            secret: Sha256::of(secret.as_bytes()),
            rotated: now,
            expires: now + lifetime(days),
            previous: None,
            revoked: None,
        };
        Ok((key, text))
    }

    /// The same key with another secret, and its text.
    pub(crate) fn rotated(mut self, grace_seconds: Option<u32>, now: WallTime) -> Result<(Self, String), KeyError> {
        if self.revoked.is_some() {
            return Err(KeyError::Revoked(self.id));
        }
        let grace = grace_seconds.unwrap_or(GRACE);
        if grace > GRACE_MAX {
            return Err(KeyError::Bad(format!(
                "grace_seconds is {grace}, at most a week ({GRACE_MAX}) is allowed"
            )));
        }
        let secret = new_token()?;
        let until = (now + Duration::from_secs(grace.into())).min(self.expires);
        self.previous = Some((self.secret, until));
        self.secret = Sha256::of(secret.as_bytes());
        self.rotated = now;
        self.expires = now + lifetime(self.days);
        let text = format!("{PREFIX}{}_{secret}", self.id);
        Ok((self, text))
    }

    /// Whether a secret is this key's, now; until when it will be.
    pub(crate) fn is_proven_by(&self, secret: &str, now: WallTime) -> Result<WallTime, Refusal> {
        // Digests are compared, so the time it takes tells nothing about the secret.
        let digest = Sha256::of(secret.as_bytes());
        let is_previous = self.previous.is_some_and(|(previous, _)| previous == digest);
        if digest != self.secret && !is_previous {
            return Err(Refusal::UnknownKey);
        }
        self.is_good(now)?;
        match self.previous {
            Some((_, until)) if is_previous && now > until => Err(Refusal::RotatedKey(self.id.clone())),
            Some((_, until)) if is_previous => Ok(until.min(self.expires)),
            _ => Ok(self.expires),
        }
    }

    /// Whether a proof is the key with its present secret: neither the one before, nor a token for it.
    pub(crate) fn is_present(&self, proof: &str) -> bool {
        parts(proof).is_some_and(|(id, secret)| id == self.id && Sha256::of(secret.as_bytes()) == self.secret)
    }

    /// Whether the key is good at all, now.
    pub(crate) fn is_good(&self, now: WallTime) -> Result<(), Refusal> {
        if self.revoked.is_some() {
            return Err(Refusal::RevokedKey(self.id.clone()));
        }
        match now > self.expires {
            true => Err(Refusal::ExpiredKey(self.id.clone())),
            false => Ok(()),
        }
    }

    /// Who shows it.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            name: format!("key:{}", self.id),
            means: Means::ApiKey,
            grants: vec![Grant {
                role: self.role,
                limits: self.limits.clone(),
            }],
            groups: std::collections::BTreeSet::new(),
            device: self.device.clone(),
            expires: Some(self.expires),
        }
    }

    pub(crate) fn view(&self) -> ApiKeyView {
        ApiKeyView {
            id: self.id.clone(),
            name: self.name.clone(),
            role: self.role,
            limits: self.limits.clone(),
            device: self.device.clone(),
            created: self.created,
            created_by: self.created_by.clone(),
            rotated: self.rotated,
            expires: self.expires,
            previous_until: self.previous.map(|(_, until)| until),
            revoked: self.revoked,
        }
    }
}

fn lifetime(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

/// The id and the secret in a key's text.
pub(crate) fn parts(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    (is_id(id) && secret.len() == 64).then_some((id, secret))
}

/// Whether this can be a key's id.
pub(crate) fn is_id(id: &str) -> bool {
    id.len() == 2 * ID_BYTES && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Store {
    /// A key by its id.
    pub(crate) async fn api_key(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        let query = sqlx::query_as("SELECT record FROM api_keys WHERE id = $1").bind(id);
        let row: Option<(String,)> = query.fetch_optional(self.reader()).await.map_err(unread)?;
        row.map(key).transpose().map_err(unreadable)
    }

    /// Keys after `after`, in the order of their ids.
    pub(crate) async fn api_keys_after(&self, after: &str, count: usize) -> Result<Vec<ApiKey>, StoreError> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let query = sqlx::query_as("SELECT record FROM api_keys WHERE id > $1 ORDER BY id LIMIT $2");
        let rows: Vec<(String,)> = query
            .bind(after)
            .bind(count)
            .fetch_all(self.reader())
            .await
            .map_err(unread)?;
        rows.into_iter().map(key).collect::<Result<_, _>>().map_err(unreadable)
    }

    /// Stores a key together with what the audit log says of it.
    pub(crate) async fn put_api_key(
        &self,
        key: ApiKey,
        change: KeyChange,
        by: &str,
        now: WallTime,
    ) -> Result<(), KeyError> {
        if change == KeyChange::Made {
            let query = sqlx::query_as("SELECT COUNT(*) FROM api_keys");
            let (count,): (i64,) = query.fetch_one(self.reader()).await.map_err(unread)?;
            if count >= KEYS_MAX {
                return Err(KeyError::Full);
            }
        }
        let write = Write::ApiKey {
            key: Box::new(key),
            change,
            by: by.to_owned(),
        };
        Ok(self.commit(vec![write], now).await?)
    }
}

fn key((text,): (String,)) -> Result<ApiKey, RowError> {
    Ok(serde_json::from_str(&text)?)
}

fn unread(source: sqlx::Error) -> StoreError {
    StoreError::Access {
        operation: "read",
        source,
    }
}

fn unreadable(source: RowError) -> StoreError {
    StoreError::Row {
        table: "api_keys",
        source,
    }
}
