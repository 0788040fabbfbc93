//! A stolen key of every role. The thief has a threshold of the role's keys (one of them found out, the next one stolen
//! later), the online keys and the network. Before the recovery he gets what he wants: the attack is a real one. After it
//! a verifier that holds nothing but the first root refuses him by name.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::About,
    ids::Sha256,
    trust::{Key, SecretKey, StoredMetadata, Target},
};
use firmesh_tests::{
    binaries::Program,
    operator::{Operator, THRESHOLD},
    process::Process,
    setup::{client, get},
    wait::{Seen, until},
};
use serde_json::Value;

use super::fleet::{Files, Fleet, Online, accepted, refresh, refused};

/// The doings of a thief who holds the keys of one role.
type Forge = fn(&Fleet, &Online) -> Result<Files>;

/// Role, its keys' name, and what the thief does with two of them.
const OFFLINE: [(&str, &str, Forge); 4] = [
    ("root", "root", |fleet, _| {
        let (a, b, thief) = (
            fleet.secret("root-1")?,
            fleet.secret("root-2")?,
            fleet.secret("spare-2")?,
        );
        fleet.forge_root(&[&a, &b], |root| {
            let id = thief.public().id();
            root.keys.insert(id.clone(), Key::from(thief.public()));
            if let Some(targets) = root.roles.get_mut("targets") {
                targets.keyids.push(id);
            }
        })
    }),
    ("targets", "targets", |fleet, online| {
        let (a, b, thief) = (
            fleet.secret("targets-1")?,
            fleet.secret("targets-2")?,
            fleet.secret("spare-2")?,
        );
        fleet.forge_targets("targets", &[&a, &b], online, |targets| {
            let Some(delegations) = &mut targets.delegations else {
                return;
            };
            let id = thief.public().id();
            delegations.keys.insert(id.clone(), Key::from(thief.public()));
            if let Some(role) = delegations.roles.iter_mut().find(|role| role.name == "releases") {
                role.keyids.push(id);
            }
        })
    }),
    ("releases", "release", |fleet, online| {
        let (a, b) = (fleet.secret("release-1")?, fleet.secret("release-2")?);
        fleet.forge_targets("releases", &[&a, &b], online, |targets| {
            targets
                .targets
                .insert("firmware/evil".to_owned(), Target::new(4, Sha256::of(b"evil"), None));
        })
    }),
    ("campaigns", "approver", |fleet, online| {
        let (a, b) = (fleet.secret("approver-1")?, fleet.secret("approver-2")?);
        fleet.forge_targets("campaigns", &[&a, &b], online, |targets| {
            targets.targets.insert(
                "campaigns/evil.json".to_owned(),
                Target::new(4, Sha256::of(b"evil"), None),
            );
        })
    }),
];

#[test]
fn a_stolen_key_of_any_offline_role_is_worth_nothing_after_the_recovery() -> Result<()> {
    for (role, keys, forge) in OFFLINE {
        let mut fleet = Fleet::found()?;
        let online = fleet.online()?;
        fleet.publish(&online)?;
        accepted(role, refresh(&mut fleet.pinned()?, &fleet.files)?)?;
        accepted(
            &format!("the thief of {role} before the recovery"),
            refresh(&mut fleet.pinned()?, &forge(&fleet, &online)?)?,
        )?;

        // The first of the two keys is found out: it goes, a spare comes, and the others sign what that changes.
        fleet.change(role, &["keys/spare-1"], &[&format!("keys/{keys}-1")])?;
        for group in ["root", "targets", keys] {
            fleet.sign(group, 2..=3)?;
        }
        fleet.publish(&online)?;
        let mut node = fleet.pinned()?;
        accepted(role, refresh(&mut node, &fleet.files)?)?;

        // The thief has the key that was found out and steals the next one; nodes old and new refuse the pair.
        let forged = forge(&fleet, &online)?;
        for mut store in [fleet.pinned()?, node] {
            let outcome = refresh(&mut store, &forged)?;
            refused(&format!("the thief of {role}"), outcome, "signature_threshold")?;
        }
    }
    Ok(())
}

