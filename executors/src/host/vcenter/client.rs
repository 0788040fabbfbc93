//! Sessions, calls and properties of a vCenter.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use firmesh_executors_core::ActError;
use reqwest::{Url, header, redirect};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use sha2::Digest as _;

use super::super::{
    config::{Trust, VcenterAccess},
    soap::{BODY_BYTES_MAX, Element, Ref, argument, envelope},
};
use crate::{certificate::Shown, config::Secret};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The slowest sane answer: tasks run on their own.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// The cookie that names a session.
const COOKIE: &str = "vmware_soap_session";
/// Objects read at once, and pages an answer may come in.
const OBJECTS_MAX: usize = 10_000;
const PAGES_MAX: usize = 1_000;
/// Objects that come in one page, where there may be thousands of them with a dozen properties each.
const PAGE_OBJECTS: usize = 200;

/// Why a vCenter did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcenterError {
    #[error("its certificates cannot be used: {0}")]
    Certificates(String),
    #[error("the HTTPS client could not be set up")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{method}: no answer from {url}")]
    NoAnswer {
        method: &'static str,
        url: Url,
        source: reqwest::Error,
    },
    #[error("{method}: vCenter answered with more than {BODY_BYTES_MAX} bytes")]
    TooLong { method: &'static str },
    #[error("{method}: vCenter answered {status}, and what it says cannot be read: {problem}")]
    Malformed {
        method: &'static str,
        status: u16,
        problem: String,
    },
    #[error("{method}: vCenter refuses: {words} ({fault})")]
    Fault {
        method: &'static str,
        fault: String,
        words: String,
    },
    #[error("vCenter has no host {0:?}; its path in the inventory begins with /, as in /DC/host/Cluster/name")]
    NoSuchHost(String),
    #[error("vCenter does not say {0}")]
    NotSaid(String),
    #[error("vCenter has {0} objects of one kind there, at most {OBJECTS_MAX} are read")]
    TooMany(usize),
    #[error("vCenter's answer has more than {PAGES_MAX} pages")]
    TooManyPages,
    #[error("vCenter's task failed: {words}")]
    Task { words: String },
    #[error("vCenter's task is {state} after {limit_s} s")]
    Slow { state: String, limit_s: u64 },
    #[error(transparent)]
    Rule(ActError),
}

impl VcenterError {
    pub(super) fn retry(&self) -> bool {
        match self {
            Self::Rule(error) => error.retry,
            // Waiting gives nobody a right or a password.
            Self::Fault { fault, .. } => !matches!(fault.as_str(), "InvalidLogin" | "NoPermission"),
            Self::NoSuchHost(_) | Self::Certificates(_) | Self::Setup(_) => false,
            _ => true,
        }
    }
}

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    username: String,
    password: Secret,
}

/// Objects that stand at the beginning.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) index: Ref,
    properties: Ref,
    sessions: Ref,
    /// What else it says of itself, for who needs it.
    content: Element,
}

impl Services {
    /// Another object that stands at the beginning.
    pub(super) fn object(&self, name: &str) -> Result<Ref, VcenterError> {
        let found = self.content.child(name).and_then(Element::reference);
        found.ok_or_else(|| VcenterError::NotSaid(format!("where its {name} is")))
    }

    /// What it says about itself.
    pub(super) fn about(&self, name: &str) -> Result<&str, VcenterError> {
        let said = self.content.at(&["about", name]).map_or("", |about| about.text.trim());
        match said {
            "" => Err(VcenterError::NotSaid(format!("its {name}"))),
            said => Ok(said),
        }
    }
}

#[derive(Debug)]
pub(super) struct Session<'a> {
    client: &'a Client,
    cookie: Option<String>,
    pub(super) services: Services,
}

/// What is known of one object.
#[derive(Debug)]
pub(super) struct Properties {
    pub(super) object: Ref,
    values: Vec<(String, Value)>,
    /// What it did not tell of what was asked for, and why not.
    pub(super) untold: Option<String>,
}

/// The value of a property.
#[derive(Debug)]
pub(super) struct Value(Element);

