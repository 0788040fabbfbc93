//! Going through all devices, a stretch at a time: nobody waits for a whole fleet to be looked at.
//!
//! Invariants: a device that is there from beginning to end is met once; what changes meanwhile is met as it is when its
//! stretch is.

use std::sync::Arc;

use firmesh_coordinator_core::Filter;
use firmesh_protocol::{
    api::{DeviceStatus, DeviceView},
    ids::{DeviceId, TopologyPath},
};

use super::App;
use crate::{
    kinds::Kinds,
    runtime::ActionError,
    world::{Looked, World},
};

/// Devices that are looked at before others get their turn.
const CHUNK: usize = 4_000;

/// The devices that nodes tell of and for which a filter holds.
pub(super) struct Devices<'a> {
    app: &'a App,
    filter: Option<Arc<Filter>>,
    after: Option<DeviceId>,
    is_over: bool,
}

impl<'a> Devices<'a> {
    pub(super) fn of(app: &'a App, filter: Option<Arc<Filter>>, after: Option<DeviceId>) -> Self {
        Self {
            app,
            filter,
            after,
            is_over: false,
        }
    }

    /// Some more of them, as operators see them.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<DeviceView>>, ActionError> {
        self.next_of(usize::MAX).await
    }

    /// The next `count`, or as many as there are.
    pub(super) async fn take(&mut self, count: usize) -> Result<Vec<DeviceView>, ActionError> {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(more) = self.next_of(count - taken.len()).await?
        {
            taken.extend(more);
        }
        Ok(taken)
    }

    /// At most `count` of a stretch, if it is not over.
    async fn next_of(&mut self, count: usize) -> Result<Option<Vec<DeviceView>>, ActionError> {
        if self.is_over {
            return Ok(None);
        }
        let (after, filter) = (self.after.take(), self.filter.clone());
        // Without a filter everybody counts.
        let most = if filter.is_some() { CHUNK } else { CHUNK.min(count) };
        let (views, last) = self
            .app
            .coordinator
            .read(move |world| {
                let (devices, last) = world.stretch(after.as_ref(), filter.as_deref(), most);
                let views: Vec<_> = world.views(devices.take(count)).collect();
                (views, last)
            })
            .await?;
        self.is_over = last.is_none();
        self.after = last;
        Ok(Some(views))
    }

    /// Folds what is left, without a copy of any device.
    pub(super) async fn fold<T: Send + 'static>(
        mut self,
        mut sum: T,
        add: impl Fn(&mut T, &World, &mut dyn Iterator<Item = Looked<'_>>) + Clone + Send + 'static,
    ) -> Result<T, ActionError> {
        while !self.is_over {
            let (after, filter, add) = (self.after.take(), self.filter.clone(), add.clone());
            let looked = self.app.coordinator.read(move |world| {
                let (mut devices, last) = world.stretch(after.as_ref(), filter.as_deref(), CHUNK);
                add(&mut sum, world, &mut devices);
                drop(devices);
                (sum, last)
            });
            let (folded, last) = looked.await?;
            (sum, self.after) = (folded, last);
            self.is_over = self.after.is_none();
        }
        Ok(sum)
    }
}

/// All devices, counted by what they are, in which state they are, and where: as deep as `place` says.
pub(super) async fn by_status(
    app: &App,
    place: impl Fn(&TopologyPath) -> TopologyPath + Clone + Send + 'static,
) -> Result<Kinds<TopologyPath, DeviceStatus>, ActionError> {
    let excluded = app.store.excluded().await?;
    let excluded = Arc::new(excluded);
    let (silent_after, wall) = (app.settings.silent_after, app.clock.wall());
    let add = move |kinds: &mut Kinds<_, _>, world: &World, devices: &mut dyn Iterator<Item = Looked<'_>>| {
        let latest = world.engine.latest();
        let mut states = latest.along();
        for (device, path) in devices {
            let id = &device.facts.device;
            let answers = device.facts.version.is_some() && device.last_seen + silent_after >= wall;
            let status = DeviceStatus::of(states.state(id), !excluded.contains_key(id), answers);
            kinds.add(&place(path), &device.facts, status);
        }
    };
    Devices::of(app, None, None).fold(Kinds::default(), add).await
}
