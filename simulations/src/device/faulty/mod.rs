//! BMCs that misbehave as real ones have been reported to: a catalogue of named faults, each with the report it comes from
//! and the way an attempt on such a device must end.
//!
//! What a fault does to the device stands in [`conduct`]; what it does to the words on the wire is the lab's.

mod catalogue;
mod conduct;
#[cfg(test)]
mod tests;

use firmesh_protocol::report::FailureClass;
use serde::{Deserialize, Serialize};

pub use catalogue::CATALOGUE;
pub(crate) use conduct::Conduct;
pub use conduct::{Refused, Request, Told, Trouble};

/// One named way to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the catalogue says what each does")]
pub enum Fault {
    CompletedButUnchanged,
    CompletedWithCriticalStatus,
    StallsOnce,
    StallsForEver,
    TaskNeverSaysCompleted,
    TaskVanishesWhenDone,
    TaskVanishesForAMoment,
    TaskIsDeletedByAnother,
    TaskIsLostByItsOwnRestart,
    NoTaskAtAll,
    DoneBeforeTheFirstLook,
    RefusesAndBeginsNevertheless,
    FirstUploadBreaks,
    LicenceMissing,
    SignatureRefused,
    ClockFarBehind,
    BusyWithAnotherUpdate,
    AnotherUpdateWaits,
    SessionsExhausted,
    GatewayTimeouts,
    WaitsForARestart,
    InstallsLongAfterTheRestart,
    NeedsAColdRestart,
    NeedsAnAcCycle,
    NeedsAnAcCycleAndHasNone,
    RestartIgnored,
    RestartRefused,
    EveryRestartRefused,
    RestartBeginsLate,
    StaysOffAfterAGracefulRestart,
    ConnectionBreaksAtRestart,
    RestartsItself,
    RestartsBeforeItSaysCompleted,
    AnswersLongBeforeItWorks,
    FirstAnswersAreErrors,
    BlipsWhileInstalling,
    SlowRestart,
    SilentForAQuarterOfAnHour,
    NeverReady,
    NeverBack,
    CredentialsGone,
    VersionMissingForAMinute,
    VersionGone,
    VersionInOtherWords,
    RestartTimeNeverChanges,
    FallsBackAfterAMinute,
    SessionsForgotten,
    ServerErrorsAtTimes,
    HtmlErrorPages,
    NullsForListsAndNumbers,
    NoLocation,
    LocationElsewhere,
    TaskAnswersWithoutABody,
    PushUriOnly,
    TransferProtocolRequired,
    HttpsPullRefused,
    IfMatchRefused,
    ApplyTimeRefused,
    InventoryRenamed,
}

/// Where a fault shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// In what the device does: met in virtual time and over HTTPS.
    Device,
    /// In its answers alone: met over HTTPS.
    Http,
}

/// How an attempt on such a device must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The device runs the wanted version and says so.
    Updated,
    /// The attempt fails.
    Fails {
        /// In which way.
        class: FailureClass,
        /// What the reason must say.
        says: &'static str,
    },
}

/// What is known of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name.
    pub fault: Fault,
    /// What such a BMC does.
    pub what: &'static str,
    /// The repository of the public report.
    pub repository: &'static str,
    /// The number of the issue or pull request there.
    pub thread: u32,
    /// Where it shows.
    pub layer: Layer,
    /// The component that is updated: `bios`, or `bmc` where the manager itself restarts.
    pub component: &'static str,
    /// How an attempt on it must end.
    pub end: End,
}

impl Entry {
    /// Where the report can be read. The number may be an issue's or a pull request's; the site knows.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://github.com/{}/issues/{}", self.repository, self.thread)
    }
}

impl Fault {
    /// What is known of it.
    #[must_use]
    pub fn entry(self) -> &'static Entry {
        let found = CATALOGUE.iter().find(|entry| entry.fault == self);
        found.expect("a test sees to it that every fault has an entry")
    }

    /// Its name, as configurations write it.
    #[must_use]
    pub fn name(self) -> String {
        let mut name = String::new();
        for c in format!("{self:?}").chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }
}
