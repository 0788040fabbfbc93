//! The lab: the real coordinator, real nodes and emulated devices on one machine.
//!
//! `cargo demo` runs it without arguments. The other commands are what the demo starts, each as a process of its own,
//! through the same library entry points as the product's binaries.

mod api_fuzz;
mod attempt;
mod bench;
mod demo;
mod devices;
mod evil_peer;
mod faults;
mod fuzz;
#[allow(dead_code, unreachable_pub, reason = "the end-to-end tests use all of it")]
#[path = "../../../tests/src/packages.rs"]
mod packages;
#[allow(dead_code, unreachable_pub, reason = "the end-to-end tests use all of it")]
#[path = "../../../tests/src/postgres.rs"]
mod postgres;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use firmesh_coordinator::Overrides;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The coordinator's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Firmesh fleet on one machine.
#[derive(Debug, Parser)]
#[command(name = "firmesh-lab", version, args_conflicts_with_subcommands = true)]
struct Lab {
    #[command(flatten)]
    demo: demo::DemoOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows a whole campaign (what `cargo demo` does).
    Demo(demo::DemoOptions),
    /// Measures, and prints ratios.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Feeds every parser that a stranger's bytes reach with inputs that are nearly right.
    Fuzz(fuzz::FuzzArgs),
    /// Has schemathesis ask a real coordinator what its OpenAPI document says can be asked.
    ApiFuzz(api_fuzz::ApiFuzzArgs),
    /// A coordinator, as `firmesh-coordinator` is.
    Coordinator(Configured),
    /// A node, as `firmesh-node` is.
    Node(Configured),
    /// Emulated BMCs and hosts.
    Devices(Configured),
    /// Lists the faults that an emulated BMC can have, the reports they come from, and how an attempt on one must end.
    Faults(faults::FaultsArgs),
    /// Restarts an emulated host: what a node runs to reset it.
    HostReset {
        /// The host's folder.
        #[arg(long)]
        dir: PathBuf,
    },
    /// One attempt on one device, killed wherever that is wanted.
    Attempt(attempt::AttemptArgs),
    /// A member of the fleet that serves lies.
    #[command(hide = true)]
    EvilPeer(evil_peer::EvilPeerOptions),
}

#[derive(Debug, clap::Args)]
struct Configured {
    /// The configuration file.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> ExitCode {
    let lab = Lab::parse();
    let filter = EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime
        .context("the runtime cannot be started")
        .and_then(|runtime| runtime.block_on(run(lab)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn node(config: &Path) -> Result<()> {
    let settings = firmesh_node::config::Settings::load(config)?;
    firmesh_node::run_until_signal(settings).map_err(|error| anyhow::anyhow!(error))
}

/// Whether what was asked for was reached.
async fn run(lab: Lab) -> Result<bool> {
    // Fails only if somebody installed one before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cancel = cancelled_by_signals()?;
    match lab.command.unwrap_or(Command::Demo(lab.demo)) {
        Command::Demo(options) => return demo::run(options, cancel).await,
        Command::ApiFuzz(args) => return api_fuzz::run(args, cancel).await,
        Command::Bench(bench) => bench::run(bench, cancel).await?,
        Command::Fuzz(args) => tokio::task::block_in_place(|| fuzz::run(&args, &cancel))?,
        Command::Coordinator(Configured { config }) => {
            let settings = firmesh_coordinator::Config::load(&config)?.check(Overrides::default())?;
            firmesh_coordinator::run(settings, cancel).await?;
        }
        // In a runtime of its own, like the node's own binary.
        Command::Node(Configured { config }) => tokio::task::block_in_place(|| node(&config))?,
        Command::Devices(Configured { config }) => {
            let text =
                std::fs::read_to_string(&config).with_context(|| format!("{} cannot be read", config.display()))?;
            let parsed =
                toml::from_str(&text).with_context(|| format!("{} is not a devices file", config.display()))?;
            let base = config.parent().context("--config names no file")?;
            devices::run(parsed, base, cancel).await?;
        }
        Command::Faults(args) => faults::list(&args)?,
        Command::HostReset { dir } => devices::request_reset(&dir)?,
        Command::Attempt(args) => attempt::run(args, cancel).await?,
        Command::EvilPeer(options) => evil_peer::run(options, cancel).await?,
    }
    Ok(true)
}

/// SIGINT and SIGTERM ask for an orderly end.
fn cancelled_by_signals() -> Result<CancellationToken> {
    let cancel = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signal, cancel) = (signal(kind)?, cancel.clone());
        tokio::spawn(async move {
            signal.recv().await;
            cancel.cancel();
        });
    }
    Ok(cancel)
}
