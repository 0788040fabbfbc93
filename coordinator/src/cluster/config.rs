//! `[cluster]` of the configuration: as written, and as checked.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

use crate::ConfigError;

/// How the coordinators on one database reach each other, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// What this coordinator is called in the logs of the others. Default: where it listens to operators.
    pub name: Option<String>,
    /// `host:port` at which the others reach its face towards operators. Default: where it listens.
    pub operators: Option<String>,
    /// `host:port` at which the others reach its face towards nodes. Default: where it listens.
    pub nodes: Option<String>,
    /// How long a leader that is not heard of stays the leader. Default: 4 s; some time after it, another one leads.
    pub lease: String,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: None,
            operators: None,
            nodes: None,
            lease: "4s".to_owned(),
        }
    }
}

/// The same, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterSettings {
    pub(crate) name: Option<String>,
    pub(crate) operators: Option<String>,
    pub(crate) nodes: Option<String>,
    pub(crate) lease: Duration,
}

/// Shorter, and a busy moment of the database costs the lead; longer, and nobody leads for too long.
const LEASE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(60);

const NAME_BYTES_MAX: usize = 255;

impl ClusterConfig {
    /// `listens`: where it listens to operators and nodes.
    pub(crate) fn check(
        self,
        is_shared: bool,
        listens: [SocketAddr; 2],
        duration: impl Fn(&'static str, &str) -> Result<Duration, ConfigError>,
    ) -> Result<ClusterSettings, ConfigError> {
        let wrong = |field, problem: String| Err(ConfigError::Value { field, problem });
        let fields = [
            ("cluster.operators", &self.operators, listens[0]),
            ("cluster.nodes", &self.nodes, listens[1]),
        ];
        for (field, address, listens) in fields {
            match address {
                Some(_) if !is_shared => {
                    return wrong(
                        field,
                        "is set, but database.url is not: there is one coordinator".to_owned(),
                    );
                }
                Some(address) if !is_address(address) => {
                    return wrong(field, format!("is {address:?}, it must be host:port"));
                }
                None if is_shared && listens.ip().is_unspecified() => {
                    let problem = format!("is not set: other coordinators cannot reach this one at {listens}");
                    return wrong(field, problem);
                }
                _ => {}
            }
        }
        if let Some(name) = &self.name
            && !(1..=NAME_BYTES_MAX).contains(&name.len())
        {
            return wrong("cluster.name", format!("must have 1 to {NAME_BYTES_MAX} bytes"));
        }
        let lease = duration("cluster.lease", &self.lease)?;
        if !LEASE.contains(&lease) {
            return wrong("cluster.lease", format!("is {:?}, it must be 2 s to 60 s", self.lease));
        }
        Ok(ClusterSettings {
            name: self.name,
            operators: self.operators,
            nodes: self.nodes,
            lease,
        })
    }
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'[' | b']');
    (1..=NAME_BYTES_MAX).contains(&host.len()) && host.bytes().all(is_host) && port.parse::<u16>().is_ok_and(|p| p > 0)
}
