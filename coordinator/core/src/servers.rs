//! Servers of a provisioning campaign: in which phase each is, and its final validation.
//!
//! Invariants: a server is provisioned only when each of its components, those that were current before among them, was read at
//! least [`READ_AFTER`] after the last of them had ended, and runs the version that approvers have signed for; what was found of a
//! server is kept and never found again; nothing is started, held or sent back because of it. A word from a device costs a look at
//! its server, and a word from a node one at those of its servers that are waited for, however many there are.

mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_protocol::{
    api::{CampaignState, ComponentView, Explanation, ProvisioningView, ServerState, ServerView},
    ids::{CampaignId, DeviceId, NodeId},
    manifest::{Analysis, CampaignKind, PlannedComponent, PlannedServer, ProvisioningPhase},
    report::{FailureClass, PermitKind},
    time::Timestamp,
};

use self::waiting::Waiting;
use crate::{
    attempts::{Attempt, Place},
    campaign::{Campaign, bounded},
    engine::Engine,
};

/// How long after the last component has ended the others were surely read again: nodes look at each device every ten seconds,
/// give up on one that does not answer after thirty, and tell within some seconds.
pub const READ_AFTER: Duration = Duration::from_secs(45);

/// How much longer than a restart takes is waited for components that do not answer, or do not yet run what they are to run.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines about servers in an explanation, and in what a campaign decides at its end.
const SERVERS_SHOWN: usize = 200;
const SERVERS_DECIDED: usize = 20;

/// No server: no campaign has so many.
const NONE: u32 = u32::MAX;

/// The servers of a campaign, as the plan has them.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    /// In the order of their names.
    planned: Vec<PlannedServer>,
    /// Of which one the device of an attempt is a component, by the attempt's place.
    of_place: Vec<u32>,
    /// Those of which an attempt has changed since they were looked at last.
    changed: BTreeSet<u32>,
    /// Those in their final validation.
    awaited: Waiting,
    /// How many were looked at so far.
    #[cfg(test)]
    looks: usize,
}

impl Servers {
    /// `place` says where the attempt on a device is, of so many attempts.
    pub(crate) fn new(
        planned: Vec<PlannedServer>,
        attempts: usize,
        place: impl Fn(&DeviceId) -> Option<Place>,
    ) -> Self {
        let mut of_place = match planned.is_empty() {
            true => Vec::new(),
            false => vec![NONE; attempts],
        };
        for (number, server) in (0..).zip(&planned) {
            for place in server.components.iter().filter_map(|one| place(&one.device)) {
                of_place[place as usize] = number;
            }
        }
        Self {
            changed: (0..).take(planned.len()).collect(),
            planned,
            of_place,
            ..Self::default()
        }
    }

    /// An attempt has changed.
    pub(crate) fn touch(&mut self, place: Place) {
        if let Some(number) = self.of_place.get(place as usize).filter(|number| **number != NONE) {
            self.changed.insert(*number);
        }
    }

    fn numbered(&self) -> impl Iterator<Item = (u32, &PlannedServer)> {
        (0..).zip(&self.planned)
    }
}

/// Where a server stands.
struct Stand {
    phase: ProvisioningPhase,
    state: ServerState,
    reason: String,
}

impl Engine {
    /// Whether the final validation of a server waits for what this node reads.
    #[must_use]
    pub fn awaits_reading(&self, node: &NodeId) -> bool {
        let awaits = |campaign: &Campaign| campaign.servers.awaited.at(node).next().is_some();
        self.campaigns.values().any(awaits)
    }

    /// The servers of a provisioning campaign in the order of their names: those after `after`, at most `count`. None of others.
    #[must_use]
    pub fn servers_after(&self, id: &CampaignId, after: Option<&str>, count: usize) -> Option<Vec<ServerView>> {
        let campaign = self.campaigns.get(id)?;
        let planned = &campaign.servers.planned;
        let first = planned.partition_point(|server| after.is_some_and(|after| server.server.as_str() <= after));
        let servers = campaign.servers.numbered().skip(first);
        Some(
            servers
                .take(count)
                .map(|(number, server)| campaign.server_view(number, server))
                .collect(),
        )
    }
}

