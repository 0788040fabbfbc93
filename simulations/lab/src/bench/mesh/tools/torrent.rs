//! BitTorrent: a tracker and a seed at the origin, a peer at every node; aria2 or rasterbar libtorrent. Neither encrypts.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use axum::{Router, extract::ConnectInfo, extract::RawQuery, routing::get};

use super::{IMAGE, ORIGIN, Others, Prepared, installed};
use crate::{bench::find_program, demo::place::Place};

const TRACKER_PORT: u16 = 6969;
const PORT: u16 = 6881;
/// A torrent's pieces: 256 KiB as ours.
const PIECE_BYTES: usize = 256 << 10;
/// A member of a swarm, for the Python of [`python`].
const LIBTORRENT: &str = include_str!("libtorrent.py");

/// A Python that has libtorrent: Debian's is not always the first one found.
pub(super) fn python() -> Option<PathBuf> {
    let candidates = find_program("python3").into_iter().chain(["/usr/bin/python3".into()]);
    candidates.into_iter().find(|python| {
        let mut command = Command::new(python);
        command.args(["-c", "import libtorrent"]).stdin(Stdio::null());
        command.output().is_ok_and(|output| output.status.success())
    })
}

impl Others<'_> {
    /// A tracker and aria2 as seed.
    pub(super) async fn seed_with_aria2(&mut self) -> Result<Prepared> {
        let torrent = self.publish().await?;
        self.start_aria2(ORIGIN, &torrent, "--check-integrity=true")?;
        self.listens(ORIGIN, self.origin.ip, PORT).await?;
        Ok(Prepared::Aria2(torrent))
    }

    /// aria2 at every node; it begins at once.
    pub(super) fn start_aria2_peers(&mut self, torrent: &Path) -> Result<()> {
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let hook = self.home(&node).join("hook");
            fs::write(&hook, format!("#!/bin/sh\n: > '{}'\n", self.done(&node).display()))?;
            let executable = Command::new("chmod").arg("+x").arg(&hook).status()?;
            anyhow::ensure!(executable.success(), "{} cannot be made executable", hook.display());
            let told = format!("--on-bt-download-complete={}", hook.display());
            self.start_aria2(&node, torrent, &told)?;
        }
        Ok(())
    }

    /// A tracker, libtorrent as `role` at the origin, and at every node a peer that waits to be told.
    pub(super) async fn seed_with_libtorrent(&mut self, role: &str) -> Result<Prepared> {
        let torrent = self.publish().await?;
        self.start_libtorrent(ORIGIN, role, &torrent)?;
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.start_libtorrent(&node, "peer", &self.told())?;
        }
        for (node, place) in self.nodes.clone() {
            self.listens(&node, place.ip, PORT).await?;
        }
        self.listens(ORIGIN, self.origin.ip, PORT).await?;
        Ok(Prepared::Libtorrent(torrent))
    }

    /// The torrent appears where the peers look for it.
    pub(super) fn tell_libtorrent(&self, torrent: &Path) -> Result<()> {
        Ok(fs::hard_link(torrent, self.told())?)
    }

    fn told(&self) -> PathBuf {
        self.folder.join("told.torrent")
    }

    /// Starts the tracker, and lays torrent and image where the seed finds them.
    async fn publish(&mut self) -> Result<PathBuf> {
        let tracker = SocketAddr::new(self.origin.ip, TRACKER_PORT);
        let inside = self
            .origin
            .inside
            .clone()
            .context("the origin has no network of its own")?;
        let serve = async move {
            let listener = tokio::net::TcpListener::bind(tracker).await?;
            let service = track().into_make_service_with_connect_info::<SocketAddr>();
            let serving = tokio::spawn(async move { axum::serve(listener, service).await });
            Ok::<_, std::io::Error>(serving.abort_handle())
        };
        self.tracker = Some(inside.run(serve).await??);
        let torrent = self.folder.join("image.torrent");
        let announce = format!("http://{tracker}/announce");
        fs::write(&torrent, metainfo(&announce, &fs::read(self.image)?))?;
        fs::hard_link(self.image, self.home(ORIGIN).join(IMAGE))?;
        Ok(torrent)
    }

    fn start_aria2(&mut self, name: &str, torrent: &Path, more: &str) -> Result<()> {
        let mut args = aria2_args(&self.home(name), self.members());
        args.extend([more.to_owned(), torrent.display().to_string()]);
        self.start_member(name, installed("aria2c")?, args)
    }

    fn start_libtorrent(&mut self, name: &str, role: &str, torrent: &Path) -> Result<()> {
        let script = self.folder.join("libtorrent-member.py");
        if !script.exists() {
            fs::write(&script, LIBTORRENT)?;
        }
        let ip = self.member(name)?.ip;
        let (home, members) = (self.home(name), self.members());
        let args = libtorrent_args(&script, role, SocketAddr::new(ip, PORT), torrent, &home, members);
        self.start_member(name, python().context("python3-libtorrent is not installed")?, args)
    }

    fn start_member(&mut self, name: &str, program: PathBuf, args: Vec<String>) -> Result<()> {
        let place = self.member(name)?;
        let args = args.into_iter().map(Into::into).collect();
        self.processes.start_program(name, &place, program, args)
    }

    fn member(&self, name: &str) -> Result<Place> {
        match name {
            ORIGIN => Ok(self.origin.clone()),
            node => self.place(node),
        }
    }

    /// Of the swarm, with the seed.
    fn members(&self) -> u32 {
        self.topology.count() + 1
    }
}

