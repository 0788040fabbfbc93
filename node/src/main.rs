//! `firmesh-node`: the process on every rack.

use std::{io, path::PathBuf, process::ExitCode};

use clap::Parser;
use firmesh_node::{config::Settings, run_until_signal, status::clear_at, telemetry};
use firmesh_protocol::ids::DeviceId;

/// Caches and shares verified firmware images with its peers, and updates the devices it looks after.
#[derive(Debug, Parser)]
#[command(name = "firmesh-node", version = firmesh_node::VERSION)]
struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "FIRMESH_NODE_CONFIG")]
    config: PathBuf,
    /// Check the configuration, print it with secrets redacted, and exit.
    #[arg(long)]
    check_config: bool,
    /// Say that a person has looked at a quarantined device, so that the running node gives its places under the caps up.
    /// `firmesh device clear` says the same to the coordinator.
    #[arg(long, value_name = "DEVICE")]
    clear: Option<DeviceId>,
    /// Log JSON, one object a line.
    #[arg(long, env = "FIRMESH_LOG_JSON")]
    log_json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::init(args.log_json);
    let settings = match Settings::load(&args.config) {
        Ok(settings) => settings,
        Err(error) => return fail(&error),
    };
    if args.check_config {
        println!("{settings:#?}");
        return ExitCode::SUCCESS;
    }
    if let Some(device) = args.clear {
        return match clear(&settings, &device) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    match run_until_signal(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

fn clear(settings: &Settings, device: &DeviceId) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(clear_at(&settings.state_dir, device))
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("firmesh-node: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}
