//! The whole offline story: keys, ceremony, release, campaign, signatures, publication.

use std::{fs, path::Path, time::Duration};

use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, Sha256},
    labels::Labels,
    manifest::{CampaignManifest, PLAN_SCHEMA, Plan, PlannedDevice, Reversibility},
    rehearsal::{Assumptions, REHEARSAL_SCHEMA, Rehearsal},
    time::WallTime,
    trust::{Ceremony, FileStatus, Repository, SecretKey, SignerRole, Signers, StoredMetadata},
};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn noon() -> WallTime {
    WallTime::from_unix_seconds(1_800_000_000)
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn signers(numbers: [u8; 3]) -> Signers {
    Signers {
        keys: numbers.map(|number| key(number).public()).to_vec(),
        threshold: 2,
    }
}

fn founded(path: &Path) -> TrustFolder {
    let ceremony = Ceremony {
        root: signers([1, 2, 3]),
        releases: signers([11, 12, 13]),
        campaigns: signers([21, 22, 23]),
        online: Signers {
            keys: vec![key(31).public()],
            threshold: 1,
        },
        expires: noon() + 30 * DAY,
    };
    TrustFolder::create(path, &ceremony).unwrap()
}

fn new_release() -> NewRelease {
    NewRelease {
        vendor: "Acme Corp".to_owned(),
        models: vec!["R1".to_owned()],
        component: Component::new("bmc").unwrap(),
        version: "1.1.0".to_owned(),
        security_epoch: 1,
        from_versions: Vec::new(),
        compatibility: Compatibility::default(),
        reversibility: Reversibility::Reflash,
        name: None,
        provenance: None,
    }
}

const CAMPAIGN: &str = r#"
id = "spring"
expires = "2027-02-01T00:00:00Z"
releases = ["firmware/acme-corp-r1-bmc-1.1.0"]
strategy = { kind = "canary", shares = [1000, 5000, 10000] }
caps = { per_rack = 1, total = 10 }
gate = { advance = 9900, rollback = 9000, sample_min = 1, soak_s = 0 }
deadlines = { attempt_s = 600, back_s = 60 }
"#;

fn plan_bytes() -> Vec<u8> {
    let device = PlannedDevice {
        device: "d1".parse().unwrap(),
        node: "n1".parse().unwrap(),
        rack: "eu/s1/r1".parse().unwrap(),
        release: "firmware/acme-corp-r1-bmc-1.1.0".to_owned(),
        from_version: "1.0.0".to_owned(),
        previous: None,
        labels: Labels::default(),
        hops: Vec::new(),
        after: None,
    };
    let campaign = CampaignId::new("spring").unwrap();
    Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign,
        nodes: [(device.node.clone(), key(40).public())].into(),
        waves: vec![vec![device]],
        held: Vec::new(),
        domains: std::collections::BTreeMap::new(),
        servers: Vec::new(),
    }
    .to_bytes()
}

/// A folder with a release and a planned campaign, and `image.bin` beside it.
fn drawn_up(path: &Path) -> TrustFolder {
    let mut folder = founded(&path.join("trust"));
    let image = path.join("image.bin");
    fs::write(&image, b"firmware").unwrap();
    let artifact = measure(&image, |_| ()).unwrap();
    stage_release(&mut folder, &artifact, new_release(), noon() + 20 * DAY).unwrap();
    let draft = draft_campaign(&folder, toml::from_str(CAMPAIGN).unwrap(), &[key(31).public()]).unwrap();
    save_draft(&folder, &draft).unwrap();
    let draft = load_draft(&folder, &draft.id).unwrap();
    let plan = plan_bytes();
    adopt_plan(&mut folder, draft, &plan, Sha256::of(&plan), noon() + 20 * DAY).unwrap();
    folder
}

