//! What is measured of a fleet by the names that deployment managers have for it (`deployments.created.total` and the others), beside
//! the coordinator's own metrics: out of events and reports that are durable, and of the devices as they are.
//!
//! Labels are bounded: a component, and the versions that most devices run. What was counted begins at 0 with every start.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use firmesh_protocol::{
    api::{CampaignState, CampaignView, Holding},
    ids::{ArtifactId, CampaignId, Component, DeviceId},
    report::{AttemptReport, AttemptState, PermitKind},
    time::{Timestamp, WallTime},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::kinds::Kinds;

/// Attempts whose begin is remembered: more than may be in flight. The time of any beyond is not measured.
const RUNNING_MAX: usize = 200_000;

/// Versions that are told by name, of each component; all others together are `other`.
const VERSIONS_MAX: usize = 20;

/// Components that are told by name.
const COMPONENTS_MAX: usize = 20;

/// From a second to a day.
const SECONDS: [f64; 12] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 7_200.0, 86_400.0,
];

/// For campaigns: to four weeks.
const LONG_SECONDS: [f64; 9] = [
    60.0,
    300.0,
    900.0,
    3_600.0,
    14_400.0,
    43_200.0,
    86_400.0,
    604_800.0,
    2_419_200.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    component: String,
    version: String,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy)]
struct Running {
    began: WallTime,
    /// When the device began to write.
    installing: Option<WallTime>,
}

#[derive(Debug, Default)]
struct Known {
    campaigns: BTreeMap<CampaignId, (CampaignState, Option<Timestamp>)>,
    running: BTreeMap<(CampaignId, DeviceId, PermitKind), Running>,
}

/// The metrics, and what has to be remembered for them.
#[derive(Debug)]
pub(crate) struct Measures {
    created: Counter,
    completed: Counter,
    failed: Counter,
    updated: Counter,
    devices_failed: Counter,
    rollbacks: Counter,
    downloads: Counter,
    verifications_failed: Counter,
    deployment: Histogram,
    download: Histogram,
    install: Histogram,
    update: Histogram,
    active: Gauge,
    online: Gauge,
    offline: Gauge,
    versions_active: Gauge,
    versions: Family<VersionLabel, Gauge>,
    known: Mutex<Known>,
}

