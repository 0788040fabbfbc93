//! What nodes are asked to prove that they hold, and the check of what they answer.
//!
//! Invariants: a challenge is for one node and one artifact, and is over with the first answer that can be checked; an
//! answer is checked outside the runtime's task, a few at once, by reading no more than the sampled groups. One that
//! cannot be checked, because others are before it or our own copy is damaged, is neither proven nor wrong: the node sends
//! it again. Open challenges are not stored: after a restart nodes are asked again for what they have not proven.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use firmesh_coordinator_core::Input;
use firmesh_protocol::{
    identity::NodeIdentity,
    ids::{ArtifactId, NodeId},
    limits::{ANSWERS_MAX, CHALLENGES_MAX},
    manifest::Artifact,
    possession::{Answer, Challenge, Nonce},
    time::Timestamp,
};
use tokio::{sync::Semaphore, time::Instant};
use tracing::{error, info, warn};

use crate::{
    origin::Origin,
    runtime::{ActionError, Command, Coordinator, Runtime},
    telemetry::chain,
    world::World,
};

/// Answers checked at once: each reads 4 MiB here and there.
const CHECKS_MAX: usize = 2;

/// How long the answers of one sync may take, waiting included: well within a node's patience.
const CHECKS_WITHIN: Duration = Duration::from_secs(5);

/// How long a node whose proof did not hold waits for its next challenge, so that guessing costs us little.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The challenges that are open, by node and artifact.
#[derive(Debug, Default)]
pub(crate) struct Challenges(BTreeMap<NodeId, BTreeMap<ArtifactId, Asked>>);

#[derive(Debug)]
struct Asked {
    artifact: Artifact,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open(Nonce),
    /// It was answered.
    Resting {
        /// Not asked again before, if the proof did not hold.
        until: Timestamp,
    },
}

impl Challenges {
    /// What a node is to be asked for now, of what it has not proven.
    fn ask(
        &mut self,
        node: &NodeId,
        unproven: &BTreeMap<ArtifactId, &Artifact>,
        now: Timestamp,
    ) -> Result<Vec<Challenge>, getrandom::Error> {
        if unproven.is_empty() {
            self.0.remove(node);
            return Ok(Vec::new());
        }
        let asked = self.0.entry(node.clone()).or_default();
        asked.retain(|id, _| unproven.contains_key(id));
        let mut challenges = Vec::new();
        for (id, artifact) in unproven.iter().take(CHALLENGES_MAX) {
            let nonce = match asked.get(id).map(|asked| asked.standing) {
                Some(Standing::Open(nonce)) => nonce,
                Some(Standing::Resting { until }) if now < until => continue,
                _ => {
                    let nonce = draw()?;
                    let (artifact, standing) = ((*artifact).clone(), Standing::Open(nonce));
                    asked.insert(*id, Asked { artifact, standing });
                    nonce
                }
            };
            challenges.push(Challenge { artifact: *id, nonce });
        }
        Ok(challenges)
    }

    /// The answers to challenges that are open, each artifact's once, with what is to be read for them.
    fn open(&self, node: &NodeId, answers: &[Answer]) -> Vec<(Answer, Artifact)> {
        let open = |answer: &Answer| {
            let asked = self.0.get(node)?.get(&answer.challenge.artifact)?;
            let is_open = matches!(asked.standing, Standing::Open(nonce) if nonce == answer.challenge.nonce);
            is_open.then(|| (answer.challenge.artifact, (*answer, asked.artifact.clone())))
        };
        let found: BTreeMap<_, _> = answers.iter().take(ANSWERS_MAX).filter_map(open).collect();
        found.into_values().collect()
    }

