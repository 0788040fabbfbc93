//! Checkpoints: what the log was at one moment, as a signed note that other people's tools read.
//!
//! The form is C2SP `tlog-checkpoint` (origin, size, root, and the time as an extension line) inside C2SP `signed-note`
//! with ed25519 signatures (type 1). A note begins with the log's name, metadata with `{` and an envelope's signed form
//! with `DSSEv1`: no signature for one passes for another.

use data_encoding::BASE64;

use crate::{
    ids::Sha256,
    time::WallTime,
    trust::{PublicKey, SecretKey},
};

/// A checkpoint is five lines, and a few more when others have signed it too.
pub const NOTE_BYTES_MAX: usize = 4 << 10;

/// Signatures of one note that are looked at.
const SIGNATURE_LINES_MAX: usize = 16;

/// The algorithm of a signed note's key: ed25519.
const ED25519: u8 = 1;

/// Why a checkpoint was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Longer than any checkpoint.
    #[error("a checkpoint of {0} bytes, at most {NOTE_BYTES_MAX} are read")]
    TooLarge(usize),
    /// Not the text of a checkpoint.
    #[error("not a signed checkpoint: {0}")]
    Malformed(&'static str),
    /// Of another log.
    #[error("the checkpoint is of the log {found:?}, expected {expected:?}")]
    Origin {
        /// Its log.
        found: String,
        /// The log asked about.
        expected: String,
    },
    /// No trusted key has signed it.
    #[error("the checkpoint is not signed by the key of this log")]
    Signature,
    /// Not a verifier key.
    #[error("not a verifier key of the form <name>+<8 hexadecimal digits>+<base64>")]
    VerifierKey,
}

impl CheckpointError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) | Self::Malformed(_) | Self::VerifierKey => "audit_malformed",
            Self::Origin { .. } => "audit_origin",
            Self::Signature => "audit_signature",
        }
    }
}

/// What the log was when it had `size` entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// Entries.
    pub size: u64,
    /// The root of the tree.
    pub root: Sha256,
    /// When the last entry was appended, by the clock of who signed.
    pub at: WallTime,
}

impl Checkpoint {
    fn text(&self) -> String {
        let Self { origin, size, root, at } = self;
        format!("{origin}\n{size}\n{}\ntime {at}\n", BASE64.encode(root.as_bytes()))
    }

    /// The signed note.
    #[must_use]
    pub fn sign(&self, key: &SecretKey) -> String {
        let text = self.text();
        let mut signature = key_hash(&self.origin, &key.public()).to_vec();
        signature.extend(key.sign(text.as_bytes()));
        format!("{text}\n\u{2014} {} {}\n", self.origin, BASE64.encode(&signature))
    }

    /// Reads a note that one of `keys` has signed. `origin` is the log it must be of, if the caller knows.
    ///
    /// Signatures under other names or keys are ignored, as the format wants it: they may be those of witnesses.
    pub fn open(note: &[u8], origin: Option<&str>, keys: &[PublicKey]) -> Result<Self, CheckpointError> {
        let malformed = CheckpointError::Malformed;
        if note.len() > NOTE_BYTES_MAX {
            return Err(CheckpointError::TooLarge(note.len()));
        }
        let note = str::from_utf8(note).map_err(|_| malformed("it is not text"))?;
        let end = note.rfind("\n\n").ok_or_else(|| malformed("it has no signatures"))?;
        let (text, signatures) = (&note[..=end], &note[end + 2..]);
        let signatures = signatures
            .strip_suffix('\n')
            .ok_or_else(|| malformed("its last line does not end"))?;
        // The name is needed to find the signature; nothing else is read before that verifies.
        let name = text.lines().next().unwrap_or_default();
        let mut signed = false;
        for (number, line) in signatures.split('\n').enumerate() {
            if number == SIGNATURE_LINES_MAX {
                return Err(malformed("it has more than 16 signatures"));
            }
            let (signer, signature) = line
                .strip_prefix("\u{2014} ")
                .and_then(|line| line.split_once(' '))
                .ok_or_else(|| malformed("a signature line has another form"))?;
            let signature = BASE64
                .decode(signature.as_bytes())
                .map_err(|_| malformed("a signature is not base64"))?;
            let good = |key: &PublicKey| {
                let signature = signature.strip_prefix(&key_hash(name, key));
                let signature = signature.and_then(|signature| <&[u8; 64]>::try_from(signature).ok());
                signature.is_some_and(|signature| key.verifies(text.as_bytes(), signature))
            };
            signed |= signer == name && keys.iter().any(good);
        }
        if !signed {
            return Err(CheckpointError::Signature);
        }
        let checkpoint = Self::parse(text)?;
        match origin {
            Some(expected) if expected != checkpoint.origin => Err(CheckpointError::Origin {
                found: checkpoint.origin,
                expected: expected.to_owned(),
            }),
            _ => Ok(checkpoint),
        }
    }

