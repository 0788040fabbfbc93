//! A small fleet, whose documents are the seeds.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use firmesh_coordinator::authority::Authority;
use firmesh_protocol::{
    brake::{Brake, Braked},
    evidence::GateEvidence,
    gate::{AbortRule, Sequential},
    health::{DeviceHealth, HealthInput, HealthRule},
    ids::{ArtifactId, CampaignId, Component, DeviceId, NodeId, Sha256, TopologyPath},
    labels::Labels,
    manifest::{
        CampaignManifest, Caps, Constraints, Deadlines, FileRef, GateRule, MANIFEST_SCHEMA, PLAN_SCHEMA, Plan,
        PlannedDevice, Provenance, RELEASE_SCHEMA, ReleaseInfo, ReleaseRef, Reversibility, Selector, Strategy,
    },
    report::{
        AttemptReport, AttemptState, FailureClass, NODE_RECORD_TYPE, NodeRecord, Permit, PermitKind, REPORT_TYPE,
    },
    revocation::{RevocationList, Revoked},
    time::WallTime,
    trust::{Ceremony, Envelope, Repository, SecretKey, Signers, Target as TufTarget},
    units::BasisPoints,
    window::{Blackout, BlackoutCalendar, Recurrence, Weekday, Window},
};

/// The secret key of one of the fleet's people or machines.
pub(super) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// When everything in the fleet was signed.
pub(super) fn now() -> WallTime {
    WallTime::from_unix_seconds(1_800_000_000)
}

/// The fleet.
pub(super) struct Fleet {
    pub(super) authority: Arc<Authority>,
    pub(super) csr_pem: String,
    pub(super) certificate: Vec<u8>,
    pub(super) certificate_pem: String,
    pub(super) node: NodeId,
    pub(super) path: TopologyPath,
    pub(super) manifest: CampaignManifest,
    pub(super) plan: Plan,
    pub(super) release: ReleaseInfo,
    pub(super) repository: Repository,
}

impl Fleet {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::load_or_create(folder.path(), vec!["127.0.0.1".to_owned()], now())?;
        let (node, path): (NodeId, TopologyPath) = ("r1-n1".parse()?, "eu/hall-1/rack-1/r1-n1".parse()?);
        let pair = rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(&key(7).to_pem(), &rcgen::PKCS_ED25519)?;
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::IpAddress([10, 0, 0, 7].into())];
        let csr_pem = params.serialize_request(&pair)?.pem()?;
        let day = std::time::Duration::from_secs(86_400);
        let issued = authority.issue_node(&node, &path, &csr_pem, now(), day)?;
        let release = ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: ArtifactId::of(b"image"),
            vendor: "Acme".to_owned(),
            models: vec!["R1".to_owned(), "R2".to_owned()],
            component: Component::new("bmc")?,
            version: "1.1.0".to_owned(),
            security_epoch: 3,
            from_versions: vec!["1.0.0".to_owned()],
            reversibility: Reversibility::Reflash,
            provenance: Some(Provenance {
                verdict: FileRef {
                    sha256: Sha256::of(b"verdict"),
                    length: 7,
                },
                sbom: None,
            }),
            version_scheme: None,
            min_from: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
        };
        let plan = Plan {
            schema: PLAN_SCHEMA.to_owned(),
            campaign: CampaignId::new("spring")?,
            waves: vec![vec![PlannedDevice {
                device: DeviceId::new("r1-n1-bmc1")?,
                node: node.clone(),
                rack: "eu/hall-1/rack-1".parse()?,
                release: "firmware/a.bin".to_owned(),
                from_version: "1.0.0".to_owned(),
                previous: Some("firmware/b.bin".to_owned()),
                labels: Labels::default(),
                hops: Vec::new(),
                after: None,
            }]],
            nodes: [(node.clone(), issued.key)].into(),
            held: Vec::new(),
            domains: std::collections::BTreeMap::new(),
            servers: Vec::new(),
        };
        let manifest = manifest(&plan)?;
        let repository = repository(&release, &manifest)?;
        Ok(Self {
            authority: Arc::new(authority),
            csr_pem,
            certificate: issued.der,
            certificate_pem: issued.pem,
            node,
            path,
            manifest,
            plan,
            release,
            repository,
        })
    }

    pub(super) fn permit(&self) -> Permit {
        Permit {
            campaign: self.manifest.id.clone(),
            manifest_sha256: Sha256::of(b"manifest"),
            kind: PermitKind::Update,
            wave: 1,
            attempt: 1,
            sequence: 4,
            epoch: 2,
            issued: now(),
            expires: now(),
            devices: vec![self.plan.waves[0][0].device.clone()],
            evidence: vec![Sha256::of(b"evidence")],
        }
    }

    pub(super) fn report(&self) -> AttemptReport {
        AttemptReport {
            campaign: self.manifest.id.clone(),
            manifest_sha256: Sha256::of(b"manifest"),
            wave: 0,
            kind: PermitKind::Update,
            permit_sequence: 1,
            attempt: 1,
            device: self.plan.waves[0][0].device.clone(),
            node: self.node.clone(),
            sequence: 9,
            state: AttemptState::Failed,
            reason: "the task failed: \"no space\"".to_owned(),
            version: Some("1.0.0".to_owned()),
            failure: Some(FailureClass::Install),
            health: Some(DeviceHealth::Unknown),
            at: now(),
        }
    }

    pub(super) fn signed_report(&self) -> Envelope {
        let payload = serde_json::to_vec(&self.report()).expect("a report encodes");
        Envelope::sign(REPORT_TYPE, payload, [&key(7)])
    }

    pub(super) fn evidence(&self) -> GateEvidence {
        GateEvidence {
            campaign: self.manifest.id.clone(),
            manifest_sha256: Sha256::of(b"manifest"),
            wave: 0,
            reports: vec![self.signed_report()],
        }
    }

    pub(super) fn brake(&self) -> Brake {
        Brake {
            braked: Braked::Release {
                target: "firmware/a.bin".to_owned(),
                sha256: Sha256::of(b"a"),
            },
            reason: "it bricks".to_owned(),
            issued: now(),
        }
    }

    pub(super) fn revocations(&self) -> RevocationList {
        let revoked = Revoked {
            node: self.node.clone(),
            reason: "stolen".to_owned(),
            at: now(),
        };
        RevocationList {
            version: 1,
            revoked: [(key(7).public(), revoked)].into(),
        }
    }

    pub(super) fn record(&self) -> NodeRecord {
        NodeRecord {
            node: self.node.clone(),
            path: self.path.clone(),
            certificate: hex::encode(&self.certificate),
            data_addr: "10.0.0.7:7000".to_owned(),
            mesh_addr: "/ip4/10.0.0.7/udp/7001/quic-v1".to_owned(),
            sequence: 3,
        }
    }

    pub(super) fn signed_record(&self) -> Envelope {
        let payload = serde_json::to_vec(&self.record()).expect("a record encodes");
        Envelope::sign(NODE_RECORD_TYPE, payload, [&key(7)])
    }
}

