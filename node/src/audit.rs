//! What this node knows of the audit log: the last checkpoint it verified, and the evidence if the log was forked.
//!
//! Every checkpoint must continue the last one. Checkpoints that neighbours heard are held against our own: of the same
//! size they must be the same, others the coordinator has to prove. Two that cannot both be true convict the key that
//! signed them: the node keeps both, says so, and starts nothing until the root names other keys for the log.
//!
//! Invariants: a checkpoint is on disk before anything rests on it; evidence is on disk before it is told, and is never
//! overwritten; files change only by write-fsync-rename.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use firmesh_protocol::{
    api::{AuditNews, AuditSeen},
    audit::{Checkpoint, CheckpointError, NOTE_BYTES_MAX, log_origin, verify_consistency},
    ids::Sha256,
    limits::AUDIT_HEARD_MAX,
    time::WallTime,
    trust::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::files::write_durably;

/// The last checkpoint, a signed note.
const CHECKPOINT_FILE: &str = "checkpoint.note";
/// The evidence that the log was forked.
const EVIDENCE_FILE: &str = "evidence.json";

/// Sizes whose roots are remembered, so that a forked neighbour is found out at once.
const KNOWN_MAX: usize = 256;

/// A checkpoint is told to the mesh at most so often ...
const TELL_GAP: Duration = Duration::from_secs(5);
/// ... and so often when nothing changes, for those who were away.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Why a checkpoint is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    /// The folder cannot be used.
    #[error("{path} cannot be {operation}; check the disk and its permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The stored evidence cannot be read.
    #[error("{path} cannot be read as evidence; move it away only after the log was found to be in order")]
    Evidence {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// It is not a checkpoint of this log, signed by its key.
    #[error("a checkpoint of the audit log was refused")]
    Checkpoint(#[from] CheckpointError),
    /// The coordinator keeps the log to itself.
    #[error("the coordinator shows no checkpoint of the audit log any more")]
    Missing,
    /// Two signed checkpoints cannot both be true.
    #[error("the audit log was forked: {0}")]
    Fork(String),
}

impl AuditError {
    /// A stable name for machines.
    #[must_use]
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::File { .. } | Self::Evidence { .. } => "local_store",
            Self::Checkpoint(error) => error.code(),
            Self::Missing => "audit_missing",
            Self::Fork(_) => "audit_fork",
        }
    }
}

/// The audit log as this node sees it, for its status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Entries of the last checkpoint that was verified.
    pub size: u64,
    /// Its root.
    pub root: Option<Sha256>,
    /// When its last entry was appended, by the coordinator's clock.
    pub at: Option<WallTime>,
    /// Why the log is not believed any more: nothing starts here until the root names another key for it.
    pub fork: Option<String>,
}

/// Two checkpoints that cannot both be true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Evidence {
    /// When this node found out.
    found: WallTime,
    /// What is wrong, for a person.
    reason: String,
    /// The keys that the root named for the log then. The node believes none of them any more.
    keys: Vec<PublicKey>,
    /// The two signed notes.
    notes: [String; 2],
}

/// A checkpoint and the note it stands in.
#[derive(Debug, Clone)]
struct Signed {
    checkpoint: Checkpoint,
    note: String,
}

/// What this node knows of the log.
#[derive(Debug)]
pub(crate) struct AuditWatch {
    folder: PathBuf,
    origin: String,
    /// The keys that the root names for the log.
    keys: Vec<PublicKey>,
    last: Option<Signed>,
    evidence: Option<Evidence>,
    /// Heard of and not proven yet.
    heard: BTreeMap<u64, Signed>,
    /// Roots of the log's past, proven.
    known: BTreeMap<u64, Sha256>,
    /// What the coordinator was last asked to prove.
    asked: Vec<u64>,
    /// To be told to the mesh at once.
    urgent: Vec<String>,
    told: Option<(Instant, u64)>,
}

