//! Attacks on the repository as a whole: files of different editions put together, versions pushed to the end of the
//! scale, keys that anybody can sign for.
//!
//! As in `refusals`, the attacker has the online keys; where people's signatures are on a file, people were talked into it.

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::trust::{Key, KeyId, Role, Root, SignedFile, Signers, Targets};
use firmesh_tests::{
    rogue::Rogue,
    setup::place,
    wait::{Seen, Turn, until},
};
use serde_json::{Value, json};

use crate::{
    refusals::{APPROVERS, CAMPAIGN, DAY, Forger, ONLINE, RELEASES, ROOT, WITHIN, key, now},
    victim::Victim,
};

/// The neutral element of the curve as a public key: under it, the same point with a zero is a good signature of every
/// message, to a verifier that does not look.
const WEAK_KEY: &str = "0100000000000000000000000000000000000000000000000000000000000000";
const WEAK_SIGNATURE: &str = "01000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000";

/// An attack: what it is, how it is made, and the name it has to be refused by.
type Attack = (&'static str, fn(&mut Forger) -> Result<()>, &'static str);

const ATTACKS: &[Attack] = &[
    (
        "an older edition of the campaigns in a snapshot that calls it the newer",
        |forger| {
            let (_, older) = forger.files["campaigns.json"].clone();
            newer_edition(forger)?;
            forger.files.insert("campaigns.json".to_owned(), (2, older));
            Ok(())
        },
        "wrong_version",
    ),
    (
        "a root that jumps to the end of the scale",
        |forger| new_root(forger, |root| root.header.version = u64::MAX),
        "wrong_version",
    ),
    (
        "a new root with a timestamp key of small order",
        |forger| {
            new_root(forger, |root| {
                let (id, weak) = weak_key();
                let timestamp = root.roles.get_mut("timestamp").expect("a root names the role");
                timestamp.keyids = vec![id.clone()];
                root.keys.insert(id, weak);
            })
        },
        "bad_key",
    ),
    (
        "campaigns that anybody can sign, by a key of small order",
        |forger| {
            let (id, weak) = weak_key();
            let mut targets: Targets = forger.repository.targets().clone();
            let delegations = targets.delegations.as_mut().context("there are delegated roles")?;
            let role = delegations.roles.iter_mut().find(|role| role.name == "campaigns");
            let role = role.context("there is a role for campaigns")?;
            (role.keyids, role.threshold) = (vec![id.clone()], 1);
            delegations.keys.insert(id.clone(), weak);
            let targets = signed_by_people(&targets);
            forger.files.insert("targets.json".to_owned(), (1, targets));
            let (version, campaigns) = &forger.files["campaigns.json"];
            let mut campaigns: Value = serde_json::from_slice(campaigns)?;
            campaigns["signatures"] = json!([{ "keyid": id, "sig": WEAK_SIGNATURE }]);
            let campaigns = (*version, serde_json::to_vec(&campaigns)?);
            forger.files.insert("campaigns.json".to_owned(), campaigns);
            Ok(())
        },
        "bad_key",
    ),
    (
        "a campaign whose permits anybody can sign, by a key of small order",
        |forger| {
            *forger = Forger::with(
                |_, manifest| {
                    manifest["permit_keys"] = json!([WEAK_KEY]);
                    Ok(())
                },
                |_| Ok(()),
            )?;
            Ok(())
        },
        "malformed",
    ),
];

#[tokio::test]
async fn no_edition_is_another_s_no_version_is_jumped_to_and_no_weak_key_counts() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    for (what, attack, code) in ATTACKS {
        let mut forger = Forger::honest()?;
        let pinned = forger.files["1.root.json"].clone();
        attack(&mut forger)?;
        ensure!(
            forger.files["1.root.json"] == pinned || what.contains("permits"),
            "the node pins the root before the attack"
        );
        let victim = Victim::start(&rogue, &forger)
            .await
            .with_context(|| format!("before {what}"))?;
        forger.offer(&rogue, 1)?;
        victim.refuses(code).await.with_context(|| (*what).to_owned())?;
        victim.is_untouched(&rogue).await.with_context(|| (*what).to_owned())?;
    }
    Ok(())
}