#[test]
fn a_stolen_online_key_can_lie_until_the_root_names_another_and_no_fast_forward_outlives_it() -> Result<()> {
    for role in ["snapshot", "timestamp"] {
        let mut fleet = Fleet::found()?;
        let online = fleet.online()?;
        fleet.publish(&online)?;
        let mut forwarded = fleet.pinned()?;
        accepted(
            "a thief's fast-forward",
            refresh(&mut forwarded, &fleet.forge_online(1 << 40, &online)?)?,
        )?;
        refused(
            "what is true, after it",
            refresh(&mut forwarded.clone(), &fleet.files)?,
            "rollback",
        )?;

        fleet.change(role, &["keys/spare-1"], &[&format!("keys/{role}-1")])?;
        fleet.sign("root", 1..=THRESHOLD)?;
        let spare = fleet.secret("spare-1")?;
        let fresh = match role {
            "snapshot" => Online {
                snapshot: spare,
                ..fleet.online()?
            },
            _ => Online {
                timestamp: spare,
                ..fleet.online()?
            },
        };
        fleet.publish(&fresh)?;
        accepted(
            "what is true, after the recovery",
            refresh(&mut forwarded, &fleet.files)?,
        )?;
        let forged = fleet.forge_online(1, &online)?;
        for mut store in [fleet.pinned()?, forwarded] {
            refused(
                &format!("the thief of {role}"),
                refresh(&mut store, &forged)?,
                "signature_threshold",
            )?;
        }
    }
    Ok(())
}

/// A chain of roots, each signed by the keys before and after: a node that slept through all of it catches up.
#[test]
fn every_role_can_change_all_its_keys_and_a_node_with_the_first_root_follows() -> Result<()> {
    let mut fleet = Fleet::found()?;
    let online = fleet.online()?;
    fleet.publish(&online)?;
    for (role, keys) in [
        ("root", "root"),
        ("targets", "targets"),
        ("releases", "release"),
        ("campaigns", "approver"),
    ] {
        for number in 1..=3 {
            fleet
                .people
                .ok(&["key", "generate", "--unencrypted", &format!("keys/new-{keys}-{number}")])?;
            let (new, old) = (format!("keys/new-{keys}-{number}"), format!("keys/{keys}-{number}"));
            fleet.change(role, &[&new], &[&old])?;
        }
        // The old root keys vouch for the new ones; below the root the level above does.
        let above: &[&str] = match role {
            "root" => &["root", "new-root"],
            "targets" => &["new-root", "new-targets"],
            _ => &["new-targets"],
        };
        for group in above {
            fleet.sign(group, 1..=THRESHOLD)?;
        }
        if !["root", "targets"].contains(&role) {
            fleet.sign(&format!("new-{keys}"), 1..=THRESHOLD)?;
        }
        fleet.publish(&online)?;
        accepted(role, refresh(&mut fleet.pinned()?, &fleet.files)?)?;
    }
    let roots = (1..)
        .take_while(|version| fleet.files.contains_key(&format!("{version}.root.json")))
        .count();
    ensure!(roots == 4, "{roots} roots");
    // The old keys are strangers now.
    for keys in ["root-1", "targets-1", "release-1", "approver-1"] {
        fleet
            .people
            .ok(&["trust", "renew", "root", "targets", "releases", "campaigns"])?;
        let said = fleet
            .people
            .refused(3, &["trust", "sign", "--key", &format!("keys/{keys}")])?;
        ensure!(said.contains("is not listed for any file"), "{said}");
    }
    Ok(())
}

const WITHIN: Duration = Duration::from_secs(60);

