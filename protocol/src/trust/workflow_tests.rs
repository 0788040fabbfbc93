//! Section 5 of the specification, step by step, for any repository: what is accepted, what is refused, what is stored
//! then, and what is asked for.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use super::{
    keys::{Key, KeyId},
    metadata::{Kind, MetaFile, SignedFile},
    names::quoted,
    simulator::{Client, DAY, ROLES, Simulator, key, noon},
    verify::{Input, Output, Refresh},
    verifying::KeyPolicy,
};

#[test]
fn a_first_refresh_asks_for_the_next_root_and_then_for_one_file_of_each_role() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    client.refresh(&mut simulator).unwrap();
    assert_eq!(
        simulator.asked,
        ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    );
    for (stored, served) in [
        ("root.json", "1.root.json"),
        ("timestamp.json", "timestamp.json"),
        ("snapshot.json", "1.snapshot.json"),
        ("targets.json", "1.targets.json"),
    ] {
        assert_eq!(client.store[stored], simulator.served[served]);
    }
    assert_eq!(client.store.len(), 4);
}

// 5.2: the trusted root.

#[test]
fn a_pinned_root_that_does_not_vouch_for_itself_asks_for_nothing() {
    let simulator = Simulator::new();
    let pinned = |change: fn(&mut Value)| {
        let mut file: Value = serde_json::from_slice(&simulator.served["1.root.json"]).unwrap();
        change(&mut file);
        let stored = BTreeMap::from([("root.json".to_owned(), serde_json::to_vec(&file).unwrap())]);
        Refresh::top_level(stored, noon(), KeyPolicy::Standard)
            .unwrap_err()
            .code()
    };
    assert_eq!(
        pinned(|file| _ = file["signed"].as_object_mut().unwrap().remove("version")),
        "malformed"
    );
    assert_eq!(
        pinned(|file| file["signatures"][0]["sig"] = json!("00".repeat(64))),
        "signature_threshold"
    );
    assert_eq!(pinned(|file| file["signatures"] = json!([])), "signature_threshold");
    assert_eq!(
        pinned(|file| file["signed"]["spec_version"] = json!("2.0.0")),
        "malformed"
    );
}

#[test]
fn the_age_of_the_pinned_root_does_not_matter_if_a_newer_one_is_in_time() {
    let mut simulator = Simulator::new();
    simulator.root.header.expires = noon() + 90 * DAY;
    simulator.publish(&["root"]);
    for kind in ["targets", "snapshot", "timestamp"] {
        match kind {
            "targets" => simulator.targets.get_mut(kind).unwrap().header.expires = noon() + 90 * DAY,
            "snapshot" => simulator.snapshot.header.expires = noon() + 90 * DAY,
            _ => simulator.timestamp.header.expires = noon() + 90 * DAY,
        }
        simulator.publish_as_it_is(kind);
    }
    let mut client = Client::of(&simulator);
    let later = noon() + 60 * DAY;
    let trusted = client.refresh_at(&mut simulator, later).unwrap();
    assert_eq!(trusted.root().header.version, 2);
}

// 5.3: the root, one version at a time.

/// One version of a role: whose keys it has, how many must sign, who signs.
type Version<'a> = (&'a [u8], u64, &'a [u8]);

