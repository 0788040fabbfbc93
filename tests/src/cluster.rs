//! A fleet of real processes on loopback: coordinator, nodes, emulated devices; set up by the real command line.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use firmesh_protocol::api::{About, CampaignView, DeviceView, Page};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    binaries::Program,
    operator::Operator,
    process::Process,
    replicas::Replicas,
    setup::{
        MODEL, NEW, OLD, START_WITHIN, ab_slot_toml, client, device_names, get, node_toml, place, release_name,
        stage_release, start_coordinator, start_devices, start_node,
    },
    wait::{Seen, Turn, until},
};

/// What a fleet is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Racks.
    pub racks: u32,
    /// Nodes per rack.
    pub nodes: u32,
    /// BMCs per node.
    pub bmcs: u32,
    /// A/B hosts per node.
    pub hosts: u32,
    /// Whether U-Boot starts the hosts, and not GRUB.
    pub uboot: bool,
    /// Length of the new image.
    pub image_bytes: usize,
    /// What makes `next.bin`, the image of version `1.2.0`, of the new image; nothing is signed for it.
    pub next: Option<fn(Vec<u8>) -> Vec<u8>>,
    /// A member of rack 1 that misbehaves in this manner: `corrupt` or `liar`.
    pub evil_peer: Option<&'static str>,
    /// How long a restart of a device takes, in milliseconds.
    pub boot_ms: u32,
    /// Coordinators: of several, the fleet knows only the balancer before them.
    pub coordinators: u32,
    /// Whether several coordinators have a bucket in common, rather than a folder.
    pub bucket: bool,
    /// How long a node's certificate is good for, as the coordinator's configuration has it.
    pub certificates: &'static str,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            racks: 2,
            nodes: 2,
            bmcs: 1,
            hosts: 0,
            uboot: false,
            image_bytes: 4 << 20,
            next: None,
            evil_peer: None,
            boot_ms: 300,
            coordinators: 1,
            bucket: false,
            certificates: "90d",
        }
    }
}

/// A running fleet. Dropping it ends every process.
#[derive(Debug)]
pub struct Cluster {
    /// The operator who set it up; commands run in the fleet's folder.
    pub operator: Operator,
    /// The coordinator, while it runs; of several, the balancer before them.
    pub coordinator: Process,
    /// The coordinators, if there are several.
    pub replicas: Option<Replicas>,
    /// The emulated devices.
    pub devices: Process,
    /// The nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// What the coordinator says about itself.
    pub about: About,
    evil_peer: Option<Process>,
    shape: Shape,
    control: String,
    url: String,
    http: reqwest::Client,
    folder: TempDir,
    _turn: Turn,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its process, while it runs.
    pub process: Process,
    folder: PathBuf,
    log: PathBuf,
    http: reqwest::Client,
}

impl Cluster {
    /// Tells a story about a fleet. If it ends badly, the fleet's folder is left, and everybody's last words are printed.
    pub async fn with(shape: Shape, story: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut fleet = Self::start(shape).await?;
        let told = story(&mut fleet).await;
        if told.is_err() {
            fleet.folder.disable_cleanup(true);
            eprintln!("-- the fleet's folder is left for you: {}", fleet.folder().display());
            let nodes = fleet.nodes.values().map(|node| &node.process);
            [&fleet.coordinator, &fleet.devices]
                .into_iter()
                .chain(nodes)
                .for_each(Process::print_last_words);
            fleet.replicas.iter().for_each(Replicas::print_last_words);
        }
        told
    }

