//! The coordinator's decisions: who gets what and when ([`plan`]), and who may start now ([`Engine`]).
//!
//! Pure: facts and the time go in, instructions come out. The shell around it owns the database, the keys and the sockets.

mod approval;
mod attempts;
mod campaign;
mod caps;
pub mod check;
mod close;
mod diff;
mod domains;
mod engine;
mod explain;
mod filter;
mod fleet;
mod gates;
mod index;
mod input;
mod load;
mod overdue;
mod planner;
mod possession;
pub mod rehearse;
mod retries;
mod rollback;
mod seat;
mod servers;
mod turns;
mod units;
mod views;
mod webhooks;

pub use attempts::AttemptRecord;
pub use campaign::{CampaignRecord, RollbackRecord};
pub use caps::STARTS_MAX;
pub use close::Closing;
pub use diff::{Difference, Place, diff};
pub use engine::{Engine, EngineSettings};
pub use explain::Subject;
pub use filter::{Candidate, FILTER_BYTES_MAX, FILTER_DEPTH_MAX, Field, Filter, FilterError, Test};
pub use fleet::{Exclusion, Inventory, KnownDevice, rack_of};
pub use input::{Approval, Input, InputError, Loaded, Output, PermitOrder, Record, Rollback};
pub use planner::{Concerned, PlanError, SplitError, Standing, late, plan, split};
pub use possession::PossessionRecord;
pub use retries::{FailedAttempt, RetryRecord};
pub use servers::READ_AFTER;
pub use turns::{TURNS, TurnId, Turns};
pub use views::{Along, Latest};
pub use webhooks::{Question, WebhookAnswer, WebhookRecord};
