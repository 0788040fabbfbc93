//! Devices that ask: an unmodified SWUpdate that believes in a hawkBit, and whoever is not one.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::CampaignState,
    ids::{ArtifactId, Sha256},
    report::AttemptState,
};
use firmesh_tests::{
    cluster::Cluster,
    packages::ensure_command,
    process::Process,
    setup::{NEW, OLD, release_name},
    wait::{Seen, until},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    DEVICE, ENDS_WITHIN, NODE, approve_of, begin, bring, count, files_below, one_node,
    swupdate::{Signer, contents},
    version,
};

const TOKEN: &str = "a-token-that-nobody-is-shown";
const GATEWAY: &str = "a-token-that-speaks-for-all-of-them";

/// A device with two slots that runs SWUpdate in suricatta mode. It runs from slot A at first.
struct Panel {
    folder: PathBuf,
    url: String,
    cert: PathBuf,
    running: Option<Process>,
}

impl Panel {
    fn new(folder: &Path, url: &str, cert: PathBuf) -> Result<Self> {
        ensure_command("swupdate", "swupdate")?;
        fs::create_dir_all(folder.join("tmp"))?;
        fs::write(folder.join("slot_a"), contents(OLD))?;
        fs::write(folder.join("slot_b"), vec![0; 2 * contents(NEW).len()])?;
        Ok(Self {
            folder: folder.to_owned(),
            url: url.to_owned(),
            cert,
            running: None,
        })
    }

    fn slot_b(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.folder.join("slot_b"))?)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("swupdate.log")).unwrap_or_default()
    }

    /// Starts it from a slot: what it runs is that slot's first line. `confirm` is how it says how its update went.
    fn start(&mut self, slot: &str, confirm: &[&str]) -> Result<()> {
        let contents = fs::read(self.folder.join(slot))?;
        let version = contents.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let version = String::from_utf8(version.to_vec())?;
        let config = self.folder.join("swupdate.cfg");
        fs::write(
            &config,
            format!(
                "globals : {{ loglevel = 4; }};\nidentify : ( {{ name = \"version\"; value = {version:?}; }}, {{ name = \"serial\"; value = \"7\"; }} );\n"
            ),
        )?;
        let mut suricatta = format!("-t DEFAULT -u {} -i {DEVICE} -k {TOKEN} -p 1", self.url);
        confirm.iter().for_each(|word| {
            suricatta.push(' ');
            suricatta.push_str(word);
        });
        let mut command = Command::new(ensure_command("swupdate", "swupdate")?);
        command
            .args(["-e", "stable,b", "-H", "r1:1.0", "-k"])
            .arg(&self.cert)
            .arg("-f")
            .arg(config)
            .args(["-u", &suricatta])
            .env("TMPDIR", self.folder.join("tmp"))
            .current_dir(&self.folder);
        self.running = Some(Process::spawn("swupdate", command, &self.folder.join("swupdate.log"))?);
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.running.take() {
            process.stop(ENDS_WITHIN).await?;
        }
        Ok(())
    }

    /// Its boot loader starts the slot that was written.
    async fn restart_into_b(&mut self) -> Result<()> {
        self.stop().await?;
        self.start("slot_b", &["-c", "2"])
    }

    async fn installs(&self) -> Result<()> {
        until(
            "SWUpdate to have installed and to wait for its restart",
            ENDS_WITHIN,
            async || {
                let log = self.log();
                let last: String = log.lines().rev().take(3).collect();
                Ok(Seen::when(
                    log.contains("already installed update is pending testing"),
                    || last,
                ))
            },
        )
        .await?;
        let slot = self.slot_b()?;
        ensure!(slot.starts_with(&contents(NEW)), "slot B does not hold the image");
        ensure!(
            fs::read(self.folder.join("slot_a"))? == contents(OLD),
            "slot A was touched"
        );
        Ok(())
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        // SWUpdate ends its children when it is asked to end, and not when it is killed.
        let asked = self
            .running
            .as_ref()
            .is_some_and(|process| process.signal(Signal::SIGTERM).is_ok());
        while asked
            && self
                .running
                .as_mut()
                .is_some_and(|process| matches!(process.ended(), Ok(None)))
        {
            std::thread::yield_now();
        }
    }
}

