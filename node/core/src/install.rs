//! When an image may go to a device: the node's own check of everything a coordinator could get wrong or lie about.
//!
//! Invariant: [`admit`] says yes only to a device that stands in this wave of the approved plan and in a live permit, of
//! a model the release is signed for, with the whole image proven here, inside a window, under the caps of the manifest,
//! with no brake pulled, and only once the nodes' own signed reports show that the gates in front of it passed (or, to go
//! back, that its own failed, unless approvers order it). A coordinator that lies can only delay.

mod neighbours;
mod way;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_protocol::{
    api::GateVerdict,
    approval::WaveApproval,
    brake::Braked,
    evidence::WaveEvidence,
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256, TopologyPath},
    manifest::{PlannedDevice, Release, Reversibility, WayStep},
    report::{AttemptState, DeviceFacts, Permit, PermitKind},
    rollback::RollbackOrder,
    time::WallTime,
    trust::PublicKey,
    window::Subject,
};

use self::neighbours::Starter;
use crate::{
    approved::ApprovedCampaign,
    retries::{Tries, may_start_again},
};

pub use neighbours::Neighbour;
pub use way::{Next, next};

/// One attempt of this node: what was started, and whether it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptStanding {
    /// Started and not ended, or ended quarantined: counts against the caps.
    InFlight,
    /// Ended, out of the caps' way.
    Ended,
}

/// What the node knows when it decides on one device.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The time, never earlier than the latest time the node has proof of.
    pub now: WallTime,
    /// This node.
    pub node: &'a NodeId,
    /// Its key.
    pub key: PublicKey,
    /// Where it stands.
    pub path: &'a TopologyPath,
    /// The device as last read.
    pub device: &'a DeviceFacts,
    /// The version that the device ran when it last answered, if it has since this process began.
    pub last_version: Option<&'a str>,
    /// Artifacts that are complete and verified here.
    pub complete: &'a BTreeSet<ArtifactId>,
    /// This node's attempts of this campaign, by device and kind.
    pub attempts: &'a BTreeMap<(DeviceId, PermitKind), AttemptStanding>,
    /// How its updates of this campaign ended, by device.
    pub tries: &'a BTreeMap<DeviceId, Tries>,
    /// Attempts of other campaigns in flight on this node.
    pub other_in_flight: usize,
    /// The other campaign in which this device is in flight or quarantined, if there is one.
    pub engaged_elsewhere: Option<CampaignId>,
    /// The highest security epoch that ever ran on the device, if known.
    pub security_epoch: u32,
    /// Everything that was stopped for good.
    pub brakes: &'a BTreeSet<Braked>,
    /// What the permit's verified evidence says, wave by wave.
    pub gates: &'a [WaveEvidence],
    /// The approvers' orders to go back among the permit's evidence, of whatever campaign.
    pub orders: &'a [RollbackOrder],
    /// What approvers have said between waves, among the permit's evidence, likewise.
    pub approvals: &'a [WaveApproval],
    /// Whether all the evidence that the permit names is here.
    pub evidence_is_here: bool,
    /// All devices of this node.
    pub neighbours: &'a BTreeMap<DeviceId, Neighbour>,
    /// Since when this node has known of the wave, by its own clock: never by a permit's word.
    pub wave_opened: Option<WallTime>,
}

/// How far the clocks of two nodes may differ.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// An attempt that may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The wave.
    pub wave: u32,
    /// The release to install: of an update that goes over others, the next one.
    pub release: Release,
    /// Where that stands on the device's way, if it has more than one step.
    pub step: Option<WayStep>,
    /// The release to go back to, if one is known.
    pub previous: Option<Release>,
}

