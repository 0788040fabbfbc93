//! `GET /`: the node's own page, for somebody at the rack and when the coordinator is away. It shows what `/status` says, as it is now.
//!
//! Everything in it comes from this node: one stylesheet, one script that asks for the page again, and a policy that allows nothing
//! else. Names and reasons come from elsewhere: nothing is written into the page but through [`Text`].

use std::fmt::{self, Write as _};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use firmesh_executors::HostState;
use firmesh_protocol::{report::PermitKind, time::WallTime};

use super::{Runtime, Status, ask, shutting_down};

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// What is shown of a list that may be long; the rest is in `/status`.
const ROWS_MAX: usize = 500;

pub(super) async fn page(State(runtime): State<Runtime>) -> Response {
    match ask(&runtime.status).await {
        Some(status) => file("text/html; charset=utf-8", render(&status)),
        None => shutting_down(),
    }
}

pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("page.css").to_owned())
}

pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page.js").to_owned())
}

fn file(kind: &'static str, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, body).into_response()
}

/// A text of anybody's, as it may stand in a page.
struct Text<T>(T);

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);
        impl fmt::Write for Escaping<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|c| match c {
                    '&' => self.0.write_str("&amp;"),
                    '<' => self.0.write_str("&lt;"),
                    '>' => self.0.write_str("&gt;"),
                    '"' => self.0.write_str("&quot;"),
                    '\'' => self.0.write_str("&#39;"),
                    c => self.0.write_char(c),
                })
            }
        }
        write!(Escaping(f), "{}", self.0)
    }
}

fn render(status: &Status) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    page.all(status);
    page.0
}

struct Page(String);

impl Page {
    fn add(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.0.write_fmt(text);
    }

