//! Pieces that this node is about to have without the network: put together from other images it holds.
//!
//! Invariant: a reservation ends by itself, so that a promise nobody keeps costs a bounded wait.

use std::collections::BTreeMap;

use firmesh_protocol::{ids::ArtifactId, pieces::PieceSet, time::Timestamp};

/// What is reserved, by artifact.
#[derive(Debug, Default)]
pub(super) struct Reserved(BTreeMap<ArtifactId, (PieceSet, Timestamp)>);

impl Reserved {
    pub(super) fn set(&mut self, now: Timestamp, artifact: ArtifactId, pieces: PieceSet, until: Timestamp) {
        match pieces.count() > 0 && now < until {
            true => self.0.insert(artifact, (pieces, until)),
            false => self.0.remove(&artifact),
        };
    }

    pub(super) fn covers(&self, artifact: &ArtifactId, piece: u32) -> bool {
        self.0.get(artifact).is_some_and(|(pieces, _)| pieces.contains(piece))
    }

    pub(super) fn pieces(&self, artifact: &ArtifactId) -> Option<&PieceSet> {
        self.0.get(artifact).map(|(pieces, _)| pieces)
    }

    pub(super) fn forget(&mut self, artifact: &ArtifactId) {
        self.0.remove(artifact);
    }

    /// Ends what nobody kept; true if there was anything.
    pub(super) fn expire(&mut self, now: Timestamp) -> bool {
        let before = self.0.len();
        self.0.retain(|_, (_, until)| now < *until);
        self.0.len() < before
    }

    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.0.values().map(|(_, until)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use firmesh_protocol::{
        ids::{NodeId, TopologyPath},
        manifest::Priority,
    };

    use super::super::{Input, Output, Swarm, Tuning};
    use super::*;

    const PIECES: u32 = 6;

    fn at(ms: u64) -> Timestamp {
        Timestamp::after_start(Duration::from_millis(ms))
    }

    fn pieces(list: &[u32]) -> PieceSet {
        let mut set = PieceSet::empty(PIECES);
        list.iter().for_each(|piece| {
            set.insert(*piece);
        });
        set
    }

    /// A node alone with the origin, a second after it reserved some.
    fn node(reserved: &[u32]) -> (Swarm, ArtifactId) {
        let path: TopologyPath = "eu/s1/r1/n1".parse().unwrap();
        let mut swarm = Swarm::new(NodeId::new("n1").unwrap(), path, Tuning::default(), 1);
        let artifact = ArtifactId::of(b"image");
        swarm.handle(at(0), Input::Origin { available: true });
        reserve(&mut swarm, artifact, 0, reserved, 3_000);
        let have = PieceSet::empty(PIECES);
        swarm.handle(
            at(0),
            Input::Want {
                artifact,
                have,
                priority: Priority::Normal,
            },
        );
        (swarm, artifact)
    }

    fn reserve(swarm: &mut Swarm, artifact: ArtifactId, now: u64, list: &[u32], until: u64) {
        let (pieces, until) = (pieces(list), at(until));
        swarm.handle(
            at(now),
            Input::Reserve {
                artifact,
                pieces,
                until,
            },
        );
    }

    /// What it asks for, if every request is answered at once.
    fn asked(swarm: &mut Swarm, now: Timestamp) -> Vec<u32> {
        let mut asked = Vec::new();
        while let Some(output) = swarm.poll() {
            if let Output::Fetch { id, piece, .. } = output {
                asked.push(piece);
                let waited = Duration::ZERO;
                swarm.handle(now, Input::Fetched { id, waited });
            }
        }
        asked.sort_unstable();
        asked
    }

    #[test]
    fn what_is_reserved_is_asked_for_only_when_its_time_is_over() {
        let (mut swarm, _) = node(&[0, 1, 4]);
        assert_eq!(asked(&mut swarm, at(1_000)), [2, 3, 5]);
        let mut now = at(1_000);
        while now < at(3_000) {
            now = swarm.deadline().expect("a reservation ends by itself").min(at(3_000));
            if now < at(3_000) {
                swarm.handle(now, Input::Tick);
                assert_eq!(asked(&mut swarm, now), [0_u32; 0], "at {now:?}");
            }
        }
        swarm.handle(now, Input::Tick);
        assert_eq!(asked(&mut swarm, now), [0, 1, 4]);
    }

    #[test]
    fn what_was_put_together_is_announced_and_never_asked_for() {
        let (mut swarm, artifact) = node(&[0, 1, 2, 3, 4, 5]);
        assert_eq!(asked(&mut swarm, at(50)), [0_u32; 0]);
        for piece in 0..4 {
            swarm.handle(at(100), Input::Stored { artifact, piece });
        }
        // The rest could not be made after all.
        reserve(&mut swarm, artifact, 200, &[], 3_000);
        assert_eq!(swarm.have(&artifact).unwrap().count(), 4);
        assert_eq!(asked(&mut swarm, at(200)), [4, 5]);
        swarm.handle(at(5_000), Input::Tick);
        assert_eq!(asked(&mut swarm, at(5_000)), [0_u32; 0]);
    }

    #[test]
    fn a_reservation_of_an_artifact_that_is_forgotten_ends() {
        let (mut swarm, artifact) = node(&[0, 1, 2, 3, 4, 5]);
        swarm.handle(at(10), Input::Forget { artifact });
        assert_eq!(swarm.deadline().filter(|due| *due > at(1_500)), None);
    }
}
