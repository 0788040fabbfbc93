//! Images that nothing refers to, and what belongs to no image: found, and removed once they are old enough.
//!
//! Invariants: an image stays as long as its digest or its BLAKE3 root stands anywhere in signed metadata, in the manifest of
//! a campaign, in what operators keep here, or in an upload; nothing is removed before its row is gone. Rows go in the
//! coordinator's own task, so that no publication is half-way meanwhile, and in the transaction that looks for their names.
//! No image comes to its place while files are removed, and what is on its way is not touched, however old one asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, SystemTime},
};

use firmesh_protocol::{
    api::{CollectImages, CollectedImages},
    ids::ArtifactId,
    manifest::Artifact,
};
use futures_util::TryStreamExt as _;
use sqlx::{AnyConnection, Row as _};
use tracing::info;

use crate::{
    files::Found,
    origin::{Origin, PART},
    runtime::{ActionError, Command, Coordinator},
    store::{Store, StoreError},
    uploads::{UploadError, Uploads},
};

/// Why nothing was collected, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The coordinator's task.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The uploads.
    #[error(transparent)]
    Uploads(#[from] UploadError),
    /// The folder or the bucket.
    #[error("the stored images cannot be looked through or removed: ask again once the disk or the bucket answers")]
    Files(#[source] io::Error),
}

/// Everything that may name an image, as it is stored. Plans name none: what they install stands in the manifest.
const DOCUMENTS: [&str; 3] = [
    "SELECT bytes FROM metadata",
    "SELECT bytes FROM trusted",
    "SELECT bytes FROM manifests",
];
const RECORDS: [&str; 2] = ["SELECT record FROM records", "SELECT record FROM operations"];

/// Finds them, and removes them unless it is only to tell.
pub(crate) async fn collect(
    coordinator: &Coordinator,
    store: &Store,
    origin: &Origin,
    uploads: &Uploads,
    asked: &CollectImages,
    now: SystemTime,
) -> Result<CollectedImages, CollectError> {
    origin.belongs_to(&store.fleet()).await.map_err(CollectError::Files)?;
    let _alone = origin.alone().await;
    let files = origin.all_files().await.map_err(CollectError::Files)?;
    let age = Duration::from_secs(asked.older_than_s.into());
    let is_old = |found: &Found| now.duration_since(found.modified).is_ok_and(|since| since >= age);
    let stored = store.artifacts().await?;
    let mut connection = store.reader().acquire().await.map_err(StoreError::read)?;
    let named = named(&mut connection, uploads, &stored).await?;
    drop(connection);
    let came: BTreeMap<&str, &Found> = files.iter().map(|found| (found.name.as_str(), found)).collect();
    let goes = |artifact: &&Artifact| {
        let file = came.get(format!("{}.bin", artifact.id).as_str()).copied();
        // One whose file is gone was asked to be removed before.
        !named.contains(&artifact.id) && file.is_none_or(is_old)
    };
    let mut images: Vec<Artifact> = stored.iter().filter(goes).cloned().collect();
    if !asked.dry_run && !images.is_empty() {
        let uploads = uploads.clone();
        images = (coordinator)
            .ask(|reply| Command::Collect(images, uploads, reply))
            .await?;
    }
    let gone: BTreeSet<ArtifactId> = images.iter().map(|artifact| artifact.id).collect();
    let kept: BTreeSet<ArtifactId> = stored
        .iter()
        .map(|artifact| artifact.id)
        .filter(|id| !gone.contains(id))
        .collect();
    // Recipes have no row of their own: they live as long as their image.
    let mut recipes = BTreeSet::new();
    for found in files.iter().filter(|found| found.name.ends_with(".recipe")) {
        if owner(found).is_some_and(|image| kept.contains(&image)) {
            recipes.extend(origin.recipe_named(&found.name).await.map_err(CollectError::Files)?);
        }
    }
    let belongs = |found: &&Found| owner(found).is_some_and(|id| kept.contains(&id) || recipes.contains(&id));
    // What a crash has left of these goes at the next start.
    let is_on_its_way = |found: &Found| found.name.ends_with(PART);
    let surplus: Vec<&Found> = files
        .iter()
        .filter(|&found| !belongs(&found) && !is_on_its_way(found) && is_old(found))
        .collect();
    if !asked.dry_run {
        // The name of a recipe first, the bytes last: a list that breaks off is gone on with the next time.
        for ending in [".recipe", ".tree", ""] {
            for found in surplus.iter().filter(|found| kind(found) == ending) {
                origin.remove_file(&found.name).await.map_err(CollectError::Files)?;
            }
        }
        info!(
            images = images.len(),
            files = surplus.len(),
            "images that nothing refers to were removed"
        );
    }
    Ok(CollectedImages {
        dry_run: asked.dry_run,
        files: surplus.len() as u64,
        bytes: surplus.iter().map(|found| found.length).sum(),
        kept: kept.len() as u64,
        images,
    })
}

fn owner(found: &Found) -> Option<ArtifactId> {
    found.name.split('.').next()?.parse().ok()
}

fn kind(found: &Found) -> &'static str {
    let endings = [".recipe", ".tree"];
    endings
        .into_iter()
        .find(|ending| found.name.ends_with(ending))
        .unwrap_or("")
}

/// Forgets those of these images that nothing names now. Their files go after it.
pub(crate) async fn forget_unnamed(
    store: &Store,
    uploads: &Uploads,
    mut images: Vec<Artifact>,
) -> Result<Vec<Artifact>, CollectError> {
    let mut transaction = store.begin().await?;
    let named = named(&mut transaction, uploads, &images).await?;
    images.retain(|artifact| !named.contains(&artifact.id));
    for artifact in &images {
        sqlx::query("DELETE FROM artifacts WHERE id = $1")
            .bind(artifact.id.to_string())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
    }
    transaction.commit().await.map_err(StoreError::written)?;
    Ok(images)
}

/// Which of these are named anywhere, by digest or by root.
async fn named(
    connection: &mut AnyConnection,
    uploads: &Uploads,
    artifacts: &[Artifact],
) -> Result<BTreeSet<ArtifactId>, CollectError> {
    let names: BTreeMap<String, ArtifactId> = artifacts
        .iter()
        .flat_map(|artifact| {
            [
                (artifact.sha256.to_string(), artifact.id),
                (artifact.id.to_string(), artifact.id),
            ]
        })
        .collect();
    let mut found = BTreeSet::new();
    let mut look = |document: &[u8]| {
        for word in document
            .split(|byte| !byte.is_ascii_hexdigit())
            .filter(|word| word.len() == 64)
        {
            let word = std::str::from_utf8(word).unwrap_or_default().to_ascii_lowercase();
            found.extend(names.get(&word));
        }
    };
    for query in DOCUMENTS {
        let mut rows = sqlx::query(query).fetch(&mut *connection);
        while let Some(row) = rows.try_next().await.map_err(StoreError::read)? {
            look(&row.get::<Vec<u8>, _>(0));
        }
    }
    for query in RECORDS {
        let mut rows = sqlx::query(query).fetch(&mut *connection);
        while let Some(row) = rows.try_next().await.map_err(StoreError::read)? {
            look(row.get::<String, _>(0).as_bytes());
        }
    }
    let listing = uploads.clone();
    let listed = tokio::task::spawn_blocking(move || listing.all()).await;
    for upload in listed.map_err(|error| CollectError::Files(io::Error::other(error)))?? {
        look(upload.sha256.to_string().as_bytes());
    }
    Ok(found)
}
