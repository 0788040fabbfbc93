//! Racks made of network namespaces: a spine that joins the racks and the origin, a bridge per rack, a namespace per node,
//! joined by veth pairs whose ends are shaped and counted by `tc`. Nothing of it touches the machine's own network.
//!
//! Invariants: names are unique to this process and run; dropping a network removes what it made, and nothing else.

use std::{io::Write as _, net::Ipv4Addr, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use firmesh_simulations::mesh::Topology;
use serde::{Deserialize, Serialize};

use crate::demo::place::{Inside, Place};

/// The most that a link lets through at once: one of the largest packets that a sender hands down whole, and the next.
const BURST_BYTES: u64 = 80_000;
/// What a link queues before it drops.
const QUEUE_MS: u64 = 50;
/// The round trip to the origin.
const ORIGIN_RTT_MS: u64 = 20;

/// A network that stands.
#[derive(Debug)]
pub(super) struct Network {
    prefix: String,
    topology: Topology,
    namespaces: Vec<String>,
    /// Whether the kernel can delay packets: the origin is `ORIGIN_RTT_MS` away then, and next door otherwise.
    pub(super) is_delayed: bool,
}

/// Bytes that went over the links, headers included.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Counters {
    pub(super) origin_out: u64,
    /// By rack: in over the rack's uplink.
    pub(super) rack_in: Vec<u64>,
    pub(super) rack_out: Vec<u64>,
    /// By node, rack by rack.
    pub(super) node_in: Vec<u64>,
    pub(super) node_out: Vec<u64>,
    /// Packets that found a link's queue full, on all links together.
    pub(super) dropped: u64,
}

impl Counters {
    /// What went over since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let each = |now: &[u64], then: &[u64]| now.iter().zip(then).map(|(a, b)| a.saturating_sub(*b)).collect();
        Self {
            origin_out: self.origin_out.saturating_sub(before.origin_out),
            rack_in: each(&self.rack_in, &before.rack_in),
            rack_out: each(&self.rack_out, &before.rack_out),
            node_in: each(&self.node_in, &before.node_in),
            node_out: each(&self.node_out, &before.node_out),
            dropped: self.dropped.saturating_sub(before.dropped),
        }
    }
}

/// One line of `tc -s -j qdisc show`.
#[derive(Debug, Deserialize)]
struct Qdisc {
    #[serde(default)]
    dev: String,
    #[serde(default)]
    root: bool,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    drops: u64,
}

/// One end of a link: namespace, device.
type End<'a> = (&'a str, &'a str);

impl Network {
    /// Checks what the machine must have before anything is made.
    pub(super) fn check_machine() -> Result<()> {
        let own = std::fs::metadata("/proc/self").context("there is no /proc")?;
        ensure!(
            own.uid() == 0,
            "network namespaces need root; run it as root (a container needs CAP_NET_ADMIN and CAP_SYS_ADMIN)"
        );
        for tool in ["ip", "tc"] {
            ensure!(
                Command::new(tool).arg("-V").output().is_ok(),
                "{tool} is not installed; the package is iproute2"
            );
        }
        Ok(())
    }

    /// Builds the network. `run` tells networks of one process apart; `spare` more nodes per rack have links too.
    pub(super) fn build(topology: Topology, run: u32, spare: u32) -> Result<Self> {
        let mut network = Self {
            prefix: format!("firmesh{}-{run}", std::process::id()),
            topology,
            namespaces: Vec::new(),
            is_delayed: false,
        };
        let (spine, origin) = (network.name("spine"), network.name("origin"));
        network.bridge(&spine)?;
        network.namespace(&origin)?;
        link((&origin, "eth0"), (&spine, "origin"), topology.origin_mbit)?;
        join(&spine, "origin")?;
        let mut hosts = vec![(origin.clone(), network.origin_ip())];
        network.address(&origin, network.origin_ip())?;
        network.is_delayed = delay(&origin, "eth0")? && delay(&spine, "origin")?;
        for rack in 1..=topology.racks {
            let name = network.name(&format!("r{rack}"));
            network.bridge(&name)?;
            link((&name, "uplink"), (&spine, &format!("rack{rack}")), topology.rack_mbit)?;
            join(&name, "uplink")?;
            join(&spine, &format!("rack{rack}"))?;
            for number in 1..=topology.nodes + spare {
                let (node, port) = (network.name(&format!("r{rack}n{number}")), format!("node{number}"));
                network.namespace(&node)?;
                link((&node, "eth0"), (&name, &port), topology.node_mbit)?;
                join(&name, &port)?;
                network.address(&node, Self::node_ip(rack, number))?;
                hosts.push((node, Self::node_ip(rack, number)));
            }
        }
        introduce(&hosts)?;
        Ok(network)
    }

