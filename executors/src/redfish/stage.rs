//! Bringing an image onto a BMC: the first way that it offers and does not refuse, in the order of its dialect.
//!
//! Invariants: nothing is sent before everything that can be known beforehand speaks for it; an image is streamed, never held; an
//! update in two steps is one act, for what lies between the two starts nothing.

use std::time::Duration;

use firmesh_executors_core::{ActError, Image, TaskState};
use firmesh_protocol::ids::Component;
use reqwest::{
    Body,
    multipart::{Form, Part},
};
use serde_json::{Map as JsonMap, Value, json};
use tokio_util::io::ReaderStream;

use super::{
    backend::RedfishBackend,
    client::{Answer, ClientError, Upload},
    dialect::{Dialect, Holds, Method},
    discovery::Map,
    wire::{Action, ActionInfo, Inventory, UpdateService},
};
use crate::{backend::chain, config::UpdateMethod};

/// What is read of an image at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// When an uploaded image is to be written.
pub(super) const ON_START_UPDATE: &str = "OnStartUpdateRequest";
/// The longest that a BMC is given its way when it asks to be left alone, once and in all.
const WAIT_MAX: Duration = Duration::from_secs(60);
const WAITS_MAX: Duration = Duration::from_secs(300);
/// Between two looks at the task that checks an image.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row that may fail while an image is checked.
const CHECKS_FAILED_MAX: u32 = 30;

/// Why an image was not taken.
struct Refusal {
    error: ActError,
    /// How long the BMC asks to be left alone first.
    wait: Option<Duration>,
}

impl Refusal {
    fn last(reason: String) -> Self {
        let error = ActError { reason, retry: false };
        Self { error, wait: None }
    }

    fn plain(error: &ClientError) -> Self {
        let (reason, retry) = (chain(error), error.retry());
        Self {
            error: ActError { reason, retry },
            wait: error.said().1.filter(|_| retry),
        }
    }

    /// What a BMC's answer means in its dialect.
    fn of(dialect: &Dialect, error: &ClientError) -> Self {
        let (ids, retry_after) = error.said();
        let (why, retry) = if let Some(licence) = dialect.licence(ids) {
            (format!("the BMC has no licence for this, it needs {licence}: "), false)
        } else if dialect.is_update_mode(ids) {
            let why = "the BMC is in update mode, an update has begun there and not ended: end it, or reset the BMC: ";
            (why.to_owned(), true)
        } else {
            (String::new(), error.retry())
        };
        let reason = format!("{why}{}", chain(error));
        Self {
            error: ActError { reason, retry },
            wait: retry_after.filter(|_| retry),
        }
    }
}

/// One image on its way to one BMC.
struct Errand<'a> {
    image: &'a Image,
    map: &'a Map,
    service: UpdateService,
    targets: Vec<String>,
}

/// A way that the BMC offers.
pub(super) struct Way {
    method: Method,
    pub(super) address: String,
    pub(super) apply_time: Option<String>,
}

impl RedfishBackend {
    /// Brings the image onto the BMC; answers the task that installs it, if there is one. A BMC that asks for time gets it
    /// before anybody asks again. The image is not sent twice: some refuse it and begin nevertheless, and show it seconds
    /// later, so whoever drives the attempt looks before it tries again.
    pub(super) async fn stage_image(&self, image: &Image) -> Result<Option<String>, ActError> {
        self.forget_task().await;
        match self.try_to_stage(image).await {
            Ok(task) => Ok(task),
            Err(refusal) => {
                let mut waits = Duration::ZERO;
                wait(refusal.wait, &mut waits).await;
                Err(refusal.error)
            }
        }
    }