impl Value {
    /// What it is made of.
    pub(super) fn element(&self) -> &Element {
        &self.0
    }

    /// Of a fault, what vCenter says of it.
    pub(super) fn message(&self) -> Option<String> {
        let Self(fault) = self;
        let kind = fault.child("fault").map(|fault| fault.kind.clone()).unwrap_or_default();
        let words = fault.child("localizedMessage")?.text.trim();
        Some(short(&format!("{words} ({kind})")))
    }

    /// Of a cluster's configuration, whether running machines are moved without a person. What is left out is the
    /// interface's default: fully automated, where DRS is on.
    pub(super) fn moves_machines(&self) -> bool {
        let Self(configuration) = self;
        let drs = configuration.child("drsConfig");
        let is_on = drs.and_then(|drs| drs.child("enabled")).is_some_and(Element::is_true);
        let by_itself = drs.and_then(|drs| drs.child("defaultVmBehavior"));
        is_on && by_itself.is_none_or(|behaviour| matches!(behaviour.text.trim(), "" | "fullyAutomated"))
    }
}

impl Properties {
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        let found = self.values.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value)
    }

    /// A text; empty if there is none.
    pub(super) fn text(&self, name: &str) -> &str {
        self.value(name).map_or("", |Value(element)| element.text.trim())
    }

    /// A truth, which nobody guesses.
    pub(super) fn flag(&self, name: &str) -> Result<bool, VcenterError> {
        match self.text(name) {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(VcenterError::NotSaid(format!("{name} of {}", self.object.id))),
        }
    }

    /// A text that must be there.
    pub(super) fn said(&self, name: &str) -> Result<&str, VcenterError> {
        match self.text(name) {
            "" => Err(VcenterError::NotSaid(format!("{name} of {}", self.object.id))),
            text => Ok(text),
        }
    }

    /// The objects named, whether one or several. None, where the property is there and empty, or is not set: what may not be
    /// seen was an error before.
    pub(super) fn references(&self, name: &str) -> Result<Vec<Ref>, VcenterError> {
        let Some(Value(element)) = self.value(name) else {
            return Ok(Vec::new());
        };
        let named: Vec<&Element> = match element.children.is_empty() {
            true if element.text.trim().is_empty() => Vec::new(),
            true => vec![element],
            false => element.children.iter().collect(),
        };
        let named = named.into_iter().map(|one| {
            one.reference()
                .ok_or_else(|| VcenterError::NotSaid(format!("which objects are {name} of {}", self.object.id)))
        });
        named.collect()
    }

    /// What a page tells of its objects.
    pub(super) fn told(page: &Element) -> Result<Vec<Self>, VcenterError> {
        let of_object = |object: &Element| {
            let named = object.child("obj").and_then(Element::reference);
            let named = named.ok_or_else(|| VcenterError::NotSaid("whose properties these are".to_owned()))?;
            let untold = object.child("missingSet").map(|missing| {
                let path = missing.child("path").map_or("something", |path| path.text.trim());
                let why = missing.at(&["fault", "fault"]).map_or("", |fault| fault.kind.as_str());
                short(&format!("{path} of {} ({why})", named.id))
            });
            let values = object.all("propSet").filter_map(|set| {
                let name = set.child("name")?.text.trim().to_owned();
                Some((name, Value(set.child("val")?.clone())))
            });
            Ok(Self {
                object: named,
                values: values.collect(),
                untold,
            })
        };
        page.all("objects").map(of_object).collect()
    }

    /// The same, if it is all that was asked for. Without the right to see it, or not there at all: nobody knows, and nobody
    /// takes it for nothing.
    fn whole(self) -> Result<Self, VcenterError> {
        match self.untold {
            Some(untold) => Err(VcenterError::NotSaid(untold)),
            None => Ok(self),
        }
    }
}

