//! Tokens of an identity provider that people log in to (OpenID Connect): its keys are found by discovery.
//!
//! Invariants: keys come from the issuer that is configured and from nowhere that a token names; an unknown key id has them
//! read again, at most every [`AGAIN`]; what is read is bounded.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use firmesh_protocol::time::WallTime;
use futures_util::StreamExt as _;
use jsonwebtoken::{
    DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse},
};
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::{
    Refusal,
    config::{Mapping, OidcSettings},
    identity::{Identity, Means},
    jws,
    tokens::LEEWAY,
};
use crate::{ceremony::read_bounded, telemetry::chain};

/// The longest document of a provider.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;
const CA_BYTES_MAX: u64 = 1 << 20;

/// The most keys of a provider.
const KEYS_MAX: usize = 100;

/// Keys are read again when they are so old.
const FRESH: Duration = Duration::from_secs(3_600);

/// Keys are not read again sooner, whoever asks for unknown ones.
const AGAIN: Duration = Duration::from_secs(30);

/// The longest a provider is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most groups of a person that are looked at, and the longest name of one.
const GROUPS_MAX: usize = 1_000;
const GROUP_BYTES_MAX: usize = 512;

/// Why a provider cannot be used, or was not of use.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The CA file.
    #[error("the CA of the identity provider ({}) cannot be used: {problem}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The HTTP client.
    #[error("there is no HTTP client for the identity provider")]
    Client(#[source] reqwest::Error),
    /// It does not answer.
    #[error("the identity provider does not answer at {url}")]
    Silent {
        /// The address.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It says something else.
    #[error("the identity provider's answer at {url} cannot be used: {problem}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Debug, Default)]
struct Known {
    keys: Option<Arc<JwkSet>>,
    read: Option<Instant>,
    tried: Option<Instant>,
}

/// An identity provider.
#[derive(Debug)]
pub(super) struct Oidc {
    settings: OidcSettings,
    client: Client,
    known: Mutex<Known>,
}

impl Oidc {
    pub(super) fn new(settings: OidcSettings) -> Result<Self, OidcError> {
        jws::install();
        // Fails only if somebody installed one before, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(concat!("firmesh-coordinator/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &settings.ca_file {
            let unusable = |problem: String| OidcError::Ca {
                path: path.clone(),
                problem,
            };
            let pem = read_bounded(path, CA_BYTES_MAX).map_err(|error| unusable(chain(&error)))?;
            let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(chain(&error)))?;
            if found.is_empty() {
                return Err(unusable("it holds no certificate in PEM".to_owned()));
            }
            builder = builder.tls_certs_only(found);
        } else if settings.issuer.starts_with("http://") {
            // On loopback, without TLS: nothing to verify, and no proxy.
            builder = builder.tls_certs_only([]).no_proxy();
        }
        Ok(Self {
            client: builder.build().map_err(OidcError::Client)?,
            settings,
            known: Mutex::default(),
        })
    }

    pub(super) fn settings(&self) -> &OidcSettings {
        &self.settings
    }

    /// Who shows a token of the provider.
    pub(super) async fn verify(&self, token: &str) -> Result<Identity, Refusal> {
        let refused = |error: jsonwebtoken::errors::Error| Refusal::Token(error.to_string());
        let header = decode_header(token).map_err(refused)?;
        let (key, algorithms) = self.key(header.kid.as_deref()).await?;
        if !algorithms.contains(&header.alg) {
            return Err(Refusal::Token(format!(
                "{:?} is not an algorithm for the provider's key",
                header.alg
            )));
        }
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&[&self.settings.client_id]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Map<String, Value>>(token, &key, &validation)
            .map_err(refused)?
            .claims;
        identity(&self.settings, &claims)
    }

    /// The provider's key of this id, or its only one, and what it may be used with.
    async fn key(&self, kid: Option<&str>) -> Result<(DecodingKey, &'static [jsonwebtoken::Algorithm]), Refusal> {
        let mut known = self.known.lock().await;
        let age = |since: Option<Instant>| since.map_or(Duration::MAX, |since| since.elapsed());
        let found = known.keys.as_ref().and_then(|keys| pick(keys, kid));
        if (found.is_none() || age(known.read) > FRESH) && age(known.tried) > AGAIN {
            known.tried = Some(Instant::now());
            match self.read_keys().await {
                Ok(keys) => {
                    info!(
                        keys = keys.keys.len(),
                        issuer = self.settings.issuer,
                        "read the identity provider's keys"
                    );
                    (known.keys, known.read) = (Some(Arc::new(keys)), Some(Instant::now()));
                }
                // Old keys are good until there are others.
                Err(error) => warn!(error = chain(&error), "the identity provider's keys could not be read"),
            }
        }
        let keys = known.keys.clone().ok_or(Refusal::ProviderSilent)?;
        drop(known);
        pick(&keys, kid).ok_or_else(|| {
            Refusal::Token(
                "it is signed with a key that the identity provider does not have (any more, or yet)".to_owned(),
            )
        })
    }

    async fn read_keys(&self) -> Result<JwkSet, OidcError> {
        let issuer = self.settings.issuer.trim_end_matches('/');
        let place = format!("{issuer}/.well-known/openid-configuration");
        let discovery: Discovery = self.document(&place).await?;
        if discovery.issuer != self.settings.issuer {
            let problem = format!(
                "it is of the issuer {:?}, not {:?}: write access.oidc.issuer exactly so",
                discovery.issuer, self.settings.issuer
            );
            return Err(OidcError::Answer { url: place, problem });
        }
        let wrong = |problem: &str| OidcError::Answer {
            url: place.clone(),
            problem: problem.to_owned(),
        };
        let uri: Url = discovery
            .jwks_uri
            .parse()
            .map_err(|_| wrong("jwks_uri is no address"))?;
        // Where the issuer itself is on loopback, so may its keys be.
        let is_plain = uri.scheme() == "http" && issuer.starts_with("http://");
        if uri.scheme() != "https" && !is_plain {
            return Err(wrong("jwks_uri is not an https address"));
        }
        let keys: JwkSet = self.document(uri.as_str()).await?;
        match keys.keys.len() <= KEYS_MAX {
            true => Ok(keys),
            false => Err(OidcError::Answer {
                url: uri.to_string(),
                problem: format!("it has {} keys, at most {KEYS_MAX} are read", keys.keys.len()),
            }),
        }
    }

    async fn document<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, OidcError> {
        let silent = |source: reqwest::Error| OidcError::Silent {
            url: url.to_owned(),
            source: source.without_url(),
        };
        let wrong = |problem: String| OidcError::Answer {
            url: url.to_owned(),
            problem,
        };
        let answer = self.client.get(url).send().await.map_err(silent)?;
        if !answer.status().is_success() {
            return Err(wrong(format!("its status is {}", answer.status())));
        }
        let (mut bytes, mut body) = (Vec::new(), answer.bytes_stream());
        while let Some(part) = body.next().await {
            bytes.extend_from_slice(&part.map_err(silent)?);
            if bytes.len() > DOCUMENT_BYTES_MAX {
                return Err(wrong(format!("it has more than {DOCUMENT_BYTES_MAX} bytes")));
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
    }
}

/// A key to verify with. Keys for encryption, and shared secrets, are none.
fn pick(keys: &JwkSet, kid: Option<&str>) -> Option<(DecodingKey, &'static [jsonwebtoken::Algorithm])> {
    let usable = |jwk: &&Jwk| {
        let is_public = matches!(
            jwk.algorithm,
            AlgorithmParameters::RSA(_) | AlgorithmParameters::EllipticCurve(_) | AlgorithmParameters::OctetKeyPair(_)
        );
        is_public && matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature))
    };
    let mut usable = keys.keys.iter().filter(usable);
    let jwk = match kid {
        Some(kid) => usable.find(|jwk| jwk.common.key_id.as_deref() == Some(kid))?,
        None => {
            let only = usable.next()?;
            usable.next().is_none().then_some(only)?
        }
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let algorithms = jws::algorithms(key.family());
    Some((key, algorithms))
}

/// Who it is, by his claims.
fn identity(settings: &OidcSettings, claims: &Map<String, Value>) -> Result<Identity, Refusal> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let is_name = |name: &&str| (1..=200).contains(&name.len()) && !name.chars().any(char::is_control);
    let name = text(&settings.name_claim).filter(is_name).ok_or_else(|| {
        Refusal::Token(format!(
            "its claim {:?} (access.oidc.name_claim) is no name",
            settings.name_claim
        ))
    })?;
    let groups: BTreeSet<String> = match claims.get(&settings.groups_claim) {
        Some(Value::Array(groups)) => {
            let groups = groups.iter().filter_map(Value::as_str).take(GROUPS_MAX);
            groups
                .filter(|group| group.len() <= GROUP_BYTES_MAX)
                .map(str::to_owned)
                .collect()
        }
        Some(Value::String(group)) if group.len() <= GROUP_BYTES_MAX => BTreeSet::from([group.clone()]),
        _ => BTreeSet::new(),
    };
    Ok(Identity {
        name: format!("oidc:{name}"),
        means: Means::Oidc,
        grants: Mapping::grants(&settings.groups, &groups, |a, b| a == b),
        groups,
        device: None,
        expires: claims
            .get("exp")
            .and_then(Value::as_i64)
            .map(WallTime::from_unix_seconds),
    })
}