    /// Ends the challenges that were answered. Answers whose images were still asked for: those proven, and the others.
    fn settle(
        &mut self,
        node: &NodeId,
        judged: Vec<Judged>,
        now: Timestamp,
    ) -> (BTreeSet<ArtifactId>, BTreeSet<ArtifactId>) {
        let (mut proven, mut wrong) = (BTreeSet::new(), BTreeSet::new());
        for Judged { challenge, holds } in judged {
            let Challenge { artifact, nonce } = challenge;
            let asked = self.0.get_mut(node).into_iter();
            let known = asked.flat_map(|asked| asked.get_mut(&artifact));
            for known in known.filter(|known| known.standing == Standing::Open(nonce)) {
                // One that was proven is not asked for again, and forgotten then.
                let until = if holds { now } else { now + AGAIN_AFTER };
                known.standing = Standing::Resting { until };
                if holds { &mut proven } else { &mut wrong }.insert(artifact);
            }
        }
        (proven, wrong)
    }
}

fn draw() -> Result<Nonce, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.into())
}

/// An answer that was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged {
    challenge: Challenge,
    /// Whether the proof is the one that the bytes give.
    holds: bool,
}

/// Checks answers.
#[derive(Debug)]
pub(crate) struct Judge {
    origin: Origin,
    turns: Arc<Semaphore>,
    /// Nodes whose answers are being checked: one that sends them again meanwhile has no turn more.
    busy: Mutex<BTreeSet<NodeId>>,
}

impl Judge {
    pub(crate) fn new(origin: Origin) -> Self {
        Self {
            origin,
            turns: Arc::new(Semaphore::new(CHECKS_MAX)),
            busy: Mutex::default(),
        }
    }

    /// Checks what a member answers to its open challenges, as much as there is time for, and has it taken in.
    pub(crate) async fn judge(
        &self,
        coordinator: &Coordinator,
        identity: &NodeIdentity,
        certificate: &[u8],
        answers: &[Answer],
    ) -> Result<(), ActionError> {
        let node = &identity.node;
        if answers.is_empty() {
            return Ok(());
        }
        let Some(_busy) = Busy::enter(&self.busy, node) else {
            return Ok(());
        };
        let (id, key, certificate, answers) = (node.clone(), identity.key, certificate.to_vec(), answers.to_vec());
        let open = move |world: &World| {
            let is_member = world.member(&id, key, &certificate).is_ok();
            is_member.then(|| world.challenges.open(&id, &answers))
        };
        let open = coordinator.read(open).await?.unwrap_or_default();
        let (mut judged, end) = (Vec::new(), Instant::now() + CHECKS_WITHIN);
        for (Answer { challenge, proof }, artifact) in open {
            let turn = Arc::clone(&self.turns).acquire_owned();
            let Ok(Ok(turn)) = tokio::time::timeout_at(end, turn).await else {
                break;
            };
            let (id, origin, node) = (artifact.id, self.origin.clone(), node.clone());
            let work = move || {
                let _turn = turn; // kept to the end, also when the node does not wait for it
                origin.proof(&artifact, &challenge, &node)
            };
            match tokio::task::spawn_blocking(work).await {
                Ok(Ok(expected)) => {
                    let holds = proof.is(&expected);
                    judged.push(Judged { challenge, holds });
                }
                Ok(Err(error)) => {
                    error!(artifact = %id, error = %chain(&error), "no proof of an image can be checked, and so nothing starts with it: import it again");
                }
                Err(error) => error!(artifact = %id, %error, "the check of a proof was broken off"),
            }
        }
        match judged.is_empty() {
            true => Ok(()),
            false => {
                coordinator
                    .ask(|reply| Command::Settle(node.clone(), judged, reply))
                    .await
            }
        }
    }
}

/// A node's place among those whose answers are being checked, until it is dropped.
struct Busy<'a> {
    nodes: &'a Mutex<BTreeSet<NodeId>>,
    node: &'a NodeId,
}

impl<'a> Busy<'a> {
    fn enter(nodes: &'a Mutex<BTreeSet<NodeId>>, node: &'a NodeId) -> Option<Self> {
        let is_new = nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node.clone());
        is_new.then_some(Self { nodes, node })
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.remove(self.node);
    }
}

impl Runtime {
    /// What a node is to prove now.
    pub(crate) fn challenges_for(&mut self, node: &NodeId) -> Vec<Challenge> {
        let (now, world) = (self.clock.now(), &mut self.world);
        let asked = world.challenges.ask(node, &world.engine.unproven(node), now);
        asked.unwrap_or_else(|error| {
            error!(%node, %error, "the system gave no randomness for a challenge: the node is asked later");
            Vec::new()
        })
    }

