//! BMCs as others emulate them: fwupd's mock in the dialects of four makers and without its licence, and sushy's emulator, which
//! lacks most of what an update needs.
//!
//! The mock's versions never change, so that every update of it ends as one that a task calls completed and that is none. A relay
//! before it keeps what was really sent.

use std::{fs, net::TcpListener as Port, path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::report::AttemptState;
use firmesh_tests::{
    cluster::Cluster,
    debian_source::source_file,
    process::Process,
    python::{PYTHON_FLASK, PYTHON_SUSHY_TOOLS, python_with},
    setup::rules,
    wait::{Seen, until},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinHandle,
};

use super::{ENDS_WITHIN, NODE, count, one_node};

/// Kept between runs, for pip's and apt's sake.
const KEPT: &str = env!("CARGO_TARGET_TMPDIR");
/// All that the mock takes for an image.
const IMAGE: &str = "hello";
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// One BMC, and what is to come of its update.
struct Bmc {
    id: &'static str,
    /// The mock goes by the user in what it speaks.
    username: &'static str,
    vendor: &'static str,
    component: &'static str,
    versions: (&'static str, &'static str),
    /// More of the device's configuration.
    more: &'static str,
    /// Why the update fails.
    reason: &'static str,
    /// What the image was sent with: the request, and what stands in it.
    sent: (&'static str, &'static [&'static str]),
    /// Requests that follow, and requests that never come.
    follows: &'static [&'static str],
    never: &'static [&'static str],
}

const UNCHANGED_BMC: &str =
    "the update task says it completed, yet the device runs 11A-1.02 after every reset the device offers";
const BMC_VERSIONS: (&str, &str) = ("11A-1.02", "11A-1.03");
const BIOS_VERSIONS: (&str, &str) = ("P79 v1.45", "P79 v1.46");

const BMCS: [Bmc; 5] = [
    Bmc {
        id: "generic",
        username: "username2",
        vendor: "Contoso",
        component: "bmc",
        versions: BMC_VERSIONS,
        // Nobody's ending but the mock's.
        more: ", image_name = \"firmware.exe\"",
        reason: UNCHANGED_BMC,
        sent: (
            "POST /FWUpdate ",
            &[
                "name=\"UpdateParameters\"",
                "\"@Redfish.OperationApplyTime\":\"Immediate\"",
                "\"Targets\":[\"/redfish/v1/UpdateService/FirmwareInventory/BMC\"]",
                "name=\"UpdateFile\"; filename=\"firmware.exe\"",
            ],
        ),
        follows: &["GET /redfish/v1/TaskService/Tasks/545 "],
        never: &["POST /redfish/v1/UpdateService/Actions/"],
    },
    Bmc {
        id: "dell",
        username: "dell_username",
        vendor: "Dell",
        component: "bmc",
        versions: BMC_VERSIONS,
        more: "",
        reason: UNCHANGED_BMC,
        sent: (
            "POST /FWUpdate ",
            &[
                "\"@Redfish.OperationApplyTime\":\"Immediate\"",
                "name=\"UpdateFile\"; filename=\"image.exe\"",
            ],
        ),
        follows: &["GET /redfish/v1/TaskService/Tasks/545 "],
        never: &["POST /redfish/v1/UpdateService/Actions/"],
    },
    Bmc {
        id: "hpe",
        username: "hpe_username",
        vendor: "HPE",
        component: "bmc",
        versions: BMC_VERSIONS,
        more: "",
        reason: UNCHANGED_BMC,
        sent: (
            "POST /FWUpdate-hpe ",
            &[
                "x-auth-token: 1234eabcdeabcdeabcdeabcdeabc1234",
                "cookie: sessionKey=1234eabcdeabcdeabcdeabcdeabc1234",
                "name=\"sessionKey\"\r\n\r\n1234eabcdeabcdeabcdeabcdeabc1234\r\n",
                "name=\"parameters\"",
                "\"UpdateRepository\":false",
                "\"UpdateTarget\":true",
                "name=\"files[]\"; filename=\"image.fwpkg\"",
            ],
        ),
        follows: &["GET /redfish/v1/UpdateService "],
        never: &["GET /redfish/v1/TaskService/Tasks/"],
    },
    Bmc {
        id: "smc",
        username: "smc_username",
        vendor: "SMCI",
        component: "bios",
        versions: BIOS_VERSIONS,
        more: "",
        reason: "the update task says it completed, yet the device runs P79 v1.45 after every reset the device offers",
        sent: (
            "POST /FWUpdate-smc ",
            &[
                "\"@Redfish.OperationApplyTime\":\"OnStartUpdateRequest\"",
                "\"Oem\":{\"Supermicro\":{\"BIOS\":{",
                "\"BackupBIOS\":false",
                "\"Targets\":[\"/redfish/v1/Systems/1/Bios\"]",
                "name=\"UpdateFile\"; filename=\"image.bin\"",
            ],
        ),
        follows: &[
            "GET /redfish/v1/TaskService/Tasks/546 ",
            "POST /redfish/v1/UpdateService/Actions/UpdateService.StartUpdate ",
            "GET /redfish/v1/TaskService/Tasks/546 ",
        ],
        never: &[],
    },
    Bmc {
        id: "unlicensed",
        username: "unlicensed_username",
        vendor: "SMCI",
        component: "bios",
        versions: BIOS_VERSIONS,
        more: "",
        reason: "staging failed: the BMC has no licence for this, it needs SFT-OOB-LIC (or SFT-DCMS-SINGLE): look at the upload's address",
        sent: ("GET /FWUpdate-unlicensed ", &[]),
        follows: &[],
        never: &["POST /FWUpdate", "POST /redfish/v1/UpdateService/Actions/"],
    },
];

#[tokio::test]
async fn fwupds_mock_is_updated_in_the_dialect_of_each_maker_and_its_lie_is_seen() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().to_owned();
        let mock = source_file(Path::new(KEPT), "fwupd", "plugins/redfish/tests/redfish.py")?;
        let python = python_with(Path::new(KEPT), "flask", &PYTHON_FLASK)?;
        fs::write(folder.join("password"), "password2\n")?;
        let mut running = Vec::new();
        let mut devices = String::new();
        for bmc in &BMCS {
            let port = free_port()?;
            let mut command = Command::new(&python);
            command
                .args(["-m", "flask", "--app", "redfish", "run", "-h", "127.0.0.1", "-p"])
                .arg(port.to_string())
                .current_dir(mock.parent().context("the mock lies nowhere")?)
                .env("PYTHONDONTWRITEBYTECODE", "1");
            let process = Process::spawn("fwupd's mock", command, &folder.join(format!("{}.log", bmc.id)))?;
            until("fwupd's mock", STARTS_WITHIN, async || {
                let is_there = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
                Ok(Seen::when(is_there, || process.log()))
            })
            .await?;
            let relay = Relay::start(port).await?;
            devices += &device(bmc.id, bmc.component, &relay.url, &folder, &{
                let Bmc {
                    username,
                    vendor,
                    id,
                    more,
                    ..
                } = bmc;
                format!("username = {username:?}, vendor = {vendor:?}, model = {id:?}{more}")
            });
            running.push((relay, process));
        }
        for bmc in &BMCS {
            stage(fleet, bmc.id, (bmc.vendor, bmc.id), bmc.component, bmc.versions)?;
        }
        adopt(fleet, &devices, BMCS.len()).await?;
        for bmc in &BMCS {
            begin(fleet, bmc.id)?;
        }
        for (bmc, (relay, _)) in BMCS.iter().zip(&running) {
            let view = fleet.campaign_ends(bmc.id, ENDS_WITHIN).await?;
            let why = explained(fleet, bmc.id)?;
            ensure!(count(&view, AttemptState::Success) == 0, "{}: {view:?}", bmc.id);
            ensure!(why.contains(&format!("failed: {}", bmc.reason)), "{}: {why}", bmc.id);
            relay.judge(bmc).await.with_context(|| bmc.id.to_owned())?;
        }
        let views = fleet.device_views().await?;
        for bmc in &BMCS {
            let view = views.iter().find(|view| view.facts.device.as_str() == bmc.id);
            let version = view.and_then(|view| view.facts.version.as_deref());
            ensure!(version == Some(bmc.versions.0), "{}: {version:?}", bmc.id);
        }
        Ok(())
    })
    .await
}

