//! The rehearsal as one page: styles and pictures inside, no script, nothing from elsewhere.
//!
//! Invariant: whatever comes from a manifest, a plan or a device passes [`escaped`].

use firmesh_protocol::rehearsal::{Rehearsal, Scenario};

use super::{
    bytes,
    picture::{Bar, bars, escaped, steps},
    span,
    text::{bytes_in_all, endings, step_line, stopped},
};

/// Racks in the picture; the fullest ones, where there are more.
const RACKS_SHOWN: usize = 24;

const STYLE: &str = "
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2330; --soft: #5b6575; --line: #d8dde6; --solid: #2f6fdb;
  --pale: #a9c6f5; --bad: #c8443a; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161d; --ink: #e6e9ef; --soft: #9aa5b5; --line: #2c3442;
  --solid: #5b95f5; --pale: #2f4a78; --bad: #f0766b; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } p, li { color: var(--soft); }
code { font-size: .85em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--soft); font-weight: 600; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; } text { fill: var(--ink); }
text.name { text-anchor: end; fill: var(--soft); } .solid { fill: var(--solid); } .pale { fill: var(--pale); }
.area { fill: var(--pale); stroke: var(--solid); } .cap { stroke: var(--bad); stroke-dasharray: 6 4; fill: none; }
";

pub(super) fn page(rehearsal: &Rehearsal) -> String {
    let name = escaped(rehearsal.campaign.as_str());
    let body = [
        head(rehearsal),
        section(
            "When waves open and pass",
            "Solid: half of the runs have passed the gate; pale: 19 of 20.",
            &waves(rehearsal),
        ),
        section(
            "In flight, in the first undisturbed run",
            "Against the cap of the whole campaign.",
            &in_flight(rehearsal),
        ),
        section(
            "What would happen",
            "Devices that were started before the campaign stopped or ended. Solid: half of the runs; pale: the worst run.",
            &scenarios(rehearsal),
        ),
        section(
            "Bytes on the wires",
            "The mesh's plan, not measured: once over the WAN into each site, once into each rack.",
            &wires(rehearsal),
        ),
        section("Taken for granted", "", &assumptions(rehearsal)),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Rehearsal of {name}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n{}\n</body>\n</html>\n",
        body.join("\n")
    )
}

fn section(title: &str, says: &str, content: &str) -> String {
    let says = if says.is_empty() {
        String::new()
    } else {
        format!("<p>{says}</p>\n")
    };
    format!("<h2>{title}</h2>\n{says}{content}")
}

fn head(rehearsal: &Rehearsal) -> String {
    let row = |name: &str, value: String| format!("<tr><th>{name}</th><td>{}</td></tr>", escaped(&value));
    let digest = |name: &str, value: String| format!("<tr><th>{name}</th><td><code>{value}</code></td></tr>");
    let rows = [
        digest("rehearsal, SHA-256", rehearsal.sha256().to_string()),
        digest("plan, SHA-256", rehearsal.plan_sha256.to_string()),
        digest("rules, SHA-256", rehearsal.rules_sha256.to_string()),
        row(
            "fleet",
            format!(
                "{} devices, {} held back, {} nodes",
                rehearsal.devices, rehearsal.held, rehearsal.nodes
            ),
        ),
        row("started", rehearsal.starts.to_string()),
        row(
            "runs",
            format!("{} of each scenario, seed {}", rehearsal.runs, rehearsal.seed),
        ),
        row(
            "caps",
            format!("{} in all, {} per rack", rehearsal.cap_total, rehearsal.cap_per_rack),
        ),
        row("version", rehearsal.version.clone()),
    ];
    format!(
        "<h1>Rehearsal of {}</h1>\n<table>{}</table>",
        escaped(rehearsal.campaign.as_str()),
        rows.concat()
    )
}

fn waves(rehearsal: &Rehearsal) -> String {
    let bar = |wave: &firmesh_protocol::rehearsal::RehearsedWave| {
        let name = format!("wave {}, {} devices", wave.wave, wave.devices);
        let Some((opens, takes)) = wave.opens_s.zip(wave.takes_s) else {
            return Bar::of(name, 0, 0, "never passes".to_owned());
        };
        let says = format!("{} / {}", span(takes.p50), span(takes.p95));
        Bar {
            name,
            from: opens.p50,
            solid_to: opens.p50 + takes.p50,
            to: opens.p50 + takes.p95,
            says,
        }
    };
    let all: Vec<_> = rehearsal.waves.iter().map(bar).collect();
    bars("a bar for each wave", &all, most(&all))
}

