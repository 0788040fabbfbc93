//! Where the real binaries are: built once, beside the test executable.
//!
//! Cargo hands no package's binaries to another package's tests, so the first test builds them into the target folder it
//! was itself built in, with the same profile. When they are fresh already, that takes a fraction of a second.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The command that builds what the tests start.
pub const BUILD_COMMAND: &str = "cargo build --workspace --bins";

/// A program of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The node.
    Node,
    /// The coordinator.
    Coordinator,
    /// The operator's command line.
    Operator,
    /// The lab: emulated devices, the evil peer, the demo.
    Lab,
}

impl Program {
    /// The executable's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "firmesh-node",
            Self::Coordinator => "firmesh-coordinator",
            Self::Operator => "firmesh",
            Self::Lab => "firmesh-lab",
        }
    }

    /// The executable, built if it has to be.
    pub fn path(self) -> Result<PathBuf> {
        static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let folder = FOLDER.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        let folder = folder.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        let path = folder.join(format!("{}{}", self.name(), std::env::consts::EXE_SUFFIX));
        ensure!(path.is_file(), "{} is missing: run `{BUILD_COMMAND}`", path.display());
        Ok(path)
    }
}

/// The workspace's top folder.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or_else(|| Path::new("."))
}

/// Builds the binaries; answers the folder they lie in.
fn build() -> Result<PathBuf> {
    let test = std::env::current_exe().context("where is the test executable?")?;
    let folder = test
        .ancestors()
        .nth(2)
        .context("the test executable lies in no target folder")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => bail!("the test executable lies in no target folder: {}", test.display()),
    };
    let target = folder
        .parent()
        .context("the test executable lies in no target folder")?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(BUILD_COMMAND.split(' ').skip(1))
        .args(["--locked", "--profile", profile, "--target-dir"])
        .arg(target);
    // What cargo says about this package is not meant for the packages it builds now.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR")
    {
        cargo.env_remove(name);
    }
    // What cargo says goes to the terminal: a first build takes minutes.
    let status = cargo
        .current_dir(workspace())
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{} cannot be started: run `{BUILD_COMMAND}` first", env!("CARGO")))?;
    ensure!(status.success(), "`{BUILD_COMMAND}` failed: see what it said above");
    Ok(folder.to_owned())
}
