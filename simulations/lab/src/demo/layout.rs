//! Who is in the demo's fleet, and the configuration files of everybody in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use firmesh_protocol::{
    ids::{Component, DeviceId, NodeId, TopologyPath},
    manifest::Artifact,
};
use toml::{Table, Value};

use super::place::Place;
use crate::devices::{BootLoader, CatalogueConfig, DeviceConfig, DeviceKind, DevicesConfig, EndpointKind, Endpoints};

/// Who makes everything here.
pub(crate) const VENDOR: &str = "Firmesh Lab";
/// What is made here: a server with a BMC that is updated over Redfish and a host system with two slots.
pub(crate) const MODEL: &str = "LAB-1";
/// The version everything starts with.
pub(crate) const OLD_VERSION: &str = "1.0.0";
/// The version everything is to end with.
pub(crate) const NEW_VERSION: &str = "1.1.0";

/// What the emulated parts take for writing and for restarting: long enough to be seen, short enough for a demo.
const FLASH_MS: u64 = 400;
const BOOT_MS: u64 = 600;

/// How large a fleet is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) racks: u32,
    /// Nodes per rack.
    pub(crate) nodes: u32,
    /// Emulated BMCs per node.
    pub(crate) bmcs: u32,
    /// Emulated hosts with A/B slots per node.
    pub(crate) hosts: u32,
}

/// One node and what it looks after.
#[derive(Debug, Clone)]
pub(crate) struct NodePlan {
    pub(crate) node: NodeId,
    pub(crate) path: TopologyPath,
    pub(crate) bmcs: Vec<DeviceId>,
    pub(crate) hosts: Vec<DeviceId>,
    /// Where it runs.
    pub(crate) place: Place,
}

/// Where everything lies under the state folder.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) folder: PathBuf,
    pub(crate) nodes: Vec<NodePlan>,
    /// Where the coordinator runs.
    pub(crate) coordinator: Place,
    /// Budgets of every node: scope and Mbit/s.
    pub(crate) budgets: Vec<(String, u32)>,
    /// More of the coordinator's configuration.
    pub(crate) coordinator_more: toml::Table,
}

impl Layout {
    pub(crate) fn new(folder: &Path, shape: &Shape) -> Result<Self> {
        let mut nodes = Vec::new();
        for rack in 1..=shape.racks {
            for number in 1..=shape.nodes {
                let node = format!("r{rack}-n{number}");
                let names = |kind: &str, count: u32| -> Result<Vec<DeviceId>> {
                    (1..=count)
                        .map(|at| Ok(DeviceId::new(format!("{node}-{kind}{at}"))?))
                        .collect()
                };
                nodes.push(NodePlan {
                    path: place(rack, &node)?,
                    bmcs: names("bmc", shape.bmcs)?,
                    hosts: names("host", shape.hosts)?,
                    node: NodeId::new(node)?,
                    place: Place::default(),
                });
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            nodes,
            coordinator: Place::default(),
            budgets: Vec::new(),
            coordinator_more: toml::Table::new(),
        })
    }

    pub(crate) fn coordinator_state(&self) -> PathBuf {
        self.folder.join("coordinator")
    }

    pub(crate) fn devices_state(&self) -> PathBuf {
        self.folder.join("devices")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.folder.join("keys")
    }

    pub(crate) fn trust(&self) -> PathBuf {
        self.folder.join("trust")
    }

    pub(crate) fn fleet_ca(&self) -> PathBuf {
        self.folder.join("fleet-ca.pem")
    }

    /// The folder of one node: its configuration, and `state` under it.
    pub(crate) fn node(&self, node: &NodeId) -> PathBuf {
        self.folder.join("nodes").join(node.as_str())
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.nodes.iter().flat_map(|plan| plan.bmcs.iter().chain(&plan.hosts))
    }

    /// `coordinator.toml`, listening where it is told; everywhere free at first.
    pub(crate) fn write_coordinator(&self, operators: &str, nodes: &str) -> Result<PathBuf> {
        let listen = |at: &str| Value::Table(table([("listen", at.into())]));
        let config = table([
            ("state_dir", "coordinator".into()),
            ("operators", listen(operators)),
            ("nodes", listen(nodes)),
        ]);
        let config: toml::Table = config.into_iter().chain(self.coordinator_more.clone()).collect();
        self.write("coordinator.toml", &config)
    }

