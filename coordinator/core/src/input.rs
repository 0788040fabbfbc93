//! What an engine is told, and what it says: inputs, outputs, and why an input is refused.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    api::CampaignState,
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256},
    manifest::{Artifact, CampaignManifest, Plan},
    report::{AttemptReport, PermitKind},
    rollback::RollbackScope,
    time::Timestamp,
};

use crate::{
    attempts::AttemptRecord, campaign::CampaignRecord, close::Closing, possession::PossessionRecord,
    webhooks::WebhookAnswer,
};

/// What may happen.
#[derive(Debug)]
pub enum Input {
    /// Campaigns were published, or are read back after a restart: then all at once, so that all count from the start.
    Load(Vec<Loaded>),
    /// An operator starts a scheduled campaign.
    Start(CampaignId),
    /// An operator forbids new starts.
    Pause(CampaignId),
    /// An operator allows new starts again.
    Resume(CampaignId),
    /// An operator ends a campaign. Devices in flight end by themselves.
    Cancel(CampaignId),
    /// An operator ends an attempt that nobody reports the end of, or a whole campaign with all that is in flight.
    Close(Closing),
    /// People send devices of a campaign back although no gate has failed.
    RollBack(Rollback),
    /// An approver has said yes or no between two waves.
    Approve(Approval),
    /// An outside system has answered whether the next wave may open, or has not.
    WebhookAnswered(WebhookAnswer),
    /// Its approvers do not stand behind a campaign any more, or a release of it was recalled: it ends like a cancelled
    /// one.
    Withdraw(CampaignId),
    /// A node was heard of, with verified reports, oldest first (often none).
    Heard {
        /// The node, by its certificate.
        node: NodeId,
        /// What it reports.
        reports: Vec<AttemptReport>,
    },
    /// Proofs of a node that it holds images were checked. They count for every campaign that needs them.
    Proofs {
        /// The node, by its certificate.
        node: NodeId,
        /// The images whose proof holds.
        proven: BTreeSet<ArtifactId>,
        /// Those whose proof does not.
        wrong: BTreeSet<ArtifactId>,
    },
    /// What a node has read of its devices since it was heard of last. Only the final validation of servers looks at it: see
    /// [`Engine::awaits_reading`](crate::Engine::awaits_reading).
    Read {
        /// The node, by its certificate.
        node: NodeId,
        /// The version of each of its devices, if it answers.
        versions: BTreeMap<DeviceId, Option<String>>,
    },
    /// A node has enrolled, perhaps with a new journal and an empty store: it counts its reports from the start, and what
    /// it had proven it has to prove again.
    Enrolled(NodeId),
    /// A person has looked at a quarantined device and put it back in service.
    Clear(DeviceId),
    /// Time has passed.
    Tick,
}

/// Who is to go back, and by whose word. The shell has checked that word before.
#[derive(Debug, Clone)]
pub struct Rollback {
    /// The campaign.
    pub campaign: CampaignId,
    /// Who goes back: those who run its release.
    pub scope: RollbackScope,
    /// Why, and who says so.
    pub reason: String,
    /// Digest of the approvers' signed order: nodes want to see it unless the manifest leaves this to operators.
    pub order: Option<Sha256>,
    /// Devices that run something else by now: another campaign, or a person, has moved them on.
    pub moved_on: BTreeSet<DeviceId>,
}

/// An approver's word between two waves. The shell has checked his signature before.
#[derive(Debug, Clone)]
pub struct Approval {
    /// The campaign.
    pub campaign: CampaignId,
    /// The wave that has passed.
    pub wave: u32,
    /// Yes or no.
    pub approved: bool,
    /// Why.
    pub reason: String,
    /// Whose keys signed it.
    pub by: Vec<String>,
    /// Digest of the signed word: nodes want to see it.
    pub document: Sha256,
    /// Devices that run something else by now, and stay if a no sends the others back.
    pub moved_on: BTreeSet<DeviceId>,
}

/// A campaign with what is stored about it.
#[derive(Debug)]
pub struct Loaded {
    /// The verified manifest.
    pub manifest: CampaignManifest,
    /// The plan whose digest the manifest names.
    pub plan: Plan,
    /// The images of the releases that the manifest pins, by target.
    pub images: BTreeMap<String, Artifact>,
    /// `manifest.expires` on the process's clock.
    pub expires_at: Timestamp,
    /// The stored record; `None` for a campaign just published.
    pub record: Option<CampaignRecord>,
    /// The stored attempts.
    pub attempts: Vec<AttemptRecord>,
    /// What is stored about its nodes' proofs.
    pub possession: Vec<PossessionRecord>,
}

/// Something to be stored: replaces what was stored under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A campaign.
    Campaign(CampaignRecord),
    /// An attempt of the campaign.
    Attempt(CampaignId, AttemptRecord),
    /// How a node of the campaign stands towards an image.
    Possession(CampaignId, PossessionRecord),
}

/// A permit to be signed, stored and handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermitOrder {
    /// The campaign.
    pub campaign: CampaignId,
    /// Update or rollback.
    pub kind: PermitKind,
    /// The wave, counted from 0.
    pub wave: u32,
    /// Which attempt of its devices it is for.
    pub attempt: u32,
    /// Its sequence.
    pub sequence: u64,
    /// Who may start.
    pub devices: Vec<DeviceId>,
}

/// What the shell has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Store this, and tell whoever watches.
    Persist(Record),
    /// Sign and hand out this permit.
    IssuePermit(PermitOrder),
}

/// Why an input was refused; nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// No campaign of this name.
    #[error("there is no campaign {0}: publish it first")]
    UnknownCampaign(CampaignId),
    /// The campaign is not in a state for this.
    #[error("campaign {id} is {state:?}: it cannot {verb}")]
    WrongState {
        /// The campaign.
        id: CampaignId,
        /// Where it stands.
        state: CampaignState,
        /// What was asked of it.
        verb: &'static str,
    },
    /// The approval is over.
    #[error("the approval of campaign {0} has expired: sign and publish a new edition")]
    Expired(CampaignId),
    /// Manifest and plan do not belong together, or the plan is no plan.
    #[error("campaign {id} does not go with its plan: {problem}")]
    BadPlan {
        /// The campaign.
        id: CampaignId,
        /// What is wrong.
        problem: String,
    },
    /// Nobody of the scope can go back.
    #[error("nothing goes back: {0}")]
    NothingToRollBack(String),
    /// Nothing of this is open.
    #[error("there is nothing to close: {0}")]
    NothingToClose(String),
    /// Nobody is asked, or not about this.
    #[error("there is nothing to approve: {0}")]
    NothingToApprove(String),
    /// A webhook that nobody asks.
    #[error("the webhook {webhook} is not asked about wave {wave}")]
    NotAsked {
        /// The wave.
        wave: u32,
        /// Its name.
        webhook: String,
    },
    /// No quarantined device of this name.
    #[error("device {0} is not quarantined")]
    NotQuarantined(DeviceId),
}
