mod batches;
mod way;

use super::*;
use crate::approved::AssembleError;
use firmesh_protocol::{
    approval::{ApprovalRule, Refused},
    evidence::{EvidenceError, GateEvidence},
    ids::{Component, Sha256},
    labels::Labels,
    manifest::{
        Artifact, CampaignManifest, Caps, Constraints, Deadlines, GateRule, MANIFEST_SCHEMA, PLAN_SCHEMA, Plan,
        PlannedDevice, RELEASE_SCHEMA, ReleaseInfo, ReleaseRef, Retries, RetryBudget, RetryRule, Selector, Strategy,
    },
    report::{AttemptReport, AttemptState, FailureClass, REPORT_TYPE},
    rollback::RollbackScope,
    trust::{Envelope, SecretKey},
    units::BasisPoints,
};

fn release(version: &str) -> Release {
    let bytes = version.as_bytes();
    Release {
        target: format!("firmware/r1-{version}.bin"),
        artifact: Artifact {
            id: ArtifactId::of(bytes),
            sha256: Sha256::of(bytes),
            length: bytes.len() as u64,
        },
        info: ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: ArtifactId::of(bytes),
            vendor: "Acme".to_owned(),
            models: vec!["R1".to_owned()],
            component: Component::new("bmc").unwrap(),
            version: version.to_owned(),
            security_epoch: 1,
            from_versions: Vec::new(),
            reversibility: Reversibility::Reflash,
            provenance: None,
            version_scheme: None,
            min_from: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
        },
    }
}

fn planned(device: &str, node: &str) -> PlannedDevice {
    PlannedDevice {
        device: DeviceId::new(device).unwrap(),
        node: NodeId::new(node).unwrap(),
        rack: "eu/s1/r1".parse().unwrap(),
        release: release("2").target,
        from_version: "1".to_owned(),
        previous: Some(release("1").target),
        labels: Labels::default(),
        hops: Vec::new(),
        after: None,
    }
}

fn plan() -> Plan {
    Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign: CampaignId::new("spring").unwrap(),
        waves: vec![
            vec![planned("d1", "n1"), planned("d2", "n1")],
            vec![planned("d3", "n2")],
        ],
        nodes: ["n1", "n2"]
            .map(|node| (NodeId::new(node).unwrap(), key(node).public()))
            .into(),
        held: Vec::new(),
        domains: BTreeMap::new(),
        servers: Vec::new(),
    }
}

/// The key of a node.
fn key(node: &str) -> SecretKey {
    SecretKey::from_seed(Sha256::of(node.as_bytes()).as_bytes())
}

fn manifest() -> CampaignManifest {
    let reference = |r: Release| ReleaseRef {
        target: r.target,
        sha256: r.artifact.sha256,
    };
    CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id: CampaignId::new("spring").unwrap(),
        sequence: 1,
        expires: WallTime::from_unix_seconds(2_000),
        releases: vec![reference(release("2"))],
        previous: vec![reference(release("1"))],
        selector: Selector::default(),
        strategy: Strategy::Canary {
            shares: vec![BasisPoints::WHOLE],
        },
        caps: Caps::new(1, 5),
        gate: GateRule::shares(BasisPoints::WHOLE, BasisPoints::WHOLE),
        deadlines: Deadlines {
            attempt_s: 600,
            back_s: 60,
        },
        constraints: Constraints::default(),
        priority: firmesh_protocol::manifest::Priority::default(),
        automatic_rollback: true,
        operator_rollback: false,
        retries: None,
        permit_keys: vec![format!("58{}", "66".repeat(31))],
        plan_sha256: Sha256::of(&plan().to_bytes()),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: firmesh_protocol::manifest::CampaignKind::Update,
    }
}

fn releases(target: &str) -> Option<Release> {
    [release("1"), release("2")].into_iter().find(|r| r.target == target)
}

fn campaign() -> ApprovedCampaign {
    ApprovedCampaign::assemble(manifest(), Sha256::of(b"manifest"), &plan().to_bytes(), releases).unwrap()
}

fn permit() -> Permit {
    Permit {
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        kind: PermitKind::Update,
        wave: 0,
        attempt: 1,
        sequence: 1,
        epoch: 1,
        evidence: Vec::new(),
        issued: WallTime::from_unix_seconds(0),
        expires: WallTime::from_unix_seconds(1_000),
        devices: vec![DeviceId::new("d1").unwrap(), DeviceId::new("d2").unwrap()],
    }
}

/// Everything that a decision looks at, for device d1 of node n1.
struct Case {
    campaign: ApprovedCampaign,
    permit: Permit,
    device: DeviceFacts,
    last_version: Option<&'static str>,
    attempts: BTreeMap<(DeviceId, PermitKind), AttemptStanding>,
    tries: BTreeMap<DeviceId, Tries>,
    now: i64,
    brakes: BTreeSet<Braked>,
    gates: Vec<WaveEvidence>,
    orders: Vec<RollbackOrder>,
    approvals: Vec<WaveApproval>,
    evidence_is_here: bool,
    neighbours: BTreeMap<DeviceId, Neighbour>,
}

