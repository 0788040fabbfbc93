//! Proving to the coordinator that an image is here: the challenges it names, and the answers to them.
//!
//! Invariants: an answer is worked out from bytes that were read back from the store and checked against the image's tree on
//! the way, once every piece is here (its SHA-256 is looked at when a device needs it); one image is read at a time; an answer that the coordinator has
//! not taken yet is sent again, and dropped when a piece of its image is lost.

use std::{collections::BTreeMap, io, pin::Pin};

use firmesh_protocol::{
    ids::ArtifactId,
    limits::{ANSWERS_MAX, CHALLENGES_MAX},
    pieces::PieceSet,
    possession::{Answer, Challenge, Nonce, Proof, Prover},
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tracing::info;

use super::{Event, Runtime};
use crate::store::Read;

/// What the coordinator wants to have proven.
#[derive(Debug, Default)]
pub(super) struct Possession {
    asked: BTreeMap<ArtifactId, Asked>,
    is_reading: bool,
}

#[derive(Debug)]
struct Asked {
    nonce: Nonce,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its image is not all here, or another one is being read.
    Waiting,
    /// It is being read.
    Reading,
    Answered(Proof),
}

impl Possession {
    /// What is ready to be sent.
    pub(super) fn answers(&self) -> Vec<Answer> {
        let answer = |(artifact, asked): (&ArtifactId, &Asked)| {
            let Standing::Answered(proof) = asked.standing else {
                return None;
            };
            let (artifact, nonce) = (*artifact, asked.nonce);
            let challenge = Challenge { artifact, nonce };
            Some(Answer { challenge, proof })
        };
        self.asked.iter().filter_map(answer).take(ANSWERS_MAX).collect()
    }

    /// A piece of it was lost: whatever was read, it is not all here.
    pub(super) fn lost(&mut self, artifact: &ArtifactId) {
        if let Some(asked) = self.asked.get_mut(artifact) {
            asked.standing = Standing::Waiting;
        }
    }

    /// Takes over what the coordinator asks for now. What it names no more is proven, or not wanted.
    fn heed(&mut self, challenges: &[Challenge]) {
        let mut known = std::mem::take(&mut self.asked);
        for Challenge { artifact, nonce } in challenges.iter().take(CHALLENGES_MAX) {
            let same = known.remove(artifact).filter(|asked| asked.nonce == *nonce);
            let fresh = Asked {
                nonce: *nonce,
                standing: Standing::Waiting,
            };
            self.asked.insert(*artifact, same.unwrap_or(fresh));
        }
    }

    /// What nobody is reading or has read.
    fn waiting(&self) -> Vec<ArtifactId> {
        let waiting = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.standing == Standing::Waiting);
        waiting.map(|(artifact, _)| *artifact).collect()
    }

    /// The image is read from now on.
    fn begin(&mut self, artifact: ArtifactId) -> Option<Challenge> {
        let asked = self.asked.get_mut(&artifact)?;
        asked.standing = Standing::Reading;
        self.is_reading = true;
        let nonce = asked.nonce;
        Some(Challenge { artifact, nonce })
    }

    /// The image was read. Answers whether there is an answer now: another one may have been asked for meanwhile, or a
    /// piece lost.
    fn end(&mut self, challenge: &Challenge, proof: Option<Proof>) -> bool {
        self.is_reading = false;
        let asked = self.asked.get_mut(&challenge.artifact);
        let asked = asked.filter(|asked| asked.nonce == challenge.nonce && asked.standing == Standing::Reading);
        let Some(asked) = asked else { return false };
        asked.standing = proof.map_or(Standing::Waiting, Standing::Answered);
        proof.is_some()
    }
}

impl Runtime {
    pub(super) fn heed_challenges(&mut self, challenges: &[Challenge]) {
        self.possession.heed(challenges);
        self.prove_next();
    }

    /// Begins to work out the next answer, if an image that is asked for is whole and nothing else is being read.
    pub(super) fn prove_next(&mut self) {
        for artifact in self.possession.waiting() {
            let is_whole = self.swarm.have(&artifact).is_some_and(PieceSet::is_full);
            if is_whole && !self.possession.is_reading {
                self.prove(artifact);
            }
        }
    }

    fn prove(&mut self, artifact: ArtifactId) {
        let length = self.tracked.get(&artifact).map(|tracked| tracked.layout.length());
        let (Some(length), Some(challenge)) = (length, self.possession.begin(artifact)) else {
            return;
        };
        let prover = Prover::new(&challenge, &self.settings.node, length);
        let reader = self.store.reader(artifact);
        self.spawn(async move {
            let proof = proof_of(reader, prover).await;
            Event::Proven { challenge, proof }
        });
    }

