//! Maintenance mode at govmomi's vCenter simulator, which is looked at with govmomi's own client.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    binaries::Program,
    cluster::Cluster,
    packages::{ensure_command, ensure_file},
    process::Process,
    setup::{NEW, OLD, client, get},
    wait::{Seen, until},
};
use serde_json::Value;

use super::{
    ENDS_WITHIN, NODE, begin, count, explained,
    hosts::{World, host_is, is_back},
    one_node,
};

const GO_PATH: &str = "/usr/share/gocode";
/// The hosts of the one cluster that the simulator has.
const CLUSTER: &str = "/DC0/host/DC0_C0/";

struct Vcenter {
    http: reqwest::Client,
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
        Self::start_in(&fleet.folder().join("vcenter"), &[]).await
    }

    /// The same in any folder, with more to say to it.
    async fn start_in(folder: &Path, more: &[&str]) -> Result<Self> {
        let (program, http) = (simulator()?, client()?);
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
        command.args(more);
        let mut process = Process::spawn("vcsim", command, &folder.join("vcsim.log"))?;
        let addresses = until("the simulator", ENDS_WITHIN, async || {
            ensure!(process.ended()?.is_none(), "it has ended: {}", process.log());
            let addresses: Value = serde_json::from_slice(&fs::read(folder.join("addresses.json"))?)?;
            Ok(Seen::Yes(addresses))
        })
        .await?;
        let address = |name: &str| addresses[name].as_str().map(str::to_owned).context("no address");
        let control = address("control")?;
        let hosts: Value = get(&http, &format!("{control}/hosts")).await?;
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
            http,
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

    async fn ask(&self, what: &str) -> Result<Value> {
        get(&self.http, &format!("{}/{what}", self.control)).await
    }

    /// Whether a host is in maintenance mode, by the other client's word.
    async fn is_aside(&self, path: &str) -> Result<bool> {
        let hosts = self.ask("hosts").await?;
        let hosts = hosts.as_array().context("a list")?;
        let host = hosts.iter().find(|host| host["path"] == path).context("no such host")?;
        host["maintenance"].as_bool().context("a truth")
    }

    /// Tasks on hosts so far, oldest first.
    async fn tasks(&self) -> Result<Vec<String>> {
        let tasks = self.ask("tasks").await?;
        let tasks = tasks.as_array().context("a list")?.iter();
        Ok(tasks
            .map(|task| format!("{} {}", task["what"], task["host"]).replace('"', ""))
            .collect())
    }

    /// How often somebody has told the vCenter the password.
    async fn told(&self) -> Result<u64> {
        let told = self.ask("told").await?;
        told.as_u64().context("a number")
    }

    /// Has an administrator do something.
    async fn administer(&self, what: &str) -> Result<()> {
        let answer = self.http.get(format!("{}/{what}", self.control)).send().await?;
        answer.error_for_status()?;
        Ok(())
    }
}