/// Why a device may not start. Some of these pass with time, some never do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Hold {
    /// The permit is for another edition of the campaign.
    #[error("the permit is for the manifest {0}, not for the one the approvers signed")]
    OtherManifest(Sha256),
    /// The permit does not name the device.
    #[error("the permit does not name the device")]
    NotPermitted,
    /// The approvers signed for another key of this node.
    #[error(
        "the approved plan has the key {planned} for this node, its own is {own}: the campaign was planned for another node"
    )]
    OtherKey {
        /// The key in the plan.
        planned: PublicKey,
        /// This node's.
        own: PublicKey,
    },
    /// Stopped for good.
    #[error("a brake was pulled: {0} is stopped for good")]
    Braked(Braked),
    /// Outside the windows.
    #[error("outside the windows of the campaign{}", opens.map(|at| format!("; the next start fits at {at}")).unwrap_or_default())]
    WindowClosed {
        /// The next start that fits, if one is in sight.
        opens: Option<WallTime>,
    },
    /// Another executor than the approvers named.
    #[error("the device is updated by {found}, the approvers allow {allowed}")]
    WrongExecutor {
        /// The device's executor.
        found: String,
        /// Those the manifest names.
        allowed: String,
    },
    /// Nobody said that there may be no way back.
    #[error("release {0} is one-way, and the approvers did not accept that")]
    OneWayNotAccepted(String),
    /// Evidence that is still on its way.
    #[error("the evidence that the permit names is not all here yet")]
    EvidenceMissing,
    /// Evidence that shows something else.
    #[error("the signed reports do not show that the gate of wave {wave} {needed}: {found:?}")]
    GateNotShown {
        /// The wave whose gate it is about.
        wave: u32,
        /// What they would have to show.
        needed: &'static str,
        /// What they do show.
        found: GateVerdict,
    },
    /// Soak time.
    #[error("wave {wave} passed its gate and is watched until {until}")]
    Soaking {
        /// The wave.
        wave: u32,
        /// Until when.
        until: WallTime,
    },
    /// The approvers want to be asked first.
    #[error("the manifest asks for an approval after wave {wave}, and no approver's yes came with the permit")]
    ApprovalNotShown {
        /// The wave that passed.
        wave: u32,
    },
    /// The approvers want no automatic rollback.
    #[error("the approvers allow no automatic rollback of this campaign, and have ordered none of this device")]
    RollbackNotApproved,
    /// The plan does not have the device in the permit's wave at this node.
    #[error("the approved plan does not have the device at this node in wave {0}")]
    NotPlanned(u32),
    /// The permit has lapsed.
    #[error("the permit expired at {0}")]
    PermitExpired(WallTime),
    /// The campaign has lapsed.
    #[error("the campaign expired at {0}")]
    CampaignExpired(WallTime),
    /// The device was started once for this campaign.
    #[error("the device was already started in this campaign, and may not be started again by this permit")]
    AlreadyStarted,
    /// It failed, and may be started again later.
    #[error("the device has failed, and is left alone until {until} before it is started again")]
    Pausing {
        /// Until when.
        until: WallTime,
    },
    /// A rollback without an update before it.
    #[error("the campaign did not touch the device, so there is nothing to roll back")]
    NothingToRollBack,
    /// A rollback without a previous release.
    #[error("no previous release is approved for the device")]
    NoPrevious,
    /// A rollback of a component that cannot go back.
    #[error("release {0} is one-way: the hardware refuses older versions")]
    OneWay(String),
    /// The release is for other models.
    #[error("release {target} is for {models}, the device is a {model}")]
    WrongModel {
        /// The release.
        target: String,
        /// Its models.
        models: String,
        /// The device's model.
        model: String,
    },
    /// The release is for another component or vendor.
    #[error("release {target} is for the {component} of {vendor} devices")]
    WrongComponent {
        /// The release.
        target: String,
        /// Its component.
        component: String,
        /// Its vendor.
        vendor: String,
    },
    /// Nobody knows where on its way it stands.
    #[error("the device does not answer, and where it goes on depends on what it runs")]
    PlaceUnknown,
    /// Nothing can be looked at between two steps of its way.
    #[error("the campaign is not approved any more as this node took it up, or nothing is known of the device")]
    NotKnown,
    /// Between two steps of its way, time ran out.
    #[error("a step and what is waited for after it have {limit_s} s, and they have passed")]
    StepTooLong {
        /// What the campaign gives a step.
        limit_s: u32,
    },
    /// It runs none of the versions of its way.
    #[error("the device runs {found}, which is not on its approved way {way}")]
    OffItsWay {
        /// What it runs.
        found: String,
        /// The versions of its way.
        way: String,
    },
    /// A step of its way is not allowed from where the one before leads.
    #[error("release {target} may not be installed from {from}: the approved way is not one")]
    NoStep {
        /// The release.
        target: String,
        /// The version before it.
        from: String,
    },
    /// The release is older than the security floor of the device.
    #[error("release {target} has the security epoch {epoch}, the device has run {floor}")]
    BelowSecurityFloor {
        /// The release.
        target: String,
        /// Its epoch.
        epoch: u32,
        /// The device's floor.
        floor: u32,
    },
    /// Labels that were changed after planning.
    #[error("the device has other labels than in the approved plan, and so counts elsewhere: plan again")]
    OtherLabels,
    /// Another device of its unit is at it.
    #[error("{0} of the same unit is in flight or quarantined")]
    UnitBusy(DeviceId),
    /// The device before it in its unit is not done.
    #[error("{0}, which comes before it in its unit, does not run its new release yet")]
    NotItsTurn(DeviceId),
    /// The device before it in its unit did not end well.
    #[error("{0}, which comes before it in its unit, was tried and does not run its new release")]
    TurnNeverComes(DeviceId),
    /// Another component of its unit does not go with the release.
    #[error("release {target} {rule}: {found}")]
    OtherComponent {
        /// The release.
        target: String,
        /// What it asks for.
        rule: String,
        /// What there is.
        found: String,
        /// Whether the others answer, so that waiting does not help.
        is_known: bool,
    },
    /// What stands in for its domain is at it.
    #[error("{device} is in flight, whose {by} stands in for the device's own")]
    StandsIn {
        /// The other device.
        device: DeviceId,
        /// What the domains are.
        by: String,
    },
    /// An image is not all here.
    #[error("the image {0} is not complete here yet")]
    NotPossessed(ArtifactId),
    /// Another campaign has the device.
    #[error("the device is in flight or quarantined in campaign {0}")]
    Engaged(CampaignId),
    /// The cap is full.
    #[error("{in_flight} devices are in flight at this node, the cap is {cap}")]
    CapFull {
        /// Devices in flight.
        in_flight: usize,
        /// The cap.
        cap: u32,
    },
}

