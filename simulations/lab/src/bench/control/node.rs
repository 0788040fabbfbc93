//! One simulated node: a key, a certificate, a connection, and the names of its devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use firmesh_node::{
    identity::{Identity, NodeKey, enrolment_client_config},
    uplink::Uplink,
};
use firmesh_protocol::{
    api::{AuditSeen, EnrolRequest, EnrolResponse, EnrolmentTicket, NewNode, SyncRequest, SyncResponse, Traffic},
    ids::{CampaignId, Component, DeviceId, NodeId, Sha256, TopologyPath},
    labels::Labels,
    possession::{Answer, Challenge, Prover},
    report::{
        AttemptReport, AttemptState, DeviceFacts, NODE_RECORD_TYPE, NodeRecord, PERMIT_TYPE, Permit, PermitKind,
        REPORT_TYPE,
    },
    time::WallTime,
    trust::{Envelope, KeySet},
};

use super::crowd::{MODEL, NEW, OLD, Shape, VENDOR, site};
use crate::demo::api::Api;

/// How long a node waits for an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What real nodes send at once.
const REPORTS_MAX: usize = 200;

pub(in crate::bench) struct SimulatedNode {
    id: NodeId,
    identity: Identity,
    uplink: Uplink,
    record: Envelope,
    /// Whose permits count.
    permits: KeySet,
    pub(in crate::bench) devices: Vec<DeviceFacts>,
    permits_seen: BTreeMap<CampaignId, u64>,
    /// Challenges that were not answered yet.
    asked: Vec<Challenge>,
    /// Devices that were permitted and not reported on.
    permitted: Vec<(Permit, DeviceId)>,
    reported: BTreeSet<(CampaignId, DeviceId)>,
    sequence: u64,
    unacked: Vec<Envelope>,
    roster_version: u64,
    /// Permits by their sequences, and devices by the numbers of the reports on them.
    given: BTreeMap<u64, Permit>,
    told: BTreeMap<u64, DeviceId>,
}

/// What stands for the rack of a device: a node has one of its own.
pub(in crate::bench) fn rack_of(device: &DeviceId) -> String {
    device.as_str().split('-').next().unwrap_or_default().to_owned()
}

impl SimulatedNode {
    /// Enrols as every node does: a ticket from the operators, a certificate for a key of its own.
    pub(in crate::bench) async fn enrol(
        api: &Api,
        number: u32,
        shape: Shape,
        folder: &Path,
        permits: &KeySet,
    ) -> Result<Self> {
        let id = NodeId::new(format!("load-{number}"))?;
        // One node to a rack, a site to a campaign.
        let path: TopologyPath = format!("{}/rack-{number}/{id}", site(number % shape.campaigns)).parse()?;
        let node = NewNode {
            node: id.clone(),
            path: path.clone(),
        };
        let ticket: EnrolmentTicket = api.post("/api/v1/nodes", &node).await?;
        let key = NodeKey::load_or_create(&folder.join(format!("{id}.key")))?;
        let request = EnrolRequest {
            node: id.clone(),
            token: ticket.token,
            csr_pem: key.certificate_request(&id, &[])?,
        };
        let tls = enrolment_client_config(&ticket.fleet_ca_pem)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .timeout(PATIENCE)
            .build()?;
        let answer = http
            .post(format!("{}/node/v1/enrol", ticket.node_url))
            .json(&request)
            .send()
            .await?;
        let enrolled: EnrolResponse = answer.error_for_status()?.json().await?;
        let certificate = der(&enrolled.certificate_pem)?;
        let record = NodeRecord {
            node: id.clone(),
            path: path.clone(),
            certificate: hex::encode(&certificate),
            data_addr: "127.0.0.1:1".to_owned(),
            mesh_addr: "/ip4/127.0.0.1/udp/1/quic-v1".to_owned(),
            sequence: 1,
        };
        let record = Envelope::sign(NODE_RECORD_TYPE, serde_json::to_vec(&record)?, [&key.secret()]);
        let identity = Identity::new(key, certificate.into(), der(&enrolled.fleet_ca_pem)?.into())?;
        let uplink = Uplink::new(ticket.node_url, identity.client_config()?, PATIENCE)?;
        let facts = |device: u32| -> Result<DeviceFacts> {
            Ok(DeviceFacts {
                device: DeviceId::new(format!("d{number}-{device}"))?,
                vendor: VENDOR.to_owned(),
                model: MODEL.to_owned(),
                component: Component::new("bmc")?,
                version: Some(OLD.to_owned()),
                executor: "redfish".to_owned(),
                labels: Labels::default(),
            })
        };
        Ok(Self {
            id,
            identity,
            uplink,
            record,
            permits: permits.clone(),
            devices: (0..shape.devices).map(facts).collect::<Result<_>>()?,
            permits_seen: BTreeMap::new(),
            asked: Vec::new(),
            permitted: Vec::new(),
            reported: BTreeSet::new(),
            sequence: 0,
            unacked: Vec::new(),
            roster_version: 0,
            given: BTreeMap::new(),
            told: BTreeMap::new(),
        })
    }