/// Has the node answer devices that ask, over plain HTTP, for it is loopback; the URL.
fn answer_devices(fleet: &mut Cluster) -> Result<String> {
    let folder = fleet.node(NODE)?.folder().to_owned();
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    secret_file(&folder.join("panel.token"), TOKEN)?;
    secret_file(&folder.join("gateway.token"), GATEWAY)?;
    let file = folder.join("node.toml");
    let mut config = fs::read_to_string(&file)?;
    config.push_str(&format!(
        "[ddi]\nlisten = \"127.0.0.1:{port}\"\ntransport = \"http\"\ngateway_token_file = \"gateway.token\"\n"
    ));
    fs::write(&file, config)?;
    Ok(format!("http://127.0.0.1:{port}"))
}

fn secret_file(path: &Path, secret: &str) -> Result<()> {
    fs::write(path, format!("{secret}\n"))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

const EXECUTOR: &str = r#"kind = "ddi", vendor = "Acme", model = "R1", token_file = "panel.token", poll_s = 1"#;

/// A panel that runs the old version, known to the fleet, with releases of both versions signed.
async fn panel(fleet: &mut Cluster) -> Result<Panel> {
    let folder = fleet.folder().join("ddi");
    let (url, signer) = (answer_devices(fleet)?, Signer::new(&folder.join("signer"))?);
    let mut panel = Panel::new(&folder.join("panel"), &url, signer.cert())?;
    let images = [OLD, NEW].map(|version| signer.image(version, &panel.folder));
    let [old, new] = images;
    let (old, new) = (old?, new?);
    panel.start("slot_a", &[])?;
    bring(fleet, "host", EXECUTOR, &[(&old, OLD), (&new, NEW)]).await?;
    ensure!(
        version(fleet).await?.as_deref() == Some(OLD),
        "{:?}",
        fleet.device_views().await?
    );
    Ok(panel)
}

async fn ends_well(fleet: &Cluster) -> Result<()> {
    let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
    ensure!(view.state == CampaignState::Completed, "{view:?}");
    ensure!(count(&view, AttemptState::Success) == 1, "{view:?}");
    ensure!(
        version(fleet).await?.as_deref() == Some(NEW),
        "{:?}",
        fleet.device_views().await?
    );
    Ok(())
}

#[tokio::test]
async fn an_unmodified_swupdate_is_a_device_of_a_campaign() -> Result<()> {
    one_node(async |fleet| {
        let mut panel = panel(fleet).await?;
        ensure!(
            fleet.device_views().await?[0].facts.executor == "ddi",
            "another executor"
        );
        begin(fleet, "spring", "host", (NEW, OLD), 60)?;
        panel.installs().await?;
        let view = fleet.campaign("spring").await?;
        ensure!(!view.state.is_terminal(), "it has not restarted yet: {view:?}");
        ensure!(
            version(fleet).await?.as_deref() == Some(OLD),
            "what it says of its task counts for nothing"
        );
        panel.restart_into_b().await?;
        ends_well(fleet).await?;
        panel.stop().await?;
        for file in files_below(fleet.folder())? {
            if file.extension().is_some_and(|kind| kind == "log") && !file.starts_with(&panel.folder) {
                let log = fs::read_to_string(&file)?;
                ensure!(
                    !log.contains(TOKEN) && !log.contains(GATEWAY),
                    "{} has a token",
                    file.display()
                );
            }
        }
        Ok(())
    })
    .await
}

/// The coordinator is gone, and the node is killed while the device is at it: what the device was told is not forgotten.
#[tokio::test]
async fn an_asking_device_is_updated_without_the_coordinator_and_over_the_death_of_its_node() -> Result<()> {
    one_node(async |fleet| {
        let mut panel = panel(fleet).await?;
        let [to, back] = [NEW, OLD].map(|version| release_name("host", version));
        approve_of(fleet, "spring", (&to, &back), 60)?;
        panel.stop().await?;
        fleet.operator.ok(&["campaign", "start", "spring"])?;
        attempt_is(fleet, "installing").await?;
        fleet.coordinator.stop(ENDS_WITHIN).await?;

        panel.start("slot_a", &[])?;
        panel.installs().await?;
        let node = fleet.node(NODE)?;
        node.process.kill()?;
        node.restart().await?;
        panel.restart_into_b().await?;
        attempt_is(fleet, "success").await?;
        ensure!(fleet.node(NODE)?.status().await?["coordinator_reachable"] == false);
        let downloads = panel.log().matches("Installing Update Chunk").count();
        println!("announced {downloads} times");

        fleet.restart_coordinator().await?;
        ends_well(fleet).await?;
        panel.stop().await
    })
    .await
}

async fn attempt_is(fleet: &mut Cluster, state: &str) -> Result<()> {
    let node = fleet.node(NODE)?;
    until(&format!("the attempt to be {state}"), ENDS_WITHIN, async || {
        let attempts = node.status().await?["attempts"].clone();
        Ok(Seen::when(attempts[0]["state"] == state, || attempts.to_string()))
    })
    .await
}

/// A client that we wrote: for what SWUpdate would never do.
struct Client {
    http: reqwest::Client,
    root: String,
    authorization: Option<String>,
}

impl Client {
    fn with(&self, authorization: Option<&str>) -> Self {
        Self {
            http: self.http.clone(),
            root: self.root.clone(),
            authorization: authorization.map(str::to_owned),
        }
    }

    fn ask(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("{}{path}", self.root)
        };
        let request = self.http.request(method, url);
        match &self.authorization {
            Some(shown) => request.header("Authorization", shown),
            None => request,
        }
    }

    async fn get(&self, path: &str) -> Result<Value> {
        Ok(self
            .ask(reqwest::Method::GET, path)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?)
    }

    async fn says_it_runs(&self, version: &str) -> Result<()> {
        let body = json!({ "mode": "merge", "data": { "version": version } });
        let request = self.ask(reqwest::Method::PUT, "/configData").json(&body);
        request.send().await?.error_for_status()?;
        Ok(())
    }

    async fn feedback(&self, action: &str, execution: &str, finished: &str) -> Result<reqwest::StatusCode> {
        let body = json!({ "id": action, "status": { "execution": execution, "result": { "finished": finished }, "details": [] } });
        let path = format!("/deploymentBase/{action}/feedback");
        Ok(self
            .ask(reqwest::Method::POST, &path)
            .json(&body)
            .send()
            .await?
            .status())
    }
}

