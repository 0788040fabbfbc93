//! All simulated nodes together, and the people who plan campaigns for them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_coordinator::ceremony::CampaignFile;
use firmesh_protocol::{
    api::{CampaignState, CampaignView},
    ids::{CampaignId, DeviceId, Sha256},
    manifest::{Artifact, CampaignKind, Caps, Constraints, Deadlines, GateRule, Priority, Release, Selector, Strategy},
    report::Permit,
    time::WallTime,
    trust::KeySet,
    units::BasisPoints,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{node::SimulatedNode, report::Latencies};
use crate::demo::{
    ceremony::{People, measure},
    world::World,
};

/// Whoever makes the devices.
pub(super) const VENDOR: &str = crate::demo::layout::VENDOR;
/// The devices' model.
pub(super) const MODEL: &str = crate::demo::layout::MODEL;
/// What devices run at first, and what campaigns bring.
pub(super) const OLD: &str = crate::demo::layout::OLD_VERSION;
pub(super) const NEW: &str = crate::demo::layout::NEW_VERSION;

/// Requests of nodes that are under way at once: a coordinator meets no more, as nodes spread their heartbeats.
const AT_ONCE: usize = 16;

/// A real image is a few MiB; what a proof of it costs is bounded by its sample.
const IMAGE_BYTES: usize = 1 << 20;

/// Updates that take longer than this are a failure.
const UPDATE_WITHIN: Duration = Duration::from_secs(900);

/// Who is silent for longer is not planned.
const BEATS_WITHIN: Duration = Duration::from_secs(20);

/// A node whose coordinator was killed asks another one.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// How many of everything.
#[derive(Debug, Clone, Copy)]
pub(in crate::bench) struct Shape {
    pub(in crate::bench) devices: u32,
    /// Shares of the fleet.
    pub(in crate::bench) campaigns: u32,
    /// Campaigns for each of them.
    pub(in crate::bench) layers: u32,
}

impl Shape {
    /// Every campaign: its share of the fleet, and which of its campaigns it is.
    fn all(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.layers).flat_map(move |layer| (0..self.campaigns).map(move |share| (share, layer)))
    }
}

/// Where the nodes of a campaign stand.
pub(super) fn site(campaign: u32) -> String {
    format!("eu/site-{campaign}")
}

pub(in crate::bench) struct Crowd {
    nodes: Vec<SimulatedNode>,
    image: Vec<u8>,
    manifests: BTreeMap<CampaignId, Sha256>,
    devices: usize,
}

impl Crowd {
    /// Enrols all nodes.
    pub(in crate::bench) async fn enrol(
        world: &World,
        nodes: u32,
        shape: Shape,
        latencies: &mut Latencies,
    ) -> Result<Self> {
        let folder = world.layout.folder.join("nodes");
        std::fs::create_dir_all(&folder)?;
        let permits = KeySet::of("permits", 1, [world.about.permit_key.parse()?])?;
        let enrol = async |number| {
            let begun = Instant::now();
            let node = SimulatedNode::enrol(&world.api, number, shape, &folder, &permits).await?;
            Ok::<_, anyhow::Error>((node, begun.elapsed()))
        };
        let enrolled: Vec<_> = stream::iter(0..nodes)
            .map(enrol)
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let mut all = Vec::with_capacity(enrolled.len());
        for (node, took) in enrolled {
            latencies.add(took);
            all.push(node);
        }
        let image: Vec<u8> = (0..IMAGE_BYTES).map(|at| (at % 251) as u8).collect();
        Ok(Self {
            nodes: all,
            image,
            manifests: BTreeMap::new(),
            devices: nodes as usize * shape.devices as usize,
        })
    }

    /// One heartbeat of everybody, as fast as the coordinator takes them.
    async fn everybody(&mut self, latencies: &mut Latencies) -> Result<()> {
        let image = &self.image;
        let sync = |node| sync(node, image);
        let took: Vec<_> = stream::iter(&mut self.nodes)
            .map(sync)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        took.into_iter().for_each(|took| latencies.add(took));
        Ok(())
    }

    /// The first heartbeat: none of the devices is known yet.
    pub(in crate::bench) async fn tell_of_devices(&mut self, latencies: &mut Latencies) -> Result<()> {
        self.everybody(latencies).await
    }

