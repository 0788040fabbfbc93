//! Several coordinators on one PostgreSQL: whoever leads may be killed, stopped for a while or restarted; the campaign goes on,
//! no permit is given twice, no cap exceeded, and nothing that was acknowledged is lost. What is found out comes from the audit
//! log, which auditors read as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use firmesh_protocol::{
    api::{AuditEntries, CampaignState},
    audit::{Entry, Event},
    report::{AttemptState, PERMIT_TYPE, Permit, PermitKind},
    trust::{Envelope, KeySet},
};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    replicas::Replicas,
    setup::{NEW, get, rules},
    wait::{Seen, until},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The requirement: another coordinator continues within it.
const FAILOVER_MAX: Duration = Duration::from_secs(10);

const WITHIN: Duration = Duration::from_secs(240);

/// Devices of one rack at a time.
const PER_RACK: u32 = 1;

fn three() -> Shape {
    Shape {
        racks: 2,
        nodes: 2,
        bmcs: 2,
        coordinators: 3,
        boot_ms: 2_500,
        ..Shape::default()
    }
}

#[tokio::test]
async fn a_campaign_survives_every_leader_and_none_of_them_does_anything_twice() -> Result<()> {
    Cluster::with(three(), async |fleet| {
        let mut writer = Writer::new(fleet)?;
        fleet.start_campaign("spring", &rules(PER_RACK, (180, 60)))?;
        writer.write().await?;
        // Sooner, and a failover takes less time than the first proofs.
        until("the first devices to be on their way", WITHIN, async || {
            let view = fleet.campaign("spring").await?;
            let are_off = view.states.keys().any(|state| *state != AttemptState::Pending);
            Ok(Seen::when(are_off, || format!("{view:?}")))
        })
        .await?;
        let mut failovers = Vec::new();
        // Killed, again and again.
        for _ in 0..4 {
            let (replicas, at) = leader(fleet).await?;
            replicas.members[at].process.kill()?;
            failovers.push(writer.first_write().await?);
            replicas.start_again(at).await?;
        }
        // Stopped for longer than its lease, and then awake again, with a world of its own in its memory.
        let (replicas, at) = leader(fleet).await?;
        replicas.members[at].process.signal(Signal::SIGSTOP)?;
        failovers.push(writer.first_write().await?);
        let replaced = replicas.leader(|other| other != at).await?;
        let sleeper = replicas.members[at].url.clone();
        replicas.members[at].process.signal(Signal::SIGCONT)?;
        // Asked itself, it must not write as the leader that it was.
        let written = writer.write_at(&sleeper).await;
        let replicas = fleet.replicas.as_ref().context("there are several")?;
        until("the one that slept to follow", WITHIN, async || {
            let role = replicas.role(at).await;
            Ok(Seen::when(role.as_deref() == Some("follower"), || format!("{role:?}")))
        })
        .await?;
        ensure!(replicas.leader(|_| true).await? == replaced, "two coordinators lead");
        if let Ok(name) = written {
            ensure!(writer.is_there(&name).await?, "{name} was acknowledged by one that was replaced");
        }
        // The database is gone for a while.
        let (replicas, _) = leader(fleet).await?;
        replicas.postgres.stop()?;
        replicas.postgres.go_on()?;
        failovers.push(writer.first_write().await?);

        let view = fleet.campaign_ends("spring", WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(fleet.running(NEW).await? == fleet.device_count(), "{:?}", fleet.versions().await?);
        for name in &writer.acknowledged {
            ensure!(writer.is_there(name).await?, "{name} was acknowledged and is lost");
        }
        let epochs = check_log(fleet).await?;
        fleet.operator.ok(&["audit", "verify", "--root", "trust/1.root.json"])?;

        failovers.sort();
        println!(
            "time to the first write after a failure: p50 {:?}, p99 {:?}, all {failovers:?}; permits were signed in the epochs {epochs:?}",
            failovers[failovers.len() / 2],
            failovers[failovers.len() - 1],
        );
        ensure!(failovers.iter().all(|took| *took < FAILOVER_MAX), "{failovers:?}");
        ensure!(epochs.len() > 1, "the campaign was over before anybody was killed: {epochs:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn coordinators_are_restarted_one_after_another_and_nobody_waits_for_a_lease() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 1,
        ..three()
    };
    Cluster::with(shape, async |fleet| {
        let mut writer = Writer::new(fleet)?;
        let mut waits = Vec::new();
        for _ in 0..3 {
            let (replicas, at) = leader(fleet).await?;
            let asked = Instant::now();
            replicas.members[at].process.signal(Signal::SIGTERM)?;
            replicas.leader(|other| other != at).await?;
            writer.first_write().await?;
            waits.push(asked.elapsed());
            let ended = replicas.members[at].process.wait(WITHIN).await?;
            ensure!(ended.success(), "{ended}");
            replicas.start_again(at).await?;
        }
        for name in &writer.acknowledged {
            ensure!(writer.is_there(name).await?, "{name} was acknowledged and is lost");
        }
        println!("time from SIGTERM to the first write at another coordinator: {waits:?}");
        ensure!(waits.iter().all(|took| *took < FAILOVER_MAX), "{waits:?}");
        a_stranger_is_refused(fleet).await
    })
    .await
}

/// One that brings keys of its own would be a stranger to the fleet.
async fn a_stranger_is_refused(fleet: &mut Cluster) -> Result<()> {
    let (replicas, _) = leader(fleet).await?;
    let replaced = &mut replicas.members[2];
    replaced.process.kill()?;
    fs::remove_dir_all(replaced.folder.join("coordinator/keys"))?;
    let refused = replicas.start_again(2).await.err().context("a stranger was let in")?;
    let said = format!("{refused:#}");
    ensure!(
        ["fleet CA", "online key", "permit key", "Several coordinators"]
            .iter()
            .all(|part| said.contains(part)),
        "{said}"
    );
    Ok(())
}

async fn leader(fleet: &mut Cluster) -> Result<(&mut Replicas, usize)> {
    let replicas = fleet.replicas.as_mut().context("there are several")?;
    let at = replicas.leader(|_| true).await?;
    Ok((replicas, at))
}

/// Somebody who writes and remembers what was acknowledged.
struct Writer {
    http: reqwest::Client,
    url: String,
    token: String,
    tried: u32,
    acknowledged: Vec<String>,
}

impl Writer {
    fn new(fleet: &Cluster) -> Result<Self> {
        let replicas = fleet.replicas.as_ref().context("there are several")?;
        Ok(Self {
            http: fleet.http().clone(),
            url: fleet.url().to_owned(),
            token: fs::read_to_string(replicas.token_file())?.trim().to_owned(),
            tried: 0,
            acknowledged: Vec::new(),
        })
    }

    async fn write(&mut self) -> Result<String> {
        let url = self.url.clone();
        self.write_at(&url).await
    }

    async fn write_at(&mut self, url: &str) -> Result<String> {
        self.tried += 1;
        let name = format!("written-{}", self.tried);
        let group: Value = json!({ "id": name, "description": "", "filter": "model == \"R1\"" });
        let request = self
            .http
            .post(format!("{url}/api/v1/device-groups"))
            .bearer_auth(&self.token);
        let answer = request.timeout(Duration::from_secs(3)).json(&group).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "{status}: {}", answer.text().await?);
        self.acknowledged.push(name.clone());
        Ok(name)
    }

    /// Tries until somebody takes it; how long that took.
    async fn first_write(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        until("a coordinator to take a write", WITHIN, async || {
            Ok(Seen::Yes(self.write().await?))
        })
        .await?;
        Ok(begun.elapsed())
    }

    async fn is_there(&self, name: &str) -> Result<bool> {
        let url = format!("{}/api/v1/device-groups/{name}", self.url);
        Ok(self.http.get(url).send().await?.status().is_success())
    }
}

/// Goes through the whole log: epochs only grow, no sequence stands for two permits, and never are more devices of a rack
/// permitted at a time than the cap has. Answers with the epochs of the permits.
async fn check_log(fleet: &Cluster) -> Result<BTreeSet<u64>> {
    let about: Value = get(fleet.http(), &format!("{}/api/v1/about", fleet.url())).await?;
    let key = about["permit_key"]
        .as_str()
        .context("about has a permit key")?
        .parse()?;
    let keys = KeySet::of("permits", 1, [key])?;
    let (mut permits, mut epochs) = (BTreeMap::<u64, Permit>::new(), Vec::new());
    let mut under_way: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut from = 0;
    loop {
        let url = format!("{}/api/v1/audit/entries?from={from}", fleet.url());
        let page: AuditEntries = get(fleet.http(), &url).await?;
        if page.items.is_empty() {
            break;
        }
        from += page.items.len() as u64;
        for logged in page.items {
            match Entry::from_bytes(logged.entry.as_bytes())?.event {
                Event::Permit { sequence, .. } => {
                    let document = BASE64.decode(logged.document.context("a permit has a document")?.as_bytes())?;
                    let permit = Envelope::from_bytes(&document)?
                        .open::<Permit>(&keys, PERMIT_TYPE)?
                        .into_inner();
                    ensure!(
                        permit.sequence == sequence && permit.kind == PermitKind::Update,
                        "{permit:?}"
                    );
                    epochs.push(permit.epoch);
                    if let Some(known) = permits.get(&sequence) {
                        // The same permit, signed again by the next leader.
                        let again = Permit {
                            epoch: known.epoch,
                            ..permit.clone()
                        };
                        ensure!(
                            again == *known && permit.epoch > known.epoch,
                            "{permit:?} is not {known:?}"
                        );
                    } else {
                        for device in &permit.devices {
                            let rack = device.as_str().split('-').next().unwrap_or_default().to_owned();
                            let of_rack = under_way.entry(rack).or_default();
                            of_rack.insert(device.to_string());
                            ensure!(of_rack.len() <= PER_RACK as usize, "{of_rack:?} at a time");
                        }
                    }
                    permits.insert(sequence, permit);
                }
                Event::Result { device, state, .. } => {
                    ensure!(state == AttemptState::Success, "{device}: {state:?}");
                    let rack = device.as_str().split('-').next().unwrap_or_default();
                    under_way.entry(rack.to_owned()).or_default().remove(device.as_str());
                }
                _ => {}
            }
        }
    }
    ensure!(
        epochs.is_sorted(),
        "a permit was signed by one that led no more: {epochs:?}"
    );
    ensure!(
        !permits.is_empty() && under_way.values().all(BTreeSet::is_empty),
        "{under_way:?}"
    );
    Ok(epochs.into_iter().collect())
}