impl Campaign {
    /// How long after its last component has ended a server has to be read as it is to be.
    fn validated_within(&self) -> Duration {
        READ_AFTER + Duration::from_secs(self.manifest.deadlines.back_s.into()) + PATIENCE
    }

    /// When the first of the final validations ends that nothing is read for.
    pub(crate) fn validations_end(&self) -> Option<Timestamp> {
        let (since, _) = self.servers.awaited.oldest()?;
        Some(since + self.validated_within())
    }

    /// Takes up the final validation of servers whose components have all ended well, drops that of those that go back, and ends
    /// those that have waited for too long.
    pub(crate) fn look_at_servers(&mut self, now: Timestamp) {
        let has_begun = !matches!(
            self.record.state,
            CampaignState::PendingApproval | CampaignState::Scheduled
        );
        if self.manifest.kind == CampaignKind::Update || !has_begun {
            return;
        }
        for number in std::mem::take(&mut self.servers.changed) {
            #[cfg(test)]
            {
                self.servers.looks += 1;
            }
            let server = &self.servers.planned[number as usize];
            match self.awaits(number, server) {
                true => self.servers.awaited.begin(number, &server.node, now),
                false => self.servers.awaited.end(number),
            }
        }
        let within = self.validated_within();
        while let Some((since, number)) = self.servers.awaited.oldest()
            && now >= since + within
        {
            let seen = self
                .servers
                .awaited
                .get(number)
                .and_then(|awaited| awaited.seen.clone());
            let reason = seen.unwrap_or_else(|| {
                let node = &self.servers.planned[number as usize].node;
                format!(
                    "its node {node} has not told what its components run for {} s",
                    within.as_secs()
                )
            });
            self.validated(number, Some(bounded(&reason)));
        }
    }

    /// Whether all that is done to a server has ended well, and it is not yet known what came of it.
    fn awaits(&self, number: u32, server: &PlannedServer) -> bool {
        let has_arrived = |one: &PlannedComponent| {
            let attempt = self.attempts.get(&one.device);
            attempt.is_some_and(|attempt| self.has_arrived(&attempt))
        };
        server.held.is_none() && !self.record.validated.contains_key(&number) && server.due().all(has_arrived)
    }

    /// Takes in what a node has read of its devices.
    pub(crate) fn read(&mut self, now: Timestamp, node: &NodeId, versions: &BTreeMap<DeviceId, Option<String>>) {
        let at_node: Vec<_> = self.servers.awaited.at(node).collect();
        for number in at_node {
            let server = &self.servers.planned[number as usize];
            let wrong = server.components.iter().find_map(|one| problem(one, versions));
            let Some(awaited) = self.servers.awaited.get_mut(number) else {
                continue;
            };
            if now < awaited.since + READ_AFTER {
                continue;
            }
            match wrong {
                None => self.validated(number, None),
                // A BMC that has restarted may need a while more.
                Some(wrong) => awaited.seen = Some(wrong),
            }
        }
    }

    fn validated(&mut self, number: u32, wrong: Option<String>) {
        self.servers.awaited.end(number);
        self.record.validated.insert(number, wrong);
        self.is_dirty = true;
        self.index.is_changed = true;
    }

    /// How many servers are in their final validation.
    pub(crate) fn in_validation(&self) -> usize {
        self.servers.awaited.len()
    }

    fn has_arrived(&self, attempt: &Attempt) -> bool {
        let record = &attempt.record;
        record.kind == PermitKind::Update && record.state.is_success() && !self.ended_badly(attempt)
    }

