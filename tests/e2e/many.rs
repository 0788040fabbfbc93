//! Two hundred devices behind one node, all at once: within the cap, and within what a small machine has.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::NEW,
    wait::{Seen, until},
};

const BMCS: u32 = 200;
const NODE: &str = "r1-n1";
const ENDS_WITHIN: Duration = Duration::from_secs(280);

/// What a node may have open: for each device those of the client that acts on it and looks at it, and those on which the
/// device pulls its image (936 were seen), and a hundred for everything else.
const OPEN_MAX: usize = 6 * BMCS as usize + 100;
/// What it may hold in memory, its store's and the mesh's buffers included: twice what was seen.
const RESIDENT_KIB_MAX: u64 = 288 << 10;

/// The most that was seen.
#[derive(Debug, Default)]
struct Peak {
    sockets: usize,
    resident_kib: u64,
    in_flight: usize,
}

impl Peak {
    fn look(&mut self, process: u32) -> Result<()> {
        let links =
            fs::read_dir(format!("/proc/{process}/fd"))?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let sockets = links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count();
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        self.sockets = self.sockets.max(sockets);
        self.resident_kib = self.resident_kib.max(resident.context("no VmRSS")?);
        Ok(())
    }
}

#[tokio::test]
async fn two_hundred_bmcs_behind_one_node_are_updated_at_once_within_bounds() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: BMCS,
        image_bytes: 1 << 20,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let process = fleet.node(NODE)?.process.id();
        let mut idle = Peak::default();
        idle.look(process)?;
        let rules = format!(
            "strategy = {{ kind = \"canary\", shares = [10000] }}\ncaps = {{ per_rack = {BMCS}, total = {BMCS} }}\n\
             gate = {{ advance = 9900, rollback = 9000, sample_min = 1, soak_s = 0 }}\ndeadlines = {{ attempt_s = 240, back_s = 120 }}"
        );
        fleet.start_campaign("all", &rules)?;
        let began = std::time::Instant::now();
        let mut peak = Peak::default();
        let view = until("the campaign to end", ENDS_WITHIN, async || {
            peak.look(process)?;
            let view = fleet.campaign("all").await?;
            let in_flight = fleet.nodes[NODE].status().await?["attempts"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|attempt| attempt["state"] != "success")
                .count();
            peak.in_flight = peak.in_flight.max(in_flight);
            Ok(if view.state.is_terminal() {
                Seen::Yes(view)
            } else {
                Seen::NotYet(format!("{:?}", view.states))
            })
        })
        .await?;
        println!("idle: {idle:?}; at its height: {peak:?}; {:?} in all", began.elapsed());
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(view.states.keys().copied().collect::<BTreeSet<_>>() == [AttemptState::Success].into(), "{view:?}");
        ensure!(fleet.running(NEW).await? == BMCS as usize);
        ensure!(peak.in_flight > BMCS as usize / 2, "they were not updated at once: {peak:?}");
        ensure!(peak.sockets <= OPEN_MAX && peak.resident_kib <= RESIDENT_KIB_MAX, "{peak:?}");
        Ok(())
    })
    .await
}