    pub(super) fn on_proven(&mut self, challenge: &Challenge, proof: io::Result<Proof>) {
        match proof {
            Ok(proof) => {
                if self.possession.end(challenge, Some(proof)) {
                    info!(artifact = %challenge.artifact, "an answer to a challenge of the coordinator is ready");
                    self.fleet.sync_soon();
                }
                self.prove_next();
            }
            Err(error) => {
                // Tried again with the next sync: where a piece was lost, it comes again first.
                self.possession.end(challenge, None);
                self.local_error(&error);
            }
        }
    }
}

/// Reads the sample through the store's check.
async fn proof_of(mut reader: Pin<Box<dyn Read>>, mut prover: Prover) -> io::Result<Proof> {
    let mut group = Vec::new();
    while let Some(range) = prover.wants() {
        group.resize(usize::try_from(range.end - range.start).map_err(io::Error::other)?, 0);
        reader.seek(io::SeekFrom::Start(range.start)).await?;
        reader.read_exact(&mut group).await?;
        prover.add(&group).map_err(io::Error::other)?;
    }
    prover
        .finish()
        .ok_or_else(|| io::Error::other("a sample without an end"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _};

    use firmesh_protocol::{
        chunk::{GROUP_BYTES, HashTree, PieceLayout, encode},
        ids::NodeId,
    };
    use tokio::sync::mpsc;

    use super::*;
    use crate::store::{ChunkStore as _, Lost, PieceStore};

    /// Bit rot is found by the proof, dropped and told, so that it is fetched again: it is never proven.
    #[tokio::test]
    async fn what_is_proven_was_read_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let image: Vec<u8> = (0..1_000_000_u32).map(|at| (at * 31 + at / 257) as u8).collect();
        let tree = HashTree::build(&image[..], image.len() as u64).unwrap();
        let (artifact, layout) = (tree.root, PieceLayout::new(tree.length));
        let (lost, mut lost_rx) = mpsc::channel(4);
        let store = PieceStore::open(folder.path(), None, lost).await.unwrap();
        let challenge = Challenge {
            artifact,
            nonce: [7; 32].into(),
        };
        let prover = || Prover::new(&challenge, &NodeId::new("n1").unwrap(), tree.length);
        for piece in 0..layout.pieces() {
            let read = proof_of(store.reader(artifact), prover()).await;
            assert!(read.is_err(), "proven with {piece} of {} pieces", layout.pieces());
            let encoded = encode(&image[..], &tree, &layout.bytes(piece)).unwrap();
            store.put(artifact, layout, piece, encoded.into()).await.unwrap();
        }
        let mut expected = prover();
        image
            .chunks(GROUP_BYTES as usize)
            .for_each(|group| expected.add(group).unwrap());
        let proof = proof_of(store.reader(artifact), prover()).await.unwrap();
        assert!(proof.is(&expected.finish().unwrap()));

        let content = folder.path().join(format!("{artifact}.{}.content", tree.length));
        let file = fs::File::options().write(true).open(content).unwrap();
        file.write_all_at(&[!image[600_000]], 600_000).unwrap();
        assert!(proof_of(store.reader(artifact), prover()).await.is_err());
        let piece = layout.piece_at(600_000);
        assert_eq!(lost_rx.recv().await, Some(Lost { artifact, piece }));
    }

    #[test]
    fn an_answer_is_sent_until_something_else_is_asked_for() {
        let ask = |name: &[u8], nonce| Challenge {
            artifact: ArtifactId::of(name),
            nonce: [nonce; 32].into(),
        };
        let (new, old, proof) = (ask(b"new", 1), ask(b"old", 1), Proof::from([9; 32]));
        let mut possession = Possession::default();
        possession.heed(&[new, old]);
        assert_eq!(possession.waiting().len(), 2);
        assert_eq!(possession.begin(new.artifact), Some(new));
        assert!(possession.end(&new, Some(proof)));
        let answer = Answer { challenge: new, proof };
        assert_eq!(possession.answers(), [answer]);
        possession.heed(&[new, old]);
        assert_eq!(possession.answers(), [answer], "it was not taken yet");

        // Another nonce, while the answer to the first was being worked out.
        possession.begin(old.artifact);
        let anew = ask(b"old", 2);
        possession.heed(&[anew]);
        assert!(!possession.asked.contains_key(&new.artifact), "it is proven");
        assert!(!possession.end(&old, Some(proof)));
        assert_eq!(possession.begin(anew.artifact), Some(anew));
        possession.lost(&anew.artifact);
        assert!(!possession.end(&anew, Some(proof)), "a piece of it was lost meanwhile");
        assert_eq!(possession.answers(), []);
        assert_eq!(possession.waiting(), [anew.artifact]);
        assert!(!possession.is_reading);
    }
}
