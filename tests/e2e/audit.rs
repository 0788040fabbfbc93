//! The audit log: a whole campaign in it, a proof that a stranger checks with files alone, and everything that somebody
//! with the coordinator's disk and keys can do to it, found out by the first who looks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, NodeView, Page},
    audit::{Checkpoint, ENTRY_SCHEMA, Entry, Event, LoggedEntry, ProofFile, Tree, leaf_hash},
    trust::SecretKey,
};
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Shape},
    operator::Operator,
    setup::{NEW, OLD, get, rules},
    wait::{Seen, until},
};
use serde_json::Value;
use sqlx::{Connection as _, Row as _, SqliteConnection};

const WITHIN: Duration = Duration::from_secs(60);
const DEVICE: &str = "r1-n1-bmc1";
const ROOT: &str = "trust/1.root.json";

fn small() -> Shape {
    Shape {
        racks: 1,
        nodes: 2,
        bmcs: 1,
        hosts: 0,
        image_bytes: 2 << 20,
        ..Shape::default()
    }
}

#[tokio::test]
async fn a_campaign_is_in_the_log_and_a_stranger_can_check_it_with_files_alone() -> Result<()> {
    Cluster::with(small(), async |fleet| {
        let operator = fleet.operator.clone();
        operator.ok(&["audit", "checkpoint", "--root", ROOT, "--out", "early.checkpoint"])?;
        fleet.start_campaign("spring", &rules(2, (120, 20)))?;
        let view = fleet.campaign_ends("spring", Duration::from_secs(120)).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        let log = operator.ok(&["audit", "verify", "--root", ROOT, "--checkpoint", "early.checkpoint"])?;
        for (kind, least) in [("log", 1), ("metadata", 6), ("manifest", 1), ("plan", 1), ("permit", 1)] {
            ensure!(log["entries"][kind].as_u64() >= Some(least), "too few {kind}: {log:#}");
        }
        for (kind, count) in [("result", 2), ("enrolment", 2), ("invitation", 2)] {
            ensure!(
                log["entries"][kind].as_u64() == Some(count),
                "not {count} {kind}: {log:#}"
            );
        }
        // Every node follows the log to its end.
        let size = log["size"].as_u64();
        for node in fleet.nodes.values() {
            until("the node to have seen the log", WITHIN, async || {
                let audit = node.status().await?["audit"].take();
                Ok(Seen::when(
                    audit["size"].as_u64() >= size && audit["root"].is_string(),
                    || audit.to_string(),
                ))
            })
            .await?;
        }

        operator.ok(&[
            "audit",
            "prove",
            "--root",
            ROOT,
            "--device",
            DEVICE,
            "--campaign",
            "spring",
            "--out",
            "d1.proof",
        ])?;
        operator.ok(&["audit", "export", "--out", "log.jsonl"])?;
        operator.refused(1, &["audit", "export", "--out", "log.jsonl"])?;
        fleet.coordinator.kill()?;

        let stranger = tempfile::tempdir()?;
        for file in [
            "d1.proof",
            "d1.proof.checkpoint",
            "log.jsonl",
            "early.checkpoint",
            "online.pub",
            ROOT,
        ] {
            let name = Path::new(file).file_name().context("a file has a name")?;
            fs::copy(fleet.folder().join(file), stranger.path().join(name))?;
        }
        let stranger = Operator::offline(stranger.path());
        the_proof_stands_and_no_changed_byte_does(&stranger)?;
        the_export_stands_and_no_change_does(&stranger)
    })
    .await
}

