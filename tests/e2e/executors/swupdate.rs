//! SWUpdate itself, onto plain files, with GRUB's own tool for the boot environment.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, ids::Sha256, report::AttemptState};
use firmesh_tests::{
    attempts::killed_everywhere,
    packages::ensure_command,
    python::run,
    setup::{NEW, OLD},
};

use super::{ENDS_WITHIN, begin, bring, count, explained, one_node, succeeds, version};

const IMAGE_BYTES: usize = 300_000;

/// The restart of the host: a boot loader that takes `try_slot` once, in the words of GRUB's own tool.
const BOOT: &str = r#"
cd "$1"
variable() { grub-editenv grubenv list | sed -n "s/^$1=//p"; }
slot=$(variable saved_slot)
try=$(variable try_slot)
rm -f status.json
if [ -n "$try" ]; then grub-editenv grubenv set try_slot=; slot=$try; fi
echo "$slot" >> boots
version=$(head -n 1 "slot_$slot")
printf '{"slot": "%s", "boot_id": "%s", "version": "%s", "model": "R1", "vendor": "Acme"}' \
    "$slot" "$(wc -l < boots)" "$version" > status.new
mv status.new status.json
"#;

/// A host that runs the old version from slot A.
struct Host(PathBuf);

impl Host {
    fn new(folder: &Path) -> Result<Self> {
        let editor = ensure_command("grub-editenv", "grub-common")?;
        ensure_command("swupdate", "swupdate")?;
        fs::create_dir_all(folder)?;
        let file = |name: &str| folder.join(name);
        fs::write(file("slot_a"), contents(OLD))?;
        fs::write(file("slot_b"), vec![0; 2 * IMAGE_BYTES])?;
        fs::write(file("boot.sh"), BOOT)?;
        let env = file("grubenv");
        run(&editor, [env.as_os_str(), "create".as_ref()])?;
        let state = [
            "saved_slot=a".to_owned(),
            "try_slot=".to_owned(),
            "slot_a_state=ready".to_owned(),
            format!("slot_a_version={OLD}"),
            format!("slot_a_sha256={}", Sha256::of(&contents(OLD))),
            format!("slot_a_length={}", contents(OLD).len()),
            "slot_b_state=empty".to_owned(),
        ];
        run(
            &editor,
            [env.as_os_str(), "set".as_ref()]
                .into_iter()
                .chain(state.iter().map(AsRef::as_ref)),
        )?;
        run(Path::new("/bin/sh"), [file("boot.sh").as_os_str(), folder.as_os_str()])?;
        Ok(Self(folder.to_owned()))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }

    fn is_updated(&self) -> Result<()> {
        let slot = fs::read(self.0.join("slot_b"))?;
        ensure!(slot.starts_with(&contents(NEW)), "slot B does not hold the image");
        ensure!(fs::read(self.0.join("slot_a"))? == contents(OLD), "slot A was touched");
        // Another restart changes nothing.
        run(
            Path::new("/bin/sh"),
            [self.0.join("boot.sh").as_os_str(), self.0.as_os_str()],
        )?;
        let status = self.read("status.json");
        ensure!(status.contains("\"slot\": \"b\"") && status.contains(NEW), "{status}");
        Ok(())
    }
}

fn swupdate_toml(host: &Host, key: &Path) -> String {
    let file = |name: &str| host.0.join(name).display().to_string();
    format!(
        "kind = \"swupdate\", select_a = \"stable,a\", select_b = \"stable,b\", key_file = {key:?}, hardware = \"r1:1.0\", work_dir = {:?}, \
         slots = {{ slot_a = {:?}, slot_b = {:?}, env_file = {:?}, status_file = {:?}, reset_command = [\"sh\", {:?}, {:?}], \
         vendor = \"Acme\", model = \"R1\" }}",
        file("work"),
        file("slot_a"),
        file("slot_b"),
        file("grubenv"),
        file("status.json"),
        file("boot.sh"),
        file("")
    )
}

/// An image: its first line is the version that runs once it is booted.
pub(super) fn contents(version: &str) -> Vec<u8> {
    let mut bytes = format!("{version}\n").into_bytes();
    bytes.extend(version.bytes().cycle().take(IMAGE_BYTES));
    bytes
}

/// Whoever signs images, with a certificate in `cert.pem` of the folder.
pub(super) struct Signer(PathBuf);

