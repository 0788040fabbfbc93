//! Servers of two makers brought up by one campaign: BMC, BIOS and the BIOS's settings, each in its turn, with one server that fails on
//! its way, one that is current, and one that is not touched because a part of it does not answer.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, Page, ProvisioningView, ServerState, ServerView},
    ids::Sha256,
    manifest::ProvisioningPhase,
};
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Shape},
    operator::Operator,
    process::Process,
    setup::get,
    wait::{Seen, until},
};
use serde_json::{Value, json};

const NODE: &str = "r1-n1";
const ENDS_WITHIN: Duration = Duration::from_secs(240);
const PASSWORD: &str = "e2e-password";

/// Who makes servers, their model, and what their BIOS is to be told. One is spoken to in the dialect of its maker, the other in that of
/// the specification.
const MAKERS: [(&str, &str, &str); 2] = [
    ("Acme", "R1", r#"{ "BootMode": "Uefi", "NumCores": 8 }"#),
    ("Lenovo", "SR650", r#"{ "NumCores": 16, "QuietBoot": false }"#),
];

/// A server: its name, its maker, and the versions of its BMC and its BIOS.
struct Server {
    name: &'static str,
    maker: usize,
    bmc: &'static str,
    bios: &'static str,
    /// Whether its BIOS's settings are looked after as well.
    has_settings: bool,
}

const SERVERS: [Server; 5] = [
    server("a1", 0, "1.0.0", "1.0.0", true),
    // Its BIOS does not take the image.
    server("a2", 0, "1.0.0", "1.0.0", true),
    // Its BIOS will not answer when the campaign is planned.
    server("a3", 0, "1.0.0", "1.0.0", true),
    // Its BIOS goes over 1.1.0.
    server("l1", 1, "1.0.0", "1.0.0", true),
    server("l2", 1, "1.1.0", "1.2.0", false),
];

const fn server(name: &'static str, maker: usize, bmc: &'static str, bios: &'static str, has_settings: bool) -> Server {
    Server {
        name,
        maker,
        bmc,
        bios,
        has_settings,
    }
}

/// What is signed: component, version, and from which version alone it may be installed.
const FIRMWARE: [(&str, &str, Option<&str>); 4] = [
    ("bmc", "1.0.0", None),
    ("bmc", "1.1.0", None),
    ("bios", "1.1.0", None),
    ("bios", "1.2.0", Some("1.1.0")),
];

fn image(maker: &str, component: &str, version: &str) -> Vec<u8> {
    format!("{component} of {maker}, {version}\n")
        .repeat(2_000)
        .into_bytes()
}

fn release_name(maker: &str, component: &str, version: &str) -> String {
    format!("firmware/{}-{component}-{version}", maker.to_lowercase())
}

/// An emulator with BMCs of these servers' parts: everything but `a3-bios`, or that alone.
async fn emulate(folder: &Path, name: &str, wants: impl Fn(&str) -> bool) -> Result<(Process, Value)> {
    let mut config =
        format!("state = {name:?}\npull_ca_file = \"fleet-ca.pem\"\nusername = \"admin\"\npassword = {PASSWORD:?}\n");
    for (maker, model, _) in MAKERS {
        for (component, version, _) in FIRMWARE {
            let sha256 = Sha256::of(&image(maker, component, version));
            write!(
                config,
                "[[catalogue]]\nsha256 = \"{sha256}\"\nversion = {version:?}\nmodel = {model:?}\n"
            )?;
        }
    }
    for server in &SERVERS {
        let (vendor, model, _) = MAKERS[server.maker];
        for (component, version) in [("bmc", server.bmc), ("bios", server.bios)] {
            let id = format!("{}-{component}", server.name);
            if wants(&id) {
                write!(
                    config,
                    "[[devices]]\nid = {id:?}\nvendor = {vendor:?}\nmodel = {model:?}\ncomponent = {component:?}\n\
                     version = {version:?}\nboot_ms = 300\nkind = {{ bmc = {{ flash_ms = 200 }} }}\n"
                )?;
                if id == "a2-bios" {
                    config.push_str("misbehaviour = { kind = \"fail_update\" }\n");
                }
            }
        }
    }
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, config)?;
    let args = ["devices".as_ref(), "--config".as_ref(), file.as_os_str()];
    let process = Process::start(Program::Lab, args, &folder.join(format!("{name}.log")), |_| ())?;
    let endpoints = folder.join(name).join("endpoints.json");
    let found = until("the emulator to listen", ENDS_WITHIN, async || {
        let text = fs::read(&endpoints).unwrap_or_default();
        let found = serde_json::from_slice::<Value>(&text);
        Ok(found.map_or_else(|_| Seen::NotYet(process.log()), Seen::Yes))
    })
    .await?;
    Ok((process, found))
}

/// Signs every release, the settings among them.
fn stage(operator: &Operator) -> Result<Vec<String>> {
    let mut newest = Vec::new();
    for (maker, model, settings) in MAKERS {
        let document =
            format!(r#"{{ "schema": "firmesh-bios-settings/1", "version": "2.0.0", "attributes": {settings} }}"#);
        let firmware =
            FIRMWARE.map(|(component, version, from)| (component, version, from, image(maker, component, version)));
        let settings = ("bios-settings", "2.0.0", None, document.into_bytes());
        for (component, version, from, bytes) in firmware.into_iter().chain([settings]) {
            let file = format!("{maker}-{component}-{version}.image");
            fs::write(operator.folder().join(&file), bytes)?;
            operator.ok(&["artifact", "add", &file])?;
            let name = release_name(maker, component, version);
            let mut args = vec![
                "release", "create", "--file", &file, "--vendor", maker, "--model", model,
            ];
            args.extend(["--component", component, "--release-version", version, "--name", &name]);
            args.extend(from.iter().flat_map(|from| ["--from-version", from]));
            operator.ok(&args)?;
            if matches!(
                (component, version),
                ("bmc", "1.1.0") | ("bios", "1.2.0") | ("bios-settings", _)
            ) {
                newest.push(name);
            }
        }
    }
    operator.sign("release")?;
    operator.ok(&["trust", "publish"])?;
    Ok(newest)
}

/// Gives the node the components of all servers, each with its server as its unit.
async fn adopt(fleet: &mut Cluster, endpoints: &[Value; 2]) -> Result<usize> {
    let mut devices = String::new();
    let mut count = 0;
    for server in &SERVERS {
        let name = server.name;
        let mut parts = vec![("bmc", "bmc"), ("bios", "bios")];
        parts.extend(server.has_settings.then_some(("bios-settings", "bios")));
        for (component, behind) in parts {
            let id = format!("{name}-{behind}");
            let found = endpoints.iter().find(|found| found["devices"][&id].is_object());
            let found = found.with_context(|| format!("no emulator has {id}"))?;
            let (url, ca) = (&found["devices"][&id]["bmc"]["url"], &found["ca_file"]);
            let settings = match component {
                "bios-settings" => format!(", bios_settings = {{ work_dir = \"bios/{name}\" }}"),
                _ => String::new(),
            };
            write!(
                devices,
                "[[device]]\nid = \"{name}-{component}\"\ncomponent = {component:?}\nlabels = {{ unit = {name:?} }}\n\
                 executor = {{ kind = \"redfish\", url = {url}, username = \"admin\", password_file = \"bmc-password\", \
                 ca_file = {ca}{settings} }}\n"
            )?;
            count += 1;
        }
    }
    let node = fleet.node(NODE)?;
    let file = node.folder().join("node.toml");
    let config = fs::read_to_string(&file)?;
    fs::write(&file, config + &devices)?;
    node.process.stop(ENDS_WITHIN).await?;
    node.restart().await?;
    until("every component to be known", ENDS_WITHIN, async || {
        let views = fleet.device_views().await?;
        let known = views.iter().filter(|view| view.facts.version.is_some()).count();
        Ok(Seen::when(known == count, || format!("{views:?}")))
    })
    .await?;
    Ok(count)
}

fn find<'a>(servers: &'a [ServerView], name: &str) -> Result<&'a ServerView> {
    let wanted = format!("{NODE}/{name}");
    let found = servers.iter().find(|view| view.server == wanted);
    found.with_context(|| format!("there is no server {wanted}: {servers:?}"))
}

