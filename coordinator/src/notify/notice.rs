//! What people are told: one notice per change, made from the change itself.
//!
//! A notice is stored as it is told, so that a replay next month says what was said today. Fields may be added; readers of
//! old rows take what is absent as nothing.

use std::collections::BTreeMap;

use firmesh_coordinator_core::AttemptRecord;
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    audit::Event,
    brake::Brake,
    ids::{CampaignId, DeviceId, NodeId, TopologyPath},
    limits::REASON_BYTES_MAX,
    report::AttemptState,
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use crate::{audit::Draft, store::Write};

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As planned.
    Info,
    /// Somebody should look at it by day.
    Warning,
    /// Something went wrong.
    Error,
    /// Somebody has stopped something for good.
    Critical,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $text:literal $severity:ident,)*) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum NoticeKind { $($(#[$doc])* $name,)* }

        impl NoticeKind {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            pub(crate) fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }
        }
    };
}

kinds! {
    /// A campaign was published with both thresholds.
    CampaignScheduled "campaign_scheduled" Info,
    /// Its first wave opens.
    CampaignStarted "campaign_started" Info,
    /// An operator paused it.
    CampaignPaused "campaign_paused" Warning,
    /// An operator resumed it.
    CampaignResumed "campaign_resumed" Info,
    /// The gate behind a wave passed.
    WavePassed "wave_passed" Info,
    /// A gate waits for a person.
    GateHeld "gate_held" Warning,
    /// An approver is asked before the next wave opens.
    ApprovalAwaited "approval_awaited" Warning,
    /// He said yes.
    WaveApproved "wave_approved" Info,
    /// He said no.
    WaveRefused "wave_refused" Warning,
    /// An outside system that is asked before the next wave opens says hold.
    WebhookHolds "webhook_holds" Warning,
    /// A gate failed.
    GateFailed "gate_failed" Error,
    /// Affected devices are going back.
    CampaignRollingBack "campaign_rolling_back" Error,
    /// They have gone back.
    CampaignRolledBack "campaign_rolled_back" Warning,
    /// Every planned device ended well.
    CampaignCompleted "campaign_completed" Info,
    /// It ended without reaching its goal.
    CampaignFailed "campaign_failed" Error,
    /// It was cancelled, withdrawn or braked.
    CampaignCancelled "campaign_cancelled" Warning,
    /// A device needs a person.
    DeviceQuarantined "device_quarantined" Error,
    /// A person has looked at it.
    DeviceCleared "device_cleared" Info,
    /// Nodes of a site are not heard of any more.
    NodesSilent "nodes_silent" Warning,
    /// They are heard of again.
    NodesBack "nodes_back" Info,
    /// A node's key was revoked.
    NodeRevoked "node_revoked" Warning,
    /// A brake was pulled.
    BrakePulled "brake_pulled" Critical,
    /// A signature, a threshold or a policy refused a publication.
    PublicationRefused "publication_refused" Warning,
    /// An operator tries a destination.
    Test "test" Info,
}

/// Names of nodes in one notice; the others are counted.
const NODES_NAMED_MAX: usize = 20;

/// One thing that people are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    pub(crate) kind: NoticeKind,
    #[serde(default)]
    pub(crate) campaign: Option<CampaignId>,
    /// Counted from 0, as in the plan.
    #[serde(default)]
    pub(crate) wave: Option<u32>,
    #[serde(default)]
    pub(crate) device: Option<DeviceId>,
    #[serde(default)]
    pub(crate) node: Option<NodeId>,
    #[serde(default)]
    pub(crate) site: Option<TopologyPath>,
    /// The first of the nodes it is about.
    #[serde(default)]
    pub(crate) nodes: Vec<NodeId>,
    /// How many nodes it is about.
    #[serde(default)]
    pub(crate) count: Option<u64>,
    /// How many nodes of the site are silent now.
    #[serde(default)]
    pub(crate) silent: Option<u64>,
    /// What a brake stops.
    #[serde(default)]
    pub(crate) braked: Option<String>,
    /// Why, for a person.
    #[serde(default)]
    pub(crate) reason: String,
}

