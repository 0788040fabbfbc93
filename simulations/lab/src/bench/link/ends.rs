//! The two ends of a link, with the certificates that nodes have, and plain QUIC between them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use firmesh_coordinator::authority::Authority;
use firmesh_node::{
    BLOBS_ALPN,
    identity::{Identity, NodeKey},
    transport::{DatagramBound, RECEIVE_BUFFER_BYTES, endpoint_config, transport_config},
};
use firmesh_protocol::{
    ids::{NodeId, TopologyPath},
    time::WallTime,
};
use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// The certificates outlive any measurement.
const VALIDITY: Duration = Duration::from_secs(86_400);

/// Any free port of this machine, for nobody else.
pub(super) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Who sends and who receives.
pub(super) struct Ends {
    pub(super) from: End,
    pub(super) to: End,
}

/// One of them.
pub(super) struct End {
    pub(super) id: NodeId,
    pub(super) path: TopologyPath,
    pub(super) identity: Identity,
    /// Where its files lie.
    pub(super) folder: PathBuf,
}

impl Ends {
    /// Two nodes of one rack, with an authority of their own; everything lies in `folder`.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let now = firmesh_node::trust_store::system_time();
        let authority = Authority::load_or_create(&folder.join("authority"), Vec::new(), now)?;
        Ok(Self {
            from: End::new(&authority, folder, "from", now)?,
            to: End::new(&authority, folder, "to", now)?,
        })
    }
}

impl End {
    fn new(authority: &Authority, folder: &Path, name: &str, now: WallTime) -> Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let key = NodeKey::load_or_create(&folder.join("node.key"))?;
        let (id, path): (NodeId, TopologyPath) = (name.parse()?, format!("bench/rack/{name}").parse()?);
        let request = key.certificate_request(&id, &[])?;
        let certificate = authority.issue_node(&id, &path, &request, now, VALIDITY)?;
        let certificate = CertificateDer::from_pem_slice(certificate.pem.as_bytes())?;
        Ok(Self {
            identity: Identity::new(key, certificate, authority.ca_der().clone())?,
            id,
            path,
            folder,
        })
    }
}

/// QUIC as it comes, set up as nodes set it up.
pub(super) struct PlainQuic {
    /// Accepts.
    pub(super) from: quinn::Endpoint,
    to: quinn::Endpoint,
    server_name: String,
}

impl PlainQuic {
    pub(super) fn open(ends: &Ends, most: DatagramBound) -> Result<Self> {
        let mut tls = ends.from.identity.peer_server_config()?;
        tls.alpn_protocols = vec![BLOBS_ALPN.to_vec()];
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        server.transport_config(Arc::new(transport_config(LOOPBACK, most)));
        let mut tls = ends.to.identity.client_config()?;
        tls.alpn_protocols = vec![BLOBS_ALPN.to_vec()];
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        client.transport_config(Arc::new(transport_config(LOOPBACK, most)));
        let endpoint = |server| -> std::io::Result<quinn::Endpoint> {
            let (socket, runtime) = (std::net::UdpSocket::bind(LOOPBACK)?, Arc::new(quinn::TokioRuntime));
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
            quinn::Endpoint::new(endpoint_config(most), server, socket, runtime)
        };
        let mut to = endpoint(None)?;
        to.set_default_client_config(client);
        Ok(Self {
            from: endpoint(Some(server))?,
            to,
            server_name: ends.from.id.to_string(),
        })
    }

    /// Connects the receiving end with the sending one.
    pub(super) async fn connect(&self) -> Result<quinn::Connection> {
        let connecting = self.to.connect(self.from.local_addr()?, &self.server_name)?;
        connecting.await.context("the two ends cannot connect")
    }

    pub(super) async fn close(self) {
        for endpoint in [self.to, self.from] {
            endpoint.close(0_u32.into(), b"done");
            endpoint.wait_idle().await;
        }
    }
}
