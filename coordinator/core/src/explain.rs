//! Why a campaign, a wave or a device stands where it stands: what was decided, then what is waited for.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    api::{CampaignState, Explanation, PossessionView},
    gate::Tally,
    health::DeviceHealth,
    ids::{CampaignId, DeviceId},
    report::{AttemptState, PermitKind},
    time::Timestamp,
};

use crate::{
    attempts::{Attempt, Place},
    campaign::Campaign,
    engine::Engine,
    index::Light,
    load::InTheWay,
    planner::{Standing, late},
};

/// What is to be done about devices that came too late.
const LATE: &str = "late: it appeared after the plan was made, and approvers have not signed for it; when this campaign is over, \
                    `campaign diff` shows what a plan made now says of it, and a new campaign or edition brings it in";

/// Devices explained one by one before the rest is summed up.
const DEVICES_SHOWN: usize = 200;

/// The name of a hold: the device's node has not proven that it holds what the device needs.
const AWAITING: &str = "awaiting_possession";

/// The name of a refusal: a node's proof does not hold.
const WRONG_PROOF: &str = "wrong_possession_proof";

/// What an explanation is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The campaign and everything in it that waits or went wrong.
    Campaign,
    /// One wave and its devices, counted from 0.
    Wave(u32),
    /// One device.
    Device(DeviceId),
}

impl Engine {
    /// Explains a campaign, or a part of it; `None` if there is no such campaign, wave or planned or held device.
    #[must_use]
    pub fn explain(&self, id: &CampaignId, subject: &Subject) -> Option<Vec<Explanation>> {
        let campaign = self.find(id)?;
        let device = |device: &DeviceId| explain_device(self, campaign, &campaign.attempts.known(device));
        match subject {
            Subject::Campaign => {
                let evidence = tally(campaign, |_| true).into_iter().chain(possession(campaign));
                let mut found = vec![Explanation {
                    subject: format!("campaign {id}"),
                    finding: campaign.record.reason.clone(),
                    evidence: evidence.chain(gate_evidence(self, campaign)).collect(),
                }];
                found.extend(campaign.record.decisions.iter().cloned());
                found.extend(campaign.explain_servers());
                let unwell = campaign.select(|attempt| !attempt.ended_well(&campaign.manifest.gate));
                found.extend(unwell.iter().take(DEVICES_SHOWN).map(device));
                if unwell.len() > DEVICES_SHOWN {
                    found.push(Explanation {
                        subject: "other devices".to_owned(),
                        finding: format!("{} more; ask for them by wave or by name", unwell.len() - DEVICES_SHOWN),
                        evidence: Vec::new(),
                    });
                }
                Some(found)
            }
            Subject::Wave(wave) => {
                let planned = campaign.attempts.of_wave(*wave as usize);
                if *wave as usize >= campaign.attempts.waves() {
                    return None;
                }
                let subject = format!("wave {wave}");
                let finding = match campaign.record.gates.get(*wave as usize) {
                    None => format!("not open: {}", standing(campaign)),
                    Some(gate) => format!("open, its gate says {gate:?}"),
                };
                let evidence = tally(campaign, |attempt| attempt.stand.wave == *wave);
                let decided = campaign
                    .record
                    .decisions
                    .iter()
                    .filter(|decision| decision.subject == subject)
                    .cloned();
                let mut found = vec![Explanation {
                    subject: subject.clone(),
                    finding,
                    evidence,
                }];
                found.extend(decided);
                found.extend(
                    planned
                        .take(DEVICES_SHOWN)
                        .map(|attempt| device(&attempt.record.device)),
                );
                Some(found)
            }
            Subject::Device(id) if campaign.attempts.contains(id) => Some(vec![device(id)]),
            Subject::Device(id) => {
                let held = campaign.held.iter().find(|held| held.device == *id)?;
                Some(vec![Explanation {
                    subject: format!("device {id}"),
                    finding: "held back by the plan".to_owned(),
                    evidence: std::iter::once(held.reason.clone())
                        .chain(campaign.server_evidence(id))
                        .collect(),
                }])
            }
        }
    }
}

