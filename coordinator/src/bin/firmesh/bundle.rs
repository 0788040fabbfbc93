//! `firmesh bundle`: a campaign with its images in one file, for sites that no network reaches. What people who sign pass
//! among themselves is something else: see `firmesh trust`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::read_bounded;
use firmesh_protocol::{
    api::About,
    chunk::{HashTree, PieceLayout, encode},
    ids::{CampaignId, Sha256},
    limits::{MANIFEST_BYTES_MAX, PLAN_BYTES_MAX, ROOT_BYTES_MAX},
    manifest::{Artifact, CampaignManifest, ReleaseRef},
    site_bundle::{Bundle, Head, WantedArtifact, Wants, write_artifact, write_head},
    trust::{Input, Output as Step, Refresh, StoredMetadata, TrustedFleet},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Method, StatusCode};
use serde_json::json;
use sha2::Digest as _;
use tempfile::NamedTempFile;

use crate::{
    Folder, Global,
    client::{Client, RequestError},
    now,
    output::{Output, Verdict},
};

/// Pieces that a node is given at once.
const PIECES_AT_ONCE: usize = 4;

/// How often a node is asked that has no room yet.
const ASK_AGAIN: Duration = Duration::from_millis(300);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Writes a campaign's metadata, manifest, plan and images into one file, verified as a node verifies them.
    Export(Export),
    /// Gives a bundle to a node on this machine, which verifies all of it. Broken off, it goes on where it was.
    Import(Import),
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    folder: Folder,
    /// The campaign.
    #[arg(long, value_name = "ID")]
    campaign: CampaignId,
    /// The pinned root that nodes were given, if it is not the trust folder's `1.root.json`.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The bundle.
    file: PathBuf,
    /// The status address of the node.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8653")]
    node: String,
    /// Only make the campaign known: the images come from a neighbour that has them.
    #[arg(long)]
    metadata_only: bool,
    /// Give up if the node has no room for this many seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience: u64,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Export(args) => export(global, &args, output).await,
        Command::Import(args) => import(&args, output).await,
    }
}

async fn export(global: &Global, args: &Export, output: &Output) -> anyhow::Result<()> {
    let client = global.client()?;
    let root = args.root.clone().unwrap_or_else(|| args.folder.dir.join("1.root.json"));
    let root = read_bounded(&root, ROOT_BYTES_MAX)?;
    let (fleet, metadata) = refresh(&client, root).await?;
    let (_, digest) = fleet.campaign_file(&args.campaign)?;
    let id = &args.campaign;
    let manifest = fetch(
        &client,
        &format!("/api/v1/targets/campaigns/{digest}.{id}.json"),
        MANIFEST_BYTES_MAX,
    )
    .await?;
    let verified: CampaignManifest = fleet.campaign(id, &manifest)?.into_inner();
    let plan = fetch(&client, &format!("/api/v1/campaigns/{id}/plan"), PLAN_BYTES_MAX).await?;
    ensure!(
        Sha256::of(&plan) == verified.plan_sha256,
        "the coordinator has another plan than was approved"
    );
    let mut images = BTreeMap::new();
    for pinned @ ReleaseRef { target, .. } in verified.pinned() {
        let artifact = fleet.pinned_release(pinned)?.into_inner().artifact;
        images.entry(artifact.id).or_insert_with(|| (artifact, target.clone()));
    }
    let about: About = client.get("/api/v1/about").await?;
    let head = Head {
        fleet_ca_sha256: Sha256::of(about.fleet_ca_pem.as_bytes()),
        campaign: id.clone(),
        metadata,
        manifest: String::from_utf8(manifest).context("the manifest is not text")?,
        plan: String::from_utf8(plan).context("the plan is not text")?,
        artifacts: images.values().map(|(artifact, _)| artifact.clone()).collect(),
    };
    // Beside its place until it is whole: a bundle under its name is one.
    let folder = args.out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    let cannot = || format!("cannot write {}", args.out.display());
    let mut out = BufWriter::new(NamedTempFile::new_in(folder).with_context(cannot)?);
    write_head(&mut out, &head).with_context(cannot)?;
    for (artifact, target) in images.values() {
        let (image, tree) = download(&client, folder, artifact, target).await?;
        let layout = PieceLayout::new(artifact.length);
        write_artifact(&mut out, layout, |piece| {
            anyhow::Ok(encode(image.as_file(), &tree, &layout.bytes(piece))?)
        })
        .with_context(cannot)?;
    }
    let out = out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .with_context(cannot)?;
    out.as_file().sync_all().with_context(cannot)?;
    let bytes = out.as_file().metadata().with_context(cannot)?.len();
    out.persist(&args.out).with_context(cannot)?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(cannot)?;
    let until = fleet.metadata().timestamp().header.expires;
    let answer = json!({
        "bundle": args.out, "bytes": bytes, "campaign": id, "artifacts": head.artifacts, "metadata_expires": until,
    });
    output.show(&answer, || {
        vec![
            format!(
                "{}: campaign {id} with {} images, {bytes} bytes",
                args.out.display(),
                head.artifacts.len()
            ),
            format!("its metadata expires at {until}: import it before"),
        ]
    })
}