#[test]
fn what_people_sign_offline_is_what_a_coordinator_can_publish_and_a_client_accepts() {
    let scratch = tempfile::tempdir().unwrap();
    drawn_up(scratch.path());
    let folder = || TrustFolder::open(&scratch.path().join("trust")).unwrap();
    assert!(matches!(
        folder().publication(&[]),
        Err(FolderError::Incomplete { have: 0, need: 2, .. })
    ));
    for number in [1, 2, 11, 12, 21, 22] {
        let signed = folder().sign(&key(number), &[]).unwrap();
        assert!(
            !signed.is_empty() && signed.iter().all(|now| !now.summary.is_empty()),
            "key {number}"
        );
    }
    assert!(
        folder().sign(&key(1), &[]).unwrap().is_empty(),
        "nothing was left to sign"
    );
    let publication = folder().publication(&[]).unwrap();
    let files = publication
        .metadata
        .into_iter()
        .map(|(name, text)| (name, text.into_bytes()))
        .collect();
    let published = Repository::from_files(&files)
        .unwrap()
        .publish(&StoredMetadata::new(), noon(), noon() + DAY, &[&key(31)])
        .unwrap();
    assert!(published.files.contains_key("1.campaigns.json"));
    assert!(publication.manifests["campaigns/spring.json"].contains(&Sha256::of(&plan_bytes()).to_string()));
}

#[test]
fn an_image_is_named_by_all_its_digests() {
    let scratch = tempfile::tempdir().unwrap();
    let (path, bytes) = (scratch.path().join("image"), vec![7; (2 << 20) + 5]);
    fs::write(&path, &bytes).unwrap();
    let mut seen = 0;
    let artifact = measure(&path, |read| seen += read).unwrap();
    assert_eq!((artifact.length, seen), (bytes.len() as u64, bytes.len() as u64));
    assert_eq!(
        (artifact.id, artifact.sha256),
        (ArtifactId::of(&bytes), Sha256::of(&bytes))
    );
    fs::write(&path, b"").unwrap();
    assert!(matches!(measure(&path, |_| ()), Err(ReleaseError::Empty { .. })));
}

#[test]
fn approvers_cannot_sign_releases_and_a_stranger_can_sign_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let mut folder = drawn_up(scratch.path());
    let error = folder.sign(&key(21), &["releases.json"]).unwrap_err();
    assert!(
        error.is_refusal() && error.to_string().contains("is not listed for releases.json"),
        "{error}"
    );
    assert!(matches!(folder.sign(&key(99), &[]), Err(FolderError::Stranger { .. })));
    assert_eq!(folder.sign(&key(21), &[]).unwrap()[0].status.file, "campaigns.json");
}

#[test]
fn a_manifest_changed_after_it_was_staged_is_neither_signed_nor_published() {
    let scratch = tempfile::tempdir().unwrap();
    let mut folder = drawn_up(scratch.path());
    let path = folder.manifest_path(&CampaignId::new("spring").unwrap());
    let wider = fs::read_to_string(&path)
        .unwrap()
        .replace("\"total\": 10", "\"total\": 99");
    fs::write(&path, wider).unwrap();
    let error = folder.sign(&key(21), &[]).unwrap_err();
    assert!(matches!(error, FolderError::OtherManifest { .. }), "{error}");
    let status = TrustFolder::open(folder.path()).unwrap().status().unwrap();
    assert!(
        status.iter().all(|file| file.roles.iter().all(|role| role.have == 0)),
        "a signature was stored"
    );
}

#[test]
fn a_plan_that_is_not_the_campaigns_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut folder = drawn_up(scratch.path());
    let draft = load_draft(&folder, &CampaignId::new("spring").unwrap()).unwrap();
    let mut adopt =
        |plan: &[u8], digest| adopt_plan(&mut folder, draft.clone(), plan, digest, noon() + DAY).unwrap_err();
    assert!(matches!(
        adopt(&plan_bytes(), Sha256::of(b"x")),
        CampaignError::OtherPlan { .. }
    ));
    for (from, to) in [("\"spring\"", "\"autumn\""), ("bmc-1.1.0\"", "bmc-9.9.9\"")] {
        let plan = String::from_utf8(plan_bytes()).unwrap().replace(from, to).into_bytes();
        let digest = Sha256::of(&plan);
        assert!(
            matches!(adopt(&plan, digest), CampaignError::OtherPlan { .. }),
            "{from} to {to}"
        );
    }
}

