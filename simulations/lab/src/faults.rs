//! The catalogue of faulty BMCs, for people and programs.

use anyhow::Result;
use firmesh_simulations::device::faulty::{CATALOGUE, End};

/// How to list them.
#[derive(Debug, clap::Args)]
pub(crate) struct FaultsArgs {
    /// Print JSON, one fault a line.
    #[arg(long)]
    json: bool,
}

/// Prints every fault. A devices file names one as `misbehaviour = { kind = "faulty", fault = "<name>" }`.
pub(crate) fn list(args: &FaultsArgs) -> Result<()> {
    for entry in CATALOGUE {
        if args.json {
            let mut line = serde_json::to_value(entry)?;
            line["report"] = entry.url().into();
            println!("{line}");
            continue;
        }
        let end = match entry.end {
            End::Updated => "it ends updated".to_owned(),
            End::Fails { class, says } => format!("it fails ({class}): \u{201c}\u{2026}{says}\u{2026}\u{201d}"),
        };
        println!(
            "{}\n    {}\n    {end}\n    {}",
            entry.fault.name(),
            entry.what,
            entry.url()
        );
    }
    Ok(())
}
