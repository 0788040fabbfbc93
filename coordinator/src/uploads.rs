//! Images that arrive in parts, over as many connections as it takes.
//!
//! Invariants: the offset that is told is the length of what is on the disk, so that it is true after any crash, but for the last
//! byte, which counts only once there is an artifact: whoever is told that all is here looks no further; one request at a time
//! appends to an upload; nothing becomes an artifact before all of it has the announced SHA-256; uploads are bounded in number
//! and length, and forgotten when nothing comes for [`KEPT_FOR`].

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use firmesh_protocol::{api::UploadView, ids::Sha256, limits::ARTIFACT_BYTES_MAX, manifest::Artifact, time::WallTime};
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::{
    ceremony::write_file,
    config::remedy,
    origin::{Arrived, ImportError, Origin},
    telemetry::chain,
};

/// How long an upload is kept after its last byte.
const KEPT_FOR: Duration = Duration::from_secs(86_400);

/// A sender that sends nothing for so long is gone, and somebody else may go on.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// Uploads at once.
const UPLOADS_MAX: usize = 64;

/// Bytes that all uploads may announce together.
const ANNOUNCED_BYTES_MAX: u64 = 4 * ARTIFACT_BYTES_MAX;

/// Why an upload did not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// There is none of this name.
    #[error("there is no upload {0} here: begin another")]
    Unknown(String),
    /// Too many, or too much.
    #[error("{UPLOADS_MAX} uploads, or {ANNOUNCED_BYTES_MAX} announced bytes, are the most: finish or remove some")]
    Full,
    /// Not a length that an image has.
    #[error("an image has 1 to {ARTIFACT_BYTES_MAX} bytes, {0} are announced")]
    Length(u64),
    /// Another place than where it stands.
    #[error("the upload stands at {stands}, not at {asked}: ask where it stands, and go on there")]
    Offset {
        /// Where it stands.
        stands: u64,
        /// Where the sender wants to go on.
        asked: u64,
    },
    /// More than was announced.
    #[error("more bytes came than the {0} that were announced")]
    TooMuch(u64),
    /// Another request appends to it.
    #[error("another request appends to the upload at this moment")]
    Busy,
    /// The sender broke off. What came is kept.
    #[error("the upload broke off: ask where it stands, and go on there")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The sender has vanished. What came is kept.
    #[error("nothing came for {} s: ask where the upload stands, and go on there", SILENT_MAX.as_secs())]
    Silent,
    /// The disk refused.
    #[error("{} cannot be used: {}", path.display(), remedy(source))]
    Disk {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The whole is not what was announced, or cannot be taken in.
    #[error(transparent)]
    Import(#[from] ImportError),
}

/// An upload as it is stored, beside its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Announced {
    filename: Option<String>,
    sha256: Sha256,
    length: u64,
    artifact: Option<Artifact>,
}

/// The folder of uploads.
#[derive(Debug, Clone)]
pub(crate) struct Uploads {
    folder: Arc<Path>,
    busy: Arc<Mutex<BTreeSet<String>>>,
    /// Held while the others are counted and one more is made.
    creating: Arc<Mutex<()>>,
}

/// The right to append, until this is dropped.
struct Turn<'a>(&'a Uploads, String);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.1);
    }
}

