//! Known vulnerabilities: records of the Open Source Vulnerability format (OSV schema 1.x, JSON), matched against the
//! components of an SBOM by package and version.
//!
//! What is not known counts as bad: a component without a version is affected by every advisory on its package, and an
//! advisory without a readable severity is as bad as the worst. Ranges of Git commits cannot be matched and are left out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    purl::Purl,
    sbom::{Component, Sbom},
    version::compare,
};

/// The longest advisory file that is read.
pub const ADVISORIES_BYTES_MAX: u64 = 64 << 20;
/// Records in one file.
const RECORDS_MAX: usize = 500_000;
/// Matches that are told; there is no need to list more to refuse an image.
pub(super) const MATCHES_MAX: usize = 1_000;

/// How bad a vulnerability is (CVSS v3's qualitative scale).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A base score of 0.
    None,
    /// Below 4.0.
    Low,
    /// Below 7.0.
    Medium,
    /// Below 9.0.
    High,
    /// 9.0 and more.
    Critical,
    /// Not told in a way that is understood here; counts as worse than critical.
    Unknown,
}

/// Why an advisory file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdvisoryError {
    /// Not JSON of the expected form.
    #[error("it must hold OSV records in JSON: one, a list, or {{\"vulns\": [...]}}")]
    Malformed(#[from] serde_json::Error),
    /// A record outside the rules.
    #[error("the record {id:?}: {problem}")]
    Record {
        /// Which one.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// Too many.
    #[error("it has more than {RECORDS_MAX} records")]
    TooMany,
}

/// A vulnerability that is in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The advisory.
    pub id: String,
    /// Other names of it, such as its CVE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// How bad it is.
    pub severity: Severity,
    /// The component that has it.
    pub component: String,
    /// The component's version; without one nobody knows whether it is affected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The first later version without it, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<String>,
}

/// Advisories, ready to be asked.
#[derive(Debug, Default)]
pub struct Advisories {
    records: Vec<Record>,
    by_name: BTreeMap<String, BTreeSet<usize>>,
}

#[derive(Debug, Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    aliases: Vec<String>,
    withdrawn: Option<String>,
    #[serde(default)]
    severity: Vec<Score>,
    #[serde(default)]
    affected: Vec<Affected>,
    database_specific: Option<DatabaseSpecific>,
}

#[derive(Debug, Deserialize)]
struct Score {
    #[serde(rename = "type")]
    kind: String,
    score: String,
}

#[derive(Debug, Deserialize)]
struct DatabaseSpecific {
    severity: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Affected {
    package: Option<Package>,
    #[serde(default)]
    severity: Vec<Score>,
    #[serde(default)]
    ranges: Vec<Range>,
    #[serde(default)]
    versions: Vec<String>,
    #[serde(skip)]
    purl: Option<Purl>,
}

#[derive(Debug, Deserialize)]
struct Package {
    ecosystem: String,
    name: String,
    purl: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Range {
    #[serde(rename = "type")]
    kind: String,
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
struct Event {
    introduced: Option<String>,
    fixed: Option<String>,
    last_affected: Option<String>,
    limit: Option<String>,
}

impl Advisories {
    /// Adds the records of a file: one record, a list of them, or an object with the list `vulns`.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), AdvisoryError> {
        #[derive(Deserialize)]
        struct Many {
            vulns: Vec<Record>,
        }
        let records: Vec<Record> = if bytes.trim_ascii_start().starts_with(b"[") {
            serde_json::from_slice(bytes)?
        } else {
            match serde_json::from_slice::<Many>(bytes) {
                Ok(many) => many.vulns,
                Err(_) => vec![serde_json::from_slice(bytes)?],
            }
        };
        if self.records.len() + records.len() > RECORDS_MAX {
            return Err(AdvisoryError::TooMany);
        }
        for mut record in records.into_iter().filter(|record| record.withdrawn.is_none()) {
            record.check()?;
            for package in record.affected.iter().filter_map(|affected| affected.package.as_ref()) {
                let names = self.by_name.entry(package.name.to_lowercase()).or_default();
                names.insert(self.records.len());
            }
            for purl in record.affected.iter().filter_map(|affected| affected.purl.as_ref()) {
                let names = self.by_name.entry(purl.name.to_lowercase()).or_default();
                names.insert(self.records.len());
            }
            self.records.push(record);
        }
        Ok(())
    }

    /// How many advisories there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// The advisories that apply to what is in an image, the worst first.
    #[must_use]
    pub fn matches(&self, sbom: &Sbom) -> Vec<Match> {
        let mut found = BTreeSet::new();
        for component in &sbom.components {
            let names = [
                Some(component.name.to_lowercase()),
                component.purl.as_ref().map(|purl| purl.name.to_lowercase()),
                component.purl.as_ref().map(|purl| purl.osv_name().to_lowercase()),
            ];
            let records: BTreeSet<_> = names
                .iter()
                .flatten()
                .filter_map(|name| self.by_name.get(name))
                .flatten()
                .collect();
            for record in records {
                let record = &self.records[*record];
                let affected = record.affected.iter().find(|affected| affected.has(component));
                found.extend(affected.map(|affected| record.told(affected, component)));
            }
        }
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        found
    }
}

impl Record {
    fn check(&mut self) -> Result<(), AdvisoryError> {
        let id = self.id.chars().take(120).collect::<String>();
        let wrong = |problem: String| AdvisoryError::Record {
            id: id.clone(),
            problem,
        };
        if self.id.is_empty() || self.id.len() > 256 || self.id.chars().any(char::is_control) {
            return Err(wrong("must have an id of 1 to 256 printable characters".to_owned()));
        }
        for affected in &mut self.affected {
            let purl = affected.package.as_ref().and_then(|package| package.purl.as_deref());
            affected.purl = purl
                .map(str::parse)
                .transpose()
                .map_err(|error: super::purl::PurlError| wrong(error.to_string()))?;
            for range in &affected.ranges {
                if !matches!(range.kind.as_str(), "SEMVER" | "ECOSYSTEM" | "GIT") {
                    return Err(wrong(format!("the range type {:?} is not known", range.kind)));
                }
                if !range.events.iter().any(|event| event.introduced.is_some()) {
                    return Err(wrong(
                        "a range must say where the vulnerability was introduced".to_owned(),
                    ));
                }
            }
        }
        Ok(())
    }

