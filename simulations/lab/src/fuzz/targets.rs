//! What Firmesh's own parts send each other: peer messages, signed documents, metadata, the audit log, the API.
//!
//! A target asserts what must hold of whatever it accepts: the value survives its own bytes, names and notes have one
//! spelling, what is signed is what was signed.

use std::{collections::BTreeMap, error::Error, str::FromStr, sync::Arc};

use anyhow::{Context as _, Result};
use firmesh_protocol::{
    api,
    audit::{
        Checkpoint, DocumentRef, ENTRY_SCHEMA, Entry, Event, LogCheck, LoggedEntry, ProofFile, ProvenEntry, log_origin,
        node_hash, parse_verifier_key, verifier_key, verify_consistency, verify_inclusion,
    },
    identity::{NodeIdentity, certificate_validity, verify_node_record},
    ids::{ArtifactId, CampaignId, Component, DeviceId, NodeId, Sha256, TopologyPath},
    labels::Labels,
    manifest::{Artifact, CampaignManifest, Plan, ReleaseInfo},
    pieces::PieceSet,
    possession::{Answer, Challenge, Nonce, Proof},
    report::{AttemptState, DeviceFacts, PERMIT_TYPE, PermitKind},
    time::WallTime,
    trace::TraceHint,
    trust::{
        Envelope, Key, KeyPolicy, KeySet, Kind, Role, Root, SignedFile, Snapshot, StoredMetadata, Targets, Timestamp,
    },
    window::Subject,
    wire::{PeerMessage, WIRE_VERSION},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    boot, content,
    fleet::{Fleet, key, now},
    formats,
};

/// Feeds one input: whether it was taken, or why not.
type Feed = Box<dyn Fn(&[u8]) -> Result<(), String> + Send + Sync>;

/// One parser, with good inputs for it.
pub(super) struct Target {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What it reads, and who may send that.
    pub(super) about: &'static str,
    /// Inputs that it accepts.
    pub(super) seeds: Vec<Vec<u8>>,
    /// The parser.
    pub(super) feed: Feed,
}

impl Target {
    /// A target.
    pub(super) fn new(
        name: &'static str,
        about: &'static str,
        seeds: Vec<Vec<u8>>,
        feed: impl Fn(&[u8]) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        let feed = Box::new(feed);
        Self {
            name,
            about,
            seeds,
            feed,
        }
    }
}

/// Every target.
pub(super) fn all() -> Result<Vec<Target>> {
    let fleet = Fleet::new()?;
    let mut targets = vec![peer_message(), names()];
    targets.extend(content::all()?);
    targets.extend(identities(&fleet)?);
    targets.extend(documents(&fleet)?);
    targets.extend(metadata(&fleet)?);
    targets.extend(audit(&fleet)?);
    targets.extend(interface(&fleet)?);
    targets.extend(boot::all()?);
    targets.push(super::bundle::site_bundle()?);
    targets.extend(formats::all(&fleet.repository)?);
    Ok(targets)
}

