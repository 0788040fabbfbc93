//! Proofs that are not good: tokens that were tampered with, or are for somebody else, and API keys out of their time.

use std::{collections::BTreeSet, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use firmesh_protocol::{
    api::{Limits, NewApiKey, Role},
    time::WallTime,
    trust::SecretKey,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::super::{ApiKey, identity::Means, keys, tokens::Tokens};

const ISSUER: &str = "urn:firmesh:test:tokens";

fn now() -> WallTime {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    WallTime::from_unix_seconds(since.as_secs().cast_signed())
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn tokens() -> Tokens {
    Tokens::new(&key(1), ISSUER.to_owned(), Duration::from_secs(60))
}

fn token(tokens: &Tokens) -> String {
    let issued = tokens.issue(("ldap:alice", Means::Ldap), Vec::new(), BTreeSet::new(), None, now());
    issued.unwrap().0
}

fn part(token: &str, number: usize) -> Value {
    let part = token.split('.').nth(number).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
}

fn encoded(value: &Value) -> String {
    BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

fn signed(number: u8, header: &Value, claims: &Value) -> String {
    let text = format!("{}.{}", encoded(header), encoded(claims));
    let signature = BASE64URL_NOPAD.encode(&key(number).sign(text.as_bytes()));
    format!("{text}.{signature}")
}

#[test]
fn a_token_of_ones_own_is_known_again_and_any_other_is_not() {
    let tokens = tokens();
    let good = token(&tokens);
    let claims = tokens.verify(&good).unwrap();
    assert_eq!((claims.sub.as_str(), claims.means), ("ldap:alice", Means::Ldap));
    let (header, body) = (part(&good, 0), part(&good, 1));
    assert_eq!(
        tokens.verify(&signed(1, &header, &body)).unwrap(),
        claims,
        "the test signs as it is done"
    );
    let signature = good.rsplit('.').next().unwrap().to_owned();
    let with = |name: &str, value: Value| {
        let mut body = body.clone();
        body[name] = value;
        body
    };
    let without = |name: &str| {
        let mut body = body.clone();
        body.as_object_mut().unwrap().remove(name);
        body
    };
    let headed = |name: &str, value: Value| {
        let mut header = header.clone();
        header[name] = value;
        header
    };
    let at = now().unix_seconds();
    // What a confused verifier would take for a shared secret.
    let mut hmac = Header::new(Algorithm::EdDSA);
    hmac.kid = header["kid"].as_str().map(str::to_owned);
    for (what, bad) in [
        (
            "another name",
            format!(
                "{}.{}.{signature}",
                encoded(&header),
                encoded(&with("sub", json!("ldap:root")))
            ),
        ),
        (
            "roles of his own",
            format!(
                "{}.{}.{signature}",
                encoded(&header),
                encoded(&with("grants", json!([{ "role": "admin" }])))
            ),
        ),
        ("no signature", format!("{}.{}.", encoded(&header), encoded(&body))),
        (
            "alg none",
            format!("{}.{}.", encoded(&headed("alg", json!("none"))), encoded(&body)),
        ),
        (
            "alg None",
            format!(
                "{}.{}.{signature}",
                encoded(&headed("alg", json!("None"))),
                encoded(&body)
            ),
        ),
        ("alg HS256", signed(1, &headed("alg", json!("HS256")), &body)),
        ("alg RS256", signed(1, &headed("alg", json!("RS256")), &body)),
        ("another key", signed(2, &header, &body)),
        ("another key id", signed(1, &headed("kid", json!("other")), &body)),
        (
            "no key id",
            signed(1, &json!({ "alg": "EdDSA", "typ": "at+jwt" }), &body),
        ),
        ("another kind", signed(1, &headed("typ", json!("JWT")), &body)),
        (
            "another audience",
            signed(1, &header, &with("aud", json!("somebody-else"))),
        ),
        ("no audience", signed(1, &header, &without("aud"))),
        ("another issuer", signed(1, &header, &with("iss", json!("urn:other")))),
        ("no issuer", signed(1, &header, &without("iss"))),
        ("no end", signed(1, &header, &without("exp"))),
        ("over", signed(1, &header, &with("exp", json!(at - 60)))),
        ("not yet", signed(1, &header, &with("nbf", json!(at + 600)))),
        (
            "an end that is no time",
            signed(1, &header, &with("exp", json!("tomorrow"))),
        ),
        ("means of its own", signed(1, &header, &with("means", json!("king")))),
        ("a fourth part", format!("{good}.x")),
        ("two parts", "a.b".to_owned()),
        ("nothing", String::new()),
    ] {
        assert!(tokens.verify(&bad).is_err(), "{what}");
    }
    // Every single byte counts.
    for place in (0..good.len()).step_by(7) {
        let mut changed = good.clone().into_bytes();
        changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        if changed != good {
            assert!(tokens.verify(&changed).is_err(), "byte {place}");
        }
    }
}

/// A private key signs with its own algorithm, and a public key is no shared secret.
#[test]
fn keys_are_not_confused() {
    let tokens = tokens();
    let der = PrivatePkcs8KeyDer::from_pem_slice(key(1).to_pem().as_bytes()).unwrap();
    let signing = EncodingKey::from_ed_der(der.secret_pkcs8_der());
    let claims = part(&token(&tokens), 1);
    for algorithm in [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256] {
        assert!(encode(&Header::new(algorithm), &claims, &signing).is_err());
    }
    // HS256 with the public key as the secret.
    let public = EncodingKey::from_secret(key(1).public().as_bytes());
    assert!(
        encode(&Header::new(Algorithm::HS256), &claims, &public).is_err(),
        "no shared secrets here"
    );
}

#[test]
fn a_token_lives_no_longer_than_what_it_was_given_for() {
    let tokens = tokens();
    let until = now() + Duration::from_secs(10);
    let issued = tokens.issue(
        ("key:1", Means::ApiKey),
        Vec::new(),
        BTreeSet::new(),
        Some(until),
        now(),
    );
    let (token, ttl) = issued.unwrap();
    assert!(ttl <= Duration::from_secs(10), "{ttl:?}");
    assert!(tokens.verify(&token).unwrap().exp <= until.unix_seconds());
}

fn new(name: &str, role: Role) -> NewApiKey {
    NewApiKey {
        name: name.to_owned(),
        role,
        limits: Limits::default(),
        device: None,
        days: None,
    }
}

#[test]
fn an_api_key_is_good_for_its_time_and_its_old_secret_for_a_while() {
    let start = WallTime::from_unix_seconds(1_800_000_000);
    let day = |count: u64| start + Duration::from_secs(count * 86_400);
    let (made, text) = ApiKey::new(new("robot", Role::Operator), "bootstrap", start).unwrap();
    let (id, first) = keys::parts(&text).unwrap();
    assert_eq!(id, made.id);
    assert_eq!(made.expires, day(90), "ninety days");
    made.is_proven_by(first, day(90)).unwrap();
    assert!(made.is_proven_by(first, day(91)).is_err(), "expired");
    assert!(made.is_proven_by(&"0".repeat(64), start).is_err(), "a guess");
    let stored = serde_json::to_string(&made).unwrap();
    assert!(!stored.contains(first), "the secret itself is stored nowhere");

    let (rotated, text) = made.rotated(None, day(80)).unwrap();
    let (_, second) = keys::parts(&text).unwrap();
    assert_eq!(rotated.expires, day(170));
    rotated.is_proven_by(second, day(160)).unwrap();
    rotated.is_proven_by(first, day(81)).unwrap();
    assert!(rotated.is_proven_by(first, day(82)).is_err(), "a day later");
    let (again, _) = rotated.clone().rotated(Some(0), day(81)).unwrap();
    assert!(again.is_proven_by(first, day(81)).is_err(), "two secrets ago");
    assert!(rotated.clone().rotated(Some(604_801), day(81)).is_err());

    let mut revoked = rotated;
    revoked.revoked = Some(day(100));
    assert!(revoked.is_proven_by(second, day(100)).is_err());
    assert!(revoked.rotated(None, day(100)).is_err());
}

#[test]
fn a_key_that_makes_no_sense_is_not_made() {
    let at = WallTime::from_unix_seconds(0);
    let device = Some("bmc-1".parse().unwrap());
    for bad in [
        new("", Role::Viewer),
        new(" x", Role::Viewer),
        new("a\nb", Role::Viewer),
        new(&"x".repeat(101), Role::Viewer),
        new("a device without a name", Role::Device),
        NewApiKey {
            device: device.clone(),
            ..new("an operator that is a device", Role::Operator)
        },
        NewApiKey {
            days: Some(0),
            ..new("x", Role::Viewer)
        },
        NewApiKey {
            days: Some(367),
            ..new("x", Role::Viewer)
        },
        NewApiKey {
            limits: Limits {
                sites: Some(["berlin".to_owned()].into()),
                ..Limits::default()
            },
            ..new("x", Role::Operator)
        },
    ] {
        assert!(ApiKey::new(bad.clone(), "x", at).is_err(), "{bad:?}");
    }
    ApiKey::new(
        NewApiKey {
            device,
            ..new("a device", Role::Device)
        },
        "x",
        at,
    )
    .unwrap();
    for bad in [
        "",
        "fmk_",
        "fmk_x_y",
        "fmk_0123456789abcdef01234567_short",
        "xyz_0123456789abcdef01234567_",
    ] {
        assert!(keys::parts(bad).is_none(), "{bad}");
    }
}
