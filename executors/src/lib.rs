//! Executors: what acts on devices. One loop for all kinds of device, one backend for each.
//!
//! The loop observes, asks the attempt machine of `firmesh-executors-core` for the next single step, journals the intent,
//! acts and reads back. Backends carry out one act per call and decide nothing.

pub mod ab_slot;
mod backend;
mod certificate;
pub mod command;
mod config;
mod credentials;
pub mod ddi;
mod examine;
pub mod host;
mod image;
mod journal;
pub mod node_self;
pub mod rauc;
pub mod redfish;
mod runner;
pub mod swupdate;
mod tool;
mod trace;

pub use backend::{Backend, BuildError, DeviceBackend, build, build_with, replay};
pub use config::{
    AbSlotConfig, AbSlotSettings, DeviceConfig, DeviceConfigError, DeviceSettings, ExecutorConfig, ExecutorSettings,
    RedfishConfig, RedfishSettings, Secret, TranscriptConfig, TranscriptSettings, UpdateMethod,
};
pub use credentials::{
    Credentials, CredentialsError, ProfileConfig, Profiles, ProfilesConfig, ProfilesError, Resolved, SecretError,
    SecretSource, Subject, Unseal,
};
pub use firmesh_executors_core::{
    ActError, AttemptRecord, Goal, Host, HostInput, HostOutput, HostRecord, HostSeen, HostState, HostStep, Image,
    Observed, Outcome, Report, Rung, Seen, Slot,
};
pub use image::{ImageError, ImageReader, ImageSource};
pub use journal::{Journal, JournalError, MemoryJournal};
pub use runner::{Ended, News, RunError, Start, run_attempt};
pub use trace::traced;
