//! Members that do not mean well: each announces the whole image from the beginning, and serves it in its own manner.

use std::time::Duration;

use firmesh_node_core::swarm::FetchFailure;

/// What a dripping peer sends, in bytes per second.
const DRIP: u64 = 100_000;

/// How a member behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Runs the swarm core.
    Honest,
    /// Serves other bytes than the image's.
    WrongBytes,
    /// Serves one piece for another.
    Replay,
    /// Says, when asked, that it does not have what it announced.
    FalseBitfield,
    /// Serves, and takes for ever.
    Drip,
    /// Never answers.
    Silent,
}

/// What comes back to who asked such a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Bytes at the pace of the link, right or wrong.
    Bytes {
        /// Whether they are the piece's.
        right: bool,
    },
    /// Right bytes, after so long.
    Late(Duration),
    /// A word.
    Word(FetchFailure),
    Nothing,
}

impl Manner {
    /// One of the five, by chance.
    pub(super) fn bad(dice: u64) -> Self {
        let all = [
            Self::WrongBytes,
            Self::Replay,
            Self::FalseBitfield,
            Self::Drip,
            Self::Silent,
        ];
        all[(dice % all.len() as u64) as usize]
    }

    pub(super) fn is_honest(self) -> bool {
        self == Self::Honest
    }

    /// What a member that says it holds a piece of so many bytes answers; `holds` for one that speaks the truth.
    pub(super) fn answer(self, holds: bool, bytes: u64) -> Answer {
        match self {
            Self::Honest if holds => Answer::Bytes { right: true },
            Self::Honest | Self::FalseBitfield => Answer::Word(FetchFailure::NotHeld),
            Self::WrongBytes | Self::Replay => Answer::Bytes { right: false },
            Self::Drip => Answer::Late(Duration::from_secs_f64(bytes as f64 / DRIP as f64)),
            Self::Silent => Answer::Nothing,
        }
    }
}