impl Hold {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            // The permit is no better than none.
            Self::OtherManifest(_)
            | Self::NotPermitted
            | Self::NotPlanned(_)
            | Self::PermitExpired(_)
            | Self::AlreadyStarted => "void_permit",
            Self::Pausing { .. } => "pausing",
            Self::OtherKey { .. } => "other_node_key",
            Self::Braked(_) => "braked",
            Self::WindowClosed { .. } => "window_closed",
            Self::WrongExecutor { .. } => "wrong_executor",
            Self::OneWayNotAccepted(_) => "one_way_not_accepted",
            Self::EvidenceMissing => "evidence_missing",
            Self::GateNotShown { .. } => "gate_not_shown",
            Self::Soaking { .. } => "soaking",
            Self::ApprovalNotShown { .. } => "approval_not_shown",
            Self::RollbackNotApproved => "rollback_not_approved",
            Self::CampaignExpired(_) => "campaign_expired",
            Self::NothingToRollBack => "nothing_to_roll_back",
            Self::NoPrevious => "no_previous",
            Self::OneWay(_) => "one_way",
            Self::WrongModel { .. } => "wrong_model",
            Self::WrongComponent { .. } => "wrong_component",
            Self::PlaceUnknown => "place_unknown",
            Self::NotKnown => "not_known",
            Self::StepTooLong { .. } => "step_too_long",
            Self::OffItsWay { .. } => "off_its_way",
            Self::NoStep { .. } => "no_step",
            Self::BelowSecurityFloor { .. } => "below_security_floor",
            Self::OtherLabels => "other_labels",
            Self::UnitBusy(_) => "unit_busy",
            Self::NotItsTurn(_) => "not_its_turn",
            Self::TurnNeverComes(_) => "turn_never_comes",
            Self::OtherComponent { .. } => "other_component",
            Self::StandsIn { .. } => "stands_in",
            Self::NotPossessed(_) => "not_possessed",
            Self::Engaged(_) => "engaged",
            Self::CapFull { .. } => "cap_full",
        }
    }

    /// What is reported of the device; nothing where the permit is void: that says nothing about the device, and the
    /// coordinator has to issue a better one.
    #[must_use]
    pub fn state(&self) -> Option<AttemptState> {
        match self {
            Self::NotPossessed(_) => Some(AttemptState::Downloading),
            Self::CapFull { .. }
            | Self::StandsIn { .. }
            | Self::UnitBusy(_)
            | Self::NotItsTurn(_)
            | Self::OtherComponent { is_known: false, .. }
            | Self::PlaceUnknown
            | Self::NotKnown
            | Self::Engaged(_)
            | Self::EvidenceMissing
            | Self::Pausing { .. }
            | Self::Soaking { .. } => Some(AttemptState::Blocked),
            Self::WindowClosed { .. } => Some(AttemptState::WaitingWindow),
            Self::Braked(_) | Self::NothingToRollBack | Self::CampaignExpired(_) | Self::TurnNeverComes(_) => {
                Some(AttemptState::Cancelled)
            }
            Self::WrongModel { .. }
            | Self::OtherLabels
            | Self::OtherComponent { is_known: true, .. }
            | Self::WrongComponent { .. }
            | Self::BelowSecurityFloor { .. }
            | Self::OffItsWay { .. }
            | Self::NoStep { .. }
            | Self::StepTooLong { .. }
            | Self::OneWay(_)
            | Self::OneWayNotAccepted(_)
            | Self::WrongExecutor { .. }
            | Self::NoPrevious => Some(AttemptState::Failed),
            Self::OtherManifest(_)
            | Self::NotPermitted
            | Self::NotPlanned(_)
            | Self::PermitExpired(_)
            | Self::OtherKey { .. }
            | Self::GateNotShown { .. }
            | Self::ApprovalNotShown { .. }
            | Self::RollbackNotApproved
            | Self::AlreadyStarted => None,
        }
    }

    /// Whether waiting can help.
    #[must_use]
    pub fn passes_with_time(&self) -> bool {
        matches!(
            self,
            Self::NotPossessed(_)
                | Self::CapFull { .. }
                | Self::Engaged(_)
                | Self::WindowClosed { .. }
                | Self::EvidenceMissing
                | Self::Pausing { .. }
                | Self::Soaking { .. }
                | Self::StandsIn { .. }
                | Self::UnitBusy(_)
                | Self::NotItsTurn(_)
                | Self::PlaceUnknown
                | Self::NotKnown
                | Self::OtherComponent { is_known: false, .. }
        )
    }
}

