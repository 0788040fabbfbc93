//! What two looks at the nodes say together: who feeds whom, and how fast.

use std::{collections::BTreeMap, iter::Sum, ops::Add, time::Instant};

use firmesh_protocol::{
    api::{NodeView, Traffic},
    ids::{NodeId, TopologyPath},
};
use serde::Serialize;

use crate::output::Output;

/// A node that was heard of so much later than the last one is silent.
const SILENT_S: i64 = 60;

/// What the coordinator knew of its nodes.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) nodes: Vec<NodeView>,
}

/// Bytes of content on their ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Flows {
    from_origin: u64,
    from_rack: u64,
    from_other_racks: u64,
    to_rack: u64,
    to_other_racks: u64,
}

impl Flows {
    fn of(traffic: &Traffic) -> Self {
        Self {
            from_origin: traffic.from_origin,
            from_rack: traffic.from_rack,
            from_other_racks: traffic.from_other_racks,
            to_rack: traffic.to_rack,
            to_other_racks: traffic.to_other_racks,
        }
    }

    fn each(self, before: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            from_origin: of(before.from_origin, self.from_origin),
            from_rack: of(before.from_rack, self.from_rack),
            from_other_racks: of(before.from_other_racks, self.from_other_racks),
            to_rack: of(before.to_rack, self.to_rack),
            to_other_racks: of(before.to_other_racks, self.to_other_racks),
        }
    }

    fn taken(self) -> u64 {
        self.from_origin + self.from_rack + self.from_other_racks
    }

    fn served(self) -> u64 {
        self.to_rack + self.to_other_racks
    }
}

impl Add for Flows {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }
}

impl Sum for Flows {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// One node.
#[derive(Debug, Serialize)]
struct Member {
    node: NodeId,
    rack: String,
    silent: bool,
    pieces: u64,
    pieces_total: u64,
    moved: Flows,
    per_second: Flows,
    banned: Vec<NodeId>,
}

/// A rack, as the sum of its nodes.
#[derive(Debug, Default, Serialize)]
struct Rack {
    rack: String,
    nodes: usize,
    pieces: u64,
    pieces_total: u64,
    moved: Flows,
    per_second: Flows,
}

/// The picture.
#[derive(Debug, Serialize)]
pub(super) struct View {
    coordinator: String,
    nodes: usize,
    silent: usize,
    moved: Flows,
    per_second: Flows,
    racks: Vec<Rack>,
    /// Who serves most comes first, and then who takes most.
    members: Vec<Member>,
}

impl View {
    pub(super) fn of(coordinator: &str, before: &Look, now: &Look) -> Self {
        let millis = now.at.saturating_duration_since(before.at).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX).max(1);
        let known: BTreeMap<_, _> = before.nodes.iter().map(|view| (&view.node, &view.traffic)).collect();
        let newest = now.nodes.iter().filter_map(|view| view.last_seen).max();
        let is_silent = |view: &NodeView| match (view.last_seen, newest) {
            (Some(seen), Some(newest)) => newest.unix_seconds() - seen.unix_seconds() > SILENT_S,
            _ => true,
        };
        let in_force = now.nodes.iter().filter(|view| view.enrolled && !view.revoked);
        let mut members: Vec<_> = in_force
            .map(|view| {
                let moved = Flows::of(&view.traffic);
                let before = known.get(&view.node).map_or(moved, |traffic| Flows::of(traffic));
                // A node that was started again counts from 0.
                let since = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
                let rate = |before, now| since(before, now).saturating_mul(1_000) / millis;
                let sum = |of: fn(&firmesh_protocol::api::Holding) -> u32| {
                    view.holdings.iter().map(|held| u64::from(of(held))).sum::<u64>()
                };
                Member {
                    node: view.node.clone(),
                    rack: rack_of(&view.path),
                    silent: is_silent(view),
                    pieces: sum(|held| held.pieces),
                    pieces_total: sum(|held| held.pieces_total),
                    moved,
                    per_second: moved.each(before, rate),
                    banned: view.banned.keys().cloned().collect(),
                }
            })
            .collect();
        let mut racks: BTreeMap<&str, Rack> = BTreeMap::new();
        for member in &members {
            let rack = racks.entry(&member.rack).or_insert_with(|| Rack {
                rack: member.rack.clone(),
                ..Rack::default()
            });
            rack.nodes += 1;
            rack.pieces += member.pieces;
            rack.pieces_total += member.pieces_total;
            rack.moved = rack.moved + member.moved;
            rack.per_second = rack.per_second + member.per_second;
        }
        let racks = racks.into_values().collect();
        members.sort_by_key(|member| {
            let (now, all) = (member.per_second, member.moved);
            std::cmp::Reverse((now.served(), now.taken(), all.served(), all.taken()))
        });
        Self {
            coordinator: coordinator.to_owned(),
            nodes: members.len(),
            silent: members.iter().filter(|member| member.silent).count(),
            moved: members.iter().map(|member| member.moved).sum(),
            per_second: members.iter().map(|member| member.per_second).sum(),
            racks,
            members,
        }
    }

