//! Point 5: what is not signed as it must be is refused on the node, by name, before anything is fetched or installed.
//!
//! The attacker here owns everything but people's keys: the coordinator, its disk, the online keys, the permit key, the
//! fleet CA and the network. Every forgery comes with a fresh snapshot and timestamp, properly signed, and with a permit.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Sha256},
    labels::Labels,
    manifest::{CampaignManifest, PLAN_SCHEMA, Plan, PlannedDevice},
    report::{PERMIT_TYPE, Permit, PermitKind},
    time::WallTime,
    trust::{
        Ceremony, Envelope, Header, Kind, MetaFile, Repository, SecretKey, SignedFile, Signers, Snapshot, Target,
        Timestamp, TimestampMeta,
    },
};
use firmesh_tests::{
    rogue::{Rogue, Wares},
    setup::place,
    wait::{Seen, Turn, until},
};
use serde_json::{Value, json};

use crate::victim::Victim;

pub(crate) const CAMPAIGN: &str = "spring";
pub(crate) const RELEASE: &str = "firmware/acme-r1-host-1.1.0";
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const WITHIN: Duration = Duration::from_secs(30);

/// Signatures of two release keys, two approvers, and so on: person `n` of a group has the seed `group + n`.
pub(crate) const ROOT: u8 = 10;
pub(crate) const RELEASES: u8 = 20;
pub(crate) const APPROVERS: u8 = 30;
pub(crate) const ONLINE: u8 = 40;
/// The node has a key of its own.
pub(crate) const NODE: u8 = 50;

/// A forgery: what it is, how it is made, and the name it has to be refused by.
type Forgery = (&'static str, fn(&mut Forger) -> Result<()>, &'static str);

const FORGERIES: &[Forgery] = &[
    (
        "campaigns.json with one flipped byte",
        |forger| forger.flip("campaigns.json"),
        "signature_threshold",
    ),
    (
        "releases.json with one flipped byte",
        |forger| forger.flip("releases.json"),
        "signature_threshold",
    ),
    (
        "a manifest with one flipped byte",
        |forger| {
            let manifest = &mut forger.manifest;
            let at = manifest
                .windows(9)
                .position(|text| text == b"\"total\": ")
                .context("the manifest has caps")?
                + 9;
            manifest[at] ^= 2; // 10 devices become 30
            Ok(())
        },
        "hash_mismatch",
    ),
    (
        "a plan with one flipped byte",
        |forger| {
            let at = forger
                .plan
                .windows(2)
                .position(|text| text == b"d1")
                .context("the plan names d1")?
                + 1;
            forger.plan[at] ^= 3;
            Ok(())
        },
        "wrong_plan",
    ),
    (
        "a timestamp that expired yesterday",
        |forger| {
            forger.timestamp_expires = WallTime::from_unix_seconds(now().unix_seconds() - 86_400);
            Ok(())
        },
        "expired",
    ),
    (
        "a campaign with one approver's signature of two",
        |forger| forger.resign(&[APPROVERS + 1]),
        "signature_threshold",
    ),
    (
        "a campaign signed twice by the same approver",
        |forger| {
            forger.resign(&[APPROVERS + 1])?;
            forger.repeat_signature("campaigns.json")
        },
        "duplicate_key",
    ),
    (
        "a campaign signed by release keys only",
        |forger| {
            let mut campaigns = SignedFile::unsigned(forger.repository.campaigns());
            for seed in [RELEASES + 1, RELEASES + 2] {
                campaigns.sign(&key(seed).public().id(), &key(seed));
            }
            forger
                .files
                .insert("campaigns.json".to_owned(), (1, campaigns.to_bytes()));
            Ok(())
        },
        "signature_threshold",
    ),
    (
        "a campaign smuggled in among the releases",
        |forger| {
            let target = forger.campaign_target();
            forger.edit(|repository| {
                repository.remove_campaign(&format!("campaigns/{CAMPAIGN}.json"), now() + DAY)?;
                repository.set_release(&format!("campaigns/{CAMPAIGN}.json"), target, now() + DAY)
            })
        },
        "campaign_by_release_keys",
    ),
    (
        "a release that only approvers have signed for",
        |forger| {
            let target = forger.repository.releases().targets[RELEASE].clone();
            forger.edit(|repository| {
                repository.remove_release(RELEASE, now() + DAY)?;
                repository.set_campaign(RELEASE, target, now() + DAY)
            })
        },
        "unsigned_release",
    ),
];

