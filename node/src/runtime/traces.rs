//! Traces of what this node does for a campaign: each device from the first word of the campaign to its end, and in it the
//! image's way here, its check, the installation, the restart and the look after it.
//!
//! Which trace a campaign belongs to is a hint: of the coordinator, or of the mesh where the coordinator does not reach. It is
//! not signed, so nothing is decided by it; it is bounded, and its loss costs a picture.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use firmesh_executors::{Goal, News};
use firmesh_protocol::{
    ids::{CampaignId, DeviceId},
    report::{AttemptState, PermitKind},
    trace::{TRACE_HINTS_MAX, TraceContext, TraceHint},
};
use firmesh_telemetry::{Kind, Span, Tracer, Value};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::{Runtime, artifacts::Tracked};
use crate::{
    files::write_durably,
    mesh::{GOSSIP_BYTES_MAX, MeshCommand, Topic},
};

/// The span of a device: everything this node does with it for a campaign.
const NOTIFY: &str = "device.notify";

type Key = (CampaignId, DeviceId, PermitKind);

/// What this node knows of traces.
#[derive(Debug)]
pub(super) struct Traces {
    tracer: Tracer,
    file: PathBuf,
    heard: BTreeMap<CampaignId, Heard>,
    courses: BTreeMap<Key, Course>,
    /// Devices whose span was sent: what is told of them again is no news.
    over: BTreeSet<Key>,
}

/// The trace of a campaign.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Heard {
    hint: TraceHint,
    /// When this node first heard of it, in milliseconds since 1970.
    since_ms: u64,
}

/// One device on its way.
#[derive(Debug)]
struct Course {
    context: TraceContext,
    parent: [u8; 8],
    began: SystemTime,
    /// What it is brought to, once it has been started.
    version: Option<String>,
    stage: Option<(&'static str, SystemTime)>,
}

impl Traces {
    /// Takes up what was heard before a restart.
    pub(super) fn open(tracer: Tracer, folder: &Path) -> Self {
        let file = folder.join("traces.json");
        let kept = match tracer.is_on() {
            true => load(&file),
            false => Vec::new(),
        };
        let heard = kept.into_iter().take(TRACE_HINTS_MAX);
        Self {
            heard: heard.map(|heard| (heard.hint.campaign.clone(), heard)).collect(),
            tracer,
            file,
            courses: BTreeMap::new(),
            over: BTreeSet::new(),
        }
    }

    pub(super) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Learns where campaigns belong, and answers what was new. What the coordinator says goes before what is known; what the
    /// mesh says does not.
    fn learn(&mut self, hints: &[TraceHint], is_from_mesh: bool) -> Vec<TraceHint> {
        let mut news = Vec::new();
        for hint in hints.iter().take(TRACE_HINTS_MAX) {
            let Some(context) = hint.context().filter(|context| context.sampled && self.tracer.is_on()) else {
                continue;
            };
            let known = self.heard.get(&hint.campaign).and_then(|heard| heard.hint.context());
            if known == Some(context) || (known.is_some() && is_from_mesh) {
                continue;
            }
            let heard = Heard {
                // As it is understood, and not as it was written.
                hint: TraceHint {
                    campaign: hint.campaign.clone(),
                    traceparent: context.to_string(),
                },
                since_ms: super::unix_ms(),
            };
            news.push(heard.hint.clone());
            self.heard.insert(hint.campaign.clone(), heard);
        }
        if news.is_empty() {
            return news;
        }
        while self.heard.len() > TRACE_HINTS_MAX {
            let oldest = self.heard.values().min_by_key(|heard| heard.since_ms);
            let Some(oldest) = oldest.map(|heard| heard.hint.campaign.clone()) else {
                break;
            };
            self.forget(&oldest);
        }
        let all: Vec<_> = self.heard.values().collect();
        let written = serde_json::to_vec(&all).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| write_durably(&self.file, &bytes, 0o600)) {
            warn!(%error, file = %self.file.display(), "after a restart this node will not know which traces it was in");
        }
        news
    }

    fn forget(&mut self, campaign: &CampaignId) {
        self.heard.remove(campaign);
        self.courses.retain(|key, _| key.0 != *campaign);
        self.over.retain(|key| key.0 != *campaign);
    }

    /// The course of a device, begun if this is the first that is heard of it.
    fn course(&mut self, key: &Key, permit: u64) -> Option<&mut Course> {
        if !self.courses.contains_key(key) {
            let heard = self.heard.get(&key.0)?;
            let parent = heard.hint.context()?;
            if !self.tracer.picks(&parent, key.1.as_str()) {
                return None;
            }
            let since = SystemTime::UNIX_EPOCH + Duration::from_millis(heard.since_ms);
            let is_first = key.2 == PermitKind::Update && !self.over.contains(key);
            let course = Course {
                context: parent.below(&[NOTIFY, key.1.as_str(), kind(key.2), &permit.to_string()]),
                parent: parent.span(),
                began: if is_first { since } else { SystemTime::now() },
                version: None,
                stage: None,
            };
            self.courses.insert(key.clone(), course);
        }
        self.courses.get_mut(key)
    }

