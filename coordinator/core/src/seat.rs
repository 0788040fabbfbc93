//! What a plan says of its devices, kept once for all of whom it says the same: a plan names up to a million devices, which
//! stand at a few nodes and go a few ways.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use firmesh_protocol::{
    ids::{ArtifactId, NodeId, TopologyPath},
    manifest::{Artifact, PlannedDevice},
};

use crate::{attempts::Attempt, campaign::Campaign};

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

impl Course {
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
}

impl Seats {
    /// Where a planned device stands, and its course; `images` has one for each of its targets.
    pub(crate) fn of(
        &mut self,
        planned: PlannedDevice,
        images: &BTreeMap<String, Artifact>,
    ) -> (Arc<Seat>, Arc<Course>) {
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
        (kept(&mut self.seats, seat), kept(&mut self.courses, course))
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
    /// What the plan says of an attempt's device.
    pub(crate) fn planned(&self, attempt: &Attempt) -> PlannedDevice {
        let Attempt { seat, course, .. } = attempt;
        let before = attempt.after.map(|before| self.attempts.at(before));
        PlannedDevice {
            device: attempt.record.device.clone(),
            node: seat.node.clone(),
            rack: seat.rack.clone(),
            release: course.release.clone(),
            from_version: course.from_version.clone(),
            hops: course.hops.clone(),
            previous: course.previous.clone(),
            labels: attempt.labels.clone(),
            after: before.map(|before| before.record.device.clone()),
        }
    }
}
