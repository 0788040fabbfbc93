//! `[[notifications]]` of the configuration: as written, and as checked. Whatever can be found wrong is found before anything
//! starts: addresses, secrets that cannot be read, templates with a slip in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use firmesh_protocol::ids::CampaignId;
use lettre::message::Mailbox;
use reqwest::{
    Method, Url,
    header::{HeaderName, HeaderValue},
};
use serde::Deserialize;

use super::{
    notice::{NoticeKind, Severity},
    secret::{Secret, SecretConfig},
    send,
    template::{self, Escape},
};
use crate::telemetry::chain;

/// Every destination has a task and a connection of its own.
const DESTINATIONS_MAX: usize = 32;

/// Recipients of one destination.
const RECIPIENTS_MAX: usize = 50;

/// One destination as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotificationConfig {
    /// Its name: lower case letters, digits and dashes. What was told is remembered under it.
    pub name: String,
    /// Which events. Default: all.
    #[serde(default)]
    pub events: Vec<NoticeKind>,
    /// Events of these campaigns only, and those of no campaign. Default: all.
    #[serde(default)]
    pub campaigns: Vec<String>,
    /// Nothing less severe. Default: `info`, and `warning` for PagerDuty and Opsgenie, which wake people.
    pub min_severity: Option<Severity>,
    /// A message that nobody takes for so long is given up. Default: three days, a long weekend.
    #[serde(default = "three_days")]
    pub give_up_after: String,
    /// Where it is.
    pub to: TargetConfig,
}

fn three_days() -> String {
    "3d".to_owned()
}

/// Where a destination is, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TargetConfig {
    /// CloudEvents in JSON, signed as Standard Webhooks has it.
    Webhook {
        /// Where to.
        url: String,
        /// What it is signed with: `whsec_` and Base64 of 24 to 64 bytes. Two while one replaces the other.
        secrets: Vec<SecretConfig>,
        /// The CA of the receiver (PEM), if the system does not trust it.
        ca_file: Option<PathBuf>,
    },
    /// Mail over SMTP.
    Email {
        /// The mail server.
        host: String,
        /// Its port. Default: 587, or 465 for implicit TLS, or 25 for none.
        port: Option<u16>,
        /// How it is encrypted. Default: STARTTLS, and nothing is sent without it.
        #[serde(default)]
        tls: MailTls,
        /// Who logs in.
        username: Option<String>,
        /// With which password.
        password: Option<SecretConfig>,
        /// The CA of the server (PEM), if the system does not trust it.
        ca_file: Option<PathBuf>,
        /// Who writes, such as `Firmesh <firmesh@example.com>`.
        from: String,
        /// Who is told.
        to: Vec<String>,
        /// The subject, a template.
        #[serde(default = "default_subject")]
        subject: String,
        /// The text, a template.
        #[serde(default = "default_body")]
        body: String,
    },
    /// PagerDuty, Events API v2.
    Pagerduty {
        /// Where to. Default: the service in the US.
        #[serde(default = "pagerduty_url")]
        url: String,
        /// The integration key.
        routing_key: SecretConfig,
        /// The CA of a proxy (PEM), if the system does not trust it.
        ca_file: Option<PathBuf>,
    },
    /// Opsgenie, Alert API.
    Opsgenie {
        /// Where to. Default: the service in the US.
        #[serde(default = "opsgenie_url")]
        url: String,
        /// The API key.
        api_key: SecretConfig,
        /// The CA of a proxy (PEM), if the system does not trust it.
        ca_file: Option<PathBuf>,
    },
    /// Any HTTP interface: tickets, chat.
    Rest {
        /// `POST`, `PUT` or `PATCH`. Default: `POST`.
        #[serde(default = "post")]
        method: String,
        /// Where to.
        url: String,
        /// Headers as they are.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// Headers whose values are secret.
        #[serde(default)]
        secret_headers: BTreeMap<String, SecretConfig>,
        /// The body, a template. Where the content type is JSON, what it inserts is encoded as JSON.
        body: String,
        /// Default: `application/json`.
        #[serde(default = "json_type")]
        content_type: String,
        /// The CA of the receiver (PEM), if the system does not trust it.
        ca_file: Option<PathBuf>,
    },
}