    /// Where an attempt belongs, for whoever carries it out.
    pub(super) fn context(&self, goal: &Goal) -> Option<TraceContext> {
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        self.courses.get(&key).map(|course| course.context)
    }

    /// A device is about to be started: its image is here and was checked.
    pub(super) fn begin(&mut self, goal: &Goal, image: Option<&Tracked>) {
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let Some(course) = self.course(&key, goal.permit_sequence) else {
            return;
        };
        course.version = Some(goal.image.info.version.clone());
        let Some(image) = image else { return };
        let (since, times) = (course.began, image.times);
        let came = times.whole_ms.map(|whole| (at(times.wanted_ms), at(whole)));
        let checked = image.checked_ms.map(|(from, to)| (at(from), at(to)));
        let bytes = image.layout.length();
        self.past(
            &key,
            "firmware.download",
            since,
            came,
            vec![("firmesh.bytes", bytes.into())],
        );
        let what = "BLAKE3 tree, SHA-256 and the signatures over both";
        self.past(
            &key,
            "firmware.verify",
            since,
            checked,
            vec![("firmesh.checked", what.into())],
        );
    }

    /// Something that was done before the device could be started, maybe long before, and for others as well.
    fn past(
        &self,
        key: &Key,
        name: &'static str,
        since: SystemTime,
        times: Option<(SystemTime, SystemTime)>,
        mut attributes: Vec<(&'static str, Value)>,
    ) {
        let Some(course) = self.courses.get(key) else { return };
        let (from, to) = match times {
            Some((from, to)) if to >= since => (from.max(since), to),
            // It was here before this trace was: a span of weeks would hide the others.
            earlier => {
                attributes.push(("firmesh.was_there", true.into()));
                if let Some((from, to)) = earlier {
                    let took = to.duration_since(from).unwrap_or_default().as_millis();
                    attributes.push(("firmesh.took_ms", u64::try_from(took).unwrap_or(u64::MAX).into()));
                }
                (since, since)
            }
        };
        self.send_below(key, course, name, (from, to), attributes, None);
    }

    /// An attempt, or what stands in its way, is told of.
    pub(super) fn told(&mut self, news: &News) {
        if !self.tracer.is_on() {
            return;
        }
        let key = (news.campaign.clone(), news.device.clone(), news.kind);
        let now = SystemTime::now();
        let is_over = news.report.state.is_terminal();
        // Told again, because the coordinator does not seem to know.
        if is_over && !self.courses.contains_key(&key) && self.over.contains(&key) {
            return;
        }
        let Some(course) = self.course(&key, news.permit_sequence) else {
            return;
        };
        let stage = stage_of(news.report.state);
        let ended = course
            .stage
            .filter(|(name, _)| is_over || stage.is_some_and(|next| next != *name));
        if ended.is_some() || course.stage.is_none() {
            course.stage = stage.map(|name| (name, now));
        }
        let failed = (is_over && !news.report.state.is_success())
            .then(|| format!("{}: {}", news.report.state, news.report.reason));
        if let (Some((name, began)), Some(course)) = (ended, self.courses.get(&key)) {
            self.send_below(&key, course, name, (began, now), Vec::new(), failed.clone());
        }
        if !is_over {
            return;
        }
        let Some(course) = self.courses.remove(&key) else {
            return;
        };
        let mut attributes = self.attributes(&key, &course);
        attributes.push(("firmesh.state", news.report.state.as_str().into()));
        attributes.push(("firmesh.wave", u64::from(news.wave).into()));
        if let Some(version) = &news.report.version {
            attributes.push(("firmesh.version.read_back", version.as_str().into()));
        }
        self.tracer.send(Span {
            context: course.context,
            parent: Some(course.parent),
            parent_is_remote: true,
            name: NOTIFY,
            kind: Kind::Consumer,
            began: course.began,
            ended: now,
            attributes,
            failed,
        });
        self.over.insert(key);
    }

    fn send_below(
        &self,
        key: &Key,
        course: &Course,
        name: &'static str,
        (began, ended): (SystemTime, SystemTime),
        mut attributes: Vec<(&'static str, Value)>,
        failed: Option<String>,
    ) {
        attributes.extend(self.attributes(key, course));
        let when = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.tracer.send(Span {
            // A device may restart twice, and a node as well.
            context: course.context.below(&[name, &when.as_nanos().to_string()]),
            parent: Some(course.context.span()),
            parent_is_remote: false,
            name,
            kind: Kind::Internal,
            began,
            ended,
            attributes,
            failed,
        });
    }

    fn attributes(&self, key: &Key, course: &Course) -> Vec<(&'static str, Value)> {
        let mut attributes = vec![
            ("firmesh.campaign", key.0.as_str().into()),
            ("firmesh.device", key.1.as_str().into()),
            ("firmesh.kind", kind(key.2).into()),
        ];
        attributes.extend(
            course
                .version
                .as_deref()
                .map(|version| ("firmesh.version", version.into())),
        );
        attributes
    }
}

impl Runtime {
    /// Takes what the coordinator says of traces, and passes on what is new.
    pub(super) fn heed_traces(&mut self, hints: &[TraceHint]) {
        let news = self.traces.learn(hints, false);
        if news.is_empty() {
            return;
        }
        match serde_json::to_vec(&news) {
            Ok(said) => self.tell_mesh(MeshCommand::Publish(Topic::Traces, said)),
            Err(error) => debug!(%error, "hints were not passed on"),
        }
    }

    /// Takes what a peer says of traces, of campaigns that are approved here. Answers whether to pass it on.
    pub(super) fn hear_traces(&mut self, said: &[u8]) -> bool {
        let hints = match serde_json::from_slice::<Vec<TraceHint>>(said) {
            Ok(hints) if said.len() <= GOSSIP_BYTES_MAX && hints.len() <= TRACE_HINTS_MAX => hints,
            Ok(_) => return false,
            Err(error) => {
                debug!(%error, "gossip is no hint at traces");
                return false;
            }
        };
        let known = |hint: &TraceHint| self.fleet.campaigns.contains_key(&hint.campaign);
        let known: Vec<_> = hints.into_iter().filter(known).collect();
        self.traces.learn(&known, true);
        !known.is_empty()
    }
}

/// What is being done to a device that stands so.
fn stage_of(state: AttemptState) -> Option<&'static str> {
    match state {
        AttemptState::Downloading | AttemptState::Verifying | AttemptState::Staged | AttemptState::Installing => {
            Some("firmware.install")
        }
        AttemptState::Rebooting => Some("device.reboot"),
        AttemptState::Validating => Some("health.check"),
        _ => None,
    }
}

fn kind(kind: PermitKind) -> &'static str {
    match kind {
        PermitKind::Update => "update",
        PermitKind::Rollback => "rollback",
    }
}