fn in_flight(rehearsal: &Rehearsal) -> String {
    let ends = rehearsal.timeline.last().map_or(0, |(at, _)| *at);
    steps(
        "devices in flight over time",
        &rehearsal.timeline,
        rehearsal.cap_total,
        (&rehearsal.starts.to_string(), &format!("after {}", span(ends))),
    )
}

fn scenarios(rehearsal: &Rehearsal) -> String {
    let bar = |scenario: &Scenario| {
        let exposed = scenario.exposed;
        let says = format!("{} / {} of {}", exposed.p50, exposed.max, rehearsal.devices);
        Bar::of(scenario.title(), exposed.p50, exposed.max, says)
    };
    let all: Vec<_> = rehearsal.scenarios.iter().map(bar).collect();
    let row = |scenario: &Scenario| {
        let after = scenario
            .stopped_s
            .map_or_else(|| "-".to_owned(), |spread| span(spread.p50));
        let devices = |spread: firmesh_protocol::rehearsal::Spread| format!("{} / {}", spread.p50, spread.max);
        let cells = [
            scenario.title(),
            devices(scenario.exposed),
            devices(scenario.harmed),
            devices(scenario.went_back),
            devices(scenario.updated),
            stopped(rehearsal, scenario),
            after,
            endings(rehearsal, scenario),
        ];
        let cells = cells.map(|cell| format!("<td>{}</td>", escaped(&cell)));
        format!("<tr>{}</tr>", cells.concat())
    };
    let rows: Vec<_> = rehearsal.scenarios.iter().map(row).collect();
    let headings = [
        "scenario",
        "started",
        "harmed",
        "went back",
        "updated",
        "stopped in",
        "after",
        "ends",
    ];
    let headings = headings.map(|heading| format!("<th>{heading}</th>")).concat();
    let picture = bars("devices exposed in each scenario", &all, rehearsal.devices.into());
    format!("{picture}\n<table><tr>{headings}</tr>{}</table>", rows.concat())
}

fn wires(rehearsal: &Rehearsal) -> String {
    let (sites, racks) = bytes_in_all(rehearsal);
    let mut racks: Vec<_> = racks.into_iter().collect();
    racks.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let left_out = racks.len().saturating_sub(RACKS_SHOWN);
    racks.truncate(RACKS_SHOWN);
    let bar = |kind: &str, place: &firmesh_protocol::ids::TopologyPath, count: u64| {
        Bar::of(format!("{kind} {place}"), count, count, bytes(count))
    };
    let mut all: Vec<_> = sites.iter().map(|(site, count)| bar("WAN", site, *count)).collect();
    all.extend(racks.iter().map(|(rack, count)| bar("rack", rack, *count)));
    let more = match left_out {
        0 => String::new(),
        racks => format!("<p>and {racks} more racks</p>"),
    };
    if all.is_empty() {
        return "<p>Nothing: every image is there already.</p>".to_owned();
    }
    bars("bytes by site and rack", &all, most(&all)) + &more
}

fn assumptions(rehearsal: &Rehearsal) -> String {
    let assumed = &rehearsal.assumptions;
    let steps = assumed.steps.iter().map(step_line);
    let steps = steps.map(|line| line.trim_start_matches("- ").to_owned());
    let others = [
        format!("a permit is good for {}", span(assumed.permit_ttl_s)),
        format!("a node asks every {} s", assumed.sync_s),
        format!("{} bytes on the wire for 10000 bytes of images", assumed.wire_per_10000),
    ];
    let all = steps.chain(others).chain(assumed.notes.iter().cloned());
    let items: Vec<_> = all.map(|line| format!("<li>{}</li>", escaped(&line))).collect();
    format!("<ul>{}</ul>", items.concat())
}

fn most(bars: &[Bar]) -> u64 {
    bars.iter().map(|bar| bar.to.max(bar.solid_to)).max().unwrap_or(1)
}
