//! Debian packages that a test drives: there already, or installed now if this is root, or asked for by name.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Where programs of the system are that an ordinary user's path leaves out.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Makes sure that `command` is there, from the Debian package `package`; answers where it is.
///
/// # Errors
/// Names the package if it is missing and cannot be installed: not root, no network, no such package.
pub fn ensure_command(command: &str, package: &str) -> Result<PathBuf> {
    ensure_that(package, || find_command(command)).with_context(|| format!("the command {command} is needed"))
}

/// Makes sure that one of these files is there, from the Debian package `package`: for what brings a library.
///
/// # Errors
/// As for [`ensure_command`].
pub fn ensure_file(files: &[&str], package: &str) -> Result<PathBuf> {
    let find = || files.iter().map(PathBuf::from).find(|path| path.is_file());
    ensure_that(package, find).with_context(|| format!("one of the files {} is needed", files.join(", ")))
}

/// Where a command is on the path or among the system's programs.
#[must_use]
pub fn find_command(command: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(command)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Makes sure that `find` finds something, which the Debian package `package` brings.
///
/// # Errors
/// As for [`ensure_command`].
pub fn ensure_that(package: &str, find: impl Fn() -> Option<PathBuf>) -> Result<PathBuf> {
    /// Within one process one installation at a time; over processes apt itself waits (see below).
    static TURN: Mutex<()> = Mutex::new(());
    if let Some(found) = find() {
        return Ok(found);
    }
    let remedy = format!("install the Debian package {package} (apt-get install {package})");
    ensure!(is_root()?, "{remedy}: only root can, and this is not root");
    let Some(apt) = find_command("apt-get") else {
        bail!("{remedy}: there is no apt-get here")
    };
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if find().is_none() && apt_get(&apt, &["install", "--yes", "--no-install-recommends", package]).is_err() {
        // Lists that were never fetched, or that name versions long gone.
        apt_get(&apt, &["update"]).with_context(|| remedy.clone())?;
        apt_get(&apt, &["install", "--yes", "--no-install-recommends", package]).with_context(|| remedy.clone())?;
    }
    find().with_context(|| format!("the Debian package {package} is installed, but does not bring it"))
}

/// Has apt fetch its lists anew.
///
/// # Errors
/// Says who can, if this is not root, and what apt said.
pub fn refresh_lists() -> Result<()> {
    ensure!(
        is_root()?,
        "fetch the lists of packages (apt-get update): only root can, and this is not root"
    );
    let apt = find_command("apt-get").context("there is no apt-get here")?;
    apt_get(&apt, &["update"])
}

/// Whether this is root.
///
/// # Errors
/// Only without `/proc`.
pub fn is_root() -> Result<bool> {
    let own = fs::metadata("/proc/self").context("cannot find out who this is")?;
    Ok(own.uid() == 0)
}

fn apt_get(apt: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new(apt)
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", apt.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<_> = said.lines().rev().take(3).collect();
    bail!(
        "apt-get {} failed: {}",
        args.join(" "),
        last.into_iter().rev().collect::<Vec<_>>().join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_there_is_found_and_nothing_is_installed_for_it() {
        let found = ensure_command("sh", "a-package-nobody-made").unwrap();
        assert!(found.ends_with("sh"), "{}", found.display());
        assert_eq!(find_command("a-command-nobody-made"), None);
    }

    #[test]
    fn what_the_installer_said_is_told() {
        let error = apt_get(Path::new("/bin/false"), &["install", "p"]).unwrap_err();
        assert!(error.to_string().starts_with("apt-get install p failed"), "{error}");
        let error = apt_get(Path::new("/no/apt-get"), &["update"]).unwrap_err();
        assert!(error.to_string().contains("/no/apt-get cannot be started"), "{error}");
    }
}
