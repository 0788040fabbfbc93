//! Whose dialect is spoken, and what is no dialect.

use super::{
    super::{Method, is_like},
    *,
};

fn speaker(vendor: &str, model: &str, firmware: &str) -> Speaker {
    Speaker {
        vendors: vec![vendor.to_owned()],
        models: vec![model.to_owned()],
        firmware: Some(firmware.to_owned()),
    }
}

#[test]
fn each_maker_is_spoken_to_in_their_own_dialect_and_strangers_by_the_book() {
    let dialects = Dialects::new(&[], None).unwrap();
    for (vendor, model, firmware, name) in [
        ("Dell Inc.", "PowerEdge R760", "7.10.30.00", "dell"),
        ("Dell", "", "", "dell"),
        ("HPE", "ProLiant DL380 Gen11", "iLO 6 v1.55", "hpe"),
        ("SMCI", "", "", "supermicro"),
        ("Supermicro", "SYS-621C", "01.01.12", "supermicro"),
        ("Lenovo", "ThinkSystem SR650 V3", "", "lenovo"),
        ("Anybody", "OpenBmc", "2.14.0", "openbmc"),
        ("Acme", "R1", "1.0", "generic"),
        ("", "", "", "generic"),
    ] {
        assert_eq!(
            dialects.of(&speaker(vendor, model, firmware)).name(),
            name,
            "{vendor} {model}"
        );
    }
    let chosen = Dialects::new(&[], Some("hpe".to_owned())).unwrap();
    assert_eq!(chosen.of(&speaker("Dell", "", "")).name(), "hpe");
    let error = Dialects::new(&[], Some("klingon".to_owned())).unwrap_err();
    assert!(error.contains("is no dialect: there are dell, generic"), "{error}");
}

const OWN: &str = "schema = \"firmesh-redfish/1\"\nname = \"dell_old\"\n\
    [match]\nvendor = [\"Dell*\"]\nfirmware = { below = \"5.0\" }\n[update]\nmethods = [\"simple_update\"]\n";

fn own(text: &str) -> Result<Dialects, String> {
    Dialects::new(&[("own.toml".to_owned(), text.to_owned())], None)
}

#[test]
fn an_own_file_takes_a_range_of_firmware_out_of_a_dialect_or_the_place_of_all_of_it() {
    let dialects = own(OWN).unwrap();
    for (firmware, name) in [
        ("4.40.00.00", "dell_old"),
        ("5.0", "dell"),
        ("7.10.30.00", "dell"),
        ("?", "dell"),
    ] {
        assert_eq!(
            dialects.of(&speaker("Dell Inc.", "", firmware)).name(),
            name,
            "{firmware}"
        );
    }
    let replaced = own(&OWN
        .replace("dell_old", "dell")
        .replace("firmware = { below = \"5.0\" }", ""))
    .unwrap();
    assert_eq!(
        replaced.of(&speaker("Dell", "", "9")).update.methods,
        [Method::SimpleUpdate]
    );
}

#[test]
fn what_is_not_understood_is_refused_with_the_file_and_the_reason() {
    for (from, to, words) in [
        (
            "firmesh-redfish/1",
            "firmesh-redfish/9",
            "must be \"firmesh-redfish/1\"",
        ),
        ("\"dell_old\"", "\"Dell old\"", "must be a-z, 0-9 and _"),
        ("[\"simple_update\"]", "[]", "needs update.methods"),
        ("[\"simple_update\"]", "[\"form\"]", "needs update.form"),
        ("[\"simple_update\"]", "[\"telepathy\"]", "telepathy"),
        ("[update]", "[update]\nmood = 1", "mood"),
        ("[update]", "[update]\ntask_at = [\"x\"]", "must begin with /"),
        ("[update]", "[update]\nfile_name = \"../x\"", "has the name \"../x\""),
        ("[update]", "[update]\nsession_cookie = \"a;b\"", "letters and digits"),
        ("{ below = \"5.0\" }", "{}", "neither `from` nor `below`"),
        (
            "[update]",
            "[task]\ncompleted = [\"A\"]\nfailed = [\"A\"]\n[update]",
            "gives the state A two meanings",
        ),
        (
            "[update]",
            "[component.bmc]\nreset = [\"cold\", \"warm\"]\n[update]",
            "bmc, warm, cold, ac in this order",
        ),
        (
            "[update]",
            "[component.bmc]\ntargets = [\"https://evil/\"]\n[update]",
            "must begin with /redfish/",
        ),
    ] {
        let text = OWN.replace(from, to);
        assert_ne!(text, OWN);
        let error = own(&text).unwrap_err();
        assert!(error.contains("own.toml") && error.contains(words), "{error}");
    }
    let twice = [
        ("a.toml".to_owned(), OWN.to_owned()),
        ("b.toml".to_owned(), OWN.to_owned()),
    ];
    assert!(Dialects::new(&twice, None).unwrap_err().contains("so has another file"));
}

#[test]
fn the_example_of_the_readme_is_a_dialect() {
    let (_, after) = include_str!("../../README.md").rsplit_once("```toml\n").unwrap();
    let (example, _) = after.split_once("```").unwrap();
    let dialects = own(example).unwrap();
    assert_eq!(dialects.of(&speaker("Acme Corp", "R17", "1.9")).name(), "acme_old");
    assert_eq!(dialects.of(&speaker("Acme Corp", "R17", "2.0")).name(), "generic");
    assert!(own(&example.replace("# [progress]", "[progress]")).is_ok());
    let form = example.replace("# form", "form").replace("\"http_push\"]", "\"form\"]");
    assert!(own(&form.replace("]; or", "] #")).is_ok());
}

#[test]
fn patterns_match_as_a_person_reads_them() {
    for (text, pattern, matches) in [
        ("SMC.1.0.OemLicenseNotPassed", "SMC.*.OemLicenseNotPassed", true),
        ("SMC.1.0.OemLicenseNotPassedX", "SMC.*.OemLicenseNotPassed", false),
        ("Installed-159-2.1__BIOS.Setup.1-1", "Installed-*__BIOS.*", true),
        ("Previous-159-2.1__BIOS.Setup.1-1", "Installed-*__BIOS.*", false),
        ("bios", "BIOS", true),
        ("", "*", true),
        ("ab", "ab*b", false),
        ("aXbXc", "a*b*c", true),
    ] {
        assert_eq!(is_like(text, pattern), matches, "{text} {pattern}");
    }
}
