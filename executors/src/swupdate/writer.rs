//! SWUpdate as what writes a slot.

use std::{collections::BTreeMap, fs, io, path::PathBuf, sync::Arc};

use firmesh_executors_core::{Image, Slot};
use firmesh_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::SwupdateSettings;
use crate::{
    image::ImageSource,
    tool::{Ended, Errand, ErrandError, FetchError, Invocation, ToolError, digest_of, fetch},
};

const SWUPDATE: &str = "swupdate";

/// Writes slots by running SWUpdate.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    settings: Arc<SwupdateSettings>,
    errand: Arc<Errand>,
}

/// What was found in each slot after it was written: SWUpdate's images are not what their slots hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Books {
    slots: BTreeMap<Slot, Contents>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    /// The image that was installed.
    image: Sha256,
    /// All of the slot, read back.
    sha256: Sha256,
    length: u64,
}

/// Why SWUpdate did not write a slot.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WriterError(#[from] Problem);

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Errand(#[from] ErrandError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("SWUpdate is at work")]
    Busy,
    #[error("SWUpdate did not install the image: {0}")]
    Refused(String),
    #[error("could not read slot {slot} back")]
    ReadBack { slot: Slot, source: io::Error },
    #[error("nobody knows what slot {0} holds: SWUpdate has not written it for us")]
    Unknown(Slot),
}

impl WriterError {
    /// Whether the same act may succeed later.
    #[must_use]
    pub fn retry(&self) -> bool {
        match &self.0 {
            Problem::Tool(error) => error.retry(),
            Problem::Fetch(error) => error.retry(),
            Problem::Busy | Problem::ReadBack { .. } => true,
            // Signatures and digests do not mend.
            Problem::Errand(_) | Problem::Refused(_) | Problem::Unknown(_) => false,
        }
    }
}

impl Writer {
    /// Touches nothing.
    pub(crate) fn new(settings: SwupdateSettings) -> Self {
        let errand = Errand::new(settings.work_dir.clone());
        Self {
            settings: Arc::new(settings),
            errand: Arc::new(errand),
        }
    }

    /// Refuses while SWUpdate runs: by us, or by somebody before us.
    pub(crate) fn is_idle(&self) -> Result<(), WriterError> {
        match self.errand.is_running() {
            Ok(false) => Ok(()),
            Ok(true) => Err(Problem::Busy.into()),
            Err(error) => Err(Problem::from(error).into()),
        }
    }

    /// Has an image installed into a slot, and notes what the slot holds then.
    pub(crate) async fn write(
        &self,
        images: &dyn ImageSource,
        image: &Image,
        slot: Slot,
        path: PathBuf,
    ) -> Result<(), WriterError> {
        self.install(images, image, slot, path).await.map_err(WriterError)
    }

    async fn install(&self, images: &dyn ImageSource, image: &Image, slot: Slot, path: PathBuf) -> Result<(), Problem> {
        self.errand.prepare()?;
        let file = self.errand.path("image.swu");
        fetch(images, image, &file).await?;
        let mut books: Books = self.errand.note()?.unwrap_or_default();
        if books.slots.remove(&slot).is_some() {
            self.errand.write_note(&books)?;
        }
        let text = |path: &std::path::Path| path.display().to_string();
        let select = self.settings.select[slot as usize].clone();
        let mut args = vec!["-e".to_owned(), select, "-k".to_owned(), text(&self.settings.key_file)];
        args.extend(
            self.settings
                .hardware
                .iter()
                .flat_map(|hardware| ["-H".to_owned(), hardware.clone()]),
        );
        args.extend(["-i".to_owned(), text(&file)]);
        let run = Invocation {
            program: SWUPDATE.to_owned(),
            args,
            // Its sockets: two of them on one machine would talk to each other.
            env: [("TMPDIR".to_owned(), text(&self.settings.work_dir))].into(),
            folder: self.settings.work_dir.clone(),
            limit: self.settings.install_limit,
            output_bytes_max: 0,
        };
        let ended = self.errand.run(&run).await?;
        if !ended.status.success() {
            return Err(Problem::Refused(first_error(&ended)));
        }
        let read = spawn_blocking(move || -> io::Result<_> {
            // A block device has no length of its own: what was read counts.
            let file = fs::File::open(&path)?;
            let length = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
            file.sync_all()?;
            Ok((digest_of(&path)?, length))
        });
        let read = read.await.map_err(io::Error::other).and_then(|read| read);
        let (sha256, length) = read.map_err(|source| Problem::ReadBack { slot, source })?;
        let contents = Contents {
            image: image.artifact.sha256,
            sha256,
            length,
        };
        books.slots.insert(slot, contents);
        self.errand.write_note(&books)?;
        if let Err(error) = fs::remove_file(&file) {
            tracing::warn!(%error, "an image that is no longer needed could not be removed");
        }
        Ok(())
    }

    /// The digest and the length of what a slot holds, if it was written with this image.
    pub(crate) fn contents(&self, slot: Slot, image: Sha256) -> Result<(Sha256, u64), WriterError> {
        let books: Books = self.errand.note().map_err(Problem::from)?.unwrap_or_default();
        let found = books.slots.get(&slot).filter(|contents| contents.image == image);
        let found = found.ok_or(Problem::Unknown(slot))?;
        Ok((found.sha256, found.length))
    }

    /// Ends SWUpdate, if it runs.
    pub(crate) async fn end(&self) -> Result<(), WriterError> {
        match self.is_idle() {
            Ok(()) => Ok(()),
            Err(_) => Ok(self.errand.end().await.map_err(Problem::from)?),
        }
    }
}

/// The first thing SWUpdate calls an error: the others follow from it.
fn first_error(ended: &Ended) -> String {
    let said = String::from_utf8_lossy(&ended.stdout);
    let first = said.lines().find_map(|line| line.split_once("ERROR : "));
    match first {
        Some((_, words)) => words.chars().filter(|c| !c.is_control()).take(300).collect(),
        None => ended.failure(SWUPDATE).to_string(),
    }
}
