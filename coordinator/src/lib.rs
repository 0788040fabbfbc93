//! The coordinator: publishes what people have signed offline, plans, issues permits, collects reports, shows.
//!
//! It decides nothing about what may run where: that is signed with keys it does not have. The decisions it does make (who
//! may start now) are [`firmesh_coordinator_core`]'s; this crate owns the database, the sockets and the clock.

mod access;
mod approval;
mod archive;
mod audit;
pub mod authority;
mod baselines;
mod brakes;
pub mod ceremony;
mod change;
mod cluster;
mod collect;
mod config;
mod drafts;
mod enrolment;
mod events;
mod evidence;
mod files;
mod firmware;
mod fleet;
mod groups;
mod http;
mod identities;
mod kinds;
mod lock;
mod measures;
mod notify;
mod offline;
mod operations;
mod origin;
mod permits;
mod possession;
pub mod provenance;
mod publish;
mod reconcile;
mod records;
mod registrations;
mod replays;
mod rollback;
mod roster;
mod rows;
mod runtime;
mod server;
mod sources;
mod store;
mod sync;
mod telemetry;
mod term;
mod traces;
mod transcripts;
mod turns;
mod uploads;
mod vetting;
mod world;

pub use access::{
    AccessConfig, AccessError, AccessSettings, LdapConfig, LdapSearchConfig, LdapSetupError, MappingConfig, OidcConfig,
    OidcError, PolicyError,
};
pub use archive::RetentionConfig;
pub use audit::LogProblem;
pub use authority::AuthorityError;
pub use cluster::ClusterConfig;
pub use config::{
    Config, ConfigError, LogConfig, MetadataConfig, MetadataValidity, NodesConfig, OperatorsConfig, Overrides,
    PermitsConfig, ProvenanceConfig, Settings,
};
pub use files::{FilesConfig, S3Config};
pub use http::TlsError;
pub use notify::{
    CourierError, Destination, GateWebhook, GateWebhookConfig, MailTls, NoticeKind, NotificationConfig, SecretConfig,
    Severity, TargetConfig,
};
pub use offline::{ImportedTable, OfflineError, after_restore, back_up, import};
pub use server::{Addresses, RunError, run};
pub use sources::RepositoryConfig;
pub use store::{DatabaseConfig, StoreError};
pub use telemetry::{chain, start_logging};
pub use world::RestoreError;

/// What the end-to-end tests start is started here as well.
#[cfg(test)]
#[allow(dead_code, unreachable_pub, reason = "the end-to-end tests use all of it")]
#[path = "../../tests/src/packages.rs"]
mod packages;
#[cfg(test)]
#[allow(dead_code, unreachable_pub, reason = "the end-to-end tests use all of it")]
#[path = "../../tests/src/postgres.rs"]
mod postgres;

/// Version and commit.
#[must_use]
pub const fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("FIRMESH_COMMIT"), ")")
}
