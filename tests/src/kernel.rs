//! A Linux kernel for emulated machines: out of Debian's package, which is unpacked and not installed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    packages::{ensure_command, refresh_lists},
    python::run,
};

/// Always the newest of the smallest kernels.
const NEWEST: &str = "linux-image-cloud-amd64";

/// Brings a kernel for 64-bit PCs into a place of its own below `folder`, once; answers where it is. Its package, of 27 MB, comes
/// from where this system has its packages from.
///
/// # Errors
/// Says what apt said: no network, no such package, or a system that is no Debian.
pub fn kernel(folder: &Path) -> Result<PathBuf> {
    let place = folder.join("kernel");
    let wanted = place.join("vmlinuz");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    // One test process at a time fetches it, the others find it fetched.
    let lock = File::create(place.join("lock")).context("cannot make a lock file")?;
    lock.lock().context("cannot lock a file")?;
    if wanted.is_file() {
        return Ok(wanted);
    }
    if download(&place).is_err() {
        // Lists that were never fetched, or that name versions long gone.
        refresh_lists()?;
        download(&place)?;
    }
    let package = find(&place, |name| name.ends_with(".deb"))?;
    let tar = ensure_command("tar", "tar")?;
    let mut unpacking = Command::new(ensure_command("dpkg-deb", "dpkg")?)
        .arg("--fsys-tarfile")
        .arg(&package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let contents = unpacking.stdout.take().context("no standard output")?;
    let unpacked = Command::new(tar)
        .args(["--extract", "--wildcards", "--strip-components=2", "./boot/vmlinuz-*"])
        .current_dir(&place)
        .stdin(contents)
        .status()?;
    ensure!(
        unpacking.wait()?.success() && unpacked.success(),
        "{} cannot be unpacked",
        package.display()
    );
    fs::remove_file(package)?;
    fs::rename(find(&place, |name| name.starts_with("vmlinuz-"))?, &wanted)?;
    Ok(wanted)
}

fn download(place: &Path) -> Result<()> {
    let cache = ensure_command("apt-cache", "apt")?;
    let listed = String::from_utf8(run(&cache, ["depends", "--important", NEWEST])?.stdout)?;
    let package = listed
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("Depends: ")
                .filter(|name| name.starts_with("linux-image-"))
        })
        .with_context(|| format!("apt knows no {NEWEST}: a kernel comes from Debian"))?;
    let output = Command::new(ensure_command("apt-get", "apt")?)
        .args(["download", package])
        .current_dir(place)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "apt-get download {package} failed: {said}");
    Ok(())
}

fn find(place: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(place)?.collect::<Result<Vec<_>, _>>()?;
    let mut paths = entries.iter().map(fs::DirEntry::path);
    paths
        .find(|path| is_it(&path.file_name().unwrap_or_default().to_string_lossy()))
        .with_context(|| format!("the kernel's package did not bring one into {}", place.display()))
}
