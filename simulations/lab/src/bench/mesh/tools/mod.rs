//! Other people's tools on the same network: what is installed is measured, what is missing is named.

mod chain;
mod http;
mod strike;
mod torrent;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use firmesh_simulations::mesh::{Fault, Topology};
use tokio::task::AbortHandle;

use self::strike::Strike;
use super::{
    Contender,
    network::Network,
    report::{Outcome, Usage},
};
use crate::{
    bench::find_program,
    demo::{place::Place, processes::Processes},
};

/// Between two looks at what the tools have finished.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two looks at processes and links, which cost more.
const COUNT_EVERY: Duration = Duration::from_millis(250);
/// How long a tool may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
const ORIGIN: &str = "coordinator";
const IMAGE: &str = "image.bin";

/// Programs that a contender needs and that are not installed.
pub(super) fn missing(contender: Contender) -> Vec<&'static str> {
    let programs: &[&str] = match contender {
        Contender::Firmesh | Contender::FirmeshBeside | Contender::FirmeshBackground => &[],
        Contender::Aria2 => &["aria2c"],
        Contender::Libtorrent | Contender::LibtorrentSuperSeed => {
            return match torrent::python() {
                Some(_) => Vec::new(),
                None => vec!["python3-libtorrent"],
            };
        }
        Contender::Chain => &["socat", "tee"],
        Contender::NginxCache | Contender::Curl => &["nginx", "curl"],
    };
    programs
        .iter()
        .copied()
        .filter(|program| find_program(program).is_none())
        .collect()
}

/// Why a fault cannot be measured with another tool.
pub(super) fn refusal(contender: Contender, fault: Fault) -> Option<String> {
    let why = match (contender, fault) {
        (Contender::Firmesh | Contender::FirmeshBackground, _) => return None,
        (Contender::FirmeshBeside, _) => "two images at once are measured without faults",
        (Contender::Chain, Fault::OriginKilled) => {
            "the origin is killed once more than one image has left it, and a chain takes no more than one"
        }
        (_, Fault::OriginKilled | Fault::PeersKilled) => return None,
        _ => "other tools are measured with origin-killed and peers-killed only",
    };
    Some(format!(
        "--peers {} is not measured with this --fault: {why}",
        contender.name()
    ))
}

fn installed(program: &str) -> Result<PathBuf> {
    find_program(program).with_context(|| format!("{program} is not installed"))
}

/// The members of one tool's swarm, and their processes. A node's first process has its name, any other one that name and an
/// ending after a dot.
struct Others<'a> {
    topology: &'a Topology,
    processes: Processes,
    origin: Place,
    /// By name; rack by rack in this order too.
    nodes: BTreeMap<String, Place>,
    /// Names of processes beside the origin's and the nodes' own.
    more: Vec<String>,
    /// What runs inside this process, for the origin.
    tracker: Option<AbortHandle>,
    folder: &'a Path,
    image: &'a Path,
}

/// What stands before the clock runs; the nodes are told then.
enum Prepared {
    /// Where each node fetches from.
    Http(BTreeMap<String, String>),
    Aria2(PathBuf),
    Libtorrent(PathBuf),
    Chain,
}

