//! Which addresses of a network have a Redfish service: asked slowly, without credentials, and only when a person says where.
//!
//! Invariants: nothing is sent but a TLS greeting and one request for the service root, which the specification leaves open
//! to everybody; no more addresses are asked a second, and at once, than allowed; no answer is read beyond its bound. Who
//! answers is not verified here: its certificate is told, for a person to compare and to trust.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    num::NonZeroU32,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use data_encoding::BASE64;
use futures_util::{StreamExt as _, stream};
use ipnet::{IpAddrRange, IpNet, Ipv4AddrRange, Ipv6AddrRange};
use reqwest::{Url, redirect};
use rustls::crypto::CryptoProvider;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::client::{ClientError, provider};
use crate::certificate::Shown;

/// Addresses of one search, at most: those of a /16.
pub const ADDRESSES_MAX: usize = 1 << 16;

/// Addresses that are asked at the same time.
const AT_ONCE: usize = 64;

/// The largest service root that is read.
const ROOT_BYTES_MAX: usize = 64 << 10;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Bytes of one text of an answer that are kept.
const TEXT_BYTES_MAX: usize = 128;

/// Some addresses: one, a network (`10.1.9.0/24`), or from one to another (`10.1.9.10-10.1.9.40`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(Vec<IpAddr>);

/// Why a text does not name addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressesError {
    /// It is none of the forms.
    #[error("`{0}` is neither an address, nor a network like 10.1.9.0/24, nor a range like 10.1.9.10-10.1.9.40")]
    Malformed(String),
    /// There are too many.
    #[error("`{0}` has more than {ADDRESSES_MAX} addresses: search it in parts")]
    TooMany(String),
}

impl FromStr for Addresses {
    type Err = AddressesError;
    fn from_str(text: &str) -> Result<Self, AddressesError> {
        let malformed = || AddressesError::Malformed(text.chars().take(TEXT_BYTES_MAX).collect());
        let range = match text.split_once('-') {
            Some((first, last)) => match (first.trim().parse(), last.trim().parse()) {
                (Ok(IpAddr::V4(first)), Ok(IpAddr::V4(last))) if first <= last => {
                    IpAddrRange::V4(Ipv4AddrRange::new(first, last))
                }
                (Ok(IpAddr::V6(first)), Ok(IpAddr::V6(last))) if first <= last => {
                    IpAddrRange::V6(Ipv6AddrRange::new(first, last))
                }
                _ => return Err(malformed()),
            },
            None => match (text.trim().parse::<IpAddr>(), text.trim().parse::<IpNet>()) {
                (Ok(one), _) => return Ok(Self(vec![one])),
                (_, Ok(network)) => network.hosts(),
                _ => return Err(malformed()),
            },
        };
        let addresses: Vec<_> = range.take(ADDRESSES_MAX + 1).collect();
        match addresses.len() > ADDRESSES_MAX {
            true => Err(AddressesError::TooMany(text.to_owned())),
            false => Ok(Self(addresses)),
        }
    }
}

/// Where to look, and how fast.
#[derive(Debug, Clone)]
pub struct Search {
    /// The addresses.
    pub addresses: Vec<Addresses>,
    /// The port of the services.
    pub port: u16,
    /// Addresses that are asked in a second, at most.
    pub per_second: NonZeroU32,
}

/// A Redfish service that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Where.
    pub address: IpAddr,
    /// Its URL, for a device's configuration.
    pub url: String,
    /// The version of Redfish that it names.
    pub redfish: String,
    /// Who made it, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// What it calls itself, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its identity, the same at another address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// SHA-256 of its certificate, in hexadecimal.
    pub certificate_sha256: String,
    /// Its certificate, DER.
    #[serde(skip)]
    pub certificate: Vec<u8>,
}

impl Found {
    /// Its certificate as a PEM file.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        let body = BASE64.encode(&self.certificate);
        let lines: Vec<_> = body.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            lines.join("\n")
        )
    }
}

/// Asks all addresses, each once; `tell` hears of every service that answers, as soon as it does. Answers how many addresses
/// were asked.
pub async fn discover(search: &Search, mut tell: impl FnMut(Found)) -> Result<usize, ClientError> {
    let addresses = search.addresses.iter().flat_map(|addresses| &addresses.0);
    let addresses: BTreeSet<_> = addresses.copied().collect();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / search.per_second.get());
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let asked = addresses.len();
    let provider = provider();
    let paced = stream::unfold((addresses.into_iter(), pace), async |(mut left, mut pace)| {
        let next = left.next()?;
        pace.tick().await;
        Some((next, (left, pace)))
    });
    let mut answers = Box::pin(
        paced
            .map(|address| ask(address, search.port, Arc::clone(&provider)))
            .buffer_unordered(AT_ONCE),
    );
    while let Some(answer) = answers.next().await {
        if let Some(found) = answer? {
            tell(found);
        }
    }
    Ok(asked)
}

