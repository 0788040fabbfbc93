//! The demo's fleet as processes: a coordinator, emulated devices, nodes, and what everybody can be asked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use firmesh_node::status::Status;
use firmesh_protocol::{
    api::{About, CampaignView, DeviceView, EnrolmentTicket, NewNode, Page},
    ids::{DeviceId, NodeId, TopologyPath},
    manifest::Artifact,
};
use serde::Deserialize;

use super::{
    api::Api,
    ceremony::CAMPAIGN,
    layout::{Layout, NodePlan, place},
    processes::Processes,
};
use crate::devices::Endpoints;

pub(super) const COORDINATOR: &str = "coordinator";
const DEVICES: &str = "devices";
/// Sorts after every honest node, so that those dial it.
const EVIL_PEER: &str = "x-evil-peer";

/// Between two looks at something that is awaited.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Everything that runs.
#[derive(Debug)]
pub(super) struct World {
    pub(super) layout: Layout,
    pub(super) processes: Processes,
    pub(super) api: Api,
    pub(super) about: About,
    /// The coordinator's status page.
    pub(super) page: String,
    control: Option<Api>,
    endpoints: Endpoints,
    statuses: BTreeMap<NodeId, Api>,
}

/// What an emulated device says of itself to somebody who may know the truth.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Truth {
    id: DeviceId,
    /// The version that runs; `None` while nothing does.
    pub(super) version: Option<String>,
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
    pub(super) async fn begin(layout: Layout) -> Result<Self> {
        let mut processes = Processes::new(&layout.folder.join("logs"))?;
        let config = layout.write_coordinator("127.0.0.1:0", "127.0.0.1:0")?;
        processes.start(COORDINATOR, vec![COORDINATOR.into(), "--config".into(), config.into()])?;
        let found: CoordinatorAddresses =
            appears(&mut processes, &layout.coordinator_state().join("addresses.json")).await?;
        // After a restart it has to be where everybody knows it.
        layout.write_coordinator(authority(&found.operator_url)?, authority(&found.node_url)?)?;
        let token = std::fs::read_to_string(layout.coordinator_state().join("operator.token"))?;
        let api = Api::new(&found.operator_url, Some(token.trim().to_owned()))?;
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
    pub(super) async fn start_devices(
        &mut self,
        image: &Artifact,
        previous: &Artifact,
        previous_file: &Path,
    ) -> Result<()> {
        let config = self.layout.write_devices(image, previous, previous_file)?;
        self.processes
            .start(DEVICES, vec![DEVICES.into(), "--config".into(), config.into()])?;
        let state = self.layout.devices_state();
        let _: serde_json::Value = appears(&mut self.processes, &state.join("endpoints.json")).await?;
        self.endpoints = Endpoints::load(&state)?;
        self.control = Some(self.api.elsewhere(&self.endpoints.control));
        Ok(())
    }

    /// Allows every node to enrol and starts it, with the pinned root it was brought by hand.
    pub(super) async fn start_nodes(&mut self) -> Result<()> {
        for plan in self.layout.nodes.clone() {
            let ticket = self.ticket(&plan.node, &plan.path).await?;
            let config = self
                .layout
                .write_node(&plan, &self.about.node_url, &ticket.token, &self.endpoints)?;
            let name = plan.node.to_string();
            self.processes
                .start(&name, vec!["node".into(), "--config".into(), config.into()])?;
        }
        for NodePlan { node, .. } in self.layout.nodes.clone() {
            self.find_status(&node).await?;
        }
        Ok(())
    }

    /// Enrols one more member of rack 1, and it is evil.
    pub(super) async fn start_evil_peer(&mut self) -> Result<()> {
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
        ];
        self.processes.start(EVIL_PEER, args)
    }

    /// Makes one device of the last rack fail its next update.
    pub(super) async fn break_a_device(&self) -> Result<DeviceId> {
        let control = self.control.as_ref().context("no devices run")?;
        let device = self.layout.devices().last().context("no devices run")?;
        let path = format!("/devices/{device}/misbehaviour");
        let _: serde_json::Value = control
            .post(&path, &serde_json::json!({ "kind": "fail_update" }))
            .await?;
        Ok(device.clone())
    }

    /// Kills a process without a warning.
    pub(super) fn kill(&mut self, name: &str) -> Result<()> {
        self.processes.kill(name)
    }

    /// Starts a killed node again.
    pub(super) async fn restart_node(&mut self, node: &NodeId) -> Result<()> {
        // Or the old address would be taken for the new one.
        std::fs::remove_file(self.addresses_of(node)).ok();
        self.processes.restart(node.as_str())?;
        self.find_status(node).await
    }

    /// Every device as its node last reported it.
    pub(super) async fn devices(&self) -> Result<Vec<DeviceView>> {
        Ok(self.api.get::<Page<DeviceView>>("/api/v1/devices").await?.items)
    }

    /// The campaign.
    pub(super) async fn campaign(&self) -> Result<CampaignView> {
        self.api.get(&format!("/api/v1/campaigns/{CAMPAIGN}")).await
    }

    /// The truth, from the devices themselves.
    pub(super) async fn truth(&self) -> Result<BTreeMap<DeviceId, Truth>> {
        let control = self.control.as_ref().context("no devices run")?;
        let devices: Vec<Truth> = control.get("/devices").await?;
        Ok(devices.into_iter().map(|truth| (truth.id.clone(), truth)).collect())
    }

    /// What every node says of itself; silent ones are left out.
    pub(super) async fn statuses(&self) -> BTreeMap<NodeId, Status> {
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

    async fn find_status(&mut self, node: &NodeId) -> Result<()> {
        let file = self.addresses_of(node);
        let found: NodeAddresses = appears(&mut self.processes, &file).await?;
        self.statuses
            .insert(node.clone(), self.api.elsewhere(&format!("http://{}", found.status)));
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
