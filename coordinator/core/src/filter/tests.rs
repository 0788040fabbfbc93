use firmesh_protocol::{
    ids::{Component, DeviceId, LabelName, TopologyPath},
    labels::Labels,
    report::DeviceFacts,
};
use proptest::prelude::*;

use super::*;

#[test]
fn a_filter_picks_the_devices_it_describes() {
    for (text, expected) in [
        (r#"vendor == "Acme""#, true),
        (r#"vendor == "acme""#, false),
        (r#"model in ["R1", "R2"] and path under "eu/ber""#, true),
        (r#"path under "eu/be""#, false),
        (r#"path == "eu/ber/r1/n1""#, true),
        (r#"not version == "1.0""#, false),
        (
            r#"version != "1.1" and not (state == "failed" or campaign == "spring")"#,
            false,
        ),
        (r#"state == "success" and campaign in ["winter", "spring"]"#, true),
        (r#"device == "d2" or node == "n1""#, true),
        (r#"device == "d2" or node == "n1" and executor == "ab_slot""#, false),
        (r#"(device == "d2" or node == "n1") and component == "bmc""#, true),
        (r#"label "power_feed" == "a1""#, true),
        (r#"label "power_feed" in ["b1", "b2"]"#, false),
        (r#"not label "power_feed" == "a1" or label "cluster" == "k3""#, false),
    ] {
        let filter: Filter = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(filter.matches(&candidate(&facts(Some("1.0")))), expected, "{text}");
    }
}

#[test]
fn what_a_device_does_not_have_equals_nothing() {
    let mut silent = facts(None);
    silent.vendor = String::new();
    let device = Candidate {
        attempt: None,
        ..candidate(&silent)
    };
    for (text, expected) in [
        (r#"version == """#, false),
        (r#"version in ["", "1.0"]"#, false),
        (r#"version != "1.0""#, true),
        (r#"state != "success""#, true),
        (r#"campaign == "spring""#, false),
        (r#"label "cluster" == """#, false),
        (r#"label "cluster" != "k3""#, true),
        (r#"vendor == """#, true),
    ] {
        assert_eq!(text.parse::<Filter>().unwrap().matches(&device), expected, "{text}");
    }
}

/// Nothing here knows whose a device is: who knows puts the devices in its place.
#[test]
fn what_identifies_a_device_is_replaced_by_the_devices_that_it_identifies() {
    let device = facts(Some("1.0"));
    let known = |field, text: &str| match (field, text) {
        (Field::Hostname, "lobby") => vec!["d1".to_owned()],
        (Field::Owner, "ada") => vec!["d1".to_owned(), "d2".to_owned()],
        _ => Vec::new(),
    };
    for (text, expected) in [
        (r#"hostname == "lobby""#, true),
        (r#"hostname == "hall""#, false),
        (r#"hostname != "lobby""#, false),
        (r#"hostname != "hall""#, true),
        (r#"not owner in ["ada", "bob"]"#, false),
        (r#"owner in ["bob", "ada"] and vendor == "Acme""#, true),
        (r#"hardware_id == "1" or hostname == "lobby""#, true),
        (
            r#"hardware_id == "1" or asset_tag == "1" or address == "::1" or contact == "x""#,
            false,
        ),
    ] {
        let filter: Filter = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(filter.looks_at(&Field::is_of_identity), "{text}");
        assert!(!filter.identities().is_empty());
        let found = filter.with_devices(&known);
        assert!(
            !found.looks_at(&Field::is_of_identity) && found.identities().is_empty(),
            "{text}"
        );
        assert_eq!(found.matches(&candidate(&device)), expected, "{text}");
    }
    let unknown: Filter = r#"owner == "ada""#.parse().unwrap();
    assert!(
        !unknown.matches(&candidate(&device)),
        "what nobody has looked up equals nothing"
    );
}

#[test]
fn a_mistake_is_named_by_its_column() {
    for (text, expected) in [
        ("", "column 1: found the end, expected a field"),
        (r#"vendor = "Acme""#, "column 8: '=' has no meaning here"),
        (
            r#"vendor == Acme"#,
            "column 11: found `Acme`, expected a text in double quotes",
        ),
        (
            r#"vendor == "Acme"#,
            "column 11: the text that begins here has no closing quote",
        ),
        (r#"vendor == "ä\n""#, "column 13: a backslash stands before"),
        (
            r#"wendor == "Acme""#,
            "column 1: found `wendor`, expected a field (device, vendor",
        ),
        (
            r#"(vendor == "Acme""#,
            "column 18: found the end, expected `and`, `or` or `)`",
        ),
        (
            r#"vendor == "Acme" model"#,
            "column 18: found `model`, expected `and`, `or` or the end",
        ),
        (r#"model in []"#, "column 11: found `]`, expected a text"),
        (
            r#"model in ["R1" "R2"]"#,
            "column 16: found the text \"R2\", expected `,` or `]`",
        ),
        (r#"model under "eu""#, "column 7: only `path` can be `under` something"),
        (r#"path under "eu//x""#, "column 12: this is not a place"),
        (
            r#"label == "a1""#,
            "column 7: found `==`, expected a text in double quotes",
        ),
        (r#"label "a b" == "a1""#, "column 7: this cannot be the name of a label"),
        (
            r#"label "unit" under "eu""#,
            "column 14: only `path` can be `under` something",
        ),
        ("vendor ~ 1", "column 8: '~' has no meaning here"),
    ] {
        let error = text.parse::<Filter>().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn length_and_depth_are_bounded() {
    let deep = |levels: usize| format!("{}device == \"d\"{}", "(".repeat(levels), ")".repeat(levels));
    assert!(deep(FILTER_DEPTH_MAX).parse::<Filter>().is_ok());
    let error = deep(FILTER_DEPTH_MAX + 1).parse::<Filter>().unwrap_err();
    assert_eq!(
        error,
        FilterError::TooDeep {
            column: FILTER_DEPTH_MAX + 1
        }
    );
    let nots = format!("{}device == \"d\"", "not ".repeat(FILTER_DEPTH_MAX + 1));
    assert!(matches!(nots.parse::<Filter>(), Err(FilterError::TooDeep { .. })));
    let long = format!("device == \"{}\"", "x".repeat(FILTER_BYTES_MAX));
    assert_eq!(long.parse::<Filter>(), Err(FilterError::TooLong(long.len())));
}

proptest! {
    #[test]
    fn what_a_filter_prints_parses_to_the_same_filter(filter in filters()) {
        let text = filter.to_string();
        prop_assume!(text.len() <= FILTER_BYTES_MAX);
        prop_assert_eq!(text.parse::<Filter>().unwrap(), filter);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = text.parse::<Filter>();
    }

    #[test]
    fn no_order_of_the_languages_own_words_makes_it_panic(words in prop::collection::vec(
        prop::sample::select(vec![
            "device", "path", "version", "label", "not", "and", "or", "in", "under", "==", "!=", "(", ")", "[", "]", ",", "\"a\"", "\"eu/b\"", "\"", "\\",
        ]), 0..40)) {
        if let Ok(filter) = words.join(" ").parse::<Filter>() {
            prop_assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
        }
    }
}

fn filters() -> impl Strategy<Value = Filter> {
    let field = || prop::sample::select(Field::ALL.to_vec());
    let text = || "[ -~äß\\\\\"]{0,12}";
    let leaf = prop_oneof![
        (field(), text()).prop_map(|(field, text)| Filter::Test(field, Test::Is(text))),
        (field(), text()).prop_map(|(field, text)| Filter::Test(field, Test::IsNot(text))),
        (field(), prop::collection::vec(text(), 1..4)).prop_map(|(field, texts)| Filter::Test(field, Test::In(texts))),
        prop::collection::vec("[a-z][a-z0-9.-]{0,5}", 1..4)
            .prop_map(|path| Filter::Test(Field::Path, Test::Under(path.join("/").parse().unwrap()))),
        ("[a-z][a-z0-9._-]{0,5}", text())
            .prop_map(|(name, text)| Filter::Label(LabelName::new(name).unwrap(), Test::Is(text))),
    ];
    leaf.prop_recursive(5, 24, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::Any),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::All),
            inner.prop_map(|filter| Filter::Not(Box::new(filter))),
        ]
    })
}

fn facts(version: Option<&str>) -> DeviceFacts {
    DeviceFacts {
        device: DeviceId::new("d1").unwrap(),
        vendor: "Acme".to_owned(),
        model: "R1".to_owned(),
        component: Component::new("bmc").unwrap(),
        version: version.map(str::to_owned),
        executor: "redfish".to_owned(),
        labels: serde_json::from_str::<Labels>(r#"{"power_feed":"a1"}"#).unwrap(),
    }
}

fn candidate(facts: &DeviceFacts) -> Candidate<'_> {
    static PATH: std::sync::LazyLock<TopologyPath> = std::sync::LazyLock::new(|| "eu/ber/r1/n1".parse().unwrap());
    Candidate {
        facts: facts.into(),
        node: "n1",
        path: &PATH,
        attempt: Some(("success", "spring")),
    }
}
