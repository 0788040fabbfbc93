//! Who may do what: roles, API keys, tokens.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{ids::DeviceId, time::WallTime};

/// What one may do in general; what that is exactly, the coordinator's policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Runs campaigns.
    Operator,
    /// Publishes what was signed, and pulls brakes.
    Approver,
    /// Does everything.
    Admin,
    /// Is a device: downloads firmware and tells of itself.
    Device,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Operator, Self::Approver, Self::Admin, Self::Device];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Admin => "admin",
            Self::Device => "device",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| UnknownRole(text.chars().take(40).collect()))
    }
}

/// There is no such role.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no role: it must be viewer, operator, approver, admin or device")]
pub struct UnknownRole(String);

/// Where a role ends. What is absent does not limit. Limits are about changes: what is read is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Sites, such as `eu/berlin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<BTreeSet<String>>,
    /// Regions, such as `eu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<BTreeSet<String>>,
    /// Vendors, as devices report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendors: Option<BTreeSet<String>>,
    /// Environments, as the coordinator's settings name them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environments: Option<BTreeSet<String>>,
}

impl Limits {
    /// Each by its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &BTreeSet<String>)> {
        [
            ("sites", &self.sites),
            ("regions", &self.regions),
            ("vendors", &self.vendors),
            ("environments", &self.environments),
        ]
        .into_iter()
        .filter_map(|(name, set)| Some((name, set.as_ref()?)))
    }
}

/// A role within limits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// Where it ends.
    #[serde(default)]
    pub limits: Limits,
}

/// `POST /api/v1/access/keys`: an API key to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApiKey {
    /// Whose it is, or what it is for: 1 to 100 printable characters.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Where the role ends.
    #[serde(default)]
    pub limits: Limits,
    /// The device that its owner is, for the role `device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Days until it has to be rotated; 90 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
}

/// An API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ApiKeyView {
    /// Its id, which is also the beginning of its text.
    pub id: String,
    /// Whose it is, or what it is for.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Where the role ends.
    #[serde(default)]
    pub limits: Limits,
    /// The device that its owner is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// When it was made.
    pub created: WallTime,
    /// Who made it.
    pub created_by: String,
    /// When it got its present secret.
    pub rotated: WallTime,
    /// It is good until then.
    pub expires: WallTime,
    /// The secret before the present one is good until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_until: Option<WallTime>,
    /// Since when it is good no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<WallTime>,
}

/// An API key with its secret, which is shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ApiKeyMade {
    /// The key.
    pub key: ApiKeyView,
    /// What its owner sends as `Authorization: Bearer <secret>`.
    pub secret: String,
}

/// `POST .../rotate`: a new secret for a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// For how many seconds the old secret is good as well, at most a week; a day if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
}

/// `POST /api/v1/auth/token`: an API key, or a name and a password of the directory, or what the identity provider gave, for a
/// token.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// An API key's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// A person's name in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// His password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// What he brings back from the identity provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<CodeGrant>,
}

/// What a browser brings back from the identity provider: the authorization code flow with PKCE (RFC 7636).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeGrant {
    /// The code.
    pub code: String,
    /// The address that the provider sent the browser back to.
    pub redirect_uri: String,
    /// What the login's `code_challenge` is the SHA-256 of: 43 to 128 characters.
    #[schema(min_length = 43, max_length = 128)]
    pub code_verifier: String,
    /// The login's `nonce`: the provider's answer has to name it.
    #[schema(min_length = 1)]
    pub nonce: String,
}

impl fmt::Debug for CodeGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeGrant")
            .field("redirect_uri", &self.redirect_uri)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRequest")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A token, good for a short while.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenAnswer {
    /// A JWT of this coordinator, to be sent as `Authorization: Bearer <token>`.
    pub access_token: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds that it is good for.
    pub expires_in: u64,
}

impl fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenAnswer")
            .field("expires_in", &self.expires_in)
            .finish_non_exhaustive()
    }
}

/// `GET /api/v1/auth/whoami`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WhoAmI {
    /// Who asks, as problems and the audit log name him.
    pub name: String,
    /// How he has proven it: `bootstrap` (the operators' token), `api_key`, `oidc`, `ldap`, or `loopback`, not at all.
    pub means: String,
    /// His roles.
    pub grants: Vec<Grant>,
    /// His groups at the identity provider or in the directory.
    pub groups: BTreeSet<String>,
    /// The device that he is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// When the proof expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<WallTime>,
    /// What he may do somewhere at least.
    pub permissions: Vec<String>,
}

/// A permission, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PermissionView {
    /// The permission, `noun:verb`.
    pub permission: String,
    /// What it allows.
    pub what: String,
    /// The roles that have it, where no limits stand in the way.
    pub roles: BTreeSet<Role>,
}

/// `GET /api/v1/auth/methods`: how one can prove who one is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LoginMethods {
    /// Whether names and passwords of a directory are taken.
    pub passwords: bool,
    /// The identity provider whose tokens are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcView>,
}

/// An identity provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OidcView {
    /// The issuer: its discovery document is below it.
    pub issuer: String,
    /// The client that tokens must be for.
    pub client_id: String,
    /// What the client asks for.
    pub scopes: Vec<String>,
    /// Where people log in, if codes are taken: absent while the provider does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization_endpoint: Option<String>,
}
