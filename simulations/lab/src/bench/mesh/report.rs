//! What a measurement found, as a table and as JSON.

use std::{collections::BTreeMap, fs, time::Instant};

use firmesh_simulations::mesh::Topology;
use serde::Serialize;

use super::{Contender, network::Counters};

/// Linux counts processes' time in hundredths of a second for everybody outside the kernel.
const TICKS_PER_S: f64 = 100.0;

/// One run of one contender.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    /// Nodes that were expected to hold the image in the end, and those that did.
    pub(super) nodes: usize,
    pub(super) complete: usize,
    /// From the moment the first node heard of the image until the first, and the last, held all of it. Of other tools that
    /// did not bring it to all: how long was waited.
    pub(super) first_s: f64,
    pub(super) last_s: f64,
    /// Until the last node had heard of the image.
    pub(super) heard_s: f64,
    /// Bytes that came a second time.
    pub(super) fetched_again: u64,
    pub(super) verification_failures: u64,
    /// When each node held the image.
    pub(super) finished: BTreeMap<String, f64>,
    pub(super) usage: Usage,
    pub(super) wire: Counters,
    /// What moved between a quarter and three quarters of all pieces, and in how many seconds; Firmesh only.
    pub(super) middle: Option<(f64, Counters)>,
}

/// What processes and machine had to do meanwhile.
#[derive(Debug, Clone, Serialize)]
pub(in crate::bench) struct Usage {
    /// CPU seconds and peak resident KiB, by process and whatever it started; the origin is the `coordinator`, and what runs
    /// beside a node's first process has the node's name and an ending after a dot.
    pub(in crate::bench) processes: BTreeMap<String, (f64, u64)>,
    /// How much of the machine's processor time was used, by anybody, from 0 to 1.
    pub(in crate::bench) machine_busy: f64,
    /// The part of it that these processes do not account for: the kernel's network, and whatever else ran.
    pub(in crate::bench) others_busy: f64,
    /// Tasks that wanted to run in the minute before.
    pub(in crate::bench) load_before: f64,
    pub(in crate::bench) wall_s: f64,
    #[serde(skip)]
    seen: BTreeMap<String, (f64, u64)>,
    #[serde(skip)]
    begun: Option<(Instant, (f64, f64))>,
}

impl Usage {
    /// Begins to count.
    pub(in crate::bench) fn begin(pids: &BTreeMap<String, u32>) -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            processes: used(pids),
            machine_busy: 0.0,
            others_busy: 0.0,
            load_before: load.split(' ').next().and_then(|one| one.parse().ok()).unwrap_or(0.0),
            wall_s: 0.0,
            seen: BTreeMap::new(),
            begun: Some((Instant::now(), machine())),
        }
    }

    /// Looks at processes that may end before the counting does.
    pub(in crate::bench) fn look(&mut self, pids: &BTreeMap<String, u32>) {
        for (name, (cpu, rss)) in used(pids) {
            let peak = self.seen.get(&name).map_or(0, |(_, peak)| *peak);
            self.seen.insert(name, (cpu, rss.max(peak)));
        }
    }

    /// Ends counting. A process that was started again meanwhile counts from its start.
    pub(in crate::bench) fn end(mut self, pids: &BTreeMap<String, u32>) -> Self {
        self.look(pids);
        let (now, (busy, all)) = (std::mem::take(&mut self.seen), machine());
        let before = std::mem::take(&mut self.processes);
        self.processes = now
            .into_iter()
            .map(|(name, (cpu, rss))| {
                let earlier = before.get(&name).map_or(0.0, |(cpu, _)| *cpu);
                let spent = if cpu >= earlier { cpu - earlier } else { cpu };
                (name, (spent, rss))
            })
            .collect();
        if let Some((at, (busy_before, all_before))) = self.begun.take() {
            let (all, ours) = (
                (all - all_before).max(0.01),
                self.processes.values().map(|(cpu, _)| cpu).sum::<f64>(),
            );
            self.wall_s = at.elapsed().as_secs_f64();
            self.machine_busy = (busy - busy_before) / all;
            self.others_busy = (self.machine_busy - ours / all).max(0.0);
        }
        self
    }

    /// CPU seconds of the nodes, without the origin.
    fn nodes_cpu_s(&self) -> f64 {
        let nodes = self.processes.iter().filter(|(name, _)| *name != "coordinator");
        nodes.map(|(_, (cpu, _))| cpu).sum()
    }

    /// Of the node that needed most, with all of its processes.
    fn rss_max_kib(&self) -> u64 {
        let mut nodes = BTreeMap::<&str, u64>::new();
        for (name, (_, rss)) in self.processes.iter().filter(|(name, _)| *name != "coordinator") {
            *nodes.entry(name.split('.').next().unwrap_or(name)).or_default() += rss;
        }
        nodes.into_values().max().unwrap_or(0)
    }
}

