//! A store that runs for years: it keeps within its quota, gives up what nobody needs and says so, looks after what it
//! keeps, and names what it has no room for. And images come ahead of the window they wait for.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, chunk::PIECE_BYTES_MIN};
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Node, Shape},
    process::Process,
    setup::{MODEL, NEW, OLD, rules, stage_release},
    wait::{Seen, until},
};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(120);
/// A version that no device ever gets: its campaign is cancelled.
const NEXT: &str = "1.2.0";
const MIB: usize = 1 << 20;
const SMALL: &str = "r1-n1";
const LARGE: &str = "r1-n2";

/// Two images of 8 MiB do not fit into 14. The first came ahead of a window that never opened; its campaign is cancelled,
/// the second one's image takes its place, and the neighbour knows. Then a bit rots, with nobody there but the neighbour.
#[tokio::test]
async fn an_image_nobody_needs_makes_room_and_one_that_rots_is_mended_by_a_neighbour() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 2,
        image_bytes: 8 * MIB,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let quota = 14 * MIB;
        let lines = format!(
            "quota_bytes = {quota}\nscrub_every = \"1s\"\nscrub_bytes_per_second = {}",
            64 * MIB
        );
        configure(fleet.node(SMALL)?, &lines).await?;
        publish_next(fleet)?;

        fleet.approve_update(
            "spring",
            (NEXT, OLD),
            &format!("{}\n{}", rules(2, (120, 20)), closed_window()?),
        )?;
        for name in [SMALL, LARGE] {
            holds(fleet.node(name)?, 144).await?;
        }
        let events = fleet.device_events().await?;
        ensure!(
            !events.iter().any(|event| event["event"] == "update_begun"),
            "{events:?}"
        );
        ensure!(
            fleet.running(OLD).await? == 2,
            "a device was touched outside its window"
        );
        println!("both images are here: approved, not started, days before the window opens");
        let first = root_of(&fleet.node(SMALL)?.status().await?, 128)?;

        fleet.operator.ok(&["campaign", "cancel", "spring"])?;
        fleet.campaign_ends("spring", WITHIN).await?;
        fleet.approve_update("summer", (NEW, OLD), &rules(2, (120, 20)))?;
        fleet.operator.ok(&["campaign", "start", "summer"])?;
        let status = until("the first image to make room", WITHIN, async || {
            let status = fleet.node(SMALL)?.status().await?;
            let gone =
                status["store"]["evicted"].as_u64() >= Some(1) && files_of(fleet.node(SMALL)?, &first)?.is_empty();
            Ok(if gone {
                Seen::Yes(status)
            } else {
                Seen::NotYet(status["store"].to_string())
            })
        })
        .await?;
        ensure!(!has_code(&status, "store_full"), "{}", status["refusals"]);
        let view = fleet.campaign_ends("summer", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(fleet.running(NEW).await? == 2, "{:?}", fleet.versions().await?);
        until("the neighbour to know", WITHIN, async || {
            let status = fleet.node(LARGE)?.status().await?;
            Ok(Seen::when(status["holders"][&first] == 0, || {
                status["holders"].to_string()
            }))
        })
        .await?;
        let status = fleet.node(LARGE)?.status().await?;
        ensure!(
            status["banned"].as_object().is_some_and(serde_json::Map::is_empty),
            "an eviction is no misconduct: {status}"
        );
        ensure!(
            files_of(fleet.node(SMALL)?, &first)?.is_empty(),
            "its files are still there"
        );
        ensure!(
            files_of(fleet.node(LARGE)?, &first)?.len() == 2,
            "an unbounded store gave something up"
        );
        let used: u64 = allocated(&fleet.node(SMALL)?.folder().join("state/store"))?;
        ensure!(used <= quota as u64 + MIB as u64, "{used} bytes are used of {quota}");
        println!("the first image went, {used} of {quota} bytes are used");

        // What went is not fetched again by a restart.
        fleet.coordinator.kill()?;
        let node = fleet.node(SMALL)?;
        node.process.kill()?;
        node.restart().await?;
        holds(node, 144).await?;
        let status = node.status().await?;
        ensure!(fetched(&status) == 0, "{}", status["traffic"]);
        let root = root_of(&status, 128)?;
        ensure!(root != first, "the image that went is back");
        // What the device runs and what it ran before stay, though no campaign is on.
        let kept = [root.clone(), root_of(&status, 16)?];
        until(
            "the running image and the one before it to be pinned",
            WITHIN,
            async || {
                let pinned = node.status().await?["store"]["pinned"].clone();
                let is_pinned =
                    |root: &String| pinned.as_array().is_some_and(|pins| pins.iter().any(|pin| pin == root));
                Ok(Seen::when(kept.iter().all(is_pinned), || pinned.to_string()))
            },
        )
        .await?;

        let content = files_of(node, &root)?
            .into_iter()
            .find(|file| file.extension().is_some_and(|kind| kind == "content"))
            .context("no content")?;
        flip(&content, 5 * PIECE_BYTES_MIN + 1_234)?;
        let status = until("the rotten piece to be found and fetched again", WITHIN, async || {
            let status = node.status().await?;
            let mended = status["store"]["scrub"]["pieces_lost"] == 1 && fetched(&status) == PIECE_BYTES_MIN;
            Ok(if mended {
                Seen::Yes(status)
            } else {
                Seen::NotYet(status.to_string())
            })
        })
        .await?;
        holds(node, 144).await?;
        println!("scrub: {}, traffic: {}", status["store"]["scrub"], status["traffic"]);
        ensure!(status["coordinator_reachable"] == false, "{status}");
        ensure!(
            fs::read(&content)? == fs::read(fleet.folder().join("image.bin"))?,
            "what lies on the disk is not the image"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_image_larger_than_the_quota_is_refused_by_name_and_comes_once_there_is_room() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        image_bytes: 8 * MIB,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        configure(fleet.node(SMALL)?, &format!("quota_bytes = {}", 4 * MIB)).await?;
        fleet.start_campaign("spring", &rules(1, (120, 20)))?;
        let node = fleet.node(SMALL)?;
        let detail = refusal(node).await?;
        println!("{detail}");
        ensure!(
            detail.contains("store.quota_bytes = 4194304") && detail.contains("raise it"),
            "{detail}"
        );
        let status = node.status().await?;
        ensure!(waits_for_room(&status, &detail), "{status}");
        ensure!(fleet.running(OLD).await? == 1, "a device was touched");

        configure(fleet.node(SMALL)?, &format!("quota_bytes = {}", 10 * MIB)).await?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(fleet.running(NEW).await? == 1, "{:?}", fleet.versions().await?);
        Ok(())
    })
    .await
}