    /// `devices.toml`: BMCs and hosts that run the previous version.
    pub(crate) fn write_devices(&self, image: &Artifact, previous: &Artifact, previous_file: &Path) -> Result<PathBuf> {
        let entry = |artifact: &Artifact, version: &str| CatalogueConfig {
            sha256: artifact.sha256,
            version: version.to_owned(),
            model: MODEL.to_owned(),
        };
        let device = |id: &DeviceId, component: &str, kind: DeviceKind| -> Result<DeviceConfig> {
            Ok(DeviceConfig {
                id: id.clone(),
                vendor: VENDOR.to_owned(),
                model: MODEL.to_owned(),
                component: Component::new(component)?,
                version: OLD_VERSION.to_owned(),
                boot_ms: BOOT_MS,
                misbehaviour: None,
                kind,
            })
        };
        let mut devices = Vec::new();
        for plan in &self.nodes {
            for bmc in &plan.bmcs {
                devices.push(device(
                    bmc,
                    "bmc",
                    DeviceKind::Bmc {
                        listen: None,
                        flash_ms: FLASH_MS,
                    },
                )?);
            }
            for host in &plan.hosts {
                let kind = DeviceKind::Host {
                    dir: None,
                    image: Some(previous_file.to_owned()),
                    boot_loader: BootLoader::Grub,
                };
                devices.push(device(host, "host", kind)?);
            }
        }
        let config = DevicesConfig {
            state: self.devices_state(),
            control: None,
            pull_ca_file: Some(self.fleet_ca()),
            tls: None,
            username: "admin".to_owned(),
            password: "demo-only".to_owned(),
            catalogue: vec![entry(image, NEW_VERSION), entry(previous, OLD_VERSION)],
            devices,
        };
        self.write("devices.toml", &config)
    }

    /// A node's `node.toml` with its one-time token and the devices it looks after.
    pub(crate) fn write_node(
        &self,
        plan: &NodePlan,
        coordinator: &str,
        token: &str,
        devices: &Endpoints,
    ) -> Result<PathBuf> {
        let folder = self.node(&plan.node);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("token"), token)?;
        fs::write(folder.join("bmc-password"), "demo-only\n")?;
        let path = |path: &Path| Value::String(path.display().to_string());
        let mut listed = Vec::new();
        for device in plan.bmcs.iter().chain(&plan.hosts) {
            let endpoint = devices
                .devices
                .get(device)
                .with_context(|| format!("{device} is not emulated"))?;
            let (component, executor) = match endpoint {
                EndpointKind::Bmc { url } => (
                    "bmc",
                    table([
                        ("kind", "redfish".into()),
                        ("url", url.as_str().into()),
                        ("username", "admin".into()),
                        ("password_file", "bmc-password".into()),
                        (
                            "ca_file",
                            path(devices.ca_file.as_deref().context("the devices have no certificate")?),
                        ),
                    ]),
                ),
                EndpointKind::Host { dir } => (
                    "host",
                    table([
                        ("kind", "ab_slot".into()),
                        ("slot_a", path(&dir.join("slot_a"))),
                        ("slot_b", path(&dir.join("slot_b"))),
                        ("env_file", path(&dir.join("grubenv"))),
                        ("status_file", path(&dir.join("status.json"))),
                        (
                            "reset_command",
                            Value::Array(vec![
                                path(&std::env::current_exe()?),
                                "host-reset".into(),
                                "--dir".into(),
                                path(dir),
                            ]),
                        ),
                        ("vendor", VENDOR.into()),
                        ("model", MODEL.into()),
                    ]),
                ),
            };
            listed.push(Value::Table(table([
                ("id", device.as_str().into()),
                ("component", component.into()),
                ("executor", Value::Table(executor)),
            ])));
        }
        let config = table([
            ("node", plan.node.as_str().into()),
            ("path", plan.path.to_string().into()),
            ("state_dir", "state".into()),
            ("root_file", path(&self.trust().join("1.root.json"))),
            (
                "coordinator",
                Value::Table(table([
                    ("url", coordinator.into()),
                    ("ca_file", path(&self.fleet_ca())),
                    ("token_file", "token".into()),
                    ("poll_interval", "500ms".into()),
                ])),
            ),
            (
                "data",
                Value::Table(table([("listen", plan.place.any_port().to_string().into())])),
            ),
            // These nodes find each other by the roster; nobody else on this machine's network is disturbed.
            (
                "mesh",
                Value::Table(table([
                    ("mdns", false.into()),
                    ("listen", format!("/ip4/{}/udp/0/quic-v1", plan.place.ip).into()),
                ])),
            ),
            ("budget", Value::Array(self.budgets.iter().map(budget).collect())),
            ("device", Value::Array(listed)),
        ]);
        self.write(&format!("nodes/{}/node.toml", plan.node), &config)
    }

    fn write(&self, name: &str, config: &impl serde::Serialize) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, toml::to_string(config)?).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(path)
    }
}

/// Where a node stands.
pub(crate) fn place(rack: u32, node: &str) -> Result<TopologyPath> {
    Ok(format!("lab/hall-1/rack-{rack}/{node}").parse()?)
}

fn budget((scope, mbit_per_s): &(String, u32)) -> Value {
    Value::Table(table([
        ("scope", scope.as_str().into()),
        ("mbit_per_s", i64::from(*mbit_per_s).into()),
    ]))
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
