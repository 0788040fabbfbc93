//! Writes of one transaction that come in hundreds: they wait, so that one statement takes many, and of those that replace each
//! other the last one counts.
//!
//! They are of tables of their own, so their order among the other writes does not matter, but for a campaign that begins
//! anew: that takes away what was stored before.

use std::collections::BTreeMap;

use firmesh_coordinator_core::{AttemptRecord, CampaignRecord, PossessionRecord};
use firmesh_protocol::ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256};
use serde::Serialize;
use sqlx::AnyConnection;

use super::{
    Write,
    bulk::{Bulk, Value},
    queries::text,
    records::{StoredDevice, StoredNode},
};

#[derive(Debug, Default)]
pub(super) struct Pending {
    nodes: BTreeMap<NodeId, Box<StoredNode>>,
    devices: BTreeMap<DeviceId, StoredDevice>,
    campaigns: BTreeMap<CampaignId, CampaignRecord>,
    attempts: BTreeMap<(CampaignId, DeviceId), AttemptRecord>,
    possession: BTreeMap<(CampaignId, NodeId, ArtifactId), PossessionRecord>,
    reports: Vec<[Value; 4]>,
}

impl Pending {
    /// Keeps a write, or hands it back: it is not of a kind that waits.
    pub(super) fn take(&mut self, write: Write) -> Option<Write> {
        match write {
            Write::Node(node) => drop(self.nodes.insert(node.node.clone(), node)),
            Write::Device(device) => drop(self.devices.insert(device.facts.device.clone(), device)),
            Write::Campaign(record) => drop(self.campaigns.insert(record.id.clone(), record)),
            Write::Attempt(id, record) => drop(self.attempts.insert((id, record.device.clone()), record)),
            Write::Possession(id, record) => {
                self.possession
                    .insert((id, record.node.clone(), record.artifact), record);
            }
            Write::Report(report, envelope) => {
                let envelope = text(&envelope);
                self.reports.push([
                    Value::Text(report.node.to_string()),
                    Value::Integer(report.sequence.cast_signed()),
                    Value::Text(Sha256::of(envelope.as_bytes()).to_string()),
                    Value::Text(envelope),
                ]);
            }
            other => return Some(other),
        }
        None
    }

    /// Carries out what waits.
    pub(super) async fn insert(&mut self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        let Self {
            nodes,
            devices,
            campaigns,
            attempts,
            possession,
            reports,
        } = std::mem::take(self);
        let nodes = nodes.iter().map(|(id, node)| [of(id), record(node)]);
        let conflict = "ON CONFLICT (node) DO UPDATE SET record = excluded.record";
        Bulk::of("INSERT INTO nodes", conflict, nodes)
            .insert(connection)
            .await?;
        let devices = devices.iter().map(|(id, device)| [of(id), record(device)]);
        let conflict = "ON CONFLICT (device) DO UPDATE SET record = excluded.record";
        Bulk::of("INSERT INTO devices", conflict, devices)
            .insert(connection)
            .await?;
        let campaigns = campaigns.iter().map(|(id, campaign)| [of(id), record(campaign)]);
        let conflict = "ON CONFLICT (campaign) DO UPDATE SET record = excluded.record";
        Bulk::of("INSERT INTO campaigns", conflict, campaigns)
            .insert(connection)
            .await?;
        let attempts = (attempts.iter()).map(|((id, device), attempt)| [of(id), of(device), record(attempt)]);
        let conflict = "ON CONFLICT (campaign, device) DO UPDATE SET record = excluded.record";
        Bulk::of("INSERT INTO attempts", conflict, attempts)
            .insert(connection)
            .await?;
        let possession = possession
            .iter()
            .map(|((id, node, artifact), possession)| [of(id), of(node), of(artifact), record(possession)]);
        let conflict = "ON CONFLICT (campaign, node, artifact) DO UPDATE SET record = excluded.record";
        Bulk::of("INSERT INTO possession", conflict, possession)
            .insert(connection)
            .await?;
        Bulk::of("INSERT INTO reports", "ON CONFLICT DO NOTHING", reports)
            .insert(connection)
            .await
    }
}

fn of(name: &impl ToString) -> Value {
    Value::Text(name.to_string())
}

fn record(record: &impl Serialize) -> Value {
    Value::Text(text(record))
}
