//! The attempt machine: one device going through one campaign step, as a function of facts and time.
//!
//! Pure: no clock, file, socket or thread. A shell observes the device, hands the facts to [`Attempt`], and carries out
//! the single next step it answers with. The device's own state, read back, decides; a task's word never does.
//!
//! Invariants: nothing is written before the preflight passed; the running and the saved slot are never written; every
//! act is journalled before it is asked for; every attempt ends in a terminal state within its deadline; a host is entered only
//! after a record says so, and the record goes only after the host was seen back.

mod attempt;
mod boot;
mod cluster;
mod env_block;
mod fw_env_config;
mod goal;
mod host;
pub mod launch;
mod observed;
mod preflight;
mod record;
mod step;
mod uboot_boot;
mod uboot_env;
mod watch;

pub use attempt::Attempt;
pub use boot::{Boot, BootEnv, BootEnvError, BootVariables, Slot, SlotContent, boot};
pub use cluster::{ClusterLimits, ClusterSeen, OtherHost, may_step_aside_alone};
pub use env_block::{ENV_BLOCK_BYTES, EnvBlock, EnvBlockError};
pub use fw_env_config::{EnvCopy, FwEnvConfigError, parse_fw_env_config};
pub use goal::{Goal, Image};
pub use host::{Host, HostInput, HostOutput, HostRecord, HostRecordError, HostSeen, HostState, HostStep};
pub use observed::{Observed, Seen, SlotsSeen, Staged, TaskSeen, TaskState};
pub use record::{AttemptRecord, RecordError};
pub use step::{ActError, Input, Outcome, Output, Report, Rung, Step};
pub use uboot_boot::UbootStart;
pub use uboot_env::{UBOOT_ENV_BYTES_MAX, UBOOT_ENV_BYTES_MIN, UbootEnv, UbootEnvError};
