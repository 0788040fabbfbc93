//! `cargo demo api-fuzz`: a real coordinator with nodes, devices, releases and a campaign, and schemathesis, which makes
//! requests out of the OpenAPI document that the coordinator serves and compares the answers with it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use firmesh_protocol::manifest::{Artifact, Priority};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::demo::{
    ceremony::{CAMPAIGN, People, Rules, measure},
    layout::{Layout, MODEL, NEW_VERSION, OLD_VERSION, Shape, VENDOR},
    world::World,
};

/// The release that is asked of the package index.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// What is not asked:
/// - `positive_data_acceptance`, `negative_data_rejection`: filters, cursors, plans, envelopes and the like have grammars
///   of their own, which JSON Schema cannot say, and what `Idempotency-Key` or a tag in vain mean depends on the moment.
/// - `missing_required_header`: it does not count 428 (RFC 6585, no `If-Match`) and 412 (tus, no `Tus-Resumable`) as refusals.
const EXCLUDED_CHECKS: &str = "positive_data_acceptance,negative_data_rejection,missing_required_header";

/// Streams, which do not end, rehearsals, which take a processor for minutes, and syncs, which ask strangers.
const EXCLUDED_PATHS: &str = "^/api/(v1/(events|stream/.*|simulations|repository/sync)|firmware/repository/sync)$";

/// How much to ask.
#[derive(Debug, Args)]
pub(crate) struct ApiFuzzArgs {
    /// Requests to make, about.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(100..=100_000_000))]
    cases: u32,
    /// Another seed makes other requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests at a time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
}

/// True if there was no server error and no answer that the document does not know.
pub(crate) async fn run(args: ApiFuzzArgs, cancel: CancellationToken) -> Result<bool> {
    let interpreter = tokio::task::spawn_blocking(schemathesis).await??;
    let folder = tempfile::Builder::new().prefix("firmesh-api-fuzz-").tempdir()?;
    let mut world = begin(folder.path()).await?;
    let url = world.page.trim_end_matches('/').to_owned();
    let token = std::fs::read_to_string(world.layout.coordinator_state().join("operator.token"))?;
    let document: Value = world.api.get("/api/v1/openapi.json").await?;
    let methods = document["paths"].as_object().map_or(0, |paths| {
        let operations = paths.values().filter_map(Value::as_object).map(serde_json::Map::len);
        operations.sum::<usize>()
    });
    let each = (args.cases as usize).div_ceil(methods.max(1));
    println!("{methods} operations, about {each} requests each, seed {}", args.seed);
    let mut command = tokio::process::Command::new(interpreter);
    command
        .args(["-m", "schemathesis.cli", "run"])
        .arg(format!("{url}/api/v1/openapi.json"))
        .args(["--header", &format!("Authorization: Bearer {}", token.trim())])
        .args(["--max-examples", &each.to_string(), "--seed", &args.seed.to_string()])
        .args(["--workers", &args.workers.to_string()])
        .args(["--checks", "all", "--exclude-checks", EXCLUDED_CHECKS])
        .args(["--exclude-path-regex", EXCLUDED_PATHS])
        // It can make no body of this type.
        .args(["--exclude-operation-id", "patch_uploads_id"])
        .args(["--suppress-health-check", "all", "--request-timeout", "60"])
        .args([
            "--generation-database",
            "none",
            "--warnings",
            "off",
            "--continue-on-failure",
            "--no-color",
        ])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let mut running = command.spawn().context("schemathesis cannot be started")?;
    let status = tokio::select! {
        () = cancel.cancelled() => {
            running.kill().await?;
            world.processes.stop_all();
            anyhow::bail!("interrupted");
        }
        status = running.wait() => status?,
    };
    // It is still there, and so is what it was asked to keep.
    let about: Value = world
        .api
        .get("/api/v1/about")
        .await
        .context("the coordinator is gone")?;
    ensure!(about["version"].is_string(), "the coordinator has forgotten itself");
    world.processes.check()?;
    world.processes.stop_all();
    println!(
        "{}",
        if status.success() {
            "every answer is one of the document's"
        } else {
            "see above"
        }
    );
    Ok(status.success())
}

/// A fleet with something of everything.
async fn begin(folder: &Path) -> Result<World> {
    let shape = Shape {
        racks: 1,
        nodes: 2,
        bmcs: 2,
        hosts: 0,
    };
    let mut world = World::begin(Layout::new(folder, &shape)?).await?;
    let mut people = People::found(&world.layout, &world.about)?;
    let files = [folder.join("new.bin"), folder.join("previous.bin")];
    for (file, byte) in files.iter().zip([1_u8, 2]) {
        std::fs::write(file, vec![byte; 600_000])?;
    }
    let (new, previous) = (measure(&files[0]).await?, measure(&files[1]).await?);
    world.start_devices(&new, &previous, &files[1]).await?;
    for file in &files {
        let _stored: Artifact = world.api.upload("/api/v1/artifacts", file).await?;
    }
    let releases = [people.release(&new, "bmc", NEW_VERSION)?];
    let before = [people.release(&previous, "bmc", OLD_VERSION)?];
    people.sign("release")?;
    people.sign("approver")?;
    people.publish(&world.api).await?;
    world.start_nodes().await?;
    world.await_fleet(0).await?;
    let rules = Rules {
        campaign: CAMPAIGN,
        per_rack: 3,
        total: 100,
        automatic_rollback: true,
        priority: Priority::Normal,
    };
    people.plan(&world.api, &world.about, &releases, &before, rules).await?;
    people.sign("approver")?;
    people.publish(&world.api).await?;
    for (path, body) in [
        (
            "/api/v1/devices".to_owned(),
            json!({ "hardware_id": "SN-1", "vendor": VENDOR, "model": MODEL, "component": "bmc" }),
        ),
        (
            "/api/v1/device-groups".to_owned(),
            json!({ "id": "all", "filter": format!("vendor == {VENDOR:?}") }),
        ),
        (
            "/api/v1/baselines".to_owned(),
            json!({ "id": "q3", "releases": [releases[0].target] }),
        ),
        (format!("/api/v1/campaigns/{CAMPAIGN}/start"), json!({})),
    ] {
        world
            .api
            .post::<Value>(&path, &body)
            .await
            .with_context(|| path.clone())?;
    }
    Ok(world)
}

/// A Python that has schemathesis, beside this program, made once.
fn schemathesis() -> Result<PathBuf> {
    let beside = std::env::current_exe()?
        .parent()
        .context("this program lies nowhere")?
        .join("schemathesis");
    let (interpreter, made) = (beside.join("bin/python"), beside.join("made-of"));
    if std::fs::read_to_string(&made).is_ok_and(|found| found == SCHEMATHESIS) {
        return Ok(interpreter);
    }
    println!("installing {SCHEMATHESIS} in {}", beside.display());
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&beside))
        .context("python3 with venv is needed (Debian: python3-venv)")?;
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        SCHEMATHESIS,
    ];
    succeed(Command::new(&interpreter).args(pip)).context("is there a package index?")?;
    std::fs::write(&made, SCHEMATHESIS)?;
    Ok(interpreter)
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?} cannot be started"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(())
}
