//! Bugs planted on purpose: does the hunt find what it is for?
//!
//! The sources are copied, every bug of the list is put into the copy behind a switch, and the copy is built once: one
//! process runs with one bug. Nothing of this is ever in what is shipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, anyhow, ensure};
use clap::ValueEnum as _;
use firmesh_simulations::rehearsal::Profile;
use serde::{Deserialize, Serialize};

/// Where the bugs are listed, from the root of the sources.
const LIST: &str = "simulations/planted/bugs.toml";
/// The seeds that once broke a promise, from the root of the sources: gone through first.
const CORPUS: &str = "simulations/corpus/found.toml";
/// How often `firmesh-sim kills` kills attempts several times in a row, of each executor.
const KILL_ROUNDS: u64 = 200;
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
    /// Whether `firmesh-sim kills` is what finds it, and so looks for it first.
    #[serde(default)]
    kills: bool,
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
    /// The profile of the hunt; `kills` if it was the other one.
    profile: &'static str,
    seed: u64,
}

/// What `firmesh-sim kills` says.
#[derive(Debug, Deserialize)]
struct Killed {
    broken: Vec<BrokenByDeath>,
}

#[derive(Debug, Deserialize)]
struct BrokenByDeath {
    of: String,
    what: String,
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
    let bugs = listed(&source)?;
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
    ensure!(
        kill(&sim, 0)?.broken.is_empty(),
        "without any bug a death breaks something: `firmesh-sim kills` says what"
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

/// The bugs of the list.
fn listed(source: &Path) -> anyhow::Result<Vec<Bug>> {
    let list = fs::read_to_string(source.join(LIST)).with_context(|| {
        format!(
            "{LIST} is not in {}: give the root of the sources with --source",
            source.display()
        )
    })?;
    let List { bug } = toml::from_str(&list).with_context(|| format!("{LIST} is not a list of bugs"))?;
    Ok(bug)
}

fn look_for<'a>(
    sim: &Path,
    number: u32,
    bug: &'a Bug,
    corpus: &[Known],
    args: &PlantedArgs,
) -> anyhow::Result<Hunted<'a>> {
    let began = Instant::now();
    let others = Profile::value_variants().iter();
    let others = others.filter(|profile| !bug.profiles.contains(profile));
    let profiles: Vec<_> = bug.profiles.iter().chain(others).copied().collect();
    // First what broke promises before, then a little of each, then all of each.
    let first = args.seeds.min(2_000);
    let known = corpus
        .iter()
        .map(|known| (known.profile, known.seed..known.seed.saturating_add(1)));
    let rounds: BTreeSet<_> = [first, args.seeds].into();
    let unknown = rounds
        .into_iter()
        .flat_map(|seeds| profiles.iter().map(move |profile| (*profile, 0..seeds)));
    let mut hunted = Hunted {
        bug: &bug.name,
        found: None,
        seeds: 0,
        seconds: 0.0,
        survives: bug.survives.as_deref(),
    };
    if bug.kills
        && let Some(broken) = kill(sim, number)?.broken.into_iter().next()
    {
        let promise = format!("{}: {}", broken.of, broken.what);
        let (profile, seed) = ("kills", 1);
        hunted.found = Some(Found { promise, profile, seed });
    }
    for (profile, seeds) in known.chain(unknown) {
        if hunted.found.is_some() {
            break;
        }
        let total = hunt(sim, number, profile, seeds, args.within)?;
        hunted.seeds += total.seeds;
        if let Some(Finding { seed, promise }) = total.findings.into_iter().next() {
            let profile = profile.as_str();
            hunted.found = Some(Found { promise, profile, seed });
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
        (Some(Found { promise, profile, seed }), _) => format!("`{promise}` by {profile} seed {seed}"),
        (None, Some(why)) => format!("survives: {why}"),
        (None, None) => "NOT FOUND".to_owned(),
    };
    format!("{bug:<60} {seeds:>7} seeds {seconds:>6.1} s  {what}")
}

fn hunt(sim: &Path, number: u32, profile: Profile, seeds: Range<u64>, within: u64) -> anyhow::Result<Total> {
    let output = with_bug(sim, number)
        .args(["hunt", "--json", "--profile", profile.as_str()])
        .args(["--seeds", &format!("{}..{}", seeds.start, seeds.end)])
        .args(["--within", &within.to_string()])
        .output()
        .with_context(|| format!("{} could not be started", sim.display()))?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        let words = String::from_utf8_lossy(&output.stderr);
        format!("a hunt ended with {}: {}", output.status, words.trim())
    })
}

/// Kills processes in the middle of attempts. One that fails an assertion of ours by it is found by that.
fn kill(sim: &Path, number: u32) -> anyhow::Result<Killed> {
    let output = with_bug(sim, number)
        .args(["kills", "--json", "--rounds", &KILL_ROUNDS.to_string()])
        .output()
        .with_context(|| format!("{} could not be started", sim.display()))?;
    let words = String::from_utf8_lossy(&output.stderr);
    match words.lines().find(|line| line.contains("panicked at")) {
        Some(panic) if output.stdout.is_empty() => Ok(Killed {
            broken: vec![BrokenByDeath {
                of: "sound".to_owned(),
                what: panic.to_owned(),
            }],
        }),
        _ => serde_json::from_slice(&output.stdout)
            .with_context(|| format!("kills ended with {}: {}", output.status, words.trim())),
    }
}