fn the_proof_stands_and_no_changed_byte_does(stranger: &Operator) -> Result<()> {
    let files = ["--proof", "d1.proof", "--checkpoint", "d1.proof.checkpoint"];
    let verify = [&["audit", "verify"][..], &files].concat();
    let by_root = [&verify[..], &["--root", "1.root.json"]].concat();
    let by_key = [&verify[..], &["--key", "online.pub"]].concat();
    let proven = stranger.ok(&by_root)?;
    ensure!(proven == stranger.ok(&by_key)?, "{proven:#}");
    ensure!(
        proven["results"][0]["state"] == "success" && proven["results"][0]["version"] == NEW,
        "{proven:#}"
    );
    ensure!(proven["device"] == DEVICE && !proven["permits"].as_array().context("permits")?.is_empty());
    stranger.refused(1, &verify)?;

    let at = |name: &str| stranger.folder().join(name);
    for (file, args) in [("d1.proof", &by_root), ("d1.proof.checkpoint", &by_key)] {
        let good = fs::read(at(file))?;
        for place in spread(good.len(), 12) {
            fs::write(at(file), flipped(&good, place))?;
            let said = stranger.run(args)?;
            ensure!(said.code == 3, "byte {place} of {file} is free to change: {said:?}");
        }
        fs::write(at(file), good)?;
    }
    // The same verifier in this process, over many more places than processes could be started for.
    let good = fs::read(at("d1.proof"))?;
    let key = fs::read_to_string(at("online.pub"))?.trim().parse()?;
    let checkpoint = Checkpoint::open(&fs::read(at("d1.proof.checkpoint"))?, None, &[key])?;
    let verifies = |bytes: &[u8]| ProofFile::from_bytes(bytes).and_then(|file| file.verify(&checkpoint, None));
    verifies(&good)?;
    let free = spread(good.len(), 1_500).find(|place| verifies(&flipped(&good, *place)).is_ok());
    ensure!(free.is_none(), "byte {free:?} of the proof is free to change");
    Ok(())
}

fn the_export_stands_and_no_change_does(stranger: &Operator) -> Result<()> {
    let path = stranger.folder().join("log.jsonl");
    let good: Vec<String> = fs::read_to_string(&path)?.lines().map(str::to_owned).collect();
    let verify = [
        "audit",
        "verify",
        "--file",
        "log.jsonl",
        "--root",
        "1.root.json",
        "--checkpoint",
        "early.checkpoint",
    ];
    let whole = stranger.ok(&verify)?;
    ensure!(whole["size"].as_u64() == Some(good.len() as u64 - 1), "{whole:#}");
    let detected = |what: &str, lines: &[String]| -> Result<()> {
        fs::write(&path, format!("{}\n", lines.join("\n")))?;
        let said = stranger.refused(3, &verify)?;
        println!("{what}: {}", said.trim_end());
        ensure!(said.contains(what), "expected {what}: {said}");
        Ok(())
    };
    // Entry 9 stands in line 11.
    let change = |line: usize, make: &dyn Fn(&mut LoggedEntry) -> Result<()>| -> Result<Vec<String>> {
        let mut lines = good.clone();
        let mut logged: LoggedEntry = serde_json::from_str(&lines[line])?;
        make(&mut logged)?;
        lines[line] = serde_json::to_string(&logged)?;
        Ok(lines)
    };
    let later = |text: &str| text.replace("\"at\":\"20", "\"at\":\"21");
    let flip = change(10, &|logged| {
        logged.entry = later(&logged.entry);
        Ok(())
    })?;
    detected("audit_entry_changed: entry 9", &flip)?;
    let dropped: Vec<_> = [&good[..10], &good[11..]].concat();
    detected("audit_entry_missing: entry 9", &dropped)?;
    let mut moved = good.clone();
    moved.swap(10, 11);
    detected("audit_entry_missing: entry 9", &moved)?;
    detected("audit_truncated", &good[..good.len() - 2])?;
    let document = change(1, &|logged| {
        let document = logged.document.as_mut().context("the first entry has a document")?;
        document.replace_range(0..4, "AAAA");
        Ok(())
    })?;
    detected("audit_document_changed: the document of entry 0", &document)?;
    let forked = change(10, &|logged| {
        logged.entry = later(&logged.entry);
        logged.leaf = leaf_hash(logged.entry.as_bytes());
        Ok(())
    })?;
    detected("audit_fork", &forked)?;
    fs::write(&path, format!("{}\n", good.join("\n")))?;
    stranger.ok(&verify).map(drop)
}

