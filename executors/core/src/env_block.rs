//! The GRUB environment block: 1024 bytes of `key=value` lines, as `grub-editenv` and GRUB itself read and write them.
//!
//! Invariant: every block made here encodes to exactly [`ENV_BLOCK_BYTES`] bytes that decode to the same block.

use std::collections::BTreeMap;

/// The size GRUB demands of the block.
pub const ENV_BLOCK_BYTES: usize = 1024;
const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// The variables of an environment block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvBlock(BTreeMap<String, String>);

/// Why bytes are not an environment block, or a block does not fit its bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvBlockError {
    /// GRUB never writes another size.
    #[error("the environment block has {0} bytes, it must have exactly {ENV_BLOCK_BYTES}")]
    Size(usize),
    /// The first line is missing.
    #[error("the environment block does not begin with \"# GRUB Environment Block\"")]
    Signature,
    /// A line without '='.
    #[error("the environment block has a line without '=' at byte {0}")]
    NoValue(usize),
    /// A variable that is not UTF-8.
    #[error("the environment block is not UTF-8 at byte {0}")]
    NotText(usize),
    /// A name that GRUB could not read back.
    #[error("{0:?} cannot be a variable's name: letters, digits and '_' only")]
    Name(String),
    /// Too many variables.
    #[error("the variables need {0} bytes, the environment block has {ENV_BLOCK_BYTES}")]
    Full(usize),
}

impl EnvBlock {
    /// Reads a block.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvBlockError> {
        if bytes.len() != ENV_BLOCK_BYTES {
            return Err(EnvBlockError::Size(bytes.len()));
        }
        let body = bytes.strip_prefix(SIGNATURE).ok_or(EnvBlockError::Signature)?;
        let mut variables = BTreeMap::new();
        let mut at = 0;
        while at < body.len() {
            let (line, next) = logical_line(body, at);
            let place = SIGNATURE.len() + at;
            if line.first().is_some_and(|&byte| byte != b'#') {
                let equals = line
                    .iter()
                    .position(|&b| b == b'=')
                    .ok_or(EnvBlockError::NoValue(place))?;
                let text =
                    |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_not_utf8| EnvBlockError::NotText(place));
                let name = text(&line[..equals])?;
                if !is_name(&name) {
                    return Err(EnvBlockError::Name(name));
                }
                variables.insert(name, text(&unescape(&line[equals + 1..]))?);
            }
            at = next;
        }
        Ok(Self(variables))
    }

    /// The block's bytes.
    pub fn to_bytes(&self) -> Result<[u8; ENV_BLOCK_BYTES], EnvBlockError> {
        let mut bytes = SIGNATURE.to_vec();
        for (name, value) in &self.0 {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(b'=');
            for byte in value.bytes() {
                if matches!(byte, b'\\' | b'\n') {
                    bytes.push(b'\\');
                }
                bytes.push(byte);
            }
            bytes.push(b'\n');
        }
        if bytes.len() > ENV_BLOCK_BYTES {
            return Err(EnvBlockError::Full(bytes.len()));
        }
        let mut block = [b'#'; ENV_BLOCK_BYTES];
        block[..bytes.len()].copy_from_slice(&bytes);
        Ok(block)
    }

    /// A variable; an empty one counts as absent, as GRUB scripts cannot unset what they saved.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Sets a variable, or removes it.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), EnvBlockError> {
        if !is_name(name) {
            return Err(EnvBlockError::Name(name.to_owned()));
        }
        match value {
            Some(value) => self.0.insert(name.to_owned(), value.to_owned()),
            None => self.0.remove(name),
        };
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The line that starts at `at`, which an escaped newline does not end, and where the next one starts.
fn logical_line(body: &[u8], at: usize) -> (&[u8], usize) {
    let mut end = at;
    while end < body.len() && body[end] != b'\n' {
        end += if body[end] == b'\\' { 2 } else { 1 };
    }
    let end = end.min(body.len());
    (&body[at..end], end + 1)
}

fn unescape(value: &[u8]) -> Vec<u8> {
    let mut bytes = value.iter().copied();
    std::iter::from_fn(|| match bytes.next()? {
        b'\\' => Some(bytes.next().unwrap_or(b'\\')),
        byte => Some(byte),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_made_by_grub_editenv_is_read() {
        let mut bytes =
            b"# GRUB Environment Block\n# WARNING: Do not edit this file by tools other than grub-editenv!!!\n\
            saved_slot=a\npath=C:\\\\boot\ntry_slot=\n"
                .to_vec();
        bytes.resize(ENV_BLOCK_BYTES, b'#');
        let block = EnvBlock::from_bytes(&bytes).unwrap();
        assert_eq!(block.get("saved_slot"), Some("a"));
        assert_eq!(block.get("path"), Some("C:\\boot"));
        assert_eq!(block.get("try_slot"), None);
    }

    #[test]
    fn a_block_of_the_wrong_size_form_or_content_is_refused() {
        assert_eq!(EnvBlock::from_bytes(b"short"), Err(EnvBlockError::Size(5)));
        assert_eq!(
            EnvBlock::from_bytes(&[b'#'; ENV_BLOCK_BYTES]),
            Err(EnvBlockError::Signature)
        );
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(b"no value\n");
        bytes.resize(ENV_BLOCK_BYTES, b'#');
        assert_eq!(
            EnvBlock::from_bytes(&bytes),
            Err(EnvBlockError::NoValue(SIGNATURE.len()))
        );
        let mut block = EnvBlock::default();
        assert!(block.set("a=b", Some("c")).is_err());
        block.set("long", Some(&"x".repeat(ENV_BLOCK_BYTES))).unwrap();
        assert!(matches!(block.to_bytes(), Err(EnvBlockError::Full(_))));
    }

    proptest! {
        #[test]
        fn every_block_that_fits_survives_its_own_bytes(
            variables in proptest::collection::btree_map("[a-z_0-9]{1,12}", "[ -~\\\\\n=#é]{1,40}", 0..8)
        ) {
            let block = EnvBlock(variables);
            if let Ok(bytes) = block.to_bytes() {
                prop_assert_eq!(EnvBlock::from_bytes(&bytes).unwrap(), block);
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(tail in proptest::collection::vec(any::<u8>(), ENV_BLOCK_BYTES - SIGNATURE.len())) {
            let _checked = EnvBlock::from_bytes(&[SIGNATURE, &tail].concat());
        }
    }
}
