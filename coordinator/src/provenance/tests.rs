//! Signatures made by OpenSSL and GnuPG (`tests/golden/provenance/make.sh`), good ones and every kind of bad one.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use firmesh_protocol::time::WallTime;
use proptest::{prelude::*, sample::Index};

use super::{cms::VendorCa, openpgp::Certificates, rsa::RsaKey, *};

/// A signer of a policy: kind, key file, and whatever else its table says.
type Signer<'a> = (&'a str, &'a str, &'a str);

const RSA: Signer<'_> = ("rsa", "rsa.pub", "");
const CMS: Signer<'_> = ("cms", "ca.pem", "");
const PGP: Signer<'_> = ("openpgp", "pgp.asc", "");

#[test]
fn what_openssl_and_gnupg_signed_is_accepted_with_the_signers_name() {
    let mut refused = Vec::new();
    for (signer, signature, algorithm, subject) in [
        (RSA, "rsa.sig", "rsa-2048-sha256", None),
        (("rsa", "rsa-pkcs1.pub", ""), "rsa.sig", "rsa-2048-sha256", None),
        (CMS, "rsa.cms.der", "rsa-2048-sha256", Some("CN=Acme Firmware,O=Acme")),
        (CMS, "rsa.cms.pem", "rsa-2048-sha256", Some("CN=Acme Firmware,O=Acme")),
        (
            CMS,
            "rsa-keyid.cms.der",
            "rsa-2048-sha256",
            Some("CN=Acme Firmware,O=Acme"),
        ),
        (
            CMS,
            "rsa-sha512.cms.der",
            "rsa-2048-sha512",
            Some("CN=Acme Firmware,O=Acme"),
        ),
        (
            CMS,
            "leaf-p256.cms.der",
            "ecdsa-p256-sha256",
            Some("CN=Acme Firmware P-256,O=Acme"),
        ),
        (
            CMS,
            "leaf-p384.cms.der",
            "ecdsa-p384-sha256",
            Some("CN=Acme Firmware P-384,O=Acme"),
        ),
        (
            CMS,
            "p384-sha384.cms.der",
            "ecdsa-p384-sha384",
            Some("CN=Acme Firmware P-384,O=Acme"),
        ),
        (
            (
                "cms",
                "ca.pem",
                "crls = [\"ca.crl\"]\nsubject = \"CN=Acme Firmware P-256,O=Acme\"",
            ),
            "leaf-p256.cms.der",
            "ecdsa-p256-sha256",
            Some("CN=Acme Firmware P-256,O=Acme"),
        ),
        (
            PGP,
            "pgp-rsa.asc",
            "rsa-3072-sha512",
            Some("Acme RSA <rsa@acme.example>"),
        ),
        (
            PGP,
            "pgp-rsa.sig",
            "rsa-3072-sha512",
            Some("Acme RSA <rsa@acme.example>"),
        ),
        (
            ("openpgp", "pgp-rsa.gpg", ""),
            "pgp-rsa.sig",
            "rsa-3072-sha512",
            Some("Acme RSA <rsa@acme.example>"),
        ),
        (
            PGP,
            "pgp-ed25519.asc",
            "ed25519-sha512",
            Some("Acme Ed25519 <ed25519@acme.example>"),
        ),
        (
            PGP,
            "pgp-ed25519.sig",
            "ed25519-sha512",
            Some("Acme Ed25519 <ed25519@acme.example>"),
        ),
        (
            PGP,
            "pgp-p256.sig",
            "ecdsa-p256-sha512",
            Some("Acme P-256 <p256@acme.example>"),
        ),
        (
            PGP,
            "pgp-subkey.sig",
            "ed25519-sha512",
            Some("Acme Subkey <subkey@acme.example>"),
        ),
    ] {
        let verdict = judge(signer, signature, &golden("image.bin"));
        let Some(signed) = verdict.signatures[0].signed_by.as_ref().filter(|_| verdict.accepted) else {
            refused.push(format!("{signature}: {:?}", verdict.findings));
            continue;
        };
        assert_eq!(
            (signed.algorithm.as_str(), signed.subject.as_deref()),
            (algorithm, subject),
            "{signature}"
        );
        assert_eq!(signed.signer, "first");
        assert!(signed.fingerprint.len() >= 40, "{signed:?}");
        assert_eq!(signed.signed_at.is_some(), signer.0 != "rsa", "{signature}");
    }
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn every_bad_signature_is_refused_by_name() {
    let crl = ("cms", "ca.pem", "crls = [\"ca.crl\"]");
    let mut otherwise = Vec::new();
    for (signer, signature, code) in [
        (RSA, "rsa-stranger.sig", "wrong_key"),
        (RSA, "rsa-other.sig", "other_content"),
        (RSA, "rsa-sha1.sig", "weak_digest"),
        (RSA, "rsa-md5.sig", "weak_digest"),
        (RSA, "rsa-pss.sig", "wrong_key"),
        (RSA, "rsa-garbage.sig", "bad_padding"),
        (("rsa", "rsa-e3.pub", ""), "rsa-e3-forged.sig", "bad_padding"),
        (RSA, "rsa.cms.der", "wrong_key"),
        (CMS, "expired.cms.der", "certificate_expired"),
        (CMS, "future.cms.der", "certificate_not_yet_valid"),
        (CMS, "tls.cms.der", "wrong_usage"),
        (CMS, "plain.cms.der", "wrong_usage"),
        (CMS, "encrypt.cms.der", "wrong_usage"),
        (CMS, "stranger.cms.der", "unknown_issuer"),
        (("cms", "stranger-ca.pem", ""), "leaf-p256.cms.der", "unknown_issuer"),
        (CMS, "rsa-no-chain.cms.der", "unknown_issuer"),
        (("cms", "old-ca.pem", ""), "by-old.cms.der", "certificate_expired"),
        (CMS, "weak.cms.der", "weak_key"),
        (crl, "revoked.cms.der", "certificate_revoked"),
        (crl, "rsa.cms.der", "revocation_unknown"),
        (
            ("cms", "ca.pem", "subject = \"CN=Somebody\""),
            "rsa.cms.der",
            "wrong_subject",
        ),
        (CMS, "sha1.cms.der", "weak_digest"),
        (CMS, "no-attributes.cms.der", "no_signed_attributes"),
        (CMS, "no-certificate.cms.der", "no_certificate"),
        (CMS, "attached.cms.der", "not_detached"),
        (CMS, "other.cms.der", "other_content"),
        (CMS, "rsa-pss.cms.der", "unsupported_algorithm"),
        (CMS, "rsa.sig", "malformed"),
        (PGP, "pgp-stranger.sig", "unknown_key"),
        (PGP, "pgp-expired.sig", "key_expired"),
        (PGP, "pgp-revoked.sig", "key_revoked"),
        (PGP, "pgp-weak.sig", "weak_key"),
        (PGP, "pgp-sha1.sig", "weak_digest"),
        (PGP, "pgp-text.sig", "wrong_type"),
        (PGP, "pgp-other.sig", "bad_signature"),
        (PGP, "pgp-short.sig", "signature_expired"),
        (PGP, "pgp-future.sig", "signed_in_the_future"),
        (PGP, "rsa.sig", "malformed"),
        (PGP, "pgp.asc", "malformed"),
    ] {
        let verdict = judge(signer, signature, &golden("image.bin"));
        let first = verdict
            .findings
            .first()
            .map(|finding| (finding.code.as_str(), finding.blocks));
        if verdict.accepted || first != Some((code, true)) || verdict.signatures[0].signed_by.is_some() {
            otherwise.push(format!("{signature} is not {code}: {verdict:?}"));
        }
    }
    assert!(otherwise.is_empty(), "{otherwise:#?}");
}

#[test]
fn one_changed_byte_of_the_image_spoils_every_signature() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(golden("image.bin")).unwrap();
    bytes[2_000] ^= 1;
    let changed = folder.path().join("changed.bin");
    fs::write(&changed, bytes).unwrap();
    for (signer, signature, code) in [
        (RSA, "rsa.sig", "other_content"),
        (CMS, "rsa.cms.der", "other_content"),
        (CMS, "p384-sha384.cms.der", "other_content"),
        (PGP, "pgp-rsa.asc", "bad_signature"),
        (PGP, "pgp-ed25519.sig", "bad_signature"),
    ] {
        let verdict = judge(signer, signature, &changed);
        assert_eq!(
            (verdict.accepted, verdict.findings[0].code.as_str()),
            (false, code),
            "{signature}"
        );
    }
}

