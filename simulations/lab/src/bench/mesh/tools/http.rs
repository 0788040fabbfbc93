//! HTTP: nginx at the origin, curl at the nodes, and, if asked, a cache at the first node of every rack.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{IMAGE, ORIGIN, Others, Prepared, installed, node_name};
use crate::demo::place::Place;

const ORIGIN_PORT: u16 = 8080;
const CACHE_PORT: u16 = 8081;
/// What a cache fetches at once, where nginx can fetch slices.
const SLICE_MIB: u32 = 1;

impl Others<'_> {
    /// nginx at the origin, which everybody fetches from.
    pub(super) async fn serve_http(&mut self) -> Result<Prepared> {
        self.start_origin().await?;
        let url = self.origin_url();
        Ok(Prepared::Http(
            self.nodes.keys().map(|node| (node.clone(), url.clone())).collect(),
        ))
    }

    /// nginx at the origin, and a cache in each rack, which the rack's nodes fetch from.
    pub(super) async fn serve_caches(&mut self) -> Result<Prepared> {
        self.start_origin().await?;
        let slices = Command::new(installed("nginx")?).arg("-V").output()?.stderr;
        let slices = String::from_utf8_lossy(&slices).contains("http_slice_module");
        let origin = SocketAddr::new(self.origin.ip, ORIGIN_PORT);
        let mut sources = BTreeMap::new();
        for rack in 1..=self.topology.racks {
            let first = node_name(rack, 1);
            let (name, place) = (format!("{first}.cache"), self.place(&first)?);
            let listen = SocketAddr::new(place.ip, CACHE_PORT);
            let home = self.home(&name);
            fs::create_dir_all(&home)?;
            self.start_nginx(&name, &place, &cache_server(&home, listen, origin, slices))?;
            self.more.push(name.clone());
            self.listens(&name, place.ip, CACHE_PORT).await?;
            let nodes = (1..=self.topology.nodes).map(|number| node_name(rack, number));
            sources.extend(nodes.map(|node| (node, format!("http://{listen}/{IMAGE}"))));
        }
        Ok(Prepared::Http(sources))
    }

    /// Everybody fetches at once.
    pub(super) fn start_curls(&mut self, sources: &BTreeMap<String, String>) -> Result<()> {
        for (node, url) in sources {
            self.start_script(node, &format!("curl -sSf -o {IMAGE} {url} && : > done"))?;
        }
        Ok(())
    }

    fn origin_url(&self) -> String {
        format!("http://{}/{IMAGE}", SocketAddr::new(self.origin.ip, ORIGIN_PORT))
    }

    async fn start_origin(&mut self) -> Result<()> {
        let place = self.origin.clone();
        let root = self.image.parent().context("the image lies nowhere")?;
        let listen = SocketAddr::new(place.ip, ORIGIN_PORT);
        let server = format!("server {{ listen {listen}; root {}; }}", root.display());
        self.start_nginx(ORIGIN, &place, &server)?;
        self.listens(ORIGIN, place.ip, ORIGIN_PORT).await
    }

    fn start_nginx(&mut self, name: &str, place: &Place, server: &str) -> Result<()> {
        let home = self.home(name);
        let file = home.join("nginx.conf");
        fs::write(&file, config(&home, server))?;
        let args = vec!["-c".into(), file.into(), "-p".into(), home.into()];
        self.processes.start_program(name, place, installed("nginx")?, args)
    }
}

/// A whole nginx around one server.
fn config(home: &Path, server: &str) -> String {
    let home = home.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {home}/{name};\n"))
        .collect();
    format!(
        "user root; daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\naccess_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;\n{temp}{server}\n}}\n"
    )
}

/// A cache that fetches from the origin once, whoever asks how often. With `slices` it serves what it has while it fills;
/// without, everybody but the first waits for the whole.
fn cache_server(home: &Path, listen: SocketAddr, origin: SocketAddr, slices: bool) -> String {
    let folder: PathBuf = home.join("cache");
    let (slice, key) = match slices {
        true => (
            format!("slice {SLICE_MIB}m; proxy_set_header Range $slice_range;"),
            "$uri$slice_range",
        ),
        false => (String::new(), "$uri"),
    };
    format!(
        "proxy_cache_path {} levels=1:2 keys_zone=images:1m inactive=1d use_temp_path=off;\n\
         upstream origin {{ server {origin}; keepalive 16; }}\n\
         server {{ listen {listen}; location / {{\n\
         proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\"; {slice}\n\
         proxy_cache images; proxy_cache_key {key}; proxy_cache_valid 200 206 1d;\n\
         proxy_cache_lock on; proxy_cache_lock_age 1h; proxy_cache_lock_timeout 1h;\n\
         }} }}",
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_asks_once_and_in_slices_where_it_can() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (listen, origin) = (at("10.77.1.1:8081"), at("10.77.0.1:8080"));
        let sliced = cache_server(Path::new("/run/c"), listen, origin, true);
        assert!(sliced.contains("slice 1m;") && sliced.contains("proxy_cache_key $uri$slice_range;"));
        let whole = cache_server(Path::new("/run/c"), listen, origin, false);
        assert!(!whole.contains("slice") && whole.contains("proxy_cache_key $uri;"));
        for server in [sliced, whole] {
            let config = config(Path::new("/run/c"), &server);
            assert!(config.contains("proxy_cache_lock on;") && config.contains("proxy_cache_lock_timeout 1h;"));
            assert!(config.contains("listen 10.77.1.1:8081;") && config.contains("server 10.77.0.1:8080;"));
            assert_eq!(config.matches('{').count(), config.matches('}').count(), "{config}");
        }
    }
}