    fn all(&mut self, status: &Status) {
        self.add(format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{node} - Firmesh node</title>\n\
             <link rel=\"stylesheet\" href=\"/page.css\">\n<script src=\"/page.js\" defer></script>\n</head>\n<body>\n\
             <p id=\"stale\" class=\"bad\" role=\"status\" hidden>This node does not answer: what stands here is old.</p>\n<main>\n<section>\n",
            node = Text(&status.node)
        ));
        self.head(status);
        self.problems(status);
        self.images(status);
        self.traffic(status);
        self.devices(status);
        self.hosts(status);
        self.store(status);
        self.add(format_args!(
            "</section>\n<p class=\"quiet\">The same for machines: <a href=\"/status\">/status</a>, <a href=\"/metrics\">/metrics</a>, \
             <a href=\"/health\">/health</a></p>\n</main>\n</body>\n</html>\n"
        ));
    }

    fn head(&mut self, status: &Status) {
        let (class, coordinator) = match status.coordinator_reachable {
            true => ("good", "the coordinator answers"),
            false => (
                "bad",
                "the coordinator does not answer; what was approved goes on without it",
            ),
        };
        let campaigns: Vec<_> = status.campaigns.iter().map(|id| Text(id).to_string()).collect();
        let campaigns = match campaigns.is_empty() {
            true => "none".to_owned(),
            false => campaigns.join(", "),
        };
        self.add(format_args!(
            "<h1>{}</h1>\n<p class=\"quiet\">{} - version {}</p>\n<p class=\"{class}\">{coordinator}</p>\n\
             <p>{} of {} other members connected. Campaigns: {campaigns}.</p>\n",
            Text(&status.node),
            Text(&status.path),
            Text(&status.version),
            status.connected,
            status.members.saturating_sub(1),
        ));
        if let Some(until) = status.certificate_until {
            self.add(format_args!(
                "<p class=\"quiet\">Its certificate is good until {}.</p>\n",
                Text(until)
            ));
        }
    }

    fn problems(&mut self, status: &Status) {
        let mut problems = Vec::new();
        problems.extend((status.last_error.as_ref()).map(|error| ("this node's disk or devices", error.clone())));
        problems.extend(
            (status.audit.fork.as_ref())
                .map(|fork| ("the audit log is not believed, and nothing starts here", fork.clone())),
        );
        let banned = status.banned.iter();
        problems.extend(banned.map(|(peer, reason)| ("a banned peer", format!("{peer}: {reason}"))));
        let brakes = status.brakes.iter();
        problems.extend(brakes.map(|brake| ("stopped for good", brake.to_string())));
        let refusals = status.refusals.iter().rev();
        problems.extend(refusals.map(|refusal| ("refused", format!("{}: {}", refusal.code, refusal.detail))));
        self.add(format_args!("</section>\n<section>\n<h2>Needs a look</h2>\n"));
        if problems.is_empty() {
            self.add(format_args!("<p class=\"good\">Nothing.</p>\n"));
            return;
        }
        let rows = problems
            .into_iter()
            .map(|(what, why)| [Cell::plain(what), Cell::plain(why)]);
        self.table(["What", "Why"], rows);
    }

    fn images(&mut self, status: &Status) {
        self.add(format_args!("</section>\n<section>\n<h2>Images</h2>\n"));
        let rows = status.holdings.iter().map(|held| {
            let name = held.artifact.to_string();
            let (pieces, all) = (held.pieces, held.pieces_total);
            let share = u64::from(pieces) * 100 / u64::from(all.max(1));
            let bar = format!("<progress value=\"{pieces}\" max=\"{all}\">{share} %</progress> {share} %");
            let holders = status.holders.get(&name).copied().unwrap_or(0);
            [
                Cell::code(name),
                Cell(format!("<td>{bar}</td>")),
                Cell::number(format!("{pieces} of {all}")),
                Cell::number(holders),
            ]
        });
        self.table(["Image", "Here", "Pieces", "Other holders"], rows);
    }

    fn traffic(&mut self, status: &Status) {
        self.add(format_args!(
            "</section>\n<section class=\"half\">\n<h2>Moved since the start</h2>\n"
        ));
        let traffic = &status.traffic;
        let rows = [
            ("from the origin", traffic.from_origin),
            ("from this rack", traffic.from_rack),
            ("from other racks", traffic.from_other_racks),
            ("made of other images here", traffic.reused),
            ("served in this rack", traffic.to_rack),
            ("served to other racks", traffic.to_other_racks),
            ("fetched again", traffic.fetched_again),
        ];
        let rows = rows.map(|(what, count)| [Cell::plain(what), Cell::number(bytes(count))]);
        self.table(["Content", "Bytes"], rows.into_iter());
        self.add(format_args!(
            "<p class=\"quiet\">{} slices or files did not verify.</p>\n",
            traffic.verification_failures
        ));
    }

    fn devices(&mut self, status: &Status) {
        self.add(format_args!("</section>\n<section>\n<h2>Devices</h2>\n"));
        let rows = status.devices.iter().map(|facts| {
            let attempt = status.attempts.iter().rfind(|attempt| attempt.device == facts.device);
            let (class, state, reason) = match attempt {
                None => ("", String::new(), String::new()),
                Some(attempt) => {
                    let way = match attempt.kind {
                        PermitKind::Update => "",
                        PermitKind::Rollback => " (back)",
                    };
                    let class = match attempt.state.is_terminal() {
                        true if attempt.state.is_success() => "good",
                        true => "bad",
                        false => "",
                    };
                    let state = format!("{}: {}{way}", attempt.campaign, attempt.state);
                    (class, state, attempt.reason.clone())
                }
            };
            let version = match &facts.version {
                Some(version) => Cell::code(version),
                None => Cell::classed("bad", "does not answer"),
            };
            [
                Cell::plain(&facts.device),
                Cell::plain(format!("{} {} {}", facts.vendor, facts.model, facts.component)),
                version,
                Cell::classed(class, state),
                Cell::plain(reason),
            ]
        });
        self.table(["Device", "What it is", "Runs", "Campaign", "Why"], rows);
    }

    fn hosts(&mut self, status: &Status) {
        if status.hosts.is_empty() {
            return;
        }
        self.add(format_args!("</section>\n<section>\n<h2>Hosts that step aside</h2>\n"));
        let rows = status.hosts.iter().map(|host| {
            let is_stuck = host.state == HostState::Leaving && host.problem.is_some();
            [
                Cell::plain(&host.host),
                Cell::classed(if is_stuck { "bad" } else { "" }, host.state),
                Cell::number(format!("{} s", host.since_s)),
                Cell::plain(host.problem.as_deref().unwrap_or_default()),
            ]
        });
        self.table(["Host", "Where it stands", "For", "What failed last"], rows);
    }

    fn store(&mut self, status: &Status) {
        let store = &status.store;
        let quota = store.quota_bytes.map_or_else(|| "not bounded".to_owned(), bytes);
        let scrubbed = match store.scrub.ended_s {
            0 => "not yet".to_owned(),
            at => WallTime::from_unix_seconds(at).to_string(),
        };
        let rows = [
            ("Used", bytes(store.used_bytes)),
            ("Quota", quota),
            ("Free on its disk", bytes(store.free_bytes)),
            ("Images that wait for room", store.waiting_for_room.len().to_string()),
            ("Looked at as a whole last", scrubbed),
            ("Pieces found damaged", store.scrub.pieces_lost.to_string()),
        ];
        self.add(format_args!("</section>\n<section class=\"half\">\n<h2>Store</h2>\n"));
        let rows = rows.map(|(what, value)| [Cell::plain(what), Cell::number(value)]);
        self.table(["What", "How much"], rows.into_iter());
    }

    fn table<const N: usize>(&mut self, heads: [&str; N], rows: impl ExactSizeIterator<Item = [Cell; N]>) {
        if rows.len() == 0 {
            self.add(format_args!("<p class=\"quiet\">None.</p>\n"));
            return;
        }
        let more = rows.len().saturating_sub(ROWS_MAX);
        self.add(format_args!(
            "<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr>"
        ));
        for head in heads {
            self.add(format_args!("<th scope=\"col\">{}</th>", Text(head)));
        }
        self.add(format_args!("</tr></thead>\n<tbody>\n"));
        for row in rows.take(ROWS_MAX) {
            self.add(format_args!("<tr>"));
            // On a phone the cells stand below each other, each with its heading.
            for (head, cell) in heads.iter().zip(row) {
                let named = format!("<td data-label=\"{}\"", Text(head));
                self.0.push_str(&cell.0.replacen("<td", &named, 1));
            }
            self.add(format_args!("</tr>\n"));
        }
        self.add(format_args!("</tbody></table></div>\n"));
        if more > 0 {
            self.add(format_args!("<p class=\"quiet\">And {more} more, in /status.</p>\n"));
        }
    }
}

