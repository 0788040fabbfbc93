//! `[repository]` of the configuration: the addresses that images are mirrored from. What an operator names elsewhere is not
//! asked: the coordinator reaches machines that he may not reach himself.

use reqwest::Url;
use serde::Deserialize;

/// Servers, at most: each is looked at for every image.
const SOURCES_MAX: usize = 100;

/// Where images are mirrored from, as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepositoryConfig {
    /// Addresses such as `https://firmware.example.com/acme/`: what lies below one of them may be mirrored. Default: none.
    pub sources: Vec<String>,
}

/// The same, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sources(Vec<Url>);

impl RepositoryConfig {
    /// What is wrong with it, if it is not as it should be.
    pub(crate) fn check(self) -> Result<Sources, String> {
        if self.sources.len() > SOURCES_MAX {
            return Err(format!("names {}, at most {SOURCES_MAX} are taken", self.sources.len()));
        }
        let checked = self.sources.iter().map(|text| {
            let url = Url::parse(text).ok().filter(|url| {
                let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
                matches!(url.scheme(), "http" | "https") && url.has_host() && url.password().is_none() && is_plain
            });
            url.ok_or_else(|| format!("has {text:?}, it must be like https://firmware.example.com/acme/"))
        });
        checked.collect::<Result<_, _>>().map(Sources)
    }
}

impl Sources {
    /// Whether something at this address may be asked for.
    pub(crate) fn allow(&self, url: &Url) -> bool {
        self.0.iter().any(|source| {
            let folder = source.path().trim_end_matches('/');
            let below = url.path().strip_prefix(folder);
            // Scheme, host and port; and whole segments of the path.
            source.origin() == url.origin() && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(texts: &[&str]) -> Result<Sources, String> {
        let sources = texts.iter().map(|text| (*text).to_owned()).collect();
        RepositoryConfig { sources }.check()
    }

    #[test]
    fn only_what_lies_below_a_source_is_asked_for() {
        let known = sources(&["https://fw.example.com/acme", "http://10.0.0.5:8080"]).unwrap();
        for (url, allowed) in [
            ("https://fw.example.com/acme", true),
            ("https://fw.example.com/acme/catalogue.json", true),
            ("https://user:word@fw.example.com/acme/x?y=z", true),
            ("https://FW.example.com:443/acme/x", true),
            ("https://fw.example.com/acme2/x", false),
            ("https://fw.example.com/acme/../other/x", false),
            ("https://fw.example.com/acme/%2e%2e/other/x", false),
            ("http://fw.example.com/acme/x", false),
            ("https://fw.example.com:8443/acme/x", false),
            ("https://fw.example.com.evil.net/acme/x", false),
            ("https://fw.example.com@evil.net/acme/x", false),
            ("http://10.0.0.5:8080/anything", true),
            ("http://10.0.0.5/anything", false),
            ("http://169.254.169.254/latest/meta-data", false),
        ] {
            assert_eq!(known.allow(&url.parse().unwrap()), allowed, "{url}");
        }
        assert!(!Sources::default().allow(&"https://fw.example.com/acme/x".parse().unwrap()));
    }

    #[test]
    fn what_is_no_address_is_named() {
        for bad in [
            "fw.example.com",
            "ftp://x/",
            "https://",
            "https://u:p@x/",
            "https://x/?q",
            "https://x/#f",
        ] {
            let problem = sources(&[bad]).unwrap_err();
            assert!(problem.contains(&format!("{bad:?}")), "{problem}");
        }
        assert!(sources(&vec!["https://x/"; 101]).is_err());
    }
}
