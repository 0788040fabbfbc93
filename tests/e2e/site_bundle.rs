//! A site that no network reaches: a bundle brings it a campaign and its images, and its nodes share them as ever.

use std::{fs, io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    chunk::PieceLayout,
    ids::Sha256,
    site_bundle::{Bundle, Head, write_head},
};
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Node, Shape},
    process::Process,
    setup::rules,
    wait::{Seen, at_the_moment, until},
};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
const IMAGE_BYTES: usize = 48 << 20;
/// The new image and the previous one.
const IMAGES: [u64; 2] = [IMAGE_BYTES as u64, 1 << 20];
const CARRIED_TO: &str = "r1-n1";
const NEIGHBOUR: &str = "r1-n2";

#[tokio::test]
async fn a_site_without_a_coordinator_gets_its_images_from_a_bundle_and_shares_them() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 2,
        image_bytes: IMAGE_BYTES,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        keep_addresses(fleet).await?;
        // From here on neither node hears of anything but by hand.
        for name in [CARRIED_TO, NEIGHBOUR] {
            fleet.node(name)?.process.stop(WITHIN).await?;
        }
        fleet.approve_campaign("spring", &rules(2, (120, 20)))?;
        let exported = fleet
            .operator
            .ok(&["bundle", "export", "--campaign", "spring", "-o", "spring.bundle"])?;
        println!("exported: {exported}");
        fleet.coordinator.kill()?;
        for name in [CARRIED_TO, NEIGHBOUR] {
            fleet.node(name)?.restart().await?;
        }
        refuses_what_is_not_whole_or_not_ours(fleet).await?;

        // Killed in the middle, both the import and the node it goes to.
        let bundle = fleet.folder().join("spring.bundle");
        let node = fleet.node(CARRIED_TO)?;
        let url = node.status_url()?;
        let args = ["bundle", "import", path(&bundle)?, "--node", &url];
        let mut import = Process::start(Program::Operator, args, &node.folder().join("import.log"), |_| ())?;
        at_the_moment("a part of the images to be here", WITHIN, async || {
            let (held, _) = node.pieces().await?;
            Ok(Seen::when(held * 4 >= total_pieces(), || {
                format!("{held} of {}: {}", total_pieces(), import.log())
            }))
        })
        .await?;
        import.kill()?;
        node.process.kill()?;
        node.restart().await?;
        let url = node.status_url()?;
        let done = fleet
            .operator
            .ok(&["bundle", "import", "spring.bundle", "--node", &url])?;
        println!("after both were killed: {done}");
        let (given, before) = (number(&done, "pieces_given")?, number(&done, "pieces_held_before")?);
        ensure!(
            before * 4 >= total_pieces() && before < total_pieces(),
            "the kill was not in the middle: {done}"
        );
        ensure!(
            given + before == total_pieces(),
            "something was read twice, or left out: {done}"
        );
        let status = holds_everything(fleet.node(CARRIED_TO)?).await?;
        ensure!(
            status["traffic"]["from_origin"] == 0 && status["traffic"]["fetched_again"] == 0,
            "{status}"
        );
        let again = fleet
            .operator
            .ok(&["bundle", "import", "spring.bundle", "--node", &url])?;
        ensure!(number(&again, "pieces_given")? == 0, "{again}");

        // The neighbour hears of the campaign, and takes the images from the rack.
        let url = fleet.node(NEIGHBOUR)?.status_url()?;
        let known = fleet
            .operator
            .ok(&["bundle", "import", "spring.bundle", "--node", &url, "--metadata-only"])?;
        ensure!(number(&known, "pieces_given")? == 0, "{known}");
        let status = holds_everything(fleet.node(NEIGHBOUR)?).await?;
        println!("the neighbour's traffic: {}", status["traffic"]);
        ensure!(
            number(&status["traffic"], "from_rack")? == IMAGES.iter().sum::<u64>(),
            "{status}"
        );
        ensure!(status["coordinator_reachable"] == false, "{status}");
        let image = fs::read(fleet.folder().join("image.bin"))?;
        ensure!(
            content_of(fleet.node(NEIGHBOUR)?, image.len())? == image,
            "another image"
        );
        Ok(())
    })
    .await
}

/// Without a coordinator nodes find each other where they were: that takes ports of their own, as at a real site.
async fn keep_addresses(fleet: &mut Cluster) -> Result<()> {
    for name in [CARRIED_TO, NEIGHBOUR] {
        let node = fleet.node(name)?;
        node.process.stop(WITHIN).await?;
        let address = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = fs::read_to_string(node.folder().join("node.toml"))?;
        let with_address = config.replacen("[mesh]", &format!("[data]\nlisten = {address:?}\n[mesh]"), 1);
        fs::write(node.folder().join("node.toml"), with_address)?;
        node.restart().await?;
    }
    for name in [CARRIED_TO, NEIGHBOUR] {
        until("both to have found each other there", WITHIN, async || {
            let status = fleet.node(name)?.status().await?;
            Ok(Seen::when(status["connected"] == 1, || status.to_string()))
        })
        .await?;
    }
    Ok(())
}

