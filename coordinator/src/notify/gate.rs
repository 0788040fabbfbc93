//! Webhook gates: outside systems that are asked between two waves whether the next one may open.
//!
//! Invariants: the engine keeps every question and every answer, so nothing here has to survive; one question is under way
//! once at a time, and some at once in all; whatever is not a well-formed answer in time is no answer, and holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use firmesh_coordinator_core::{Question, WebhookAnswer};
use firmesh_protocol::{
    api::GateVerdict,
    ids::{CampaignId, Sha256},
    manifest::PoolAct,
};
use reqwest::{Client, header};
use serde::Deserialize;
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    CourierError, SecretConfig,
    config::{Http, http, is_name, secret},
    secret::Secret,
    send::{self, SendError},
};
use crate::{
    runtime::{ActionError, Clock, Coordinator},
    telemetry::chain,
};

/// Webhooks of one coordinator.
const WEBHOOKS_MAX: usize = 32;

/// Questions under way at once.
const AT_ONCE_MAX: usize = 16;

/// How often the engine is looked at for questions.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// After no answer, at first; doubled each time, up to the webhook's `every`.
const AGAIN: Duration = Duration::from_secs(2);

/// An answer is a verdict and a sentence.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// One webhook as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateWebhookConfig {
    /// The name that manifests have for it: lower case letters, digits and dashes.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// What questions are signed with: `whsec_` and Base64 of 24 to 64 bytes. Two while one replaces the other.
    pub secrets: Vec<SecretConfig>,
    /// The CA of the receiver (PEM), if the system does not trust it.
    pub ca_file: Option<PathBuf>,
    /// How long after a `hold` it is asked again. Default: half a minute.
    #[serde(default = "half_a_minute")]
    pub every: String,
    /// How long it may think. Default: ten seconds.
    #[serde(default = "ten_seconds")]
    pub timeout: String,
}

fn half_a_minute() -> String {
    "30s".to_owned()
}

fn ten_seconds() -> String {
    "10s".to_owned()
}

impl GateWebhookConfig {
    /// Relative paths start at the configuration's folder.
    pub(crate) fn start_at(&mut self, folder: &Path) {
        let files = self.secrets.iter_mut().filter_map(|secret| secret.file.as_mut());
        files
            .chain(&mut self.ca_file)
            .for_each(|path| *path = folder.join(&*path));
    }
}

/// A webhook, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateWebhook {
    name: String,
    http: Http,
    secrets: Vec<Secret>,
    every: Duration,
    timeout: Duration,
}

impl GateWebhook {
    /// The name that manifests have for it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Checks all webhooks. A mistake says at which one it is.
pub(crate) fn check_gates(
    configs: Vec<GateWebhookConfig>,
    duration: impl Fn(&str) -> Result<Duration, String>,
) -> Result<Vec<GateWebhook>, String> {
    if configs.len() > WEBHOOKS_MAX {
        return Err(format!(
            "has {} webhooks, at most {WEBHOOKS_MAX} are asked",
            configs.len()
        ));
    }
    let mut names = BTreeSet::new();
    let mut checked = Vec::new();
    for config in configs {
        let name = config.name.clone();
        if !is_name(&name) {
            return Err(format!(
                "has the name {name:?}: a name is up to 64 lower case letters, digits and dashes"
            ));
        }
        if !names.insert(name.clone()) {
            return Err(format!("has {name:?} twice: give every webhook a name of its own"));
        }
        checked.push(webhook(config, &duration).map_err(|problem| format!("{name:?}: {problem}"))?);
    }
    Ok(checked)
}

fn webhook(
    config: GateWebhookConfig,
    duration: impl Fn(&str) -> Result<Duration, String>,
) -> Result<GateWebhook, String> {
    if config.secrets.is_empty() || config.secrets.len() > 2 {
        return Err("secrets must be one, or two while one replaces the other".to_owned());
    }
    let mut secrets = Vec::new();
    for written in config.secrets {
        let secret = secret("secrets", written)?;
        send::webhook_key(&secret).map_err(|error| format!("secrets: {}", chain(&error)))?;
        secrets.push(secret);
    }
    let (every, timeout) = (duration(&config.every)?, duration(&config.timeout)?);
    if timeout > Duration::from_secs(60) {
        return Err("timeout must be at most a minute: answer `hold` and be asked again".to_owned());
    }
    Ok(GateWebhook {
        name: config.name,
        http: http(&config.url, config.ca_file)?,
        secrets,
        every,
        timeout,
    })
}

/// What asks.
#[derive(Debug)]
pub(crate) struct GateWebhooks {
    webhooks: BTreeMap<String, Arc<Webhook>>,
    coordinator: Coordinator,
    /// Which fleet it is.
    source: String,
    clock: Clock,
}

#[derive(Debug)]
struct Webhook {
    settings: GateWebhook,
    client: Client,
}

/// When a question is asked next.
#[derive(Debug, Clone, Copy)]
enum Due {
    UnderWay { failures: u32 },
    At { at: Instant, failures: u32 },
}

/// What names a question while it stands.
type Key = (CampaignId, u32, String, Option<PoolAct>);

fn key(question: &Question) -> Key {
    let act = question.act.as_ref().map(|(act, _)| *act);
    (question.campaign.clone(), question.wave, question.webhook.clone(), act)
}

impl GateWebhooks {
    pub(crate) fn new(
        settings: &[GateWebhook],
        coordinator: Coordinator,
        source: String,
        clock: Clock,
    ) -> Result<Self, CourierError> {
        let mut webhooks = BTreeMap::new();
        for settings in settings {
            let client = send::client(&settings.http).map_err(|error| CourierError::Destination {
                name: settings.name.clone(),
                problem: chain(&error),
            })?;
            let settings = settings.clone();
            webhooks.insert(settings.name.clone(), Arc::new(Webhook { settings, client }));
        }
        Ok(Self {
            webhooks,
            coordinator,
            source,
            clock,
        })
    }

