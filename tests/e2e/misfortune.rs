//! Point 10: a full disk, a read-only one, a port in use, a clock that is years off, a missing file: each a clear error,
//! and nothing is damaged.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Shape},
    process::Process,
    setup::{NEW, OLD, rules},
    wait::{Seen, until},
};

const WITHIN: Duration = Duration::from_secs(60);
const NODE: &str = "r1-n1";

fn small() -> Shape {
    Shape {
        racks: 1,
        nodes: 1,
        bmcs: 1,
        hosts: 0,
        ..Shape::default()
    }
}

/// The image does not fit. The node says so, goes on answering, and completes once there is room.
#[tokio::test]
async fn a_full_disk_is_named_and_waited_out() -> Result<()> {
    Cluster::with(
        Shape {
            image_bytes: 24 << 20,
            ..small()
        },
        async |fleet| {
            let node = fleet.node(NODE)?;
            node.process.stop(WITHIN).await?;
            let config = node.folder().join("node.toml");
            let log = node.folder().join("full.log");
            let store = node.folder().join("state/store");
            node.replace(Process::spawn("firmesh-node", little_room(&config, &store)?, &log)?)
                .await?;
            fleet.start_campaign("spring", &rules(1, (120, 20)))?;
            let node = fleet.node(NODE)?;
            let error = until("the node to say what is wrong", WITHIN, async || {
                let status = node.status().await?;
                Ok(status["last_error"]
                    .as_str()
                    .map_or_else(|| Seen::NotYet(status.to_string()), |e| Seen::Yes(e.to_owned())))
            })
            .await?;
            println!("full disk: {error}");
            let said = fs::read_to_string(&log)?;
            ensure!(!said.contains("panicked"), "{said}");
            ensure!(fleet.running(OLD).await? == 1, "a device was touched");

            let node = fleet.node(NODE)?;
            node.process.kill()?;
            node.restart().await?;
            completes(fleet).await
        },
    )
    .await
}

#[tokio::test]
async fn a_store_that_cannot_be_written_ends_a_node_and_a_coordinator_with_its_name() -> Result<()> {
    Cluster::with(small(), async |fleet| {
        fleet.node(NODE)?.process.stop(WITHIN).await?;
        fleet.coordinator.stop(WITHIN).await?;
        let state = fleet.node(NODE)?.folder().join("state");
        let said = read_only(&state, Program::Node, &fleet.node(NODE)?.folder().join("node.toml"))?;
        ensure!(
            said.contains(&state.display().to_string()),
            "the folder is not named: {said}"
        );
        println!("read-only store: {said}");
        let state = fleet.folder().join("coordinator");
        let said = read_only(&state, Program::Coordinator, &fleet.folder().join("coordinator.toml"))?;
        ensure!(
            said.contains(&state.display().to_string()),
            "the folder is not named: {said}"
        );
        println!("read-only store: {said}");

        fleet.restart_coordinator().await?;
        fleet.node(NODE)?.restart().await?;
        fleet.start_campaign("spring", &rules(1, (120, 20)))?;
        completes(fleet).await
    })
    .await
}

#[tokio::test]
async fn a_port_in_use_ends_a_node_and_a_coordinator_with_its_number() -> Result<()> {
    Cluster::with(small(), async |fleet| {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let address = taken.local_addr()?.to_string();
        fleet.node(NODE)?.process.stop(WITHIN).await?;
        let folder = fleet.node(NODE)?.folder().to_owned();
        let config = fs::read_to_string(folder.join("node.toml"))?;
        for section in ["status", "images"] {
            let with_port = config.replacen("[mesh]", &format!("[{section}]\nlisten = {address:?}\n[mesh]"), 1);
            let file = folder.join("port.toml");
            fs::write(&file, with_port)?;
            let said = fails(Program::Node, &["--config".as_ref(), file.as_ref()])?;
            ensure!(said.contains(&address), "{section}: the address is not named: {said}");
            println!("port in use, {section}: {said}");
        }
        let file = fleet.folder().join("port.toml");
        fs::write(
            &file,
            format!("state_dir = \"other\"\n[operators]\nlisten = {address:?}\n[nodes]\nlisten = \"127.0.0.1:0\"\n"),
        )?;
        let said = fails(Program::Coordinator, &["--config".as_ref(), file.as_ref()])?;
        ensure!(said.contains(&address), "the address is not named: {said}");
        println!("port in use, coordinator: {said}");

        fleet.node(NODE)?.restart().await?;
        fleet.start_campaign("spring", &rules(1, (120, 20)))?;
        completes(fleet).await
    })
    .await
}

