//! Which entries follow from which writes.
//!
//! The match over [`Write`] names every kind: who adds one decides here whether it is logged.

use std::collections::BTreeMap;

use firmesh_coordinator_core::CampaignRecord;
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    audit::Event,
    brake::Brake,
    identity::NodeIdentity,
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    limits::REASON_BYTES_MAX,
    manifest::CampaignManifest,
    trust::Envelope,
};

use crate::store::{Stored, StoredNode, Write};

/// An entry to be: its place, time and document's digest are filled in when it is appended.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) event: Event,
    pub(crate) document: Document,
}

/// The document of an entry.
#[derive(Debug)]
pub(crate) enum Document {
    None,
    Bytes(Vec<u8>),
    /// The stored plan of this digest.
    Plan(Sha256),
}

/// What was logged last of what is stored again and again: only a change is an entry.
#[derive(Debug, Default)]
pub(crate) struct Drafts {
    campaigns: BTreeMap<CampaignId, Known>,
    nodes: BTreeMap<NodeId, KnownNode>,
}

/// What changes in [`Drafts`] with a transaction, should it become durable.
#[derive(Debug, Default)]
pub(crate) struct Drafted {
    /// `None`: begun anew.
    campaigns: BTreeMap<CampaignId, Option<Known>>,
    nodes: BTreeMap<NodeId, KnownNode>,
}

/// The digests of the ticket and of the certificate that were logged last.
type KnownNode = (Option<Sha256>, Option<Sha256>);

/// What is logged of a campaign's record.
#[derive(Debug, Default, Clone)]
struct Known {
    state: Option<CampaignState>,
    gates: Vec<GateVerdict>,
    /// How often an approver was asked.
    asked: usize,
    /// What webhooks said.
    webhooks: Vec<GateVerdict>,
}

impl Drafts {
    /// What is stored has been logged.
    pub(crate) fn of(stored: &Stored) -> Self {
        let (mut drafts, mut drafted) = (Self::default(), Drafted::default());
        for record in &stored.campaigns {
            drafts.campaign(record, &mut drafted);
        }
        for node in &stored.nodes {
            drafts.node(node, &mut drafted);
        }
        drafts.committed(drafted);
        drafts
    }

    /// What was drafted has become durable.
    pub(crate) fn committed(&mut self, drafted: Drafted) {
        let Drafted { campaigns, nodes } = drafted;
        for (id, known) in campaigns {
            match known {
                Some(known) => drop(self.campaigns.insert(id, known)),
                None => drop(self.campaigns.remove(&id)),
            }
        }
        self.nodes.extend(nodes);
    }

    /// The state of a campaign that was logged last.
    pub(crate) fn state(&self, id: &CampaignId) -> Option<CampaignState> {
        self.campaigns.get(id)?.state
    }

    /// The entries for what was stored before there was a log.
    pub(crate) fn of_the_past(stored: &Stored) -> Vec<Draft> {
        let mut writes: Vec<_> = stored
            .metadata
            .iter()
            .map(|(file, bytes)| Write::Metadata(file.clone(), bytes.clone()))
            .collect();
        writes.extend(
            stored
                .manifests
                .iter()
                .map(|(id, bytes)| Write::Manifest(id.clone(), bytes.clone())),
        );
        writes.extend(stored.nodes.iter().map(|node| Write::Node(Box::new(node.clone()))));
        writes.extend(stored.permits.iter().map(|permit| Write::Permit(permit.clone())));
        writes.extend(stored.campaigns.iter().map(|record| Write::Campaign(record.clone())));
        Self::default().of_writes(&writes).0
    }

    /// The entries for these writes, which are stored together.
    pub(crate) fn of_writes(&self, writes: &[Write]) -> (Vec<Draft>, Drafted) {
        let is_news = |write: &Write| matches!(write, Write::Metadata(file, _) if is_authored(file));
        let publishes = writes.iter().any(is_news);
        let mut drafted = Drafted::default();
        let drafts = writes
            .iter()
            .flat_map(|write| self.drafts(write, publishes, &mut drafted));
        (drafts.collect(), drafted)
    }

