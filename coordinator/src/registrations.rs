//! What operators say of devices, and what devices say of themselves, as it is stored. What nodes have read from a device
//! stands elsewhere, and counts for more.
//!
//! Invariants: a hardware id belongs to one device; a device that was removed stays held until somebody registers or
//! enables it again; what identifies a device to people is stored sealed only ([`crate::identities`]); nothing here is evidence
//! for a gate.

use std::collections::BTreeMap;

use firmesh_coordinator_core::Exclusion;
use firmesh_protocol::{
    api::{Registration, Said},
    ids::{DeviceId, TopologyPath},
    time::WallTime,
};
use sqlx::{AssertSqlSafe, FromRow, any::AnyRow};

use crate::{
    identities::{self, Identity, Rows},
    rows::{NEXT_VERSION, text, unreadable},
    runtime::{ActionError, Runtime},
    store::{RowError, Store, StoreError, Write},
};

/// The region of devices that are registered without one.
pub(crate) fn default_region() -> TopologyPath {
    "default".parse().expect("it is a name")
}

/// A registration as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) device: DeviceId,
    pub(crate) version: u64,
    pub(crate) enabled: bool,
    pub(crate) record: Registration,
}

/// What is stored of a device beside what its node has told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) registered: Option<Registered>,
    pub(crate) removed: bool,
    /// Only its name is left.
    pub(crate) erased: bool,
    pub(crate) said: Option<Said>,
}

impl Known {
    /// Whether campaigns may touch it.
    pub(crate) fn is_enabled(&self) -> bool {
        !self.removed && self.registered.as_ref().is_none_or(|registered| registered.enabled)
    }

    /// The version of what operators have said; 0 of what nobody has said anything of.
    pub(crate) fn version(&self) -> u64 {
        self.registered.as_ref().map_or(0, |registered| registered.version)
    }
}

/// What came of a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It was made; the version from now on.
    Yes(u64),
    /// The device is registered already, or was changed meanwhile.
    Meanwhile,
    /// Another device has the hardware id.
    TakenBy(DeviceId),
    /// The name was an erased device's.
    Erased,
}

type Row = (String, i64, i64, String, Option<Vec<u8>>, Option<Vec<u8>>);

/// With the key, if it was not destroyed.
const COLUMNS: &str = "SELECT device, enabled, version, record, identity, key FROM (SELECT registrations.device AS device, enabled, \
     version, record, identity, key FROM registrations LEFT JOIN identity_keys ON identity_keys.device = registrations.device) AS found";

impl Runtime {
    /// Removes all that is stored of a device but its attempts and reports, and remembers that it was removed. False if it is
    /// in flight: looked at here, so that nothing begins in between.
    pub(crate) async fn remove(&mut self, device: DeviceId) -> Result<bool, ActionError> {
        if self.world.engine.is_in_flight(&device) {
            return Ok(false);
        }
        let at = self.clock.wall();
        self.commit(vec![Write::Removal(device.clone(), at)]).await?;
        self.world.devices.remove(&device);
        Ok(true)
    }
}

