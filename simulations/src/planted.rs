//! Bugs planted on purpose: does the hunt find what it is for?
//!
//! The sources are copied, every bug of the list is put into the copy behind a switch, and the copy is built once: one
//! process runs with one bug. Nothing of this is ever in what is shipped.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use firmesh_simulations::rehearsal::Profile;
use serde::{Deserialize, Serialize};

/// Where the bugs are listed, from the root of the sources.
const LIST: &str = "simulations/planted/bugs.toml";
/// The seeds that once broke a promise, from the root of the sources: gone through first.
const CORPUS: &str = "simulations/corpus/found.toml";
/// Which bug is planted, for the processes that are started.
const SWITCH: &str = "FIRMESH_PLANTED";
/// What is copied of the sources, besides the folders of the workspace's members.
const TOP: [&str; 4] = ["Cargo.toml", "Cargo.lock", ".cargo", ".rustfmt.toml"];
const FOLDERS: [&str; 6] = ["protocol", "executors", "node", "coordinator", "simulations", "tests"];
/// The switch, in the crate that all others know.
const SWITCH_SOURCE: &str = r#"//! Which bug is planted in this process.

use std::sync::OnceLock;

/// Whether it is this one.
pub fn is(number: u32) -> bool {
    static PLANTED: OnceLock<u32> = OnceLock::new();
    let read = || std::env::var("FIRMESH_PLANTED").ok().and_then(|number| number.parse().ok());
    *PLANTED.get_or_init(|| read().unwrap_or_default()) == number
}
"#;

#[derive(Debug, clap::Args)]
pub(crate) struct PlantedArgs {
    /// The root of Firmesh's sources.
    #[arg(long, default_value = ".")]
    source: PathBuf,
    /// Seeds to go through for each bug and profile at most.
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// Seconds for each bug and profile at most.
    #[arg(long, default_value_t = 120)]
    within: u64,
    /// Only bugs whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    bug: Vec<Bug>,
}

#[derive(Debug, Deserialize)]
struct Corpus {
    seed: Vec<Known>,
}

#[derive(Debug, Deserialize)]
struct Known {
    profile: Profile,
    seed: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bug {
    name: String,
    file: PathBuf,
    find: String,
    plant: Option<String>,
    with: Option<String>,
    #[serde(default)]
    profiles: Vec<Profile>,
    survives: Option<String>,
}

/// What became of a bug.
#[derive(Debug, Serialize)]
struct Hunted<'a> {
    bug: &'a str,
    /// The promise that it broke, with the profile and the seed; nothing if it was not found.
    found: Option<Found>,
    /// Seeds gone through, of all profiles.
    seeds: u64,
    seconds: f64,
    survives: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Found {
    promise: String,
    profile: Profile,
    seed: u64,
}

#[derive(Debug, Deserialize)]
struct Total {
    seeds: u64,
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    seed: u64,
    promise: String,
}

/// Whether every bug was found, or its survival is explained.
pub(crate) fn planted(args: &PlantedArgs) -> anyhow::Result<bool> {
    let source = args
        .source
        .canonicalize()
        .with_context(|| args.source.display().to_string())?;
    let list = fs::read_to_string(source.join(LIST)).with_context(|| {
        format!(
            "{LIST} is not in {}: give the root of the sources with --source",
            source.display()
        )
    })?;
    let List { bug: bugs } = toml::from_str(&list).with_context(|| format!("{LIST} is not a list of bugs"))?;
    let corpus = fs::read_to_string(source.join(CORPUS)).with_context(|| CORPUS.to_owned())?;
    let Corpus { seed: corpus } =
        toml::from_str(&corpus).with_context(|| format!("{CORPUS} is not a list of seeds"))?;
    let copy = source.join("target/planted");
    plant(&source, &copy, &bugs)?;
    eprintln!(
        "building {} with {} bugs, each behind its switch ...",
        copy.display(),
        bugs.len()
    );
    let sim = build(&copy)?;
    let sound = hunt(&sim, 0, Profile::Chaos, 0..2_000.min(args.seeds), args.within)?;
    ensure!(
        sound.findings.is_empty(),
        "without any bug a promise is broken: hunt that down first"
    );

    let (mut all, mut found) = (0, 0);
    for (number, bug) in (1..).zip(&bugs).filter(|(_, bug)| bug.name.contains(&args.only)) {
        let hunted = look_for(&sim, number, bug, &corpus, args)?;
        all += 1;
        found += usize::from(hunted.found.is_some());
        match args.json {
            true => println!("{}", serde_json::to_string(&hunted)?),
            false => println!("{}", line(&hunted)),
        }
        if hunted.found.is_none() && bug.survives.is_none() {
            eprintln!("not found, and nothing explains it: {}", bug.name);
        }
    }
    let explained = bugs
        .iter()
        .filter(|bug| bug.name.contains(&args.only) && bug.survives.is_some())
        .count();
    eprintln!("{found} of {all} bugs found, {explained} are expected not to be");
    Ok(found + explained >= all)
}

fn look_for<'a>(
    sim: &Path,
    number: u32,
    bug: &'a Bug,
    corpus: &[Known],
    args: &PlantedArgs,
) -> anyhow::Result<Hunted<'a>> {
    const ALL: [Profile; 12] = [
        Profile::Devices,
        Profile::Chaos,
        Profile::Network,
        Profile::Power,
        Profile::Rollback,
        Profile::Liar,
        Profile::Slots,
        Profile::Orders,
        Profile::Answers,
        Profile::Units,
        Profile::Retries,
        Profile::Batches,
    ];
    let began = Instant::now();
    let others = ALL.iter().filter(|profile| !bug.profiles.contains(profile));
    let profiles: Vec<_> = bug.profiles.iter().chain(others).copied().collect();
    // First what broke promises before, then a little of each, then all of each.
    let first = args.seeds.min(2_000);
    let known = corpus
        .iter()
        .map(|known| (known.profile, known.seed..known.seed.saturating_add(1)));
    let unknown = [first, args.seeds]
        .into_iter()
        .flat_map(|seeds| profiles.iter().map(move |profile| (*profile, 0..seeds)));
    let mut hunted = Hunted {
        bug: &bug.name,
        found: None,
        seeds: 0,
        seconds: 0.0,
        survives: bug.survives.as_deref(),
    };
    for (profile, seeds) in known.chain(unknown) {
        let total = hunt(sim, number, profile, seeds, args.within)?;
        hunted.seeds += total.seeds;
        if let Some(Finding { seed, promise }) = total.findings.into_iter().next() {
            hunted.found = Some(Found { promise, profile, seed });
            break;
        }
    }
    hunted.seconds = began.elapsed().as_secs_f64();
    Ok(hunted)
}

