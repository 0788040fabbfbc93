//! How it ended: read back from the devices themselves, and from what the nodes counted.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use firmesh_node::status::Status;
use firmesh_protocol::{
    api::{CampaignState, CampaignView, Traffic},
    ids::{DeviceId, NodeId},
    report::AttemptState,
};
use serde::Serialize;

use super::{layout::NEW_VERSION, world::Truth};

/// How the demo ended.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    /// Whether every device runs the new version and the campaign says so too.
    pub(super) success: bool,
    /// Where the campaign stands, and why.
    campaign: CampaignState,
    reason: String,
    /// Devices by result, as nodes reported them to the coordinator.
    results: BTreeMap<AttemptState, u32>,
    /// Devices by the version that the devices themselves say they run.
    versions: BTreeMap<String, u32>,
    /// Devices that do not run the new version.
    stragglers: Vec<DeviceId>,
    nodes: usize,
    racks: usize,
    /// From the ceremony to the last device, and from the campaign's start.
    wall_s: f64,
    campaign_s: f64,
    /// The image and the previous image: what every node has to hold.
    content_bytes: u64,
    origin_bytes: u64,
    /// Origin bytes over content bytes: 1 is the least there is.
    origin_ratio: f64,
    crossed_racks_bytes: u64,
    /// What crossed racks over (racks - 1) copies of the content; absent for a single rack.
    crossed_racks_ratio: Option<f64>,
    delivered_bytes: u64,
    fetched_again_bytes: u64,
    verification_failures: u64,
    banned: BTreeMap<NodeId, String>,
    logs: PathBuf,
    state: PathBuf,
}

/// What a summary is made of.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) view: &'a CampaignView,
    pub(super) truth: &'a BTreeMap<DeviceId, Truth>,
    pub(super) nodes: &'a BTreeMap<NodeId, Status>,
    pub(super) lost: Traffic,
    pub(super) racks: usize,
    pub(super) wall_s: f64,
    pub(super) campaign_s: f64,
    pub(super) content_bytes: u64,
    pub(super) state: PathBuf,
}

impl Summary {
    pub(super) fn of(facts: Facts<'_>) -> Self {
        let Facts {
            view,
            truth,
            nodes,
            lost,
            racks,
            wall_s,
            campaign_s,
            content_bytes,
            state,
        } = facts;
        let mut versions = BTreeMap::new();
        for device in truth.values() {
            let version = device.version.clone().unwrap_or_else(|| "no answer".to_owned());
            *versions.entry(version).or_default() += 1;
        }
        let old =
            |(id, device): (&DeviceId, &Truth)| (device.version.as_deref() != Some(NEW_VERSION)).then(|| id.clone());
        let stragglers: Vec<_> = truth.iter().filter_map(old).collect();
        let sum =
            |part: fn(&Traffic) -> u64| part(&lost) + nodes.values().map(|status| part(&status.traffic)).sum::<u64>();
        let (origin_bytes, crossed) = (sum(|t| t.from_origin), sum(|t| t.from_other_racks));
        let minimum = content_bytes * (racks as u64).saturating_sub(1);
        Self {
            success: stragglers.is_empty() && !truth.is_empty() && view.state == CampaignState::Completed,
            campaign: view.state,
            reason: view.reason.clone(),
            results: view.states.clone(),
            versions,
            stragglers,
            nodes: nodes.len(),
            racks,
            wall_s,
            campaign_s,
            content_bytes,
            origin_bytes,
            origin_ratio: ratio(origin_bytes, content_bytes),
            crossed_racks_bytes: crossed,
            crossed_racks_ratio: (minimum > 0).then(|| ratio(crossed, minimum)),
            delivered_bytes: origin_bytes + crossed + sum(|t| t.from_rack),
            fetched_again_bytes: sum(|t| t.fetched_again),
            verification_failures: sum(|t| t.verification_failures),
            banned: nodes.values().flat_map(|status| status.banned.clone()).collect(),
            logs: state.join("logs"),
            state,
        }
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let count = |(what, count): (String, u32)| format!("{count} {what}");
        let list = |items: Vec<String>| items.join(", ");
        let results = list(
            self.results
                .iter()
                .map(|(state, n)| count((state.to_string(), *n)))
                .collect(),
        );
        let versions = list(
            self.versions
                .iter()
                .map(|(version, n)| count((format!("run {version}"), *n)))
                .collect(),
        );
        let mut row = |name: &str, value: String| {
            let _text_takes_everything = writeln!(text, "  {name:22} {value}");
        };
        row("campaign", format!("{:?}: {}", self.campaign, self.reason));
        row("devices, reported", results);
        row("devices, read back", versions);
        if !self.stragglers.is_empty() {
            let shown = self.stragglers.iter().take(8).map(ToString::to_string).collect();
            row("not updated", list(shown));
        }
        row(
            "wall time",
            format!("{:.1} s, of which the campaign {:.1} s", self.wall_s, self.campaign_s),
        );
        row(
            "delivered",
            format!(
                "{} to {} nodes in {} racks",
                mib(self.delivered_bytes),
                self.nodes,
                self.racks
            ),
        );
        row(
            "left the origin",
            format!(
                "{} for {} of images: {:.2} of one copy",
                mib(self.origin_bytes),
                mib(self.content_bytes),
                self.origin_ratio
            ),
        );
        if let Some(crossed) = self.crossed_racks_ratio {
            row(
                "crossed racks",
                format!("{}: {crossed:.2} of the minimum", mib(self.crossed_racks_bytes)),
            );
        }
        row("fetched again", mib(self.fetched_again_bytes));
        row("failed verification", format!("{} slices", self.verification_failures));
        for (peer, reason) in &self.banned {
            row("banned", format!("{peer}: {reason}"));
        }
        row("logs", self.logs.display().to_string());
        row("state", self.state.display().to_string());
        let verdict = if self.success {
            "SUCCESS: every device runs the new version"
        } else {
            "FAILURE: not every device runs the new version"
        };
        format!("\n{verdict}\n{text}")
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / (whole as f64).max(1.0)
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
