//! What a client refuses, each told as a story: a repository is published, somebody tampers, the client says why not.

use std::{sync::LazyLock, time::Duration};

use proptest::prelude::*;

use super::super::{
    Ceremony, Key, KeyId, MetaFile, PublishError, PublishedMetadata, Repository, SecretKey, SignatureError, Signers,
    Target, TrustedFleet,
};
use super::*;
use crate::ids::{ArtifactId, CampaignId, Sha256};

const DAY: Duration = Duration::from_secs(86_400);

fn noon() -> WallTime {
    WallTime::from_unix_seconds(1_800_000_000)
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// Roots are 1..=3, release keys 11..=13, approvers 21..=23, each 2 of 3; the coordinator's key is 31.
const ROOTS: [u8; 3] = [1, 2, 3];
const RELEASERS: [u8; 3] = [11, 12, 13];
const APPROVERS: [u8; 3] = [21, 22, 23];
const ONLINE: u8 = 31;

fn signers(numbers: &[u8], threshold: u64) -> Signers {
    Signers {
        keys: numbers.iter().map(|&number| key(number).public()).collect(),
        threshold,
    }
}

fn ceremony() -> Ceremony {
    Ceremony {
        root: signers(&ROOTS, 2),
        releases: signers(&RELEASERS, 2),
        campaigns: signers(&APPROVERS, 2),
        online: signers(&[ONLINE], 1),
        expires: noon() + 30 * DAY,
    }
}

fn release(bytes: &[u8]) -> Target {
    let custom = serde_json::json!({
        "schema": "firmesh-release/1", "blake3": ArtifactId::of(bytes), "vendor": "Acme", "models": ["R1"],
        "component": "bmc", "version": "1.1.0", "security_epoch": 1, "reversibility": "reflash",
    });
    Target::new(bytes.len() as u64, Sha256::of(bytes), Some(custom))
}

const IMAGE: &[u8] = b"firmware image";
const RELEASE: &str = "firmware/acme-bmc-1.1.0.bin";

fn manifest_bytes() -> Vec<u8> {
    let manifest = serde_json::json!({
        "schema": "firmesh-campaign/1", "id": "spring", "sequence": 1, "expires": noon() + DAY,
        "releases": [{"target": RELEASE, "sha256": Sha256::of(IMAGE)}], "selector": {},
        "strategy": {"kind": "canary", "shares": [1000, 10000]}, "caps": {"per_rack": 1, "total": 4},
        "gate": {"advance": 9900, "rollback": 9000, "sample_min": 1, "soak_s": 0},
        "deadlines": {"attempt_s": 60, "back_s": 10}, "automatic_rollback": true,
        "permit_keys": [key(ONLINE).public()], "plan_sha256": Sha256::of(b"plan"),
    });
    serde_json::to_vec(&manifest).unwrap()
}

fn spring() -> CampaignId {
    CampaignId::new("spring").unwrap()
}

/// A repository with one release and one campaign, what it published, and a client that pinned its first root.
#[derive(Clone)]
struct Fleet {
    repository: Repository,
    published: PublishedMetadata,
    store: StoredMetadata,
}

impl Fleet {
    /// A fresh copy of a fleet that is drawn up once: the ceremony's signatures are most of a test's time.
    fn new() -> Self {
        static FIRST: LazyLock<Fleet> = LazyLock::new(Fleet::founded);
        FIRST.clone()
    }

    fn founded() -> Self {
        let mut repository = Repository::create(&ceremony()).unwrap();
        let (manifest, expires) = (manifest_bytes(), noon() + 7 * DAY);
        repository.set_release(RELEASE, release(IMAGE), expires).unwrap();
        let campaign = Target::new(manifest.len() as u64, Sha256::of(&manifest), None);
        repository
            .set_campaign("campaigns/spring.json", campaign, expires)
            .unwrap();
        let mut fleet = Self {
            store: StoredMetadata::from([("root.json".to_owned(), Vec::new())]),
            published: PublishedMetadata {
                files: BTreeMap::new(),
                stored: StoredMetadata::new(),
            },
            repository,
        };
        fleet.sign_all();
        fleet.publish().unwrap();
        fleet
            .store
            .insert("root.json".to_owned(), fleet.published.files["1.root.json"].clone());
        fleet
    }

    /// Two of each group's three people sign whatever waits for them.
    fn sign_all(&mut self) {
        for number in [ROOTS, RELEASERS, APPROVERS].iter().flat_map(|group| &group[..2]) {
            for waiting in self.repository.signable(&key(*number).public()).unwrap() {
                self.repository.sign(&waiting.file, &key(*number)).unwrap();
            }
        }
    }

    fn publish(&mut self) -> Result<(), PublishError> {
        self.published = self
            .repository
            .publish(&self.published.stored, noon(), noon() + DAY, &[&key(ONLINE)])?;
        Ok(())
    }

    fn refresh_at(&mut self, now: WallTime) -> Result<TrustedMetadata, RefreshError> {
        let files = &self.published.files;
        let answer = |name: &str, _| {
            files
                .get(name)
                .map_or(Input::NotFound, |bytes| Input::Fetched(bytes.clone()))
        };
        Refresh::new(self.store.clone(), now)?.run(&mut self.store, answer)
    }

    fn refresh(&mut self) -> Result<TrustedMetadata, RefreshError> {
        self.refresh_at(noon())
    }

    fn fleet(&mut self) -> TrustedFleet {
        TrustedFleet::new(self.refresh().unwrap()).unwrap()
    }

    /// Rewrites a published file as whoever holds `keys` could, and every file above it that names it, with the online
    /// key: the coordinator is in the attacker's hands.
    fn forge<T: Role>(&mut self, role: &str, keys: &[u8], change: impl FnOnce(&mut T)) {
        let version = self.current(role);
        let name = format!("{version}.{role}.json");
        let mut content: T = self.read(&name);
        change(&mut content);
        let bytes = signed(&content, keys);
        let version = content.header().version;
        self.published
            .files
            .insert(format!("{version}.{role}.json"), bytes.clone());
        self.forge_snapshot(|snapshot| {
            snapshot
                .meta
                .insert(format!("{role}.json"), MetaFile::of(version, &bytes));
        });
    }

    fn forge_snapshot(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot: Snapshot = self.read(&format!("{}.snapshot.json", self.current("snapshot")));
        snapshot.header.version += 1;
        change(&mut snapshot);
        let (version, bytes) = (snapshot.header.version, signed(&snapshot, &[ONLINE]));
        self.published
            .files
            .insert(format!("{version}.snapshot.json"), bytes.clone());
        self.forge_timestamp(&[ONLINE], |timestamp| {
            timestamp.meta.snapshot = MetaFile::of(version, &bytes)
        });
    }

    fn forge_timestamp(&mut self, keys: &[u8], change: impl FnOnce(&mut Timestamp)) {
        let mut timestamp: Timestamp = self.read("timestamp.json");
        timestamp.header.version += 1;
        change(&mut timestamp);
        self.published
            .files
            .insert("timestamp.json".to_owned(), signed(&timestamp, keys));
    }

    fn read<T: Role>(&self, name: &str) -> T {
        SignedFile::from_bytes(name, &self.published.files[name])
            .unwrap()
            .unverified(name)
            .unwrap()
    }

    fn current(&self, role: &str) -> u64 {
        let timestamp: Timestamp = self.read("timestamp.json");
        let version = timestamp.meta.snapshot.version;
        if role == "snapshot" {
            return version;
        }
        self.read::<Snapshot>(&format!("{version}.snapshot.json")).meta[&format!("{role}.json")].version
    }

    /// A refused refresh stores nothing of what it refused, and says why by name.
    fn assert_refused(&mut self, code: &str) -> RefreshError {
        let before = self.store.clone();
        let error = self.refresh().expect_err(code);
        assert_eq!(error.code(), code, "{error:?}");
        for (name, bytes) in &self.store {
            assert!(before.get(name) == Some(bytes) || self.published.files.values().any(|file| file == bytes));
        }
        error
    }
}

fn signed<T: Role>(content: &T, keys: &[u8]) -> Vec<u8> {
    let mut file = SignedFile::unsigned(content);
    keys.iter()
        .for_each(|&number| file.sign(&key(number).public().id(), &key(number)));
    file.to_bytes()
}

#[test]
fn an_honest_repository_gives_verified_releases_and_campaigns() {
    let mut fleet = Fleet::new();
    let trusted = fleet.fleet();
    assert_eq!(trusted.releases().collect::<Vec<_>>(), [RELEASE]);
    assert_eq!(trusted.campaigns().collect::<Vec<_>>(), [spring()]);
    let release = trusted.release(RELEASE).unwrap();
    assert_eq!(release.artifact.id, ArtifactId::of(IMAGE));
    let campaign = trusted.campaign(&spring(), &manifest_bytes()).unwrap();
    assert_eq!(*trusted.pinned_release(&campaign.releases[0]).unwrap(), *release);
    assert_eq!(campaign.plan(b"another plan").unwrap_err().code(), "hash_mismatch");
    let names: Vec<_> = fleet.store.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "campaigns.json",
            "releases.json",
            "root.json",
            "snapshot.json",
            "targets.json",
            "timestamp.json"
        ]
    );
}