/// What an alerting service is told: a notice opens or closes the alert of this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Alert {
    Trigger(String),
    Resolve(String),
}

impl Notice {
    pub(crate) fn new(kind: NoticeKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            campaign: None,
            wave: None,
            device: None,
            node: None,
            site: None,
            nodes: Vec::new(),
            count: None,
            silent: None,
            braked: None,
            reason: bounded(reason.into()),
        }
    }

    fn of_campaign(kind: NoticeKind, campaign: &CampaignId, reason: &str) -> Self {
        Self {
            campaign: Some(campaign.clone()),
            ..Self::new(kind, reason)
        }
    }

    /// Nodes of a site that fell silent or came back, and how many are silent there now.
    pub(crate) fn of_nodes(kind: NoticeKind, site: TopologyPath, nodes: &[NodeId], silent: u64) -> Self {
        Self {
            site: Some(site),
            nodes: nodes.iter().take(NODES_NAMED_MAX).cloned().collect(),
            count: Some(nodes.len() as u64),
            silent: Some(silent),
            ..Self::new(kind, "")
        }
    }

    /// One line for a person.
    pub(crate) fn summary(&self) -> String {
        let campaign = || {
            self.campaign
                .as_ref()
                .map_or_else(String::new, |id| format!("campaign {id}"))
        };
        let wave = self.wave.unwrap_or_default();
        let count = self.count.unwrap_or_default();
        let site = || self.site.as_ref().map_or_else(String::new, ToString::to_string);
        let device = || {
            self.device
                .as_ref()
                .map_or_else(String::new, |id| format!("device {id}"))
        };
        match self.kind {
            NoticeKind::CampaignScheduled => format!("{} is approved and published", campaign()),
            NoticeKind::CampaignStarted => format!("{} has started", campaign()),
            NoticeKind::CampaignPaused => format!("{} is paused", campaign()),
            NoticeKind::CampaignResumed => format!("{} goes on", campaign()),
            NoticeKind::WavePassed => format!("{}: wave {wave} has passed its gate", campaign()),
            NoticeKind::GateHeld => format!("{}: the gate of wave {wave} holds for a person", campaign()),
            NoticeKind::ApprovalAwaited => format!("{}: wave {wave} has passed, an approver is asked", campaign()),
            NoticeKind::WaveApproved => format!("{}: an approver lets the wave after wave {wave} open", campaign()),
            NoticeKind::WaveRefused => format!("{}: an approver refused to go on after wave {wave}", campaign()),
            NoticeKind::WebhookHolds => format!("{}: wave {wave} has passed, a webhook holds the next one", campaign()),
            NoticeKind::GateFailed => format!("{}: the gate of wave {wave} failed", campaign()),
            NoticeKind::CampaignRollingBack => format!("{} is rolling back", campaign()),
            NoticeKind::CampaignRolledBack => format!("{} has been rolled back", campaign()),
            NoticeKind::CampaignCompleted => format!("{} is complete", campaign()),
            NoticeKind::CampaignFailed => format!("{} has failed", campaign()),
            NoticeKind::CampaignCancelled => format!("{} is cancelled", campaign()),
            NoticeKind::DeviceQuarantined => format!("{} is quarantined", device()),
            NoticeKind::DeviceCleared => format!("{} is back in service", device()),
            NoticeKind::NodesSilent => format!("{count} nodes of {} have fallen silent", site()),
            NoticeKind::NodesBack => format!("{count} nodes of {} are back", site()),
            NoticeKind::NodeRevoked => {
                let node = self.node.as_ref().map_or_else(String::new, ToString::to_string);
                format!("node {node} was revoked")
            }
            NoticeKind::BrakePulled => format!("a brake was pulled on {}", self.braked.as_deref().unwrap_or_default()),
            NoticeKind::PublicationRefused => "a publication was refused".to_owned(),
            NoticeKind::Test => "a test of this destination".to_owned(),
        }
    }

    /// What it is about, as a path.
    pub(crate) fn subject(&self) -> String {
        if let Some(device) = &self.device {
            return format!("devices/{device}");
        }
        if let Some(id) = &self.campaign {
            return format!("campaigns/{id}");
        }
        if let Some(node) = &self.node {
            return format!("nodes/{node}");
        }
        if let Some(site) = &self.site {
            return format!("sites/{site}");
        }
        match self.kind {
            NoticeKind::BrakePulled => "brakes".to_owned(),
            NoticeKind::PublicationRefused => "publications".to_owned(),
            _ => "coordinator".to_owned(),
        }
    }

    /// Which alert it opens or closes. What needs nobody does neither.
    pub(crate) fn alert(&self) -> Option<Alert> {
        use NoticeKind::{
            ApprovalAwaited, BrakePulled, CampaignCancelled, CampaignCompleted, CampaignFailed, CampaignPaused,
            CampaignResumed, CampaignRolledBack, CampaignRollingBack, CampaignScheduled, CampaignStarted,
            DeviceCleared, DeviceQuarantined, GateFailed, GateHeld, NodeRevoked, NodesBack, NodesSilent,
            PublicationRefused, Test, WaveApproved, WavePassed, WaveRefused, WebhookHolds,
        };
        let key = match &self.braked {
            Some(braked) => format!("brakes/{braked}"),
            None => self.subject(),
        };
        match self.kind {
            ApprovalAwaited | WaveRefused | WebhookHolds | GateHeld | GateFailed | CampaignPaused
            | CampaignRollingBack | CampaignFailed | DeviceQuarantined | NodesSilent | NodeRevoked | BrakePulled
            | PublicationRefused | Test => Some(Alert::Trigger(key)),
            CampaignResumed | WaveApproved | WavePassed | CampaignRolledBack | CampaignCompleted
            | CampaignCancelled | DeviceCleared => Some(Alert::Resolve(key)),
            NodesBack => (self.silent == Some(0)).then_some(Alert::Resolve(key)),
            CampaignScheduled | CampaignStarted => None,
        }
    }

    /// One of each kind, with everything it may have: templates are tried with these.
    pub(crate) fn samples() -> Vec<Self> {
        let name = "a \"sample\"\nof two lines";
        let sample = |kind: &NoticeKind| {
            let (id, node) = (CampaignId::new("sample"), NodeId::new("sample"));
            Self {
                campaign: id.ok(),
                wave: Some(1),
                device: DeviceId::new("sample").ok(),
                site: "eu/hall-1".parse().ok(),
                nodes: node.iter().cloned().collect(),
                node: node.ok(),
                count: Some(1),
                silent: Some(1),
                braked: Some(name.to_owned()),
                ..Self::new(*kind, name)
            }
        };
        let full = NoticeKind::ALL.iter().map(sample);
        let bare = NoticeKind::ALL.iter().map(|kind| Self::new(*kind, ""));
        full.chain(bare).collect()
    }
}

