use std::{fs, sync::Arc};

use firmesh_executors_core::{
    BootEnv, EnvBlock, Image, Observed, Rung, Slot, SlotContent, Staged, UbootEnv, boot, parse_fw_env_config,
};
use firmesh_protocol::{
    ids::{ArtifactId, Component, Sha256},
    manifest::{Artifact, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility},
};
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use super::{AbSlotBackend, BootEnvPlace, Status, disk};
use crate::{
    backend::DeviceBackend,
    config::AbSlotSettings,
    image::{ImageError, ImageReader, ImageSource},
};

/// More than two copies of what is copied at once, and not a whole number of them.
const IMAGE_BYTES: usize = (2 << 20) + 4_099;

/// Power fails at every place in turn where the disk is changed, tearing the write under way.
#[tokio::test]
async fn power_lost_at_any_write_leaves_the_old_slot_bootable_and_the_next_try_succeeds() {
    for loader in LOADERS {
        power_lost_at_any_write(loader).await;
    }
}

async fn power_lost_at_any_write(loader: Loader) {
    let mut survived = 0;
    for writes in 0.. {
        let host = Host::with(loader);
        let backend = host.backend().losing_power_after(writes);
        let staged = backend.stage(&image(), Some(Slot::B)).await.is_ok();
        let armed = staged && backend.activate(Some(Slot::B)).await.is_ok();
        assert!(
            matches!(host.boots(), (Slot::A, _) | (Slot::B, true)),
            "after {writes} writes"
        );
        assert_eq!(host.env().saved, Slot::A, "after {writes} writes");
        if armed {
            assert_eq!(host.boots(), (Slot::B, true));
            break;
        }
        survived += 1;
        let backend = host.backend();
        backend.stage(&image(), Some(Slot::B)).await.unwrap();
        backend.activate(Some(Slot::B)).await.unwrap();
        assert_eq!(host.boots(), (Slot::B, true), "after {writes} writes and another try");
    }
    assert!(survived >= 14, "only {survived} places were tried");
}

/// Names the host to stage on to the process that the next test starts.
const STAGING_ON: &str = "FIRMESH_TEST_HOST";

/// That process: the next test again.
const STAGING: &str =
    "ab_slot::tests::a_process_killed_while_it_stages_leaves_the_old_slot_bootable_and_another_one_finishes";

/// The same with a real process, killed while it waits for more of the image.
#[test]
fn a_process_killed_while_it_stages_leaves_the_old_slot_bootable_and_another_one_finishes() {
    if let Some(host) = std::env::var_os(STAGING_ON) {
        return stage_until_killed(std::path::Path::new(&host));
    }
    for arrives in [0, 1 << 20, IMAGE_BYTES - 1] {
        let host = Host::new();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", STAGING])
            .env(STAGING_ON, host.dir.path())
            .env("FIRMESH_TEST_ARRIVES", arrives.to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let whole_copies = (arrives >> 20 << 20) as u64;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while host.env().b != SlotContent::Writing || fs::metadata(host.slot(Slot::B)).unwrap().len() < whole_copies {
            assert!(std::time::Instant::now() < deadline, "{arrives} bytes never arrived");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(host.boots(), (Slot::A, true), "killed after {arrives} bytes");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            host.backend().stage(&image(), Some(Slot::B)).await.unwrap();
            host.backend().activate(Some(Slot::B)).await.unwrap();
        });
        assert_eq!(host.boots(), (Slot::B, true), "killed after {arrives} bytes");
    }
}

fn stage_until_killed(host: &std::path::Path) {
    let arrives = std::env::var("FIRMESH_TEST_ARRIVES").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let backend = backend_in(host, Arc::new(OneImage { arrives }));
    runtime.block_on(backend.stage(&image(), Some(Slot::B))).unwrap();
}

