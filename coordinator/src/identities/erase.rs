//! Erasing a device: its key is destroyed, and what else knows whose it was goes with it. What was signed stays, under a name that
//! nobody can read any more.
//!
//! Invariants: a device that has something to do is not erased; the key, the rows and the entry of the audit log go in one
//! transaction; an erased name is never given again, and what a node tells under it is not taken.

use firmesh_protocol::{
    ids::{CampaignId, DeviceId, Sha256},
    report::AttemptState,
    time::WallTime,
};
use futures_util::TryStreamExt as _;

use crate::{
    access::ApiKey,
    notify::Notice,
    rows::{text, unreadable},
    runtime::{ActionError, Runtime},
    store::{Store, StoreError, Write},
    world::World,
};

/// Where an answer may stand that has an identity in it.
const ANSWERS: &str = "POST /api/v1/devices%";

/// Why a device cannot be erased now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Busy {
    /// It has something to do.
    #[error(
        "the device {device} is {} in the campaign {campaign}: wait until its attempt has ended, or end it (`firmesh campaign \
         cancel {campaign}`, or `firmesh campaign close {campaign} --device {device}`), then erase it", state.as_str()
    )]
    Attempt {
        device: DeviceId,
        campaign: CampaignId,
        state: AttemptState,
    },
    /// A person has to look at it.
    #[error(
        "the device {0} is quarantined and keeps its place under the caps: look at it, then `firmesh device clear {0}`, then \
         erase it"
    )]
    Quarantined(DeviceId),
}

impl World {
    /// What has to happen before a device can be erased.
    pub(crate) fn busy(&self, device: &DeviceId) -> Option<Busy> {
        let attempt = |campaign: &CampaignId| {
            let state = self.engine.attempt(campaign, device)?.state;
            (!state.is_terminal()).then(|| Busy::Attempt {
                device: device.clone(),
                campaign: campaign.clone(),
                state,
            })
        };
        let running = self.engine.campaigns_of(device).find_map(attempt);
        let is_held = running.is_none() && self.engine.is_in_flight(device);
        running.or_else(|| is_held.then(|| Busy::Quarantined(device.clone())))
    }
}

impl Runtime {
    /// Erases a device that has nothing to do: looked at here, so that nothing begins in between.
    pub(crate) async fn erase(&mut self, device: DeviceId) -> Result<Result<WallTime, Busy>, ActionError> {
        if let Some(busy) = self.world.busy(&device) {
            return Ok(Err(busy));
        }
        let at = self.clock.wall();
        self.commit(vec![Write::Erasure(device.clone(), at)]).await?;
        self.world.devices.remove(&device);
        self.world.erased.insert(device);
        Ok(Ok(at))
    }
}

impl Store {
    /// Blots out what unsigned records have of an identity: the answers that are kept for those who ask again, and the words in which
    /// people were told of the device.
    pub(crate) async fn blot_out(&self, device: &DeviceId, hardware_id: Option<&str>) -> Result<(), StoreError> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string().into_bytes();
        let words: Vec<_> = std::iter::once(device.as_str())
            .chain(hardware_id)
            .map(quoted)
            .collect();
        let query = "SELECT scope, key, body FROM idempotency WHERE scope LIKE $1 AND body IS NOT NULL";
        let query = sqlx::query_as::<_, (String, String, Vec<u8>)>(query).bind(ANSWERS);
        let (mut rows, mut answers) = (query.fetch(self.reader()), Vec::new());
        while let Some((scope, key, body)) = rows.try_next().await.map_err(StoreError::read)? {
            if words
                .iter()
                .any(|word| body.windows(word.len()).any(|part| part == word))
            {
                answers.push((scope, key));
            }
        }
        drop(rows);
        // Of the characters of names only `_` means something to `LIKE`: so what is found is looked at again.
        let query = "SELECT number, notice FROM notices WHERE notice LIKE $1 ORDER BY number";
        let query = sqlx::query_as(query).bind(format!("%\"device\":\"{device}\"%"));
        let rows: Vec<(i64, String)> = query.fetch_all(self.reader()).await.map_err(StoreError::read)?;
        let mut transaction = self.begin().await?;
        for (scope, key) in answers {
            // Not even what was asked stays as a digest. The key is used up: whoever asks again is told so.
            sqlx::query(
                "UPDATE idempotency SET body = NULL, content_type = NULL, request_sha256 = $1 WHERE scope = $2 AND key = $3",
            )
            .bind(Sha256::from([0; 32]).to_string())
            .bind(scope)
            .bind(key)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        }
        for (number, told) in rows {
            let mut notice: Notice =
                serde_json::from_str(&told).map_err(|error| unreadable("notices")(error.into()))?;
            if notice.device.as_ref() != Some(device) {
                continue;
            }
            notice.reason.clear();
            sqlx::query("UPDATE notices SET notice = $1 WHERE number = $2")
                .bind(text(&notice))
                .bind(number)
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::written)?;
        }
        transaction.commit().await.map_err(StoreError::written)
    }

    /// What people were told of a device, oldest first.
    pub(crate) async fn notices_of(&self, device: &DeviceId, count: usize) -> Result<Vec<Notice>, StoreError> {
        let query = "SELECT notice FROM notices WHERE notice LIKE $1 ORDER BY number LIMIT $2";
        let rows = sqlx::query_scalar(query)
            .bind(format!("%\"device\":\"{device}\"%"))
            .bind(i64::try_from(count).unwrap_or(i64::MAX));
        let rows: Vec<String> = rows.fetch_all(self.reader()).await.map_err(StoreError::read)?;
        let read = |text: &String| serde_json::from_str(text).map_err(|error| unreadable("notices")(error.into()));
        let notices: Result<Vec<Notice>, _> = rows.iter().map(read).collect();
        Ok(notices?
            .into_iter()
            .filter(|notice| notice.device.as_ref() == Some(device))
            .collect())
    }

    /// The keys that speak for a device, by their ids.
    pub(crate) async fn api_keys_of(&self, device: &DeviceId) -> Result<Vec<String>, StoreError> {
        let query = "SELECT record FROM api_keys WHERE revoked = 0 AND record LIKE $1 ORDER BY id";
        let rows = sqlx::query_scalar(query).bind(format!("%\"device\":\"{device}\"%"));
        let rows: Vec<String> = rows.fetch_all(self.reader()).await.map_err(StoreError::read)?;
        let read = |text: &String| serde_json::from_str(text).map_err(|error| unreadable("api_keys")(error.into()));
        let keys: Result<Vec<ApiKey>, _> = rows.iter().map(read).collect();
        let keys = keys?.into_iter().filter(|key| key.device.as_ref() == Some(device));
        Ok(keys.map(|key| key.id).collect())
    }
}
