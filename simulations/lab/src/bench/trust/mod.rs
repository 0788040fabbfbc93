//! What verification costs: reading and verifying the same metadata files with our verifier, with python-tuf and with
//! the Rust crate tough, in interleaved runs.
//!
//! All three read a file's bytes, take its canonical form, verify its signatures and end with the typed content. Each runs
//! in a process of its own, built with full optimisation, and times its own work after one warming round. The builds and
//! the virtual environment stay in the work folder for the next time; tough never enters our own lock file.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    ids::Sha256,
    time::WallTime,
    trust::{
        Extra, Header, Key, Kind, MetaFile, Role, RoleKeys, Root, SecretKey, SignedFile, Snapshot, Target, Targets,
        Timestamp, TimestampMeta,
    },
};
use serde::Serialize;

use super::{TrustArgs, median};

/// Keys that all sign one small file, so that signatures are nearly all of its cost.
const SIGNERS: u8 = 50;

/// What is compared with, pinned.
const TOUGH: &str = "0.24.0";
const PYTHON_TUF: [&str; 2] = ["tuf==7.0.0", "securesystemslib[crypto]==1.4.0"];

/// One file to verify, and how often in a run.
struct Case {
    what: &'static str,
    role: &'static str,
    times: u32,
    /// What a run does so many times per file.
    units: u32,
    unit: &'static str,
}

/// One implementation: the program and the arguments before the case's.
struct Contender {
    name: &'static str,
    command: Result<Vec<PathBuf>>,
}

/// The medians of one case.
#[derive(Debug, Serialize)]
struct Figures {
    case: &'static str,
    file_bytes: u64,
    unit: &'static str,
    /// Per second, by implementation.
    per_second: BTreeMap<&'static str, f64>,
    /// How much longer each takes than ours.
    over_ours: BTreeMap<&'static str, f64>,
}

/// Everything one run of the command says.
#[derive(Debug, Serialize)]
struct Report {
    runs: u32,
    cases: Vec<Figures>,
    /// Why something was not compared with.
    missing: BTreeMap<&'static str, String>,
}

const OURS: &str = "firmesh";

