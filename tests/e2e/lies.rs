//! A coordinator binary that lies: everything people signed is in order, and the permits, evidence, brakes and revocations
//! that come with it are not. Each lie meets a real node with the image in its hands, and changes nothing on the device.

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    brake::{BRAKE_TYPE, Brake, Braked},
    evidence::{EVIDENCE_TYPE, GateEvidence},
    ids::{CampaignId, Sha256},
    labels::Labels,
    manifest::{Plan, PlannedDevice},
    report::{AttemptReport, AttemptState, PERMIT_TYPE, Permit, PermitKind, REPORT_TYPE},
    time::WallTime,
    trust::{Envelope, SecretKey},
};
use firmesh_tests::{
    rogue::Rogue,
    setup::place,
    wait::{Seen, Turn, until},
};
use serde_json::{Value, json};

use crate::{
    refusals::{APPROVERS, CAMPAIGN, DAY, Forger, NODE, ONLINE, RELEASE, RELEASES, WITHIN, key, now, sign_permit},
    victim::Victim,
};

/// A lie: what it is, the rules people signed, what the permit says, and the name it has to be refused by.
type Lie = (
    &'static str,
    fn(&mut Plan, &mut Value) -> Result<()>,
    fn(&mut Permit) -> Result<()>,
    &'static str,
);

const LIES: &[Lie] = &[
    (
        "a second wave without a word about the first",
        |plan, _| second_wave(plan),
        |permit| {
            permit.wave = 1;
            Ok(())
        },
        "gate_not_shown",
    ),
    (
        "a device that people planned for another node's key",
        |plan, _| {
            plan.nodes.insert("n1".parse()?, key(NODE + 9).public());
            Ok(())
        },
        |_| Ok(()),
        "other_node_key",
    ),
    (
        "a device that stands in no plan",
        |plan, _| {
            plan.waves[0][0].device = "d9".parse()?;
            Ok(())
        },
        |_| Ok(()),
        "void_permit",
    ),
    (
        "a permit for another edition of the campaign",
        |_, _| Ok(()),
        |permit| {
            permit.manifest_sha256 = Sha256::of(b"an edition that was withdrawn");
            Ok(())
        },
        "void_permit",
    ),
    (
        "a permit that expired a minute ago, once more",
        |_, _| Ok(()),
        |permit| {
            permit.expires = WallTime::from_unix_seconds(now().unix_seconds() - 60);
            Ok(())
        },
        "expired_permit",
    ),
    (
        "an image by another executor than the approvers allow",
        |_, manifest| {
            manifest["constraints"] = json!({ "executors": ["redfish"] });
            Ok(())
        },
        |_| Ok(()),
        "wrong_executor",
    ),
];

#[tokio::test]
async fn permits_that_lie_are_refused_by_name_and_the_device_stays_as_it_is() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    for (what, rules, lie, code) in LIES {
        let forger = Forger::with(rules, lie)?;
        let victim = Victim::start(&rogue, &forger)
            .await
            .with_context(|| format!("before {what}"))?;
        forger.offer(&rogue, 1)?;
        victim.refuses(code).await.with_context(|| (*what).to_owned())?;
        victim.holds_its_device().await.with_context(|| (*what).to_owned())?;
    }
    Ok(())
}

/// Everything is signed by people: the release says which models it is for, and the device is none of them.
#[tokio::test]
async fn an_image_for_another_model_is_refused_by_the_node_whatever_was_planned_and_permitted() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let mut forger = Forger::honest()?;
    let mut release = forger.repository.releases().targets[RELEASE].clone();
    let models = release
        .custom
        .as_mut()
        .and_then(|info| info.get_mut("models"))
        .context("a release names its models")?;
    *models = json!(["R9"]);
    forger.edit(|repository| repository.set_release(RELEASE, release, now() + DAY))?;
    let victim = Victim::start(&rogue, &forger).await?;
    forger.offer(&rogue, 1)?;
    victim.refuses("wrong_model").await?;
    victim.holds_its_device().await
}

#[tokio::test]
async fn a_permit_by_a_key_that_the_approvers_did_not_name_is_none() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let mut forger = Forger::honest()?;
    let honest = forger.permit.clone();
    let payload = serde_json::to_vec(&permit(&forger, 1)?)?;
    forger.permit = Envelope::sign(PERMIT_TYPE, payload, [&key(ONLINE + 5)]);
    let victim = Victim::start(&rogue, &forger).await?;
    forger.offer(&rogue, 1)?;
    victim.refuses("forged_permit").await?;
    victim.holds_its_device().await?;
    rogue.wares().permits = vec![honest];
    victim.writes_its_device().await.context("the coordinator's own")
}

