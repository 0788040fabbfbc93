//! Python with pinned packages, for second opinions by other people's implementations.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::packages::{ensure_command, ensure_that};

/// python-tuf, and the signature library it verifies with.
pub const PYTHON_TUF: [&str; 2] = ["tuf==7.0.0", "securesystemslib[crypto]==1.4.0"];

/// python-dateutil, and time zones of its own in case the system has none.
pub const PYTHON_DATEUTIL: [&str; 2] = ["python-dateutil==2.9.0.post0", "tzdata==2025.2"];

/// What fwupd's mock of BMCs runs in.
pub const PYTHON_FLASK: [&str; 2] = ["flask==3.1.3", "werkzeug==3.1.9"];

/// The emulator of BMCs that OpenStack's client is tested against.
pub const PYTHON_SUSHY_TOOLS: [&str; 3] = ["sushy-tools==2.2.0", "flask==3.1.3", "werkzeug==3.1.9"];

/// The library of those who define CycloneDX, which knows their schemas.
pub const PYTHON_CYCLONEDX: [&str; 1] = ["cyclonedx-python-lib[json-validation]==11.12.0"];

/// A Python interpreter that has `packages`, in a folder of its own below `folder`; made once and kept.
///
/// # Errors
/// Says which Debian package to install if there is no Python with `venv`, and what pip said if it cannot get a package.
pub fn python_with(folder: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let python = ensure_command("python3", "python3")?;
    let can_make_venvs = || {
        run(&python, ["-c", "import venv, ensurepip"])
            .is_ok()
            .then(|| python.clone())
    };
    ensure_that("python3-venv", can_make_venvs).context("Python's venv is needed")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // One test process at a time makes it, the others find it made.
    let lock = File::create(folder.join(format!("{name}.lock"))).context("cannot make a lock file")?;
    lock.lock().context("cannot lock a file")?;
    let (venv, wanted) = (folder.join(name), packages.join("\n"));
    let (interpreter, made) = (venv.join("bin/python"), venv.join("made-of"));
    if !fs::read_to_string(&made).is_ok_and(|found| found == wanted) {
        run(
            &python,
            [OsStr::new("-m"), "venv".as_ref(), "--clear".as_ref(), venv.as_ref()],
        )?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(&interpreter, pip.iter().chain(packages))
            .with_context(|| format!("pip cannot install {}: is there a network?", packages.join(" ")))?;
        fs::write(&made, wanted).with_context(|| format!("cannot write {}", made.display()))?;
    }
    Ok(interpreter)
}

/// How much of what a program said is told.
const SAID_BYTES_MAX: usize = 16 << 10;

/// Runs a program that must succeed; answers what it printed.
pub fn run(program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    // Some say what is wrong on one, some on the other.
    let said = [&output.stdout, &output.stderr]
        .map(|said| String::from_utf8_lossy(&said[said.len().saturating_sub(SAID_BYTES_MAX)..]));
    let said = said.join("\n");
    ensure!(
        output.status.success(),
        "{} failed ({}): {said}",
        program.display(),
        output.status
    );
    Ok(output)
}