    fn stand(&self, number: u32, server: &PlannedServer) -> Stand {
        if let Some(held) = &server.held {
            return Stand {
                phase: held.phase,
                state: ServerState::Held,
                reason: held.reason.clone(),
            };
        }
        let attempts = server
            .due()
            .filter_map(|one| Some((one, self.attempts.get(&one.device)?)));
        let mut begun = false;
        for (one, attempt) in attempts {
            let phase = ProvisioningPhase::of(&one.component);
            let record = &attempt.record;
            let told = |verb: &str| {
                let reason = match record.reason.is_empty() {
                    true => String::new(),
                    false => format!(": {}", record.reason),
                };
                bounded(&format!("{} {verb}{reason}", one.device))
            };
            if record.kind == PermitKind::Rollback {
                let state = ServerState::NotProvisioned;
                let reason = told(&format!("was sent back, and is {}", record.state));
                return Stand { phase, state, reason };
            }
            if self.has_arrived(&attempt) {
                begun = true;
                continue;
            }
            if record.state.is_terminal() {
                let phase = match record.failure {
                    Some(FailureClass::Preflight) => ProvisioningPhase::Preflight,
                    _ => phase,
                };
                let state = ServerState::NotProvisioned;
                let reason = match record.state.is_success() {
                    true => format!("{} was not well after its update", one.device),
                    false => told(&format!("ended as {}", record.state)),
                };
                return Stand { phase, state, reason };
            }
            if attempt.is_running() {
                let state = ServerState::UnderWay;
                let reason = told(&format!("is {}", record.state));
                return Stand { phase, state, reason };
            }
            return Stand {
                phase: if begun { phase } else { ProvisioningPhase::Preflight },
                state: if begun {
                    ServerState::UnderWay
                } else {
                    ServerState::Waiting
                },
                reason: told("has not begun"),
            };
        }
        let phase = ProvisioningPhase::FinalValidation;
        let (state, reason) = match self.record.validated.get(&number) {
            Some(None) => (ServerState::Provisioned, String::new()),
            Some(Some(wrong)) => (ServerState::NotProvisioned, wrong.clone()),
            None => match self.servers.awaited.get(number) {
                // Also in the moment after a restart.
                None => {
                    let state = if begun {
                        ServerState::UnderWay
                    } else {
                        ServerState::Waiting
                    };
                    (state, "its components are still to be read once more".to_owned())
                }
                Some(awaited) => {
                    let seen = awaited.seen.clone();
                    let reason = seen.unwrap_or_else(|| "its components are read once more".to_owned());
                    (ServerState::UnderWay, reason)
                }
            },
        };
        Stand { phase, state, reason }
    }

    fn server_view(&self, number: u32, server: &PlannedServer) -> ServerView {
        let Stand { phase, state, reason } = self.stand(number, server);
        let component = |one: &PlannedComponent| {
            let attempt = self.attempts.get(&one.device);
            let of_attempt = attempt.as_ref().and_then(|attempt| attempt.record.version.clone());
            let (over, why) = match &one.analysis {
                Analysis::Due { over } => (over.clone(), None),
                Analysis::Unfit { reason } => (Vec::new(), Some(reason.clone())),
                Analysis::Current {} => (Vec::new(), None),
            };
            ComponentView {
                device: one.device.clone(),
                component: one.component.clone(),
                phase: ProvisioningPhase::of(&one.component),
                from: one.from.clone(),
                over,
                to: one.to.clone(),
                current: matches!(one.analysis, Analysis::Current {}),
                state: attempt.as_ref().map(|attempt| attempt.record.state),
                version: of_attempt.or_else(|| one.from.clone()),
                reason: why
                    .or_else(|| attempt.map(|attempt| attempt.record.reason.clone()))
                    .unwrap_or_default(),
            }
        };
        ServerView {
            server: server.server.clone(),
            node: server.node.clone(),
            phase,
            state,
            reason,
            components: server.components.iter().map(component).collect(),
        }
    }