    fn drafts(&self, write: &Write, publishes: bool, drafted: &mut Drafted) -> Vec<Draft> {
        let one = |event, document: &[u8]| {
            let document = Document::Bytes(document.to_vec());
            vec![Draft { event, document }]
        };
        match write {
            // Snapshot and timestamp are signed anew all the time: logged are those that bring something new into force.
            Write::Metadata(file, bytes) if publishes => one(Event::Metadata { file: file.clone() }, bytes),
            Write::Manifest(id, bytes) => {
                let campaign = id.clone();
                let mut drafts = one(Event::Manifest { campaign }, bytes);
                drafts.extend(CampaignManifest::from_bytes(bytes).ok().map(|manifest| Draft {
                    event: Event::Plan { campaign: id.clone() },
                    document: Document::Plan(manifest.plan_sha256),
                }));
                drafts
            }
            Write::Node(node) => self.node(node, drafted),
            Write::Campaign(record) => self.campaign(record, drafted),
            Write::Brake(_, envelope) => {
                let scope = Brake::from_own_store(envelope).map(|brake| brake.braked.to_string());
                one(
                    Event::Brake {
                        scope: scope.unwrap_or_default(),
                    },
                    &envelope.to_bytes(),
                )
            }
            Write::Revocations { node, reason, envelope } => one(
                Event::Revocation {
                    node: node.clone(),
                    reason: reason.clone(),
                },
                &envelope.to_bytes(),
            ),
            Write::Permit(permit) | Write::PermitAgain(permit) => one(
                Event::Permit {
                    campaign: permit.campaign.clone(),
                    what: permit.kind,
                    sequence: permit.sequence,
                },
                &permit.envelope.to_bytes(),
            ),
            Write::Report(report, envelope) if report.state.is_terminal() => one(
                Event::Result {
                    campaign: report.campaign.clone(),
                    what: report.kind,
                    device: report.device.clone(),
                    node: report.node.clone(),
                    state: report.state,
                },
                &Envelope::to_bytes(envelope),
            ),
            Write::Rollback {
                campaign,
                scope,
                reason,
                order,
            } => vec![Draft {
                event: Event::Rollback {
                    campaign: campaign.clone(),
                    scope: scope.clone(),
                    reason: reason.clone(),
                },
                document: match order {
                    Some((_, bytes)) => Document::Bytes(bytes.clone()),
                    None => Document::None,
                },
            }],
            Write::Closing {
                campaign,
                device,
                reason,
            } => vec![Draft {
                event: Event::Closing {
                    campaign: campaign.clone(),
                    device: device.clone(),
                    reason: reason.clone(),
                },
                document: Document::None,
            }],
            Write::Approval {
                campaign,
                wave,
                approved,
                reason,
                by,
                document,
            } => one(
                Event::Approval {
                    campaign: campaign.clone(),
                    wave: *wave,
                    answer: if *approved { "approved" } else { "refused" }.to_owned(),
                    reason: reason.clone(),
                    by: by.clone(),
                },
                document,
            ),
            Write::ApiKey { key, change, by } => vec![Draft {
                event: Event::Key {
                    key: key.id.clone(),
                    name: key.name.clone(),
                    role: key.role.to_string(),
                    what: change.name().to_owned(),
                    by: by.clone(),
                },
                document: Document::None,
            }],
            Write::Erasure(device, _) => vec![of_device(device, "erased")],
            Write::Removal(device, _) => vec![of_device(device, "removed")],
            Write::Archived(archive) => {
                let change = if archive.removed.is_some() {
                    "archive removed"
                } else {
                    "archived"
                };
                let event = Event::Change {
                    subject: "campaign".to_owned(),
                    name: archive.campaign.to_string(),
                    change: change.to_owned(),
                };
                one(
                    event,
                    &serde_json::to_vec(archive).expect("it has only names, numbers and lists"),
                )
            }
            Write::Restart(id) => {
                drafted.campaigns.insert(id.clone(), None);
                Vec::new()
            }
            Write::Metadata(..)
            | Write::Report(..)
            | Write::DropMetadata(_)
            | Write::Trusted(..)
            | Write::Device(_)
            | Write::Attempt(..)
            | Write::Possession(..)
            | Write::Evidence(..)
            | Write::Notice(_)
            | Write::RosterVersion(_) => Vec::new(),
        }
    }

