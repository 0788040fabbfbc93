//! `firmesh window`: what the windows of a campaign's file come to on the clock, before anybody signs it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::{CampaignFile, read_bounded};
use firmesh_protocol::{
    ids::{DeviceId, TopologyPath},
    limits::MANIFEST_BYTES_MAX,
    time::WallTime,
    window::{BlackoutCalendar, HORIZON, Opening, Subject, Window},
};
use jiff::tz::TimeZone;
use serde_json::json;

use crate::{now, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the next spans in which a campaign's windows are open, and the blackouts that take from them.
    Preview(Preview),
}

#[derive(Debug, Args)]
pub(crate) struct Preview {
    /// The campaign as an operator writes it.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// So many spans.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    count: u16,
    /// Shown in the local time of this IANA zone rather than of the window's own.
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// As of then rather than of now.
    #[arg(long, value_name = "TIME")]
    at: Option<WallTime>,
    /// For a device of this name: rules that are for some devices only count if they are for it.
    #[arg(long, requires = "rack", requires = "model")]
    device: Option<DeviceId>,
    /// The rack that the device stands in.
    #[arg(long, value_name = "PATH")]
    rack: Option<TopologyPath>,
    /// The device's model.
    #[arg(long)]
    model: Option<String>,
}

pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<()> {
    let Command::Preview(asked) = command;
    let bytes = read_bounded(&asked.file, MANIFEST_BYTES_MAX)?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not text", asked.file.display()))?;
    let file: CampaignFile =
        toml::from_str(&text).with_context(|| format!("{} is no campaign", asked.file.display()))?;
    let rules = &file.constraints;
    let problem = rules.windows.iter().find_map(Window::problem);
    if let Some(problem) = problem {
        bail!("{}: a window {problem}", asked.file.display());
    }
    if let Some(problem) = rules.blackout_calendars.iter().find_map(BlackoutCalendar::problem) {
        bail!("{}: the blackout calendar {problem}", asked.file.display());
    }
    let subject = match (&asked.device, &asked.rack, &asked.model) {
        (Some(device), Some(rack), Some(model)) => Subject::new(device, rack, model),
        _ => Subject::NOBODY,
    };
    let table = rules.timetable(subject);
    let (at, worst_case) = (
        asked.at.unwrap_or_else(now),
        Duration::from_secs(file.deadlines.attempt_s.0.into()),
    );
    let openings = table.openings(at, asked.count.into());
    let next = match table.check(at, worst_case) {
        Ok(()) => Some(at),
        Err(closed) => closed.opens,
    };
    let zone_of = |opening: &Opening| {
        let own = rules
            .windows
            .get(opening.window)
            .map_or("UTC", |window| window.zone.as_str());
        asked.zone.as_deref().unwrap_or(own).to_owned()
    };
    let mut rows = Vec::new();
    for opening in &openings {
        let zone = zone_of(opening);
        let local = |at: WallTime| local(at, &zone);
        rows.push([
            local(opening.from)?,
            local(opening.until)?,
            zone.clone(),
            opening.from.to_string(),
            opening.blackouts.join(", "),
        ]);
    }
    let shown = |opening: &Opening| {
        json!({
            "window": opening.window, "from": opening.from, "until": opening.until, "zone": zone_of(opening),
            "blackouts": opening.blackouts,
        })
    };
    let value = json!({
        "at": at, "next_start": next, "worst_case_s": worst_case.as_secs(),
        "openings": openings.iter().map(shown).collect::<Vec<_>>(),
    });
    output.show(&value, || {
        let mut lines = match rows.is_empty() {
            true => Vec::new(),
            false => Output::table(["OPENS", "CLOSES", "ZONE", "OPENS (UTC)", "BLACKOUTS"], &rows),
        };
        lines.push(match next {
            Some(next) if next == at => format!("an attempt of {} s may start at once", worst_case.as_secs()),
            Some(next) => format!("the next attempt of {} s may start at {next}", worst_case.as_secs()),
            None => format!(
                "no attempt of {} s may start in the {} days that are looked at",
                worst_case.as_secs(),
                HORIZON.as_secs() / 86_400
            ),
        });
        lines
    })
}

fn local(at: WallTime, zone: &str) -> anyhow::Result<String> {
    let zone = TimeZone::get(zone).with_context(|| format!("{zone:?} is no IANA time zone such as Europe/Berlin"))?;
    let at = jiff::Timestamp::from_second(at.unix_seconds())?;
    Ok(at.to_zoned(zone).strftime("%a %Y-%m-%d %H:%M:%S").to_string())
}
