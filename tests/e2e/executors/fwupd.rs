//! fwupd's own daemon on a bus of its own, with a test device and a CA of ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, ids::Sha256, report::AttemptState};
use firmesh_tests::{
    packages::{ensure_command, ensure_file},
    process::Process,
    wait::{Seen, until},
};
use serde_json::Value;

use super::{ENDS_WITHIN, adopt, begin_of, count, explained, one_node, version};

/// What the daemon's test device runs, and what its cabinet brings.
const SHIPPED: &str = "1.2.2";
const NEWER: &str = "1.2.4";
const DAEMON: &str = "/usr/libexec/fwupd/fwupd";

/// A daemon, and its device.
struct Daemon {
    folder: PathBuf,
    device: String,
    vendor: String,
    model: String,
    _processes: [Process; 2],
}

impl Daemon {
    async fn start(folder: &Path) -> Result<Self> {
        ensure_file(&[DAEMON], "fwupd")?;
        let [client, bus_daemon] =
            [("fwupdmgr", "fwupd"), ("dbus-daemon", "dbus")].map(|(command, package)| ensure_command(command, package));
        let (client, bus_daemon) = (client?, bus_daemon?);
        let file = |name: &str| folder.join(name);
        for name in ["etc/fwupd/remotes.d", "etc/pki/fwupd", "etc/pki/fwupd-metadata", "var"] {
            fs::create_dir_all(file(name))?;
        }
        fs::write(
            file("etc/fwupd/fwupd.conf"),
            "[fwupd]\nTestDevices=true\nOnlyTrusted=true\n",
        )?;
        // The same before version 1.9, where the device is there unless its plugin is left out.
        fs::write(
            file("etc/fwupd/daemon.conf"),
            "[fwupd]\nDisabledPlugins=test_ble;invalid\nOnlyTrusted=true\n",
        )?;
        openssl(
            folder,
            "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 3650 -addext keyUsage=keyCertSign,digitalSignature",
        )?;
        openssl(
            folder,
            "req -newkey rsa:2048 -nodes -keyout leaf.key -out leaf.csr -subj /CN=signer",
        )?;
        fs::write(
            file("ext"),
            "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=codeSigning\n",
        )?;
        openssl(
            folder,
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out leaf.pem -days 3650 -extfile ext",
        )?;
        fs::copy(file("ca.pem"), file("etc/pki/fwupd/ca.pem"))?;
        let bus_config = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig><type>custom</type><listen>{}</listen>\
             <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>\n",
            bus_address(folder)
        );
        fs::write(file("bus.conf"), bus_config)?;
        let mut command = Command::new(bus_daemon);
        command.args(["--nofork", "--config-file"]).arg(file("bus.conf"));
        let bus = Process::spawn("dbus-daemon", command, &file("bus.log"))?;
        until("the bus", Duration::from_secs(20), async || {
            Ok(Seen::when(file("bus").exists(), || bus.log()))
        })
        .await?;
        let mut command = Command::new(DAEMON);
        command.envs(environment(folder));
        let daemon = Process::spawn("fwupd", command, &file("fwupd.log"))?;
        let device = until("the test device", Duration::from_secs(60), async || {
            let output = Command::new(&client)
                .args(["get-devices", "--json"])
                .envs(environment(folder))
                .output()?;
            let devices: Value =
                serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}, {}", daemon.log()))?;
            let found = devices["Devices"]
                .as_array()
                .and_then(|list| list.iter().find(|device| device["Plugin"] == "test"));
            Ok(found.map_or_else(|| Seen::NotYet(devices.to_string()), |device| Seen::Yes(device.clone())))
        })
        .await?;
        let text = |name: &str| {
            device[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {name}: {device}"))
        };
        Ok(Self {
            folder: folder.to_owned(),
            device: text("DeviceId")?,
            vendor: text("Vendor")?,
            model: text("Name")?,
            _processes: [daemon, bus],
        })
    }

    /// A cabinet with this payload, signed or not.
    fn cabinet(&self, name: &str, payload: &[u8], is_signed: bool) -> Result<PathBuf> {
        let [builder, signer] =
            [("gcab", "gcab"), ("jcat-tool", "jcat")].map(|(command, package)| ensure_command(command, package));
        let (builder, signer) = (builder?, signer?);
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("firmware.bin"), payload)?;
        let metainfo = METAINFO
            .replace("SHA256", &Sha256::of(payload).to_string())
            .replace("NEWER", NEWER);
        fs::write(folder.join("firmware.metainfo.xml"), metainfo)?;
        let cabinet = folder.join("firmware.cab");
        let mut contents = vec!["firmware.bin", "firmware.metainfo.xml"];
        let within = |program: &Path, args: &[&str]| -> Result<()> {
            let output = Command::new(program)
                .args(args)
                .current_dir(&folder)
                .envs(environment(&self.folder))
                .output()?;
            ensure!(output.status.success(), "{} {args:?}: {output:?}", program.display());
            Ok(())
        };
        if is_signed {
            for file in contents.clone() {
                within(&signer, &["self-sign", "firmware.jcat", file, "--kind=sha256"])?;
                within(&signer, &["sign", "firmware.jcat", file, "../leaf.pem", "../leaf.key"])?;
            }
            contents.push("firmware.jcat");
        }
        within(
            &builder,
            &[&["--create", "--nopath", "firmware.cab"], &contents[..]].concat(),
        )?;
        Ok(cabinet)
    }
}

