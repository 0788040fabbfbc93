//! Firmware before and beside its signatures: drafts, release notes, and the mark that a release is not to be planned with
//! any more. What devices may run is what release keys have signed; nothing here can add to that.
//!
//! Invariant: there is one draft for a version of a component of a model.

use firmesh_protocol::{
    ids::Component,
    manifest::{Release, ReleaseInfo},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use crate::{
    records::Record,
    store::{Store, StoreError},
};

/// What operators keep of a release, by its name without `firmware/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FirmwareRecord {
    /// What was drafted here, ready to be signed; `None` for a release that came signed.
    pub(crate) draft: Option<Release>,
    /// For people.
    pub(crate) release_notes: String,
    /// Where its image was mirrored from.
    pub(crate) source: Option<String>,
    /// When it was drafted.
    pub(crate) created: Option<WallTime>,
    /// Why nothing is to be planned with it any more.
    pub(crate) deprecated: Option<String>,
}

impl Record for FirmwareRecord {
    const KIND: &'static str = "firmware";
    /// 1,000 versions of a hundred models.
    const COUNT_MAX: i64 = 100_000;
}

impl Store {
    /// Claims the versions of a draft; the name of another draft that has one of them, if one has.
    pub(crate) async fn claim_versions(&self, name: &str, info: &ReleaseInfo) -> Result<Option<String>, StoreError> {
        let mut transaction = self.begin().await?;
        for model in &info.models {
            let insert = "INSERT INTO firmware_versions (vendor, model, component, firmware_version, name) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
            let made = sqlx::query(insert)
                .bind(&info.vendor)
                .bind(model)
                .bind(info.component.as_str())
                .bind(&info.version)
                .bind(name)
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::written)?;
            if made.rows_affected() > 0 {
                continue;
            }
            let other = "SELECT name FROM firmware_versions \
                 WHERE vendor = $1 AND model = $2 AND component = $3 AND firmware_version = $4";
            let other = sqlx::query_as(other)
                .bind(&info.vendor)
                .bind(model)
                .bind(info.component.as_str())
                .bind(&info.version)
                .fetch_one(&mut *transaction);
            let (other,): (String,) = other.await.map_err(StoreError::read)?;
            if other != name {
                return Ok(Some(other));
            }
        }
        transaction.commit().await.map_err(StoreError::written)?;
        Ok(None)
    }

    /// Gives the versions of a draft back.
    pub(crate) async fn release_versions(&self, name: &str) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM firmware_versions WHERE name = $1").bind(name);
        self.execute(query).await.map(drop)
    }
}

/// The name of a release that was given none, without `firmware/`.
pub(crate) fn default_name(vendor: &str, model: &str, component: &Component, version: &str) -> String {
    let words = [vendor, model, component.as_str(), version].join("-");
    let plain = |c: char| match c {
        '.' | '_' | '-' | '+' => c,
        c if c.is_ascii_alphanumeric() => c.to_ascii_lowercase(),
        _ => '-',
    };
    words.chars().map(plain).collect()
}
