//! The settings of access: `[access]` as written, and as checked.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use firmesh_protocol::api::{Grant, Limits, OidcView, Role};
use reqwest::Url;
use serde::Deserialize;

use super::identity::{Environments, check_limits};
use crate::notify::{Secret, SecretConfig};

/// The most groups that are given a role.
const MAPPINGS_MAX: usize = 1_000;

/// The longest that a token may be good for: what a person's groups were, counts for so long.
const TOKEN_TTL_MAX: Duration = Duration::from_secs(12 * 3_600);

/// The longest that a directory may be waited for, per operation.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// Who may do what.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessConfig {
    /// Policies of one's own (Cedar), beside the built-in ones. Default: none.
    pub policy: Option<PathBuf>,
    /// How long a token is good for that is given for an API key or a password. Default: 15 minutes.
    pub token_ttl: String,
    /// Environments by the places that lie in them, such as `"eu/lab" = "staging"`. Default: none.
    pub environments: std::collections::BTreeMap<String, String>,
    /// An identity provider whose tokens are taken. Default: none.
    pub oidc: Option<OidcConfig>,
    /// A directory whose passwords are taken. Default: none.
    pub ldap: Option<LdapConfig>,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            policy: None,
            token_ttl: "15m".to_owned(),
            environments: std::collections::BTreeMap::new(),
            oidc: None,
            ldap: None,
        }
    }
}

/// An identity provider (OpenID Connect).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// The issuer, exactly as its tokens name it; `https`, or `http` on loopback.
    pub issuer: String,
    /// The client that tokens must be for.
    pub client_id: String,
    /// The claim that names the person. Default: `sub`, which is never given to somebody else.
    #[serde(default)]
    pub name_claim: Option<String>,
    /// The claim with the groups. Default: `groups`.
    #[serde(default)]
    pub groups_claim: Option<String>,
    /// What `firmesh login` asks for. Default: `openid` and `profile`.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// The secret of the client, for logins in the dashboard, if the provider gave it one. Default: none (a public client).
    #[serde(default)]
    pub client_secret: Option<SecretConfig>,
    /// The CA of the provider (PEM), in place of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Which group has which role.
    #[serde(default)]
    pub groups: Vec<MappingConfig>,
}

/// A directory (LDAP, Active Directory).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LdapConfig {
    /// `ldaps://host`, or `ldap://host` with `starttls`; without TLS on loopback only.
    pub url: String,
    /// Whether to ask for TLS on a plain connection first. Default: no.
    #[serde(default)]
    pub starttls: bool,
    /// The CA of the directory (PEM), in place of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// How long to wait for each answer. Default: five seconds.
    #[serde(default)]
    pub timeout: Option<String>,
    /// The name to bind with, such as `uid={user},ou=people,dc=example,dc=com`. This or `search`.
    #[serde(default)]
    pub user_dn: Option<String>,
    /// How to find the name to bind with. This or `user_dn`.
    #[serde(default)]
    pub search: Option<LdapSearchConfig>,
    /// The attribute of a person that names his groups. Default: `memberOf`; empty: none.
    #[serde(default)]
    pub member_of: Option<String>,
    /// Where groups are that name their members.
    #[serde(default)]
    pub group_base: Option<String>,
    /// Which groups name a person. Default: `(|(member={dn})(uniqueMember={dn})(memberUid={user}))`.
    #[serde(default)]
    pub group_filter: Option<String>,
    /// Which group, by its DN or its `cn`, has which role.
    #[serde(default)]
    pub groups: Vec<MappingConfig>,
}

/// How to find a person in a directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LdapSearchConfig {
    /// Who searches. Default: nobody in particular.
    #[serde(default)]
    pub bind_dn: Option<String>,
    /// His password.
    #[serde(default)]
    pub bind_password: Option<SecretConfig>,
    /// Where people are.
    pub base: String,
    /// Who it is, such as `(&(objectClass=user)(sAMAccountName={user}))`. Default: `(uid={user})`.
    #[serde(default)]
    pub user_filter: Option<String>,
}

/// A group and its role.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappingConfig {
    /// The group.
    pub group: String,
    /// Its role.
    pub role: Role,
    /// Where the role ends.
    #[serde(default)]
    pub limits: Limits,
}

/// `[access]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessSettings {
    pub(crate) policy: Option<PathBuf>,
    pub(crate) token_ttl: Duration,
    pub(crate) environments: Environments,
    pub(crate) oidc: Option<OidcSettings>,
    pub(crate) ldap: Option<LdapSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OidcSettings {
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    pub(crate) name_claim: String,
    pub(crate) groups_claim: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) client_secret: Option<Secret>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) groups: Vec<Mapping>,
}