    async fn try_to_stage(&self, image: &Image) -> Result<Option<String>, Refusal> {
        let map = self.map().await.map_err(|error| Refusal::plain(&error))?;
        let dialect = &map.dialect;
        let refusal = |error: ClientError| Refusal::of(dialect, &error);
        let url = self.client.settings().url.clone();
        let Some(link) = &map.update_service else {
            return Err(refusal(ClientError::NotOffered {
                operation: "stage the image",
                url,
                what: "UpdateService".to_owned(),
            }));
        };
        let mut service: UpdateService = self
            .client
            .get("read the update service", link)
            .await
            .map_err(refusal)?;
        if let Some(action) = &mut service.actions.simple_update {
            self.complete(action).await.map_err(refusal)?;
        }
        self.may_take(image, &map, &service).await?;
        let errand = Errand {
            image,
            map: &map,
            service,
            targets: dialect.targets(&self.component, map.target(&self.component)),
        };
        let mut passed_over = Vec::new();
        for method in dialect.update.methods.iter().copied() {
            let name = method.name();
            if !is_wanted(self.client.settings().update, method) {
                passed_over.push(format!("{name}: the configuration does not want it"));
                continue;
            }
            let mut way = match way(&errand.service, dialect, &self.component, &errand.targets, method) {
                Ok(way) => way,
                Err(why) => {
                    passed_over.push(format!("{name}: {why}"));
                    continue;
                }
            };
            let mut handed = self.hand_over(&errand, &way).await?;
            if handed.as_ref().is_err_and(|error| error.is_status(&[400])) && way.apply_time.take().is_some() {
                tracing::info!(%url, method = name, "a BMC refuses an update, perhaps for the time at which it is to take effect");
                handed = self.hand_over(&errand, &way).await?;
            }
            match handed {
                Ok(answer) => return self.begun(&errand, &way, answer).await,
                // What an upload is told of the image is the last word on it.
                Err(error) if error.is_status(&[400]) && method != Method::SimpleUpdate => return Err(refusal(error)),
                Err(error) => {
                    tracing::info!(%url, %error, method = name, "a BMC refuses what it offers");
                    passed_over.push(format!("{name}: {}", chain(&error)));
                }
            }
        }
        let what = format!("way to take the image; {}", passed_over.join("; "));
        let operation = "stage the image";
        Err(refusal(ClientError::NotOffered { operation, url, what }))
    }

    /// Fills in what an action says of its parameters elsewhere.
    pub(super) async fn complete(&self, action: &mut Action) -> Result<(), ClientError> {
        let Some(link) = action.info.take() else { return Ok(()) };
        let info: ActionInfo = match self.client.get("read an action's parameters", &link).await {
            Err(error) if error.is_status(&[404, 501]) => return Ok(()),
            other => other?,
        };
        for parameter in info.parameters {
            let known = match parameter.name.as_str() {
                "ResetType" => &mut action.reset_types,
                "Targets" => &mut action.targets,
                "TransferProtocol" => &mut action.protocols,
                _ => continue,
            };
            if known.is_empty() {
                *known = parameter.allowable_values;
            }
        }
        Ok(())
    }

    /// What speaks against an image before a byte of it is sent.
    async fn may_take(&self, image: &Image, map: &Map, service: &UpdateService) -> Result<(), Refusal> {
        if service.service_enabled == Some(false) {
            return Err(Refusal::last(
                "the BMC's update service is switched off (ServiceEnabled)".to_owned(),
            ));
        }
        let (length, max) = (image.artifact.length, service.image_bytes_max());
        if let Some(max) = max.filter(|&max| length > max) {
            return Err(Refusal::last(format!(
                "the image has {length} bytes, the BMC takes {max} (MaxImageSizeBytes)"
            )));
        }
        let entry: Inventory = self
            .client
            .read_or_default("read the firmware inventory", map.entry.as_ref())
            .await
            .map_err(|error| Refusal::of(&map.dialect, &error))?;
        if entry.updateable == Some(false) {
            let component = &self.component;
            return Err(Refusal::last(format!(
                "the BMC says that the {component} cannot be updated (Updateable)"
            )));
        }
        let (version, scheme) = (&image.info.version, &image.info.version_scheme);
        if let (Some(least), Some(scheme)) = (&entry.lowest_supported_version, scheme)
            && scheme.compare(version, least).is_some_and(std::cmp::Ordering::is_lt)
        {
            return Err(Refusal::last(format!(
                "the image is {version}, the BMC takes {least} or later (LowestSupportedVersion)"
            )));
        }
        Ok(())
    }