/// What was found, if it is what was asked for: every object, once.
fn all_of(objects: &[Ref], found: Vec<Properties>) -> Result<Vec<Properties>, VcenterError> {
    let (asked, told): (BTreeSet<_>, BTreeSet<_>) =
        (objects.iter().collect(), found.iter().map(|p| &p.object).collect());
    if asked == told && found.len() == objects.len() {
        return Ok(found);
    }
    let (told, asked) = (found.len(), objects.len());
    Err(VcenterError::NotSaid(format!(
        "anything of all {asked} objects, but of {told}"
    )))
}

impl Client {
    pub(super) fn new(access: &VcenterAccess) -> Result<Self, VcenterError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(&access.trust)?)
            .connect_timeout(CONNECT_LIMIT)
            .timeout(REQUEST_LIMIT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| VcenterError::Setup(error.into()))?;
        let mut url = access.url.clone();
        url.set_path("/sdk");
        Ok(Self {
            http,
            url,
            username: access.username.clone(),
            password: access.password.clone(),
        })
    }

    pub(super) async fn login(&self) -> Result<Session<'_>, VcenterError> {
        let this = Ref::new("ServiceInstance", "ServiceInstance");
        let (answer, _) = self.call(None, "RetrieveServiceContent", &this, "").await?;
        let content = answer.child("returnval").cloned().unwrap_or_default();
        let service = |name: &str| {
            let found = content.child(name).and_then(Element::reference);
            found.ok_or_else(|| VcenterError::NotSaid(format!("where its {name} is")))
        };
        let services = Services {
            index: service("searchIndex")?,
            properties: service("propertyCollector")?,
            sessions: service("sessionManager")?,
            content,
        };
        let account = [
            argument("userName", &self.username),
            argument("password", self.password.expose()),
        ];
        let (_, cookie) = self.call(None, "Login", &services.sessions, &account.concat()).await?;
        Ok(Session {
            client: self,
            cookie,
            services,
        })
    }

    async fn call(
        &self,
        cookie: Option<&str>,
        method: &'static str,
        this: &Ref,
        arguments: &str,
    ) -> Result<(Element, Option<String>), VcenterError> {
        let mut request = self
            .http
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, "text/xml; charset=utf-8")
            .header("SOAPAction", "urn:vim25/6.5")
            .body(envelope(method, this, arguments));
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, format!("{COOKIE}={cookie}"));
        }
        let no_answer = |source: reqwest::Error| VcenterError::NoAnswer {
            method,
            url: self.url.clone(),
            source: source.without_url(),
        };
        let mut response = request.send().await.map_err(no_answer)?;
        let status = response.status().as_u16();
        let cookie = response.headers().get_all(header::SET_COOKIE).iter().find_map(|set| {
            let first = set.to_str().ok()?.split(';').next()?;
            let (name, value) = first.split_once('=')?;
            (name.trim() == COOKIE).then(|| value.trim().to_owned())
        });
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(VcenterError::TooLong { method });
            }
            body.extend_from_slice(&chunk);
        }
        let malformed = |problem: String| VcenterError::Malformed {
            method,
            status,
            problem,
        };
        let text = String::from_utf8(body).map_err(|error| malformed(error.to_string()))?;
        let read = Element::parse(&text).map_err(malformed)?;
        let answer = read.child("Body").and_then(|body| body.children.first());
        let answer = answer.ok_or_else(|| malformed("it has no body".to_owned()))?;
        if answer.name == "Fault" {
            let detail = answer.child("detail").and_then(|detail| detail.children.first());
            let fault = detail.map(|detail| match detail.kind.is_empty() {
                true => detail.name.trim_end_matches("Fault").to_owned(),
                false => detail.kind.clone(),
            });
            let words = answer.child("faultstring").map_or("", |words| words.text.trim());
            return Err(VcenterError::Fault {
                method,
                fault: short(&fault.unwrap_or_default()),
                words: short(words),
            });
        }
        Ok((answer.clone(), cookie))
    }
}

