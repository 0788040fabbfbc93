//! A node's process and its disk: it starts, meets others, hears of the campaign, takes pieces in, and ends.

use std::sync::Arc;

use firmesh_node_core::swarm::{FetchFailure, FetchId, Input, Source, Swarm};
use firmesh_protocol::manifest::Priority;

use super::{
    DISK, Event, Fetch, SILENCE, World,
    books::Promise,
    latency,
    trouble::{Lie, REPEATS},
};

impl World {
    pub(super) fn hear(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.heard = true;
        let (artifact, have, peer) = (self.artifact, node.held.clone(), node.id.clone());
        for other in node.connected.keys().copied().collect::<Vec<_>>() {
            let (peer, pieces) = (peer.clone(), have.clone());
            self.say(at, other, Input::PeerHolds { peer, artifact, pieces });
        }
        self.books.said[at].unite(&have);
        if self.nodes[at].lie.is_some() {
            self.later(REPEATS, Event::Repeats(at, self.nodes[at].life));
        }
        let priority = Priority::Normal;
        self.tell(
            at,
            Input::Want {
                artifact,
                have,
                priority,
            },
        );
    }

    pub(super) fn start(&mut self, at: usize) {
        let places = self.nodes.iter().map(|node| (node.id.clone(), node.path.clone()));
        let members = Arc::new(places.collect());
        self.look_at_disk(at);
        let node = &mut self.nodes[at];
        node.life += 1;
        node.swarm = Some(Swarm::new(
            node.id.clone(),
            node.path.clone(),
            self.tuning.clone(),
            self.seed.wrapping_mul(1_000).wrapping_add(at as u64),
        ));
        self.tell(at, Input::Roster { members });
        let available = self.origin_is_alive;
        self.tell(at, Input::Origin { available });
    }

    pub(super) fn meet(&mut self, one: usize, other: usize) {
        let (one_banned, other_banned) = ((other, one), (one, other));
        let is_refused = [one_banned, other_banned]
            .iter()
            .any(|ban| self.books.bans.contains(ban));
        if is_refused || self.is_apart(one, other) || [one, other].iter().any(|at| self.nodes[*at].swarm.is_none()) {
            return;
        }
        for (at, peer) in [(one, other), (other, one)] {
            let (id, life) = (self.nodes[peer].id.clone(), self.nodes[peer].life);
            match self.nodes[at].connected.insert(peer, life) {
                Some(known) if known == life => continue,
                Some(_) => self.tell(at, Input::PeerDown { peer: id.clone() }),
                None => {}
            }
            self.tell(at, Input::PeerUp { peer: id.clone() });
            if self.nodes[peer].heard {
                let (artifact, pieces) = (self.artifact, self.nodes[peer].held.clone());
                self.say(
                    peer,
                    at,
                    Input::PeerHolds {
                        peer: id,
                        artifact,
                        pieces,
                    },
                );
            }
        }
    }

    /// All of a piece is there: it is checked, and written if it is right.
    pub(super) fn came(&mut self, at: usize, id: FetchId) {
        let Some(fetch) = self.nodes[at].fetches.get(&id) else {
            return;
        };
        let (source, piece) = (fetch.source.clone(), fetch.piece);
        let (after, life) = (latency(&source) + DISK, self.nodes[at].life);
        let lie = self.lie_of(&source);
        let is_right = !lie.is_some_and(Lie::corrupts);
        let bytes = self.matter.as_ref().and_then(|matter| {
            let from = self.place(&source).map(|from| &self.nodes[from].disk);
            matter.carry(piece, from, lie)
        });
        let is_believed = if self.matter.is_some() {
            bytes.is_some()
        } else {
            is_right
        };
        if is_believed != is_right {
            let how = match is_right {
                true => format!("what {source:?} serves of piece {piece} does not verify"),
                false => format!("wrong bytes of piece {piece} from {source:?} are believed"),
            };
            self.blame(Promise::Verified, how);
        }
        if !is_believed {
            let why = FetchFailure::Corrupt;
            self.later(after, Event::Told(at, life, Input::Failed { id, why }));
            return;
        }
        let node = &mut self.nodes[at];
        if let Some(fetch) = node.fetches.get_mut(&id) {
            fetch.written = Some(bytes.unwrap_or_default());
        }
        self.later(after, Event::Durable(at, life, id));
    }

    pub(super) fn durable(&mut self, at: usize, id: FetchId) {
        let refuses = self.disk_fails(at);
        let Some(Fetch {
            source,
            piece,
            written: Some(bytes),
            ..
        }) = self.nodes[at].fetches.remove(&id)
        else {
            return;
        };
        if refuses {
            let why = FetchFailure::LocalStore;
            self.tell(at, Input::Failed { id, why });
            return;
        }
        let rack = self.place(&source).map(|from| self.nodes[from].rack);
        let node = &mut self.nodes[at];
        if let Some(matter) = &self.matter {
            matter.write(&mut node.disk, piece, &bytes, 1.0);
        }
        node.held.insert(piece);
        node.right.insert(piece);
        node.imported += u64::from(rack != Some(node.rack));
        self.books.said[at].insert(piece);
        let waited = latency(&source) * 2;
        self.tell(at, Input::Fetched { id, waited });
    }

    /// A process ends without a word. Of what was being written, anything may be on the disk.
    pub(super) fn kill(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let life = node.life;
        node.swarm = None;
        node.life += 1;
        node.heard = false;
        for fetch in std::mem::take(&mut node.fetches).into_values() {
            let Some(bytes) = fetch.written else { continue };
            let share = self.chance.pick(&[0.0, 0.5, 1.0]);
            if let Some(matter) = &self.matter {
                matter.write(&mut node.disk, fetch.piece, &bytes, share);
            }
            node.unsynced.push((fetch.piece, share == 1.0));
        }
        let connected = std::mem::take(&mut node.connected);
        let me = Source::Peer(node.id.clone());
        self.books.bans.retain(|(of, _)| *of != at);
        self.break_off(|to, fetch| to == at || fetch.is_some_and(|fetch| fetch.source == me));
        for other in connected.into_keys() {
            self.later(SILENCE, Event::Missed(other, at, life));
        }
    }

    /// What a process finds on its disk: a piece that was being written when the last one ended counts if it hashes right.
    fn look_at_disk(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.lie.is_some() {
            return;
        }
        for (piece, is_whole) in std::mem::take(&mut node.unsynced) {
            if is_whole {
                node.right.insert(piece);
            }
            if is_whole || self.matter.is_some() {
                node.held.insert(piece);
            }
        }
        if let Some(matter) = &self.matter {
            for piece in node.held.clone().iter() {
                if !matter.is_right(&node.disk, piece) {
                    node.held.remove(piece);
                }
            }
        }
        self.judge_start(at);
    }
}