/// What is at this address, if it is a Redfish service.
async fn ask(address: IpAddr, port: u16, provider: Arc<CryptoProvider>) -> Result<Option<Found>, ClientError> {
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let url = match port {
        443 => format!("https://{host}"),
        _ => format!("https://{host}:{port}"),
    };
    let setup = |error: Box<dyn std::error::Error + Send + Sync>| ClientError::Setup(error);
    // The first one, and no other on a later connection.
    let seen = Arc::new(OnceLock::<Vec<u8>>::new());
    let noted = Arc::clone(&seen);
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| setup(error.into()))?
        .dangerous()
        .with_custom_certificate_verifier(Shown::new(provider, move |shown| {
            noted.get_or_init(|| shown.to_vec()) == shown
        }))
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .connect_timeout(CONNECT_LIMIT)
        .timeout(ANSWER_LIMIT)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| setup(error.into()))?;
    let root = Url::parse(&format!("{url}/redfish/v1/")).map_err(|error| setup(error.into()))?;
    // Who does not answer, or something else, is none.
    let Ok(response) = client.get(root).send().await else {
        return Ok(None);
    };
    if !response.status().is_success() {
        return Ok(None);
    }
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > ROOT_BYTES_MAX {
            return Ok(None);
        }
    }
    let (Ok(root), Some(certificate)) = (serde_json::from_slice::<Root>(&body), seen.get()) else {
        return Ok(None);
    };
    let Some(redfish) = root.redfish_version.and_then(plain) else {
        return Ok(None);
    };
    Ok(Some(Found {
        address,
        url,
        redfish,
        vendor: root.vendor.and_then(plain),
        product: root.product.and_then(plain),
        uuid: root.uuid.and_then(plain),
        certificate_sha256: hex::encode(sha2::Sha256::digest(certificate)),
        certificate: certificate.clone(),
    }))
}

/// A text that strangers chose, as it may be shown.
fn plain(text: String) -> Option<String> {
    let plain: String = text.chars().filter(|c| !c.is_control()).take(TEXT_BYTES_MAX).collect();
    (!plain.trim().is_empty()).then(|| plain.trim().to_owned())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Root {
    redfish_version: Option<String>,
    vendor: Option<String>,
    product: Option<String>,
    #[serde(rename = "UUID")]
    uuid: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<String>, AddressesError> {
        let addresses: Addresses = text.parse()?;
        Ok(addresses.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_are_one_or_a_network_or_a_range() {
        assert_eq!(of("10.1.9.7").unwrap(), ["10.1.9.7"]);
        assert_eq!(of("10.1.9.8/30").unwrap(), ["10.1.9.9", "10.1.9.10"]);
        assert_eq!(of("10.1.9.254-10.1.10.1").unwrap().len(), 4);
        assert_eq!(of("fd00::7").unwrap(), ["fd00::7"]);
        assert_eq!(of("10.1.0.0/16").unwrap().len(), ADDRESSES_MAX - 2);
    }

    #[test]
    fn what_names_no_addresses_or_too_many_is_refused() {
        for text in [
            "",
            "bmc7",
            "10.1.9.0/33",
            "10.1.9.9-10.1.9.1",
            "10.1.9.1-fd00::1",
            "1-2-3",
        ] {
            assert!(matches!(of(text), Err(AddressesError::Malformed(_))), "{text}");
        }
        for text in ["10.0.0.0/8", "fd00::/64", "0.0.0.0-255.255.255.255"] {
            assert!(matches!(of(text), Err(AddressesError::TooMany(_))), "{text}");
        }
    }

    #[test]
    fn what_strangers_say_is_shown_plainly() {
        assert_eq!(plain("iDRAC\u{1b}[31m\n".to_owned()).as_deref(), Some("iDRAC[31m"));
        assert_eq!(plain("\u{7}".to_owned()), None);
        assert_eq!(plain("x".repeat(1_000)).unwrap().len(), TEXT_BYTES_MAX);
    }
}
