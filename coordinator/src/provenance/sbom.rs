//! Software bills of materials: CycloneDX 1.2 to 1.7 and SPDX 2.2 and 2.3, both in JSON.
//!
//! Read for what the checks need: which components, by name, version, package URL and digests. Lists are bounded, and
//! what a component says about itself must have the form the formats ask for.

use firmesh_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};

use super::purl::Purl;

/// The longest SBOM that is read.
pub const SBOM_BYTES_MAX: u64 = 64 << 20;
/// Components of one SBOM: a distribution's whole archive has less.
const COMPONENTS_MAX: usize = 200_000;
/// Components inside components inside components ...
const DEPTH_MAX: usize = 32;
/// The longest name or version.
const TEXT_BYTES_MAX: usize = 4_096;

/// Which format an SBOM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SbomFormat {
    /// CycloneDX.
    CycloneDx,
    /// SPDX.
    Spdx,
}

/// Why an SBOM was refused.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// Longer than any SBOM that is read.
    #[error("the SBOM has {0} bytes, at most {SBOM_BYTES_MAX} are read")]
    TooLarge(u64),
    /// Not JSON of the expected form.
    #[error("the SBOM does not have the expected form")]
    Malformed(#[from] serde_json::Error),
    /// Neither format, or a version that is not known here.
    #[error("the SBOM is neither CycloneDX 1.2 to 1.7 nor SPDX 2.2 or 2.3 in JSON: {0}")]
    UnknownFormat(String),
    /// A component outside the rules.
    #[error("the SBOM's component {component:?}: {problem}")]
    Component {
        /// Which one.
        component: String,
        /// What is wrong.
        problem: String,
    },
    /// The document as a whole.
    #[error("the SBOM {0}")]
    Document(String),
}

impl SbomError {
    /// Stable name of the reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "sbom_too_large",
            Self::UnknownFormat(_) => "sbom_unknown_format",
            _ => "sbom_malformed",
        }
    }
}

/// Something that is in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Its version, if the SBOM tells.
    pub version: Option<String>,
    /// Its package URL, if the SBOM tells.
    pub purl: Option<Purl>,
}

/// An SBOM, read and checked.
#[derive(Debug, Clone)]
pub struct Sbom {
    /// Its format.
    pub format: SbomFormat,
    /// The format's version.
    pub spec_version: String,
    /// Digest of the file.
    pub sha256: Sha256,
    /// Length of the file in bytes.
    pub length: u64,
    /// SHA-256 digests of the image it is about, as far as it tells.
    pub subjects: Vec<String>,
    /// What is in the image.
    pub components: Vec<Component>,
}

impl Sbom {
    /// Reads and checks an SBOM.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SbomError> {
        if bytes.len() as u64 > SBOM_BYTES_MAX {
            return Err(SbomError::TooLarge(bytes.len() as u64));
        }
        let head: Head = serde_json::from_slice(bytes)?;
        let (format, spec_version, subjects, components) = match (head.bom_format.as_deref(), head.spdx_version) {
            (Some("CycloneDX"), None) => {
                let version = head.spec_version.unwrap_or_default();
                if !matches!(version.as_str(), "1.2" | "1.3" | "1.4" | "1.5" | "1.6" | "1.7") {
                    return Err(SbomError::UnknownFormat(format!("specVersion {:?}", short(&version))));
                }
                let (subjects, components) = serde_json::from_slice::<CycloneDx>(bytes)?.read()?;
                (SbomFormat::CycloneDx, version, subjects, components)
            }
            (None, Some(version)) => {
                if !matches!(version.as_str(), "SPDX-2.2" | "SPDX-2.3") {
                    return Err(SbomError::UnknownFormat(format!("spdxVersion {:?}", short(&version))));
                }
                let (subjects, components) = serde_json::from_slice::<Spdx>(bytes)?.read()?;
                (SbomFormat::Spdx, version, subjects, components)
            }
            (format, version) => {
                let found = format!(
                    "bomFormat {:?}, spdxVersion {:?}",
                    format.map(short),
                    version.as_deref().map(short)
                );
                return Err(SbomError::UnknownFormat(found));
            }
        };
        Ok(Self {
            format,
            spec_version,
            sha256: Sha256::of(bytes),
            length: bytes.len() as u64,
            subjects,
            components,
        })
    }
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "bomFormat")]
    bom_format: Option<String>,
    #[serde(rename = "specVersion")]
    spec_version: Option<String>,
    #[serde(rename = "spdxVersion")]
    spdx_version: Option<String>,
}

