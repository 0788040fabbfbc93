//! The whole offline story: keys, ceremony, release, campaign, signatures, publication.

use std::{fs, path::Path, time::Duration};

use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, Sha256},
    manifest::{PLAN_SCHEMA, Plan, PlannedDevice, Reversibility},
    time::WallTime,
    trust::{Ceremony, Repository, SecretKey, Signers, StoredMetadata},
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
    };
    let campaign = CampaignId::new("spring").unwrap();
    Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign,
        waves: vec![vec![device]],
        held: Vec::new(),
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