#[test]
fn a_second_refresh_fetches_only_root_and_timestamp_and_stores_nothing() {
    let mut fleet = Fleet::new();
    fleet.refresh().unwrap();
    let mut refresh = Refresh::new(fleet.store.clone(), noon()).unwrap();
    let mut asked = Vec::new();
    while let Some(output) = refresh.poll() {
        let Output::Fetch { name, .. } = output else {
            panic!("{output:?} without news")
        };
        refresh.handle(
            fleet
                .published
                .files
                .get(&name)
                .cloned()
                .map_or(Input::NotFound, Input::Fetched),
        );
        asked.push(name);
    }
    assert!(refresh.finish().is_ok());
    assert_eq!(asked, ["2.root.json", "timestamp.json"]);
}

#[test]
fn the_same_timestamp_version_with_other_content_changes_nothing() {
    let mut fleet = Fleet::new();
    fleet.refresh().unwrap();
    let before = fleet.store.clone();
    fleet.forge_timestamp(&[ONLINE], |timestamp| {
        timestamp.header.version -= 1;
        timestamp.meta.snapshot.version = 99;
    });
    fleet.refresh().unwrap();
    assert_eq!(fleet.store, before);
}

#[test]
fn one_flipped_byte_in_a_delegated_file_is_a_hash_mismatch() {
    let mut fleet = Fleet::new();
    fleet.published.files.get_mut("1.releases.json").unwrap()[40] ^= 1;
    fleet.assert_refused("hash_mismatch");
}

