//! `firmesh-coordinator`: a thin shell around [`firmesh_coordinator::run`].

use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use firmesh_coordinator::{Config, Overrides, chain, run, start_logging, version};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Publishes signed firmware campaigns to a fleet, and follows them. Runs without any configuration.
#[derive(Parser)]
#[command(name = "firmesh-coordinator", version = version())]
struct Arguments {
    /// The configuration file.
    #[arg(long, env = "FIRMESH_COORDINATOR_CONFIG")]
    config: Option<PathBuf>,
    /// Where everything lies: database, keys, artifacts.
    #[arg(long, env = "FIRMESH_COORDINATOR_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Where operators are listened to (plain HTTP).
    #[arg(long, env = "FIRMESH_COORDINATOR_OPERATORS")]
    operators: Option<SocketAddr>,
    /// Where nodes are listened to (HTTPS).
    #[arg(long, env = "FIRMESH_COORDINATOR_NODES")]
    nodes: Option<SocketAddr>,
    /// What is logged, such as `info` or `firmesh_coordinator=debug,warn`.
    #[arg(long, env = "FIRMESH_LOG")]
    log: Option<String>,
    /// Check the configuration, print it, and stop.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("firmesh-coordinator: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    let config = match &arguments.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    let overrides = Overrides {
        state_dir: arguments.state_dir,
        operators: arguments.operators,
        nodes: arguments.nodes,
        log_filter: arguments.log,
    };
    let settings = config.check(overrides)?;
    if arguments.check_config {
        // Whoever reads it may stop early.
        let _ = writeln!(std::io::stdout(), "{}", settings.describe());
        return Ok(());
    }
    start_logging(&settings.log_filter, settings.log_json).context("log.filter is not a log filter")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no async runtime")?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let asked = cancel.clone();
        let signals = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            asked.cancel();
            std::future::pending::<()>().await
        };
        tokio::select! {
            outcome = run(settings, cancel) => Ok(outcome?),
            () = signals => Ok(()),
        }
    })
}
