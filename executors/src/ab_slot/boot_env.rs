//! The boot environment on its disk: GRUB's block in a file, or U-Boot's copies in files or on block devices.
//!
//! Invariants: after a crash at any instruction the environment is the old one or the new one (a single copy of U-Boot's that shares its
//! disk with something else is the exception, as it is for U-Boot); whoever else takes the lock of `fw_setenv` changes nothing meanwhile.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use firmesh_executors_core::{
    BootEnv, BootEnvError, BootVariables, ENV_BLOCK_BYTES, EnvBlock, EnvCopy, Slot, UbootEnv,
};

use super::{
    AbSlotError,
    disk::{Disk, file_error, read_small},
};

/// Where the boot environment of a host lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootEnvPlace {
    /// GRUB's environment block.
    Grub(PathBuf),
    /// The copies of U-Boot's environment: one, or two.
    Uboot(Vec<EnvCopy>),
}

/// What `fw_printenv` and `fw_setenv` lock while they are at work, ours and U-Boot's own alike.
const LOCK_FILE: &str = "/var/lock/fw_printenv.lock";

/// How often and how long the lock is waited for: `fw_setenv` holds it for the time of a write.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

impl BootEnvPlace {
    /// The files and devices it lies in.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        let (grub, uboot): (Option<&Path>, &[EnvCopy]) = match self {
            Self::Grub(path) => (Some(path), &[]),
            Self::Uboot(copies) => (None, copies),
        };
        grub.into_iter().chain(uboot.iter().map(|copy| Path::new(&copy.path)))
    }

    /// What the environment says of the slots.
    pub(super) fn read(&self) -> Result<BootEnv, AbSlotError> {
        Ok(self.load()?.1)
    }

    /// Changes what it says of the slots, and leaves everything else in it alone.
    pub(super) fn change(&self, disk: &Disk, change: impl FnOnce(&mut BootEnv)) -> Result<(), AbSlotError> {
        let _lock = match self {
            Self::Grub(_) => None,
            Self::Uboot(_) => {
                Some(lock(Path::new(LOCK_FILE), LOCK_TRIES).map_err(file_error("lock", Path::new(LOCK_FILE)))?)
            }
        };
        let (mut variables, mut env) = self.load()?;
        change(&mut env);
        env.write_to(&mut variables).map_err(|source| self.error(source))?;
        match (self, &variables) {
            (Self::Grub(path), Variables::Grub(block)) => {
                let bytes = block.to_bytes().map_err(|source| self.error(source.into()))?;
                disk.replace(path, &bytes).map_err(file_error("replace", path))
            }
            (Self::Uboot(copies), Variables::Uboot(env)) => {
                let (at, bytes) = env.next_copy().map_err(|source| self.error(source.into()))?;
                let path = Path::new(&copies[at].path);
                save(disk, &copies[at], copies.len() == 1, &bytes).map_err(file_error("write", path))
            }
            _ => unreachable!("variables are read from where they are written"),
        }
    }

    fn load(&self) -> Result<(Variables, BootEnv), AbSlotError> {
        let variables = match self {
            Self::Grub(path) => {
                let bytes = read_small(path, ENV_BLOCK_BYTES as u64).map_err(file_error("read", path))?;
                Variables::Grub(EnvBlock::from_bytes(&bytes).map_err(|source| self.error(source.into()))?)
            }
            Self::Uboot(copies) => {
                let read = copies.iter().map(|copy| {
                    let path = Path::new(&copy.path);
                    read_copy(copy).map_err(file_error("read", path))
                });
                let read = read.collect::<Result<Vec<_>, _>>()?;
                let env = UbootEnv::from_copies(&read).map_err(|source| self.error(source.into()))?;
                if env.is_half_damaged() {
                    tracing::debug!(file = %self.path().display(), "one copy of a U-Boot environment is damaged; the next save mends it");
                }
                Variables::Uboot(env)
            }
        };
        let env = BootEnv::from_block(&variables).map_err(|source| self.error(source))?;
        Ok((variables, env))
    }

    /// The one that messages name.
    fn path(&self) -> &Path {
        self.paths().next().unwrap_or_else(|| Path::new("(none)"))
    }

    fn error(&self, source: BootEnvError) -> AbSlotError {
        AbSlotError::Env {
            path: self.path().to_owned(),
            source,
        }
    }
}

