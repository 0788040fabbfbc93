//! `firmesh artifact`: images as bytes.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use firmesh_coordinator::ceremony::{TrustFolder, measure};
use firmesh_protocol::{
    api::{CollectImages, CollectedImages, Page, ReleaseView},
    manifest::Artifact,
};

use crate::{
    Global,
    output::{Output, Verdict},
    upload,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Gives an image to the origin, which checks its digests. Broken off, the same command goes on where it stands.
    Add {
        /// The image.
        file: PathBuf,
    },
    /// Lists what the origin holds.
    List,
    /// Removes images that nothing refers to any more: no release, campaign, draft or upload.
    Collect {
        /// Only those that came at least so many days ago.
        #[arg(long, value_name = "DAYS", default_value_t = 30)]
        older_than: u16,
        /// Only tell.
        #[arg(long)]
        dry_run: bool,
    },
    /// Compares an image with what release keys signed for.
    Verify {
        /// The image.
        file: PathBuf,
        /// The release it should be; any if absent.
        #[arg(long, value_name = "firmware/NAME")]
        release: Option<String>,
        /// Ask this trust folder instead of the coordinator. Offline.
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Add { file } => add(global, &file, output).await,
        Command::List => {
            let page: Page<Artifact> = global.client()?.list("/api/v1/artifacts", &[]).await?;
            let row = |artifact: &Artifact| [artifact.id.to_string(), artifact.length.to_string()];
            output.show(&page, || {
                Output::table(["BLAKE3", "BYTES"], &page.items.iter().map(row).collect::<Vec<_>>())
            })
        }
        Command::Collect { older_than, dry_run } => collect(global, older_than, dry_run, output).await,
        Command::Verify { file, release, dir } => {
            verify(global, &file, release.as_deref(), dir.as_deref(), output).await
        }
    }
}

/// Reads an image once and shows how far that is.
pub(crate) fn measured(file: &Path, output: &Output) -> anyhow::Result<Artifact> {
    let length = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    let bar = output.bar("hashing", length);
    let artifact = measure(file, |read| bar.inc(read))?;
    bar.finish_and_clear();
    Ok(artifact)
}

async fn add(global: &Global, file: &Path, output: &Output) -> anyhow::Result<()> {
    let artifact = measured(file, output)?;
    let bar = output.bar("sending", artifact.length);
    let stored = upload::send(&global.client()?, file, &artifact, &bar).await?;
    bar.finish_and_clear();
    anyhow::ensure!(
        stored == artifact,
        "the origin stored {}, sent was {}",
        stored.id,
        artifact.id
    );
    output.show(&stored, || lines(&stored))
}

async fn collect(global: &Global, older_than: u16, dry_run: bool, output: &Output) -> anyhow::Result<()> {
    let asked = CollectImages {
        older_than_s: u32::from(older_than) * 86_400,
        dry_run,
    };
    let found: CollectedImages = global.client()?.post("/api/v1/artifacts/collect", &asked).await?;
    output.show(&found, || {
        let row = |artifact: &Artifact| [artifact.id.to_string(), artifact.length.to_string()];
        let mut lines = Output::table(["BLAKE3", "BYTES"], &found.images.iter().map(row).collect::<Vec<_>>());
        let verb = if dry_run { "would go" } else { "are gone" };
        lines.push(format!(
            "{} images, {} files, {} bytes {verb}; {} images stay",
            found.images.len(),
            found.files,
            found.bytes,
            found.kept
        ));
        lines
    })
}

async fn verify(
    global: &Global,
    file: &Path,
    release: Option<&str>,
    dir: Option<&Path>,
    output: &Output,
) -> anyhow::Result<()> {
    let artifact = measured(file, output)?;
    let signed: Vec<(String, String)> = match dir {
        Some(dir) => {
            let folder = TrustFolder::open(dir)?;
            folder.publication(&["releases.json"])?;
            let targets = folder.repository().releases().targets.iter();
            targets
                .filter_map(|(name, target)| Some((name.clone(), target.sha256()?.to_string())))
                .collect()
        }
        None => {
            let page: Page<ReleaseView> = global.client()?.list("/api/v1/releases", &[]).await?;
            let digest = |view: ReleaseView| (view.release.target, view.release.artifact.sha256.to_string());
            page.items.into_iter().map(digest).collect()
        }
    };
    let digest = artifact.sha256.to_string();
    let wanted = |name: &str| release.is_none_or(|release| release == name);
    match signed.iter().find(|(name, signed)| wanted(name) && *signed == digest) {
        Some((name, _)) => output.show(&serde_json::json!({ "release": name, "artifact": artifact }), || {
            std::iter::once(format!("{} is {name}", file.display()))
                .chain(lines(&artifact))
                .collect()
        }),
        None => {
            let what = release.map_or_else(|| "any signed release".to_owned(), str::to_owned);
            Err(Verdict::Refused(format!("{} (sha256 {digest}) is not {what}", file.display())).into())
        }
    }
}

fn lines(artifact: &Artifact) -> Vec<String> {
    let Artifact { id, sha256, length } = artifact;
    vec![
        format!("blake3  {id}"),
        format!("sha256  {sha256}"),
        format!("bytes   {length}"),
    ]
}