/// The disk has room by its own word, and refuses a write in the middle all the same. The node says so, asks for nothing
/// that it could not keep, goes on answering, and goes on once writes succeed.
#[tokio::test]
async fn a_disk_that_refuses_a_write_in_the_middle_is_named_and_gone_on_with() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        image_bytes: 16 * MIB,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let node = fleet.node(SMALL)?;
        node.process.stop(WITHIN).await?;
        let log = node.folder().join("bounded.log");
        let mut bounded = Command::new("sh");
        // 8 MiB in blocks of 512 bytes.
        let script = "trap '' XFSZ; ulimit -f 16384; exec \"$0\" --config \"$1\"";
        bounded
            .args(["-c", script])
            .arg(Program::Node.path()?)
            .arg(node.folder().join("node.toml"));
        node.replace(Process::spawn("firmesh-node", bounded, &log)?).await?;
        fleet.start_campaign("spring", &rules(1, (120, 20)))?;
        let node = fleet.node(SMALL)?;
        let detail = refusal(node).await?;
        println!("{detail}");
        ensure!(detail.contains("no room for the next piece"), "{detail}");
        let status = node.status().await?;
        ensure!(waits_for_room(&status, &detail), "{status}");
        ensure!(!fs::read_to_string(&log)?.contains("panicked"), "see {}", log.display());

        node.process.kill()?;
        node.restart().await?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(fleet.running(NEW).await? == 1, "{:?}", fleet.versions().await?);
        Ok(())
    })
    .await
}

