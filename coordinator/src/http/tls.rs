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
use firmesh_protocol::{identity::NodeIdentity, time::WallTime};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_layer::Layer as _;

use super::{App, problem::Failure};
use crate::authority::{Authority, AuthorityError};

/// Why the nodes' listener has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate of our own.
    #[error("the coordinator has no certificate for its node listener")]
    Authority(#[from] AuthorityError),
    /// TLS refused the key or the certificate.
    #[error("TLS cannot use the coordinator's certificate")]
    Tls(#[from] rustls::Error),
    /// The fleet CA cannot be used.
    #[error("the fleet CA's certificate cannot be used to verify nodes")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The listener's side of TLS.
pub(crate) fn server_config(authority: &Authority, now: WallTime) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.ca_der().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let (certificate, key) = authority.own_certificate(now)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], PrivateKeyDer::from(key))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificate a connection was made with, if any. The handshake has verified it.
#[derive(Debug, Clone)]
pub(crate) struct PeerCertificate(Option<CertificateDer<'static>>);

/// Accepts TLS and hands the peer's certificate to the handlers.
#[derive(Debug, Clone)]
pub(crate) struct PeerAcceptor(pub(crate) RustlsAcceptor);

impl<I, S> Accept<I, S> for PeerAcceptor
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Send + 'static,
{
    type Stream = <RustlsAcceptor as Accept<I, S>>::Stream;
    type Service = AddExtension<S, PeerCertificate>;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
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