    /// Heartbeats of everybody at a steady pace, spread over time, for so long. Answers how many were sent.
    pub(in crate::bench) async fn beat(
        &mut self,
        every: Duration,
        span: Duration,
        latencies: &mut Latencies,
    ) -> Result<usize> {
        let (image, begun) = (&self.image, tokio::time::Instant::now());
        let count = u32::try_from(self.nodes.len())?;
        let beating = (0_u32..).zip(&mut self.nodes).map(|(number, node)| async move {
            let (mut due, mut took) = (begun + every * number / count, Vec::new());
            while due < begun + span {
                tokio::time::sleep_until(due).await;
                sync(node, image).await?;
                // From the moment it was due, so that a coordinator that falls behind shows.
                took.push(due.elapsed());
                due += every;
            }
            Ok::<_, anyhow::Error>(took)
        });
        let took = futures_util::future::try_join_all(beating).await?;
        let took: Vec<_> = took.into_iter().flatten().collect();
        took.iter().for_each(|took| latencies.add(*took));
        Ok(took.len())
    }

    /// Releases an image.
    pub(in crate::bench) async fn release(&self, world: &World, people: &mut People) -> Result<Release> {
        let file = world.layout.folder.join("image.bin");
        std::fs::write(&file, &self.image)?;
        let artifact = measure(&file).await?;
        let _stored: Artifact = world.api.upload("/api/v1/artifacts", &file).await?;
        let release = people.release(&artifact, "bmc", NEW)?;
        people.sign("release")?;
        people.publish(&world.api).await?;
        Ok(release)
    }

    /// Has a campaign planned, approved and published for each site. Answers how long planning took. `caps` are as large as
    /// the fleet, if absent.
    pub(in crate::bench) async fn plan(
        &mut self,
        world: &World,
        people: &mut People,
        release: &Release,
        shape: Shape,
        caps: Option<&Caps>,
    ) -> Result<Latencies> {
        let (mut plans, mut beaten) = (Latencies::default(), Instant::now());
        for (share, layer) in shape.all() {
            if beaten.elapsed() > BEATS_WITHIN {
                self.everybody(&mut Latencies::default()).await?;
                beaten = Instant::now();
            }
            let draft = self.draft((share, layer), release, caps)?;
            let begun = Instant::now();
            let waves = people.stage(&world.api, &world.about, draft).await?;
            plans.add(begun.elapsed());
            ensure!(waves.len() == 1, "a direct campaign has one wave");
            // As people do: nobody approves a hundred campaigns in one breath.
            people.sign("approver")?;
            people.publish(&world.api).await?;
            let id = campaign((share, layer))?;
            self.manifests.insert(id.clone(), people.manifest_sha256(&id)?);
        }
        Ok(plans)
    }

    fn draft(&self, (share, layer): (u32, u32), release: &Release, caps: Option<&Caps>) -> Result<CampaignFile> {
        let everything = u32::try_from(self.devices)?;
        Ok(CampaignFile {
            id: campaign((share, layer))?,
            expires: People::expiry()?,
            releases: vec![release.target.clone()],
            kind: CampaignKind::Update,
            baseline: None,
            filter: None,
            hops: Vec::new(),
            previous: Vec::new(),
            selector: Selector {
                paths: vec![site(share).parse()?],
                ..Selector::default()
            },
            strategy: Strategy::Direct {},
            caps: caps.cloned().unwrap_or_else(|| Caps::new(everything, everything)),
            gate: GateRule::shares(BasisPoints::WHOLE, BasisPoints::new(0)?).into(),
            deadlines: Deadlines {
                attempt_s: 3_600,
                back_s: 600,
            }
            .into(),
            constraints: Constraints::default(),
            priority: Priority::Normal,
            automatic_rollback: false,
            operator_rollback: false,
            retries: None,
            permit_keys: Vec::new(),
        })
    }

    /// Heartbeats until nobody is asked for a proof any more.
    pub(in crate::bench) async fn prove(&mut self) -> Result<()> {
        // Asked, answered, and told that the answer was good.
        loop {
            self.everybody(&mut Latencies::default()).await?;
            if self.nodes.iter().all(SimulatedNode::has_proven) {
                return Ok(());
            }
        }
    }

