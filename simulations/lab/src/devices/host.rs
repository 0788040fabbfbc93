//! A host: a folder with two slots, a boot environment and a status, watched like a boot loader and a system would.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use firmesh_executors_core::{BootEnv, BootEnvError, EnvBlock, Slot, SlotContent, UbootEnv, UbootStart};
use firmesh_protocol::ids::Sha256;
use firmesh_simulations::device::{Catalogue, Firmware, Host, HostState};
use serde_json::json;
use sha2::Digest as _;
use tokio_util::sync::CancellationToken;

use super::{
    config::{BootLoader, DeviceConfig},
    now_ms,
    state::{Kept, replace},
};

/// How often the folder is looked at.
const PACE: Duration = Duration::from_millis(50);
const REQUEST: &str = "reset.request";
/// GRUB's environment.
const GRUBENV: &str = "grubenv";
/// U-Boot's: two copies, one after the other; and the file that says so.
const UBOOT_ENV: &str = "uboot.env";
const FW_ENV_CONFIG: &str = "fw_env.config";
const UBOOT_COPY_BYTES: usize = 0x2000;
/// What its boot counter needs; what the commands do is in [`UbootEnv::start`].
const UBOOT_COMMANDS: [(&str, &str); 3] = [
    ("bootlimit", "1"),
    ("bootcmd", "run select; run start_${slot}"),
    (
        "altbootcmd",
        "setenv upgrade_available 0; setenv bootcount 0; setenv try_slot; saveenv; run bootcmd",
    ),
];

/// Asks the emulator to restart the host in `dir`. The request waits in the folder while no emulator runs.
pub(crate) fn request_reset(dir: &Path) -> Result<()> {
    ensure!(
        is_prepared(dir),
        "{} is not the folder of an emulated host",
        dir.display()
    );
    replace(&dir.join(REQUEST), b"reset\n")
}

fn is_prepared(dir: &Path) -> bool {
    [GRUBENV, FW_ENV_CONFIG].iter().any(|name| dir.join(name).exists())
}

/// One emulated host.
#[derive(Debug)]
pub(super) struct HostServer {
    pub(super) host: Kept<Host>,
    dir: PathBuf,
}

/// Makes the folder of a host that has only ever run one image. Whether it was made just now.
pub(super) fn prepare(
    dir: &Path,
    device: &DeviceConfig,
    image: Option<PathBuf>,
    loader: BootLoader,
    catalogue: &mut Catalogue,
) -> Result<bool> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let bytes = match &image {
        Some(image) => fs::read(image).with_context(|| format!("reading the image {}", image.display()))?,
        None => format!("firmesh lab image: {} {}\n", device.model, device.version).into_bytes(),
    };
    let sha256 = Sha256::of(&bytes);
    catalogue.entry(sha256).or_insert_with(|| Firmware {
        version: device.version.clone(),
        model: device.model.clone(),
    });
    if is_prepared(dir) {
        return Ok(false);
    }
    fs::write(dir.join("slot_a"), &bytes)?;
    fs::write(dir.join("slot_b"), [])?;
    let content = SlotContent::Ready {
        version: device.version.clone(),
        sha256,
        length: bytes.len() as u64,
    };
    let slots = BootEnv::new(Slot::A, content);
    let mut env = match loader {
        BootLoader::Grub => Env::Grub(EnvBlock::default()),
        BootLoader::Uboot => {
            fs::write(dir.join(UBOOT_ENV), vec![0; 2 * UBOOT_COPY_BYTES])?;
            let mut env = UbootEnv::empty(UBOOT_COPY_BYTES, true)?;
            for (name, value) in UBOOT_COMMANDS {
                env.set(name, Some(value))?;
            }
            Env::Uboot(env)
        }
    };
    env.write(&slots)?;
    env.save(dir)?;
    if loader == BootLoader::Uboot {
        let path = dir.join(UBOOT_ENV);
        let line = |at: usize| format!("{} {at:#x} {UBOOT_COPY_BYTES:#x}\n", path.display());
        fs::write(dir.join(FW_ENV_CONFIG), line(0) + &line(UBOOT_COPY_BYTES))?;
    }
    Ok(true)
}

impl HostServer {
    pub(super) fn new(host: Kept<Host>, dir: PathBuf) -> Self {
        Self { host, dir }
    }

