//! The U-Boot environment: `name=value` entries behind a CRC-32, in one copy, or in two of which the newer whole one is in force; as
//! U-Boot itself, `fw_printenv` and `fw_setenv` read and write them.
//!
//! Invariants: a copy made here has exactly the size of those that were read, and decodes to the same variables; of two copies, the
//! one in force is never the one to be written next.

use std::collections::BTreeMap;

/// The smallest copy that anybody has: what slots need does not fit into less.
pub const UBOOT_ENV_BYTES_MIN: usize = 64;
/// The largest copy that is read: boards have 8 to 256 KiB.
pub const UBOOT_ENV_BYTES_MAX: usize = 1 << 20;

const CRC_BYTES: usize = 4;

/// A U-Boot environment, and how its copies lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UbootEnv {
    /// Names and values as they are: those of others need not be text.
    variables: BTreeMap<Vec<u8>, Vec<u8>>,
    /// How long one copy is.
    bytes: usize,
    copies: Copies,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copies {
    One,
    Two {
        /// The one that was read.
        in_force: usize,
        /// Its number: the next copy has the one after it.
        number: u8,
        /// Whether the other one is damaged, or was never written.
        is_alone: bool,
    },
}

/// Why bytes are not a U-Boot environment, or variables do not fit into one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UbootEnvError {
    /// U-Boot has one copy or two.
    #[error("a U-Boot environment has one copy or two, not {0}")]
    Copies(usize),
    /// A size that no board has.
    #[error(
        "a copy of the U-Boot environment has {0} bytes, it must have {UBOOT_ENV_BYTES_MIN} to {UBOOT_ENV_BYTES_MAX}"
    )]
    Size(usize),
    /// Copies are of one size.
    #[error("the copies of the U-Boot environment have {0} and {1} bytes, they must be equally long")]
    Sizes(usize, usize),
    /// U-Boot would start with what is compiled into it.
    #[error(
        "no copy of the U-Boot environment is whole (CRC-32): save it from U-Boot (`saveenv`), and compare size, offset and number of \
         copies with what U-Boot was built with"
    )]
    Damaged,
    /// An entry without '='.
    #[error("the U-Boot environment has an entry without '=' at byte {0} of its copy")]
    NoValue(usize),
    /// The last entry has no end.
    #[error("the last entry of the U-Boot environment has no end")]
    NoEnd,
    /// A name that U-Boot could not read back.
    #[error("{0:?} cannot be a variable's name: text without '='")]
    Name(String),
    /// A value that U-Boot could not read back.
    #[error("the value of {0} has a zero byte, which ends a value")]
    Value(String),
    /// Too many variables.
    #[error("the variables need {needed} bytes, a copy of the U-Boot environment has {bytes}")]
    Full {
        /// What they need.
        needed: usize,
        /// What there is.
        bytes: usize,
    },
}

impl UbootEnv {
    /// An environment without variables, of which no copy has been written.
    pub fn empty(bytes: usize, is_redundant: bool) -> Result<Self, UbootEnvError> {
        check_size(bytes)?;
        let never_written = Copies::Two {
            in_force: 1,
            number: 0,
            is_alone: true,
        };
        Ok(Self {
            variables: BTreeMap::new(),
            bytes,
            copies: if is_redundant { never_written } else { Copies::One },
        })
    }

    /// Reads the environment out of its copy, or of both.
    pub fn from_copies(copies: &[Vec<u8>]) -> Result<Self, UbootEnvError> {
        match copies {
            [copy] => {
                check_size(copy.len())?;
                let entries = whole(copy, CRC_BYTES).ok_or(UbootEnvError::Damaged)?;
                Ok(Self {
                    variables: decode(entries, CRC_BYTES)?,
                    bytes: copy.len(),
                    copies: Copies::One,
                })
            }
            [first, second] => {
                check_size(first.len())?;
                if first.len() != second.len() {
                    return Err(UbootEnvError::Sizes(first.len(), second.len()));
                }
                let found = [first, second].map(|copy| whole(copy, CRC_BYTES + 1));
                let in_force = match found {
                    [None, None] => return Err(UbootEnvError::Damaged),
                    [Some(_), None] => 0,
                    [None, Some(_)] => 1,
                    [Some(_), Some(_)] => newer(first[CRC_BYTES], second[CRC_BYTES]),
                };
                let entries = found[in_force].ok_or(UbootEnvError::Damaged)?;
                Ok(Self {
                    variables: decode(entries, CRC_BYTES + 1)?,
                    bytes: first.len(),
                    copies: Copies::Two {
                        in_force,
                        number: copies[in_force][CRC_BYTES],
                        is_alone: found[1 - in_force].is_none(),
                    },
                })
            }
            other => Err(UbootEnvError::Copies(other.len())),
        }
    }

