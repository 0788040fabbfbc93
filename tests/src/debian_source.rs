//! Files out of the sources of Debian packages: what others test their software with is in no package.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{packages::find_command, python::run};

/// Brings the file `path` of the source of Debian's `package` into a place of its own below `folder`, once; answers where it is.
/// The source comes from where this system has its packages from, checked by its keys, and needs no root.
///
/// # Errors
/// Says what apt said: no network, no such package, or a system that is no Debian.
pub fn source_file(folder: &Path, package: &str, path: &str) -> Result<PathBuf> {
    let place = folder.join(format!("source-of-{package}"));
    let name = Path::new(path).file_name().context("the path names no file")?;
    let wanted = place.join(name);
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    // One test process at a time fetches it, the others find it fetched.
    let lock = File::create(place.join("lock")).context("cannot make a lock file")?;
    lock.lock().context("cannot lock a file")?;
    if wanted.is_file() {
        return Ok(wanted);
    }
    let apt = find_command("apt-get")
        .with_context(|| format!("the source of {package} comes from Debian: there is no apt-get here"))?;
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(place.join(folder))?;
    }
    fs::write(place.join("sources.list"), sources(&apt)?)?;
    let at = |name: &str| place.join(name).display().to_string();
    let options = [
        format!("Dir::Etc::SourceList={}", at("sources.list")),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        format!("Dir::State::Lists={}", at("lists")),
        format!("Dir::Cache={}", at("cache")),
    ];
    for act in [&["update"][..], &["source", "--download-only", package]] {
        let options = options.iter().flat_map(|option| ["-o", option.as_str()]);
        let output = Command::new(&apt)
            .args(options.chain(act.iter().copied()))
            .current_dir(&place)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{} cannot be started", apt.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "apt-get {} failed: {said}", act.join(" "));
    }
    let entries = fs::read_dir(&place)?.collect::<Result<Vec<_>, _>>()?;
    let archive = entries.iter().map(fs::DirEntry::path).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains(".orig.tar.") && !name.ends_with(".asc")
    });
    let archive = archive.with_context(|| format!("the source of {package} has no archive of its makers"))?;
    let tar = find_command("tar").context("there is no tar here")?;
    let args = ["--extract", "--to-stdout", "--wildcards", "--file"].map(str::to_owned);
    let args = args
        .into_iter()
        .chain([archive.display().to_string(), format!("*/{path}")]);
    let contents = run(&tar, args)?.stdout;
    let unfinished = place.join("unfinished");
    fs::write(&unfinished, contents)?;
    fs::rename(&unfinished, &wanted)?;
    Ok(wanted)
}

/// Where this system has its packages from, as places of sources.
fn sources(apt: &Path) -> Result<String> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)";
    let listed = run(apt, ["indextargets", "--format", format, "Created-By: Packages"])?;
    let listed = String::from_utf8(listed.stdout)?;
    let lines: BTreeSet<String> = listed
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
            // The origin is known only of lists that have been fetched.
            let is_debian = words.next().is_none_or(|origin| origin == "Debian");
            is_debian.then(|| format!("deb-src {uri} {release} {component}\n"))
        })
        .collect();
    ensure!(!lines.is_empty(), "apt-get knows no place that has Debian's packages");
    Ok(lines.into_iter().collect())
}
