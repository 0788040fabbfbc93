//! One heartbeat of a node: who it is, what its devices are, how its attempts go. Everything signed is verified with the
//! key of the certificate the connection was made with.

use std::{collections::BTreeMap, time::Duration};

use firmesh_coordinator_core::Input;
use firmesh_protocol::{
    api::{EventKind, SyncRequest, SyncResponse},
    brake::BRAKES_MAX,
    identity::NodeIdentity,
    ids::NodeId,
    limits::{ANSWERS_MAX, AUDIT_HEARD_MAX, FEEDERS_MAX, NODE_DEVICES_MAX},
    report::{AttemptReport, DeviceFacts, Facts, NODE_RECORD_TYPE, NodeRecord, REPORT_TYPE},
    trust::{Envelope, EnvelopeError, KeySet, KeySetError, PublicKey},
};
use tracing::{debug, error, warn};

use crate::{
    change::{Change, not_stored},
    roster::Told,
    runtime::{ActionError, Reply, Runtime},
    store::{StoredDevice, Write},
    telemetry::{Metrics, chain},
    world::{NodeState, World},
};

/// A node is shown to watchers at most so often.
const NODE_EVENT_EVERY: Duration = Duration::from_secs(1);

/// `last_seen` is written down at most so often: it is a courtesy over restarts, not a promise.
const LAST_SEEN_EVERY_S: i64 = 60;

/// Texts of a device, and reasons for a ban, are this long at most.
const TEXT_BYTES_MAX: usize = 256;

/// Reports that a heartbeat brings at most: nodes send 200.
const REPORTS_MAX: usize = 1_000;

/// Artifacts that a node tells of, and peers it has banned, at most.
const HOLDINGS_MAX: usize = 1_000;

/// A report has a reason and a version in it, which its node has shortened.
const REPORT_BYTES_MAX: usize = 32 << 10;

/// A record is a certificate and two addresses; everybody gets it.
const RECORD_BYTES_MAX: usize = 16 << 10;

/// Why a heartbeat was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// The certificate is not the one in force.
    #[error("the certificate of node {0} is not the one this coordinator issued last: enrol again")]
    NotCurrent(NodeId),
    /// The key was revoked.
    #[error("the key of node {0} was revoked")]
    Revoked(NodeId),
    /// The key cannot be used.
    #[error("the certificate's key cannot be used")]
    Key(#[from] KeySetError),
    /// An envelope does not verify.
    #[error("the {what} is not signed by node {node}")]
    Envelope {
        /// The node.
        node: NodeId,
        /// `node record` or `report`.
        what: &'static str,
        /// Why not.
        source: EnvelopeError,
    },
    /// A document about somebody else.
    #[error("the {what} does not speak for node {node}, its path and its certificate")]
    NotItself {
        /// The node.
        node: NodeId,
        /// `node record` or `report`.
        what: &'static str,
    },
    /// More than a node may have.
    #[error("node {node} sends {count} {what}, at most {most} are taken")]
    TooMuch {
        /// The node.
        node: NodeId,
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many it may.
        most: usize,
    },
    /// It could not be made durable.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The same, together with others.
    #[error("the heartbeat could not be stored, and is to be sent again")]
    NotStored,
}

/// A heartbeat, verified with the key of the certificate that the connection was made with. Whether that certificate is
/// in force is known to the [`World`].
pub(crate) struct Heartbeat {
    identity: NodeIdentity,
    certificate: Vec<u8>,
    record: (NodeRecord, Envelope),
    reports: Vec<(AttemptReport, Envelope)>,
    request: SyncRequest,
}

impl Heartbeat {
    /// How much it brings, in reports: devices that are told of again cost little.
    pub(crate) fn weight(&self) -> usize {
        self.reports.len() + self.request.devices.len() / 10
    }

