//! `firmesh-sim gate`: the table that [`firmesh_simulations::stopping`] comes to.

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{gate::Sequential, units::BasisPoints};
use firmesh_simulations::stopping::{Line, Stopped, Table, Trial};

#[derive(Debug, clap::Args)]
pub(crate) struct GateArgs {
    /// Devices of the wave.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Devices in flight at once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: u32,
    /// The share of failing devices that is accepted, in basis points.
    #[arg(long, default_value_t = 100, value_name = "BASIS POINTS")]
    good: u32,
    /// The share that is not.
    #[arg(long, default_value_t = 1_000, value_name = "BASIS POINTS")]
    bad: u32,
    /// The chance at most to stop a good image.
    #[arg(long, default_value_t = 500, value_name = "BASIS POINTS")]
    alpha: u32,
    /// The chance at most to take a bad image for a good one before the wave is over.
    #[arg(long, default_value_t = 1_000, value_name = "BASIS POINTS")]
    beta: u32,
    /// How long a success takes.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    success: u32,
    /// How long a failure takes.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    failure: u32,
    /// Waves of each image.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    waves: u32,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn gate(args: &GateArgs) -> Result<()> {
    let share = |name: &str, value| BasisPoints::new(value).with_context(|| format!("--{name} is no share"));
    let sequential = Sequential {
        good: share("good", args.good)?,
        bad: share("bad", args.bad)?,
        alpha: share("alpha", args.alpha)?,
        beta: share("beta", args.beta)?,
    };
    if let Some(problem) = sequential.problem() {
        anyhow::bail!("the test {problem}");
    }
    ensure!(args.alpha < 10_000, "--alpha must be a chance below the whole");
    let table = Trial {
        devices: args.devices,
        in_flight: args.in_flight,
        sequential,
        success_s: args.success,
        failure_s: args.failure,
        waves: args.waves,
        seed: args.seed,
    }
    .table();
    if args.json {
        println!("{}", serde_json::to_string(&table)?);
    } else {
        print(args, &table);
    }
    Ok(())
}

fn print(args: &GateArgs, table: &Table) {
    println!(
        "{} waves of {} devices, {} in flight. Fixed: stops at the {}th failure (stops {:.3} % of the good images).",
        args.waves,
        args.devices,
        args.in_flight,
        table.fixed_failures,
        f64::from(table.fixed_alpha_ppm) / 1e4,
    );
    println!("            stopped          exposed, mean    exposed, 95 %    failed, mean");
    println!("failing     sequ.   fixed    sequ.   fixed    sequ.   fixed    sequ.   fixed");
    for Line {
        failing_bp,
        sequential,
        fixed,
    } in &table.lines
    {
        let pair = |value: fn(&Stopped) -> f64, digits: usize| {
            format!("{:>7.digits$} {:>7.digits$}", value(sequential), value(fixed))
        };
        println!(
            "{:>6.2} % {}  {}  {}  {}",
            f64::from(*failing_bp) / 100.0,
            pair(|of| f64::from(of.stopped_bp) / 100.0, 2),
            pair(|of| of.exposed_mean_x100 as f64 / 100.0, 1),
            pair(|of| f64::from(of.exposed_p95), 0),
            pair(|of| of.failed_mean_x100 as f64 / 100.0, 2),
        );
    }
}
