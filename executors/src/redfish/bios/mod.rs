//! The BIOS's settings as a component: an image is a signed document of attributes, which wait in the BMC (`@Redfish.Settings`)
//! until a reset applies them.
//!
//! Invariants: nothing is written before every attribute of a document was found, and may be written, and would take its value;
//! what is differs from what was wanted by the attributes read back, not by anybody's word; what waits there and is not of a
//! document of ours is never applied by a reset of ours. A device's version is the one of the document that its attributes bear
//! out.

mod books;
mod document;
mod examine;
mod registry;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use firmesh_executors_core::{ActError, Image, Observed, Rung, Seen, Slot, Staged, TaskState};
use firmesh_protocol::{health::HealthSample, ids::Sha256};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;

use self::{
    books::{Books, BooksError, Held},
    document::{DOCUMENT_BYTES_MAX, Differing, Document, DocumentError},
};
use super::{
    RedfishBackend,
    backend::{clock_off_s, no_slots},
    client::{Client, ClientError},
    transcript::Act,
    wire::{Link, Manager, System, lenient},
};
use crate::{
    backend::{DeviceBackend, chain},
    config::{Check, DeviceConfigError},
    image::ImageError,
};

/// What a device's version is whose settings are no document's.
const UNMANAGED: &str = "unmanaged";
/// Attributes that are named in a version: there are others in the reasons.
const NAMED_MAX: usize = 3;
/// When settings are to be applied.
const ON_RESET: &str = "OnReset";

/// That it is the BIOS's settings that are updated, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiosSettingsConfig {
    /// A folder for what is known of the documents that were brought.
    pub work_dir: PathBuf,
    /// Documents that devices are recognised by before one was brought to them: what they run at first.
    #[serde(default)]
    pub documents: Vec<PathBuf>,
}

/// That it is the BIOS's settings that are updated, checked.
#[derive(Debug, Clone)]
pub struct BiosSettings {
    work_dir: PathBuf,
    documents: Vec<Held>,
}

impl BiosSettings {
    /// Documents by which one device is recognised.
    const DOCUMENTS_MAX: usize = 32;

    pub(crate) fn check(check: &Check<'_>, config: &BiosSettingsConfig) -> Result<Self, DeviceConfigError> {
        let field = "bios_settings";
        if config.documents.len() > Self::DOCUMENTS_MAX {
            return Err(check.value(field, format!("has more than {} documents", Self::DOCUMENTS_MAX)));
        }
        let read = config.documents.iter().map(|path| {
            let bytes = check.read(field, path)?;
            let document = Document::parse(&bytes).map_err(|error| {
                check.value(
                    field,
                    format!("has {}, which is none: {}", path.display(), chain(&error)),
                )
            })?;
            let sha256 = Sha256::of(&bytes);
            Ok(Held { sha256, document })
        });
        Ok(Self {
            work_dir: check.base.join(&config.work_dir).join(check.device.as_str()),
            documents: read.collect::<Result<_, DeviceConfigError>>()?,
        })
    }
}

/// The settings of a BIOS, behind Redfish.
#[derive(Debug)]
pub struct BiosBackend {
    redfish: RedfishBackend,
    settings: BiosSettings,
}

/// A BIOS's attributes, and those that wait for a reset.
#[derive(Debug, Clone, Default)]
pub(super) struct Bios {
    pub(super) attributes: BTreeMap<String, Value>,
    /// The name of its attribute registry.
    registry: Option<String>,
    pub(super) settings: Option<Pending>,
}

/// Where attributes are written, to be applied later.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending {
    link: String,
    attributes: BTreeMap<String, Value>,
    /// What a change has to name, if the BMC has a name for what is there.
    tag: Option<String>,
    apply_times: Vec<String>,
}

