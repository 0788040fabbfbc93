//! The map in the database: `registrations.identity`, `identity_keys`, `identity_digests`.

use std::collections::BTreeMap;

use firmesh_coordinator_core::Field;
use firmesh_protocol::{api::Registration, ids::DeviceId};
use sqlx::AnyConnection;
use tracing::info;
use zeroize::Zeroizing;

use super::{
    Identity,
    seal::{Key, NotOpened},
};
use crate::{
    rows::{text, unreadable},
    store::{Bulk, RowError, Store, StoreError, Value},
};

/// The name under which the key stands that makes digests: no device has it.
const NOBODY: &str = "";

/// Devices that one text may stand for, at most: whoever has more is found by a tag or a group.
pub(crate) const FOUND_MAX: usize = 1_000;

/// Registrations that are sealed in one transaction.
const SEALED_AT_ONCE: i64 = 500;

/// What a registration's row has of an identity: what was sealed, and the key.
pub(crate) type Rows = (Option<Vec<u8>>, Option<Vec<u8>>);

impl Identity {
    /// Opens what a row has. Without the key, which was destroyed or was not restored, it is nobody's.
    pub(crate) fn opened(device: &DeviceId, (sealed, key): Rows) -> Result<Self, RowError> {
        let (Some(sealed), Some(key)) = (sealed, key) else {
            return Ok(Self::default());
        };
        let plain = Key::stored(key)?.open(device, &sealed)?;
        Ok(serde_json::from_slice(&plain)?)
    }
}

/// Seals what identifies a device, and has it found by that. The key stays the same as long as there is one.
pub(crate) async fn put(
    connection: &mut AnyConnection,
    device: &DeviceId,
    identity: &Identity,
) -> Result<Vec<u8>, StoreError> {
    let key = key_of(connection, device.as_str()).await?;
    let digests = key_of(connection, NOBODY).await?;
    sqlx::query("DELETE FROM identity_digests WHERE device = $1")
        .bind(device.as_str())
        .execute(&mut *connection)
        .await
        .map_err(StoreError::written)?;
    let row = |(field, text)| {
        [
            Value::Text(device.to_string()),
            Value::Text(digests.digest(field, text)),
        ]
    };
    let rows = identity.terms().into_iter().map(row);
    let inserted = Bulk::of(
        "INSERT INTO identity_digests (device, digest)",
        "ON CONFLICT DO NOTHING",
        rows,
    );
    inserted.insert(connection).await.map_err(StoreError::written)?;
    let plain = Zeroizing::new(text(identity));
    key.seal(device, plain.as_bytes()).map_err(random)
}

/// Seals what else may identify a device, so that it is gone with the key as well. Nothing, where something was sealed before
/// and its key is not here: with another one, it could not be opened any more when its own is brought back.
pub(crate) async fn seal(
    connection: &mut AnyConnection,
    device: &DeviceId,
    plain: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let key = match stored_key(connection, device.as_str()).await? {
        Some(key) => key,
        None => {
            let sealed = "SELECT device FROM registrations WHERE device = $1 AND identity IS NOT NULL UNION ALL \
                          SELECT device FROM transcripts WHERE device = $1 AND words IS NOT NULL";
            let sealed = sqlx::query(sealed).bind(device.to_string());
            let sealed = sealed
                .fetch_optional(&mut *connection)
                .await
                .map_err(StoreError::read)?;
            if sealed.is_some() {
                return Ok(None);
            }
            key_of(connection, device.as_str()).await?
        }
    };
    key.seal(device, plain).map(Some).map_err(random)
}

