//! Who asks, and how he has proven it.

use std::collections::BTreeSet;

use firmesh_protocol::{
    api::{Grant, Limits, Role},
    ids::{DeviceId, TopologyPath},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

/// The most values of one limit.
const VALUES_MAX: usize = 64;

/// The longest value.
const VALUE_BYTES_MAX: usize = 200;

/// A site is named by two levels of the topology, a region by one.
const SITE_LEVELS: usize = 2;
const REGION_LEVELS: usize = 1;

/// How an identity was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Means {
    /// The operators' token, which lies beside the database.
    Bootstrap,
    /// Not at all: he reads on this machine.
    Loopback,
    ApiKey,
    Oidc,
    Ldap,
}

impl Means {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Loopback => "loopback",
            Self::ApiKey => "api_key",
            Self::Oidc => "oidc",
            Self::Ldap => "ldap",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Unique over all means: `bootstrap`, `loopback`, `key:<id>`, `oidc:<sub>`, `ldap:<name>`.
    pub(crate) name: String,
    pub(crate) means: Means,
    pub(crate) grants: Vec<Grant>,
    pub(crate) groups: BTreeSet<String>,
    pub(crate) device: Option<DeviceId>,
    pub(crate) expires: Option<WallTime>,
}

impl Identity {
    fn plain(name: &str, means: Means, role: Option<Role>) -> Self {
        let limits = Limits::default;
        Self {
            name: name.to_owned(),
            means,
            grants: role.map(|role| Grant { role, limits: limits() }).into_iter().collect(),
            groups: BTreeSet::new(),
            device: None,
            expires: None,
        }
    }

    /// Whoever can read the operators' token on the coordinator's machine.
    pub(crate) fn bootstrap() -> Self {
        Self::plain("bootstrap", Means::Bootstrap, Some(Role::Admin))
    }

    /// Whoever reads on this machine.
    pub(crate) fn reader() -> Self {
        Self::plain("loopback", Means::Loopback, Some(Role::Viewer))
    }

    /// Whoever is about to prove who he is.
    pub(crate) fn nobody() -> Self {
        Self::plain("nobody", Means::Loopback, None)
    }

    /// Whether he has proven nothing.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.means == Means::Loopback
    }

    /// His roles, for a person.
    pub(crate) fn roles(&self) -> String {
        let grants = self.grants.iter().map(|grant| {
            let limits = grant.limits.named().map(|(name, values)| {
                let values: Vec<_> = values.iter().map(String::as_str).collect();
                format!("{name} {}", values.join(", "))
            });
            let limits: Vec<_> = limits.collect();
            match limits.is_empty() {
                true => grant.role.to_string(),
                false => format!("{} ({})", grant.role, limits.join("; ")),
            }
        });
        let grants: Vec<_> = grants.collect();
        match grants.is_empty() {
            true => "without a role".to_owned(),
            false => grants.join(" and "),
        }
    }
}

/// Checks limits as they come from outside: names of sites and regions have the form that places have.
pub(crate) fn check_limits(limits: &Limits) -> Result<(), String> {
    for (name, values) in limits.named() {
        if values.is_empty() || values.len() > VALUES_MAX {
            return Err(format!(
                "{name} must name 1 to {VALUES_MAX} of them: leave it out where nothing is limited"
            ));
        }
        for value in values {
            let is_plain = (1..=VALUE_BYTES_MAX).contains(&value.len()) && !value.chars().any(char::is_control);
            let levels = match name {
                "sites" => Some(SITE_LEVELS),
                "regions" => Some(REGION_LEVELS),
                _ => None,
            };
            let is_place =
                levels.is_none_or(|levels| value.parse::<TopologyPath>().is_ok_and(|path| path.depth() == levels));
            if !is_plain || !is_place {
                let like = match name {
                    "sites" => "a site is named like eu/berlin",
                    "regions" => "a region is named like eu",
                    _ => "it must be 1 to 200 printable characters",
                };
                return Err(format!("{name} has {value:?}: {like}"));
            }
        }
    }
    Ok(())
}

/// What a request is about, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// `fleet` if it is nothing in particular.
    pub(crate) kind: Kind,
    pub(crate) device: Option<String>,
    /// `None` is everywhere.
    pub(crate) places: Option<Places>,
}

/// What kind of thing a request is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Fleet,
    Device,
    Campaign,
    Node,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fleet => "fleet",
            Self::Device => "device",
            Self::Campaign => "campaign",
            Self::Node => "node",
        }
    }
}

/// Everything that something touches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) sites: BTreeSet<String>,
    pub(crate) regions: BTreeSet<String>,
    pub(crate) vendors: BTreeSet<String>,
    pub(crate) environments: BTreeSet<String>,
}

impl Places {
    /// Adds a place, and the environment it lies in; one that lies in none is in the one without a name, which nobody is
    /// limited to.
    pub(crate) fn add(&mut self, path: &TopologyPath, environments: &Environments) {
        self.sites.insert(path.prefix(SITE_LEVELS).to_string());
        self.regions.insert(path.prefix(REGION_LEVELS).to_string());
        self.environments.insert(environments.of(path).to_owned());
    }
}

/// Which place belongs to which environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environments(pub(crate) Vec<(TopologyPath, String)>);

impl Environments {
    /// The environment of the longest path that a place is under.
    pub(crate) fn of(&self, path: &TopologyPath) -> &str {
        let under = self.0.iter().filter(|(prefix, _)| path.is_within(prefix));
        let longest = under.max_by_key(|(prefix, _)| prefix.depth());
        longest.map_or("", |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[&str]) -> Option<BTreeSet<String>> {
        Some(values.iter().map(|value| (*value).to_owned()).collect())
    }

    #[test]
    fn limits_name_places_or_are_refused() {
        let limits = |sites: &[&str]| Limits {
            sites: set(sites),
            ..Limits::default()
        };
        check_limits(&limits(&["eu/berlin", "eu/s1"])).unwrap();
        check_limits(&Limits::default()).unwrap();
        for bad in [&["eu"][..], &["eu/berlin/r1"], &[""], &[], &["eu/berlin", "eu/ber lin"]] {
            assert!(check_limits(&limits(bad)).is_err(), "{bad:?}");
        }
        let many: Vec<_> = (0..65).map(|number| format!("eu/s{number}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(check_limits(&limits(&many)).is_err());
        let regions = |name: &str| Limits {
            regions: set(&[name]),
            ..Limits::default()
        };
        check_limits(&regions("eu")).unwrap();
        assert!(check_limits(&regions("eu/berlin")).is_err());
        let vendors = |name: &str| Limits {
            vendors: set(&[name]),
            ..Limits::default()
        };
        check_limits(&vendors("ACME Corp.")).unwrap();
        assert!(check_limits(&vendors("a\nb")).is_err());
    }

    #[test]
    fn a_place_lies_in_the_environment_of_the_longest_path_it_is_under() {
        let path = |text: &str| text.parse::<TopologyPath>().unwrap();
        let environments = Environments(vec![
            (path("eu"), "production".to_owned()),
            (path("eu/lab"), "staging".to_owned()),
        ]);
        assert_eq!(environments.of(&path("eu/berlin/r1")), "production");
        assert_eq!(environments.of(&path("eu/lab/r1/n1")), "staging");
        assert_eq!(environments.of(&path("us/x")), "");
    }
}