#[test]
fn an_expired_timestamp_is_refused_by_name() {
    let mut fleet = Fleet::new();
    let error = fleet.refresh_at(noon() + DAY).unwrap_err();
    assert!(
        matches!(&error, RefreshError::Expired { role, version: 1, .. } if role == "timestamp"),
        "{error:?}"
    );
    fleet.refresh().unwrap();
    let error = fleet.refresh_at(noon() + DAY).unwrap_err();
    assert!(
        matches!(&error, RefreshError::Expired { role, .. } if role == "timestamp"),
        "{error:?}"
    );
}

#[test]
fn expired_releases_are_refused_although_everything_else_is_fresh() {
    let mut fleet = Fleet::new();
    let expired = |targets: &mut Targets| (targets.header.version, targets.header.expires) = (2, noon());
    fleet.forge(RELEASES, &RELEASERS, expired);
    let error = fleet.assert_refused("expired");
    assert!(error.to_string().starts_with("releases version 2 expired"), "{error}");
}

#[test]
fn one_signature_less_than_the_threshold_is_refused_with_the_count() {
    let mut fleet = Fleet::new();
    fleet.forge::<Targets>(CAMPAIGNS, &[21], |_| ());
    let error = fleet.assert_refused("signature_threshold");
    let counted = matches!(
        &error,
        RefreshError::Signature(SignatureError::Threshold { role, have: 1, need: 2 }) if role == CAMPAIGNS
    );
    assert!(counted, "{error:?}");
}

