//! The face towards devices that ask, as written and as checked.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use firmesh_executors::{DeviceSettings, ExecutorSettings, Secret, SecretError, SecretSource};
use firmesh_protocol::ids::DeviceId;
use serde::Deserialize;

/// Where devices ask that fetch their updates themselves, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DdiConfig {
    /// Where to listen. Default: a free port on loopback.
    pub listen: SocketAddr,
    /// The host name or address in the links that devices are given, if it is not the listening address.
    pub advertise_host: Option<String>,
    /// What clients call their tenant. Default: `DEFAULT`, as hawkBit's.
    pub tenant: String,
    /// How devices ask. Default: `https`, by this node's certificate.
    pub transport: Transport,
    /// Whether devices may ask over plain HTTP from elsewhere than this host: their tokens travel in the clear then.
    pub allow_plain_http: bool,
    /// A file (mode 0600) whose first line is a token that speaks for every such device of this node.
    pub gateway_token_file: Option<PathBuf>,
    /// An environment variable that holds it.
    pub gateway_token_env: Option<String>,
}

/// How devices ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TLS, by the node's certificate.
    #[default]
    Https,
    /// In the clear.
    Http,
}

/// Where devices ask, checked.
#[derive(Debug, Clone)]
pub struct DdiSettings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The host in links.
    pub advertise_host: Option<String>,
    /// The tenant.
    pub tenant: String,
    /// How devices ask.
    pub transport: Transport,
    /// The token that speaks for all of them.
    pub gateway_token: Option<Secret>,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum DdiError {
    /// Tokens in the clear.
    #[error(
        "ddi.transport is http and ddi.listen is not on loopback: tokens would travel in the clear; use https, or set ddi.allow_plain_http"
    )]
    PlainHttp,
    /// A tenant that no URL can name.
    #[error("ddi.tenant must be 1 to 64 letters, digits, dashes and underscores")]
    Tenant,
    /// Two tokens.
    #[error("ddi.gateway_token_file and ddi.gateway_token_env are two tokens: name one")]
    TwoTokens,
    /// The token cannot be had.
    #[error("ddi.gateway_token cannot be had")]
    Token(#[source] SecretError),
    /// A token that can be guessed.
    #[error("ddi.gateway_token is shorter than 16 characters: whoever guesses it is every device here")]
    ShortToken,
    /// Two devices that call themselves alike.
    #[error("two devices ask as {0:?}: give one another controller_id")]
    SameController(String),
    /// A device that nobody lets in.
    #[error("device {0} has no target token, and the node no gateway token: it could never ask")]
    NoToken(DeviceId),
}

impl Default for DdiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise_host: None,
            tenant: "DEFAULT".to_owned(),
            transport: Transport::Https,
            allow_plain_http: false,
            gateway_token_file: None,
            gateway_token_env: None,
        }
    }
}

impl DdiConfig {
    /// Checks it, and whether every device that asks can be let in.
    pub(crate) fn check(self, base: &Path, devices: &[DeviceSettings]) -> Result<DdiSettings, DdiError> {
        let in_the_clear = self.transport == Transport::Http && !self.listen.ip().is_loopback();
        if in_the_clear && !self.allow_plain_http {
            return Err(DdiError::PlainHttp);
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !(1..=64).contains(&self.tenant.len()) || !self.tenant.chars().all(is_plain) {
            return Err(DdiError::Tenant);
        }
        let source = match (self.gateway_token_file, self.gateway_token_env) {
            (None, None) => None,
            (Some(file), None) => Some(SecretSource::File(file)),
            (None, Some(name)) => Some(SecretSource::Env(name)),
            (Some(_), Some(_)) => return Err(DdiError::TwoTokens),
        };
        let gateway_token = source
            .map(|source| source.read(base))
            .transpose()
            .map_err(DdiError::Token)?;
        if gateway_token.as_ref().is_some_and(|token| token.length() < 16) {
            return Err(DdiError::ShortToken);
        }
        let mut names = BTreeSet::new();
        for device in devices {
            let ExecutorSettings::Ddi(ddi) = &device.executor else {
                continue;
            };
            if !names.insert(ddi.controller_id()) {
                return Err(DdiError::SameController(ddi.controller_id().to_owned()));
            }
            if !ddi.has_token() && gateway_token.is_none() {
                return Err(DdiError::NoToken(device.device.clone()));
            }
        }
        Ok(DdiSettings {
            listen: self.listen,
            advertise_host: self.advertise_host,
            tenant: self.tenant,
            transport: self.transport,
            gateway_token,
        })
    }
}