#[test]
fn keys_that_are_too_weak_do_not_even_load() {
    let error = policy(&[("rsa", "rsa-1024.pub", "")], "").unwrap_err();
    assert!(
        crate::chain(&error).contains("weak_key: the RSA key has 1024 bits"),
        "{error:?}"
    );
    for (signer, says) in [
        (("rsa", "ca.pem", ""), "RSA public key in PEM"),
        (("cms", "rsa.pub", ""), "CA certificates in PEM"),
        (("openpgp", "rsa.pub", ""), "OpenPGP public keys"),
        (("rsa", "absent.pub", ""), "absent.pub"),
        (("rsa", "rsa.pub", "subject = \"CN=x\""), "for cms signers"),
    ] {
        let error = policy(&[signer], "").unwrap_err();
        assert!(crate::chain(&error).contains(says), "{signer:?}: {error:?}");
    }
}

#[test]
fn the_policy_says_who_must_have_signed_and_whether_it_matters() {
    let both = [RSA, PGP];
    let signed = |rules: &str, signatures: &[&str]| {
        let policy = policy(&both, rules).unwrap();
        Verdict::of(
            &policy,
            "Acme",
            &image(&golden("image.bin")),
            &evidence(signatures),
            now(),
            None,
        )
    };
    assert!(signed("", &["rsa.sig"]).accepted);
    assert_eq!(signed("", &[]).findings[0].code, "signature_missing");
    assert!(signed("signers_min = 0", &[]).accepted);
    assert!(
        !signed("signers_min = 2", &["rsa.sig", "rsa.sig"]).accepted,
        "one signer twice is not two"
    );
    assert!(signed("signers_min = 2", &["rsa.sig", "pgp-rsa.asc"]).accepted);
    assert!(!signed("require_kinds = [\"openpgp\"]", &["rsa.sig"]).accepted);
    assert!(!signed("require_signers = [\"second\"]", &["rsa.sig"]).accepted);
    assert!(signed("require_signers = [\"second\"]", &["pgp-rsa.asc"]).accepted);
    assert!(
        !signed("", &["rsa.sig", "pgp-other.sig"]).accepted,
        "a bad signature beside a good one"
    );
    let recorded = signed("enforce = false", &["pgp-other.sig"]);
    assert!(recorded.accepted && recorded.findings.len() == 2, "{recorded:?}");
    assert_eq!(
        signed("sbom = \"required\"", &["rsa.sig"]).findings[0].code,
        "sbom_missing"
    );

    let known = policy(&both, "").unwrap();
    let verdict = Verdict::of(
        &known,
        "Acne",
        &image(&golden("image.bin")),
        &evidence(&["rsa.sig"]),
        now(),
        None,
    );
    assert_eq!(
        (verdict.accepted, verdict.findings[0].code.as_str()),
        (false, "vendor_unlisted")
    );
    for (rules, says) in [
        ("signers_min = 3", "lists 2"),
        ("require_kinds = [\"cms\"]", "no signer is listed"),
        ("require_signers = [\"third\"]", "not listed"),
        ("enforced = false", "expected form"),
        (
            "accept_advisory = [{ id = \"CVE-1\", reason = \" \" }]",
            "without a reason",
        ),
    ] {
        let error = policy(&both, rules).unwrap_err();
        assert!(crate::chain(&error).contains(says), "{rules}: {}", crate::chain(&error));
    }
}