#[tokio::test]
async fn every_forgery_is_refused_by_name_and_nothing_is_fetched_or_installed() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    for (what, forge, code) in FORGERIES {
        let mut forger = Forger::honest()?;
        forge(&mut forger)?;
        let victim = Victim::start(&rogue, &forger)
            .await
            .with_context(|| format!("before {what}"))?;
        forger.offer(&rogue, 1)?;
        victim.refuses(code).await.with_context(|| (*what).to_owned())?;
        victim.is_untouched(&rogue).await.with_context(|| (*what).to_owned())?;
    }
    Ok(())
}

/// Without this one the other tests could pass for the wrong reasons.
#[tokio::test]
async fn the_same_offer_without_a_forgery_is_taken_up() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let forger = Forger::honest()?;
    let victim = Victim::start(&rogue, &forger).await?;
    forger.offer(&rogue, 1)?;
    until(
        "the campaign to be taken up and the image to be written",
        WITHIN,
        async || {
            let status = victim.node.status().await?;
            let slot = fs::read(victim.host.join("slot_b"))?;
            let holds = status["campaigns"] == json!([CAMPAIGN]) && slot.starts_with(&image());
            Ok(Seen::when(holds, || format!("{status:#}")))
        },
    )
    .await
}

#[tokio::test]
async fn what_was_accepted_once_is_not_replaced_by_something_older() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let mut newer = Forger::honest()?;
    newer.edit(|repository| repository.remove_campaign(&format!("campaigns/{CAMPAIGN}.json"), now() + DAY))?;
    let older = Forger::honest()?;
    let mut victim = Victim::start(&rogue, &newer).await?;
    newer.offer(&rogue, 5)?;
    rogue.wares().campaigns.clear();
    until("version 5 to be trusted", WITHIN, async || {
        let status = victim.node.status().await?;
        Ok(Seen::when(status["timestamp_version"] == 5, || status.to_string()))
    })
    .await?;
    // The campaign that was withdrawn, under older numbers and then under newer ones.
    older.offer(&rogue, 4)?;
    victim.refuses("rollback").await.context("an older timestamp")?;
    older.offer(&rogue, 6)?;
    until("a second refusal", WITHIN, async || {
        let refusals = victim.refusals().await?;
        let of_file = refusals
            .iter()
            .filter(|refusal| refusal["detail"].to_string().contains("campaigns.json"))
            .count();
        Ok(Seen::when(of_file > 0, || format!("{refusals:?}")))
    })
    .await
    .context("an older campaigns.json in a newer snapshot")?;
    victim.is_untouched(&rogue).await?;

    victim.node.process.kill()?;
    victim.node.restart().await?;
    older.offer(&rogue, 4)?;
    victim
        .refuses("rollback")
        .await
        .context("an older timestamp after SIGKILL")?;
    victim.is_untouched(&rogue).await
}

/// Draws up what an attacker would like to see accepted.
pub(crate) struct Forger {
    pub(crate) repository: Repository,
    pub(crate) files: BTreeMap<String, (u64, Vec<u8>)>,
    pub(crate) manifest: Vec<u8>,
    plan: Vec<u8>,
    pub(crate) permit: Envelope,
    timestamp_expires: WallTime,
    /// Whose signatures the snapshot and the timestamp bear.
    pub(crate) online: u8,
}

impl Forger {
    /// Everything as it should be: a release, a campaign for the one device, a permit for it.
    pub(crate) fn honest() -> Result<Self> {
        Self::with(|_, _| Ok(()), |_| Ok(()))
    }