    /// Reads a note whose signature was verified before it was stored; it may have been another key then.
    pub fn read_stored(note: &str) -> Result<Self, CheckpointError> {
        let end = note
            .rfind("\n\n")
            .ok_or(CheckpointError::Malformed("it has no signatures"))?;
        Self::parse(&note[..=end])
    }

    fn parse(text: &str) -> Result<Self, CheckpointError> {
        let malformed = CheckpointError::Malformed;
        let lines: Vec<_> = text.lines().collect();
        let [origin, size, root, time] = lines[..] else {
            return Err(malformed("it does not have the lines origin, size, root and time"));
        };
        if origin.is_empty() || origin.chars().any(|c| c == '+' || c.is_whitespace() || c.is_control()) {
            return Err(malformed("its origin is not a name"));
        }
        let root = BASE64.decode(root.as_bytes()).ok();
        let root = root.and_then(|root| <[u8; 32]>::try_from(root).ok());
        let time = time.strip_prefix("time ").and_then(|time| time.parse().ok());
        let checkpoint = Self {
            origin: origin.to_owned(),
            size: size.parse().map_err(|_| malformed("its size is not a number"))?,
            root: root
                .ok_or_else(|| malformed("its root is not 32 bytes in base64"))?
                .into(),
            at: time.ok_or_else(|| malformed("its time is not a time"))?,
        };
        // One text per checkpoint: no leading zeros, no other spelling.
        if checkpoint.text() == text {
            Ok(checkpoint)
        } else {
            Err(malformed("a value is spelt in another way than it is written"))
        }
    }
}

/// The first four bytes of SHA-256 over name, newline, algorithm and key: how a note names a key.
fn key_hash(name: &str, key: &PublicKey) -> [u8; 4] {
    let bytes = [name.as_bytes(), b"\n", &[ED25519], key.as_bytes()].concat();
    let [a, b, c, d, ..] = *Sha256::of(&bytes).as_bytes();
    [a, b, c, d]
}

/// A key as tools for signed notes take it: `<name>+<hash>+<base64>`.
#[must_use]
pub fn verifier_key(origin: &str, key: &PublicKey) -> String {
    let encoded = BASE64.encode(&[&[ED25519], &key.as_bytes()[..]].concat());
    format!("{origin}+{}+{encoded}", hex::encode(key_hash(origin, key)))
}

