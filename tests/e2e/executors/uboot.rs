//! Hosts that U-Boot starts, with the environment's own tools (libubootenv) as the other side: `fw_printenv` reads what we write, and a boot
//! loader written with `fw_setenv` goes by it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, ids::Sha256, report::AttemptState};
use firmesh_tests::{
    attempts::{attempt, killed_everywhere},
    cluster::{Cluster, Shape},
    packages::ensure_command,
    python::run,
    setup::{NEW, OLD, rules},
};
use serde_json::{Value, json};

use super::{ENDS_WITHIN, count, version};

/// Where the copies lie: two on one device, one in a file of its own, one on a device that has more on it.
const LAYOUTS: [&[u32]; 3] = [&[0x400, 0x2400], &[0], &[0x400]];

const COPY_BYTES: u32 = 0x2000;

/// A start, in the words of U-Boot's scripts and of its boot counter, with libubootenv's tools to read and to save.
const BOOT: &str = r#"
cd "$1"
variable() { fw_printenv -c fw_env.config -n "$1" 2>/dev/null; }
save() { printf "$1" > script; fw_setenv -c fw_env.config -s script; }
rm -f status.json
slot=$(variable saved_slot)
if [ "$(variable upgrade_available)" = 1 ]; then
    count=$(($(variable bootcount) + 1))
    save "bootcount=$count\n"
    if [ "$count" -gt "$(variable bootlimit)" ]; then
        save 'upgrade_available=0\nbootcount=0\ntry_slot=\n'
    else
        slot=$(variable try_slot)
    fi
fi
echo "$slot" >> boots
# What is broken does not come up: the watchdog starts the board again.
if [ "$(head -n 1 "slot_$slot")" = broken ]; then exec sh boot.sh "$1"; fi
printf '{"slot": "%s", "boot_id": "%s", "version": "%s", "model": "R1", "vendor": "Acme"}' \
    "$slot" "$(wc -l < boots)" "$(head -n 1 "slot_$slot")" > status.new
mv status.new status.json
"#;

/// A board that runs the old version from slot A.
struct Board(PathBuf);

impl Board {
    fn new(folder: &Path, offsets: &[u32]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let file = |name: &str| folder.join(name);
        fs::write(file("slot_a"), contents(OLD))?;
        fs::write(file("slot_b"), [])?;
        fs::write(file("boot.sh"), BOOT)?;
        let end = if offsets == [0] { COPY_BYTES } else { 0x8000 };
        fs::write(file("env"), vec![0xa5; end as usize])?;
        let line = |at: &u32| format!("{} {at:#x} {COPY_BYTES:x}\n", file("env").display());
        fs::write(file("fw_env.config"), offsets.iter().map(line).collect::<String>())?;
        let saved = format!(
            "saved_slot=a\nbootlimit=1\naltbootcmd=run saved\nboard=r1 \"rev\" = 3\nslot_a_state=ready\nslot_a_version={OLD}\n\
             slot_a_sha256={}\nslot_a_length={}\n",
            Sha256::of(&contents(OLD)),
            contents(OLD).len()
        );
        fs::write(file("saved"), saved)?;
        let board = Self(folder.to_owned());
        // What nobody has saved yet begins as what is compiled into U-Boot.
        board.tool(
            "fw_setenv",
            &["-f", &file("saved").display().to_string(), "bootcount", "0"],
        )?;
        board.start()?;
        Ok(board)
    }

    fn tool(&self, tool: &str, args: &[&str]) -> Result<String> {
        let tool = ensure_command(tool, "libubootenv-tool")?;
        let config = self.0.join("fw_env.config").display().to_string();
        let output = run(&tool, ["-c", &config].iter().chain(args))?;
        Ok(String::from_utf8(output.stdout)?)
    }

    fn start(&self) -> Result<()> {
        run(Path::new("/bin/sh"), [self.0.join("boot.sh"), self.0.clone()]).map(drop)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }

    /// An attempt that brings it this image.
    fn attempt(&self, version: &str, image: &[u8]) -> Result<()> {
        let file = |name: &str| self.0.join(name).display().to_string();
        fs::write(self.0.join("image"), image)?;
        let attempt = format!(
            "image = \"image\"\nvendor = \"Acme\"\nmodel = \"R1\"\nversion = {version:?}\nattempt_s = 40\nback_s = 5\npace_ms = 20\n\
             [device]\nid = \"d\"\ncomponent = \"host\"\nexecutor = {{ kind = \"ab_slot\", slot_a = {:?}, slot_b = {:?}, \
             fw_env_config = {:?}, status_file = {:?}, reset_command = [\"sh\", {:?}, {:?}], vendor = \"Acme\", model = \"R1\" }}\n",
            file("slot_a"),
            file("slot_b"),
            file("fw_env.config"),
            file("status.json"),
            file("boot.sh"),
            file("")
        );
        Ok(fs::write(self.0.join("attempt.toml"), attempt)?)
    }

    /// What the tools read of the environment.
    fn has(&self, variables: &[(&str, &str)]) -> Result<()> {
        let all = self.tool("fw_printenv", &[])?;
        for (name, value) in variables {
            ensure!(
                all.lines().any(|line| line == format!("{name}={value}")),
                "no {name}={value}: {all}"
            );
        }
        Ok(())
    }

