//! Package URLs (`pkg:deb/debian/openssl@3.0.15-1`), as far as matching needs them.

use std::str::FromStr;

/// A package URL, decoded. Qualifiers and subpath are left out: advisories speak about packages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Purl {
    /// Such as `deb`, `cargo`, `generic`; lower case.
    pub kind: String,
    /// Such as a distribution, a group, an organisation.
    pub namespace: Option<String>,
    /// The package.
    pub name: String,
    /// The version.
    pub version: Option<String>,
}

/// A text that is no package URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a package URL: {problem}")]
pub struct PurlError {
    text: String,
    problem: &'static str,
}

impl Purl {
    /// Whether both name the same package, whatever the version.
    #[must_use]
    pub fn is_same_package(&self, other: &Self) -> bool {
        self.kind == other.kind && self.namespace == other.namespace && self.name == other.name
    }

    /// The package as OSV's ecosystems name it.
    #[must_use]
    pub fn osv_name(&self) -> String {
        let separator = if self.kind == "maven" { ":" } else { "/" };
        match self.namespace.as_deref().filter(|_| !self.is_distribution()) {
            Some(namespace) => format!("{namespace}{separator}{}", self.name),
            None => self.name.clone(),
        }
    }

    /// The OSV ecosystems that a package of this kind belongs to; a release such as `Debian:12` is cut off before.
    #[must_use]
    pub fn osv_ecosystem(&self) -> Option<&'static str> {
        Some(match (self.kind.as_str(), self.namespace.as_deref()) {
            ("cargo", _) => "crates.io",
            ("npm", _) => "npm",
            ("pypi", _) => "PyPI",
            ("golang", _) => "Go",
            ("maven", _) => "Maven",
            ("gem", _) => "RubyGems",
            ("nuget", _) => "NuGet",
            ("composer", _) => "Packagist",
            ("hex", _) => "Hex",
            ("pub", _) => "Pub",
            ("conan", _) => "ConanCenter",
            ("deb", Some("debian")) => "Debian",
            ("deb", Some("ubuntu")) => "Ubuntu",
            ("apk", Some("alpine")) => "Alpine",
            ("rpm", Some("redhat")) => "Red Hat",
            ("rpm", Some("rocky" | "rocky-linux")) => "Rocky Linux",
            ("rpm", Some("almalinux")) => "AlmaLinux",
            _ => return None,
        })
    }

    fn is_distribution(&self) -> bool {
        matches!(self.kind.as_str(), "deb" | "apk" | "rpm")
    }
}

impl FromStr for Purl {
    type Err = PurlError;

    /// Follows the parsing steps of the purl specification.
    fn from_str(text: &str) -> Result<Self, PurlError> {
        let wrong = |problem| PurlError {
            text: text.chars().take(120).collect(),
            problem,
        };
        let rest = text
            .strip_prefix("pkg:")
            .ok_or_else(|| wrong("it must begin with pkg:"))?;
        let rest = rest.split('#').next().unwrap_or_default();
        let rest = rest.split('?').next().unwrap_or_default();
        let (kind, rest) = rest
            .trim_start_matches('/')
            .split_once('/')
            .ok_or_else(|| wrong("it has no name"))?;
        let is_kind = |kind: &str| {
            kind.starts_with(|c: char| c.is_ascii_alphabetic())
                && kind
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-'))
        };
        if !is_kind(kind) {
            return Err(wrong("its type must have letters, digits, '.', '+' or '-'"));
        }
        let kind = kind.to_ascii_lowercase();
        let rest = rest.trim_end_matches('/');
        // An @ of an npm scope belongs to the namespace, which ends in a slash.
        let (path, version) = match rest.rsplit_once('@') {
            Some((path, version)) if !version.contains('/') => (path, Some(version)),
            _ => (rest, None),
        };
        let (namespace, name) = match path.rsplit_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, path),
        };
        let decoded = |part: &str| decode(part).ok_or_else(|| wrong("it has a broken percent sign or is not UTF-8"));
        let mut name = decoded(name)?;
        if name.is_empty() {
            return Err(wrong("it has no name"));
        }
        let namespace = namespace
            .map(|namespace| decoded(namespace.trim_matches('/')))
            .transpose()?;
        let mut namespace = namespace.filter(|namespace| !namespace.is_empty());
        if matches!(
            kind.as_str(),
            "deb" | "apk" | "pypi" | "github" | "bitbucket" | "composer" | "hex"
        ) {
            name = name.to_lowercase();
            namespace = namespace.map(|namespace| namespace.to_lowercase());
        }
        if kind == "pypi" {
            name = name.replace(['_', '.'], "-");
        }
        let version = version.map(decoded).transpose()?.filter(|version| !version.is_empty());
        Ok(Self {
            kind,
            namespace,
            name,
            version,
        })
    }
}

fn decode(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls_are_taken_apart_as_the_specification_does() {
        for (text, kind, namespace, name, version) in [
            (
                "pkg:deb/debian/openssl@3.0.15-1?arch=amd64",
                "deb",
                Some("debian"),
                "openssl",
                Some("3.0.15-1"),
            ),
            ("pkg:cargo/rand@0.7.2", "cargo", None, "rand", Some("0.7.2")),
            (
                "pkg:npm/%40angular/animation@12.3.1",
                "npm",
                Some("@angular"),
                "animation",
                Some("12.3.1"),
            ),
            ("pkg:npm/@angular/animation", "npm", Some("@angular"), "animation", None),
            (
                "pkg:PYPI/Django_package@1.11.1.dev1",
                "pypi",
                None,
                "django-package",
                Some("1.11.1.dev1"),
            ),
            (
                "pkg:golang/google.golang.org/genproto#api",
                "golang",
                Some("google.golang.org"),
                "genproto",
                None,
            ),
            (
                "pkg:generic/busybox@1.36%2B1",
                "generic",
                None,
                "busybox",
                Some("1.36+1"),
            ),
        ] {
            let purl: Purl = text.parse().unwrap();
            let found = (
                purl.kind.as_str(),
                purl.namespace.as_deref(),
                purl.name.as_str(),
                purl.version.as_deref(),
            );
            assert_eq!(found, (kind, namespace, name, version), "{text}");
        }
        for text in [
            "",
            "pkg:",
            "pkg:deb",
            "deb/debian/x",
            "pkg:d b/x",
            "pkg:deb/%zz",
            "pkg:deb/%ff",
            "pkg:deb/@1",
            "pkg:1x/y",
        ] {
            assert!(text.parse::<Purl>().is_err(), "{text}");
        }
    }
}