/// Brings metadata up to date from the pinned root on, and keeps every file that was asked for on the way: what a node
/// will ask for.
async fn refresh(client: &Client, root: Vec<u8>) -> anyhow::Result<(TrustedFleet, BTreeMap<String, String>)> {
    let stored: StoredMetadata = [("root.json".to_owned(), root)].into();
    let mut refresh = Refresh::new(stored, now())?;
    let mut files = BTreeMap::new();
    while let Some(step) = refresh.poll() {
        let Step::Fetch { name, bytes_max } = step else {
            continue;
        };
        let input = match fetch(client, &format!("/api/v1/metadata/{name}"), bytes_max).await {
            Ok(bytes) => {
                files.insert(
                    name.clone(),
                    String::from_utf8(bytes.clone()).context("metadata is not text")?,
                );
                Input::Fetched(bytes)
            }
            Err(error) if is_not_found(&error) => Input::NotFound,
            Err(error) => return Err(error),
        };
        refresh.handle(input);
    }
    Ok((TrustedFleet::new(refresh.finish()?)?, files))
}

fn is_not_found(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(RequestError::Problem(problem)) => problem.status == 404,
        Some(RequestError::Status { status, .. }) => *status == StatusCode::NOT_FOUND,
        _ => false,
    }
}

async fn fetch(client: &Client, path: &str, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let response = client.send(Method::GET, path, |request| request).await?;
    let (mut bytes, mut stream) = (Vec::new(), response.bytes_stream());
    while let Some(chunk) = stream.try_next().await.with_context(|| format!("{path} broke off"))? {
        bytes.extend_from_slice(&chunk);
        ensure!(
            bytes.len() as u64 <= bytes_max,
            "{path} has more than {bytes_max} bytes"
        );
    }
    Ok(bytes)
}

/// An image beside the bundle, and its tree: the signed length, SHA-256 and root.
async fn download(
    client: &Client,
    folder: &Path,
    artifact: &Artifact,
    target: &str,
) -> anyhow::Result<(NamedTempFile, HashTree)> {
    let name = target.strip_prefix("firmware/").unwrap_or(target);
    let path = format!("/api/v1/targets/firmware/{}.{name}", artifact.sha256);
    let response = client.send(Method::GET, &path, |request| request).await?;
    let mut file = NamedTempFile::new_in(folder).context("no room beside the bundle")?;
    let (mut hasher, mut length, mut stream) = (sha2::Sha256::new(), 0_u64, response.bytes_stream());
    while let Some(chunk) = stream.try_next().await.with_context(|| format!("{path} broke off"))? {
        length += chunk.len() as u64;
        ensure!(length <= artifact.length, "{target} is longer than was signed");
        hasher.update(&chunk);
        file.write_all(&chunk).context("cannot write beside the bundle")?;
    }
    let found = Sha256::from(<[u8; 32]>::from(hasher.finalize()));
    ensure!(
        length == artifact.length && found == artifact.sha256,
        "{target} is not what was signed"
    );
    file.seek(SeekFrom::Start(0))?;
    let tree = HashTree::build(BufReader::new(file.as_file()).take(length), length)?;
    ensure!(
        tree.root == artifact.id,
        "{target} has another BLAKE3 root than was signed"
    );
    Ok((file, tree))
}

