//! The search for a target among delegated roles, each graph of the specification's rules as a small repository.

use serde_json::json;

use super::{
    super::{
        metadata::Target,
        names::stored_name,
        simulator::{Client, DAY, Simulator, key, noon},
    },
    *,
};
use crate::ids::Sha256;

fn target(bytes: &[u8]) -> Target {
    Target::new(bytes.len() as u64, Sha256::of(bytes), None)
}

/// Delegations as (from, to, terminating, paths).
type Edge<'a> = (&'a str, &'a str, bool, &'a [&'a str]);

const ANY: &[&str] = &["*"];

fn graph(edges: &[Edge<'_>]) -> Simulator {
    let mut simulator = Simulator::new();
    for (from, to, terminating, paths) in edges {
        simulator.delegate(from, to, *terminating, paths);
    }
    simulator.publish_targets();
    simulator
}

/// The delegated roles that are asked for a target, in order, and what comes of it.
fn search(simulator: &mut Simulator, name: &str) -> (Vec<String>, Option<Found>) {
    let mut client = Client::of(simulator);
    client.refresh(simulator).unwrap();
    simulator.asked.clear();
    let found = client.search(simulator, name).unwrap();
    // The refresh before the search asks for the next root and the timestamp.
    let roles = simulator.asked[2..]
        .iter()
        .map(|file| file["1.".len()..file.len() - ".json".len()].to_owned());
    (roles.collect(), found)
}

#[test]
fn roles_are_asked_in_order_of_appearance_depth_first_and_once() {
    let py: &[&str] = &["*.py"];
    let graphs: [(&[Edge<'_>], &[&str]); 12] = [
        (&[("targets", "A", false, ANY)], &["A"]),
        (
            &[("targets", "A", false, ANY), ("targets", "B", false, ANY)],
            &["A", "B"],
        ),
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("B", "C", false, ANY),
            ],
            &["A", "B", "C"],
        ),
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", false, ANY),
                ("A", "D", false, ANY),
            ],
            &["A", "C", "D", "B"],
        ),
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", false, ANY),
                ("C", "D", false, ANY),
            ],
            &["A", "C", "D", "B"],
        ),
        // A terminating delegation leaves nobody to ask but the descendants of its role.
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", true, ANY),
                ("A", "D", false, ANY),
            ],
            &["A", "C"],
        ),
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", true, ANY),
                ("C", "D", false, ANY),
            ],
            &["A", "C", "D"],
        ),
        // Patterns that do not match cut whole branches off.
        (
            &[
                ("targets", "A", false, py),
                ("targets", "B", false, ANY),
                ("A", "C", false, ANY),
            ],
            &["B"],
        ),
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("A", "C", false, py),
                ("C", "D", false, ANY),
            ],
            &["A", "B"],
        ),
        // Cycles end, and two ways to a role are one visit.
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("B", "C", false, ANY),
                ("C", "D", false, ANY),
                ("D", "B", false, ANY),
            ],
            &["A", "B", "C", "D"],
        ),
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("B", "C", false, ANY),
                ("A", "C", false, ANY),
            ],
            &["A", "C", "B"],
        ),
        (
            &[
                ("targets", "A", false, ANY),
                ("targets", "B", false, ANY),
                ("B", "C", false, ANY),
                ("A", "C", false, py),
            ],
            &["A", "B", "C"],
        ),
    ];
    for (edges, expected) in graphs {
        let (asked, found) = search(&mut graph(edges), "missing");
        assert_eq!(
            (asked, found),
            (expected.iter().map(|&role| role.to_owned()).collect(), None),
            "{edges:?}"
        );
    }
}

#[test]
fn a_target_is_found_only_where_every_delegation_on_the_way_has_its_path() {
    let mut simulator = graph(&[
        ("targets", "A", false, &["*.doc", "*.md", "foo-?.tgz"]),
        ("targets", "B", false, &["releases/*/*"]),
        ("B", "C", false, &["releases/x/*"]),
        ("B", "D", false, &["releases/y/*.zip"]),
    ]);
    for (role, name) in [
        ("targets", "targetfile"),
        ("A", "README.md"),
        ("A", "releases/README.md"),
        ("A", "foo-1.tgz"),
        ("A", "foo-alpha.tgz"),
        ("C", "releases/x/x_v1"),
        ("D", "releases/y/y_v1.zip"),
        ("D", "releases/z/z_v1.zip"),
    ] {
        let targets = &mut simulator.targets.get_mut(role).unwrap().targets;
        targets.insert(name.to_owned(), target(name.as_bytes()));
    }
    simulator.publish_targets();
    for (name, role, expected) in [
        ("targetfile", Some("targets"), &[][..]),
        ("README.md", Some("A"), &["A"]),
        ("releases/x/x_v1", Some("C"), &["B", "C"]),
        ("releases/y/y_v1.zip", Some("D"), &["B", "D"]),
        ("releases/z/z_v1.zip", None, &["B"]),
        ("releases/README.md", None, &[]),
        ("foo-1.tgz", Some("A"), &["A"]),
        ("foo-alpha.tgz", None, &[]),
        ("README.MD", None, &[]),
    ] {
        let (asked, found) = search(&mut simulator, name);
        assert_eq!(asked, expected, "{name}");
        let expected = role.map(|role| Found {
            role: role.to_owned(),
            target: target(name.as_bytes()),
        });
        assert_eq!(found, expected, "{name}");
    }
}

