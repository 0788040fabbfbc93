//! What lies on a node's disk: nothing of an image where a key is configured, and nothing that is believed once it changed.

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, chunk::PIECE_BYTES_MIN};
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Shape},
    process::Process,
    setup::{NEW, rules},
    wait::{Seen, until},
};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
const ENCRYPTED: &str = "r1-n1";
const PLAIN: &str = "r1-n2";

#[tokio::test]
async fn an_encrypted_node_takes_part_and_its_disk_shows_nothing_of_the_image() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 2,
        image_bytes: 6 << 20,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let folder = fleet.node(ENCRYPTED)?.folder().to_owned();
        let (state, key) = (folder.join("state"), folder.join("store.key"));
        fleet.node(ENCRYPTED)?.process.stop(WITHIN).await?;
        let config = fs::read_to_string(folder.join("node.toml"))?;
        let with_key = config.replacen("[mesh]", "[store]\nkey_file = \"store.key\"\n[mesh]", 1);
        fs::write(folder.join("node.toml"), &with_key)?;
        give_key(&key, "5a")?;
        fleet.node(ENCRYPTED)?.restart().await?;
        fleet.start_campaign("spring", &rules(2, (120, 20)))?;
        let view = fleet.campaign_ends("spring", Duration::from_secs(120)).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(fleet.running(NEW).await? == fleet.device_count());
        for name in [ENCRYPTED, PLAIN] {
            let status = holds_everything(fleet, name).await?;
            println!("{name}: {}", status["traffic"]);
        }

        // Eight bytes at a multiple of eight: every run of 15 bytes of the image has some.
        let image = fs::read(fleet.folder().join("image.bin"))?;
        let windows: HashSet<&[u8]> = image.windows(8).collect();
        let (files, shown) = shown_by(&state, &windows)?;
        ensure!(shown == 0, "{shown} windows of the image lie in {}", state.display());
        let (_, shown) = shown_by(&fleet.node(PLAIN)?.folder().join("state"), &windows)?;
        ensure!(
            shown * 8 >= image.len(),
            "the search finds only {shown} windows on a plain disk"
        );
        println!("0 windows of the image in {files} files; {shown} on the plain node's disk");

        // The disk without its key, with another one, and with a byte changed.
        fleet.node(ENCRYPTED)?.process.stop(WITHIN).await?;
        for (config, key_byte, says) in [
            (&config, "5a", "is encrypted and no key is configured"),
            (&with_key, "5b", "is encrypted under another key"),
        ] {
            fs::write(folder.join("node.toml"), config)?;
            give_key(&key, key_byte)?;
            let said = refuses_to_start(fleet, ENCRYPTED).await?;
            ensure!(said.contains(says) && said.contains("state/store"), "{said}");
        }
        give_key(&key, "5a")?;
        let content = largest(&state.join("store"))?;
        flip(&content, 3 << 20)?;
        fleet.node(ENCRYPTED)?.restart().await?;
        let fetched = |status: &Value| -> u64 {
            let from = |source: &str| status["traffic"][source].as_u64();
            ["from_origin", "from_rack", "from_other_racks"]
                .into_iter()
                .filter_map(from)
                .sum()
        };
        until("the damaged piece to be fetched again", WITHIN, async || {
            let status = fleet.node(ENCRYPTED)?.status().await?;
            let named = status["last_error"]
                .as_str()
                .is_some_and(|error| error.contains("changed on disk"));
            Ok(Seen::when(named && fetched(&status) > 0, || status.to_string()))
        })
        .await?;
        let status = holds_everything(fleet, ENCRYPTED).await?;
        let fetched = fetched(&status);
        ensure!(fetched == PIECE_BYTES_MIN, "{fetched} bytes for one piece: {status}");
        ensure!(
            status["banned"].as_object().is_some_and(serde_json::Map::is_empty),
            "{status}"
        );
        Ok(())
    })
    .await
}

fn give_key(file: &Path, byte: &str) -> Result<()> {
    fs::write(file, byte.repeat(32))?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o600))?)
}

async fn holds_everything(fleet: &mut Cluster, name: &str) -> Result<Value> {
    let node = fleet.node(name)?;
    until(&format!("{name} to hold everything"), WITHIN, async || {
        let (held, total) = node.pieces().await?;
        let status = node.status().await?;
        Ok(if total > 1 && held == total {
            Seen::Yes(status)
        } else {
            Seen::NotYet(format!("{held} of {total}"))
        })
    })
    .await
}

/// Starts a node that has to end by itself; answers what it said.
async fn refuses_to_start(fleet: &mut Cluster, name: &str) -> Result<String> {
    let node = fleet.node(name)?;
    let log = node.folder().join("refused.log");
    let config = node.folder().join("node.toml");
    let args = ["--config".as_ref(), config.as_os_str()];
    let mut process = Process::start(Program::Node, args, &log, |_| ())?;
    let status = process.wait(WITHIN).await?;
    ensure!(status.code() == Some(1), "{status}: {}", process.log());
    println!("{}", process.log());
    Ok(process.log())
}

/// How many files there are under `folder`, and how many places in them are one of `windows`.
fn shown_by(folder: &Path, windows: &HashSet<&[u8]>) -> Result<(usize, usize)> {
    let (mut files, mut shown, mut folders) = (0, 0, vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files += 1;
                let bytes = fs::read(&path)?;
                shown += bytes.chunks_exact(8).filter(|part| windows.contains(part)).count();
            }
        }
    }
    Ok((files, shown))
}

fn largest(folder: &Path) -> Result<PathBuf> {
    let measured = fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.metadata()?.len(), entry.path()))
        })
        .collect::<Result<Vec<_>>>()?;
    let (_, path) = measured.into_iter().max().context("the store is empty")?;
    Ok(path)
}

fn flip(file: &Path, at: u64) -> Result<()> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(&[byte[0] ^ 1])?)
}
