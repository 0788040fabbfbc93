//! `firmesh-coordinator`: a thin shell around [`firmesh_coordinator::run`].

use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use firmesh_coordinator::{
    Config, Overrides, Settings, after_restore, back_up, chain, import, run, start_logging, version,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A burst of planning leaves half of its memory in pieces that the C library's allocator does not give back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is done to the database instead of running.
#[derive(Subcommand)]
enum Command {
    /// Copies the whole database of a coordinator with a file of its own to the PostgreSQL server of `database.url`, which
    /// must be empty. Neither may be in use.
    Import {
        /// The file `coordinator.sqlite`.
        file: PathBuf,
    },
    /// Copies the database file while its coordinator runs.
    Backup {
        /// A file that does not exist yet.
        to: PathBuf,
        /// Another file that does not exist yet: what opens the identities of devices goes there, and not into the copy. Keep the
        /// newest only, and a device that is erased is erased in every copy.
        #[arg(long, value_name = "FILE")]
        identity_keys: Option<PathBuf>,
    },
    /// After a restore to an earlier moment, before the first start: leaves out the epochs and permits that may have been given
    /// out after that moment, so that none is given out twice.
    AfterRestore {
        /// The newest file of `backup --identity-keys`, where the copy was made so.
        #[arg(long, value_name = "FILE")]
        identity_keys: Option<PathBuf>,
    },
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
    if let Some(command) = arguments.command {
        return runtime.block_on(offline(&settings, command));
    }
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

async fn offline(settings: &Settings, command: Command) -> anyhow::Result<()> {
    // Whoever reads it may stop early.
    let say = |line: String| drop(writeln!(std::io::stdout(), "{line}"));
    match command {
        Command::Import { file } => {
            let tables = import(settings, &file).await?;
            for table in &tables {
                say(format!(
                    "{:<20} {:>10} rows  sha256 {}",
                    table.table, table.rows, table.sha256
                ));
            }
            let rows: u64 = tables.iter().map(|table| table.rows).sum();
            say(format!(
                "{rows} rows of {} tables are the same here and there",
                tables.len()
            ));
        }
        Command::Backup { to, identity_keys } => {
            back_up(settings, &to, identity_keys.as_deref()).await?;
            say(match identity_keys {
                None => format!("{} is a whole copy of the database", to.display()),
                Some(keys) => format!(
                    "{} is a copy of the database, which without {} says of no device whose it is: keep the newest of those only",
                    to.display(),
                    keys.display()
                ),
            });
        }
        Command::AfterRestore { identity_keys } => {
            let epoch = after_restore(settings, identity_keys.as_deref()).await?;
            say(format!("the next coordinator that leads has an epoch above {epoch}"));
        }
    }
    Ok(())
}