/// Keys and signatures of successive roots, and whether the last one is accepted.
const ROOT_CHAINS: &[(&str, &[Version<'_>], bool)] = &[
    (
        "one key for another",
        &[(&[11], 1, &[11]), (&[12], 1, &[12, 11]), (&[12], 1, &[12])],
        true,
    ),
    (
        "signatures of strangers do no harm",
        &[
            (&[11], 1, &[13, 11, 14]),
            (&[12], 1, &[13, 12, 11, 14]),
            (&[12], 1, &[13, 12, 14]),
        ],
        true,
    ),
    (
        "any three of five",
        &[
            (&[10, 11, 12, 13, 14], 3, &[10, 12, 14]),
            (&[10, 11, 12, 13, 14], 3, &[10, 14, 11]),
            (&[10, 11, 12, 13, 14], 3, &[10, 11, 13]),
        ],
        true,
    ),
    (
        "one of five rotated",
        &[
            (&[10, 11, 12, 13, 14], 3, &[10, 12, 14]),
            (&[10, 11, 13, 14, 15], 3, &[10, 14, 11]),
        ],
        true,
    ),
    (
        "one of five rotated in two steps",
        &[
            (&[10, 11, 12, 13, 14], 3, &[10, 12, 14]),
            (&[10, 11, 13, 14, 15], 3, &[10, 12, 14, 15]),
            (&[10, 11, 13, 14, 15], 3, &[10, 14, 15]),
        ],
        true,
    ),
    (
        "all of five rotated in two steps",
        &[
            (&[10, 11, 12, 13, 14], 3, &[10, 12, 14]),
            (&[15, 16, 17, 18, 19], 3, &[10, 12, 14, 15, 16, 17]),
            (&[15, 16, 17, 18, 19], 3, &[15, 16, 17]),
        ],
        true,
    ),
    (
        "threshold 1 to 2 of 3",
        &[(&[11, 12, 13], 1, &[11]), (&[11, 12, 13], 2, &[11, 12])],
        true,
    ),
    (
        "threshold 2 to 1 of 3",
        &[
            (&[11, 12, 13], 2, &[11, 12]),
            (&[11, 12, 13], 1, &[11, 12]),
            (&[11, 12, 13], 1, &[11]),
        ],
        true,
    ),
    (
        "threshold 1 to 2 with a new key",
        &[(&[11], 1, &[11]), (&[11, 12], 2, &[11, 12])],
        true,
    ),
    (
        "not signed with the old key",
        &[(&[11], 1, &[11]), (&[12], 1, &[12, 13, 14])],
        false,
    ),
    (
        "not signed with the new key",
        &[(&[11], 1, &[11]), (&[12], 1, &[11, 13, 14])],
        false,
    ),
    (
        "not signed with three of the new keys",
        &[
            (&[10, 11, 12, 13, 14], 3, &[10, 12, 14]),
            (&[10, 11, 13, 14, 15], 3, &[10, 12, 14]),
        ],
        false,
    ),
    (
        "not signed with three of the old keys",
        &[
            (&[10, 11, 12, 13, 14], 3, &[10, 12, 14]),
            (&[10, 11, 13, 14, 15], 3, &[10, 14, 15]),
        ],
        false,
    ),
    (
        "the new threshold is not reached",
        &[(&[11, 12, 13], 1, &[11]), (&[11, 12, 13], 2, &[12])],
        false,
    ),
    (
        "the old threshold is not reached",
        &[(&[11, 12, 13], 2, &[11, 12]), (&[11, 12, 13], 1, &[11])],
        false,
    ),
];

#[test]
fn a_root_needs_the_threshold_of_the_root_before_it_and_its_own() {
    for (story, versions, accepted) in ROOT_CHAINS {
        let mut simulator = Simulator::new();
        simulator.root.header.version = 0;
        for (keys, threshold, signers) in *versions {
            simulator.set_keys(Kind::Root, keys, *threshold, signers);
            simulator.publish(&["root"]);
        }
        let mut client = Client::of(&simulator);
        let last = versions.len() as u64;
        if *accepted {
            client
                .refresh(&mut simulator)
                .unwrap_or_else(|error| panic!("{story}: {error}"));
            assert_eq!(client.version("root"), last, "{story}");
        } else {
            assert_eq!(client.refused(&mut simulator), "signature_threshold", "{story}");
            assert_eq!(client.versions(), [last - 1, 0, 0, 0], "{story}");
        }
    }
}

#[test]
fn the_other_roles_need_the_threshold_that_the_root_gives_them() {
    let cases: &[(Version<'_>, bool)] = &[
        ((&[12], 1, &[12]), true),
        ((&[11], 1, &[13, 11, 14]), true),
        ((&[12], 1, &[11, 13, 14]), false),
        ((&[10, 11, 13, 14, 15], 3, &[10, 12, 14]), false),
        ((&[10, 11, 13, 14, 15], 3, &[10, 14]), false),
        ((&[10, 11, 12, 13, 14], 3, &[10, 12, 14]), true),
        ((&[10, 11, 12, 13, 14], 3, &[11, 12, 13]), true),
        ((&[10, 11, 12, 13, 14], 3, &[12, 13, 14]), true),
        ((&[10, 11, 12, 13, 14], 6, &[10, 11, 12, 13, 14]), false),
    ];
    for ((keys, threshold, signers), accepted) in cases {
        for kind in &ROLES[1..] {
            let mut simulator = Simulator::new();
            let mut client = Client::of(&simulator);
            simulator.set_keys(*kind, keys, *threshold, signers);
            simulator.publish(&["root", "targets", "snapshot", "timestamp"]);
            if *accepted {
                client.refresh(&mut simulator).unwrap();
                assert_eq!(client.versions(), [2; 4]);
            } else {
                assert_eq!(client.refused(&mut simulator), "signature_threshold");
                assert_eq!(client.version(kind.name()), 0);
                let before = [2, u64::from(*kind != Kind::Timestamp) * 2];
                assert_eq!(client.versions()[..2], before, "what was accepted before it is kept");
            }
        }
    }
}

#[test]
fn a_role_that_signs_nothing_properly_stops_the_refresh_after_the_roles_before_it() {
    for (role, expected) in [
        ("root", [1, 0, 0, 0]),
        ("timestamp", [2, 0, 0, 0]),
        ("snapshot", [2, 2, 0, 0]),
        ("targets", [2, 2, 2, 0]),
    ] {
        let mut simulator = Simulator::new();
        let mut client = Client::of(&simulator);
        simulator.signers.insert(role.to_owned(), vec![]);
        simulator.publish(&["root", "targets", "snapshot", "timestamp"]);
        assert_eq!(client.refused(&mut simulator), "signature_threshold");
        assert_eq!(client.versions(), expected, "{role}");
    }
}

#[test]
fn a_file_of_another_version_than_its_name_says_is_refused() {
    for (role, expected) in [
        ("root", [1, 0, 0, 0]),
        ("snapshot", [2, 2, 0, 0]),
        ("targets", [2, 2, 2, 0]),
    ] {
        let mut simulator = Simulator::new();
        let mut client = Client::of(&simulator);
        simulator.publish(&["root", "targets", "snapshot", "timestamp"]);
        match role {
            "root" => simulator.root.header.version = 3,
            "snapshot" => simulator.snapshot.header.version = 3,
            _ => simulator.targets.get_mut("targets").unwrap().header.version = 3,
        }
        simulator
            .served
            .insert(format!("2.{role}.json"), simulator.signed(role));
        assert_eq!(client.refused(&mut simulator), "wrong_version");
        assert_eq!(client.versions(), expected, "{role}");
    }
}

#[test]
fn an_expired_root_is_stored_and_stops_everything_after_it() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    client.refresh(&mut simulator).unwrap();
    simulator.root.header.expires = noon();
    simulator.publish(&["root", "targets", "snapshot", "timestamp"]);
    assert_eq!(client.refused(&mut simulator), "expired");
    assert_eq!(client.versions(), [2, 1, 1, 1]);
    simulator.root.header.expires = noon() + DAY;
    simulator.publish(&["root"]);
    client.refresh(&mut simulator).unwrap();
    assert_eq!(client.versions(), [3, 2, 2, 2]);
}

#[test]
fn new_keys_for_snapshot_or_timestamp_undo_a_fast_forward_of_what_they_sign() {
    // The attacker's version, the keys that are replaced, and the role that starts again.
    let stories: [(&str, &[Kind]); 3] = [
        ("timestamp", &[Kind::Timestamp]),
        ("snapshot", &[Kind::Snapshot, Kind::Timestamp]),
        ("targets", &[Kind::Snapshot]),
    ];
    for (role, rotated) in stories {
        let mut simulator = Simulator::new();
        simulator.delegate("targets", "unwanted", false, &["*"]);
        let version = |simulator: &mut Simulator, version| match role {
            "timestamp" => simulator.timestamp.header.version = version,
            "snapshot" => simulator.snapshot.header.version = version,
            _ => simulator.targets.get_mut("targets").unwrap().header.version = version,
        };
        version(&mut simulator, 1_000_000);
        simulator.publish(&["unwanted", "targets", "snapshot", "timestamp"]);
        let mut client = Client::of(&simulator);
        client.refresh(&mut simulator).unwrap();
        assert_eq!(client.version(role), 1_000_001);
        for (at, kind) in (50..).zip(rotated) {
            simulator.set_keys(*kind, &[at], 1, &[at]);
        }
        version(&mut simulator, 0);
        simulator.snapshot.meta.remove("unwanted.json");
        simulator.publish(&["root", "targets", "snapshot", "timestamp"]);
        client
            .refresh(&mut simulator)
            .unwrap_or_else(|error| panic!("{role}: {error}"));
        assert_eq!(client.version(role), 1, "{role}");
    }
}

// 5.4: the timestamp.

#[test]
fn an_older_timestamp_is_refused_and_an_equal_one_changes_nothing() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    simulator.publish(&["timestamp"]);
    client.refresh(&mut simulator).unwrap();
    simulator.timestamp.header.version = 1;
    simulator.publish_as_it_is("timestamp");
    assert_eq!(client.refused(&mut simulator), "rollback");
    assert_eq!(simulator.asked.last().unwrap(), "timestamp.json");
    simulator.timestamp.header.version = 2;
    simulator.timestamp.meta.snapshot.version = 100;
    simulator.publish_as_it_is("timestamp");
    let before = client.store.clone();
    client.refresh(&mut simulator).unwrap();
    assert_eq!(
        (simulator.asked.last().unwrap().as_str(), &client.store),
        ("timestamp.json", &before)
    );
}

#[test]
fn a_stored_timestamp_that_has_expired_still_guards_against_older_ones() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    simulator.timestamp.header.expires = noon() + 7 * DAY;
    simulator.publish(&["snapshot", "timestamp"]);
    client.refresh(&mut simulator).unwrap();
    let later = noon() + 18 * DAY;
    let mut lagging = simulator.clone();
    lagging.timestamp.header.expires = noon() + 21 * DAY;
    lagging.timestamp.meta.snapshot.version = 1;
    lagging.publish(&["timestamp"]);
    assert_eq!(client.refresh_at(&mut lagging, later).unwrap_err().code(), "rollback");
    assert_eq!(client.refresh_at(&mut simulator, later).unwrap_err().code(), "expired");
    simulator.timestamp.header.expires = noon() + 21 * DAY;
    simulator.publish(&["targets", "snapshot", "timestamp"]);
    client.refresh_at(&mut simulator, later).unwrap();
    assert_eq!(client.versions(), [1, 3, 3, 2]);
}

