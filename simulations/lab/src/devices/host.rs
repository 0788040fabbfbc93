//! A host: a folder with two slots, a boot environment and a status, watched like a boot loader and a system would.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_executors_core::{BootEnv, ENV_BLOCK_BYTES, EnvBlock, Slot, SlotContent};
use firmesh_protocol::ids::Sha256;
use firmesh_simulations::device::{Catalogue, Firmware, Host, HostState};
use serde_json::json;
use sha2::Digest as _;
use tokio_util::sync::CancellationToken;

use super::{
    config::DeviceConfig,
    now_ms,
    state::{Kept, replace},
};

/// How often the folder is looked at.
const PACE: Duration = Duration::from_millis(50);
const REQUEST: &str = "reset.request";

/// Asks the emulator to restart the host in `dir`. The request waits in the folder while no emulator runs.
pub(crate) fn request_reset(dir: &Path) -> Result<()> {
    ensure!(
        dir.join("grubenv").exists(),
        "{} is not the folder of an emulated host",
        dir.display()
    );
    replace(&dir.join(REQUEST), b"reset\n")
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
    if dir.join("grubenv").exists() {
        return Ok(false);
    }
    fs::write(dir.join("slot_a"), &bytes)?;
    fs::write(dir.join("slot_b"), [])?;
    let content = SlotContent::Ready {
        version: device.version.clone(),
        sha256,
        length: bytes.len() as u64,
    };
    write_env(dir, &mut EnvBlock::default(), &BootEnv::new(Slot::A, content))?;
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
        let (_, env) = read_env(&self.dir)?;
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
        let (mut block, env) = read_env(&self.dir)?;
        let digest = |slot| digest(&self.dir.join(format!("slot_{slot}")), env.slot(slot));
        let digests = [digest(Slot::A)?, digest(Slot::B)?];
        let left = self.host.change(|host| host.reset(now_ms(), &env, digests));
        write_env(&self.dir, &mut block, &left)
    }

    fn status_file(&self) -> PathBuf {
        self.dir.join("status.json")
    }
}

fn read_env(dir: &Path) -> Result<(EnvBlock, BootEnv)> {
    let bytes = fs::read(dir.join("grubenv")).context("reading grubenv")?;
    ensure!(bytes.len() == ENV_BLOCK_BYTES, "grubenv has {} bytes", bytes.len());
    let block = EnvBlock::from_bytes(&bytes)?;
    let env = BootEnv::from_block(&block)?;
    Ok((block, env))
}

fn write_env(dir: &Path, block: &mut EnvBlock, env: &BootEnv) -> Result<()> {
    env.write_to(block)?;
    replace(&dir.join("grubenv"), &block.to_bytes()?)
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