/// CPU seconds and peak resident KiB of each process that still runs, with all that it has started: each of them leads a
/// process group. Who has ended is counted by who waited for it; memory is the sum of the peaks of those that still run.
fn used(pids: &BTreeMap<String, u32>) -> BTreeMap<String, (f64, u64)> {
    let mut groups = BTreeMap::<u32, (f64, u64)>::new();
    let every = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in every.map(|entry| entry.path()) {
        // Not a process, or one that ends this very moment.
        let Some((group, cpu)) = fs::read_to_string(process.join("stat"))
            .ok()
            .and_then(|stat| group_and_cpu(&stat))
        else {
            continue;
        };
        if pids.values().any(|pid| *pid == group) {
            let (cpu_sum, rss_sum) = groups.entry(group).or_default();
            *cpu_sum += cpu;
            *rss_sum += peak_kib(&fs::read_to_string(process.join("status")).unwrap_or_default());
        }
    }
    pids.iter()
        .filter_map(|(name, pid)| Some((name.clone(), *groups.get(pid)?)))
        .collect()
}

/// Of a line of `/proc/PID/stat`: the process group, and the CPU seconds of the process and of children it has waited for.
fn group_and_cpu(stat: &str) -> Option<(u32, f64)> {
    // The name may have spaces; what follows it has none.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields
        .get(11..15)?
        .iter()
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    Some((fields.get(2)?.parse().ok()?, ticks / TICKS_PER_S))
}

/// The most that was resident at once; none of a process that has ended.
fn peak_kib(status: &str) -> u64 {
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Processor seconds since the machine started: those spent, and all.
fn machine() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|field| field.parse().ok())
        .collect();
    let all: f64 = ticks.iter().sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    ((all - idle) / TICKS_PER_S, all / TICKS_PER_S)
}

/// The medians of one contender's runs, as ratios.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) contender: Contender,
    pub(super) runs: usize,
    /// The least of nodes that completed in any run, of how many.
    pub(super) complete: (usize, usize),
    pub(super) first_s: f64,
    pub(super) last_s: f64,
    pub(super) last_to_bound: f64,
    pub(super) origin_to_image: f64,
    pub(super) import_to_min: f64,
    /// None where nothing has to leave a rack.
    pub(super) export_to_min: Option<f64>,
    /// Of all nodes together.
    pub(super) cpu_s_per_gib: f64,
    pub(super) rss_max_mib: f64,
    pub(super) machine_busy: f64,
    pub(super) others_busy: f64,
    pub(super) load_before: f64,
}

impl Row {
    /// Of at least one run.
    pub(super) fn of(contender: Contender, topology: &Topology, runs: &[Outcome]) -> Self {
        let image = topology.image_bytes() as f64;
        let mid = |value: &dyn Fn(&Outcome) -> f64| middle(runs.iter().map(value).collect());
        let sum = |bytes: &[u64]| bytes.iter().sum::<u64>() as f64;
        let export_min = topology.export_min() as f64;
        Self {
            contender,
            runs: runs.len(),
            complete: runs
                .iter()
                .map(|run| (run.complete, run.nodes))
                .min()
                .unwrap_or_default(),
            first_s: mid(&|run| run.first_s),
            last_s: mid(&|run| run.last_s),
            last_to_bound: mid(&|run| run.last_s) / topology.bound_s(),
            origin_to_image: mid(&|run| run.wire.origin_out as f64) / image,
            import_to_min: mid(&|run| sum(&run.wire.rack_in)) / topology.import_min() as f64,
            export_to_min: (export_min > 0.0).then(|| mid(&|run| sum(&run.wire.rack_out)) / export_min),
            cpu_s_per_gib: mid(&|run| run.usage.nodes_cpu_s() / run.complete.max(1) as f64)
                / (image / f64::from(1 << 30)),
            rss_max_mib: mid(&|run| run.usage.rss_max_kib() as f64) / 1024.0,
            machine_busy: mid(&|run| run.usage.machine_busy),
            others_busy: mid(&|run| run.usage.others_busy),
            load_before: mid(&|run| run.usage.load_before),
        }
    }