    /// The copy to be written next: which one it is, and its bytes. Once they are durable, they are in force.
    pub fn next_copy(&self) -> Result<(usize, Vec<u8>), UbootEnvError> {
        let (at, number) = match self.copies {
            Copies::One => (0, None),
            Copies::Two { in_force, number, .. } => (1 - in_force, Some(number.wrapping_add(1))),
        };
        let mut entries = Vec::new();
        for (name, value) in &self.variables {
            entries.extend_from_slice(name);
            entries.push(b'=');
            entries.extend_from_slice(value);
            entries.push(0);
        }
        // An empty entry ends them.
        entries.push(0);
        let head = CRC_BYTES + usize::from(number.is_some());
        let needed = head + entries.len();
        if needed > self.bytes {
            let bytes = self.bytes;
            return Err(UbootEnvError::Full { needed, bytes });
        }
        entries.resize(self.bytes - head, 0);
        let mut copy = crc32(&entries).to_le_bytes().to_vec();
        copy.extend(number);
        copy.append(&mut entries);
        assert_eq!(
            copy.len(),
            self.bytes,
            "a copy has another size than those that were read"
        );
        Ok((at, copy))
    }

    /// Whether there are two copies and only one is whole. The next one that is written mends that.
    #[must_use]
    pub fn is_half_damaged(&self) -> bool {
        matches!(self.copies, Copies::Two { is_alone: true, .. })
    }

    /// A variable, if it is text; U-Boot has no empty ones.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name.as_bytes())?;
        std::str::from_utf8(value).ok().filter(|value| !value.is_empty())
    }

    /// Sets a variable, or removes it.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), UbootEnvError> {
        if name.is_empty() || name.bytes().any(|byte| matches!(byte, 0 | b'=')) {
            return Err(UbootEnvError::Name(name.to_owned()));
        }
        match value.filter(|value| !value.is_empty()) {
            Some(value) if value.contains('\0') => return Err(UbootEnvError::Value(name.to_owned())),
            Some(value) => self.variables.insert(name.into(), value.into()),
            None => self.variables.remove(name.as_bytes()),
        };
        Ok(())
    }
}

fn check_size(bytes: usize) -> Result<(), UbootEnvError> {
    if (UBOOT_ENV_BYTES_MIN..=UBOOT_ENV_BYTES_MAX).contains(&bytes) {
        Ok(())
    } else {
        Err(UbootEnvError::Size(bytes))
    }
}

/// A copy's entries, if its checksum is theirs. The number between the two is not covered: U-Boot changes it alone.
fn whole(copy: &[u8], head: usize) -> Option<&[u8]> {
    let (crc, entries) = (copy.first_chunk::<CRC_BYTES>()?, copy.get(head..)?);
    (crc32(entries) == u32::from_le_bytes(*crc)).then_some(entries)
}

/// Which of two whole copies is in force, by their numbers: the greater one, but 0 comes after 255.
fn newer(first: u8, second: u8) -> usize {
    match (first, second) {
        (u8::MAX, 0) => 1,
        (0, u8::MAX) => 0,
        (first, second) => usize::from(second > first),
    }
}

/// The variables. Of a name that comes twice the last value counts, as for U-Boot.
fn decode(entries: &[u8], head: usize) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, UbootEnvError> {
    let (mut variables, mut at) = (BTreeMap::new(), 0);
    while entries.get(at).is_some_and(|&byte| byte != 0) {
        let length = entries[at..].iter().position(|&byte| byte == 0);
        let entry = &entries[at..at + length.ok_or(UbootEnvError::NoEnd)?];
        let place = head + at;
        let equals = entry.iter().position(|&byte| byte == b'=');
        let (name, value) = entry.split_at(equals.ok_or(UbootEnvError::NoValue(place))?);
        if name.is_empty() {
            return Err(UbootEnvError::Name(String::new()));
        }
        variables.insert(name.to_vec(), value[1..].to_vec());
        at += entry.len() + 1;
    }
    Ok(variables)
}

/// The CRC-32 of Ethernet, zip and U-Boot.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        let index = (crc ^ u32::from(byte)) & 0xff;
        (crc >> 8) ^ TABLE[index as usize]
    })
}