/// The emulator has no inventory, no sessions, no tasks, no reset of the manager, and takes no updates. Of the BMC it tells a
/// version, of the BIOS none.
#[tokio::test]
async fn sushys_emulator_which_lacks_things_is_refused_clearly_and_left_as_it_is() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().to_owned();
        let python = python_with(Path::new(KEPT), "sushy-tools", &PYTHON_SUSHY_TOOLS)?;
        fs::write(folder.join("password"), "any\n")?;
        let port = free_port()?;
        let mut command = Command::new(python.with_file_name("sushy-emulator"));
        command
            .args(["--fake", "--interface", "127.0.0.1", "--port"])
            .arg(port.to_string())
            .env("TMPDIR", &folder);
        let process = Process::spawn("sushy-emulator", command, &folder.join("sushy.log"))?;
        until("sushy's emulator", STARTS_WITHIN, async || {
            let is_there = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
            Ok(Seen::when(is_there, || process.log()))
        })
        .await?;
        let relay = Relay::start(port).await?;
        let mut devices = String::new();
        let maker = ("Sushy Emulator", "3500RX");
        for component in ["bmc", "bios"] {
            devices += &device(component, component, &relay.url, &folder, "username = \"admin\"");
            stage(fleet, component, maker, component, ("1.00", "1.01"))?;
        }
        adopt(fleet, &devices, 2).await?;
        begin(fleet, "bmc")?;
        let view = fleet.campaign_ends("bmc", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "bmc")?;
        for words in [
            "offers no way to take the image",
            "simple_update: start SimpleUpdate",
            "answered 400 Manager is not currently a supported Target.",
            "multipart: the BMC offers no MultipartHttpPushUri",
        ] {
            ensure!(why.contains(words), "{words}: {why}");
        }
        let heard = relay.heard().await;
        let resets = heard
            .iter()
            .filter(|said| said.starts_with("POST") && said.contains(".Reset "))
            .count();
        ensure!(resets == 0, "the emulator was reset");
        // What does not tell its version is not touched at all, whoever asks for it.
        let planned = begin(fleet, "bios");
        let why = match planned {
            Ok(()) => {
                fleet.campaign_ends("bios", ENDS_WITHIN).await?;
                explained(fleet, "bios")?
            }
            Err(error) => format!("{error:#}"),
        };
        ensure!(why.contains("deferred: it does not answer its node"), "{why}");
        let after = relay.heard().await;
        let posts = after[heard.len()..].iter().filter(|said| said.starts_with("POST"));
        let acts: Vec<_> = posts.filter(|said| !said.contains("/Sessions ")).collect();
        ensure!(acts.is_empty(), "{acts:?}");
        Ok(())
    })
    .await
}