#[test]
fn a_timestamp_that_takes_its_snapshot_back_is_refused() {
    for with_digests in [false, true] {
        let mut simulator = Simulator::new();
        let mut client = Client::of(&simulator);
        simulator.with_digests = with_digests;
        simulator.publish(&["snapshot", "timestamp"]);
        client.refresh(&mut simulator).unwrap();
        simulator.snapshot.header.version = 0;
        simulator.publish(&["snapshot", "timestamp"]);
        assert_eq!(client.refused(&mut simulator), "rollback");
        assert_eq!(client.versions(), [1, 2, 2, 1]);
        assert_eq!(simulator.asked.last().unwrap(), "timestamp.json");
    }
}

#[test]
fn expired_files_are_refused_by_name_and_what_was_trusted_stays() {
    for (role, expected) in [
        ("timestamp", [1; 4]),
        ("snapshot", [1, 2, 1, 1]),
        ("targets", [1, 2, 2, 1]),
    ] {
        let mut simulator = Simulator::new();
        let mut client = Client::of(&simulator);
        client.refresh(&mut simulator).unwrap();
        match role {
            "timestamp" => simulator.timestamp.header.expires = noon(),
            "snapshot" => simulator.snapshot.header.expires = noon(),
            _ => simulator.targets.get_mut("targets").unwrap().header.expires = noon(),
        }
        simulator.publish(&["targets", "snapshot", "timestamp"]);
        let error = client.refresh(&mut simulator).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("{role} version 2 expired")),
            "{error}"
        );
        assert_eq!(client.versions(), expected, "{role}");
    }
}

