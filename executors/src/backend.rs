//! What every kind of device can be asked to do: one act per call.

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use firmesh_executors_core::{ActError, Goal, Image, Observed, Rung, Slot};
use firmesh_protocol::{
    ids::{Component, DeviceId},
    labels::Labels,
    report::DeviceFacts,
};

use crate::{
    ab_slot::AbSlotBackend,
    command::CommandBackend,
    config::{DeviceSettings, ExecutorSettings},
    ddi::{self, DdiBackend, Desk},
    image::ImageSource,
    journal::JournalError,
    node_self::{NodeSelfBackend, Own},
    rauc::RaucBackend,
    redfish::{BiosBackend, ClientError, RedfishBackend, Transcript},
    swupdate::Writer,
};

/// Acts on one device. No method decides anything, and none may be replayed without a look in between.
pub trait DeviceBackend: Send + Sync {
    /// Looks at the device, and at its update task if one is named. What goes wrong is silence with a reason.
    fn observe(&self, task: Option<&str>) -> impl Future<Output = Observed> + Send;
    /// Brings an image onto the device, inactive; answers the task that installs it, if the device runs one.
    fn stage(&self, image: &Image, slot: Option<Slot>)
    -> impl Future<Output = Result<Option<String>, ActError>> + Send;
    /// Makes the next reset start the staged image, once.
    fn activate(&self, slot: Option<Slot>) -> impl Future<Output = Result<(), ActError>> + Send;
    /// Restarts.
    fn reset(&self, rung: Rung) -> impl Future<Output = Result<(), ActError>> + Send;
    /// Keeps the image that is on trial.
    fn confirm(&self) -> impl Future<Output = Result<(), ActError>> + Send;
    /// Gives up what is staged or under way.
    fn abort(&self, task: Option<&str>) -> impl Future<Output = Result<(), ActError>> + Send;
}

/// A device's backend, whatever its kind.
#[derive(Debug)]
pub struct Backend {
    device: DeviceId,
    component: Component,
    labels: Labels,
    answers_min: u32,
    answers_apart: Option<Duration>,
    host: Option<String>,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Redfish(RedfishBackend),
    Bios(BiosBackend),
    AbSlot(AbSlotBackend),
    Command(Box<CommandBackend>),
    Rauc(RaucBackend),
    Swupdate(AbSlotBackend),
    Ddi(DdiBackend),
    NodeSelf(NodeSelfBackend),
}

/// Why a backend could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The HTTPS client could not be made.
    #[error("the Redfish client of device {device} could not be made")]
    Redfish {
        /// The device.
        device: DeviceId,
        /// Why.
        source: ClientError,
    },
    /// What is known of it cannot be taken up.
    #[error("device {device} asks for its updates, and what it was told is not known")]
    Ddi {
        /// The device.
        device: DeviceId,
        /// Why.
        source: ddi::OpenError,
    },
    /// It asks for its updates, and here is nobody to ask.
    #[error("device {device} asks for its updates, which a node answers, and nobody else")]
    NobodyToAsk {
        /// The device.
        device: DeviceId,
    },
}

/// Makes the backend of a device that does not ask for its updates. Touches nothing. The node itself can be looked at so, and not
/// updated.
pub fn build(settings: &DeviceSettings, images: Arc<dyn ImageSource>) -> Result<Backend, BuildError> {
    build_with(settings, images, None, None)
}

