//! What the dashboard's pages ask for, one thing after the other, as one person does who looks through all of them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;

use super::report::Latencies;
use crate::demo::api::Api;

/// How often everything is asked for.
const ROUNDS: usize = 5;

/// A baseline, so that there is something to comply with.
const BASELINE: &str = "load";

/// Page by page. A filter that nobody fits is the most that a search can cost.
const ASKED: [(&str, &str); 13] = [
    ("campaigns", "campaigns?limit=100"),
    ("fleet: regions", "regions?limit=1000"),
    ("fleet: sites", "sites?limit=1000"),
    ("fleet: one site", "sites/eu/site-0"),
    ("mesh: nodes", "nodes?limit=1000"),
    ("devices", "devices?limit=100"),
    (
        "devices: a search in vain",
        "devices?limit=100&filter=model%20%3D%3D%20%22none%22",
    ),
    ("devices: one", "devices/d0-0"),
    ("artifacts: releases", "releases?limit=100"),
    ("audit", "audit/entries?from=0&count=100"),
    ("compliance", "compliance"),
    (
        "compliance: who has drifted",
        "baselines/load/drift?limit=100&state=ahead",
    ),
    ("settings", "about"),
];

/// How long the answers took, by what was asked.
pub(super) type Pages = BTreeMap<&'static str, Latencies>;

/// Makes a baseline of a release, and looks at every page.
pub(super) async fn look(api: &Api, release: &str) -> Result<Pages> {
    #[derive(Serialize)]
    struct Baseline<'a> {
        id: &'a str,
        description: &'a str,
        releases: [&'a str; 1],
    }
    let baseline = Baseline {
        id: BASELINE,
        description: "",
        releases: [release],
    };
    let _made: serde_json::Value = api.post("/api/v1/baselines", &baseline).await?;
    let mut pages = Pages::new();
    for (what, path) in ASKED.iter().cycle().take(ROUNDS * ASKED.len()) {
        let begun = Instant::now();
        let _answer: serde_json::Value = api.get(&format!("/api/v1/{path}")).await?;
        pages.entry(what).or_default().add(begun.elapsed());
        // Neither the operators' rate limit nor what the last answer left behind is measured.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(pages)
}