    /// Asks until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut due: BTreeMap<Key, Due> = BTreeMap::new();
        let mut under_way: JoinSet<(Key, GateVerdict)> = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                Some(ended) = under_way.join_next() => {
                    match ended {
                        Ok((key, verdict)) => self.settle(&mut due, key, verdict),
                        // The next look asks again whatever was under way.
                        Err(panicked) => {
                            warn!(error = %panicked, "a question to a webhook broke off");
                            due.retain(|_, due| matches!(due, Due::At { .. }));
                        }
                    }
                    continue;
                }
            }
            let questions = match self.coordinator.read(|world| world.questions()).await {
                Ok(questions) => questions,
                // The coordinator is stopping: the token comes next.
                Err(failure) => {
                    debug!(error = %chain(&failure), "nobody says what to ask");
                    continue;
                }
            };
            let known: BTreeSet<_> = questions.iter().map(|(question, _)| key(question)).collect();
            due.retain(|key, _| known.contains(key));
            for (question, manifest) in questions {
                let failures = match due.get(&key(&question)) {
                    Some(Due::UnderWay { .. }) => continue,
                    Some(Due::At { at, .. }) if *at > Instant::now() => continue,
                    Some(Due::At { failures, .. }) => *failures,
                    None => 0,
                };
                if under_way.len() >= AT_ONCE_MAX {
                    break;
                }
                due.insert(key(&question), Due::UnderWay { failures });
                let webhook = self.webhooks.get(&question.webhook).cloned();
                let asked = self.body(&question, manifest);
                let (coordinator, clock) = (self.coordinator.clone(), self.clock);
                under_way.spawn(async move {
                    let (verdict, reason) = match webhook {
                        Some(webhook) => webhook.ask(asked, clock).await,
                        None => (
                            GateVerdict::Unknown,
                            format!(
                                "this coordinator has no [[gate_webhooks]] of the name {:?}",
                                question.webhook
                            ),
                        ),
                    };
                    (key(&question), tell(&coordinator, question, verdict, reason).await)
                });
            }
        }
    }

    fn settle(&self, due: &mut BTreeMap<Key, Due>, key: Key, verdict: GateVerdict) {
        let failures = match due.get(&key) {
            Some(Due::UnderWay { failures } | Due::At { failures, .. }) => *failures,
            // Nobody asks any more.
            None => return,
        };
        let every = self
            .webhooks
            .get(&key.2)
            .map_or(Duration::from_secs(30), |webhook| webhook.settings.every);
        let (wait, failures) = match verdict {
            GateVerdict::Unknown => (AGAIN.saturating_mul(1 << failures.min(16)).min(every), failures + 1),
            GateVerdict::Pass | GateVerdict::Hold | GateVerdict::Fail => (every, 0),
        };
        let at = Instant::now() + wait;
        due.insert(key, Due::At { at, failures });
    }

    /// The question as a receiver reads it, and its name: the same whenever it is asked.
    fn body(&self, question: &Question, manifest: Option<Sha256>) -> Asked {
        let manifest = manifest.map(|digest| digest.to_string());
        let Question {
            campaign,
            wave,
            webhook,
            act,
            devices,
            evidence,
        } = question;
        let mut name = format!("{} {campaign} {wave} {webhook} {manifest:?}", self.source);
        if let Some((act, pool)) = act {
            name += &format!(" {} {pool}", act.as_str());
        }
        let id = format!("gate_{}", &Sha256::of(name.as_bytes()).to_string()[..32]);
        let mut body = json!({
            "schema": "firmesh-gate/1",
            "id": id,
            "source": self.source,
            "campaign": campaign,
            "manifest_sha256": manifest,
            "wave": wave,
            "devices": devices,
            "evidence": evidence,
        });
        if let Some((act, pool)) = act {
            (body["act"], body["pool"]) = (json!(act), json!(pool));
        }
        Asked {
            id,
            body: body.to_string().into_bytes(),
        }
    }
}