/// How mail is encrypted on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// The connection begins in the clear and goes on in TLS, or not at all.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Implicit,
    /// None: only to this machine itself.
    None,
}

fn default_subject() -> String {
    "[Firmesh] {{ severity }}: {{ summary }}".to_owned()
}

fn default_body() -> String {
    "{{ summary }}\n{% if reason %}\n{{ reason }}\n{% endif %}{% if nodes %}\nnodes: {{ nodes | join(\", \") }}\n{% endif %}\n\
     event {{ number }} ({{ kind }}) of {{ time }}, {{ source }}\n"
        .to_owned()
}

fn pagerduty_url() -> String {
    "https://events.pagerduty.com/v2/enqueue".to_owned()
}

fn opsgenie_url() -> String {
    "https://api.opsgenie.com/v2/alerts".to_owned()
}

fn post() -> String {
    "POST".to_owned()
}

fn json_type() -> String {
    "application/json".to_owned()
}

/// What goes to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) events: BTreeSet<NoticeKind>,
    pub(crate) campaigns: BTreeSet<CampaignId>,
    pub(crate) min_severity: Severity,
}

/// A destination, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub(crate) name: String,
    pub(crate) filter: Filter,
    pub(crate) give_up_after: Duration,
    pub(crate) to: Target,
}

/// Where a destination is, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Webhook { http: Http, secrets: Vec<Secret> },
    Email(Box<Mail>),
    Pagerduty { http: Http, routing_key: Secret },
    Opsgenie { http: Http, api_key: Secret },
    Rest(Box<Rest>),
}

/// An HTTP address and whom to trust there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Http {
    pub(crate) url: Url,
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: MailTls,
    pub(crate) login: Option<(String, Secret)>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) from: Mailbox,
    pub(crate) to: Vec<Mailbox>,
    pub(crate) subject: String,
    pub(crate) body: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) http: Http,
    pub(crate) method: Method,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) secret_headers: Vec<(HeaderName, Secret)>,
    pub(crate) body: String,
    pub(crate) escape: Escape,
}

impl Target {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Email(_) => "email",
            Self::Pagerduty { .. } => "pagerduty",
            Self::Opsgenie { .. } => "opsgenie",
            Self::Rest(_) => "rest",
        }
    }

    /// Where it is: of an address only the host, because some keep their secret in the path.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Webhook { http, .. } | Self::Pagerduty { http, .. } | Self::Opsgenie { http, .. } => http.place(),
            Self::Rest(rest) => rest.http.place(),
            Self::Email(mail) => format!("{}:{}", mail.host, mail.port),
        }
    }

    /// Whether it opens and closes alerts.
    pub(crate) fn is_alerting(&self) -> bool {
        matches!(self, Self::Pagerduty { .. } | Self::Opsgenie { .. })
    }
}

impl Http {
    fn place(&self) -> String {
        self.url.origin().ascii_serialization()
    }
}

impl NotificationConfig {
    /// Relative paths start at the configuration's folder.
    pub(crate) fn start_at(&mut self, folder: &Path) {
        let join = |path: &mut PathBuf| *path = folder.join(&*path);
        let (ca_file, secrets): (&mut Option<PathBuf>, Vec<&mut SecretConfig>) = match &mut self.to {
            TargetConfig::Webhook { ca_file, secrets, .. } => (ca_file, secrets.iter_mut().collect()),
            TargetConfig::Email { ca_file, password, .. } => (ca_file, password.iter_mut().collect()),
            TargetConfig::Pagerduty {
                ca_file, routing_key, ..
            } => (ca_file, vec![routing_key]),
            TargetConfig::Opsgenie { ca_file, api_key, .. } => (ca_file, vec![api_key]),
            TargetConfig::Rest {
                ca_file,
                secret_headers,
                ..
            } => (ca_file, secret_headers.values_mut().collect()),
        };
        ca_file.iter_mut().for_each(join);
        secrets
            .into_iter()
            .filter_map(|secret| secret.file.as_mut())
            .for_each(join);
    }
}

