//! Hosts that step aside for their devices by a program of the operator's: before anything is done to a device, and back after
//! every end, whoever is killed in between.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    cluster::Cluster,
    setup::{NEW, OLD, stage_release},
    wait::{Seen, at_the_moment, until},
};
use serde_json::Value;

use super::{ENDS_WITHIN, NODE, adopt_with, begin, count, explained, one_node, version};

const HOST: &str = "h-17";

/// What updates the device: it waits while somebody holds it, fails when somebody breaks it, and notes whether its host served
/// while it wrote.
const TOOL: &str = r#"
cd "$1"
case "$2" in
    show) head -n 1 device ;;
    install)
        if [ -e aside ]; then echo flash >> log; else echo flash-in-service >> log; fi
        while [ -e hold-flash ]; do sleep 0.05; done
        if [ -e broken ]; then echo "the flash is worn out"; exit 1; fi
        cp "$3" device ;;
esac
"#;

/// What has the host step aside.
const ASIDE: &str = r#"
cd "$PLACE"
[ "$2" = h-17 ] || exit 64
case "$1" in
    state) if [ -e aside ]; then exit 10; fi ;;
    enter)
        echo enter >> log
        if [ -e refuse ]; then echo "no room for its machines, says $TOKEN"; exit 1; fi
        while [ -e hold-enter ]; do sleep 0.05; done
        touch aside ;;
    exit)
        echo exit >> log
        if [ -e stuck ]; then echo "nobody answers"; exit 1; fi
        rm -f aside ;;
esac
"#;

/// The device, its host, and what happened to them.
pub(super) struct World {
    folder: PathBuf,
}

impl World {
    /// Brings the node a device that a described tool updates, with this `[[host]]` after it.
    pub(super) async fn bring(fleet: &mut Cluster, more: impl FnOnce(&Path) -> Result<String>) -> Result<Self> {
        let folder = fleet.folder().join("world");
        fs::create_dir_all(&folder)?;
        for (name, text) in [
            ("tool", TOOL),
            ("script", ASIDE),
            ("token", "s3cret-token\n"),
            ("log", ""),
        ] {
            fs::write(folder.join(name), text)?;
        }
        for (name, version) in [("old.rom", OLD), ("new.rom", NEW)] {
            let file = folder.join(name);
            fs::write(&file, format!("{version}\n{}", "contents\n".repeat(5_000)))?;
            let file = file.display().to_string();
            fleet.operator.ok(&["artifact", "add", &file])?;
            stage_release(&fleet.operator, &file, "R1", "nic", version)?;
        }
        fs::copy(folder.join("old.rom"), folder.join("device"))?;
        let run = |verb: &str| format!("run = [\"sh\", \"{{tool}}\", \"{{world}}\", {verb}");
        let described = format!(
            "schema = \"firmesh-tool/1\"\nname = \"stranger\"\nparams = [\"tool\", \"world\"]\nversion = {{ {}] }}\n[install]\n{}, \"{{image}}\"]\n",
            run("\"show\""),
            run("\"install\"")
        );
        fs::write(folder.join("tool.toml"), described)?;
        let executor = format!(
            "kind = \"command\", tool = {:?}, work_dir = \"tools\", vendor = \"Acme\", model = \"R1\", params = {{ tool = {:?}, world = {:?} }}",
            folder.join("tool.toml"),
            folder.join("tool"),
            folder
        );
        let more = format!("host = {HOST:?}\n[[host]]\nname = {HOST:?}\n{}\n", more(&folder)?);
        adopt_with(fleet, "nic", &executor, &more).await?;
        Ok(Self { folder })
    }

    pub(super) fn set(&self, name: &str) -> Result<()> {
        Ok(fs::write(self.folder.join(name), "")?)
    }

    pub(super) fn unset(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.folder.join(name))?)
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    pub(super) fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Waits until this has happened so often.
    pub(super) async fn happens(&self, what: &str, times: usize) -> Result<()> {
        at_the_moment(what, ENDS_WITHIN, async || {
            let log = self.log();
            let found = log.iter().filter(|line| *line == what).count();
            Ok(Seen::when(found >= times, || format!("{log:?}")))
        })
        .await
    }
}

fn script(folder: &Path) -> Result<String> {
    Ok(format!(
        "prepare = {{ kind = \"script\", run = [\"sh\", {:?}, \"{{verb}}\", \"{{host}}\"], limit_s = 60, \
         env = {{ PLACE = {folder:?}, TOKEN = \"{{token}}\" }}, secret_files = {{ token = {:?} }} }}",
        folder.join("script"),
        folder.join("token")
    ))
}

