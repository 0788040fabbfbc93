//! The way to the coordinator: HTTPS with mutual TLS, bounded answers, bounded time.

use std::{fs, io, path::Path, time::Duration};

use bytes::{Bytes, BytesMut};
use firmesh_protocol::{
    api::{EnrolRequest, EnrolResponse, Problem, RenewRequest, SyncRequest, SyncResponse},
    chunk::{ENCODED_PIECE_BYTES_MAX, PieceLayout},
    ids::{ArtifactId, CampaignId, NodeId, Sha256},
    limits::{EVIDENCE_BYTES_MAX, MANIFEST_BYTES_MAX, PLAN_BYTES_MAX},
    trust::Input,
};
use reqwest::{Client, Response, StatusCode};

use crate::{
    files::write_durably,
    identity::{IdentityFileError, NodeKey, enrolment_client_config},
};

/// A coordinator that sends nothing for so long is in trouble; how long a whole answer takes depends on the link.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A coordinator that does not answer a handshake is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A sync answer carries permits and, at times, the roster.
const SYNC_BYTES_MAX: u64 = 32 << 20;

/// An enrolment answer is two certificates.
const ENROL_BYTES_MAX: u64 = 64 << 10;

/// The connection to the coordinator. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uplink {
    client: Client,
    url: String,
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
    /// Whether the coordinator is there at all.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

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
    let uplink = Uplink::new(url.to_owned(), enrolment_client_config(fleet_ca_pem)?).map_err(EnrolError::Client)?;
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
    /// A connection to the coordinator at `url` with this TLS configuration.
    pub fn new(url: String, tls: rustls::ClientConfig) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(TIMEOUT)
            .build()?;
        Ok(Self { client, url })
    }

    /// Reports, and hears what is new.
    pub async fn sync(&self, request: &SyncRequest) -> Result<SyncResponse, UplinkError> {
        self.post("/node/v1/sync", request, SYNC_BYTES_MAX).await
    }

    /// One file of the metadata repository, as the trust core asks for it.
    pub async fn metadata(&self, name: &str, bytes_max: u64) -> Input {
        match self.get(&format!("/node/v1/metadata/{name}"), bytes_max).await {
            Ok(bytes) => Input::Fetched(bytes.to_vec()),
            Err(UplinkError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Input::NotFound,
            Err(error) => Input::Failed(error.to_string()),
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
    pub async fn piece(&self, artifact: ArtifactId, layout: PieceLayout, piece: u32) -> Result<Bytes, UplinkError> {
        let range = layout.bytes(piece);
        let (offset, length) = (range.start, range.end - range.start);
        let path = format!("/node/v1/artifacts/{artifact}/slice?offset={offset}&length={length}");
        self.get(&path, ENCODED_PIECE_BYTES_MAX as u64).await
    }

    /// Evidence for a gate, by its digest. Not verified.
    pub async fn evidence(&self, digest: &Sha256) -> Result<Bytes, UplinkError> {
        self.get(&format!("/node/v1/evidence/{digest}"), EVIDENCE_BYTES_MAX)
            .await
    }

    /// Another certificate for this node's key, PEM. Not verified.
    pub async fn renew(&self, csr_pem: String) -> Result<String, UplinkError> {
        let request = RenewRequest { csr_pem };
        let response: EnrolResponse = self.post("/node/v1/renew", &request, ENROL_BYTES_MAX).await?;
        Ok(response.certificate_pem)
    }

    async fn get(&self, path: &str, bytes_max: u64) -> Result<Bytes, UplinkError> {
        let url = format!("{}{path}", self.url);
        let sent = self.client.get(&url).send().await;
        body(url, sent, bytes_max).await
    }

    async fn post<A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        request: &impl serde::Serialize,
        bytes_max: u64,
    ) -> Result<A, UplinkError> {
        let url = format!("{}{path}", self.url);
        let sent = self.client.post(&url).json(request).send().await;
        let bytes = body(url.clone(), sent, bytes_max).await?;
        serde_json::from_slice(&bytes).map_err(|source| UplinkError::Malformed { url, source })
    }
}

async fn body(url: String, sent: Result<Response, reqwest::Error>, bytes_max: u64) -> Result<Bytes, UplinkError> {
    let unreachable = |url: &String, source| UplinkError::Unreachable {
        url: url.clone(),
        source,
    };
    let mut response = sent.map_err(|source| unreachable(&url, source))?;
    let status = response.status();
    let bytes_max = if status.is_success() { bytes_max } else { 64 << 10 };
    let mut bytes = BytesMut::new();
    while let Some(part) = response.chunk().await.map_err(|source| unreachable(&url, source))? {
        if bytes.len() as u64 + part.len() as u64 > bytes_max {
            return Err(UplinkError::TooLong { url, bytes_max });
        }
        bytes.extend_from_slice(&part);
    }
    if status.is_success() {
        return Ok(bytes.freeze());
    }
    let detail = serde_json::from_slice::<Problem>(&bytes).map_or_else(|_| String::new(), |problem| problem.detail);
    Err(UplinkError::Refused { url, status, detail })
}