impl Uploads {
    /// Uses this folder, which is made.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self {
            folder: folder.into(),
            busy: Arc::default(),
            creating: Arc::default(),
        })
    }

    /// Begins an upload.
    pub(crate) fn create(
        &self,
        length: u64,
        sha256: Sha256,
        filename: Option<String>,
    ) -> Result<UploadView, UploadError> {
        if !(1..=ARTIFACT_BYTES_MAX).contains(&length) {
            return Err(UploadError::Length(length));
        }
        let _turn = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let uploads = self.all()?;
        let announced: u64 = uploads.iter().map(|upload| upload.length).sum();
        if uploads.len() >= UPLOADS_MAX || announced + length > ANNOUNCED_BYTES_MAX {
            return Err(UploadError::Full);
        }
        let id = format!("{:032x}", fastrand::u128(..));
        let data = fs::File::create_new(self.data(&id)).map_err(|source| self.disk(source))?;
        data.sync_all().map_err(|source| self.disk(source))?;
        self.write(
            &id,
            &Announced {
                filename,
                sha256,
                length,
                artifact: None,
            },
        )?;
        self.get(&id)
    }

    /// Where an upload stands.
    pub(crate) fn get(&self, id: &str) -> Result<UploadView, UploadError> {
        let unknown = || UploadError::Unknown(id.chars().take(64).collect());
        // Nothing else is a file here, least of all a path.
        if id.len() != 32 || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(unknown());
        }
        let read = |path: PathBuf| match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
            other => other.map_err(|source| self.disk(source)),
        };
        let announced: Announced = serde_json::from_slice(&read(self.announced(id))?).map_err(|_| unknown())?;
        let (offset, touched) = match (&announced.artifact, fs::metadata(self.data(id))) {
            // Two have written to it at once: nobody knows what it is.
            (None, Ok(metadata)) if metadata.len() > announced.length => {
                self.forget(id)?;
                return Err(unknown());
            }
            (None, Ok(metadata)) => (metadata.len().min(announced.length - 1), metadata.modified()),
            (None, Err(_)) => return Err(unknown()),
            (Some(_), _) => (
                announced.length,
                fs::metadata(self.announced(id)).and_then(|found| found.modified()),
            ),
        };
        let touched = touched.map_err(|source| self.disk(source))?;
        let expires = touched.duration_since(UNIX_EPOCH).unwrap_or_default() + KEPT_FOR;
        Ok(UploadView {
            id: id.to_owned(),
            filename: announced.filename,
            sha256: announced.sha256,
            length: announced.length,
            offset,
            expires: WallTime::from_unix_seconds(expires.as_secs().cast_signed()),
            artifact: announced.artifact,
        })
    }

    /// All uploads in the order of their ids. Those that have expired are removed.
    pub(crate) fn all(&self) -> Result<Vec<UploadView>, UploadError> {
        let entries = fs::read_dir(&self.folder).map_err(|source| self.disk(source))?;
        let mut found = BTreeSet::new();
        for entry in entries {
            let path = entry.map_err(|source| self.disk(source))?.path();
            found.extend(path.file_stem().and_then(|stem| Some(stem.to_str()?.to_owned())));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut uploads = Vec::new();
        for id in found {
            match self.get(&id) {
                Ok(upload) if upload.expires.unix_seconds() > now.as_secs().cast_signed() => uploads.push(upload),
                // One that is being sent to is touched; this one was begun, and then a crash came, or a day went by.
                Ok(_) => self.forget(&id)?,
                // A crash came between its two files.
                Err(UploadError::Unknown(_)) => self.forget_leftovers(&id, now)?,
                Err(error) => return Err(error),
            }
        }
        Ok(uploads)
    }

    /// Appends what comes, durably; once all is here, gives it to the origin. When the image is written down as an artifact,
    /// the upload is [`finished`](Self::finish), and what comes second is dropped.
    pub(crate) async fn append<E>(
        &self,
        id: &str,
        asked: u64,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        origin: &Origin,
    ) -> Result<(UploadView, Option<Arrived>), UploadError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _turn = self.turn(id)?;
        let upload = self.get(id)?;
        if asked != upload.offset {
            return Err(UploadError::Offset {
                stands: upload.offset,
                asked,
            });
        }
        if upload.artifact.is_some() {
            return Ok((upload, None));
        }
        self.write_on(&upload, body).await?;
        let here = fs::metadata(self.data(id)).map_err(|source| self.disk(source))?;
        if here.len() < upload.length {
            return Ok((self.get(id)?, None));
        }
        let file = tokio::fs::File::open(self.data(id))
            .await
            .map_err(|source| self.disk(source))?;
        let whole = ReaderStream::with_capacity(file, 1 << 20);
        match origin.import(whole, Some(upload.sha256)).await {
            Ok(arrived) => {
                let upload = UploadView {
                    offset: upload.length,
                    artifact: Some(arrived.artifact.clone()),
                    ..upload
                };
                Ok((upload, Some(arrived)))
            }
            Err(error @ ImportError::WrongDigest { .. }) => {
                // Nobody knows which part is wrong.
                self.forget(id)?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Its image is an artifact now: its bytes are needed no more.
    pub(crate) fn finish(&self, upload: &UploadView) -> Result<(), UploadError> {
        self.write(
            &upload.id,
            &Announced {
                filename: upload.filename.clone(),
                sha256: upload.sha256,
                length: upload.length,
                artifact: upload.artifact.clone(),
            },
        )?;
        self.remove_file(self.data(&upload.id))
    }

    async fn write_on<E>(
        &self,
        upload: &UploadView,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(), UploadError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let disk = |source| self.disk(source);
        let file = tokio::fs::File::options()
            .append(true)
            .open(self.data(&upload.id))
            .await;
        let mut file = file.map_err(disk)?;
        let mut offset = upload.offset;
        // The last byte of an image that was not taken in comes once more.
        file.set_len(offset).await.map_err(disk)?;
        let outcome = loop {
            let Ok(next) = tokio::time::timeout(SILENT_MAX, body.next()).await else {
                break Err(UploadError::Silent);
            };
            match next {
                None => break Ok(()),
                Some(Err(source)) => break Err(UploadError::Broken(source.into())),
                Some(Ok(bytes)) if bytes.len() as u64 > upload.length - offset => {
                    break Err(UploadError::TooMuch(upload.length));
                }
                Some(Ok(bytes)) => {
                    file.write_all(&bytes).await.map_err(disk)?;
                    offset += bytes.len() as u64;
                }
            }
        };
        // What came is kept, whatever ended it.
        file.flush().await.map_err(disk)?;
        file.sync_all().await.map_err(disk)?;
        outcome
    }

    /// Forgets an upload. An image that came of it stays.
    pub(crate) fn remove(&self, id: &str) -> Result<(), UploadError> {
        let _turn = self.turn(id)?;
        self.get(id)?;
        self.forget(id)
    }

    /// An upload of this image that is not over.
    pub(crate) fn unfinished(&self, sha256: Sha256, length: u64) -> Result<Option<UploadView>, UploadError> {
        let is_it =
            |upload: &UploadView| upload.sha256 == sha256 && upload.length == length && upload.artifact.is_none();
        Ok(self.all()?.into_iter().find(is_it))
    }

    fn turn(&self, id: &str) -> Result<Turn<'_>, UploadError> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        match busy.insert(id.to_owned()) {
            true => Ok(Turn(self, id.to_owned())),
            false => Err(UploadError::Busy),
        }
    }

    fn forget(&self, id: &str) -> Result<(), UploadError> {
        // What is large goes first: without it, the rest is no upload.
        self.remove_file(self.data(id))?;
        self.remove_file(self.announced(id))
    }

    /// Removes what belongs to no upload, once it is old: a younger one may be just begun.
    fn forget_leftovers(&self, id: &str, now: Duration) -> Result<(), UploadError> {
        let is_old = |path: &PathBuf| {
            let touched = fs::metadata(path).and_then(|found| found.modified()).ok();
            let since = touched.and_then(|touched| touched.duration_since(UNIX_EPOCH).ok());
            since.is_some_and(|since| since + KEPT_FOR <= now)
        };
        match [self.data(id), self.announced(id)].iter().any(is_old) {
            true => self.forget(id),
            false => Ok(()),
        }
    }

    fn remove_file(&self, path: PathBuf) -> Result<(), UploadError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.disk(error)),
            _ => Ok(()),
        }
    }

    fn write(&self, id: &str, announced: &Announced) -> Result<(), UploadError> {
        let text = serde_json::to_vec(announced).expect("it has only names and numbers");
        let written = write_file(&self.announced(id), &text);
        written.map_err(|error| self.disk(io::Error::other(chain(&error))))
    }

    fn disk(&self, source: io::Error) -> UploadError {
        UploadError::Disk {
            path: self.folder.to_path_buf(),
            source,
        }
    }

    fn data(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.bytes"))
    }

    fn announced(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}