impl OidcSettings {
    /// As people are told; `authorization_endpoint`: where they log in, if that is known.
    pub(crate) fn view(&self, authorization_endpoint: Option<String>) -> OidcView {
        OidcView {
            issuer: self.issuer.clone(),
            client_id: self.client_id.clone(),
            scopes: self.scopes.clone(),
            authorization_endpoint,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LdapSettings {
    pub(crate) url: String,
    pub(crate) starttls: bool,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) lookup: Lookup,
    pub(crate) member_of: Option<String>,
    /// Where, and which.
    pub(crate) group_search: Option<(String, String)>,
    pub(crate) groups: Vec<Mapping>,
}

/// How a person's name becomes a name of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lookup {
    Template(String),
    Search {
        bind_dn: Option<String>,
        bind_password: Option<Secret>,
        base: String,
        user_filter: String,
    },
}

/// A group and what it is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    group: String,
    grant: Grant,
}

impl Mapping {
    /// What somebody in these groups is granted, each once.
    pub(crate) fn grants(
        mappings: &[Self],
        groups: &BTreeSet<String>,
        is_same: impl Fn(&str, &str) -> bool,
    ) -> Vec<Grant> {
        let fits = |mapping: &&Self| groups.iter().any(|group| is_same(group, &mapping.group));
        let granted: BTreeSet<_> = mappings
            .iter()
            .filter(fits)
            .map(|mapping| mapping.grant.clone())
            .collect();
        granted.into_iter().collect()
    }
}

impl AccessConfig {
    /// Relative paths start at the file's folder.
    pub(crate) fn start_at(&mut self, folder: &std::path::Path) {
        let ldap = self.ldap.iter_mut().flat_map(|ldap| {
            let password = ldap
                .search
                .iter_mut()
                .filter_map(|search| search.bind_password.as_mut());
            ldap.ca_file
                .iter_mut()
                .chain(password.filter_map(|secret| secret.file.as_mut()))
        });
        let oidc = self.oidc.iter_mut().flat_map(|oidc| {
            let secret = oidc.client_secret.as_mut().and_then(|secret| secret.file.as_mut());
            oidc.ca_file.iter_mut().chain(secret)
        });
        for path in self.policy.iter_mut().chain(oidc).chain(ldap) {
            *path = folder.join(&*path);
        }
    }

    /// Checks everything; `duration` reads times as the rest of the configuration has them.
    pub(crate) fn check(
        self,
        duration: impl Fn(&str) -> Result<Duration, String>,
    ) -> Result<AccessSettings, (&'static str, String)> {
        let token_ttl = duration(&self.token_ttl).map_err(|problem| ("access.token_ttl", problem))?;
        if token_ttl > TOKEN_TTL_MAX {
            let problem = format!("is {:?}, at most \"12h\" is allowed", self.token_ttl);
            return Err(("access.token_ttl", problem));
        }
        let mut environments = Vec::new();
        for (place, name) in self.environments {
            let wrong = |problem: String| ("access.environments", problem);
            let path = place
                .parse()
                .map_err(|error| wrong(format!("has {place:?}, which is no place: {error}")))?;
            if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
                return Err(wrong(format!("has {name:?}, which is no name")));
            }
            environments.push((path, name));
        }
        Ok(AccessSettings {
            policy: self.policy,
            token_ttl,
            environments: Environments(environments),
            oidc: self.oidc.map(check_oidc).transpose()?,
            ldap: self.ldap.map(|ldap| check_ldap(ldap, duration)).transpose()?,
        })
    }
}

fn check_oidc(config: OidcConfig) -> Result<OidcSettings, (&'static str, String)> {
    let url = config.issuer.parse::<Url>().ok();
    let is_good = url.as_ref().is_some_and(|url| {
        let is_clean = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        is_clean && (url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url)))
    });
    if !is_good {
        let problem = format!(
            "is {:?}, it must be an https address (http on loopback), exactly as the provider's tokens name it",
            config.issuer
        );
        return Err(("access.oidc.issuer", problem));
    }
    if config.client_id.is_empty() {
        return Err((
            "access.oidc.client_id",
            "is empty: it says whom tokens are for".to_owned(),
        ));
    }
    Ok(OidcSettings {
        issuer: config.issuer,
        client_id: config.client_id,
        name_claim: config.name_claim.unwrap_or_else(|| "sub".to_owned()),
        groups_claim: config.groups_claim.unwrap_or_else(|| "groups".to_owned()),
        scopes: config
            .scopes
            .unwrap_or_else(|| vec!["openid".to_owned(), "profile".to_owned()]),
        client_secret: (config.client_secret.map(Secret::new).transpose())
            .map_err(|problem| ("access.oidc.client_secret", format!("is wrong: {problem}")))?,
        ca_file: config.ca_file,
        groups: check_mappings("access.oidc.groups", config.groups)?,
    })
}