/// A notice on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its name, the same over retries and replays.
    pub(crate) id: String,
    /// Its place; 0 for a test.
    pub(crate) number: u64,
    pub(crate) at: WallTime,
    /// Which fleet it is from.
    pub(crate) source: String,
    pub(crate) notice: Notice,
}

impl Message {
    /// The CloudEvents type.
    pub(crate) fn kind(&self) -> String {
        format!("io.firmesh.{}", self.notice.kind.as_str())
    }

    /// What templates and receivers see: every field every time, absent ones as null.
    pub(crate) fn facts(&self) -> serde_json::Value {
        let mut facts = serde_json::json!({
            "id": self.id,
            "number": self.number,
            "time": self.at,
            "source": self.source,
            "type": self.kind(),
            "subject": self.notice.subject(),
            "severity": self.notice.kind.severity(),
            "summary": self.notice.summary(),
        });
        if let (Some(facts), Ok(serde_json::Value::Object(notice))) =
            (facts.as_object_mut(), serde_json::to_value(&self.notice))
        {
            facts.extend(notice);
        }
        facts
    }
}

/// What the entries of the audit log tell that follow from one commit. `before` has the states of campaigns before it.
pub(crate) fn of_entries(before: impl Fn(&CampaignId) -> Option<CampaignState>, drafted: &[Draft]) -> Vec<Notice> {
    let mut states = BTreeMap::new();
    let notice = |draft: &Draft| match &draft.event {
        Event::Campaign {
            campaign,
            state,
            reason,
        } => {
            let known = states.insert(campaign.clone(), *state).or_else(|| before(campaign));
            let kind = match state {
                // A draft is no news, and no entry of the log says this state.
                CampaignState::PendingApproval => return None,
                CampaignState::Scheduled => NoticeKind::CampaignScheduled,
                CampaignState::Active if known == Some(CampaignState::Paused) => NoticeKind::CampaignResumed,
                CampaignState::Active => NoticeKind::CampaignStarted,
                CampaignState::Paused => NoticeKind::CampaignPaused,
                CampaignState::RollingBack => NoticeKind::CampaignRollingBack,
                CampaignState::Completed => NoticeKind::CampaignCompleted,
                CampaignState::RolledBack => NoticeKind::CampaignRolledBack,
                CampaignState::Failed => NoticeKind::CampaignFailed,
                CampaignState::Cancelled => NoticeKind::CampaignCancelled,
            };
            Some(Notice::of_campaign(kind, campaign, reason))
        }
        Event::Gate {
            campaign,
            wave,
            verdict,
            reason,
        } => {
            let kind = match verdict {
                GateVerdict::Pass => NoticeKind::WavePassed,
                GateVerdict::Hold => NoticeKind::GateHeld,
                GateVerdict::Fail => NoticeKind::GateFailed,
                GateVerdict::Unknown => return None,
            };
            Some(Notice {
                wave: Some(*wave),
                ..Notice::of_campaign(kind, campaign, reason)
            })
        }
        Event::Approval {
            campaign,
            wave,
            answer,
            reason,
            ..
        } => {
            let kind = match answer.as_str() {
                "approved" => NoticeKind::WaveApproved,
                "refused" => NoticeKind::WaveRefused,
                _ => NoticeKind::ApprovalAwaited,
            };
            Some(Notice {
                wave: Some(*wave),
                ..Notice::of_campaign(kind, campaign, reason)
            })
        }
        Event::Webhook {
            campaign,
            wave,
            webhook,
            verdict: GateVerdict::Hold,
            reason,
        } => Some(Notice {
            wave: Some(*wave),
            ..Notice::of_campaign(NoticeKind::WebhookHolds, campaign, &format!("{webhook}: {reason}"))
        }),
        Event::Revocation { node, reason } => Some(Notice {
            node: Some(node.clone()),
            ..Notice::new(NoticeKind::NodeRevoked, reason)
        }),
        _ => None,
    };
    drafted.iter().filter_map(notice).collect()
}