    fn told(&self, affected: &Affected, component: &Component) -> Match {
        let events = affected
            .ranges
            .iter()
            .filter(|range| range.kind != "GIT")
            .flat_map(|range| &range.events);
        let is_later = |fixed: &&String| {
            let version = component.version.as_ref();
            version.is_none_or(|version| compare(version, fixed, affected.is_distribution()).is_lt())
        };
        let fixed = events.filter_map(|event| event.fixed.as_ref()).filter(is_later);
        let fixed = fixed.min_by(|a, b| compare(a, b, affected.is_distribution()));
        Match {
            id: self.id.clone(),
            aliases: self.aliases.iter().take(16).cloned().collect(),
            severity: self.severity(affected),
            component: component.name.clone(),
            version: component.version.clone(),
            fixed: fixed.cloned(),
        }
    }

    /// The worst that is told: CVSS v3 vectors, or the word of the database.
    fn severity(&self, affected: &Affected) -> Severity {
        let scores = affected.severity.iter().chain(&self.severity);
        let scored = scores
            .filter(|score| score.kind == "CVSS_V3")
            .filter_map(|score| cvss3(&score.score))
            .max();
        let word = self
            .database_specific
            .as_ref()
            .and_then(|specific| specific.severity.as_ref());
        let word = word
            .and_then(|word| word.as_str())
            .and_then(|word| match word.to_ascii_uppercase().as_str() {
                "NONE" => Some(Severity::None),
                "LOW" => Some(Severity::Low),
                "MODERATE" | "MEDIUM" => Some(Severity::Medium),
                "HIGH" | "IMPORTANT" => Some(Severity::High),
                "CRITICAL" => Some(Severity::Critical),
                _ => None,
            });
        scored.max(word).unwrap_or(Severity::Unknown)
    }
}

impl Affected {
    fn has(&self, component: &Component) -> bool {
        if !self.is_package(component) {
            return false;
        }
        let Some(version) = &component.version else {
            return true;
        };
        if self.versions.iter().any(|affected| affected == version) {
            return true;
        }
        let (mut ranges, is_debian) = (self.ranges.iter(), self.is_distribution());
        let everything = self.versions.is_empty() && self.ranges.is_empty();
        everything || ranges.any(|range| range.has(version, is_debian && range.kind == "ECOSYSTEM"))
    }

    fn is_package(&self, component: &Component) -> bool {
        let Some(package) = &self.package else {
            return false;
        };
        match (&self.purl, &component.purl) {
            (Some(affected), Some(purl)) => affected.is_same_package(purl),
            (Some(affected), None) => {
                affected.kind == "generic"
                    && affected.namespace.is_none()
                    && affected.name.eq_ignore_ascii_case(&component.name)
            }
            (None, Some(purl)) => {
                let ecosystem = package.ecosystem.split(':').next().unwrap_or_default();
                purl.osv_ecosystem() == Some(ecosystem) && purl.osv_name().eq_ignore_ascii_case(&package.name)
            }
            (None, None) => false,
        }
    }

