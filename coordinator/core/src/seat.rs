//! What a plan says of its devices, kept once for all of whom it says the same: a plan names up to a million devices, which
//! stand at a few nodes and go a few ways.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use firmesh_protocol::{
    ids::{ArtifactId, NodeId, TopologyPath},
    labels::Labels,
    manifest::{Artifact, PlannedDevice},
};

use crate::{
    attempts::{Attempt, Place},
    campaign::Campaign,
    domains::{Domains, Takes},
};

/// Where devices stand.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat {
    /// The node that looks after them.
    pub(crate) node: NodeId,
    /// The rack whose cap they count against.
    pub(crate) rack: TopologyPath,
}

/// What devices get that run the same version and go the same way from there.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Course {
    from_version: String,
    hops: Vec<String>,
    release: String,
    previous: Option<String>,
    /// The images of the way, in its order, and the one that they may have to go back to.
    pub(crate) needs: Vec<ArtifactId>,
}

/// Where devices stand that get the same, and what they take there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) wave: u32,
    pub(crate) seat: Arc<Seat>,
    pub(crate) course: Arc<Course>,
    /// The rack, by number.
    pub(crate) rack_number: u32,
    /// What one of them takes in fault domains, if any are looked at.
    pub(crate) takes: Option<Arc<Takes>>,
}

#[cfg(test)]
impl Stand {
    /// Some place or other.
    pub(crate) fn any() -> Self {
        let (node, rack) = ("r1-n1".parse().unwrap(), "eu/fra1/r1".parse().unwrap());
        let course = Course {
            from_version: "1.0.0".to_owned(),
            hops: Vec::new(),
            release: "firmware/acme-r1-bmc-1.1.0".to_owned(),
            previous: None,
            needs: Vec::new(),
        };
        Self {
            wave: 0,
            seat: Arc::new(Seat { node, rack }),
            course: Arc::new(course),
            rack_number: 0,
            takes: None,
        }
    }
}

/// What is a device's own, as far as the plan says: most have nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) labels: Labels,
    /// Its unit, by number.
    pub(crate) unit: Option<u32>,
    /// Who of its unit comes right before it, and right after it.
    pub(crate) after: Option<Place>,
    pub(crate) next: Option<Place>,
}

impl Course {
    /// What its devices run before.
    pub(crate) fn initial_version(&self) -> &str {
        &self.from_version
    }

    /// Whether something leads back.
    pub(crate) fn can_go_back(&self) -> bool {
        self.previous.is_some()
    }

    /// How many installs the way has, and what runs before the first, if there are several.
    pub(crate) fn steps(&self) -> Option<(u32, &str)> {
        let hops = u32::try_from(self.hops.len()).expect("a checked plan has at most HOPS_MAX hops");
        (hops > 0).then_some((hops + 1, self.from_version.as_str()))
    }
}

/// What was kept so far.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    seats: BTreeSet<Arc<Seat>>,
    courses: BTreeSet<Arc<Course>>,
    stands: Stands,
    owns: BTreeMap<Labels, Arc<Own>>,
}

impl Seats {
    /// The attempt at a planned device; `images` has one for each of its targets. Who comes before it in its unit is left out.
    pub(crate) fn attempt(
        &mut self,
        wave: usize,
        planned: PlannedDevice,
        images: &BTreeMap<String, Artifact>,
    ) -> Attempt {
        let needs = planned.targets().map(|target| images[target].id).collect();
        let seat = Seat {
            node: planned.node,
            rack: planned.rack,
        };
        let course = Course {
            from_version: planned.from_version,
            hops: planned.hops,
            release: planned.release,
            previous: planned.previous,
            needs,
        };
        let stand = self.stands.kept(Stand {
            wave: u32::try_from(wave).expect("a checked plan has at most WAVES_MAX waves"),
            seat: kept(&mut self.seats, seat),
            course: kept(&mut self.courses, course),
            rack_number: 0,
            takes: None,
        });
        let own = match self.owns.get(&planned.labels) {
            Some(own) => Arc::clone(own),
            None => {
                let labels = planned.labels.clone();
                let own = Arc::new(Own {
                    labels,
                    ..Own::default()
                });
                Arc::clone(self.owns.entry(planned.labels).or_insert(own))
            }
        };
        Attempt::fresh(planned.device, stand, own)
    }
}

/// Stands, each once, by their parts, of which each is kept once as well.
#[derive(Debug, Default)]
struct Stands(BTreeMap<(u32, [usize; 3]), Arc<Stand>>);

impl Stands {
    fn kept(&mut self, stand: Stand) -> Arc<Stand> {
        let takes = stand.takes.as_ref().map_or(0, |takes| Arc::as_ptr(takes).addr());
        let parts = [
            Arc::as_ptr(&stand.seat).addr(),
            Arc::as_ptr(&stand.course).addr(),
            takes,
        ];
        // The rack's number follows from the seat.
        let known = self.0.entry((stand.wave, parts));
        Arc::clone(known.or_insert_with(|| Arc::new(stand)))
    }
}

fn kept<T: Ord>(known: &mut BTreeSet<Arc<T>>, new: T) -> Arc<T> {
    if let Some(known) = known.get(&new) {
        return Arc::clone(known);
    }
    let new = Arc::new(new);
    known.insert(Arc::clone(&new));
    new
}

impl Campaign {
    /// Looks up what its devices take in racks and fault domains.
    pub(crate) fn locate(&mut self, domains: &mut Domains) {
        self.rules = Arc::new(domains.own_rules(&self.manifest.caps, &self.shares));
        let mut stands = Stands::default();
        self.attempts.change_all(|attempt| {
            let Stand { wave, seat, course, .. } = &*attempt.stand;
            let unit = attempt.own.labels.unit();
            let unit = domains.unit(unit.map(|unit| (&seat.node, unit)));
            attempt.stand = stands.kept(Stand {
                wave: *wave,
                seat: Arc::clone(seat),
                course: Arc::clone(course),
                rack_number: domains.rack(&seat.rack),
                takes: domains.takes(&seat.rack, &attempt.own.labels),
            });
            if attempt.own.unit != unit {
                Arc::make_mut(&mut attempt.own).unit = unit;
            }
        });
        self.index_all();
    }

    /// What the plan says of an attempt's device.
    pub(crate) fn planned(&self, attempt: &Attempt) -> PlannedDevice {
        let (Stand { seat, course, .. }, own) = (&*attempt.stand, &attempt.own);
        PlannedDevice {
            device: attempt.record.device.clone(),
            node: seat.node.clone(),
            rack: seat.rack.clone(),
            release: course.release.clone(),
            from_version: course.from_version.clone(),
            hops: course.hops.clone(),
            previous: course.previous.clone(),
            labels: own.labels.clone(),
            after: own.after.map(|before| self.attempts.device(before).clone()),
        }
    }
}
