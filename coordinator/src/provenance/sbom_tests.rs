//! SBOMs of both formats against advisories, and what is wrong with bad ones.

use std::{fs, path::Path};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[test]
fn both_formats_tell_what_is_in_the_image() {
    let cyclonedx = Sbom::from_bytes(&read("cyclonedx.json")).unwrap();
    assert_eq!(
        (cyclonedx.format, cyclonedx.spec_version.as_str()),
        (SbomFormat::CycloneDx, "1.6")
    );
    let names: Vec<_> = cyclonedx
        .components
        .iter()
        .map(|component| component.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "openssl",
            "libcrypto.so.3",
            "busybox",
            "org.example/agent",
            "rand",
            "zlib",
            "acme-bmc"
        ]
    );
    let spdx = Sbom::from_bytes(&read("spdx.json")).unwrap();
    assert_eq!(
        (spdx.format, spdx.spec_version.as_str()),
        (SbomFormat::Spdx, "SPDX-2.3")
    );
    assert_eq!(
        spdx.components[1].purl.as_ref().unwrap().namespace.as_deref(),
        Some("debian")
    );
    let image = firmesh_protocol::ids::Sha256::of(&read("image.bin")).to_string();
    assert_eq!(
        (&cyclonedx.subjects, &spdx.subjects),
        (&vec![image.clone()], &vec![image])
    );
}

#[test]
fn advisories_match_by_package_and_version_and_the_worst_comes_first() {
    let mut advisories = Advisories::default();
    advisories.add(&read("osv.json")).unwrap();
    assert_eq!(advisories.count(), 7, "a withdrawn one was kept");
    let found = |sbom: &str| {
        let sbom = Sbom::from_bytes(&read(sbom)).unwrap();
        let found = advisories.matches(&sbom).into_iter();
        found
            .map(|found| (found.id, found.severity, found.fixed))
            .collect::<Vec<_>>()
    };
    let expected = [
        ("ZLIB-ANY", Severity::Unknown, Some("1.2.12")),
        ("BUSYBOX-1", Severity::Critical, None),
        ("AGENT-EXACT", Severity::Medium, None),
        ("DEBIAN-CVE-2024-0727", Severity::Medium, Some("3.0.13-1~deb12u1")),
    ];
    let expected = expected.map(|(id, severity, fixed)| (id.to_owned(), severity, fixed.map(str::to_owned)));
    assert_eq!(found("cyclonedx.json"), expected);
    assert_eq!(found("spdx.json"), [expected[1].clone(), expected[3].clone()]);
}

#[test]
fn one_record_a_list_and_an_answer_of_a_database_are_all_read() {
    let records: Vec<Value> = serde_json::from_slice(&read("osv.json")).unwrap();
    for text in [
        records[0].to_string(),
        json!({ "vulns": [records[0]] }).to_string(),
        json!([records[0]]).to_string(),
    ] {
        let mut advisories = Advisories::default();
        advisories.add(text.as_bytes()).unwrap();
        assert_eq!(advisories.count(), 1, "{text}");
    }
    for (change, says) in [
        (json!({ "id": "" }), "must have an id"),
        (
            json!({ "affected": [{ "ranges": [{ "type": "LATER", "events": [] }] }] }),
            "is not known",
        ),
        (
            json!({ "affected": [{ "ranges": [{ "type": "SEMVER", "events": [{ "fixed": "1" }] }] }] }),
            "introduced",
        ),
        (
            json!({ "affected": [{ "package": { "ecosystem": "x", "name": "y", "purl": "y" } }] }),
            "package URL",
        ),
        (json!({ "affected": 1 }), "OSV records"),
    ] {
        let mut record = records[0].clone();
        record
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let error = Advisories::default().add(record.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains(says), "{change}: {error}");
    }
}

