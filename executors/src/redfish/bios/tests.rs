//! Documents against BIOSes: what they are called, what is refused, and what is written.

use std::sync::Arc;

use firmesh_executors_core::Observed;
use firmesh_protocol::ids::ArtifactId;
use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::json;

use super::{
    super::tests::{Script, image_of},
    *,
};
use crate::{
    backend::DeviceBackend,
    image::{ImageReader, ImageSource},
};

fn held(version: &str, attributes: Value) -> Held {
    let bytes = document(version, attributes);
    Held {
        sha256: Sha256::of(&bytes),
        document: Document::parse(&bytes).unwrap(),
    }
}

fn document(version: &str, attributes: Value) -> Vec<u8> {
    let body = json!({ "schema": "firmesh-bios-settings/1", "version": version, "attributes": attributes });
    body.to_string().into_bytes()
}

fn bios(attributes: Value, pending: Value) -> Bios {
    Bios {
        attributes: serde_json::from_value(attributes).unwrap(),
        registry: None,
        settings: Some(Pending {
            link: "/bios/pending".to_owned(),
            attributes: serde_json::from_value(pending).unwrap(),
            ..Pending::default()
        }),
    }
}

#[test]
fn a_device_is_called_by_the_document_that_its_attributes_bear_out() {
    let old = held("1", json!({ "Boot": "Bios", "Cores": 4 }));
    let new = held("2", json!({ "Boot": "Uefi", "Cores": 8 }));
    let none = Books::default();
    let books = Books {
        wanted: Some(new.clone()),
        held: Some(old.clone()),
        ..Books::default()
    };
    let is = |boot: &str, cores: u8| json!({ "Boot": boot, "Cores": cores, "Other": true });
    for (books, known, attributes, pending, version, waits) in [
        (&none, &[][..], is("Bios", 4), json!({}), UNMANAGED, false),
        (&none, &[old.clone()][..], is("Bios", 4), json!({}), "1", false),
        (
            &none,
            &[old.clone()][..],
            is("Bios", 5),
            json!({}),
            "1 but for Cores",
            false,
        ),
        (
            &books,
            &[][..],
            is("Bios", 4),
            json!({ "Boot": "Uefi", "Cores": 8 }),
            "1",
            true,
        ),
        // What waits only in part does not wait.
        (&books, &[][..], is("Bios", 4), json!({ "Boot": "Uefi" }), "1", false),
        // The BMC shows what it has applied in both places.
        (
            &books,
            &[][..],
            is("Uefi", 8),
            json!({ "Boot": "Uefi", "Cores": 8 }),
            "2",
            false,
        ),
        // Half of it came to be: neither the one nor the other.
        (&books, &[][..], is("Uefi", 4), json!({}), "1 but for Boot", false),
    ] {
        let standing = Standing::of(books, known, &bios(attributes.clone(), pending));
        assert_eq!(standing.version, version, "{attributes}");
        let is_waiting = matches!(standing.staged, Staged::Image { armed: true, .. });
        assert_eq!(is_waiting, waits, "{attributes}");
    }
}

#[test]
fn what_an_attribute_cannot_be_is_refused_by_its_name() {
    let current = json!({ "Boot": "Bios", "Cores": 4, "Serial": "x", "Quiet": false, "Admin": "" });
    let current: BTreeMap<String, Value> = serde_json::from_value(current).unwrap();
    let entries = json!({
        "Boot": { "Type": "Enumeration", "Value": [{ "ValueName": "Bios" }, { "ValueName": "Uefi" }] },
        "Cores": { "Type": "Integer", "LowerBound": 1, "UpperBound": 8 },
        "Serial": { "Type": "String", "ReadOnly": true },
        "Quiet": { "Type": "Boolean" },
        "Admin": { "Type": "Password" },
    });
    let registry: registry::Registry = serde_json::from_value(entries).unwrap();
    for (wanted, with, without) in [
        (
            json!({ "Boot": "Uefi", "Cores": 8, "Quiet": true, "Serial": "x" }),
            "",
            "",
        ),
        (
            json!({ "Nothing": 1 }),
            "Nothing is no attribute of this BIOS",
            "Nothing is no attribute of this BIOS",
        ),
        (
            json!({ "Boot": "Net" }),
            "Boot cannot be \"Net\": there are Bios, Uefi",
            "",
        ),
        (json!({ "Cores": 9 }), "Cores cannot be 9: it is 8 at most", ""),
        (
            json!({ "Cores": "8" }),
            "Cores is of the type Integer, and cannot be \"8\"",
            "Cores is of another type than \"8\"",
        ),
        (
            json!({ "Serial": "y" }),
            "Serial is read-only, and is \"x\" where \"y\" is wanted",
            "",
        ),
        (
            json!({ "Admin": "p" }),
            "Admin is a password: what is signed is for everybody to read",
            "",
        ),
    ] {
        let wanted = held("1", wanted).document.attributes;
        assert_eq!(
            registry::objections(&wanted, &current, Some(&registry)).join("; "),
            with
        );
        assert_eq!(registry::objections(&wanted, &current, None).join("; "), without);
    }
}