    /// Starts all campaigns. Answers after how many seconds the last device was permitted, and after how many the last
    /// campaign had completed.
    pub(in crate::bench) async fn update(
        &mut self,
        world: &World,
        shape: Shape,
        reports: &mut Latencies,
    ) -> Result<(f64, f64)> {
        let begun = Instant::now();
        for each in shape.all() {
            start(world, each).await?;
        }
        while self.nodes.iter().map(SimulatedNode::begun).sum::<usize>() < self.devices {
            self.everybody(&mut Latencies::default()).await?;
            ensure!(
                begun.elapsed() < UPDATE_WITHIN,
                "not every device was permitted in time"
            );
        }
        let permitted = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let now = now()?;
        for node in &mut self.nodes {
            node.end_attempts(&self.manifests, now)?;
        }
        while !self.nodes.iter().all(SimulatedNode::is_done) {
            self.everybody(reports).await?;
            ensure!(begun.elapsed() < UPDATE_WITHIN, "not every report was taken in time");
        }
        let done = begun.elapsed().as_secs_f64();
        for each in shape.all() {
            let path = format!("/api/v1/campaigns/{}", campaign(each)?);
            let view: CampaignView = world.api.get(&path).await?;
            ensure!(view.state == CampaignState::Completed, "{}: {}", view.id, view.reason);
        }
        Ok((permitted, done))
    }

    /// Starts all campaigns, and ends what is permitted at once, until so many updates have ended. Answers after how many
    /// seconds that was.
    pub(in crate::bench) async fn update_in_turn(
        &mut self,
        world: &World,
        shape: Shape,
        updates: usize,
        reports: &mut Latencies,
    ) -> Result<f64> {
        let begun = Instant::now();
        for each in shape.all() {
            start(world, each).await?;
        }
        while self.nodes.iter().map(SimulatedNode::ended).sum::<usize>() < updates {
            self.everybody(reports).await?;
            let now = now()?;
            for node in &mut self.nodes {
                node.end_attempts(&self.manifests, now)?;
            }
            ensure!(begun.elapsed() < UPDATE_WITHIN, "not enough updates ended in time");
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// The name of the first campaign.
    pub(in crate::bench) fn first() -> Result<CampaignId> {
        campaign((0, 0))
    }

    /// Starts the first campaign.
    pub(in crate::bench) async fn start_first(&self, world: &World) -> Result<()> {
        start(world, (0, 0)).await
    }

    /// Everybody speaks at this pace, and ends what was permitted at once, until `stop`; whoever gets no answer says the
    /// same again.
    pub(in crate::bench) async fn work(&mut self, every: Duration, stop: &CancellationToken) -> Result<()> {
        let (image, manifests) = (&self.image, &self.manifests);
        let count = u32::try_from(self.nodes.len())?;
        let working = (0_u32..).zip(&mut self.nodes).map(|(number, node)| async move {
            let mut pace = tokio::time::interval_at(tokio::time::Instant::now() + every * number / count, every);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    _ = pace.tick() => {}
                }
                // Whether somebody answers is what is measured.
                let _ = tokio::time::timeout(ANSWER_WITHIN, node.sync(image)).await;
                node.end_attempts(manifests, now()?)?;
            }
        });
        futures_util::future::try_join_all(working).await.map(drop)
    }

    /// Every permit that a node was ever given.
    pub(in crate::bench) fn permits(&self) -> impl Iterator<Item = &Permit> {
        self.nodes.iter().flat_map(SimulatedNode::permits)
    }

    /// Devices whose reports the coordinator has acknowledged.
    pub(in crate::bench) fn acknowledged(&self) -> impl Iterator<Item = &DeviceId> {
        self.nodes.iter().flat_map(SimulatedNode::acknowledged)
    }
}

async fn start(world: &World, which: (u32, u32)) -> Result<()> {
    let path = format!("/api/v1/campaigns/{}/start", campaign(which)?);
    let _view: serde_json::Value = world.api.post(&path, &serde_json::json!({})).await?;
    Ok(())
}

fn now() -> Result<WallTime> {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock stands before 1970")?;
    Ok(WallTime::from_unix_seconds(i64::try_from(since_1970.as_secs())?))
}

fn campaign((share, layer): (u32, u32)) -> Result<CampaignId> {
    Ok(CampaignId::new(format!("load-{share}-{layer}"))?)
}

async fn sync(node: &mut SimulatedNode, image: &[u8]) -> Result<Duration> {
    let begun = Instant::now();
    node.sync(image).await?;
    Ok(begun.elapsed())
}