/// What lies in the newer edition under a name of its own, and what is put there instead.
const MIXTURES: &[(&str, &str)] = &[
    ("2.campaigns.json", "1.campaigns.json"),
    ("2.snapshot.json", "1.snapshot.json"),
];

#[tokio::test]
async fn files_of_two_editions_are_not_mixed() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    for &(newer, older) in MIXTURES {
        let mut forger = Forger::honest()?;
        forger.offer(&rogue, 1)?;
        let before = std::mem::take(&mut *rogue.wares());
        newer_edition(&mut forger)?;
        let victim = Victim::start(&rogue, &forger).await?;
        forger.offer_with(&rogue, 2, |wares| {
            let bytes = before.metadata.get(older).context("the older edition has it")?;
            let replaced = wares.metadata.insert(newer.to_owned(), bytes.clone());
            ensure!(replaced.is_some_and(|newer| newer != *bytes), "nothing was mixed");
            Ok(())
        })?;
        victim.refuses("hash_mismatch").await.context(newer)?;
        victim.is_untouched(&rogue).await.context(newer)?;
        forger.offer(&rogue, 3)?;
        victim.writes_its_device().await.context("unmixed")?;
    }
    Ok(())
}

/// Whoever has the online keys can push the versions so far that no honest one is ever newer. It stops the node, which
/// says so, and people's new online keys get it going again.
#[tokio::test]
async fn a_fast_forward_only_delays_until_people_change_the_online_keys() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let mut forger = Forger::honest()?;
    let victim = Victim::start(&rogue, &forger).await?;
    forger.offer_with(&rogue, u64::MAX, |wares| {
        wares.campaigns.clear();
        wares.permits.clear();
        Ok(())
    })?;
    until("the last version of all", WITHIN, async || {
        let status = victim.node.status().await?;
        Ok(Seen::when(status["timestamp_version"] == u64::MAX, || {
            status.to_string()
        }))
    })
    .await?;
    forger.offer(&rogue, 2)?;
    victim.refuses("rollback").await?;
    victim.is_untouched(&rogue).await?;

    let online = Signers {
        keys: vec![key(ONLINE + 1).public()],
        threshold: 1,
    };
    forger.edit(|repository| repository.set_online_signers(&online, now() + DAY))?;
    forger.online = ONLINE + 1;
    forger.offer(&rogue, 3)?;
    victim.writes_its_device().await.context("with new online keys")?;
    let status = victim.node.status().await?;
    ensure!(status["timestamp_version"] == 3, "{status}");
    Ok(())
}

/// What a thief signs with a threshold of a role's keys, after people have replaced them: the file, and whose place it
/// takes.
const THEFTS: &[(&str, u8)] = &[("root", ROOT), ("releases", RELEASES), ("campaigns", APPROVERS)];

/// The keys after the recovery: person `n` of a group has the seed `group + RECOVERED + n`.
const RECOVERED: u8 = 5;

#[tokio::test]
async fn whoever_stole_the_keys_of_a_role_is_refused_by_a_node_once_they_were_replaced() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    for &(role, group) in THEFTS {
        let mut forger = Forger::honest()?;
        let victim = Victim::start(&rogue, &forger).await?;
        recover(&mut forger, role, group).with_context(|| format!("replacing the keys of {role}"))?;
        forger.offer_with(&rogue, 2, |wares| {
            wares.campaigns.clear();
            wares.permits.clear();
            Ok(())
        })?;
        until("the recovery", WITHIN, async || {
            let status = victim.node.status().await?;
            Ok(Seen::when(status["timestamp_version"] == 2, || status.to_string()))
        })
        .await?;

        steal(&mut forger, role, group)?;
        forger.offer(&rogue, 3)?;
        victim.refuses("signature_threshold").await.context(role)?;
        victim.is_untouched(&rogue).await.context(role)?;

        publish_past(&mut forger, role, group)?;
        forger.offer(&rogue, 4)?;
        victim
            .writes_its_device()
            .await
            .with_context(|| format!("{role}, as people have it"))?;
    }
    Ok(())
}