    /// Watches the folder until `cancel`.
    pub(super) async fn run(self: Arc<Self>, cancel: CancellationToken) -> Result<()> {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(PACE) => {}
            }
            let server = Arc::clone(&self);
            let turn = tokio::task::spawn_blocking(move || server.turn())
                .await
                .context("a host's thread died")?;
            if let Err(error) = turn {
                tracing::warn!(dir = %self.dir.display(), error = format!("{error:#}"), "an emulated host stumbled");
            }
        }
    }

    fn turn(&self) -> Result<()> {
        if self.dir.join(REQUEST).exists() {
            self.restart()?;
            fs::remove_file(self.dir.join(REQUEST))?;
        }
        let env = Env::load(&self.dir)?.slots()?;
        self.host.change(|host| host.note_env(now_ms(), &env));
        let (up, boots, state) = self
            .host
            .change(|host| (host.advance(now_ms()), host.boots, host.state.clone()));
        match state {
            HostState::Up { slot, sha256, version } if up || !self.status_file().exists() => {
                let identity = self.host.change(|host| host.settings.identity.clone());
                let status = json!({
                    "slot": slot,
                    "boot_id": boots.to_string(),
                    "version": version,
                    "model": identity.model,
                    "vendor": identity.vendor,
                    "sha256": sha256,
                });
                replace(&self.status_file(), &serde_json::to_vec_pretty(&status)?)
            }
            _ => Ok(()),
        }
    }

    /// Takes the system down and runs the boot loader.
    pub(super) fn restart(&self) -> Result<()> {
        match fs::remove_file(self.status_file()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context("removing the status"),
            _ => {}
        }
        let mut env = Env::load(&self.dir)?;
        let slots = env.slots()?;
        let digest = |slot| digest(&self.dir.join(format!("slot_{slot}")), slots.slot(slot));
        let digests = [digest(Slot::A)?, digest(Slot::B)?];
        match &mut env {
            Env::Grub(block) => {
                let left = self.host.change(|host| host.reset(now_ms(), &slots, digests));
                left.write_to(block)?;
                env.save(&self.dir)
            }
            Env::Uboot(_) => self.restart_by_uboot(slots, digests),
        }
    }

    /// U-Boot counts, and saves that, before it starts anything. What hangs on its trial is restarted by the watchdog, until U-Boot
    /// has counted enough.
    fn restart_by_uboot(&self, slots: BootEnv, digests: [Option<Sha256>; 2]) -> Result<()> {
        let start = self.uboot_starts()?;
        let trial = start.is_trial.then_some(start.slot);
        let starts = BootEnv { trial, ..slots };
        let state = self.host.change(|host| {
            host.reset(now_ms(), &starts, digests);
            host.state.clone()
        });
        if let (Some(trial), HostState::Starting { slot, .. }) = (trial, state)
            && slot != trial
        {
            while self.uboot_starts()?.is_trial {}
        }
        Ok(())
    }

    fn uboot_starts(&self) -> Result<UbootStart> {
        let mut env = Env::load(&self.dir)?;
        let Env::Uboot(uboot) = &mut env else {
            bail!("the host has changed its boot loader")
        };
        let before = uboot.clone();
        let start = uboot.start()?;
        if *uboot != before {
            env.save(&self.dir)?;
        }
        Ok(start)
    }

    fn status_file(&self) -> PathBuf {
        self.dir.join("status.json")
    }
}

/// A boot loader's environment.
#[derive(Debug)]
enum Env {
    Grub(EnvBlock),
    Uboot(UbootEnv),
}

impl Env {
    fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| fs::read(dir.join(name)).with_context(|| format!("reading {name}"));
        if !dir.join(FW_ENV_CONFIG).exists() {
            return Ok(Self::Grub(EnvBlock::from_bytes(&read(GRUBENV)?)?));
        }
        let mut first = read(UBOOT_ENV)?;
        ensure!(
            first.len() == 2 * UBOOT_COPY_BYTES,
            "{UBOOT_ENV} has {} bytes",
            first.len()
        );
        let second = first.split_off(UBOOT_COPY_BYTES);
        Ok(Self::Uboot(UbootEnv::from_copies(&[first, second])?))
    }

    fn slots(&self) -> Result<BootEnv, BootEnvError> {
        match self {
            Self::Grub(block) => BootEnv::from_block(block),
            Self::Uboot(env) => BootEnv::from_block(env),
        }
    }

    fn write(&mut self, slots: &BootEnv) -> Result<(), BootEnvError> {
        match self {
            Self::Grub(block) => slots.write_to(block),
            Self::Uboot(env) => slots.write_to(env),
        }
    }

    fn save(&self, dir: &Path) -> Result<()> {
        match self {
            Self::Grub(block) => replace(&dir.join(GRUBENV), &block.to_bytes()?),
            Self::Uboot(env) => {
                let (at, copy) = env.next_copy()?;
                let mut file = fs::OpenOptions::new().write(true).open(dir.join(UBOOT_ENV))?;
                io::Seek::seek(&mut file, io::SeekFrom::Start((at * UBOOT_COPY_BYTES) as u64))?;
                io::Write::write_all(&mut file, &copy)?;
                Ok(file.sync_all()?)
            }
        }
    }
}

/// What lies in a slot: as much as the environment says, or all of it.
fn digest(path: &Path, content: &SlotContent) -> Result<Option<Sha256>> {
    let length = if let SlotContent::Ready { length, .. } = content {
        *length
    } else {
        u64::MAX
    };
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("reading {}", path.display()))?,
    };
    let (mut hash, mut buffer) = (sha2::Sha256::new(), vec![0; 1 << 20]);
    let mut file = io::Read::take(file, length);
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    Ok(Some(digest.into()))
}
