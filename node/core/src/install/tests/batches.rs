//! What a node wants to see before it starts a device of a campaign with three batches at once.

use super::*;

/// Device `w8` of the ninth of twelve batches of one device each, all at node n2. It rests on the batches 3, 4 and 5.
fn case() -> Case {
    let of_wave = |wave: u32| vec![planned(&format!("w{wave}"), "n2")];
    let w8 = DeviceId::new("w8").unwrap();
    let mut case = Case::new();
    case.campaign.manifest.strategy = Strategy::Rolling {
        batch: 1,
        max_concurrent_batches: 3,
    };
    case.campaign.plan.waves = (0..12).map(of_wave).collect();
    (case.permit.wave, case.permit.devices) = (8, vec![w8.clone()]);
    case.device.device = w8;
    case
}

/// What the only report on a wave shows, which came at this second.
fn shown(case: &Case, wave: u32, state: AttemptState, at: i64) -> WaveEvidence {
    let report = AttemptReport {
        wave,
        node: NodeId::new("n2").unwrap(),
        at: WallTime::from_unix_seconds(at),
        ..said(&format!("w{wave}"), state)
    };
    let document = GateEvidence {
        campaign: case.campaign.manifest.id.clone(),
        manifest_sha256: case.campaign.manifest_sha256,
        wave,
        reports: vec![sign(&report, &key("n2"))],
    };
    let mut shown = WaveEvidence::new(wave);
    let (manifest, plan) = (&case.campaign.manifest, &case.campaign.plan);
    shown
        .add(case.campaign.manifest_sha256, manifest, plan, &document)
        .unwrap();
    shown
}

fn good(case: &Case, waves: &[u32]) -> Vec<WaveEvidence> {
    let good = |wave: &u32| shown(case, *wave, AttemptState::Success, 400);
    waves.iter().map(good).collect()
}

/// By every third batch alone, a coordinator that lies would go on past two that failed.
#[test]
fn a_permit_that_leaves_one_of_three_gates_out_starts_nothing() {
    let mut case = case();
    let not_shown = |wave, found| {
        Err(Hold::GateNotShown {
            wave,
            needed: "passed",
            found,
        })
    };
    for (left_out, waves) in [(3, [4, 5]), (4, [3, 5]), (5, [3, 4])] {
        case.gates = good(&case, &waves);
        assert_eq!(case.decide(), not_shown(left_out, GateVerdict::Unknown));
    }
    // Others do not stand in for it: neither older ones nor those that may be open still.
    case.gates = good(&case, &[0, 1, 2, 4, 5, 6, 7]);
    assert_eq!(case.decide(), not_shown(3, GateVerdict::Unknown));
    for bad in 3..6 {
        case.gates = good(&case, &[3, 4, 5]);
        case.gates[bad as usize - 3] = shown(&case, bad, AttemptState::Failed, 400);
        assert_eq!(case.decide(), not_shown(bad, GateVerdict::Fail));
    }
    case.gates = good(&case, &[5, 4, 3]);
    assert!(case.decide().is_ok());
    case.gates.pop();
    case.evidence_is_here = false;
    assert_eq!(case.decide(), Err(Hold::EvidenceMissing));
}

#[test]
fn the_first_three_batches_rest_on_nothing_and_the_next_on_those_that_there_are() {
    let at = |wave: u32, gates: &[u32]| {
        let mut case = case();
        let device = DeviceId::new(format!("w{wave}")).unwrap();
        (case.permit.wave, case.permit.devices) = (wave, vec![device.clone()]);
        case.device.device = device;
        case.gates = good(&case, gates);
        // The first wave's devices are looked for at n1 elsewhere.
        case.campaign.plan.waves[0] = vec![planned("w0", "n1")];
        case.decide().is_ok()
    };
    assert!(at(0, &[]) && at(1, &[]) && at(2, &[]));
    assert!(!at(3, &[]) && !at(3, &[1]) && at(3, &[0]));
    assert!(!at(4, &[1]) && at(4, &[0, 1]));
    assert!(!at(5, &[1, 2]) && !at(5, &[0, 2]) && at(5, &[0, 1, 2]));
}

/// Of one batch after the other, only the one before counts: as ever.
#[test]
fn how_many_at_once_is_what_the_approvers_signed() {
    let mut case = case();
    case.campaign.manifest.strategy = Strategy::rolling(1);
    case.gates = good(&case, &[3, 4, 5]);
    assert!(matches!(case.decide(), Err(Hold::GateNotShown { wave: 7, .. })));
    case.gates = good(&case, &[7]);
    assert!(case.decide().is_ok());
}

#[test]
fn each_of_the_three_has_soaked_and_was_approved() {
    let mut case = case();
    case.campaign.manifest.gate.soak_s = 300;
    case.gates = good(&case, &[3, 4]);
    case.gates.push(shown(&case, 5, AttemptState::Success, 450));
    let until = WallTime::from_unix_seconds(750);
    case.now = 690;
    assert!(case.decide().is_ok(), "clocks differ by a minute");
    case.now = 689;
    assert_eq!(case.decide(), Err(Hold::Soaking { wave: 5, until }));
    case.now = 690;
    case.campaign.manifest.gate.approval = Some(ApprovalRule::default());
    let yes = |wave| WaveApproval {
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave,
        approved: true,
        reason: "looked at it".to_owned(),
        issued: WallTime::from_unix_seconds(600),
    };
    case.approvals = vec![yes(5), yes(3)];
    assert_eq!(case.decide(), Err(Hold::ApprovalNotShown { wave: 4 }));
    case.approvals.push(yes(4));
    assert!(case.decide().is_ok());
    // Only where it is asked for.
    case.approvals.clear();
    case.campaign.manifest.gate.approval = Some(ApprovalRule {
        after: [0, 2].into(),
        ..ApprovalRule::default()
    });
    assert!(case.decide().is_ok());
}

/// A batch goes back by its own gate alone, whatever became of those beside it.
#[test]
fn a_batch_goes_back_by_its_own_gate() {
    let mut case = case();
    case.permit.kind = PermitKind::Rollback;
    let key = (case.device.device.clone(), PermitKind::Update);
    case.attempts.insert(key, AttemptStanding::Ended);
    case.gates = vec![shown(&case, 7, AttemptState::Failed, 400)];
    assert!(matches!(case.decide(), Err(Hold::GateNotShown { wave: 8, .. })));
    case.gates = vec![shown(&case, 8, AttemptState::Failed, 400)];
    assert_eq!(case.decide().unwrap().release, release("1"));
}
