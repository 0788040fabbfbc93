//! RAUC itself, on plain files: its service on a bus of its own, its check of signatures, and a boot loader as it expects one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    attempts::killed_everywhere,
    packages::ensure_command,
    process::Process,
    python::run,
    setup::{NEW, OLD},
    wait::{Seen, until},
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::{DEVICE, ENDS_WITHIN, begin, bring, count, explained, one_node, succeeds, version};

const IMAGE_BYTES: usize = 300_000;

/// A boot loader with a count of tries: what is not confirmed is booted once. It is RAUC's custom backend and, as `boot`, the
/// restart of the host: RAUC's service ends, and begins again in the slot that was booted.
const BOOT_LOADER: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
case "$1" in
    get-primary) cat primary ;;
    set-primary) echo "$2" > primary; [ "$(cat "tries_$2")" = good ] || echo 1 > "tries_$2" ;;
    get-state) [ "$(cat "tries_$2")" = good ] && echo good || echo bad ;;
    set-state) [ "$3" = good ] && echo good > "tries_$2" || echo 0 > "tries_$2" ;;
    get-current) cat current ;;
    boot)
        if [ -e service.pid ]; then
            kill "$(cat service.pid)"
            while kill -0 "$(cat service.pid)" 2> /dev/null; do sleep 0.02; done
        fi
        slot=$(cat primary)
        case "$(cat "tries_$slot")" in
            good) ;;
            1) echo 0 > "tries_$slot" ;;
            *) [ "$slot" = A ] && slot=B || slot=A ;;
        esac
        echo "$slot" > current
        head -n 1 "slot_$slot" > os-release
        echo "$slot" >> boots
        setsid rauc --conf=system.conf service --override-boot-slot="$slot" >> service.log 2>&1 &
        echo $! > service.pid
        for try in $(seq 200); do rauc status > /dev/null 2>&1 && exit 0; sleep 0.02; done
        exit 1 ;;
esac
"#;

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>ADDRESS</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"#;

/// A host with RAUC, running the old version from slot A.
struct Host {
    folder: PathBuf,
    _bus: Process,
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(self.folder.join("service.pid")) {
            let _ended_already = Command::new("kill").arg(pid.trim()).status();
        }
    }
}

impl Host {
    async fn start(folder: &Path, ca: &Path) -> Result<Self> {
        let rauc = ensure_command("rauc", "rauc")?;
        let bus_daemon = ensure_command("dbus-daemon", "dbus")?;
        fs::create_dir_all(folder)?;
        let file = |name: &str| folder.join(name);
        let write = |name: &str, text: &str| fs::write(file(name), text).with_context(|| name.to_owned());
        for (name, text) in [
            ("primary", "A\n"),
            ("tries_A", "good\n"),
            ("tries_B", "0\n"),
            ("boot-loader", BOOT_LOADER),
        ] {
            write(name, text)?;
        }
        run(Path::new("chmod"), ["+x".as_ref(), file("boot-loader").as_os_str()])?;
        fs::write(file("slot_A"), contents(OLD))?;
        fs::write(file("slot_B"), vec![0; 2 * IMAGE_BYTES])?;
        let at = folder.display();
        write(
            "system.conf",
            &format!(
                "[system]\ncompatible=acme-r1\nbootloader=custom\nstatusfile={at}/status\nmountprefix={at}/mnt\n\
                 [handlers]\nbootloader-custom-backend={at}/boot-loader\n\
                 [keyring]\npath={}\ncheck-purpose=codesign\n\
                 [slot.rootfs.0]\ndevice={at}/slot_A\ntype=raw\nbootname=A\n\
                 [slot.rootfs.1]\ndevice={at}/slot_B\ntype=raw\nbootname=B\n",
                ca.display()
            ),
        )?;
        fs::create_dir_all(file("mnt"))?;
        let address = bus_address(folder);
        write("bus.conf", &BUS.replace("ADDRESS", &address))?;
        let mut command = Command::new(bus_daemon);
        command.args(["--nofork", "--config-file"]).arg(file("bus.conf"));
        let bus = Process::spawn("dbus-daemon", command, &file("bus.log"))?;
        until("the bus", Duration::from_secs(20), async || {
            Ok(Seen::when(file("bus").exists(), || bus.log()))
        })
        .await?;
        let host = Self {
            folder: folder.to_owned(),
            _bus: bus,
        };
        let output = Command::new(file("boot-loader"))
            .arg("boot")
            .env("DBUS_SYSTEM_BUS_ADDRESS", &address)
            .output()?;
        ensure!(
            output.status.success(),
            "{} does not start: {output:?}, {}",
            rauc.display(),
            host.read("service.log")
        );
        Ok(host)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Whether it runs the new version from slot B, for good, installed once.
    fn is_updated(&self) -> Result<()> {
        let slot = fs::read(self.folder.join("slot_B"))?;
        ensure!(slot.starts_with(&contents(NEW)), "slot B does not hold the image");
        ensure!(
            fs::read(self.folder.join("slot_A"))? == contents(OLD),
            "slot A was touched"
        );
        let boot = ["primary", "tries_B", "current"].map(|name| self.read(name).trim().to_owned());
        ensure!(boot == ["B", "good", "B"], "{boot:?}");
        ensure!(
            self.read("status").contains("installed.count=1\n"),
            "{}",
            self.read("status")
        );
        Ok(())
    }
}

fn bus_address(folder: &Path) -> String {
    format!("unix:path={}", folder.join("bus").display())
}

/// The executor, its paths absolute.
fn rauc_toml(folder: &Path) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    format!(
        "kind = \"rauc\", work_dir = {:?}, reset_command = [\"env\", {:?}, {:?}, \"boot\"], vendor = \"Acme\", model = \"R1\", \
         os_release = {:?}, boot_id_file = {:?}, bus = {:?}",
        file("work"),
        format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus_address(folder)),
        file("boot-loader"),
        file("os-release"),
        file("boots"),
        bus_address(folder)
    )
}