impl Case {
    fn new() -> Self {
        Self {
            campaign: campaign(),
            permit: permit(),
            device: DeviceFacts {
                device: DeviceId::new("d1").unwrap(),
                vendor: "Acme".to_owned(),
                model: "R1".to_owned(),
                component: Component::new("bmc").unwrap(),
                version: Some("1".to_owned()),
                executor: "redfish".to_owned(),
                labels: Labels::default(),
            },
            last_version: None,
            attempts: BTreeMap::new(),
            tries: BTreeMap::new(),
            now: 500,
            brakes: BTreeSet::new(),
            gates: Vec::new(),
            orders: Vec::new(),
            approvals: Vec::new(),
            evidence_is_here: true,
            neighbours: BTreeMap::new(),
        }
    }

    /// The second wave's device, at node n2.
    fn of_wave_1() -> Self {
        let d3 = DeviceId::new("d3").unwrap();
        let mut case = Self::new();
        case.permit.wave = 1;
        case.permit.devices = vec![d3.clone()];
        case.device.device = d3;
        case
    }

    fn decide(&self) -> Result<Admission, Hold> {
        let complete = ["1", "1.3", "1.6", "2"]
            .map(|version| release(version).artifact.id)
            .into();
        self.with_facts(&complete, |facts| admit(&self.campaign, &self.permit, facts))
    }

