//! Counts of devices that are alike: a million devices are some thousand kinds.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

use firmesh_protocol::{ids::Component, report::Facts};

/// Counts by place, vendor, model, component and version, and by something else of the counter's choice.
#[derive(Debug)]
pub(crate) struct Kinds<P, S> {
    places: Names<P>,
    vendors: Names<String>,
    models: Names<String>,
    components: Names<Component>,
    versions: Names<String>,
    counts: HashMap<([u32; 5], S), u32>,
}

/// One kind.
#[derive(Debug)]
pub(crate) struct Kind<'a, P, S> {
    pub(crate) place: &'a P,
    pub(crate) vendor: &'a str,
    pub(crate) model: &'a str,
    pub(crate) component: &'a Component,
    pub(crate) version: Option<&'a str>,
    pub(crate) other: S,
}

impl<P, S> Default for Kinds<P, S> {
    fn default() -> Self {
        Self {
            places: Names::default(),
            vendors: Names::default(),
            models: Names::default(),
            components: Names::default(),
            versions: Names::default(),
            counts: HashMap::new(),
        }
    }
}

impl<P: Clone + Eq + Hash, S: Copy + Eq + Hash> Kinds<P, S> {
    /// One more.
    pub(crate) fn add(&mut self, place: &P, facts: Facts<'_>, other: S) {
        let kind = [
            self.places.number(place),
            self.vendors.number(facts.vendor),
            self.models.number(facts.model),
            self.components.number(facts.component),
            facts
                .version
                .map_or(NO_VERSION, |version| self.versions.number(version)),
        ];
        *self.counts.entry((kind, other)).or_default() += 1;
    }

    /// The kinds with how many there are of each, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Kind<'_, P, S>, u32)> {
        self.counts.iter().map(|((kind, other), count)| {
            let [place, vendor, model, component, version] = *kind;
            let kind = Kind {
                place: self.places.name(place),
                vendor: self.vendors.name(vendor),
                model: self.models.name(model),
                component: self.components.name(component),
                version: (version != NO_VERSION).then(|| self.versions.name(version).as_str()),
                other: *other,
            };
            (kind, *count)
        })
    }
}

/// The number of no version: there are never so many.
const NO_VERSION: u32 = u32::MAX;

/// Names by number, each kept once.
#[derive(Debug)]
struct Names<T> {
    numbers: HashMap<T, u32>,
    names: Vec<T>,
    /// Neighbours have much in common.
    last: u32,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            names: Vec::new(),
            last: 0,
        }
    }
}

impl<T: Clone + Eq + Hash> Names<T> {
    fn number<Q>(&mut self, name: &Q) -> u32
    where
        T: Borrow<Q>,
        Q: ToOwned<Owned = T> + Eq + Hash + ?Sized,
    {
        if self.names.get(self.last as usize).map(Borrow::borrow) != Some(name) {
            self.last = self.numbers.get(name).copied().unwrap_or_else(|| {
                let number = u32::try_from(self.names.len()).expect("a fleet has fewer devices than that");
                self.names.push(name.to_owned());
                self.numbers.insert(name.to_owned(), number);
                number
            });
        }
        self.last
    }

    fn name(&self, number: u32) -> &T {
        &self.names[number as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use firmesh_protocol::{labels::Labels, report::DeviceFacts};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn devices_are_counted_as_one_by_one(devices in proptest::collection::vec((0..3_u8, 0..3_u8, 0..4_u8, 0..2_u8), 0..60)) {
            let mut kinds = Kinds::default();
            let mut plainly: BTreeMap<_, u32> = BTreeMap::new();
            for (place, model, version, other) in devices {
                let version = (version > 0).then(|| format!("{version}.0"));
                let facts = DeviceFacts {
                    device: "d".parse().unwrap(),
                    vendor: "Acme".to_owned(),
                    model: format!("m{model}"),
                    component: Component::new("bmc").unwrap(),
                    version: version.clone(),
                    executor: "redfish".to_owned(),
                    labels: Labels::default(),
                };
                kinds.add(&place, Facts::from(&facts), other);
                *plainly.entry((place, facts.model, version, other)).or_default() += 1;
            }
            let counted = kinds.iter().map(|(kind, count)| {
                assert_eq!((kind.vendor, kind.component.as_str()), ("Acme", "bmc"));
                ((*kind.place, kind.model.to_owned(), kind.version.map(str::to_owned), kind.other), count)
            });
            prop_assert_eq!(counted.collect::<BTreeMap<_, _>>(), plainly);
        }
    }
}
