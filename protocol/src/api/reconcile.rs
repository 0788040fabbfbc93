//! Bringing devices back to a baseline: by which rules, and what came of it. What is drafted so allows nothing before
//! approvers have signed it, as any campaign.

use serde::{Deserialize, Serialize};

use super::CampaignDraftView;
use crate::manifest::{Caps, Constraints, Deadlines, GateRule, Priority, Strategy};

/// How a campaign widens that brings devices back to their baseline: the rules of a manifest, without what follows from
/// who has drifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reconciliation {
    /// How it widens.
    #[schema(value_type = Object)]
    pub strategy: Strategy,
    /// How many at once.
    #[schema(value_type = Object)]
    pub caps: Caps,
    /// The test between waves.
    #[schema(value_type = Object)]
    pub gate: GateRule,
    /// Time limits.
    #[schema(value_type = Object)]
    pub deadlines: Deadlines,
    /// When, by what, and at what price devices may be updated.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub constraints: Constraints,
    /// How urgent its images are in the mesh.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    #[schema(value_type = String)]
    pub priority: Priority,
    /// Whether a failed gate rolls the wave back by itself.
    pub automatic_rollback: bool,
    /// Whether devices that run something newer than the baseline are brought back as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ahead: bool,
    /// For how long a draft is good, in seconds: an hour to 90 days. A week, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 3600, maximum = 7776000)]
    pub valid_s: Option<u32>,
    /// How often somebody looks by itself, in seconds: a minute to 30 days. Only when asked, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 60, maximum = 2592000)]
    pub every_s: Option<u32>,
}

/// `POST /api/v1/baselines/{id}/reconcile`: what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reconciled {
    /// Devices that are not what the baseline says, and could be brought back.
    pub drifted: u32,
    /// Whether a campaign was drafted for them now.
    pub drafted: bool,
    /// The draft that waits for its approvers: this one, or one from before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<CampaignDraftView>,
    /// Why it stands so, for a person.
    pub reason: String,
}