#[test]
fn a_second_ceremony_in_the_same_folder_and_a_reused_release_name_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut folder = drawn_up(scratch.path());
    let image = scratch.path().join("image.bin");
    fs::write(&image, b"other firmware").unwrap();
    let artifact = measure(&image, |_| ()).unwrap();
    let error = stage_release(&mut folder, &artifact, new_release(), noon() + DAY).unwrap_err();
    assert!(matches!(error, ReleaseError::NameTaken { .. }), "{error}");
    let named = NewRelease {
        name: Some("firmware/../../etc/passwd".to_owned()),
        ..new_release()
    };
    assert!(matches!(
        stage_release(&mut folder, &artifact, named, noon() + DAY),
        Err(ReleaseError::BadName { .. })
    ));
    let again = Ceremony {
        root: signers([1, 2, 3]),
        releases: signers([11, 12, 13]),
        campaigns: signers([21, 22, 23]),
        online: signers([31, 32, 33]),
        expires: noon(),
    };
    assert!(matches!(
        TrustFolder::create(folder.path(), &again),
        Err(FolderError::Exists { .. })
    ));
}

/// Everybody of the first ceremony signs.
fn complete(folder: &mut TrustFolder) {
    for number in [1, 2, 11, 12, 21, 22] {
        folder.sign(&key(number), &[]).unwrap();
    }
    assert!(folder.status().unwrap().iter().all(FileStatus::is_complete));
}