/// Makes the backend of any device. What is known of one that asks for its updates is at the `desk`; the node that updates itself is its
/// `own`.
pub fn build_with(
    settings: &DeviceSettings,
    images: Arc<dyn ImageSource>,
    desk: Option<&Arc<Desk>>,
    own: Option<&Arc<dyn Own>>,
) -> Result<Backend, BuildError> {
    let (device, component) = (settings.device.clone(), settings.component.clone());
    let kind = match &settings.executor {
        ExecutorSettings::Redfish(redfish) => {
            let backend = RedfishBackend::new(redfish.clone(), component.clone(), images);
            let backend = backend.map_err(|source| BuildError::Redfish {
                device: device.clone(),
                source,
            })?;
            match &redfish.bios_settings {
                Some(bios) => Kind::Bios(BiosBackend::new(backend, bios.clone())),
                None => Kind::Redfish(backend),
            }
        }
        ExecutorSettings::AbSlot(slots) => Kind::AbSlot(AbSlotBackend::new(slots.clone(), component.clone(), images)),
        ExecutorSettings::Swupdate(swupdate) => {
            let slots = AbSlotBackend::new(swupdate.slots.clone(), component.clone(), images);
            Kind::Swupdate(slots.written_by(Writer::new(swupdate.clone())))
        }
        ExecutorSettings::Rauc(rauc) => Kind::Rauc(RaucBackend::new(rauc.clone(), component.clone(), images)),
        ExecutorSettings::Command(tool) => {
            let backend = CommandBackend::new((**tool).clone(), component.clone(), images);
            Kind::Command(Box::new(backend))
        }
        ExecutorSettings::NodeSelf(node) => {
            let own = own.map(Arc::clone);
            Kind::NodeSelf(NodeSelfBackend::new(node.clone(), component.clone(), images, own))
        }
        ExecutorSettings::Ddi(ddi) => {
            let Some(desk) = desk else {
                return Err(BuildError::NobodyToAsk { device });
            };
            let (id, component) = (device.clone(), component.clone());
            let opened = ddi::Device::open(id, component, ddi.clone(), Arc::clone(desk), images);
            let opened = opened.map_err(|source| BuildError::Ddi {
                device: device.clone(),
                source,
            })?;
            Kind::Ddi(DdiBackend::new(Arc::new(opened)))
        }
    };
    Ok(Backend {
        device,
        component,
        labels: settings.labels.clone(),
        answers_min: settings.answers_min,
        answers_apart: settings.answers_apart,
        host: settings.host.clone(),
        kind,
    })
}

/// Makes the backend of a device that a transcript answers for.
pub fn replay(transcript: &Transcript, images: Arc<dyn ImageSource>) -> Result<Backend, BuildError> {
    let device = transcript.device().clone();
    let backend = RedfishBackend::replay(transcript, images);
    let backend = backend.map_err(|source| BuildError::Redfish {
        device: device.clone(),
        source,
    })?;
    Ok(Backend {
        device,
        component: transcript.component().clone(),
        labels: Labels::default(),
        answers_min: Goal::ANSWERS_MIN,
        answers_apart: None,
        host: None,
        kind: Kind::Redfish(backend),
    })
}

impl Backend {
    /// The device.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The component that is updated on it.
    #[must_use]
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// What the configuration says of it.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Good answers in a row that count as "back", and the time between two of them if its configuration says so.
    #[must_use]
    pub fn answers(&self) -> (u32, Option<Duration>) {
        (self.answers_min, self.answers_apart)
    }

    /// The host that steps aside before an attempt touches the device, if one does.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The executor's name: `redfish`, `ab_slot`, `rauc`, `swupdate`, `ddi`, `node-self`, or that of a tool's description.
    #[must_use]
    pub fn executor(&self) -> &str {
        match &self.kind {
            Kind::Redfish(_) | Kind::Bios(_) => "redfish",
            Kind::AbSlot(_) => "ab_slot",
            Kind::Rauc(_) => "rauc",
            Kind::Swupdate(_) => "swupdate",
            Kind::Command(command) => command.name(),
            Kind::Ddi(_) => "ddi",
            Kind::NodeSelf(_) => "node-self",
        }
    }

    /// The device as the face sees it that answers it, if it asks for its updates.
    #[must_use]
    pub fn asking(&self) -> Option<&Arc<ddi::Device>> {
        match &self.kind {
            Kind::Ddi(ddi) => Some(ddi.device()),
            _ => None,
        }
    }

    /// Whether the device is the node that looks after it.
    #[must_use]
    pub fn is_the_node(&self) -> bool {
        matches!(self.kind, Kind::NodeSelf(_))
    }