/// Whether `permit` lets a device of this node start now. The permit's signature was verified with one of the manifest's
/// permit keys before.
pub fn admit(campaign: &ApprovedCampaign, permit: &Permit, facts: &Facts<'_>) -> Result<Admission, Hold> {
    let (manifest, device) = (&campaign.manifest, &facts.device.device);
    if permit.manifest_sha256 != campaign.manifest_sha256 || permit.campaign != manifest.id {
        return Err(Hold::OtherManifest(permit.manifest_sha256));
    }
    if !permit.devices.contains(device) {
        return Err(Hold::NotPermitted);
    }
    let (wave, planned) = campaign
        .planned(device)
        .filter(|(wave, planned)| {
            *wave == permit.wave && planned.node == *facts.node && facts.path.parent().as_ref() == Some(&planned.rack)
        })
        .ok_or(Hold::NotPlanned(permit.wave))?;
    if let Some(&key) = campaign.plan.nodes.get(facts.node).filter(|key| **key != facts.key) {
        return Err(Hold::OtherKey {
            planned: key,
            own: facts.key,
        });
    }
    let edition = Braked::Campaign {
        id: manifest.id.clone(),
        manifest_sha256: campaign.manifest_sha256,
    };
    check_brake(edition, facts)?;
    if facts.now >= permit.expires {
        return Err(Hold::PermitExpired(permit.expires));
    }
    // An expired campaign starts nothing new; going back stays allowed.
    if permit.kind == PermitKind::Update && facts.now >= manifest.expires {
        return Err(Hold::CampaignExpired(manifest.expires));
    }
    let release = &campaign.releases[&planned.release];
    if let Some(standing) = facts.attempts.get(&(device.clone(), permit.kind)) {
        check_again(campaign, permit, *standing, release, facts)?;
    }
    if let Some(other) = &facts.engaged_elsewhere {
        return Err(Hold::Engaged(other.clone()));
    }
    let previous = planned.previous.as_ref().map(|target| &campaign.releases[target]);
    // All that is left of its way has to be in order before its first step is taken.
    let steps = match permit.kind {
        PermitKind::Update => way::left(campaign, planned, facts)?,
        PermitKind::Rollback => vec![rollback_target(campaign, planned, facts)?],
    };
    for step in &steps {
        check_image(step, facts)?;
    }
    check_rules(campaign, permit, &steps, facts)?;
    check_gates(campaign, permit, facts)?;
    if permit.kind == PermitKind::Update {
        way::check(&steps, planned, facts)?;
    }
    // The way back is held here before the way forward is taken: rollback needs no network.
    for needed in steps.iter().copied().chain(previous) {
        if !facts.complete.contains(&needed.artifact.id) {
            return Err(Hold::NotPossessed(needed.artifact.id));
        }
    }
    for step in &steps {
        let starter = Starter {
            campaign,
            planned,
            release: step,
            kind: permit.kind,
            facts,
        };
        starter.check()?;
    }
    check_caps(campaign, permit, facts)?;
    Ok(Admission {
        wave,
        release: steps[0].clone(),
        step: (permit.kind == PermitKind::Update)
            .then(|| way::step(planned, steps.len(), facts))
            .flatten(),
        previous: previous.cloned(),
    })
}