#[tokio::test]
async fn servers_of_two_makers_are_brought_up_by_one_campaign_and_each_says_how_it_ended() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 0,
        hosts: 0,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let folder = fleet.folder().to_owned();
        let (_servers, most) = emulate(&folder, "servers", |id| id != "a3-bios").await?;
        let (mut gone, one) = emulate(&folder, "gone", |id| id == "a3-bios").await?;
        let newest = stage(&fleet.operator)?;
        let count = adopt(fleet, &[most, one]).await?;
        ensure!(count == 14, "{count} components");
        gone.stop(ENDS_WITHIN).await?;
        until("a BIOS to be silent", ENDS_WITHIN, async || {
            let views = fleet.device_views().await?;
            let silent = views
                .iter()
                .filter(|view| view.facts.version.is_none())
                .map(|view| view.facts.device.as_str());
            let silent: Vec<_> = silent.collect();
            // The settings are behind the same door.
            Ok(Seen::when(silent == ["a3-bios", "a3-bios-settings"], || format!("{silent:?}")))
        })
        .await?;

        // One short file: what servers are to run is a baseline, and which servers a filter, of which one component is enough.
        let mut baseline = vec!["baseline", "create", "q3"];
        baseline.extend(newest.iter().flat_map(|name| ["--release", name.as_str()]));
        fleet.operator.ok(&baseline)?;
        let hop = release_name("Lenovo", "bios", "1.1.0");
        let file = format!(
            "id = \"hall-3\"\nexpires = \"2099-01-01T00:00:00Z\"\nbaseline = \"q3\"\nfilter = 'component == \"bmc\"'\n\
             hops = [{hop:?}, \"firmware/acme-bios-1.1.0\"]\ncaps = {{ per_rack = 10, total = 10 }}\n\
             deadlines = {{ attempt = \"PT2M\", back = 15 }}\n"
        );
        fs::write(folder.join("hall-3.toml"), file)?;
        let shown = fleet.operator.run(&["provision", "--file", "hall-3.toml"])?;
        ensure!(shown.code == 0, "{shown:?}");
        for line in [
            "5 servers: 3 to be brought up, 1 current, 1 held",
            "server r1-n1/a1, wave 0",
            "  1 preflight          passed: 3 components answer",
            "bios l1-bios 1.0.0 -> 1.2.0 over 1.1.0",
            "  3 updates            l1-bmc, then l1-bios: each restarted and read back before the next",
            "  4 BIOS configuration l1-bios-settings: applied by a restart and read back",
            "  5 final validation   2 components are read once more",
            "  1 preflight          held, nothing of it is touched: a3-bios: deferred: it does not answer",
            "bmc l2-bmc current at 1.1.0",
        ] {
            ensure!(shown.stdout.contains(line), "{line:?} is not in {}", shown.stdout);
        }
        fleet.operator.sign("approver")?;
        fleet.operator.ok(&["campaign", "publish"])?;
        fleet.operator.ok(&["campaign", "start", "hall-3"])?;
        let view = fleet.campaign_ends("hall-3", ENDS_WITHIN).await?;

        let url = format!("{}/api/v1/campaigns/hall-3/servers?limit=100", fleet.url());
        let servers = get::<Page<ServerView>>(fleet.http(), &url).await?.items;
        ensure!(view.state == CampaignState::Failed, "{view:?}, {servers:?}");
        ensure!(
            view.reason == "1 of 4 servers are not provisioned; 1 were held by the plan",
            "{view:?}, {servers:?}"
        );
        let Some(ProvisioningView { states, .. }) = &view.provisioning else {
            anyhow::bail!("nothing is said of servers: {view:?}");
        };
        ensure!(states.get(&ServerState::Provisioned) == Some(&3), "{states:?}");
        for name in ["a1", "l1", "l2"] {
            ensure!(find(&servers, name)?.state == ServerState::Provisioned, "{servers:?}");
        }
        let failed = find(&servers, "a2")?;
        ensure!(
            (failed.state, failed.phase) == (ServerState::NotProvisioned, ProvisioningPhase::Updates)
                && failed.reason.contains("a2-bios ended as failed")
                && failed.reason.contains("the flash part could not be verified"),
            "{failed:?}"
        );
        let held = find(&servers, "a3")?;
        ensure!(
            (held.state, held.phase) == (ServerState::Held, ProvisioningPhase::Preflight),
            "{held:?}"
        );

        // By the coordinator's own readings: what was to change has changed, what was held or came after the failure has not.
        let versions: Vec<_> = fleet
            .device_views()
            .await?
            .into_iter()
            .filter_map(|view| Some((view.facts.device.to_string(), view.facts.version?)))
            .collect();
        let runs = |device: &str| versions.iter().find(|(id, _)| id == device).map(|(_, version)| version.as_str());
        for (device, version) in [
            ("a1-bmc", "1.1.0"),
            ("a1-bios", "1.2.0"),
            ("a1-bios-settings", "2.0.0"),
            ("l1-bios", "1.2.0"),
            ("l1-bios-settings", "2.0.0"),
            ("a2-bmc", "1.1.0"),
            ("a2-bios", "1.0.0"),
            ("a2-bios-settings", "unmanaged"),
            ("a3-bmc", "1.0.0"),
        ] {
            ensure!(runs(device) == Some(version), "{device} runs {:?}", runs(device));
        }

        // The same from the command line, for people and for programs.
        let status = fleet.operator.run(&["campaign", "status", "hall-3"])?.stdout;
        for line in [
            "  5 servers: 1 held, 3 provisioned, 1 not provisioned",
            "  server r1-n1/l1: provisioned",
            "  server r1-n1/a2: not provisioned, phase 3 of 5 (updates): a2-bios ended as failed",
            "    bios-settings a2-bios-settings: unmanaged -> 2.0.0: cancelled",
            "  server r1-n1/a3: held, phase 1 of 5 (preflight): a3-bios",
        ] {
            ensure!(status.contains(line), "{line:?} is not in {status}");
        }
        let status = fleet.operator.ok(&["campaign", "status", "hall-3"])?;
        ensure!(
            status["id"] == "hall-3" && status["servers"][1]["state"] == "not_provisioned",
            "{status}"
        );
        let why = fleet.operator.ok(&["campaign", "explain", "hall-3", "--device", "a2-bios-settings"])?;
        ensure!(
            why.to_string().contains("phase 3 of 5") && why.to_string().contains("a2-bios, which comes before it in its unit"),
            "{why}"
        );

        // Once more, now that the first is done: who is provisioned is current, its settings among the rest.
        let file = "id = \"hall-3-again\"\nexpires = \"2099-01-01T00:00:00Z\"\nbaseline = \"q3\"\nfilter = 'path under \"eu\"'\n";
        fs::write(folder.join("again.toml"), file)?;
        let again = fleet.operator.ok(&["provision", "--file", "again.toml"])?;
        let current = |server: &Value| {
            let components = server["components"].as_array();
            components.is_some_and(|all| all.iter().all(|one| one["analysis"]["finding"] == json!("current")))
        };
        let servers = again["plan"]["servers"].as_array().context("the plan has no servers")?;
        let current: Vec<_> = servers.iter().filter(|server| current(server)).map(|server| &server["server"]).collect();
        ensure!(current == ["r1-n1/a1", "r1-n1/l1", "r1-n1/l2"], "{again}");
        // Whichever way a file says whom it is for, what those run now is what they go back to.
        let one = "selector = { devices = [\"a3-bmc\"] }";
        for (id, whom) in [("by-name", one), ("by-path", "selector = { paths = [\"eu\"] }"), ("for-all", "")] {
            let file = format!("id = {id:?}\nexpires = \"2099-01-01T00:00:00Z\"\nbaseline = \"q3\"\n{whom}\n");
            fs::write(folder.join(format!("{id}.toml")), file)?;
            let planned = fleet.operator.ok(&["provision", "--file", &format!("{id}.toml")])?;
            let previous = planned["manifest"]["previous"].as_array().context("nothing to go back to")?;
            let previous: Vec<_> = previous.iter().map(|one| &one["target"]).collect();
            ensure!(previous == ["firmware/acme-bmc-1.0.0"], "{id}: {planned}");
        }
        Ok(())
    })
    .await
}