impl Signer {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let openssl = ensure_command("openssl", "openssl")?;
        let (key, cert) = (folder.join("key.pem"), folder.join("cert.pem"));
        let args = "req -x509 -newkey rsa:2048 -nodes -subj /CN=signer -days 3650 -addext keyUsage=digitalSignature,keyCertSign \
                    -addext extendedKeyUsage=emailProtection -keyout";
        let args = args.split_whitespace().map(AsRef::as_ref);
        run(
            &openssl,
            args.chain([key.as_os_str(), "-out".as_ref(), cert.as_os_str()]),
        )?;
        Ok(Self(folder.to_owned()))
    }

    pub(super) fn cert(&self) -> PathBuf {
        self.0.join("cert.pem")
    }

    /// An image for the slots of a host, in a file of the folder.
    pub(super) fn image(&self, version: &str, host: &Path) -> Result<PathBuf> {
        let (openssl, cpio) = (ensure_command("openssl", "openssl")?, ensure_command("cpio", "cpio")?);
        fs::write(self.0.join("rootfs.img"), contents(version))?;
        let slot = |name: &str| {
            format!(
                "{name}: {{ images: ( {{ filename = \"rootfs.img\"; device = {:?}; type = \"raw\"; sha256 = \"{}\"; }} ); }};",
                host.join(format!("slot_{name}")),
                Sha256::of(&contents(version))
            )
        };
        let description = format!(
            "software = {{ version = {version:?}; r1 = {{ hardware-compatibility = [ \"1.0\" ]; stable = {{ {} {} }}; }}; }}\n",
            slot("a"),
            slot("b")
        );
        fs::write(self.0.join("sw-description"), description)?;
        let signed = Command::new(openssl)
            .args("cms -sign -in sw-description -out sw-description.sig -signer cert.pem -inkey key.pem -outform DER -nosmimecap -binary".split(' '))
            .current_dir(&self.0)
            .output()?;
        ensure!(signed.status.success(), "{signed:?}");
        let name = format!("{version}.swu");
        let mut packing = Command::new(cpio)
            .args(["-o", "-H", "crc"])
            .current_dir(&self.0)
            .stdin(Stdio::piped())
            .stdout(fs::File::create(self.0.join(&name))?)
            .stderr(Stdio::null())
            .spawn()?;
        // Closed when it is dropped: cpio then knows them all.
        std::io::Write::write_all(
            &mut packing.stdin.take().context("no standard input")?,
            b"sw-description\nsw-description.sig\nrootfs.img\n",
        )?;
        ensure!(packing.wait()?.success(), "cpio failed");
        Ok(self.0.join(name))
    }
}

#[tokio::test]
async fn swupdate_installs_a_signed_image_that_is_tried_and_kept_and_refuses_a_strangers() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().join("swupdate");
        let host = Host::new(&folder.join("host"))?;
        let (signer, stranger) = (
            Signer::new(&folder.join("signer"))?,
            Signer::new(&folder.join("stranger"))?,
        );
        let (old, forged, new) = (
            signer.image(OLD, &host.0)?,
            stranger.image("9.9.9", &host.0)?,
            signer.image(NEW, &host.0)?,
        );
        let images = [(old.as_path(), OLD), (forged.as_path(), "9.9.9"), (new.as_path(), NEW)];
        bring(fleet, "host", &swupdate_toml(&host, &signer.cert()), &images).await?;

        begin(fleet, "forged", "host", ("9.9.9", OLD), 10)?;
        let view = fleet.campaign_ends("forged", ENDS_WITHIN).await?;
        ensure!(
            view.state != CampaignState::Completed && count(&view, AttemptState::Failed) == 1,
            "{view:?}"
        );
        let why = explained(fleet, "forged")?;
        ensure!(
            why.contains("SWUpdate did not install the image: Authentication of all signatures failed"),
            "{why}"
        );
        ensure!(
            version(fleet).await?.as_deref() == Some(OLD) && host.read("boots") == "a\n",
            "{}",
            host.read("boots")
        );

        succeeds(fleet, "spring", "host").await?;
        ensure!(
            fleet.device_views().await?[0].facts.executor == "swupdate",
            "another executor"
        );
        host.is_updated()
    })
    .await
}

#[tokio::test]
async fn an_attempt_by_swupdate_killed_at_every_boundary_ends_updated() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let signer = Signer::new(&folder.path().join("signer"))?;
    let kills = killed_everywhere(
        folder.path(),
        &[40],
        async |world| {
            let host = Host::new(&world.join("host"))?;
            let image = signer.image(NEW, &host.0)?;
            let attempt = format!(
                "image = {image:?}\nvendor = \"Acme\"\nmodel = \"R1\"\nversion = {NEW:?}\nattempt_s = 50\nback_s = 5\npace_ms = 20\n\
                 [device]\nid = \"d\"\ncomponent = \"host\"\nexecutor = {{ {} }}\n",
                swupdate_toml(&host, &signer.cert())
            );
            fs::write(world.join("attempt.toml"), attempt)?;
            Ok(host)
        },
        async |host, ended| {
            ensure!(ended.state == AttemptState::Success, "it ended otherwise");
            ensure!(ended.times("stage") <= 1, "staged again after it had been done");
            host.is_updated()
        },
    )
    .await?;
    println!("killed {kills} times");
    ensure!(kills > 20, "only {kills} kills");
    Ok(())
}