/// An image: its first line is what the system says of itself once it runs.
fn contents(version: &str) -> Vec<u8> {
    let mut bytes = format!("VERSION_ID={version}\n").into_bytes();
    bytes.extend(version.bytes().cycle().take(IMAGE_BYTES));
    bytes
}

/// Whoever signs bundles, and its CA in `ca.pem` of the folder.
struct Signer(PathBuf);

impl Signer {
    fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let (ca_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let mut leaf = CertificateParams::new(Vec::new())?;
        leaf.distinguished_name.push(rcgen::DnType::CommonName, "signer");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        leaf.use_authority_key_identifier_extension = true;
        fs::write(folder.join("ca.pem"), ca.self_signed(&ca_key)?.pem())?;
        let issuer = Issuer::new(ca, ca_key);
        fs::write(folder.join("leaf.pem"), leaf.signed_by(&key, &issuer)?.pem())?;
        fs::write(folder.join("leaf.key"), key.serialize_pem())?;
        Ok(Self(folder.to_owned()))
    }

    fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// A bundle in a file of the folder.
    fn bundle(&self, version: &str) -> Result<PathBuf> {
        let rauc = ensure_command("rauc", "rauc")?;
        ensure_command("mksquashfs", "squashfs-tools")?;
        let (content, bundle) = (
            self.0.join(format!("content-{version}")),
            self.0.join(format!("{version}.raucb")),
        );
        fs::create_dir_all(&content)?;
        fs::write(content.join("rootfs.img"), contents(version))?;
        let manifest = format!(
            "[update]\ncompatible=acme-r1\nversion={version}\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=rootfs.img\n"
        );
        fs::write(content.join("manifest.raucm"), manifest)?;
        let file = |name: &str| self.0.join(name).display().to_string();
        let args = [
            format!("--cert={}", file("leaf.pem")),
            format!("--key={}", file("leaf.key")),
            "bundle".to_owned(),
        ];
        run(
            &rauc,
            args.iter()
                .map(AsRef::as_ref)
                .chain([content.as_os_str(), bundle.as_os_str()]),
        )?;
        Ok(bundle)
    }
}

#[tokio::test]
async fn rauc_installs_a_bundle_that_is_tried_and_kept_and_refuses_a_strangers() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().join("rauc");
        let (signer, stranger) = (
            Signer::new(&folder.join("signer"))?,
            Signer::new(&folder.join("stranger"))?,
        );
        let (old, forged, new) = (signer.bundle(OLD)?, stranger.bundle("9.9.9")?, signer.bundle(NEW)?);
        let host = Host::start(&folder.join("host"), &signer.ca()).await?;
        let images = [(old.as_path(), OLD), (forged.as_path(), "9.9.9"), (new.as_path(), NEW)];
        bring(fleet, "host", &rauc_toml(&host.folder), &images).await?;

        // Firmesh's own signatures are good: it is RAUC that knows nobody who signed this one.
        begin(fleet, "forged", "host", ("9.9.9", OLD), 10)?;
        let view = fleet.campaign_ends("forged", ENDS_WITHIN).await?;
        ensure!(
            view.state != CampaignState::Completed && count(&view, AttemptState::Failed) == 1,
            "{view:?}"
        );
        let why = explained(fleet, "forged")?;
        ensure!(
            why.contains("RAUC did not install the bundle: signature verification failed"),
            "{why}"
        );
        ensure!(
            version(fleet).await?.as_deref() == Some(OLD),
            "{:?}",
            version(fleet).await?
        );
        ensure!(host.read("boots") == "A\n", "it restarted: {}", host.read("boots"));

        succeeds(fleet, "spring", "host").await?;
        host.is_updated()?;
        let facts = &fleet.device_views().await?[0].facts;
        ensure!(facts.executor == "rauc" && facts.device.as_str() == DEVICE, "{facts:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_attempt_by_rauc_killed_at_every_boundary_installs_once_and_is_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let signer = Signer::new(&folder.path().join("signer"))?;
    let bundle = signer.bundle(NEW)?;
    let kills = killed_everywhere(
        folder.path(),
        &[40],
        async |world| {
            let host = Host::start(&world.join("host"), &signer.ca()).await?;
            let attempt = format!(
                "image = {bundle:?}\nvendor = \"Acme\"\nmodel = \"R1\"\nversion = {NEW:?}\nattempt_s = 50\nback_s = 5\npace_ms = 20\n\
                 [device]\nid = \"d\"\ncomponent = \"host\"\nexecutor = {{ {} }}\n",
                rauc_toml(&host.folder)
            );
            fs::write(world.join("attempt.toml"), attempt)?;
            Ok(host)
        },
        async |host, ended| {
            ensure!(ended.state == AttemptState::Success, "it ended otherwise: {}", host.read("service.log"));
            ensure!(ended.times("stage") <= 1, "staged again");
            host.is_updated()
        },
    )
    .await?;
    println!("killed {kills} times");
    ensure!(kills > 20, "only {kills} kills");
    Ok(())
}