    /// Verifies everything signed: some milliseconds for many reports.
    pub(crate) fn verify(
        identity: NodeIdentity,
        certificate: Vec<u8>,
        mut request: SyncRequest,
    ) -> Result<Self, SyncError> {
        let id = &identity.node;
        check_bounds(id, &request)?;
        let keys = KeySet::of("node", 1, [identity.key])?;
        let not_signed = |what| {
            move |source| SyncError::Envelope {
                node: id.clone(),
                what,
                source,
            }
        };
        let record = request.record.open::<NodeRecord>(&keys, NODE_RECORD_TYPE);
        let record = record.map_err(not_signed("node record"))?.into_inner();
        let not_itself = |what| SyncError::NotItself { node: id.clone(), what };
        if record.node != *id || record.path != identity.path {
            return Err(not_itself("node record"));
        }
        let mut reports = Vec::new();
        for signed in std::mem::take(&mut request.reports) {
            let report = signed.open::<AttemptReport>(&keys, REPORT_TYPE);
            let report = report.map_err(not_signed("report"))?.into_inner();
            if report.node != *id {
                return Err(not_itself("report"));
            }
            reports.push((report, signed));
        }
        Ok(Self {
            record: (record, request.record.clone()),
            identity,
            certificate,
            reports,
            request,
        })
    }
}

/// What is left to do for a heartbeat once it is durable.
#[derive(Debug)]
pub(crate) struct Heard {
    node: NodeId,
    /// The roster that is durable with it.
    roster_version: u64,
    acked: u64,
    /// The reports that were new.
    told: Vec<AttemptReport>,
    request: SyncRequest,
}

impl Heard {
    /// Measures what was reported, once it is durable, and before the end of a campaign that follows from it is told.
    pub(crate) fn measure(&self, metrics: &Metrics) {
        self.told.iter().for_each(|report| metrics.fleet.report(report));
    }
}

impl Runtime {
    /// Takes heartbeats in, each by itself, and begins to make them durable together. Reports are acknowledged once they are
    /// durable, also those that change nothing.
    pub(crate) async fn hear(&mut self, heartbeats: Vec<(Heartbeat, Reply<SyncResponse, SyncError>)>) {
        let (mut change, mut waiting) = (Change::default(), Vec::with_capacity(heartbeats.len()));
        for (heartbeat, reply) in heartbeats {
            if self.fatal.is_some() {
                drop(reply.send(Err(SyncError::NotStored)));
                continue;
            }
            self.grant_looks();
            match self.take_in(heartbeat, &mut change).await {
                Ok(heard) => waiting.push((heard, reply)),
                Err(refused) => {
                    if let SyncError::Action(_) = refused {
                        // The world was taken back, and with it what was heard before.
                        change = Change::default();
                        not_stored(waiting.drain(..));
                    }
                    drop(reply.send(Err(refused)));
                }
            }
        }
        if self.fatal.is_some() {
            not_stored(waiting.drain(..));
        } else if let Err(failure) = self.begin(change, waiting).await {
            debug!(error = %chain(&failure), "what was decided behind a change that failed was dropped");
        }
    }