/// An error with its causes.
pub(super) fn said(error: impl Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// Reads JSON; what was read survives being written.
fn json<T: DeserializeOwned + Serialize + PartialEq>(input: &[u8]) -> Result<T, String> {
    let value: T = serde_json::from_slice(input).map_err(said)?;
    let again = serde_json::to_vec(&value).expect("what was read can be written");
    let same = serde_json::from_slice::<T>(&again).expect("what was written can be read");
    assert!(same == value, "a value changes when it is written and read");
    Ok(value)
}

fn peer_message() -> Target {
    let artifact = ArtifactId::of(b"image");
    let seeds = [
        PeerMessage::Hello { version: WIRE_VERSION },
        PeerMessage::Holds {
            artifact,
            pieces: PieceSet::full(130),
        },
        PeerMessage::Got {
            artifact,
            pieces: vec![0, 1, 128, 70_000],
        },
        PeerMessage::Dropped { artifact },
        PeerMessage::Brake { envelope: vec![1; 40] },
        PeerMessage::Revocations { envelope: vec![2; 40] },
    ];
    let seeds = seeds.iter().map(|message| message.to_frame()[4..].to_vec());
    Target::new(
        "peer-message",
        "a frame of the control stream, from a peer",
        seeds.collect(),
        |input| {
            let message = PeerMessage::from_body(input).map_err(said)?;
            let frame = message.to_frame();
            assert!(PeerMessage::from_body(&frame[4..]).is_ok_and(|same| same == message));
            Ok(())
        },
    )
}

fn names() -> Target {
    fn one<T: FromStr<Err: Error> + ToString>(text: &str) -> Result<(), String> {
        let name: T = text.parse().map_err(said)?;
        assert_eq!(name.to_string(), text, "a name has a second spelling");
        Ok(())
    }
    let seeds = [
        "r1-n1",
        "eu/hall-1/rack-1/r1-n1",
        "2026-11-21T18:00:00Z",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ];
    let seeds = seeds.iter().map(|text| text.as_bytes().to_vec()).collect();
    Target::new(
        "names",
        "ids, paths, digests and times, in every request",
        seeds,
        |input| {
            let text = std::str::from_utf8(input).map_err(said)?;
            let answers = [
                one::<NodeId>(text),
                one::<DeviceId>(text),
                one::<CampaignId>(text),
                one::<Component>(text),
                one::<TopologyPath>(text),
                one::<Sha256>(text),
                one::<ArtifactId>(text),
                text.parse::<WallTime>().map_err(said).map(|time| {
                    assert_eq!(time.to_string().parse::<WallTime>().ok(), Some(time));
                }),
            ];
            if answers.iter().any(Result::is_ok) {
                return Ok(());
            }
            Err(answers.into_iter().filter_map(Result::err).collect())
        },
    )
}

fn identities(fleet: &Fleet) -> Result<Vec<Target>> {
    let ca = fleet.authority.ca_der().to_vec();
    let own_ca = ca.clone();
    let certificate = Target::new(
        "certificate",
        "a node's certificate (DER), from a peer",
        vec![fleet.certificate.clone()],
        move |input| {
            certificate_validity(input).map_err(said)?;
            NodeIdentity::from_verified_certificate(input).map_err(said)?;
            let identity = NodeIdentity::verify(input, &own_ca, now()).map_err(said)?;
            assert_eq!(identity.node.as_str(), "r1-n1", "the fleet CA certified no other node");
            Ok(())
        },
    );
    let record = Target::new(
        "node-record",
        "a signed node record, from the mesh",
        vec![fleet.signed_record().to_bytes()],
        move |input| {
            let envelope = Envelope::from_bytes(input).map_err(said)?;
            let (record, identity) = verify_node_record(&envelope, &ca, now()).map_err(said)?;
            assert!(record.node == identity.node && record.data_addr == "10.0.0.7:7000");
            Ok(())
        },
    );
    let (authority, path) = (Arc::clone(&fleet.authority), fleet.path.clone());
    let (node, day) = (fleet.node.clone(), std::time::Duration::from_secs(86_400));
    let request = Target::new(
        "certificate-request",
        "a PKCS#10 request (PEM), from a node that enrols",
        vec![fleet.csr_pem.clone().into_bytes()],
        move |input| {
            let text = std::str::from_utf8(input).map_err(said)?;
            let issued = authority.issue_node(&node, &path, text, now(), day).map_err(said)?;
            let identity = NodeIdentity::verify(&issued.der, authority.ca_der(), now()).map_err(said)?;
            assert!(
                identity.node == node && identity.path == path,
                "a request chose its own name"
            );
            Ok(())
        },
    );
    Ok(vec![certificate, record, request])
}

/// A target for a kind of JSON document.
fn document<T>(name: &'static str, about: &'static str, seed: &T) -> Result<Target>
where
    T: DeserializeOwned + Serialize + PartialEq + 'static,
{
    let seeds = vec![serde_json::to_vec(seed)?];
    Ok(Target::new(name, about, seeds, |input| json::<T>(input).map(drop)))
}

fn documents(fleet: &Fleet) -> Result<Vec<Target>> {
    let keys = KeySet::of("coordinator", 1, [key(4).public()])?;
    let payload = serde_json::to_vec(&fleet.permit())?;
    let envelope = Envelope::sign(PERMIT_TYPE, payload.clone(), [&key(4)]);
    let signed = Target::new(
        "envelope",
        "a DSSE envelope (permit, report, evidence, brake), from anybody",
        vec![envelope.to_bytes()],
        move |input| {
            let envelope = Envelope::from_bytes(input).map_err(said)?;
            let verified = envelope.verify(&keys, PERMIT_TYPE).map_err(said)?;
            assert!(verified == payload, "other bytes than were signed were verified");
            Ok(())
        },
    );
    let campaign = Target::new(
        "manifest",
        "a campaign manifest, from an approver's file or the coordinator",
        vec![serde_json::to_vec(&fleet.manifest)?],
        |input| {
            let manifest = CampaignManifest::from_bytes(input).map_err(said)?;
            json::<CampaignManifest>(input)?;
            let span = std::time::Duration::from_secs(manifest.deadlines.attempt_s.into());
            manifest.constraints.timetable(Subject::NOBODY).check(now(), span).ok(); // open or closed, but an answer
            Ok(())
        },
    );
    let plan = Target::new(
        "plan",
        "a plan, from the coordinator",
        vec![fleet.plan.to_bytes()],
        |input| {
            let plan = Plan::from_bytes(input).map_err(said)?;
            assert!(Plan::from_bytes(&plan.to_bytes()).is_ok_and(|same| same == plan));
            Ok(())
        },
    );
    let release = Target::new(
        "release",
        "what is signed about an image, from the coordinator",
        vec![serde_json::to_vec(&fleet.release)?],
        |input| json::<ReleaseInfo>(input)?.check().map_err(said),
    );
    Ok(vec![
        signed,
        campaign,
        plan,
        release,
        document("permit", "the payload of a permit", &fleet.permit())?,
        document("report", "the payload of an attempt report", &fleet.report())?,
        document("evidence", "the payload of gate evidence", &fleet.evidence())?,
        document("brake", "the payload of a brake", &fleet.brake())?,
        document("revocations", "the payload of a revocation list", &fleet.revocations())?,
    ])
}

fn metadata(fleet: &Fleet) -> Result<Vec<Target>> {
    fn role<T: Role>(input: &[u8], file: &str) -> Result<T, String> {
        let read = SignedFile::from_bytes(file, input).map_err(said)?;
        let content: T = read.unverified(file).map_err(said)?;
        let again = SignedFile::from_bytes(file, &read.to_bytes()).map_err(said)?;
        assert!(again.signed_bytes() == read.signed_bytes(), "the signed bytes change");
        Ok(content)
    }
    let (now, later) = (now(), WallTime::from_unix_seconds(1_900_000_000));
    let published = fleet
        .repository
        .publish(&StoredMetadata::new(), now, later, &[&key(4)])?;
    let seeds = |is: fn(&str) -> bool| -> Vec<Vec<u8>> {
        let files = published.files.iter().filter(|(name, _)| is(name));
        files.map(|(_, bytes)| bytes.clone()).collect()
    };
    let of = |kind: fn(&str) -> bool, name, about, feed: fn(&[u8]) -> Result<(), String>| {
        Target::new(name, about, seeds(kind), feed)
    };
    let keys: Vec<serde_json::Value> =
        serde_json::from_str::<serde_json::Value>(include_str!("../../../../protocol/tests/golden/foreign_keys.json"))?
            ["keys"]
            .as_array()
            .context("the golden keys")?
            .iter()
            .map(|entry| entry["key"].clone())
            .collect();
    let keys = keys.iter().map(serde_json::to_vec).collect::<Result<Vec<_>, _>>()?;
    Ok(vec![
        of(
            |name| name.ends_with("root.json"),
            "tuf-root",
            "root metadata",
            |input| {
                let root: Root = role(input, "root.json")?;
                for kind in [Kind::Root, Kind::Timestamp, Kind::Snapshot, Kind::Targets] {
                    for policy in [KeyPolicy::Ed25519Only, KeyPolicy::Standard] {
                        root.key_set_under(kind, policy).map_err(said)?;
                    }
                }
                Ok(())
            },
        ),
        of(
            |name| name == "timestamp.json",
            "tuf-timestamp",
            "timestamp metadata",
            |input| role::<Timestamp>(input, "timestamp.json").map(drop),
        ),
        of(
            |name| name.ends_with("snapshot.json"),
            "tuf-snapshot",
            "snapshot metadata",
            |input| role::<Snapshot>(input, "snapshot.json").map(drop),
        ),
        of(
            |name| {
                ["targets.json", "releases.json", "campaigns.json"]
                    .iter()
                    .any(|end| name.ends_with(end))
            },
            "tuf-targets",
            "targets metadata with its delegations",
            |input| {
                let targets: Targets = role(input, "targets.json")?;
                for name in ["releases", "campaigns"] {
                    targets.delegated_keys(name).map_err(said)?;
                }
                Ok(())
            },
        ),
        Target::new("tuf-key", "a key of any kind in metadata", keys, |input| {
            let key: Key = serde_json::from_slice(input).map_err(said)?;
            key.verifying(KeyPolicy::Standard).map_err(said).map(drop)
        }),
    ])
}

fn audit(fleet: &Fleet) -> Result<Vec<Target>> {
    let (signer, ca) = (key(4), fleet.authority.ca_der().to_vec());
    let origin = log_origin(&ca);
    let events = [
        Event::Log { origin: origin.clone() },
        Event::Manifest {
            campaign: fleet.manifest.id.clone(),
        },
        Event::Result {
            campaign: fleet.manifest.id.clone(),
            what: PermitKind::Update,
            device: fleet.plan.waves[0][0].device.clone(),
            node: fleet.node.clone(),
            state: AttemptState::Success,
        },
    ];
    let documents = [
        ca,
        serde_json::to_vec(&fleet.manifest)?,
        fleet.signed_report().to_bytes(),
    ];
    let logged: Vec<LoggedEntry> = (0..)
        .zip(events)
        .zip(&documents)
        .map(|((index, event), document)| {
            let entry = Entry {
                schema: ENTRY_SCHEMA.to_owned(),
                index,
                at: now(),
                event,
                document: Some(DocumentRef::of(document)),
            };
            LoggedEntry::new(entry.to_text(), Some(document))
        })
        .collect();
    let [a, b, c] = [0, 1, 2].map(|at: usize| logged[at].leaf);
    let both = node_hash(&a, &b);
    let root = node_hash(&both, &c);
    let checkpoint = Checkpoint {
        origin: origin.clone(),
        size: 3,
        root,
        at: now(),
    };
    let paths = [vec![b, c], vec![a, c], vec![both]];
    let proven = logged.iter().zip(paths).map(|(logged, path)| ProvenEntry {
        entry: logged.entry.clone(),
        document: logged.document.clone(),
        path,
    });
    let device = fleet.plan.waves[0][0].device.clone();
    let proof = ProofFile::new(device, fleet.manifest.id.clone(), 3, proven.collect());
    let (note, signed, public) = (checkpoint.sign(&signer), checkpoint.clone(), signer.public());
    let entries: Vec<_> = logged.iter().map(|logged| logged.entry.clone().into_bytes()).collect();
    let lines: Vec<_> = logged[..1].iter().map(serde_json::to_vec).collect::<Result<_, _>>()?;
    Ok(vec![
        Target::new("audit-entry", "a line of the audit log", entries, |input| {
            let entry = Entry::from_bytes(input).map_err(said)?;
            assert!(Entry::from_bytes(entry.to_text().as_bytes()).is_ok_and(|same| same == entry));
            Ok(())
        }),
        Target::new("audit-export", "a line of an exported audit log", lines, |input| {
            let logged: LoggedEntry = json(input)?;
            let mut log = LogCheck::default();
            // As it stands, and as somebody would have logged it who may log what he likes.
            let answer = log.push(&logged).map_err(said).map(drop);
            let document = logged.document.as_ref().map(String::as_bytes);
            LogCheck::default().push(&LoggedEntry::new(logged.entry, document)).ok();
            answer
        }),
        Target::new(
            "audit-checkpoint",
            "a signed note, from the mesh or a file",
            vec![note.into_bytes()],
            move |input| {
                if let Ok(note) = std::str::from_utf8(input) {
                    Checkpoint::read_stored(note).ok(); // what a note says is read before and after it is signed
                }
                let read = Checkpoint::open(input, None, &[public]).map_err(said)?;
                assert!(read == signed, "another checkpoint than the signed one was verified");
                Ok(())
            },
        ),
        Target::new(
            "audit-verifier-key",
            "a log's key as text",
            vec![verifier_key(&origin, &signer.public()).into_bytes()],
            |input| {
                let text = std::str::from_utf8(input).map_err(said)?;
                let (name, key) = parse_verifier_key(text).map_err(said)?;
                assert_eq!(verifier_key(&name, &key), text);
                Ok(())
            },
        ),
        proof_file(&proof, checkpoint),
        audit_path(root, a, &[b, c])?,
    ])
}

/// The seed reads well, and proves nothing: it has no approval.
fn proof_file(proof: &ProofFile, checkpoint: Checkpoint) -> Target {
    let about = "a proof of one device's update, from anybody";
    Target::new("audit-proof", about, vec![proof.to_bytes()], move |input| {
        let proof = ProofFile::from_bytes(input).map_err(said)?;
        assert!(proof.to_bytes() == input, "a proof file has a second spelling");
        match proof.verify(&checkpoint, None) {
            Ok(proven) => panic!("nothing was approved, and this was proven: {proven:?}"),
            Err(error) if error.code() == "audit_incomplete" => Ok(()),
            Err(error) => Err(said(error)),
        }
    })
}

fn audit_path(root: Sha256, leaf: Sha256, path: &[Sha256]) -> Result<Target> {
    #[derive(Serialize, Deserialize)]
    struct Asked {
        at: u64,
        size: u64,
        path: api::AuditPath,
    }
    let seed = Asked {
        at: 0,
        size: 3,
        path: api::AuditPath { path: path.to_vec() },
    };
    let about = "an inclusion or consistency proof, from the coordinator";
    Ok(Target::new(
        "audit-path",
        about,
        vec![serde_json::to_vec(&seed)?],
        move |input| {
            let Asked { at, size, path } = serde_json::from_slice(input).map_err(said)?;
            // A hash does not say of how many entries it is the root: signed checkpoints bind the two. Of the first two
            // of these three it is another.
            if (at, size) == (2, 3) {
                let consistent = verify_consistency((at, &leaf), (size, &root), &path.path);
                assert!(
                    consistent.is_err(),
                    "a log of three entries continues one that never was"
                );
            } else {
                verify_consistency((at, &leaf), (size, &root), &path.path).ok(); // any answer, but an answer
            }
            verify_inclusion(at, size, &leaf, &path.path, &root).map_err(said)
        },
    ))
}

fn interface(fleet: &Fleet) -> Result<Vec<Target>> {
    let holding = api::Holding {
        artifact: ArtifactId::of(b"image"),
        pieces: 3,
        pieces_total: 9,
    };
    let facts = DeviceFacts {
        device: fleet.plan.waves[0][0].device.clone(),
        vendor: "Acme".to_owned(),
        model: "R1".to_owned(),
        component: fleet.release.component.clone(),
        version: Some("1.0.0".to_owned()),
        executor: "redfish".to_owned(),
        labels: Labels::default(),
    };
    let challenge = Challenge {
        artifact: ArtifactId::of(b"image"),
        nonce: Nonce::from([7; 32]),
    };
    let sync = api::SyncRequest {
        record: fleet.signed_record(),
        devices: vec![facts],
        reports: vec![fleet.signed_report()],
        holdings: vec![holding],
        traffic: api::Traffic::default(),
        banned: [(fleet.node.clone(), "garbage".to_owned())].into(),
        roster_version: 4,
        permits_seen: [(fleet.manifest.id.clone(), 2)].into(),
        brakes: Vec::new(),
        brakes_version: 0,
        revocations_version: 1,
        audit: api::AuditSeen {
            size: 3,
            heard: vec![2],
            fork: None,
        },
        possession: vec![Answer {
            challenge,
            proof: Proof::from([9; 32]),
        }],
        feeders: vec![api::Feeder {
            node: NodeId::new("n2")?,
            bytes: 1 << 20,
        }],
    };
    let payload = serde_json::to_vec(&fleet.permit())?;
    let answer = api::SyncResponse {
        reports_acked: 7,
        permits: vec![Envelope::sign(PERMIT_TYPE, payload, [&key(4)])],
        timestamp_version: 9,
        campaigns: vec![fleet.manifest.id.clone()],
        roster: Some(vec![fleet.signed_record()]),
        roster_changes: None,
        roster_version: 5,
        audit: Some(api::AuditNews {
            checkpoint: "a note".to_owned(),
            consistency: vec![Sha256::of(b"x")],
            heard: vec![Vec::new()],
        }),
        brakes: Some(Vec::new()),
        brakes_version: 0,
        revocations: Some(fleet.authority.sign_revocations(&fleet.revocations())),
        challenges: vec![challenge],
        traces: vec![TraceHint {
            campaign: fleet.manifest.id.clone(),
            traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
        }],
        wants_feeders: true,
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("metadata is text");
    let files: BTreeMap<String, String> = fleet
        .repository
        .files()
        .into_iter()
        .map(|(name, bytes)| Ok((name, text(bytes)?)))
        .collect::<Result<_>>()?;
    let publication = api::Publication {
        metadata: files,
        manifests: [(fleet.manifest.target(), text(serde_json::to_vec(&fleet.manifest)?)?)].into(),
    };
    let problem = api::Problem {
        kind: "urn:firmesh:problem:not_found".to_owned(),
        title: "Not found".to_owned(),
        status: 404,
        detail: "there is no such thing".to_owned(),
        refused: false,
        request_id: None,
    };
    let small: Vec<serde_json::Value> = vec![
        serde_json::to_value(api::EnrolRequest {
            node: fleet.node.clone(),
            token: "secret".to_owned(),
            csr_pem: fleet.csr_pem.clone(),
        })?,
        serde_json::to_value(api::RenewRequest {
            csr_pem: fleet.csr_pem.clone(),
        })?,
        serde_json::to_value(api::RevokeRequest {
            reason: "stolen".to_owned(),
        })?,
        serde_json::to_value(api::NewNode {
            node: fleet.node.clone(),
            path: fleet.path.clone(),
        })?,
        serde_json::to_value(api::PlanRequest {
            manifest: fleet.manifest.clone(),
        })?,
        serde_json::to_value(api::CredentialsReport {
            profiles: [("d1".parse()?, "rack 1".to_owned())].into(),
        })?,
        serde_json::to_value(api::TranscriptReport {
            device: "d1".parse()?,
            campaign: fleet.manifest.id.clone(),
            kind: PermitKind::Update,
            state: AttemptState::Failed,
            ended: WallTime::from_unix_seconds(1_800_000_000),
            transcript: api::PackedTranscript {
                exchanges: 7,
                bytes: 1 << 10,
                sha256: Sha256::of(b"x"),
                left_out: 0,
                content: Some("H4sIAAAAAAAA".to_owned()),
            },
        })?,
    ];
    let small = small.iter().map(serde_json::to_vec).collect::<Result<_, _>>()?;
    let answers: Vec<serde_json::Value> = vec![
        serde_json::to_value(api::EnrolResponse {
            certificate_pem: fleet.certificate_pem.clone(),
            fleet_ca_pem: fleet.authority.ca_pem().to_owned(),
        })?,
        serde_json::to_value(&problem)?,
        serde_json::to_value(Artifact {
            id: ArtifactId::of(b"image"),
            sha256: Sha256::of(b"image"),
            length: 5,
        })?,
    ];
    let answers = answers.iter().map(serde_json::to_vec).collect::<Result<_, _>>()?;
    Ok(vec![
        document("api-sync", "a node's sync, at the coordinator", &sync)?,
        document(
            "api-sync-answer",
            "the coordinator's answer to it, at the node",
            &answer,
        )?,
        document("api-publication", "signed files, at the coordinator", &publication)?,
        Target::new(
            "api-requests",
            "the other requests, at the coordinator",
            small,
            |input| {
                let plain = |answer: serde_json::Result<()>| answer.map_err(said);
                one_of([
                    json::<api::EnrolRequest>(input).map(drop),
                    plain(serde_json::from_slice::<api::RenewRequest>(input).map(drop)),
                    plain(serde_json::from_slice::<api::RevokeRequest>(input).map(drop)),
                    json::<api::NewNode>(input).map(drop),
                    json::<api::CredentialsReport>(input).map(drop),
                    json::<api::TranscriptReport>(input).map(drop),
                    json::<api::PlanRequest>(input).and_then(|asked| asked.manifest.check().map_err(said)),
                ])
            },
        ),
        Target::new("api-answers", "the other answers, at the node", answers, |input| {
            one_of([
                json::<api::EnrolResponse>(input).map(drop),
                json::<api::Problem>(input).map(drop),
                json::<Artifact>(input).map(drop),
            ])
        }),
    ])
}

fn one_of<const N: usize>(answers: [Result<(), String>; N]) -> Result<(), String> {
    if answers.iter().any(Result::is_ok) {
        Ok(())
    } else {
        Err(answers.into_iter().filter_map(Result::err).collect())
    }
}