/// Whoever has the disk changes the past: first the coordinator notices, and, if it is made not to, every node.
#[tokio::test]
async fn a_past_changed_on_the_coordinators_disk_is_found_by_it_by_auditors_and_by_nodes() -> Result<()> {
    Cluster::with(small(), async |fleet| {
        let operator = fleet.operator.clone();
        fleet.approve_campaign("spring", &rules(2, (120, 20)))?;
        operator.ok(&["audit", "checkpoint", "--root", ROOT, "--out", "kept.checkpoint"])?;
        nodes_have_seen(fleet, log_size(fleet)?).await?;
        fleet.coordinator.stop(WITHIN).await?;
        let mut log = Attacker::open(fleet).await?;

        // Without the keys: an entry, and then also what is kept beside it.
        log.change_time_of(3).await?;
        ensure!(ended_saying(fleet, "entry 3 was changed")?);
        log.mend_hashes().await?;
        ensure!(ended_saying(fleet, "forked or changed")?);
        log.forget_checkpoint().await?;
        ensure!(ended_saying(fleet, "no checkpoint")?);
        // With the online key: nothing at this coordinator can tell any more.
        log.sign_anew(fleet).await?;
        log.close().await?;
        fleet.restart_coordinator().await?;
        let said = operator.refused(
            3,
            &["audit", "verify", "--root", ROOT, "--checkpoint", "kept.checkpoint"],
        )?;
        ensure!(said.contains("audit_fork"), "{said}");
        ensure!(operator.ok(&["audit", "verify", "--root", ROOT])?["size"].is_u64());

        for node in fleet.nodes.values() {
            refuses(|| node.status(), "audit_fork").await?;
        }
        // Nothing starts, although everything else about the campaign is in order.
        operator.ok(&["campaign", "start", "spring"])?;
        until(
            "the coordinator to hear of it, and to have given a permit",
            WITHIN,
            async || {
                let nodes: Page<NodeView> = get(fleet.http(), &format!("{}/api/v1/nodes", fleet.url())).await?;
                let told = nodes.items.iter().filter(|node| node.audit_fork.is_some()).count();
                let kinds = operator.ok(&["audit", "verify", "--root", ROOT])?["entries"].take();
                Ok(Seen::when(told == 2 && kinds["permit"].is_u64(), || {
                    format!("{told} {kinds}")
                }))
            },
        )
        .await?;
        let name = "r1-n1";
        fleet.node(name)?.process.kill()?;
        fleet.node(name)?.restart().await?;
        let node = fleet.node(name)?;
        refuses(|| node.status(), "audit_fork").await?;
        ensure!(node.folder().join("state/audit/evidence.json").is_file());
        for node in fleet.nodes.values() {
            let attempts = node.status().await?["attempts"].take();
            let begun = |state: &Value| {
                !matches!(
                    state.as_str(),
                    Some("pending" | "blocked" | "waiting_window" | "downloading")
                )
            };
            let begun = attempts
                .as_array()
                .is_some_and(|all| all.iter().any(|one| begun(&one["state"])));
            ensure!(!begun, "an attempt was begun: {attempts}");
        }
        ensure!(
            fleet.running(OLD).await? == fleet.device_count(),
            "a device was touched"
        );
        Ok(())
    })
    .await
}

