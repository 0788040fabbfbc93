//! Groups of devices, as they are stored. They decide nothing by themselves: a campaign that was planned for a group
//! names its devices one by one in what approvers sign.
//!
//! Invariant: every change gives a group a version that no group ever had.

use std::collections::BTreeSet;

use firmesh_protocol::{
    api,
    ids::{DeviceId, GroupId},
};
use serde::{Deserialize, Serialize};

use crate::{
    rows::NEXT_VERSION,
    store::{RowError, Store, StoreError},
};

/// The most groups.
pub(crate) const GROUPS_MAX: u32 = 1_000;

/// What a group is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    /// What it is for.
    pub(crate) description: String,
    /// The rule of a dynamic group.
    pub(crate) filter: Option<String>,
    /// The members of a static group.
    pub(crate) devices: BTreeSet<DeviceId>,
}

/// A group as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) version: u64,
    pub(crate) record: GroupRecord,
}

impl Group {
    pub(crate) fn view(&self) -> api::DeviceGroup {
        let members = u32::try_from(self.record.devices.len()).unwrap_or(u32::MAX);
        api::DeviceGroup {
            id: self.id.clone(),
            description: self.record.description.clone(),
            filter: self.record.filter.clone(),
            members: self.record.filter.is_none().then_some(members),
            version: self.version,
        }
    }
}

/// What came of a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// It was made; the version from now on.
    Yes(u64),
    /// The group has another version, or is no more (or, for a new one, is there already).
    Meanwhile,
    /// There are [`GROUPS_MAX`] groups.
    Full,
}

impl Store {
    /// All groups, in the order of their ids.
    pub(crate) async fn groups(&self) -> Result<Vec<Group>, StoreError> {
        let query = "SELECT id, version, record FROM device_groups ORDER BY id";
        self.rows("device_groups", query, group).await
    }

    /// One group.
    pub(crate) async fn group(&self, id: &GroupId) -> Result<Option<Group>, StoreError> {
        let query = "SELECT id, version, record FROM device_groups WHERE id = $1";
        let row = sqlx::query_as(query).bind(id.to_string()).fetch_optional(self.reader());
        let row: Option<(String, i64, String)> = row.await.map_err(StoreError::read)?;
        let unreadable = |source| StoreError::Row {
            table: "device_groups",
            source,
        };
        row.map(|row| group(row).map_err(unreadable)).transpose()
    }

    /// Makes a group (`before` is `None`), or changes the one of this version.
    pub(crate) async fn put_group(
        &self,
        id: &GroupId,
        before: Option<u64>,
        record: &GroupRecord,
    ) -> Result<Changed, StoreError> {
        let text = serde_json::to_string(record).expect("a group has only names and text");
        let failed = StoreError::written;
        let mut transaction = self.begin().await?;
        let next = sqlx::query_as(NEXT_VERSION).fetch_one(&mut *transaction).await;
        let (version,): (i64,) = next.map_err(failed)?;
        let changed = match before {
            Some(before) => {
                sqlx::query("UPDATE device_groups SET version = $1, record = $2 WHERE id = $3 AND version = $4")
                    .bind(version)
                    .bind(text)
                    .bind(id.to_string())
                    .bind(before.cast_signed())
            }
            None => {
                let count = sqlx::query_as("SELECT COUNT(*) FROM device_groups");
                let (count,): (i64,) = count.fetch_one(&mut *transaction).await.map_err(failed)?;
                if count >= i64::from(GROUPS_MAX) {
                    return Ok(Changed::Full);
                }
                sqlx::query("INSERT INTO device_groups VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                    .bind(id.to_string())
                    .bind(version)
                    .bind(text)
            }
        };
        let changed = changed.execute(&mut *transaction).await.map_err(failed)?;
        if changed.rows_affected() == 0 {
            return Ok(Changed::Meanwhile);
        }
        transaction.commit().await.map_err(failed)?;
        Ok(Changed::Yes(version.cast_unsigned()))
    }

    /// Removes the group of this version; false if it is another one by now.
    pub(crate) async fn remove_group(&self, id: &GroupId, version: u64) -> Result<bool, StoreError> {
        let query = sqlx::query("DELETE FROM device_groups WHERE id = $1 AND version = $2")
            .bind(id.to_string())
            .bind(version.cast_signed());
        Ok(self.execute(query).await? > 0)
    }
}

fn group((id, version, record): (String, i64, String)) -> Result<Group, RowError> {
    Ok(Group {
        id: GroupId::new(id)?,
        version: version.cast_unsigned(),
        record: serde_json::from_str(&record)?,
    })
}