#[test]
fn an_sbom_that_is_not_one_is_refused_by_name() {
    let cyclonedx = |change: Value| changed("cyclonedx.json", change);
    let spdx = |change: Value| changed("spdx.json", change);
    for (bytes, code, says) in [
        (b"<bom/>".to_vec(), "sbom_malformed", "form"),
        (b"{}".to_vec(), "sbom_unknown_format", "neither"),
        (
            cyclonedx(json!({ "bomFormat": "Cyclone" })),
            "sbom_unknown_format",
            "Cyclone",
        ),
        (cyclonedx(json!({ "specVersion": "1.1" })), "sbom_unknown_format", "1.1"),
        (
            cyclonedx(json!({ "spdxVersion": "SPDX-2.3" })),
            "sbom_unknown_format",
            "neither",
        ),
        (
            cyclonedx(json!({ "components": [{ "type": "library" }] })),
            "sbom_malformed",
            "form",
        ),
        (
            cyclonedx(json!({ "components": [{ "type": "library", "name": "" }] })),
            "sbom_malformed",
            "must have a name",
        ),
        (
            cyclonedx(json!({ "components": [{ "type": "library", "name": "x", "purl": "x" }] })),
            "sbom_malformed",
            "pkg:",
        ),
        (
            cyclonedx(
                json!({ "components": [{ "type": "library", "name": "x", "hashes": [{ "alg": "SHA-256", "content": "00" }] }] }),
            ),
            "sbom_malformed",
            "64 hexadecimal",
        ),
        (
            cyclonedx(json!({ "components": [nested(40)] })),
            "sbom_malformed",
            "deeper",
        ),
        (
            cyclonedx(json!({ "components": [nested(200)] })),
            "sbom_malformed",
            "form",
        ),
        (
            spdx(json!({ "spdxVersion": "SPDX-3.0" })),
            "sbom_unknown_format",
            "SPDX-3.0",
        ),
        (spdx(json!({ "dataLicense": "MIT" })), "sbom_malformed", "CC0"),
        (spdx(json!({ "SPDXID": "x" })), "sbom_malformed", "SPDXRef-DOCUMENT"),
        (
            spdx(json!({ "creationInfo": { "created": "today", "creators": ["x"] } })),
            "sbom_malformed",
            "when",
        ),
    ] {
        let error = Sbom::from_bytes(&bytes).unwrap_err();
        let told = crate::chain(&error);
        assert!(
            error.code() == code && told.contains(says),
            "{code} {says}: {} {told}",
            error.code()
        );
    }
    let endless = vec![b' '; SBOM_BYTES_MAX as usize + 1];
    assert_eq!(Sbom::from_bytes(&endless).unwrap_err().code(), "sbom_too_large");
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(
        json!({ "type": "library", "name": "x" }),
        |inner, _| json!({ "type": "library", "name": "x", "components": [inner] }),
    )
}

fn changed(name: &str, change: Value) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(&read(name)).unwrap();
    value
        .as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    value.to_string().into_bytes()
}

fn read(name: &str) -> Vec<u8> {
    fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/provenance")
            .join(name),
    )
    .unwrap()
}

proptest! {
    #[test]
    fn no_sbom_crashes_the_reader(bytes in tests::mutated(vec![read("cyclonedx.json"), read("spdx.json")])) {
        let _ = Sbom::from_bytes(&bytes);
    }

    #[test]
    fn no_advisory_crashes_the_reader_or_the_matching(bytes in tests::mutated(vec![read("osv.json")])) {
        let mut advisories = Advisories::default();
        if advisories.add(&bytes).is_ok() {
            let _ = advisories.matches(&Sbom::from_bytes(&read("cyclonedx.json")).unwrap());
        }
    }

    #[test]
    fn no_package_url_crashes_the_reader(text in "pkg:[a-z%@/?#.0-9]{0,40}|\\PC{0,40}") {
        if let Ok(purl) = text.parse::<Purl>() {
            prop_assert!(!purl.name.is_empty());
        }
    }

    #[test]
    fn every_two_versions_have_one_order(a in "[0-9a-z.~:+-]{0,12}", b in "[0-9a-z.~:+-]{0,12}", is_debian: bool) {
        prop_assert_eq!(version::compare(&a, &b, is_debian), version::compare(&b, &a, is_debian).reverse());
    }
}