/// A process with one of the bugs; with none if that is 0.
fn with_bug(sim: &Path, number: u32) -> Command {
    let mut command = Command::new(sim);
    command
        .env(SWITCH, number.to_string())
        // A bug may break an assertion of ours: that is a finding, and its words are noise.
        .env("RUST_BACKTRACE", "0");
    command
}

/// Copies the sources and puts the bugs in.
fn plant(source: &Path, copy: &Path, bugs: &[Bug]) -> anyhow::Result<()> {
    fs::create_dir_all(copy).with_context(|| format!("{} could not be made", copy.display()))?;
    for name in TOP.into_iter().chain(FOLDERS) {
        copy_changed(&source.join(name), &copy.join(name)).with_context(|| format!("{name} could not be copied"))?;
    }
    let mut files = put_all_in(source, bugs)?;
    let library = fs::read_to_string(source.join("protocol/src/lib.rs"))?;
    files.insert(Path::new("protocol/src/lib.rs"), library + "\npub mod planted;\n");
    files.insert(Path::new("protocol/src/planted.rs"), SWITCH_SOURCE.to_owned());
    for (file, text) in files {
        write_changed(&copy.join(file), text.as_bytes())?;
    }
    Ok(())
}

/// Every file of the list with all of its bugs; what cannot be planted is told of all bugs at once.
fn put_all_in<'a>(source: &Path, bugs: &'a [Bug]) -> anyhow::Result<BTreeMap<&'a Path, String>> {
    let mut files = BTreeMap::<&Path, String>::new();
    let mut problems = Vec::new();
    for (number, bug) in (1..).zip(bugs) {
        let text = match files.remove(bug.file.as_path()) {
            Some(text) => text,
            None => fs::read_to_string(source.join(&bug.file)).with_context(|| bug.file.display().to_string())?,
        };
        let planted = put_in(number, bug, &text).unwrap_or_else(|problem| {
            problems.push(problem);
            text
        });
        files.insert(&bug.file, planted);
    }
    match problems.is_empty() {
        true => Ok(files),
        false => Err(anyhow!(
            "{} of {} bugs of {LIST} cannot be planted: say there where they are today\n{}",
            problems.len(),
            bugs.len(),
            problems.join("\n")
        )),
    }
}

/// The text with a bug behind its switch, or why it cannot be planted.
fn put_in(number: u32, bug: &Bug, text: &str) -> Result<String, String> {
    let Bug { name, file, find, .. } = bug;
    let stands = text.matches(find.as_str()).count();
    if stands != 1 {
        return Err(format!(
            "{name}: what it looks for stands {stands} times in {}, and must stand there once: {find:?}",
            file.display()
        ));
    }
    let is_called = text
        .split(find.as_str())
        .next()
        .is_some_and(|before| before.ends_with('.'));
    if is_called && bug.plant.is_some() {
        return Err(format!("{name}: {find:?} is called on something: it takes `with`"));
    }
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
        _ => return Err(format!("{name}: needs either `plant`, or `with` and PLANTED in it")),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The cores change, and the list with them.
    #[test]
    fn every_bug_of_the_list_can_be_planted_into_the_sources_of_today() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let bugs = listed(source).unwrap();
        if let Err(stale) = put_all_in(source, &bugs) {
            panic!("{stale:#}");
        }
        let names: BTreeSet<_> = bugs.iter().map(|bug| &bug.name).collect();
        assert_eq!(names.len(), bugs.len(), "two bugs have one name");
    }

    #[test]
    fn every_stale_bug_is_named() {
        let bug = |name: &str, find: &str, plant: Option<&str>| Bug {
            name: name.to_owned(),
            file: "simulations/src/lib.rs".into(),
            find: find.to_owned(),
            plant: plant.map(str::to_owned),
            with: None,
            profiles: Vec::new(),
            kills: false,
            survives: None,
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let bugs = [
            bug("gone", "pub mod nothing;", Some("")),
            bug("good", "pub mod kills;", Some("")),
            bug("often", "pub mod", Some("")),
            bug("half", "pub mod mesh;", None),
        ];
        let problem = put_all_in(source, &bugs).unwrap_err().to_string();
        assert!(problem.starts_with("3 of 4 bugs"), "{problem}");
        for name in ["gone: ", "often: ", "half: needs either"] {
            assert!(problem.contains(name), "{problem}");
        }
        assert!(!problem.contains("good"), "{problem}");
        let called = bug("called", "b()", Some("c()"));
        assert!(put_in(1, &called, "a.b()").unwrap_err().contains("takes `with`"));
        assert!(put_in(1, &called, "a + b()").is_ok());
    }
}
