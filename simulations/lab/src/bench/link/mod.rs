//! One link: a whole image from one end to the other over loopback, ours and others', in turns.
//!
//! Ours is what a node does: pieces asked of a neighbour's store, as many at once as a node has in flight to one peer, each
//! verified and made durable before it counts. Beside it, in the same run and with the same certificates, ciphers, windows
//! and datagrams: a plain QUIC stream whose bytes are only counted, and iroh-blobs from one of its stores into another. Over
//! TCP: nginx with HTTPS and curl into a file. And what nobody can go without: BLAKE3 over the same bytes, and the same
//! bytes written to a file and made durable. Both ends of everything over QUIC live in this process.

mod blobs;
mod ends;
mod https;
mod ours;
mod raw;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use firmesh_node::transport::DatagramBound;
use firmesh_node_core::swarm::Tuning;
use firmesh_protocol::chunk::HashTree;
use serde::Serialize;

use super::{Engine, MeasureArgs, Spent, image};
use ends::Ends;
use report::Report;

/// How to measure one link.
#[derive(Debug, Args)]
pub(crate) struct LinkArgs {
    #[command(flatten)]
    measure: MeasureArgs,
    /// The largest datagrams that are tried, in bytes of UDP payload: 1472 is what Ethernet carries, 6500 the most a node
    /// tries. Several take turns.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "1472", value_parser = datagrams)]
    datagrams: Vec<DatagramBound>,
    /// Pieces asked for at once; by default as many as a node has in flight to one peer.
    #[arg(long, value_name = "PIECES", default_value_t = nodes_in_flight(), value_parser = clap::value_parser!(u32).range(1..=32))]
    in_flight: u32,
    /// Only these; all of them if absent.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<Contender>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Contender {
    /// A plain QUIC stream.
    RawQuinn,
    /// Our transport between two of our stores.
    Ours,
    /// The same with stores that encrypt.
    OursEncrypted,
    /// Our transport between two of iroh-blobs' stores.
    OursFsStore,
    /// iroh-blobs' provider and getter over plain QUIC between two of its stores.
    IrohBlobs,
    /// nginx over HTTPS, and curl.
    Nginx,
    /// BLAKE3 over bytes in memory.
    Hash,
    /// Bytes in memory to a file.
    Disk,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::RawQuinn => "raw quinn stream",
            Self::Ours => "ours",
            Self::OursEncrypted => "ours, AES-256-GCM store",
            Self::OursFsStore => "ours over FsStore",
            Self::IrohBlobs => "iroh-blobs FsStore",
            Self::Nginx => "nginx HTTPS and curl",
            Self::Hash => "BLAKE3 alone",
            Self::Disk => "file write and fsync",
        }
    }

    /// What has become of the bytes when the clock stops.
    fn keeps(self) -> &'static str {
        match self {
            Self::RawQuinn => "counted and dropped",
            Self::Ours => "verified; durable before a piece counts",
            Self::OursEncrypted => "verified; encrypted, durable before a piece counts",
            Self::OursFsStore | Self::IrohBlobs => "verified; in a file, not synced",
            Self::Nginx => "not verified; in a file, not synced",
            Self::Hash => "verified in memory",
            Self::Disk => "not verified; durable",
        }
    }

    /// Whether it moves datagrams.
    fn is_over_quic(self) -> bool {
        !matches!(self, Self::Nginx | Self::Hash | Self::Disk)
    }

    /// Programs it needs that are not installed.
    fn missing(self) -> Vec<&'static str> {
        match self {
            Self::Nginx => https::missing(),
            _ => Vec::new(),
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    datagrams: Option<DatagramBound>,
    contender: Contender,
}

/// What is moved.
struct Load {
    image: Bytes,
    tree: HashTree,
    in_flight: usize,
    seed: u64,
}