#[derive(Deserialize)]
struct CycloneDx {
    version: Option<u64>,
    metadata: Option<CycloneDxMetadata>,
    #[serde(default)]
    components: Vec<CycloneDxComponent>,
}

#[derive(Deserialize)]
struct CycloneDxMetadata {
    component: Option<CycloneDxComponent>,
}

#[derive(Deserialize)]
struct CycloneDxComponent {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    group: Option<String>,
    version: Option<String>,
    purl: Option<String>,
    #[serde(default)]
    hashes: Vec<CycloneDxHash>,
    #[serde(default)]
    components: Vec<Self>,
}

#[derive(Deserialize)]
struct CycloneDxHash {
    alg: String,
    content: String,
}

type Read = (Vec<String>, Vec<Component>);

impl CycloneDx {
    fn read(self) -> Result<Read, SbomError> {
        if self.version == Some(0) {
            return Err(SbomError::Document(
                "has the version 0, it must be 1 or more".to_owned(),
            ));
        }
        let mut components = Vec::new();
        for component in self.components {
            component.add_to(&mut components, 0)?;
        }
        let mut subjects = Vec::new();
        if let Some(subject) = self.metadata.and_then(|metadata| metadata.component) {
            subjects.extend(
                subject
                    .hashes
                    .iter()
                    .filter(|hash| hash.alg == "SHA-256")
                    .map(|hash| hash.content.to_ascii_lowercase()),
            );
            let mut own = Vec::new();
            subject.add_to(&mut own, 0)?;
            // The first is the image itself; an advisory about the image counts as well.
            components.extend(own);
        }
        Ok((subjects, components))
    }
}

