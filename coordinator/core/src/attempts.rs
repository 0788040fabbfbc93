//! A campaign's attempts: side by side in the order of the plan, so that a wave is a slice and a look at all of them needs
//! no search, and found by device.
//!
//! Invariant: there is one for every planned device, and none comes or goes.

use std::{
    collections::BTreeMap,
    ops::{Bound, Index, Range},
    slice,
};

use firmesh_protocol::ids::DeviceId;

use crate::campaign::Attempt;

#[derive(Debug)]
pub(crate) struct Attempts {
    all: Vec<Attempt>,
    places: BTreeMap<DeviceId, usize>,
    waves: Vec<Range<usize>>,
}

impl Attempts {
    /// By wave, each device once.
    pub(crate) fn new(by_wave: impl Iterator<Item = Vec<Attempt>>) -> Self {
        let (mut all, mut waves) = (Vec::new(), Vec::new());
        for wave in by_wave {
            let begins = all.len();
            all.extend(wave);
            waves.push(begins..all.len());
        }
        let place = |(place, attempt): (usize, &Attempt)| (attempt.record.device.clone(), place);
        Self {
            places: all.iter().enumerate().map(place).collect(),
            all,
            waves,
        }
    }

    pub(crate) fn get(&self, device: &DeviceId) -> Option<&Attempt> {
        self.places.get(device).map(|place| &self.all[*place])
    }

    pub(crate) fn get_mut(&mut self, device: &DeviceId) -> Option<&mut Attempt> {
        self.places.get(device).map(|place| &mut self.all[*place])
    }

    pub(crate) fn contains(&self, device: &DeviceId) -> bool {
        self.places.contains_key(device)
    }

    /// All, in the order of the plan.
    pub(crate) fn iter(&self) -> slice::Iter<'_, Attempt> {
        self.all.iter()
    }

    /// All, in the order of the plan.
    pub(crate) fn iter_mut(&mut self) -> slice::IterMut<'_, Attempt> {
        self.all.iter_mut()
    }

    /// All, in the order of their devices.
    pub(crate) fn by_device(&self) -> impl Iterator<Item = &Attempt> {
        self.places.values().map(|place| &self.all[*place])
    }

    /// Those of the devices after this one, in the order of their devices.
    pub(crate) fn after(&self, device: Option<&DeviceId>) -> impl Iterator<Item = &Attempt> {
        let first = device.map_or(Bound::Unbounded, Bound::Excluded);
        let places = self.places.range::<DeviceId, _>((first, Bound::Unbounded));
        places.map(|(_, place)| &self.all[*place])
    }

    /// Those of a wave; none of a wave that is not planned.
    pub(crate) fn of_wave(&self, wave: usize) -> &[Attempt] {
        self.waves.get(wave).map_or(&[], |range| &self.all[range.clone()])
    }

    /// Those of the first waves.
    pub(crate) fn of_first_waves(&self, count: usize) -> &[Attempt] {
        let last = self.waves[..count.min(self.waves.len())].last();
        last.map_or(&[], |range| &self.all[..range.end])
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}

impl Index<&DeviceId> for Attempts {
    type Output = Attempt;
    fn index(&self, device: &DeviceId) -> &Attempt {
        &self.all[self.places[device]]
    }
}
