//! The house as DESIGN has it: who may import whom, and what a core may not even name.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_tests::binaries::workspace;
use serde_json::Value;

/// Every package, and those of ours it may import, in its tests too.
const ARROWS: &[(&str, &[&str])] = &[
    ("firmesh-protocol", &[]),
    ("firmesh-telemetry", &["firmesh-protocol"]),
    ("firmesh-executors-core", &["firmesh-protocol"]),
    ("firmesh-executors", &["firmesh-protocol", "firmesh-executors-core"]),
    ("firmesh-node-core", &["firmesh-protocol", "firmesh-executors-core"]),
    (
        "firmesh-node",
        &[
            "firmesh-protocol",
            "firmesh-executors-core",
            "firmesh-executors",
            "firmesh-node-core",
            "firmesh-telemetry",
        ],
    ),
    ("firmesh-coordinator-core", &["firmesh-protocol"]),
    (
        "firmesh-coordinator",
        &["firmesh-protocol", "firmesh-coordinator-core", "firmesh-telemetry"],
    ),
    (
        "firmesh-simulations",
        &[
            "firmesh-protocol",
            "firmesh-executors-core",
            "firmesh-node-core",
            "firmesh-coordinator-core",
        ],
    ),
    (
        "firmesh-lab",
        &[
            "firmesh-protocol",
            "firmesh-executors-core",
            "firmesh-executors",
            "firmesh-node-core",
            "firmesh-node",
            "firmesh-coordinator-core",
            "firmesh-coordinator",
            "firmesh-simulations",
        ],
    ),
    ("firmesh-tests", &["firmesh-protocol", "firmesh-simulations"]),
];

/// Packages whose manifest must show that they are pure.
const CORES: &[&str] = &[
    "firmesh-protocol",
    "firmesh-executors-core",
    "firmesh-node-core",
    "firmesh-coordinator-core",
];

/// What would give a core a clock, a socket, a disk, a thread or an ambient source of randomness.
const IMPURE: &[&str] = &[
    "async-std",
    "axum",
    "axum-server",
    "futures-util",
    "getrandom",
    "hyper",
    "iroh-blobs",
    "libp2p",
    "mio",
    "nix",
    "quinn",
    "rand",
    "redb",
    "reqwest",
    "rustls",
    "sled",
    "smol",
    "socket2",
    "sqlx",
    "tempfile",
    "tokio",
    "tokio-stream",
    "tokio-util",
    "tracing-subscriber",
];

#[test]
fn every_arrow_between_packages_is_one_the_design_draws() {
    let packages = packages();
    let drawn: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    assert_eq!(
        packages.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        drawn.keys().copied().collect::<BTreeSet<_>>(),
        "a package has come or gone: draw it here and in the README"
    );
    for (package, dependencies) in &packages {
        for (dependency, kind) in dependencies.iter().filter(|(name, _)| packages.contains_key(name)) {
            let allowed = drawn[package.as_str()].contains(&dependency.as_str());
            assert!(
                allowed,
                "{package} imports {dependency} ({kind}), which the design does not draw"
            );
        }
    }
}

#[test]
fn a_core_names_no_crate_that_reaches_outside() {
    let packages = packages();
    for core in CORES {
        for (dependency, kind) in packages[*core].iter().filter(|(_, kind)| kind != "dev") {
            assert!(
                !IMPURE.contains(&dependency.as_str()),
                "the core {core} names {dependency} ({kind})"
            );
        }
    }
}

#[test]
fn a_core_forbids_itself_clocks_files_and_threads() {
    for folder in ["protocol", "executors/core", "node/core", "coordinator/core"] {
        let file = workspace().join(folder).join(".clippy.toml");
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for method in [
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "std::thread::spawn",
        ] {
            assert!(text.contains(method), "{} does not disallow {method}", file.display());
        }
    }
}

/// Our packages, each with the names and kinds of what its manifest names.
fn packages() -> BTreeMap<String, Vec<(String, String)>> {
    let output = std::process::Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--locked",
            "--offline",
        ])
        .current_dir(workspace())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let text = |value: &Value| value.as_str().unwrap_or("normal").to_owned();
    let dependencies = |package: &Value| {
        let list = package["dependencies"]
            .as_array()
            .expect("every package lists its dependencies");
        list.iter()
            .map(|dependency| (text(&dependency["name"]), text(&dependency["kind"])))
            .collect()
    };
    let list = metadata["packages"].as_array().expect("cargo metadata lists packages");
    list.iter()
        .map(|package| (text(&package["name"]), dependencies(package)))
        .collect()
}
