//! The slots' folder on its disk, as launcher and node see it: `slots.json`, `a/firmesh-node`, `b/firmesh-node`, and `works`, which a
//! node on trial writes while it works.
//!
//! Invariant: after a crash at any instruction the slots' file is the old one or the new one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use firmesh_executors_core::{Slot, SlotContent, launch::NodeSlots};
use nix::unistd::{AccessFlags, access};

use crate::{
    ab_slot::{Disk, read_small},
    backend::chain,
};

/// The program's name in a slot, as processes show it.
const PROGRAM: &str = "firmesh-node";
/// What a node writes there of itself.
const WORD_BYTES_MAX: u64 = 256;

/// The folder of a node's slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotsFolder(PathBuf);

impl SlotsFolder {
    /// The slots in `dir`, which need not be there.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The slots' file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.0.join("slots.json")
    }

    /// The program in a slot.
    #[must_use]
    pub fn program(&self, slot: Slot) -> PathBuf {
        self.0.join(slot.as_str()).join(PROGRAM)
    }

    /// What is to become the program in a slot.
    pub(super) fn fresh_program(&self, slot: Slot) -> PathBuf {
        self.0.join(slot.as_str()).join(format!("{PROGRAM}.new"))
    }

    /// The slots; those of a node that never had any if there is no file. The error is for a person.
    pub fn read(&self) -> Result<NodeSlots, String> {
        let path = self.file();
        let bytes = match read_small(&path, NodeSlots::BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(NodeSlots::default()),
            Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
        };
        let read = NodeSlots::from_bytes(&bytes);
        read.map_err(|error| {
            format!(
                "{}: {}; whoever removes it starts anew with the packaged program",
                path.display(),
                chain(&error)
            )
        })
    }

    /// Replaces the slots' file; it is durable afterwards.
    pub fn keep(&self, slots: &NodeSlots) -> io::Result<()> {
        self.keep_on(&Disk::default(), slots)
    }

    pub(super) fn keep_on(&self, disk: &Disk, slots: &NodeSlots) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        disk.replace(&self.file(), &slots.to_bytes())
    }

    /// Whether the program in a slot is what the slots' file says, as far as a start has the time to look: there, as long as it should be,
    /// and executable. Its digest was compared when it was armed.
    #[must_use]
    pub fn is_whole(&self, slots: &NodeSlots, slot: Slot) -> bool {
        let SlotContent::Ready { length, .. } = slots.slot(slot) else {
            return false;
        };
        let path = self.program(slot);
        let found = fs::metadata(&path);
        found.is_ok_and(|found| found.is_file() && found.len() == *length) && access(&path, AccessFlags::X_OK).is_ok()
    }

    /// What the running node last said of whether it works; it differs each time.
    #[must_use]
    pub fn word(&self) -> Option<Vec<u8>> {
        read_small(&self.0.join("works"), WORD_BYTES_MAX).ok()
    }

    /// Says that the running node works. Nothing is durable about it: it is of this moment.
    pub(super) fn say(&self, word: &str) -> io::Result<()> {
        fs::write(self.0.join("works"), word)
    }

    /// Makes what was written beside a slot's program that program, durably.
    pub(super) fn put(&self, slot: Slot) -> io::Result<()> {
        let program = self.program(slot);
        fs::rename(self.fresh_program(slot), &program)?;
        fs::File::open(program.parent().unwrap_or(&self.0))?.sync_all()
    }
}