    /// A campaign that people really signed, with other rules, and a permit that says what the coordinator likes.
    pub(crate) fn with(
        rules: impl FnOnce(&mut Plan, &mut Value) -> Result<()>,
        lie: impl FnOnce(&mut Permit) -> Result<()>,
    ) -> Result<Self> {
        let signers = |group: u8| Signers {
            keys: (1..=3).map(|number| key(group + number).public()).collect(),
            threshold: 2,
        };
        let mut repository = Repository::create(&Ceremony {
            root: signers(ROOT),
            releases: signers(RELEASES),
            campaigns: signers(APPROVERS),
            online: Signers {
                keys: vec![key(ONLINE).public()],
                threshold: 1,
            },
            expires: now() + DAY,
        })?;
        let info = json!({
            "schema": "firmesh-release/1",
            "blake3": ArtifactId::of(&image()),
            "vendor": "Acme",
            "models": ["R1"],
            "component": "host",
            "version": "1.1.0",
            "security_epoch": 1,
            "reversibility": "reflash",
        });
        let target = Target::new(image().len() as u64, Sha256::of(&image()), Some(info));
        repository.set_release(RELEASE, target, now() + DAY)?;
        let mut plan = Plan {
            schema: PLAN_SCHEMA.to_owned(),
            campaign: CampaignId::new(CAMPAIGN)?,
            waves: vec![vec![PlannedDevice {
                device: "d1".parse()?,
                node: "n1".parse()?,
                rack: "eu/hall-1/rack-1".parse()?,
                release: RELEASE.to_owned(),
                from_version: "1.0.0".to_owned(),
                previous: None,
                labels: Labels::default(),
                hops: Vec::new(),
                after: None,
            }]],
            nodes: [("n1".parse()?, key(NODE).public())].into(),
            held: Vec::new(),
            domains: BTreeMap::new(),
            servers: Vec::new(),
        };
        let mut manifest = json!({
            "schema": "firmesh-campaign/1",
            "id": CAMPAIGN,
            "sequence": 1,
            "expires": now() + DAY,
            "releases": [{ "target": RELEASE, "sha256": Sha256::of(&image()) }],
            "selector": {},
            "strategy": { "kind": "canary", "shares": [10_000] },
            "caps": { "per_rack": 1, "total": 10 },
            "gate": { "advance": 9_900, "rollback": 9_000, "sample_min": 1, "soak_s": 0 },
            "deadlines": { "attempt_s": 60, "back_s": 20 },
            "automatic_rollback": true,
            "permit_keys": [key(ONLINE).public()],
        });
        rules(&mut plan, &mut manifest)?;
        let plan = plan.to_bytes();
        manifest["plan_sha256"] = serde_json::to_value(Sha256::of(&plan))?;
        let manifest: CampaignManifest = serde_json::from_value(manifest)?;
        let manifest = serde_json::to_vec_pretty(&manifest)?;
        let target = Target::new(manifest.len() as u64, Sha256::of(&manifest), None);
        repository.set_campaign(&format!("campaigns/{CAMPAIGN}.json"), target, now() + DAY)?;
        let mut permit = Permit {
            campaign: CampaignId::new(CAMPAIGN)?,
            manifest_sha256: Sha256::of(&manifest),
            kind: PermitKind::Update,
            wave: 0,
            attempt: 1,
            sequence: 1,
            epoch: 1,
            evidence: Vec::new(),
            issued: now(),
            expires: now() + DAY,
            devices: vec!["d1".parse()?],
        };
        lie(&mut permit)?;
        let permit = sign_permit(&permit)?;
        let mut forger = Self {
            repository,
            files: BTreeMap::new(),
            manifest,
            plan,
            permit,
            timestamp_expires: now() + DAY,
            online: ONLINE,
        };
        forger.edit(|_| Ok(()))?;
        Ok(forger)
    }

    /// Changes the repository and has two people of each group sign it: the attacker has talked them into it.
    pub(crate) fn edit(
        &mut self,
        change: impl FnOnce(&mut Repository) -> Result<(), firmesh_protocol::trust::RepositoryError>,
    ) -> Result<()> {
        change(&mut self.repository)?;
        for file in self.repository.files().into_keys() {
            let group = match &*file {
                "releases.json" => RELEASES,
                "campaigns.json" => APPROVERS,
                _ => ROOT,
            };
            for number in 1..=2 {
                self.repository.sign(&file, &key(group + number))?;
            }
        }
        self.take_files()
    }

    /// campaigns.json again, signed by these only.
    fn resign(&mut self, seeds: &[u8]) -> Result<()> {
        let mut campaigns = SignedFile::unsigned(self.repository.campaigns());
        for &seed in seeds {
            campaigns.sign(&key(seed).public().id(), &key(seed));
        }
        self.files
            .insert("campaigns.json".to_owned(), (1, campaigns.to_bytes()));
        Ok(())
    }