/// Another person signs the release later, with the digest at hand but not the image.
#[test]
fn without_the_image_what_its_sha256_can_tell_is_checked_and_the_rest_asks_for_it() {
    let measured = image(&golden("image.bin"));
    let artifact = firmesh_protocol::manifest::Artifact {
        id: [0; 32].into(),
        sha256: measured.sha256(),
        length: measured.length(),
    };
    for (signer, signature, code) in [
        (RSA, "rsa.sig", None),
        (CMS, "rsa.cms.der", None),
        (RSA, "rsa-other.sig", Some("other_content")),
        (CMS, "rsa-sha512.cms.der", Some("image_needed")),
        (PGP, "pgp-rsa.asc", Some("image_needed")),
    ] {
        let policy = policy(&[signer], "").unwrap();
        let verdict = Verdict::of(
            &policy,
            "Acme",
            &Image::known(&artifact),
            &evidence(&[signature]),
            now(),
            None,
        );
        assert_eq!(
            verdict.findings.first().map(|finding| finding.code.as_str()),
            code,
            "{signature}"
        );
    }
}

#[test]
fn an_image_that_changes_while_it_is_judged_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.bin");
    fs::write(&path, b"what was measured").unwrap();
    let measured = image(&path);
    fs::copy(golden("image.bin"), &path).unwrap();
    let policy = policy(&[PGP], "").unwrap();
    let verdict = Verdict::of(&policy, "Acme", &measured, &evidence(&["pgp-rsa.asc"]), now(), None);
    assert_eq!(verdict.findings[0].code, "image_unreadable", "{verdict:?}");
}

#[test]
fn a_verdict_survives_being_stored() {
    let verdict = judge(CMS, "rsa.cms.der", &golden("image.bin"));
    assert_eq!(serde_json::from_slice::<Verdict>(&verdict.to_bytes()).unwrap(), verdict);
}

fn seeds(names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| read(name)).collect()
}

fn read(name: &str) -> Vec<u8> {
    fs::read(golden(name)).unwrap()
}

/// Bytes of a good file, with stretches overwritten, cut out or doubled.
pub(super) fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<Index>(), any::<u8>(), 0..4_u8, 0..16_usize);
    (proptest::sample::select(seeds), proptest::collection::vec(change, 0..6)).prop_map(|(mut bytes, changes)| {
        for (at, byte, how, length) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => drop(bytes.drain(at..end)),
                _ => {
                    let doubled = bytes[at..end].to_vec();
                    bytes.splice(at..at, doubled);
                }
            }
        }
        bytes
    })
}