/// The host as its node sees it, once it stands so.
pub(super) async fn host_is(fleet: &mut Cluster, awaited: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let node = fleet.node(NODE)?;
    until(awaited, ENDS_WITHIN, async || {
        let status = node.status().await?;
        let host = status["hosts"][0].clone();
        Ok(match holds(&host) {
            true => Seen::Yes(host),
            false => Seen::NotYet(host.to_string()),
        })
    })
    .await
}

pub(super) async fn is_back(fleet: &mut Cluster) -> Result<()> {
    let back = |host: &Value| host["state"] == "back" && host["owed"] == false;
    host_is(fleet, "the host to be back", back).await.map(drop)
}

/// The node is killed over the preparation, over the update and over the giving back.
#[tokio::test]
async fn a_host_steps_aside_once_and_is_given_back_though_its_node_is_killed_three_times() -> Result<()> {
    one_node(async |fleet| {
        let world = World::bring(fleet, script).await?;
        for hold in ["hold-enter", "hold-flash", "stuck"] {
            world.set(hold)?;
        }
        begin(fleet, "spring", "nic", (NEW, OLD), 10)?;
        world.happens("enter", 1).await?;
        until("the report of what it waits for", ENDS_WITHIN, async || {
            let why = explained(fleet, "spring")?;
            Ok(Seen::when(
                why.contains("waits for its host h-17 to step aside"),
                || why,
            ))
        })
        .await?;
        fleet.node(NODE)?.process.kill()?;
        fleet.node(NODE)?.restart().await?;
        ensure!(!world.is("aside") && world.log() == ["enter"], "{:?}", world.log());
        world.unset("hold-enter")?;
        world.happens("flash", 1).await?;
        fleet.node(NODE)?.process.kill()?;
        fleet.node(NODE)?.restart().await?;
        ensure!(world.is("aside"), "given back while the device is written");
        world.unset("hold-flash")?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(count(&view, AttemptState::Success) == 1, "{view:?}");
        ensure!(
            version(fleet).await?.as_deref() == Some(NEW),
            "{:?}",
            version(fleet).await?
        );
        // It cannot be given back: that is shown, and not forgotten.
        for _ in 0..2 {
            let stuck = |host: &Value| {
                host["problem"]
                    .as_str()
                    .is_some_and(|problem| problem.contains("nobody answers"))
            };
            let host = host_is(fleet, "the failure to be shown", stuck).await?;
            ensure!(host["state"] == "leaving" && host["owed"] == true, "{host}");
            let metrics = format!("{}/metrics", fleet.node(NODE)?.status_url()?);
            let metrics = fleet.http().get(metrics).send().await?.text().await?;
            ensure!(metrics.contains("firmesh_node_hosts_not_given_back 1"), "{metrics}");
            fleet.node(NODE)?.process.kill()?;
            fleet.node(NODE)?.restart().await?;
        }
        ensure!(world.is("aside"), "{:?}", world.log());
        world.unset("stuck")?;
        is_back(fleet).await?;
        ensure!(!world.is("aside"), "{:?}", world.log());
        // Nobody heard how the first one ended: it is entered once more, though it looks aside.
        let log = world.log();
        ensure!(
            log[..3] == ["enter", "enter", "flash"] && log[3..].iter().all(|line| line == "exit"),
            "{log:?}"
        );
        Ok(())
    })
    .await
}

/// A refusal touches nothing, a failure gives the host back, and a host that somebody else has aside stays so.
#[tokio::test]
async fn a_host_is_given_back_after_a_failure_and_a_refusal_leaves_its_device_alone() -> Result<()> {
    one_node(async |fleet| {
        let world = World::bring(fleet, script).await?;
        world.set("refuse")?;
        begin(fleet, "refused", "nic", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("refused", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "refused")?;
        ensure!(
            why.contains("its host h-17 does not step aside") && why.contains("no room for its machines"),
            "{why}"
        );
        ensure!(!why.contains("s3cret-token"), "{why}");
        is_back(fleet).await?;
        ensure!(world.log() == ["enter", "exit"], "{:?}", world.log());

        world.unset("refuse")?;
        world.set("broken")?;
        begin(fleet, "broken", "nic", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("broken", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Success) == 0, "{view:?}");
        is_back(fleet).await?;
        let log = world.log();
        ensure!(
            log[2..5] == ["enter", "flash", "exit"] && log.last().is_some_and(|line| line == "exit"),
            "{log:?}"
        );
        ensure!(
            !log.iter().any(|line| line == "flash-in-service") && !world.is("aside"),
            "{log:?}"
        );

        world.unset("broken")?;
        world.set("aside")?;
        begin(fleet, "aside", "nic", (NEW, OLD), 10)?;
        let view = fleet.campaign_ends("aside", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Success) == 1, "{view:?}");
        is_back(fleet).await?;
        ensure!(
            world.is("aside") && world.log()[log.len()..] == ["flash"],
            "{:?}",
            world.log()
        );
        Ok(())
    })
    .await
}
