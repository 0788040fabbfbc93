//! TLS towards nodes: version 1.3, our certificate and theirs from the fleet CA. A client without a certificate gets as
//! far as the enrolment route and no further.

use std::{io, pin::Pin, sync::Arc};

use axum::{
    Extension,
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
    middleware::AddExtension,
};
use axum_server::{accept::Accept, tls_rustls::RustlsAcceptor};
use firmesh_protocol::identity::{IdentityError, NodeIdentity};
use rustls::{RootCertStore, ServerConfig, pki_types::CertificateDer, server::WebPkiClientVerifier};
use tokio::net::TcpStream;
use tower_layer::Layer as _;
use tracing::debug;

use super::{App, own_certificate::OwnCertificate, problem::Failure};
use crate::authority::AuthorityError;

/// Why the nodes' listener has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate of our own.
    #[error("the coordinator has no certificate for its node listener")]
    Authority(#[from] AuthorityError),
    /// The certificate cannot be read.
    #[error("the coordinator's own certificate cannot be read")]
    Certificate(#[from] IdentityError),
    /// TLS refused the key or the certificate.
    #[error("TLS cannot use the coordinator's certificate")]
    Tls(#[from] rustls::Error),
    /// The fleet CA cannot be used.
    #[error("the fleet CA's certificate cannot be used to verify nodes")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The listener's side of TLS.
pub(crate) fn server_config(own: &Arc<OwnCertificate>) -> Result<ServerConfig, TlsError> {
    let provider = own.provider();
    let mut roots = RootCertStore::empty();
    roots.add(own.authority().ca_der().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::<OwnCertificate>::clone(own));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificate a connection was made with, if any. The handshake has verified it.
#[derive(Debug, Clone)]
pub(crate) struct PeerCertificate(Option<CertificateDer<'static>>);

/// Accepts TLS and hands the peer's certificate to the handlers.
#[derive(Debug, Clone)]
pub(crate) struct PeerAcceptor(pub(crate) RustlsAcceptor);

impl<S: Send + 'static> Accept<TcpStream, S> for PeerAcceptor {
    type Stream = <RustlsAcceptor as Accept<TcpStream, S>>::Stream;
    type Service = AddExtension<S, PeerCertificate>;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        if let Err(error) = hold_little(&stream) {
            debug!(%error, "the kernel holds more of each answer than it should");
        }
        let accepted = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepted.await?;
            let certificates = stream.get_ref().1.peer_certificates();
            let peer = certificates
                .and_then(|chain| chain.first())
                .map(|leaf| leaf.clone().into_owned());
            Ok((stream, Extension(PeerCertificate(peer)).layer(service)))
        })
    }
}

/// What the kernel takes of a connection ahead of what it can send, in bytes. Whatever waits there has left its turn already
/// ([`crate::turns`]), so it is a quarter of a piece; and it lasts for 50 microseconds at 10 Gbit/s, until this process is awake.
const UNSENT_BYTES_MAX: u32 = 64 << 10;

/// Has the kernel take no more than it can soon send.
fn hold_little(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

/// The node on the other side; requests without a certificate are refused.
pub(crate) struct Peer {
    pub(crate) identity: NodeIdentity,
    pub(crate) certificate: Vec<u8>,
}

impl FromRequestParts<Arc<App>> for Peer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let refused = |code, detail: String| Failure::new(StatusCode::UNAUTHORIZED, code, detail).refused();
        let certificate = parts
            .extensions
            .get::<PeerCertificate>()
            .and_then(|peer| peer.0.clone());
        let certificate = certificate.ok_or_else(|| {
            refused(
                "no_certificate",
                "nodes show a certificate of the fleet CA here: enrol first".to_owned(),
            )
        })?;
        let identity = NodeIdentity::from_verified_certificate(&certificate)
            .map_err(|error| refused("bad_certificate", format!("the certificate is not a node's: {error}")))?;
        let key = identity.key;
        if app
            .coordinator
            .read(move |world| world.revocations.list.contains(&key))
            .await?
        {
            app.metrics.refusals.inc();
            return Err(refused(
                "revoked",
                format!("the key of node {} was revoked", identity.node),
            ));
        }
        Ok(Self {
            identity,
            certificate: certificate.to_vec(),
        })
    }
}
