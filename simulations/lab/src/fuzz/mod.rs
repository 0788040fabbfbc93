//! Fuzzing: every parser that a stranger's bytes reach, fed with inputs that are nearly right.
//!
//! An input that gets an answer nobody got before (accepted, or refused with other words) joins the seeds. A panic, or an
//! input that takes ten seconds of a processor, is kept in a file and ends the run. One thread with one seed does the
//! same every time.

mod boot;
mod bundle;
mod content;
mod fleet;
mod formats;
mod mutate;
mod targets;

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    hash::Hasher as _,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use fastrand::Rng;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::bench::cpu_time;
use mutate::{Seed, mutated};
use targets::Target;

/// Inputs that joined the seeds of a thread, at most.
const FOUND_MAX: usize = 4_096;

/// An input that takes more of the processor's time hangs its reader; how long that lasts is up to the machine.
const HANG: Duration = Duration::from_secs(10);

/// What to fuzz.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Only these targets (see --list); all of them if absent.
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// Inputs per target.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    executions: u64,
    /// Where the generator begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; as many as there are cores if absent.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: Option<u64>,
    /// Where an input that made a parser fail is kept.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    crashes: PathBuf,
    /// Feed this file to the one --target, and nothing else.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Name the targets.
    #[arg(long)]
    list: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of one target.
#[derive(Debug, Serialize)]
struct Figures {
    target: &'static str,
    executions: u64,
    /// Inputs that the parser took.
    accepted: u64,
    /// Different answers, by their words without numbers.
    answers: usize,
    per_second: f64,
    slowest_us: u128,
}

/// Runs the targets; an input that makes one fail is an error.
pub(crate) fn run(args: &FuzzArgs, cancel: &CancellationToken) -> Result<()> {
    let mut targets = targets::all()?;
    if args.list {
        for target in &targets {
            println!("{:<22} {}", target.name, target.about);
        }
        return Ok(());
    }
    for name in &args.target {
        ensure!(
            targets.iter().any(|target| target.name == name),
            "there is no target {name:?}: --list names them"
        );
    }
    if !args.target.is_empty() {
        targets.retain(|target| args.target.iter().any(|name| name == target.name));
    }
    if let Some(path) = &args.replay {
        let [target] = &targets[..] else {
            bail!("--replay goes with one --target");
        };
        let input = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        println!("{}: {:?}", target.name, (target.feed)(&input));
        return Ok(());
    }
    let cores = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let threads = args.threads.unwrap_or(cores);
    if !args.json {
        println!(
            "{:<22} {:>12} {:>12} {:>8} {:>10} {:>11}",
            "target", "inputs", "accepted", "answers", "inputs/s", "slowest"
        );
    }
    let mut all = Vec::new();
    for target in &targets {
        let figures = fuzz(target, args.executions, (args.seed, threads), &args.crashes, cancel)?;
        if !args.json {
            println!(
                "{:<22} {:>12} {:>12} {:>8} {:>10.0} {:>8} us",
                figures.target,
                figures.executions,
                figures.accepted,
                figures.answers,
                figures.per_second,
                figures.slowest_us
            );
        }
        all.push(figures);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        let total = all.iter().map(|figures| figures.executions).sum();
        println!("{} inputs, no failure", HumanCount(total));
    }
    Ok(())
}

/// What a thread has done so far, for those who watch it.
#[derive(Default)]
struct Watched {
    done: AtomicU64,
    input: Mutex<Vec<u8>>,
}

/// What one thread found.
#[derive(Default)]
struct Share {
    accepted: u64,
    answers: BTreeSet<u64>,
    slowest: Duration,
}

fn fuzz(
    target: &Target,
    executions: u64,
    (seed, threads): (u64, u64),
    crashes: &Path,
    cancel: &CancellationToken,
) -> Result<Figures> {
    let bar = ProgressBar::with_draw_target(Some(executions), ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{prefix} [{bar:30}] {human_pos}/{human_len} {per_sec} ETA {eta}")
            .context("the progress bar")?,
    );
    bar.set_prefix(target.name);
    let watched: Vec<_> = (0..threads).map(|_| Watched::default()).collect();
    let (stop, begin) = (AtomicBool::new(false), Instant::now());
    let shares = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .zip(&watched)
            .map(|(number, watched)| {
                let share = executions / threads + u64::from(number < executions % threads);
                let rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number));
                let stop = &stop;
                scope.spawn(move || work(target, share, rng, watched, stop, crashes))
            })
            .collect();
        let mut last = vec![(0, cpu_time()?); watched.len()];
        let hang = HANG * u32::try_from(threads).unwrap_or(u32::MAX);
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::park_timeout(Duration::from_millis(100));
            if cancel.is_cancelled() {
                stop.store(true, Ordering::Relaxed);
            }
            bar.set_position(watched.iter().map(|watched| watched.done.load(Ordering::Relaxed)).sum());
            let spent = cpu_time()?;
            for ((watched, last), worker) in watched.iter().zip(&mut last).zip(&workers) {
                let done = watched.done.load(Ordering::Relaxed);
                if done != last.0 || worker.is_finished() {
                    *last = (done, spent);
                } else if spent - last.1 > hang {
                    let input = watched.input.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    // A thread cannot be stopped: the process can.
                    eprintln!(
                        "{:?}",
                        keep(target, &input, crashes, "it takes more than ten seconds of a processor")
                    );
                    std::process::exit(1);
                }
            }
        }
        workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| bail!("a thread of the fuzzer ended early"))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    bar.finish_and_clear();
    ensure!(!cancel.is_cancelled(), "interrupted");
    let elapsed = begin.elapsed().as_secs_f64();
    let mut sum = Share::default();
    for mut share in shares {
        sum.accepted += share.accepted;
        sum.answers.append(&mut share.answers);
        sum.slowest = sum.slowest.max(share.slowest);
    }
    Ok(Figures {
        target: target.name,
        executions,
        accepted: sum.accepted,
        answers: sum.answers.len(),
        per_second: executions as f64 / elapsed,
        slowest_us: sum.slowest.as_micros(),
    })
}