fn manifest(plan: &Plan) -> Result<CampaignManifest> {
    let share = |share| BasisPoints::new(share).context("a share");
    let pinned = |name: &str, bytes| ReleaseRef {
        target: name.to_owned(),
        sha256: Sha256::of(bytes),
    };
    Ok(CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id: plan.campaign.clone(),
        sequence: 5,
        expires: WallTime::from_unix_seconds(2_000_000_000),
        releases: vec![pinned("firmware/a.bin", b"a")],
        previous: vec![pinned("firmware/b.bin", b"b")],
        selector: Selector {
            paths: vec!["eu/hall-1".parse()?],
            models: vec!["R1".to_owned()],
            devices: Vec::new(),
        },
        strategy: Strategy::Canary {
            shares: vec![share(1_000)?, share(5_000)?, share(10_000)?],
        },
        caps: Caps::new(1, 10),
        gate: GateRule {
            soak_s: 60,
            sequential: Some(Sequential {
                good: share(100)?,
                bad: share(1_000)?,
                alpha: share(500)?,
                beta: share(1_000)?,
            }),
            abort: vec![AbortRule {
                class: FailureClass::Boot,
                count: Some(2),
                share: None,
            }],
            health: Some(HealthRule {
                watch_s: 300,
                required: vec![HealthInput::Cpu],
                ..HealthRule::hard_stops()
            }),
            ..GateRule::shares(share(9_900)?, share(9_000)?)
        },
        constraints: Constraints {
            windows: vec![
                Window::weekly("Europe/Berlin", &[Weekday::Sat, Weekday::Sun], "22:00", 14_400),
                Window::recurring(
                    "Europe/Berlin",
                    recurs("FREQ=MONTHLY;BYDAY=2TU,-1FR;BYSETPOS=1"),
                    14_400,
                ),
            ],
            blackout_calendars: vec![BlackoutCalendar {
                name: "quarter ends".to_owned(),
                zone: "America/St_Johns".to_owned(),
                duration_s: 259_200,
                recurs: recurs("FREQ=YEARLY;BYMONTH=3,6,9,12;BYMONTHDAY=-2"),
                only: None,
            }],
            blackouts: vec![Blackout {
                from: WallTime::from_unix_seconds(1_800_000_000),
                until: WallTime::from_unix_seconds(1_800_086_400),
            }],
            executors: vec!["redfish".to_owned()],
            one_way_accepted: true,
            sequence: Vec::new(),
        },
        deadlines: Deadlines {
            attempt_s: 600,
            back_s: 60,
        },
        priority: firmesh_protocol::manifest::Priority::default(),
        automatic_rollback: true,
        operator_rollback: false,
        retries: None,
        permit_keys: vec![hex::encode(key(4).public().as_bytes())],
        plan_sha256: Sha256::of(&plan.to_bytes()),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: firmesh_protocol::manifest::CampaignKind::Update,
    })
}

fn repository(release: &ReleaseInfo, manifest: &CampaignManifest) -> Result<Repository> {
    let signers = |seed| Signers {
        keys: vec![key(seed).public()],
        threshold: 1,
    };
    let expires = WallTime::from_unix_seconds(2_000_000_000);
    let mut repository = Repository::create(&Ceremony {
        root: signers(1),
        releases: signers(2),
        campaigns: signers(3),
        online: signers(4),
        expires,
    })?;
    let custom = serde_json::to_value(release)?;
    repository.set_release(
        "firmware/a.bin",
        TufTarget::new(1, Sha256::of(b"a"), Some(custom)),
        expires,
    )?;
    let bytes = serde_json::to_vec(manifest)?;
    let target = TufTarget::new(bytes.len() as u64, Sha256::of(&bytes), None);
    repository.set_campaign(&manifest.target(), target, expires)?;
    for (file, seed) in [
        ("1.root.json", 1),
        ("targets.json", 1),
        ("releases.json", 2),
        ("campaigns.json", 3),
    ] {
        repository.sign(file, &key(seed))?;
    }
    Ok(repository)
}

fn recurs(rrule: &str) -> Recurrence {
    Recurrence {
        dtstart: "2026-01-01T22:00:00".to_owned(),
        rrule: rrule.to_owned(),
        rdate: vec!["2026-12-30T22:00:00".to_owned()],
        exdate: vec!["2026-12-31T22:00:00".to_owned()],
    }
}