impl AuditWatch {
    /// Opens the folder. `fleet_ca` (DER) names the log.
    pub(crate) fn open(folder: &Path, fleet_ca: &[u8]) -> Result<Self, AuditError> {
        file(folder, "written", fs::create_dir_all(folder))?;
        let evidence = match read(&folder.join(EVIDENCE_FILE))? {
            None => None,
            Some(bytes) => Some(serde_json::from_slice(&bytes).map_err(|source| AuditError::Evidence {
                path: folder.join(EVIDENCE_FILE),
                source,
            })?),
        };
        let note = read(&folder.join(CHECKPOINT_FILE))?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Self {
            folder: folder.to_owned(),
            origin: log_origin(fleet_ca),
            keys: Vec::new(),
            // Written here after it was verified; the key may have been rotated since.
            last: note.and_then(|note| {
                let checkpoint = Checkpoint::read_stored(&note).ok()?;
                Some(Signed { checkpoint, note })
            }),
            // Told again, for those who were away when it was found.
            urgent: evidence
                .iter()
                .flat_map(|evidence: &Evidence| evidence.notes.clone())
                .collect(),
            evidence,
            heard: BTreeMap::new(),
            known: BTreeMap::new(),
            asked: Vec::new(),
            told: None,
        })
    }

    /// Takes over the keys that the verified root names for the log. Evidence lapses when none of the keys it convicts
    /// is among them: the people who hold the root have dealt with it, and a new log may begin. It is kept under another
    /// name.
    pub(crate) fn trust(&mut self, keys: Vec<PublicKey>) -> Result<(), AuditError> {
        self.keys = keys;
        let lapsed = |evidence: &Evidence| !evidence.keys.iter().any(|key| self.keys.contains(key));
        let Some(evidence) = self.evidence.as_ref().filter(|evidence| lapsed(evidence)) else {
            return Ok(());
        };
        let seconds = evidence.found.unix_seconds();
        let from = self.folder.join(EVIDENCE_FILE);
        let to = self.folder.join(format!("evidence-{seconds}.json"));
        let note = self.folder.join(CHECKPOINT_FILE);
        file(&note, "written", crate::files::remove_durably(&note))?;
        file(&to, "written", fs::rename(&from, &to))?;
        (self.last, self.evidence) = (None, None);
        self.heard.clear();
        self.known.clear();
        Ok(())
    }

    /// Why the log is not believed any more, if so.
    pub(crate) fn fork(&self) -> Option<&str> {
        self.evidence.as_ref().map(|evidence| evidence.reason.as_str())
    }

    /// For the status.
    pub(crate) fn status(&self) -> AuditStatus {
        let last = self.last.as_ref().map(|last| &last.checkpoint);
        AuditStatus {
            size: last.map_or(0, |last| last.size),
            root: last.map(|last| last.root),
            at: last.map(|last| last.at),
            fork: self.fork().map(str::to_owned),
        }
    }

    /// What to ask the coordinator for.
    pub(crate) fn ask(&mut self) -> AuditSeen {
        self.asked = self.heard.keys().copied().collect();
        AuditSeen {
            size: self.last.as_ref().map_or(0, |last| last.checkpoint.size),
            heard: self.asked.clone(),
            fork: self.fork().map(str::to_owned),
        }
    }

    /// Takes the coordinator's answer. An error means that nothing else in the answer is to be acted upon.
    pub(crate) fn learn(&mut self, news: Option<&AuditNews>, now: WallTime) -> Result<(), AuditError> {
        if let Some(reason) = self.fork() {
            return Err(AuditError::Fork(reason.to_owned()));
        }
        // Before the first metadata nobody can say whose log this is; nothing starts before that either.
        if self.keys.is_empty() {
            return Ok(());
        }
        let asked = std::mem::take(&mut self.asked);
        let Some(news) = news else {
            // A log that was shown once is shown for good.
            return self.last.as_ref().map_or(Ok(()), |_| Err(AuditError::Missing));
        };
        let new = self.open_note(news.checkpoint.as_bytes())?;
        if let Some(last) = self.last.clone() {
            self.is_continued(&last, &new, Some(&news.consistency), now)?;
        }
        let mut proofs = news.heard.iter();
        for size in asked {
            let proof = proofs.next();
            if let Some(heard) = self.heard.get(&size).cloned() {
                self.is_continued(&heard, &new, proof, now)?;
                self.heard.remove(&size);
            }
        }
        if self
            .last
            .as_ref()
            .is_none_or(|last| last.checkpoint.size < new.checkpoint.size)
        {
            let path = self.folder.join(CHECKPOINT_FILE);
            file(&path, "written", write_durably(&path, new.note.as_bytes(), 0o644))?;
            self.last = Some(new);
        }
        Ok(())
    }

    /// Judges what the mesh brought. An error means that it is not to be passed on, unless it shows a fork: then
    /// everybody is to hear it.
    pub(crate) fn hear(&mut self, note: &[u8], now: WallTime) -> Result<(), AuditError> {
        let new = self.open_note(note)?;
        if self.evidence.is_some() {
            return Ok(());
        }
        let size = new.checkpoint.size;
        let last = self.last.as_ref().filter(|last| last.checkpoint.size == size);
        let other = last.or_else(|| self.heard.get(&size)).cloned();
        if let Some(other) = other {
            return match other.checkpoint.root == new.checkpoint.root {
                true => Ok(()),
                false => Err(self.convict(
                    format!("two signed checkpoints of {size} entries have different roots"),
                    &other,
                    &new,
                    now,
                )?),
            };
        }
        match (self.known.get(&size), self.last.clone()) {
            (Some(root), _) if *root == new.checkpoint.root => Ok(()),
            (Some(_), Some(last)) => Err(self.convict(
                format!("a signed checkpoint of {size} entries is not of the log that this node has followed"),
                &last,
                &new,
                now,
            )?),
            _ => {
                self.heard.insert(size, new);
                if self.heard.len() > AUDIT_HEARD_MAX {
                    // The oldest and the newest say most about a fork; of those between, one more or less does not matter.
                    let between = self.heard.keys().nth(AUDIT_HEARD_MAX / 2).copied();
                    between.and_then(|size| self.heard.remove(&size));
                }
                Ok(())
            }
        }
    }

    /// What to tell the mesh now.
    pub(crate) fn announcements(&mut self, now: Instant) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.urgent);
        if let Some(last) = &self.last {
            let size = last.checkpoint.size;
            let is_due = self.told.is_none_or(|(at, told)| {
                let gap = if told == size { TELL_AGAIN } else { TELL_GAP };
                now.duration_since(at) >= gap
            });
            if is_due {
                self.told = Some((now, size));
                notes.push(last.note.clone());
            }
        }
        notes
    }

    fn open_note(&self, note: &[u8]) -> Result<Signed, CheckpointError> {
        let checkpoint = Checkpoint::open(note, Some(&self.origin), &self.keys)?;
        let note = String::from_utf8_lossy(note).into_owned();
        Ok(Signed { checkpoint, note })
    }

    /// Whether the log of `old` goes on as that of `new`. No proof is no proof.
    fn is_continued(
        &mut self,
        old: &Signed,
        new: &Signed,
        proof: Option<&Vec<Sha256>>,
        now: WallTime,
    ) -> Result<(), AuditError> {
        let ([from, to], proof) = (
            [old, new].map(|signed| &signed.checkpoint),
            proof.map_or(&[][..], |p| p),
        );
        match verify_consistency((from.size, &from.root), (to.size, &to.root), proof) {
            Ok(()) => {
                self.known.extend([(from.size, from.root), (to.size, to.root)]);
                while self.known.len() > KNOWN_MAX {
                    self.known.pop_first();
                }
                Ok(())
            }
            Err(error) => {
                let reason = match from.size > to.size {
                    true => format!(
                        "the coordinator shows {} entries, {} were signed before",
                        to.size, from.size
                    ),
                    false => format!(
                        "the coordinator cannot prove that its {} entries continue the {} that were signed before ({error})",
                        to.size, from.size
                    ),
                };
                Err(self.convict(reason, old, new, now)?)
            }
        }
    }

    /// Keeps the evidence, and has it told to everybody.
    fn convict(
        &mut self,
        reason: String,
        ours: &Signed,
        theirs: &Signed,
        now: WallTime,
    ) -> Result<AuditError, AuditError> {
        let evidence = Evidence {
            found: now,
            reason: reason.clone(),
            keys: self.keys.clone(),
            notes: [ours.note.clone(), theirs.note.clone()],
        };
        let path = self.folder.join(EVIDENCE_FILE);
        let bytes = serde_json::to_vec_pretty(&evidence).expect("evidence has only text");
        file(&path, "written", write_durably(&path, &bytes, 0o644))?;
        self.urgent.extend(evidence.notes.clone());
        self.evidence = Some(evidence);
        Ok(AuditError::Fork(reason))
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, AuditError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => file(path, "read", result).map(Some),
    }
}

fn file<T>(path: &Path, operation: &'static str, result: io::Result<T>) -> Result<T, AuditError> {
    result.map_err(|source| AuditError::File {
        path: path.to_owned(),
        operation,
        source,
    })
}

const _: () = assert!(NOTE_BYTES_MAX < 256 << 10);

#[cfg(test)]
mod tests;