/// One permit for two devices of a rack, of which only one may be in flight: the first never comes back, so its place is
/// taken for good.
#[tokio::test]
async fn a_permit_beyond_the_cap_starts_no_device_more_than_the_cap() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let two_devices = |plan: &mut Plan, _: &mut Value| {
        let mut second = plan.waves[0][0].clone();
        second.device = "d2".parse()?;
        plan.waves[0].push(second);
        Ok(())
    };
    let forger = Forger::with(two_devices, |permit| {
        permit.devices.push("d2".parse()?);
        Ok(())
    })?;
    let victim = Victim::start_with(&rogue, &forger, |config| {
        let (head, first) = config.split_once("[[device]]").expect("it has a device");
        let second = first.replace("\"d1\"", "\"d2\"").replace("/host", "/host2");
        let (before, reset) = first.split_once("reset_command = [").expect("it can be reset");
        let (_, after) = reset.split_once(']').expect("a list ends");
        format!("{head}[[device]]{before}reset_command = [\"true\"]{after}[[device]]{second}")
    })
    .await?;
    forger.offer(&rogue, 1)?;
    victim.writes_its_device().await?;
    victim.refuses("cap_full").await?;
    let status = victim.node.status().await?;
    let second = status["attempts"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|attempt| attempt["device"] == "d2")
        .context("the second device has an entry")?;
    ensure!(second["state"] == "blocked", "{status}");
    victim.second_host_is_untouched()
}

#[tokio::test]
async fn reports_that_the_coordinator_made_up_open_no_wave() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let forger = Forger::with(|plan, _| second_wave(plan), |_| Ok(()))?;
    let victim = Victim::start(&rogue, &forger).await?;
    offer_second_wave(&rogue, forger, &key(ONLINE))?;
    victim.refuses("forged_report").await?;
    victim.refuses("gate_not_shown").await?;
    victim.holds_its_device().await
}

/// The positive control: with the word of the node that was planned, the same wave opens.
#[tokio::test]
async fn the_word_of_the_planned_node_opens_the_wave() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let forger = Forger::with(|plan, _| second_wave(plan), |_| Ok(()))?;
    let victim = Victim::start(&rogue, &forger).await?;
    offer_second_wave(&rogue, forger, &key(NODE + 1))?;
    victim.writes_its_device().await
}

/// A permit for the second wave, with a report on the first that `reporter` signed.
fn offer_second_wave(rogue: &Rogue, mut forger: Forger, reporter: &SecretKey) -> Result<()> {
    let edition = Sha256::of(&forger.manifest);
    let evidence = evidence(edition, reporter)?;
    let digest = Sha256::of(&evidence);
    forger.permit = sign_permit(&Permit {
        wave: 1,
        evidence: vec![digest],
        ..permit(&forger, 1)?
    })?;
    forger.offer(rogue, 1)?;
    rogue.wares().evidence = [(digest.to_string(), evidence)].into();
    Ok(())
}

/// A permit for the device, as the coordinator signs it.
fn permit(forger: &Forger, epoch: u64) -> Result<Permit> {
    Ok(Permit {
        campaign: CampaignId::new(CAMPAIGN)?,
        manifest_sha256: Sha256::of(&forger.manifest),
        kind: PermitKind::Update,
        wave: 0,
        attempt: 1,
        sequence: 2,
        epoch,
        issued: now(),
        expires: now() + DAY,
        devices: vec!["d1".parse()?],
        evidence: Vec::new(),
    })
}

#[tokio::test]
async fn outside_its_windows_nothing_starts_and_a_coordinator_left_behind_is_not_followed() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let closed = |_: &mut Plan, manifest: &mut Value| {
        manifest["constraints"] = json!({ "blackouts": [{ "from": now(), "until": now() + DAY }] });
        Ok(())
    };
    let forger = Forger::with(closed, |permit| {
        permit.epoch = 7;
        Ok(())
    })?;
    let victim = Victim::start(&rogue, &forger).await?;
    forger.offer(&rogue, 1)?;
    until("the device to wait for its window", WITHIN, async || {
        let status = victim.node.status().await?;
        Ok(Seen::when(status["attempts"][0]["state"] == "waiting_window", || {
            status.to_string()
        }))
    })
    .await?;
    let stale = sign_permit(&permit(&forger, 6)?)?;
    rogue.wares().permits.push(stale);
    victim.refuses("stale_epoch").await?;
    victim.holds_its_device().await
}