async fn import(args: &Import, output: &Output) -> anyhow::Result<()> {
    let path = args.file.display();
    let file = File::open(&args.file).with_context(|| format!("cannot open {path}"))?;
    let mut bundle =
        Bundle::open(file).map_err(|error| Verdict::Refused(format!("{}: {path}: {error}", error.code())))?;
    let node = Client::new(&args.node, None, None)?;
    let head = bundle.head().clone();
    let mut wants: Wants = node.post("/bundle", &head).await?;
    let (mut given, mut held, mut bytes) = (0_u64, 0_u64, 0_u64);
    let deadline = Instant::now() + Duration::from_secs(args.patience);
    let mut done = Vec::new();
    if args.metadata_only {
        wants.artifacts.clear();
    }
    loop {
        wants.artifacts.retain(|wanted| !done.contains(&wanted.artifact));
        if wants.artifacts.is_empty() {
            break;
        }
        let Some(wanted) = wants.artifacts.iter().find(|wanted| wanted.ready) else {
            if Instant::now() >= deadline {
                let why = wants.artifacts.iter().find_map(|wanted| wanted.refusal.clone());
                bail!(
                    "the node takes nothing: {}",
                    why.unwrap_or_else(|| "it does not say why".to_owned())
                );
            }
            tokio::time::sleep(ASK_AGAIN).await;
            wants = node.get(&format!("/bundle/{}", head.campaign)).await?;
            continue;
        };
        let (count, sum) = give(&node, &mut bundle, wanted, output).await?;
        done.push(wanted.artifact);
        held += u64::from(wanted.held.count());
        (given, bytes) = (given + count, bytes + sum);
    }
    let answer = json!({
        "node": args.node, "campaign": head.campaign, "pieces_given": given, "pieces_held_before": held, "bytes": bytes,
    });
    output.show(&answer, || {
        let campaign = &head.campaign;
        match args.metadata_only {
            true => vec![format!("{} knows campaign {campaign}", args.node)],
            false => vec![format!(
                "{} has the images of campaign {campaign}: {given} pieces given, {held} were there",
                args.node
            )],
        }
    })
}

/// Gives a node the pieces of one image that it does not hold. Only those are read.
async fn give(
    node: &Client,
    bundle: &mut Bundle<File>,
    wanted: &WantedArtifact,
    output: &Output,
) -> anyhow::Result<(u64, u64)> {
    let artifact = wanted.artifact;
    let named = bundle.head().artifacts.iter().find(|named| named.id == artifact);
    let layout = PieceLayout::new(named.map_or(0, |named| named.length));
    let bytes_of = move |piece| {
        let bytes = layout.bytes(piece);
        bytes.end - bytes.start
    };
    let read = wanted.held.missing().map(|piece| match bundle.piece(artifact, piece) {
        Ok(Some(encoded)) => Ok((piece, encoded)),
        Ok(None) => Err(anyhow::anyhow!(
            "the bundle has no image {artifact}, which its campaign needs"
        )),
        Err(error) => Err(error.into()),
    });
    let progress = &output.bar("giving", wanted.held.missing().map(bytes_of).sum());
    let puts = stream::iter(read).map(|piece| async move {
        let (piece, encoded) = piece?;
        let length = encoded.len() as u64;
        let path = format!("/bundle/{artifact}/{piece}");
        node.send(Method::PUT, &path, |request| request.body(encoded)).await?;
        progress.inc(bytes_of(piece));
        anyhow::Ok(length)
    });
    let lengths: Vec<u64> = puts.buffered(PIECES_AT_ONCE).try_collect().await?;
    progress.finish_and_clear();
    Ok((lengths.len() as u64, lengths.iter().sum()))
}
