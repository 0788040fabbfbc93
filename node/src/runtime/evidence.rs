//! What permits rest on: evidence for gates, approvers' words between waves, and their orders to go back. Fetched by the digests that permits name,
//! from the coordinator or from the mesh, verified, and kept as long as a permit rests on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::Range,
    path::PathBuf,
};

use bytes::Bytes;
use firmesh_node_core::approved::ApprovedCampaign;
use firmesh_protocol::{
    approval::{WAVE_APPROVAL_TYPE, WaveApproval, WaveApprovalError},
    evidence::{EVIDENCE_TYPE, EvidenceError, GateEvidence, WaveEvidence},
    ids::{CampaignId, Sha256},
    limits::EVIDENCE_BYTES_MAX,
    report::Permit,
    rollback::{ROLLBACK_ORDER_TYPE, RollbackOrder, RollbackOrderError},
    trust::{Envelope, EnvelopeError, KeySet, TrustedFleet},
};
use tracing::{debug, info, warn};

use super::{Chain, Event, Runtime};
use crate::{
    files::write_durably,
    mesh::{GOSSIP_BYTES_MAX, MeshCommand, Topic},
    uplink::UplinkError,
};

/// Documents kept in memory: the gates of many waves. More are fetched again when they are wanted.
const DOCUMENTS_MAX: usize = 4_096;

/// What a permit's evidence says, once it is all here.
#[derive(Debug)]
pub(super) enum Shown {
    /// Parts are on their way.
    Missing,
    /// It is what the reports say, and what approvers have ordered.
    Found(Found),
    /// It was refused, or there is none.
    Nothing,
}

/// What a permit's documents say together.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// By wave, in order.
    pub(super) gates: Vec<WaveEvidence>,
    pub(super) orders: Vec<RollbackOrder>,
    pub(super) approvals: Vec<WaveApproval>,
}

/// One document, with a signature that was found good.
#[derive(Debug, Clone)]
enum Document {
    /// Put together and signed by a coordinator; the reports in it are checked for each permit.
    Gate(GateEvidence),
    /// Signed by the approvers.
    Order(RollbackOrder),
    /// Signed by one of them.
    Approval(WaveApproval),
}

/// The evidence at hand.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    documents: BTreeMap<Sha256, Document>,
    fetching: BTreeSet<Sha256>,
    /// What was fetched and does not count under the keys in force: as good as absent, or one bad document would keep all
    /// others from being looked at.
    refused: BTreeSet<Sha256>,
    /// What was found for permits, by edition of the campaign and sequence: checked once, because it costs a signature a
    /// report.
    shown: BTreeMap<(Sha256, u64), Option<Found>>,
    /// Who signs campaigns, says yes or no between waves, and orders to go back.
    approvers: Option<KeySet>,
}