/// A coordinator of its own, without nodes.
async fn coordinator(root: &Path) -> Result<(Process, String)> {
    let config = root.join("coordinator.toml");
    let text =
        "state_dir = \"coordinator\"\n[operators]\nlisten = \"127.0.0.1:0\"\n[nodes]\nlisten = \"127.0.0.1:0\"\n";
    fs::write(&config, text)?;
    let addresses = root.join("coordinator/addresses.json");
    fs::remove_file(&addresses).ok();
    let args = ["--config".as_ref(), config.as_os_str()];
    let mut process = Process::start(Program::Coordinator, args, &root.join("coordinator.log"), |_| ())?;
    let url = until("the coordinator to listen", WITHIN, async || {
        if let Some(status) = process.ended()? {
            anyhow::bail!("it has ended ({status}): {}", process.log());
        }
        let found: Value = serde_json::from_slice(&fs::read(&addresses)?)?;
        Ok(Seen::Yes(
            found["operator_url"].as_str().context("an address")?.to_owned(),
        ))
    })
    .await?;
    Ok((process, url.trim_end_matches('/').to_owned()))
}

/// Everything the coordinator gives to a client that begins with the first root.
async fn fetched(http: &reqwest::Client, url: &str) -> Result<Files> {
    let mut files = Files::new();
    let mut names = vec!["timestamp.json".to_owned()];
    names.extend((1..=4).map(|version| format!("{version}.root.json")));
    for role in ["snapshot", "targets", "releases", "campaigns"] {
        names.extend((1..=9).map(|version| format!("{version}.{role}.json")));
    }
    for name in names {
        let answer = http.get(format!("{url}/api/v1/metadata/{name}")).send().await?;
        if answer.status().is_success() {
            files.insert(name, answer.bytes().await?.to_vec());
        }
    }
    Ok(files)
}

#[tokio::test]
async fn a_coordinator_whose_online_key_was_stolen_gets_another_and_nodes_follow_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    let (mut process, url) = coordinator(root).await?;
    let http = client()?;
    let about: About = get(&http, &format!("{url}/api/v1/about")).await?;
    let token = root.join("coordinator/operator.token");
    let people = Operator::offline(root).with_coordinator(&url, &token);
    people.hold_ceremony(&about.online_key)?;
    for group in ["release", "approver"] {
        people.sign(group)?;
    }
    people.ok(&["trust", "publish"])?;
    let before = fetched(&http, &url).await?;
    let pinned: StoredMetadata = [("root.json".to_owned(), before["1.root.json"].clone())].into();
    let mut node = pinned.clone();
    accepted("before", refresh(&mut node, &before)?)?;

    // The key is copied; later it is found out. A new one takes its place, and the root says so.
    let stolen = SecretKey::from_pem(&fs::read_to_string(root.join("coordinator/keys/online.pem"))?)?;
    process.stop(WITHIN).await?;
    people.ok(&[
        "key",
        "generate",
        "--unencrypted",
        "--force",
        "coordinator/keys/online.pem",
    ])?;
    let (_process, url) = coordinator(root).await?;
    let people = Operator::offline(root).with_coordinator(&url, &token);
    let old = format!("{}", stolen.public());
    people.ok(&[
        "trust",
        "signers",
        "snapshot",
        "timestamp",
        "--remove",
        &old,
        "--add",
        "coordinator/keys/online.pem.pub",
    ])?;
    let said = people.refused(3, &["trust", "publish"])?;
    ensure!(said.contains("2.root.json") && said.contains("signatures"), "{said}");
    people.sign("root")?;
    let published = people.ok(&["trust", "publish"])?;
    ensure!(published["versions"]["root"] == 2, "{published:#}");
    let after = fetched(&http, &url).await?;
    accepted("after, from the first root", refresh(&mut pinned.clone(), &after)?)?;
    accepted("after, on a node that was there", refresh(&mut node, &after)?)?;

    // What the thief signs with the old key: the old timestamp is his to offer, and worth nothing.
    let mut forged = after.clone();
    forged.insert("timestamp.json".to_owned(), before["timestamp.json"].clone());
    for mut store in [pinned, node] {
        refused(
            "the thief of the online key",
            refresh(&mut store, &forged)?,
            "signature_threshold",
        )?;
    }
    let findings = people.ok(&["doctor"])?;
    ensure!(
        findings.to_string().contains("fleet CA") && findings.to_string().contains("timestamp.json"),
        "{findings:#}"
    );
    Ok(())
}