    /// Starts a fleet: ceremony held, releases `1.0.0` and `1.1.0` signed and published, every device known.
    async fn start(shape: Shape) -> Result<Self> {
        let turn = Turn::take().await?;
        let folder = tempfile::Builder::new().prefix("firmesh-e2e-").tempdir()?;
        let root = folder.path();
        for (name, bytes) in [("image.bin", shape.image_bytes), ("previous.bin", 1 << 20)] {
            let mut image = vec![0; bytes];
            getrandom::fill(&mut image).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
            fs::write(root.join(name), image)?;
        }
        if let Some(next) = shape.next {
            fs::write(root.join("next.bin"), next(fs::read(root.join("image.bin"))?))?;
        }
        let http = client()?;
        let (coordinator, url, replicas) = if shape.coordinators > 1 {
            let (replicas, balancer) = Replicas::start(root, shape).await?;
            (balancer, replicas.url().to_owned(), Some(replicas))
        } else {
            let (coordinator, url) = start_coordinator(root, None, shape.certificates).await?;
            (coordinator, url, None)
        };
        let operator = Operator::offline(root);
        let about: About = get(&http, &format!("{url}/api/v1/about")).await?;
        fs::write(root.join("fleet-ca.pem"), &about.fleet_ca_pem)?;
        operator.hold_ceremony(&about.online_key)?;
        let token = root.join("coordinator/operator.token");
        let token = replicas.as_ref().map_or(token, Replicas::token_file);
        let operator = operator.with_coordinator(&url, &token);
        let (devices, endpoints) = start_devices(root, shape).await?;
        let control = endpoints["control"]
            .as_str()
            .context("the devices have no control endpoint")?
            .to_owned();

        let mut components = vec![];
        components.extend((shape.bmcs > 0).then_some("bmc"));
        components.extend((shape.hosts > 0).then_some("host"));
        for (file, version) in [("previous.bin", OLD), ("image.bin", NEW)] {
            operator.ok(&["artifact", "add", file])?;
            for component in &components {
                stage_release(&operator, file, MODEL, component, version)?;
            }
        }
        operator.sign("release")?;
        operator.sign("approver")?;
        operator.ok(&["trust", "publish"])?;

        let mut cluster = Self {
            operator,
            coordinator,
            replicas,
            devices,
            nodes: BTreeMap::new(),
            about,
            evil_peer: None,
            shape,
            control,
            url,
            http,
            folder,
            _turn: turn,
        };
        for (name, rack) in cluster.names() {
            cluster.add_node(&name, rack, &endpoints)?;
        }
        if let Some(manner) = shape.evil_peer {
            cluster.add_evil_peer(manner)?;
        }
        for node in cluster.nodes.values() {
            node.listening().await?;
        }
        cluster.await_devices().await?;
        Ok(cluster)
    }

    /// The fleet's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The coordinator's operator face.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client for plain HTTP.
    #[must_use]
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Devices in the fleet.
    #[must_use]
    pub fn device_count(&self) -> usize {
        (self.shape.racks * self.shape.nodes * (self.shape.bmcs + self.shape.hosts)) as usize
    }