/// Checks all destinations. A mistake says at which destination it is.
pub(crate) fn check(
    configs: Vec<NotificationConfig>,
    duration: impl Fn(&str) -> Result<Duration, String>,
) -> Result<Vec<Destination>, String> {
    if configs.len() > DESTINATIONS_MAX {
        return Err(format!(
            "has {} destinations, at most {DESTINATIONS_MAX} are served",
            configs.len()
        ));
    }
    let mut names = BTreeSet::new();
    let mut checked = Vec::new();
    for config in configs {
        let name = config.name.clone();
        if !is_name(&name) {
            return Err(format!(
                "has the name {name:?}: a name is up to 64 lower case letters, digits and dashes"
            ));
        }
        if !names.insert(name.clone()) {
            return Err(format!("has {name:?} twice: give every destination a name of its own"));
        }
        checked.push(destination(config, &duration).map_err(|problem| format!("{name:?}: {problem}"))?);
    }
    Ok(checked)
}

pub(super) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn destination(
    config: NotificationConfig,
    duration: impl Fn(&str) -> Result<Duration, String>,
) -> Result<Destination, String> {
    let to = target(config.to)?;
    // Whatever the sender needs is made once here, so that it cannot fail for the first time at night.
    send::Sender::new(&to).map_err(|error| chain(&error))?;
    let campaign = |id: &String| id.parse().map_err(|error| format!("campaigns has {id:?}: {error}"));
    let campaigns: Result<_, String> = config.campaigns.iter().map(campaign).collect();
    let least = if to.is_alerting() {
        Severity::Warning
    } else {
        Severity::Info
    };
    Ok(Destination {
        name: config.name,
        filter: Filter {
            events: config.events.into_iter().collect(),
            campaigns: campaigns?,
            min_severity: config.min_severity.unwrap_or(least),
        },
        give_up_after: duration(&config.give_up_after).map_err(|problem| format!("give_up_after {problem}"))?,
        to,
    })
}