impl Engine {
    /// Explains devices of the fleet that the campaign would be for and that its plan does not know: the one that is asked
    /// about, or all if it is about the campaign. Nothing if there are none, or the campaign is over.
    #[must_use]
    pub fn explain_late<'a>(
        &self,
        id: &CampaignId,
        subject: &Subject,
        fleet: impl Iterator<Item = Standing<'a>>,
    ) -> Option<Explanation> {
        let campaign = self.find(id).filter(|campaign| !campaign.record.state.is_terminal())?;
        let is_asked = |standing: &Standing<'_>| match subject {
            Subject::Campaign => true,
            Subject::Wave(_) => false,
            Subject::Device(device) => standing.device == device,
        };
        let held: BTreeSet<_> = campaign.held.iter().map(|held| &held.device).collect();
        let is_named = |device: &DeviceId| campaign.attempts.contains(device) || held.contains(device);
        let found = late(fleet.filter(is_asked), &campaign.manifest, is_named);
        let first = found.first()?;
        let mut evidence: Vec<_> = found
            .iter()
            .take(DEVICES_SHOWN)
            .map(|late| format!("{} at {}", late.device, late.path))
            .collect();
        if found.len() > evidence.len() {
            evidence.push(format!("and {} more", found.len() - evidence.len()));
        }
        let (subject, finding) = match subject {
            Subject::Device(_) => (format!("device {}", first.device), LATE.to_owned()),
            _ => (
                "late devices".to_owned(),
                format!("{} devices, each {LATE}", found.len()),
            ),
        };
        Some(Explanation {
            subject,
            finding,
            evidence,
        })
    }
}

fn tally(campaign: &Campaign, pick: impl Fn(&Attempt) -> bool) -> Vec<String> {
    let mut states = BTreeMap::new();
    for attempt in campaign.attempts.iter().filter(|attempt| pick(attempt)) {
        *states.entry(attempt.record.state).or_insert(0_u32) += 1;
    }
    states
        .into_iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect()
}

/// How many nodes have proven that they hold their images, and whose proofs did not hold.
fn possession(campaign: &Campaign) -> Vec<String> {
    let PossessionView {
        nodes,
        proven,
        wrong_proofs,
    } = campaign.possession.view();
    let counts = format!("{proven} of {nodes} nodes have proven that they hold their images");
    let wrong = wrong_proofs
        .into_iter()
        .map(|(node, count)| format!("{WRONG_PROOF}: {count} by node {node}"));
    std::iter::once(counts).chain(wrong).collect()
}

/// What keeps a device from its permit until its node has proven possession, with the proofs that did not hold.
fn unproven(campaign: &Campaign, attempt: &Attempt, evidence: &mut Vec<String>) -> String {
    let planned = campaign.planned(attempt);
    let missing: BTreeSet<_> = campaign.possession.unproven(&attempt.stand.seat.node).collect();
    let mut targets: Vec<_> = planned.targets().collect();
    targets.retain(|target| missing.contains(&campaign.images[*target].id));
    let wrong: BTreeMap<_, _> = campaign.possession.wrong_proofs(&attempt.stand.seat.node).collect();
    for target in &targets {
        if let Some(count) = wrong.get(&campaign.images[*target].id) {
            evidence.push(format!(
                "{WRONG_PROOF}: {count} by node {} for {target}",
                attempt.stand.seat.node
            ));
        }
    }
    let targets: Vec<_> = targets.into_iter().map(String::as_str).collect();
    format!(
        "waits: {AWAITING}: node {} has not proven that it holds {}",
        attempt.stand.seat.node,
        targets.join(", ")
    )
}

fn explain_device(engine: &Engine, campaign: &Campaign, attempt: &Attempt) -> Explanation {
    let record = &attempt.record;
    let mut evidence = vec![format!(
        "wave {}, rack {}, node {}",
        attempt.stand.wave, attempt.stand.seat.rack, attempt.stand.seat.node
    )];
    if let Some(version) = &record.version {
        evidence.push(format!("runs {version}"));
    }
    evidence.extend(campaign.server_evidence(&record.device));
    if let Some((steps, from)) = attempt.stand.course.steps() {
        let how = match attempt.is_halfway() {
            true => "it has stopped on its way",
            false => "each is read back before the next",
        };
        evidence.push(format!("goes from {from} to its release in {steps} steps: {how}"));
    }
    if let Some(sequence) = record.permit {
        evidence.push(format!("named by permit {sequence}"));
    }
    if let Some(failed) = record.last_failed() {
        let (attempt, starts) = (record.attempt(), campaign.starts_after(failed.failure));
        evidence.push(format!(
            "attempt {} of {starts} failed in {}: {}",
            attempt - 1,
            failed.failure,
            failed.reason
        ));
    }
    match record.health {
        Some(DeviceHealth::Breached) => evidence.push("was not well after its update".to_owned()),
        Some(DeviceHealth::Unknown) => {
            evidence.push("its health after the update is not known: the gate does not pass on it".to_owned());
        }
        Some(DeviceHealth::Healthy) | None => {}
    }
    if !attempt.stand.course.can_go_back() {
        evidence.push("has no way back: its release is one-way, or no previous release fits".to_owned());
    }
    let waits = attempt.is_untouched() || campaign.must_go_back(attempt);
    let finding = match (waits, record.reason.is_empty()) {
        (true, _) => waiting_for(engine, campaign, attempt, &mut evidence),
        (false, true) => match phase(record.state) {
            Some(meaning) => format!("{}: {meaning}", record.state),
            None => record.state.to_string(),
        },
        (false, false) => format!("{}: {}", record.state, record.reason),
    };
    if attempt.is_running() {
        evidence.push(last_word(engine, attempt));
    }
    if record.presumed && record.state.is_terminal() {
        evidence.push("the coordinator says so, its node has not: a late word of it still counts".to_owned());
    }
    if attempt.is_quarantined() {
        let clear = format!(
            "it keeps its place under the caps until a person clears it: `firmesh device clear {}`",
            record.device
        );
        evidence.push(clear);
    }
    Explanation {
        subject: format!("device {}", record.device),
        finding,
        evidence,
    }
}

