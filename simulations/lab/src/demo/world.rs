//! The demo's fleet as processes: a coordinator, emulated devices, nodes, and what everybody can be asked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use firmesh_node::status::Status;
use firmesh_protocol::{
    api::{About, CampaignView, DeviceView, EnrolmentTicket, NewNode},
    ids::{DeviceId, NodeId, TopologyPath},
    manifest::Artifact,
};
use serde::Deserialize;

use super::{
    api::Api,
    ceremony::CAMPAIGN,
    layout::{Layout, NodePlan, OLD_VERSION, place},
    place::Place,
    processes::Processes,
};
use crate::devices::Endpoints;

pub(crate) const COORDINATOR: &str = "coordinator";
const DEVICES: &str = "devices";
/// Sorts after every honest node, so that those dial it.
const EVIL_PEER: &str = "x-evil-peer";

/// Between two looks at something that is awaited.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) layout: Layout,
    pub(crate) processes: Processes,
    pub(crate) api: Api,
    pub(crate) about: About,
    /// The coordinator's status page.
    pub(crate) page: String,
    control: Option<Api>,
    endpoints: Endpoints,
    statuses: BTreeMap<NodeId, Api>,
}

/// What an emulated device says of itself to somebody who may know the truth.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Truth {
    id: DeviceId,
    /// The version that runs; `None` while nothing does.
    pub(crate) version: Option<String>,
}

/// What the coordinator says about itself once it listens.
#[derive(Debug, Deserialize)]
struct CoordinatorAddresses {
    operator_url: String,
    node_url: String,
}

/// What a node says about itself once it listens.
#[derive(Debug, Deserialize)]
struct NodeAddresses {
    status: String,
}

impl World {
    /// Starts the coordinator; nothing else runs yet.
    pub(crate) async fn begin(layout: Layout) -> Result<Self> {
        let mut processes = Processes::new(&layout.folder.join("logs"))?;
        let at = layout.coordinator.clone();
        let config = layout.write_coordinator("127.0.0.1:0", &at.any_port().to_string())?;
        processes.start(
            COORDINATOR,
            &at,
            vec![COORDINATOR.into(), "--config".into(), config.into()],
        )?;
        let found: CoordinatorAddresses =
            appears(&mut processes, &layout.coordinator_state().join("addresses.json")).await?;
        // After a restart it has to be where everybody knows it.
        layout.write_coordinator(authority(&found.operator_url)?, authority(&found.node_url)?)?;
        let token = std::fs::read_to_string(layout.coordinator_state().join("operator.token"))?;
        let api = Api::new(&found.operator_url, Some(token.trim().to_owned()), at.inside.clone())?;
        let about: About = api.get("/api/v1/about").await?;
        std::fs::write(layout.fleet_ca(), &about.fleet_ca_pem)?;
        Ok(Self {
            layout,
            processes,
            page: format!("{}/", found.operator_url),
            api,
            about,
            control: None,
            endpoints: Endpoints::default(),
            statuses: BTreeMap::new(),
        })
    }

    /// Starts the emulated devices.
    pub(crate) async fn start_devices(
        &mut self,
        image: &Artifact,
        previous: &Artifact,
        previous_file: &Path,
    ) -> Result<()> {
        let config = self.layout.write_devices(image, previous, previous_file)?;
        self.processes.start(
            DEVICES,
            &Place::default(),
            vec![DEVICES.into(), "--config".into(), config.into()],
        )?;
        let state = self.layout.devices_state();
        let _: serde_json::Value = appears(&mut self.processes, &state.join("endpoints.json")).await?;
        self.endpoints = Endpoints::load(&state)?;
        self.control = Some(Api::new(&self.endpoints.control, None, None)?);
        Ok(())
    }

    /// Allows every node to enrol and starts it, with the pinned root it was brought by hand.
    pub(crate) async fn start_nodes(&mut self) -> Result<()> {
        for plan in self.layout.nodes.clone() {
            let ticket = self.ticket(&plan.node, &plan.path).await?;
            let config = self
                .layout
                .write_node(&plan, &self.about.node_url, &ticket.token, &self.endpoints)?;
            let name = plan.node.to_string();
            self.processes.start(
                &name,
                &plan.place,
                vec!["node".into(), "--config".into(), config.into()],
            )?;
        }
        for plan in self.layout.nodes.clone() {
            self.find_status(&plan).await?;
        }
        Ok(())
    }

    /// Enrols one more member of rack 1, and it is evil.
    pub(crate) async fn start_evil_peer(&mut self, at: &Place) -> Result<()> {
        let (node, path) = (NodeId::new(EVIL_PEER)?, place(1, EVIL_PEER)?);
        let ticket = self.ticket(&node, &path).await?;
        let token = self.layout.folder.join("evil-peer.token");
        std::fs::write(&token, ticket.token)?;
        let args = vec![
            "evil-peer".into(),
            format!("--node={node}").into(),
            format!("--path={path}").into(),
            format!("--coordinator={}", self.about.node_url).into(),
            "--ca-file".into(),
            self.layout.fleet_ca().into(),
            "--token-file".into(),
            token.into(),
            "--manner=corrupt".into(),
            format!("--listen={}", at.any_port()).into(),
        ];
        self.processes.start(EVIL_PEER, at, args)
    }

