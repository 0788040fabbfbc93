//! Messages between nodes and coordinators, and what is done to them: lost, delayed, overtaken, delivered twice, cut off
//! one way or now and then, and lied in.

use std::sync::Arc;

use firmesh_protocol::brake::Braked;

use super::{
    Event, MAIN, NodeEvent, World,
    coordinator::{Answer, Heartbeat, Outcome},
};

/// How long a heartbeat waits for its answer.
const SLOW_ANSWER_MS: u64 = 10_000;

/// What the network does to messages.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) up_cut_until: Vec<u64>,
    pub(super) down_cut_until: Vec<u64>,
    pub(super) mesh_cut_until: u64,
    pub(super) lose: (u64, u64),
    pub(super) slow: (u64, u64),
    pub(super) flaps: Vec<Option<Flap>>,
    /// So many of a thousand take up to so long, until then.
    pub(super) hold_back: (u64, u64, u64),
    /// So many of a thousand come again up to so much later, until then.
    pub(super) replay: (u64, u64, u64),
    pub(super) lies_until: u64,
}

/// A link that comes and goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flap {
    pub(super) since: u64,
    pub(super) until: u64,
    pub(super) on_ms: u64,
    pub(super) off_ms: u64,
}

impl Links {
    fn is_up_cut(&self, n: usize, now_ms: u64) -> bool {
        now_ms < self.up_cut_until[n] || self.is_off(n, now_ms)
    }

    fn is_down_cut(&self, n: usize, now_ms: u64) -> bool {
        now_ms < self.down_cut_until[n] || self.is_off(n, now_ms)
    }

    fn is_off(&self, n: usize, now_ms: u64) -> bool {
        self.flaps[n].is_some_and(|flap| {
            now_ms < flap.until && (now_ms - flap.since) % (flap.on_ms + flap.off_ms).max(1) >= flap.on_ms
        })
    }
}

impl World {
    /// How long a message is under way; nothing if it is lost.
    fn under_way(&mut self) -> Option<u64> {
        let (permille, until) = self.links.lose;
        let is_lost = self.dice.below(1_000) < permille && self.now_ms < until;
        let (by_ms, slow_until) = self.links.slow;
        let slow = if self.now_ms < slow_until {
            self.dice.below(by_ms + 1)
        } else {
            0
        };
        let (permille, by_ms, until) = self.links.hold_back;
        let held = self.happens(permille, by_ms, until).unwrap_or_default();
        let delay = 1 + self.dice.below(80) + slow + held;
        (!is_lost).then_some(delay)
    }

    /// After how long a message that takes so long comes a second time, if it does.
    fn comes_again(&mut self, delay: u64) -> Option<u64> {
        let (permille, by_ms, until) = self.links.replay;
        Some(delay + self.happens(permille, by_ms, until)?)
    }

    /// No draw where nothing can happen: what was added later leaves older runs as they were.
    fn happens(&mut self, permille: u64, by_ms: u64, until: u64) -> Option<u64> {
        let happens = self.now_ms < until && self.dice.below(1_000) < permille;
        happens.then(|| self.dice.below(by_ms + 1))
    }

    pub(super) fn reaches_coordinator(&self, n: usize) -> bool {
        let is_cut = self.links.is_up_cut(n, self.now_ms) || self.links.is_down_cut(n, self.now_ms);
        !is_cut && self.coordinators[self.follows[n]].is_up()
    }

    pub(super) fn send_heartbeat(&mut self, n: usize, heartbeat: Heartbeat) {
        let incarnation = self.nodes[n].incarnation;
        let is_cut = self.links.is_up_cut(n, self.now_ms);
        match self.under_way().filter(|_| !is_cut) {
            Some(delay) => {
                let to = self.follows[n];
                let heartbeat = Box::new(heartbeat);
                if let Some(again) = self.comes_again(delay) {
                    self.after(again, Event::HeartbeatAgain(to, heartbeat.clone()));
                }
                self.after(delay, Event::Heartbeat(to, incarnation, heartbeat));
            }
            None => self.after(SLOW_ANSWER_MS, Event::Node(n, incarnation, NodeEvent::Answer(None))),
        }
    }

    pub(super) fn hear(&mut self, c: usize, incarnation: u32, heartbeat: &Heartbeat) {
        let n = heartbeat.node;
        let answer = self.take_in(c, heartbeat);
        let is_cut = self.links.is_down_cut(n, self.now_ms);
        let delay = self.under_way().filter(|_| !is_cut && answer.is_some());
        let (delay, answer) = match delay {
            Some(delay) => (delay, answer.map(Box::new)),
            None => (SLOW_ANSWER_MS, None),
        };
        self.after(delay, Event::Node(n, incarnation, NodeEvent::Answer(answer)));
    }

    /// Lets a coordinator hear a heartbeat, perhaps one that its node has given up waiting for.
    pub(super) fn take_in(&mut self, c: usize, heartbeat: &Heartbeat) -> Option<Answer> {
        let scenario = Arc::clone(&self.scenario);
        let (outcome, mut answer) = self.coordinators[c].hear(&scenario, self.now_ms, heartbeat, &mut self.evidence);
        self.followed(c, &outcome);
        if c == MAIN && !matches!(outcome, Outcome::Died { .. }) {
            for braked in self.coordinators[c].brakes() {
                if let Braked::Campaign { id, .. } = braked {
                    self.watch.stopped(self.now_ms, id);
                }
            }
        }
        if let Some(answer) = answer.as_mut().filter(|_| self.now_ms < self.links.lies_until) {
            self.lie(heartbeat.node, answer);
        }
        answer
    }

    /// Tells every other node.
    pub(super) fn gossip(&mut self, from: usize, news: &NodeEvent) {
        if self.now_ms < self.links.mesh_cut_until {
            return;
        }
        for n in (0..self.nodes.len()).filter(|n| *n != from) {
            let incarnation = self.nodes[n].incarnation;
            if let Some(delay) = self.under_way() {
                self.after(delay, Event::Node(n, incarnation, news.clone()));
                if let Some(again) = self.comes_again(delay) {
                    self.after(again, Event::Again(n, news.clone()));
                }
            }
        }
    }
}