pub(super) fn run(args: &TrustArgs) -> Result<()> {
    let work = args
        .work
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join("firmesh-bench-trust"));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    write_files(&work, args.targets)?;
    let cases = [
        Case {
            what: "signatures",
            role: "snapshot",
            times: 20,
            units: u32::from(SIGNERS),
            unit: "signatures",
        },
        Case {
            what: "small file",
            role: "timestamp",
            times: 500,
            units: 1,
            unit: "files",
        },
        Case {
            what: "targets",
            role: "targets",
            times: 1,
            units: args.targets,
            unit: "targets",
        },
    ];
    let contenders = [
        Contender {
            name: OURS,
            command: our_program(),
        },
        Contender {
            name: "tough",
            command: tough_program(&work),
        },
        Contender {
            name: "python-tuf",
            command: python_program(&work),
        },
    ];
    let mut report = Report {
        runs: args.runs,
        cases: Vec::new(),
        missing: BTreeMap::new(),
    };
    for contender in &contenders {
        if let Err(error) = &contender.command {
            ensure!(contender.name != OURS, "our own verifier cannot be built: {error:#}");
            report.missing.insert(contender.name, format!("{error:#}"));
        }
    }
    for case in &cases {
        report.cases.push(measure(case, &contenders, &work, args.runs)?);
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn measure(case: &Case, contenders: &[Contender], work: &Path, runs: u32) -> Result<Figures> {
    let mut spent: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let file = work.join(format!("{}.json", case.role));
    let rest = [
        work.join("root.json"),
        file.clone(),
        case.role.into(),
        case.times.to_string().into(),
    ];
    for run in 0..runs {
        for Contender { name, command } in contenders {
            let Ok(command) = command else { continue };
            let args = command[1..].iter().chain(&rest);
            let nanoseconds = output(&command[0], args)?
                .trim()
                .parse()
                .context("a number of nanoseconds")?;
            spent.entry(name).or_default().push(Duration::from_nanos(nanoseconds));
        }
        eprintln!("{}: run {} of {runs}", case.what, run + 1);
    }
    let medians: BTreeMap<_, _> = spent
        .into_iter()
        .map(|(name, spent)| (name, median(spent).as_secs_f64()))
        .collect();
    let work = f64::from(case.times) * f64::from(case.units);
    let per_second = medians.iter().map(|(&name, seconds)| (name, work / seconds)).collect();
    let over_ours = medians
        .iter()
        .map(|(&name, seconds)| (name, seconds / medians[OURS]))
        .collect();
    Ok(Figures {
        case: case.what,
        file_bytes: fs::metadata(&file)?.len(),
        unit: case.unit,
        per_second,
        over_ours,
    })
}

fn print(report: &Report) {
    println!(
        "reading and verifying metadata, median of {} interleaved runs, one core, release builds",
        report.runs
    );
    for Figures {
        case,
        file_bytes,
        unit,
        per_second,
        over_ours,
    } in &report.cases
    {
        println!("{case} (a file of {file_bytes} bytes)");
        for (name, rate) in per_second {
            println!(
                "  {name:<11} {rate:>12.0} {unit}/s  (takes {:.2} times as long as ours)",
                over_ours[name]
            );
        }
    }
    for (name, why) in &report.missing {
        println!("not compared with {name}: {why}");
    }
}

/// A root, a snapshot that many keys sign, a timestamp and a large targets file.
fn write_files(work: &Path, targets: u32) -> Result<()> {
    let expires = WallTime::from_unix_seconds(4_000_000_000);
    let keys: Vec<_> = (0..SIGNERS).map(|number| SecretKey::from_seed(&[number; 32])).collect();
    let role = |signers: &[SecretKey]| RoleKeys {
        keyids: signers.iter().map(|key| key.public().id()).collect(),
        threshold: signers.len() as u64,
        extra: Extra::new(),
    };
    let (all, one) = (&keys[..], &keys[..1]);
    let root = Root {
        header: Header::first(Kind::Root, expires),
        consistent_snapshot: true,
        keys: keys
            .iter()
            .map(|key| (key.public().id(), Key::from(key.public())))
            .collect(),
        roles: [("root", one), ("timestamp", one), ("snapshot", all), ("targets", one)]
            .map(|(name, signers)| (name.to_owned(), role(signers)))
            .into(),
        extra: Extra::new(),
    };
    let meta = MetaFile::of(1, b"");
    let snapshot = Snapshot {
        header: Header::first(Kind::Snapshot, expires),
        meta: BTreeMap::from([("targets.json".to_owned(), meta.clone())]),
        extra: Extra::new(),
    };
    let timestamp = Timestamp {
        header: Header::first(Kind::Timestamp, expires),
        meta: TimestampMeta { snapshot: meta },
        extra: Extra::new(),
    };
    let mut content = Targets::first(expires);
    for number in 0..targets {
        let name = format!("firmware/acme-r1-bmc-1.{number}.bin");
        let custom = serde_json::json!({"schema": "firmesh-release/1", "vendor": "Acme", "models": ["R1"], "epoch": 1});
        let target = Target::new(u64::from(number) + 1, Sha256::of(name.as_bytes()), Some(custom));
        content.targets.insert(name, target);
    }
    write(work, &root, one)?;
    write(work, &snapshot, all)?;
    write(work, &timestamp, one)?;
    write(work, &content, one)
}

fn write<T: Role>(work: &Path, content: &T, signers: &[SecretKey]) -> Result<()> {
    let mut file = SignedFile::unsigned(content);
    signers.iter().for_each(|key| file.sign(&key.public().id(), key));
    let path = work.join(format!("{}.json", T::KIND));
    fs::write(&path, file.to_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// The verifier alone, built for speed from the source tree this program was built from.
fn our_program() -> Result<Vec<PathBuf>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let metadata = cargo(
        &workspace,
        &["metadata", "--format-version", "1", "--no-deps", "--offline"],
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cargo metadata is JSON")?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo names its target folder")?;
    cargo(
        &workspace,
        &[
            "build",
            "--release",
            "--locked",
            "-p",
            "firmesh-protocol",
            "--example",
            "verify",
        ],
    )?;
    Ok(vec![Path::new(target).join("release/examples/verify")])
}

/// A tiny project of its own.
fn tough_program(work: &Path) -> Result<Vec<PathBuf>> {
    let folder = work.join("tough");
    fs::create_dir_all(folder.join("src"))?;
    let manifest = format!(
        "[package]\nname = \"bench-tough\"\nversion = \"0.0.0\"\nedition = \"2021\"\npublish = false\n\n[dependencies]\n\
         serde_json = \"1\"\ntough = {{ version = \"={TOUGH}\", default-features = false }}\n\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::write(folder.join("src/main.rs"), include_str!("tough.rs.txt"))?;
    let target = folder.join("target");
    let target = target.to_str().context("the work folder has a name in UTF-8")?;
    cargo(&folder, &["build", "--release", "--target-dir", target])
        .with_context(|| format!("tough {TOUGH} cannot be built (it needs a C compiler, and the network once)"))?;
    Ok(vec![folder.join("target/release/bench-tough")])
}

fn python_program(work: &Path) -> Result<Vec<PathBuf>> {
    let (venv, script) = (work.join("python"), work.join("python_tuf.py"));
    let (python, made) = (venv.join("bin/python"), venv.join("made-of"));
    let wanted = PYTHON_TUF.join("\n");
    if !fs::read_to_string(&made).is_ok_and(|found| found == wanted) {
        let args = [OsStr::new("-m"), "venv".as_ref(), "--clear".as_ref(), venv.as_ref()];
        output(Path::new("python3"), args).context("there is no python3 with venv (Debian: python3-venv)")?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        output(&python, pip.iter().chain(&PYTHON_TUF)).context("pip cannot install python-tuf")?;
        fs::write(&made, wanted)?;
    }
    fs::write(&script, include_str!("python_tuf.py"))?;
    Ok(vec![python, script])
}

fn cargo(folder: &Path, args: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    output_in(Path::new(&cargo), args, Some(folder))
}

fn output(program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
    output_in(program, args, None)
}

/// Runs a program that must succeed; what it says to people goes to people.
fn output_in(
    program: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    folder: Option<&Path>,
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let output = command
        .output()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed ({})",
        program.display(),
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}