/// One measurement of a tool that is installed. `folder` is empty and stays the caller's.
pub(super) async fn run(
    contender: Contender,
    network: &Network,
    topology: &Topology,
    image: &Path,
    folder: &Path,
    fault: Option<Fault>,
    limit: Duration,
) -> Result<Outcome> {
    let mut others = Others::new(network, topology, image, folder)?;
    let prepared = match contender {
        Contender::Firmesh | Contender::FirmeshBeside | Contender::FirmeshBackground => {
            bail!("firmesh is not another tool")
        }
        Contender::Aria2 => others.seed_with_aria2().await?,
        Contender::Libtorrent => others.seed_with_libtorrent("seed").await?,
        Contender::LibtorrentSuperSeed => others.seed_with_libtorrent("super-seed").await?,
        Contender::Chain => others.link_up().await?,
        Contender::NginxCache => others.serve_caches().await?,
        Contender::Curl => others.serve_http().await?,
    };
    let before = network.counters()?;
    let mut strike = Strike::new(fault, &before, topology);
    let mut usage = Usage::begin(&others.pids());
    let (begun, at) = (Instant::now(), SystemTime::now());
    match prepared {
        Prepared::Http(sources) => others.start_curls(&sources)?,
        Prepared::Aria2(torrent) => others.start_aria2_peers(&torrent)?,
        Prepared::Libtorrent(torrent) => others.tell_libtorrent(&torrent)?,
        Prepared::Chain => others.feed_chain()?,
    }
    let (mut finished, mut counted) = (BTreeMap::new(), Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        others.processes.check()?;
        others.note_finished(at, &mut finished);
        let is_missed = |node: &String| !strike.is_dead(node) && !finished.contains_key(node);
        if !others.nodes.keys().any(is_missed) || begun.elapsed() > limit || strike.nothing_moves() {
            break;
        }
        if counted.elapsed() >= COUNT_EVERY {
            usage.look(&others.pids());
            strike.look(network, &mut others)?;
            counted = Instant::now();
        }
    }
    let waited_s = begun.elapsed().as_secs_f64();
    let moved = network.counters()?.since(&before);
    let usage = usage.end(&others.pids());
    others.end_tracker();
    others.processes.stop_all();
    if let Some(fault) = strike.is_still_to_come() {
        eprintln!("{}: all was over before {fault:?} could strike", contender.name());
    }
    finished.retain(|node, _| !strike.is_dead(node));
    for node in finished.keys() {
        others.check(node)?;
    }
    let nodes = others.nodes.keys().filter(|node| !strike.is_dead(node)).count();
    Ok(Outcome {
        nodes,
        complete: finished.len(),
        first_s: finished.values().copied().fold(f64::INFINITY, f64::min),
        last_s: match finished.len() == nodes {
            true => finished.values().copied().fold(0.0, f64::max),
            false => waited_s,
        },
        heard_s: 0.0,
        fetched_again: 0,
        verification_failures: 0,
        finished,
        usage,
        wire: moved,
        middle: None,
    })
}

impl<'a> Others<'a> {
    fn new(network: &Network, topology: &'a Topology, image: &'a Path, folder: &'a Path) -> Result<Self> {
        let mut nodes = BTreeMap::new();
        for rack in 1..=topology.racks {
            for number in 1..=topology.nodes {
                nodes.insert(node_name(rack, number), network.node(rack, number)?);
            }
        }
        let others = Self {
            topology,
            processes: Processes::new(&folder.join("logs"))?,
            origin: network.origin()?,
            nodes,
            more: Vec::new(),
            tracker: None,
            folder,
            image,
        };
        for name in others.nodes.keys().map(String::as_str).chain([ORIGIN]) {
            fs::create_dir_all(others.home(name))?;
        }
        Ok(others)
    }

    fn pids(&self) -> BTreeMap<String, u32> {
        let names = self.nodes.keys().chain(&self.more).map(String::as_str).chain([ORIGIN]);
        names
            .filter_map(|name| Some((name.to_owned(), self.processes.id(name)?)))
            .collect()
    }

