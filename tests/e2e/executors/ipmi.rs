//! A management controller over RMCP+: `ipmi_sim`, as OpenIPMI simulates it, through `ipmitool`.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::report::AttemptState;
use firmesh_tests::{
    packages::ensure_command,
    process::Process,
    setup::{NEW, OLD},
    wait::{Seen, until},
};

use super::{ENDS_WITHIN, begin, bring, count, explained, one_node, succeeds, version};

/// The simulated chassis: its host takes up what waits for it when it is reset.
const CHASSIS: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
shift
echo "$@" >> chassis.log
case "$1" in
    get) shift; for what in "$@"; do echo "$what:1"; done ;;
    set) case "$*" in *reset*) if [ -e waiting ]; then mv waiting running; fi ;; esac ;;
esac
"#;

/// A simulated controller, and the chassis it controls.
struct Controller {
    folder: PathBuf,
    port: u16,
    _process: Process,
}

impl Controller {
    async fn start(folder: &Path) -> Result<Self> {
        let program = ensure_command("ipmi_sim", "openipmi")?;
        let tool = ensure_command("ipmitool", "ipmitool")?;
        fs::create_dir_all(folder.join("state"))?;
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).with_context(|| name.to_owned());
        // Whoever takes a free port has to let go of it first; nobody else here opens UDP ports of this range.
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        write("chassis", CHASSIS)?;
        let made = Command::new("chmod").arg("+x").arg(folder.join("chassis")).status()?;
        ensure!(made.success(), "chmod failed");
        let auths: String = ["callback", "user", "operator", "admin"]
            .map(|level| format!("    allowed_auths_{level} none md2 md5 straight\n"))
            .concat();
        write(
            "lan.conf",
            &format!(
                "name \"lab\"\nset_working_mc 0x20\n  startlan 1\n    addr 127.0.0.1 {port}\n    priv_limit admin\n{auths}    \
                 guid a123456789abcdefa123456789abcdef\n  endlan\n  chassis_control \"{} 0x20\"\n  \
                 user 2 true \"admin\" \"s3cret-pw\" admin 10 none md2 md5 straight\n",
                folder.join("chassis").display()
            ),
        )?;
        write(
            "mc.emu",
            "mc_setbmc 0x20\nmc_add 0x20 0 has-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nsel_enable 0x20 1000 0x0a\nmc_enable 0x20\n",
        )?;
        write("password", "s3cret-pw\n")?;
        write("running", "1.0.0\n")?;
        let mut command = Command::new(program);
        let file = |name: &str| folder.join(name).display().to_string();
        command.args([
            "-c",
            &file("lan.conf"),
            "-f",
            &file("mc.emu"),
            "-s",
            &file("state"),
            "-n",
        ]);
        let process = Process::spawn("ipmi_sim", command, &folder.join("sim.log"))?;
        until("the controller", Duration::from_secs(30), async || {
            let asked = Command::new(&tool)
                .args([
                    "-I",
                    "lanplus",
                    "-C",
                    "3",
                    "-H",
                    "127.0.0.1",
                    "-U",
                    "admin",
                    "-E",
                    "-p",
                    &port.to_string(),
                    "mc",
                    "info",
                ])
                .env("IPMI_PASSWORD", "s3cret-pw")
                .output()?;
            Ok(Seen::when(asked.status.success(), || {
                format!("{asked:?}, {}", process.log())
            }))
        })
        .await?;
        Ok(Self {
            folder: folder.to_owned(),
            port,
            _process: process,
        })
    }

    fn toml(&self, tool: &str, more: &str) -> String {
        format!(
            "kind = \"command\", tool = {tool:?}, work_dir = \"tools\", vendor = \"Acme\", model = \"R1\", \
             params = {{ host = \"127.0.0.1\", port = \"{}\", username = \"admin\"{more} }}, secret_files = {{ password = {:?} }}",
            self.port,
            self.folder.join("password")
        )
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }
}

/// Inventory is read over RMCP+; an update by HPM.1 is refused in plain words where the controller has none.
#[tokio::test]
async fn a_controller_without_hpm_says_so_and_is_left_as_it_was() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().to_owned();
        let controller = Controller::start(&folder.join("ipmi")).await?;
        for (file, version) in [("old.hpm", "9.08"), ("new.hpm", "9.09")] {
            fs::write(folder.join(file), version)?;
        }
        let images = [folder.join("old.hpm"), folder.join("new.hpm")];
        let images = [(images[0].as_path(), "9.08"), (images[1].as_path(), "9.09")];
        bring(fleet, "bmc", &controller.toml("ipmi", ""), &images).await?;
        ensure!(
            version(fleet).await?.as_deref() == Some("9.08"),
            "{:?}",
            version(fleet).await?
        );
        begin(fleet, "spring", "bmc", ("9.09", "9.08"), 10)?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "spring")?;
        ensure!(
            why.contains("Board might not be supporting the HPM.1 Standards"),
            "{why}"
        );
        ensure!(!why.contains("s3cret-pw"), "{why}");
        ensure!(
            !controller.read("chassis.log").contains("set"),
            "{}",
            controller.read("chassis.log")
        );
        Ok(())
    })
    .await
}

/// A tool leaves an image for the host's next start, and the controller resets the host.
#[tokio::test]
async fn a_host_takes_up_its_image_when_its_controller_resets_it() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().to_owned();
        let controller = Controller::start(&folder.join("ipmi")).await?;
        let ipmi = include_str!("../../../executors/tools/ipmi.toml");
        let (_, resets) = ipmi.split_once("[reset]").context("the description has resets")?;
        let warm = resets.lines().find(|line| line.starts_with("warm")).context("and a warm one")?;
        let described = format!(
            "schema = \"firmesh-tool/1\"\nname = \"staged_bios\"\nparams = [\"host\", \"port\", \"username\", \"folder\"]\n\
             secrets = [\"password\"]\nenv = {{ IPMI_PASSWORD = \"{{password}}\" }}\n\
             version = {{ run = [\"cat\", \"{{folder}}/running\"] }}\n\
             [install]\nrun = [\"cp\", \"{{image}}\", \"{{folder}}/waiting\"]\ndone = []\nneeds_reset = [0]\n[reset]\n{warm}\n"
        );
        fs::write(folder.join("staged.toml"), described)?;
        for (file, version) in [("old.rom", OLD), ("new.rom", NEW)] {
            fs::write(folder.join(file), format!("{version}\n"))?;
        }
        let images = [folder.join("old.rom"), folder.join("new.rom")];
        let more = format!(", folder = {:?}", controller.folder);
        let executor = controller.toml(&folder.join("staged.toml").display().to_string(), &more);
        bring(fleet, "bios", &executor, &[(&images[0], OLD), (&images[1], NEW)]).await?;
        succeeds(fleet, "spring", "bios").await?;
        let log = controller.read("chassis.log");
        ensure!(log.lines().filter(|line| *line == "set reset 1").count() == 1, "{log}");
        Ok(())
    })
    .await
}
