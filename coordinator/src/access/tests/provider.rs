//! An identity provider that changes its keys, and tokens that only look like its own.

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use data_encoding::BASE64URL_NOPAD;
use firmesh_protocol::{api::CodeGrant, trust::SecretKey};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use super::super::{AccessConfig, Refusal, oidc::Oidc};

#[derive(Clone)]
struct Provider {
    issuer: String,
    keys: Arc<Mutex<Vec<Value>>>,
    reads: Arc<AtomicUsize>,
    /// What is given for a code.
    token: Arc<Mutex<String>>,
    /// How clients say who they are.
    methods: Arc<Mutex<Option<Vec<&'static str>>>>,
    /// What was asked for tokens last: who, and the form.
    asked: Arc<Mutex<(String, String)>>,
}

async fn discovery(State(provider): State<Provider>) -> Json<Value> {
    let at = |path: &str| format!("{}/{path}", provider.issuer);
    Json(json!({
        "issuer": provider.issuer, "jwks_uri": at("keys"), "authorization_endpoint": at("authorize"),
        "token_endpoint": at("token"), "token_endpoint_auth_methods_supported": *provider.methods.lock().unwrap(),
    }))
}

async fn give(State(provider): State<Provider>, headers: HeaderMap, form: String) -> (StatusCode, Json<Value>) {
    let who = headers
        .get("authorization")
        .map(|value| value.to_str().unwrap().to_owned());
    *provider.asked.lock().unwrap() = (who.unwrap_or_default(), form.clone());
    match form.contains("code=good") {
        true => (
            StatusCode::OK,
            Json(json!({ "id_token": *provider.token.lock().unwrap() })),
        ),
        false => {
            let problem = json!({ "error": "invalid_grant", "error_description": "used\nalready" });
            (StatusCode::BAD_REQUEST, Json(problem))
        }
    }
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
        token: Arc::default(),
        methods: Arc::default(),
        asked: Arc::default(),
    };
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/keys", get(keys))
        .route("/token", post(give))
        .with_state(provider.clone());
    tokio::spawn(axum::serve(listener, router).into_future());
    provider
}

fn oidc(issuer: &str) -> Oidc {
    client(issuer, "")
}

/// The provider's client, with more of its settings.
fn client(issuer: &str, more: &str) -> Oidc {
    let text = format!(
        "token_ttl = '60s'\n[oidc]\nissuer = '{issuer}'\nclient_id = 'firmesh'\n{more}\n\
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
    let who = oidc.verify(&token(1, &head("k1"), &claims), None).await.unwrap();
    assert_eq!((who.name.as_str(), who.grants.len()), ("oidc:alice", 1));
    for number in 0..20 {
        let unknown = token(2, &head(&format!("k{}", number + 2)), &claims);
        assert!(oidc.verify(&unknown, None).await.is_err());
    }
    assert_eq!(
        provider.reads.load(Ordering::Relaxed),
        1,
        "unknown keys are looked for once in a while only"
    );
    // The provider changes its keys: whoever starts anew knows the new one; the old one is none any more.
    *provider.keys.lock().unwrap() = vec![ed_key("k2", 2)];
    let anew = self::oidc(&provider.issuer);
    anew.verify(&token(2, &head("k2"), &claims), None).await.unwrap();
    assert!(anew.verify(&token(1, &head("k1"), &claims), None).await.is_err());
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
    oidc.verify(&token(1, &head, &good), None).await.unwrap();
    let es256 = |header: &Value| {
        let text = format!(
            "{}.{}",
            encoded(header.to_string().as_bytes()),
            encoded(good.to_string().as_bytes())
        );
        let signature = pair.sign(&random, text.as_bytes()).unwrap();
        format!("{text}.{}", encoded(signature.as_ref()))
    };
    oidc.verify(&es256(&json!({ "alg": "ES256", "kid": "ec" })), None)
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
        assert!(oidc.verify(&bad, None).await.is_err(), "{what}");
    }
}

/// Where the provider says that it is somebody else, nothing of it is believed.
#[tokio::test]
async fn a_provider_that_is_another_issuer_or_silent_vouches_for_nobody() {
    let provider = provider(vec![ed_key("k1", 1)]).await;
    let other = provider.issuer.replace("127.0.0.1", "localhost");
    let oidc = oidc(&other);
    let header = json!({ "alg": "EdDSA", "kid": "k1" });
    assert!(oidc.verify(&token(1, &header, &claims(&other)), None).await.is_err());
    let silent = self::oidc("http://127.0.0.1:9");
    assert!(
        silent
            .verify(&token(1, &header, &claims("http://127.0.0.1:9")), None)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_code_is_exchanged_and_what_is_given_must_answer_this_login() {
    let provider = provider(vec![ed_key("k1", 1)]).await;
    let mut claims = claims(&provider.issuer);
    claims["nonce"] = json!("n-1");
    *provider.token.lock().unwrap() = token(1, &json!({ "alg": "EdDSA", "kid": "k1" }), &claims);
    let grant = |code: &str, nonce: &str| CodeGrant {
        code: code.to_owned(),
        redirect_uri: "https://firmesh.example.com/login".to_owned(),
        code_verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned(),
        nonce: nonce.to_owned(),
    };
    let public = oidc(&provider.issuer);
    let place = format!("{}/authorize", provider.issuer);
    assert_eq!(public.authorization_endpoint().await, Some(place));
    let who = public.redeem(&grant("good", "n-1")).await.unwrap();
    assert_eq!((who.name.as_str(), who.grants.len()), ("oidc:alice", 1));
    let form = "grant_type=authorization_code&code=good&redirect_uri=https%3A%2F%2Ffirmesh.example.com%2Flogin\
                &code_verifier=dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let asked = || provider.asked.lock().unwrap().clone();
    assert_eq!(asked(), (String::new(), format!("{form}&client_id=firmesh")));

    // Another login's token, a code that was used, parts that are none.
    assert!(matches!(
        public.redeem(&grant("good", "n-2")).await,
        Err(Refusal::Token(_))
    ));
    let Err(Refusal::Code(said)) = public.redeem(&grant("old", "n-1")).await else {
        panic!("a code that was used");
    };
    assert_eq!(said, "400 Bad Request, invalid_grant: usedalready");
    for bad in [grant("", "n-1"), grant("good", ""), grant(&"c".repeat(5_000), "n-1")] {
        assert!(matches!(public.redeem(&bad).await, Err(Refusal::Code(_))));
    }

    // A client with a secret: in the header, or in the form where the provider takes nothing else.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "s:1\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let setting = format!("client_secret = {{ file = '{}' }}", path.display());
    let confidential = || client(&provider.issuer, &setting);
    confidential().redeem(&grant("good", "n-1")).await.unwrap();
    assert_eq!(asked(), ("Basic ZmlybWVzaDpzJTNBMQ==".to_owned(), form.to_owned()));
    *provider.methods.lock().unwrap() = Some(vec!["client_secret_post"]);
    confidential().redeem(&grant("good", "n-1")).await.unwrap();
    assert_eq!(
        asked(),
        (String::new(), format!("{form}&client_id=firmesh&client_secret=s%3A1"))
    );

    // Who gives no codes.
    let silent = oidc("http://127.0.0.1:9");
    assert_eq!(silent.authorization_endpoint().await, None);
    assert!(matches!(
        silent.redeem(&grant("good", "n-1")).await,
        Err(Refusal::ProviderSilent)
    ));
}
