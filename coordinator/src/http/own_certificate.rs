//! The coordinator's own certificate towards nodes: made at every start, and anew when two thirds of its time are over.
//!
//! Invariants: who connects is shown the newest; connections that stand are not touched; where a new one cannot be made the one
//! before goes on being shown, and it is tried again.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use firmesh_protocol::{identity::certificate_validity, time::WallTime};
use rustls::{
    crypto::CryptoProvider,
    pki_types::PrivateKeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tracing::{error, info};

use super::tls::TlsError;
use crate::{authority::Authority, runtime::Clock, telemetry::chain};

/// How often the time is looked at: the clock may be set, and a sleep does not see it.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// What is shown, and how to make another.
pub(crate) struct OwnCertificate {
    authority: Arc<Authority>,
    provider: Arc<CryptoProvider>,
    shown: RwLock<Shown>,
}

#[derive(Clone)]
struct Shown {
    key: Arc<CertifiedKey>,
    /// From when on it is good: later than now, if the clock was set back meanwhile.
    begins: WallTime,
    /// When two thirds of its time are over.
    due: WallTime,
}

impl OwnCertificate {
    /// The first one.
    pub(crate) fn new(authority: Arc<Authority>, now: WallTime) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let shown = RwLock::new(made(&authority, &provider, now)?);
        Ok(Self {
            authority,
            provider,
            shown,
        })
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        Arc::clone(&self.provider)
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Makes another if it is time to. Whether it was.
    fn renew_if_due(&self, now: WallTime) -> Result<bool, TlsError> {
        let Shown { begins, due, .. } = self.shown();
        if begins <= now && now < due {
            return Ok(false);
        }
        let made = made(&self.authority, &self.provider, now)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = made;
        Ok(true)
    }

    fn shown(&self) -> Shown {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Renews it as long as this is awaited.
    pub(crate) async fn keep(&self, clock: Clock) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.renew_if_due(clock.wall()) {
                Ok(false) => {}
                Ok(true) => info!(next = %self.shown().due, "nodes are shown a new certificate of this coordinator"),
                Err(failure) => error!(
                    error = chain(&failure),
                    "this coordinator's certificate for nodes was not renewed; it is tried again in an hour"
                ),
            }
        }
    }
}

fn made(authority: &Authority, provider: &CryptoProvider, now: WallTime) -> Result<Shown, TlsError> {
    let (certificate, key) = authority.own_certificate(now)?;
    let (begins, ends) = certificate_validity(&certificate)?;
    // It is dated back for clocks that are behind: what counts is what is left of it.
    let whole = ends.unix_seconds().saturating_sub(now.unix_seconds()).max(0);
    let due = WallTime::from_unix_seconds(now.unix_seconds().saturating_add(whole / 3 * 2));
    let key = CertifiedKey::from_der(vec![certificate], PrivateKeyDer::from(key), provider)?;
    Ok(Shown {
        key: Arc::new(key),
        begins,
        due,
    })
}

/// Whatever else it is, it holds a key.
impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCertificate").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown().key)
    }
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, pki_types::CertificateDer,
    };

    use super::{super::tls::server_config, *};

    const DAY: i64 = 86_400;

    /// The certificate that a node is shown who connects now, and that it believes.
    fn shown_to_a_node(server: &Arc<ServerConfig>, authority: &Authority) -> CertificateDer<'static> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.ca_der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        client.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// It was made once, at the start, for two years: a coordinator that ran longer was believed by no node any more.
    #[test]
    fn nodes_are_shown_a_new_certificate_after_two_thirds_of_the_time_and_connect_as_before() {
        let folder = tempfile::tempdir().unwrap();
        let now = Clock::start().wall().unix_seconds();
        let at = WallTime::from_unix_seconds;
        // Rather more than two thirds of its two years ago.
        let begun = now - 500 * DAY;
        let authority = Authority::load_or_create(folder.path(), Vec::new(), at(begun)).unwrap();
        let own = Arc::new(OwnCertificate::new(Arc::new(authority), at(begun)).unwrap());
        let server = Arc::new(server_config(&own).unwrap());
        let first = shown_to_a_node(&server, own.authority());
        assert!(!own.renew_if_due(at(begun + 480 * DAY)).unwrap());
        assert_eq!(shown_to_a_node(&server, own.authority()), first);

        assert!(own.renew_if_due(at(now)).unwrap());
        let second = shown_to_a_node(&server, own.authority());
        assert_ne!(second, first);
        let (_, ends) = certificate_validity(&second).unwrap();
        assert!(ends > at(now + 700 * DAY), "{ends}");
        assert!(!own.renew_if_due(at(now + DAY)).unwrap());
        // A clock that was ahead and is set right: nobody would believe one that is not good yet.
        assert!(own.renew_if_due(at(begun)).unwrap());
        assert!(!own.renew_if_due(at(begun)).unwrap());
    }
}
