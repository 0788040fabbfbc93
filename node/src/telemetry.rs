//! Logs: one line an event on standard error, text for people or JSON for machines.

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging. `RUST_LOG` overrides the default of `info`, with the chatter of libraries kept to warnings.
pub fn init(json: bool) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,firmesh_node=info,firmesh_executors=info,firmesh_node_core=info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, as from a test in the same process, changes nothing.
    let _ = if json {
        builder.json().try_init()
    } else {
        builder.with_ansi(false).try_init()
    };
}
