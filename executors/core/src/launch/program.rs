//! What the launcher tells the node it starts, and what a file must be to be started.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::boot::Slot;

/// What a launcher starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// The program that came with the package: the launcher's own.
    Packaged,
    /// The one in a slot.
    Slot(Slot),
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packaged => f.write_str("the packaged program"),
            Self::Slot(slot) => write!(f, "slot {slot}"),
        }
    }
}

/// What a launcher says to the node it starts, in the environment. The two may be of different versions: new fields are
/// optional, and unknown ones are ignored by either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// The launcher's process.
    pub pid: u32,
    /// The folder of the slots, as an absolute path.
    pub dir: String,
    /// What was started.
    pub program: Program,
    /// The version of the packaged program.
    pub packaged: String,
}

/// Why the launcher's word cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum LaunchedError {
    /// Too long to be a launcher's.
    #[error("it has {0} bytes, at most {LAUNCHED_BYTES_MAX} are read")]
    TooLong(usize),
    /// Not what a launcher says.
    #[error("it is not what a launcher says")]
    Malformed(#[source] serde_json::Error),
}

/// A path, a version and two words.
const LAUNCHED_BYTES_MAX: usize = 16 << 10;

impl Launched {
    /// The environment variable that carries it.
    pub const VARIABLE: &str = "FIRMESH_LAUNCHED";

    /// As the variable carries it.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("only names, numbers and text")
    }

    /// Reads the variable.
    pub fn parse(text: &str) -> Result<Self, LaunchedError> {
        if text.len() > LAUNCHED_BYTES_MAX {
            return Err(LaunchedError::TooLong(text.len()));
        }
        serde_json::from_str(text).map_err(LaunchedError::Malformed)
    }
}

/// Why bytes are no program for this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Not an ELF file at all.
    #[error("it is not a program (no ELF header)")]
    NotElf,
    /// An object file, a core dump.
    #[error("it is an ELF file of type {0}, not a program")]
    NotExecutable(u16),
    /// For another machine.
    #[error("it is a program for {found}, this machine is {wanted}")]
    OtherMachine {
        /// What it is for.
        found: String,
        /// What this is.
        wanted: String,
    },
    /// Its end is missing.
    #[error("it is cut off: its header speaks of {needed} bytes, it has {length}")]
    CutOff {
        /// What the header speaks of.
        needed: u64,
        /// What there is.
        length: u64,
    },
}

/// How much of a file [`check_program`] has to see.
pub(crate) const HEADER_BYTES: usize = 64;

/// Machines by the names that Rust gives them, with ELF's number, 64 bits or not, little endian or not.
const MACHINES: [(&str, u16, bool, bool); 8] = [
    ("x86", 3, false, true),
    ("x86_64", 62, true, true),
    ("arm", 40, false, true),
    ("aarch64", 183, true, true),
    ("riscv64", 243, true, true),
    ("powerpc64", 21, true, true),
    ("s390x", 22, true, false),
    ("loongarch64", 258, true, true),
];

/// Whether a file that begins with `header` and has `length` bytes can be a program for `arch`, as `std::env::consts::ARCH`
/// names it. Of a machine that is not listed only the form is checked.
pub fn check_program(header: &[u8], length: u64, arch: &str) -> Result<(), ProgramError> {
    if header.len() < HEADER_BYTES || !header.starts_with(b"\x7fELF") {
        return Err(ProgramError::NotElf);
    }
    let (wide, little) = (header[4] == 2, header[5] == 1);
    let word = |at: usize| match little {
        true => u16::from_le_bytes([header[at], header[at + 1]]),
        false => u16::from_be_bytes([header[at], header[at + 1]]),
    };
    let (kind, machine) = (word(16), word(18));
    // Position-independent programs are shared objects.
    if !matches!(kind, 2 | 3) {
        return Err(ProgramError::NotExecutable(kind));
    }
    let known = MACHINES.iter().find(|(name, ..)| *name == arch);
    if known.is_some_and(|(_, number, is_wide, is_little)| (machine, wide, little) != (*number, *is_wide, *is_little)) {
        let found = MACHINES
            .iter()
            .find(|(_, number, is_wide, is_little)| (machine, wide, little) == (*number, *is_wide, *is_little))
            .map_or_else(|| format!("machine {machine}"), |(name, ..)| (*name).to_owned());
        let wanted = arch.to_owned();
        return Err(ProgramError::OtherMachine { found, wanted });
    }
    let (sections_at, size_at) = if wide { (40, 58) } else { (32, 46) };
    let mut offset = [0; 8];
    let bytes = if wide { 8 } else { 4 };
    offset[..bytes].copy_from_slice(&header[sections_at..sections_at + bytes]);
    if !little {
        offset[..bytes].reverse();
    }
    let sections = u64::from(word(size_at)) * u64::from(word(size_at + 2));
    let needed = u64::from_le_bytes(offset).saturating_add(sections);
    if needed > length {
        return Err(ProgramError::CutOff { needed, length });
    }
    Ok(())
}

/// The version in what `firmesh-node --version` says: `firmesh-node 1.2.0 (commit)`. Nothing if it is something else that speaks.
#[must_use]
pub fn version_said(said: &str) -> Option<&str> {
    let mut words = said.lines().next()?.split_whitespace();
    (words.next()? == "firmesh-node").then(|| words.next()).flatten()
}