#[test]
fn files_that_are_not_there_are_named_and_what_was_trusted_stays() {
    for (role, file, expected) in [
        ("timestamp", "timestamp.json", [1; 4]),
        ("snapshot", "2.snapshot.json", [1, 2, 1, 1]),
        ("targets", "2.targets.json", [1, 2, 2, 1]),
    ] {
        let mut simulator = Simulator::new();
        let mut client = Client::of(&simulator);
        client.refresh(&mut simulator).unwrap();
        simulator.publish(&["targets", "snapshot", "timestamp"]);
        simulator.served.remove(file);
        let error = client.refresh(&mut simulator).unwrap_err();
        assert!(error.retry() && error.to_string().contains(file), "{role}: {error}");
        assert_eq!(simulator.asked.last().unwrap(), file);
        assert_eq!(client.versions(), expected, "{role}");
    }
}

// 5.5 and 5.6: snapshot and targets.

#[test]
fn digests_and_lengths_are_checked_where_they_are_given() {
    for (role, expected) in [("snapshot", [1, 3, 2, 2]), ("targets", [1, 3, 3, 2])] {
        let mut simulator = Simulator::new();
        let mut client = Client::of(&simulator);
        simulator.with_digests = true;
        simulator.publish(&["targets", "snapshot", "timestamp"]);
        client.refresh(&mut simulator).unwrap();
        assert_eq!(client.versions(), [1, 2, 2, 2]);
        simulator.publish(&["targets", "snapshot"]);
        let wrong = |meta: &mut MetaFile| {
            _ = meta
                .hashes
                .as_mut()
                .unwrap()
                .insert("sha256".to_owned(), "0".repeat(64))
        };
        if role == "snapshot" {
            wrong(&mut simulator.timestamp.meta.snapshot);
        } else {
            wrong(simulator.snapshot.meta.get_mut("targets.json").unwrap());
            simulator.publish_as_it_is("snapshot");
        }
        simulator.publish(&["timestamp"]);
        assert_eq!(client.refused(&mut simulator), "hash_mismatch");
        assert_eq!(client.versions(), expected, "{role}");
    }
}