fn check_ldap(
    config: LdapConfig,
    duration: impl Fn(&str) -> Result<Duration, String>,
) -> Result<LdapSettings, (&'static str, String)> {
    let wrong = |problem: &str| ("access.ldap.url", format!("is {:?}, {problem}", config.url));
    let url: Url = config
        .url
        .parse()
        .map_err(|_| wrong("it must be ldaps://host or ldap://host"))?;
    match (url.scheme(), config.starttls) {
        ("ldaps", false) | ("ldap", true) => {}
        ("ldaps", true) => return Err(wrong("which is TLS from the start: leave starttls out")),
        ("ldap", false) if is_loopback(&url) => {}
        ("ldap", false) => {
            return Err(wrong(
                "which carries passwords in the clear: set starttls, or use ldaps",
            ));
        }
        _ => return Err(wrong("it must be ldaps://host or ldap://host")),
    }
    let timeout = match &config.timeout {
        Some(text) => duration(text).map_err(|problem| ("access.ldap.timeout", problem))?,
        None => Duration::from_secs(5),
    };
    if timeout > TIMEOUT_MAX {
        let problem = format!("is {timeout:?}, at most {TIMEOUT_MAX:?} is allowed");
        return Err(("access.ldap.timeout", problem));
    }
    let names_user = |field: &'static str, text: String| match text.contains("{user}") {
        true => Ok(text),
        false => Err((field, format!("is {text:?}, it must contain {{user}}"))),
    };
    let lookup = match (config.user_dn, config.search) {
        (Some(template), None) => Lookup::Template(names_user("access.ldap.user_dn", template)?),
        (None, Some(search)) => {
            if search.bind_dn.is_some() != search.bind_password.is_some() {
                let problem = "has bind_dn and bind_password together, or neither".to_owned();
                return Err(("access.ldap.search", problem));
            }
            let bind_password = search.bind_password.map(Secret::new).transpose();
            let filter = search.user_filter.unwrap_or_else(|| "(uid={user})".to_owned());
            Lookup::Search {
                bind_dn: search.bind_dn,
                bind_password: bind_password
                    .map_err(|problem| ("access.ldap.search.bind_password", format!("is wrong: {problem}")))?,
                base: search.base,
                user_filter: names_user("access.ldap.search.user_filter", filter)?,
            }
        }
        _ => {
            let problem = "needs user_dn or search, and not both".to_owned();
            return Err(("access.ldap", problem));
        }
    };
    let group_filter = config
        .group_filter
        .unwrap_or_else(|| "(|(member={dn})(uniqueMember={dn})(memberUid={user}))".to_owned());
    if ldap3::parse_filter(group_filter.replace("{dn}", "x").replace("{user}", "x")).is_err() {
        return Err((
            "access.ldap.group_filter",
            format!("is {group_filter:?}, which is no filter"),
        ));
    }
    if let Lookup::Search { user_filter, .. } = &lookup
        && ldap3::parse_filter(user_filter.replace("{user}", "x")).is_err()
    {
        let problem = format!("is {user_filter:?}, which is no filter");
        return Err(("access.ldap.search.user_filter", problem));
    }
    let member_of = config.member_of.unwrap_or_else(|| "memberOf".to_owned());
    Ok(LdapSettings {
        url: config.url,
        starttls: config.starttls,
        ca_file: config.ca_file,
        timeout,
        lookup,
        member_of: (!member_of.is_empty()).then_some(member_of),
        group_search: config.group_base.map(|base| (base, group_filter)),
        groups: check_mappings("access.ldap.groups", config.groups)?,
    })
}

fn check_mappings(field: &'static str, mappings: Vec<MappingConfig>) -> Result<Vec<Mapping>, (&'static str, String)> {
    if mappings.len() > MAPPINGS_MAX {
        return Err((
            field,
            format!("has {} of them, at most {MAPPINGS_MAX} are taken", mappings.len()),
        ));
    }
    let check = |MappingConfig { group, role, limits }| {
        if group.is_empty() {
            return Err((field, "has one without a group".to_owned()));
        }
        if role == Role::Device {
            let problem = format!("gives {group:?} the role device, which only API keys can have");
            return Err((field, problem));
        }
        check_limits(&limits).map_err(|problem| (field, format!("has wrong limits for {group:?}: {problem}")))?;
        let grant = Grant { role, limits };
        Ok(Mapping { group, grant })
    };
    mappings.into_iter().map(check).collect()
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