/// Opens it. Nothing, if there is nothing, or the key is gone, or another one has come in its place.
pub(crate) fn unsealed(device: &DeviceId, (sealed, key): Rows) -> Result<Option<Zeroizing<Vec<u8>>>, RowError> {
    let (Some(sealed), Some(key)) = (sealed, key) else {
        return Ok(None);
    };
    match Key::stored(key)?.open(device, &sealed) {
        Ok(plain) => Ok(Some(plain)),
        Err(NotOpened::Changed) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The device that has this hardware id, if another one than `device` has it.
pub(crate) async fn other_with(
    connection: &mut AnyConnection,
    device: &DeviceId,
    identity: &Identity,
) -> Result<Option<DeviceId>, StoreError> {
    let Some(hardware_id) = &identity.hardware_id else {
        return Ok(None);
    };
    let digest = key_of(connection, NOBODY).await?.digest(Field::HardwareId, hardware_id);
    let query = sqlx::query_as("SELECT device FROM identity_digests WHERE digest = $1 AND device <> $2")
        .bind(digest)
        .bind(device.as_str());
    let row: Option<(String,)> = query.fetch_optional(connection).await.map_err(StoreError::read)?;
    let device = row.map(|(device,)| DeviceId::new(device)).transpose();
    device.map_err(|error| unreadable("identity_digests")(error.into()))
}

/// Destroys a device's key, and what it is found by.
pub(crate) const DESTROY: [&str; 2] = [
    "DELETE FROM identity_keys WHERE device = $1",
    "DELETE FROM identity_digests WHERE device = $1",
];

/// The key of this name, made if there is none.
async fn key_of(connection: &mut AnyConnection, name: &str) -> Result<Key, StoreError> {
    if let Some(key) = stored_key(connection, name).await? {
        return Ok(key);
    }
    let key = Key::random().map_err(random)?;
    sqlx::query("INSERT INTO identity_keys (device, key) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(name.to_owned())
        .bind(key.bytes())
        .execute(&mut *connection)
        .await
        .map_err(StoreError::written)?;
    // Somebody else may have made one at the same time.
    Ok(stored_key(connection, name).await?.unwrap_or(key))
}

async fn stored_key(connection: &mut AnyConnection, name: &str) -> Result<Option<Key>, StoreError> {
    let query = sqlx::query_as("SELECT key FROM identity_keys WHERE device = $1").bind(name.to_owned());
    let row: Option<(Vec<u8>,)> = query.fetch_optional(connection).await.map_err(StoreError::read)?;
    let key = row.map(|(bytes,)| Key::stored(bytes)).transpose();
    key.map_err(|error| unreadable("identity_keys")(error.into()))
}

fn random(error: super::seal::NoRandomness) -> StoreError {
    StoreError::written(sqlx::Error::Encode(error.into()))
}

impl Store {
    /// The devices that each of these texts stands for, exactly; [`FOUND_MAX`] and one more if there are too many.
    pub(crate) async fn identified(
        &self,
        terms: &[(Field, String)],
    ) -> Result<BTreeMap<(&'static str, String), Vec<String>>, StoreError> {
        let mut connection = self.reader().acquire().await.map_err(StoreError::read)?;
        let Some(key) = stored_key(&mut connection, NOBODY).await? else {
            return Ok(BTreeMap::new());
        };
        let mut found = BTreeMap::new();
        for (field, text) in terms {
            let query = "SELECT device FROM identity_digests WHERE digest = $1 ORDER BY device LIMIT $2";
            let query = sqlx::query_scalar(query)
                .bind(key.digest(*field, text))
                .bind(i64::try_from(FOUND_MAX + 1).unwrap_or(i64::MAX));
            let devices: Vec<String> = query.fetch_all(&mut *connection).await.map_err(StoreError::read)?;
            found.insert((field.as_str(), text.clone()), devices);
        }
        Ok(found)
    }

    /// At the beginning of a term: seals what a version before the map has left in clear.
    pub(crate) async fn seal_registrations(&self) -> Result<(), StoreError> {
        let query = "SELECT device, record FROM registrations WHERE identity IS NULL ORDER BY device LIMIT $1";
        let mut sealed = 0;
        loop {
            let mut transaction = self.begin().await?;
            let rows = sqlx::query_as(query).bind(SEALED_AT_ONCE).fetch_all(&mut *transaction);
            let rows: Vec<(String, String)> = rows.await.map_err(StoreError::read)?;
            if rows.is_empty() {
                break;
            }
            sealed += rows.len();
            for (device, record) in rows {
                let read = || -> Result<(DeviceId, Registration), RowError> {
                    Ok((DeviceId::new(device)?, serde_json::from_str(&record)?))
                };
                let (device, mut record) = read().map_err(unreadable("registrations"))?;
                let identity = Identity::taken_from(&mut record);
                let identity = put(&mut transaction, &device, &identity).await?;
                sqlx::query(
                    "UPDATE registrations SET hardware_id = NULL, record = $1, identity = $2 WHERE device = $3",
                )
                .bind(text(&record))
                .bind(identity)
                .bind(device.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::written)?;
            }
            transaction.commit().await.map_err(StoreError::written)?;
        }
        if sealed > 0 {
            info!(registrations = sealed, "what identifies devices is sealed from now on");
            self.cut_past().await?;
        }
        Ok(())
    }
}