/// A cell of a table, escaped.
struct Cell(String);

impl Cell {
    fn plain(text: impl fmt::Display) -> Self {
        Self(format!("<td>{}</td>", Text(text)))
    }

    fn code(text: impl fmt::Display) -> Self {
        Self(format!("<td><code>{}</code></td>", Text(text)))
    }

    fn number(text: impl fmt::Display) -> Self {
        Self(format!("<td class=\"number\">{}</td>", Text(text)))
    }

    fn classed(class: &'static str, text: impl fmt::Display) -> Self {
        Self(format!("<td class=\"{class}\">{}</td>", Text(text)))
    }
}

/// For people: three digits that mean something.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut tenths = u128::from(count) * 10;
    let mut unit = "bytes";
    for next in UNITS {
        if tenths < 10_240 {
            break;
        }
        (tenths, unit) = (tenths / 1_024, next);
    }
    match unit {
        "bytes" => format!("{count} bytes"),
        _ => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As another version of this node might say it: the page is made of `/status` alone.
    fn status() -> Status {
        serde_json::from_value(json!({
            "node": "r1-n1", "path": "eu/fra1/r1/r1-n1", "version": "1 (<b>)", "coordinator_reachable": false,
            "timestamp_version": 3, "members": 4, "connected": 2,
            "holdings": [{ "artifact": "00".repeat(32), "pieces": 1, "pieces_total": 3 }],
            "holders": { "00".repeat(32): 2 },
            "traffic": { "from_origin": 2048, "from_rack": 0, "from_other_racks": 0, "to_rack": 0, "to_other_racks": 0,
                "verification_failures": 0, "fetched_again": 0 },
            "durable_at_start": {}, "transfers": {}, "banned": { "x": "<script>alert('1')</script>" },
            "campaigns": ["spring"],
            "devices": [{ "device": "d1", "vendor": "A\"cme", "model": "R1", "component": "bmc", "version": null,
                "executor": "redfish" }],
            "attempts": [{ "device": "d1", "campaign": "spring", "kind": "update", "state": "failed",
                "reason": "fans & <smoke>", "version": null }],
            "refusals": [{ "code": "forged_permit", "detail": "by nobody" }], "brakes": [], "revocations_version": 0,
            "certificate_until": null, "audit": { "size": 1, "root": null, "at": null, "fork": null },
            "store": { "quota_bytes": null, "reserve_bytes": 0, "used_bytes": 1_500_000, "promised_bytes": 0,
                "free_bytes": 1, "artifacts": 1, "pinned": [], "waiting_for_room": [], "evicted": 0, "bundle_bytes": 0,
                "scrub": { "at": null, "began_s": 0, "ended_s": 0, "passes": 0, "bytes_checked": 0, "pieces_lost": 0 } },
            "last_error": null
        }))
        .unwrap()
    }

    #[test]
    fn the_page_says_what_the_status_does_and_nobody_writes_into_it() {
        let page = render(&status());
        for shown in [
            "r1-n1",
            "the coordinator does not answer",
            "2 of 3 other members connected",
            "33 %",
            "2.0 KiB",
            "1.4 MiB",
            "fans &amp; &lt;smoke&gt;",
            "A&quot;cme R1 bmc",
            "does not answer",
            "forged_permit: by nobody",
            "x: &lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;",
            "1 (&lt;b&gt;)",
        ] {
            assert!(page.contains(shown), "{shown} is not in {page}");
        }
        // One script, and it is this node's; no style that the policy would not allow.
        assert_eq!(page.matches("<script").count(), 1);
        assert!(!page.contains("style=") && !page.contains("://"), "{page}");
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let mut long = status();
        let device = long.devices[0].clone();
        long.devices = vec![device; ROWS_MAX + 7];
        assert!(render(&long).contains("And 7 more"));
    }

    #[test]
    fn bytes_are_short() {
        for (count, said) in [
            (0, "0 bytes"),
            (1_023, "1023 bytes"),
            (1_024, "1.0 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(bytes(count), said);
        }
    }
}