fn target(config: TargetConfig) -> Result<Target, String> {
    Ok(match config {
        TargetConfig::Webhook { url, secrets, ca_file } => {
            if !(1..=2).contains(&secrets.len()) {
                return Err(format!(
                    "secrets has {}, it takes one, or two during a rotation",
                    secrets.len()
                ));
            }
            let secrets: Result<Vec<_>, String> = secrets.into_iter().map(|one| secret("secrets", one)).collect();
            let secrets = secrets?;
            for one in &secrets {
                send::webhook_key(one).map_err(|error| format!("secrets: {}", chain(&error)))?;
            }
            Target::Webhook {
                http: http(&url, ca_file)?,
                secrets,
            }
        }
        TargetConfig::Pagerduty {
            url,
            routing_key,
            ca_file,
        } => Target::Pagerduty {
            http: http(&url, ca_file)?,
            routing_key: secret("routing_key", routing_key)?,
        },
        TargetConfig::Opsgenie { url, api_key, ca_file } => Target::Opsgenie {
            http: http(&url, ca_file)?,
            api_key: secret("api_key", api_key)?,
        },
        TargetConfig::Rest {
            method,
            url,
            headers,
            secret_headers,
            body,
            content_type,
            ca_file,
        } => {
            let method = match method.as_str() {
                "POST" => Method::POST,
                "PUT" => Method::PUT,
                "PATCH" => Method::PATCH,
                _ => return Err(format!("method is {method:?}, it must be POST, PUT or PATCH")),
            };
            let name = |name: &str| {
                let parsed = HeaderName::from_bytes(name.as_bytes());
                parsed.map_err(|_| format!("{name:?} is no name of a header"))
            };
            let mut fixed = Vec::new();
            for (header, text) in headers
                .iter()
                .map(|(n, v)| (n.as_str(), v))
                .chain([("content-type", &content_type)])
            {
                let text = HeaderValue::from_str(text)
                    .map_err(|_| format!("the header {header} has a value that no header has"))?;
                fixed.push((name(header)?, text));
            }
            let mut hidden = Vec::new();
            for (header, config) in secret_headers {
                hidden.push((name(&header)?, secret(&format!("secret_headers.{header}"), config)?));
            }
            let is_json = content_type.split(';').next().is_some_and(|kind| {
                let kind = kind.trim();
                kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
            });
            let escape = if is_json { Escape::Json } else { Escape::None };
            template::check(&body, escape).map_err(|problem| format!("body: {problem}"))?;
            Target::Rest(Box::new(Rest {
                http: http(&url, ca_file)?,
                method,
                headers: fixed,
                secret_headers: hidden,
                body,
                escape,
            }))
        }
        TargetConfig::Email {
            host,
            port,
            tls,
            username,
            password,
            ca_file,
            from,
            to,
            subject,
            body,
        } => {
            if tls == MailTls::None && !is_loopback(&host) {
                return Err(format!(
                    "tls is \"none\" and host is {host:?}: mail goes unencrypted to this machine only (localhost)"
                ));
            }
            if host.is_empty() || host.len() > 253 {
                return Err(format!(
                    "host is {host:?}, it must be the name or address of a mail server"
                ));
            }
            let login = match (username, password) {
                (Some(username), Some(password)) => Some((username, secret("password", password)?)),
                (None, None) => None,
                _ => return Err("username and password belong together: set both, or neither".to_owned()),
            };
            if !(1..=RECIPIENTS_MAX).contains(&to.len()) {
                return Err(format!(
                    "to has {} recipients, it takes 1 to {RECIPIENTS_MAX}",
                    to.len()
                ));
            }
            let mailbox = |text: &String| {
                let parsed = text.parse::<Mailbox>();
                parsed.map_err(|error| format!("{text:?} is no mail address: {error}"))
            };
            let to: Result<Vec<_>, String> = to.iter().map(mailbox).collect();
            template::check(&subject, Escape::None).map_err(|problem| format!("subject: {problem}"))?;
            template::check(&body, Escape::None).map_err(|problem| format!("body: {problem}"))?;
            let usual = match tls {
                MailTls::Starttls => 587,
                MailTls::Implicit => 465,
                MailTls::None => 25,
            };
            Target::Email(Box::new(Mail {
                host,
                port: port.unwrap_or(usual),
                tls,
                login,
                ca_file,
                from: mailbox(&from)?,
                to: to?,
                subject,
                body,
            }))
        }
    })
}

pub(super) fn secret(field: &str, config: SecretConfig) -> Result<Secret, String> {
    let secret = Secret::new(config).map_err(|problem| format!("{field}: {problem}"))?;
    secret.read().map_err(|error| format!("{field}: {}", chain(&error)))?;
    Ok(secret)
}

pub(super) fn http(text: &str, ca_file: Option<PathBuf>) -> Result<Http, String> {
    // Not the text itself: it may hold what should not be there.
    let url = Url::parse(text).map_err(|error| format!("url cannot be read: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url has a name or password in it: use a header from a file or the environment".to_owned());
    }
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(host) => {}
        "http" => {
            return Err(format!(
                "url goes to {host} over http: use https, only this machine itself may do without"
            ));
        }
        scheme => return Err(format!("url has the scheme {scheme:?}, it must be https")),
    }
    Ok(Http { url, ca_file })
}

fn is_loopback(host: &str) -> bool {
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}