fn line(hunted: &Hunted<'_>) -> String {
    let Hunted {
        bug,
        found,
        seeds,
        seconds,
        survives,
    } = hunted;
    let what = match (found, survives) {
        (Some(Found { promise, profile, seed }), _) => format!("`{promise}` by {} seed {seed}", profile.as_str()),
        (None, Some(why)) => format!("survives: {why}"),
        (None, None) => "NOT FOUND".to_owned(),
    };
    format!("{bug:<60} {seeds:>7} seeds {seconds:>6.1} s  {what}")
}

fn hunt(sim: &Path, number: u32, profile: Profile, seeds: Range<u64>, within: u64) -> anyhow::Result<Total> {
    let output = Command::new(sim)
        .args(["hunt", "--json", "--profile", profile.as_str()])
        .args(["--seeds", &format!("{}..{}", seeds.start, seeds.end)])
        .args(["--within", &within.to_string()])
        .env(SWITCH, number.to_string())
        // A bug may break an assertion of ours: that is a finding, and its words are noise.
        .env("RUST_BACKTRACE", "0")
        .output()
        .with_context(|| format!("{} could not be started", sim.display()))?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        let words = String::from_utf8_lossy(&output.stderr);
        format!("a hunt ended with {}: {}", output.status, words.trim())
    })
}

/// Copies the sources and puts the bugs in.
fn plant(source: &Path, copy: &Path, bugs: &[Bug]) -> anyhow::Result<()> {
    fs::create_dir_all(copy).with_context(|| format!("{} could not be made", copy.display()))?;
    for name in TOP.into_iter().chain(FOLDERS) {
        copy_changed(&source.join(name), &copy.join(name)).with_context(|| format!("{name} could not be copied"))?;
    }
    let mut files = std::collections::BTreeMap::<&Path, String>::new();
    for (number, bug) in (1..).zip(bugs) {
        let text = match files.remove(bug.file.as_path()) {
            Some(text) => text,
            None => fs::read_to_string(source.join(&bug.file)).with_context(|| bug.file.display().to_string())?,
        };
        files.insert(&bug.file, put_in(number, bug, &text)?);
    }
    let library = fs::read_to_string(source.join("protocol/src/lib.rs"))?;
    files.insert(Path::new("protocol/src/lib.rs"), library + "\npub mod planted;\n");
    files.insert(Path::new("protocol/src/planted.rs"), SWITCH_SOURCE.to_owned());
    for (file, text) in files {
        write_changed(&copy.join(file), text.as_bytes())?;
    }
    Ok(())
}

fn put_in(number: u32, bug: &Bug, text: &str) -> anyhow::Result<String> {
    let Bug { name, file, find, .. } = bug;
    let stands = text.matches(find.as_str()).count();
    ensure!(
        stands == 1,
        "{name}: what it looks for stands {stands} times in {}",
        file.display()
    );
    let root = if file.starts_with("protocol") {
        "crate"
    } else {
        "firmesh_protocol"
    };
    let switch = format!("{root}::planted::is({number})");
    let planted = match (&bug.plant, &bug.with) {
        (Some(plant), None) if find.ends_with(';') => format!("if {switch} {{ {plant} }} else {{ {find} }}"),
        (Some(plant), None) => format!("(if {switch} {{ {plant} }} else {{ {find} }})"),
        (None, Some(with)) if with.contains("PLANTED") => with.replace("PLANTED", &switch),
        _ => bail!("{name}: needs either `plant`, or `with` and PLANTED in it"),
    };
    Ok(text.replacen(find.as_str(), &planted, 1))
}

fn build(copy: &Path) -> anyhow::Result<PathBuf> {
    let status = Command::new("cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "-p",
            "firmesh-simulations",
            "--bin",
            "firmesh-sim",
        ])
        .env("CARGO_TARGET_DIR", copy.join("target"))
        // What is planted may leave something unused.
        .env("RUSTFLAGS", "-Awarnings")
        .current_dir(copy)
        .status()
        .context("cargo could not be started")?;
    ensure!(status.success(), "the copy with its bugs cannot be built");
    Ok(copy.join("target/release/firmesh-sim"))
}

/// Copies a file, or a folder with all that is in it, without touching what is the same: cargo goes by times.
fn copy_changed(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_changed(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    match fs::read(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        bytes => write_changed(to, &bytes?),
    }
}

fn write_changed(to: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::read(to) {
        Ok(old) if old == bytes => Ok(()),
        _ => fs::write(to, bytes),
    }
}
