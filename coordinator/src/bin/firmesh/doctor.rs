//! `firmesh doctor`: looks for what would stand in the way.

use std::time::Duration;

use clap::Args;
use firmesh_protocol::{api::About, time::WallTime, trust::FileStatus};
use reqwest::{Method, header};
use serde::Serialize;

use crate::{Folder, Global, client::Client, now, output::Output};

/// Signing anew takes people's time: warn this long before metadata expires.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86_400);
/// Clocks further apart than this make fresh metadata look expired, or expired metadata look fresh.
const CLOCK_SKEW_MAX_S: u64 = 60;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    folder: Folder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warning,
    Failure,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    level: Level,
    detail: String,
}

fn finding(what: &'static str, level: Level, detail: impl Into<String>) -> Finding {
    Finding {
        what,
        level,
        detail: detail.into(),
    }
}

pub(crate) async fn run(global: &Global, doctor: &Doctor, output: &Output) -> anyhow::Result<()> {
    let mut found = trust_folder(&doctor.folder);
    match global.client() {
        Ok(client) => found.extend(coordinator(&client).await),
        Err(error) => found.push(finding("coordinator", Level::Failure, format!("{error:#}"))),
    }
    let rows = |found: &[Finding]| {
        let mark = |level| match level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failure => "FAILURE",
        };
        found
            .iter()
            .map(|f| format!("{:8} {:12} {}", mark(f.level), f.what, f.detail))
            .collect()
    };
    output.show(&found, || rows(&found))?;
    let failures = found.iter().filter(|finding| finding.level == Level::Failure).count();
    anyhow::ensure!(failures == 0, "{failures} of {} checks failed", found.len());
    Ok(())
}

fn trust_folder(folder: &Folder) -> Vec<Finding> {
    let what = "trust folder";
    if !folder.dir.exists() {
        return vec![finding(
            what,
            Level::Warning,
            format!("{} does not exist here", folder.dir.display()),
        )];
    }
    let status = folder.open().and_then(|opened| Ok(opened.status()?));
    let files = match status {
        Ok(files) => files,
        Err(error) => return vec![finding(what, Level::Failure, format!("{error:#}"))],
    };
    let judge = |file: FileStatus| {
        let (level, state) = match (file.is_complete(), file.expires) {
            (_, expires) if expires <= now() => (Level::Failure, "has expired: change and sign it again"),
            (_, expires) if expires <= now() + EXPIRY_WARNING => (Level::Warning, "expires soon"),
            (false, _) => (Level::Warning, "lacks signatures"),
            (true, _) => (Level::Ok, "is complete"),
        };
        finding(
            what,
            level,
            format!(
                "{} version {} {state} (expires {})",
                file.file, file.version, file.expires
            ),
        )
    };
    // Only the newest root counts.
    let newest = files
        .iter()
        .rposition(|file| file.file.ends_with(".root.json"))
        .unwrap_or(0);
    files.into_iter().skip(newest).map(judge).collect()
}

async fn coordinator(client: &Client) -> Vec<Finding> {
    let what = "coordinator";
    let mut found = Vec::new();
    match client.send(Method::GET, "/health", |request| request).await {
        Err(error) => {
            return vec![finding(
                what,
                Level::Failure,
                format!("{:#}", anyhow::Error::from(error)),
            )];
        }
        Ok(response) => {
            found.push(finding(what, Level::Ok, format!("{} answers", response.url())));
            let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
            found.extend(date.and_then(http_date).map(clock));
        }
    }
    match client.get::<About>("/api/v1/about").await {
        Err(error) => found.push(finding(
            what,
            Level::Failure,
            format!("{:#}", anyhow::Error::from(error)),
        )),
        Ok(about) => {
            let ours = env!("CARGO_PKG_VERSION");
            let same = about.version.split_whitespace().next() == Some(ours);
            let level = if same { Level::Ok } else { Level::Warning };
            found.push(finding(
                "version",
                level,
                format!("coordinator {}, this command {ours}", about.version),
            ));
        }
    }
    found
}

fn http_date(text: &str) -> Option<WallTime> {
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(WallTime::from_unix_seconds(at.as_second()))
}

fn clock(theirs: WallTime) -> Finding {
    let apart = now().unix_seconds().abs_diff(theirs.unix_seconds());
    let level = if apart > CLOCK_SKEW_MAX_S {
        Level::Failure
    } else {
        Level::Ok
    };
    finding("clock", level, format!("{apart} s apart from the coordinator's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_years_off_is_a_failure() {
        assert_eq!(
            http_date("Sat, 21 Nov 2026 12:00:00 GMT").unwrap().to_string(),
            "2026-11-21T12:00:00Z"
        );
        assert_eq!(clock(now()).level, Level::Ok);
        assert_eq!(clock(WallTime::from_unix_seconds(0)).level, Level::Failure);
    }
}