/// Ten years ahead and ten years behind. Metadata and certificates are judged by that clock and refused; afterwards,
/// with the right time, the node goes on as if nothing had been.
#[tokio::test]
async fn a_clock_that_is_years_off_is_named_and_leaves_no_trace() -> Result<()> {
    Cluster::with(small(), async |fleet| {
        let shim = clock_shim(fleet.folder())?;
        fleet.start_campaign("spring", &rules(1, (120, 20)))?;
        fleet.operator.ok(&["campaign", "pause", "spring"])?;
        for (years, says) in [(10, "expired"), (-10, "not valid yet")] {
            let node = fleet.node(NODE)?;
            node.process.stop(WITHIN).await?;
            let log = node.folder().join(format!("clock{years}.log"));
            let mut command = Command::new(Program::Node.path()?);
            command
                .arg("--config")
                .arg(node.folder().join("node.toml"))
                .env("LD_PRELOAD", &shim);
            command.env("CLOCK_OFFSET_S", (years * 365 * 86_400_i64).to_string());
            let mut process = Process::spawn("firmesh-node", command, &log)?;
            let said = until(&format!("a word on a clock {years} years off"), WITHIN, async || {
                let said = process.log();
                let ended = process.ended()?.is_some();
                let named = said.contains(says) || said.contains("valid from");
                Ok(if named || ended {
                    Seen::Yes(said)
                } else {
                    Seen::NotYet(said)
                })
            })
            .await?;
            ensure!(
                said.contains(says) || said.contains("valid from"),
                "{years} years off: {said}"
            );
            ensure!(!said.contains("panicked"), "{said}");
            println!("{years} years off: {}", said.lines().last().unwrap_or_default());
            drop(process);
            ensure!(fleet.running(OLD).await? == 1, "a device was touched");
            fleet.node(NODE)?.restart().await?;
        }
        fleet.operator.ok(&["campaign", "resume", "spring"])?;
        completes(fleet).await
    })
    .await
}

#[tokio::test]
async fn a_missing_or_exposed_file_is_named_with_what_to_do() -> Result<()> {
    Cluster::with(small(), async |fleet| {
        fleet.node(NODE)?.process.stop(WITHIN).await?;
        let folder = fleet.node(NODE)?.folder().to_owned();
        let config = folder.join("node.toml");
        let node = || fails(Program::Node, &["--config".as_ref(), config.as_ref()]);
        for file in [
            fleet.folder().join("trust/1.root.json"),
            fleet.folder().join("fleet-ca.pem"),
            folder.join("bmc-password"),
        ] {
            let said = without(&file, node)?;
            ensure!(said.contains(&file.display().to_string()), "{}: {said}", file.display());
            println!("missing file: {said}");
        }
        let said = fails(
            Program::Node,
            &["--config".as_ref(), folder.join("absent.toml").as_ref()],
        )?;
        ensure!(said.contains("absent.toml"), "{said}");

        // The node's own key, open to everybody.
        let key = find(&folder.join("state"), "key")?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
        let said = node()?;
        ensure!(
            said.contains(&key.display().to_string()) && said.contains("chmod 600"),
            "{said}"
        );
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;

        // A coordinator that has lost the key its fleet knows must not go on with another one.
        fleet.coordinator.stop(WITHIN).await?;
        let online = fleet.folder().join("coordinator/keys/online.pem");
        let config = fleet.folder().join("coordinator.toml");
        let said = without(&online, || {
            fails(Program::Coordinator, &["--config".as_ref(), config.as_ref()])
        })?;
        ensure!(said.contains("online.pem"), "{said}");
        println!("missing key: {said}");

        fleet.restart_coordinator().await?;
        fleet.node(NODE)?.restart().await?;
        fleet.start_campaign("spring", &rules(1, (120, 20)))?;
        completes(fleet).await
    })
    .await
}

