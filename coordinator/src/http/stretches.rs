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

/// Some devices, in their order.
pub(super) type Stretch<'a, 'w> = &'a mut dyn Iterator<Item = Looked<'w>>;

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

    /// The next `count` as operators see them, or as many as there are.
    pub(super) async fn take(mut self, count: usize) -> Result<Vec<DeviceView>, ActionError> {
        let mut taken = Vec::new();
        while taken.len() < count && !self.is_over {
            let rest = count - taken.len();
            // Without a filter everybody counts.
            let length = if self.filter.is_some() { CHUNK } else { CHUNK.min(rest) };
            let views =
                move |world: &World, devices: Stretch<'_, '_>| world.views(devices.take(rest)).collect::<Vec<_>>();
            taken.extend(self.look(length, views).await?);
        }
        Ok(taken)
    }

    /// The next `count` of what `pick` makes of them, or as many as there are; without a copy of any other device.
    pub(super) async fn pick<T: Send + 'static>(
        mut self,
        count: usize,
        pick: impl Fn(Looked<'_>) -> Option<T> + Clone + Send + 'static,
    ) -> Result<Vec<T>, ActionError> {
        let mut picked = Vec::new();
        while picked.len() < count && !self.is_over {
            let (rest, pick) = (count - picked.len(), pick.clone());
            let found =
                move |_: &World, devices: Stretch<'_, '_>| devices.filter_map(pick).take(rest).collect::<Vec<_>>();
            picked.extend(self.look(CHUNK, found).await?);
        }
        Ok(picked)
    }

    /// Folds what is left, without a copy of any device.
    pub(super) async fn fold<T: Send + 'static>(
        mut self,
        mut sum: T,
        add: impl Fn(&mut T, &World, Stretch<'_, '_>) + Clone + Send + 'static,
    ) -> Result<T, ActionError> {
        while !self.is_over {
            let add = add.clone();
            let added = move |world: &World, devices: Stretch<'_, '_>| {
                add(&mut sum, world, devices);
                sum
            };
            sum = self.look(CHUNK, added).await?;
        }
        Ok(sum)
    }

    /// What `look` makes of the next stretch.
    async fn look<T: Send + 'static>(
        &mut self,
        length: usize,
        look: impl FnOnce(&World, Stretch<'_, '_>) -> T + Send + 'static,
    ) -> Result<T, ActionError> {
        let (after, filter) = (self.after.take(), self.filter.clone());
        let looked = self.app.coordinator.read(move |world| {
            let (mut devices, last) = world.stretch(after.as_ref(), filter.as_deref(), length);
            (look(world, &mut devices), last)
        });
        let (made, last) = looked.await?;
        self.is_over = last.is_none();
        self.after = last;
        Ok(made)
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
    let add = move |kinds: &mut Kinds<_, _>, world: &World, devices: Stretch<'_, '_>| {
        let latest = world.engine.latest();
        let mut states = latest.along();
        for (device, path) in devices {
            let id = device.facts.device;
            let answers = device.facts.version.is_some() && device.last_seen + silent_after >= wall;
            let status = DeviceStatus::of(states.state(id), !excluded.contains_key(id), answers);
            kinds.add(&place(path), device.facts, status);
        }
    };
    Devices::of(app, None, None).fold(Kinds::default(), add).await
}