    /// An attempt is over: what is still offered to the device must not be taken up any more.
    pub async fn over(&self) -> Result<(), JournalError> {
        match &self.kind {
            Kind::Ddi(ddi) => ddi.device().withdraw().await,
            Kind::Redfish(redfish) => {
                redfish.over();
                Ok(())
            }
            Kind::Bios(bios) => {
                bios.redfish().over();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The transcript that is written of what is said to the device, or was last: a file of lines, without secrets. Nothing where
    /// none is written.
    #[must_use]
    pub fn transcript(&self) -> Option<PathBuf> {
        match &self.kind {
            Kind::Redfish(redfish) => redfish.transcript(),
            Kind::Bios(bios) => bios.redfish().transcript(),
            _ => None,
        }
    }

    /// Lets go of what the device grants only a few times, such as a session. The next call takes it again.
    pub async fn close(&self) {
        match &self.kind {
            Kind::Redfish(redfish) => redfish.close().await,
            Kind::Bios(bios) => bios.redfish().close().await,
            _ => {}
        }
    }

    /// What the device says of itself; the error says why it does not answer.
    pub async fn facts(&self) -> Result<DeviceFacts, ActError> {
        match self.observe(None).await {
            Observed::Silent { why } => Err(ActError {
                reason: why,
                retry: true,
            }),
            Observed::Answering(seen) => Ok(DeviceFacts {
                device: self.device.clone(),
                vendor: seen.vendor,
                model: seen.model,
                component: self.component.clone(),
                version: seen.version,
                executor: self.executor().to_owned(),
                labels: self.labels.clone(),
            }),
        }
    }
}

macro_rules! each_kind {
    ($self:ident, $backend:ident => $call:expr) => {
        match &$self.kind {
            Kind::Redfish($backend) => $call.await,
            Kind::Bios($backend) => $call.await,
            Kind::AbSlot($backend) | Kind::Swupdate($backend) => $call.await,
            Kind::Command($backend) => $call.await,
            Kind::Rauc($backend) => $call.await,
            Kind::Ddi($backend) => $call.await,
            Kind::NodeSelf($backend) => $call.await,
        }
    };
}

impl DeviceBackend for Backend {
    async fn observe(&self, task: Option<&str>) -> Observed {
        bounded(each_kind!(self, backend => backend.observe(task)))
    }

    async fn stage(&self, image: &Image, slot: Option<Slot>) -> Result<Option<String>, ActError> {
        each_kind!(self, backend => backend.stage(image, slot))
    }

    async fn activate(&self, slot: Option<Slot>) -> Result<(), ActError> {
        each_kind!(self, backend => backend.activate(slot))
    }

    async fn reset(&self, rung: Rung) -> Result<(), ActError> {
        each_kind!(self, backend => backend.reset(rung))
    }

    async fn confirm(&self) -> Result<(), ActError> {
        each_kind!(self, backend => backend.confirm())
    }

    async fn abort(&self, task: Option<&str>) -> Result<(), ActError> {
        each_kind!(self, backend => backend.abort(task))
    }
}

/// The most of a name or a version that is believed: what a device says travels in every report.
const TEXT_BYTES_MAX: usize = 128;

/// Cuts what a device says of itself to one short line each.
fn bounded(observed: Observed) -> Observed {
    let Observed::Answering(mut seen) = observed else {
        return observed;
    };
    shorten(&mut seen.vendor);
    shorten(&mut seen.model);
    seen.version.iter_mut().chain(&mut seen.boot_id).for_each(shorten);
    Observed::Answering(seen)
}

fn shorten(text: &mut String) {
    text.retain(|c| !c.is_control());
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// An error and all its causes in one line, as reports carry it.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BMC that answered with a version of two kilobytes made reports that no node could store.
    #[test]
    fn what_a_device_says_of_itself_is_a_short_line() {
        for (said, believed) in [
            ("1.0\r\n", "1.0".to_owned()),
            (&"é".repeat(1_000), "é".repeat(64)),
            ("", String::new()),
        ] {
            let mut text = said.to_owned();
            shorten(&mut text);
            assert_eq!(text, believed);
        }
        let mut odd = format!("a{}", "é".repeat(100));
        shorten(&mut odd);
        assert_eq!(odd.len(), 127);
    }
}