fn told(folder: &TrustFolder, file: &str) -> String {
    let changes = folder.changes(file).unwrap();
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_signer_sees_what_a_new_version_changes() {
    let scratch = tempfile::tempdir().unwrap();
    let mut folder = drawn_up(scratch.path());
    assert!(told(&folder, "1.root.json").contains("everything is new"));
    complete(&mut folder);
    let expires = noon() + 60 * DAY;
    let weaker = Signers {
        keys: vec![key(11).public(), key(14).public()],
        threshold: 1,
    };
    folder
        .edit(|repository| {
            repository.set_signers(SignerRole::Root, &signers([1, 2, 4]), expires)?;
            repository.set_signers(SignerRole::Releases, &weaker, expires)?;
            repository.remove_release("firmware/acme-corp-r1-bmc-1.1.0", expires)
        })
        .unwrap();
    let root = told(&folder, "2.root.json");
    assert!(root.contains("against version 1"), "{root}");
    assert!(root.contains(&format!("+ root: key {}", key(4).public())), "{root}");
    assert!(root.contains(&format!("- root: key {}", key(3).public())), "{root}");
    assert!(!root.contains("targets: key") && root.contains("~ expires"), "{root}");
    let delegations = told(&folder, "targets.json");
    assert!(delegations.contains("! releases: threshold 2 -> 1"), "{delegations}");
    assert!(
        delegations.contains(&format!("+ releases: key {}", key(14).public())),
        "{delegations}"
    );
    let releases = told(&folder, "releases.json");
    assert!(
        releases.contains("- firmware/acme-corp-r1-bmc-1.1.0 sha256"),
        "{releases}"
    );
    assert!(releases.contains("against version 1"), "{releases}");
}

#[test]
fn a_record_that_nobody_signed_is_not_taken_for_what_was_signed_before() {
    let scratch = tempfile::tempdir().unwrap();
    let mut folder = drawn_up(scratch.path());
    complete(&mut folder);
    let expires = noon() + 60 * DAY;
    folder
        .edit(|repository| repository.renew("releases.json", expires))
        .unwrap();
    assert!(told(&folder, "releases.json").contains("against version 1"));
    let record = folder.path().join("signed/1.releases.json");
    let forged = fs::read_to_string(&record).unwrap().replace("1.1.0", "1.1.1");
    fs::write(&record, forged).unwrap();
    assert!(told(&folder, "releases.json").contains("everything is new"));
}

#[test]
fn a_round_goes_from_person_to_person_and_comes_back_signed() {
    let scratch = tempfile::tempdir().unwrap();
    let mut drafter = drawn_up(scratch.path());
    let at = |name: &str| scratch.path().join(name);
    let bundle = drafter.bundle().unwrap();
    bundle.save(&at("round.json")).unwrap();
    let read = TrustBundle::load(&at("round.json")).unwrap();
    assert_eq!(read, bundle);
    for (name, numbers) in [("anna", [1, 11, 21]), ("ben", [2, 12, 22])] {
        let (mut theirs, _) = TrustFolder::found_from(&at(name), &read).unwrap();
        for number in numbers {
            theirs.sign(&key(number), &[]).unwrap();
        }
        let imported = drafter.import(&theirs.bundle().unwrap()).unwrap();
        assert!(
            imported.iter().all(|file| file.outcome == Outcome::Signatures(1)),
            "{imported:?}"
        );
    }
    assert!(drafter.status().unwrap().iter().all(FileStatus::is_complete));
    assert!(at("anna/campaigns/spring.json").exists() && at("anna/campaigns/spring.plan.json").exists());
    // The same again, and something older: nothing happens.
    let imported = drafter.import(&read).unwrap();
    assert!(imported.iter().all(|file| file.outcome == Outcome::Same));
    let expires = noon() + 90 * DAY;
    drafter
        .edit(|repository| repository.renew("releases.json", expires))
        .unwrap();
    let imported = drafter.import(&read).unwrap();
    assert!(
        imported
            .iter()
            .any(|file| file.status.file == "releases.json" && file.outcome == Outcome::Older)
    );
}

#[test]
fn a_round_cannot_replace_what_is_fully_signed_nor_bring_other_documents() {
    let scratch = tempfile::tempdir().unwrap();
    let mut folder = drawn_up(scratch.path());
    let unsigned = folder.bundle().unwrap();
    complete(&mut folder);
    let text = serde_json::to_string(&unsigned).unwrap();
    let changed = |from: &str, to: &str| {
        let path = scratch.path().join("changed.json");
        fs::write(&path, text.replace(from, to)).unwrap();
        TrustBundle::load(&path)
    };
    let before = folder.repository().files();
    let other = changed(r#"\"version\":\"1.1.0\""#, r#"\"version\":\"6.6.6\""#).unwrap();
    let error = folder.import(&other).unwrap_err();
    assert!(
        error.is_refusal() && matches!(error, BundleError::Conflict { .. }),
        "{error}"
    );
    let other = changed("\\\"total\\\": 10", "\\\"total\\\": 99").unwrap();
    assert!(matches!(folder.import(&other), Err(BundleError::OtherDocument { .. })));
    assert!(matches!(
        changed("trust-bundle/1", "trust-bundle/9"),
        Err(BundleError::Schema { .. })
    ));
    assert!(matches!(
        changed("{\"schema", "{\"hurry\":1,\"schema"),
        Err(BundleError::Malformed { .. })
    ));
    assert_eq!(TrustFolder::open(folder.path()).unwrap().repository().files(), before);
    assert!(matches!(
        TrustFolder::found_from(folder.path(), &unsigned),
        Err(BundleError::Folder(FolderError::Exists { .. }))
    ));
}

#[test]
fn two_who_change_a_folder_exclude_each_other() {
    let scratch = tempfile::tempdir().unwrap();
    let mut first = drawn_up(scratch.path());
    let path = scratch.path().join("trust");
    let held = TrustFolder::open_locked(&path).unwrap();
    let error = first.sign(&key(1), &[]).unwrap_err();
    assert!(matches!(error, FolderError::Lock(LockError::Busy { .. })), "{error}");
    assert!(matches!(TrustFolder::open_locked(&path), Err(FolderError::Lock(_))));
    TrustFolder::open(&path).unwrap();
    drop(held);
    // Without the lock the other changes it in between: what was read before is not written over it.
    TrustFolder::open(&path).unwrap().sign(&key(2), &[]).unwrap();
    assert!(matches!(first.sign(&key(1), &[]), Err(FolderError::Changed { .. })));
    let mut again = TrustFolder::open(&path).unwrap();
    again.sign(&key(1), &[]).unwrap();
    assert!(again.status().unwrap()[0].is_complete());
}

#[test]
fn a_rehearsal_of_this_plan_and_these_rules_is_bound_and_shown_to_those_who_sign() {
    let scratch = tempfile::tempdir().unwrap();
    let mut folder = drawn_up(scratch.path());
    let draft = load_draft(&folder, &CampaignId::new("spring").unwrap()).unwrap();
    let plan = plan_bytes();
    let plan_sha256 = Sha256::of(&plan);
    let planned = CampaignManifest {
        plan_sha256,
        ..draft.clone()
    };
    assert_eq!(load_planned(&folder, &draft.id).unwrap(), planned);
    let rehearsal = Rehearsal {
        schema: REHEARSAL_SCHEMA.to_owned(),
        version: "0".to_owned(),
        campaign: draft.id.clone(),
        rules_sha256: planned.rules_sha256(),
        plan_sha256,
        seed: 1,
        runs: 1,
        starts: noon(),
        devices: 1,
        held: 0,
        nodes: 1,
        cap_per_rack: 1,
        cap_total: 10,
        assumptions: Assumptions {
            permit_ttl_s: 900,
            sync_s: 5,
            wire_per_10000: 10_600,
            steps: Vec::new(),
            notes: Vec::new(),
        },
        waves: Vec::new(),
        scenarios: Vec::new(),
        timeline: Vec::new(),
    };
    let bound = bind_rehearsal(draft.clone(), plan_sha256, &rehearsal).unwrap();
    assert_eq!(bound.rehearsal_sha256, Some(rehearsal.sha256()));
    adopt_plan(&mut folder, bound.clone(), &plan, plan_sha256, noon() + 20 * DAY).unwrap();
    let shown = folder.describe("campaigns.json").unwrap().join("\n");
    assert!(
        shown.contains(&format!("rehearsal sha256 {}", rehearsal.sha256())),
        "{shown}"
    );
    // What was bound is rehearsed again as it is planned, and has the same rules.
    assert_eq!(load_planned(&folder, &draft.id).unwrap(), bound);
    // A draft that has changed since is another campaign.
    let mut changed = draft.clone();
    changed.caps.total = 11;
    save_draft(&folder, &changed).unwrap();
    assert_eq!(load_planned(&folder, &draft.id).unwrap(), changed);
    // Whoever was brought a planned campaign has no draft of it.
    fs::remove_file(folder.path().join("campaigns/spring.draft.json")).unwrap();
    assert_eq!(load_planned(&folder, &draft.id).unwrap(), bound);

    let refused = |draft: &CampaignManifest, plan_sha256, rehearsal: &Rehearsal| {
        let error = bind_rehearsal(draft.clone(), plan_sha256, rehearsal).unwrap_err();
        assert!(matches!(error, CampaignError::OtherRehearsal { .. }), "{error}");
    };
    refused(&changed, plan_sha256, &rehearsal);
    refused(&draft, Sha256::of(b"another plan"), &rehearsal);
    let campaign = CampaignId::new("autumn").unwrap();
    refused(&draft, plan_sha256, &Rehearsal { campaign, ..rehearsal });
}
