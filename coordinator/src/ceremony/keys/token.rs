//! Keys in PKCS#11 tokens: the secret stays in the token, which signs with CKM_EDDSA (PKCS#11 3.0, section 2.3).
//!
//! Invariants: exactly one key fits its address; a signature leaves here only if it is the key's over those bytes, so a
//! confused token is found at once. One attempt at a PIN per command: tokens lock after a few.

use std::path::PathBuf;

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11},
    error::{Error as Pkcs11Error, RvError},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::{Slot, TokenInfo},
    types::AuthPin,
};
use firmesh_protocol::trust::{KeyError, PublicKey};

use super::{
    files::{KeyFileError, load_secret},
    secrets::{SecretError, Secrets},
    uri::TokenUri,
};

/// The curve's name as SoftHSM and most tokens want it: PrintableString "edwards25519".
const EDWARDS25519: &[u8] = b"\x13\x0cedwards25519";

/// Why a token's key could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No module was named.
    #[error("which PKCS#11 module? add ?module-path=/path/to/module.so to the key, or set FIRMESH_PKCS11_MODULE")]
    NoModule,
    /// The module cannot be loaded, or failed.
    #[error("the PKCS#11 module {} failed while {doing}", module.display())]
    Module {
        /// The module.
        module: PathBuf,
        /// What was asked of it.
        doing: &'static str,
        /// Why.
        source: Pkcs11Error,
    },
    /// No token, or several, fit the address.
    #[error("{count} tokens fit the address, one has to; present are: {present}")]
    Tokens {
        /// How many fit.
        count: usize,
        /// The labels of all tokens.
        present: String,
    },
    /// No key, or several, fit the address.
    #[error("{count} ed25519 {class} keys of the token {token:?} fit the address, one has to")]
    Keys {
        /// How many fit.
        count: usize,
        /// Private or public.
        class: &'static str,
        /// The token.
        token: String,
    },
    /// The PIN was refused.
    #[error("the token {token:?} refuses the PIN; it locks after a few wrong ones")]
    WrongPin {
        /// The token.
        token: String,
    },
    /// There is a key of this name already.
    #[error("the token {token:?} holds a key of this name or id already: choose another")]
    Exists {
        /// The token.
        token: String,
    },
    /// The public key is none.
    #[error("the token gives a public key that cannot be used")]
    BadKey(#[from] KeyError),
    /// The public key is not in a form we know.
    #[error("the token gives a public key of {length} bytes that is not an ed25519 point")]
    BadPoint {
        /// How long it is.
        length: usize,
    },
    /// The signature is not the key's.
    #[error("the token's signature is not good under {key}: its private and public key of this name are not a pair")]
    BadSignature {
        /// The public key.
        key: PublicKey,
    },
    /// No PIN.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The PIN's file cannot be used.
    #[error("the file with the PIN cannot be used")]
    PinFile(#[source] Box<KeyFileError>),
}

/// A private key that a token keeps.
#[derive(Debug)]
pub struct TokenKey {
    module: PathBuf,
    session: Session,
    private: ObjectHandle,
    public: PublicKey,
}

impl TokenKey {
    /// Finds a private key and logs in.
    pub(super) fn open(uri: &TokenUri, secrets: &Secrets) -> Result<Self, TokenError> {
        let token = Token::find(uri)?;
        let session = token.session(uri, secrets, false)?;
        let public = token.public_key(&session, uri)?;
        let private = token.key(&session, uri, ObjectClass::PRIVATE_KEY, "private")?;
        Ok(Self {
            module: token.module,
            session,
            private,
            public,
        })
    }

    /// Makes a key pair inside the token that can never be taken out.
    pub(super) fn generate(uri: &TokenUri, secrets: &Secrets) -> Result<Self, TokenError> {
        let token = Token::find(uri)?;
        let session = token.session(uri, secrets, true)?;
        let there = token.keys(&session, uri, ObjectClass::PRIVATE_KEY)?.len()
            + token.keys(&session, uri, ObjectClass::PUBLIC_KEY)?.len();
        if there > 0 {
            return Err(TokenError::Exists { token: token.label });
        }
        let id = match &uri.id {
            Some(id) => id.clone(),
            None => session.generate_random_vec(16).map_err(token.failed("making an id"))?,
        };
        let label = uri.object.clone().unwrap_or_default().into_bytes();
        let named = [Attribute::Id(id), Attribute::Label(label), Attribute::Token(true)];
        let mut public = vec![
            Attribute::EcParams(EDWARDS25519.to_vec()),
            Attribute::Verify(true),
            Attribute::Private(false),
        ];
        let mut private = vec![
            Attribute::Sign(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
        ];
        public.extend(named.clone());
        private.extend(named);
        session
            .generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private)
            .map_err(token.failed("making a key pair"))?;
        let (public, private) = (
            token.public_key(&session, uri)?,
            token.key(&session, uri, ObjectClass::PRIVATE_KEY, "private")?,
        );
        Ok(Self {
            module: token.module,
            session,
            private,
            public,
        })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Has the token sign exactly these bytes.
    pub fn sign(&self, bytes: &[u8]) -> Result<[u8; 64], TokenError> {
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
        let signature = self
            .session
            .sign(&mechanism, self.private, bytes)
            .map_err(|source| TokenError::Module {
                module: self.module.clone(),
                doing: "signing",
                source,
            })?;
        match <[u8; 64]>::try_from(signature) {
            Ok(signature) if self.public.verifies(bytes, &signature) => Ok(signature),
            _ => Err(TokenError::BadSignature { key: self.public }),
        }
    }
}

/// The public key of an address; needs no PIN.
pub(super) fn public_key(uri: &TokenUri) -> Result<PublicKey, TokenError> {
    let token = Token::find(uri)?;
    let session = token
        .context
        .open_ro_session(token.slot)
        .map_err(token.failed("opening a session"))?;
    token.public_key(&session, uri)
}

struct Token {
    module: PathBuf,
    context: Pkcs11,
    slot: Slot,
    label: String,
    needs_pin: bool,
}

impl Token {
    fn find(uri: &TokenUri) -> Result<Self, TokenError> {
        let module = match &uri.module {
            Some(module) => module.clone(),
            None => std::env::var_os("FIRMESH_PKCS11_MODULE")
                .map(PathBuf::from)
                .ok_or(TokenError::NoModule)?,
        };
        let failed = |doing| {
            let module = module.clone();
            move |source| TokenError::Module { module, doing, source }
        };
        let context = Pkcs11::new(&module).map_err(failed("being loaded"))?;
        match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // Another key of this process is in a token of the same module.
            Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::CryptokiAlreadyInitialized, Function::Initialize)) => {}
            Err(error) => return Err(failed("being started")(error)),
        }
        let (mut fitting, mut present) = (Vec::new(), Vec::new());
        for slot in context
            .get_slots_with_initialized_token()
            .map_err(failed("listing its slots"))?
        {
            let info = context.get_token_info(slot).map_err(failed("describing a token"))?;
            present.push(format!("{:?}", info.label()));
            if fits(uri, slot, &info) {
                fitting.push((slot, info));
            }
        }
        match <[_; 1]>::try_from(fitting) {
            Ok([(slot, info)]) => Ok(Self {
                module,
                context,
                slot,
                label: info.label().to_owned(),
                needs_pin: info.login_required(),
            }),
            Err(fitting) => Err(TokenError::Tokens {
                count: fitting.len(),
                present: if present.is_empty() {
                    "none".to_owned()
                } else {
                    present.join(", ")
                },
            }),
        }
    }

    fn session(&self, uri: &TokenUri, secrets: &Secrets, writes: bool) -> Result<Session, TokenError> {
        let session = if writes {
            self.context.open_rw_session(self.slot)
        } else {
            self.context.open_ro_session(self.slot)
        };
        let session = session.map_err(self.failed("opening a session"))?;
        if !self.needs_pin {
            return Ok(session);
        }
        let pin = match &uri.pin_source {
            Some(path) => {
                let text = load_secret(path).map_err(|error| TokenError::PinFile(Box::new(error)))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            None => secrets.pin(&format!("the token {:?}", self.label))?.to_string(),
        };
        match session.login(UserType::User, Some(&AuthPin::new(pin.into()))) {
            Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(Pkcs11Error::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid, _)) => {
                Err(TokenError::WrongPin {
                    token: self.label.clone(),
                })
            }
            Err(error) => Err(self.failed("taking the PIN")(error)),
        }
    }

    fn keys(&self, session: &Session, uri: &TokenUri, class: ObjectClass) -> Result<Vec<ObjectHandle>, TokenError> {
        let mut template = vec![Attribute::Class(class), Attribute::KeyType(KeyType::EC_EDWARDS)];
        template.extend(
            uri.object
                .iter()
                .map(|label| Attribute::Label(label.clone().into_bytes())),
        );
        template.extend(uri.id.iter().map(|id| Attribute::Id(id.clone())));
        session
            .find_objects(&template)
            .map_err(self.failed("looking for a key"))
    }

    fn key(
        &self,
        session: &Session,
        uri: &TokenUri,
        class: ObjectClass,
        name: &'static str,
    ) -> Result<ObjectHandle, TokenError> {
        match self.keys(session, uri, class)?.as_slice() {
            [key] => Ok(*key),
            keys => Err(TokenError::Keys {
                count: keys.len(),
                class: name,
                token: self.label.clone(),
            }),
        }
    }

    fn public_key(&self, session: &Session, uri: &TokenUri) -> Result<PublicKey, TokenError> {
        let key = self.key(session, uri, ObjectClass::PUBLIC_KEY, "public")?;
        let attributes = session
            .get_attributes(key, &[AttributeType::EcPoint])
            .map_err(self.failed("reading a public key"))?;
        let point = attributes.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(point) => Some(point),
            _ => None,
        });
        point_of(&point.unwrap_or_default())
    }

    fn failed(&self, doing: &'static str) -> impl Fn(Pkcs11Error) -> TokenError + use<> {
        let module = self.module.clone();
        move |source| TokenError::Module {
            module: module.clone(),
            doing,
            source,
        }
    }
}

