//! Who may do what: how somebody proves who he is, and the policy that decides.
//!
//! Invariants: nothing is allowed that no policy allows; no secret is stored, logged or answered but once, when it is made.

mod config;
mod identity;
mod jws;
mod keys;
mod ldap;
mod oidc;
mod permission;
mod policy;
mod tokens;

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use firmesh_protocol::{
    api::{LoginMethods, TokenRequest},
    ids::Sha256,
    time::WallTime,
    trust::SecretKey,
};
use governor::{Quota, RateLimiter, clock::DefaultClock, state::keyed::HashMapStateStore};
use jsonwebtoken::dangerous::insecure_decode_claims;
use serde::Deserialize;

pub use config::{AccessConfig, AccessSettings, LdapConfig, LdapSearchConfig, MappingConfig, OidcConfig};
pub(crate) use identity::{Identity, Kind, Means, Places, Subject};
pub(crate) use keys::{ApiKey, KeyChange, KeyError, is_id};
pub use ldap::LdapSetupError;
pub use oidc::OidcError;
pub(crate) use permission::Permission;
pub(crate) use policy::Policy;
pub use policy::PolicyError;

use self::{ldap::Directory, oidc::Oidc, tokens::Tokens};
use crate::{
    authority::Authority,
    notify::SecretError,
    store::{Store, StoreError},
};

/// The longest proof that is looked at: a token with many groups.
const PROOF_BYTES_MAX: usize = 16 << 10;

/// Passwords that one may try for one name at once, and then one every six seconds.
const TRIES: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
const NEXT_TRY: Duration = Duration::from_secs(6);

/// Names are counted in so many places, so that a stranger who makes up names takes no memory.
const TRY_PLACES: u16 = 4_096;

