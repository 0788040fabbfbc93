//! Secrets in profiles of credentials, sealed for this node: AES-256-GCM under a key that follows from the store's.
//!
//! A nonce is 96 random bits: a node seals a few hundred secrets in its life, far from where two might be the same. The
//! profile's name is sealed along: what was sealed for one profile says nothing in another.

use std::{fmt, io};

use firmesh_executors::Unseal;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::store::StoreKey;

const CONTEXT: &str = "firmesh 2026 credentials: AES-256-GCM of one secret of a profile";

/// Longer than any secret that is read.
const SEALED_DIGITS_MAX: usize = 2 * (4 << 10) + 200;

/// What seals and opens.
pub struct Sealing(LessSafeKey);

impl fmt::Debug for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealing(redacted)")
    }
}

impl Sealing {
    /// By the key of the node's store.
    #[must_use]
    pub fn by(key: &StoreKey) -> Self {
        let key = key.derive(CONTEXT);
        Self(LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, &key).expect("the key has AES-256's length"),
        ))
    }

    /// Seals a secret for a profile.
    pub fn seal(&self, profile: &str, secret: &str) -> io::Result<String> {
        let mut sealed = vec![0; NONCE_LEN];
        getrandom::fill(&mut sealed).map_err(io::Error::other)?;
        let nonce = Nonce::try_assume_unique_for_key(&sealed).expect("it has the nonce's length");
        let mut content = secret.as_bytes().to_vec();
        self.0
            .seal_in_place_append_tag(nonce, Aad::from(profile.as_bytes()), &mut content)
            .map_err(io::Error::other)?;
        sealed.extend(content);
        Ok(hex::encode(sealed))
    }
}

impl Unseal for Sealing {
    fn unseal(&self, profile: &str, sealed: &str) -> Option<String> {
        if sealed.len() > SEALED_DIGITS_MAX {
            return None;
        }
        let mut bytes = hex::decode(sealed.trim()).ok()?;
        let (nonce, content) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = self
            .0
            .open_in_place(nonce, Aad::from(profile.as_bytes()), content)
            .ok()?;
        String::from_utf8(opened.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_for_its_profile_and_its_node() {
        let sealing = Sealing::by(&StoreKey::from([7; 32]));
        let sealed = sealing.seal("bmcs", "hush hush").unwrap();
        assert!(!sealed.contains("hush") && !sealed.contains(&hex::encode("hush")));
        assert_ne!(
            sealed,
            sealing.seal("bmcs", "hush hush").unwrap(),
            "nobody sees that two are alike"
        );
        assert_eq!(sealing.unseal("bmcs", &sealed).as_deref(), Some("hush hush"));
        assert_eq!(sealing.unseal("others", &sealed), None);
        assert_eq!(Sealing::by(&StoreKey::from([8; 32])).unseal("bmcs", &sealed), None);
        for at in 0..sealed.len() {
            let digit = if sealed.as_bytes()[at] == b'0' { "1" } else { "0" };
            let mut altered = sealed.clone();
            altered.replace_range(at..=at, digit);
            assert_eq!(sealing.unseal("bmcs", &altered), None);
        }
        for bad in ["", "zz", "00", &"0".repeat(24), &"0".repeat(100_000)] {
            assert_eq!(sealing.unseal("bmcs", bad), None);
        }
    }
}
