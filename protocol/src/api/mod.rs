//! HTTP bodies: what the coordinator, the nodes, the operator CLI, the dashboard and the tests say to each other in JSON.
//!
//! Two faces. Operators: `/api/v1` (see `coordinator/README.md`). Nodes: `/node/v1`, over mutual TLS. Nothing here is
//! trusted for what it says: whatever decides about a device travels inside, in signed metadata or DSSE envelopes.

mod access;
mod audit;
mod campaigns;
mod devices;
mod events;
mod examination;
mod firmware;
mod fleet;
mod groups;
mod nodes;
mod notifications;
mod provisioning;
mod reconcile;
mod storage;
mod transcripts;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use access::{
    ApiKeyMade, ApiKeyView, CodeGrant, Grant, Limits, LoginMethods, NewApiKey, OidcView, PermissionView, Role,
    RotateRequest, TokenAnswer, TokenRequest, UnknownRole, WhoAmI,
};
pub use audit::{AuditEntries, AuditNews, AuditPath, AuditSeen, BrakeView};
pub use campaigns::{
    CampaignMetrics, CampaignState, CampaignStatus, CampaignView, CloseRequest, Explanation, GateVerdict, PlanRequest,
    PlanResponse, PossessionView, SplitResponse, WaveView,
};
pub use devices::{
    ApplicationMetrics, AttemptView, DeviceData, DeviceEdit, DeviceHealth, DeviceIdentity, DevicePhase, DeviceStatus,
    DeviceView, Erasure, NewDevice, PlannedUpdate, Registration, Said, SaidAnswer, SaidHealth, SignatureInfo,
    SignatureRole, StatusReport, UpdateCheck, UpdateView, ValidationReport,
};
pub use events::{Event, EventKind};
pub use examination::{DeviceExamination, DeviceFinding, EXAMINATION_SCHEMA, FindingLevel};
pub use firmware::{
    CATALOGUE_SCHEMA, Catalogue, CatalogueEntry, CatalogueImage, CatalogueVersion, Deprecation, FirmwarePublication,
    FirmwareState, FirmwareView, NewFirmware, OperationState, OperationView, ReleaseView, SyncCatalogue, SyncFailure,
    SyncResult, UploadView,
};
pub use fleet::{
    ApprovalView, BaselineEdit, BaselineView, CampaignDraftView, ComplianceView, DriftState, DriftView, FirmwareCheck,
    FirmwareChecked, FirmwareStatus, FirmwareUpdate, NewBaseline, PermitView, PlaceView, PolicyView, WindowsView,
};
pub use groups::{DeviceGroup, DeviceGroupEdit, MembersEdit, NewDeviceGroup};
pub use nodes::{
    EnrolRequest, EnrolResponse, EnrolmentTicket, Feeder, Holding, MeshLink, MeshLinks, NewNode, NodeView,
    RenewRequest, RevokeRequest, RosterChanges, SyncRequest, SyncResponse, Traffic,
};
pub use notifications::{NotificationError, NotificationTested, NotificationView, ReplayRequest, ReplayStarted};
pub use provisioning::{ComponentView, ProvisioningView, ServerState, ServerView};
pub use reconcile::{Reconciled, Reconciliation};
pub use storage::{
    ArchiveResult, ArchiveRun, ArchiveSegment, ArchiveView, ArchivedAttempt, CollectImages, CollectedImages,
};
pub use transcripts::{
    CredentialsReport, PackedTranscript, TRANSCRIPT_REPORT_BYTES_MAX, TranscriptReport, TranscriptView, is_profile_name,
};

/// An error as RFC 9457 has it, `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// A stable name of the kind of problem: `urn:firmesh:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, for a person.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time, where, and what to do.
    pub detail: String,
    /// Whether a policy or a signature refused it (the CLI exits with 3), rather than a mistake or a fault.
    #[serde(default)]
    pub refused: bool,
    /// The request that it answers, as `X-Request-Id` and the coordinator's log name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A page of a listing, in the order of ids. If there is more, the answer's `Link` header names the next page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
}

/// `GET /api/v1/about`: which coordinator this is, and the public keys that ceremonies and manifests need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct About {
    /// Version and commit.
    pub version: String,
    /// The ed25519 key (hex) that signs TUF snapshot and timestamp.
    pub online_key: String,
    /// The ed25519 key (hex) that signs permits.
    pub permit_key: String,
    /// The fleet CA's certificate, PEM.
    pub fleet_ca_pem: String,
    /// The address nodes talk to, `https://host:port`.
    pub node_url: String,
}

/// `POST /api/v1/metadata`: signed files published together, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// TUF metadata by role or file name: `root` (every new `N.root.json`), `targets`, `releases`, `campaigns`; each
    /// the exact text that was signed.
    pub metadata: BTreeMap<String, String>,
    /// Campaign manifests by target name (`campaigns/<id>.json`): the exact text whose digest was signed.
    #[serde(default)]
    pub manifests: BTreeMap<String, String>,
}

/// The answer to a [`Publication`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Published {
    /// The versions now in force, by role.
    pub versions: BTreeMap<String, u64>,
}