impl CycloneDxComponent {
    fn add_to(self, components: &mut Vec<Component>, depth: usize) -> Result<(), SbomError> {
        let wrong = |problem: String| SbomError::Component {
            component: short(&self.name),
            problem,
        };
        if depth > DEPTH_MAX {
            return Err(wrong(format!("lies deeper than {DEPTH_MAX} components")));
        }
        if self.kind.is_empty() {
            return Err(wrong("has no type".to_owned()));
        }
        for hash in &self.hashes {
            check_digest(&hash.alg, &hash.content).map_err(&wrong)?;
        }
        let name = match self.group.as_deref() {
            Some(group) if !group.is_empty() => format!("{group}/{}", self.name),
            _ => self.name.clone(),
        };
        components.push(component(
            &name,
            self.version.as_deref(),
            self.purl.as_deref(),
            components.len(),
        )?);
        self.components
            .into_iter()
            .try_for_each(|inner| inner.add_to(components, depth + 1))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spdx {
    #[serde(rename = "SPDXID")]
    id: String,
    data_license: String,
    name: String,
    document_namespace: String,
    creation_info: SpdxCreation,
    #[serde(default)]
    document_describes: Vec<String>,
    #[serde(default)]
    packages: Vec<SpdxPackage>,
    #[serde(default)]
    relationships: Vec<SpdxRelationship>,
}

#[derive(Deserialize)]
struct SpdxCreation {
    created: String,
    creators: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpdxPackage {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    version_info: Option<String>,
    download_location: String,
    #[serde(default)]
    external_refs: Vec<SpdxReference>,
    #[serde(default)]
    checksums: Vec<SpdxChecksum>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpdxReference {
    reference_type: String,
    reference_locator: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpdxChecksum {
    algorithm: String,
    checksum_value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpdxRelationship {
    spdx_element_id: String,
    related_spdx_element: String,
    relationship_type: String,
}

impl Spdx {
    fn read(self) -> Result<Read, SbomError> {
        let document = |problem: &str| Err(SbomError::Document(problem.to_owned()));
        if self.id != "SPDXRef-DOCUMENT" {
            return document("must have the SPDXID SPDXRef-DOCUMENT");
        }
        if self.data_license != "CC0-1.0" {
            return document("must have the data license CC0-1.0");
        }
        if self.name.is_empty() || self.document_namespace.is_empty() {
            return document("must have a name and a namespace");
        }
        if self.creation_info.creators.is_empty() || self.creation_info.created.parse::<jiff::Timestamp>().is_err() {
            return document("must say when and by whom it was created");
        }
        let describes = |relation: &SpdxRelationship| {
            (relation.relationship_type == "DESCRIBES" && relation.spdx_element_id == self.id)
                .then(|| relation.related_spdx_element.clone())
        };
        let mut described = self.document_describes;
        described.extend(self.relationships.iter().filter_map(describes));
        let (mut subjects, mut components) = (Vec::new(), Vec::new());
        for package in self.packages {
            let wrong = |problem: String| SbomError::Component {
                component: short(&package.name),
                problem,
            };
            if !package.id.starts_with("SPDXRef-") {
                return Err(wrong(format!(
                    "has the SPDXID {:?}, it must begin with SPDXRef-",
                    short(&package.id)
                )));
            }
            if package.download_location.is_empty() {
                return Err(wrong("has no downloadLocation".to_owned()));
            }
            for sum in &package.checksums {
                check_digest(&sum.algorithm, &sum.checksum_value).map_err(&wrong)?;
            }
            if described.contains(&package.id) {
                let own = package.checksums.iter().filter(|sum| sum.algorithm == "SHA256");
                subjects.extend(own.map(|sum| sum.checksum_value.to_ascii_lowercase()));
            }
            let purl = package
                .external_refs
                .iter()
                .find(|reference| reference.reference_type == "purl");
            let purl = purl.map(|reference| reference.reference_locator.as_str());
            components.push(component(
                &package.name,
                package.version_info.as_deref(),
                purl,
                components.len(),
            )?);
        }
        Ok((subjects, components))
    }
}

fn component(name: &str, version: Option<&str>, purl: Option<&str>, before: usize) -> Result<Component, SbomError> {
    let wrong = |problem: String| SbomError::Component {
        component: short(name),
        problem,
    };
    if before >= COMPONENTS_MAX {
        return Err(SbomError::Document(format!(
            "has more than {COMPONENTS_MAX} components"
        )));
    }
    if name.is_empty() || name.len() > TEXT_BYTES_MAX {
        return Err(wrong("must have a name of 1 to 4096 bytes".to_owned()));
    }
    if version.is_some_and(|version| version.len() > TEXT_BYTES_MAX) {
        return Err(wrong("has a version longer than 4096 bytes".to_owned()));
    }
    let purl = purl
        .map(str::parse::<Purl>)
        .transpose()
        .map_err(|error| wrong(error.to_string()))?;
    let version = version.filter(|version| !version.is_empty()).map(str::to_owned);
    let version = version.or_else(|| purl.as_ref().and_then(|purl| purl.version.clone()));
    Ok(Component {
        name: name.to_owned(),
        version,
        purl,
    })
}

/// The formats' own names of digests, with their length in hexadecimal.
fn check_digest(algorithm: &str, value: &str) -> Result<(), String> {
    let length = match algorithm {
        "MD5" | "MD2" | "MD4" => 32,
        "SHA-1" | "SHA1" => 40,
        "SHA224" => 56,
        "SHA-256" | "SHA256" | "SHA3-256" | "BLAKE2b-256" | "BLAKE3" => 64,
        "SHA-384" | "SHA384" | "SHA3-384" | "BLAKE2b-384" => 96,
        "SHA-512" | "SHA512" | "SHA3-512" | "BLAKE2b-512" => 128,
        "ADLER32" => 8,
        "MD6" | "Streebog-256" | "Streebog-512" => value.len(),
        other => return Err(format!("has a digest of the unknown algorithm {:?}", short(other))),
    };
    if value.len() == length && value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(format!(
        "has a {algorithm} digest that is not {length} hexadecimal digits"
    ))
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