/// A port that nobody listens at. Whoever takes one has to let go of it first.
fn free_port() -> Result<u16> {
    Ok(Port::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn device(id: &str, component: &str, url: &str, folder: &Path, more: &str) -> String {
    let password = folder.join("password");
    format!(
        "[[device]]\nid = {id:?}\ncomponent = {component:?}\n\
         executor = {{ kind = \"redfish\", url = {url:?}, password_file = {password:?}, {more} }}\n"
    )
}

/// Stages what devices of this model run and what they are to run, called like their campaign.
fn stage(
    fleet: &Cluster,
    id: &str,
    (vendor, model): (&str, &str),
    component: &str,
    (old, new): (&str, &str),
) -> Result<()> {
    for (version, name, contents) in [(old, "old", "old image"), (new, "new", IMAGE)] {
        let file = fleet.folder().join(format!("{name}.image"));
        fs::write(&file, contents)?;
        let file = file.display().to_string();
        fleet.operator.ok(&["artifact", "add", &file])?;
        let release = format!("firmware/{id}-{name}");
        let kind = ["--vendor", vendor, "--model", model, "--component", component];
        let new = ["--file", &file, "--release-version", version, "--name", &release];
        let args = ["release", "create"].into_iter().chain(kind).chain(new);
        fleet.operator.ok(&args.collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Signs what is staged, gives the node these devices, and waits until all of them have been looked at.
async fn adopt(fleet: &mut Cluster, devices: &str, device_count: usize) -> Result<()> {
    fleet.operator.sign("release")?;
    fleet.operator.ok(&["trust", "publish"])?;
    let node = fleet.node(NODE)?;
    let file = node.folder().join("node.toml");
    let config = fs::read_to_string(&file)?;
    fs::write(&file, config + devices)?;
    node.process.stop(ENDS_WITHIN).await?;
    node.restart().await?;
    until("the devices to be known", ENDS_WITHIN, async || {
        let views = fleet.device_views().await?;
        let known = views.iter().filter(|view| view.facts.executor == "redfish").count();
        Ok(Seen::when(known == device_count, || format!("{views:?}")))
    })
    .await
}

/// Has the campaign of this model approved and started.
fn begin(fleet: &Cluster, id: &str) -> Result<()> {
    let file = format!(
        "id = {id:?}\nexpires = \"2099-01-01T00:00:00Z\"\nreleases = [\"firmware/{id}-new\"]\nprevious = [\"firmware/{id}-old\"]\n{}\n",
        rules(100, (120, 5))
    );
    fs::write(fleet.folder().join(format!("{id}.toml")), file)?;
    let operator = &fleet.operator;
    operator.ok(&["campaign", "create", "--file", &format!("{id}.toml")])?;
    operator.ok(&["campaign", "plan", id])?;
    operator.sign("approver")?;
    operator.ok(&["campaign", "publish"])?;
    operator.ok(&["campaign", "start", id]).map(drop)
}

fn explained(fleet: &Cluster, id: &str) -> Result<String> {
    let why = fleet.operator.ok(&["campaign", "explain", id, "--device", id])?;
    Ok(why.to_string())
}

/// What one connection has said.
type Said = Arc<Mutex<Vec<u8>>>;

/// Passes on what is said to a BMC and what it answers, and keeps what was said: one text per connection, which is one request
/// here, for these servers close after each.
struct Relay {
    url: String,
    heard: Arc<Mutex<Vec<Said>>>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let heard: Arc<Mutex<Vec<Said>>> = Arc::default();
        let ear = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let said: Arc<Mutex<Vec<u8>>> = Arc::default();
                ear.lock().await.push(Arc::clone(&said));
                tokio::spawn(async move {
                    // A side that hangs up in the middle is the other side's business.
                    let _cut_short = pass_on(client, port, &said).await;
                });
            }
        });
        Ok(Self { url, heard, task })
    }

    /// Every request so far, in order.
    async fn heard(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for said in self.heard.lock().await.iter() {
            texts.push(String::from_utf8_lossy(&said.lock().await).into_owned());
        }
        texts
    }

    /// Whether what was said to this BMC is what its dialect wants, the image's bytes among it.
    async fn judge(&self, bmc: &Bmc) -> Result<()> {
        let heard = self.heard().await;
        let (request, within) = bmc.sent;
        let sent: Vec<usize> = (0..heard.len()).filter(|&at| heard[at].starts_with(request)).collect();
        ensure!(sent.len() == 1, "{request}was said {} times: {heard:?}", sent.len());
        let form = &heard[sent[0]];
        for words in within {
            ensure!(form.contains(words), "there is no {words} in {form}");
        }
        if request.starts_with("POST") {
            ensure!(
                form.contains(&format!("\r\n\r\n{IMAGE}\r\n")),
                "the image is not in {form}"
            );
        }
        let mut rest = heard[sent[0]..].iter();
        for request in bmc.follows {
            ensure!(
                rest.any(|said| said.starts_with(request)),
                "{request}does not follow: {heard:?}"
            );
        }
        for request in bmc.never {
            ensure!(!heard.iter().any(|said| said.starts_with(request)), "{request}was said");
        }
        Ok(())
    }
}

async fn pass_on(mut client: TcpStream, port: u16, said: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let there = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = from_client.read(&mut buffer).await?;
            if count == 0 {
                return to_server.shutdown().await;
            }
            said.lock().await.extend_from_slice(&buffer[..count]);
            to_server.write_all(&buffer[..count]).await?;
        }
    };
    let back = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    // Over once the server has said all: it closes after each answer.
    tokio::select! {
        ended = back => ended,
        ended = async { there.await?; std::future::pending().await } => ended,
    }
}
