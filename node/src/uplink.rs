//! The way to the coordinator: HTTPS with mutual TLS, bounded answers, bounded time.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use firmesh_protocol::{
    api::{
        CredentialsReport, EnrolRequest, EnrolResponse, Problem, RenewRequest, SyncRequest, SyncResponse,
        TranscriptReport,
    },
    chunk::{ENCODED_PIECE_BYTES_MAX, PieceLayout},
    groups::Groups,
    ids::{ArtifactId, CampaignId, NodeId, Sha256},
    limits::{EVIDENCE_BYTES_MAX, MANIFEST_BYTES_MAX, PLAN_BYTES_MAX},
    manifest::Artifact,
    trust::Input,
};
use reqwest::{Client, RequestBuilder, StatusCode};

use crate::{
    files::write_durably,
    identity::{IdentityFileError, NodeKey, enrolment_client_config},
    transport::Received,
};

/// How long an enrolment waits: there is no other coordinator to turn to.
const ENROL_PATIENCE: Duration = Duration::from_secs(20);

/// The slowest answer that is waited for. How long a whole answer takes depends on the link, and on no clock of ours.
const BYTES_PER_SECOND_MIN: u64 = 1 << 10;

/// A coordinator that does not answer a handshake is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A sync answer carries permits and, at times, the roster.
const SYNC_BYTES_MAX: u64 = 32 << 20;

/// A refusal is a sentence.
const PROBLEM_BYTES_MAX: u64 = 64 << 10;

/// A recipe is named by two digests and a length.
const RECIPE_NAME_BYTES_MAX: u64 = 4 << 10;

/// An enrolment answer is two certificates.
const ENROL_BYTES_MAX: u64 = 64 << 10;

/// The connection to the coordinator. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uplink {
    client: Client,
    url: String,
    patience: Duration,
}

/// Why the coordinator did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// No answer.
    #[error("the coordinator cannot be reached at {url}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// It took the request and fell silent.
    #[error("the coordinator was asked for {url} and said nothing for {} s", patience.as_secs_f32())]
    Mute {
        /// What was asked.
        url: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The answer trickles.
    #[error(
        "the coordinator's answer to {url} comes at less than {BYTES_PER_SECOND_MIN} bytes per second: {received} bytes in {} s",
        spent.as_secs()
    )]
    Slow {
        /// What was asked.
        url: String,
        /// What came of it.
        received: u64,
        /// In what time.
        spent: Duration,
    },
    /// It refused.
    #[error("the coordinator refused {url}: {status} {detail}")]
    Refused {
        /// What was asked.
        url: String,
        /// The status.
        status: StatusCode,
        /// What it said.
        detail: String,
    },
    /// The answer is longer than it may be.
    #[error("the coordinator's answer to {url} is longer than {bytes_max} bytes")]
    TooLong {
        /// What was asked.
        url: String,
        /// The bound.
        bytes_max: u64,
    },
    /// The answer has another form than expected.
    #[error("the coordinator's answer to {url} is not of the expected form")]
    Malformed {
        /// What was asked.
        url: String,
        /// Why not.
        source: serde_json::Error,
    },
}

impl UplinkError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Mute { .. } => "no_answer",
            Self::Slow { .. } => SLOW_ANSWER,
            Self::Refused { .. } => "coordinator_refused",
            Self::TooLong { .. } => "too_large",
            Self::Malformed { .. } => "malformed",
        }
    }

    /// Whether nothing came of the request that another try may not bring.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Mute { .. } | Self::Slow { .. })
    }

    /// Whether the same may be taken another time: nobody answered, or the coordinator is busy, or in trouble of its own.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            other => other.is_unreachable(),
        }
    }

    /// Whether this node broke off because the coordinator does not answer as a sound one does: what an operator has to
    /// be told by name. One that is down, or says no, is not meant.
    #[must_use]
    pub fn is_misconduct(&self) -> bool {
        match self {
            Self::Mute { .. } | Self::Slow { .. } | Self::TooLong { .. } | Self::Malformed { .. } => true,
            Self::Unreachable { .. } | Self::Refused { .. } => false,
        }
    }
}

/// The name of an answer that takes too long.
pub(crate) const SLOW_ANSWER: &str = "slow_answer";

