//! An identity provider that changes its keys, and tokens that only look like its own.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use axum::{Json, Router, extract::State, routing::get};
use data_encoding::BASE64URL_NOPAD;
use firmesh_protocol::trust::SecretKey;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use super::super::{AccessConfig, oidc::Oidc};

#[derive(Clone)]
struct Provider {
    issuer: String,
    keys: Arc<Mutex<Vec<Value>>>,
    reads: Arc<AtomicUsize>,
}

async fn discovery(State(provider): State<Provider>) -> Json<Value> {
    Json(json!({ "issuer": provider.issuer, "jwks_uri": format!("{}/keys", provider.issuer) }))
}

async fn keys(State(provider): State<Provider>) -> Json<Value> {
    provider.reads.fetch_add(1, Ordering::Relaxed);
    Json(json!({ "keys": *provider.keys.lock().unwrap() }))
}

async fn provider(keys_now: Vec<Value>) -> Provider {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = Provider {
        issuer: format!("http://{}", listener.local_addr().unwrap()),
        keys: Arc::new(Mutex::new(keys_now)),
        reads: Arc::default(),
    };
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/keys", get(keys))
        .with_state(provider.clone());
    tokio::spawn(axum::serve(listener, router).into_future());
    provider
}

fn oidc(issuer: &str) -> Oidc {
    let text = format!(
        "token_ttl = '60s'\n[oidc]\nissuer = '{issuer}'\nclient_id = 'firmesh'\n\
         groups = [{{ group = 'ops', role = 'operator' }}]"
    );
    let config: AccessConfig = toml::from_str(&text).unwrap();
    let settings = config.check(|_| Ok(std::time::Duration::from_secs(60))).unwrap();
    Oidc::new(settings.oidc.unwrap()).unwrap()
}

fn encoded(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

fn ed_key(kid: &str, number: u8) -> Value {
    let public = SecretKey::from_seed(&[number; 32]).public();
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "x": encoded(public.as_bytes()) })
}

fn token(number: u8, header: &Value, claims: &Value) -> String {
    let text = format!(
        "{}.{}",
        encoded(header.to_string().as_bytes()),
        encoded(claims.to_string().as_bytes())
    );
    let signature = SecretKey::from_seed(&[number; 32]).sign(text.as_bytes());
    format!("{text}.{}", encoded(&signature))
}

fn claims(issuer: &str) -> Value {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    json!({ "iss": issuer, "aud": ["firmesh", "x"], "sub": "alice", "exp": since.as_secs() + 300, "groups": ["ops", 7] })
}

#[tokio::test]
async fn keys_are_read_by_discovery_and_not_again_for_everybody_who_asks_for_unknown_ones() {
    let provider = provider(vec![ed_key("k1", 1)]).await;
    let oidc = oidc(&provider.issuer);
    let claims = claims(&provider.issuer);
    let head = |kid: &str| json!({ "alg": "EdDSA", "kid": kid });
    let who = oidc.verify(&token(1, &head("k1"), &claims)).await.unwrap();
    assert_eq!((who.name.as_str(), who.grants.len()), ("oidc:alice", 1));
    for number in 0..20 {
        let unknown = token(2, &head(&format!("k{}", number + 2)), &claims);
        assert!(oidc.verify(&unknown).await.is_err());
    }
    assert_eq!(
        provider.reads.load(Ordering::Relaxed),
        1,
        "unknown keys are looked for once in a while only"
    );
    // The provider changes its keys: whoever starts anew knows the new one; the old one is none any more.
    *provider.keys.lock().unwrap() = vec![ed_key("k2", 2)];
    let anew = self::oidc(&provider.issuer);
    anew.verify(&token(2, &head("k2"), &claims)).await.unwrap();
    assert!(anew.verify(&token(1, &head("k1"), &claims)).await.is_err());
}

