//! What the coordinator knows: the engine, the fleet, what is published. Owned by the runtime's one task; everybody else
//! looks at it through [`crate::runtime::Coordinator::read`].

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use bytes::Bytes;
use firmesh_coordinator_core::{
    Candidate, Concerned, Engine, EngineSettings, Exclusion, Field, Filter, Inventory, KnownDevice, Loaded, Question,
    Standing, Subject,
};
use firmesh_protocol::{
    api::{
        AttemptView, CampaignState, CampaignView, DeviceStatus, DeviceView, Explanation, Feeder, Holding, NodeView,
        Traffic,
    },
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256, TopologyPath},
    manifest::{Artifact, CampaignManifest, ManifestError, Plan, Release, ReleaseRef},
    report::PermitKind,
    time::{Timestamp, WallTime},
    trust::{Envelope, PublicKey},
};

use crate::{
    brakes::Brakes,
    enrolment::Revocations,
    fleet::{Device, Fleet},
    permits::Permits,
    possession::Challenges,
    publish::Published,
    roster::Changes,
    store::{Store, StoreError, Stored, StoredNode, StoredPermit},
};

/// Why the stored state cannot be taken up again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The database.
    #[error("the stored state cannot be read")]
    Store(#[from] StoreError),
    /// A campaign's documents.
    #[error("the stored documents of campaign {id} cannot be read: restore a backup")]
    Campaign {
        /// The campaign.
        id: CampaignId,
        /// Why not.
        source: ManifestError,
    },
    /// A campaign's documents are not there.
    #[error("campaign {0} is stored without its manifest or plan: restore a backup")]
    Incomplete(CampaignId),
    /// The engine refused them.
    #[error("the stored campaigns cannot be taken up")]
    Engine(#[from] firmesh_coordinator_core::InputError),
}

/// A node, as stored and as last heard.
#[derive(Debug, Clone)]
pub(crate) struct NodeState {
    pub(crate) stored: StoredNode,
    pub(crate) holdings: Vec<Holding>,
    pub(crate) traffic: Traffic,
    /// Whom it took most from. Room for no more than there are: most nodes of a large fleet have none.
    pub(crate) feeders: Box<[Feeder]>,
    pub(crate) banned: BTreeMap<NodeId, String>,
    pub(crate) audit_fork: Option<String>,
    pub(crate) told_at: Option<Timestamp>,
    /// When it was last heard of by this process.
    pub(crate) heard_at: Option<Timestamp>,
    /// Since when it collects what it does not hold whole.
    pub(crate) collecting: BTreeMap<ArtifactId, Timestamp>,
    /// Which roster it had when it was told of changes last.
    pub(crate) told_of_changes_since: Option<u64>,
}

impl NodeState {
    pub(crate) fn new(stored: StoredNode) -> Self {
        Self {
            stored,
            holdings: Vec::new(),
            traffic: Traffic::default(),
            feeders: Box::default(),
            banned: BTreeMap::new(),
            audit_fork: None,
            told_at: None,
            heard_at: None,
            collecting: BTreeMap::new(),
            told_of_changes_since: None,
        }
    }

    pub(crate) fn view(&self) -> NodeView {
        NodeView {
            node: self.stored.node.clone(),
            path: self.stored.path.clone(),
            enrolled: self.stored.certificate.is_some(),
            revoked: false,
            last_seen: self.stored.last_seen,
            holdings: self.holdings.clone(),
            traffic: self.traffic,
            banned: self.banned.clone(),
            audit_fork: self.audit_fork.clone(),
        }
    }
}

/// A device that is looked at, and where it stands.
pub(crate) type Looked<'a> = (Device<'a>, &'a TopologyPath);

/// Everything known.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) nodes: BTreeMap<NodeId, NodeState>,
    pub(crate) devices: Fleet,
    pub(crate) permits: Permits,
    pub(crate) published: Published,
    pub(crate) roster_version: u64,
    pub(crate) roster_changes: Changes,
    pub(crate) brakes: Brakes,
    pub(crate) revocations: Revocations,
    /// What nodes are asked to prove.
    pub(crate) challenges: Challenges,
    /// Evidence for gates that passed, by campaign and wave: the digests of its envelopes.
    pub(crate) evidence: BTreeMap<(CampaignId, u32), Vec<Sha256>>,
    /// Campaigns of which only the archive knows the devices: nobody starts them again.
    pub(crate) archived: BTreeSet<CampaignId>,
    /// Devices of which only the name is left: what nodes tell of them is not taken.
    pub(crate) erased: BTreeSet<DeviceId>,
    /// Which start of a coordinator this is.
    pub(crate) epoch: u64,
    /// When it was read from the database.
    pub(crate) began: WallTime,
}

