//! The configuration files of a test's fleet, and how its processes come up.

use std::{fmt::Write as _, fs, path::Path, sync::Once, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::ids::Sha256;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    binaries::Program,
    cluster::Shape,
    operator::Operator,
    process::Process,
    wait::{Seen, until},
};

/// Whoever makes the devices.
pub const VENDOR: &str = "Acme";
/// The devices' model.
pub const MODEL: &str = "R1";
/// What devices run at first.
pub const OLD: &str = "1.0.0";
/// What campaigns bring.
pub const NEW: &str = "1.1.0";
/// What some bring after that.
pub const NEXT: &str = "1.2.0";

/// Starting takes long when two fleets start on two cores.
pub(crate) const START_WITHIN: Duration = Duration::from_secs(60);

/// The name the command line gives to a release of our devices.
#[must_use]
pub fn release_name(component: &str, version: &str) -> String {
    format!("firmware/acme-r1-{component}-{version}")
}

/// Stages a release in the operator's trust folder.
pub fn stage_release(operator: &Operator, file: &str, model: &str, component: &str, version: &str) -> Result<Value> {
    operator.ok(&[
        "release",
        "create",
        "--file",
        file,
        "--vendor",
        VENDOR,
        "--model",
        model,
        "--component",
        component,
        "--release-version",
        version,
    ])
}

/// The rules of most campaigns here: canary, one device of a rack at a time, no patience with failures.
#[must_use]
pub fn rules(per_rack: u32, deadlines: (u32, u32)) -> String {
    let (attempt_s, back_s) = deadlines;
    format!(
        "strategy = {{ kind = \"canary\", shares = [1000, 5000, 10000] }}\n\
         caps = {{ per_rack = {per_rack}, total = 100 }}\n\
         gate = {{ advance = 9900, rollback = 9000, sample_min = 1, soak_s = 0 }}\n\
         deadlines = {{ attempt_s = {attempt_s}, back_s = {back_s} }}"
    )
}

/// The head of a `node.toml`.
#[must_use]
pub fn node_toml(name: &str, rack: u32, coordinator: &str, root: &Path) -> String {
    let file = |name: &str| root.join(name).display().to_string();
    format!(
        "node = {name:?}\npath = {:?}\nstate_dir = \"state\"\nroot_file = {:?}\n\
         [coordinator]\nurl = {coordinator:?}\nca_file = {:?}\ntoken_file = \"token\"\npoll_interval = \"300ms\"\n\
         [mesh]\nmdns = false\n",
        place(name, rack),
        file("trust/1.root.json"),
        file("fleet-ca.pem"),
    )
}

/// The executor of an A/B host whose folder is emulated by the lab.
pub fn ab_slot_toml(dir: &Path) -> Result<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let reset = json!([
        Program::Lab.path()?.display().to_string(),
        "host-reset",
        "--dir",
        dir.display().to_string()
    ]);
    let env = match dir.join("fw_env.config").exists() {
        true => format!("fw_env_config = {:?}", file("fw_env.config")),
        false => format!("env_file = {:?}", file("grubenv")),
    };
    Ok(format!(
        "kind = \"ab_slot\", slot_a = {:?}, slot_b = {:?}, {env}, status_file = {:?}, health_file = {:?}, reset_command = {reset}, \
         vendor = {VENDOR:?}, model = {MODEL:?}",
        file("slot_a"),
        file("slot_b"),
        file("status.json"),
        file("health.json"),
    ))
}

/// Where a node stands.
#[must_use]
pub fn place(name: &str, rack: u32) -> String {
    format!("eu/hall-1/rack-{rack}/{name}")
}

/// A client for plain HTTP on loopback.
pub fn client() -> Result<reqwest::Client> {
    static PROVIDER: Once = Once::new();
    // Fails only if somebody installed one before, which serves as well.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    Ok(reqwest::Client::builder()
        .tls_certs_only([])
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()?)
}

/// Reads JSON.
pub async fn get<T: DeserializeOwned>(http: &reqwest::Client, url: &str) -> Result<T> {
    let answer = http.get(url).send().await?;
    let (status, body) = (answer.status(), answer.text().await?);
    ensure!(status.is_success(), "{url} answered {status}: {body}");
    serde_json::from_str(&body).with_context(|| format!("{url} answered {body}"))
}