#[tokio::test]
async fn power_lost_while_confirming_leaves_one_of_two_good_answers() {
    for (loader, writes) in LOADERS
        .into_iter()
        .flat_map(|loader| (0..4).map(move |writes| (loader, writes)))
    {
        let host = Host::with(loader);
        host.backend().stage(&image(), Some(Slot::B)).await.unwrap();
        host.run(Slot::B);
        let confirmed = host.backend().losing_power_after(writes).confirm().await.is_ok();
        let (slot, good) = host.boots();
        assert!(
            good && (!confirmed || slot == Slot::B),
            "{loader:?} after {writes} writes"
        );
    }
}

#[tokio::test]
async fn neither_the_running_nor_the_saved_slot_is_written() {
    let host = Host::new();
    let before = fs::read(host.slot(Slot::A)).unwrap();
    assert!(host.backend().stage(&image(), Some(Slot::A)).await.is_err());
    host.run(Slot::B);
    for slot in [Slot::A, Slot::B] {
        let error = host.backend().stage(&image(), Some(slot)).await.unwrap_err();
        assert!(!error.retry && error.reason.contains("in use"), "{error}");
    }
    assert_eq!(fs::read(host.slot(Slot::A)).unwrap(), before);
}

#[tokio::test]
async fn bytes_that_are_not_the_image_are_never_armed() {
    let host = Host::new();
    let mut wrong = image();
    wrong.artifact.sha256 = Sha256::of(b"something else");
    let error = host.backend().stage(&wrong, Some(Slot::B)).await.unwrap_err();
    assert!(error.reason.contains("is not the image"), "{error}");
    assert!(host.backend().activate(Some(Slot::B)).await.is_err());
    assert_eq!(host.boots(), (Slot::A, true));

    host.backend().stage(&image(), Some(Slot::B)).await.unwrap();
    let mut rotten = fs::read(host.slot(Slot::B)).unwrap();
    rotten[IMAGE_BYTES / 2] ^= 1;
    fs::write(host.slot(Slot::B), rotten).unwrap();
    let error = host.backend().activate(Some(Slot::B)).await.unwrap_err();
    assert!(error.reason.contains("read back"), "{error}");
}

#[tokio::test]
async fn a_look_shows_slots_and_what_is_staged_and_silence_names_the_file() {
    let host = Host::new();
    host.backend().stage(&image(), Some(Slot::B)).await.unwrap();
    let Observed::Answering(seen) = host.backend().observe(None).await else {
        panic!("silent")
    };
    assert_eq!(seen.version.as_deref(), Some("1.0.0"));
    assert_eq!(
        seen.staged,
        Staged::Image {
            version: "1.1.0".to_owned(),
            sha256: image().artifact.sha256,
            armed: false
        }
    );
    fs::write(host.dir.path().join("grubenv"), b"torn").unwrap();
    let Observed::Silent { why } = host.backend().observe(None).await else {
        panic!("a torn environment answers")
    };
    assert!(why.contains("grubenv") && why.contains("4 bytes"), "{why}");
}

#[tokio::test]
async fn what_is_no_environment_of_u_boots_is_named_with_its_file_and_the_remedy() {
    let host = Host::with(Loader::TwoCopies);
    let why = async || match host.backend().observe(None).await {
        Observed::Silent { why } => why,
        Observed::Answering(seen) => panic!("it answers: {seen:?}"),
    };
    let env = host.dir.path().join("env");
    let whole = fs::read(&env).unwrap();
    fs::write(&env, &whole[..ENV_BYTES]).unwrap();
    let said = why().await;
    assert!(said.starts_with("could not read") && said.contains("env"), "{said}");
    fs::write(&env, vec![0; whole.len()]).unwrap();
    let said = why().await;
    assert!(
        said.contains("no copy of the U-Boot environment is whole") && said.contains("saveenv"),
        "{said}"
    );
    let mut unlimited = UbootEnv::empty(ENV_BYTES, true).unwrap();
    unlimited.set("saved_slot", Some("a")).unwrap();
    let (_, copy) = unlimited.next_copy().unwrap();
    fs::write(&env, [copy, vec![0; ENV_BYTES]].concat()).unwrap();
    let said = why().await;
    assert!(said.contains("has no bootlimit"), "{said}");
}