    /// The one node of this name.
    pub fn node(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes
            .get_mut(name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// Writes, plans, approves and publishes a campaign for all devices to version `1.1.0`, and starts it.
    pub fn start_campaign(&self, id: &str, rules: &str) -> Result<()> {
        self.approve_campaign(id, rules)?;
        self.operator.ok(&["campaign", "start", id])?;
        Ok(())
    }

    /// Everything before the start.
    pub fn approve_campaign(&self, id: &str, rules: &str) -> Result<()> {
        self.approve_update(id, (NEW, OLD), rules)
    }

    /// The same to another version, with the one to go back to.
    pub fn approve_update(&self, id: &str, (to, back): (&str, &str), rules: &str) -> Result<()> {
        let names = |version: &str| {
            let mut names = vec![];
            names.extend((self.shape.bmcs > 0).then(|| release_name("bmc", version)));
            names.extend((self.shape.hosts > 0).then(|| release_name("host", version)));
            json!(names).to_string()
        };
        let file = format!(
            "id = {id:?}\nexpires = \"2099-01-01T00:00:00Z\"\nreleases = {}\nprevious = {}\n{rules}\n",
            names(to),
            names(back)
        );
        fs::write(self.folder().join(format!("{id}.toml")), file)?;
        self.operator
            .ok(&["campaign", "create", "--file", &format!("{id}.toml")])?;
        self.operator.ok(&["campaign", "plan", id])?;
        self.operator.sign("approver")?;
        self.operator.ok(&["campaign", "publish"])?;
        Ok(())
    }

    /// Where a campaign stands.
    pub async fn campaign(&self, id: &str) -> Result<CampaignView> {
        get(&self.http, &format!("{}/api/v1/campaigns/{id}", self.url)).await
    }

    /// Waits until a campaign is over.
    pub async fn campaign_ends(&self, id: &str, within: Duration) -> Result<CampaignView> {
        until(&format!("campaign {id} to end"), within, async || {
            let view = self.campaign(id).await?;
            Ok(if view.state.is_terminal() {
                Seen::Yes(view)
            } else {
                Seen::NotYet(format!("{view:?}"))
            })
        })
        .await
    }

    /// The truth about every device, from the devices themselves: the version that runs, by name.
    pub async fn versions(&self) -> Result<BTreeMap<String, Option<String>>> {
        let devices: Vec<Value> = get(&self.http, &format!("{}/devices", self.control)).await?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        devices
            .iter()
            .map(|device| Ok((text(&device["id"]).context("no id")?, text(&device["version"]))))
            .collect()
    }

    /// How many devices run this version, by their own word.
    pub async fn running(&self, version: &str) -> Result<usize> {
        Ok(self
            .versions()
            .await?
            .values()
            .filter(|found| found.as_deref() == Some(version))
            .count())
    }

    /// What happened to the devices, by their own logs, oldest first.
    pub async fn device_events(&self) -> Result<Vec<Value>> {
        get(&self.http, &format!("{}/events", self.control)).await
    }

    /// Makes a device misbehave.
    pub async fn misbehave(&self, device: &str, how: Value) -> Result<()> {
        let url = format!("{}/devices/{device}/misbehaviour", self.control);
        self.http.post(url).json(&how).send().await?.error_for_status()?;
        Ok(())
    }

    /// Every device as the coordinator knows it.
    pub async fn device_views(&self) -> Result<Vec<DeviceView>> {
        Ok(
            get::<Page<DeviceView>>(&self.http, &format!("{}/api/v1/devices?limit=1000", self.url))
                .await?
                .items,
        )
    }

    /// Starts the coordinator again where it was.
    pub async fn restart_coordinator(&mut self) -> Result<()> {
        let node_url = self.about.node_url.clone();
        (self.coordinator, _) = start_coordinator(
            self.folder.path(),
            Some((&self.url, &node_url)),
            self.shape.certificates,
        )
        .await?;
        Ok(())
    }

    /// Starts the emulated devices again where they were.
    pub async fn restart_devices(&mut self) -> Result<()> {
        (self.devices, _) = start_devices(self.folder.path(), self.shape).await?;
        Ok(())
    }

    fn names(&self) -> Vec<(String, u32)> {
        let racks = 1..=self.shape.racks;
        racks
            .flat_map(|rack| (1..=self.shape.nodes).map(move |node| (format!("r{rack}-n{node}"), rack)))
            .collect()
    }

    fn add_node(&mut self, name: &str, rack: u32, endpoints: &Value) -> Result<()> {
        let root = self.folder.path();
        let folder = root.join("nodes").join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("token"), self.token(name, rack)?)?;
        fs::write(folder.join("bmc-password"), "e2e-password\n")?;
        let mut config = node_toml(name, rack, &self.about.node_url, root);
        for (device, kind) in device_names(name, self.shape) {
            let endpoint = &endpoints["devices"][&device];
            let executor = match endpoint["bmc"]["url"].as_str() {
                Some(url) => format!(
                    "kind = \"redfish\", url = {url:?}, username = \"admin\", password_file = \"bmc-password\", ca_file = {}",
                    endpoints["ca_file"]
                ),
                None => ab_slot_toml(Path::new(
                    endpoint["host"]["dir"].as_str().context("a host has a folder")?,
                ))?,
            };
            write!(
                config,
                "[[device]]\nid = {device:?}\ncomponent = {kind:?}\nexecutor = {{ {executor} }}\n"
            )?;
        }
        fs::write(folder.join("node.toml"), config)?;
        let node = Node::start(&folder, &self.http)?;
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    fn add_evil_peer(&mut self, manner: &str) -> Result<()> {
        const NAME: &str = "x-evil";
        let root = self.folder.path();
        fs::write(root.join("evil-token"), self.token(NAME, 1)?)?;
        let args = [
            "evil-peer".to_owned(),
            format!("--node={NAME}"),
            format!("--path={}", place(NAME, 1)),
            format!("--coordinator={}", self.about.node_url),
            format!("--ca-file={}", root.join("fleet-ca.pem").display()),
            format!("--token-file={}", root.join("evil-token").display()),
            format!("--manner={manner}"),
        ];
        self.evil_peer = Some(Process::start(Program::Lab, args, &root.join("evil.log"), |_| ())?);
        Ok(())
    }

    /// Allows a node to enrol; its one-time token.
    pub fn token(&self, name: &str, rack: u32) -> Result<String> {
        let ticket = format!("{name}.ticket.json");
        self.operator
            .ok(&["node", "enrol", name, "--path", &place(name, rack), "--out", &ticket])?;
        let ticket: Value = serde_json::from_slice(&fs::read(self.folder().join(ticket))?)?;
        Ok(ticket["token"].as_str().context("a ticket has a token")?.to_owned())
    }

    /// Every device was read by its node, and every node is connected to all the others.
    async fn await_devices(&self) -> Result<()> {
        let members = self.nodes.len() + usize::from(self.evil_peer.is_some());
        until("every node and device to be known", START_WITHIN, async || {
            let known = self
                .device_views()
                .await?
                .iter()
                .filter(|view| view.facts.version.is_some())
                .count();
            let mut connected = 0;
            for node in self.nodes.values() {
                connected += usize::from(node.status().await?["connected"] == members - 1);
            }
            let holds = known == self.device_count() && connected == self.nodes.len();
            Ok(Seen::when(holds, || {
                format!("{known} devices known, {connected} nodes meshed")
            }))
        })
        .await
    }
}

impl Node {
    /// Starts a node whose `node.toml` lies in `folder`.
    pub fn start(folder: &Path, http: &reqwest::Client) -> Result<Self> {
        let log = folder.join("node.log");
        // Or the address of an earlier process would be taken for the new one's.
        fs::remove_file(folder.join("state/addresses.json")).ok();
        let process = start_node(folder, &log)?;
        Ok(Self {
            process,
            folder: folder.to_owned(),
            log,
            http: http.clone(),
        })
    }

    /// Starts it again.
    pub async fn restart(&mut self) -> Result<()> {
        fs::remove_file(self.folder.join("state/addresses.json")).ok();
        self.process = start_node(&self.folder, &self.log)?;
        self.listening().await
    }

    /// Takes over a process that somebody else has started for it.
    pub async fn replace(&mut self, process: Process) -> Result<()> {
        self.process = process;
        self.listening().await
    }

    /// Its folder: `node.toml`, and `state` under it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until it answers.
    pub async fn listening(&self) -> Result<()> {
        until("the node's status", START_WITHIN, async || {
            Ok(Seen::Yes(self.status().await?))
        })
        .await
        .map(drop)
    }

    /// What it says of itself.
    pub async fn status(&self) -> Result<Value> {
        get(&self.http, &format!("{}/status", self.status_url()?)).await
    }

    /// Brings it a signed brake, as a person at the rack would.
    pub async fn bring_brake(&self, envelope: Vec<u8>) -> Result<()> {
        let url = format!("{}/brakes", self.status_url()?);
        let answer = self.http.post(url).body(envelope).send().await?;
        let status = answer.status();
        anyhow::ensure!(status.is_success(), "{status}: {}", answer.text().await?);
        Ok(())
    }

    /// Where its status API answers: `http://host:port`.
    pub fn status_url(&self) -> Result<String> {
        Ok(format!("http://{}", self.address("status")?))
    }

    /// Where it listens: `status`, `data`, `mesh` or `images`.
    pub fn address(&self, plane: &str) -> Result<String> {
        let file = self.folder.join("state/addresses.json");
        let addresses: Value = serde_json::from_slice(&fs::read(&file).context("it does not listen yet")?)?;
        let address = addresses[plane].as_str();
        Ok(address.with_context(|| format!("no {plane} address"))?.to_owned())
    }

    /// Pieces it holds of all artifacts, and how many there are of those it knows.
    pub async fn pieces(&self) -> Result<(u64, u64)> {
        let status = self.status().await?;
        let holdings = status["holdings"].as_array().cloned().unwrap_or_default();
        let sum = |field: &str| holdings.iter().filter_map(|holding| holding[field].as_u64()).sum();
        Ok((sum("pieces"), sum("pieces_total")))
    }
}