    /// How its servers stand, if it is for provisioning.
    pub(crate) fn provisioning(&self) -> Option<ProvisioningView> {
        if self.manifest.kind == CampaignKind::Update {
            return None;
        }
        let mut view = ProvisioningView::default();
        for (number, server) in self.servers.numbered() {
            let Stand { phase, state, .. } = self.stand(number, server);
            view.servers += 1;
            *view.states.entry(state).or_default() += 1;
            *view.phases.entry(phase).or_default() += 1;
        }
        Some(view)
    }

    /// What is said at the end of a provisioning campaign: whether all that was not held is provisioned, and who is not.
    pub(crate) fn provisioned(&self) -> Option<(bool, String, Vec<String>)> {
        let ProvisioningView { servers, states, .. } = self.provisioning()?;
        let count = |state| states.get(&state).copied().unwrap_or_default();
        let (held, done) = (count(ServerState::Held), count(ServerState::Provisioned));
        let left = servers - held - done;
        let told = self
            .servers
            .numbered()
            .map(|(number, server)| (server, self.stand(number, server)));
        let missed = told.filter(|(_, stand)| !matches!(stand.state, ServerState::Held | ServerState::Provisioned));
        let lines = missed
            .take(SERVERS_DECIDED)
            .map(|(server, Stand { phase, reason, .. })| format!("{} in {phase}: {reason}", server.server))
            .collect();
        let of_held = match held {
            0 => String::new(),
            _ => format!("; {held} were held by the plan"),
        };
        let reason = match left {
            0 => format!("all {done} servers are provisioned{of_held}"),
            _ => format!("{left} of {} servers are not provisioned{of_held}", left + done),
        };
        Some((left == 0, reason, lines))
    }

    /// In which phase the server of a device is.
    pub(crate) fn server_evidence(&self, device: &DeviceId) -> Option<String> {
        let mut servers = self.servers.numbered();
        let of_attempt = self.attempts.place(device);
        let of_attempt = of_attempt.and_then(|place| self.servers.of_place.get(place as usize));
        let (number, server) = match of_attempt {
            Some(number) => servers.nth(*number as usize)?,
            // Nothing is done to it: it is current, or its server is held.
            None => servers.find(|(_, server)| server.components.iter().any(|one| one.device == *device))?,
        };
        Some(line(server, &self.stand(number, server)))
    }

    /// The servers that are not provisioned, each with where it stands.
    pub(crate) fn explain_servers(&self) -> Option<Explanation> {
        let ProvisioningView { servers, states, .. } = self.provisioning()?;
        let told = self
            .servers
            .numbered()
            .map(|(number, server)| (server, self.stand(number, server)));
        let open: Vec<_> = told
            .filter(|(_, stand)| stand.state != ServerState::Provisioned)
            .collect();
        let mut evidence: Vec<_> = open
            .iter()
            .take(SERVERS_SHOWN)
            .map(|(server, stand)| line(server, stand))
            .collect();
        if open.len() > SERVERS_SHOWN {
            evidence.push(format!("and {} more", open.len() - SERVERS_SHOWN));
        }
        let done = states.get(&ServerState::Provisioned).copied().unwrap_or_default();
        Some(Explanation {
            subject: "servers".to_owned(),
            finding: format!("{done} of {servers} are provisioned"),
            evidence,
        })
    }
}

fn line(server: &PlannedServer, stand: &Stand) -> String {
    let Stand { phase, state, reason } = stand;
    let colon = if reason.is_empty() { "" } else { ": " };
    format!(
        "server {} is {state}, phase {} of {} ({phase}){colon}{reason}",
        server.server,
        phase.number(),
        ProvisioningPhase::ALL.len()
    )
}

/// What is not as it is to be of a component.
fn problem(one: &PlannedComponent, versions: &BTreeMap<DeviceId, Option<String>>) -> Option<String> {
    match versions.get(&one.device) {
        Some(Some(version)) if *version == one.to => None,
        Some(Some(version)) => Some(format!("{} runs {version}, and is to run {}", one.device, one.to)),
        Some(None) => Some(format!("{} does not answer", one.device)),
        None => Some(format!("its node does not tell of {}", one.device)),
    }
}

#[cfg(test)]
mod tests;