    /// Hands the image over. The inner error is what a BMC says that has offered a way and will not have it so.
    async fn hand_over(&self, errand: &Errand<'_>, way: &Way) -> Result<Result<Answer, ClientError>, Refusal> {
        let dialect = &errand.map.dialect;
        let update = &dialect.update;
        if update.asks_first && way.method != Method::SimpleUpdate {
            let asked = self.client.get_raw("look at the upload's address", &way.address).await;
            // Most addresses of uploads cannot be read, which says nothing.
            if let Err(error) = asked {
                let ids = error.said().0;
                if dialect.licence(ids).is_some() || dialect.is_update_mode(ids) {
                    return Err(Refusal::of(dialect, &error));
                }
            }
        }
        let handed = match way.method {
            Method::SimpleUpdate => {
                let mut body = self.parameters(errand, way, false);
                let uri = self.images.url(errand.image.artifact.id);
                body.insert("ImageURI".to_owned(), uri.into());
                body.insert("TransferProtocol".to_owned(), "HTTPS".into());
                self.client.post("start SimpleUpdate", &way.address, &body.into()).await
            }
            Method::Multipart => {
                let parameters = self.parameters(errand, way, true).into();
                let form = Form::new()
                    .part(update.parameters_part.clone(), json_part(&parameters)?)
                    .part(update.file_part.clone(), self.file(errand).await?);
                let kept = vec![
                    json!({ "part": update.parameters_part, "json": parameters }),
                    self.file_kept(errand, &update.file_part),
                ];
                let upload = Upload::Form(form, kept);
                self.client.upload("push the image", &way.address, upload, None).await
            }
            Method::Form => self.fill_in(errand, way).await?,
            Method::HttpPush => {
                self.choose_apply_time(errand, way).await;
                let upload = Upload::Raw(self.image(errand).await?, errand.image.artifact.length);
                self.client.upload("push the image", &way.address, upload, None).await
            }
        };
        match handed {
            Err(error) => {
                let ids = error.said().0;
                let has_reason = dialect.licence(ids).is_some() || dialect.is_update_mode(ids);
                let is_unknown = ids.iter().any(|id| id.ends_with(".ActionNotSupported"));
                if (error.is_status(&[400, 404, 405, 501]) || is_unknown) && !has_reason {
                    Ok(Err(error))
                } else {
                    Err(Refusal::of(dialect, &error))
                }
            }
            Ok(answer) => Ok(Ok(answer)),
        }
    }

    /// The maker's own form.
    async fn fill_in(&self, errand: &Errand<'_>, way: &Way) -> Result<Result<Answer, ClientError>, Refusal> {
        let operation = "push the image";
        let dialect = &errand.map.dialect;
        let update = &dialect.update;
        let wants_key = update.form.iter().any(|part| part.holds == Some(Holds::Session));
        let session = match wants_key || update.session_cookie.is_some() {
            false => None,
            true => {
                let session = self.client.session("open a session for the upload").await;
                Some(session.map_err(|error| Refusal::of(dialect, &error))?)
            }
        };
        let key = session.as_ref().map(|session| session.key.clone()).unwrap_or_default();
        let (mut form, mut kept) = (Form::new(), Vec::new());
        for part in &update.form {
            let name = &part.part;
            let (content, keep) = match (part.holds, &part.json) {
                (Some(Holds::File), _) => (self.file(errand).await?, self.file_kept(errand, name)),
                (Some(Holds::Session), _) => (Part::text(key.clone()), json!({ "part": name, "session_key": "it" })),
                (holds, json) => {
                    let json = match holds {
                        None => json!(json),
                        Some(_) => self.parameters(errand, way, true).into(),
                    };
                    (json_part(&json)?, json!({ "part": name, "json": json }))
                }
            };
            form = form.part(name.clone(), content);
            kept.push(keep);
        }
        let let_in = session
            .as_ref()
            .map(|session| (session, update.session_cookie.as_deref()));
        let upload = Upload::Form(form, kept);
        let answer = self.client.upload(operation, &way.address, upload, let_in).await;
        if let Some(session) = session {
            self.client.end(session).await;
        }
        Ok(answer)
    }

    /// What is said beside the image. Forms name no target explicitly, actions leave them out.
    fn parameters(&self, errand: &Errand<'_>, way: &Way, is_form: bool) -> JsonMap<String, Value> {
        let mut parameters = JsonMap::new();
        if is_form || !errand.targets.is_empty() {
            parameters.insert("Targets".to_owned(), json!(errand.targets));
        }
        if let Some(time) = &way.apply_time {
            parameters.insert("@Redfish.OperationApplyTime".to_owned(), json!(time));
        }
        if let Some(part) = errand.map.dialect.part(&self.component).filter(|_| is_form) {
            let more = part.parameters.iter();
            parameters.extend(more.map(|(name, value)| (name.clone(), json!(value))));
        }
        parameters
    }

