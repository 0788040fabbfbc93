//! The node: caches and shares verified pieces with its peers, and runs the executors of its devices.
//!
//! Everything here is shell: sockets, disks, clocks and BMCs. What to do is decided by `firmesh-node-core`,
//! `firmesh-executors-core` and the trust verifier of `firmesh-protocol`.

mod audit;
mod campaigns;
pub mod config;
pub mod ddi;
mod delta;
mod files;
pub mod identity;
pub mod images;
pub mod journal;
pub mod launch;
pub mod mesh;
mod own;
mod places;
mod runtime;
pub mod sealing;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod trust_store;
pub mod uplink;

use tokio_util::sync::CancellationToken;

pub use runtime::{RunError, run};
pub use transport::BLOBS_ALPN;

/// Version and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("FIRMESH_COMMIT"), ")");

/// Runs a node in a runtime of its own until SIGTERM or SIGINT. It has half of the machine's cores, at most eight: one
/// moves well over a gigabit per second, and every hand-over from core to core costs more than what is handed over.
pub fn run_until_signal(settings: config::Settings) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).clamp(1, 8))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let stopping = cancel.clone();
        let signals = tokio::spawn(async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            stopping.cancel();
        });
        // On a worker, beside everything it talks to.
        let result = tokio::spawn(run(settings, cancel)).await;
        signals.abort();
        Ok(result??)
    })
}