const fn table() -> [u32; 256] {
    let (mut table, mut at) = ([0; 256], 0);
    while at < 256 {
        let (mut value, mut bit) = (at as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ 0xedb8_8320
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    /// Written by `fw_setenv` of libubootenv 0.3.2: two copies of 64 bytes, the first one after the second.
    const BY_FW_SETENV: [&str; 2] = [
        "1cf5f33802626f6f746c696d69743d310073617665645f736c6f743d62",
        "3ebbab3601626f6f746c696d69743d31",
    ];

    fn copy_of(hex: &str) -> Vec<u8> {
        let mut copy = hex::decode(hex).unwrap();
        copy.resize(64, 0);
        copy
    }

    #[test]
    fn the_checksum_is_that_of_everybody_else() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn copies_made_by_fw_setenv_are_read_and_the_next_one_is_written_as_it_would() {
        let [first, second] = BY_FW_SETENV.map(copy_of);
        let env = UbootEnv::from_copies(&[first.clone(), second.clone()]).unwrap();
        assert_eq!((env.get("saved_slot"), env.get("bootlimit")), (Some("b"), Some("1")));
        assert!(!env.is_half_damaged());
        let mut before = UbootEnv::from_copies(&[vec![0; 64], second]).unwrap();
        assert!(before.is_half_damaged());
        assert_eq!(before.get("saved_slot"), None);
        before.set("saved_slot", Some("b")).unwrap();
        assert_eq!(before.next_copy().unwrap(), (0, first));
        let single = copy_of("9d595513626f6f746c696d69743d31");
        let env = UbootEnv::from_copies(std::slice::from_ref(&single)).unwrap();
        assert_eq!(env.next_copy().unwrap(), (0, single));
    }

    #[test]
    fn an_environment_of_the_wrong_size_form_or_content_is_refused() {
        let refused = |copies: &[Vec<u8>]| UbootEnv::from_copies(copies).unwrap_err();
        assert_eq!(refused(&[]), UbootEnvError::Copies(0));
        assert_eq!(refused(&[vec![0; 8]]), UbootEnvError::Size(8));
        assert_eq!(UbootEnv::empty(2 << 20, true), Err(UbootEnvError::Size(2 << 20)));
        assert_eq!(refused(&[vec![0; 64], vec![0; 65]]), UbootEnvError::Sizes(64, 65));
        assert_eq!(refused(&[vec![0; 64], vec![255; 64]]), UbootEnvError::Damaged);
        let sealed = |entries: &[u8]| {
            let mut entries = entries.to_vec();
            entries.resize(60, b'x');
            [crc32(&entries).to_le_bytes().to_vec(), entries].concat()
        };
        assert_eq!(refused(&[sealed(b"a=b\0c\0\0")]), UbootEnvError::NoValue(8));
        assert_eq!(refused(&[sealed(b"=b\0\0")]), UbootEnvError::Name(String::new()));
        assert_eq!(refused(&[sealed(b"a=b")]), UbootEnvError::NoEnd);
        let mut env = UbootEnv::from_copies(&[sealed(b"a=b\0a=\xffc\0\0")]).unwrap();
        assert_eq!(env.get("a"), None, "what is not text is kept and not shown");
        assert!(env.set("a=", Some("c")).is_err() && env.set("a", Some("\0")).is_err());
        env.set("long", Some(&"x".repeat(60))).unwrap();
        assert!(matches!(env.next_copy(), Err(UbootEnvError::Full { bytes: 64, .. })));
    }

    /// Over more saves than a copy's number can count.
    #[test]
    fn the_copy_saved_last_is_in_force_and_the_other_one_is_written_next() {
        let mut copies = [vec![0; 64], vec![0; 64]];
        let mut env = UbootEnv::empty(64, true).unwrap();
        for save in 0..600_u32 {
            env.set("save", Some(&save.to_string())).unwrap();
            let (at, copy) = env.next_copy().unwrap();
            assert_eq!(at, save as usize % 2);
            copies[at] = copy;
            env = UbootEnv::from_copies(&copies).unwrap();
            assert_eq!(env.get("save"), Some(save.to_string().as_str()));
        }
    }

    fn variables() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
        proptest::collection::btree_map(
            vec((1_u8..).prop_filter("ends a name", |&byte| byte != b'='), 1..12),
            vec(1_u8.., 1..40),
            0..8,
        )
    }

    proptest! {
        #[test]
        fn every_environment_survives_its_own_bytes(variables in variables(), is_redundant: bool) {
            let env = UbootEnv { variables, ..UbootEnv::empty(512, is_redundant).unwrap() };
            let mut copies = vec![vec![0; 512]; if is_redundant { 2 } else { 1 }];
            let (at, copy) = env.next_copy().unwrap();
            copies[at] = copy;
            prop_assert_eq!(UbootEnv::from_copies(&copies).unwrap().variables, env.variables);
        }

        /// Power fails while the copy is written that is not in force.
        #[test]
        fn a_torn_save_leaves_all_that_was_or_all_that_is_to_be(old in variables(), new in variables(), torn_at in 0..=512_usize) {
            let mut env = UbootEnv { variables: old.clone(), ..UbootEnv::empty(512, true).unwrap() };
            let mut copies = vec![vec![0; 512]; 2];
            for _ in 0..2 {
                let (at, copy) = env.next_copy().unwrap();
                copies[at] = copy;
                env = UbootEnv::from_copies(&copies).unwrap();
            }
            env.variables = new.clone();
            let (at, copy) = env.next_copy().unwrap();
            copies[at][..torn_at].copy_from_slice(&copy[..torn_at]);
            let found = UbootEnv::from_copies(&copies).unwrap().variables;
            prop_assert!(found == old || found == new);
            prop_assert!(torn_at < 512 || found == new);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(mut entries in vec(any::<u8>(), 64..128), head in 4..=5_usize) {
            let _checked = UbootEnv::from_copies(&[entries.clone(), entries.clone()]);
            let crc = crc32(&entries[head..]).to_le_bytes();
            entries[..4].copy_from_slice(&crc);
            let _checked = UbootEnv::from_copies(&vec![entries; head - 3]);
        }
    }
}