    fn with_facts<T>(&self, complete: &BTreeSet<ArtifactId>, look: impl FnOnce(&Facts<'_>) -> T) -> T {
        let node = if self.permit.wave == 0 { "n1" } else { "n2" };
        look(&Facts {
            now: WallTime::from_unix_seconds(self.now),
            node: &NodeId::new(node).unwrap(),
            key: key(node).public(),
            path: &format!("eu/s1/r1/{node}").parse().unwrap(),
            device: &self.device,
            last_version: self.last_version,
            complete,
            attempts: &self.attempts,
            tries: &self.tries,
            other_in_flight: 0,
            engaged_elsewhere: None,
            security_epoch: 1,
            brakes: &self.brakes,
            gates: &self.gates,
            orders: &self.orders,
            approvals: &self.approvals,
            evidence_is_here: self.evidence_is_here,
            neighbours: &self.neighbours,
            wave_opened: Some(self.permit.issued),
        })
    }
}

/// Decides on one device after changing what is known.
fn decide(
    change: impl FnOnce(&mut Permit, &mut DeviceFacts, &mut BTreeMap<(DeviceId, PermitKind), AttemptStanding>, &mut i64),
) -> Result<Admission, Hold> {
    let mut case = Case::new();
    change(&mut case.permit, &mut case.device, &mut case.attempts, &mut case.now);
    case.decide()
}

/// A signed report on an ended update of wave 0.
fn report(device: &str, state: AttemptState, signed_by: &SecretKey) -> Envelope {
    sign(&said(device, state), signed_by)
}

fn sign(report: &AttemptReport, signed_by: &SecretKey) -> Envelope {
    Envelope::sign(REPORT_TYPE, serde_json::to_vec(report).unwrap(), [signed_by])
}

fn said(device: &str, state: AttemptState) -> AttemptReport {
    AttemptReport {
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        attempt: 1,
        device: DeviceId::new(device).unwrap(),
        node: NodeId::new("n1").unwrap(),
        sequence: 1,
        state,
        reason: String::new(),
        version: None,
        failure: None,
        health: None,
        at: WallTime::from_unix_seconds(400),
    }
}

fn evidence(reports: Vec<Envelope>) -> Result<Vec<WaveEvidence>, EvidenceError> {
    let campaign = campaign();
    let document = GateEvidence {
        campaign: campaign.manifest.id.clone(),
        manifest_sha256: campaign.manifest_sha256,
        wave: 0,
        reports,
    };
    let mut wave = WaveEvidence::new(0);
    wave.add(campaign.manifest_sha256, &campaign.manifest, &campaign.plan, &document)?;
    Ok(vec![wave])
}

#[test]
fn a_planned_permitted_fitting_device_starts_with_its_way_back() {
    let admission = decide(|_, _, _, _| {}).unwrap();
    assert_eq!(admission.release, release("2"));
    assert_eq!(admission.previous, Some(release("1")));
}

#[test]
fn a_lying_coordinator_starts_nothing() {
    let d3 = DeviceId::new("d3").unwrap();
    let other = Sha256::of(b"other");
    assert_eq!(
        decide(|p, _, _, _| p.manifest_sha256 = other),
        Err(Hold::OtherManifest(other))
    );
    assert_eq!(decide(|p, _, _, _| p.devices.clear()), Err(Hold::NotPermitted));
    assert_eq!(decide(|p, _, _, _| p.wave = 1), Err(Hold::NotPlanned(1)));
    // d3 is planned, but for the other wave.
    let foreign = decide(|p, d, _, _| {
        p.devices = vec![d3.clone()];
        d.device = d3;
    });
    assert_eq!(foreign, Err(Hold::NotPlanned(0)));
    assert!(matches!(
        decide(|_, _, _, now| *now = 1_000),
        Err(Hold::PermitExpired(_))
    ));
    let late = decide(|p, _, _, now| {
        p.expires = WallTime::from_unix_seconds(9_000);
        *now = 2_000;
    });
    assert!(matches!(late, Err(Hold::CampaignExpired(_))));
}

#[test]
fn an_image_for_another_model_or_component_is_held_for_good() {
    let model = decide(|_, d, _, _| d.model = "R2".to_owned()).unwrap_err();
    assert!(matches!(model, Hold::WrongModel { .. }) && !model.passes_with_time());
    let component = decide(|_, d, _, _| d.component = Component::new("bios").unwrap()).unwrap_err();
    assert!(matches!(component, Hold::WrongComponent { .. }));
}

#[test]
fn the_cap_counts_what_is_in_flight_and_a_device_starts_once() {
    let d1 = DeviceId::new("d1").unwrap();
    let d2 = DeviceId::new("d2").unwrap();
    let full = decide(|_, _, a, _| {
        a.insert((d2, PermitKind::Update), AttemptStanding::InFlight);
    });
    assert_eq!(full, Err(Hold::CapFull { in_flight: 1, cap: 1 }));
    let again = decide(|_, _, a, _| {
        a.insert((d1, PermitKind::Update), AttemptStanding::Ended);
    });
    assert_eq!(again, Err(Hold::AlreadyStarted));
}

/// Installs are tried three times, after 100 s and 200 s; of one device in a wave.
fn retries() -> Retries {
    Retries {
        rules: vec![RetryRule {
            class: FailureClass::Install,
            times: 2,
            pause_s: 100,
        }],
        budget: RetryBudget::Count(1),
    }
}

/// Device d1 failed by permit 1 at 450, and permit 2 is for its second attempt.
fn failed_once() -> Case {
    let d1 = DeviceId::new("d1").unwrap();
    let mut case = Case::new();
    case.campaign.manifest.retries = Some(retries());
    (case.permit.sequence, case.permit.attempt, case.now) = (2, 2, 550);
    let at = WallTime::from_unix_seconds(450);
    let tries = Tries::counted(None, 1, AttemptState::Failed, Some(FailureClass::Install), at);
    case.attempts
        .insert((d1.clone(), PermitKind::Update), AttemptStanding::Ended);
    case.tries.insert(d1, tries);
    case
}

#[test]
fn a_device_that_failed_starts_again_as_the_manifest_says_and_never_by_a_coordinators_word() {
    type Change = fn(&mut Case, &mut Tries);
    let decide = |change: Change| {
        let d1 = DeviceId::new("d1").unwrap();
        let mut case = failed_once();
        let mut tries = case.tries.remove(&d1).unwrap();
        change(&mut case, &mut tries);
        case.tries.insert(d1, tries);
        case.decide().map(|admission| admission.release.info.version)
    };
    assert_eq!(decide(|_, _| {}), Ok("2".to_owned()));
    let until = WallTime::from_unix_seconds(550);
    assert_eq!(decide(|case, _| case.now = 549), Err(Hold::Pausing { until }));
    let refused: &[(&str, Change)] = &[
        ("no rule", |case, _| case.campaign.manifest.retries = None),
        ("another class", |_, tries| tries.failure = Some(FailureClass::Boot)),
        ("no class", |_, tries| tries.failure = None),
        ("it ended well", |_, tries| tries.state = AttemptState::Success),
        ("quarantined", |_, tries| tries.state = AttemptState::Quarantined),
        ("a permit for another attempt", |case, _| case.permit.attempt = 3),
        ("a permit for the first", |case, _| case.permit.attempt = 1),
        ("the permit it was started by", |case, _| case.permit.sequence = 1),
        ("as often as it may", |case, tries| {
            (case.permit.attempt, tries.ended) = (4, 3)
        }),
        ("no way back", |case, _| case.campaign.plan.waves[0][0].previous = None),
        ("it is in flight", |case, _| {
            case.attempts
                .values_mut()
                .for_each(|at| *at = AttemptStanding::InFlight);
        }),
        ("it was sent back", |case, _| {
            let key = (DeviceId::new("d1").unwrap(), PermitKind::Rollback);
            case.attempts.insert(key, AttemptStanding::Ended);
        }),
        ("another one has failed, too", |case, tries| {
            case.tries.insert(DeviceId::new("d2").unwrap(), tries.clone());
        }),
    ];
    for (what, change) in refused {
        assert_eq!(decide(*change), Err(Hold::AlreadyStarted), "{what}");
    }
    // The third attempt rests for twice as long.
    let third = |case: &mut Case, tries: &mut Tries| {
        (case.permit.attempt, case.permit.sequence) = (3, 3);
        (tries.ended, tries.permit) = (2, 2);
    };
    let until = WallTime::from_unix_seconds(650);
    assert_eq!(decide(third), Err(Hold::Pausing { until }));
    // What nobody counted before the update of this node itself is final.
    let mut uncounted = failed_once();
    uncounted.tries.clear();
    assert_eq!(uncounted.decide(), Err(Hold::AlreadyStarted));
}

/// A failure that may be forgiven is none yet, for the gate: a coordinator cannot have a wave sent back over it, until more
/// have failed than the budget is for, or the wave's time is over.
#[test]
fn a_failure_that_may_be_forgiven_holds_the_gate_until_the_budget_is_spent() {
    let word = |device: &str, state: AttemptState, attempt: u32| {
        let report = AttemptReport {
            attempt,
            failure: (!state.is_success()).then_some(FailureClass::Install),
            ..said(device, state)
        };
        sign(&report, &key("n1"))
    };
    let judged = |words: Vec<Envelope>| {
        let mut campaign = campaign();
        campaign.manifest.retries = Some(retries());
        let document = GateEvidence {
            campaign: campaign.manifest.id.clone(),
            manifest_sha256: campaign.manifest_sha256,
            wave: 0,
            reports: words,
        };
        let mut wave = WaveEvidence::new(0);
        wave.add(campaign.manifest_sha256, &campaign.manifest, &campaign.plan, &document)
            .unwrap();
        let (manifest, plan) = (&campaign.manifest, &campaign.plan);
        (
            wave.verdict(manifest, plan),
            wave.verdict_after_deadline(manifest, plan),
        )
    };
    use AttemptState::{Failed, Success};
    use GateVerdict::{Fail, Pass, Unknown};
    assert_eq!(
        judged(vec![word("d1", Failed, 1), word("d2", Success, 1)]),
        (Unknown, Fail)
    );
    assert_eq!(
        judged(vec![word("d1", Failed, 2), word("d2", Success, 1)]),
        (Unknown, Fail)
    );
    assert_eq!(
        judged(vec![word("d1", Failed, 3), word("d2", Success, 1)]),
        (Fail, Fail)
    );
    assert_eq!(
        judged(vec![word("d1", Success, 2), word("d2", Success, 1)]),
        (Pass, Pass)
    );
    assert_eq!(
        judged(vec![word("d1", Success, 2), word("d2", Failed, 1)]),
        (Fail, Fail)
    );
    assert_eq!(judged(vec![word("d1", Failed, 1), word("d2", Failed, 1)]), (Fail, Fail));
}

#[test]
fn a_rollback_goes_to_the_previous_release_and_only_after_an_update() {
    let d1 = DeviceId::new("d1").unwrap();
    assert_eq!(
        decide(|p, _, _, _| p.kind = PermitKind::Rollback),
        Err(Hold::NothingToRollBack)
    );
    let mut back = Case::new();
    back.permit.kind = PermitKind::Rollback;
    back.permit.expires = WallTime::from_unix_seconds(9_000);
    back.attempts
        .insert((d1, PermitKind::Update), AttemptStanding::InFlight);
    back.gates = evidence(vec![report("d1", AttemptState::Failed, &key("n1"))]).unwrap();
    back.now = 3_000;
    assert_eq!(back.decide().unwrap().release, release("1"));
    // Silent, and nothing is known of it since this process began: the attempt finds out.
    back.device.version = None;
    assert_eq!(back.decide().unwrap().release, release("1"));
    back.last_version = Some("3");
    assert_eq!(back.decide(), Err(Hold::NothingToRollBack));
    let d1 = DeviceId::new("d1").unwrap();
    let moved_on = decide(|p, d, a, _| {
        p.kind = PermitKind::Rollback;
        d.version = Some("3".to_owned());
        a.insert((d1, PermitKind::Update), AttemptStanding::Ended);
    });
    assert_eq!(moved_on, Err(Hold::NothingToRollBack));
}

#[test]
fn a_plan_or_release_that_was_not_approved_does_not_make_a_campaign() {
    let sha = Sha256::of(b"manifest");
    let mut other = plan();
    other.waves.pop();
    assert!(matches!(
        ApprovedCampaign::assemble(manifest(), sha, &other.to_bytes(), releases),
        Err(AssembleError::WrongPlan { .. })
    ));
    assert!(matches!(
        ApprovedCampaign::assemble(manifest(), sha, &plan().to_bytes(), |_| None),
        Err(AssembleError::UnsignedRelease(_))
    ));
    let swapped = |target: &str| {
        releases(target).map(|r| Release {
            artifact: release("3").artifact,
            ..r
        })
    };
    assert!(matches!(
        ApprovedCampaign::assemble(manifest(), sha, &plan().to_bytes(), swapped),
        Err(AssembleError::OtherImage { .. })
    ));
}

/// Approvers have signed that servers are brought up whole: a plan that does not say which there are is not acted on.
#[test]
fn a_plan_without_the_servers_that_its_manifest_is_for_is_refused() {
    let of_servers = CampaignManifest {
        kind: firmesh_protocol::manifest::CampaignKind::Provisioning,
        ..manifest()
    };
    let refused = ApprovedCampaign::assemble(of_servers, Sha256::of(b"manifest"), &plan().to_bytes(), releases);
    let Err(AssembleError::BadPlan(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.to_string().contains("servers do not name d1"), "{why}");
}

#[test]
fn a_wave_starts_only_on_the_nodes_own_signed_reports_that_its_gate_passed() {
    use AttemptState::{Quarantined, Success};
    let n1 = key("n1");
    let good = |device| report(device, Success, &n1);
    let with = |gate: Vec<WaveEvidence>| {
        let mut case = Case::of_wave_1();
        case.gates = gate;
        case.decide()
    };
    let not_shown = |found| {
        Err(Hold::GateNotShown {
            wave: 0,
            needed: "passed",
            found,
        })
    };
    assert_eq!(with(Vec::new()), not_shown(GateVerdict::Unknown));
    assert_eq!(
        with(evidence(vec![good("d1")]).unwrap()),
        not_shown(GateVerdict::Unknown)
    );
    let failed = vec![good("d1"), report("d2", Quarantined, &n1)];
    assert_eq!(with(evidence(failed).unwrap()), not_shown(GateVerdict::Fail));
    assert!(with(evidence(vec![good("d1"), good("d2")]).unwrap()).is_ok());

    let mut on_its_way = Case::of_wave_1();
    on_its_way.evidence_is_here = false;
    assert_eq!(on_its_way.decide(), Err(Hold::EvidenceMissing));
}

#[test]
fn forged_foreign_and_repeated_reports_are_no_evidence() {
    use AttemptState::{Installing, Success};
    let n1 = key("n1");
    let good = |device| report(device, Success, &n1);
    let code = |reports| evidence(reports).unwrap_err().code();
    assert_eq!(code(vec![report("d1", Success, &key("n2"))]), "forged_report");
    assert_eq!(code(vec![report("d1", Success, &key("coordinator"))]), "forged_report");
    assert_eq!(code(vec![report("d3", Success, &key("n2"))]), "foreign_evidence");
    assert_eq!(code(vec![good("d1"), good("d1")]), "bad_evidence");
    assert_eq!(code(vec![report("d1", Installing, &n1)]), "bad_evidence");
    // Of another edition of the campaign.
    let mut other = campaign();
    other.manifest_sha256 = Sha256::of(b"other");
    let document = GateEvidence {
        campaign: other.manifest.id.clone(),
        manifest_sha256: other.manifest_sha256,
        wave: 0,
        reports: vec![good("d1")],
    };
    let refused = WaveEvidence::new(0).add(other.manifest_sha256, &other.manifest, &other.plan, &document);
    assert_eq!(refused.unwrap_err().code(), "foreign_evidence");
}

#[test]
fn soak_time_is_kept_against_a_coordinator_in_a_hurry() {
    let n1 = key("n1");
    let good = ["d1", "d2"].map(|device| report(device, AttemptState::Success, &n1));
    let mut case = Case::of_wave_1();
    case.campaign.manifest.gate.soak_s = 300;
    case.gates = evidence(good.to_vec()).unwrap();
    let until = WallTime::from_unix_seconds(700);
    assert_eq!(case.decide(), Err(Hold::Soaking { wave: 0, until }));
    case.now = 700;
    assert!(case.decide().is_ok());
}

#[test]
fn a_rollback_needs_a_gate_that_failed_or_a_wave_that_fell_silent() {
    let n1 = key("n1");
    let mut case = Case::new();
    case.permit.kind = PermitKind::Rollback;
    case.attempts.insert(
        (DeviceId::new("d1").unwrap(), PermitKind::Update),
        AttemptStanding::Ended,
    );
    assert!(matches!(
        case.decide(),
        Err(Hold::GateNotShown { needed: "failed", .. })
    ));
    case.gates = evidence(vec![report("d2", AttemptState::Failed, &n1)]).unwrap();
    assert_eq!(case.decide().unwrap().release, release("1"));
    // Nobody says how d2 ended, and its deadline is over.
    case.gates = evidence(vec![report("d1", AttemptState::Success, &n1)]).unwrap();
    assert!(case.decide().is_err());
    case.now = 600;
    assert!(case.decide().is_ok());
    case.campaign.manifest.automatic_rollback = false;
    assert_eq!(case.decide(), Err(Hold::RollbackNotApproved));
}

/// Without a failed gate it takes the approvers' order for this very device, or that they left it to the operators.
#[test]
fn a_device_goes_back_by_order_though_its_gate_passed() {
    let d1 = DeviceId::new("d1").unwrap();
    let mut case = Case::new();
    case.permit.kind = PermitKind::Rollback;
    case.attempts
        .insert((d1.clone(), PermitKind::Update), AttemptStanding::Ended);
    case.campaign.manifest.automatic_rollback = false;
    case.evidence_is_here = false;
    assert_eq!(case.decide(), Err(Hold::EvidenceMissing));
    case.evidence_is_here = true;
    assert_eq!(case.decide(), Err(Hold::RollbackNotApproved));
    let order = |device: &str| RollbackOrder {
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        scope: RollbackScope {
            waves: BTreeSet::new(),
            devices: [DeviceId::new(device).unwrap()].into(),
        },
        reason: "fans stop".to_owned(),
        issued: WallTime::from_unix_seconds(450),
    };
    // An order for another campaign, or for another edition, is none, whatever the permit names.
    let (mut foreign, mut older) = (order("d1"), order("d1"));
    foreign.campaign = CampaignId::new("autumn").unwrap();
    older.manifest_sha256 = Sha256::of(b"the edition before");
    for order in [&mut foreign, &mut older] {
        order.scope = RollbackScope::default();
    }
    case.orders = vec![foreign, older];
    assert_eq!(case.decide(), Err(Hold::RollbackNotApproved));
    case.orders = vec![order("d2")];
    assert_eq!(case.decide(), Err(Hold::RollbackNotApproved));
    case.orders.push(order("d1"));
    assert_eq!(case.decide().unwrap().release, release("1"));
    case.orders.clear();
    case.campaign.manifest.operator_rollback = true;
    assert_eq!(case.decide().unwrap().release, release("1"));
    // Whoever orders: only what this campaign has updated, and only by the live permit.
    case.attempts.clear();
    assert_eq!(case.decide(), Err(Hold::NothingToRollBack));
}

/// A coordinator that skips the question gets nothing started, whatever the gate says.
#[test]
fn the_next_wave_needs_an_approvers_yes_where_the_manifest_asks_for_it() {
    let n1 = key("n1");
    let good = ["d1", "d2"].map(|device| report(device, AttemptState::Success, &n1));
    let said = |wave, approved| WaveApproval {
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave,
        approved,
        reason: "looked at it".to_owned(),
        issued: WallTime::from_unix_seconds(450),
    };
    let mut case = Case::of_wave_1();
    case.gates = evidence(good.to_vec()).unwrap();
    case.campaign.manifest.gate.approval = Some(ApprovalRule::default());
    assert_eq!(case.decide(), Err(Hold::ApprovalNotShown { wave: 0 }));
    case.evidence_is_here = false;
    assert_eq!(case.decide(), Err(Hold::EvidenceMissing));
    case.evidence_is_here = true;
    let of_another_edition = WaveApproval {
        manifest_sha256: Sha256::of(b"an older edition"),
        ..said(0, true)
    };
    case.approvals = vec![said(0, false), said(1, true), of_another_edition];
    assert_eq!(case.decide(), Err(Hold::ApprovalNotShown { wave: 0 }));
    case.approvals.push(said(0, true));
    assert!(case.decide().is_ok());
    // A yes is no gate.
    case.gates = Vec::new();
    assert!(matches!(case.decide(), Err(Hold::GateNotShown { wave: 0, .. })));
}

#[test]
fn a_refused_wave_goes_back_only_where_the_manifest_says_so() {
    let mut case = Case::new();
    case.permit.kind = PermitKind::Rollback;
    case.attempts.insert(
        (DeviceId::new("d1").unwrap(), PermitKind::Update),
        AttemptStanding::Ended,
    );
    case.approvals = vec![WaveApproval {
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        approved: false,
        reason: "fans stop".to_owned(),
        issued: WallTime::from_unix_seconds(450),
    }];
    let mut with = |rule: Option<ApprovalRule>| {
        case.campaign.manifest.gate.approval = rule;
        case.decide().is_ok()
    };
    let goes_back = ApprovalRule {
        refused: Refused::RollBack,
        ..ApprovalRule::default()
    };
    assert!(!with(None) && !with(Some(ApprovalRule::default())));
    assert!(with(Some(goes_back.clone())));
    let asks_elsewhere = ApprovalRule {
        after: [5].into(),
        ..goes_back
    };
    assert!(!with(Some(asks_elsewhere)));
}

#[test]
fn a_brake_stops_an_edition_of_a_campaign_and_an_image_for_good() {
    let stopped = |braked: Braked| {
        let mut case = Case::new();
        case.brakes.insert(braked.clone());
        (case.decide(), Err(Hold::Braked(braked)))
    };
    let edition = |manifest: &[u8]| Braked::Campaign {
        id: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(manifest),
    };
    let image = |version| Braked::Release {
        target: release(version).target,
        sha256: release(version).artifact.sha256,
    };
    let (decided, held) = stopped(edition(b"manifest"));
    assert_eq!(decided, held);
    let (decided, held) = stopped(image("2"));
    assert_eq!(decided, held);
    assert!(stopped(edition(b"another edition")).0.is_ok());
    assert!(stopped(image("1")).0.is_ok());
}

#[test]
fn what_the_approvers_did_not_allow_is_held() {
    let mut case = Case::new();
    case.campaign.manifest.constraints.executors = vec!["fwupd".to_owned()];
    assert!(matches!(case.decide(), Err(Hold::WrongExecutor { .. })));

    let mut case = Case::new();
    let target = release("2").target;
    let image = case.campaign.releases.get_mut(&target).unwrap();
    image.info.reversibility = Reversibility::OneWay;
    assert_eq!(case.decide(), Err(Hold::OneWayNotAccepted(target)));
    case.campaign.manifest.constraints.one_way_accepted = true;
    assert!(case.decide().is_ok());

    let mut case = Case::new();
    let until = WallTime::from_unix_seconds(1_100);
    case.campaign.manifest.constraints.blackouts = vec![firmesh_protocol::window::Blackout {
        from: WallTime::from_unix_seconds(900),
        until,
    }];
    assert_eq!(case.decide(), Err(Hold::WindowClosed { opens: Some(until) }));

    let mut case = Case::new();
    case.campaign
        .plan
        .nodes
        .insert(NodeId::new("n1").unwrap(), key("n9").public());
    assert!(matches!(case.decide(), Err(Hold::OtherKey { .. })));
}

fn labels(json: &str) -> Labels {
    serde_json::from_str(json).unwrap()
}

impl Case {
    /// d1 is the BIOS after d0, the BMC of the same server.
    fn of_a_unit() -> Self {
        let mut case = Self::new();
        let unit = labels(r#"{"power_feed":"a","unit":"s1"}"#);
        let mut before = planned("d0", "n1");
        let wave = &mut case.campaign.plan.waves[0];
        let own = wave.iter_mut().find(|planned| planned.device.as_str() == "d1").unwrap();
        (before.labels, own.labels, own.after) = (unit.clone(), unit.clone(), Some(before.device.clone()));
        wave.insert(0, before);
        case.device.labels = unit;
        case.neighbour("d0", "bmc", Some("2"), false);
        case
    }

    fn neighbour(&mut self, device: &str, component: &str, version: Option<&str>, in_flight: bool) {
        let neighbour = Neighbour {
            labels: self.device.labels.clone(),
            component: Component::new(component).unwrap(),
            version: version.map(str::to_owned),
            in_flight,
        };
        self.neighbours.insert(DeviceId::new(device).unwrap(), neighbour);
    }

    fn refused(&self) -> (&'static str, Option<AttemptState>) {
        let hold = self.decide().unwrap_err();
        (hold.code(), hold.state())
    }
}

#[test]
fn a_device_starts_only_in_its_turn_in_its_unit() {
    let mut case = Case::of_a_unit();
    assert!(case.decide().is_ok());
    case.neighbour("d0", "bmc", Some("2"), true);
    assert_eq!(case.refused(), ("unit_busy", Some(AttemptState::Blocked)));
    for version in [Some("1"), None] {
        case.neighbour("d0", "bmc", version, false);
        assert_eq!(case.refused(), ("not_its_turn", Some(AttemptState::Blocked)));
    }
    // An attempt that ended is believed only if the new version was read back.
    let key = (DeviceId::new("d0").unwrap(), PermitKind::Update);
    case.attempts.insert(key, AttemptStanding::Ended);
    assert_eq!(case.refused(), ("not_its_turn", Some(AttemptState::Blocked)));
    case.neighbour("d0", "bmc", Some("1"), false);
    assert_eq!(case.refused(), ("turn_never_comes", Some(AttemptState::Cancelled)));
    case.neighbour("d0", "bmc", Some("2"), false);
    assert!(case.decide().is_ok());
    case.device.labels = Labels::default();
    assert_eq!(case.refused(), ("other_labels", Some(AttemptState::Failed)));
}

fn other_component(component: &str, versions: &[&str]) -> firmesh_protocol::manifest::OtherComponent {
    firmesh_protocol::manifest::OtherComponent {
        component: Component::new(component).unwrap(),
        versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        min_version: None,
        version_scheme: None,
    }
}

/// `d1` comes after `d0`, whose turn it is.
#[test]
fn a_device_goes_back_after_those_that_came_after_it_and_by_its_planned_labels() {
    let mut case = Case::of_a_unit();
    let wave = &mut case.campaign.plan.waves[0];
    wave.iter_mut().for_each(|planned| planned.after = None);
    let own = DeviceId::new("d1").unwrap();
    let later = wave.iter_mut().find(|planned| planned.device.as_str() == "d0").unwrap();
    (later.after, later.previous) = (Some(own.clone()), Some(release("1").target));
    case.permit.kind = PermitKind::Rollback;
    case.campaign.manifest.operator_rollback = true;
    case.attempts.insert((own, PermitKind::Update), AttemptStanding::Ended);
    assert_eq!(case.refused(), ("not_its_turn", Some(AttemptState::Blocked)));
    case.neighbour("d0", "bmc", Some("1"), false);
    assert!(case.decide().is_ok());
    // Whose label was changed since goes back all the same.
    case.device.labels = Labels::default();
    assert!(case.decide().is_ok());
    // One that cannot go back does not bar the way, unless its release does.
    case.neighbour("d0", "bmc", Some("2"), false);
    let planned = case.campaign.plan.waves[0].iter_mut();
    planned.for_each(|planned| planned.previous = planned.previous.take().filter(|_| planned.device.as_str() == "d1"));
    case.device.labels = labels(r#"{"power_feed":"a","unit":"s1"}"#);
    case.neighbour("d0", "bmc", Some("2"), false);
    assert!(case.decide().is_ok());
    let own = release("2").info.component.to_string();
    let staying = case.campaign.releases.get_mut(&release("2").target).unwrap();
    case.neighbours
        .values_mut()
        .for_each(|other| other.component = staying.info.component.clone());
    staying.info.requires = vec![other_component(&own, &["2"])];
    assert_eq!(case.refused(), ("other_component", Some(AttemptState::Failed)));
}

#[test]
fn what_a_release_requires_is_read_from_the_other_components() {
    let mut case = Case::of_a_unit();
    let rule = |versions: &[&str]| other_component("nic", versions);
    let target = release("2").target;
    case.campaign.releases.get_mut(&target).unwrap().info.requires = vec![rule(&["7"])];
    assert_eq!(
        case.refused(),
        ("other_component", Some(AttemptState::Failed)),
        "there is none"
    );
    case.neighbour("d9", "nic", None, false);
    assert_eq!(case.refused(), ("other_component", Some(AttemptState::Blocked)));
    case.neighbour("d9", "nic", Some("6"), false);
    assert_eq!(case.refused(), ("other_component", Some(AttemptState::Failed)));
    case.neighbour("d9", "nic", Some("7"), false);
    assert!(case.decide().is_ok());
    case.campaign.releases.get_mut(&target).unwrap().info.conflicts = vec![rule(&["7", "8"])];
    assert_eq!(case.refused(), ("other_component", Some(AttemptState::Failed)));
}

#[test]
fn a_node_keeps_its_share_of_the_caps_of_fault_domains() {
    let mut case = Case::of_a_unit();
    case.campaign.manifest.caps = Caps::new(10, 10);
    case.campaign.manifest.caps.domains =
        serde_json::from_str(r#"[{"by":"power_feed","at_most":{"count":1}}]"#).unwrap();
    // A plan that does not say what the cap comes to binds like a cap of nothing.
    assert_eq!(case.refused(), ("other_labels", Some(AttemptState::Failed)));
    case.campaign.plan.domains =
        serde_json::from_str(r#"{"power_feed":{"a":{"devices":9,"at_most":1},"b":{"devices":9,"at_most":1}}}"#)
            .unwrap();
    assert!(case.decide().is_ok());
    let other = |labels_of: &str, in_flight| Neighbour {
        labels: labels(labels_of),
        component: Component::new("bmc").unwrap(),
        version: None,
        in_flight,
    };
    let d7 = DeviceId::new("d7").unwrap();
    case.neighbours.insert(d7.clone(), other(r#"{"power_feed":"a"}"#, true));
    assert_eq!(case.refused(), ("cap_full", Some(AttemptState::Blocked)));
    case.neighbours.insert(d7.clone(), other(r#"{"power_feed":"b"}"#, true));
    assert!(case.decide().is_ok());
    case.campaign.manifest.caps.never_together = serde_json::from_str(r#"[{"by":"power_feed"}]"#).unwrap();
    assert_eq!(case.refused(), ("stands_in", Some(AttemptState::Blocked)));
    case.neighbours.insert(d7, other(r#"{"power_feed":"b"}"#, false));
    assert!(case.decide().is_ok());
}