    fn node(&self, node: &StoredNode, drafted: &mut Drafted) -> Vec<Draft> {
        let known = drafted.nodes.get(&node.node).or_else(|| self.nodes.get(&node.node));
        let known = known.copied().unwrap_or_default();
        let ticket = node.ticket.as_ref().map(|ticket| ticket.token_sha256);
        let certificate = node.certificate.as_deref();
        let digest = certificate.map(Sha256::of);
        let mut drafts = Vec::new();
        if let Some(invited) = node.ticket.as_ref().filter(|_| known.0 != ticket) {
            drafts.push(Draft {
                event: Event::Invitation {
                    node: node.node.clone(),
                    path: invited.path.clone(),
                },
                document: Document::None,
            });
        }
        let issued = certificate.filter(|_| known.1 != digest);
        drafts.extend(issued.and_then(|der| {
            let identity = NodeIdentity::from_verified_certificate(der).ok()?;
            Some(Draft {
                event: Event::Enrolment {
                    node: identity.node,
                    path: identity.path,
                    key: identity.key,
                },
                document: Document::Bytes(der.to_vec()),
            })
        }));
        if known != (ticket, digest) {
            drafted.nodes.insert(node.node.clone(), (ticket, digest));
        }
        drafts
    }

    fn campaign(&self, record: &CampaignRecord, drafted: &mut Drafted) -> Vec<Draft> {
        let before = match drafted.campaigns.get(&record.id) {
            Some(known) => known.clone(),
            None => self.campaigns.get(&record.id).cloned(),
        };
        let before = before.unwrap_or_default();
        // One that does not answer for a while has not taken back what it said.
        let says = record
            .webhooks
            .iter()
            .enumerate()
            .map(|(number, asked)| match asked.verdict {
                GateVerdict::Unknown => before.webhooks.get(number).copied().unwrap_or(GateVerdict::Unknown),
                said => said,
            });
        let known = Known {
            state: Some(record.state),
            gates: record.gates.clone(),
            asked: record.approvals.len(),
            webhooks: says.collect(),
        };
        let says = known.webhooks.clone();
        drafted.campaigns.insert(record.id.clone(), Some(known));
        let Known {
            state,
            gates,
            asked,
            webhooks,
        } = before;
        let changed = (0..)
            .zip(&record.gates)
            .filter(|(wave, verdict)| gates.get(*wave as usize) != Some(*verdict));
        let gate = |(wave, verdict): (u32, &GateVerdict)| {
            let subject = format!("wave {wave}");
            let decision = record.decisions.iter().rfind(|decision| decision.subject == subject);
            let reason = decision.map_or_else(String::new, |decision| {
                let mut lines = vec![decision.finding.as_str()];
                lines.extend(decision.evidence.iter().map(String::as_str));
                bounded(&lines.join("; "))
            });
            Event::Gate {
                campaign: record.id.clone(),
                wave,
                verdict: *verdict,
                reason,
            }
        };
        let mut events: Vec<_> = changed.map(gate).collect();
        events.extend(record.approvals.iter().skip(asked).map(|asked| Event::Approval {
            campaign: record.id.clone(),
            wave: asked.wave,
            answer: "asked".to_owned(),
            reason: String::new(),
            by: Vec::new(),
        }));
        let said = record.webhooks.iter().zip(says).enumerate();
        let said = said.filter(|(number, (_, says))| webhooks.get(*number) != Some(says));
        events.extend(said.map(|(_, (asked, _))| Event::Webhook {
            campaign: record.id.clone(),
            wave: asked.wave,
            webhook: asked.webhook.clone(),
            verdict: asked.verdict,
            reason: asked.reason.clone(),
        }));
        events.extend((state != Some(record.state)).then(|| Event::Campaign {
            campaign: record.id.clone(),
            state: record.state,
            reason: bounded(&record.reason),
        }));
        let drafted = events.into_iter().map(|event| Draft {
            event,
            document: Document::None,
        });
        drafted.collect()
    }
}

/// Whether people signed it, rather than this coordinator.
fn is_authored(file: &str) -> bool {
    let is_online = |role: &str| file == role || file.ends_with(&format!(".{role}"));
    !is_online("snapshot.json") && !is_online("timestamp.json")
}

fn of_device(device: &DeviceId, change: &str) -> Draft {
    Draft {
        event: Event::Change {
            subject: "device".to_owned(),
            name: device.to_string(),
            change: change.to_owned(),
        },
        document: Document::None,
    }
}

fn bounded(text: &str) -> String {
    let end = (0..=text.len().min(REASON_BYTES_MAX))
        .rev()
        .find(|&at| text.is_char_boundary(at));
    text[..end.unwrap_or(0)].to_owned()
}