impl Measures {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let created = counter("deployments_created", "Campaigns that were published");
        let completed = counter("deployments_completed", "Campaigns that completed");
        let failed = counter(
            "deployments_failed",
            "Campaigns that failed, or whose devices went back",
        );
        let updated = counter("devices_updated", "Updates of devices that succeeded");
        let devices_failed = counter("devices_failed", "Updates of devices that did not succeed");
        let rollbacks = counter("rollbacks_triggered", "Campaigns that began to send devices back");
        let downloads = counter("firmware_downloads", "Images that became whole at a node");
        let verifications_failed = counter(
            "firmware_verifications_failed",
            "Slices and files that did not verify at a node",
        );
        let mut histogram = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::new(buckets.iter().copied());
            registry.register(name, help, histogram.clone());
            histogram
        };
        let deployment = histogram(
            "deployment_duration_seconds",
            "From the start of a campaign to its end",
            &LONG_SECONDS,
        );
        let download = histogram(
            "firmware_download_duration_seconds",
            "From a node's first piece of an image to its last, as its heartbeats tell",
            &SECONDS,
        );
        let install = histogram(
            "firmware_install_duration_seconds",
            "From the begin of an installation to the restart of its device",
            &SECONDS,
        );
        let update = histogram(
            "device_update_duration_seconds",
            "From the start of a device's update to its end",
            &SECONDS,
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let active = gauge("deployments_active", "Campaigns that are under way or paused");
        let online = gauge("devices_online", "Devices that answer to a node that is heard of");
        let offline = gauge("devices_offline", "Devices that do not");
        let versions_active = gauge(
            "firmware_versions_active",
            "Different versions that devices run, counted by vendor, model and component",
        );
        let versions = Family::<VersionLabel, Gauge>::default();
        registry.register(
            "firmware_version_devices",
            "Devices by what they run; of each component the versions that most devices run",
            versions.clone(),
        );
        Self {
            created,
            completed,
            failed,
            updated,
            devices_failed,
            rollbacks,
            downloads,
            verifications_failed,
            deployment,
            download,
            install,
            update,
            active,
            online,
            offline,
            versions_active,
            versions,
            known: Mutex::default(),
        }
    }

    /// Campaigns that were there before this start: they are not new.
    pub(crate) fn know<'a>(&self, campaigns: impl Iterator<Item = (&'a CampaignId, CampaignState)>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .campaigns
            .extend(campaigns.map(|(id, state)| (id.clone(), (state, None))));
    }

    /// A campaign as it is now.
    pub(crate) fn campaign(&self, view: &CampaignView, now: Timestamp) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.campaigns.get(&view.id).copied();
        if before.is_none() {
            self.created.inc();
        }
        let (state, mut since) = before.unwrap_or((CampaignState::Scheduled, None));
        if state == view.state {
            known.campaigns.insert(view.id.clone(), (state, since));
            return;
        }
        match view.state {
            // One that goes on after a pause has begun before.
            CampaignState::Active if state == CampaignState::Scheduled => since = Some(now),
            CampaignState::RollingBack => {
                self.rollbacks.inc();
            }
            CampaignState::Completed => {
                self.completed.inc();
            }
            CampaignState::Failed | CampaignState::RolledBack => {
                self.failed.inc();
            }
            _ => {}
        }
        if view.state.is_terminal() {
            // One that began before this start is not measured: its clock was another process's.
            if let Some(since) = since.take() {
                self.deployment.observe(now.since(since).as_secs_f64());
            }
            known.running.retain(|key, _| key.0 != view.id);
        }
        known.campaigns.insert(view.id.clone(), (view.state, since));
    }

    /// What a node reports of an attempt. Times are its own.
    pub(crate) fn report(&self, report: &AttemptReport) {
        let key = (report.campaign.clone(), report.device.clone(), report.kind);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let has_begun = matches!(
            report.state,
            AttemptState::Staged | AttemptState::Installing | AttemptState::Rebooting | AttemptState::Validating
        );
        if has_begun && known.running.len() < RUNNING_MAX {
            let running = Running {
                began: report.at,
                installing: None,
            };
            known.running.entry(key.clone()).or_insert(running);
        }
        let Some(running) = known.running.get_mut(&key) else {
            if report.state.is_terminal() {
                self.ended(report);
            }
            return;
        };
        if report.state == AttemptState::Installing {
            running.installing.get_or_insert(report.at);
        } else if report.state != AttemptState::Staged
            && let Some(since) = running.installing.take()
        {
            self.install.observe(seconds(since, report.at));
        }
        if report.state.is_terminal() {
            let began = running.began;
            known.running.remove(&key);
            if report.kind == PermitKind::Update {
                self.update.observe(seconds(began, report.at));
            }
            self.ended(report);
        }
    }

    fn ended(&self, report: &AttemptReport) {
        match (report.kind, report.state) {
            (PermitKind::Update, AttemptState::Success) => self.updated.inc(),
            // Nothing was to be done, or nothing was done.
            (PermitKind::Update, AttemptState::Skipped | AttemptState::Cancelled) | (PermitKind::Rollback, _) => 0,
            (PermitKind::Update, _) => self.devices_failed.inc(),
        };
    }

    /// What did not verify at nodes.
    pub(crate) fn refused(&self, count: u64) {
        self.verifications_failed.inc_by(count);
    }

    /// What a node held at its last heartbeat, and holds at this one. `begun` has when it began to collect what is not whole.
    pub(crate) fn holdings(
        &self,
        begun: &mut BTreeMap<ArtifactId, Timestamp>,
        before: &[Holding],
        now_held: &[Holding],
        (last, now): (Timestamp, Timestamp),
    ) {
        let is_whole = |held: &Holding| held.pieces == held.pieces_total;
        let were_whole: BTreeSet<_> = before
            .iter()
            .filter(|held| is_whole(held))
            .map(|held| held.artifact)
            .collect();
        let held: BTreeSet<_> = now_held.iter().map(|held| held.artifact).collect();
        begun.retain(|artifact, _| held.contains(artifact));
        for held in now_held {
            if !is_whole(held) {
                begun.entry(held.artifact).or_insert(last);
            } else {
                let since = begun.remove(&held.artifact).unwrap_or(last);
                if !were_whole.contains(&held.artifact) {
                    self.downloads.inc();
                    self.download.observe(now.since(since).as_secs_f64());
                }
            }
        }
    }

    /// The devices as they are.
    pub(crate) fn census(&self, census: &Census) {
        let count = |gauge: &Gauge, count: usize| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        let (mut online, mut all, mut versions) = (0, 0, BTreeSet::new());
        for (kind, devices) in census.iter() {
            all += devices as usize;
            if let Some(version) = kind.version {
                online += if kind.other { devices as usize } else { 0 };
                versions.insert((kind.vendor, kind.model, kind.component, version));
            }
        }
        count(&self.online, online);
        count(&self.offline, all - online);
        count(&self.versions_active, versions.len());
        self.versions.clear();
        for ((component, version), devices) in labelled(census) {
            count(
                &self.versions.get_or_create(&VersionLabel { component, version }),
                devices,
            );
        }
    }

    pub(crate) fn active(&self, count: usize) {
        self.active.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// Devices, counted, with whether their node is heard of.
pub(crate) type Census = Kinds<(), bool>;

/// Devices by component and version: the most common by name.
fn labelled(census: &Census) -> BTreeMap<(String, String), usize> {
    let mut by_component: BTreeMap<&Component, BTreeMap<&str, usize>> = BTreeMap::new();
    for (kind, count) in census.iter() {
        if let Some(version) = kind.version {
            let versions = by_component.entry(kind.component).or_default();
            *versions.entry(version).or_default() += count as usize;
        }
    }
    let mut components: Vec<_> = by_component.into_iter().collect();
    components.sort_by_key(|(_, versions)| Reverse(versions.values().sum::<usize>()));
    let mut labelled = BTreeMap::new();
    for (at, (component, versions)) in components.into_iter().enumerate() {
        let mut versions: Vec<_> = versions.into_iter().collect();
        versions.sort_by_key(|(_, count)| Reverse(*count));
        for (rank, (version, count)) in versions.into_iter().enumerate() {
            let component = if at < COMPONENTS_MAX {
                component.as_str()
            } else {
                "other"
            };
            let is_named = rank < VERSIONS_MAX && at < COMPONENTS_MAX;
            let version = if is_named { version } else { "other" };
            *labelled.entry((component.to_owned(), version.to_owned())).or_default() += count;
        }
    }
    labelled
}

fn seconds(from: WallTime, to: WallTime) -> f64 {
    let seconds = to.unix_seconds().saturating_sub(from.unix_seconds()).max(0);
    Duration::from_secs(seconds.cast_unsigned()).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::{
        api::{GateVerdict, PossessionView, WaveView},
        ids::Sha256,
        report::{DeviceFacts, FailureClass},
    };
    use prometheus_client::encoding::text::encode;

    use super::*;

    struct Measured(Registry, Measures);

    impl Measured {
        fn new() -> Self {
            let mut registry = Registry::default();
            let measures = Measures::register(&mut registry);
            Self(registry, measures)
        }

        fn value(&self, series: &str) -> Option<f64> {
            let mut text = String::new();
            encode(&mut text, &self.0).unwrap();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            line.map(|value| value.parse().unwrap())
        }
    }

    fn after(seconds: u64) -> Timestamp {
        Timestamp::after_start(Duration::from_secs(seconds))
    }

    fn view(id: &str, state: CampaignState) -> CampaignView {
        CampaignView {
            id: id.parse().unwrap(),
            state,
            wave: 0,
            waves: vec![WaveView {
                wave: 0,
                devices: 1,
                states: BTreeMap::new(),
                open: true,
                gate: GateVerdict::Unknown,
            }],
            states: BTreeMap::new(),
            possession: PossessionView::default(),
            held: Vec::new(),
            provisioning: None,
            reason: String::new(),
        }
    }

    fn report(device: &str, state: AttemptState, at: i64) -> AttemptReport {
        AttemptReport {
            campaign: "spring".parse().unwrap(),
            manifest_sha256: Sha256::of(b""),
            wave: 0,
            kind: PermitKind::Update,
            permit_sequence: 1,
            attempt: 1,
            device: device.parse().unwrap(),
            node: "n1".parse().unwrap(),
            sequence: 1,
            state,
            reason: String::new(),
            version: None,
            failure: (state == AttemptState::Failed).then_some(FailureClass::Boot),
            health: None,
            at: WallTime::from_unix_seconds(at),
        }
    }

    #[test]
    fn a_campaign_is_counted_once_and_measured_from_its_start_to_its_end() {
        use CampaignState::{Active, Completed, Paused, RolledBack, RollingBack, Scheduled};
        let measured = Measured::new();
        let old: CampaignId = "old".parse().unwrap();
        measured.1.know([(&old, Active)].into_iter());
        for (state, at) in [
            (Scheduled, 0),
            (Active, 100),
            (Active, 130),
            (Paused, 150),
            (Active, 180),
            (Completed, 400),
            (Completed, 500),
        ] {
            measured.1.campaign(&view("spring", state), after(at));
        }
        for (state, at) in [(RollingBack, 10), (RolledBack, 20)] {
            measured.1.campaign(&view("old", state), after(at));
        }
        for (series, value) in [
            ("deployments_created_total", 1.0),
            ("deployments_completed_total", 1.0),
            ("deployments_failed_total", 1.0),
            ("rollbacks_triggered_total", 1.0),
            ("deployment_duration_seconds_count", 1.0),
            ("deployment_duration_seconds_sum", 300.0),
        ] {
            assert_eq!(measured.value(series), Some(value), "{series}");
        }
    }

    #[test]
    fn an_update_is_measured_by_its_nodes_clock() {
        let measured = Measured::new();
        for (device, state, at) in [
            ("d1", AttemptState::Installing, 100),
            ("d1", AttemptState::Rebooting, 160),
            ("d1", AttemptState::Validating, 200),
            ("d1", AttemptState::Success, 220),
            ("d2", AttemptState::WaitingWindow, 100),
            ("d2", AttemptState::Failed, 150),
            ("d3", AttemptState::Skipped, 100),
        ] {
            measured.1.report(&report(device, state, at));
        }
        for (series, value) in [
            ("devices_updated_total", 1.0),
            ("devices_failed_total", 1.0),
            ("firmware_install_duration_seconds_sum", 60.0),
            ("device_update_duration_seconds_sum", 120.0),
            ("device_update_duration_seconds_count", 1.0),
        ] {
            assert_eq!(measured.value(series), Some(value), "{series}");
        }
        assert!(measured.1.known.lock().unwrap().running.is_empty());
    }

    #[test]
    fn an_image_that_became_whole_is_a_download_and_one_that_was_is_none() {
        let measured = Measured::new();
        let held = |name: &[u8], pieces| Holding {
            artifact: ArtifactId::of(name),
            pieces,
            pieces_total: 4,
        };
        let mut collecting = BTreeMap::new();
        let mut before = vec![held(b"old", 4)];
        for (now, at) in [
            (vec![held(b"old", 4), held(b"new", 1)], 10),
            (vec![held(b"old", 4), held(b"new", 3)], 15),
            (vec![held(b"old", 4), held(b"new", 4)], 20),
            (vec![held(b"old", 4), held(b"new", 4)], 25),
        ] {
            measured
                .1
                .holdings(&mut collecting, &before, &now, (after(at - 5), after(at)));
            before = now;
        }
        assert_eq!(measured.value("firmware_downloads_total"), Some(1.0));
        assert_eq!(measured.value("firmware_download_duration_seconds_sum"), Some(15.0));
        assert!(collecting.is_empty());
    }

    #[test]
    fn versions_are_bounded_and_none_is_lost() {
        let measured = Measured::new();
        let mut census = Census::default();
        for number in 0..100 {
            let facts = DeviceFacts {
                device: format!("d{number}").parse().unwrap(),
                vendor: "Acme".to_owned(),
                model: "R1".to_owned(),
                component: "bmc".parse().unwrap(),
                version: Some(format!("1.{}", number % 50)),
                executor: "redfish".to_owned(),
                labels: firmesh_protocol::labels::Labels::default(),
            };
            census.add(&(), (&facts).into(), number != 7);
        }
        measured.1.census(&census);
        assert_eq!(measured.value("devices_online"), Some(99.0));
        assert_eq!(measured.value("devices_offline"), Some(1.0));
        assert_eq!(measured.value("firmware_versions_active"), Some(50.0));
        let labelled = labelled(&census);
        assert_eq!(
            (labelled.len(), labelled.values().sum::<usize>()),
            (VERSIONS_MAX + 1, 100)
        );
        let other = "firmware_version_devices{component=\"bmc\",version=\"other\"}";
        assert_eq!(measured.value(other), Some(60.0));
    }
}