/// A device is started once, but where the approvers allow another attempt after a failure like its last one.
fn check_again(
    campaign: &ApprovedCampaign,
    permit: &Permit,
    standing: AttemptStanding,
    release: &Release,
    facts: &Facts<'_>,
) -> Result<(), Hold> {
    let device = &facts.device.device;
    let was_sent_back = facts.attempts.contains_key(&(device.clone(), PermitKind::Rollback));
    let is_over = standing == AttemptStanding::Ended && !was_sent_back;
    let from = may_start_again(campaign, permit, device, facts.tries)
        .filter(|_| is_over && release.info.reversibility != Reversibility::OneWay);
    match from {
        None => Err(Hold::AlreadyStarted),
        Some(until) if facts.now < until => Err(Hold::Pausing { until }),
        Some(_) => Ok(()),
    }
}

fn rollback_target<'a>(
    campaign: &'a ApprovedCampaign,
    planned: &PlannedDevice,
    facts: &Facts<'_>,
) -> Result<&'a Release, Hold> {
    let previous = planned.previous.as_ref().map(|target| &campaign.releases[target]);
    let was_updated = (facts.attempts).contains_key(&(planned.device.clone(), PermitKind::Update));
    // A device that somebody moved on since is not this campaign's to pull back, also while it is silent.
    let version = facts.device.version.as_deref().or(facts.last_version);
    let runs = |other: &Release| version.is_none_or(|version| version == other.info.version);
    // One whose update failed halfway runs a release of its way.
    let mut way = planned.way().map(|target| &campaign.releases[target]);
    if !was_updated || !(way.any(runs) || previous.is_some_and(runs)) {
        return Err(Hold::NothingToRollBack);
    }
    let mut way = planned.way().map(|target| &campaign.releases[target]);
    if let Some(door) = way.find(|release| release.info.reversibility == Reversibility::OneWay) {
        return Err(Hold::OneWay(door.target.clone()));
    }
    previous.ok_or(Hold::NoPrevious)
}