/// No damage: the campaign ends as if nothing had been.
async fn completes(fleet: &Cluster) -> Result<()> {
    let view = fleet.campaign_ends("spring", Duration::from_secs(120)).await?;
    ensure!(view.state == CampaignState::Completed, "{view:?}");
    ensure!(
        fleet.running(NEW).await? == fleet.device_count(),
        "{:?}",
        fleet.versions().await?
    );
    Ok(())
}

/// Runs a program that has to end by itself with an error; answers what it said.
fn fails(program: Program, args: &[&std::ffi::OsStr]) -> Result<String> {
    let mut command = Command::new(program.path()?);
    command.args(args);
    command_fails(command)
}

fn command_fails(command: Command) -> Result<String> {
    let output = Command::new("timeout")
        .args(["--signal=KILL", "30"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .context("coreutils' timeout is part of every Debian")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1),
        "{} instead of exit status 1: {said}",
        output.status
    );
    ensure!(!said.contains("panicked"), "{said}");
    Ok(said)
}

/// Runs a program while `state` cannot be written. Root can write everywhere, unless that capability is taken away.
fn read_only(state: &Path, program: Program, config: &Path) -> Result<String> {
    let before = fs::metadata(state)?.permissions();
    fs::set_permissions(state, fs::Permissions::from_mode(0o500))?;
    let probe = state.join("probe");
    let mut command = if fs::write(&probe, "").is_ok() {
        fs::remove_file(probe)?;
        let mut unprivileged = Command::new("setpriv");
        unprivileged
            .args(["--bounding-set=-dac_override", "--inh-caps=-dac_override"])
            .arg(program.path()?);
        unprivileged
    } else {
        Command::new(program.path()?)
    };
    command.arg("--config").arg(config);
    let said = command_fails(command);
    fs::set_permissions(state, before)?;
    said
}

/// A node with room for 8 MiB: its store lies on a small disk of its own. Where that cannot be mounted, no file of its may
/// grow beyond that, which fails a write for want of room just as well.
fn little_room(config: &Path, store: &Path) -> Result<Command> {
    let mounts = Command::new("unshare")
        .args(["--mount", "true"])
        .stderr(Stdio::null())
        .status();
    let (program, script) = if mounts.is_ok_and(|status| status.success()) {
        (
            "unshare",
            "mount -t tmpfs -o size=8m none \"$2\" && exec \"$0\" --config \"$1\"",
        )
    } else {
        ("env", "trap '' XFSZ; ulimit -f 16384; exec \"$0\" --config \"$1\"")
    };
    let mut command = Command::new(program);
    command.args(if program == "unshare" { &["--mount"][..] } else { &[] });
    command
        .args(["sh", "-c", script])
        .arg(Program::Node.path()?)
        .arg(config)
        .arg(store);
    Ok(command)
}

/// Does something while a file is away.
fn without(file: &Path, act: impl FnOnce() -> Result<String>) -> Result<String> {
    let aside = file.with_extension("aside");
    fs::rename(file, &aside)?;
    let result = act();
    fs::remove_file(file).ok();
    fs::rename(&aside, file)?;
    result
}

/// The one file directly in `folder` whose name has `part` in it.
fn find(folder: &Path, part: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path());
    let named = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().contains(part))
    };
    entries
        .into_iter()
        .find(named)
        .with_context(|| format!("{} has no {part}", folder.display()))
}

/// A clock for one process: the C compiler that linked these tests makes a library that answers in its place.
fn clock_shim(folder: &Path) -> Result<PathBuf> {
    const SOURCE: &str = r#"
        #define _GNU_SOURCE
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <sys/time.h>
        #include <time.h>
        #include <unistd.h>
        static long offset(void) { const char *text = getenv("CLOCK_OFFSET_S"); return text ? atol(text) : 0; }
        int clock_gettime(clockid_t clock, struct timespec *now) {
            int result = syscall(SYS_clock_gettime, clock, now);
            if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
            return result;
        }
        time_t time(time_t *out) {
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            if (out) *out = now.tv_sec;
            return now.tv_sec;
        }
        int gettimeofday(struct timeval *restrict out, void *restrict zone) {
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            out->tv_sec = now.tv_sec;
            out->tv_usec = now.tv_nsec / 1000;
            return 0;
        }
    "#;
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    fs::write(&source, SOURCE)?;
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(&source)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}