    /// A bare image has nothing beside it: when it takes effect is the service's setting.
    async fn choose_apply_time(&self, errand: &Errand<'_>, way: &Way) {
        let set = &errand.service.http_push_uri_options.http_push_uri_apply_time;
        let (Some(link), Some(time)) = (&errand.map.update_service, &way.apply_time) else {
            return;
        };
        if set.apply_time.as_ref() == Some(time) || !set.allowable.contains(time) {
            return;
        }
        let body = json!({ "HttpPushUriOptions": { "HttpPushUriApplyTime": { "ApplyTime": time } } });
        if let Err(error) = self
            .client
            .patch("choose when an update takes effect", link, &body)
            .await
        {
            tracing::info!(%error, "a BMC keeps its own time for updates to take effect");
        }
    }

    async fn image(&self, errand: &Errand<'_>) -> Result<Body, Refusal> {
        let reader = self.images.open(errand.image.artifact.id).await;
        let reader = reader.map_err(|error| Refusal {
            error: ActError {
                reason: chain(&error),
                retry: error.retry,
            },
            wait: None,
        })?;
        Ok(Body::wrap_stream(ReaderStream::with_capacity(reader, CHUNK_BYTES)))
    }

    /// What an uploaded image is called.
    fn file_name<'a>(&'a self, dialect: &'a Dialect) -> &'a str {
        let own = self.client.settings().image_name.as_deref();
        own.unwrap_or_else(|| dialect.file_name(&self.component))
    }

    /// What a transcript keeps of an image in a form.
    fn file_kept(&self, errand: &Errand<'_>, part: &str) -> Value {
        let name = self.file_name(&errand.map.dialect);
        json!({ "part": part, "file": name, "image_bytes": errand.image.artifact.length })
    }

    async fn file(&self, errand: &Errand<'_>) -> Result<Part, Refusal> {
        let name = self.file_name(&errand.map.dialect).to_owned();
        let part = Part::stream_with_length(self.image(errand).await?, errand.image.artifact.length);
        part.file_name(name).mime_str("application/octet-stream").map_err(setup)
    }

    /// What follows once the image has been taken: nothing, or the word to begin.
    async fn begun(&self, errand: &Errand<'_>, way: &Way, answer: Answer) -> Result<Option<String>, Refusal> {
        let dialect = &errand.map.dialect;
        let task_at = &dialect.update.task_at;
        let mut task = self.client.started_task(&answer, task_at);
        if way.apply_time.as_deref() == Some(ON_START_UPDATE)
            && let Some(start) = &errand.service.actions.start_update
        {
            if let Some(task) = &task {
                self.is_checked(task, dialect).await?;
            }
            let answer = self.start_update(start, dialect).await?;
            task = self.client.started_task(&answer, task_at);
        }
        let progress = || errand.map.update_service.clone().filter(|_| dialect.progress.is_some());
        Ok(task.or_else(progress))
    }