impl World {
    /// Reads everything back.
    pub(crate) async fn restore(
        store: &Store,
        permit_ttl: Duration,
        now: Timestamp,
        wall: WallTime,
    ) -> Result<Self, RestoreError> {
        let stored = store.load().await?;
        let mut engine = Engine::new(EngineSettings { permit_ttl });
        engine.handle(
            now,
            firmesh_coordinator_core::Input::Load(campaigns(store, &stored, now, wall).await?),
        )?;
        let members = stored.nodes.len();
        // What loading made the engine want is written with the first change: nothing is told before it is stored.
        let permits = stored.permits.into_iter().filter(|permit| permit.expires > wall);
        let permits = permits.collect();
        let bytes = |files: Vec<(String, Vec<u8>)>| files.into_iter().map(|(name, b)| (name, Bytes::from(b))).collect();
        Ok(Self {
            engine,
            nodes: stored
                .nodes
                .into_iter()
                .map(|node| (node.node.clone(), NodeState::new(node)))
                .collect(),
            devices: stored.devices.into_iter().collect(),
            permits,
            published: Published {
                files: bytes(stored.metadata),
                trusted: stored.trusted.into_iter().collect(),
                manifests: stored
                    .manifests
                    .into_iter()
                    .map(|(id, b)| (id, Bytes::from(b)))
                    .collect(),
                fleet: None,
            },
            roster_version: stored.roster_version,
            roster_changes: Changes::since(stored.roster_version, members),
            brakes: Brakes::restore(stored.brakes),
            revocations: stored
                .revocations
                .map_or_else(Revocations::default, Revocations::restore),
            challenges: Challenges::default(),
            evidence: BTreeMap::new(),
            archived: stored.archived,
            erased: stored.erased,
            epoch: 0,
            began: wall,
        })
    }

    /// Whether a campaign of this name was ever published.
    pub(crate) fn knows(&self, campaign: &CampaignId) -> bool {
        self.archived.contains(campaign) || self.engine.state(campaign).is_some()
    }

    pub(crate) fn node_view(&self, id: &NodeId) -> Option<NodeView> {
        self.nodes.get(id).map(|node| self.view_of(node))
    }

    /// A node as operators see it.
    pub(crate) fn view_of(&self, node: &NodeState) -> NodeView {
        NodeView {
            revoked: node
                .stored
                .key()
                .is_some_and(|key| self.revocations.list.contains(&key)),
            ..node.view()
        }
    }

    /// A device as operators see it.
    pub(crate) fn device_view(&self, id: &DeviceId) -> Option<DeviceView> {
        let attempt = self.engine.latest().attempt(id);
        self.view_of_device(self.devices.get(id)?, attempt)
    }