#[test]
fn one_key_signing_twice_is_refused() {
    let mut fleet = Fleet::new();
    let mut file: serde_json::Value = serde_json::from_slice(&fleet.published.files["1.releases.json"]).unwrap();
    file["signatures"][1] = file["signatures"][0].clone();
    let bytes = serde_json::to_vec(&file).unwrap();
    fleet
        .published
        .files
        .insert("1.releases.json".to_owned(), bytes.clone());
    fleet.forge_snapshot(|snapshot| {
        _ = snapshot
            .meta
            .insert("releases.json".to_owned(), MetaFile::of(1, &bytes))
    });
    fleet.assert_refused("duplicate_key");
}

#[test]
fn one_key_listed_under_two_ids_is_refused() {
    let mut fleet = Fleet::new();
    fleet.forge::<Targets>("targets", &ROOTS, |targets| {
        let delegations = targets.delegations.as_mut().unwrap();
        let alias = KeyId::try_from("alias".to_owned()).unwrap();
        delegations.keys.insert(alias.clone(), Key::from(key(11).public()));
        delegations.roles[0].keyids = vec![key(11).public().id(), alias];
    });
    fleet.assert_refused("duplicate_key");
}

#[test]
fn a_key_of_small_order_is_refused_when_metadata_names_it() {
    let mut fleet = Fleet::new();
    fleet.forge::<Targets>("targets", &ROOTS, |targets| {
        let delegations = targets.delegations.as_mut().unwrap();
        let weak = format!("01{}", "00".repeat(31));
        delegations.keys.get_mut(&key(11).public().id()).unwrap().keyval = serde_json::json!({ "public": weak });
    });
    let error = fleet.assert_refused("bad_key");
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("small order"),
        "{error:?}"
    );
}

#[test]
fn every_file_that_goes_back_to_an_older_version_is_refused() {
    let story = |attack: fn(&mut Fleet), code: &str, role: &str| {
        let mut fleet = Fleet::new();
        let old = fleet.published.files.clone();
        fleet
            .repository
            .set_release(RELEASE, release(b"newer"), noon() + 7 * DAY)
            .unwrap();
        fleet.sign_all();
        fleet.publish().unwrap();
        fleet.refresh().unwrap();
        fleet
            .published
            .files
            .extend(old.into_iter().filter(|(name, _)| name != "timestamp.json"));
        attack(&mut fleet);
        let error = fleet.assert_refused(code);
        assert!(error.to_string().contains(role), "{error}");
    };
    story(
        |fleet| fleet.forge_timestamp(&[ONLINE], |t| t.header.version = 1),
        "rollback",
        "timestamp",
    );
    let old_snapshot = |fleet: &mut Fleet| {
        let bytes = fleet.published.files["1.snapshot.json"].clone();
        fleet.forge_timestamp(&[ONLINE], |t| t.meta.snapshot = MetaFile::of(1, &bytes));
    };
    story(old_snapshot, "rollback", "snapshot.json");
    let old_releases = |fleet: &mut Fleet| {
        let bytes = fleet.published.files["1.releases.json"].clone();
        fleet.forge_snapshot(|s| _ = s.meta.insert("releases.json".to_owned(), MetaFile::of(1, &bytes)));
    };
    story(old_releases, "rollback", "releases.json");
    story(
        |fleet| fleet.forge_snapshot(|s| _ = s.meta.remove("releases.json")),
        "disappeared",
        "releases.json",
    );
}