/// The coordinator tells two nodes two histories, each good by itself. They find out from each other, without it.
#[tokio::test]
async fn a_split_view_is_found_by_two_nodes_when_the_coordinator_is_gone() -> Result<()> {
    Cluster::with(small(), async |fleet| {
        let operator = fleet.operator.clone();
        nodes_have_seen(fleet, log_size(fleet)?).await?;
        let invite = |name: &str| {
            let (place, out) = (format!("eu/hall-1/rack-1/{name}"), format!("{name}.ticket"));
            operator.ok(&["node", "enrol", name, "--path", &place, "--out", &out])
        };
        for name in ["r1-n1", "r1-n2"] {
            keep_its_mesh_address(fleet.node(name)?.folder())?;
        }
        fleet.node("r1-n2")?.process.stop(WITHIN).await?;
        fleet.coordinator.stop(WITHIN).await?;
        let database = fleet.folder().join("coordinator/coordinator.sqlite");
        let before = fs::read(&database)?;
        fleet.restart_coordinator().await?;
        invite("view-a")?;
        let size = log_size(fleet)?;
        has_seen(fleet, "r1-n1", size).await?;
        fleet.node("r1-n1")?.process.stop(WITHIN).await?;
        fleet.coordinator.stop(WITHIN).await?;

        fs::write(&database, before)?;
        for beside in ["-wal", "-shm"] {
            fs::remove_file(format!("{}{beside}", database.display())).ok();
        }
        fleet.restart_coordinator().await?;
        invite("view-b")?;
        ensure!(log_size(fleet)? == size, "the two views were to be of one size");
        fleet.node("r1-n2")?.restart().await?;
        has_seen(fleet, "r1-n2", size).await?;
        let quiet = fleet.node("r1-n2")?.status().await?;
        ensure!(quiet["audit"]["fork"].is_null(), "alone it cannot know: {quiet}");

        fleet.coordinator.kill()?;
        fleet.node("r1-n1")?.restart().await?;
        for name in ["r1-n1", "r1-n2"] {
            let node = fleet.node(name)?;
            refuses(|| node.status(), "audit_fork").await?;
            let evidence: Value = serde_json::from_slice(&fs::read(node.folder().join("state/audit/evidence.json"))?)?;
            let key = fs::read_to_string(fleet.folder().join("online.pub"))?.trim().parse()?;
            let notes = evidence["notes"].as_array().context("two notes")?;
            let open = |note: &Value| Checkpoint::open(note.as_str().unwrap_or_default().as_bytes(), None, &[key]);
            let [a, b] = [open(&notes[0])?, open(&notes[1])?];
            ensure!(
                a.size == b.size && a.root != b.root,
                "the evidence convicts nobody: {evidence:#}"
            );
        }
        // Back again, the coordinator finds nobody who believes it.
        fleet.restart_coordinator().await?;
        fleet.start_campaign("spring", &rules(2, (120, 20)))?;
        until("both nodes to have told the coordinator why", WITHIN, async || {
            let nodes: Page<NodeView> = get(fleet.http(), &format!("{}/api/v1/nodes", fleet.url())).await?;
            let told = nodes.items.iter().filter(|node| node.audit_fork.is_some()).count();
            Ok(Seen::when(told == 2, || format!("{nodes:?}")))
        })
        .await?;
        ensure!(
            fleet.running(OLD).await? == fleet.device_count(),
            "a device was touched"
        );
        Ok(())
    })
    .await
}

fn log_size(fleet: &Cluster) -> Result<u64> {
    let checkpoint = fleet.operator.ok(&["audit", "checkpoint", "--root", ROOT])?;
    checkpoint["size"].as_u64().context("a checkpoint has a size")
}

async fn nodes_have_seen(fleet: &mut Cluster, size: u64) -> Result<()> {
    for name in ["r1-n1", "r1-n2"] {
        has_seen(fleet, name, size).await?;
    }
    Ok(())
}

async fn has_seen(fleet: &mut Cluster, name: &str, size: u64) -> Result<()> {
    let node = fleet.node(name)?;
    until("the node to have seen the log", WITHIN, async || {
        let audit = node.status().await?["audit"].take();
        Ok(Seen::when(audit["size"].as_u64() >= Some(size), || audit.to_string()))
    })
    .await
}

/// Waits until the node names its refusal, and knows why.
async fn refuses<F: Future<Output = Result<Value>>>(status: impl Fn() -> F, code: &str) -> Result<()> {
    until(&format!("a refusal named {code}"), WITHIN, async || {
        let status = status().await?;
        let refusals = status["refusals"].as_array().cloned().unwrap_or_default();
        let named = refusals.iter().any(|refusal| refusal["code"] == code);
        Ok(Seen::when(named && status["audit"]["fork"].is_string(), || {
            status.to_string()
        }))
    })
    .await
}

