//! The node's own certificate, renewed before it expires and without anybody noticing.

use std::time::{Duration, Instant};

use firmesh_executors::JournalError;
use firmesh_protocol::report::NodeRecord;
use tracing::{info, warn};

use super::{Chain, Event, Runtime, roster::sign_record};
use crate::{
    config::Settings,
    mesh::{MeshCommand, Topic},
    uplink::{Uplink, UplinkError},
};

/// How long before a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);

impl Runtime {
    /// Asks for another certificate when two thirds of this one's time are over.
    pub(super) fn renew_if_due(&mut self) {
        let due = self.identity.renewal_due();
        let is_due = due.is_ok_and(|due| due <= self.fleet.now());
        if !is_due || !self.fleet.coordinator_reachable || self.renew_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.renew_at = Some(Instant::now() + AGAIN);
        let csr = self
            .identity
            .key
            .certificate_request(&self.settings.node, &addresses(&self.settings));
        let csr = match csr {
            Ok(csr) => csr,
            Err(error) => return self.local_error(&error),
        };
        let uplink = self.uplink.clone();
        self.spawn(async move { Event::Renewed(uplink.renew(csr).await) });
    }

    pub(super) fn on_renewed(&mut self, answer: Result<String, UplinkError>) -> Result<(), JournalError> {
        let pem = match answer {
            Ok(pem) => pem,
            Err(error) => {
                self.name_misconduct(&error);
                warn!(error = %Chain(&error), "the certificate was not renewed; tried again in {} s", AGAIN.as_secs());
                return Ok(());
            }
        };
        let (node, path) = (self.settings.node.clone(), self.settings.path.clone());
        let file = self.settings.state_dir.join("node.crt");
        let renewed = self.identity.renew(&pem, &file, &node, &path, self.fleet.now());
        let client = renewed.and_then(|()| self.identity.client_config());
        match client.map(|tls| Uplink::new(self.settings.coordinator_url.clone(), tls, self.settings.patience)) {
            // Connections that were kept were made with the certificate before.
            Ok(Ok(uplink)) => self.uplink = uplink,
            Ok(Err(error)) => self.local_error(&error),
            Err(error) => {
                self.refuse("bad_certificate", Chain(&error).to_string());
                return Ok(());
            }
        }
        info!("certificate renewed");
        let record = NodeRecord {
            certificate: hex::encode(self.identity.certificate()),
            sequence: self.journal.next("record")?,
            ..self.record.clone()
        };
        let signed = sign_record(&record, &self.identity.key);
        self.record = record;
        self.fleet.set_own_record(signed.clone());
        self.tell_mesh(MeshCommand::Publish(Topic::Records, signed.to_bytes()));
        self.fleet.sync_soon();
        Ok(())
    }
}

/// The addresses at which BMCs reach this node, for its certificate.
pub(super) fn addresses(settings: &Settings) -> Vec<std::net::IpAddr> {
    let (images, ddi) = (&settings.images, settings.ddi.as_ref());
    let hosts = [&images.advertise_host]
        .into_iter()
        .chain(ddi.map(|ddi| &ddi.advertise_host));
    let advertised = hosts.flatten().filter_map(|host| host.parse().ok());
    let listening = [images.listen.ip()].into_iter().chain(ddi.map(|ddi| ddi.listen.ip()));
    listening.chain(advertised).filter(|ip| !ip.is_unspecified()).collect()
}
