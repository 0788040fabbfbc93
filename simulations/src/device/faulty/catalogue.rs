//! The catalogue, as data. Every report was read before it was entered here.

use firmesh_protocol::report::FailureClass::{Boot, Install, Quarantine, Timeout, Unreachable};

use super::{
    End::{self, Updated},
    Entry,
    Fault::{self, *},
    Layer,
};

const fn device(
    fault: Fault,
    component: &'static str,
    what: &'static str,
    (repository, thread): (&'static str, u32),
    end: End,
) -> Entry {
    Entry {
        fault,
        what,
        repository,
        thread,
        layer: Layer::Device,
        component,
        end,
    }
}

const fn http(fault: Fault, what: &'static str, report: (&'static str, u32), end: End) -> Entry {
    let entry = device(fault, "bmc", what, report, end);
    Entry {
        layer: Layer::Http,
        ..entry
    }
}

const fn fails(class: firmesh_protocol::report::FailureClass, says: &'static str) -> End {
    End::Fails { class, says }
}

const IDRAC: &str = "dell/iDRAC-Redfish-Scripting";
const METAL_OPERATOR: &str = "ironcore-dev/metal-operator";
const FWUPD: &str = "fwupd/fwupd";
const XCAT: &str = "xcat2/xcat-core";
const BMCWEB: &str = "openbmc/bmcweb";
const CODE_MGMT: &str = "openbmc/phosphor-bmc-code-mgmt";
const ANSIBLE: &str = "ansible-collections/community.general";

