//! Which pieces the others are still to be told of, and by when.
//!
//! A piece that this node brought into its rack is told to everybody at once: others wait for it. A piece that came from a
//! neighbour is in the rack already; word of it is gathered, a little for the neighbours and longer for everybody else, or
//! telling it would cost a noticeable part of what the pieces cost.

use std::{collections::BTreeMap, time::Duration};

use firmesh_protocol::{ids::ArtifactId, time::Timestamp};

use super::Output;

/// How long word is gathered for the neighbours in the rack.
const RACK_WITHIN: Duration = Duration::from_millis(30);
/// How long word is gathered for everybody else.
const OTHERS_WITHIN: Duration = Duration::from_millis(500);
/// More pieces than this are told at once.
const PIECES_MAX: usize = 1_024;

/// Who is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Audience {
    /// Every peer.
    Everyone,
    /// The peers of this node's innermost group.
    Rack,
    /// All others.
    OtherRacks,
}

/// Word that waits.
#[derive(Debug, Default)]
pub(super) struct News {
    waiting: BTreeMap<(Audience, ArtifactId), Waiting>,
}

#[derive(Debug)]
struct Waiting {
    pieces: Vec<u32>,
    due: Timestamp,
}

impl News {
    /// Takes up a piece that came from the neighbourhood.
    pub(super) fn gather(&mut self, now: Timestamp, artifact: ArtifactId, piece: u32) {
        for (audience, within) in [(Audience::Rack, RACK_WITHIN), (Audience::OtherRacks, OTHERS_WITHIN)] {
            let waiting = self.waiting.entry((audience, artifact)).or_insert_with(|| Waiting {
                pieces: Vec::new(),
                due: now + within,
            });
            waiting.pieces.push(piece);
            if waiting.pieces.len() >= PIECES_MAX {
                waiting.due = now;
            }
        }
    }

    /// A complete artifact leaves nothing more to gather.
    pub(super) fn hurry(&mut self, now: Timestamp, artifact: &ArtifactId) {
        let of_it = self.waiting.iter_mut().filter(|((_, of), _)| of == artifact);
        of_it.for_each(|(_, waiting)| waiting.due = now);
    }

    pub(super) fn forget(&mut self, artifact: &ArtifactId) {
        self.waiting.retain(|(_, of), _| of != artifact);
    }

    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// What is to be told now.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Output> {
        let ready = self.waiting.extract_if(.., |_, waiting| waiting.due <= now);
        ready
            .map(|((audience, artifact), waiting)| Output::Announce {
                artifact,
                pieces: waiting.pieces,
                audience,
            })
            .collect()
    }
}