/// A role that was fetched on the way through one delegator has no authority on the way through another.
#[test]
fn a_stored_role_is_judged_by_the_delegator_that_the_search_comes_from() {
    let mut simulator = graph(&[
        ("targets", "a", false, &["team-a/*"]),
        ("targets", "b", false, &["team-b/*"]),
        ("a", "release", false, &["team-a/*"]),
    ]);
    simulator.delegate_to_key("b", "release", false, &["team-b/*"], key(200).public());
    for name in ["team-a/x", "team-b/x"] {
        let targets = &mut simulator.targets.get_mut("release").unwrap().targets;
        targets.insert(name.to_owned(), target(b"x"));
    }
    simulator.publish_targets();
    let mut client = Client::of(&simulator);
    let found = client.search(&mut simulator, "team-a/x").unwrap().unwrap();
    assert_eq!(found.role, "release");
    let error = client.search(&mut simulator, "team-b/x").unwrap_err();
    assert_eq!(error.code(), "signature_threshold");
    assert!(
        client.search(&mut simulator, "team-a/x").unwrap().is_some(),
        "the stored role was lost"
    );
}

#[test]
fn a_delegated_role_is_fetched_once_and_again_when_it_changes() {
    let mut simulator = graph(&[("targets", "A", false, ANY)]);
    let mut client = Client::of(&simulator);
    client.search(&mut simulator, "x").unwrap();
    simulator.asked.clear();
    client.search(&mut simulator, "x").unwrap();
    assert_eq!(simulator.asked, ["2.root.json", "timestamp.json"]);
    simulator
        .targets
        .get_mut("A")
        .unwrap()
        .targets
        .insert("x".to_owned(), target(b"x"));
    simulator.publish(&["A", "snapshot", "timestamp"]);
    assert!(client.search(&mut simulator, "x").unwrap().is_some());
    assert_eq!(client.version("A"), 2);
    // Offline, what is stored answers for itself.
    let trusted = client.refresh(&mut simulator).unwrap();
    let offline = Search::new(&trusted, &client.store, "x");
    let found = offline
        .run(&mut client.store.clone(), |name, _| panic!("{name} was asked for"))
        .unwrap();
    assert_eq!(found.unwrap().role, "A");
}

#[test]
fn a_role_that_cannot_be_trusted_ends_the_search_by_name_and_is_not_stored() {
    let story = |code: &str, attack: fn(&mut Simulator)| {
        let mut simulator = graph(&[("targets", "A", false, ANY), ("targets", "B", false, ANY)]);
        simulator
            .targets
            .get_mut("B")
            .unwrap()
            .targets
            .insert("x".to_owned(), target(b"x"));
        simulator.publish_targets();
        attack(&mut simulator);
        let mut client = Client::of(&simulator);
        client.refresh(&mut simulator).unwrap();
        let error = client.search(&mut simulator, "x").unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert!(!client.store.contains_key("A.json"));
    };
    story("not_found", |simulator| _ = simulator.served.remove("1.A.json"));
    story("signature_threshold", |simulator| {
        simulator.signers.insert("A".to_owned(), vec![99]);
        simulator.publish_as_it_is("A");
    });
    story("expired", |simulator| {
        simulator.targets.get_mut("A").unwrap().header.expires = noon();
        simulator.publish_targets();
    });
    story("wrong_version", |simulator| {
        simulator.targets.get_mut("A").unwrap().header.version = 7;
        let bytes = simulator.signed("A");
        simulator.served.insert("1.A.json".to_owned(), bytes);
    });
    story("hash_mismatch", |simulator| {
        simulator.with_digests = true;
        simulator.publish_targets();
        let file = simulator.served.get_mut("1.A.json").unwrap();
        file[20] ^= 1;
    });
    story("too_large", |simulator| {
        simulator.with_digests = true;
        simulator.publish_targets();
        simulator.served.get_mut("1.A.json").unwrap().push(b' ');
    });
    story("not_in_snapshot", |simulator| {
        simulator.snapshot.meta.remove("A.json");
        simulator.publish(&["snapshot", "timestamp"]);
    });
}

