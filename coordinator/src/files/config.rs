//! `[files]` of the configuration: as written, and as checked.

use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use crate::{
    ConfigError,
    notify::{Secret, SecretConfig},
};

/// Images, evidence, verdicts and archives.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilesConfig {
    /// Where they lie; coordinators on one database have to share it, unless they share a bucket: then it holds what is on its
    /// way there, and copies. Default: the state folder.
    pub dir: Option<PathBuf>,
    /// A bucket. Default: none, the folder is all there is.
    pub s3: Option<S3Config>,
}

/// A bucket of an S3 server, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The server, such as `https://s3.eu-central-1.amazonaws.com`.
    pub endpoint: String,
    /// The bucket, which exists.
    pub bucket: String,
    /// What the names of all objects begin with. Default: nothing.
    #[serde(default)]
    pub prefix: String,
    /// The server's region. Default: `us-east-1`, which servers of one's own answer to.
    #[serde(default = "region")]
    pub region: String,
    /// The key's id.
    pub access_key_id: SecretConfig,
    /// The key. Both are read anew for every request, so that they can be replaced without a restart.
    pub secret_access_key: SecretConfig,
    /// The token of a session, for keys that are good for a while.
    #[serde(default)]
    pub session_token: Option<SecretConfig>,
    /// Certificates (PEM) of those who may vouch for the server. Default: those the system trusts.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whether plain HTTP may be spoken to another machine. Default: no, images and keys' signatures could be read along.
    #[serde(default)]
    pub allow_http: bool,
    /// Whether the bucket is part of the path (`endpoint/bucket`) rather than of the host's name. Default: yes.
    #[serde(default = "yes")]
    pub path_style: bool,
    /// Bytes of images that are kept on the local disk, for nodes that ask for the same slices. Default: 8 GiB.
    #[serde(default = "cache_bytes")]
    pub cache_bytes: u64,
}

fn region() -> String {
    "us-east-1".to_owned()
}

fn yes() -> bool {
    true
}

fn cache_bytes() -> u64 {
    8 << 30
}

/// Slices that are served at once must fit.
const CACHE_BYTES_MIN: u64 = 64 << 20;

/// The bucket, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucketed {
    pub(super) endpoint: Url,
    pub(super) bucket: String,
    pub(super) prefix: String,
    pub(super) region: String,
    pub(super) keys: Keys,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) path_style: bool,
    pub(crate) cache_bytes: u64,
}

/// Where the access key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: Secret,
    pub(super) key: Secret,
    pub(super) token: Option<Secret>,
}

impl FilesConfig {
    /// Lets the paths in it start at the configuration's folder.
    pub(crate) fn start_at(&mut self, folder: &Path) {
        let s3 = self.s3.as_mut();
        let of_s3 = s3.map(|s3| {
            let secrets = [
                Some(&mut s3.access_key_id),
                Some(&mut s3.secret_access_key),
                s3.session_token.as_mut(),
            ];
            let files = secrets.into_iter().flatten().filter_map(|secret| secret.file.as_mut());
            files.chain(s3.ca_file.as_mut())
        });
        for path in of_s3.into_iter().flatten().chain(self.dir.as_mut()) {
            *path = folder.join(&*path);
        }
    }
}

