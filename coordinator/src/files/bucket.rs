//! One bucket of an S3 server, below one prefix.
//!
//! Invariants: an object appears whole or not at all; what travels there carries a checksum that the server compares; an
//! object that is made with [`Bucket::put_new`] is never replaced by another.

use std::{
    io::{self, Read as _},
    ops::Range,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, RetryConfig,
    WriteMultipart,
    aws::{AmazonS3Builder, Checksum, S3ConditionalPut},
    path::Path as Name,
    prefix::PrefixStore,
};

use super::{config::Bucketed, connection::Connector};

/// A request that keeps failing is given up after that.
const RETRY_FOR: Duration = Duration::from_secs(30);

/// Larger objects are sent in parts of so many bytes, a few at a time. Servers take 10,000 parts.
const PART_BYTES: usize = 16 << 20;
const PARTS_AT_ONCE: usize = 4;

/// Says whose bucket it is.
const OWNER: &str = "fleet";
const OWNER_BYTES_MAX: u64 = 1 << 10;

/// The bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    objects: Arc<dyn ObjectStore>,
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its name, without the folder.
    pub(crate) name: String,
    pub(crate) length: u64,
    pub(crate) modified: SystemTime,
}

impl Bucket {
    /// Nothing is asked of the server yet.
    pub(crate) fn open(settings: &Bucketed) -> io::Result<Self> {
        let is_plain = settings.endpoint.scheme() == "http";
        let built = AmazonS3Builder::new()
            .with_endpoint(settings.endpoint.as_str().trim_end_matches('/'))
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_credentials(Arc::new(settings.keys.clone()))
            .with_http_connector(Connector {
                is_plain,
                ca_file: settings.ca_file.clone(),
            })
            .with_allow_http(is_plain)
            .with_virtual_hosted_style_request(!settings.path_style)
            .with_checksum_algorithm(Checksum::SHA256)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(RetryConfig {
                retry_timeout: RETRY_FOR,
                ..RetryConfig::default()
            })
            .build();
        let built = built.map_err(failed)?;
        Ok(Self {
            objects: match settings.prefix.as_str() {
                "" => Arc::new(built),
                prefix => Arc::new(PrefixStore::new(built, prefix)),
            },
        })
    }

    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self {
            objects: Arc::new(object_store::memory::InMemory::new()),
        }
    }

    /// Makes sure that it is this fleet's: what one fleet does not know, another may need.
    pub(crate) async fn belongs_to(&self, fleet: &str) -> io::Result<()> {
        if self.put_new(OWNER, Bytes::copy_from_slice(fleet.as_bytes())).await? {
            return Ok(());
        }
        match self.get(OWNER, OWNER_BYTES_MAX).await? {
            Some(owner) if owner == fleet.as_bytes() => Ok(()),
            Some(owner) => Err(io::Error::other(format!(
                "the bucket belongs to {}, and this fleet is {fleet}: give each a bucket, or a `files.s3.prefix`, of its own",
                String::from_utf8_lossy(&owner)
            ))),
            None => Err(io::Error::other(
                "somebody has just removed whose bucket it is: try again",
            )),
        }
    }

    /// Stores a small object, in place of one that is there.
    pub(crate) async fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let (name, payload) = (Name::from(name), PutPayload::from_bytes(bytes));
        self.objects.put(&name, payload).await.map(drop).map_err(failed)
    }

    /// Stores an object unless there is one of this name: then it says so, and leaves that one alone.
    pub(crate) async fn put_new(&self, name: &str, bytes: Bytes) -> io::Result<bool> {
        let (name, payload) = (Name::from(name), PutPayload::from_bytes(bytes));
        let options = PutOptions::from(PutMode::Create);
        match self.objects.put_opts(&name, payload, options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Stores a file, in parts if it is large.
    pub(crate) async fn put_file(&self, name: &str, path: &Path) -> io::Result<()> {
        let length = tokio::fs::metadata(path).await?.len();
        if length <= PART_BYTES as u64 {
            return self.put(name, tokio::fs::read(path).await?.into()).await;
        }
        let upload = self.objects.put_multipart(&Name::from(name)).await.map_err(failed)?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let sent = send(&mut writer, path).await;
        match sent {
            Ok(()) => writer.finish().await.map(drop).map_err(failed),
            Err(error) => {
                // What was sent is of no use; if it cannot be taken back, the server's own rules clean up.
                let _ = writer.abort().await;
                Err(error)
            }
        }
    }

    /// An object of at most so many bytes.
    pub(crate) async fn get(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>> {
        let found = match self.objects.get(&Name::from(name)).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            other => other.map_err(failed)?,
        };
        if found.meta.size > bytes_max {
            let problem = format!("{name} has {} bytes, it must have at most {bytes_max}", found.meta.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        found.bytes().await.map(Some).map_err(failed)
    }

    /// A stretch of an object, in one piece.
    pub(crate) async fn range(&self, name: &str, range: Range<u64>) -> io::Result<Bytes> {
        self.objects.get_range(&Name::from(name), range).await.map_err(failed)
    }

    /// A stretch of an object, as it comes.
    pub(crate) async fn stream(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let found = self
            .objects
            .get_opts(&Name::from(name), options)
            .await
            .map_err(failed)?;
        Ok(found.into_stream().map_err(failed).boxed())
    }

    /// What lies in a folder.
    pub(crate) fn list(&self, folder: &str) -> BoxStream<'static, io::Result<Found>> {
        let listed = self.objects.list(Some(&Name::from(folder)));
        let found = listed.map_err(failed).map_ok(|object| Found {
            name: object.location.filename().unwrap_or_default().to_owned(),
            length: object.size,
            modified: object.last_modified.into(),
        });
        found.boxed()
    }

    /// Removes an object, if it is there.
    pub(crate) async fn remove(&self, name: &str) -> io::Result<()> {
        match self.objects.delete(&Name::from(name)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

async fn send(writer: &mut WriteMultipart, path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    let (filled, mut parts) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
    let reading = tokio::task::spawn_blocking(move || {
        let read = |filled: &tokio::sync::mpsc::Sender<io::Result<Bytes>>| -> io::Result<()> {
            let mut file = std::fs::File::open(path)?;
            loop {
                let mut part = Vec::with_capacity(PART_BYTES);
                file.by_ref().take(PART_BYTES as u64).read_to_end(&mut part)?;
                // Nobody waits for it any more where sending has failed.
                if part.is_empty() || filled.blocking_send(Ok(part.into())).is_err() {
                    return Ok(());
                }
            }
        };
        if let Err(error) = read(&filled) {
            let _ = filled.blocking_send(Err(error));
        }
    });
    while let Some(part) = parts.recv().await {
        writer.wait_for_capacity(PARTS_AT_ONCE).await.map_err(failed)?;
        writer.put(part?);
    }
    reading.await.map_err(io::Error::other)
}

/// In the words of a file system, which is what most callers stand on.
fn failed(error: Error) -> io::Error {
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bucket_is_of_one_fleet() {
        let bucket = Bucket::in_memory();
        bucket.belongs_to("urn:ours").await.unwrap();
        bucket.belongs_to("urn:ours").await.unwrap();
        let refused = bucket.belongs_to("urn:theirs").await.unwrap_err().to_string();
        assert!(
            refused.contains("urn:ours") && refused.contains("files.s3.prefix"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn an_object_is_made_once_read_in_stretches_and_removed() {
        let bucket = Bucket::in_memory();
        assert!(bucket.put_new("archive/a", Bytes::from_static(b"first")).await.unwrap());
        assert!(
            !bucket
                .put_new("archive/a", Bytes::from_static(b"second"))
                .await
                .unwrap()
        );
        assert_eq!(bucket.get("archive/a", 5).await.unwrap().unwrap(), "first");
        assert_eq!(
            bucket.get("archive/a", 4).await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(bucket.range("archive/a", 1..3).await.unwrap(), "ir");
        let parts: Vec<Bytes> = bucket
            .stream("archive/a", 2..5)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(parts.concat(), b"rst");
        let found: Vec<Found> = bucket.list("archive").try_collect().await.unwrap();
        assert_eq!((found.len(), found[0].name.as_str(), found[0].length), (1, "a", 5));
        bucket.remove("archive/a").await.unwrap();
        bucket.remove("archive/a").await.unwrap();
        assert_eq!(bucket.get("archive/a", 5).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_large_file_goes_in_parts_and_comes_back_whole() {
        let bucket = Bucket::in_memory();
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..PART_BYTES as u32 * 2 + 77).map(|at| (at % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        bucket.put_file("artifacts/x.bin", file.path()).await.unwrap();
        let read = bucket
            .get("artifacts/x.bin", bytes.len() as u64)
            .await
            .unwrap()
            .unwrap();
        assert!(read == bytes);
    }
}