/// The log's name and key of a verifier key.
pub fn parse_verifier_key(text: &str) -> Result<(String, PublicKey), CheckpointError> {
    let parts = || {
        let (origin, rest) = text.split_once('+')?;
        let (_, encoded) = rest.split_once('+')?;
        let bytes = BASE64.decode(encoded.as_bytes()).ok()?;
        let key = bytes.strip_prefix(&[ED25519])?;
        let key = PublicKey::from_bytes(key.try_into().ok()?).ok()?;
        (verifier_key(origin, &key) == text).then(|| (origin.to_owned(), key))
    };
    parts().ok_or(CheckpointError::VerifierKey)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> SecretKey {
        SecretKey::from_seed(&[number; 32])
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            origin: "firmesh/audit/0011".to_owned(),
            size: 42,
            root: Sha256::of(b"root"),
            at: WallTime::from_unix_seconds(1_800_000_000),
        }
    }

    fn open(note: &str, keys: &[PublicKey]) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(note.as_bytes(), Some("firmesh/audit/0011"), keys)
    }

    /// `tests/golden/checkpoint.note` and its key were made by the reference implementation of signed notes (see
    /// `tests/golden/README.md`).
    #[test]
    fn a_note_of_another_implementation_has_the_same_bytes() {
        let golden = include_str!("../../tests/golden/checkpoint.note");
        let vkey = include_str!("../../tests/golden/checkpoint.vkey").trim_end();
        assert_eq!(checkpoint().sign(&key(1)), golden);
        assert_eq!(verifier_key("firmesh/audit/0011", &key(1).public()), vkey);
        let (origin, key) = parse_verifier_key(vkey).unwrap();
        assert_eq!(open(golden, &[key]).unwrap(), checkpoint());
        assert_eq!(origin, checkpoint().origin);
    }

    #[test]
    fn a_note_counts_with_a_trusted_key_and_for_its_own_log_only() {
        let note = checkpoint().sign(&key(1));
        assert_eq!(open(&note, &[key(2).public(), key(1).public()]).unwrap(), checkpoint());
        assert_eq!(open(&note, &[key(2).public()]), Err(CheckpointError::Signature));
        assert_eq!(open(&note, &[]), Err(CheckpointError::Signature));
        let other = Checkpoint::open(note.as_bytes(), Some("other"), &[key(1).public()]);
        assert_eq!(other.unwrap_err().code(), "audit_origin");
        let witnessed = format!("{note}\u{2014} witness.example AAAAAAAA\n");
        assert_eq!(open(&witnessed, &[key(1).public()]).unwrap(), checkpoint());
        let endless = format!("{note}{}", "\u{2014} w AAAA\n".repeat(20));
        assert_eq!(
            open(&endless, &[key(1).public()]).unwrap_err().code(),
            "audit_malformed"
        );
    }

    #[test]
    fn what_is_signed_has_one_spelling() {
        for text in [
            "firmesh/audit/0011\n042\n{root}\ntime 2027-01-15T08:00:00Z\n",
            "firmesh/audit/0011\n42\n{root}\n",
            "firmesh/audit/0011\n42\n{root}\ntime 2027-01-15T08:00:00Z\nmore\n",
            "firmesh/audit/0011\n-1\n{root}\ntime 2027-01-15T08:00:00Z\n",
            "a b\n42\n{root}\ntime 2027-01-15T08:00:00Z\n",
        ] {
            let text = text.replace("{root}", &BASE64.encode(checkpoint().root.as_bytes()));
            let name = text.lines().next().unwrap();
            let signature = [&key_hash(name, &key(1).public())[..], &key(1).sign(text.as_bytes())].concat();
            let note = format!("{text}\n\u{2014} {name} {}\n", BASE64.encode(&signature));
            assert!(open(&note, &[key(1).public()]).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_byte_of_a_checkpoint_is_free_to_change(at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let mut note = checkpoint().sign(&key(1)).into_bytes();
            let at = at.index(note.len());
            note[at] ^= flip;
            prop_assert!(Checkpoint::open(&note, None, &[key(1).public()]).is_err());
        }

        #[test]
        fn reading_checkpoints_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}\n\n— .{0,80}\n") {
            let _ = Checkpoint::open(&bytes, None, &[key(1).public()]);
            let _ = Checkpoint::open(text.as_bytes(), None, &[key(1).public()]);
            let _ = parse_verifier_key(&text);
        }
    }
}
