//! Why a campaign, a wave or a device stands where it stands: what was decided, then what is waited for.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    api::{CampaignState, Explanation, PossessionView},
    health::DeviceHealth,
    ids::{CampaignId, DeviceId},
    report::PermitKind,
};

use crate::{
    attempts::Attempt,
    campaign::{Campaign, targets},
    engine::Engine,
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
        let device = |device: &DeviceId| explain_device(self, campaign, &campaign.attempts[device]);
        match subject {
            Subject::Campaign => {
                let mut found = vec![Explanation {
                    subject: format!("campaign {id}"),
                    finding: campaign.record.reason.clone(),
                    evidence: tally(campaign, |_| true)
                        .into_iter()
                        .chain(possession(campaign))
                        .collect(),
                }];
                found.extend(campaign.record.decisions.iter().cloned());
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
                let planned = campaign.plan.waves.get(*wave as usize)?;
                let subject = format!("wave {wave}");
                let finding = match campaign.record.gates.get(*wave as usize) {
                    None => "not open: the wave before it has not passed its gate".to_owned(),
                    Some(gate) => format!("open, its gate says {gate:?}"),
                };
                let evidence = tally(campaign, |attempt| attempt.wave == *wave);
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
                        .iter()
                        .take(DEVICES_SHOWN)
                        .map(|planned| device(&planned.device)),
                );
                Some(found)
            }
            Subject::Device(id) if campaign.attempts.contains(id) => Some(vec![device(id)]),
            Subject::Device(id) => {
                let held = campaign.plan.held.iter().find(|held| held.device == *id)?;
                Some(vec![Explanation {
                    subject: format!("device {id}"),
                    finding: "held back by the plan".to_owned(),
                    evidence: vec![held.reason.clone()],
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
        let found = late(fleet.filter(is_asked), &campaign.manifest, &campaign.plan);
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
    let wave = campaign.plan.waves.get(attempt.wave as usize).into_iter().flatten();
    let planned = wave.filter(|planned| planned.device == attempt.record.device);
    let missing: BTreeSet<_> = campaign.possession.unproven(&attempt.node).collect();
    let mut targets: Vec<_> = planned.flat_map(targets).collect();
    targets.retain(|target| missing.contains(&campaign.images[*target].id));
    let wrong: BTreeMap<_, _> = campaign.possession.wrong_proofs(&attempt.node).collect();
    for target in &targets {
        if let Some(count) = wrong.get(&campaign.images[*target].id) {
            evidence.push(format!("{WRONG_PROOF}: {count} by node {} for {target}", attempt.node));
        }
    }
    let targets: Vec<_> = targets.into_iter().map(String::as_str).collect();
    format!(
        "waits: {AWAITING}: node {} has not proven that it holds {}",
        attempt.node,
        targets.join(", ")
    )
}

fn explain_device(engine: &Engine, campaign: &Campaign, attempt: &Attempt) -> Explanation {
    let record = &attempt.record;
    let mut evidence = vec![format!(
        "wave {}, rack {}, node {}",
        attempt.wave, attempt.rack, attempt.node
    )];
    if let Some(version) = &record.version {
        evidence.push(format!("runs {version}"));
    }
    if let Some(sequence) = record.permit {
        evidence.push(format!("named by permit {sequence}"));
    }
    match record.health {
        Some(DeviceHealth::Breached) => evidence.push("was not well after its update".to_owned()),
        Some(DeviceHealth::Unknown) => {
            evidence.push("its health after the update is not known: the gate does not pass on it".to_owned());
        }
        Some(DeviceHealth::Healthy) | None => {}
    }
    if !attempt.can_go_back {
        evidence.push("has no way back: its release is one-way, or no previous release fits".to_owned());
    }
    let waits = attempt.is_untouched() || campaign.must_go_back(attempt);
    let finding = match (waits, record.reason.is_empty()) {
        (true, _) => waiting_for(engine, campaign, attempt, &mut evidence),
        (false, true) => record.state.to_string(),
        (false, false) => format!("{}: {}", record.state, record.reason),
    };
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
        return format!("waits: the campaign is {state:?}");
    }
    if state == CampaignState::RollingBack && attempt.is_untouched() {
        return "waits: other devices of the campaign are going back, then somebody has to resume it".to_owned();
    }
    if attempt.wave as usize >= campaign.record.gates.len() {
        return format!("waits: wave {} is not open", attempt.wave);
    }
    let device = &attempt.record.device;
    if load.contains(device) {
        let other = engine
            .all()
            .find(|other| other.attempts.get(device).is_some_and(Attempt::is_running));
        let other = other.map_or_else(
            || "another campaign".to_owned(),
            |other| format!("campaign {}", other.record.id),
        );
        return format!("waits: {other} has it in flight");
    }
    if state == CampaignState::Active && !attempt.is_proven {
        return unproven(campaign, attempt, evidence);
    }
    let kind = match state {
        CampaignState::Active => PermitKind::Update,
        _ => PermitKind::Rollback,
    };
    if !campaign.is_turn(attempt, kind) {
        return match (kind, &attempt.after, &attempt.next) {
            (PermitKind::Update, Some(before), _) => {
                format!("waits: {before}, which comes before it in its unit, has not ended well yet")
            }
            (_, _, next) => format!(
                "waits: {}, which comes after it in its unit, has not gone back yet",
                next.as_ref().map_or("another device", DeviceId::as_str)
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
    let (per_rack, total) = load.caps(attempt.rack_number, &campaign.manifest.caps);
    let in_rack: Vec<_> = load.of_rack(attempt.rack_number).collect();
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
    format!(
        "waits: {} devices are in flight, the cap is {total} in all",
        load.total()
    )
}
