//! Tokens of an identity provider that people log in to (OpenID Connect): its keys are found by discovery, and a code that a
//! browser brings back is exchanged there.
//!
//! Invariants: keys come from the issuer that is configured and from nowhere that a token names; an unknown key id has them
//! read again, at most every [`AGAIN`]; what is read is bounded.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use firmesh_protocol::{api::CodeGrant, time::WallTime};
use futures_util::StreamExt as _;
use jsonwebtoken::{
    DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse},
};
use reqwest::{Client, RequestBuilder, StatusCode, Url, redirect};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, Semaphore};
use tracing::{info, warn};

use super::{
    Refusal,
    config::{Mapping, OidcSettings},
    identity::{Identity, Means},
    jws,
    tokens::LEEWAY,
};
use crate::{ceremony::read_bounded, notify::Secret, telemetry::chain};

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
    /// It says no.
    #[error("the identity provider refuses what it was asked at {url}: {said}")]
    Refused {
        /// The address.
        url: String,
        /// What it says.
        said: String,
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

/// Codes that are exchanged at the same time.
const CODES_AT_ONCE: usize = 8;

/// The longest part of what a browser brings back.
const GRANT_BYTES_MAX: usize = 4 << 10;

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    /// How clients say who they are: `client_secret_basic`, if nothing is said.
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// What a provider says of itself.
#[derive(Debug)]
struct Provider {
    keys: JwkSet,
    codes: Option<Codes>,
}

/// Where a provider gives codes, and tokens for them.
#[derive(Debug, Clone)]
struct Codes {
    authorization: Url,
    token: Url,
    /// Whether the client's secret goes into the form, for want of another way.
    is_secret_posted: bool,
}

#[derive(Deserialize)]
struct Granted {
    id_token: String,
}

#[derive(Debug, Default)]
struct Known {
    provider: Option<Arc<Provider>>,
    read: Option<Instant>,
    tried: Option<Instant>,
}

/// An identity provider.
#[derive(Debug)]
pub(super) struct Oidc {
    settings: OidcSettings,
    client: Client,
    known: Mutex<Known>,
    /// Codes that are being exchanged: whoever sends made-up ones keeps the provider from nobody.
    redeeming: Semaphore,
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
            redeeming: Semaphore::new(CODES_AT_ONCE),
        })
    }

    pub(super) fn settings(&self) -> &OidcSettings {
        &self.settings
    }

    /// Where people log in, if that is known.
    pub(super) async fn authorization_endpoint(&self) -> Option<String> {
        let provider = self.provider(|_| true).await.ok()?;
        provider.codes.as_ref().map(|codes| codes.authorization.to_string())
    }

    /// Who brings this back from the provider.
    pub(super) async fn redeem(&self, grant: &CodeGrant) -> Result<Identity, Refusal> {
        let CodeGrant {
            code,
            redirect_uri,
            code_verifier,
            nonce,
        } = grant;
        let is_bounded = |text: &&String| (1..=GRANT_BYTES_MAX).contains(&text.len());
        if ![code, redirect_uri, code_verifier, nonce].iter().all(is_bounded) {
            return Err(Refusal::Code("a part of it is empty, or too long".to_owned()));
        }
        let _turn = self.redeeming.try_acquire().map_err(|_| Refusal::TooManyCodes)?;
        let provider = self.provider(|_| true).await?;
        let codes = provider.codes.as_ref().ok_or(Refusal::NoCodes)?;
        let secret = self.settings.client_secret.as_ref().map(Secret::read).transpose();
        let secret = secret.map_err(Refusal::ClientSecret)?;
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", code_verifier),
        ];
        let mut request = self.client.post(codes.token.clone());
        match &secret {
            Some(secret) if !codes.is_secret_posted => {
                // Both are written as in a form first (RFC 6749, 2.3.1).
                let coded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                request = request.basic_auth(coded(&self.settings.client_id), Some(coded(secret)));
            }
            Some(secret) => form.extend([
                ("client_id", self.settings.client_id.as_str()),
                ("client_secret", secret),
            ]),
            None => form.push(("client_id", &self.settings.client_id)),
        }
        let given: Result<Granted, _> = self.read(codes.token.as_str(), request.form(&form)).await;
        let Granted { id_token } = given.map_err(|error| match error {
            OidcError::Refused { said, .. } => Refusal::Code(said),
            error => {
                warn!(error = chain(&error), "the identity provider gave no token for a code");
                Refusal::ProviderSilent
            }
        })?;
        self.verify(&id_token, Some(nonce)).await
    }

    /// Who shows a token of the provider; one that answers the login with this nonce, if there is one.
    pub(super) async fn verify(&self, token: &str, nonce: Option<&str>) -> Result<Identity, Refusal> {
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
        if nonce.is_some_and(|nonce| claims.get("nonce").and_then(Value::as_str) != Some(nonce)) {
            return Err(Refusal::Token("it answers another login".to_owned()));
        }
        identity(&self.settings, &claims)
    }

    /// The provider's key of this id, or its only one, and what it may be used with.
    async fn key(&self, kid: Option<&str>) -> Result<(DecodingKey, &'static [jsonwebtoken::Algorithm]), Refusal> {
        let provider = self.provider(|provider| pick(&provider.keys, kid).is_some()).await?;
        pick(&provider.keys, kid).ok_or_else(|| {
            Refusal::Token(
                "it is signed with a key that the identity provider does not have (any more, or yet)".to_owned(),
            )
        })
    }

    /// What the provider says of itself: read again when it is old, or when it is not enough.
    async fn provider(&self, is_enough: impl Fn(&Provider) -> bool) -> Result<Arc<Provider>, Refusal> {
        let mut known = self.known.lock().await;
        let age = |since: Option<Instant>| since.map_or(Duration::MAX, |since| since.elapsed());
        let is_known = known.provider.as_deref().is_some_and(is_enough);
        if (!is_known || age(known.read) > FRESH) && age(known.tried) > AGAIN {
            known.tried = Some(Instant::now());
            match self.discover().await {
                Ok(provider) => {
                    info!(
                        keys = provider.keys.keys.len(),
                        issuer = self.settings.issuer,
                        "read the identity provider's keys"
                    );
                    (known.provider, known.read) = (Some(Arc::new(provider)), Some(Instant::now()));
                }
                // Old keys are good until there are others.
                Err(error) => warn!(error = chain(&error), "the identity provider's keys could not be read"),
            }
        }
        known.provider.clone().ok_or(Refusal::ProviderSilent)
    }

    async fn discover(&self) -> Result<Provider, OidcError> {
        let issuer = self.settings.issuer.trim_end_matches('/');
        let place = format!("{issuer}/.well-known/openid-configuration");
        let discovery: Discovery = self.read(&place, self.client.get(&place)).await?;
        if discovery.issuer != self.settings.issuer {
            let problem = format!(
                "it is of the issuer {:?}, not {:?}: write access.oidc.issuer exactly so",
                discovery.issuer, self.settings.issuer
            );
            return Err(OidcError::Answer { url: place, problem });
        }
        let address = |field: &str, text: &str| {
            let url = text.parse::<Url>().ok();
            // Where the issuer itself is on loopback, so may be the rest.
            let is_plain = |url: &Url| url.scheme() == "http" && issuer.starts_with("http://");
            url.filter(|url| url.scheme() == "https" || is_plain(url))
                .ok_or_else(|| OidcError::Answer {
                    url: place.clone(),
                    problem: format!("{field} is not an https address"),
                })
        };
        let uri = address("jwks_uri", &discovery.jwks_uri)?;
        let codes = match (&discovery.authorization_endpoint, &discovery.token_endpoint) {
            (Some(authorization), Some(token)) => {
                let methods = discovery.token_endpoint_auth_methods_supported.unwrap_or_default();
                let has = |wanted: &str| methods.iter().any(|method| method == wanted);
                let found = address("authorization_endpoint", authorization)
                    .and_then(|authorization| Ok((authorization, address("token_endpoint", token)?)));
                match found {
                    Ok((authorization, token)) => Some(Codes {
                        authorization,
                        token,
                        is_secret_posted: has("client_secret_post") && !has("client_secret_basic"),
                    }),
                    Err(error) => {
                        warn!(
                            error = chain(&error),
                            "people cannot log in with codes of the identity provider"
                        );
                        None
                    }
                }
            }
            _ => None,
        };
        let keys: JwkSet = self.read(uri.as_str(), self.client.get(uri.clone())).await?;
        match keys.keys.len() <= KEYS_MAX {
            true => Ok(Provider { keys, codes }),
            false => Err(OidcError::Answer {
                url: uri.to_string(),
                problem: format!("it has {} keys, at most {KEYS_MAX} are read", keys.keys.len()),
            }),
        }
    }

    async fn read<T: DeserializeOwned>(&self, url: &str, request: RequestBuilder) -> Result<T, OidcError> {
        let silent = |source: reqwest::Error| OidcError::Silent {
            url: url.to_owned(),
            source: source.without_url(),
        };
        let wrong = |problem: String| OidcError::Answer {
            url: url.to_owned(),
            problem,
        };
        let answer = request.send().await.map_err(silent)?;
        let status = answer.status();
        let (mut bytes, mut body) = (Vec::new(), answer.bytes_stream());
        while let Some(part) = body.next().await {
            bytes.extend_from_slice(&part.map_err(silent)?);
            if bytes.len() > DOCUMENT_BYTES_MAX {
                return Err(wrong(format!("it has more than {DOCUMENT_BYTES_MAX} bytes")));
            }
        }
        match (status.is_success(), status.is_client_error()) {
            (true, _) => serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string())),
            (false, true) => Err(OidcError::Refused {
                url: url.to_owned(),
                said: said(status, &bytes),
            }),
            (false, false) => Err(wrong(format!("its status is {status}"))),
        }
    }
}

/// Why a provider refused something (RFC 6749, 5.2), cut to what fits in a line.
fn said(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        error: String,
        error_description: Option<String>,
    }
    let problem = serde_json::from_slice::<Problem>(body).ok();
    let said = problem.map_or_else(String::new, |problem| {
        let description = problem.error_description.unwrap_or_default();
        let said = format!(", {}: {description}", problem.error);
        said.chars().filter(|char| !char.is_control()).take(200).collect()
    });
    format!("{status}{said}")
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