    /// The next `count` devices after `after`: those of them for which the filter holds, each with where it stands, and the
    /// last of them all if there may be more.
    pub(crate) fn stretch<'a>(
        &'a self,
        after: Option<&DeviceId>,
        filter: Option<&'a Filter>,
        count: usize,
    ) -> (impl Iterator<Item = Looked<'a>>, Option<DeviceId>) {
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = || self.devices.range((first, Bound::Unbounded));
        let last = rest()
            .nth(count.saturating_sub(1))
            .map(|device| device.facts.device.clone());
        (self.picked(rest().take(count), filter), last)
    }

    /// The same among these devices.
    pub(crate) fn devices_among(
        &self,
        among: &BTreeSet<DeviceId>,
        after: Option<&DeviceId>,
        count: usize,
    ) -> Vec<DeviceView> {
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        let named = among.range::<DeviceId, _>((first, Bound::Unbounded));
        let devices = named.filter_map(|id| self.devices.get(id));
        self.views(self.picked(devices, None)).take(count).collect()
    }

    /// Devices as operators see them.
    pub(crate) fn views<'d>(&self, devices: impl Iterator<Item = Looked<'d>>) -> impl Iterator<Item = DeviceView> {
        let latest = self.engine.latest();
        devices.filter_map(move |(device, _)| self.view_of_device(device, latest.attempt(device.facts.device)))
    }

    fn picked<'a>(
        &'a self,
        devices: impl Iterator<Item = Device<'a>>,
        filter: Option<&'a Filter>,
    ) -> impl Iterator<Item = Looked<'a>> {
        let latest = self.engine.latest();
        // Looked up only if the filter asks.
        let asks = filter.is_some_and(|filter| filter.looks_at(&Field::is_of_attempt));
        devices.filter_map(move |device| {
            let path = &self.nodes.get(device.node)?.stored.path;
            let attempt = asks.then(|| latest.attempt(device.facts.device)).flatten();
            let candidate = Candidate {
                facts: device.facts,
                node: device.node.as_str(),
                path,
                attempt: attempt
                    .as_ref()
                    .map(|attempt| (attempt.state.as_str(), attempt.campaign.as_str())),
            };
            let is_wanted = filter.is_none_or(|filter| filter.matches(&candidate));
            is_wanted.then_some((device, path))
        })
    }

    fn view_of_device(&self, device: Device<'_>, attempt: Option<AttemptView>) -> Option<DeviceView> {
        let state = attempt.as_ref().map(|attempt| attempt.state);
        let status = DeviceStatus::of(state, true, device.facts.version.is_some());
        Some(DeviceView {
            facts: device.facts.to_kept(),
            node: Some(device.node.clone()),
            path: self.nodes.get(device.node)?.stored.path.clone(),
            last_seen: Some(device.last_seen),
            status,
            phase: status.phase(),
            enabled: true,
            attempt,
            registration: None,
            said: None,
            credentials_profile: None,
        })
    }

    /// All published releases, verified.
    pub(crate) fn releases(&self) -> Vec<Release> {
        let Some(fleet) = &self.published.fleet else {
            return Vec::new();
        };
        fleet
            .releases()
            .filter_map(|target| Some(fleet.release(target).ok()?.into_inner()))
            .collect()
    }

    /// The nodes that are members, each with its key.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&NodeId, PublicKey)> {
        let key = |node: &NodeState| node.stored.key().filter(|key| !self.revocations.list.contains(key));
        self.nodes.iter().filter_map(move |(id, node)| Some((id, key(node)?)))
    }

    /// The snapshot that a campaign is planned against: whoever concerns its plan.
    pub(crate) fn inventory(
        &self,
        manifest: &CampaignManifest,
        silent_after: Duration,
        wall: WallTime,
        excluded: BTreeMap<DeviceId, Exclusion>,
        held: &BTreeMap<DeviceId, String>,
    ) -> Inventory {
        let (concerned, quarantined) = (Concerned::by(manifest), self.engine.quarantined());
        let has = |device: &Device<'_>| {
            let path = &self.nodes.get(device.node)?.stored.path;
            Some(concerned.has(device.facts.device, device.facts.model, path))
        };
        // What goes into one device of a unit depends on what the others of it run.
        let wanted = self.devices.iter().filter(|device| has(device) == Some(true));
        let units: BTreeSet<_> = wanted.filter_map(Device::unit).collect();
        let is_beside = |device: &Device<'_>| device.unit().is_some_and(|unit| units.contains(&unit));
        let known = |device: Device<'_>| {
            let (id, facts) = (device.facts.device, device.facts);
            let node = &self.nodes.get(device.node)?.stored;
            if !has(&device)? && !is_beside(&device) {
                return None;
            }
            let node_key = node.key().filter(|key| !self.revocations.list.contains(key))?;
            let known = KnownDevice {
                facts: facts.to_kept(),
                node: device.node.clone(),
                node_key,
                path: node.path.clone(),
                // What was heard last is stored now and then: after a start nodes have their time.
                node_reachable: node
                    .last_seen
                    .map(|seen| if node.silent { seen } else { seen.max(self.began) })
                    .is_some_and(|seen| seen + silent_after >= wall),
                quarantined: quarantined.contains(id),
                held_by_operator: held.get(id).cloned(),
            };
            Some((id.clone(), known))
        };
        Inventory {
            devices: self.devices.iter().filter_map(known).collect(),
            excluded,
            revoked: self.brakes.images().collect(),
        }
    }

    /// Why a campaign, or a part of it, stands where it stands; with devices that came after its plan.
    pub(crate) fn explain(&self, id: &CampaignId, subject: &Subject) -> Option<Vec<Explanation>> {
        let fleet = self.devices.iter().filter_map(|device| {
            Some(Standing {
                device: device.facts.device,
                model: device.facts.model,
                path: &self.nodes.get(device.node)?.stored.path,
            })
        });
        let found = self.engine.explain(id, subject);
        if found.is_some() && *subject != Subject::Campaign {
            return found;
        }
        let late = self.engine.explain_late(id, subject, fleet);
        match (found, late) {
            (None, None) => None,
            (found, late) => Some(found.into_iter().flatten().chain(late).collect()),
        }
    }

    /// What webhooks are to be asked now, each with the digest of the campaign's manifest.
    pub(crate) fn questions(&self) -> Vec<(Question, Option<Sha256>)> {
        let digest = |id: &CampaignId| self.published.manifests.get(id).map(|bytes| Sha256::of(bytes));
        let questions = self.engine.questions().into_iter();
        questions
            .map(|question| (question.clone(), digest(&question.campaign)))
            .collect()
    }

    /// A campaign as watchers are told: without the devices held back, which do not change.
    pub(crate) fn campaign_event(&self, id: &CampaignId) -> Option<CampaignView> {
        let view = self.engine.campaign(id)?;
        Some(CampaignView {
            held: Vec::new(),
            ..view
        })
    }

    /// The campaigns that nodes should take part in. A scheduled one is approved: its images may be fetched ahead. Of a
    /// paused one nodes start nothing, also not on permits that they have already.
    pub(crate) fn running_campaigns(&self) -> Vec<CampaignId> {
        use CampaignState::{Active, RollingBack, Scheduled};
        let states = self.engine.states();
        states
            .filter(|(_, state)| matches!(state, Scheduled | Active | RollingBack))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// The permits for a node beyond those it has seen. One that was not handed out before its campaign began to go
    /// back is kept here.
    pub(crate) fn permits_for(
        &self,
        node: &NodeId,
        seen: &BTreeMap<CampaignId, u64>,
        running: &[CampaignId],
        wall: WallTime,
    ) -> Vec<Envelope> {
        let of_campaign = |id: &CampaignId| {
            let last = seen.get(id).copied().unwrap_or_default();
            let goes_back = self.engine.state(id) == Some(CampaignState::RollingBack);
            let wanted = |permit: &&StoredPermit| {
                let is_in_force = permit.expires > wall && (!goes_back || permit.kind == PermitKind::Rollback);
                permit.sequence > last && is_in_force
            };
            let permits = self.permits.of_node(node, id).filter(wanted);
            permits.map(|permit| permit.envelope.clone()).collect::<Vec<_>>()
        };
        running.iter().flat_map(of_campaign).collect()
    }
}