    fn is_distribution(&self) -> bool {
        let ecosystem = self.package.as_ref().map_or("", |package| package.ecosystem.as_str());
        [
            "Debian",
            "Ubuntu",
            "Alpine",
            "Red Hat",
            "Rocky",
            "AlmaLinux",
            "SUSE",
            "openSUSE",
        ]
        .iter()
        .any(|name| ecosystem.starts_with(name))
            || self
                .purl
                .as_ref()
                .is_some_and(|purl| matches!(purl.kind.as_str(), "deb" | "apk" | "rpm"))
    }
}

impl Range {
    /// The algorithm of the OSV schema: the last event at or before the version says whether it is affected.
    fn has(&self, version: &str, is_debian: bool) -> bool {
        if self.kind == "GIT" {
            return false;
        }
        let is_before = |a: &str, b: &str| compare(a, b, is_debian).is_lt();
        let mut limits = self.events.iter().filter_map(|event| event.limit.as_deref()).peekable();
        if limits.peek().is_some() && !limits.any(|limit| limit == "*" || is_before(version, limit)) {
            return false;
        }
        let reached = |start: &str| start == "0" || !is_before(version, start);
        // Every event before the version, in order; "0" is before all versions.
        let mut events: Vec<(&str, bool)> = Vec::new();
        for event in &self.events {
            if let Some(start) = event.introduced.as_deref().filter(|start| reached(start)) {
                events.push((start, true));
            }
            if let Some(fixed) = event.fixed.as_deref().filter(|fixed| !is_before(version, fixed)) {
                events.push((fixed, false));
            }
            if let Some(last) = event.last_affected.as_deref().filter(|last| is_before(last, version)) {
                events.push((last, false));
            }
        }
        events.sort_by(|(a, _), (b, _)| match (*a == "0", *b == "0") {
            (true, true) => std::cmp::Ordering::Equal,
            (true, false) => std::cmp::Ordering::Less,
            (false, true) => std::cmp::Ordering::Greater,
            (false, false) => compare(a, b, is_debian),
        });
        events.last().is_some_and(|(_, affected)| *affected)
    }
}

/// The base score of a CVSS 3.0 or 3.1 vector, as its word (specification, section 7.1).
fn cvss3(vector: &str) -> Option<Severity> {
    let metrics = vector
        .strip_prefix("CVSS:3.1/")
        .or_else(|| vector.strip_prefix("CVSS:3.0/"))?;
    let metrics: BTreeMap<&str, &str> = metrics
        .split('/')
        .map(|metric| metric.split_once(':'))
        .collect::<Option<_>>()?;
    let get = |name: &str, values: &[(&str, f64)]| {
        let value = metrics.get(name)?;
        values
            .iter()
            .find(|(letter, _)| letter == value)
            .map(|(_, weight)| *weight)
    };
    let is_changed = match *metrics.get("S")? {
        "U" => false,
        "C" => true,
        _ => return None,
    };
    let (low, high) = if is_changed { (0.68, 0.5) } else { (0.62, 0.27) };
    let exploitability = 8.22
        * get("AV", &[("N", 0.85), ("A", 0.62), ("L", 0.55), ("P", 0.2)])?
        * get("AC", &[("L", 0.77), ("H", 0.44)])?
        * get("PR", &[("N", 0.85), ("L", low), ("H", high)])?
        * get("UI", &[("N", 0.85), ("R", 0.62)])?;
    let harm = &[("H", 0.56), ("L", 0.22), ("N", 0.0)];
    let base = 1.0 - (1.0 - get("C", harm)?) * (1.0 - get("I", harm)?) * (1.0 - get("A", harm)?);
    let impact = if is_changed {
        7.52 * (base - 0.029) - 3.25 * (base - 0.02_f64).powi(15)
    } else {
        6.42 * base
    };
    let sum = if is_changed {
        1.08 * (impact + exploitability)
    } else {
        impact + exploitability
    };
    let score = if impact <= 0.0 { 0.0 } else { round_up(sum.min(10.0)) };
    Some(match score {
        score if score <= 0.0 => Severity::None,
        score if score < 4.0 => Severity::Low,
        score if score < 7.0 => Severity::Medium,
        score if score < 9.0 => Severity::High,
        _ => Severity::Critical,
    })
}

/// To one decimal, never down (CVSS 3.1, appendix A).
fn round_up(score: f64) -> f64 {
    let whole = (score * 100_000.0).round();
    if whole % 10_000.0 == 0.0 {
        whole / 100_000.0
    } else {
        ((whole / 10_000.0).floor() + 1.0) / 10.0
    }
}