#[tokio::test]
async fn only_tokens_of_this_provider_for_this_coordinator_count() {
    // An elliptic key as well, and what must never be used for signatures: a shared secret, and a key for encryption.
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random).unwrap();
    let point = pair.public_key().as_ref();
    let ec =
        json!({ "kty": "EC", "crv": "P-256", "kid": "ec", "x": encoded(&point[1..33]), "y": encoded(&point[33..]) });
    let shared = json!({ "kty": "oct", "kid": "shared", "k": encoded(b"secret") });
    let mut sealing = ed_key("sealing", 3);
    sealing["use"] = json!("enc");
    let provider = provider(vec![ed_key("k1", 1), ec, shared, sealing]).await;
    let oidc = oidc(&provider.issuer);
    let good = claims(&provider.issuer);
    let head = json!({ "alg": "EdDSA", "kid": "k1" });
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    oidc.verify(&token(1, &head, &good)).await.unwrap();
    let es256 = |header: &Value| {
        let text = format!(
            "{}.{}",
            encoded(header.to_string().as_bytes()),
            encoded(good.to_string().as_bytes())
        );
        let signature = pair.sign(&random, text.as_bytes()).unwrap();
        format!("{text}.{}", encoded(signature.as_ref()))
    };
    oidc.verify(&es256(&json!({ "alg": "ES256", "kid": "ec" })))
        .await
        .unwrap();
    let hmac = {
        let header = json!({ "alg": "HS256", "kid": "shared" });
        let text = format!(
            "{}.{}",
            encoded(header.to_string().as_bytes()),
            encoded(good.to_string().as_bytes())
        );
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"secret");
        format!("{text}.{}", encoded(ring::hmac::sign(&key, text.as_bytes()).as_ref()))
    };
    let confused = {
        // The public key as a shared secret.
        let header = json!({ "alg": "HS256", "kid": "k1" });
        let text = format!(
            "{}.{}",
            encoded(header.to_string().as_bytes()),
            encoded(good.to_string().as_bytes())
        );
        let public = SecretKey::from_seed(&[1; 32]).public();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, public.as_bytes());
        format!("{text}.{}", encoded(ring::hmac::sign(&key, text.as_bytes()).as_ref()))
    };
    for (what, bad) in [
        ("another audience", token(1, &head, &with("aud", json!("other")))),
        ("no audience", token(1, &head, &with("aud", json!([])))),
        (
            "another issuer",
            token(1, &head, &with("iss", json!("http://127.0.0.1:1"))),
        ),
        ("over", token(1, &head, &with("exp", json!(1_000_000)))),
        ("not yet", token(1, &head, &with("nbf", json!(9_000_000_000_u64)))),
        ("nobody", token(1, &head, &with("sub", json!("")))),
        ("a name that is none", token(1, &head, &with("sub", json!(7)))),
        ("another key's signature", token(2, &head, &good)),
        (
            "another key's id",
            token(1, &json!({ "alg": "EdDSA", "kid": "ec" }), &good),
        ),
        ("no id among several keys", token(1, &json!({ "alg": "EdDSA" }), &good)),
        (
            "a key for encryption",
            token(3, &json!({ "alg": "EdDSA", "kid": "sealing" }), &good),
        ),
        (
            "the elliptic key with another algorithm",
            es256(&json!({ "alg": "ES384", "kid": "ec" })),
        ),
        (
            "alg none",
            format!(
                "{}.{}.",
                encoded(br#"{"alg":"none","kid":"k1"}"#),
                encoded(good.to_string().as_bytes())
            ),
        ),
        ("a shared secret", hmac),
        ("a public key as a shared secret", confused),
        // A key that comes along is not the provider's.
        (
            "a key of its own",
            token(
                5,
                &json!({ "alg": "EdDSA", "kid": "mine", "jwk": ed_key("mine", 5) }),
                &good,
            ),
        ),
    ] {
        assert!(oidc.verify(&bad).await.is_err(), "{what}");
    }
}

/// Where the provider says that it is somebody else, nothing of it is believed.
#[tokio::test]
async fn a_provider_that_is_another_issuer_or_silent_vouches_for_nobody() {
    let provider = provider(vec![ed_key("k1", 1)]).await;
    let other = provider.issuer.replace("127.0.0.1", "localhost");
    let oidc = oidc(&other);
    let header = json!({ "alg": "EdDSA", "kid": "k1" });
    assert!(oidc.verify(&token(1, &header, &claims(&other))).await.is_err());
    let silent = self::oidc("http://127.0.0.1:9");
    assert!(
        silent
            .verify(&token(1, &header, &claims("http://127.0.0.1:9")))
            .await
            .is_err()
    );
}