#[tokio::test]
async fn strangers_hear_nothing_and_altered_bytes_are_not_served() -> Result<()> {
    one_node(async |fleet| {
        let url = answer_devices(fleet)?;
        let client = Client {
            http: fleet.http().clone(),
            root: format!("{url}/DEFAULT/controller/v1/{DEVICE}"),
            authorization: Some(format!("TargetToken {TOKEN}")),
        };
        let (old, new) = (fleet.folder().join("previous.bin"), fleet.folder().join("image.bin"));
        let asking = async {
            // Until the node knows it, and then once in a while.
            until("the node to answer", ENDS_WITHIN, async || {
                client.says_it_runs(OLD).await?;
                Ok(Seen::Yes(()))
            })
            .await
        };
        let images = [(old.as_path(), OLD), (new.as_path(), NEW)];
        let brought = bring(fleet, "host", EXECUTOR, &images);
        let (asked, brought) = tokio::join!(asking, brought);
        asked.and(brought)?;

        for shown in [
            None,
            Some("TargetToken wrong-wrong-wrong-wrong"),
            Some("GatewayToken wrong-wrong-wrong-wrong"),
            Some("TargetToken "),
            Some("Basic dTpw"),
            Some(&format!("GatewayToken {TOKEN}")),
            Some(&format!("TargetToken {GATEWAY}")),
        ] {
            let stranger = client.with(shown);
            for path in [
                "",
                "/deploymentBase/1",
                "/cancelAction/x",
                "/softwaremodules/1/artifacts/update.swu",
            ] {
                let answer = stranger.ask(reqwest::Method::GET, path).send().await?;
                ensure!(answer.status() == 401, "{shown:?} {path}: {}", answer.status());
                ensure!(
                    answer.bytes().await?.is_empty(),
                    "{shown:?} {path}: it was told something"
                );
            }
            let answer = stranger
                .ask(reqwest::Method::PUT, "/configData")
                .body("{")
                .send()
                .await?;
            ensure!(answer.status() == 401, "{shown:?}: {}", answer.status());
        }
        for root in [
            format!("{url}/OTHER/controller/v1/{DEVICE}"),
            format!("{url}/DEFAULT/controller/v1/other"),
        ] {
            let elsewhere = Client {
                root,
                ..client.with(client.authorization.as_deref())
            };
            ensure!(elsewhere.ask(reqwest::Method::GET, "").send().await?.status() == 401);
        }
        let gateway = client.with(Some(&format!("GatewayToken {GATEWAY}")));
        ensure!(gateway.get("").await?["config"]["polling"]["sleep"] == "00:00:01");
        for (path, body) in [("/configData", "[]"), ("/configData", "{\"data\":{\"a\":[]}}")] {
            let answer = client.ask(reqwest::Method::PUT, path).body(body).send().await?;
            ensure!(answer.status() == 400, "{path} {body}: {}", answer.status());
        }
        let long = client
            .ask(reqwest::Method::PUT, "/configData")
            .body(vec![b' '; 200 << 10]);
        // Who is not listened to any more may not get to hear why.
        if let Ok(answer) = long.send().await {
            ensure!(answer.status() == 413, "{}", answer.status());
        }
        ensure!(
            client.feedback("1", "closed", "success").await? == 404,
            "there is no action"
        );

        begin(fleet, "spring", "host", (NEW, OLD), 60)?;
        let link = until("an update to be offered", ENDS_WITHIN, async || {
            let base = client.get("").await?;
            let link = base["_links"]["deploymentBase"]["href"].as_str().map(str::to_owned);
            Ok(link.map_or_else(|| Seen::NotYet(base.to_string()), Seen::Yes))
        })
        .await?;
        let deployment = client.get(&link).await?;
        let action = deployment["id"].as_str().context("an action has a number")?;
        let artifact = &deployment["deployment"]["chunks"][0]["artifacts"][0];
        let image = fs::read(&new)?;
        ensure!(artifact["size"] == image.len(), "{artifact}");
        ensure!(
            artifact["hashes"]["sha256"] == Sha256::of(&image).to_string(),
            "{artifact}"
        );
        for (kind, program) in [("sha1", "sha1sum"), ("md5", "md5sum")] {
            let summed = firmesh_tests::python::run(&ensure_command(program, "coreutils")?, [&new])?;
            let summed = String::from_utf8(summed.stdout)?;
            let wanted = summed.split_whitespace().next().context("a sum")?.to_owned();
            ensure!(artifact["hashes"][kind] == wanted, "{kind}: {artifact}");
        }
        let href = artifact["_links"]["download-http"]["href"].as_str().context("a link")?;
        let head = client.ask(reqwest::Method::HEAD, href).send().await?;
        ensure!(
            head.headers()["content-length"] == image.len().to_string().as_str(),
            "{head:?}"
        );
        let part = client.ask(reqwest::Method::GET, href).header("Range", "bytes=100-4199");
        let part = part.send().await?;
        ensure!(part.status() == 206);
        ensure!(part.bytes().await? == image[100..4_200]);
        let whole = client.ask(reqwest::Method::GET, href).send().await?.bytes().await?;
        ensure!(whole == image, "other bytes");
        ensure!(client.with(None).ask(reqwest::Method::GET, href).send().await?.status() == 401);
        let other = client.ask(reqwest::Method::GET, &href.replace("update.swu", "node.key"));
        ensure!(other.send().await?.status() == 404);

        // One bit of what lies on the disk.
        let root = ArtifactId::of(&image).to_string();
        let held = files_below(&fleet.node(NODE)?.folder().join("state/store"))?;
        let is_content = |file: &&PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&root) && file.extension().is_some_and(|kind| kind == "content")
        };
        flip(held.iter().find(is_content).context("no content")?, 3 << 20)?;
        let altered = client.ask(reqwest::Method::GET, href).send().await?;
        match altered.bytes().await {
            Err(_cut_short) => {}
            Ok(bytes) => ensure!(bytes == image, "altered bytes were served"),
        }

        // It installs all the same, and never closes its action.
        ensure!(client.feedback(action, "proceeding", "none").await? == 200);
        client.says_it_runs(NEW).await?;
        ends_well(fleet).await?;
        ensure!(client.feedback(action, "closed", "failure").await? == 410, "it is over");
        Ok(())
    })
    .await
}

fn flip(file: &Path, at: u64) -> Result<()> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ 1])?;
    Ok(file.sync_all()?)
}