/// The variables, as their boot loader has them.
#[derive(Debug)]
enum Variables {
    Grub(EnvBlock),
    Uboot(UbootEnv),
}

impl BootVariables for Variables {
    fn get(&self, name: &str) -> Option<&str> {
        match self {
            Self::Grub(block) => block.get(name),
            Self::Uboot(env) => env.get(name),
        }
    }

    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), BootEnvError> {
        match self {
            Self::Grub(block) => BootVariables::set(block, name, value),
            Self::Uboot(env) => BootVariables::set(env, name, value),
        }
    }

    fn trial(&self) -> Result<Option<Slot>, BootEnvError> {
        match self {
            Self::Grub(block) => block.trial(),
            Self::Uboot(env) => env.trial(),
        }
    }

    fn set_trial(&mut self, trial: Option<Slot>) -> Result<(), BootEnvError> {
        match self {
            Self::Grub(block) => block.set_trial(trial),
            Self::Uboot(env) => env.set_trial(trial),
        }
    }
}

fn read_copy(copy: &EnvCopy) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(&copy.path)?;
    file.seek(from(copy))?;
    let mut bytes = vec![0; copy.bytes];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn save(disk: &Disk, copy: &EnvCopy, is_single: bool, bytes: &[u8]) -> io::Result<()> {
    let path = Path::new(&copy.path);
    let metadata = fs::metadata(path)?;
    if metadata.file_type().is_char_device() {
        return Err(io::Error::other(
            "this is raw flash (MTD or UBI), which is not written here: keep the environment in a file or on a block device",
        ));
    }
    // A single copy in a file of its own can be replaced whole; another must be written where it is.
    if is_single && metadata.is_file() && copy.offset == 0 && metadata.len() == bytes.len() as u64 {
        disk.replace(path, bytes)
    } else {
        disk.write_at(path, from(copy), bytes)
    }
}

fn from(copy: &EnvCopy) -> SeekFrom {
    match u64::try_from(copy.offset) {
        Ok(offset) => SeekFrom::Start(offset),
        Err(_below_zero) => SeekFrom::End(copy.offset),
    }
}

/// The lock, until the file is dropped.
fn lock(path: &Path, tries: u32) -> io::Result<fs::File> {
    let opened = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = match opened {
        // Somebody else's may be read, which is enough to lock it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fs::File::open(path)?,
        other => other?,
    };
    for _ in 0..tries {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::WouldBlock,
        "somebody holds it: fw_setenv, or a node, has not ended",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path, 1).unwrap();
        let error = lock(&path, 2).unwrap_err();
        assert!(error.to_string().contains("somebody holds it"), "{error}");
        drop(held);
        assert!(lock(&path, 1).is_ok());
    }

    #[test]
    fn a_copy_on_a_device_is_read_and_written_where_it_is_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        for offset in [0_i64, 0x80, -0x40] {
            std::fs::write(&path, [b'x'; 0x100]).unwrap();
            let copy = EnvCopy {
                path: path.display().to_string(),
                offset,
                bytes: 0x40,
            };
            assert_eq!(read_copy(&copy).unwrap(), [b'x'; 0x40]);
            save(&Disk::default(), &copy, true, &[b'y'; 0x40]).unwrap();
            assert_eq!(read_copy(&copy).unwrap(), [b'y'; 0x40]);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 0x100);
            assert_eq!(bytes.iter().filter(|&&byte| byte == b'y').count(), 0x40);
        }
    }

    #[test]
    fn raw_flash_is_refused_with_what_to_do_instead() {
        let copy = EnvCopy {
            path: "/dev/null".to_owned(),
            offset: 0,
            bytes: 0x40,
        };
        let error = save(&Disk::default(), &copy, false, &[0; 0x40]).unwrap_err();
        assert!(error.to_string().contains("raw flash"), "{error}");
    }
}
