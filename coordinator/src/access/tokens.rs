//! Tokens of this coordinator's own: EdDSA, short-lived, given for an API key or a password of the directory.
//!
//! Invariant: a token says who, never more than that for an API key: its roles are read with the key at every request, so
//! that a key that is revoked takes its tokens with it.

use std::{collections::BTreeSet, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use firmesh_protocol::{api::Grant, ids::Sha256, time::WallTime, trust::SecretKey};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Refusal, identity::Means, jws};
use crate::authority::new_token;

/// Clocks of other machines are off by so much.
pub(super) const LEEWAY: Duration = Duration::from_secs(30);

/// What says that a token is one of these, and of no other issuer's kind (RFC 9068).
const KIND: &str = "at+jwt";

/// Who is meant: whoever takes tokens of this issuer is this coordinator, or its equal.
const AUDIENCE: &str = "firmesh-coordinator";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    iss: String,
    aud: String,
    pub(super) sub: String,
    iat: i64,
    nbf: i64,
    pub(super) exp: i64,
    jti: String,
    pub(super) means: Means,
    /// Roles of who comes from the directory. Those of an API key stand with the key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) grants: Vec<Grant>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) groups: BTreeSet<String>,
}

/// What signs tokens, and knows them again.
pub(super) struct Tokens {
    issuer: String,
    ttl: Duration,
    kid: String,
    public: [u8; 32],
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("issuer", &self.issuer)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn new(key: &SecretKey, issuer: String, ttl: Duration) -> Self {
        jws::install();
        let der = PrivatePkcs8KeyDer::from_pem_slice(key.to_pem().as_bytes()).expect("it was just encoded");
        let public = *key.public().as_bytes();
        Self {
            issuer,
            ttl,
            kid: Sha256::of(&public).to_string()[..16].to_owned(),
            public,
            signing: EncodingKey::from_ed_der(der.secret_pkcs8_der()),
            verifying: DecodingKey::from_ed_der(&public),
        }
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public key, as other software asks for it (RFC 7517).
    pub(super) fn key_set(&self) -> serde_json::Value {
        let x = BASE64URL_NOPAD.encode(&self.public);
        json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": x },
        ] })
    }

    /// A token, and for how long it is good: never longer than what it was given for.
    pub(super) fn issue(
        &self,
        (sub, means): (&str, Means),
        grants: Vec<Grant>,
        groups: BTreeSet<String>,
        until: Option<WallTime>,
        now: WallTime,
    ) -> Result<(String, Duration), Refusal> {
        let left = until.map_or(self.ttl, |until| {
            let left = until.unix_seconds().saturating_sub(now.unix_seconds()).max(0);
            self.ttl.min(Duration::from_secs(left.cast_unsigned()))
        });
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: AUDIENCE.to_owned(),
            sub: sub.to_owned(),
            iat: now.unix_seconds(),
            nbf: now.unix_seconds(),
            exp: (now + left).unix_seconds(),
            jti: new_token().map_err(Refusal::NoRandomness)?[..32].to_owned(),
            means,
            grants,
            groups,
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(KIND.to_owned());
        header.kid = Some(self.kid.clone());
        let token = encode(&header, &claims, &self.signing).map_err(|error| Refusal::Token(error.to_string()))?;
        Ok((token, left))
    }

    /// Reads a token of one's own.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, Refusal> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        let read = decode::<Claims>(token, &self.verifying, &validation);
        let read = read.map_err(|error| Refusal::Token(error.to_string()))?;
        let is_ours = read.header.typ.as_deref() == Some(KIND) && read.header.kid.as_deref() == Some(&self.kid);
        match is_ours {
            true => Ok(read.claims),
            false => Err(Refusal::Token("it is not a token of this coordinator's key".to_owned())),
        }
    }
}