/// Whether an image may go to the device at all: nobody has stopped it, and it is for such a device.
fn check_image(release: &Release, facts: &Facts<'_>) -> Result<(), Hold> {
    let image = Braked::Release {
        target: release.target.clone(),
        sha256: release.artifact.sha256,
    };
    check_brake(image, facts)?;
    check_fit(release, facts)
}

fn check_brake(subject: Braked, facts: &Facts<'_>) -> Result<(), Hold> {
    match facts.brakes.contains(&subject) {
        true => Err(Hold::Braked(subject)),
        false => Ok(()),
    }
}

/// What the approvers allow: executors, releases without a way back, windows.
fn check_rules(
    campaign: &ApprovedCampaign,
    permit: &Permit,
    steps: &[&Release],
    facts: &Facts<'_>,
) -> Result<(), Hold> {
    let (rules, executor) = (&campaign.manifest.constraints, &facts.device.executor);
    if !rules.executors.is_empty() && !rules.executors.contains(executor) {
        return Err(Hold::WrongExecutor {
            found: executor.clone(),
            allowed: rules.executors.join(", "),
        });
    }
    // Windows and one-way doors are about going forward: a way back that waits leaves a failure running.
    if permit.kind == PermitKind::Rollback {
        return Ok(());
    }
    let mut doors = (steps.iter()).filter(|step| step.info.reversibility == Reversibility::OneWay);
    if let Some(door) = doors.next().filter(|_| !rules.one_way_accepted) {
        return Err(Hold::OneWayNotAccepted(door.target.clone()));
    }
    // What is left of its way fits as a whole: a device does not wait halfway for the next window.
    let left = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    let worst_case = campaign.manifest.worst_case_of(left);
    let (device, rack) = (facts.device, facts.path.parent());
    let subject = match &rack {
        Some(rack) => Subject::new(&device.device, rack, &device.model),
        None => Subject::NOBODY,
    };
    let timetable = rules.timetable(subject);
    timetable
        .check(facts.now, worst_case)
        .map_err(|closed| Hold::WindowClosed { opens: closed.opens })
}

/// What approvers have said of this edition: documents are kept by digest, and a permit may name any that is here.
fn approvals<'a>(campaign: &ApprovedCampaign, facts: &Facts<'a>) -> impl Iterator<Item = &'a WaveApproval> {
    let edition = (&campaign.manifest.id, campaign.manifest_sha256);
    let said = facts.approvals.iter();
    said.filter(move |said| (&said.campaign, said.manifest_sha256) == edition)
}

/// Approvers have sent the device back, or refused the next wave where that sends everybody back, or have left it to the
/// operators.
fn is_ordered_back(campaign: &ApprovedCampaign, permit: &Permit, facts: &Facts<'_>) -> bool {
    let (manifest, device) = (&campaign.manifest, &facts.device.device);
    let is_meant = |order: &RollbackOrder| {
        (&order.campaign, order.manifest_sha256) == (&manifest.id, campaign.manifest_sha256)
            && order.scope.has(permit.wave, device)
    };
    let rule = manifest.gate.approval.as_ref();
    manifest.operator_rollback
        || facts.orders.iter().any(is_meant)
        || rule.is_some_and(|rule| rule.sends_back(approvals(campaign, facts)))
}