    /// Makes one device of the last rack fail its next update.
    pub(crate) async fn break_a_device(&self) -> Result<DeviceId> {
        let control = self.control.as_ref().context("no devices run")?;
        let device = self.layout.devices().last().context("no devices run")?;
        let path = format!("/devices/{device}/misbehaviour");
        let _: serde_json::Value = control
            .post(&path, &serde_json::json!({ "kind": "fail_update" }))
            .await?;
        Ok(device.clone())
    }

    /// Kills a process without a warning.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        self.processes.kill(name)
    }

    /// Starts a killed node again.
    pub(crate) async fn restart_node(&mut self, node: &NodeId) -> Result<()> {
        // Or the old address would be taken for the new one.
        std::fs::remove_file(self.addresses_of(node)).ok();
        self.processes.restart(node.as_str())?;
        let plan = self.layout.nodes.iter().find(|plan| plan.node == *node).cloned();
        self.find_status(&plan.with_context(|| format!("{node} is nobody's name"))?)
            .await
    }

    /// Starts killed nodes again, all at once.
    pub(crate) async fn restart_nodes(&mut self, nodes: &[NodeId]) -> Result<()> {
        let plans = self.layout.nodes.iter().filter(|plan| nodes.contains(&plan.node));
        let plans: Vec<_> = plans.cloned().collect();
        for plan in &plans {
            std::fs::remove_file(self.addresses_of(&plan.node)).ok(); // as above
            self.processes.restart(plan.node.as_str())?;
        }
        for plan in &plans {
            self.find_status(plan).await?;
        }
        Ok(())
    }

    /// Every device as its node last reported it.
    pub(crate) async fn devices(&self) -> Result<Vec<DeviceView>> {
        self.api.list("/api/v1/devices").await
    }

    /// Waits until every node is enrolled and connected to every other, and to `others` that have no status, and every
    /// device has been read.
    pub(crate) async fn await_fleet(&mut self, others: usize) -> Result<()> {
        let (nodes, devices) = (self.layout.nodes.len(), self.layout.devices().count());
        loop {
            self.processes.check()?;
            let read = self.devices().await?;
            let known = read
                .iter()
                .filter(|view| view.facts.version.as_deref() == Some(OLD_VERSION))
                .count();
            let statuses = self.statuses().await;
            let meshed = statuses
                .values()
                .filter(|status| status.connected + 1 >= nodes + others)
                .count();
            if known == devices && meshed == nodes {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The campaign.
    pub(crate) async fn campaign(&self) -> Result<CampaignView> {
        self.api.get(&format!("/api/v1/campaigns/{CAMPAIGN}")).await
    }

    /// The truth, from the devices themselves.
    pub(crate) async fn truth(&self) -> Result<BTreeMap<DeviceId, Truth>> {
        let control = self.control.as_ref().context("no devices run")?;
        let devices: Vec<Truth> = control.get("/devices").await?;
        Ok(devices.into_iter().map(|truth| (truth.id.clone(), truth)).collect())
    }

    /// What every node says of itself; silent ones are left out.
    pub(crate) async fn statuses(&self) -> BTreeMap<NodeId, Status> {
        let asked = self
            .statuses
            .iter()
            .map(async |(node, api)| Some((node.clone(), api.get("/status").await.ok()?)));
        futures_util::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    async fn ticket(&self, node: &NodeId, path: &TopologyPath) -> Result<EnrolmentTicket> {
        let new = NewNode {
            node: node.clone(),
            path: path.clone(),
        };
        self.api
            .post("/api/v1/nodes", &new)
            .await
            .with_context(|| format!("{node} may not enrol"))
    }

    async fn find_status(&mut self, plan: &NodePlan) -> Result<()> {
        let file = self.addresses_of(&plan.node);
        let found: NodeAddresses = appears(&mut self.processes, &file).await?;
        let api = Api::new(&format!("http://{}", found.status), None, plan.place.inside.clone())?;
        self.statuses.insert(plan.node.clone(), api);
        Ok(())
    }

    fn addresses_of(&self, node: &NodeId) -> PathBuf {
        self.layout.node(node).join("state/addresses.json")
    }
}

/// Waits for a file that a process writes once it listens; fails if a process ends instead.
async fn appears<T: serde::de::DeserializeOwned>(processes: &mut Processes, file: &Path) -> Result<T> {
    /// A dozen processes start at the same time on two cores.
    const WITHIN: Duration = Duration::from_secs(60);
    let deadline = Instant::now() + WITHIN;
    loop {
        processes.check()?;
        // A file that is not complete yet does not parse yet.
        if let Some(value) = std::fs::read(file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{} did not appear within {WITHIN:?}", file.display());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn authority(url: &str) -> Result<&str> {
    url.split_once("://")
        .map(|(_, rest)| rest.trim_end_matches('/'))
        .with_context(|| format!("{url} is not a URL"))
}
