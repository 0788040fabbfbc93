//! What was found, as a table and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Case, Contender};
use crate::bench::{Rate, Spent};

/// Everything one run of the command says.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    mib: u64,
    /// Pieces that ours asks for at once.
    in_flight: usize,
    rows: Vec<Row>,
    /// What was left out, and why.
    missing: Vec<String>,
}

/// One contender with one size of datagrams.
#[derive(Debug, Serialize)]
struct Row {
    contender: Contender,
    datagram_bytes_max: Option<u16>,
    /// Medians; the processor time is that of both ends.
    #[serde(flatten)]
    rate: Rate,
    /// How many times as fast as a plain stream with the same datagrams.
    to_raw_quinn: Option<f64>,
    /// How many times as fast as iroh-blobs with the same datagrams.
    to_iroh_blobs: Option<f64>,
    /// How many times as fast as nginx and curl.
    to_nginx: Option<f64>,
    keeps: &'static str,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    wall_s: f64,
    cpu_s: f64,
}

impl Report {
    /// Of runs that moved `length` bytes each.
    pub(super) fn of(length: u64, in_flight: usize, spent: &BTreeMap<Case, Vec<Spent>>, missing: Vec<String>) -> Self {
        let rates: BTreeMap<_, _> = spent
            .iter()
            .map(|(case, runs)| (*case, Rate::of(runs, length)))
            .collect();
        let row = |(case, runs): (&Case, &Vec<Spent>)| {
            let rate = rates[case];
            let moves = case.contender.is_over_quic() || case.contender == Contender::Nginx;
            let to = |contender: Contender, datagrams| {
                let other = rates.get(&Case { datagrams, contender }).filter(|_| moves)?;
                Some(rate.mb_per_s / other.mb_per_s)
            };
            Row {
                contender: case.contender,
                datagram_bytes_max: case.datagrams.map(|most| most.bytes()),
                rate,
                to_raw_quinn: to(Contender::RawQuinn, case.datagrams),
                to_iroh_blobs: to(Contender::IrohBlobs, case.datagrams),
                to_nginx: to(Contender::Nginx, None),
                keeps: case.contender.keeps(),
                runs: runs.iter().map(Run::of).collect(),
            }
        };
        Self {
            mib: length >> 20,
            in_flight,
            rows: spent.iter().map(row).collect(),
            missing,
        }
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let runs = self.rows.iter().map(|row| row.runs.len()).max().unwrap_or(0);
        let mut lines = vec![
            format!(
                "one link over loopback, {} MiB, medians of {runs} interleaved runs; ours asks for {} pieces at once",
                self.mib, self.in_flight
            ),
            "CPU: both ends. Ratios: throughput over that of a raw quinn stream and of iroh-blobs with the same datagrams, \
             and of nginx"
                .to_owned(),
            format!(
                "  {:<24} {:>9} {:>6} {:>10} {:>7} {:>7} {:>7}   {}",
                "", "datagrams", "MB/s", "CPU s/GiB", "/quinn", "/iroh", "/nginx", "what arrived is"
            ),
        ];
        lines.extend(self.rows.iter().map(Row::line));
        lines.extend(self.missing.iter().map(|missing| format!("  left out: {missing}")));
        lines
    }
}

impl Row {
    fn line(&self) -> String {
        let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let datagrams = self.datagram_bytes_max.map(|most| most.to_string());
        format!(
            "  {:<24} {:>9} {:>6.0} {:>10.2} {:>7} {:>7} {:>7}   {}",
            self.contender.name(),
            datagrams.as_deref().unwrap_or("-"),
            self.rate.mb_per_s,
            self.rate.cpu_s_per_gib,
            ratio(self.to_raw_quinn),
            ratio(self.to_iroh_blobs),
            ratio(self.to_nginx),
            self.keeps
        )
    }
}

impl Run {
    fn of(spent: &Spent) -> Self {
        Self {
            wall_s: spent.wall.as_secs_f64(),
            cpu_s: spent.cpu.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use firmesh_node::transport::DatagramBound;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// A GiB in so many seconds of the clock and of processors.
    fn took(wall_s: u64, cpu_s: u64) -> Spent {
        Spent {
            wall: Duration::from_secs(wall_s),
            cpu: Duration::from_secs(cpu_s),
        }
    }

    fn report(cases: &[(Option<u16>, Contender, Vec<Spent>)]) -> Report {
        let spent = cases.iter().map(|(bytes, contender, runs)| {
            let datagrams = bytes.map(|bytes| DatagramBound::try_from(bytes).unwrap());
            let contender = *contender;
            (Case { datagrams, contender }, runs.clone())
        });
        Report::of(GIB, 2, &spent.collect(), Vec::new())
    }

    #[test]
    fn ratios_are_between_the_same_datagrams_and_nginx_has_none() {
        let report = report(&[
            (Some(1_472), Contender::RawQuinn, vec![took(4, 4)]),
            (Some(1_472), Contender::Ours, vec![took(9, 1), took(5, 6), took(1, 9)]),
            (Some(1_472), Contender::IrohBlobs, vec![took(10, 9)]),
            (Some(6_500), Contender::RawQuinn, vec![took(2, 2)]),
            (Some(6_500), Contender::Ours, vec![took(4, 3)]),
            (None, Contender::Nginx, vec![took(2, 3)]),
            (None, Contender::Hash, vec![took(1, 1)]),
        ]);
        let ours = |bytes: Option<u16>, contender: Contender| {
            let rows = report.rows.iter();
            let found = rows.filter(|row| row.datagram_bytes_max == bytes && row.contender == contender);
            let ratios: Vec<_> = found
                .map(|row| [row.to_raw_quinn, row.to_iroh_blobs, row.to_nginx])
                .collect();
            ratios[0].map(|ratio| ratio.map(|ratio| (ratio * 1_000.0).round() as u32))
        };
        assert_eq!(ours(Some(1_472), Contender::Ours), [Some(800), Some(2_000), Some(400)]);
        assert_eq!(ours(Some(6_500), Contender::Ours), [Some(500), None, Some(500)]);
        assert_eq!(ours(None, Contender::Nginx), [None, None, Some(1_000)]);
        assert_eq!(ours(None, Contender::Hash), [None, None, None]);
    }

    #[test]
    fn the_table_names_what_was_measured_and_what_was_left_out() {
        let mut report = report(&[
            (Some(1_472), Contender::RawQuinn, vec![took(4, 4)]),
            (Some(1_472), Contender::Ours, vec![took(5, 6); 3]),
        ]);
        report
            .missing
            .push("nginx HTTPS and curl: nginx not installed".to_owned());
        let lines = report.lines();
        assert!(lines[0].contains("1024 MiB, medians of 3 interleaved runs; ours asks for 2 pieces"));
        let row = "  ours                          1472    215       6.00    0.80       -       -   verified; durable";
        assert!(lines[4].starts_with(row), "{}", lines[4]);
        assert_eq!(lines[5], "  left out: nginx HTTPS and curl: nginx not installed");
    }
}