/// The stored campaigns as the engine takes them.
async fn campaigns(
    store: &Store,
    stored: &Stored,
    now: Timestamp,
    wall: WallTime,
) -> Result<Vec<Loaded>, RestoreError> {
    let artifacts = by_sha256(store.artifacts().await?);
    let mut loaded = Vec::new();
    for record in stored
        .campaigns
        .iter()
        .filter(|record| !stored.archived.contains(&record.id))
    {
        let id = &record.id;
        let unreadable = |source| RestoreError::Campaign { id: id.clone(), source };
        let incomplete = || RestoreError::Incomplete(id.clone());
        let (_, manifest) = stored
            .manifests
            .iter()
            .find(|(name, _)| name == id)
            .ok_or_else(incomplete)?;
        let manifest = CampaignManifest::from_bytes(manifest).map_err(unreadable)?;
        let plan = store.plan(manifest.plan_sha256).await?.ok_or_else(incomplete)?;
        let plan = Plan::from_bytes(&plan).map_err(unreadable)?;
        let attempts = stored
            .attempts
            .iter()
            .filter(|(name, _)| name == id)
            .map(|(_, attempt)| attempt.clone());
        let possession = stored.possession.iter().filter(|(name, _)| name == id);
        loaded.push(Loaded {
            expires_at: on_our_clock(manifest.expires, now, wall),
            images: images(&manifest, &artifacts),
            manifest,
            plan,
            record: Some(record.clone()),
            attempts: attempts.collect(),
            possession: possession.map(|(_, record)| record.clone()).collect(),
        });
    }
    Ok(loaded)
}

/// Artifacts by the digest that manifests pin them with.
pub(crate) fn by_sha256(artifacts: impl IntoIterator<Item = Artifact>) -> BTreeMap<Sha256, Artifact> {
    let artifacts = artifacts.into_iter();
    artifacts.map(|artifact| (artifact.sha256, artifact)).collect()
}

/// The images of the releases that a manifest pins, by target.
pub(crate) fn images(
    manifest: &CampaignManifest,
    artifacts: &BTreeMap<Sha256, Artifact>,
) -> BTreeMap<String, Artifact> {
    let pinned = manifest.pinned();
    let image = |pin: &ReleaseRef| Some((pin.target.clone(), artifacts.get(&pin.sha256)?.clone()));
    pinned.filter_map(image).collect()
}

/// A moment of the calendar on the process's clock; now, if it is past.
pub(crate) fn on_our_clock(moment: WallTime, now: Timestamp, wall: WallTime) -> Timestamp {
    let left = moment.unix_seconds().saturating_sub(wall.unix_seconds()).max(0);
    now + Duration::from_secs(left.cast_unsigned())
}