#[test]
fn files_of_versions_that_do_not_belong_together_are_refused() {
    let mut fleet = Fleet::new();
    let bytes = fleet.published.files["1.releases.json"].clone();
    fleet
        .published
        .files
        .insert("2.releases.json".to_owned(), bytes.clone());
    fleet.forge_snapshot(|s| _ = s.meta.insert("releases.json".to_owned(), MetaFile::of(2, &bytes)));
    fleet.assert_refused("wrong_version");
}

#[test]
fn a_file_longer_than_its_signed_length_is_not_read() {
    let mut fleet = Fleet::new();
    fleet.published.files.get_mut("1.targets.json").unwrap().push(b' ');
    fleet.assert_refused("too_large");
    fleet
        .published
        .files
        .insert("timestamp.json".to_owned(), vec![b' '; 17 << 10]);
    fleet.assert_refused("too_large");
}

#[test]
fn another_roles_file_under_a_good_signature_is_refused() {
    let mut fleet = Fleet::new();
    let snapshot: Snapshot = fleet.read("1.snapshot.json");
    fleet
        .published
        .files
        .insert("timestamp.json".to_owned(), signed(&snapshot, &[ONLINE]));
    let error = fleet.assert_refused("malformed");
    assert!(error.to_string().contains("holds snapshot metadata"), "{error}");
}

#[test]
fn roots_are_followed_one_by_one_past_expired_ones() {
    let mut fleet = Fleet::new();
    fleet.refresh().unwrap();
    let next = [4, 5];
    let expired_soon = noon() + DAY;
    fleet
        .repository
        .set_root_signers(&signers(&next, 2), expired_soon)
        .unwrap();
    assert_eq!(fleet.publish().unwrap_err().code(), "signature_threshold");
    let by = |fleet: &mut Fleet, file: &str, numbers: &[u8]| {
        numbers
            .iter()
            .for_each(|&number| fleet.repository.sign(file, &key(number)).unwrap());
    };
    by(&mut fleet, "2.root.json", &[1, 2, 4, 5]);
    by(&mut fleet, "targets.json", &[4, 5]);
    fleet
        .repository
        .set_root_signers(&signers(&next, 2), noon() + 60 * DAY)
        .unwrap();
    by(&mut fleet, "3.root.json", &[4, 5]);
    by(&mut fleet, "targets.json", &[4, 5]);
    let later = noon() + 2 * DAY;
    fleet.published = fleet
        .repository
        .publish(&fleet.published.stored, later, later + DAY, &[&key(ONLINE)])
        .unwrap();
    let trusted = fleet.refresh_at(later).unwrap();
    assert_eq!(trusted.root().header.version, 3);
}

#[test]
fn a_new_root_without_the_old_keys_is_refused() {
    let mut fleet = Fleet::new();
    let mut root: Root = fleet.read("1.root.json");
    root.header.version = 2;
    root.keys.insert(key(9).public().id(), Key::from(key(9).public()));
    root.roles.get_mut("root").unwrap().keyids = vec![key(9).public().id()];
    root.roles.get_mut("root").unwrap().threshold = 1;
    fleet
        .published
        .files
        .insert("2.root.json".to_owned(), signed(&root, &[9]));
    fleet.assert_refused("signature_threshold");
    fleet
        .published
        .files
        .insert("2.root.json".to_owned(), signed(&root, &[1, 2]));
    fleet.assert_refused("signature_threshold");
    root.header.version = 3;
    fleet
        .published
        .files
        .insert("2.root.json".to_owned(), signed(&root, &[1, 2, 9]));
    fleet.assert_refused("wrong_version");
}

#[test]
fn an_expired_last_root_stops_the_refresh_but_the_catch_up_is_kept() {
    let mut fleet = Fleet::new();
    let mut root: Root = fleet.read("1.root.json");
    (root.header.version, root.header.expires) = (2, noon());
    fleet
        .published
        .files
        .insert("2.root.json".to_owned(), signed(&root, &[1, 2]));
    fleet.assert_refused("expired");
    assert_eq!(fleet.store["root.json"], fleet.published.files["2.root.json"]);
}

