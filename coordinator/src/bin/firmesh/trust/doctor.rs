//! `firmesh trust doctor`: what the keepers of a trust folder should see to.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use firmesh_coordinator::ceremony::{Examination, Finding, KeyRef, Level, Secrets};

use crate::{Folder, now, output::Output};

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    folder: Folder,
    /// Warn of what expires within so many days.
    #[arg(long, default_value_t = 30, value_name = "DAYS")]
    within_days: u32,
    /// Reckon with the loss of this key: which thresholds could no longer be met? (repeat)
    #[arg(long, value_name = "KEY")]
    without: Vec<KeyRef>,
    /// A certificate to look at, PEM (repeat).
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
    /// A secret key file, or a folder of them, whose modes and encryption to look at (repeat).
    #[arg(long, value_name = "PATH")]
    secret_key: Vec<PathBuf>,
    /// Warnings count as failures.
    #[arg(long)]
    strict: bool,
}

pub(super) fn run(doctor: &Doctor, output: &Output) -> anyhow::Result<()> {
    let examination = Examination {
        now: now(),
        within: Duration::from_secs(u64::from(doctor.within_days) * 86_400),
        lost: super::public_keys(&doctor.without, &Secrets::none())?,
        certificates: doctor.certificate.clone(),
        keys: doctor.secret_key.clone(),
    };
    report(&examination.examine(&doctor.folder.open()?)?, doctor.strict, output)
}

/// Shows what was found; an error if something has failed.
pub(crate) fn report(found: &[Finding], strict: bool, output: &Output) -> anyhow::Result<()> {
    let line = |finding: &Finding| {
        let mark = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failure => "FAILURE",
        };
        let Finding {
            what, subject, detail, ..
        } = finding;
        format!("{mark:8} {what:12} {subject}: {detail}")
    };
    output.show(&found, || found.iter().map(line).collect())?;
    let worst = if strict { Level::Warning } else { Level::Failure };
    let failures = found.iter().filter(|finding| finding.level >= worst).count();
    anyhow::ensure!(failures == 0, "{failures} of {} checks failed", found.len());
    Ok(())
}