/// Without the coordinator, neighbours find a node that was restarted only where it was before.
fn keep_its_mesh_address(folder: &Path) -> Result<()> {
    let addresses: Value = serde_json::from_slice(&fs::read(folder.join("state/addresses.json"))?)?;
    let address = addresses["mesh"]
        .as_str()
        .and_then(|address| address.split("/p2p/").next());
    let listen = format!("[mesh]\nlisten = {:?}", address.context("a mesh address")?);
    let config = folder.join("node.toml");
    let text = fs::read_to_string(&config)?;
    Ok(fs::write(&config, text.replace("[mesh]", &listen))?)
}

/// Starts the coordinator in vain.
fn ended_saying(fleet: &Cluster, what: &str) -> Result<bool> {
    let output = std::process::Command::new(Program::Coordinator.path()?)
        .arg("--config")
        .arg(fleet.folder().join("coordinator.toml"))
        .current_dir(fleet.folder())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    println!("the coordinator: {}", said.trim_end());
    ensure!(
        !output.status.success() && said.contains(what),
        "expected {what:?}: {said}"
    );
    Ok(true)
}

fn spread(length: usize, places: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by((length / places).max(1)).chain([length - 1])
}

fn flipped(bytes: &[u8], place: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[place] ^= 1;
    bytes
}

/// Somebody with the coordinator's disk.
struct Attacker {
    database: SqliteConnection,
    path: PathBuf,
}

impl Attacker {
    async fn open(fleet: &Cluster) -> Result<Self> {
        let path = fleet.folder().join("coordinator/coordinator.sqlite");
        let database = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await?;
        Ok(Self { database, path })
    }

    async fn change_time_of(&mut self, index: i64) -> Result<()> {
        let change = "UPDATE audit_entries SET entry = replace(entry, '\"at\":\"20', '\"at\":\"21') WHERE idx = ?";
        let changed = sqlx::query(change).bind(index).execute(&mut self.database).await?;
        ensure!(changed.rows_affected() == 1, "{}: no such entry", self.path.display());
        Ok(())
    }

    async fn entries(&mut self) -> Result<Vec<String>> {
        let rows = sqlx::query("SELECT entry FROM audit_entries ORDER BY idx");
        let rows = rows.fetch_all(&mut self.database).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn mend_hashes(&mut self) -> Result<()> {
        for (index, entry) in (0_i64..).zip(self.entries().await?) {
            sqlx::query("UPDATE audit_entries SET leaf = ? WHERE idx = ?")
                .bind(leaf_hash(entry.as_bytes()).as_bytes().to_vec())
                .bind(index)
                .execute(&mut self.database)
                .await?;
        }
        Ok(())
    }

    async fn forget_checkpoint(&mut self) -> Result<()> {
        sqlx::query("DELETE FROM audit_checkpoint")
            .execute(&mut self.database)
            .await?;
        Ok(())
    }

    async fn sign_anew(&mut self, fleet: &Cluster) -> Result<()> {
        let key = SecretKey::from_pem(&fs::read_to_string(fleet.folder().join("coordinator/keys/online.pem"))?)?;
        let entries = self.entries().await?;
        let (first, last) = (entries.first().context("a log")?, entries.last().context("a log")?);
        let first = Entry::from_bytes(first.as_bytes())?;
        ensure!(first.schema == ENTRY_SCHEMA);
        let Event::Log { origin } = first.event else {
            anyhow::bail!("the log begins with {first:?}");
        };
        let mut tree = Tree::default();
        entries.iter().for_each(|entry| tree.push(leaf_hash(entry.as_bytes())));
        let checkpoint = Checkpoint {
            origin,
            size: tree.size(),
            root: tree.root(),
            at: Entry::from_bytes(last.as_bytes())?.at,
        };
        sqlx::query("INSERT INTO audit_checkpoint VALUES (1, ?)")
            .bind(checkpoint.sign(&key))
            .execute(&mut self.database)
            .await?;
        Ok(())
    }

    async fn close(self) -> Result<()> {
        Ok(self.database.close().await?)
    }
}