#[test]
fn nothing_but_an_answer_is_taken_for_one() {
    let mut simulator = graph(&[("targets", "A", false, ANY)]);
    let mut client = Client::of(&simulator);
    let trusted = client.refresh(&mut simulator).unwrap();
    let mut search = Search::new(&trusted, &client.store, "x");
    assert!(matches!(search.poll(), Some(Output::Fetch { name, .. }) if name == "1.A.json"));
    assert_eq!(search.poll(), None);
    search.handle(Input::Failed("connection reset".to_owned()));
    search.handle(Input::Fetched(simulator.signed("A")));
    let error = search.finish().unwrap_err();
    assert!(error.retry() && error.code() == "fetch_failed", "{error:?}");
    let unanswered = Search::new(&trusted, &client.store, "x");
    assert_eq!(unanswered.finish().unwrap_err().code(), "unfinished");
}

#[test]
fn a_search_ends_after_a_bounded_number_of_roles() {
    let names: Vec<_> = (0..=ROLES_VISITED_MAX).map(|number| format!("r{number}")).collect();
    let edges: Vec<Edge<'_>> = names
        .iter()
        .map(|name| ("targets", name.as_str(), false, ANY))
        .collect();
    let (asked, _) = search(&mut graph(&edges[..ROLES_VISITED_MAX]), "x");
    assert_eq!(asked.len(), ROLES_VISITED_MAX);
    let mut simulator = graph(&edges);
    let mut client = Client::of(&simulator);
    assert_eq!(client.search(&mut simulator, "x").unwrap_err().code(), "too_many_roles");
}

#[test]
fn role_names_of_any_kind_are_asked_for_and_stored_as_one_harmless_name() {
    for role in ["?", "#", "/delegatedrole", "../delegatedrole", "a b%", "é"] {
        let mut simulator = graph(&[("targets", role, false, ANY)]);
        let mut client = Client::of(&simulator);
        assert_eq!(client.search(&mut simulator, "x").unwrap(), None);
        let stored = stored_name(role);
        assert_eq!(simulator.asked.last(), Some(&format!("1.{stored}")));
        assert!(
            client.store.contains_key(&stored) && !stored.contains(['/', '?', '#', ' ']),
            "{stored}"
        );
    }
}

#[test]
fn delegations_to_a_top_level_name_are_refused_with_the_file_that_has_them() {
    let mut simulator = graph(&[("targets", "A", false, ANY)]);
    simulator.delegate("A", "root", false, ANY);
    simulator.publish_as_it_is("A");
    simulator.publish(&["snapshot", "timestamp"]);
    let mut client = Client::of(&simulator);
    let error = client.search(&mut simulator, "x").unwrap_err();
    assert_eq!(error.code(), "malformed");
    assert!(error.to_string().starts_with("A.json has delegations"), "{error}");
    assert_eq!(client.version("root"), 1);
}

#[test]
fn hash_prefixes_and_bins_lead_to_the_role_that_the_name_hashes_to() {
    let name = "firmware/a.bin";
    let digest = Sha256::of(name.as_bytes()).to_string();
    let mut simulator = graph(&[("targets", "A", false, ANY), ("targets", "B", false, ANY)]);
    let roles = &mut simulator
        .targets
        .get_mut("targets")
        .unwrap()
        .delegations
        .as_mut()
        .unwrap()
        .roles;
    for (role, prefix) in roles
        .iter_mut()
        .zip(["nothing".len().to_string(), digest[..2].to_owned()])
    {
        (role.paths, role.path_hash_prefixes) = (None, Some(vec![prefix]));
    }
    assert!(!digest.starts_with('7'), "choose another name");
    simulator.publish_targets();
    assert_eq!(search(&mut simulator, name).0, ["B"]);

    let bin = format!("bin-{}", &digest[..1]);
    let mut simulator = graph(&[("targets", bin.as_str(), false, ANY)]);
    let delegations = simulator
        .targets
        .get_mut("targets")
        .unwrap()
        .delegations
        .as_mut()
        .unwrap();
    let keyids = delegations.roles.remove(0).keyids;
    let bins = json!({"keyids": keyids, "threshold": 1, "bit_length": 4, "name_prefix": "bin"});
    delegations.succinct_roles = serde_json::from_value(bins).unwrap();
    simulator
        .targets
        .get_mut(&bin)
        .unwrap()
        .targets
        .insert(name.to_owned(), target(b"x"));
    simulator.publish_targets();
    let (asked, found) = search(&mut simulator, name);
    assert_eq!((asked, found.unwrap().role), (vec![bin.clone()], bin));
}

#[test]
fn without_consistent_snapshots_roles_have_plain_names() {
    let mut simulator = graph(&[("targets", "A", false, ANY)]);
    simulator.root.consistent_snapshot = false;
    simulator.publish(&["root"]);
    simulator.publish_targets();
    let mut client = Client::of(&simulator);
    client.search(&mut simulator, "x").unwrap();
    let expected = [
        "2.root.json",
        "3.root.json",
        "timestamp.json",
        "snapshot.json",
        "targets.json",
        "A.json",
    ];
    assert_eq!(simulator.asked, expected);
    simulator.asked.clear();
    let later = noon() + DAY;
    client.refresh_at(&mut simulator, later).unwrap();
    assert_eq!(simulator.asked, ["3.root.json", "timestamp.json"]);
}