/// Starts a coordinator whose files lie below `root`, at the addresses of an earlier one if they are given; answers with its
/// operator face. `coordinator-more.toml` below `root` is added to its configuration.
pub async fn start_coordinator(root: &Path, at: Option<(&str, &str)>, certificates: &str) -> Result<(Process, String)> {
    let listen = |url: &str| url.split("://").last().unwrap_or(url).trim_end_matches('/').to_owned();
    let (operators, nodes) = at.map_or_else(
        || ("127.0.0.1:0".to_owned(), "127.0.0.1:0".to_owned()),
        |(operators, nodes)| (listen(operators), listen(nodes)),
    );
    let config = root.join("coordinator.toml");
    // What a test wants beside it.
    let more = fs::read_to_string(root.join("coordinator-more.toml")).unwrap_or_default();
    let text = format!(
        "state_dir = \"coordinator\"\n[operators]\nlisten = {operators:?}\n[nodes]\nlisten = {nodes:?}\ncertificate_validity = {certificates:?}\n{more}"
    );
    fs::write(&config, text)?;
    let addresses = root.join("coordinator/addresses.json");
    fs::remove_file(&addresses).ok();
    let args = ["--config".as_ref(), config.as_os_str()];
    let mut process = Process::start(Program::Coordinator, args, &root.join("coordinator.log"), |_| ())?;
    let found = written(&mut process, &addresses).await?;
    let url = found["operator_url"]
        .as_str()
        .context("no operator_url")?
        .trim_end_matches('/')
        .to_owned();
    Ok((process, url))
}

pub(crate) async fn start_devices(root: &Path, shape: Shape) -> Result<(Process, Value)> {
    let mut config =
        "state = \"devices\"\npull_ca_file = \"fleet-ca.pem\"\nusername = \"admin\"\npassword = \"e2e-password\"\n"
            .to_owned();
    let mut images = vec![("previous.bin", OLD), ("image.bin", NEW)];
    images.extend(shape.next.map(|_| ("next.bin", NEXT)));
    for (file, version) in images {
        let sha256 = Sha256::of(&fs::read(root.join(file))?);
        write!(
            config,
            "[[catalogue]]\nsha256 = \"{sha256}\"\nversion = {version:?}\nmodel = {MODEL:?}\n"
        )?;
    }
    for rack in 1..=shape.racks {
        for node in 1..=shape.nodes {
            for (id, component) in device_names(&format!("r{rack}-n{node}"), shape) {
                let kind = match component {
                    "bmc" => "bmc = { flash_ms = 200 }",
                    _ if shape.uboot => "host = { image = \"previous.bin\", boot_loader = \"uboot\" }",
                    _ => "host = { image = \"previous.bin\" }",
                };
                write!(
                    config,
                    "[[devices]]\nid = {id:?}\nvendor = {VENDOR:?}\nmodel = {MODEL:?}\ncomponent = {component:?}\n\
                     version = {OLD:?}\nboot_ms = {}\nkind = {{ {kind} }}\n",
                    shape.boot_ms
                )?;
            }
        }
    }
    fs::write(root.join("devices.toml"), config)?;
    let endpoints = root.join("devices/endpoints.json");
    // Its ports are kept in there; what has to be new is the answer of the control endpoint.
    let config = root.join("devices.toml");
    let args = ["devices".as_ref(), "--config".as_ref(), config.as_os_str()];
    let mut process = Process::start(Program::Lab, args, &root.join("devices.log"), |_| ())?;
    let http = client()?;
    let found = written(&mut process, &endpoints).await?;
    let health = format!("{}/health", found["control"].as_str().context("no control endpoint")?);
    until("the devices to answer", START_WITHIN, async || {
        Ok(Seen::Yes(http.get(&health).send().await?.error_for_status()?))
    })
    .await?;
    Ok((process, found))
}

pub(crate) fn start_node(folder: &Path, log: &Path) -> Result<Process> {
    let config = folder.join("node.toml");
    Process::start(Program::Node, ["--config".as_ref(), config.as_os_str()], log, |_| ())
}

pub(crate) fn device_names(node: &str, shape: Shape) -> Vec<(String, &'static str)> {
    let bmcs = (1..=shape.bmcs).map(|at| (format!("{node}-bmc{at}"), "bmc"));
    bmcs.chain((1..=shape.hosts).map(|at| (format!("{node}-host{at}"), "host")))
        .collect()
}

/// Waits for a JSON file that a process writes once it listens.
async fn written(process: &mut Process, file: &Path) -> Result<Value> {
    until(&format!("{}", file.display()), START_WITHIN, async || {
        if let Some(status) = process.ended()? {
            return Ok(Seen::Yes(Err(anyhow::anyhow!(
                "the process has ended ({status}):\n{}",
                process.log()
            ))));
        }
        Ok(Seen::Yes(Ok(serde_json::from_slice(&fs::read(file)?)?)))
    })
    .await?
}
