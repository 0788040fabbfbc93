//! Build script of every binary package: tells the compiler the commit, as `FIRMESH_COMMIT`.

use std::process::Command;

pub(crate) fn main() {
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned());
    println!("cargo::rustc-env=FIRMESH_COMMIT={commit}");
    // Runs again when HEAD moves: the log of HEAD grows with every commit, checkout and reset.
    if let Ok(output) = Command::new("git")
        .args(["rev-parse", "--git-path", "logs/HEAD"])
        .output()
        && let Ok(path) = String::from_utf8(output.stdout)
    {
        println!("cargo::rerun-if-changed={}", path.trim());
    }
}