static IMAGE: LazyLock<Image> = LazyLock::new(|| image(&golden("image.bin")));
static RSA_KEY: LazyLock<RsaKey> = LazyLock::new(|| RsaKey::from_pem(&read("rsa.pub")).unwrap());
static CA: LazyLock<VendorCa> = LazyLock::new(|| VendorCa::new(&read("ca.pem"), &[], None).unwrap());
static KEYS: LazyLock<Certificates> = LazyLock::new(|| Certificates::read(&read("pgp.asc")).unwrap());
static RSA_SIGNATURE: LazyLock<Vec<u8>> = LazyLock::new(|| read("rsa.sig"));
static PGP_SIGNATURE: LazyLock<Vec<u8>> = LazyLock::new(|| read("pgp-rsa.sig"));

proptest! {
    #[test]
    fn no_rsa_signature_or_key_crashes_the_reader(
        signature in mutated(seeds(&["rsa.sig"])),
        key in mutated(seeds(&["rsa.pub", "rsa-pkcs1.pub"])),
    ) {
        let accepted = RSA_KEY.verify(&signature, &IMAGE).is_ok();
        prop_assert_eq!(accepted, signature == *RSA_SIGNATURE);
        if let Ok(key) = RsaKey::from_pem(&key) {
            let _ = key.verify(&RSA_SIGNATURE, &IMAGE);
        }
    }

    #[test]
    fn no_cms_signature_crashes_the_reader(signature in mutated(seeds(&[
        "rsa.cms.der", "rsa.cms.pem", "leaf-p256.cms.der", "attached.cms.der", "no-attributes.cms.der",
    ]))) {
        let _ = CA.verify(&signature, &IMAGE, now());
    }

    #[test]
    fn no_certificate_or_revocation_list_crashes_the_reader(
        pem in mutated(seeds(&["ca.pem"])),
        crl in mutated(seeds(&["ca.crl"])),
    ) {
        let _ = VendorCa::new(&pem, &[crl], None);
    }

    #[test]
    fn no_openpgp_signature_crashes_the_reader(signature in mutated(seeds(&[
        "pgp-rsa.asc", "pgp-rsa.sig", "pgp-ed25519.sig", "pgp-p256.sig", "pgp-subkey.sig",
    ]))) {
        let _ = KEYS.verify(&signature, &IMAGE, now());
    }

    #[test]
    fn no_openpgp_key_crashes_the_reader(keys in mutated(seeds(&["pgp.asc", "pgp-rsa.gpg"]))) {
        if let Ok(keys) = Certificates::read(&keys) {
            let _ = keys.verify(&PGP_SIGNATURE, &IMAGE, now());
        }
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/provenance")
        .join(name)
}

fn now() -> WallTime {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn image(path: &Path) -> Image {
    Image::read(path).unwrap()
}

fn evidence(signatures: &[&str]) -> Evidence {
    let read = |name: &&str| SignatureFile {
        kind: match name {
            name if name.contains(".cms.") => Kind::Cms,
            name if name.starts_with("pgp") => Kind::Openpgp,
            _ => Kind::Rsa,
        },
        bytes: fs::read(golden(name)).unwrap(),
    };
    Evidence {
        signatures: signatures.iter().map(read).collect(),
        sbom: None,
    }
}

/// A policy for the vendor Acme; its signers are called first, second ...
fn policy(signers: &[Signer<'_>], rules: &str) -> Result<Policy, PolicyLoadError> {
    let folder = tempfile::tempdir().unwrap();
    let mut text = format!("schema = {POLICY_SCHEMA:?}\n[[vendor]]\nname = \"Acme\"\n{rules}\n");
    for ((kind, file, more), name) in signers.iter().zip(["first", "second", "third"]) {
        let more = more.replace("\"ca.crl\"", &format!("{:?}", golden("ca.crl").display().to_string()));
        let file = golden(file).display().to_string();
        write!(
            text,
            "[[vendor.signer]]\nname = {name:?}\nkind = {kind:?}\nfile = {file:?}\n{more}\n"
        )
        .unwrap();
    }
    let path = folder.path().join("policy.toml");
    fs::write(&path, text).unwrap();
    Policy::load(&path)
}

fn judge(signer: Signer<'_>, signature: &str, path: &Path) -> Verdict {
    let policy = policy(&[signer], "").unwrap();
    let mut evidence = evidence(&[signature]);
    // Whatever lies in the file, it is presented as what the signer signs with.
    evidence.signatures[0].kind = match signer.0 {
        "rsa" => Kind::Rsa,
        "cms" => Kind::Cms,
        _ => Kind::Openpgp,
    };
    Verdict::of(&policy, "Acme", &image(path), &evidence, now(), None)
}