/// Going forward needs the gates of the waves before to have passed and soaked ([`PermitKind::gates`] says which), going back
/// needs that of this wave to have failed; both by the nodes' signed reports, and where the manifest asks for it, by an
/// approver's signed yes after each. An order to go back needs no gate.
fn check_gates(campaign: &ApprovedCampaign, permit: &Permit, facts: &Facts<'_>) -> Result<(), Hold> {
    let manifest = &campaign.manifest;
    let needed = match permit.kind {
        PermitKind::Update => GateVerdict::Pass,
        PermitKind::Rollback if is_ordered_back(campaign, permit, facts) => return Ok(()),
        PermitKind::Rollback if manifest.automatic_rollback => GateVerdict::Fail,
        PermitKind::Rollback if !facts.evidence_is_here => return Err(Hold::EvidenceMissing),
        PermitKind::Rollback => return Err(Hold::RollbackNotApproved),
    };
    let mut gates = permit.gates(&manifest.strategy);
    gates.try_for_each(|wave| check_gate(campaign, wave, needed, facts))
}

fn check_gate(campaign: &ApprovedCampaign, wave: u32, needed: GateVerdict, facts: &Facts<'_>) -> Result<(), Hold> {
    let (manifest, plan) = (&campaign.manifest, &campaign.plan);
    let unknown = WaveEvidence::new(wave);
    let evidence = facts.gates.iter().find(|gate| gate.wave() == wave);
    let evidence = evidence.unwrap_or(&unknown);
    let mut found = evidence.verdict(manifest, plan);
    let of_wave = plan.waves.get(wave as usize).into_iter().flatten();
    let deadline = of_wave.map(|planned| manifest.worst_case(planned)).max();
    let deadline = deadline.unwrap_or_else(|| manifest.worst_case_of(1));
    let is_overdue = facts.wave_opened.is_some_and(|opened| opened + deadline <= facts.now);
    if found != needed && needed == GateVerdict::Fail && is_overdue {
        found = evidence.verdict_after_deadline(manifest, plan);
    }
    if found != needed {
        return Err(match (facts.evidence_is_here, needed) {
            (false, _) => Hold::EvidenceMissing,
            (true, GateVerdict::Pass) => Hold::GateNotShown {
                wave,
                needed: "passed",
                found,
            },
            (true, _) => Hold::GateNotShown {
                wave,
                needed: "failed",
                found,
            },
        });
    }
    let until = evidence.soaked_at(manifest);
    if needed == GateVerdict::Pass && manifest.gate.soak_s > 0 && facts.now + CLOCK_SLACK < until {
        return Err(Hold::Soaking { wave, until });
    }
    let rule = manifest.gate.approval.as_ref().filter(|_| needed == GateVerdict::Pass);
    if rule.is_some_and(|rule| !rule.is_met(wave, approvals(campaign, facts))) {
        return Err(match facts.evidence_is_here {
            false => Hold::EvidenceMissing,
            true => Hold::ApprovalNotShown { wave },
        });
    }
    Ok(())
}

fn check_fit(release: &Release, facts: &Facts<'_>) -> Result<(), Hold> {
    let (info, device) = (&release.info, facts.device);
    if info.component != device.component || info.vendor != device.vendor {
        return Err(Hold::WrongComponent {
            target: release.target.clone(),
            component: info.component.to_string(),
            vendor: info.vendor.clone(),
        });
    }
    if !info.models.contains(&device.model) {
        return Err(Hold::WrongModel {
            target: release.target.clone(),
            models: info.models.join(", "),
            model: device.model.clone(),
        });
    }
    Ok(())
}

/// The node's share of the caps: its own devices in flight, which the coordinator's permits must never exceed.
fn check_caps(campaign: &ApprovedCampaign, permit: &Permit, facts: &Facts<'_>) -> Result<(), Hold> {
    let key = (facts.device.device.clone(), PermitKind::Update);
    let own_place = usize::from(
        permit.kind == PermitKind::Rollback && facts.attempts.get(&key) == Some(&AttemptStanding::InFlight),
    );
    let in_flight_here = facts
        .attempts
        .values()
        .filter(|standing| **standing == AttemptStanding::InFlight)
        .count()
        - own_place;
    let in_flight = in_flight_here + facts.other_in_flight;
    let cap = campaign.manifest.caps.per_rack.min(campaign.manifest.caps.total);
    if in_flight >= cap as usize {
        Err(Hold::CapFull { in_flight, cap })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