/// Why a node could not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// There is no token to enrol with.
    #[error(
        "this node is not enrolled and has no token: set coordinator.token_file to the file `firmesh node enrol` wrote"
    )]
    NoToken,
    /// The token's file cannot be read.
    #[error("coordinator.token_file: {path} cannot be read")]
    Token {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The certificate cannot be written.
    #[error("{path} cannot be written")]
    Certificate {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The coordinator did not answer or refused.
    #[error("the coordinator did not enrol this node")]
    Coordinator(#[from] UplinkError),
    /// The key or the CA cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    /// The HTTPS client cannot be made.
    #[error("the HTTPS client cannot be made")]
    Client(#[source] reqwest::Error),
}

/// Asks the coordinator for this node's certificate, with the one-time token.
pub async fn enrol(
    url: &str,
    fleet_ca_pem: &str,
    token_file: Option<&Path>,
    node: &NodeId,
    key: &NodeKey,
    addresses: &[std::net::IpAddr],
    certificate_path: &Path,
) -> Result<(), EnrolError> {
    let path = token_file.ok_or(EnrolError::NoToken)?;
    let token = fs::read_to_string(path).map_err(|source| EnrolError::Token {
        path: path.to_owned(),
        source,
    })?;
    let tls = enrolment_client_config(fleet_ca_pem)?;
    let uplink = Uplink::new(url.to_owned(), tls, ENROL_PATIENCE).map_err(EnrolError::Client)?;
    let request = EnrolRequest {
        node: node.clone(),
        token: token.trim().to_owned(),
        csr_pem: key.certificate_request(node, addresses)?,
    };
    let response: EnrolResponse = uplink.post("/node/v1/enrol", &request, ENROL_BYTES_MAX).await?;
    write_durably(certificate_path, response.certificate_pem.as_bytes(), 0o644).map_err(|source| {
        EnrolError::Certificate {
            path: certificate_path.to_owned(),
            source,
        }
    })
}

impl Uplink {
    /// A connection to the coordinator at `url` with this TLS configuration. It may be silent for as long as `patience`,
    /// and its answers slow for as long.
    pub fn new(url: String, tls: rustls::ClientConfig, patience: Duration) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(patience)
            .build()?;
        Ok(Self { client, url, patience })
    }

    /// Reports, and hears what is new.
    pub async fn sync(&self, request: &SyncRequest) -> Result<SyncResponse, UplinkError> {
        self.post("/node/v1/sync", request, SYNC_BYTES_MAX).await
    }

    /// One file of the metadata repository, as the trust core asks for it.
    pub async fn metadata(&self, name: &str, bytes_max: u64) -> Result<Input, UplinkError> {
        match self.get(&format!("/node/v1/metadata/{name}"), bytes_max).await {
            Ok(bytes) => Ok(Input::Fetched(bytes.to_vec())),
            Err(UplinkError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Ok(Input::NotFound),
            Err(error) => Err(error),
        }
    }

    /// A campaign's manifest. Not verified.
    pub async fn manifest(&self, id: &CampaignId) -> Result<Bytes, UplinkError> {
        self.get(&format!("/node/v1/targets/campaigns/{id}.json"), MANIFEST_BYTES_MAX)
            .await
    }

    /// A plan. Not verified.
    pub async fn plan(&self, digest: &Sha256) -> Result<Bytes, UplinkError> {
        self.get(&format!("/node/v1/plans/{digest}"), PLAN_BYTES_MAX).await
    }

    /// A piece from the origin, encoded. Not verified.
    pub async fn piece(&self, artifact: ArtifactId, layout: PieceLayout, piece: u32) -> Result<Received, UplinkError> {
        let range = layout.bytes(piece);
        let (offset, length) = (range.start, range.end - range.start);
        let path = format!("/node/v1/artifacts/{artifact}/slice?offset={offset}&length={length}");
        self.ask(&path, ENCODED_PIECE_BYTES_MAX as u64).await
    }

    /// Some chunk groups of a piece from the origin, encoded. Not verified.
    pub async fn groups(
        &self,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
        groups: Groups,
    ) -> Result<Received, UplinkError> {
        let range = layout.bytes(piece);
        let (offset, length) = (range.start, range.end - range.start);
        let path = format!("/node/v1/artifacts/{artifact}/slice?offset={offset}&length={length}&groups={groups}");
        self.ask(&path, ENCODED_PIECE_BYTES_MAX as u64).await
    }

    /// The recipe of an image; `None` if the coordinator has none. Not verified.
    pub async fn recipe(&self, image: ArtifactId) -> Result<Option<Artifact>, UplinkError> {
        let path = format!("/node/v1/artifacts/{image}/recipe");
        let bytes = match self.get(&path, RECIPE_NAME_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(UplinkError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => return Ok(None),
            Err(error) => return Err(error),
        };
        let url = || format!("{}{path}", self.url);
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| UplinkError::Malformed { url: url(), source })
    }

    /// Evidence for a gate, by its digest. Not verified.
    pub async fn evidence(&self, digest: &Sha256) -> Result<Bytes, UplinkError> {
        self.get(&format!("/node/v1/evidence/{digest}"), EVIDENCE_BYTES_MAX)
            .await
    }

    /// Tells which profiles this node's devices have their credentials from.
    pub async fn tell_profiles(&self, report: &CredentialsReport) -> Result<(), UplinkError> {
        self.tell("/node/v1/credentials", report).await
    }

    /// Tells what was said to a device in an attempt.
    pub async fn tell_transcript(&self, report: &TranscriptReport) -> Result<(), UplinkError> {
        self.tell("/node/v1/transcripts", report).await
    }

    /// Another certificate for this node's key, PEM. Not verified.
    pub async fn renew(&self, csr_pem: String) -> Result<String, UplinkError> {
        let request = RenewRequest { csr_pem };
        let response: EnrolResponse = self.post("/node/v1/renew", &request, ENROL_BYTES_MAX).await?;
        Ok(response.certificate_pem)
    }

    async fn get(&self, path: &str, bytes_max: u64) -> Result<Bytes, UplinkError> {
        self.ask(path, bytes_max).await.map(|answer| answer.bytes)
    }

    async fn ask(&self, path: &str, bytes_max: u64) -> Result<Received, UplinkError> {
        let url = format!("{}{path}", self.url);
        self.answer(&url, self.client.get(&url), bytes_max).await
    }

    async fn tell(&self, path: &str, report: &impl serde::Serialize) -> Result<(), UplinkError> {
        let url = format!("{}{path}", self.url);
        let asked = self.client.post(&url).json(report);
        self.answer(&url, asked, PROBLEM_BYTES_MAX).await.map(drop)
    }

    async fn post<A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        request: &impl serde::Serialize,
        bytes_max: u64,
    ) -> Result<A, UplinkError> {
        let url = format!("{}{path}", self.url);
        let answer = self
            .answer(&url, self.client.post(&url).json(request), bytes_max)
            .await?;
        serde_json::from_slice(&answer.bytes).map_err(|source| UplinkError::Malformed { url, source })
    }

    async fn answer(&self, url: &str, request: RequestBuilder, bytes_max: u64) -> Result<Received, UplinkError> {
        let begun = Instant::now();
        let mut response = request.send().await.map_err(|source| self.broken_off(url, source))?;
        let status = response.status();
        let bytes_max = if status.is_success() {
            bytes_max
        } else {
            PROBLEM_BYTES_MAX
        };
        let (waited, mut bytes) = (begun.elapsed(), BytesMut::new());
        while let Some(part) = response.chunk().await.map_err(|source| self.broken_off(url, source))? {
            let (received, spent) = (bytes.len() as u64 + part.len() as u64, begun.elapsed());
            if received > bytes_max {
                let url = url.to_owned();
                return Err(UplinkError::TooLong { url, bytes_max });
            }
            if spent > self.patience && received < spent.as_secs().saturating_mul(BYTES_PER_SECOND_MIN) {
                let url = url.to_owned();
                return Err(UplinkError::Slow { url, received, spent });
            }
            bytes.extend_from_slice(&part);
        }
        if status.is_success() {
            let bytes = bytes.freeze();
            return Ok(Received { bytes, waited });
        }
        let detail = serde_json::from_slice::<Problem>(&bytes).map_or_else(|_| String::new(), |problem| problem.detail);
        let url = url.to_owned();
        Err(UplinkError::Refused { url, status, detail })
    }

    /// What an exchange ended with. Who does not even connect is down; who connects and says nothing is not.
    fn broken_off(&self, url: &str, source: reqwest::Error) -> UplinkError {
        let (url, patience) = (url.to_owned(), self.patience);
        match source.is_timeout() && !source.is_connect() {
            true => UplinkError::Mute { url, patience },
            false => UplinkError::Unreachable { url, source },
        }
    }
}