    /// The picture as text, in at most `height` lines: half of them for racks, if there are so many.
    pub(super) fn lines(&self, height: usize) -> Vec<String> {
        let silent = match self.silent {
            0 => String::new(),
            silent => format!(", {silent} silent"),
        };
        let mut lines = vec![
            format!(
                "Firmesh mesh at {}: {} nodes in {} racks{silent}",
                self.coordinator,
                self.nodes,
                self.racks.len()
            ),
            format!(
                "origin > nodes {}   rack > rack {}   inside racks {}   (in all: {}, {}, {})",
                rate(self.per_second.from_origin),
                rate(self.per_second.from_other_racks),
                rate(self.per_second.from_rack),
                bytes(self.moved.from_origin),
                bytes(self.moved.from_other_racks),
                bytes(self.moved.from_rack),
            ),
            String::new(),
        ];
        // Headings, empty lines between, and what says that there is more.
        let room = height.saturating_sub(lines.len() + 5);
        let racks_shown = self
            .racks
            .len()
            .min((room / 2).max(room.saturating_sub(self.members.len())));
        let members_shown = self.members.len().min(room.saturating_sub(racks_shown));
        let rows: Vec<_> = self.racks.iter().take(racks_shown).map(Rack::row).collect();
        lines.extend(Output::table(
            ["RACK", "NODES", "HELD", "< ORIGIN", "< RACKS", "INSIDE", "> RACKS"],
            &rows,
        ));
        more(&mut lines, self.racks.len() - racks_shown);
        lines.push(String::new());
        let rows: Vec<_> = self.members.iter().take(members_shown).map(Member::row).collect();
        lines.extend(Output::table(
            [
                "NODE", "RACK", "HELD", "< ORIGIN", "< RACK", "< RACKS", "> RACK", "> RACKS", "",
            ],
            &rows,
        ));
        more(&mut lines, self.members.len() - members_shown);
        lines
    }
}

impl Rack {
    fn row(&self) -> [String; 7] {
        let flows = self.per_second;
        [
            self.rack.clone(),
            self.nodes.to_string(),
            bar(self.pieces, self.pieces_total),
            rate(flows.from_origin),
            rate(flows.from_other_racks),
            rate(flows.from_rack),
            rate(flows.to_other_racks),
        ]
    }
}

impl Member {
    fn row(&self) -> [String; 9] {
        let flows = self.per_second;
        let note = match (self.silent, self.banned.len()) {
            (true, _) => "silent".to_owned(),
            (false, 0) => String::new(),
            (false, banned) => format!("has banned {banned}"),
        };
        [
            self.node.to_string(),
            self.rack.clone(),
            bar(self.pieces, self.pieces_total),
            rate(flows.from_origin),
            rate(flows.from_rack),
            rate(flows.from_other_racks),
            rate(flows.to_rack),
            rate(flows.to_other_racks),
            note,
        ]
    }
}

fn more(lines: &mut Vec<String>, count: usize) {
    if count > 0 {
        lines.push(format!("... and {count} more"));
    }
}