    /// One heartbeat, with all that a node has to say.
    pub(in crate::bench) async fn sync(&mut self, image: &[u8]) -> Result<()> {
        let answers = self.asked.drain(..).take(firmesh_protocol::limits::ANSWERS_MAX);
        let answers = answers
            .map(|challenge| answer(challenge, &self.id, image))
            .collect::<Result<_>>()?;
        let request = SyncRequest {
            record: self.record.clone(),
            devices: self.devices.clone(),
            reports: self.unacked.iter().take(REPORTS_MAX).cloned().collect(),
            holdings: Vec::new(),
            traffic: Traffic::default(),
            banned: BTreeMap::new(),
            roster_version: self.roster_version,
            permits_seen: self.permits_seen.clone(),
            brakes: Vec::new(),
            brakes_version: 0,
            revocations_version: 0,
            audit: AuditSeen::default(),
            possession: answers,
            feeders: Vec::new(),
        };
        let response = self
            .uplink
            .sync(&request)
            .await
            .with_context(|| format!("node {}", self.id))?;
        self.take(response)
    }

    fn take(&mut self, response: SyncResponse) -> Result<()> {
        let acked = usize::try_from(response.reports_acked + self.unacked.len() as u64 - self.sequence)?;
        self.unacked.drain(..acked.min(self.unacked.len()));
        self.roster_version = response.roster_version;
        self.asked = response.challenges;
        for envelope in response.permits {
            let permit: Permit = envelope.open::<Permit>(&self.permits, PERMIT_TYPE)?.into_inner();
            let seen = self.permits_seen.entry(permit.campaign.clone()).or_default();
            *seen = permit.sequence.max(*seen);
            let own = permit
                .devices
                .iter()
                .filter(|device| device.as_str().starts_with(&self.prefix()));
            let own: Vec<_> = own.cloned().collect();
            if !own.is_empty() {
                self.given.insert(permit.sequence, permit.clone());
            }
            self.permitted
                .extend(own.into_iter().map(|device| (permit.clone(), device)));
        }
        Ok(())
    }

    fn prefix(&self) -> String {
        format!("d{}-", self.id.as_str().trim_start_matches("load-"))
    }

    /// Every permit for one of its devices.
    pub(in crate::bench) fn permits(&self) -> impl Iterator<Item = &Permit> {
        self.given.values()
    }

    /// Devices whose reports the coordinator has acknowledged.
    pub(in crate::bench) fn acknowledged(&self) -> impl Iterator<Item = &DeviceId> {
        let acked = self.sequence - self.unacked.len() as u64;
        self.told.range(..=acked).map(|(_, device)| device)
    }

    /// Whether nothing is left to prove.
    pub(in crate::bench) fn has_proven(&self) -> bool {
        self.asked.is_empty()
    }

    /// Devices that were ever permitted.
    pub(in crate::bench) fn begun(&self) -> usize {
        self.permitted.len() + self.reported.len()
    }

    /// Whether every device was reported on, and the coordinator knows it.
    pub(in crate::bench) fn is_done(&self) -> bool {
        self.ended() == self.devices.len()
    }

    /// Updates whose end the coordinator knows.
    pub(in crate::bench) fn ended(&self) -> usize {
        self.reported.len() - self.unacked.len()
    }

    /// Ends every attempt that was permitted: the device runs the new version.
    pub(in crate::bench) fn end_attempts(
        &mut self,
        manifests: &BTreeMap<CampaignId, Sha256>,
        now: WallTime,
    ) -> Result<()> {
        for (permit, device) in std::mem::take(&mut self.permitted) {
            if !self.reported.insert((permit.campaign.clone(), device.clone())) {
                continue;
            }
            self.sequence += 1;
            self.told.insert(self.sequence, device.clone());
            let report = AttemptReport {
                manifest_sha256: *manifests
                    .get(&permit.campaign)
                    .context("a permit of a campaign of ours")?,
                campaign: permit.campaign,
                wave: permit.wave,
                kind: PermitKind::Update,
                permit_sequence: permit.sequence,
                attempt: 1,
                device,
                node: self.id.clone(),
                sequence: self.sequence,
                state: AttemptState::Success,
                reason: String::new(),
                version: Some(NEW.to_owned()),
                failure: None,
                health: None,
                at: now,
            };
            let envelope = Envelope::sign(REPORT_TYPE, serde_json::to_vec(&report)?, [&self.identity.key.secret()]);
            self.unacked.push(envelope);
        }
        if self.reported.len() >= self.devices.len() {
            self.devices
                .iter_mut()
                .for_each(|facts| facts.version = Some(NEW.to_owned()));
        }
        Ok(())
    }
}

fn answer(challenge: Challenge, node: &NodeId, image: &[u8]) -> Result<Answer> {
    let mut prover = Prover::new(&challenge, node, image.len() as u64);
    while let Some(range) = prover.wants() {
        prover.add(&image[usize::try_from(range.start)?..usize::try_from(range.end)?])?;
    }
    let proof = prover.finish().context("the image is whole")?;
    Ok(Answer { challenge, proof })
}

fn der(pem: &str) -> Result<Vec<u8>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    Ok(CertificateDer::from_pem_slice(pem.as_bytes())?.to_vec())
}