#[test]
fn new_online_keys_undo_a_fast_forward_attack() {
    let mut fleet = Fleet::new();
    fleet.forge_snapshot(|snapshot| snapshot.header.version = 1_000_000);
    fleet.forge_timestamp(&[ONLINE], |timestamp| timestamp.header.version = 1_000_000);
    fleet.refresh().unwrap();
    let new_online = key(32);
    fleet
        .repository
        .set_online_signers(&signers(&[32], 1), noon() + 30 * DAY)
        .unwrap();
    fleet.sign_all();
    let stored = StoredMetadata::new();
    fleet.published = fleet
        .repository
        .publish(&stored, noon(), noon() + DAY, &[&new_online])
        .unwrap();
    assert_eq!(fleet.refresh().unwrap().timestamp().header.version, 1);
}

#[test]
fn a_removed_file_is_removed_before_the_root_that_removes_it_is_stored() {
    let mut fleet = Fleet::new();
    fleet.refresh().unwrap();
    fleet
        .repository
        .set_online_signers(&signers(&[32], 1), noon() + 30 * DAY)
        .unwrap();
    fleet.sign_all();
    let root = fleet.repository.files().remove("2.root.json").unwrap();
    let mut refresh = Refresh::new(fleet.store.clone(), noon()).unwrap();
    assert!(matches!(refresh.poll(), Some(Output::Fetch { .. })));
    refresh.handle(Input::Fetched(root));
    let order: Vec<_> = std::iter::from_fn(|| refresh.poll()).collect();
    assert!(matches!(&order[0], Output::Remove { name } if name == "timestamp.json"));
    assert!(matches!(&order[1], Output::Remove { name } if name == "snapshot.json"));
    assert!(matches!(&order[2], Output::Persist { name, .. } if name == "root.json"));
}

#[test]
fn silence_is_not_the_end_of_the_root_chain() {
    let fleet = Fleet::new();
    let mut refresh = Refresh::new(fleet.store.clone(), noon()).unwrap();
    refresh.poll();
    refresh.handle(Input::Failed("connection reset".to_owned()));
    assert_eq!(refresh.poll(), None);
    let error = refresh.finish().unwrap_err();
    assert!(error.retry() && error.code() == "fetch_failed", "{error:?}");
}

#[test]
fn endless_new_roots_end() {
    let fleet = Fleet::new();
    let mut store = fleet.store.clone();
    let mut root: Root = fleet.read("1.root.json");
    let answer = |_: &str, _| {
        root.header.version += 1;
        Input::Fetched(signed(&root, &[1, 2]))
    };
    let error = Refresh::new(fleet.store, noon())
        .unwrap()
        .run(&mut store, answer)
        .unwrap_err();
    assert_eq!(error.code(), "too_many_roots");
}

#[test]
fn a_damaged_store_is_repaired_from_the_repository() {
    let mut fleet = Fleet::new();
    fleet.refresh().unwrap();
    let good = fleet.store.clone();
    for name in [
        "snapshot.json",
        "targets.json",
        "releases.json",
        "campaigns.json",
        "timestamp.json",
    ] {
        fleet.store.get_mut(name).unwrap().truncate(20);
        fleet.refresh().unwrap();
        assert_eq!(fleet.store, good, "{name} was not repaired");
    }
    fleet.store.remove("root.json");
    assert_eq!(fleet.refresh().unwrap_err().code(), "no_root");
}