#[test]
fn a_digest_that_cannot_be_computed_is_not_enough_and_beside_a_known_one_does_no_harm() {
    let mut simulator = Simulator::new();
    simulator.with_digests = true;
    simulator.publish(&["targets"]);
    let hashes = simulator
        .snapshot
        .meta
        .get_mut("targets.json")
        .unwrap()
        .hashes
        .as_mut()
        .unwrap();
    hashes.insert("blake2b-256".to_owned(), "00".repeat(32));
    simulator.publish(&["snapshot", "timestamp"]);
    let mut client = Client::of(&simulator);
    client.refresh(&mut simulator).unwrap();
    simulator.publish(&["targets"]);
    let hashes = simulator
        .snapshot
        .meta
        .get_mut("targets.json")
        .unwrap()
        .hashes
        .as_mut()
        .unwrap();
    *hashes = BTreeMap::from([("blake2b-256".to_owned(), "00".repeat(32))]);
    simulator.publish(&["snapshot", "timestamp"]);
    assert_eq!(client.refused(&mut simulator), "no_known_hash");
}

#[test]
fn a_snapshot_that_takes_targets_back_or_forgets_them_is_refused() {
    for with_digests in [false, true] {
        let mut simulator = Simulator::new();
        simulator.with_digests = with_digests;
        simulator.delegate("targets", "delegated", false, &["*"]);
        simulator.publish_as_it_is("delegated");
        simulator.publish(&["targets", "snapshot", "timestamp"]);
        let mut client = Client::of(&simulator);
        client.refresh(&mut simulator).unwrap();
        let mut forgetful = simulator.clone();
        forgetful.snapshot.meta.remove("delegated.json");
        forgetful.publish(&["snapshot", "timestamp"]);
        assert_eq!(client.clone().refused(&mut forgetful), "disappeared");
        simulator.targets.get_mut("targets").unwrap().header.version = 0;
        simulator.publish(&["targets", "snapshot", "timestamp"]);
        assert_eq!(client.refused(&mut simulator), "rollback");
        assert_eq!(client.versions(), [1, 3, 2, 2]);
    }
}