/// Why access cannot be decided about.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The policy.
    #[error("the setting access.policy")]
    Policy(#[from] PolicyError),
    /// The identity provider.
    #[error("the setting access.oidc")]
    Oidc(#[from] OidcError),
    /// The directory.
    #[error("the setting access.ldap")]
    Ldap(#[from] LdapSetupError),
}

/// Why somebody is not who he says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it is neither an API key, nor a token, nor this coordinator's operator token")]
    Unknown,
    #[error("there is no such API key")]
    UnknownKey,
    #[error("the API key {0} was revoked")]
    RevokedKey(String),
    #[error("the API key {0} has expired: have it rotated (firmesh access key rotate)")]
    ExpiredKey(String),
    #[error("the API key {0} was rotated, and the time of its old secret is over: use the new one")]
    RotatedKey(String),
    #[error("the token is not good: {0}")]
    Token(String),
    #[error("the token is of the issuer {0:?}, which this coordinator does not know")]
    Issuer(String),
    #[error("the identity provider cannot be reached: try again, or use an API key")]
    ProviderSilent,
    #[error("the directory cannot be reached: try again, or use an API key")]
    DirectorySilent,
    #[error("the name or the password is wrong")]
    WrongPassword,
    #[error("too many passwords were tried for this name: wait a minute")]
    TooManyTries,
    #[error("this coordinator takes no passwords: log in with an API key or at the identity provider")]
    NoDirectory,
    #[error("this coordinator has no identity provider that gives codes: log in with an API key")]
    NoCodes,
    #[error("too many people log in at once: try again in a moment")]
    TooManyCodes,
    #[error("the identity provider did not take the code: {0}: log in again")]
    Code(String),
    #[error("the coordinator cannot read its own secret at the identity provider")]
    ClientSecret(#[source] SecretError),
    #[error("this machine gives no randomness")]
    NoRandomness(#[source] getrandom::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Everything that access is decided with.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) policy: Policy,
    pub(crate) settings: AccessSettings,
    tokens: Tokens,
    oidc: Option<Oidc>,
    directory: Option<Directory>,
    tries: Tries,
    /// Keys are changed one after the other.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

type Tries = RateLimiter<u16, HashMapStateStore<u16>, DefaultClock>;

impl Access {
    /// Reads policies. `fleet` names the issuer of tokens, `key` signs them.
    pub(crate) fn load(settings: AccessSettings, key: &SecretKey, fleet: &str) -> Result<Self, AccessError> {
        let quota = Quota::with_period(NEXT_TRY).expect("not zero").allow_burst(TRIES);
        Ok(Self {
            policy: Policy::load(settings.policy.as_deref())?,
            tokens: Tokens::new(key, format!("{fleet}:tokens"), settings.token_ttl),
            oidc: settings.oidc.clone().map(Oidc::new).transpose()?,
            directory: settings.ldap.clone().map(Directory::new).transpose()?,
            settings,
            tries: RateLimiter::hashmap_with_clock(quota, DefaultClock::default()),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// The public key of tokens.
    pub(crate) fn key_set(&self) -> serde_json::Value {
        self.tokens.key_set()
    }

    pub(crate) async fn methods(&self) -> LoginMethods {
        let oidc = match &self.oidc {
            Some(oidc) => Some(oidc.settings().view(oidc.authorization_endpoint().await)),
            None => None,
        };
        LoginMethods {
            passwords: self.directory.is_some(),
            oidc,
        }
    }

    /// Who shows this: the operators' token, an API key, a token of ours or of the identity provider.
    pub(crate) async fn identify(
        &self,
        proof: &str,
        authority: &Authority,
        store: &Store,
        now: WallTime,
    ) -> Result<Identity, Refusal> {
        if proof.len() > PROOF_BYTES_MAX {
            return Err(Refusal::Unknown);
        }
        if authority.is_operator_token(proof) {
            return Ok(Identity::bootstrap());
        }
        if proof.starts_with(keys::PREFIX) {
            return api_key(proof, store, now).await;
        }
        match issuer_of(proof).ok_or(Refusal::Unknown)? {
            issuer if issuer == self.tokens.issuer() => self.of_own_token(proof, store, now).await,
            issuer => match &self.oidc {
                Some(oidc) if oidc.settings().issuer == issuer => oidc.verify(proof, None).await,
                _ => Err(Refusal::Issuer(issuer.chars().take(100).collect())),
            },
        }
    }

    async fn of_own_token(&self, token: &str, store: &Store, now: WallTime) -> Result<Identity, Refusal> {
        let claims = self.tokens.verify(token)?;
        let expires = Some(WallTime::from_unix_seconds(claims.exp));
        if claims.means == Means::ApiKey {
            // The key says what its owner may do, and whether he still may.
            let id = claims.sub.strip_prefix("key:").ok_or(Refusal::UnknownKey)?;
            let key = store.api_key(id).await?.ok_or(Refusal::UnknownKey)?;
            key.is_good(now)?;
            return Ok(Identity {
                expires,
                ..key.identity()
            });
        }
        Ok(Identity {
            name: claims.sub,
            means: claims.means,
            grants: claims.grants,
            groups: claims.groups,
            device: None,
            expires,
        })
    }

    /// A token for an API key, a password or a code of the identity provider, for whom, and for how long.
    pub(crate) async fn exchange(
        &self,
        asked: &TokenRequest,
        store: &Store,
        now: WallTime,
    ) -> Result<(String, Identity, Duration), Refusal> {
        let who = match asked {
            TokenRequest {
                api_key: Some(text),
                username: None,
                password: None,
                oidc: None,
            } => api_key(text, store, now).await?,
            TokenRequest {
                api_key: None,
                username: Some(name),
                password: Some(password),
                oidc: None,
            } => {
                let directory = self.directory.as_ref().ok_or(Refusal::NoDirectory)?;
                let digest = Sha256::of(name.to_lowercase().as_bytes());
                let place = u16::from_be_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]) % TRY_PLACES;
                self.tries.check_key(&place).map_err(|_| Refusal::TooManyTries)?;
                directory.verify(name, password).await?
            }
            TokenRequest {
                api_key: None,
                username: None,
                password: None,
                oidc: Some(grant),
            } => self.oidc.as_ref().ok_or(Refusal::NoCodes)?.redeem(grant).await?,
            _ => return Err(Refusal::Unknown),
        };
        // What an API key may do is read with it.
        let (grants, groups) = match who.means {
            Means::ApiKey => (Vec::new(), BTreeSet::new()),
            _ => (who.grants.clone(), who.groups.clone()),
        };
        let (token, ttl) = self
            .tokens
            .issue((&who.name, who.means), grants, groups, who.expires, now)?;
        Ok((token, who, ttl))
    }
}

/// Who shows this key, for as long as the secret is good.
async fn api_key(text: &str, store: &Store, now: WallTime) -> Result<Identity, Refusal> {
    let (id, secret) = keys::parts(text).ok_or(Refusal::UnknownKey)?;
    let key = store.api_key(id).await?.ok_or(Refusal::UnknownKey)?;
    let until = key.is_proven_by(secret, now)?;
    Ok(Identity {
        expires: Some(until),
        ..key.identity()
    })
}

/// Whose token it says it is. Nothing is believed of it before its signature is verified with that issuer's key.
fn issuer_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
    }
    Some(insecure_decode_claims::<Issued>(token).ok()?.iss)
}

#[cfg(test)]
mod tests;