struct Asked {
    id: String,
    body: Vec<u8>,
}

/// Tells the engine; answers what counts.
async fn tell(coordinator: &Coordinator, question: Question, verdict: GateVerdict, reason: String) -> GateVerdict {
    let (campaign, webhook) = (question.campaign.clone(), question.webhook.clone());
    let answer = WebhookAnswer {
        campaign: question.campaign,
        wave: question.wave,
        webhook: question.webhook,
        act: question.act.map(|(act, _)| act),
        verdict,
        reason,
    };
    match coordinator.answer(answer).await {
        Ok(()) => verdict,
        Err(ActionError::Refused(refused)) => {
            debug!(%campaign, webhook, error = %refused, "a webhook's answer came too late");
            verdict
        }
        Err(failure) => {
            warn!(%campaign, webhook, error = %chain(&failure), "a webhook's answer could not be kept, it is asked again");
            GateVerdict::Unknown
        }
    }
}

#[derive(Debug, Deserialize)]
struct Said {
    verdict: SaidVerdict,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SaidVerdict {
    Pass,
    Fail,
    Hold,
}

impl Webhook {
    async fn ask(&self, asked: Asked, clock: Clock) -> (GateVerdict, String) {
        match tokio::time::timeout(self.settings.timeout, self.exchange(asked, clock)).await {
            Ok(Ok(said)) => {
                let verdict = match said.verdict {
                    SaidVerdict::Pass => GateVerdict::Pass,
                    SaidVerdict::Fail => GateVerdict::Fail,
                    SaidVerdict::Hold => GateVerdict::Hold,
                };
                info!(
                    webhook = self.settings.name,
                    ?verdict,
                    reason = said.reason,
                    "a webhook has answered"
                );
                (verdict, said.reason)
            }
            Ok(Err(why)) => (GateVerdict::Unknown, why),
            Err(_) => {
                let why = format!("no answer within {} s", self.settings.timeout.as_secs());
                (GateVerdict::Unknown, why)
            }
        }
    }

    async fn exchange(&self, asked: Asked, clock: Clock) -> Result<Said, String> {
        let signed = send::signatures(&self.settings.secrets, &asked.id, clock.wall(), &asked.body);
        let (timestamp, signatures) = signed.map_err(|error: SendError| chain(&error))?;
        let request = self
            .client
            .post(self.settings.http.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", asked.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signatures)
            .body(asked.body);
        // Its address may hold a secret.
        let mut answer = request.send().await.map_err(|error| chain(&error.without_url()))?;
        let status = answer.status();
        if status != reqwest::StatusCode::OK {
            return Err(format!("it answered {status}, a verdict comes with 200"));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| chain(&error.without_url()))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(format!("its answer has more than {ANSWER_BYTES_MAX} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            format!("its answer is not {{\"verdict\": \"pass\" | \"fail\" | \"hold\", \"reason\": \"...\"}}: {error}")
        })
    }
}