/// What U-Boot's own tools or scripts keep in the environment stays as it is, and each save goes to the copy not in force.
#[tokio::test]
async fn saves_alternate_between_the_copies_and_leave_the_variables_of_others_alone() {
    let host = Host::with(Loader::TwoCopies);
    let env = host.dir.path().join("env");
    for arm in [true, false, true] {
        let before = fs::read(&env).unwrap();
        let read =
            |bytes: &[u8]| UbootEnv::from_copies(&[bytes[..ENV_BYTES].to_vec(), bytes[ENV_BYTES..].to_vec()]).unwrap();
        let (next, _) = read(&before).next_copy().unwrap();
        if arm {
            host.backend().stage(&image(), Some(Slot::B)).await.unwrap();
        } else {
            host.backend().abort(None).await.unwrap();
        }
        let after = fs::read(&env).unwrap();
        let saves = if arm { 2 } else { 1 };
        assert_eq!(
            read(&after).next_copy().unwrap().0,
            if saves == 2 { next } else { 1 - next }
        );
        assert_eq!(read(&after).get("board"), Some("r1"));
    }
}

#[tokio::test]
async fn a_reset_command_that_fails_says_what_it_said() {
    let host = Host::new();
    assert_eq!(
        host.backend().reset(Rung::Warm).await.unwrap_err().reason,
        "sh ended with exit status: 3: no such host"
    );
}

struct Host {
    dir: TempDir,
}

/// What starts a host, and where its environment lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loader {
    Grub,
    /// U-Boot, with two copies beside each other.
    TwoCopies,
    /// U-Boot, with one copy in a file of its own.
    OneCopy,
}

const LOADERS: [Loader; 3] = [Loader::Grub, Loader::TwoCopies, Loader::OneCopy];

/// A copy of U-Boot's.
const ENV_BYTES: usize = 0x1000;

/// The image, or only so much of it.
#[derive(Debug)]
struct OneImage {
    arrives: usize,
}

/// Bytes that do not come.
struct Never;

impl tokio::io::AsyncRead for Never {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
        _buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }
}

impl ImageSource for OneImage {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        use tokio::io::AsyncReadExt as _;
        Box::pin(async {
            let mut bytes = bytes("1.1.0");
            bytes.truncate(self.arrives);
            let whole = bytes.len() == IMAGE_BYTES;
            let bytes = std::io::Cursor::new(bytes);
            Ok(if whole {
                Box::pin(bytes) as ImageReader
            } else {
                Box::pin(bytes.chain(Never))
            })
        })
    }

    fn url(&self, _artifact: ArtifactId) -> String {
        unreachable!("slots are written, not pulled")
    }
}

impl Host {
    /// A host that runs 1.0.0 from slot A.
    fn new() -> Self {
        Self::with(Loader::Grub)
    }

    fn with(loader: Loader) -> Self {
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let old = bytes("1.0.0");
        fs::write(host.slot(Slot::A), &old).unwrap();
        fs::write(host.slot(Slot::B), b"").unwrap();
        let content = SlotContent::Ready {
            version: "1.0.0".to_owned(),
            sha256: Sha256::of(&old),
            length: old.len() as u64,
        };
        let env = BootEnv::new(Slot::A, content);
        let file = |name: &str| host.dir.path().join(name);
        if loader == Loader::Grub {
            let mut block = EnvBlock::default();
            env.write_to(&mut block).unwrap();
            fs::write(file("grubenv"), block.to_bytes().unwrap()).unwrap();
        } else {
            let path = file("env").display().to_string();
            let mut places = format!("{path} 0 {ENV_BYTES:x}\n");
            let mut block = UbootEnv::empty(ENV_BYTES, loader == Loader::TwoCopies).unwrap();
            for (name, value) in [("bootlimit", "1"), ("altbootcmd", "run saved"), ("board", "r1")] {
                block.set(name, Some(value)).unwrap();
            }
            env.write_to(&mut block).unwrap();
            let (_, mut copies) = block.next_copy().unwrap();
            if loader == Loader::TwoCopies {
                places.push_str(&format!("{path} {ENV_BYTES} {ENV_BYTES:x}\n"));
                copies.extend([0; ENV_BYTES]);
            }
            fs::write(file("env"), copies).unwrap();
            fs::write(file("fw_env.config"), places).unwrap();
        }
        host.run(Slot::A);
        host
    }

