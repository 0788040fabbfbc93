//! What people do in the demo: the key ceremony, releases, a campaign. Offline functions of the coordinator's library,
//! the same that stand behind the operator's command line.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use firmesh_coordinator::ceremony::{
    CampaignFile, Compatibility, NewRelease, TrustFolder, adopt_plan, draft_campaign, generate_key, load_secret_key,
    stage_release, write_key,
};
use firmesh_protocol::{
    api::{About, PlanRequest, PlanResponse, Published},
    ids::{CampaignId, Component, Sha256},
    manifest::{
        Artifact, CampaignKind, Caps, Constraints, Deadlines, GateRule, Priority, Release, Reversibility, Selector,
        Strategy, campaign_target,
    },
    time::WallTime,
    trust::{Ceremony, SecretKey, Signers, Target},
    units::BasisPoints,
};

use super::{
    api::Api,
    layout::{Layout, MODEL, VENDOR},
};

/// The demo's campaign.
pub(crate) const CAMPAIGN: &str = "demo";

/// Everything signed here expires after a month.
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// The three groups of people, and how many of each must sign.
const GROUPS: [&str; 3] = ["root", "release", "approver"];
const KEYS: usize = 3;
const THRESHOLD: usize = 2;

/// What the demo asks of its campaign.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// The campaign's name.
    pub(crate) campaign: &'static str,
    /// The most devices of a rack in flight.
    pub(crate) per_rack: u32,
    /// The most in all.
    pub(crate) total: u32,
    /// Whether devices that fail go back to the previous version.
    pub(crate) automatic_rollback: bool,
    /// How urgent the images are in the mesh.
    pub(crate) priority: Priority,
}

/// The people's side of the demo.
#[derive(Debug)]
pub(crate) struct People {
    folder: TrustFolder,
    keys: std::path::PathBuf,
}

impl People {
    /// The ceremony: every key is made, root and delegations are drawn up and signed.
    pub(crate) fn found(layout: &Layout, about: &About) -> Result<Self> {
        let keys = layout.keys();
        let mut groups = Vec::new();
        for group in GROUPS {
            let mut signers = Signers {
                keys: Vec::new(),
                threshold: THRESHOLD as u64,
            };
            for number in 1..=KEYS {
                let key = generate_key()?;
                write_key(&keys.join(format!("{group}-{number}.pem")), &key, false)?;
                signers.keys.push(key.public());
            }
            groups.push(signers);
        }
        let [root, releases, campaigns] = <[Signers; 3]>::try_from(groups).ok().context("three groups")?;
        let online = Signers {
            keys: vec![about.online_key.parse()?],
            threshold: 1,
        };
        let ceremony = Ceremony {
            root,
            releases,
            campaigns,
            online,
            expires: now()? + MONTH,
        };
        let mut people = Self {
            folder: TrustFolder::create(&layout.trust(), &ceremony)?,
            keys,
        };
        people.sign("root")?;
        Ok(people)
    }

    /// Describes an image as a release for one component; its release keys still have to sign.
    pub(crate) fn release(&mut self, artifact: &Artifact, component: &str, version: &str) -> Result<Release> {
        let new = NewRelease {
            vendor: VENDOR.to_owned(),
            models: vec![MODEL.to_owned()],
            component: Component::new(component)?,
            version: version.to_owned(),
            security_epoch: 1,
            from_versions: Vec::new(),
            compatibility: Compatibility::default(),
            reversibility: Reversibility::Reflash,
            name: None,
            provenance: None,
        };
        Ok(stage_release(&mut self.folder, artifact, new, now()? + MONTH)?)
    }

    /// Two of three sign what waits for their group's signature.
    pub(crate) fn sign(&mut self, group: &str) -> Result<()> {
        for number in 1..=THRESHOLD {
            let key = self.key(group, number)?;
            self.folder.sign(&key, &[])?;
        }
        Ok(())
    }

    /// Gives everything signed to the coordinator.
    pub(crate) async fn publish(&self, api: &Api) -> Result<()> {
        let _versions: Published = api.post("/api/v1/metadata", &self.folder.publication(&[])?).await?;
        Ok(())
    }

    /// Drafts the canary campaign, has it planned, and stages it for the approvers. Answers the devices per wave.
    pub(crate) async fn plan(
        &mut self,
        api: &Api,
        about: &About,
        releases: &[Release],
        previous: &[Release],
        rules: Rules,
    ) -> Result<Vec<usize>> {
        let names = |releases: &[Release]| releases.iter().map(|release| release.target.clone()).collect();
        let share = |basis_points| BasisPoints::new(basis_points);
        let file = CampaignFile {
            id: CampaignId::new(rules.campaign)?,
            expires: now()? + MONTH,
            releases: names(releases),
            kind: CampaignKind::Update,
            baseline: None,
            filter: None,
            hops: Vec::new(),
            previous: names(previous),
            selector: Selector {
                models: vec![MODEL.to_owned()],
                ..Selector::default()
            },
            strategy: Strategy::Canary {
                shares: vec![share(1_000)?, share(5_000)?, share(10_000)?],
            },
            caps: Caps::new(rules.per_rack, rules.total),
            gate: GateRule::shares(share(9_900)?, share(9_000)?).into(),
            deadlines: Deadlines {
                attempt_s: 120,
                back_s: 20,
            }
            .into(),
            constraints: Constraints::default(),
            priority: rules.priority,
            automatic_rollback: rules.automatic_rollback,
            operator_rollback: false,
            retries: None,
            permit_keys: Vec::new(),
        };
        self.stage(api, about, file).await
    }

    /// Drafts a campaign, has it planned, and stages it for the approvers. Answers the devices per wave.
    pub(crate) async fn stage(&mut self, api: &Api, about: &About, file: CampaignFile) -> Result<Vec<usize>> {
        let draft = draft_campaign(&self.folder, file, &[about.permit_key.parse()?])?;
        let request = PlanRequest {
            manifest: draft.clone(),
        };
        let PlanResponse { plan, plan_sha256 } = api.post("/api/v1/plans", &request).await?;
        let (_, plan) = adopt_plan(&mut self.folder, draft, plan.as_bytes(), plan_sha256, now()? + MONTH)?;
        Ok(plan.waves.iter().map(Vec::len).collect())
    }

    /// Digest of a staged manifest.
    pub(crate) fn manifest_sha256(&self, id: &CampaignId) -> Result<Sha256> {
        let target = campaign_target(id);
        let staged = self.folder.repository().campaigns().targets.get(&target);
        staged
            .and_then(Target::sha256)
            .with_context(|| format!("{target} is not staged"))
    }

    /// When what is signed here expires.
    pub(crate) fn expiry() -> Result<WallTime> {
        Ok(now()? + MONTH)
    }

    fn key(&self, group: &str, number: usize) -> Result<SecretKey> {
        let path = self.keys.join(format!("{group}-{number}.pem"));
        load_secret_key(&path).with_context(|| format!("{} cannot be used", path.display()))
    }
}

/// Measures a file off the async threads.
pub(crate) async fn measure(path: &Path) -> Result<Artifact> {
    let path = path.to_owned();
    Ok(tokio::task::spawn_blocking(move || firmesh_coordinator::ceremony::measure(&path, |_| ())).await??)
}

fn now() -> Result<WallTime> {
    let since_1970 = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .context("the clock stands before 1970")?;
    Ok(WallTime::from_unix_seconds(i64::try_from(since_1970.as_secs())?))
}