    /// Takes one heartbeat into the world, and what is to be stored of it into the change.
    async fn take_in(&mut self, heartbeat: Heartbeat, change: &mut Change) -> Result<Heard, SyncError> {
        let Heartbeat {
            identity: NodeIdentity { node: id, key, .. },
            certificate,
            record: (record, signed_record),
            reports: signed_reports,
            mut request,
        } = heartbeat;
        let state = self.world.member(&id, key, &certificate)?;
        // The record may come with the new certificate over a connection that was made with the one before.
        let certified = hex::decode(&record.certificate);
        if !certified.is_ok_and(|certified| state.stored.has(&certified)) {
            return Err(SyncError::NotItself {
                node: id,
                what: "node record",
            });
        }
        let (mut reports, mut writes) = (Vec::new(), Vec::new());
        let mut acked = state.stored.acked;
        for (report, signed) in signed_reports {
            if report.sequence > state.stored.acked {
                acked = acked.max(report.sequence);
                writes.push(Write::Report(Box::new(report.clone()), signed));
                reports.push(report);
            }
        }

        let wall = self.clock.wall();
        let mut stored = state.stored.clone();
        let is_newer = |(known, _): &(NodeRecord, _)| record.sequence > known.sequence;
        let mut is_in_roster_since = None;
        if stored.record.as_ref().is_none_or(is_newer) {
            let stood = stored.record.take().map(|(record, _)| record.path);
            let version = self.world.roster_version + 1;
            is_in_roster_since = Some((version, stood, record.path.clone()));
            stored.record = Some((record, signed_record));
            writes.push(Write::RosterVersion(version));
        }
        let was_seen = stored.last_seen.map_or(i64::MIN, |seen| seen.unix_seconds());
        stored.last_seen = Some(wall);
        // The new certificate has arrived: the one before it is good for nothing any more.
        let is_renewed =
            stored.certificate.as_ref() == Some(&certificate) && stored.certificate_before.take().is_some();
        stored.acked = acked;
        if is_renewed || !writes.is_empty() || was_seen.saturating_add(LAST_SEEN_EVERY_S) <= wall.unix_seconds() {
            writes.push(Write::Node(Box::new(stored.clone())));
        }
        let (mut devices, mut unchanged) = (Vec::new(), Vec::new());
        let mut read = self.world.engine.awaits_reading(&id).then(BTreeMap::new);
        for facts in std::mem::take(&mut request.devices) {
            // One device that answers nonsense must not silence its node.
            if !is_bounded(&facts) {
                warn!(device = %facts.device, node = %id, "device tells a text of more than {TEXT_BYTES_MAX} bytes: left out");
                continue;
            }
            // Its node has not heard yet that nobody is to know of it.
            if self.world.erased.contains(&facts.device) {
                debug!(device = %facts.device, node = %id, "an erased device is told of: left out");
                continue;
            }
            if self.is_taken(&facts.device, &id) {
                warn!(device = %facts.device, node = %id, "device is claimed by two nodes: the first keeps it while it is heard of");
                continue;
            }
            if let Some(read) = &mut read {
                read.insert(facts.device.clone(), facts.version.clone());
            }
            let known = self.world.devices.get(&facts.device);
            if known.is_some_and(|known| known.facts == Facts::from(&facts) && *known.node == id) {
                unchanged.push(facts.device);
                continue;
            }
            let device = StoredDevice {
                facts,
                node: id.clone(),
                last_seen: wall,
            };
            writes.push(Write::Device(device.clone()));
            devices.push(device);
        }

        // Memory runs ahead of the disk from here on: if the change is not stored, the world is read back.
        devices.into_iter().for_each(|device| self.world.devices.keep(device));
        unchanged
            .iter()
            .for_each(|device| self.world.devices.seen(device, wall));
        let state = self.world.nodes.entry(id.clone());
        let state = state.or_insert_with(|| NodeState::new(stored.clone()));
        state.stored = stored;
        if let Some((version, stood, stands)) = is_in_roster_since {
            let paths = [stood.as_ref(), Some(&stands)];
            self.world.roster_is(version, id.clone(), paths);
        }
        change.writes.append(&mut writes);
        let (node, told) = (id.clone(), reports.clone());
        self.decide(Input::Heard { node, reports }, change).await?;
        if let Some(versions) = read {
            let node = id.clone();
            self.decide(Input::Read { node, versions }, change).await?;
        }
        Ok(Heard {
            node: id,
            roster_version: self.world.roster_version,
            acked,
            told,
            request,
        })
    }

