//! The BMCs' certificate: the one given, or one made at the first start.

use std::{fs, net::Ipv4Addr, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{config::TlsConfig, state::Endpoints};

pub(super) fn server(
    config: &Option<TlsConfig>,
    base: &Path,
    state: &Path,
    endpoints: &mut Endpoints,
) -> Result<Arc<ServerConfig>> {
    let (cert, key) = match config {
        Some(TlsConfig { cert_file, key_file }) => {
            endpoints.ca_file = None;
            (base.join(cert_file), base.join(key_file))
        }
        None => {
            let made = [
                state.join("bmc-ca.pem"),
                state.join("bmc.pem"),
                state.join("bmc-key.pem"),
            ];
            if !made.iter().all(|file| file.exists()) {
                make(&made)?;
            }
            let [ca, cert, key] = made;
            endpoints.ca_file = Some(ca);
            (cert, key)
        }
    };
    let chain = CertificateDer::pem_file_iter(&cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading the certificate {}", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("reading the key {}", key.display()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the BMCs' certificate and key do not fit together")?;
    Ok(Arc::new(config))
}

fn make([ca_file, cert_file, key_file]: &[std::path::PathBuf; 3]) -> Result<()> {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "Firmesh lab BMC CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let mut leaf = CertificateParams::new(vec!["localhost".to_owned()])?;
    leaf.distinguished_name.push(DnType::CommonName, "Firmesh lab BMC");
    leaf.subject_alt_names
        .push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    let key = KeyPair::generate()?;
    let cert = leaf.signed_by(&key, &ca)?;
    fs::write(ca_file, ca.pem())?;
    fs::write(cert_file, cert.pem())?;
    fs::write(key_file, key.serialize_pem())?;
    Ok(())
}