/// Everything above the node.
fn rack_of(path: &TopologyPath) -> String {
    path.parent().map_or_else(String::new, |rack| rack.to_string())
}

fn bar(pieces: u64, all: u64) -> String {
    const CELLS: u64 = 10;
    if all == 0 {
        return "-".to_owned();
    }
    let filled = usize::try_from(pieces.min(all) * CELLS / all).unwrap_or(0);
    let cells: String = (0..10).map(|cell| if cell < filled { '#' } else { '.' }).collect();
    format!("{cells} {:>3} %", pieces.min(all) * 100 / all)
}

fn rate(per_second: u64) -> String {
    match per_second {
        0 => "-".to_owned(),
        some => format!("{}/s", bytes(some)),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut tenths, mut unit) = (u128::from(count) * 10, "B");
    for next in UNITS {
        if tenths < 10_240 {
            break;
        }
        (tenths, unit) = (tenths / 1_024, next);
    }
    match unit {
        "B" => format!("{count} B"),
        _ => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use firmesh_protocol::time::WallTime;

    use super::*;

    fn node(name: &str, rack: &str, seen: i64, traffic: Traffic) -> NodeView {
        NodeView {
            node: name.parse().unwrap(),
            path: format!("eu/s1/{rack}/{name}").parse().unwrap(),
            enrolled: true,
            revoked: false,
            last_seen: Some(WallTime::from_unix_seconds(seen)),
            holdings: vec![firmesh_protocol::api::Holding {
                artifact: firmesh_protocol::ids::ArtifactId::of(b"image"),
                pieces: 1,
                pieces_total: 4,
            }],
            traffic,
            banned: BTreeMap::new(),
            audit_fork: None,
        }
    }

    fn view(before: Vec<NodeView>, now: Vec<NodeView>) -> View {
        let at = Instant::now();
        let before = Look { at, nodes: before };
        let now = Look {
            at: at + Duration::from_secs(2),
            nodes: now,
        };
        View::of("http://c", &before, &now)
    }

    #[test]
    fn who_feeds_others_comes_first_and_a_restart_is_no_flow_backwards() {
        let traffic = |from_origin, to_rack| Traffic {
            from_origin,
            to_rack,
            ..Traffic::default()
        };
        let view = view(
            vec![
                node("a", "r1", 1_000, traffic(1 << 20, 0)),
                node("b", "r1", 1_000, traffic(5 << 20, 9 << 20)),
            ],
            vec![
                node("a", "r1", 1_100, traffic(3 << 20, 4 << 20)),
                node("b", "r1", 1_030, traffic(1 << 20, 0)),
                node("c", "r2", 1_100, traffic(7 << 20, 0)),
            ],
        );
        let names: Vec<_> = view.members.iter().map(|member| member.node.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(
            (view.per_second.from_origin, view.per_second.to_rack),
            (1_572_864, 2 << 20)
        );
        assert_eq!((view.nodes, view.silent, view.racks.len()), (3, 1, 2));
        let text = view.lines(usize::MAX).join("\n");
        for shown in [
            "3 nodes in 2 racks, 1 silent",
            "##........  25 %",
            "2.0 MiB/s",
            "eu/s1/r2",
            "silent",
        ] {
            assert!(text.contains(shown), "{shown} is not in:\n{text}");
        }
    }

    #[test]
    fn a_small_screen_is_never_overrun_and_says_what_it_leaves_out() {
        let many = (0..60).map(|n| node(&format!("n{n}"), &format!("r{}", n % 20), 1_000, Traffic::default()));
        let many: Vec<_> = many.collect();
        let view = view(many.clone(), many);
        for height in [8, 10, 24, 50, 60, 100] {
            let lines = view.lines(height);
            assert!(lines.len() <= height.max(8), "{} lines in {height}", lines.len());
        }
        assert!(view.lines(24).iter().any(|line| line.starts_with("... and ")));
        assert_eq!(view.lines(usize::MAX).len(), 3 + 21 + 1 + 61);
    }
}