#[test]
fn a_snapshot_that_passes_for_a_timestamp_is_refused() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    let signers = simulator.signers["timestamp"].clone();
    simulator.set_keys(Kind::Snapshot, &signers, 1, &signers);
    simulator
        .snapshot
        .meta
        .insert("snapshot.json".to_owned(), MetaFile::of(1, b""));
    simulator.publish(&["root", "snapshot"]);
    simulator
        .served
        .insert("timestamp.json".to_owned(), simulator.signed("snapshot"));
    assert_eq!(client.refused(&mut simulator), "malformed");
    assert_eq!(client.versions(), [2, 0, 0, 0]);
}

// Keys and signatures.

#[test]
fn a_key_id_under_two_signatures_is_refused_even_where_one_is_enough() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    let mut file: Value = serde_json::from_slice(&simulator.served["1.snapshot.json"]).unwrap();
    let twice = file["signatures"][0].clone();
    file["signatures"].as_array_mut().unwrap().push(twice);
    simulator
        .served
        .insert("1.snapshot.json".to_owned(), serde_json::to_vec(&file).unwrap());
    assert_eq!(client.refused(&mut simulator), "duplicate_key");
    assert_eq!(client.version("snapshot"), 0);
}

#[test]
fn signatures_that_are_not_good_only_do_not_count() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    simulator.set_keys(Kind::Timestamp, &[61, 62], 1, &[61, 62]);
    simulator.publish(&["root"]);
    for bad in [
        json!("00".repeat(64)),
        json!(""),
        json!("no hexadecimal"),
        json!("ABCD"),
    ] {
        simulator.publish(&["timestamp"]);
        let mut file: Value = serde_json::from_slice(&simulator.served["timestamp.json"]).unwrap();
        file["signatures"][0]["sig"] = bad;
        simulator
            .served
            .insert("timestamp.json".to_owned(), serde_json::to_vec(&file).unwrap());
        client.refresh(&mut simulator).unwrap();
    }
    assert_eq!(client.version("timestamp"), 5);
}

#[test]
fn fields_that_nobody_knows_are_signed_for_and_change_nothing_else() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    let mut odd = Key::from(key(70).public());
    odd.extra.insert("keyid_hash_algorithms".to_owned(), json!("md5"));
    odd.extra.insert("extra-field".to_owned(), json!({"a": 1, "b": 2}));
    let id = odd.id();
    simulator.root.keys.insert(id.clone(), odd);
    simulator.root.extra.insert("custom-field".to_owned(), json!("value"));
    let role = simulator.root.roles.get_mut("root").unwrap();
    role.extra.insert("another-field".to_owned(), json!("value"));
    role.keyids.push(id.clone());
    role.threshold = 2;
    simulator.publish(&["root"]);
    let mut file = SignedFile::from_bytes("root", &simulator.signed("root")).unwrap();
    file.sign(&id, &key(70));
    simulator.served.insert("2.root.json".to_owned(), file.to_bytes());
    client.refresh(&mut simulator).unwrap();
    assert_eq!(client.version("root"), 2);
}

#[test]
fn the_exact_bytes_that_were_served_are_stored() {
    let mut simulator = Simulator::new();
    let mut client = Client::of(&simulator);
    let odd = [b" ".as_slice(), &simulator.served["timestamp.json"], b"\n"].concat();
    simulator.served.insert("timestamp.json".to_owned(), odd.clone());
    client.refresh(&mut simulator).unwrap();
    assert_eq!(client.store["timestamp.json"], odd);
}