impl Session<'_> {
    pub(super) async fn call(
        &self,
        method: &'static str,
        this: &Ref,
        arguments: &str,
    ) -> Result<Element, VcenterError> {
        let answer = self
            .client
            .call(self.cookie.as_deref(), method, this, arguments)
            .await?;
        Ok(answer.0)
    }

    /// Calls what starts a task; answers the task.
    pub(super) async fn task(&self, method: &'static str, this: &Ref, arguments: &str) -> Result<Ref, VcenterError> {
        let answer = self.call(method, this, arguments).await?;
        let task = answer.child("returnval").and_then(Element::reference);
        task.ok_or_else(|| VcenterError::NotSaid(format!("which task {method} has started")))
    }

    pub(super) async fn read_one(&self, object: &Ref, names: &[&str]) -> Result<Properties, VcenterError> {
        let found = self.read(std::slice::from_ref(object), names).await?;
        let found = found.into_iter().next();
        found.ok_or_else(|| VcenterError::NotSaid(format!("anything of {}", object.id)))
    }

    /// Reads properties of objects of one type, of every one of them. Objects that are gone meanwhile are an error of vCenter's.
    pub(super) async fn read(&self, objects: &[Ref], names: &[&str]) -> Result<Vec<Properties>, VcenterError> {
        let found = self.retrieve(objects, names, "", "<options/>").await?;
        let found: Result<_, _> = found.into_iter().map(Properties::whole).collect();
        all_of(objects, found?)
    }

    /// Reads what it tells of the properties of those of these objects of one type that are still there, each of them once.
    pub(super) async fn read_told(&self, objects: &[Ref], names: &[&str]) -> Result<Vec<Properties>, VcenterError> {
        let gone_is_fine = argument("reportMissingObjectsInResults", "true");
        let paged = format!(
            "<options>{}</options>",
            argument("maxObjects", &PAGE_OBJECTS.to_string())
        );
        let found = self.retrieve(objects, names, &gone_is_fine, &paged).await?;
        let asked: BTreeSet<_> = objects.iter().collect();
        let told: BTreeSet<_> = found.iter().map(|p| &p.object).collect();
        match told.len() == found.len() && told.is_subset(&asked) {
            true => Ok(found),
            false => Err(VcenterError::NotSaid("only what it was asked for, and once".to_owned())),
        }
    }

    async fn retrieve(
        &self,
        objects: &[Ref],
        names: &[&str],
        more: &str,
        options: &str,
    ) -> Result<Vec<Properties>, VcenterError> {
        let Some(first) = objects.first() else {
            return Ok(Vec::new());
        };
        if objects.len() > OBJECTS_MAX {
            return Err(VcenterError::TooMany(objects.len()));
        }
        let paths: String = names.iter().map(|name| argument("pathSet", name)).collect();
        let all: String = objects
            .iter()
            .map(|object| format!("<objectSet>{}<skip>false</skip></objectSet>", object.argument("obj")))
            .collect();
        let wanted = format!(
            "<specSet><propSet>{}<all>false</all>{paths}</propSet>{all}{more}</specSet>{options}",
            argument("type", &first.kind)
        );
        let this = &self.services.properties;
        let mut answer = self.call("RetrievePropertiesEx", this, &wanted).await?;
        let mut found = Vec::new();
        for _ in 0..PAGES_MAX {
            let page = answer.child("returnval");
            let page = page.ok_or_else(|| VcenterError::NotSaid("anything of what it was asked for".to_owned()))?;
            found.extend(Properties::told(page)?);
            if found.len() > objects.len() {
                let (told, asked) = (found.len(), objects.len());
                return Err(VcenterError::NotSaid(format!(
                    "anything of all {asked} objects, but of {told}"
                )));
            }
            let Some(token) = page.child("token") else {
                return Ok(found);
            };
            let more = argument("token", token.text.trim());
            answer = self.call("ContinueRetrievePropertiesEx", this, &more).await?;
        }
        Err(VcenterError::TooManyPages)
    }

    /// Ends the session. One that cannot be ended expires.
    pub(super) async fn close(&self) {
        if let Err(error) = self.call("Logout", &self.services.sessions, "").await {
            tracing::debug!(%error, "a session of a vCenter was left to expire");
        }
    }
}

