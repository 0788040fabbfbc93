//! `firmesh doctor`: looks for what would stand in the way.

use std::time::Duration;

use clap::Args;
use firmesh_coordinator::ceremony::{Examination, Finding, Level};
use firmesh_protocol::{api::About, time::WallTime};
use reqwest::{Method, header};
use serde_json::Value;

use crate::{Folder, Global, client::Client, now, output::Output, trust};

/// Signing anew takes people's time: warn this long before metadata expires.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86_400);
/// Clocks further apart than this make fresh metadata look expired, or expired metadata look fresh.
const CLOCK_SKEW_MAX_S: u64 = 60;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    folder: Folder,
}

pub(crate) async fn run(global: &Global, doctor: &Doctor, output: &Output) -> anyhow::Result<()> {
    let examination = Examination {
        now: now(),
        within: EXPIRY_WARNING,
        lost: Vec::new(),
        certificates: Vec::new(),
        keys: Vec::new(),
    };
    let mut found = trust_folder(&examination, &doctor.folder);
    match global.client() {
        Ok(client) => found.extend(coordinator(&client, &examination).await),
        Err(error) => found.push(at_coordinator(Level::Failure, format!("{error:#}"))),
    }
    trust::doctor::report(&found, false, output)
}

fn at_coordinator(level: Level, detail: impl Into<String>) -> Finding {
    Finding::new("coordinator", level, "coordinator", detail)
}

fn trust_folder(examination: &Examination, folder: &Folder) -> Vec<Finding> {
    let shown = folder.dir.display().to_string();
    if !folder.dir.exists() {
        return vec![Finding::new(
            "folder",
            Level::Warning,
            shown,
            "there is no trust folder here",
        )];
    }
    let found = folder.open().and_then(|opened| Ok(examination.examine(&opened)?));
    found.unwrap_or_else(|error| vec![Finding::new("folder", Level::Failure, shown, format!("{error:#}"))])
}

async fn coordinator(client: &Client, examination: &Examination) -> Vec<Finding> {
    let failed = |error| {
        vec![at_coordinator(
            Level::Failure,
            format!("{:#}", anyhow::Error::from(error)),
        )]
    };
    let mut found = Vec::new();
    match client.send(Method::GET, "/health", |request| request).await {
        Err(error) => return failed(error),
        Ok(response) => {
            found.push(at_coordinator(Level::Ok, format!("{} answers", response.url())));
            let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
            found.extend(date.and_then(http_date).map(clock));
        }
    }
    match client.get::<About>("/api/v1/about").await {
        Err(error) => found.extend(failed(error)),
        Ok(about) => {
            let ours = env!("CARGO_PKG_VERSION");
            let same = about.version.split_whitespace().next() == Some(ours);
            let level = if same { Level::Ok } else { Level::Warning };
            let detail = format!("coordinator {}, this command {ours}", about.version);
            found.push(Finding::new("version", level, "coordinator", detail));
            found.extend(examination.certificates_of("fleet CA", about.fleet_ca_pem.as_bytes()));
        }
    }
    // Nothing is published yet, perhaps: then there is nothing to expire.
    if let Ok(timestamp) = client.get::<Value>("/api/v1/metadata/timestamp.json").await {
        let snapshot = format!(
            "{}.snapshot.json",
            timestamp["signed"]["meta"]["snapshot.json"]["version"]
        );
        found.extend(online(examination, "timestamp.json", &timestamp));
        if let Ok(content) = client.get::<Value>(&format!("/api/v1/metadata/{snapshot}")).await {
            found.extend(online(examination, &snapshot, &content));
        }
    }
    found
}

/// What the coordinator renews by itself: soon to expire is how it always is.
fn online(examination: &Examination, file: &str, content: &Value) -> Option<Finding> {
    let expires: WallTime = content["signed"]["expires"].as_str()?.parse().ok()?;
    let mut finding = examination.expiry("expiry", file, expires);
    if expires > now() {
        finding.level = Level::Ok;
        finding.detail = format!("renewed by the coordinator, good until {expires}");
    } else {
        finding.detail = format!("expired at {expires}: the coordinator cannot renew it, see its log");
    }
    Some(finding)
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
    let detail = format!("{apart} s apart from the coordinator's");
    Finding::new("clock", level, "this machine", detail)
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