/// Whether the artifact that a refusal names waits for room. Others may, for the moment that it takes to look for some.
fn waits_for_room(status: &Value, refusal: &str) -> bool {
    let waiting = status["store"]["waiting_for_room"].as_array();
    let is_named = |artifact: &Value| artifact.as_str().is_some_and(|artifact| refusal.contains(artifact));
    waiting.is_some_and(|waiting| waiting.iter().any(is_named))
}

/// Stops a node, writes its `[store]` and starts it again.
async fn configure(node: &mut Node, lines: &str) -> Result<()> {
    node.process.stop(WITHIN).await?;
    let file = node.folder().join("node.toml");
    let config = fs::read_to_string(&file)?;
    let (head, rest) = config.split_once("[mesh]").context("a node has a mesh")?;
    let head = head.split("[store]").next().unwrap_or_default();
    fs::write(&file, format!("{head}[store]\n{lines}\n[mesh]{rest}"))?;
    node.restart().await
}

/// A third version of the devices' firmware, signed and published.
fn publish_next(fleet: &Cluster) -> Result<()> {
    let mut image = vec![0; 8 * MIB];
    getrandom::fill(&mut image).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    fs::write(fleet.folder().join("next.bin"), image)?;
    fleet.operator.ok(&["artifact", "add", "next.bin"])?;
    stage_release(&fleet.operator, "next.bin", MODEL, "bmc", NEXT)?;
    fleet.operator.sign("release")?;
    fleet.operator.ok(&["trust", "publish"])?;
    Ok(())
}

/// A window that opens in three days.
fn closed_window() -> Result<String> {
    const DAYS: [&str; 7] = ["thu", "fri", "sat", "sun", "mon", "tue", "wed"];
    let days = SystemTime::UNIX_EPOCH.elapsed()?.as_secs() / 86_400;
    let day = DAYS[(days as usize + 3) % 7];
    Ok(format!(
        "constraints = {{ windows = [{{ zone = \"UTC\", days = [{day:?}], from = \"03:00\", duration_s = 3600 }}] }}"
    ))
}

async fn holds(node: &Node, pieces: u64) -> Result<()> {
    until("the node to hold everything", WITHIN, async || {
        let (held, total) = node.pieces().await?;
        Ok(Seen::when(held == pieces && total == pieces, || {
            format!("{held} of {total}")
        }))
    })
    .await
}

/// The one artifact of so many pieces that a node holds.
fn root_of(status: &Value, pieces: u64) -> Result<String> {
    let holdings = status["holdings"].as_array().context("a node says what it holds")?;
    let found: Vec<_> = holdings
        .iter()
        .filter(|holding| holding["pieces_total"] == pieces)
        .collect();
    ensure!(
        found.len() == 1,
        "{} artifacts of {pieces} pieces: {status}",
        found.len()
    );
    Ok(found[0]["artifact"]
        .as_str()
        .context("an artifact has a root")?
        .to_owned())
}

async fn refusal(node: &Node) -> Result<String> {
    until("the node to say what it has no room for", WITHIN, async || {
        let status = node.status().await?;
        let refusals = status["refusals"].as_array().cloned().unwrap_or_default();
        let full = refusals.iter().find(|refusal| refusal["code"] == "store_full");
        let detail = full.and_then(|refusal| refusal["detail"].as_str());
        Ok(detail.map_or_else(
            || Seen::NotYet(status.to_string()),
            |detail| Seen::Yes(detail.to_owned()),
        ))
    })
    .await
}

fn has_code(status: &Value, code: &str) -> bool {
    let refusals = status["refusals"].as_array();
    refusals.is_some_and(|refusals| refusals.iter().any(|refusal| refusal["code"] == code))
}

fn fetched(status: &Value) -> u64 {
    let from = |source: &str| status["traffic"][source].as_u64();
    ["from_origin", "from_rack", "from_other_racks"]
        .into_iter()
        .filter_map(from)
        .sum()
}

fn files_of(node: &Node, root: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(node.folder().join("state/store"))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let of_it = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(root))
    };
    Ok(paths.into_iter().filter(of_it).collect())
}

fn allocated(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

fn flip(file: &Path, at: u64) -> Result<()> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ 1])?;
    Ok(file.sync_all()?)
}