/// People replace every key of the role, and sign what has to be signed for that.
fn recover(forger: &mut Forger, role: &str, group: u8) -> Result<()> {
    let signers = Signers {
        keys: (1..=3).map(|number| key(group + RECOVERED + number).public()).collect(),
        threshold: 2,
    };
    let (repository, expires) = (&mut forger.repository, now() + DAY);
    let signatures: &[(&str, u8)] = match role {
        "root" => {
            repository.set_root_signers(&signers, expires)?;
            &[
                ("2.root.json", ROOT),
                ("2.root.json", ROOT + RECOVERED),
                ("targets.json", ROOT + RECOVERED),
            ]
        }
        "releases" => {
            repository.set_release_signers(&signers, expires)?;
            &[("targets.json", ROOT), ("releases.json", RELEASES + RECOVERED)]
        }
        _ => {
            repository.set_campaign_signers(&signers, expires)?;
            &[("targets.json", ROOT), ("campaigns.json", APPROVERS + RECOVERED)]
        }
    };
    for (file, group) in signatures {
        for number in 1..=2 {
            repository.sign(file, &key(group + number))?;
        }
    }
    forger.take_files()
}

/// The next edition of the role's file, by the stolen keys.
fn steal(forger: &mut Forger, role: &str, group: u8) -> Result<()> {
    let people = [group + 1, group + 2];
    let (name, version, bytes) = match role {
        "root" => {
            let mut root = forger.repository.root().clone();
            root.header.version += 1;
            (
                format!("{}.root.json", root.header.version),
                root.header.version,
                signed(&root, people),
            )
        }
        _ => {
            let repository = &forger.repository;
            let stolen = if role == "releases" {
                repository.releases()
            } else {
                repository.campaigns()
            };
            let mut stolen = stolen.clone();
            stolen.header.version += 1;
            (format!("{role}.json"), stolen.header.version, signed(&stolen, people))
        }
    };
    forger.files.insert(name, (version, bytes));
    Ok(())
}

/// People's next edition, with a version that the thief has not taken up: the snapshot that names his is believed, as far
/// as versions go.
fn publish_past(forger: &mut Forger, role: &str, group: u8) -> Result<()> {
    if role != "root" {
        let file = format!("{role}.json");
        for _ in ["the thief's version", "the next"] {
            forger.repository.renew(&file, now() + DAY)?;
            for number in 1..=2 {
                forger.repository.sign(&file, &key(group + RECOVERED + number))?;
            }
        }
    }
    forger.take_files()
}

/// The campaign is published once more.
fn newer_edition(forger: &mut Forger) -> Result<()> {
    let target = forger.campaign_target();
    let name = format!("campaigns/{CAMPAIGN}.json");
    forger.edit(|repository| repository.set_campaign(&name, target, now() + DAY))?;
    let (version, _) = forger.files["campaigns.json"];
    ensure!(version == 2, "it is version {version}");
    Ok(())
}

/// The root after the pinned one, signed by people.
fn new_root(forger: &mut Forger, change: impl FnOnce(&mut Root)) -> Result<()> {
    let mut root = forger.repository.root().clone();
    root.header.version = 2;
    change(&mut root);
    let bytes = signed_by_people(&root);
    forger.files.insert("2.root.json".to_owned(), (2, bytes));
    Ok(())
}

fn signed_by_people(content: &impl Role) -> Vec<u8> {
    signed(content, [ROOT + 1, ROOT + 2])
}

fn signed(content: &impl Role, people: [u8; 2]) -> Vec<u8> {
    let mut file = SignedFile::unsigned(content);
    for person in people {
        file.sign(&key(person).public().id(), &key(person));
    }
    file.to_bytes()
}

fn weak_key() -> (KeyId, Key) {
    let mut weak = Key::from(key(ONLINE).public());
    weak.keyval = json!({ "public": WEAK_KEY });
    (weak.id(), weak)
}
