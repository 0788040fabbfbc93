//! The backend: what a device that asks for its updates said last is what is seen of it, and staging is an offer.

use std::sync::Arc;

use firmesh_executors_core::{ActError, Image, Observed, Rung, Slot};

use super::{Device, device::OfferError};
use crate::backend::{DeviceBackend, chain};

/// Offers updates to a device that asks for them.
#[derive(Debug)]
pub(crate) struct DdiBackend(Arc<Device>);

impl DdiBackend {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        Self(device)
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.0
    }
}

impl DeviceBackend for DdiBackend {
    async fn observe(&self, task: Option<&str>) -> Observed {
        self.0.look(task).await
    }

    async fn stage(&self, image: &Image, _slot: Option<Slot>) -> Result<Option<String>, ActError> {
        let offered = self.0.offer(image).await;
        offered.map(|id| Some(id.to_string())).map_err(|error| ActError {
            reason: chain(&error),
            retry: match &error {
                OfferError::Image(error) => error.retry,
                OfferError::Read(_) | OfferError::Busy(_) | OfferError::Journal(_) => true,
                OfferError::Length { .. } => false,
            },
        })
    }

    async fn activate(&self, _slot: Option<Slot>) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn reset(&self, _rung: Rung) -> Result<(), ActError> {
        // It restarts by itself, or not at all: what it runs then is all that counts.
        Ok(())
    }

    async fn confirm(&self) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn abort(&self, _task: Option<&str>) -> Result<(), ActError> {
        // There is one open action at most.
        self.0.withdraw().await.map_err(|error| ActError {
            reason: chain(&error),
            retry: true,
        })
    }
}

fn no_slots() -> ActError {
    ActError {
        reason: "a device that asks for its updates shows no slots".to_owned(),
        retry: false,
    }
}