    /// Tells who watches, and the node what there is for it: all of it is durable.
    pub(crate) fn answer(&mut self, heard: Heard) -> SyncResponse {
        let Heard {
            node: id,
            roster_version,
            acked,
            told,
            request,
        } = heard;
        let reported = told.len() as u64;
        self.metrics.syncs.inc();
        self.metrics.reports.inc_by(reported);
        for report in told.iter().filter(|report| report.state.is_terminal()) {
            self.metrics.attempt_ended(report.kind, report.state);
        }
        let (now, wall) = (self.clock.now(), self.clock.wall());
        if let Some(state) = self.world.nodes.get_mut(&id) {
            // What a node moved before it was first heard of here was counted before, or is not known.
            if state.told_at.is_some() {
                self.metrics.moved(&state.traffic, &request.traffic);
            }
            if let Some(last) = state.heard_at.replace(now) {
                let (before, held) = (&state.holdings, &request.holdings);
                self.metrics
                    .fleet
                    .holdings(&mut state.collecting, before, held, (last, now));
            }
            (state.holdings, state.traffic, state.banned) = (request.holdings, request.traffic, request.banned);
            state.feeders = request.feeders.into_boxed_slice();
            state.banned.values_mut().for_each(shorten);
            let mut accusation = request.audit.fork;
            accusation.iter_mut().for_each(shorten);
            if let Some(reason) = accusation.as_ref().filter(|_| state.audit_fork != accusation) {
                error!(node = %id, reason, "a node does not believe the audit log any more, and starts nothing");
            }
            state.audit_fork = accusation;
            if state.told_at.is_none_or(|told| now.since(told) >= NODE_EVENT_EVERY) {
                state.told_at = Some(now);
                let view = state.view();
                self.events.send(wall, EventKind::Node(view));
            }
        }
        // Pulled in turn, not here: that is a change of its own. Who passes on more than that does so again.
        let room = BRAKES_MAX.saturating_sub(self.passed_on.len());
        let brakes = request.brakes.into_iter().take(room);
        self.passed_on.extend(brakes.map(|brake| (id.clone(), brake)));

        let campaigns = self.world.running_campaigns();
        let told = self.world.nodes.get(&id).map(|state| {
            let (path, before) = (&state.stored.path, state.told_of_changes_since);
            self.world
                .roster_for(path, (request.roster_version, roster_version), before)
        });
        let (roster, roster_changes) = match told {
            Some(Told::All(records)) => (Some(records), None),
            Some(Told::Changes(changes)) => (None, Some(changes)),
            Some(Told::Nothing) | None => (None, None),
        };
        if let Some(state) = self.world.nodes.get_mut(&id) {
            state.told_of_changes_since = roster_changes.as_ref().map(|changes| changes.since);
        }
        SyncResponse {
            reports_acked: acked,
            permits: self.world.permits_for(&id, &request.permits_seen, &campaigns, wall),
            traces: self.traces.hints(&campaigns),
            timestamp_version: self.world.published.timestamp_version(),
            campaigns,
            roster,
            roster_changes,
            roster_version,
            // The listener adds it, from what is durable by then.
            audit: None,
            brakes: (request.brakes_version != self.world.brakes.version())
                .then(|| self.world.brakes.all().map(|(_, envelope)| envelope.clone()).collect()),
            brakes_version: self.world.brakes.version(),
            revocations: (request.revocations_version < self.world.revocations.list.version)
                .then(|| self.world.revocations.envelope.clone())
                .flatten(),
            challenges: self.challenges_for(&id),
            wants_feeders: true,
        }
    }
}

impl World {
    /// The node that speaks, if its certificate is in force.
    pub(crate) fn member(&self, id: &NodeId, key: PublicKey, certificate: &[u8]) -> Result<&NodeState, SyncError> {
        if self.revocations.list.contains(&key) {
            return Err(SyncError::Revoked(id.clone()));
        }
        let state = self.nodes.get(id).filter(|state| state.stored.has(certificate));
        state.ok_or_else(|| SyncError::NotCurrent(id.clone()))
    }
}

/// Before anything is verified, so that it costs little.
fn check_bounds(node: &NodeId, request: &SyncRequest) -> Result<(), SyncError> {
    let bounds = [
        ("devices", request.devices.len(), NODE_DEVICES_MAX),
        ("reports", request.reports.len(), REPORTS_MAX),
        ("holdings", request.holdings.len(), HOLDINGS_MAX),
        ("banned peers", request.banned.len(), HOLDINGS_MAX),
        ("checkpoints heard", request.audit.heard.len(), AUDIT_HEARD_MAX),
        ("brakes", request.brakes.len(), BRAKES_MAX),
        ("feeders", request.feeders.len(), FEEDERS_MAX),
        ("answers to challenges", request.possession.len(), ANSWERS_MAX),
        (
            "bytes of a report",
            request
                .reports
                .iter()
                .map(|report| report.to_bytes().len())
                .max()
                .unwrap_or_default(),
            REPORT_BYTES_MAX,
        ),
        ("bytes of its record", request.record.to_bytes().len(), RECORD_BYTES_MAX),
    ];
    match bounds.into_iter().find(|(_, count, most)| count > most) {
        None => Ok(()),
        Some((what, count, most)) => Err(SyncError::TooMuch {
            node: node.clone(),
            what,
            count,
            most,
        }),
    }
}

fn is_bounded(facts: &DeviceFacts) -> bool {
    let version = facts.version.as_deref().unwrap_or_default();
    let texts = [facts.vendor.as_str(), &facts.model, version, &facts.executor];
    texts.iter().all(|text| text.len() <= TEXT_BYTES_MAX)
}

fn shorten(text: &mut String) {
    let end = (0..=text.len().min(TEXT_BYTES_MAX))
        .rev()
        .find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
}
