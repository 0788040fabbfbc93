//! What watchers are told.

use serde::{Deserialize, Serialize};

use super::{AttemptView, CampaignView, NodeView};
use crate::{manifest::Artifact, time::WallTime};

/// One event of `GET /api/v1/events` (Server-Sent Events; the SSE id is `id`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// Grows by one.
    pub id: u64,
    /// When.
    pub at: WallTime,
    /// What happened.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What happened: `kind` and `data`, because a view in `data` may have an `id` of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum EventKind {
    /// A campaign changed its state, or opened a wave.
    Campaign(CampaignView),
    /// A device changed its state.
    Attempt(AttemptView),
    /// A node was heard of; sent at most once a second per node.
    Node(NodeView),
    /// An artifact was imported.
    Artifact(Artifact),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ArtifactId, Sha256};

    /// A campaign's view has an `id` too: side by side with the event's, readers refused every such event.
    #[test]
    fn an_event_about_something_with_an_id_of_its_own_reads_back() {
        let artifact = Artifact {
            id: ArtifactId::of(b"a"),
            sha256: Sha256::of(b"a"),
            length: 1,
        };
        let event = Event {
            id: 7,
            at: WallTime::from_unix_seconds(0),
            what: EventKind::Artifact(artifact),
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