    fn home(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn done(&self, node: &str) -> PathBuf {
        self.home(node).join("done")
    }

    fn place(&self, node: &str) -> Result<Place> {
        self.nodes
            .get(node)
            .cloned()
            .with_context(|| format!("there is no node {node}"))
    }

    /// Nodes that are done, with the seconds since `begun`: each tool's own hook writes a file when the last byte is there.
    fn note_finished(&self, begun: SystemTime, finished: &mut BTreeMap<String, f64>) {
        for node in self.nodes.keys().filter(|node| self.done(node).exists()) {
            let done = self.done(node).metadata().and_then(|metadata| metadata.modified());
            if let Ok(done) = done {
                let after = done.duration_since(begun).unwrap_or_default();
                finished.entry(node.clone()).or_insert(after.as_secs_f64());
            }
        }
    }

    /// The tool has the same bytes as we had.
    fn check(&self, node: &str) -> Result<()> {
        let file = self.home(node).join(IMAGE);
        let same = Command::new("cmp").arg("-s").args([self.image, &file]).status()?;
        anyhow::ensure!(
            same.success(),
            "{node} has other bytes than the origin: {}",
            file.display()
        );
        Ok(())
    }

    /// A shell that runs a script in a node's folder and stays, so that the node is there to be killed.
    fn start_script(&mut self, node: &str, script: &str) -> Result<()> {
        let script = format!("cd '{}' && {script}; exec sleep 100000", self.home(node).display());
        let place = self.place(node)?;
        self.processes
            .start_program(node, &place, "/bin/sh".into(), vec!["-c".into(), script.into()])
    }

    /// Kills all of a node.
    fn kill_node(&mut self, node: &str) -> Result<()> {
        let beside = format!("{node}.");
        for name in self.more.iter().filter(|name| name.starts_with(&beside)) {
            self.processes.kill(name)?;
        }
        self.processes.kill(node)
    }

    /// Kills all of the origin.
    fn kill_origin(&mut self) -> Result<()> {
        self.end_tracker();
        self.processes.kill(ORIGIN)
    }

    fn end_tracker(&mut self) {
        if let Some(tracker) = self.tracker.take() {
            tracker.abort();
        }
    }

    /// Waits until a process listens. Nobody connects for it: some tools take the first connection for the only one.
    async fn listens(&mut self, name: &str, ip: IpAddr, port: u16) -> Result<()> {
        let IpAddr::V4(ip) = ip else {
            bail!("{ip} is no address of the network")
        };
        let pid = self
            .processes
            .id(name)
            .with_context(|| format!("{name} does not run"))?;
        let deadline = Instant::now() + LISTENS_WITHIN;
        loop {
            let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
            if is_listening(&sockets, ip, port) {
                return Ok(());
            }
            self.processes.check()?;
            anyhow::ensure!(
                Instant::now() < deadline,
                "{name} does not listen on {ip}:{port} after {LISTENS_WITHIN:?}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn node_name(rack: u32, number: u32) -> String {
    format!("r{rack}-n{number}")
}

/// Whether the kernel's table of sockets (`/proc/net/tcp`) has one that listens there, or at any address.
fn is_listening(sockets: &str, ip: Ipv4Addr, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let local = [ip, Ipv4Addr::UNSPECIFIED].map(|ip| format!("{:08X}:{port:04X}", u32::from_ne_bytes(ip.octets())));
    sockets.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let at = fields.get(1).copied().unwrap_or_default();
        local.iter().any(|local| local == at) && fields.get(3) == Some(&LISTEN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_tools_know_two_faults() {
        use Contender::{Aria2, Chain, Firmesh, FirmeshBeside, Libtorrent, NginxCache};
        for fault in [Fault::OriginKilled, Fault::PeersKilled] {
            for tool in [Firmesh, Aria2, Libtorrent, NginxCache] {
                assert_eq!(refusal(tool, fault), None);
            }
            assert!(refusal(FirmeshBeside, fault).is_some());
        }
        assert_eq!(refusal(Chain, Fault::PeersKilled), None);
        assert!(refusal(Chain, Fault::OriginKilled).is_some_and(|why| why.contains("--peers chain")));
        assert_eq!(refusal(Firmesh, Fault::UplinkCut), None);
        assert!(refusal(Aria2, Fault::UplinkCut).is_some_and(|why| why.contains("peers-killed only")));
    }

    #[tokio::test]
    async fn a_listener_is_seen_in_the_kernels_table() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let sockets = fs::read_to_string("/proc/self/net/tcp").expect("Linux");
        assert!(is_listening(&sockets, Ipv4Addr::LOCALHOST, port));
        assert!(!is_listening(&sockets, Ipv4Addr::new(10, 77, 0, 1), port));
    }
}