/// Why settings could not be read or written.
#[derive(Debug, thiserror::Error)]
enum BiosError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Books(#[from] BooksError),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("the document could not be had")]
    Image(#[from] ImageError),
    #[error("the document's stream broke")]
    Stream(#[source] std::io::Error),
    #[error("nothing was written: {0}")]
    Refused(String),
    #[error("a part of the executor died")]
    Worker(#[source] tokio::task::JoinError),
}

impl BiosError {
    fn retry(&self) -> bool {
        match self {
            Self::Client(error) => error.retry(),
            Self::Image(error) => error.retry,
            Self::Books(_) | Self::Stream(_) | Self::Worker(_) => true,
            Self::Document(_) | Self::Refused(_) => false,
        }
    }

    fn into_act(self) -> ActError {
        ActError {
            reason: chain(&self),
            retry: self.retry(),
        }
    }
}

/// A `Bios` resource, or the one beside it that takes its settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BiosBody {
    #[serde(rename = "Attributes", deserialize_with = "lenient")]
    attributes: BTreeMap<String, Value>,
    #[serde(rename = "AttributeRegistry", deserialize_with = "lenient")]
    registry: Option<String>,
    #[serde(rename = "@Redfish.Settings", deserialize_with = "lenient")]
    settings: Option<SettingsBody>,
    #[serde(rename = "@odata.etag", deserialize_with = "lenient")]
    tag: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct SettingsBody {
    #[serde(deserialize_with = "lenient")]
    settings_object: Option<Link>,
    #[serde(deserialize_with = "lenient")]
    supported_apply_times: Vec<String>,
}

impl Bios {
    /// Reads what the system's link leads to.
    pub(super) async fn read(client: &Client, link: Option<&Link>) -> Result<Self, ClientError> {
        let operation = "read the BIOS";
        let not_offered = |what: &str| ClientError::NotOffered {
            operation,
            url: client.settings().url.clone(),
            what: what.to_owned(),
        };
        let link = link.filter(|link| !link.id.is_empty());
        let link = link.ok_or_else(|| not_offered("Bios of the system"))?;
        let body: BiosBody = client.get(operation, &link.id).await?;
        if body.attributes.is_empty() {
            return Err(not_offered("Attributes of the BIOS"));
        }
        let settings = match body
            .settings
            .and_then(|settings| Some((settings.settings_object?.id, settings.supported_apply_times)))
        {
            Some((link, apply_times)) if !link.is_empty() => {
                let pending: BiosBody = client.get("read the BIOS's pending settings", &link).await?;
                Some(Pending {
                    link,
                    attributes: pending.attributes,
                    tag: pending.tag,
                    apply_times,
                })
            }
            _ => None,
        };
        Ok(Self {
            attributes: body.attributes,
            registry: body.registry.filter(|name| !name.is_empty()),
            settings,
        })
    }

    /// Whether all of these wait for a reset.
    fn awaits(&self, differing: &[Differing<'_>]) -> bool {
        let Some(pending) = &self.settings else { return false };
        let waits = |one: &Differing<'_>| {
            pending
                .attributes
                .get(one.name)
                .is_some_and(|value| one.wanted.is(value))
        };
        !differing.is_empty() && differing.iter().all(waits)
    }

    /// What waits for a reset and is of none of these documents.
    fn foreign(&self, ours: &[&Document]) -> Vec<String> {
        let Some(pending) = &self.settings else {
            return Vec::new();
        };
        let waiting = pending.attributes.iter().filter(|(name, value)| {
            let is_other = self.attributes.get(*name).is_some_and(|is| is != *value);
            let is_ours = |document: &&Document| document.attributes.get(*name).is_some_and(|wanted| wanted.is(value));
            is_other && !ours.iter().any(is_ours)
        });
        waiting.map(|(name, _)| name.clone()).collect()
    }
}

/// Which document's settings a device has, and what of one waits for a reset.
#[derive(Debug, PartialEq)]
struct Standing {
    version: String,
    staged: Staged,
    /// The document that the version is of.
    named_by: Option<Held>,
}

impl Standing {
    fn of(books: &Books, known: &[Held], bios: &Bios) -> Self {
        let wanted = books.wanted.as_ref();
        let differing = |held: &Held| held.document.differing(&bios.attributes).len();
        if let Some(held) = wanted.filter(|held| differing(held) == 0) {
            return Self {
                version: held.document.version.clone(),
                staged: Staged::Nothing,
                named_by: Some(held.clone()),
            };
        }
        let waiting = wanted.filter(|held| bios.awaits(&held.document.differing(&bios.attributes)));
        let staged = waiting.map_or(Staged::Nothing, |held| Staged::Image {
            version: held.document.version.clone(),
            sha256: held.sha256,
            armed: true,
        });
        // What waits names nothing yet. Of others the one that is nearest; of equals the one that was found to hold, then the
        // one that says the most.
        let candidates = books.held.iter().map(|held| (0, held));
        let candidates = candidates.chain(known.iter().map(|held| (1, held)));
        let brought = wanted.filter(|_| waiting.is_none()).map(|held| (2, held));
        let nearest = candidates.chain(brought).min_by_key(|(rank, held)| {
            let says = std::cmp::Reverse(held.document.attributes.len());
            (differing(held), *rank, says)
        });
        let nearest = nearest.map(|(_, held)| held);
        let version = match nearest {
            None => UNMANAGED.to_owned(),
            Some(held) => name_of(&held.document, &held.document.differing(&bios.attributes)),
        };
        Self {
            version,
            staged,
            named_by: nearest.cloned(),
        }
    }
}

/// A document's version, but for what is otherwise.
fn name_of(document: &Document, differing: &[Differing<'_>]) -> String {
    let names: Vec<&str> = differing.iter().take(NAMED_MAX).map(|one| one.name).collect();
    let more = differing.len() - names.len();
    match (names.is_empty(), more) {
        (true, _) => document.version.clone(),
        (false, 0) => format!("{} but for {}", document.version, names.join(", ")),
        (false, more) => format!("{} but for {} and {more} more", document.version, names.join(", ")),
    }
}

impl BiosBackend {
    /// The settings of the BIOS behind this BMC. Sends nothing.
    #[must_use]
    pub fn new(redfish: RedfishBackend, settings: BiosSettings) -> Self {
        Self { redfish, settings }
    }

    /// What speaks to the BMC.
    #[must_use]
    pub fn redfish(&self) -> &RedfishBackend {
        &self.redfish
    }

    /// The folder is the node's own disk, and the files are small.
    async fn books(&self) -> Result<Books, BiosError> {
        let folder = self.settings.work_dir.clone();
        let read = tokio::task::spawn_blocking(move || Books::read(&folder)).await;
        Ok(read.map_err(BiosError::Worker)??)
    }

    async fn keep(&self, books: Books) -> Result<(), BiosError> {
        let folder = self.settings.work_dir.clone();
        let written = tokio::task::spawn_blocking(move || books.write(Path::new(&folder))).await;
        Ok(written.map_err(BiosError::Worker)??)
    }

    /// The BIOS as it is now.
    async fn bios(&self) -> Result<Bios, ClientError> {
        let map = self.redfish.map().await?;
        let client = &self.redfish.client;
        let system: System = client.read_or_default("read the system", map.system.as_ref()).await?;
        Bios::read(client, system.bios.as_ref()).await
    }

    async fn see(&self) -> Result<Seen, BiosError> {
        let map = self.redfish.map().await?;
        let client = &self.redfish.client;
        let system: System = client.read_or_default("read the system", map.system.as_ref()).await?;
        let manager: Manager = client.read_or_default("read the manager", map.manager.as_ref()).await?;
        let (vendor, model) = self.redfish.identity(&map, &system).await?;
        let (ready, boot_id, resets) = self.redfish.state(&map, &system, &manager);
        let bios = Bios::read(client, system.bios.as_ref()).await?;
        let standing = Standing::of(&self.books().await?, &self.settings.documents, &bios);
        // A reset would apply somebody's firmware along with our settings.
        let task = self.redfish.see_any_task(&map).await?;
        let is_open = |state: TaskState| matches!(state, TaskState::Active | TaskState::AwaitsReset);
        Ok(Seen {
            vendor,
            model,
            component: self.redfish.component.clone(),
            version: Some(standing.version),
            ready,
            boot_id,
            staged: standing.staged,
            task: task.filter(|task| is_open(task.state)),
            slots: None,
            image_bytes_max: Some(DOCUMENT_BYTES_MAX),
            resets,
            health: HealthSample::default(),
            clock_off_s: manager.date_time.as_deref().and_then(clock_off_s),
        })
    }

    async fn document(&self, image: &Image) -> Result<Held, BiosError> {
        let reader = self.redfish.images.open(image.artifact.id).await?;
        let mut bytes = Vec::new();
        let mut bounded = reader.take(DOCUMENT_BYTES_MAX + 1);
        bounded.read_to_end(&mut bytes).await.map_err(BiosError::Stream)?;
        let sha256 = Sha256::of(&bytes);
        if sha256 != image.artifact.sha256 {
            return Err(BiosError::Stream(std::io::Error::other("it is not the document's")));
        }
        let document = Document::parse(&bytes)?;
        if document.version != image.info.version {
            return Err(BiosError::Refused(format!(
                "the document says that it is {}, its release that it is {}",
                document.version, image.info.version
            )));
        }
        Ok(Held { sha256, document })
    }

    /// Has the attributes of a document wait for a reset.
    async fn bring(&self, image: &Image) -> Result<(), BiosError> {
        let held = self.document(image).await?;
        let bios = self.bios().await?;
        let client = &self.redfish.client;
        let registry = match &bios.registry {
            Some(name) => registry::read(client, name).await?,
            None => None,
        };
        let objections = registry::objections(&held.document.attributes, &bios.attributes, registry.as_ref());
        if !objections.is_empty() {
            return Err(BiosError::Refused(objections.join("; ")));
        }
        let books = self.books().await?;
        let ours: Vec<&Document> = books.wanted.iter().chain([&held]).map(|held| &held.document).collect();
        let foreign = bios.foreign(&ours);
        if !foreign.is_empty() {
            return Err(BiosError::Refused(format!(
                "settings of somebody else wait for a reset, which would apply them too: {}; apply or discard them first",
                foreign.join(", ")
            )));
        }
        let differing = held.document.differing(&bios.attributes);
        let Some(pending) = &bios.settings else {
            return Err(BiosError::Refused(
                "this BIOS takes no settings for its next start (@Redfish.Settings)".to_owned(),
            ));
        };
        // What an earlier document of ours has left waiting, and this one does not want, is taken back with it.
        let earlier = books
            .wanted
            .iter()
            .flat_map(|earlier| earlier.document.differing(&bios.attributes));
        let back = earlier
            .filter(|one| !held.document.attributes.contains_key(one.name))
            .filter(|one| {
                pending
                    .attributes
                    .get(one.name)
                    .is_some_and(|value| one.wanted.is(value))
            })
            .filter_map(|one| Some((one.name.to_owned(), one.is?.clone())));
        // And what it wants as it is, though something else waits.
        let stays = held.document.attributes.iter().filter(|(name, wanted)| {
            let is_so = bios.attributes.get(*name).is_some_and(|is| wanted.is(is));
            is_so && pending.attributes.get(*name).is_some_and(|value| !wanted.is(value))
        });
        let stays = stays.map(|(name, wanted)| (name.clone(), wanted.to_value()));
        let wanted = differing.iter().map(|one| (one.name.to_owned(), one.wanted.to_value()));
        let attributes: Map<String, Value> = back.chain(stays).chain(wanted).collect();
        let known = Standing::of(&books, &self.settings.documents, &bios).named_by;
        let held_before = known
            .filter(|known| known.sha256 != held.sha256)
            .or_else(|| books.held.clone());
        self.keep(Books {
            wanted: Some(held.clone()),
            held: held_before,
            ..Books::default()
        })
        .await?;
        if attributes.is_empty() {
            return Ok(());
        }
        self.write(pending, attributes).await
    }

    async fn write(&self, pending: &Pending, attributes: Map<String, Value>) -> Result<(), BiosError> {
        let mut body = json!({ "Attributes": attributes });
        if pending.apply_times.iter().any(|time| time == ON_RESET) {
            body["@Redfish.SettingsApplyTime"] = json!({ "ApplyTime": ON_RESET });
        }
        let operation = "write the BIOS's settings";
        let client = &self.redfish.client;
        client
            .patch_as(operation, &pending.link, pending.tag.as_deref(), &body)
            .await?;
        Ok(())
    }

    /// Takes back what waits of the document that was brought last.
    async fn take_back(&self) -> Result<(), BiosError> {
        let mut books = self.books().await?;
        let bios = self.bios().await?;
        if let (Some(held), Some(pending)) = (&books.wanted, &bios.settings) {
            let differing = held.document.differing(&bios.attributes);
            let waits = |one: &&Differing<'_>| {
                pending
                    .attributes
                    .get(one.name)
                    .is_some_and(|value| one.wanted.is(value))
            };
            let waiting = differing.iter().filter(waits);
            let attributes: Map<String, Value> = waiting
                .filter_map(|one| Some((one.name.to_owned(), one.is?.clone())))
                .collect();
            if !attributes.is_empty() {
                self.write(pending, attributes).await?;
            }
        }
        if books.held.is_some() {
            books.wanted = books.held.take();
        }
        self.keep(books).await
    }
}

impl DeviceBackend for BiosBackend {
    async fn observe(&self, _task: Option<&str>) -> Observed {
        match self.see().await {
            Ok(seen) => Observed::Answering(Box::new(seen)),
            Err(error) => {
                *self.redfish.map.lock().await = None;
                Observed::Silent { why: chain(&error) }
            }
        }
    }

    async fn stage(&self, image: &Image, _slot: Option<Slot>) -> Result<Option<String>, ActError> {
        self.redfish.note(|| Act::Stage {
            image: Box::new(image.clone()),
        });
        // The next look shows what waits, or does not.
        self.bring(image).await.map(|()| None).map_err(BiosError::into_act)
    }

    async fn activate(&self, _slot: Option<Slot>) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn reset(&self, rung: Rung) -> Result<(), ActError> {
        self.redfish.reset(rung).await
    }

    async fn confirm(&self) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn abort(&self, _task: Option<&str>) -> Result<(), ActError> {
        self.redfish.note(|| Act::Abort);
        self.take_back().await.map_err(BiosError::into_act)
    }
}
