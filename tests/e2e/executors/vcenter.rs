//! Maintenance mode at govmomi's vCenter simulator, which is looked at with govmomi's own client.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    cluster::Cluster,
    packages::{ensure_command, ensure_file},
    process::Process,
    setup::{NEW, OLD},
    wait::{Seen, until},
};
use serde_json::Value;

use super::{
    ENDS_WITHIN, NODE, begin, count, explained,
    hosts::{World, ask, host_is, is_back},
    one_node,
};

const GO_PATH: &str = "/usr/share/gocode";
/// The hosts of the one cluster that the simulator has.
const CLUSTER: &str = "/DC0/host/DC0_C0/";

struct Vcenter {
    folder: PathBuf,
    url: String,
    control: String,
    /// A host of the cluster on which machines run.
    host: String,
    /// Another host of the cluster.
    other: String,
    _process: Process,
}

impl Vcenter {
    /// Builds the simulator out of Debian's packages, once, and starts it with a certificate of its own.
    async fn start(fleet: &Cluster) -> Result<Self> {
        let program = simulator()?;
        let folder = &fleet.folder().join("vcenter");
        fs::create_dir_all(folder)?;
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        fs::write(folder.join("certificate.pem"), made.cert.pem())?;
        fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?;
        fs::write(folder.join("password"), "s3cret & <pw>\n")?;
        fs::write(folder.join("fingerprint"), hex::encode(sha256(made.cert.der())))?;
        let mut command = Command::new(program);
        let file = |name: &str| folder.join(name).display().to_string();
        let flags = [
            ("certificate", "certificate.pem"),
            ("key", "key.pem"),
            ("out", "addresses.json"),
        ];
        command.args(flags.map(|(flag, name)| format!("-{flag}={}", file(name))));
        let mut process = Process::spawn("vcsim", command, &folder.join("vcsim.log"))?;
        let addresses = until("the simulator", ENDS_WITHIN, async || {
            ensure!(process.ended()?.is_none(), "it has ended: {}", process.log());
            let addresses: Value = serde_json::from_slice(&fs::read(folder.join("addresses.json"))?)?;
            Ok(Seen::Yes(addresses))
        })
        .await?;
        let address = |name: &str| addresses[name].as_str().map(str::to_owned).context("no address");
        let control = address("control")?;
        let hosts = ask(fleet, &format!("{control}/hosts")).await?;
        let all = hosts.as_array().context("a list")?.iter();
        let mut all: Vec<_> = all
            .filter_map(|host| Some((host["running"].as_u64()?, host["path"].as_str()?)))
            .filter(|(_, path)| path.starts_with(CLUSTER))
            .collect();
        all.sort_unstable();
        let (Some((1.., host)), Some((_, other))) = (all.last(), all.first()) else {
            bail!("the simulator has no such hosts: {hosts}")
        };
        Ok(Self {
            folder: folder.to_owned(),
            url: address("vcenter")?,
            control,
            host: (*host).to_owned(),
            other: (*other).to_owned(),
            _process: process,
        })
    }

    fn toml(&self, fingerprint: &str, more: &str) -> String {
        format!(
            "prepare = {{ kind = \"vcenter\", url = {:?}, fingerprint = {fingerprint:?}, host = {:?}, username = \"firmesh\", \
             password_file = {:?}{more} }}",
            self.url,
            self.host,
            self.folder.join("password")
        )
    }

    fn fingerprint(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("fingerprint"))?)
    }

    /// Whether a host is in maintenance mode, by the other client's word.
    async fn is_aside(&self, fleet: &Cluster, path: &str) -> Result<bool> {
        let hosts = ask(fleet, &format!("{}/hosts", self.control)).await?;
        let hosts = hosts.as_array().context("a list")?;
        let host = hosts.iter().find(|host| host["path"] == path).context("no such host")?;
        host["maintenance"].as_bool().context("a truth")
    }

    /// Tasks on hosts so far, oldest first.
    async fn tasks(&self, fleet: &Cluster) -> Result<Vec<String>> {
        let tasks = ask(fleet, &format!("{}/tasks", self.control)).await?;
        let tasks = tasks.as_array().context("a list")?.iter();
        Ok(tasks
            .map(|task| format!("{} {}", task["what"], task["host"]).replace('"', ""))
            .collect())
    }

    /// How often somebody has told the vCenter the password.
    async fn told(&self, fleet: &Cluster) -> Result<u64> {
        let told = ask(fleet, &format!("{}/told", self.control)).await?;
        told.as_u64().context("a number")
    }

    /// Has an administrator do something.
    async fn administer(&self, fleet: &Cluster, what: &str) -> Result<()> {
        let answer = fleet.http().get(format!("{}/{what}", self.control)).send().await?;
        answer.error_for_status()?;
        Ok(())
    }
}