/// What a write tells that the audit log does not have, or has with less.
pub(crate) fn of_write(write: &Write, attempt_before: Option<&AttemptRecord>) -> Option<Notice> {
    match write {
        Write::Notice(notice) => Some((**notice).clone()),
        Write::Brake(_, envelope) => {
            let brake = Brake::from_own_store(envelope)?;
            Some(Notice {
                braked: Some(brake.braked.to_string()),
                ..Notice::new(NoticeKind::BrakePulled, brake.reason)
            })
        }
        Write::Attempt(campaign, record) if record.state == AttemptState::Quarantined => {
            let was = |look: fn(&AttemptRecord) -> bool| attempt_before.is_some_and(look);
            let kind = match record.cleared {
                true if was(|before| before.cleared) => return None,
                true => NoticeKind::DeviceCleared,
                false if was(|before| before.state == AttemptState::Quarantined && !before.cleared) => return None,
                false => NoticeKind::DeviceQuarantined,
            };
            Some(Notice {
                device: Some(record.device.clone()),
                ..Notice::of_campaign(kind, campaign, &record.reason)
            })
        }
        _ => None,
    }
}

fn bounded(mut text: String) -> String {
    let end = (0..=text.len().min(REASON_BYTES_MAX))
        .rev()
        .find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
    text
}