async fn refuses_what_is_not_whole_or_not_ours(fleet: &mut Cluster) -> Result<()> {
    let folder = fleet.folder().to_owned();
    let whole = fs::read(folder.join("spring.bundle"))?;
    let head = Bundle::open(fs::File::open(folder.join("spring.bundle"))?)?
        .head()
        .clone();
    let url = fleet.node(CARRIED_TO)?.status_url()?;
    let refused = |says: &str, bytes: &[u8]| -> Result<()> {
        fs::write(folder.join("bad.bundle"), bytes)?;
        let said = fleet
            .operator
            .refused(3, &["bundle", "import", "bad.bundle", "--node", &url])?;
        println!("{}", said.trim());
        ensure!(said.contains(says), "{says} was expected: {said}");
        Ok(())
    };
    refused("bundle_truncated", &whole[..whole.len() - 1_000])?;
    refused("bundle_altered", &[&whole[..], b"more"].concat())?;
    refused("not_a_bundle", b"an image, perhaps")?;
    let mut bad_head = whole.clone();
    bad_head[1_000] ^= 1;
    refused("bundle_altered", &bad_head)?;
    let only_head = |head: &Head| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        write_head(&mut bytes, head)?;
        Ok(bytes)
    };
    let artifacts = Vec::new();
    let fleet_ca_sha256 = Sha256::of(b"another fleet's");
    refused(
        "another fleet",
        &only_head(&Head {
            fleet_ca_sha256,
            artifacts: artifacts.clone(),
            ..head.clone()
        })?,
    )?;
    // Another fleet's, or a thief's, that says it is ours: nobody here signed for it.
    let mut forged = Head {
        artifacts: artifacts.clone(),
        ..head.clone()
    };
    let timestamp = forged.metadata.get_mut("timestamp.json").context("no timestamp")?;
    let at = timestamp.find("\"sig\"").context("no signature")? + 10;
    let other = if timestamp.as_bytes()[at] == b'0' { "1" } else { "0" };
    timestamp.replace_range(at..=at, other);
    refused("signature threshold", &only_head(&forged)?)?;
    let manifest = head.manifest.replacen("spring", "autumn", 1);
    refused(
        "hash mismatch",
        &only_head(&Head {
            manifest,
            artifacts,
            ..head
        })?,
    )?;
    let status = fleet.node(CARRIED_TO)?.status().await?;
    ensure!(
        status["campaigns"] == serde_json::json!([]),
        "something of that was believed: {}",
        status["campaigns"]
    );

    // The last piece of the last image: all before it are good, and kept.
    let mut altered = whole;
    let last = altered.len() - 5;
    altered[last] ^= 1;
    fs::File::create(folder.join("bad.bundle"))?.write_all(&altered)?;
    let url = fleet.node(NEIGHBOUR)?.status_url()?;
    let said = fleet
        .operator
        .refused(3, &["bundle", "import", "bad.bundle", "--node", &url])?;
    println!("{}", said.trim());
    ensure!(said.contains("altered or damaged"), "{said}");
    let (held, _) = fleet.node(NEIGHBOUR)?.pieces().await?;
    ensure!(held < total_pieces(), "a piece that does not verify was kept");
    // As if it had never been: the neighbour is to start with nothing.
    let node = fleet.node(NEIGHBOUR)?;
    node.process.stop(WITHIN).await?;
    for known in ["store", "campaigns"] {
        fs::remove_dir_all(node.folder().join("state").join(known))?;
    }
    node.restart().await
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}

/// Pieces of all images together.
fn total_pieces() -> u64 {
    IMAGES
        .iter()
        .map(|length| u64::from(PieceLayout::new(*length).pieces()))
        .sum()
}

fn number(value: &Value, field: &str) -> Result<u64> {
    value[field]
        .as_u64()
        .with_context(|| format!("no number {field} in {value}"))
}

async fn holds_everything(node: &Node) -> Result<Value> {
    until("the node to hold everything", WITHIN, async || {
        let (held, total) = node.pieces().await?;
        let status = node.status().await?;
        Ok(match held == total_pieces() && total == total_pieces() {
            true => Seen::Yes(status),
            false => Seen::NotYet(format!("{held} of {total}")),
        })
    })
    .await
}

/// The image of this length in a node's store.
fn content_of(node: &Node, length: usize) -> Result<Vec<u8>> {
    let suffix = format!(".{length}.content");
    for entry in fs::read_dir(node.folder().join("state/store"))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(&suffix) {
            return Ok(fs::read(path)?);
        }
    }
    anyhow::bail!("no image of {length} bytes")
}