/// The host is in maintenance mode while its device is written, and out of it after, though the node is killed meanwhile.
#[tokio::test]
async fn a_host_is_in_maintenance_mode_for_its_update_and_no_longer() -> Result<()> {
    one_node(async |fleet| {
        let vcenter = Vcenter::start(fleet).await?;
        vcenter.administer(fleet, "off").await?;
        let fingerprint = vcenter.fingerprint()?;
        let world = World::bring(fleet, |_| Ok(vcenter.toml(&fingerprint, ""))).await?;
        world.set("hold-flash")?;
        begin(fleet, "spring", "nic", (NEW, OLD), 10)?;
        // The tool does not know of vCenter, and says that the host serves: its mark is the script's.
        world.happens("flash-in-service", 1).await?;
        ensure!(vcenter.is_aside(fleet, &vcenter.host).await?, "not in maintenance mode");
        fleet.node(NODE)?.process.kill()?;
        fleet.node(NODE)?.restart().await?;
        world.unset("hold-flash")?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        is_back(fleet).await?;
        ensure!(
            !vcenter.is_aside(fleet, &vcenter.host).await?,
            "still in maintenance mode"
        );
        let tasks = vcenter.tasks(fleet).await?;
        let entered = ["enter", "exit"].map(|way| format!("HostSystem.{way}MaintenanceMode {}", vcenter.host));
        ensure!(tasks == entered, "{tasks:?}");
        ensure!(vcenter.told(fleet).await? > 0, "nobody has logged in");
        let log = fs::read_to_string(fleet.node(NODE)?.folder().join("node.log"))?;
        ensure!(!log.contains("s3cret"), "the password is in the log");
        Ok(())
    })
    .await
}

/// Running machines need DRS, and have to be gone; another host in maintenance mode is waited for; what was in it before stays.
#[tokio::test]
async fn what_a_cluster_has_no_room_for_is_refused_or_waited_for() -> Result<()> {
    one_node(async |fleet| {
        let vcenter = Vcenter::start(fleet).await?;
        let fingerprint = vcenter.fingerprint()?;
        let world = World::bring(fleet, |_| Ok(vcenter.toml(&fingerprint, ""))).await?;

        vcenter.administer(fleet, "drs?behaviour=manual").await?;
        begin(fleet, "manual", "nic", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("manual", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "manual")?;
        ensure!(why.contains("DRS is not on and fully automated"), "{why}");
        ensure!(
            vcenter.tasks(fleet).await?.is_empty(),
            "{:?}",
            vcenter.tasks(fleet).await?
        );

        // The simulator says that the host has entered, and has moved no machine.
        vcenter.administer(fleet, "drs?behaviour=fullyAutomated").await?;
        begin(fleet, "liar", "nic", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("liar", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "liar")?;
        ensure!(why.contains("machines still run on it"), "{why}");
        is_back(fleet).await?;
        ensure!(
            !vcenter.is_aside(fleet, &vcenter.host).await?,
            "still in maintenance mode"
        );
        ensure!(world.log().is_empty(), "{:?}", world.log());

        vcenter.administer(fleet, "off").await?;
        vcenter
            .administer(fleet, &format!("enter?host={}", vcenter.other))
            .await?;
        begin(fleet, "waits", "nic", (NEW, OLD), 10)?;
        let busy = |host: &Value| {
            let problem = host["problem"].as_str().unwrap_or_default();
            problem.contains("are aside, and at most 1 may be at once")
        };
        host_is(fleet, "the host to wait for another one", busy).await?;
        ensure!(
            !vcenter.is_aside(fleet, &vcenter.host).await?,
            "two are in maintenance mode"
        );
        vcenter
            .administer(fleet, &format!("exit?host={}", vcenter.other))
            .await?;
        let view = fleet.campaign_ends("waits", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        is_back(fleet).await?;

        vcenter
            .administer(fleet, &format!("enter?host={}", vcenter.host))
            .await?;
        begin(fleet, "again", "nic", (OLD, NEW), 10)?;
        let view = fleet.campaign_ends("again", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        is_back(fleet).await?;
        ensure!(
            vcenter.is_aside(fleet, &vcenter.host).await?,
            "taken out of an administrator's maintenance mode"
        );
        Ok(())
    })
    .await
}

/// Somebody else's certificate, though its name would do: nobody is told the password.
#[tokio::test]
async fn a_vcenter_with_another_certificate_is_not_spoken_to() -> Result<()> {
    one_node(async |fleet| {
        let vcenter = Vcenter::start(fleet).await?;
        let world = World::bring(fleet, |_| {
            Ok(format!("within_s = 3\n{}", vcenter.toml(&"ab".repeat(32), "")))
        })
        .await?;
        begin(fleet, "spring", "nic", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "spring")?;
        ensure!(
            why.contains("did not step aside in time") && why.contains("certificate"),
            "{why}"
        );
        ensure!(vcenter.told(fleet).await? == 0, "a stranger was told the password");
        ensure!(
            world.log().is_empty() && vcenter.tasks(fleet).await?.is_empty(),
            "{:?}",
            world.log()
        );
        Ok(())
    })
    .await
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

/// Debian has the simulator as a library; a program around it is built here.
fn simulator() -> Result<PathBuf> {
    let go = ensure_command("go", "golang-go")?;
    let library = format!("{GO_PATH}/src/github.com/vmware/govmomi/simulator/simulator.go");
    ensure_file(&[&library], "golang-github-vmware-govmomi-dev")?;
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vcsim");
    fs::create_dir_all(&place)?;
    // One test process at a time builds it, the others find it built.
    let lock = fs::File::create(place.join("lock"))?;
    lock.lock()?;
    let program = place.join("vcsim");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/executors/vcsim/main.go");
    let output = Command::new(go)
        .args(["build".as_ref(), "-o".as_ref(), program.as_os_str(), source.as_os_str()])
        .current_dir(&place)
        .env("GO111MODULE", "off")
        .env("GOPATH", GO_PATH)
        .env("GOCACHE", place.join("cache"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "go build failed: {said}");
    Ok(program)
}
