//! `pkcs11:` addresses of keys in tokens, as RFC 7512 writes them.
//!
//! Invariant: an attribute that is not understood is an error, never ignored: it was meant to narrow the choice of key.

use std::path::PathBuf;

/// The longest address.
const URI_BYTES_MAX: usize = 4096;

/// Why an address of a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Longer than any address.
    #[error("a pkcs11: address has at most {URI_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// Not `name=value`.
    #[error("{0:?} is not of the form name=value")]
    NotAPair(String),
    /// A `%` that two hexadecimal digits do not follow, or bytes that are not text where text is needed.
    #[error("the value of {0} is not percent-encoded text")]
    BadEncoding(String),
    /// Given twice.
    #[error("{0} stands there twice")]
    Twice(String),
    /// Not understood.
    #[error(
        "{0} is not understood: use token, manufacturer, model, serial, slot-id, object, id; module-path, pin-source"
    )]
    Unknown(String),
    /// `type` of something else than a key.
    #[error("type={0} is not a key's: private or public")]
    NotAKey(String),
    /// Not a number.
    #[error("slot-id={0} is not a number")]
    BadSlot(String),
    /// A PIN in the open.
    #[error(
        "a pin-value on the command line can be read by every user of the machine: use pin-source=FILE or FIRMESH_PIN"
    )]
    PinInTheOpen,
    /// Neither object nor id.
    #[error("name the key with object= (its label) or id=")]
    NoKey,
}

/// Which key of which token, through which module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenUri {
    /// The token's label.
    pub token: Option<String>,
    /// The token's maker.
    pub manufacturer: Option<String>,
    /// The token's model.
    pub model: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The slot the token is in.
    pub slot: Option<u64>,
    /// The key's label.
    pub object: Option<String>,
    /// The key's id, any bytes.
    pub id: Option<Vec<u8>>,
    /// The PKCS#11 module (a shared library).
    pub module: Option<PathBuf>,
    /// A file with the PIN, that only its owner can read.
    pub pin_source: Option<PathBuf>,
}

impl TokenUri {
    /// Reads what stands after `pkcs11:`.
    pub fn parse(rest: &str) -> Result<Self, UriError> {
        if rest.len() > URI_BYTES_MAX {
            return Err(UriError::TooLong(rest.len()));
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        for (name, value) in pairs(path, ';')? {
            match name {
                "token" => once(&mut uri.token, name, text(name, value)?)?,
                "manufacturer" => once(&mut uri.manufacturer, name, text(name, value)?)?,
                "model" => once(&mut uri.model, name, text(name, value)?)?,
                "serial" => once(&mut uri.serial, name, text(name, value)?)?,
                "object" => once(&mut uri.object, name, text(name, value)?)?,
                "id" => once(&mut uri.id, name, bytes(name, value)?)?,
                "slot-id" => {
                    let slot = value.parse().map_err(|_| UriError::BadSlot(short(value)))?;
                    once(&mut uri.slot, name, slot)?;
                }
                "type" if ["private", "public"].contains(&value) => {}
                "type" => return Err(UriError::NotAKey(short(value))),
                _ => return Err(UriError::Unknown(short(name))),
            }
        }
        for (name, value) in pairs(query, '&')? {
            match name {
                "module-path" => once(&mut uri.module, name, PathBuf::from(text(name, value)?))?,
                "pin-source" => {
                    let source = text(name, value)?;
                    let path = source.strip_prefix("file:").unwrap_or(&source);
                    once(
                        &mut uri.pin_source,
                        name,
                        PathBuf::from(path.strip_prefix("//").unwrap_or(path)),
                    )?;
                }
                "pin-value" => return Err(UriError::PinInTheOpen),
                _ => return Err(UriError::Unknown(short(name))),
            }
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err(UriError::NoKey);
        }
        Ok(uri)
    }
}

fn pairs(text: &str, separator: char) -> Result<Vec<(&str, &str)>, UriError> {
    let parts = text.split(separator).filter(|part| !part.is_empty());
    parts
        .map(|part| part.split_once('=').ok_or_else(|| UriError::NotAPair(short(part))))
        .collect()
}

fn once<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), UriError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UriError::Twice(name.to_owned())),
    }
}

fn text(name: &str, value: &str) -> Result<String, UriError> {
    String::from_utf8(bytes(name, value)?).map_err(|_| UriError::BadEncoding(name.to_owned()))
}

fn bytes(name: &str, value: &str) -> Result<Vec<u8>, UriError> {
    let bad = || UriError::BadEncoding(name.to_owned());
    let (mut decoded, mut left) = (Vec::new(), value.as_bytes());
    while let Some((&first, rest)) = left.split_first() {
        left = rest;
        if first == b'%' {
            let digits = left.get(..2).ok_or_else(bad)?;
            decoded.extend(hex::decode(digits).map_err(|_| bad())?);
            left = &left[2..];
        } else {
            decoded.push(first);
        }
    }
    Ok(decoded)
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_names_token_key_module_and_pin_file() {
        let uri = TokenUri::parse(
            "token=Root%20safe;object=root-1;id=%01%ff;type=private?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin",
        )
        .unwrap();
        assert_eq!(uri.token.as_deref(), Some("Root safe"));
        assert_eq!(uri.object.as_deref(), Some("root-1"));
        assert_eq!(uri.id, Some(vec![1, 255]));
        assert_eq!(uri.module, Some(PathBuf::from("/usr/lib/softhsm/libsofthsm2.so")));
        assert_eq!(uri.pin_source, Some(PathBuf::from("/run/pin")));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, error) in [
            ("object=a;object=b", UriError::Twice("object".to_owned())),
            (
                "object=a;libary-version=3",
                UriError::Unknown("libary-version".to_owned()),
            ),
            ("object=a?pin-value=1234", UriError::PinInTheOpen),
            ("object=%zz", UriError::BadEncoding("object".to_owned())),
            ("object=%f", UriError::BadEncoding("object".to_owned())),
            ("object=a;type=cert", UriError::NotAKey("cert".to_owned())),
            ("object=a;slot-id=first", UriError::BadSlot("first".to_owned())),
            ("object", UriError::NotAPair("object".to_owned())),
            ("token=t", UriError::NoKey),
        ] {
            assert_eq!(TokenUri::parse(text).unwrap_err(), error, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in "\\PC{0,200}") {
            let _either = TokenUri::parse(&text);
        }

        #[test]
        fn every_id_survives_percent_encoding(id in proptest::collection::vec(any::<u8>(), 1..40)) {
            let encoded: String = id.iter().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(TokenUri::parse(&format!("id={encoded}")).unwrap().id, Some(id));
        }
    }
}
