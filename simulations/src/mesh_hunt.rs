//! The hunt through the mesh's world: small sites and troubles that seeds draw, until a promise breaks.

use std::{
    num::NonZeroUsize,
    ops::Range,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use firmesh_simulations::mesh::{Case, Finding, Hunt, hunt};

use crate::range;

#[derive(Debug, clap::Args)]
pub(crate) struct MeshHuntArgs {
    /// The seeds, such as 0..100000: the last one is not gone through.
    #[arg(long, value_parser = range, default_value = "0..10000")]
    seeds: Range<u64>,
    /// Of the first seed's troubles only these (numbers as this tells them), and no other seed.
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    only: Option<Vec<usize>>,
    /// Threads; as many as there are processors if not given.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// End after so many seconds, however many seeds are left.
    #[arg(long, value_name = "SECONDS")]
    within: Option<u64>,
    /// End with so many failures.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    findings: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Whether no seed broke a promise.
pub(crate) fn mesh_hunt(args: &MeshHuntArgs) -> anyhow::Result<bool> {
    if let Some(only) = &args.only {
        return replay(args.seeds.start, only, args.json);
    }
    let threads = match args.threads {
        Some(threads) => threads,
        None => thread::available_parallelism()?,
    };
    let what = Hunt {
        seeds: args.seeds.clone(),
        threads,
        findings_max: usize::try_from(args.findings)?,
    };
    let began = Instant::now();
    let told = Mutex::new(began);
    let goes_on = |seeds: u64| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if !args.json && told.elapsed() >= Duration::from_secs(2) {
            *told = Instant::now();
            let rate = seeds as f64 / began.elapsed().as_secs_f64();
            eprintln!("{seeds} of {} seeds, {rate:.0}/s", what.seeds.end - what.seeds.start);
        }
        args.within
            .is_none_or(|seconds| began.elapsed() < Duration::from_secs(seconds))
    };
    let total = hunt(&what, &goes_on);
    if args.json {
        println!("{}", serde_json::to_string(&total)?);
        return Ok(total.findings.is_empty());
    }
    total.findings.iter().for_each(tell);
    println!(
        "{} seeds, {} of them with real bytes, {} troubles, in {:.1} s on {threads} threads; {} broke a promise",
        total.seeds,
        total.real,
        total.troubles,
        began.elapsed().as_secs_f64(),
        total.findings.len(),
    );
    Ok(total.findings.is_empty())
}

fn tell(finding: &Finding) {
    let Finding { case, drawn, broken } = finding;
    println!(
        "seed {} breaks `{}` at {:.3} s: {}",
        case.seed,
        broken.promise.as_str(),
        broken.at_ms as f64 / 1e3,
        broken.how
    );
    println!(
        "  {:?}, fault {:?}, with {} of {drawn} troubles:",
        case.topology,
        case.fault,
        case.troubles.len()
    );
    let all = Case::drawn(case.seed).troubles;
    let mut numbers = Vec::new();
    for trouble in &case.troubles {
        println!("  {trouble}");
        numbers.extend(
            all.iter()
                .position(|other| other == trouble)
                .map(|number| number.to_string()),
        );
    }
    println!(
        "  again: firmesh-sim mesh-hunt --seeds {}..{} --only {}",
        case.seed,
        case.seed + 1,
        numbers.join(",")
    );
}

fn replay(seed: u64, only: &[usize], json: bool) -> anyhow::Result<bool> {
    let mut case = Case::drawn(seed);
    let mut number = 0..;
    case.troubles
        .retain(|_| number.next().is_some_and(|number| only.contains(&number)));
    let summary = case.run();
    if json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        println!("{:?}, fault {:?}", case.topology, case.fault);
        case.troubles.iter().for_each(|trouble| println!("  {trouble}"));
        println!("{}", crate::line(seed, &summary));
        match &summary.broken {
            Some(broken) => println!("broken: `{}`: {}", broken.promise.as_str(), broken.how),
            None => println!("no promise was broken"),
        }
    }
    Ok(summary.broken.is_none())
}