impl S3Config {
    /// The bucket; or the field that is wrong, and what about it.
    pub(crate) fn check(self) -> Result<Bucketed, ConfigError> {
        let wrong = |field, problem: &str| ConfigError::Value {
            field,
            problem: problem.to_owned(),
        };
        let form = "must be https://host or https://host:port";
        let endpoint = Url::parse(&self.endpoint).map_err(|_| wrong("files.s3.endpoint", form))?;
        let is_plain = endpoint.path() == "/" && endpoint.query().is_none() && endpoint.fragment().is_none();
        let names_nobody = endpoint.username().is_empty() && endpoint.password().is_none();
        if !(matches!(endpoint.scheme(), "http" | "https") && endpoint.has_host() && is_plain && names_nobody) {
            return Err(wrong("files.s3.endpoint", form));
        }
        if endpoint.scheme() == "http" && !self.allow_http && !is_loopback(&endpoint) {
            let problem = "is plain HTTP to another machine: use https, or set files.s3.allow_http to true";
            return Err(wrong("files.s3.endpoint", problem));
        }
        let is_bucket = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        if !((3..=63).contains(&self.bucket.len()) && self.bucket.bytes().all(is_bucket)) {
            let problem = "must be 3 to 63 of the letters a-z, digits, `-` and `.`";
            return Err(wrong("files.s3.bucket", problem));
        }
        let prefix = self.prefix.trim_matches('/').to_owned();
        let is_part = |part: &str| {
            let is_letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !part.is_empty() && !matches!(part, "." | "..") && part.bytes().all(is_letter)
        };
        if prefix.len() > 255 || !(prefix.is_empty() || prefix.split('/').all(is_part)) {
            let problem = "must be names of letters, digits, `-`, `_` and `.` with `/` between";
            return Err(wrong("files.s3.prefix", problem));
        }
        let is_region = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !((1..=63).contains(&self.region.len()) && self.region.bytes().all(is_region)) {
            return Err(wrong(
                "files.s3.region",
                "must be a region's name, such as eu-central-1",
            ));
        }
        if self.cache_bytes < CACHE_BYTES_MIN {
            return Err(wrong("files.s3.cache_bytes", "must be 67108864 (64 MiB) or more"));
        }
        let secret = |field, config| Secret::new(config).map_err(|problem| wrong(field, problem));
        Ok(Bucketed {
            keys: Keys {
                id: secret("files.s3.access_key_id", self.access_key_id)?,
                key: secret("files.s3.secret_access_key", self.secret_access_key)?,
                token: (self.session_token)
                    .map(|token| secret("files.s3.session_token", token))
                    .transpose()?,
            },
            endpoint,
            bucket: self.bucket,
            prefix,
            region: self.region,
            ca_file: self.ca_file,
            path_style: self.path_style,
            cache_bytes: self.cache_bytes,
        })
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &str) -> Result<Bucketed, ConfigError> {
        let text = format!("access_key_id = {{ env = \"ID\" }}\nsecret_access_key = {{ env = \"KEY\" }}\n{lines}");
        toml::from_str::<S3Config>(&text).unwrap().check()
    }

    #[test]
    fn a_bucket_is_named_with_its_server() {
        let bucket = check("endpoint = \"https://s3.example.com\"\nbucket = \"fleet\"\nprefix = \"/a/b/\"").unwrap();
        assert_eq!((bucket.prefix.as_str(), bucket.region.as_str()), ("a/b", "us-east-1"));
        for endpoint in ["http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost"] {
            assert!(
                check(&format!("endpoint = {endpoint:?}\nbucket = \"fleet\"")).is_ok(),
                "{endpoint}"
            );
        }
        assert!(check("endpoint = \"http://10.0.0.1\"\nbucket = \"fleet\"\nallow_http = true").is_ok());
    }

    #[test]
    fn every_mistake_names_its_field() {
        for (lines, field) in [
            (
                "endpoint = \"http://10.0.0.1\"\nbucket = \"fleet\"",
                "files.s3.endpoint",
            ),
            (
                "endpoint = \"https://a:b@host\"\nbucket = \"fleet\"",
                "files.s3.endpoint",
            ),
            (
                "endpoint = \"https://host/path\"\nbucket = \"fleet\"",
                "files.s3.endpoint",
            ),
            ("endpoint = \"ftp://host\"\nbucket = \"fleet\"", "files.s3.endpoint"),
            ("endpoint = \"https://host\"\nbucket = \"Fleet\"", "files.s3.bucket"),
            (
                "endpoint = \"https://host\"\nbucket = \"fleet\"\nprefix = \"a/../b\"",
                "files.s3.prefix",
            ),
            (
                "endpoint = \"https://host\"\nbucket = \"fleet\"\nregion = \"\"",
                "files.s3.region",
            ),
            (
                "endpoint = \"https://host\"\nbucket = \"fleet\"\ncache_bytes = 1",
                "files.s3.cache_bytes",
            ),
            (
                "endpoint = \"https://host\"\nbucket = \"fleet\"\nsession_token = {}",
                "files.s3.session_token",
            ),
        ] {
            match check(lines) {
                Err(ConfigError::Value { field: found, .. }) => assert_eq!(found, field, "{lines}"),
                other => panic!("{lines}: {other:?}"),
            }
        }
    }
}