#[test]
fn a_campaign_signed_only_by_release_keys_is_refused_and_so_is_a_release_signed_only_by_approvers() {
    let mut fleet = Fleet::new();
    let manifest = manifest_bytes();
    let campaign = Target::new(manifest.len() as u64, Sha256::of(&manifest), None);
    let expires = noon() + DAY;
    fleet
        .repository
        .remove_campaign("campaigns/spring.json", expires)
        .unwrap();
    fleet
        .repository
        .set_release("campaigns/spring.json", campaign, expires)
        .unwrap();
    fleet.repository.remove_release(RELEASE, expires).unwrap();
    fleet.repository.set_campaign(RELEASE, release(IMAGE), expires).unwrap();
    fleet.sign_all();
    fleet.publish().unwrap();
    let trusted = fleet.fleet();
    assert_eq!(
        trusted.campaign(&spring(), &manifest).unwrap_err().code(),
        "campaign_by_release_keys"
    );
    assert_eq!(trusted.release(RELEASE).unwrap_err().code(), "release_by_approvers");
    assert_eq!(
        trusted.release("firmware/none.bin").unwrap_err().code(),
        "unknown_target"
    );
    assert_eq!((trusted.releases().count(), trusted.campaigns().count()), (0, 0));
}

#[test]
fn release_keys_cannot_sign_the_approvers_file() {
    let mut fleet = Fleet::new();
    fleet.forge::<Targets>(CAMPAIGNS, &RELEASERS, |_| ());
    fleet.assert_refused("signature_threshold");
    let mut fleet = Fleet::new();
    fleet.forge::<Targets>(RELEASES, &APPROVERS, |_| ());
    fleet.assert_refused("signature_threshold");
}

#[test]
fn delegations_that_mix_the_groups_are_refused() {
    let story = |code: &str, change: fn(&mut Targets)| {
        let mut fleet = Fleet::new();
        fleet.forge::<Targets>("targets", &ROOTS, change);
        fleet.forge::<Targets>(RELEASES, &[11, 12, 21], |_| ());
        fleet.forge::<Targets>(CAMPAIGNS, &[21, 22, 11], |_| ());
        assert_eq!(TrustedFleet::new(fleet.refresh().unwrap()).unwrap_err().code(), code);
    };
    let roles = |targets: &mut Targets| std::mem::take(&mut targets.delegations.as_mut().unwrap().roles);
    story("shared_key", |targets| {
        targets.delegations.as_mut().unwrap().roles[0]
            .keyids
            .push(key(21).public().id());
    });
    story("wrong_paths", |targets| {
        targets.delegations.as_mut().unwrap().roles[0].paths = Some(vec!["*".to_owned()]);
    });
    let mut fleet = Fleet::new();
    fleet.forge::<Targets>("targets", &ROOTS, |targets| _ = roles(targets));
    assert_eq!(
        TrustedFleet::new(fleet.refresh().unwrap()).unwrap_err().code(),
        "not_delegated"
    );
    let overlapping = Ceremony {
        releases: signers(&[11, 21], 2),
        ..ceremony()
    };
    assert!(Repository::create(&overlapping).is_err());
}

#[test]
fn manifest_bytes_other_than_the_signed_ones_are_refused_before_parsing() {
    let mut fleet = Fleet::new();
    let (trusted, mut manifest) = (fleet.fleet(), manifest_bytes());
    assert_eq!(trusted.campaign(&spring(), b"{").unwrap_err().code(), "length_mismatch");
    manifest[0] ^= 1;
    assert_eq!(
        trusted.campaign(&spring(), &manifest).unwrap_err().code(),
        "hash_mismatch"
    );
}

#[test]
fn a_key_outside_the_role_cannot_sign_and_an_edit_takes_signatures_away() {
    let mut fleet = Fleet::new();
    let error = fleet.repository.sign("releases.json", &key(21)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the key {} may not sign releases.json: a key of releases can",
            key(21).public()
        )
    );
    let status = |fleet: &Fleet| {
        fleet
            .repository
            .status()
            .unwrap()
            .into_iter()
            .find(|s| s.file == "releases.json")
            .unwrap()
    };
    assert!(status(&fleet).is_complete() && status(&fleet).version == 1);
    fleet.repository.remove_release(RELEASE, noon() + DAY).unwrap();
    assert_eq!((status(&fleet).version, status(&fleet).roles[0].have), (2, 0));
    fleet.repository.sign("releases.json", &key(11)).unwrap();
    fleet.repository.sign("releases.json", &key(11)).unwrap();
    assert_eq!((status(&fleet).roles[0].have, status(&fleet).roles[0].need), (1, 2));
    let reread = Repository::from_files(&fleet.repository.files()).unwrap();
    assert_eq!(reread.status().unwrap(), fleet.repository.status().unwrap());
    let PublishError::Incomplete {
        file, have: 1, need: 2, ..
    } = fleet.publish().unwrap_err()
    else {
        panic!()
    };
    assert_eq!(file, "releases.json");
}