/// One thread's share of a target's inputs.
fn work(
    target: &Target,
    executions: u64,
    mut rng: Rng,
    watched: &Watched,
    stop: &AtomicBool,
    crashes: &Path,
) -> Result<Share> {
    let mut seeds: Vec<_> = target.seeds.iter().cloned().map(Seed::new).collect();
    let (mut share, seeds_max) = (Share::default(), seeds.len() + FOUND_MAX);
    for number in 0..executions {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // The good inputs themselves come first.
        let input = match usize::try_from(number).ok().and_then(|number| target.seeds.get(number)) {
            Some(seed) => seed.clone(),
            // Half of them from the good ones: what was found since is mostly bad already.
            None if rng.bool() => mutated(&seeds[..target.seeds.len()], &mut rng),
            None => mutated(&seeds, &mut rng),
        };
        {
            let mut current = watched.input.lock().unwrap_or_else(PoisonError::into_inner);
            current.clear();
            current.extend_from_slice(&input);
        }
        let begin = Instant::now();
        let answer = panic::catch_unwind(AssertUnwindSafe(|| (target.feed)(&input)));
        share.slowest = share.slowest.max(begin.elapsed());
        watched.done.store(number + 1, Ordering::Relaxed);
        let Ok(answer) = answer else {
            stop.store(true, Ordering::Relaxed);
            return Err(keep(target, &input, crashes, "it panics"));
        };
        share.accepted += u64::from(answer.is_ok());
        if share.answers.insert(label(&answer)) && seeds.len() < seeds_max {
            seeds.push(Seed::new(input));
        }
    }
    Ok(share)
}

/// Puts an input away, and says how to try it again.
fn keep(target: &Target, input: &[u8], crashes: &Path, what: &str) -> anyhow::Error {
    let name = format!("{}-{}.input", target.name, &blake3::hash(input).to_hex()[..16]);
    let path = crashes.join(name);
    let kept = match std::fs::write(&path, input) {
        Ok(()) => format!("fuzz --target {} --replay {}", target.name, path.display()),
        Err(error) => format!("{} cannot be written: {error}", path.display()),
    };
    anyhow::anyhow!("{}: an input of {} bytes: {what}; {kept}", target.name, input.len())
}

/// An answer by its words: numbers and quoted text differ without being different.
fn label(answer: &Result<(), String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    if let Err(words) = answer {
        let mut quoted = false;
        for byte in words.bytes() {
            quoted ^= matches!(byte, b'"' | b'`');
            if !quoted && !byte.is_ascii_digit() {
                hasher.write_u8(byte);
            }
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few inputs for each, so that a parser that breaks is noticed at once; `firmesh-lab fuzz` does the rest.
    #[test]
    fn no_target_fails_on_a_sample_and_each_accepts_something() {
        let folder = tempfile::tempdir().unwrap();
        for target in targets::all().unwrap() {
            let figures = fuzz(&target, 2_000, (7, 1), folder.path(), &CancellationToken::new()).unwrap();
            let seeds = target.seeds.len() as u64;
            assert!(
                figures.accepted >= seeds,
                "{}: {figures:?} of {seeds} good ones",
                target.name
            );
            assert!(figures.answers >= 2, "{}: {figures:?}", target.name);
        }
    }

    #[test]
    fn an_input_that_panics_is_kept_and_can_be_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target {
            name: "brittle",
            about: "fails on a long input",
            seeds: vec![vec![1; 20]],
            feed: Box::new(|input| {
                assert!(input.len() <= 20, "too long for me");
                Ok(())
            }),
        };
        let failed = fuzz(&target, 10_000, (1, 1), folder.path(), &CancellationToken::new());
        let said = failed.err().unwrap().to_string();
        let kept = std::fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        assert!(said.contains(kept.to_str().unwrap()), "{said}");
        assert!(std::fs::read(kept).unwrap().len() > 20);
    }
}