#[tokio::test]
async fn one_approver_s_brake_stops_a_campaign_for_good_and_nobody_else_s_does() -> Result<()> {
    let _turn = Turn::take().await?;
    let rogue = Rogue::start(&place("n1", 1))?;
    let forger = Forger::honest()?;
    let mut victim = Victim::start(&rogue, &forger).await?;
    forger.offer(&rogue, 1)?;
    // The campaign is known before its permit, so that the brake is in time.
    let permits = std::mem::take(&mut rogue.wares().permits);
    until("the campaign to be taken up", WITHIN, async || {
        let status = victim.node.status().await?;
        Ok(Seen::when(status["campaigns"] == json!([CAMPAIGN]), || {
            status.to_string()
        }))
    })
    .await?;
    let edition = Braked::Campaign {
        id: CampaignId::new(CAMPAIGN)?,
        manifest_sha256: Sha256::of(&forger.manifest),
    };
    rogue.wares().brakes = vec![brake(&edition, &key(ONLINE))?];
    victim
        .refuses("signature_threshold")
        .await
        .context("the coordinator's own key")?;
    rogue.wares().brakes = vec![
        brake(&edition, &key(RELEASES + 1))?,
        brake(&edition, &key(RELEASES + 2))?,
    ];
    let unmoved = victim.node.status().await?;
    ensure!(unmoved["brakes"] == json!([]), "{unmoved}");

    // With the coordinator dead: a person brings it to the node.
    victim
        .node
        .bring_brake(brake(&edition, &key(APPROVERS + 1))?.to_bytes())
        .await?;
    rogue.wares().brakes.clear();
    rogue.wares().permits = permits;
    let cancelled = async |victim: &Victim| {
        until("the permit to be held by the brake", WITHIN, async || {
            let status = victim.node.status().await?;
            let reason = status["attempts"][0]["reason"].as_str().unwrap_or_default();
            Ok(Seen::when(reason.contains("a brake was pulled"), || status.to_string()))
        })
        .await
    };
    cancelled(&victim).await?;
    victim.node.process.kill()?;
    victim.node.restart().await?;
    cancelled(&victim).await.context("after SIGKILL")?;
    victim.holds_its_device().await
}

/// The first wave goes to a node that is not here, the second to the victim.
fn second_wave(plan: &mut Plan) -> Result<()> {
    let first = PlannedDevice {
        device: "d0".parse()?,
        node: "n0".parse()?,
        rack: "eu/hall-1/rack-2".parse()?,
        release: RELEASE.to_owned(),
        from_version: "1.0.0".to_owned(),
        previous: None,
        labels: Labels::default(),
        hops: Vec::new(),
        after: None,
    };
    plan.nodes.insert("n0".parse()?, key(NODE + 1).public());
    plan.waves.insert(0, vec![first]);
    Ok(())
}

/// Evidence, signed by the coordinator, with a report on d0 that `reporter` signed.
fn evidence(edition: Sha256, reporter: &SecretKey) -> Result<Vec<u8>> {
    let report = AttemptReport {
        campaign: CampaignId::new(CAMPAIGN)?,
        manifest_sha256: edition,
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        attempt: 1,
        device: "d0".parse()?,
        node: "n0".parse()?,
        sequence: 1,
        state: AttemptState::Success,
        reason: String::new(),
        version: Some("1.1.0".to_owned()),
        failure: None,
        health: None,
        at: now(),
    };
    let evidence = GateEvidence {
        campaign: report.campaign.clone(),
        manifest_sha256: edition,
        wave: 0,
        reports: vec![Envelope::sign(REPORT_TYPE, serde_json::to_vec(&report)?, [reporter])],
    };
    let signed = Envelope::sign(EVIDENCE_TYPE, serde_json::to_vec(&evidence)?, [&key(ONLINE)]);
    Ok(signed.to_bytes())
}

fn brake(braked: &Braked, by: &SecretKey) -> Result<Envelope> {
    let brake = Brake {
        braked: braked.clone(),
        reason: "it bricks fans".to_owned(),
        issued: now(),
    };
    Ok(Envelope::sign(BRAKE_TYPE, serde_json::to_vec(&brake)?, [by]))
}