#[test]
fn publishing_older_files_than_before_is_refused_at_the_coordinator_already() {
    let mut fleet = Fleet::new();
    let old = fleet.repository.clone();
    fleet.repository.remove_release(RELEASE, noon() + DAY).unwrap();
    fleet.sign_all();
    fleet.publish().unwrap();
    fleet.repository = old;
    assert_eq!(fleet.publish().unwrap_err().code(), "rollback");
}

#[test]
fn unknown_fields_survive_and_stay_signed() {
    let mut fleet = Fleet::new();
    fleet.forge::<Targets>(RELEASES, &RELEASERS, |targets| {
        targets.extra.insert("x-note".to_owned(), "kept".into());
        targets.header.version = 2;
    });
    let trusted = fleet.refresh().unwrap();
    assert_eq!(trusted.delegated(RELEASES).unwrap().extra["x-note"], "kept");
}

fn example_files() -> Vec<(String, Vec<u8>, KeySet)> {
    let fleet = Fleet::new();
    let sets = |file: &str| fleet.repository.key_sets(file).unwrap().remove(0);
    fleet
        .repository
        .files()
        .into_iter()
        .map(|(name, bytes)| (name.clone(), bytes, sets(&name)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_single_changed_byte_of_any_signed_file_is_refused(
        file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), flip in 1u8..
    ) {
        let files = example_files();
        let (name, mut bytes, keys) = files[file.index(files.len())].clone();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let read = SignedFile::from_bytes(&name, &bytes).map_err(RefreshError::from).and_then(|file| {
            match name.ends_with("root.json") {
                true => file.verified::<Root>(&name, &keys).map(drop)?,
                false => file.verified::<Targets>(&name, &keys).map(drop)?,
            }
            Ok(())
        });
        prop_assert!(read.is_err(), "{} accepted with byte {} changed", name, at);
    }

    #[test]
    fn any_single_changed_byte_of_the_repository_is_refused_or_never_looked_at(
        file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), flip in 1u8..
    ) {
        let mut fleet = Fleet::new();
        let name = file.get(&fleet.published.files.keys().cloned().collect::<Vec<_>>()).clone();
        let bytes = fleet.published.files.get_mut(&name).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert_eq!(fleet.refresh().is_ok(), name == "1.root.json", "{} byte {}", name, at);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(), text in "[\\[{}\\],:\"0-9a-z_. -]{0,40}",
        name in prop::sample::select(vec!["2.root.json", "timestamp.json", "1.snapshot.json", "1.releases.json"]),
    ) {
        let mut fleet = Fleet::new();
        let mut bytes = fleet.published.files["timestamp.json"].clone();
        let at = at.index(bytes.len());
        bytes.splice(at..(at + 10).min(bytes.len()), text.bytes());
        for bytes in [noise, bytes, text.into_bytes()] {
            if let Ok(file) = SignedFile::from_bytes("any", &bytes) {
                let _ = (file.unverified::<Root>("any"), file.unverified::<Timestamp>("any"));
                let _ = (file.unverified::<Snapshot>("any"), file.unverified::<Targets>("any"));
            }
            let name = name.to_owned();
            let original = fleet.published.files.insert(name.clone(), bytes).unwrap_or_default();
            let _ = fleet.refresh();
            fleet.published.files.insert(name, original);
        }
    }
}