/// The same repository to two clients: keys of other kinds count only where the policy says so.
#[test]
fn an_ecdsa_key_counts_for_the_standard_and_never_for_a_fleet() {
    let (mut simulator, random) = (Simulator::new(), SystemRandom::new());
    let (mut standard, mut fleet) = (Client::of(&simulator), Client::of(&simulator));
    fleet.policy = KeyPolicy::default();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    // SubjectPublicKeyInfo of a P-256 key: these bytes, then the point.
    let head = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
    let der = data_encoding::BASE64.encode(&[&head, pair.public_key().as_ref()].concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n");
    let object = json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": pem}});
    let id = KeyId::try_from("ecdsa".to_owned()).unwrap();
    simulator
        .root
        .keys
        .insert(id.clone(), serde_json::from_value(object).unwrap());
    let role = simulator.root.roles.get_mut("timestamp").unwrap();
    (role.keyids, role.threshold) = (vec![id.clone()], 1);
    simulator.publish(&["root", "timestamp"]);
    let unsigned = SignedFile::unsigned(&simulator.timestamp);
    let signature = pair.sign(&random, unsigned.signed_bytes()).unwrap();
    let mut file: Value = serde_json::from_slice(&unsigned.to_bytes()).unwrap();
    file["signatures"] = json!([{"keyid": id, "sig": hex::encode(signature)}]);
    simulator
        .served
        .insert("timestamp.json".to_owned(), serde_json::to_vec(&file).unwrap());
    standard.refresh(&mut simulator).unwrap();
    assert_eq!(standard.versions(), [2, 2, 1, 1]);
    assert_eq!(fleet.refused(&mut simulator), "signature_threshold");
    assert_eq!(fleet.versions(), [2, 0, 0, 0]);
}

// What a client survives.

#[test]
fn a_refresh_can_be_cut_off_after_any_instruction_and_the_next_one_ends_well() {
    let mut simulator = Simulator::new();
    let mut start = Client::of(&simulator);
    start.refresh(&mut simulator).unwrap();
    simulator.set_keys(Kind::Snapshot, &[80], 1, &[80]);
    simulator.publish(&["root", "targets", "snapshot", "timestamp"]);
    let mut goal = start.clone();
    goal.refresh(&mut simulator).unwrap();
    for steps in 0.. {
        let mut client = start.clone();
        let mut refresh = Refresh::top_level(client.store.clone(), noon(), client.policy).unwrap();
        let mut done = 0;
        while done < steps
            && let Some(output) = refresh.poll()
        {
            match output {
                Output::Fetch { name, .. } => refresh.handle(simulator.answer(&name)),
                Output::Persist { name, bytes } => _ = client.store.insert(name, bytes),
                Output::Remove { name } => _ = client.store.remove(&name),
            }
            done += 1;
        }
        client.refresh(&mut simulator).unwrap();
        assert_eq!(client.store, goal.store, "cut off after {done} instructions");
        if done < steps {
            assert!(steps > 8, "the story has more instructions than that");
            break;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever a server answers, and however often it fails, what was trusted stays or moves on, and never goes back.
    #[test]
    fn no_answers_take_away_what_was_trusted(
        faults in prop::collection::vec((0..6u8, any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut simulator = Simulator::new();
        let mut client = Client::of(&simulator);
        client.refresh(&mut simulator).unwrap();
        simulator.publish(&["root", "targets", "snapshot", "timestamp"]);
        let mut honest = client.clone();
        honest.refresh(&mut simulator).unwrap();
        for (kind, at, byte) in faults {
            let before = client.versions();
            let refresh = Refresh::top_level(client.store.clone(), noon(), client.policy).unwrap();
            let _ = refresh.run(&mut client.store, |name, _| {
                let Input::Fetched(mut bytes) = simulator.answer(name) else { return Input::NotFound };
                let at = at.index(bytes.len());
                match kind {
                    0 => return Input::Failed("reset".to_owned()),
                    1 => return Input::NotFound,
                    2 => bytes[at] = byte,
                    3 => bytes.truncate(at),
                    4 => bytes.insert(at, byte),
                    _ => (),
                }
                Input::Fetched(bytes)
            });
            prop_assert!(client.versions().iter().zip(before).all(|(after, before)| *after >= before));
        }
        client.refresh(&mut simulator).unwrap();
        // A changed blank outside what is signed is no change.
        prop_assert_eq!(client.versions(), honest.versions());
    }

    #[test]
    fn quoted_names_are_one_to_one(a in "\\PC{0,8}", b in "\\PC{0,8}") {
        prop_assert_eq!(a == b, quoted(&a) == quoted(&b));
        prop_assert!(quoted(&a).bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
    }
}