    /// Follows the task that checks an image to its end.
    async fn is_checked(&self, task: &str, dialect: &Dialect) -> Result<(), Refusal> {
        let mut failed = 0;
        loop {
            match self.see_task(task).await {
                Ok(seen) => match seen.state {
                    TaskState::Active => failed = 0,
                    TaskState::Completed | TaskState::AwaitsReset | TaskState::Gone => {
                        self.forget_task().await;
                        return Ok(());
                    }
                    TaskState::Failed => {
                        let reason = format!("the BMC has checked the image and refuses it: {}", seen.message);
                        return Err(Refusal::last(reason));
                    }
                },
                Err(error) if error.retry() && failed < CHECKS_FAILED_MAX => failed += 1,
                Err(error) => return Err(Refusal::of(dialect, &error)),
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    async fn start_update(&self, start: &Action, dialect: &Dialect) -> Result<Answer, Refusal> {
        let mut waits = Duration::ZERO;
        loop {
            let answer = self.client.post("start the update", &start.target, &json!({})).await;
            let refusal = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => Refusal::of(dialect, &error),
            };
            if !wait(refusal.wait, &mut waits).await {
                // The image is there; to bring it once more would be refused.
                let Refusal { error, .. } = refusal;
                return Err(Refusal::last(error.reason));
            }
        }
    }
}

/// Whether the BMC offers this, and where and when; the error says what is missing.
pub(super) fn way(
    service: &UpdateService,
    dialect: &Dialect,
    component: &Component,
    targets: &[String],
    method: Method,
) -> Result<Way, String> {
    let address = |uri: &Option<String>, name: &str| {
        let uri = uri.clone().filter(|uri| !uri.is_empty());
        uri.ok_or_else(|| format!("the BMC offers no {name}"))
    };
    let address = match method {
        Method::SimpleUpdate => {
            let action = service.actions.simple_update.as_ref();
            let action = action.filter(|action| !action.target.is_empty());
            let action = action.ok_or("the BMC offers no SimpleUpdate")?;
            let list = |list: &[String]| list.join(", ");
            let is_https = |protocol: &String| protocol.eq_ignore_ascii_case("https");
            if !action.protocols.is_empty() && !action.protocols.iter().any(is_https) {
                return Err(format!(
                    "the BMC fetches images by {}, not by HTTPS",
                    list(&action.protocols)
                ));
            }
            let is_allowed = |target: &String| action.targets.contains(target);
            if !action.targets.is_empty() && !targets.iter().all(is_allowed) {
                let (wanted, allowed) = (list(targets), list(&action.targets));
                return Err(format!("the BMC updates {allowed} so, not {wanted}"));
            }
            action.target.clone()
        }
        Method::Multipart => address(&service.multipart_http_push_uri, "MultipartHttpPushUri")?,
        Method::Form => address(&service.http_push_uri, "HttpPushUri")?,
        Method::HttpPush if service.http_push_uri == service.multipart_http_push_uri => {
            return Err("the BMC offers no HttpPushUri for a bare image".to_owned());
        }
        Method::HttpPush => address(&service.http_push_uri, "HttpPushUri")?,
    };
    let offered = service.apply_times(method);
    let wanted = dialect.apply_time(component);
    Ok(Way {
        method,
        address,
        apply_time: wanted.iter().find(|time| offered.contains(time)).cloned(),
    })
}

/// Gives a BMC the time it asks for, as long as that stays within bounds.
async fn wait(asked: Option<Duration>, waits: &mut Duration) -> bool {
    let Some(asked) = asked else { return false };
    let asked = asked.clamp(Duration::from_secs(1), WAIT_MAX);
    *waits += asked;
    if *waits > WAITS_MAX {
        return false;
    }
    tokio::time::sleep(asked).await;
    true
}

pub(super) fn is_wanted(update: UpdateMethod, method: Method) -> bool {
    match update {
        UpdateMethod::Auto => true,
        UpdateMethod::Pull => method == Method::SimpleUpdate,
        UpdateMethod::Push => method != Method::SimpleUpdate,
    }
}

fn json_part(json: &Value) -> Result<Part, Refusal> {
    Part::text(json.to_string()).mime_str("application/json").map_err(setup)
}

fn setup(error: reqwest::Error) -> Refusal {
    Refusal::last(chain(&ClientError::Setup(error.into())))
}

impl Method {
    /// As it is written in a dialect.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SimpleUpdate => "simple_update",
            Self::Multipart => "multipart",
            Self::Form => "form",
            Self::HttpPush => "http_push",
        }
    }
}

impl UpdateService {
    /// Nought is said by some that know no bound.
    pub(super) fn image_bytes_max(&self) -> Option<u64> {
        self.max_image_size_bytes.filter(|&max| max > 0)
    }

    /// When an update may take effect that comes this way; nothing if the service does not say.
    pub(super) fn apply_times(&self, method: Method) -> Vec<String> {
        let set = &self.http_push_uri_options.http_push_uri_apply_time;
        let options = || match set.allowable.is_empty() {
            false => set.allowable.clone(),
            true => set.apply_time.iter().cloned().collect(),
        };
        match method {
            Method::SimpleUpdate => {
                let action = self.actions.simple_update.as_ref();
                action
                    .map(|action| action.apply_times.supported_values.clone())
                    .unwrap_or_default()
            }
            Method::Multipart => {
                let mut times = self.multipart_apply_times.supported_values.clone();
                if times.is_empty() {
                    times = options();
                }
                // Whoever can be told to start can wait for it.
                if self.actions.start_update.is_some() {
                    times.push(ON_START_UPDATE.to_owned());
                }
                times
            }
            Method::Form | Method::HttpPush => options(),
        }
    }
}
