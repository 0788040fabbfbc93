//! Other people's tools on the same network: what is installed is measured, what is missing is named.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use axum::{Router, extract::RawQuery, routing::get};

use firmesh_simulations::mesh::Topology;

use super::{
    Contender,
    network::Network,
    report::{Outcome, Usage},
};
use crate::{
    bench::find_program,
    demo::{place::Place, processes::Processes},
};

/// Between two looks at the tools.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a tool may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
const ORIGIN: &str = "coordinator";
const IMAGE: &str = "image.bin";
const HTTP_PORT: u16 = 8080;
const TRACKER_PORT: u16 = 6969;
const BITTORRENT_PORT: u16 = 6881;
/// A torrent's pieces: 256 KiB as ours.
const TORRENT_PIECE_BYTES: usize = 256 << 10;

/// Programs that a contender needs and that are not installed.
pub(super) fn missing(contender: Contender) -> Vec<&'static str> {
    let programs: &[&str] = match contender {
        Contender::Firmesh | Contender::FirmeshBeside => &[],
        Contender::Curl => &["nginx", "curl"],
        Contender::Aria2 => &["aria2c"],
    };
    programs
        .iter()
        .copied()
        .filter(|program| find_program(program).is_none())
        .collect()
}

/// A swarm of one tool.
struct Others<'a> {
    topology: &'a Topology,
    processes: Processes,
    origin: Place,
    /// By name.
    nodes: BTreeMap<String, Place>,
    folder: &'a Path,
    image: &'a Path,
}