fn waiting_for(engine: &Engine, campaign: &Campaign, attempt: &Attempt, evidence: &mut Vec<String>) -> String {
    let load = &engine.load;
    let state = campaign.record.state;
    if !matches!(state, CampaignState::Active | CampaignState::RollingBack) {
        return format!("waits: {}", standing(campaign));
    }
    if state == CampaignState::RollingBack && attempt.is_untouched() {
        return "waits: other devices of the campaign are going back, then somebody has to resume it".to_owned();
    }
    if attempt.stand.wave as usize >= campaign.record.gates.len() {
        evidence.extend(gate_evidence(engine, campaign));
        return format!("waits: wave {} is not open: {}", attempt.stand.wave, standing(campaign));
    }
    if state == CampaignState::Active && load.is_taken_back(attempt) {
        let other = engine.all().find(|other| {
            let there = other.attempts.get(&attempt.record.device);
            other.record.state == CampaignState::RollingBack && there.is_some_and(|there| other.must_go_back(&there))
        });
        let other = other.map_or_else(
            || "another campaign".to_owned(),
            |other| format!("campaign {}", other.record.id),
        );
        return format!("waits: {other} takes it back first");
    }
    let device = &attempt.record.device;
    if load.contains(device) {
        let other = engine
            .all()
            .find(|other| other.attempts.get(device).is_some_and(|attempt| attempt.is_running()));
        let other = other.map_or_else(
            || "another campaign".to_owned(),
            |other| format!("campaign {}", other.record.id),
        );
        return format!("waits: {other} has it in flight");
    }
    if state == CampaignState::Active && !attempt.is_proven {
        return unproven(campaign, attempt, evidence);
    }
    if let (Some(until), Some(failed)) = (attempt.pauses_until, attempt.record.last_failed()) {
        let left = until.since_start().saturating_sub(engine.now.since_start()).as_secs();
        let (attempt, starts) = (attempt.record.attempt(), campaign.starts_after(failed.failure));
        return format!("waits for its retry for {left} s more: attempt {attempt} of {starts}");
    }
    let kind = match state {
        CampaignState::Active => PermitKind::Update,
        _ => PermitKind::Rollback,
    };
    if !campaign.is_turn(attempt, kind) {
        let name = |place: Place| campaign.attempts.device(place);
        return match (kind, attempt.own.after.map(name), attempt.own.next.map(name)) {
            (PermitKind::Update, Some(before), _) => {
                format!("waits: {before}, which comes before it in its unit, has not ended well yet")
            }
            (_, _, next) => format!(
                "waits: {}, which comes after it in its unit, has not gone back yet",
                next.map_or("another device", DeviceId::as_str)
            ),
        };
    }
    match load.in_the_way(attempt, &campaign.rules) {
        Some(InTheWay::Domain { domain, in_flight, cap }) => {
            let name = engine.domains.name(domain);
            return format!("waits: {in_flight} devices of {name} are in flight, the cap is {cap}");
        }
        Some(InTheWay::StandsIn { domain }) => {
            let name = engine.domains.name(domain);
            return format!("waits: devices of {name} are in flight, which stands in for its own");
        }
        Some(InTheWay::Unit) => return "waits: another device of its unit is in flight or quarantined".to_owned(),
        None => {}
    }
    let (per_rack, total) = load.caps(attempt.stand.rack_number, &campaign.manifest.caps);
    let in_rack: Vec<_> = load.of_rack(attempt.stand.rack_number).collect();
    if in_rack.len() >= per_rack {
        let in_flight = |id: &&DeviceId| match engine.is_quarantined(id) {
            true => format!("{id} is quarantined and keeps its place until it is cleared"),
            false => format!("{id} is in flight"),
        };
        evidence.extend(in_rack.iter().take(10).map(in_flight));
        return format!(
            "waits: {} devices of its rack are in flight, the cap is {per_rack}",
            in_rack.len()
        );
    }
    if load.total() >= total {
        let in_flight = engine.in_flight().into_keys().take(10);
        evidence.extend(in_flight.map(|id| format!("{id} is in flight, or quarantined")));
        return format!(
            "waits: {} devices are in flight, the cap is {total} in all",
            load.total()
        );
    }
    "waits for its permit".to_owned()
}