fn at(unix_ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms)
}

/// What was kept: what cannot be read any more is no loss but of a picture.
fn load(file: &Path) -> Vec<Heard> {
    let read = match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(std::io::Error::other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    read.unwrap_or_else(|error| {
        warn!(%error, file = %file.display(), "it is not known which traces this node was in");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use firmesh_telemetry::TelemetryConfig;

    use super::*;

    fn tracer() -> Tracer {
        let config = TelemetryConfig {
            otlp: Some("http://127.0.0.1:9".to_owned()),
            sample: 10_000,
        };
        let settings = config.check().unwrap().unwrap();
        Tracer::start(&settings, "firmesh-node", "n1").unwrap()
    }

    fn hint(campaign: &str, number: u8, sampled: bool) -> TraceHint {
        TraceHint {
            campaign: campaign.parse().unwrap(),
            traceparent: TraceContext::new([number; 16], [number; 8], sampled).to_string(),
        }
    }

    #[tokio::test]
    async fn the_coordinators_word_goes_before_the_meshs_and_is_kept_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut traces = Traces::open(tracer(), folder.path());
        let heard = |traces: &Traces, id: &str| traces.heard.get(&id.parse().unwrap()).map(|heard| heard.hint.clone());
        let bad = TraceHint {
            traceparent: "00-nonsense".to_owned(),
            ..hint("bad", 1, true)
        };
        assert!(traces.learn(&[bad, hint("unsampled", 1, false)], false).is_empty());
        assert_eq!(traces.learn(&[hint("spring", 1, true)], true).len(), 1);
        assert!(
            traces.learn(&[hint("spring", 2, true)], true).is_empty(),
            "a peer that lies"
        );
        assert_eq!(traces.learn(&[hint("spring", 3, true)], false).len(), 1);
        assert!(traces.learn(&[hint("spring", 3, true)], false).is_empty());
        let again = Traces::open(tracer(), folder.path());
        assert_eq!(heard(&again, "spring"), Some(hint("spring", 3, true)));
        assert!(Traces::open(Tracer::off(), folder.path()).heard.is_empty());
    }

    #[tokio::test]
    async fn hints_are_bounded_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut traces = Traces::open(tracer(), folder.path());
        let many: Vec<_> = (0..3 * TRACE_HINTS_MAX)
            .map(|n| hint(&format!("c{n}"), 1, true))
            .collect();
        assert_eq!(traces.learn(&many, false).len(), TRACE_HINTS_MAX);
        traces.learn(&many[TRACE_HINTS_MAX..], false);
        assert_eq!(traces.heard.len(), TRACE_HINTS_MAX);
    }
}
