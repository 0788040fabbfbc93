#![doc = include_str!("README.md")]

mod config;
mod script;
mod soap;
mod vcenter;

use std::path::Path;

use firmesh_executors_core::{ActError, HostSeen};

pub use config::{
    HostConfig, HostConfigError, HostSettings, PreparationConfig, ScriptConfig, VcenterAccess, VcenterConfig,
};
pub use vcenter::import::{ImportError, Imported, ImportedHost, NotImported, import};

use self::{
    config::PreparationSettings,
    script::Script,
    vcenter::{Turns, Vcenter, VcenterError},
};

/// What has hosts step aside, made ready; acts and decides nothing.
#[derive(Debug)]
pub struct HostBackend {
    name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Script(Script),
    Vcenter(Box<Vcenter>),
}

/// Why a host's backend could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the client of the vCenter of host {host} could not be made")]
pub struct HostBuildError {
    host: String,
    source: VcenterError,
}

/// Makes the backends of hosts, in their order. What they keep lies below `work_dir`. Touches nothing.
pub fn build_hosts(settings: &[HostSettings], work_dir: &Path) -> Result<Vec<HostBackend>, HostBuildError> {
    let mut turns = Turns::default();
    let backend = |host: &HostSettings| {
        let kind = match &host.preparation {
            PreparationSettings::Script(script) => {
                Kind::Script(Script::new(script.clone(), &host.name, work_dir.join(&host.name)))
            }
            PreparationSettings::Vcenter(vcenter) => {
                let built = Vcenter::new(vcenter.clone(), &mut turns);
                Kind::Vcenter(Box::new(built.map_err(|source| HostBuildError {
                    host: host.name.clone(),
                    source,
                })?))
            }
        };
        let name = host.name.clone();
        Ok(HostBackend { name, kind })
    };
    settings.iter().map(backend).collect()
}

impl HostBackend {
    /// The host's name in the node's configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the host stands. What goes wrong is not knowing, with a reason.
    pub async fn look(&self) -> HostSeen {
        match &self.kind {
            Kind::Script(script) => script.look().await,
            Kind::Vcenter(vcenter) => vcenter.look().await,
        }
    }

    /// Has it step aside, within the limit of its configuration.
    pub async fn enter(&self) -> Result<(), ActError> {
        match &self.kind {
            Kind::Script(script) => script.enter().await,
            Kind::Vcenter(vcenter) => vcenter.enter().await,
        }
    }

    /// Gives it back; what had it step aside and is still under way is ended first.
    pub async fn leave(&self) -> Result<(), ActError> {
        match &self.kind {
            Kind::Script(script) => script.leave().await,
            Kind::Vcenter(vcenter) => vcenter.leave().await,
        }
    }
}