/// Every fault that is known.
#[rustfmt::skip]
pub const CATALOGUE: &[Entry] = &[
    device(CompletedButUnchanged, "bios", "The task says Completed, and nothing was installed.",
        ("Mellanox/dpu-update", 95), fails(Boot, "says it completed, yet the device runs 1.0.0")),
    device(CompletedWithCriticalStatus, "bios", "The task is Completed at 100 %, and its status is Critical: it failed.",
        (METAL_OPERATOR, 453), fails(Install, "made no progress")),
    device(StallsOnce, "bios", "The task makes no progress until the BMC is reset; the next one works.",
        (METAL_OPERATOR, 453), Updated),
    device(StallsForEver, "bios", "The task makes no progress, whatever is done.",
        (FWUPD, 7593), fails(Timeout, "stalled at 40 %, twice")),
    device(TaskNeverSaysCompleted, "bmc", "The new version runs, and the task is Running for ever.",
        ("openbmc/openbmc-test-automation", 2229), Updated),
    device(TaskVanishesWhenDone, "bios", "The task answers 404 as soon as it is done.",
        (METAL_OPERATOR, 617), Updated),
    device(TaskVanishesForAMoment, "bios", "In the middle of the update the task is not found for some seconds.",
        (XCAT, 4148), Updated),
    device(TaskIsDeletedByAnother, "bios", "Somebody deletes the task: nothing is installed, and it answers 404.",
        (FWUPD, 6879), fails(Boot, "the update task vanished")),
    device(TaskIsLostByItsOwnRestart, "bmc", "The BMC restarts itself into the new version and has forgotten its tasks.",
        ("ibm-openbmc/dev", 3197), Updated),
    device(NoTaskAtAll, "bmc", "The upload is answered with success and no task; there is no list of tasks either.",
        (BMCWEB, 75), Updated),
    device(DoneBeforeTheFirstLook, "bios", "The update is over before anybody can look, and its answer is lost.",
        (IDRAC, 375), Updated),
    device(RefusesAndBeginsNevertheless, "bios", "The request is answered with 503, and the update begins; the task shows seconds later.",
        (CODE_MGMT, 10), Updated),
    device(FirstUploadBreaks, "bmc", "The first upload breaks off without a task, the next one works.",
        ("Intel-BMC/openbmc", 42), Updated),
    device(LicenceMissing, "bios", "Updates are answered with 403 for want of a licence.",
        ("Dasharo/dasharo-issues", 327), fails(Install, "Not licensed")),
    device(SignatureRefused, "bmc", "The task fails: the package's signature cannot be verified.",
        (IDRAC, 118), fails(Install, "Unable to verify Update Package signature")),
    device(ClockFarBehind, "bmc", "The clock is twelve hours behind: valid certificates are not valid yet.",
        ("sonic-net/sonic-mgmt", 27926), fails(Install, "s behind the node's")),
    device(BusyWithAnotherUpdate, "bios", "Another update is at work and does not end.",
        (IDRAC, 70), fails(Timeout, "busy with another update; nothing was written")),
    device(AnotherUpdateWaits, "bios", "Another update waits for a restart, and its job cannot be cleared.",
        ("quadsproject/badfish", 30), fails(Timeout, "delete its task; nothing was written")),
    device(SessionsExhausted, "bmc", "No more sessions: every login is answered with 503.",
        ("stmcginnis/gofish", 75), fails(Unreachable, "maximum number of user sessions")),
    device(GatewayTimeouts, "bmc", "Everything is answered with 504 and a page in HTML, until somebody resets it otherwise.",
        (METAL_OPERATOR, 448), fails(Unreachable, "504")),
    device(WaitsForARestart, "bios", "The job is scheduled: it installs at the next restart, which restarts once more.",
        (IDRAC, 166), Updated),
    device(InstallsLongAfterTheRestart, "bios", "A scheduled job installs after the restart for longer than any restart takes.",
        (IDRAC, 32), Updated),
    device(NeedsAColdRestart, "bios", "The job is completed, and only a power cycle brings the version up.",
        (IDRAC, 266), Updated),
    device(NeedsAnAcCycle, "bios", "Only taking the input power away brings the version up; somebody has allowed that.",
        ("facebook/OpenBIC", 1316), Updated),
    device(NeedsAnAcCycleAndHasNone, "bios", "Only taking the input power away brings the version up, and nobody can from here.",
        (FWUPD, 10803), fails(Boot, "need their input power taken away")),
    device(RestartIgnored, "bios", "A restart is accepted, and nothing happens; a power cycle works.",
        ("redhat-performance/jetlag", 245), Updated),
    device(RestartRefused, "bios", "A restart is refused as an unknown parameter; a power cycle works.",
        ("HewlettPackard/PowerShell-ProLiant-SDK", 40), Updated),
    device(EveryRestartRefused, "bios", "No kind of restart is allowed.",
        ("ibm-openbmc/bmcweb", 157), fails(Quarantine, "the next restart may bring up 1.1.0")),
    device(RestartBeginsLate, "bmc", "A restart is answered as done long before it begins.",
        ("ibm-openbmc/dev", 3595), Updated),
    device(StaysOffAfterAGracefulRestart, "bios", "A graceful restart leaves the host switched off.",
        ("openbmc/phosphor-state-manager", 12), Updated),
    device(ConnectionBreaksAtRestart, "bmc", "It goes away before it has answered the restart.",
        ("dell-asm/dell-idrac", 115), Updated),
    device(RestartsItself, "bmc", "It restarts by itself as soon as the update is done.",
        (FWUPD, 6536), Updated),
    device(RestartsBeforeItSaysCompleted, "bmc", "It restarts while the task still says Running; the task is interrupted.",
        (IDRAC, 231), Updated),
    device(AnswersLongBeforeItWorks, "bmc", "It answers pings a minute and a half before its services work.",
        ("sonic-net/sonic-platform-common", 707), Updated),
    device(FirstAnswersAreErrors, "bmc", "After its restart it works, answers 503, and works again, several times.",
        (XCAT, 3310), Updated),
    device(BlipsWhileInstalling, "bios", "Now and then one answer is an error.",
        (BMCWEB, 206), Updated),
    device(SlowRestart, "bmc", "It takes 200 s to be back where others take 120 s.",
        (XCAT, 2693), Updated),
    device(SilentForAQuarterOfAnHour, "bmc", "It writes the image at its restart, and is silent for 15 minutes.",
        ("openbmc/openbmc", 293), fails(Unreachable, "did not come back within 480 s")),
    device(NeverReady, "bmc", "It answers after its restart, and never says that it is ready.",
        ("openbmc/openbmc", 3544), fails(Quarantine, "has not finished starting")),
    device(NeverBack, "bmc", "It does not come back.",
        (XCAT, 3374), fails(Unreachable, "did not come back")),
    device(CredentialsGone, "bmc", "The update has set its accounts back: the password is refused.",
        ("RackHD/on-tasks", 343), fails(Unreachable, "refuses the user name or the password")),
    device(VersionMissingForAMinute, "bmc", "While it starts, parts of its inventory are not there.",
        (XCAT, 3965), Updated),
    device(VersionGone, "bmc", "The new version's inventory names the component otherwise: no version is found.",
        ("sonic-net/sonic-buildimage", 29631), fails(Quarantine, "runs an unknown version")),
    device(VersionInOtherWords, "bios", "It writes the version in another format than its maker.",
        (FWUPD, 1156), fails(Quarantine, "runs 1.1.0.0")),
    device(RestartTimeNeverChanges, "bios", "The time of the last restart does not change when the host restarts.",
        ("ibm-openbmc/dev", 3429), Updated),
    device(FallsBackAfterAMinute, "bmc", "The new version runs for half a minute, then the BMC boots its alternate image.",
        ("openbmc/openbmc", 3094), fails(Boot, "runs 1.0.0")),
    http(SessionsForgotten, "A restart of the BMC ends every session.", (BMCWEB, 158), Updated),
    http(ServerErrorsAtTimes, "Every seventh answer is a 500.", ("Intel-BMC/openbmc", 45), Updated),
    http(HtmlErrorPages, "While it starts, it answers with pages in HTML.", ("influxdata/telegraf", 19295), Updated),
    http(NullsForListsAndNumbers, "Lists and numbers without a value are null.", ("bb-Ricardo/check_redfish", 86), Updated),
    http(NoLocation, "The task stands in the body of the answer only; there is no Location.", ("stmcginnis/gofish", 495), Updated),
    http(LocationElsewhere, "The task's monitor has another address than the specification's.", (BMCWEB, 272), Updated),
    http(TaskAnswersWithoutABody, "A running task is a 202 without a body.", ("DMTF/Redfish-Service-Validator", 384), Updated),
    http(PushUriOnly, "No action, no multipart: only HttpPushUri.", (ANSIBLE, 6471), Updated),
    http(TransferProtocolRequired, "SimpleUpdate without TransferProtocol is a 400.", ("DMTF/Redfish-Tacklebox", 65), Updated),
    http(HttpsPullRefused, "SimpleUpdate takes no HTTPS; a push works.", (IDRAC, 172), Updated),
    http(IfMatchRefused, "Actions with If-Match are answered with 412.", (METAL_OPERATOR, 1015), Updated),
    http(ApplyTimeRefused, "Requests with an apply time are answered with 400.", (ANSIBLE, 9114), Updated),
    http(InventoryRenamed, "The new version's inventory entry has another name, which contains the old one.",
        ("sonic-net/sonic-buildimage", 29631), Updated),
];