/// Why a document is not evidence.
#[derive(Debug, thiserror::Error)]
enum DocumentError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Order(#[from] RollbackOrderError),
    #[error(transparent)]
    Approval(#[from] WaveApprovalError),
    #[error("there is no verified metadata here yet that names the approvers")]
    NoApprovers,
    #[error("the evidence has the digest {found}, the permit names {wanted}")]
    OtherDigest { found: Sha256, wanted: Sha256 },
}

impl Runtime {
    fn evidence_file(&self, digest: &Sha256) -> PathBuf {
        self.settings.state_dir.join("evidence").join(format!("{digest}.json"))
    }

    /// Whose orders count from now on.
    pub(super) fn trust_approvers(&mut self, fleet: &TrustedFleet) {
        match fleet.approver_keys() {
            Ok(keys) => {
                self.evidence.approvers = Some(keys);
                self.evidence.refused.clear();
                // What was left out of it may count now.
                self.evidence.shown.clear();
            }
            Err(error) => self.refuse(error.code(), Chain(&error).to_string()),
        }
    }

    /// Begins to fetch the evidence that a permit names and that is not here.
    pub(super) fn want_evidence(&mut self, permit: &Permit) {
        for digest in &permit.evidence {
            let evidence = &mut self.evidence;
            let is_known = evidence.documents.contains_key(digest) || evidence.refused.contains(digest);
            if is_known || !evidence.fetching.insert(*digest) {
                continue;
            }
            let (digest, campaign) = (*digest, permit.campaign.clone());
            let (uplink, file) = (self.uplink.clone(), self.evidence_file(&digest));
            self.spawn(async move {
                let stored = tokio::fs::read(&file).await;
                let found = match stored {
                    Ok(bytes) if bytes.len() as u64 <= EVIDENCE_BYTES_MAX && Sha256::of(&bytes) == digest => {
                        Ok(Bytes::from(bytes))
                    }
                    _ => uplink.evidence(&digest).await,
                };
                Event::Evidence {
                    campaign,
                    digest,
                    found,
                }
            });
        }
    }

    pub(super) fn on_evidence(
        &mut self,
        campaign: &CampaignId,
        digest: Sha256,
        found: Result<Bytes, UplinkError>,
    ) -> Result<(), firmesh_executors::JournalError> {
        self.evidence.fetching.remove(&digest);
        let bytes = match found {
            Ok(bytes) => bytes,
            Err(error) => {
                self.name_misconduct(&error);
                // The mesh may bring it; the permit's next consideration asks again.
                debug!(%campaign, %digest, error = %Chain(&error), "evidence was not to be had");
                return Ok(());
            }
        };
        if let Err(error) = self.keep_evidence(campaign, digest, &bytes) {
            if !matches!(error, DocumentError::NoApprovers) {
                if self.evidence.refused.len() >= DOCUMENTS_MAX {
                    self.evidence.refused.clear();
                }
                self.evidence.refused.insert(digest);
            }
            self.refuse("bad_evidence", format!("campaign {campaign}: {}", Chain(&error)));
            return self.consider();
        }
        if bytes.len() <= GOSSIP_BYTES_MAX {
            self.tell_mesh(MeshCommand::Publish(Topic::Evidence, bytes.to_vec()));
        }
        self.consider()
    }

    /// Takes evidence from the mesh; answers whether to pass it on: whatever was signed by a coordinator that some approved
    /// campaign names, or by its approvers.
    pub(super) fn hear_evidence(&mut self, bytes: &[u8]) -> bool {
        let digest = Sha256::of(bytes);
        let known: Vec<_> = self.fleet.campaigns.keys().cloned().collect();
        known
            .iter()
            .any(|campaign| self.keep_evidence(campaign, digest, bytes).is_ok())
    }

    fn keep_evidence(&mut self, campaign: &CampaignId, wanted: Sha256, bytes: &[u8]) -> Result<(), DocumentError> {
        let found = Sha256::of(bytes);
        if found != wanted {
            return Err(DocumentError::OtherDigest { found, wanted });
        }
        let Some(approved) = self.fleet.campaigns.get(campaign) else {
            return Ok(());
        };
        let envelope = Envelope::from_bytes(bytes)?;
        let approvers = || self.evidence.approvers.as_ref().ok_or(DocumentError::NoApprovers);
        let edition = approved.manifest_sha256;
        let document = match envelope.claimed_type() {
            ROLLBACK_ORDER_TYPE => Document::Order(RollbackOrder::open(&envelope, approvers()?, campaign, edition)?),
            WAVE_APPROVAL_TYPE => Document::Approval(WaveApproval::open(&envelope, approvers()?, campaign, edition)?),
            _ => {
                let evidence = envelope.open::<GateEvidence>(&approved.permit_keys(), EVIDENCE_TYPE)?;
                Document::Gate(evidence.into_inner())
            }
        };
        if self.evidence.documents.len() >= DOCUMENTS_MAX {
            self.evidence.documents.clear();
        }
        let is_new = self.evidence.documents.insert(found, document).is_none();
        let file = self.evidence_file(&found);
        if is_new && !file.exists() {
            let folder = file.parent().map_or(Ok(()), fs::create_dir_all);
            if let Err(error) = folder.and_then(|()| write_durably(&file, bytes, 0o600)) {
                self.local_error(&error);
            }
        }
        Ok(())
    }

    /// What a permit's evidence shows. Asks again for what is missing.
    pub(super) fn shown_by(&mut self, permit: &Permit) -> Shown {
        let key = (permit.manifest_sha256, permit.sequence);
        if let Some(shown) = self.evidence.shown.get(&key) {
            return shown.clone().map_or(Shown::Nothing, Shown::Found);
        }
        let campaign = self.fleet.campaigns.get(&permit.campaign);
        let gates = campaign.map(|campaign| permit.gates(&campaign.manifest.strategy));
        if permit.evidence.is_empty() || gates.as_ref().is_some_and(Range::is_empty) {
            return Shown::Nothing;
        }
        let counts = permit
            .evidence
            .iter()
            .filter(|digest| !self.evidence.refused.contains(*digest));
        let documents = counts.map(|digest| self.evidence.documents.get(digest));
        let Some(documents) = documents.collect::<Option<Vec<_>>>() else {
            self.want_evidence(permit);
            return Shown::Missing;
        };
        let (Some(campaign), Some(gates)) = (self.fleet.campaigns.get(&permit.campaign), gates) else {
            return Shown::Missing;
        };
        let shown = match found_in(campaign, gates.clone(), &documents) {
            Ok(shown) => {
                let reports: usize = shown.gates.iter().map(WaveEvidence::reports).sum();
                let (orders, approvals) = (shown.orders.len(), shown.approvals.len());
                info!(campaign = %permit.campaign, ?gates, reports, orders, approvals, "evidence verified");
                Some(shown)
            }
            Err(error) => {
                let detail = format!(
                    "permit {} of campaign {}: {}",
                    permit.sequence,
                    permit.campaign,
                    Chain(&error)
                );
                self.refuse(error.code(), detail);
                None
            }
        };
        // A permit is given again and again while a device waits, each time under another number.
        let live = self.fleet.permits_given();
        self.evidence.shown.retain(|key, _| live.contains(key));
        self.evidence.shown.insert(key, shown.clone());
        shown.map_or(Shown::Nothing, Shown::Found)
    }

    /// Forgets what no permit rests on any more, in memory and on disk.
    pub(super) fn prune_evidence<'a>(&mut self, permits: impl Iterator<Item = &'a Permit>) {
        let wanted: BTreeSet<_> = permits.flat_map(|permit| &permit.evidence).collect();
        self.evidence.documents.retain(|digest, _| wanted.contains(digest));
        let files = match fs::read_dir(self.settings.state_dir.join("evidence")) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.local_error(&error),
        };
        for file in files.flatten().map(|entry| entry.path()) {
            let digest = file.file_stem().and_then(|stem| stem.to_str()?.parse::<Sha256>().ok());
            if !digest.is_some_and(|digest| wanted.contains(&digest))
                && let Err(error) = fs::remove_file(&file)
            {
                warn!(file = %file.display(), %error, "an old file stays");
            }
        }
    }
}

fn found_in(campaign: &ApprovedCampaign, gates: Range<u32>, documents: &[&Document]) -> Result<Found, EvidenceError> {
    let mut found = Found {
        gates: gates.map(WaveEvidence::new).collect(),
        orders: Vec::new(),
        approvals: Vec::new(),
    };
    for document in documents {
        match document {
            Document::Gate(evidence) => {
                let mut gates = found.gates.iter_mut();
                let gate = gates.find(|gate| gate.wave() == evidence.wave);
                let gate = gate.ok_or_else(|| EvidenceError::Foreign(format!("wave {}", evidence.wave)))?;
                gate.add(campaign.manifest_sha256, &campaign.manifest, &campaign.plan, evidence)?;
            }
            Document::Order(order) => found.orders.push(order.clone()),
            Document::Approval(approval) => found.approvals.push(approval.clone()),
        }
    }
    Ok(found)
}