#[derive(Debug)]
struct OneDocument(Vec<u8>);

impl ImageSource for OneDocument {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        let reader: ImageReader = Box::pin(std::io::Cursor::new(self.0.clone()));
        async { Ok(reader) }.boxed()
    }

    fn url(&self, _artifact: ArtifactId) -> String {
        unreachable!("settings are not pulled")
    }
}

const SYSTEM: &str = r##"{"Manufacturer":"Acme","Model":"R1","PowerState":"On","Bios":{"@odata.id":"/bios"}}"##;

/// What differs is written, and nothing else; a document that cannot be had whole changes nothing at all.
#[tokio::test]
async fn attributes_that_differ_wait_for_a_reset_and_a_document_with_one_that_cannot_be_is_not_written() {
    let body = r#"{"Attributes":{"Boot":"Bios","Cores":4},"@Redfish.Settings":{"SettingsObject":{"@odata.id":"/pending"},
        "SupportedApplyTimes":["Immediate","OnReset"]}}"#;
    for (attributes, pending, outcome) in [
        (
            json!({ "Boot": "Uefi", "Cores": 4 }),
            r#"{"@odata.etag":"W/7","Attributes":{}}"#,
            Ok(()),
        ),
        (
            json!({ "Boot": "Uefi", "Gone": 1 }),
            r#"{"Attributes":{}}"#,
            Err("Gone is no attribute of this BIOS"),
        ),
        (
            json!({ "Boot": "Uefi" }),
            r#"{"Attributes":{"Cores":8}}"#,
            Err("settings of somebody else wait for a reset, which would apply them too: Cores"),
        ),
    ] {
        let work = tempfile::tempdir().unwrap();
        let bmc = Script::start(&[
            ("GET /redfish/v1/Systems/1", SYSTEM),
            ("GET /bios", body),
            ("GET /pending", pending),
            ("PATCH /pending", "202"),
        ])
        .await;
        let bytes = document("2", attributes);
        let image = image_of(&bytes, "2");
        let settings = BiosSettings {
            work_dir: work.path().join("d1"),
            documents: vec![held("1", json!({ "Boot": "Bios", "Cores": 4 }))],
        };
        let redfish = bmc.backend_of("bios-settings", Arc::new(OneDocument(bytes)), |config| {
            config.bios_settings = Some(settings.clone());
        });
        let backend = BiosBackend::new(redfish, settings);
        let Observed::Answering(seen) = backend.observe(None).await else {
            panic!("silent")
        };
        assert_eq!(seen.version.as_deref(), Some("1"));
        let staged = backend.stage(&image, None).await;
        let written = bmc.heard("PATCH /pending").await;
        match outcome {
            Ok(()) => {
                staged.unwrap();
                assert_eq!(written.len(), 1);
                assert!(written[0].contains("if-match: W/7"), "{}", written[0]);
                let body: Value = serde_json::from_str(written[0].split("\r\n\r\n").nth(1).unwrap()).unwrap();
                let wanted = json!({ "Attributes": { "Boot": "Uefi" }, "@Redfish.SettingsApplyTime": { "ApplyTime": "OnReset" } });
                assert_eq!(body, wanted);
                let books = Books::read(&work.path().join("d1")).unwrap();
                assert_eq!(books.wanted.unwrap().document.version, "2");
                assert_eq!(books.held.unwrap().document.version, "1");
            }
            Err(words) => {
                let error = staged.unwrap_err();
                assert!(!error.retry && error.reason.contains(words), "{error:?}");
                assert!(written.is_empty(), "{written:?}");
            }
        }
    }
}