fn aria2_args(home: &Path, members: u32) -> Vec<String> {
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
    let mut args = vec![
        format!("--dir={}", home.display()),
        format!("--listen-port={PORT}"),
        format!("--bt-max-peers={members}"),
    ];
    args.extend(fixed.map(str::to_owned));
    args
}

fn libtorrent_args(
    script: &Path,
    role: &str,
    listen: SocketAddr,
    torrent: &Path,
    home: &Path,
    members: u32,
) -> Vec<String> {
    vec![
        script.display().to_string(),
        role.to_owned(),
        listen.to_string(),
        torrent.display().to_string(),
        home.display().to_string(),
        members.to_string(),
    ]
}

/// A BitTorrent tracker (BEP 3 with the compact answers of BEP 23): whoever asks is told of all who asked before.
fn track() -> Router {
    let known = Arc::new(Mutex::new(Vec::<(Ipv4Addr, u16)>::new()));
    let announce = move |ConnectInfo(from): ConnectInfo<SocketAddr>, RawQuery(query): RawQuery| async move {
        let query = query.unwrap_or_default();
        let port = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("port=")?.parse::<u16>().ok());
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let (IpAddr::V4(ip), Some(port)) = (from.ip(), port)
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
    for piece in image.chunks(PIECE_BYTES) {
        // BitTorrent's first version knows no other hash.
        pieces.extend(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, piece).as_ref());
    }
    let mut info = format!(
        "d8:announce{}:{tracker}4:infod6:lengthi{}e4:name{}:{IMAGE}12:piece lengthi{PIECE_BYTES}e6:pieces{}:",
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
        let torrent = metainfo("http://t/announce", &[7; PIECE_BYTES + 1]);
        let text = String::from_utf8_lossy(&torrent);
        assert!(text.starts_with("d8:announce17:http://t/announce4:infod6:lengthi262145e4:name9:image.bin"));
        assert!(text.contains("12:piece lengthi262144e6:pieces40:"));
        assert!(torrent.ends_with(b"ee"));
    }

    #[test]
    fn nobody_is_found_but_by_the_tracker() {
        let aria2 = aria2_args(Path::new("/run/r1-n1"), 13);
        for arg in [
            "--enable-dht=false",
            "--bt-enable-lpd=false",
            "--bt-max-peers=13",
            "--dir=/run/r1-n1",
        ] {
            assert!(aria2.iter().any(|given| given == arg), "{arg}");
        }
        for setting in ["enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"] {
            assert!(LIBTORRENT.contains(&format!("\"{setting}\": False")), "{setting}");
        }
    }

    /// The script takes exactly what it is given, in this order.
    #[test]
    fn the_script_is_given_what_it_unpacks() {
        assert!(LIBTORRENT.contains("role, listen, torrent, folder, members = sys.argv[1:]"));
        let listen = SocketAddr::new([10, 77, 1, 1].into(), PORT);
        let [script, torrent, home] = ["/run/m.py", "/run/t", "/run/r1-n1"].map(Path::new);
        assert_eq!(
            libtorrent_args(script, "super-seed", listen, torrent, home, 13),
            [
                "/run/m.py",
                "super-seed",
                "10.77.1.1:6881",
                "/run/t",
                "/run/r1-n1",
                "13"
            ]
        );
    }
}
