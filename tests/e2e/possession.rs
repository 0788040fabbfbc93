//! A node proves that it holds the images before its devices may start: the coordinator does not take its word.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, Holding, SyncRequest, SyncResponse},
    chunk::PieceLayout,
    ids::{ArtifactId, NodeId},
    labels::Labels,
    possession::{Answer, Challenge, Proof, Prover},
    report::DeviceFacts,
};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::{MODEL, NEW, OLD, VENDOR, place, rules},
    stranger::{self, Card},
    wait::{Seen, until},
};
use rustls::version::TLS13;

const WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// The images are there and proven before the window opens; then nothing stands between the start and the first permit.
#[tokio::test]
async fn nodes_prove_both_images_ahead_of_the_start_and_before_the_first_permit() -> Result<()> {
    let shape = Shape {
        racks: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        fleet.approve_campaign("spring", &rules(1, (120, 20)))?;
        let view = until("every node to have proven its images", WITHIN, async || {
            let view = fleet.campaign("spring").await?;
            let holds = (view.possession.nodes, view.possession.proven) == (2, 2);
            Ok(if holds {
                Seen::Yes(view)
            } else {
                Seen::NotYet(format!("{view:?}"))
            })
        })
        .await?;
        ensure!(view.state == CampaignState::Scheduled, "{view:?}");
        let said = fleet.operator.run(&["campaign", "status", "spring"])?.stdout;
        ensure!(said.contains("2 of 2 nodes have proven"), "{said}");
        fleet.operator.ok(&["campaign", "start", "spring"])?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(view.possession.wrong_proofs.is_empty(), "{view:?}");
        ensure!(fleet.running(NEW).await? == fleet.device_count());

        let log = fs::read_to_string(fleet.folder().join("coordinator.log"))?;
        let (before, _) = log.split_once(": permit campaign=").context("no permit was issued")?;
        let proofs = log.matches("a node has proven that it holds an image").count();
        println!("{proofs} proofs, all of them before the first permit");
        ensure!(proofs == 4, "two images at each of two nodes, once: {proofs}");
        ensure!(before.matches("a node has proven that it holds an image").count() == proofs);
        Ok(())
    })
    .await
}

/// It is enrolled, looks after a planned device and says that it holds everything. What it cannot say is the proof.
#[tokio::test]
async fn a_node_that_says_it_holds_the_images_and_does_not_gets_no_permit_and_is_named() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let liar = Liar::enrol(fleet).await?;
        liar.says(Vec::new()).await?;
        // One wave, so that its device could start at once.
        let rules = rules(1, (600, 20)).replace("[1000, 5000, 10000]", "[10000]");
        fleet.approve_campaign("spring", &rules)?;
        let ahead = liar.says(Vec::new()).await?.challenges;
        ensure!(ahead.len() == 2, "the new image and the way back: {ahead:?}");
        fleet.operator.ok(&["campaign", "start", "spring"])?;

        // A guess, and the right proof of the node that holds the image.
        let guess = Answer {
            challenge: ahead[0],
            proof: Proof::from([7; 32]),
        };
        let borrowed = liar.proves(&ahead[1], "r1-n1")?;
        let heard = liar.says(vec![guess, borrowed]).await?;
        ensure!(heard.permits.is_empty() && heard.challenges.is_empty(), "{heard:?}");
        until("the honest node's device to be updated", ENDS_WITHIN, async || {
            let versions = fleet.versions().await?;
            Ok(Seen::when(versions["r1-n1-bmc1"].as_deref() == Some(NEW), || {
                format!("{versions:?}")
            }))
        })
        .await?;
        ensure!(
            liar.says(Vec::new()).await?.permits.is_empty(),
            "the liar was permitted"
        );
        names_the_liar(fleet)?;

        let asked = liar.is_asked_again().await?;
        ensure!(asked.iter().all(|asked| !ahead.contains(asked)), "{asked:?}");
        // What was right for one challenge is not for another, and what is not asked for does not count at all.
        let stale = liar.proves(&ahead[0], NAME)?;
        let heard = liar.says(vec![stale]).await?;
        ensure!(heard.permits.is_empty() && heard.challenges == asked, "{heard:?}");

        fleet.coordinator.kill()?;
        fleet.restart_coordinator().await?;
        names_the_liar(fleet).context("after SIGKILL")?;
        let asked = liar.is_asked_again().await?;
        let truth = asked
            .iter()
            .map(|asked| liar.proves(asked, NAME))
            .collect::<Result<_>>()?;
        let heard = liar.says(truth).await?;
        ensure!(heard.permits.len() == 1, "and with the truth it is: {heard:?}");
        Ok(())
    })
    .await
}