    fn backend(&self) -> AbSlotBackend {
        backend_in(self.dir.path(), Arc::new(OneImage { arrives: IMAGE_BYTES }))
    }

    fn slot(&self, slot: Slot) -> std::path::PathBuf {
        self.dir.path().join(format!("slot_{slot}"))
    }

    fn env(&self) -> BootEnv {
        place(self.dir.path()).read().unwrap()
    }

    /// The system writes its status from `slot`.
    fn run(&self, slot: Slot) {
        let status = Status {
            slot,
            boot_id: format!("from {slot}"),
            version: if slot == Slot::A { "1.0.0" } else { "1.1.0" }.to_owned(),
            model: "H1".to_owned(),
            vendor: "Acme".to_owned(),
            sha256: None,
        };
        fs::write(
            self.dir.path().join("status.json"),
            serde_json::to_vec(&status).unwrap(),
        )
        .unwrap();
    }

    /// The slot that a boot loader without any knowledge of digests starts, and whether a whole image lies in it.
    fn boots(&self) -> (Slot, bool) {
        let slot = boot(&self.env(), |_| true).slot.unwrap();
        let expected = [bytes("1.0.0"), bytes("1.1.0")][slot as usize].clone();
        let found = disk::digest(&self.slot(slot), expected.len() as u64).unwrap();
        (slot, found == Some(Sha256::of(&expected)))
    }
}

/// Where the environment of the host in `dir` lies.
fn place(dir: &std::path::Path) -> BootEnvPlace {
    match fs::read_to_string(dir.join("fw_env.config")) {
        Ok(text) => BootEnvPlace::Uboot(parse_fw_env_config(&text).unwrap()),
        Err(_not_there) => BootEnvPlace::Grub(dir.join("grubenv")),
    }
}

fn backend_in(dir: &std::path::Path, images: Arc<OneImage>) -> AbSlotBackend {
    let settings = AbSlotSettings {
        slot_a: dir.join("slot_a"),
        slot_b: dir.join("slot_b"),
        env: place(dir),
        status_file: dir.join("status.json"),
        health_file: None,
        reset_program: "sh".to_owned(),
        reset_args: ["-c", "echo no such host >&2; exit 3"].map(str::to_owned).to_vec(),
        vendor: "Acme".to_owned(),
        model: "H1".to_owned(),
    };
    AbSlotBackend::new(settings, Component::new("host").unwrap(), images)
}

fn bytes(version: &str) -> Vec<u8> {
    version.bytes().cycle().take(IMAGE_BYTES).collect()
}

fn image() -> Image {
    let bytes = bytes("1.1.0");
    let artifact = Artifact {
        id: ArtifactId::of(&bytes),
        sha256: Sha256::of(&bytes),
        length: bytes.len() as u64,
    };
    let info = ReleaseInfo {
        schema: RELEASE_SCHEMA.to_owned(),
        blake3: artifact.id,
        vendor: "Acme".to_owned(),
        models: vec!["H1".to_owned()],
        component: Component::new("host").unwrap(),
        version: "1.1.0".to_owned(),
        security_epoch: 1,
        from_versions: Vec::new(),
        reversibility: Reversibility::Reversible,
        provenance: None,
        version_scheme: None,
        min_from: None,
        requires: Vec::new(),
        conflicts: Vec::new(),
    };
    Release {
        target: "firmware/h1.bin".to_owned(),
        artifact,
        info,
    }
}
