//! People of a directory (LDAP, Active Directory): their password is tried by binding with it, their groups are read.
//!
//! Invariants: no password goes over a wire without TLS, but on loopback; an empty password, which a directory takes for
//! nobody, is refused here; what a person types is escaped wherever it becomes part of a name or a filter.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use ldap3::{
    Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry, SearchOptions, dn_escape, ldap_escape,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::time::timeout;
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::{
    Refusal,
    config::{LdapSettings, Lookup, Mapping},
    identity::{Identity, Means},
};
use crate::{ceremony::read_bounded, telemetry::chain};

/// The longest name and password.
const NAME_BYTES_MAX: usize = 256;
const PASSWORD_BYTES_MAX: usize = 1_024;

/// The most groups of a person that are read.
const GROUPS_MAX: i32 = 1_000;

/// A name of nobody, and a wrong password.
const NO_SUCH_OBJECT: u32 = 32;
const INVALID_CREDENTIALS: u32 = 49;

const CA_BYTES_MAX: u64 = 1 << 20;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LdapSetupError {
    /// The CA file.
    #[error("the CA of the directory ({}) cannot be used: {problem}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// Why a directory was not of use.
#[derive(Debug, thiserror::Error)]
enum DirectoryError {
    #[error("the directory does not answer as it should")]
    Ldap(#[from] LdapError),
    #[error("the directory did not answer in time")]
    Slow,
    #[error("the password for searching the directory cannot be read: {0}")]
    Password(String),
    #[error("the directory does not let us search: access.ldap.search.bind_dn and its password")]
    NotLetIn,
    #[error("{0} entries of the directory fit the name: make access.ldap.search.user_filter narrower")]
    Ambiguous(usize),
}

/// A directory.
pub(super) struct Directory {
    settings: LdapSettings,
    tls: Arc<ClientConfig>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Directory {
    pub(super) fn new(settings: LdapSettings) -> Result<Self, LdapSetupError> {
        // Fails only if somebody installed one before, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = RootCertStore::empty();
        match &settings.ca_file {
            Some(path) => {
                for certificate in authorities(path)? {
                    roots.add(certificate).map_err(|error| LdapSetupError::Ca {
                        path: path.clone(),
                        problem: error.to_string(),
                    })?;
                }
            }
            None => {
                // A machine without any has none to connect with over TLS: that is said when it is tried.
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
            }
        }
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            settings,
            tls: Arc::new(tls),
        })
    }

    /// Who has this name and this password.
    pub(super) async fn verify(&self, name: &str, password: &str) -> Result<Identity, Refusal> {
        // A directory takes a name with spaces around it for the same person; here it would be another one.
        let is_name =
            (1..=NAME_BYTES_MAX).contains(&name.len()) && name.trim() == name && !name.chars().any(char::is_control);
        let is_password = (1..=PASSWORD_BYTES_MAX).contains(&password.len()) && !password.contains('\0');
        if !is_name || !is_password {
            return Err(Refusal::WrongPassword);
        }
        // Each operation has its time; this bounds them all together.
        let all = timeout(4 * self.settings.timeout, self.look_up(name, password)).await;
        let found = all.map_err(|_| DirectoryError::Slow).flatten();
        let groups = match found {
            Ok(Some(groups)) => groups,
            Ok(None) => return Err(Refusal::WrongPassword),
            Err(error) => {
                warn!(error = chain(&error), "the directory could not be asked");
                return Err(Refusal::DirectorySilent);
            }
        };
        Ok(Identity {
            name: format!("ldap:{}", name.to_lowercase()),
            means: Means::Ldap,
            grants: Mapping::grants(&self.settings.groups, &groups, |a, b| a.eq_ignore_ascii_case(b)),
            groups,
            device: None,
            expires: None,
        })
    }

    /// The groups of who has this name and this password, if anybody has.
    async fn look_up(&self, name: &str, password: &str) -> Result<Option<BTreeSet<String>>, DirectoryError> {
        match &self.settings.lookup {
            Lookup::Template(template) => {
                let dn = template.replace("{user}", &dn_escape(name));
                let mut connection = self.connect().await?;
                if !self.bind(&mut connection, &dn, password).await? {
                    return Ok(None);
                }
                let groups = self.groups(&mut connection, name, &dn).await;
                let _ = connection.unbind().await;
                groups.map(Some)
            }
            Lookup::Search {
                bind_dn,
                bind_password,
                base,
                user_filter,
            } => {
                let mut searcher = self.connect().await?;
                if let (Some(dn), Some(secret)) = (bind_dn, bind_password) {
                    let secret = secret.read().map_err(|error| DirectoryError::Password(chain(&error)))?;
                    if !self.bind(&mut searcher, dn, &secret).await? {
                        return Err(DirectoryError::NotLetIn);
                    }
                }
                let filter = user_filter.replace("{user}", &ldap_escape(name));
                let found = self.search(&mut searcher, base, &filter, &["1.1"]).await?;
                let dn = match found.as_slice() {
                    [] => return Ok(None),
                    [entry] => entry.dn.clone(),
                    more => return Err(DirectoryError::Ambiguous(more.len())),
                };
                // On a connection of its own: the first one stays who it is.
                let mut own = self.connect().await?;
                let is_right = self.bind(&mut own, &dn, password).await?;
                let _ = own.unbind().await;
                if !is_right {
                    return Ok(None);
                }
                let groups = self.groups(&mut searcher, name, &dn).await;
                let _ = searcher.unbind().await;
                groups.map(Some)
            }
        }
    }

    async fn connect(&self) -> Result<Ldap, DirectoryError> {
        let settings = LdapConnSettings::new()
            .set_conn_timeout(self.settings.timeout)
            .set_starttls(self.settings.starttls)
            .set_config(self.tls.clone());
        let (connection, ldap) = LdapConnAsync::with_settings(settings, &self.settings.url).await?;
        // It ends with the last handle.
        tokio::spawn(async move {
            if let Err(error) = connection.drive().await {
                debug!(error = chain(&error), "a connection to the directory broke off");
            }
        });
        Ok(ldap)
    }

    async fn bind(&self, connection: &mut Ldap, dn: &str, password: &str) -> Result<bool, DirectoryError> {
        let password = Zeroizing::new(password.to_owned());
        let answer = connection
            .with_timeout(self.settings.timeout)
            .simple_bind(dn, &password)
            .await?;
        match answer.rc {
            0 => Ok(true),
            NO_SUCH_OBJECT | INVALID_CREDENTIALS => Ok(false),
            _ => Err(LdapError::from(answer).into()),
        }
    }

    async fn search(
        &self,
        connection: &mut Ldap,
        base: &str,
        filter: &str,
        attributes: &[&str],
    ) -> Result<Vec<SearchEntry>, DirectoryError> {
        let answer = connection
            .with_search_options(SearchOptions::new().sizelimit(GROUPS_MAX))
            .with_timeout(self.settings.timeout)
            .search(base, Scope::Subtree, filter, attributes)
            .await?;
        match answer.1.rc {
            // There is no such place, for somebody who may not see it.
            NO_SUCH_OBJECT => Ok(Vec::new()),
            0 => Ok(answer
                .0
                .into_iter()
                .filter(|entry| !entry.is_ref() && !entry.is_intermediate())
                .map(SearchEntry::construct)
                .collect()),
            _ => Err(LdapError::from(answer.1).into()),
        }
    }

    /// The groups that the person's own entry names, and those that name the person: by DN and by name.
    async fn groups(&self, connection: &mut Ldap, name: &str, dn: &str) -> Result<BTreeSet<String>, DirectoryError> {
        let mut groups = BTreeSet::new();
        if let Some(attribute) = &self.settings.member_of {
            let answer = connection
                .with_timeout(self.settings.timeout)
                .search(dn, Scope::Base, "(objectClass=*)", [attribute.as_str()])
                .await?;
            for entry in answer.0.into_iter().map(SearchEntry::construct) {
                let named = entry.attrs.into_iter();
                let named = named.filter(|(name, _)| name.eq_ignore_ascii_case(attribute));
                groups.extend(named.flat_map(|(_, values)| values));
            }
        }
        if let Some((base, filter)) = &self.settings.group_search {
            let filter = filter
                .replace("{dn}", &ldap_escape(dn))
                .replace("{user}", &ldap_escape(name));
            for entry in self.search(connection, base, &filter, &["cn"]).await? {
                groups.insert(entry.dn);
                let names = entry
                    .attrs
                    .into_iter()
                    .filter(|(name, _)| name.eq_ignore_ascii_case("cn"));
                groups.extend(names.flat_map(|(_, values)| values));
            }
        }
        Ok(groups)
    }
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, LdapSetupError> {
    let unusable = |problem: String| LdapSetupError::Ca {
        path: path.to_owned(),
        problem,
    };
    let pem = read_bounded(path, CA_BYTES_MAX).map_err(|error| unusable(chain(&error)))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| unusable(error.to_string()))?;
    match found.is_empty() {
        true => Err(unusable("it holds no certificate in PEM".to_owned())),
        false => Ok(found),
    }
}