fn names_the_liar(fleet: &Cluster) -> Result<()> {
    let view = fleet.operator.ok(&["campaign", "status", "spring"])?;
    let possession = &view["possession"];
    ensure!(possession["nodes"] == 2 && possession["proven"] == 1, "{view}");
    ensure!(possession["wrong_proofs"][NAME] == 2, "{view}");
    let said = fleet.operator.run(&["campaign", "status", "spring"])?.stdout;
    ensure!(said.contains("wrong_possession_proof: 2 by node x-liar"), "{said}");
    let why = fleet
        .operator
        .run(&["campaign", "explain", "spring", "--device", DEVICE])?
        .stdout;
    println!("{said}\n{why}");
    ensure!(why.contains("awaiting_possession: node x-liar"), "{why}");
    ensure!(why.contains("wrong_possession_proof: 1 by node x-liar"), "{why}");
    Ok(())
}

const NAME: &str = "x-liar";
const DEVICE: &str = "x-liar-bmc1";

/// A member with a rack of its own.
struct Liar {
    card: Card,
    coordinator: SocketAddr,
    fleet_ca: PathBuf,
    images: [Vec<u8>; 2],
}

impl Liar {
    async fn enrol(fleet: &Cluster) -> Result<Self> {
        let (url, fleet_ca) = (&fleet.about.node_url, fleet.folder().join("fleet-ca.pem"));
        let card = Card::enrol(url, &fleet_ca, NAME, fleet.token(NAME, 2)?).await?;
        let read = |file: &str| fs::read(fleet.folder().join(file));
        Ok(Self {
            card,
            coordinator: url.trim_start_matches("https://").parse()?,
            fleet_ca,
            images: [read("image.bin")?, read("previous.bin")?],
        })
    }

    /// One heartbeat: it holds everything, it says.
    async fn says(&self, possession: Vec<Answer>) -> Result<SyncResponse> {
        let facts = DeviceFacts {
            device: DEVICE.parse()?,
            vendor: VENDOR.to_owned(),
            model: MODEL.to_owned(),
            component: "bmc".parse()?,
            version: Some(OLD.to_owned()),
            executor: "redfish".to_owned(),
            labels: Labels::default(),
        };
        let held = self.images.iter().map(|image| {
            let pieces = PieceLayout::new(image.len() as u64).pieces();
            Holding {
                artifact: ArtifactId::of(image),
                pieces,
                pieces_total: pieces,
            }
        });
        let boast = |request: &mut SyncRequest| {
            request.devices = vec![facts];
            request.holdings = held.collect();
            request.possession = possession;
        };
        let request = self.card.sync(NAME, &place(NAME, 2), boast)?;
        let tls = stranger::config(Some(&self.fleet_ca), Some(&self.card), &[&TLS13])?;
        let answer = stranger::https(self.coordinator, tls, request).await?;
        let answer = answer.map_err(|shut| anyhow::anyhow!("shut out: {shut}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(body).with_context(|| body.to_owned())
    }

    async fn is_asked_again(&self) -> Result<Vec<Challenge>> {
        until("both challenges to be made anew", WITHIN, async || {
            let asked = self.says(Vec::new()).await?.challenges;
            Ok(if asked.len() == 2 {
                Seen::Yes(asked)
            } else {
                Seen::NotYet(format!("{asked:?}"))
            })
        })
        .await
    }

    /// What a node of this name answers that holds the image.
    fn proves(&self, challenge: &Challenge, name: &str) -> Result<Answer> {
        let mut images = self.images.iter();
        let image = images
            .find(|image| ArtifactId::of(image) == challenge.artifact)
            .context("another image")?;
        let mut prover = Prover::new(challenge, &NodeId::new(name)?, image.len() as u64);
        while let Some(range) = prover.wants() {
            prover.add(&image[usize::try_from(range.start)?..usize::try_from(range.end)?])?;
        }
        let proof = prover.finish().context("a sample without an end")?;
        let challenge = *challenge;
        Ok(Answer { challenge, proof })
    }
}
