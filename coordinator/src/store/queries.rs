//! The statements that one change consists of.

use firmesh_protocol::{
    ids::{CampaignId, DeviceId, Sha256},
    time::WallTime,
};
use serde::Serialize;
use sqlx::query;

use super::{Query, Write};
use crate::{identities::DESTROY, rows::NEXT_VERSION};

/// Rows replace what was stored under the same key, but for what never changes once it is there.
pub(super) fn of_write(write: Write) -> Vec<Query<'static>> {
    let one = |query| vec![query];
    match write {
        Write::Metadata(file, bytes) => one(query(
            "INSERT INTO metadata VALUES ($1, $2) ON CONFLICT (file) DO UPDATE SET bytes = excluded.bytes",
        )
        .bind(file)
        .bind(bytes)),
        Write::DropMetadata(file) => one(query("DELETE FROM metadata WHERE file = $1").bind(file)),
        Write::Trusted(file, bytes) => one(query(
            "INSERT INTO trusted VALUES ($1, $2) ON CONFLICT (file) DO UPDATE SET bytes = excluded.bytes",
        )
        .bind(file)
        .bind(bytes)),
        Write::Manifest(id, bytes) => one(query(
            "INSERT INTO manifests VALUES ($1, $2) ON CONFLICT (campaign) DO UPDATE SET bytes = excluded.bytes",
        )
        .bind(id.to_string())
        .bind(bytes)),
        Write::Restart(id) => forget(&id),
        Write::PermitAgain(permit) => one(query(
            "UPDATE permits SET record = $3 WHERE campaign = $1 AND sequence = $2",
        )
        .bind(permit.campaign.to_string())
        .bind(permit.sequence.cast_signed())
        .bind(text(&permit))),
        // Never twice under one number: then the whole transaction fails.
        Write::Permit(permit) => one(query("INSERT INTO permits VALUES ($1, $2, $3)")
            .bind(permit.campaign.to_string())
            .bind(permit.sequence.cast_signed())
            .bind(text(&permit))),
        Write::Brake(digest, envelope) => one(query(
            "INSERT INTO brakes (sha256, envelope) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(digest.to_string())
        .bind(text(&envelope))),
        Write::Evidence(digest, bytes) => one(query("INSERT INTO evidence VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(digest.to_string())
            .bind(bytes)),
        Write::Revocations { envelope, .. } => one(set_meta("revocations", text(&envelope))),
        // The engine's own records say what became of it; the audit log has who said so.
        Write::Closing { .. } => Vec::new(),
        // Nodes fetch both as they fetch evidence.
        Write::Approval { document, .. } => of_write(Write::Evidence(Sha256::of(&document), document)),
        Write::Rollback {
            order: Some((digest, bytes)),
            ..
        } => of_write(Write::Evidence(digest, bytes)),
        Write::Rollback { order: None, .. } => Vec::new(),
        Write::ApiKey { key, .. } => one(query(
            "INSERT INTO api_keys VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE \
             SET revoked = excluded.revoked, record = excluded.record \
             WHERE api_keys.revoked <= excluded.revoked",
        )
        .bind(key.id.clone())
        .bind(i64::from(key.revoked.is_some()))
        .bind(text(&key))),
        Write::Removal(device, at) => remove(&device, at),
        Write::Erasure(device, at) => erase(&device, at),
        Write::Archived(archive) => one(query(
            "INSERT INTO archived VALUES ($1, $2, 0, $3) ON CONFLICT (campaign) DO UPDATE SET record = excluded.record",
        )
        .bind(archive.campaign.to_string())
        .bind(archive.archived.unix_seconds())
        .bind(text(&archive))),
        // Inserted with the other notices of the transaction, and with the others of their kinds.
        Write::Notice(_)
        | Write::Node(_)
        | Write::Device(_)
        | Write::Campaign(_)
        | Write::Attempt(..)
        | Write::Possession(..)
        | Write::Report(..) => Vec::new(),
        Write::RosterVersion(version) => one(set_meta("roster_version", version.to_string())),
    }
}

fn set_meta(key: &'static str, value: String) -> Query<'static> {
    query("INSERT INTO meta VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        .bind(key)
        .bind(value)
}

fn forget(campaign: &CampaignId) -> Vec<Query<'static>> {
    [
        "DELETE FROM possession WHERE campaign = $1",
        "DELETE FROM attempts WHERE campaign = $1",
        "DELETE FROM permits WHERE campaign = $1",
    ]
    .map(|statement| query(statement).bind(campaign.to_string()))
    .into()
}

/// What is stored of a device but its attempts and reports, and where it is told that it was removed or erased.
const OF_DEVICE: [&str; 5] = [
    "DELETE FROM registrations WHERE device = $1",
    "DELETE FROM self_reports WHERE device = $1",
    "DELETE FROM devices WHERE device = $1",
    "DELETE FROM transcripts WHERE device = $1",
    "DELETE FROM credential_profiles WHERE device = $1",
];

fn remove(device: &DeviceId, at: WallTime) -> Vec<Query<'static>> {
    let name = query(
        "INSERT INTO removed_devices (device, at) VALUES ($1, $2) ON CONFLICT (device) DO UPDATE SET at = excluded.at",
    );
    let name = name.bind(device.to_string()).bind(at.unix_seconds());
    let statements = OF_DEVICE.into_iter().chain(DESTROY);
    let statements = statements.map(|statement| query(statement).bind(device.to_string()));
    std::iter::once(name).chain(statements).collect()
}

fn erase(device: &DeviceId, at: WallTime) -> Vec<Query<'static>> {
    let removed = "DELETE FROM removed_devices WHERE device = $1";
    let name = query("INSERT INTO erased_devices (device, at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(device.to_string())
        .bind(at.unix_seconds());
    let statements = DESTROY.into_iter().chain(OF_DEVICE).chain([removed]);
    let statements = statements.map(|statement| query(statement).bind(device.to_string()));
    // Who registers it meanwhile waits for the same row, and finds its name among those of erased devices.
    [query(NEXT_VERSION), name].into_iter().chain(statements).collect()
}

pub(super) fn text(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("stored records have only names, numbers, text and lists")
}
