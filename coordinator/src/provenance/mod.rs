//! Where an image comes from, checked before anybody signs for it: the vendor's signatures, the SBOM, known
//! vulnerabilities, against a policy that the operator wrote.
//!
//! Files are bounded and images are read in stretches. Nothing here speaks to the network: keys, revocation lists and
//! advisories are files that the operator brought.

mod advisory;
mod cms;
mod openpgp;
mod policy;
mod purl;
mod record;
mod rsa;
mod sbom;
mod signature;
mod verdict;
mod version;

#[cfg(test)]
mod sbom_tests;
#[cfg(test)]
mod tests;

pub use advisory::{ADVISORIES_BYTES_MAX, Advisories, AdvisoryError, Match, Severity};
pub use policy::{POLICY_SCHEMA, Policy, PolicyLoadError};
pub use purl::{Purl, PurlError};
pub use record::{EvidenceFolder, RecordError};
pub use sbom::{Component, SBOM_BYTES_MAX, Sbom, SbomError, SbomFormat};
pub use signature::{Image, Kind, SIGNATURE_BYTES_MAX, SIGNATURES_MAX, SignatureError, SignatureFile, SignedBy};
pub use verdict::{Evidence, Finding, SbomVerdict, SignatureVerdict, VERDICT_BYTES_MAX, VERDICT_SCHEMA, Verdict};

/// Which of two versions of firmware is the later one, by the scheme that both follow.
pub(crate) fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    version::compare(a, b, false)
}
