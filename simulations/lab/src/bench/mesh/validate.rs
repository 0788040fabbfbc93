//! The simulator against what was measured: the same topology and fault in virtual time, and how far apart they are.

use std::{fmt, time::Duration};

use firmesh_node_core::swarm::Tuning;
use firmesh_simulations::mesh::{Fault, TURNS, Topology, World};
use serde::Serialize;

use super::report::Row;

/// Time and bytes may differ by so much before the simulator is called wrong.
const TIME_GOAL: f64 = 0.15;
const BYTES_GOAL: f64 = 0.02;

/// One figure, measured and simulated.
#[derive(Debug, Clone, Copy, Serialize)]
struct Pair {
    measured: f64,
    simulated: f64,
    /// Of the measured one: above 0 where the simulator says more.
    difference: f64,
}

/// What the simulator makes of a measurement.
#[derive(Debug, Serialize)]
pub(super) struct Validation {
    last_s: Pair,
    /// To the image.
    origin: Pair,
    /// To the least possible.
    import: Pair,
    export: Option<Pair>,
    /// How much of the machine was busy: a full one is measured as much as the mesh.
    machine_busy: f64,
}

impl Pair {
    fn of(measured: f64, simulated: f64) -> Self {
        Self {
            measured,
            simulated,
            difference: simulated / measured - 1.0,
        }
    }
}

impl Validation {
    /// Goes through the simulation, which takes seconds.
    pub(super) fn of(row: &Row, topology: Topology, fault: Option<Fault>) -> Self {
        let limit = Duration::from_secs_f64(topology.bound_s() * 10.0 + 60.0);
        let simulated = World::new(topology, fault, Tuning::default(), TURNS, 1).run(limit);
        Self {
            last_s: Pair::of(row.last_s, simulated.last_s),
            origin: Pair::of(row.origin_to_image, simulated.origin),
            import: Pair::of(row.import_to_min, simulated.import),
            export: row
                .export_to_min
                .zip(simulated.export)
                .map(|(row, sim)| Pair::of(row, sim)),
            machine_busy: row.machine_busy,
        }
    }
}

impl fmt::Display for Validation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the simulator     measured  simulated  difference  goal")?;
        let bytes = [
            ("origin/F", Some(self.origin)),
            ("import/min", Some(self.import)),
            ("export/min", self.export),
        ];
        let lines = [("last s", Some(self.last_s), TIME_GOAL)].into_iter();
        let lines = lines.chain(bytes.map(|(name, pair)| (name, pair, BYTES_GOAL)));
        for (name, pair, goal) in lines {
            let Some(Pair {
                measured,
                simulated,
                difference,
            }) = pair
            else {
                continue;
            };
            let verdict = if difference.abs() <= goal { "kept" } else { "missed" };
            writeln!(
                f,
                "  {name:<14} {measured:>9.3} {simulated:>10.3} {:>9.1} %  {:.0} % {verdict}",
                difference * 100.0,
                goal * 100.0
            )?;
        }
        write!(f, "  the machine was {:.0} % busy", self.machine_busy * 100.0)
    }
}