/// Where the campaign stands, and what goes on from there.
fn standing(campaign: &Campaign) -> String {
    let reason = &campaign.record.reason;
    let id = &campaign.record.id;
    match campaign.record.state {
        CampaignState::Scheduled => format!("the campaign is {reason}: `firmesh campaign start {id}`"),
        CampaignState::Paused => format!("the campaign is {reason}: `firmesh campaign resume {id}`"),
        _ => reason.clone(),
    }
}

/// What the gates of the waves in progress rest on so far, and what is asked after them.
fn gate_evidence(engine: &Engine, campaign: &Campaign) -> Vec<String> {
    let is_open = matches!(campaign.record.state, CampaignState::Active | CampaignState::Paused);
    let mut waves = campaign.in_progress().filter(|_| is_open);
    if campaign.manifest.strategy.waves_at_once() == 1 {
        return waves
            .next()
            .map_or_else(Vec::new, |wave| gate_lines(engine, campaign, wave));
    }
    let of_wave = |wave| {
        let lines = gate_lines(engine, campaign, wave).into_iter();
        lines.map(move |line| format!("wave {wave}: {line}"))
    };
    waves.flat_map(of_wave).collect()
}

fn gate_lines(engine: &Engine, campaign: &Campaign, wave: usize) -> Vec<String> {
    let record = &campaign.record;
    let gate = &campaign.manifest.gate;
    let attempts = campaign.attempts.of_wave(wave);
    let fates = attempts.map(|attempt| campaign.fate(&attempt, Light::Known));
    let mut lines = Tally::of(gate, fates).evidence();
    if let Some(until) = campaign.soaks.get(&wave).filter(|until| **until > engine.now) {
        let left = until.since_start().saturating_sub(engine.now.since_start());
        lines.push(format!("watched for {} s more", left.as_secs()));
    }
    let of_wave = |asked: u32| asked as usize == wave;
    for asked in record.webhooks.iter().filter(|asked| of_wave(asked.wave)) {
        let verdict = format!("{:?}", asked.verdict).to_lowercase();
        lines.push(
            format!("webhook {}: {verdict} {}", asked.webhook, asked.reason)
                .trim_end()
                .to_owned(),
        );
    }
    for asked in record.approvals.iter().filter(|asked| of_wave(asked.wave)) {
        lines.push(match asked.approved {
            None => "an approver was asked and has not answered".to_owned(),
            Some(approved) => format!(
                "an approver said {}: {}",
                if approved { "yes" } else { "no" },
                asked.reason
            ),
        });
    }
    lines
}

/// When the node of a device in flight was last heard of.
fn last_word(engine: &Engine, attempt: &Attempt) -> String {
    let ago = |at: Timestamp| engine.now.since_start().saturating_sub(at.since_start()).as_secs();
    match engine.heard.get(&attempt.stand.seat.node) {
        Some(at) => format!("node {} was last heard of {} s ago", attempt.stand.seat.node, ago(*at)),
        None => format!(
            "node {} was not heard of since this coordinator started",
            attempt.stand.seat.node
        ),
    }
}

/// What a state means of which nobody has said more.
fn phase(state: AttemptState) -> Option<&'static str> {
    match state {
        AttemptState::Pending => Some("permitted, and its node has said nothing of it yet"),
        AttemptState::WaitingWindow => Some("its node waits for a window of the campaign"),
        AttemptState::Blocked => Some("its node says that something is in the way"),
        AttemptState::Downloading => Some("its node fetches the image"),
        AttemptState::Verifying => Some("its node checks the whole image"),
        AttemptState::Staged => Some("the image lies on the device"),
        AttemptState::Installing => Some("the device writes the image"),
        AttemptState::Rebooting => Some("the device restarts"),
        AttemptState::Validating => Some("the device answers again and is checked"),
        _ => None,
    }
}
