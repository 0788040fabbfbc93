//! Build script: the commit, as every binary package has it, and the dashboard's pages.
//!
//! The pages are built in `OUT_DIR`, from a copy of `dashboard/`: nothing is written into the source tree. Without Node.js,
//! or where its build fails, one page says so and the coordinator is built all the same.

#[path = "../.cargo/commit.rs"]
mod commit;

use std::{
    env,
    fmt::Write as _,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// What the pages are made of, in `dashboard/`. Tests of the browser and what the build leaves behind are not among it.
const SOURCES: [&str; 8] = [
    "index.html",
    "package-lock.json",
    "package.json",
    "public",
    "scripts",
    "src",
    "tsconfig.json",
    "vite.config.ts",
];

/// The oldest Node.js that Vite runs on.
const NODE_MIN: (u32, u32) = (20, 19);

/// Set to anything, it leaves the pages out.
const LEAVE_OUT: &str = "FIRMESH_NO_DASHBOARD";

fn main() {
    commit::main();
    println!("cargo::rerun-if-env-changed={LEAVE_OUT}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=dashboard/missing.html");
    for source in SOURCES {
        println!("cargo::rerun-if-changed=dashboard/{source}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let pages = match build(&out.join("dashboard")) {
        Ok(dist) => listed(&dist),
        Err(why) => {
            println!("cargo::warning=the dashboard is left out: {why}");
            missing(&out, &why)
        }
    };
    let pages = pages.expect("the build's own folder can be read and written");
    fs::write(out.join("pages.rs"), pages).expect("the build's own folder can be written");
}

/// Builds the pages, unless they were built of the same sources before; answers where they are.
fn build(folder: &Path) -> Result<PathBuf, String> {
    if env::var_os(LEAVE_OUT).is_some() {
        return Err(format!("{LEAVE_OUT} is set"));
    }
    let sources = SOURCES.iter().map(|name| Path::new("dashboard").join(name));
    let mut files = Vec::new();
    for source in sources {
        files_below(&source, &mut files).map_err(|error| format!("{} cannot be read: {error}", source.display()))?;
    }
    let (stamp, dist) = (folder.join("stamp"), folder.join("dist"));
    let digest = digest(&files).map_err(|error| format!("its sources cannot be read: {error}"))?;
    // The script runs again with every commit, the pages do not change with it.
    if fs::read_to_string(&stamp).is_ok_and(|built| built == digest) && dist.join("index.html").is_file() {
        return Ok(dist);
    }
    recent_node()?;
    let copied = copy(&files, folder);
    copied.map_err(|error| format!("its sources cannot be copied to {}: {error}", folder.display()))?;
    let install = ["ci", "--omit=dev", "--no-audit", "--no-fund", "--prefer-offline"];
    // Without a network it shall fail soon rather than try for minutes.
    let soon = ["--fetch-retries=1", "--fetch-timeout=20000"];
    npm(folder, &[&install[..], &soon].concat())?;
    npm(folder, &["run", "build"])?;
    // Some 100 MB that are needed no more; where they stay, they only take room.
    let _ = fs::remove_dir_all(folder.join("node_modules"));
    fs::write(stamp, digest).map_err(|error| format!("{} cannot be written: {error}", folder.display()))?;
    Ok(dist)
}

fn files_below(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        if !path.to_string_lossy().ends_with(".test.ts") {
            files.push(path.to_owned());
        }
        return Ok(());
    }
    let mut inside = fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    inside.sort();
    inside.iter().try_for_each(|path| files_below(path, files))
}

/// Another one with every change. It has to tell builds apart, not to withstand anybody.
fn digest(files: &[PathBuf]) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.hash(&mut hasher);
        fs::read(file)?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn recent_node() -> Result<(), String> {
    let (major, minor) = NODE_MIN;
    let wanted = format!("Node.js {major}.{minor} or later with npm is needed (https://nodejs.org)");
    let output = Command::new("node").arg("--version").output();
    let output = output.map_err(|_| format!("{wanted}, and there is no `node`"))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut parts = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(found)), Some(Ok(minor))) if (found, minor) >= NODE_MIN => Ok(()),
        _ => Err(format!("{wanted}, and `node` is {version:?}")),
    }
}

fn copy(files: &[PathBuf], folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for file in files {
        let to = folder.join(file.strip_prefix("dashboard").unwrap_or(file));
        fs::create_dir_all(to.parent().unwrap_or(folder))?;
        fs::copy(file, to)?;
    }
    Ok(())
}

fn npm(folder: &Path, args: &[&str]) -> Result<(), String> {
    let command = format!("npm {}", args.join(" "));
    let output = Command::new("npm").args(args).current_dir(folder).output();
    let output = output.map_err(|error| format!("`{command}` cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let mut last: Vec<_> = said
        .lines()
        .filter(|line| !line.trim().is_empty())
        .rev()
        .take(6)
        .collect();
    last.reverse();
    Err(format!("`{command}` failed: {}", last.join(" / ")))
}

/// The built files as a table in Rust.
fn listed(dist: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    files_below(dist, &mut files)?;
    let mut table = String::from("&[\n");
    for file in files
        .iter()
        .filter(|file| file.extension().is_none_or(|kind| kind != "gz"))
    {
        let name = file
            .strip_prefix(dist)
            .unwrap_or(file)
            .to_string_lossy()
            .replace('\\', "/");
        let packed = PathBuf::from(format!("{}.gz", file.display()));
        let packed = packed.is_file().then_some(packed);
        let _ = write!(table, "{}", row(&name, file, packed.as_deref())?);
    }
    Ok(table + "]\n")
}

fn row(name: &str, file: &Path, packed: Option<&Path>) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    fs::read(file)?.hash(&mut hasher);
    let tag = format!("{:016x}", hasher.finish());
    let gzip = packed.map_or_else(|| "None".to_owned(), |path| format!("Some(include_bytes!({path:?}))"));
    Ok(format!(
        "Page {{ path: {:?}, tag: \"\\\"{tag}\\\"\", bytes: include_bytes!({file:?}), gzip: {gzip} }},\n",
        format!("/{name}")
    ))
}

/// One page that says what is missing.
fn missing(out: &Path, why: &str) -> io::Result<String> {
    let escaped = why.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let text = fs::read_to_string("dashboard/missing.html")?.replace("{{why}}", &escaped);
    let file = out.join("missing.html");
    fs::write(&file, text)?;
    Ok(format!("&[\n{}]\n", row("index.html", &file, None)?))
}