pub(super) async fn run(args: &LinkArgs) -> Result<()> {
    let length = args.measure.size << 20;
    let image = Bytes::from(image(usize::try_from(length)?));
    let tree = HashTree::build(&image[..], length)?;
    let in_flight = usize::try_from(args.in_flight)?;
    let mut load = Load {
        image,
        tree,
        in_flight,
        seed: 0,
    };
    let (mut cases, missing) = cases(&args.only, &args.datagrams);
    ensure!(!cases.is_empty(), "nothing is left to measure: {}", missing.join(", "));
    let mut spent = BTreeMap::<Case, Vec<Spent>>::new();
    for run in 0..args.measure.runs {
        load.seed = u64::from(run);
        for case in &cases {
            let folder = tempfile::tempdir()?;
            let took = measure(case, folder.path(), &load).await?;
            spent.entry(*case).or_default().push(took);
            let datagrams = case.datagrams.map(|most| format!(", datagrams of {}", most.bytes()));
            eprintln!(
                "run {} of {}: {}{}: {:.2} s",
                run + 1,
                args.measure.runs,
                case.contender.name(),
                datagrams.unwrap_or_default(),
                took.wall.as_secs_f64()
            );
        }
        // Nobody always comes after the same one.
        cases.rotate_left(1);
    }
    let report = Report::of(length, in_flight, &spent, missing);
    if args.measure.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.lines().iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

/// What takes turns, and what cannot because something is not installed.
fn cases(only: &[Contender], datagrams: &[DatagramBound]) -> (Vec<Case>, Vec<String>) {
    let wanted: BTreeSet<_> = match only.is_empty() {
        true => Contender::value_variants().iter().copied().collect(),
        false => only.iter().copied().collect(),
    };
    let (mut cases, mut missing) = (BTreeSet::new(), Vec::new());
    for contender in wanted {
        let programs = contender.missing();
        if !programs.is_empty() {
            let (name, programs) = (contender.name(), programs.join(" and "));
            missing.push(format!("{name}: {programs} not installed"));
        } else if contender.is_over_quic() {
            let with = |most: &DatagramBound| Case {
                datagrams: Some(*most),
                contender,
            };
            cases.extend(datagrams.iter().map(with));
        } else {
            cases.insert(Case {
                datagrams: None,
                contender,
            });
        }
    }
    (cases.into_iter().collect(), missing)
}

async fn measure(case: &Case, folder: &Path, load: &Load) -> Result<Spent> {
    let most = case.datagrams.unwrap_or_default();
    match case.contender {
        Contender::RawQuinn => raw::transfer(Ends::new(folder)?, most, load).await,
        Contender::Ours => ours::transfer(Engine::Plain, Ends::new(folder)?, most, load).await,
        Contender::OursEncrypted => ours::transfer(Engine::Encrypted, Ends::new(folder)?, most, load).await,
        Contender::OursFsStore => ours::transfer(Engine::FsStore, Ends::new(folder)?, most, load).await,
        Contender::IrohBlobs => blobs::transfer(Ends::new(folder)?, most, load).await,
        Contender::Nginx => https::transfer(folder, load).await,
        Contender::Hash => hash(load).await,
        Contender::Disk => write(folder, load).await,
    }
}

async fn hash(load: &Load) -> Result<Spent> {
    let (spent, root) = Spent::on(async { Ok(blake3::hash(&load.image)) }).await?;
    ensure!(
        root.as_bytes() == load.tree.root.as_bytes(),
        "the image changed in memory"
    );
    Ok(spent)
}

async fn write(folder: &Path, load: &Load) -> Result<Spent> {
    let mut file = std::fs::File::create_new(folder.join("image"))?;
    settle().await?;
    let written = async {
        file.write_all(&load.image)?;
        Ok(file.sync_all()?)
    };
    Ok(Spent::on(written).await?.0)
}

/// Writes back what waits for it, so that nobody pays for what was prepared.
async fn settle() -> Result<()> {
    Ok(tokio::task::spawn_blocking(nix::unistd::sync).await?)
}

/// Pieces that a node asks one peer for at once.
fn nodes_in_flight() -> u32 {
    let tuning = Tuning::default();
    u32::try_from(tuning.per_peer_max.min(tuning.in_flight_max)).unwrap_or(u32::MAX)
}

fn datagrams(text: &str) -> Result<DatagramBound, String> {
    let bytes = text.parse::<u16>().map_err(|error| error.to_string())?;
    DatagramBound::try_from(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: LinkArgs,
    }

    fn parse(line: &str) -> Result<LinkArgs, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.args)
    }

    #[test]
    fn datagrams_are_sizes_that_a_node_takes() {
        let sizes = |line: &str| -> Vec<u16> {
            let args = parse(line).unwrap();
            args.datagrams.iter().map(|most| most.bytes()).collect()
        };
        assert_eq!(sizes("link"), [1_472]);
        assert_eq!(sizes("link --datagrams 1472,6500"), [1_472, 6_500]);
        for bad in ["1199", "6501", "70000", "large", "1472,"] {
            let refused = parse(&format!("link --datagrams {bad}"));
            assert!(refused.is_err(), "{bad}");
        }
        for bad in ["--in-flight 0", "--in-flight 33", "--only curl"] {
            assert!(parse(&format!("link {bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn by_default_pieces_are_asked_for_as_a_node_asks_one_peer() {
        assert_eq!(
            parse("link").unwrap().in_flight as usize,
            Tuning::default().per_peer_max
        );
    }

    #[test]
    fn what_moves_datagrams_is_measured_with_each_size_and_the_rest_once() {
        let args = parse("link --datagrams 6500,1472,6500 --only hash,ours,raw-quinn,ours").unwrap();
        let (cases, missing) = cases(&args.only, &args.datagrams);
        let named = |case: &Case| (case.datagrams.map(DatagramBound::bytes), case.contender);
        assert_eq!(
            cases.iter().map(named).collect::<Vec<_>>(),
            [
                (None, Contender::Hash),
                (Some(1_472), Contender::RawQuinn),
                (Some(1_472), Contender::Ours),
                (Some(6_500), Contender::RawQuinn),
                (Some(6_500), Contender::Ours),
            ]
        );
        assert!(missing.is_empty());
    }
}
