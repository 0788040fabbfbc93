//! Sealing: ChaCha20-Poly1305 under a random key per device, and HMAC-SHA-256 for what it is found by.
//!
//! Invariants: a nonce is random and used once; the device's name is authenticated with what is sealed, so that rows cannot change
//! places; every key is wiped when it is dropped. A sealed identity begins with the version of its form.

use firmesh_coordinator_core::Field;
use firmesh_protocol::ids::DeviceId;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};
use zeroize::Zeroizing;

/// The form: this byte, a nonce, the ciphertext, its tag.
const FORM: u8 = 1;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;

/// Why a key or a nonce could not be made.
#[derive(Debug, thiserror::Error)]
#[error("no randomness for a device's key: {0}")]
pub(super) struct NoRandomness(getrandom::Error);

/// Why what is sealed does not open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotOpened {
    /// The key has another length.
    #[error("a device's key has {0} bytes, it must have {KEY_BYTES}")]
    Key(usize),
    /// A later version wrote it.
    #[error("a device's identity is sealed in a form that this version does not know")]
    Form,
    /// It is not what this key has sealed for this device.
    #[error("a device's identity was changed, or belongs to another key or device")]
    Changed,
}

/// A device's key, or the one that makes digests.
pub(super) struct Key(Zeroizing<Vec<u8>>);

impl Key {
    pub(super) fn random() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new(vec![0; KEY_BYTES]);
        getrandom::fill(&mut bytes).map_err(NoRandomness)?;
        Ok(Self(bytes))
    }

    pub(super) fn stored(bytes: Vec<u8>) -> Result<Self, NotOpened> {
        let bytes = Zeroizing::new(bytes);
        match bytes.len() {
            KEY_BYTES => Ok(Self(bytes)),
            other => Err(NotOpened::Key(other)),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    fn aead(&self) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &self.0).expect("a key has its length");
        LessSafeKey::new(key)
    }

    /// Seals what identifies `device`.
    pub(super) fn seal(&self, device: &DeviceId, plain: &[u8]) -> Result<Vec<u8>, NoRandomness> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(NoRandomness)?;
        let mut sealed = plain.to_vec();
        let at = Nonce::assume_unique_for_key(nonce);
        self.aead()
            .seal_in_place_append_tag(at, about(device), &mut sealed)
            .expect("an identity is far shorter than the cipher's bound");
        Ok([&[FORM][..], &nonce, &sealed].concat())
    }

    /// Opens what was sealed for `device`.
    pub(super) fn open(&self, device: &DeviceId, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
        let (form, rest) = sealed.split_first().ok_or(NotOpened::Changed)?;
        if *form != FORM {
            return Err(NotOpened::Form);
        }
        let (nonce, rest) = rest.split_at_checked(NONCE_LEN).ok_or(NotOpened::Changed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened::Changed)?;
        let mut plain = Zeroizing::new(rest.to_vec());
        let opened = self.aead().open_in_place(nonce, about(device), &mut plain);
        let length = opened.map_err(|_| NotOpened::Changed)?.len();
        plain.truncate(length);
        Ok(plain)
    }

    /// By which a device is found: without the key nobody can try what it may be of.
    pub(super) fn digest(&self, field: Field, text: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let mut context = hmac::Context::with_key(&key);
        context.update(field.as_str().as_bytes());
        context.update(b"\0");
        match field {
            // They mean the same in large and small letters.
            Field::Hostname | Field::Address => context.update(text.to_lowercase().as_bytes()),
            _ => context.update(text.as_bytes()),
        }
        hex::encode(context.sign())
    }
}

fn about(device: &DeviceId) -> Aad<Vec<u8>> {
    Aad::from([b"firmesh identity\0", device.as_str().as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_with_its_key_for_its_device_and_not_otherwise(
            plain in prop::collection::vec(any::<u8>(), 0..600), name in "[a-z0-9]{1,20}", flip in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
            let device = device(&name);
            let sealed = key.seal(&device, &plain).unwrap();
            prop_assert_eq!(&**key.open(&device, &sealed).unwrap(), &plain[..]);
            let again = Key::stored(key.bytes()).unwrap();
            prop_assert_eq!(&**again.open(&device, &sealed).unwrap(), &plain[..]);
            prop_assert_ne!(&key.seal(&device, &plain).unwrap(), &sealed);
            prop_assert_eq!(other.open(&device, &sealed), Err(NotOpened::Changed));
            prop_assert_eq!(key.open(&super::tests::device(&format!("{name}x")), &sealed), Err(NotOpened::Changed));
            let mut changed = sealed.clone();
            changed[flip.index(sealed.len())] ^= 1 << bit;
            prop_assert!(key.open(&device, &changed).is_err());
            prop_assert!(key.open(&device, &sealed[..flip.index(sealed.len())]).is_err());
            if plain.len() > 8 {
                prop_assert!(!sealed.windows(plain.len()).any(|part| part == plain));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(sealed in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Key::random().unwrap().open(&device("d"), &sealed).is_err());
        }
    }

    #[test]
    fn a_digest_is_of_one_key_one_field_and_one_text() {
        let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
        let digest = key.digest(Field::HardwareId, "SN-1");
        assert_eq!(key.digest(Field::HardwareId, "SN-1"), digest);
        assert_ne!(other.digest(Field::HardwareId, "SN-1"), digest);
        assert_ne!(key.digest(Field::AssetTag, "SN-1"), digest);
        assert_ne!(key.digest(Field::HardwareId, "sn-1"), digest);
        assert_eq!(
            key.digest(Field::Hostname, "Lobby"),
            key.digest(Field::Hostname, "lobby")
        );
        assert_eq!(
            key.digest(Field::Address, "FE80::1"),
            key.digest(Field::Address, "fe80::1")
        );
        assert!(matches!(Key::stored(vec![0; 31]), Err(NotOpened::Key(31))));
    }
}