impl Store {
    /// Registers a device (`before` is `None`), or changes what is registered of this version.
    pub(crate) async fn put_registration(
        &self,
        device: &DeviceId,
        before: Option<u64>,
        enabled: bool,
        record: &Registration,
    ) -> Result<Put, StoreError> {
        let mut transaction = self.begin().await?;
        let next = sqlx::query_as(NEXT_VERSION).fetch_one(&mut *transaction).await;
        let (version,): (i64,) = next.map_err(StoreError::written)?;
        let mut record = record.clone();
        let identity = Identity::taken_from(&mut record);
        if let Some(other) = identities::other_with(&mut transaction, device, &identity).await? {
            return Ok(Put::TakenBy(other));
        }
        let erased = sqlx::query("SELECT device FROM erased_devices WHERE device = $1").bind(device.as_str());
        let erased = erased
            .fetch_optional(&mut *transaction)
            .await
            .map_err(StoreError::read)?;
        if erased.is_some() {
            return Ok(Put::Erased);
        }
        let sealed = identities::put(&mut transaction, device, &identity).await?;
        let changed = match before {
            Some(before) => sqlx::query(
                "UPDATE registrations SET enabled = $1, version = $2, record = $3, identity = $4 \
                 WHERE device = $5 AND version = $6",
            )
            .bind(i64::from(enabled))
            .bind(version)
            .bind(text(&record))
            .bind(sealed)
            .bind(device.as_str())
            .bind(before.cast_signed()),
            None => sqlx::query(
                "INSERT INTO registrations (enabled, version, record, identity, device) VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(i64::from(enabled))
            .bind(version)
            .bind(text(&record))
            .bind(sealed)
            .bind(device.as_str()),
        };
        let changed = changed.execute(&mut *transaction).await.map_err(StoreError::written)?;
        if changed.rows_affected() == 0 {
            return Ok(Put::Meanwhile);
        }
        sqlx::query("DELETE FROM removed_devices WHERE device = $1")
            .bind(device.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        transaction.commit().await.map_err(StoreError::written)?;
        Ok(Put::Yes(version.cast_unsigned()))
    }

    /// What is stored of these devices.
    pub(crate) async fn known(&self, devices: &[DeviceId]) -> Result<BTreeMap<DeviceId, Known>, StoreError> {
        let mut found: BTreeMap<DeviceId, Known> = BTreeMap::new();
        if devices.is_empty() {
            return Ok(found);
        }
        let rows: Vec<Row> = self.of_devices(COLUMNS, devices).await?;
        for row in rows {
            let row = registered(row).map_err(unreadable("registrations"))?;
            let device = row.device.clone();
            found.entry(device).or_default().registered = Some(row);
        }
        let rows: Vec<(String,)> = self.of_devices("SELECT device FROM removed_devices", devices).await?;
        for (device,) in rows {
            let device = DeviceId::new(device).map_err(|error| unreadable("removed_devices")(error.into()))?;
            found.entry(device).or_default().removed = true;
        }
        let rows: Vec<(String,)> = self.of_devices("SELECT device FROM erased_devices", devices).await?;
        for (device,) in rows {
            let device = DeviceId::new(device).map_err(|error| unreadable("erased_devices")(error.into()))?;
            found.entry(device).or_default().erased = true;
        }
        let rows: Vec<(String, String)> = self
            .of_devices("SELECT device, record FROM self_reports", devices)
            .await?;
        for (device, record) in rows {
            let read = || -> Result<_, RowError> { Ok((DeviceId::new(device)?, serde_json::from_str(&record)?)) };
            let (device, said) = read().map_err(unreadable("self_reports"))?;
            found.entry(device).or_default().said = Some(said);
        }
        Ok(found)
    }

    /// The rows about some devices.
    async fn of_devices<R>(&self, select: &'static str, devices: &[DeviceId]) -> Result<Vec<R>, StoreError>
    where
        R: for<'r> FromRow<'r, AnyRow> + Send + Unpin,
    {
        let places: Vec<_> = (1..=devices.len()).map(|at| format!("${at}")).collect();
        // Nothing in it comes from outside: names are bound.
        let query = AssertSqlSafe(format!("{select} WHERE device IN ({})", places.join(", ")));
        let mut query = sqlx::query_as(query);
        for device in devices {
            query = query.bind(device.to_string());
        }
        query.fetch_all(self.reader()).await.map_err(StoreError::read)
    }

    /// The registrations after `after` in the order of their devices, at most `count`.
    pub(crate) async fn registrations_after(
        &self,
        after: Option<&DeviceId>,
        count: usize,
    ) -> Result<Vec<Registered>, StoreError> {
        let query = AssertSqlSafe(format!("{COLUMNS} WHERE device > $1 ORDER BY device LIMIT $2"));
        let rows: Vec<Row> = sqlx::query_as(query)
            .bind(after.map_or("", DeviceId::as_str))
            .bind(i64::try_from(count).unwrap_or(i64::MAX))
            .fetch_all(self.reader())
            .await
            .map_err(StoreError::read)?;
        let rows = rows
            .into_iter()
            .map(|row| registered(row).map_err(unreadable("registrations")));
        rows.collect()
    }

    /// How many devices are registered.
    pub(crate) async fn registrations_count(&self) -> Result<u64, StoreError> {
        let count = sqlx::query_as("SELECT COUNT(*) FROM registrations").fetch_one(self.reader());
        let (count,): (i64,) = count.await.map_err(StoreError::read)?;
        Ok(count.cast_unsigned())
    }

    /// The devices that no campaign may touch from now on.
    pub(crate) async fn excluded(&self) -> Result<BTreeMap<DeviceId, Exclusion>, StoreError> {
        let named = |exclusion| move |(device,): (String,)| Ok((DeviceId::new(device)?, exclusion));
        let disabled = "SELECT device FROM registrations WHERE enabled = 0";
        let removed = "SELECT device FROM removed_devices";
        let mut excluded = self.rows("removed_devices", removed, named(Exclusion::Removed)).await?;
        excluded.extend(self.rows("registrations", disabled, named(Exclusion::Disabled)).await?);
        Ok(excluded.into_iter().collect())
    }

    /// Devices that operators want to stay as they are, with the reasons.
    pub(crate) async fn held(&self) -> Result<BTreeMap<DeviceId, String>, StoreError> {
        // Few are, of a million: what cannot be one is not read.
        let held = "SELECT device, record FROM registrations WHERE record LIKE '%\"held\":%'";
        let read = |(device, record): (String, String)| -> Result<_, RowError> {
            Ok((
                DeviceId::new(device)?,
                serde_json::from_str::<Registration>(&record)?.held,
            ))
        };
        let found = self.rows("registrations", held, read).await?;
        Ok(found
            .into_iter()
            .filter_map(|(device, held)| Some((device, held?)))
            .collect())
    }

    /// Writes down what a device says of itself, in place of what it said before.
    pub(crate) async fn put_said(&self, device: &DeviceId, said: &Said) -> Result<(), StoreError> {
        let query = "INSERT INTO self_reports (device, record) \
             SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM erased_devices WHERE device = $1) \
             ON CONFLICT (device) DO UPDATE SET record = excluded.record";
        let query = sqlx::query(query).bind(device.as_str()).bind(text(said));
        self.execute(query).await.map(drop)
    }

    /// The entry of the audit log about how a device's attempt in a campaign ended last.
    pub(crate) async fn ended_at(
        &self,
        campaign: &firmesh_protocol::ids::CampaignId,
        device: &DeviceId,
    ) -> Result<Option<WallTime>, StoreError> {
        let query = "SELECT entry FROM audit_entries WHERE campaign = $1 AND kind = 'result' AND device = $2 \
             ORDER BY idx DESC LIMIT 1";
        let row = sqlx::query_as(query).bind(campaign.as_str()).bind(device.as_str());
        let row: Option<(String,)> = row.fetch_optional(self.reader()).await.map_err(StoreError::read)?;
        let entry = row.map(|(text,)| firmesh_protocol::audit::Entry::from_bytes(text.as_bytes()));
        let entry = entry
            .transpose()
            .map_err(|error| unreadable("audit_entries")(error.into()))?;
        Ok(entry.map(|entry| entry.at))
    }
}

fn registered((device, enabled, version, record, identity, key): Row) -> Result<Registered, RowError> {
    let device = DeviceId::new(device)?;
    let mut record: Registration = serde_json::from_str(&record)?;
    let rows: Rows = (identity, key);
    Identity::opened(&device, rows)?.put_into(&mut record);
    Ok(Registered {
        device,
        version: version.cast_unsigned(),
        enabled: enabled != 0,
        record,
    })
}