    /// Where the origin runs.
    pub(super) fn origin(&self) -> Result<Place> {
        Self::place(&self.name("origin"), self.origin_ip())
    }

    /// Where a node runs; racks and nodes count from 1.
    pub(super) fn node(&self, rack: u32, number: u32) -> Result<Place> {
        Self::place(&self.name(&format!("r{rack}n{number}")), Self::node_ip(rack, number))
    }

    fn place(namespace: &str, ip: Ipv4Addr) -> Result<Place> {
        Ok(Place {
            ip: ip.into(),
            inside: Some(Inside::enter(namespace)?),
        })
    }

    /// Another rate for one node's link.
    pub(super) fn set_node_rate(&self, rack: u32, number: u32, mbit: u64) -> Result<()> {
        let (node, port) = (self.name(&format!("r{rack}n{number}")), format!("node{number}"));
        shape((&node, "eth0"), "change", mbit)?;
        shape((&self.name(&format!("r{rack}")), &port), "change", mbit)
    }

    /// The rate of a node's link.
    pub(super) fn node_mbit(&self) -> u64 {
        self.topology.node_mbit
    }

    /// Cuts a rack's uplink, or mends it.
    pub(super) fn set_uplink(&self, rack: u32, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        tool(
            "ip",
            &["-n", &self.name("spine"), "link", "set", &format!("rack{rack}"), state],
        )
    }

    /// What the origin has sent so far.
    pub(super) fn origin_out(&self) -> Result<u64> {
        sent(&self.name("origin"), "eth0", &counted(&self.name("origin"))?)
    }

    /// What has gone to all nodes together so far.
    pub(super) fn arrived(&self) -> Result<u64> {
        let mut arrived = 0;
        for rack in 1..=self.topology.racks {
            let name = self.name(&format!("r{rack}"));
            let ports = counted(&name)?;
            for number in 1..=self.topology.nodes {
                arrived += sent(&name, &format!("node{number}"), &ports)?;
            }
        }
        Ok(arrived)
    }

    /// What has gone over every link so far.
    pub(super) fn counters(&self) -> Result<Counters> {
        let spine = counted(&self.name("spine"))?;
        let mut counters = Counters {
            origin_out: self.origin_out()?,
            dropped: drops(&spine) + drops(&counted(&self.name("origin"))?),
            ..Counters::default()
        };
        for rack in 1..=self.topology.racks {
            let name = self.name(&format!("r{rack}"));
            let ports = counted(&name)?;
            counters.dropped += drops(&ports);
            counters.rack_in.push(sent("spine", &format!("rack{rack}"), &spine)?);
            counters.rack_out.push(sent(&name, "uplink", &ports)?);
            for number in 1..=self.topology.nodes {
                let node = self.name(&format!("r{rack}n{number}"));
                counters.node_in.push(sent(&name, &format!("node{number}"), &ports)?);
                let own = counted(&node)?;
                counters.dropped += drops(&own);
                counters.node_out.push(sent(&node, "eth0", &own)?);
            }
        }
        Ok(counters)
    }

    fn name(&self, part: &str) -> String {
        format!("{}-{part}", self.prefix)
    }

    fn origin_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 1)
    }

    fn node_ip(rack: u32, number: u32) -> Ipv4Addr {
        let byte = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
        Ipv4Addr::new(10, 77, byte(rack), byte(number))
    }

    fn namespace(&mut self, name: &str) -> Result<()> {
        tool("ip", &["netns", "add", name])?;
        self.namespaces.push(name.to_owned());
        tool("ip", &["-n", name, "link", "set", "lo", "up"])
    }

    fn bridge(&mut self, name: &str) -> Result<()> {
        self.namespace(name)?;
        tool(
            "ip",
            &[
                "-n",
                name,
                "link",
                "add",
                "bridge",
                "type",
                "bridge",
                "mcast_snooping",
                "0",
            ],
        )?;
        // A switch does not ask a firewall about every frame.
        if Path::new("/proc/sys/net/bridge").exists() {
            let off = "net.bridge.bridge-nf-call-iptables=0";
            tool("ip", &["netns", "exec", name, "sysctl", "-q", "-w", off])?;
        }
        tool(
            "ip",
            &["-n", name, "link", "set", "bridge", "addrgenmode", "none", "up"],
        )
    }

    fn address(&self, namespace: &str, ip: Ipv4Addr) -> Result<()> {
        tool("ip", &["-n", namespace, "link", "set", "eth0", "address", &mac(ip)])?;
        tool(
            "ip",
            &["-n", namespace, "addr", "add", &format!("{ip}/16"), "dev", "eth0"],
        )
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in self.namespaces.iter().rev() {
            if let Err(error) = tool("ip", &["netns", "del", namespace]) {
                tracing::warn!(namespace, %error, "a network namespace was left behind");
            }
        }
    }
}