    fn is_updated(&self) -> Result<()> {
        ensure!(
            fs::read(self.0.join("slot_b"))? == contents(NEW),
            "slot B does not hold the image"
        );
        ensure!(fs::read(self.0.join("slot_a"))? == contents(OLD), "slot A was touched");
        let sha256 = Sha256::of(&contents(NEW)).to_string();
        self.has(&[
            ("saved_slot", "b"),
            ("upgrade_available", "0"),
            ("bootcount", "0"),
            ("bootlimit", "1"),
            ("slot_b_state", "ready"),
            ("slot_b_version", NEW),
            ("slot_b_sha256", &sha256),
            ("board", "r1 \"rev\" = 3"),
        ])?;
        // Other starts change nothing.
        self.start()?;
        self.start()?;
        let status = self.read("status.json");
        ensure!(status.contains("\"slot\": \"b\"") && status.contains(NEW), "{status}");
        Ok(())
    }
}

fn contents(version: &str) -> Vec<u8> {
    let mut bytes = format!("{version}\n").into_bytes();
    bytes.extend(version.bytes().cycle().take(300_000));
    bytes
}

#[tokio::test]
async fn fw_printenv_reads_what_we_save_and_a_board_starts_by_it_wherever_its_environment_lies() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (at, offsets) in LAYOUTS.iter().enumerate() {
        let told = || format!("copies at {offsets:?}");
        let board = Board::new(&folder.path().join(format!("board-{at}")), offsets).with_context(told)?;
        board.attempt("broken", b"broken\n")?;
        let ended = attempt(&board.0).await.with_context(told)?;
        ensure!(ended.state == AttemptState::Failed, "{offsets:?}: {ended:?}");
        ensure!(ended.version.as_deref() == Some(OLD), "{offsets:?}: {ended:?}");
        // The first start, the trial, and the one beyond the limit.
        ensure!(
            board.read("boots") == "a\nb\na\n",
            "{offsets:?}: {}",
            board.read("boots")
        );
        board
            .has(&[("saved_slot", "a"), ("upgrade_available", "0"), ("bootcount", "0")])
            .with_context(told)?;

        for name in ["record.json", "acts.log"] {
            fs::remove_file(board.0.join(name)).with_context(|| name.to_owned())?;
        }
        board.attempt(NEW, &contents(NEW))?;
        let ended = attempt(&board.0).await.with_context(told)?;
        ensure!(ended.state == AttemptState::Success, "{offsets:?}: {ended:?}");
        board.is_updated().with_context(told)?;
        // What lies beside the copies is as it was.
        let device = fs::read(board.0.join("env"))?;
        let copies = |byte: &usize| {
            offsets
                .iter()
                .any(|at| (*at..at + COPY_BYTES).contains(&(*byte as u32)))
        };
        ensure!(
            (0..device.len())
                .filter(|byte| !copies(byte))
                .all(|byte| device[byte] == 0xa5),
            "{offsets:?}: torn"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_attempt_on_a_board_killed_at_every_boundary_ends_updated() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kills = killed_everywhere(
        folder.path(),
        &[20],
        async |world| {
            let board = Board::new(world, LAYOUTS[0])?;
            board.attempt(NEW, &contents(NEW))?;
            Ok(board)
        },
        async |board, ended| {
            ensure!(ended.state == AttemptState::Success, "it ended otherwise");
            ensure!(ended.times("stage") <= 1, "staged again after it had been done");
            board.is_updated()
        },
    )
    .await?;
    println!("killed {kills} times");
    ensure!(kills > 20, "only {kills} kills");
    Ok(())
}

/// An emulated host: U-Boot's part is played by our own model of it, and read by the tools.
#[tokio::test]
async fn a_campaign_updates_a_host_that_u_boot_starts_and_one_that_hangs_on_its_trial_falls_back() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 0,
        hosts: 1,
        uboot: true,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        const HOST: &str = "r1-n1-host1";
        let view = async |fleet: &Cluster, id: &str| -> Result<_> {
            fleet.start_campaign(id, &rules(1, (60, 10)))?;
            fleet.campaign_ends(id, ENDS_WITHIN).await
        };
        let board = Board(host_folder(fleet)?);
        fleet.misbehave(HOST, json!({ "kind": "fail_update" })).await?;
        let failed = view(fleet, "hangs").await?;
        ensure!(count(&failed, AttemptState::Failed) == 1, "{failed:?}");
        ensure!(fleet.running(OLD).await? == 1, "{:?}", fleet.versions().await?);
        board.has(&[("saved_slot", "a"), ("upgrade_available", "0"), ("bootcount", "0")])?;

        fleet.misbehave(HOST, Value::Null).await?;
        let done = view(fleet, "spring").await?;
        ensure!(done.state == CampaignState::Completed, "{done:?}");
        ensure!(fleet.running(NEW).await? == 1, "{:?}", fleet.versions().await?);
        ensure!(
            version(fleet).await?.as_deref() == Some(NEW),
            "{:?}",
            version(fleet).await?
        );
        board.has(&[("saved_slot", "b"), ("upgrade_available", "0"), ("slot_b_version", NEW)])
    })
    .await
}

/// Where the emulator keeps the only host.
fn host_folder(fleet: &Cluster) -> Result<PathBuf> {
    let endpoints: Value = serde_json::from_slice(&fs::read(fleet.folder().join("devices/endpoints.json"))?)?;
    let hosts = endpoints["devices"].as_object().context("no devices")?;
    let folder = hosts.values().find_map(|device| device["host"]["dir"].as_str());
    Ok(folder.context("no host")?.into())
}
