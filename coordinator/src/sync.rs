//! One heartbeat of a node: who it is, what its devices are, how its attempts go. Everything signed is verified with the
//! key of the certificate the connection was made with.

use std::time::Duration;

use firmesh_coordinator_core::Input;
use firmesh_protocol::{
    api::{EventKind, SyncRequest, SyncResponse},
    identity::NodeIdentity,
    ids::NodeId,
    limits::NODE_DEVICES_MAX,
    report::{AttemptReport, NODE_RECORD_TYPE, NodeRecord, REPORT_TYPE},
    trust::{EnvelopeError, KeySet, KeySetError},
};
use tracing::warn;

use crate::{
    runtime::{ActionError, Runtime},
    store::{StoredDevice, Write},
    world::NodeState,
};

/// A node is shown to watchers at most so often.
const NODE_EVENT_EVERY: Duration = Duration::from_secs(1);

/// `last_seen` is written down at most so often: it is a courtesy over restarts, not a promise.
const LAST_SEEN_EVERY_S: i64 = 60;

/// Devices that a heartbeat names at most, and texts they have at most.
const TEXT_BYTES_MAX: usize = 256;

/// Why a heartbeat was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// The certificate is not the one in force.
    #[error("the certificate of node {0} is not the one this coordinator issued last: enrol again")]
    NotCurrent(NodeId),
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
    #[error("node {node} names {what}, more than is allowed")]
    TooMuch {
        /// The node.
        node: NodeId,
        /// What.
        what: &'static str,
    },
    /// It could not be made durable.
    #[error(transparent)]
    Action(#[from] ActionError),
}

/// A heartbeat and who sent it.
pub(crate) struct Sync {
    pub(crate) identity: NodeIdentity,
    pub(crate) certificate: Vec<u8>,
    pub(crate) request: SyncRequest,
}

impl Runtime {
    /// Takes a heartbeat in. Reports are acknowledged once they are durable, also those that change nothing.
    pub(crate) async fn sync(&mut self, sync: Sync) -> Result<SyncResponse, SyncError> {
        let Sync {
            identity: NodeIdentity { node: id, path, key },
            certificate,
            request,
        } = sync;
        let not_current = || SyncError::NotCurrent(id.clone());
        let state = self.world.nodes.get(&id).ok_or_else(not_current)?;
        if state.stored.certificate.as_ref() != Some(&certificate) {
            return Err(not_current());
        }
        let keys = KeySet::of("node", 1, [key])?;
        let not_signed = |what| move |source| (what, source);
        let envelope = |(what, source)| SyncError::Envelope {
            node: id.clone(),
            what,
            source,
        };
        let record = request.record.open::<NodeRecord>(&keys, NODE_RECORD_TYPE);
        let record = record
            .map_err(not_signed("node record"))
            .map_err(envelope)?
            .into_inner();
        if record.node != id || record.path != path || record.certificate != hex::encode(&certificate) {
            return Err(SyncError::NotItself {
                node: id,
                what: "node record",
            });
        }
        let (mut reports, mut writes) = (Vec::new(), Vec::new());
        let mut acked = state.stored.acked;
        for signed in request.reports {
            let report = signed.open::<AttemptReport>(&keys, REPORT_TYPE);
            let report = report.map_err(not_signed("report")).map_err(envelope)?.into_inner();
            if report.node != id {
                return Err(SyncError::NotItself {
                    node: id,
                    what: "report",
                });
            }
            if report.sequence > state.stored.acked {
                acked = acked.max(report.sequence);
                writes.push(Write::Report(id.clone(), report.sequence, signed));
                reports.push(report);
            }
        }
        check_bounds(&id, &request.devices, request.holdings.len(), request.banned.len())?;

        let wall = self.clock.wall();
        let mut stored = state.stored.clone();
        let is_newer = |(known, _): &(NodeRecord, _)| record.sequence > known.sequence;
        let mut roster_version = self.world.roster_version;
        if stored.record.as_ref().is_none_or(is_newer) {
            stored.record = Some((record, request.record));
            roster_version += 1;
            writes.push(Write::RosterVersion(roster_version));
        }
        let was_seen = stored.last_seen.map_or(i64::MIN, |seen| seen.unix_seconds());
        stored.last_seen = Some(wall);
        stored.acked = acked;
        if !writes.is_empty() || was_seen.saturating_add(LAST_SEEN_EVERY_S) <= wall.unix_seconds() {
            writes.push(Write::Node(Box::new(stored.clone())));
        }
        let mut devices = Vec::new();
        for facts in request.devices {
            if self.is_taken(&facts.device, &id) {
                warn!(device = %facts.device, node = %id, "device is claimed by two nodes: the first keeps it while it is heard of");
                continue;
            }
            let known = self.world.devices.get(&facts.device);
            let changed = known.is_none_or(|known| known.facts != facts || known.node != id);
            let device = StoredDevice {
                facts,
                node: id.clone(),
                last_seen: wall,
            };
            if changed {
                writes.push(Write::Device(device.clone()));
            }
            devices.push(device);
        }

        let reported = reports.len() as u64;
        self.apply(
            Input::Heard {
                node: id.clone(),
                reports,
            },
            writes,
        )
        .await?;
        self.metrics.syncs.inc();
        self.metrics.reports.inc_by(reported);
        self.world.roster_version = roster_version;
        self.world
            .devices
            .extend(devices.into_iter().map(|device| (device.facts.device.clone(), device)));
        let now = self.clock.now();
        let state = self
            .world
            .nodes
            .entry(id.clone())
            .or_insert_with(|| NodeState::new(stored.clone()));
        state.stored = stored;
        (state.holdings, state.traffic, state.banned) = (request.holdings, request.traffic, request.banned);
        if state.told_at.is_none_or(|told| now.since(told) >= NODE_EVENT_EVERY) {
            state.told_at = Some(now);
            let view = state.view();
            self.events.send(wall, EventKind::Node(view));
        }

        let campaigns = self.world.running_campaigns();
        Ok(SyncResponse {
            reports_acked: acked,
            permits: self.world.permits_for(&id, &request.permits_seen, &campaigns, wall),
            timestamp_version: self.world.published.timestamp_version(),
            campaigns,
            roster: (request.roster_version != roster_version).then(|| self.world.roster()),
            roster_version,
        })
    }
}

fn check_bounds(
    node: &NodeId,
    devices: &[firmesh_protocol::report::DeviceFacts],
    holdings: usize,
    banned: usize,
) -> Result<(), SyncError> {
    let too_much = |what| {
        Err(SyncError::TooMuch {
            node: node.clone(),
            what,
        })
    };
    if devices.len() > NODE_DEVICES_MAX {
        return too_much("devices");
    }
    if holdings > 10_000 || banned > 10_000 {
        return too_much("holdings or banned peers");
    }
    let texts = devices.iter().flat_map(|facts| {
        [
            Some(&facts.vendor),
            Some(&facts.model),
            facts.version.as_ref(),
            Some(&facts.executor),
        ]
    });
    if texts.flatten().any(|text| text.len() > TEXT_BYTES_MAX) {
        return too_much("a vendor, model, version or executor longer than 256 bytes");
    }
    Ok(())
}
