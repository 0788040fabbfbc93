//! The origin serves a few at a time, first come, first served, as the coordinator does.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroUsize,
};

use firmesh_coordinator_core::{TurnId, Turns};
use firmesh_node_core::swarm::FetchId;

use super::{Event, ORIGIN, World, fluid::FlowId};

/// Who is served, and who waits.
#[derive(Debug)]
pub(super) struct Line {
    turns: Turns,
    serving: BTreeMap<FlowId, TurnId>,
    /// Nodes, the lives in which they asked, and their requests.
    waiting: VecDeque<(usize, u32, FetchId)>,
    /// Whether somebody is to look for a turn that has had its time.
    is_watched: bool,
}

impl Line {
    pub(super) fn new(turns: NonZeroUsize) -> Self {
        Self {
            turns: Turns::new(turns),
            serving: BTreeMap::new(),
            waiting: VecDeque::new(),
            is_watched: false,
        }
    }

    pub(super) fn join(&mut self, node: usize, life: u32, id: FetchId) {
        self.waiting.push_back((node, life, id));
    }

    /// A transfer is over, of whichever source it was.
    pub(super) fn ended(&mut self, flow: FlowId) {
        if let Some(turn) = self.serving.remove(&flow) {
            self.turns.end(turn);
        }
    }

    /// Somebody looks for turns that have had their time.
    pub(super) fn looked(&mut self) {
        self.is_watched = false;
    }
}

impl World {
    /// Begins to serve as many of those who wait as there are turns.
    pub(super) fn serve(&mut self) {
        while let Some(&(at, life, id)) = self.line.waiting.front() {
            let fetches = &self.nodes[at].fetches;
            // Who went away loses its place.
            let Some(piece) = fetches
                .get(&id)
                .map(|fetch| fetch.piece)
                .filter(|_| self.nodes[at].life == life)
            else {
                self.line.waiting.pop_front();
                continue;
            };
            match self.line.turns.begin(self.now) {
                Ok(turn) => {
                    self.line.waiting.pop_front();
                    let route = vec![self.origin_up, self.uplinks[self.nodes[at].rack].1, self.nodes[at].down];
                    let flow = self.flow((ORIGIN, at), route, id, piece);
                    self.line.serving.insert(flow, turn);
                }
                Err(due) => {
                    if !std::mem::replace(&mut self.line.is_watched, true) {
                        self.later(due.since(self.now), Event::TurnDue);
                    }
                    return;
                }
            }
        }
    }

    /// Sends away whoever waits for the origin, with the requests.
    pub(super) fn dismiss(&mut self) -> Vec<(usize, FetchId)> {
        let waiting = std::mem::take(&mut self.line.waiting).into_iter();
        let asks = |(at, life, id): &(usize, u32, FetchId)| {
            self.nodes[*at].life == *life && self.nodes[*at].fetches.contains_key(id)
        };
        waiting.filter(asks).map(|(at, _, id)| (at, id)).collect()
    }
}