    /// The table's head.
    pub(super) fn head() -> &'static str {
        "                       nodes  first s   last s  last/T  origin/F  import/min  export/min  CPU s/GiB  peak MiB  machine busy"
    }

    /// One line of the table. A tool that did not bring the image to all has no last node, and no share of what it cost if it
    /// brought it to nobody.
    pub(super) fn line(&self) -> String {
        let (complete, nodes) = self.complete;
        let number = |value: f64, digits: usize, is_known: bool| match is_known {
            true => format!("{value:.digits$}"),
            false => "-".to_owned(),
        };
        let (any, all) = (complete > 0, complete == nodes);
        format!(
            "{:<21} {complete:>3}/{nodes:<3} {:>7} {:>8} {:>7} {:>9.3} {:>11.3} {:>11} {:>10} {:>9.0} {:>12.0}%",
            self.contender.name(),
            number(self.first_s, 2, any),
            number(self.last_s, 2, all),
            number(self.last_to_bound, 3, all),
            self.origin_to_image,
            self.import_to_min,
            number(self.export_to_min.unwrap_or_default(), 3, self.export_to_min.is_some()),
            number(self.cpu_s_per_gib, 2, any),
            self.rss_max_mib,
            self.machine_busy * 100.0
        )
    }
}

/// What came of a budget: the rate of the busiest node, or rack, each way, against what was set. Counted is the middle of a
/// run, where nobody begins any more and nobody has finished yet.
pub(super) fn budget_line(scope: &str, mbit: u32, runs: &[Outcome]) -> String {
    let busiest = |of: &dyn Fn(&Counters) -> u64| {
        middle(
            runs.iter()
                .filter_map(|run| run.middle.as_ref())
                .map(|(seconds, wire)| of(wire) as f64 * 8.0 / 1e6 / seconds.max(0.001))
                .collect(),
        )
    };
    let most = |bytes: &[u64]| bytes.iter().max().copied().unwrap_or(0);
    let (received, sent) = match scope {
        "rack" => (
            busiest(&|wire| most(&wire.rack_in)),
            busiest(&|wire| most(&wire.rack_out)),
        ),
        _ => (
            busiest(&|wire| most(&wire.node_in)),
            busiest(&|wire| most(&wire.node_out)),
        ),
    };
    let set = f64::from(mbit);
    format!(
        "budget of {mbit} Mbit/s per {scope}: the busiest received {received:.1} ({:.3}) and sent {sent:.1} ({:.3})",
        received / set,
        sent / set
    )
}

/// The middle of some numbers; the mean of the two middle ones where their count is even.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[at],
        _ => f64::midpoint(values[at - 1], values[at]),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        os::unix::process::CommandExt as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn the_middle_of_numbers() {
        assert_eq!(middle(vec![]), 0.0);
        assert_eq!(middle(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(middle(vec![4.0, 1.0]), 2.5);
    }

    #[test]
    fn an_incomplete_row_has_no_last_node() {
        let row = |complete| Row {
            contender: Contender::Chain,
            runs: 1,
            complete: (complete, 10),
            first_s: 1.0,
            last_s: 33.33,
            last_to_bound: 3.333,
            origin_to_image: 1.05,
            import_to_min: 1.05,
            export_to_min: None,
            cpu_s_per_gib: 7.77,
            rss_max_mib: 9.0,
            machine_busy: 0.5,
            others_busy: 0.1,
            load_before: 0.0,
        };
        assert!(row(10).line().contains("33.33   3.333") && row(10).line().contains("7.77"));
        assert!(!row(9).line().contains("33.33") && row(9).line().contains("7.77"));
        assert!(!row(0).line().contains("7.77"));
        assert_eq!(row(10).line().len(), Row::head().len());
        assert_eq!(row(0).line().len(), Row::head().len());
    }

    #[test]
    fn a_node_is_all_of_its_processes() {
        let mut usage = Usage::begin(&BTreeMap::new());
        usage.processes = [("coordinator", 90), ("r1-n1", 4), ("r1-n1.cache", 5), ("r1-n2", 6)]
            .map(|(name, kib)| (name.to_owned(), (1.0, kib)))
            .into();
        assert_eq!(usage.rss_max_kib(), 9);
        assert_eq!(usage.nodes_cpu_s(), 3.0);
    }

    /// A pipeline's members once were not counted, nor was whoever had ended.
    #[test]
    fn a_process_counts_with_those_that_it_started() {
        let mut shell = Command::new("sh")
            .args(["-c", "head -c 300000000 /dev/zero | tail -c 1; echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a shell");
        let mut said = [0; 2];
        shell
            .stdout
            .take()
            .expect("a pipe")
            .read_exact(&mut said)
            .expect("the pipeline ends");
        let spent = used(&[("shell".to_owned(), shell.id())].into());
        shell.kill().expect("it runs");
        shell.wait().expect("it ends");
        let (cpu, rss) = spent["shell"];
        assert!(cpu >= 0.02 && rss > 0, "{spent:?}");
        assert!(machine().0 > 0.0 && machine().0 <= machine().1);
    }
}