    /// Takes in the answers of a node that were checked.
    pub(crate) async fn settle_proofs(&mut self, node: &NodeId, judged: Vec<Judged>) -> Result<(), ActionError> {
        let (proven, wrong) = self.world.challenges.settle(node, judged, self.clock.now());
        for artifact in &proven {
            info!(%node, %artifact, "a node has proven that it holds an image");
        }
        for artifact in &wrong {
            self.metrics.refusals.inc();
            warn!(code = "wrong_possession_proof", %node, %artifact, "a node's proof that it holds an image does not hold: its devices get no permit for it");
        }
        if proven.is_empty() && wrong.is_empty() {
            return Ok(());
        }
        let node = node.clone();
        self.apply(Input::Proofs { node, proven, wrong }, Vec::new()).await
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::{ids::Sha256, possession::Proof};

    use super::*;

    fn image(name: &[u8]) -> Artifact {
        Artifact {
            id: ArtifactId::of(name),
            sha256: Sha256::of(name),
            length: 9,
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::after_start(Duration::from_secs(seconds))
    }

    fn answer(challenge: Challenge) -> Answer {
        let proof = Proof::from([1; 32]);
        Answer { challenge, proof }
    }

    #[test]
    fn a_challenge_stays_until_it_is_answered_and_a_wrong_answer_brings_another_after_a_while() {
        let (node, other) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        let (new, old) = (image(b"new"), image(b"old"));
        let mut challenges = Challenges::default();
        let both = BTreeMap::from([(new.id, &new), (old.id, &old)]);
        let first = challenges.ask(&node, &both, at(0)).unwrap();
        assert_eq!(first.len(), 2);
        assert_eq!(challenges.ask(&node, &both, at(1)).unwrap(), first);
        let [lie, truth] = [first[0], first[1]];
        assert_eq!(
            challenges.open(&node, &[answer(lie), answer(lie), answer(truth)]).len(),
            2
        );
        assert!(
            challenges.open(&other, &[answer(lie)]).is_empty(),
            "it was asked of another"
        );
        let stale = Challenge {
            nonce: truth.nonce,
            ..lie
        };
        assert!(challenges.open(&node, &[answer(stale)]).is_empty());

        let judged = || {
            let judge = |challenge, holds| Judged { challenge, holds };
            vec![judge(truth, true), judge(lie, false)]
        };
        let settled = challenges.settle(&node, judged(), at(2));
        assert_eq!(settled, ([truth.artifact].into(), [lie.artifact].into()));
        let again = challenges.settle(&node, judged(), at(2));
        assert_eq!(
            again,
            Default::default(),
            "each answer is counted once, however often it is sent"
        );
        let rest = BTreeMap::from([(lie.artifact, both[&lie.artifact])]);
        assert!(challenges.ask(&node, &rest, at(3)).unwrap().is_empty());
        let second = challenges.ask(&node, &rest, at(12)).unwrap();
        assert_eq!((second.len(), second[0].artifact), (1, lie.artifact));
        assert_ne!(second[0].nonce, lie.nonce);
        assert!(challenges.ask(&node, &BTreeMap::new(), at(13)).unwrap().is_empty());
        assert!(challenges.0.is_empty(), "nothing is kept of who has proven everything");
    }

    #[test]
    fn a_node_is_asked_for_so_much_at_once() {
        let images: Vec<_> = (0..100_u8).map(|number| image(&[number])).collect();
        let unproven = images.iter().map(|image| (image.id, image)).collect();
        let node = "n1".parse().unwrap();
        let mut challenges = Challenges::default();
        let asked = challenges.ask(&node, &unproven, at(0)).unwrap();
        assert_eq!(asked.len(), CHALLENGES_MAX);
        let answers: Vec<_> = asked.into_iter().map(answer).collect();
        assert_eq!(challenges.open(&node, &answers).len(), ANSWERS_MAX);
    }
}