/// Tells every host where every other one is. The kernel's table of neighbours is one for all namespaces, and holds a
/// thousand that it had to find: 36 nodes that all talk to each other are more.
fn introduce(hosts: &[(String, Ipv4Addr)]) -> Result<()> {
    for (namespace, own) in hosts {
        let others = hosts.iter().filter(|(_, ip)| ip != own);
        let lines: String = others
            .map(|(_, ip)| format!("neigh replace {ip} lladdr {} dev eth0 nud permanent\n", mac(*ip)))
            .collect();
        let mut batch = tempfile::NamedTempFile::new().context("no temporary file")?;
        batch.write_all(lines.as_bytes()).context("no temporary file")?;
        let path = batch.path().to_string_lossy();
        tool("ip", &["-n", namespace, "-batch", &path])?;
    }
    Ok(())
}

/// A locally administered address.
fn mac(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// A veth pair, both ends shaped and up.
fn link(one: End<'_>, other: End<'_>, mbit: u64) -> Result<()> {
    let pair = ["type", "veth", "peer", "name", other.1, "netns", other.0];
    tool("ip", &[&["-n", one.0, "link", "add", one.1][..], &pair].concat())?;
    for end in [one, other] {
        shape(end, "add", mbit)?;
        tool("ip", &["-n", end.0, "link", "set", end.1, "addrgenmode", "none", "up"])?;
    }
    Ok(())
}

fn shape(end: End<'_>, verb: &str, mbit: u64) -> Result<()> {
    let (rate, burst) = (format!("{mbit}mbit"), BURST_BYTES.to_string());
    let queue = (mbit * QUEUE_MS * 1_000 / 8 + BURST_BYTES).to_string();
    let tbf = [
        "root", "handle", "1:", "tbf", "rate", &rate, "burst", &burst, "limit", &queue,
    ];
    tool("tc", &[&["-n", end.0, "qdisc", verb, "dev", end.1][..], &tbf].concat())
}

/// Delays what leaves; false if the kernel was built without `netem`.
fn delay(namespace: &str, device: &str) -> Result<bool> {
    let span = format!("{}ms", ORIGIN_RTT_MS / 2);
    let netem = [
        "parent", "1:", "handle", "10:", "netem", "delay", &span, "limit", "1000",
    ];
    let added = tool(
        "tc",
        &[&["-n", namespace, "qdisc", "add", "dev", device][..], &netem].concat(),
    );
    match added {
        Ok(()) => Ok(true),
        Err(error) if error.to_string().contains("unknown") => Ok(false),
        Err(error) => Err(error),
    }
}

fn join(bridge: &str, port: &str) -> Result<()> {
    tool("ip", &["-n", bridge, "link", "set", port, "master", "bridge"])
}

fn counted(namespace: &str) -> Result<Vec<Qdisc>> {
    let output = Command::new("tc")
        .args(["-n", namespace, "-s", "-j", "qdisc", "show"])
        .output()
        .context("tc cannot be run")?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("tc says nothing of {namespace}'s links"))
}

fn drops(counted: &[Qdisc]) -> u64 {
    counted.iter().filter(|qdisc| qdisc.root).map(|qdisc| qdisc.drops).sum()
}

fn sent(namespace: &str, device: &str, counted: &[Qdisc]) -> Result<u64> {
    let found = counted.iter().find(|qdisc| qdisc.root && qdisc.dev == device);
    found
        .map(|qdisc| qdisc.bytes)
        .with_context(|| format!("{namespace} has no link {device}"))
}

fn tool(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(Path::new(program))
        .args(args)
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed: {}", args.join(" "), said.trim());
    }
    Ok(())
}