/// One measurement of a tool that is installed. `folder` is empty and stays the caller's.
pub(super) async fn run(
    contender: Contender,
    network: &Network,
    topology: &Topology,
    image: &Path,
    folder: &Path,
    limit: Duration,
) -> Result<Outcome> {
    let mut nodes = BTreeMap::new();
    for rack in 1..=topology.racks {
        for number in 1..=topology.nodes {
            nodes.insert(format!("r{rack}-n{number}"), network.node(rack, number)?);
        }
    }
    let mut others = Others {
        topology,
        processes: Processes::new(&folder.join("logs"))?,
        origin: network.origin()?,
        nodes,
        folder,
        image,
    };
    let prepared = match contender {
        Contender::Firmesh | Contender::FirmeshBeside => bail!("firmesh is not another tool"),
        Contender::Curl => others.serve_http().await?,
        Contender::Aria2 => others.seed().await?,
    };
    let before = network.counters()?;
    let mut usage = Usage::begin(&others.pids());
    let (begun, at) = (Instant::now(), SystemTime::now());
    match prepared {
        Prepared::Http => others.start_curls()?,
        Prepared::Torrent(torrent) => others.start_peers(&torrent)?,
    }
    let mut finished = BTreeMap::new();
    while finished.len() < others.nodes.len() && begun.elapsed() < limit {
        tokio::time::sleep(LOOK_EVERY).await;
        usage.look(&others.pids());
        for node in others.nodes.keys() {
            // Written by the tool's own hook when the last byte is there.
            let done = others.done(node).metadata().and_then(|metadata| metadata.modified());
            if let Ok(done) = done {
                let after = done.duration_since(at).unwrap_or_default();
                finished.entry(node.clone()).or_insert(after.as_secs_f64());
            }
        }
    }
    let moved = network.counters()?.since(&before);
    let usage = usage.end(&others.pids());
    for node in finished.keys() {
        others.check(node)?;
    }
    others.processes.stop_all();
    Ok(Outcome {
        nodes: others.nodes.len(),
        complete: finished.len(),
        first_s: finished.values().copied().fold(f64::INFINITY, f64::min),
        last_s: match finished.len() == others.nodes.len() {
            true => finished.values().copied().fold(0.0, f64::max),
            false => limit.as_secs_f64(),
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

/// What the nodes are told.
enum Prepared {
    Http,
    Torrent(PathBuf),
}

impl Others<'_> {
    fn pids(&self) -> BTreeMap<String, u32> {
        let names = self.nodes.keys().map(String::as_str).chain([ORIGIN]);
        names
            .filter_map(|name| Some((name.to_owned(), self.processes.id(name)?)))
            .collect()
    }

    fn home(&self, node: &str) -> PathBuf {
        self.folder.join(node)
    }

    fn done(&self, node: &str) -> PathBuf {
        self.home(node).join("done")
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

    async fn serve_http(&mut self) -> Result<Prepared> {
        let home = self.home(ORIGIN);
        fs::create_dir_all(&home)?;
        let listen = SocketAddr::new(self.origin.ip, HTTP_PORT);
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {0}/{name};", home.display()))
            .collect();
        let root = self.image.parent().context("the image lies nowhere")?;
        let config = format!(
            "user root; daemon off; master_process off; pid {0}/pid; error_log {0}/error.log; \
             events {{ worker_connections 1024; }} \
             http {{ access_log off; sendfile on; {temp} server {{ listen {listen}; root {1}; }} }}",
            home.display(),
            root.display()
        );
        let file = home.join("nginx.conf");
        fs::write(&file, config)?;
        let program = find_program("nginx").context("nginx is not installed")?;
        let args = vec!["-c".into(), file.into(), "-p".into(), home.into()];
        self.processes.start_program(ORIGIN, &self.origin, program, args)?;
        self.listens(listen).await?;
        Ok(Prepared::Http)
    }

    fn start_curls(&mut self) -> Result<()> {
        let url = format!("http://{}:{HTTP_PORT}/{IMAGE}", self.origin.ip);
        for (node, place) in self.nodes.clone() {
            let home = self.home(&node);
            fs::create_dir_all(&home)?;
            let script = format!(
                "cd '{}' && curl -sSf -o {IMAGE} {url} && : > done; exec sleep 100000",
                home.display()
            );
            let args = vec!["-c".into(), script.into()];
            self.processes.start_program(&node, &place, "/bin/sh".into(), args)?;
        }
        Ok(())
    }

    /// A tracker and a seed, at the origin.
    async fn seed(&mut self) -> Result<Prepared> {
        let tracker = SocketAddr::new(self.origin.ip, TRACKER_PORT);
        let inside = self
            .origin
            .inside
            .clone()
            .context("the origin has no network of its own")?;
        let serve = async move {
            let listener = tokio::net::TcpListener::bind(tracker).await?;
            tokio::spawn(async move {
                {
                    let service = track().into_make_service_with_connect_info::<SocketAddr>();
                    axum::serve(listener, service).await
                }
            });
            Ok::<_, std::io::Error>(())
        };
        inside.run(serve).await??;
        let torrent = self.folder.join("image.torrent");
        fs::write(
            &torrent,
            metainfo(&format!("http://{tracker}/announce"), &fs::read(self.image)?),
        )?;
        let home = self.home(ORIGIN);
        fs::create_dir_all(&home)?;
        fs::hard_link(self.image, home.join(IMAGE))?;
        self.start_aria2(ORIGIN, &self.origin.clone(), &torrent, &["--check-integrity=true"])?;
        self.listens(SocketAddr::new(self.origin.ip, BITTORRENT_PORT)).await?;
        Ok(Prepared::Torrent(torrent))
    }

    fn start_peers(&mut self, torrent: &Path) -> Result<()> {
        for (node, place) in self.nodes.clone() {
            let home = self.home(&node);
            fs::create_dir_all(&home)?;
            let hook = home.join("hook");
            fs::write(&hook, format!("#!/bin/sh\n: > '{}'\n", self.done(&node).display()))?;
            let executable = Command::new("chmod").arg("+x").arg(&hook).status()?;
            anyhow::ensure!(executable.success(), "{} cannot be made executable", hook.display());
            let told = format!("--on-bt-download-complete={}", hook.display());
            self.start_aria2(&node, &place, torrent, &[&told])?;
        }
        Ok(())
    }

    fn start_aria2(&mut self, name: &str, place: &Place, torrent: &Path, more: &[&str]) -> Result<()> {
        let mut args = vec![
            format!("--dir={}", self.home(name).display()),
            format!("--listen-port={BITTORRENT_PORT}"),
            format!("--bt-max-peers={}", self.topology.count() + 1),
        ];
        let fixed = [
            "--no-conf=true",
            "--enable-dht=false",
            "--enable-peer-exchange=true",
            "--bt-enable-lpd=false",
            "--seed-ratio=0.0",
            "--file-allocation=none",
            "--allow-overwrite=true",
            "--bt-tracker-interval=2",
            "--bt-request-peer-speed-limit=1000M",
            "--summary-interval=0",
            "--console-log-level=warn",
        ];
        args.extend(fixed.iter().chain(more).map(|arg| (*arg).to_owned()));
        args.push(torrent.display().to_string());
        let program = find_program("aria2c").context("aria2c is not installed")?;
        let args = args.into_iter().map(Into::into).collect();
        self.processes.start_program(name, place, program, args)
    }

    /// Waits until the origin's program listens.
    async fn listens(&mut self, at: SocketAddr) -> Result<()> {
        let inside = self
            .origin
            .inside
            .clone()
            .context("the origin has no network of its own")?;
        let deadline = Instant::now() + LISTENS_WITHIN;
        while inside.run(tokio::net::TcpStream::connect(at)).await?.is_err() {
            self.processes.check()?;
            anyhow::ensure!(
                Instant::now() < deadline,
                "nothing listens on {at} after {LISTENS_WITHIN:?}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// A BitTorrent tracker (BEP 3 with the compact answers of BEP 23): whoever asks is told of all who asked before.
fn track() -> Router {
    let known = Arc::new(Mutex::new(Vec::<(Ipv4Addr, u16)>::new()));
    let announce = move |axum::extract::ConnectInfo(from): axum::extract::ConnectInfo<SocketAddr>,
                         RawQuery(query): RawQuery| async move {
        let query = query.unwrap_or_default();
        let port = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("port=")?.parse::<u16>().ok());
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let (std::net::IpAddr::V4(ip), Some(port)) = (from.ip(), port)
            && !known.contains(&(ip, port))
        {
            known.push((ip, port));
        }
        let mut answer = format!("d8:intervali2e12:min intervali1e5:peers{}:", known.len() * 6).into_bytes();
        for (ip, port) in known.iter() {
            answer.extend(ip.octets());
            answer.extend(port.to_be_bytes());
        }
        answer.push(b'e');
        answer
    };
    Router::new().route("/announce", get(announce))
}

/// A `.torrent` of one file (BEP 3).
fn metainfo(tracker: &str, image: &[u8]) -> Vec<u8> {
    let mut pieces: Vec<u8> = Vec::new();
    for piece in image.chunks(TORRENT_PIECE_BYTES) {
        // BitTorrent's first version knows no other hash.
        pieces.extend(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, piece).as_ref());
    }
    let mut info = format!(
        "d8:announce{}:{tracker}4:infod6:lengthi{}e4:name{}:{IMAGE}12:piece lengthi{TORRENT_PIECE_BYTES}e6:pieces{}:",
        tracker.len(),
        image.len(),
        IMAGE.len(),
        pieces.len()
    )
    .into_bytes();
    info.extend(pieces);
    info.extend(b"ee");
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_is_bencoded() {
        let torrent = metainfo("http://t/announce", &[7; TORRENT_PIECE_BYTES + 1]);
        let text = String::from_utf8_lossy(&torrent);
        assert!(text.starts_with("d8:announce17:http://t/announce4:infod6:lengthi262145e4:name9:image.bin"));
        assert!(text.contains("12:piece lengthi262144e6:pieces40:"));
        assert!(torrent.ends_with(b"ee"));
    }
}