/// The most of a vCenter's own words that goes into one of ours.
fn short(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn tls(trust: &Trust) -> Result<rustls::ClientConfig, VcenterError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| VcenterError::Setup(error.into()))?;
    let config = match trust {
        Trust::Authority(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| VcenterError::Certificates(format!("{error:?}")))?;
                let added = roots.add(certificate);
                added.map_err(|error| VcenterError::Certificates(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(VcenterError::Certificates("ca_file has none".to_owned()));
            }
            config.with_root_certificates(roots)
        }
        Trust::Certificate(sha256) => {
            let sha256 = *sha256;
            let is_pinned = move |shown: &[u8]| <[u8; 32]>::from(sha2::Sha256::digest(shown)) == sha256;
            config
                .dangerous()
                .with_custom_certificate_verifier(Shown::new(provider, is_pinned))
        }
    };
    Ok(config.with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A property that came, one that did not, and one that may not be seen.
    fn page(objects: &str) -> Result<Vec<Properties>, VcenterError> {
        let page = Element::parse(&format!("<returnval>{objects}</returnval>")).unwrap();
        Properties::told(&page)?.into_iter().map(Properties::whole).collect()
    }

    fn object(number: u32, rest: &str) -> String {
        format!("<objects><obj type=\"VirtualMachine\">vm-{number}</obj>{rest}</objects>")
    }

    fn machine(number: u32) -> Ref {
        Ref::new("VirtualMachine", &format!("vm-{number}"))
    }

    /// What vCenter did not say counted as nothing: no machine that runs, no host that is aside.
    #[test]
    fn what_is_not_said_is_no_answer() {
        let state = "<propSet><name>runtime.powerState</name><val xsi:type=\"VirtualMachinePowerState\">poweredOn</val></propSet>";
        let found = page(&(object(1, state) + &object(2, ""))).unwrap();
        assert_eq!(found[0].said("runtime.powerState").unwrap(), "poweredOn");
        let unsaid = found[1].said("runtime.powerState").unwrap_err().to_string();
        assert_eq!(unsaid, "vCenter does not say runtime.powerState of vm-2");
        let hidden = "<missingSet><path>runtime</path><fault><fault xsi:type=\"NoPermission\"/></fault></missingSet>";
        let hidden = page(&object(3, hidden)).unwrap_err().to_string();
        assert_eq!(hidden, "vCenter does not say runtime of vm-3 (NoPermission)");
        assert!(page("<objects/>").is_err());
    }

    #[test]
    fn every_object_is_answered_for_once() {
        let asked = [machine(1), machine(2)];
        let told = |numbers: &[u32]| {
            let objects: String = numbers.iter().map(|number| object(*number, "")).collect();
            all_of(&asked, page(&objects).unwrap()).map(|found| found.len())
        };
        assert_eq!(told(&[2, 1]).unwrap(), 2);
        for wrong in [&[][..], &[1], &[1, 1], &[1, 3], &[1, 2, 2], &[1, 2, 3]] {
            let error = told(wrong).unwrap_err();
            assert!(
                error.to_string().contains("of all 2 objects") && error.retry(),
                "{wrong:?}: {error}"
            );
        }
    }

    #[test]
    fn a_list_of_objects_is_whole_or_no_list() {
        let list = |val: &str| {
            let set = format!("<propSet><name>vm</name>{val}</propSet>");
            let found = page(&object(1, &set)).unwrap();
            found[0].references("vm").map(|found| found.len())
        };
        let one = "<ManagedObjectReference type=\"VirtualMachine\">vm-7</ManagedObjectReference>";
        assert_eq!(list("").unwrap(), 0, "not set");
        assert_eq!(list("<val/>").unwrap(), 0);
        assert_eq!(list("<val type=\"VirtualMachine\">vm-7</val>").unwrap(), 1);
        assert_eq!(list(&format!("<val>{one}{one}</val>")).unwrap(), 2);
        assert!(list(&format!("<val>{one}<ManagedObjectReference/></val>")).is_err());
        assert!(list("<val>vm-7</val>").is_err());
    }
}
