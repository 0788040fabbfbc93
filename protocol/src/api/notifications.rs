//! Where notifications go, and how far they have come.

use serde::{Deserialize, Serialize};

use crate::time::WallTime;

/// A destination of notifications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NotificationView {
    /// Its name in the coordinator's configuration.
    pub name: String,
    /// `webhook`, `email`, `pagerduty`, `opsgenie` or `rest`.
    pub kind: String,
    /// Where it is, without anything secret.
    pub target: String,
    /// Everything up to this event is settled: delivered, refused, given up, or not for this destination.
    pub cursor: u64,
    /// The number of the newest event.
    pub newest: u64,
    /// Events for this destination that wait; counted up to 10,000.
    pub backlog: u64,
    /// When something was delivered last.
    pub last_delivered: Option<WallTime>,
    /// What went wrong last.
    pub last_error: Option<NotificationError>,
    /// Since when nothing gets through.
    pub failing_since: Option<WallTime>,
    /// When the next attempt is made, if one failed.
    pub next_attempt: Option<WallTime>,
    /// Messages delivered.
    pub delivered: u64,
    /// Messages that the receiver refused for good.
    pub refused: u64,
    /// Messages given up because nobody took them for too long.
    pub given_up: u64,
}

/// A delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NotificationError {
    /// When.
    pub at: WallTime,
    /// The event's number.
    pub number: u64,
    /// Why.
    pub reason: String,
}

/// What a test delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NotificationTested {
    /// The message's id at the receiver.
    pub id: String,
}

/// From where a destination is told everything again: exactly one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// The number of an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_number: Option<u64>,
    /// A moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<WallTime>,
}

/// What is told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplayStarted {
    /// The first event that is kept and told again.
    pub from: u64,
    /// The newest event.
    pub newest: u64,
}