fn bus_address(folder: &Path) -> String {
    format!("unix:path={}", folder.join("bus").display())
}

fn environment(folder: &Path) -> [(&'static str, String); 3] {
    [
        ("DBUS_SYSTEM_BUS_ADDRESS", bus_address(folder)),
        ("FWUPD_SYSCONFDIR", folder.join("etc").display().to_string()),
        ("FWUPD_LOCALSTATEDIR", folder.join("var").display().to_string()),
    ]
}

fn openssl(folder: &Path, args: &str) -> Result<()> {
    let openssl = ensure_command("openssl", "openssl")?;
    let output = Command::new(openssl)
        .args(args.split(' '))
        .current_dir(folder)
        .output()?;
    ensure!(output.status.success(), "openssl {args}: {output:?}");
    Ok(())
}

/// Of the test device of fwupd's daemon.
const METAINFO: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<component type="firmware">
  <id>org.fwupd.fakedevice.firmware</id>
  <name>FakeDevice</name>
  <summary>Firmware for the daemon's test device</summary>
  <provides><firmware type="flashed">b585990a-003e-5270-89d5-3705a17f9a43</firmware></provides>
  <metadata_license>CC0-1.0</metadata_license>
  <project_license>Apache-2.0</project_license>
  <custom>
    <value key="LVFS::VersionFormat">triplet</value>
    <value key="LVFS::UpdateProtocol">com.acme.test</value>
  </custom>
  <releases>
    <release version="NEWER" date="2024-01-21" urgency="medium">
      <checksum type="sha256" filename="firmware.bin" target="content">SHA256</checksum>
      <description><p>Fixes the flux capacitor.</p></description>
    </release>
  </releases>
</component>
"#;

/// The altered cabinet is refused by us, because nobody signed for its bytes, and by fwupd, even though somebody did.
#[tokio::test]
async fn a_signed_cabinet_installs_and_an_altered_one_is_refused_by_both_of_us() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().join("fwupd");
        fs::create_dir_all(&folder)?;
        let daemon = Daemon::start(&folder).await?;
        let payload = daemon.folder.join("payload");
        fs::write(&payload, "0x1020004")?;
        let good = daemon.cabinet("good", &fs::read(&payload)?, true)?;
        let before = daemon.cabinet("before", b"never installed", true)?;
        let unsigned = daemon.cabinet("unsigned", &fs::read(&payload)?, false)?;
        let altered = folder.join("altered.cab");
        let mut bytes = fs::read(&good)?;
        let at = bytes.windows(9).position(|window| window == b"0x1020004").context("the payload is in there")?;
        bytes[at + 8] = b'5';
        fs::write(&altered, bytes)?;

        let environment = format!("DBUS_SYSTEM_BUS_ADDRESS = {:?}", bus_address(&folder));
        let executor = format!(
            "kind = \"command\", tool = \"fwupd\", work_dir = \"tools\", params = {{ device = {:?} }}, env = {{ {environment} }}",
            daemon.device
        );
        let release = |file: &Path, version: &str, name: &str| -> Result<()> {
            let file = file.display().to_string();
            fleet.operator.ok(&["artifact", "add", &file])?;
            fleet.operator.ok(&[
                "release", "create", "--file", &file, "--vendor", &daemon.vendor, "--model", &daemon.model, "--component", "camera",
                "--release-version", version, "--name", name,
            ])?;
            Ok(())
        };
        release(&before, SHIPPED, "firmware/cam-before")?;
        release(&good, NEWER, "firmware/cam-good")?;
        release(&unsigned, NEWER, "firmware/cam-unsigned")?;
        release(&altered, NEWER, "firmware/cam-altered")?;
        adopt(fleet, "camera", &executor).await?;
        ensure!(version(fleet).await?.as_deref() == Some(SHIPPED), "{:?}", fleet.device_views().await?);

        for (name, words) in [("altered", "checksum"), ("unsigned", "signature missing or not trusted")] {
            begin_of(fleet, name, (&format!("firmware/cam-{name}"), "firmware/cam-before"), 10)?;
            let view = fleet.campaign_ends(name, ENDS_WITHIN).await?;
            ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
            let why = explained(fleet, name)?;
            ensure!(why.contains(words), "{why}");
            ensure!(version(fleet).await?.as_deref() == Some(SHIPPED), "{:?}", version(fleet).await?);
        }
        begin_of(fleet, "spring", ("firmware/cam-good", "firmware/cam-before"), 10)?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}, {}", explained(fleet, "spring")?);
        ensure!(version(fleet).await?.as_deref() == Some(NEWER), "{:?}", fleet.device_views().await?);
        Ok(())
    })
    .await
}