    /// The first signature of a file once more.
    fn repeat_signature(&mut self, file: &str) -> Result<()> {
        let (_, bytes) = self.files.get_mut(file).context("no such file")?;
        let mut value: Value = serde_json::from_slice(bytes)?;
        let signatures = value["signatures"].as_array_mut().context("a file has signatures")?;
        signatures.push(signatures[0].clone());
        *bytes = serde_json::to_vec(&value)?;
        Ok(())
    }

    /// One bit of a file's signed content: the year it expires in.
    fn flip(&mut self, file: &str) -> Result<()> {
        let (_, bytes) = self.files.get_mut(file).context("no such file")?;
        let expires = b"\"expires\":\"";
        let at = bytes
            .windows(expires.len())
            .position(|text| text == expires)
            .context("a file expires")?;
        bytes[at + expires.len() + 3] ^= 1;
        Ok(())
    }

    pub(crate) fn campaign_target(&self) -> Target {
        self.repository.campaigns().targets[&format!("campaigns/{CAMPAIGN}.json")].clone()
    }

    pub(crate) fn take_files(&mut self) -> Result<()> {
        let versions: BTreeMap<_, _> = self
            .repository
            .status()?
            .into_iter()
            .map(|status| (status.file, status.version))
            .collect();
        self.files = self
            .repository
            .files()
            .into_iter()
            .map(|(name, bytes)| (name.clone(), (versions[&name], bytes)))
            .collect();
        Ok(())
    }

    /// Snapshot and timestamp over whatever the files are now, and everything into the shop window.
    pub(crate) fn offer(&self, rogue: &Rogue, version: u64) -> Result<()> {
        self.offer_with(rogue, version, |_| Ok(()))
    }

    /// The same, with a last hand laid on it before anybody can look.
    pub(crate) fn offer_with(
        &self,
        rogue: &Rogue,
        version: u64,
        last_hand: impl FnOnce(&mut Wares) -> Result<()>,
    ) -> Result<()> {
        let mut wares = rogue.wares();
        wares.metadata.clear();
        let mut meta = BTreeMap::new();
        for (name, (file_version, bytes)) in &self.files {
            if name.ends_with(".root.json") {
                wares.metadata.insert(name.clone(), bytes.clone());
            } else {
                meta.insert(name.clone(), MetaFile::of(*file_version, bytes));
                wares.metadata.insert(format!("{file_version}.{name}"), bytes.clone());
            }
        }
        let header = |kind, expires| Header {
            version,
            ..Header::first(kind, expires)
        };
        let snapshot = Snapshot {
            header: header(Kind::Snapshot, now() + DAY),
            meta,
            extra: Default::default(),
        };
        let signed = |mut file: SignedFile| {
            file.sign(&key(self.online).public().id(), &key(self.online));
            file.to_bytes()
        };
        let snapshot = signed(SignedFile::unsigned(&snapshot));
        let timestamp = Timestamp {
            header: header(Kind::Timestamp, self.timestamp_expires),
            meta: TimestampMeta {
                snapshot: MetaFile::of(version, &snapshot),
            },
            extra: Default::default(),
        };
        wares.metadata.insert(format!("{version}.snapshot.json"), snapshot);
        let timestamp = signed(SignedFile::unsigned(&timestamp));
        wares.metadata.insert("timestamp.json".to_owned(), timestamp);
        wares.targets = [(format!("campaigns/{CAMPAIGN}.json"), self.manifest.clone())].into();
        let manifest: Value = serde_json::from_slice(&self.manifest)?;
        let digest = manifest["plan_sha256"].as_str().context("a manifest names its plan")?;
        wares.plans = [(digest.to_owned(), self.plan.clone())].into();
        wares.images = [(ArtifactId::of(&image()).to_string(), image())].into();
        wares.campaigns = vec![CampaignId::new(CAMPAIGN)?];
        wares.permits = vec![self.permit.clone()];
        wares.timestamp_version = version;
        last_hand(&mut wares)
    }
}

pub(crate) fn image() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

pub(crate) fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// With the coordinator's own key, which the approvers named.
pub(crate) fn sign_permit(permit: &Permit) -> Result<Envelope> {
    Ok(Envelope::sign(PERMIT_TYPE, serde_json::to_vec(permit)?, [&key(ONLINE)]))
}

pub(crate) fn now() -> WallTime {
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    WallTime::from_unix_seconds(i64::try_from(since_1970.as_secs()).unwrap_or_default())
}