fn fits(uri: &TokenUri, slot: Slot, info: &TokenInfo) -> bool {
    let same = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found.trim_end());
    same(&uri.token, info.label())
        && same(&uri.manufacturer, info.manufacturer_id())
        && same(&uri.model, info.model())
        && same(&uri.serial, info.serial_number())
        && uri.slot.is_none_or(|wanted| wanted == slot.id())
}

/// The point as tokens write it: in a DER OCTET STRING (PKCS#11 2.40), a BIT STRING, or bare (3.0).
fn point_of(bytes: &[u8]) -> Result<PublicKey, TokenError> {
    let bare = match bytes {
        [0x04, 0x20, point @ ..] | [0x03, 0x21, 0x00, point @ ..] => point,
        point => point,
    };
    let point = <[u8; 32]>::try_from(bare).map_err(|_| TokenError::BadPoint { length: bytes.len() })?;
    Ok(PublicKey::from_bytes(&point)?)
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::trust::SecretKey;

    use super::*;

    #[test]
    fn a_point_is_read_in_each_of_its_three_forms() {
        let key = SecretKey::from_seed(&[5; 32]).public();
        for head in [&[][..], &[0x04, 0x20], &[0x03, 0x21, 0x00]] {
            assert_eq!(point_of(&[head, key.as_bytes()].concat()).unwrap(), key);
        }
        assert!(matches!(
            point_of(&[4, 3, 1, 2, 3]),
            Err(TokenError::BadPoint { length: 5 })
        ));
        assert!(matches!(point_of(&[]), Err(TokenError::BadPoint { length: 0 })));
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let uri = TokenUri::parse("object=a?module-path=/nonexistent/module.so").unwrap();
        let error = public_key(&uri).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/module.so"), "{error}");
    }
}