/// The host is in maintenance mode while its device is written, and out of it after, though the node is killed meanwhile.
#[tokio::test]
async fn a_host_is_in_maintenance_mode_for_its_update_and_no_longer() -> Result<()> {
    one_node(async |fleet| {
        let vcenter = Vcenter::start(fleet).await?;
        vcenter.administer("off").await?;
        let fingerprint = vcenter.fingerprint()?;
        let world = World::bring(fleet, |_| Ok(vcenter.toml(&fingerprint, ""))).await?;
        world.set("hold-flash")?;
        begin(fleet, "spring", "nic", (NEW, OLD), 10)?;
        // The tool does not know of vCenter, and says that the host serves: its mark is the script's.
        world.happens("flash-in-service", 1).await?;
        ensure!(vcenter.is_aside(&vcenter.host).await?, "not in maintenance mode");
        fleet.node(NODE)?.process.kill()?;
        fleet.node(NODE)?.restart().await?;
        world.unset("hold-flash")?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        is_back(fleet).await?;
        ensure!(!vcenter.is_aside(&vcenter.host).await?, "still in maintenance mode");
        let tasks = vcenter.tasks().await?;
        let entered = ["enter", "exit"].map(|way| format!("HostSystem.{way}MaintenanceMode {}", vcenter.host));
        ensure!(tasks == entered, "{tasks:?}");
        ensure!(vcenter.told().await? > 0, "nobody has logged in");
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

        vcenter.administer("drs?behaviour=manual").await?;
        begin(fleet, "manual", "nic", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("manual", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "manual")?;
        ensure!(why.contains("DRS is not on and fully automated"), "{why}");
        ensure!(vcenter.tasks().await?.is_empty(), "{:?}", vcenter.tasks().await?);

        // The simulator says that the host has entered, and has moved no machine.
        vcenter.administer("drs?behaviour=fullyAutomated").await?;
        begin(fleet, "liar", "nic", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("liar", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "liar")?;
        ensure!(why.contains("machines still run on it"), "{why}");
        is_back(fleet).await?;
        ensure!(!vcenter.is_aside(&vcenter.host).await?, "still in maintenance mode");
        ensure!(world.log().is_empty(), "{:?}", world.log());

        vcenter.administer("off").await?;
        vcenter.administer(&format!("enter?host={}", vcenter.other)).await?;
        begin(fleet, "waits", "nic", (NEW, OLD), 10)?;
        let busy = |host: &Value| {
            let problem = host["problem"].as_str().unwrap_or_default();
            problem.contains("are aside, and at most 1 may be at once")
        };
        host_is(fleet, "the host to wait for another one", busy).await?;
        ensure!(!vcenter.is_aside(&vcenter.host).await?, "two are in maintenance mode");
        vcenter.administer(&format!("exit?host={}", vcenter.other)).await?;
        let view = fleet.campaign_ends("waits", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        is_back(fleet).await?;

        vcenter.administer(&format!("enter?host={}", vcenter.host)).await?;
        begin(fleet, "again", "nic", (OLD, NEW), 10)?;
        let view = fleet.campaign_ends("again", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        is_back(fleet).await?;
        ensure!(
            vcenter.is_aside(&vcenter.host).await?,
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
        ensure!(vcenter.told().await? == 0, "a stranger was told the password");
        ensure!(
            world.log().is_empty() && vcenter.tasks().await?.is_empty(),
            "{:?}",
            world.log()
        );
        Ok(())
    })
    .await
}

/// Hundreds of hosts, which come in pages: what is printed of them is a node's configuration, but for their BMCs.
#[tokio::test]
async fn hosts_and_clusters_become_hosts_and_fault_domains_of_a_node() -> Result<()> {
    let place = tempfile::tempdir()?;
    let vcenter = Vcenter::start_in(place.path(), &["-clusters=2", "-cluster-hosts=110"]).await?;
    let first = "/DC0/host/DC0_C0/DC0_C0_H0";
    let bad = "\"]\n[[device]]\u{202e}";
    let disguise = |host: &str, more: &[(&str, &str)]| {
        let url = reqwest::Url::parse_with_params("http://control/disguise", [("host", host)].iter().chain(more));
        anyhow::Ok(format!("disguise?{}", url?.query().unwrap_or_default()))
    };
    let hardware = [
        ("vendor", "Dell Inc."),
        ("model", "PowerEdge R750"),
        ("serial", bad),
        ("bios", "2.1.8"),
        ("bmc", "10.1.9.7"),
    ];
    vcenter.administer(&disguise(first, &hardware)?).await?;
    let twin = "/DC0/host/DC0_C0/DC0_C0_H1";
    vcenter.administer(&disguise(twin, &[("name", "dc0_c1_h1")])?).await?;
    vcenter.administer(&format!("enter?host={first}")).await?;
    let told = vcenter.told().await?;

    let folder = vcenter.folder.clone();
    let node = |fingerprint: &str, more: &[&str]| {
        let mut command = Command::new(Program::Node.path()?);
        command.args(["--import-vcenter", &vcenter.url, "--vcenter-username", "firmesh"]);
        command.args([
            "--vcenter-password-file",
            "password",
            "--vcenter-fingerprint",
            fingerprint,
        ]);
        let output = command.args(more).current_dir(&folder).output()?;
        let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
        ensure!(!said.concat().contains("s3cret"), "the password is told: {said:?}");
        let [answer, error] = said;
        anyhow::Ok((output.status.success(), answer, error))
    };
    let (is_well, answer, error) = node(&"ab".repeat(32), &[])?;
    ensure!(
        !is_well && answer.is_empty() && error.contains("certificate"),
        "{answer} {error}"
    );
    ensure!(vcenter.told().await? == told, "a stranger was told the password");

    let fingerprint = vcenter.fingerprint()?;
    let (is_well, answer, error) = node(&fingerprint, &["--json"])?;
    ensure!(is_well && error.contains("219 hosts, and 2 that cannot"), "{error}");
    let continued = vcenter.ask("continued").await?;
    ensure!(continued == 1, "{continued} more pages");
    let lines = answer.lines().map(serde_json::from_str::<Value>);
    let lines = lines.collect::<Result<Vec<_>, _>>()?;
    let not: Vec<_> = lines
        .iter()
        .map(|line| &line["not_imported"])
        .filter(|not| !not.is_null())
        .collect();
    let twins = |not: &&Value| not["reason"].as_str().is_some_and(|why| why.contains("the same name"));
    ensure!(not.len() == 2 && not.iter().all(twins), "{not:?}");
    let hosts: BTreeMap<_, _> = lines
        .iter()
        .map(|line| &line["host"])
        .filter_map(|host| Some((host["path"].as_str()?, host)))
        .collect();
    let theirs = vcenter.ask("hosts").await?;
    for host in theirs.as_array().context("a list")? {
        let path = host["path"].as_str().context("a path")?;
        let Some(ours) = hosts.get(path) else {
            ensure!(
                path.ends_with("_H1") || path.ends_with("dc0_c1_h1"),
                "{path} is missing"
            );
            continue;
        };
        ensure!(ours["in_maintenance"] == host["maintenance"], "{ours}");
    }
    let label = |path: &str| hosts.get(path).and_then(|host| host["cluster_label"].as_str());
    let [one, two] = ["DC0_C0", "DC0_C1"].map(|cluster| {
        let of = (0..110).filter_map(|number| label(&format!("/DC0/host/{cluster}/{cluster}_H{number}")));
        of.collect::<BTreeSet<_>>()
    });
    ensure!(one.len() == 1 && two.len() == 1 && one != two, "{one:?} {two:?}");
    ensure!(
        label("/DC0/host/DC0_H0/DC0_H0").is_none(),
        "a host without a cluster has one"
    );
    let found = hosts.get(first).context("the first host")?;
    let facts = [
        "vendor",
        "model",
        "serial",
        "bios_version",
        "bmc_address",
        "datacenter",
        "cluster",
        "connection",
    ];
    let facts = facts.map(|fact| found[fact].as_str().unwrap_or_default());
    let serial = "\"][[device]]\u{202e}";
    ensure!(
        facts
            == [
                "Dell Inc.",
                "PowerEdge R750",
                serial,
                "2.1.8",
                "10.1.9.7",
                "DC0",
                "DC0_C0",
                "connected"
            ],
        "{found}"
    );
    ensure!(
        found["in_maintenance"] == true && found["esxi_version"].is_string(),
        "{found}"
    );

    let (is_well, answer, error) = node(
        &fingerprint,
        &["--vcenter-below", "/DC0/host/DC0_C0", "/DC0/host/DC0_H0"],
    )?;
    ensure!(is_well && error.contains("110 hosts, and 1 that cannot"), "{error}");
    let is_named = answer
        .lines()
        .any(|line| line.starts_with("# ") && line.contains("is not imported"));
    ensure!(is_named, "{answer}");
    let file = folder.join("node.toml");
    fs::write(folder.join("root.json"), "a root")?;
    let before = "node = \"n1\"\npath = \"eu/s1/r1/n1\"\nstate_dir = \"state\"\nroot_file = \"root.json\"\n\
                      [coordinator]\nurl = \"https://localhost:8641\"\nca_file = \"certificate.pem\"\n";
    let check = |answer: &str| {
        fs::write(&file, format!("{before}\n{answer}"))?;
        let mut command = Command::new(Program::Node.path()?);
        let output = command.args(["--check-config", "--config"]).arg(&file).output()?;
        let [said, error] = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        anyhow::Ok((output.status.success(), said, error))
    };
    let (is_well, _, error) = check(&answer)?;
    ensure!(
        !is_well && error.contains("device dc0_c0_h0-bmc: ca_file is missing"),
        "what is to be added is not said: {error}"
    );
    // What an operator adds.
    let bmc = format!(
        ", ca_file = {:?}, username = \"u\", password_file = {:?} }}",
        folder.join("certificate.pem"),
        folder.join("password")
    );
    let mut added = String::new();
    for line in answer.lines() {
        let line = line.replace("url = \"\"", "url = \"https://10.1.9.8\"");
        match line
            .strip_prefix("executor = ")
            .and_then(|executor| executor.strip_suffix(" }"))
        {
            Some(executor) => writeln!(added, "executor = {executor}{bmc}")?,
            None => writeln!(added, "{line}")?,
        }
    }
    let (is_well, said, error) = check(&added)?;
    ensure!(is_well && !said.contains("s3cret"), "{error}");
    for (what, count) in [
        ("        HostSettings {", 110),
        ("        DeviceSettings {", 220),
        (*one.first().context("a label")?, 2 * 109),
        ("\"/DC0/host/DC0_H0/DC0_H0\"", 1),
        ("\"dc0_h0-bios\"", 1),
    ] {
        let found = said.matches(what).count();
        ensure!(found == count, "{what} stands there {found} times, not {count}: {said}");
    }
    Ok(())
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
