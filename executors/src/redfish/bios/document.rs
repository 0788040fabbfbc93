//! A document of BIOS attributes: what is signed as a release, and rolled out.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::Value;

/// The schema of a document.
const SCHEMA: &str = "firmesh-bios-settings/1";
/// A document is at most this long; registries of big servers have some thousand attributes, and nobody sets a third of them.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 256 << 10;
const ATTRIBUTES_MAX: usize = 1_024;
const NAME_BYTES_MAX: usize = 128;
const TEXT_BYTES_MAX: usize = 1_024;

/// What attributes are to be.
pub(super) type Attributes = BTreeMap<String, Setting>;

/// A document, read and checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    schema: String,
    /// The version of its release.
    pub(super) version: String,
    #[serde(deserialize_with = "once_each")]
    pub(super) attributes: Attributes,
}

/// The value of an attribute, of the types that Redfish has for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Setting {
    Text(String),
    Number(i64),
    Switch(bool),
}

/// Why bytes are no document.
#[derive(Debug, thiserror::Error)]
pub(super) enum DocumentError {
    #[error("the document has more than {DOCUMENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the document is not one of BIOS attributes")]
    Json(#[from] serde_json::Error),
    #[error("the document {0}")]
    Content(String),
}

impl Document {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLong);
        }
        let document: Self = serde_json::from_slice(bytes)?;
        document.check().map_err(DocumentError::Content)?;
        Ok(document)
    }

    fn check(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("has the schema {:?}, and must have {SCHEMA:?}", self.schema));
        }
        let is_line = |text: &str, max: usize| text.len() <= max && !text.chars().any(char::is_control);
        if self.version.is_empty() || !is_line(&self.version, NAME_BYTES_MAX) {
            return Err(format!(
                "has no version, or none that is a line of at most {NAME_BYTES_MAX} bytes"
            ));
        }
        if self.attributes.is_empty() || self.attributes.len() > ATTRIBUTES_MAX {
            return Err(format!(
                "has {} attributes, and must have 1 to {ATTRIBUTES_MAX}",
                self.attributes.len()
            ));
        }
        for (name, setting) in &self.attributes {
            if name.is_empty() || !is_line(name, NAME_BYTES_MAX) || name.starts_with('@') {
                return Err(format!("has an attribute with the name {:?}", short(name)));
            }
            if let Setting::Text(text) = setting
                && !is_line(text, TEXT_BYTES_MAX)
            {
                return Err(format!(
                    "gives {name} a text that is no line of at most {TEXT_BYTES_MAX} bytes"
                ));
            }
        }
        Ok(())
    }

    /// The attributes that are otherwise, with what they are.
    pub(super) fn differing<'a>(&'a self, current: &'a BTreeMap<String, Value>) -> Vec<Differing<'a>> {
        let differing = self.attributes.iter().filter_map(|(name, wanted)| {
            let is = current.get(name);
            let differs = !is.is_some_and(|is| wanted.is(is));
            differs.then_some(Differing { name, wanted, is })
        });
        differing.collect()
    }
}

/// An attribute that is not what a document wants.
#[derive(Debug)]
pub(super) struct Differing<'a> {
    pub(super) name: &'a str,
    pub(super) wanted: &'a Setting,
    pub(super) is: Option<&'a Value>,
}

impl fmt::Display for Differing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, wanted, is } = self;
        match is {
            Some(is) => write!(f, "{name} (is {}, is to be {wanted})", short(&is.to_string())),
            None => write!(f, "{name} (is not there, is to be {wanted})"),
        }
    }
}

impl Setting {
    /// Whether a BMC's value is this one. Texts are compared as they are.
    pub(super) fn is(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Text(wanted), Value::String(is)) => wanted == is,
            (Self::Number(wanted), Value::Number(is)) => is.as_i64() == Some(*wanted),
            (Self::Switch(wanted), Value::Bool(is)) => wanted == is,
            _ => false,
        }
    }

    /// Whether a BMC's value is of the same type.
    pub(super) fn is_of_type(&self, value: &Value) -> bool {
        match self {
            Self::Text(_) => value.is_string(),
            Self::Number(_) => value.is_i64() || value.is_u64(),
            Self::Switch(_) => value.is_boolean(),
        }
    }

    pub(super) fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Number(number) => (*number).into(),
            Self::Switch(on) => (*on).into(),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&short(&self.to_value().to_string()))
    }
}

impl Serialize for Setting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |is: &str| {
            D::Error::custom(format!(
                "an attribute is {is}, and must be a text, a whole number, true or false"
            ))
        };
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Bool(on) => Ok(Self::Switch(on)),
            Value::Number(number) => number
                .as_i64()
                .map(Self::Number)
                .ok_or_else(|| wrong("no whole number")),
            Value::Null => Err(wrong("null")),
            Value::Array(_) | Value::Object(_) => Err(wrong("a list or an object")),
        }
    }
}

/// An attribute that stands there twice would be one thing for whoever signs and another for whoever installs.
fn once_each<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Attributes, D::Error> {
    struct OnceEach;
    impl<'de> Visitor<'de> for OnceEach {
        type Value = Attributes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("attributes by name")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attributes, A::Error> {
            let mut attributes = Attributes::new();
            while let Some((name, setting)) = map.next_entry::<String, Setting>()? {
                if attributes.contains_key(&name) {
                    return Err(A::Error::custom(format!(
                        "the attribute {:?} stands there twice",
                        short(&name)
                    )));
                }
                attributes.insert(name, setting);
            }
            Ok(attributes)
        }
    }
    deserializer.deserialize_map(OnceEach)
}

/// A text of somebody else's, cut to a few words.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<Document, String> {
        let parsed = Document::parse(body.to_string().as_bytes());
        parsed.map_err(|error| crate::backend::chain(&error))
    }

    #[test]
    fn a_document_is_read_whole_or_refused_with_what_is_wrong() {
        let good = json!({ "schema": SCHEMA, "version": "2", "attributes": { "A": "x", "B": -1, "C": true } });
        let document = parse(&good).unwrap();
        assert_eq!(document.attributes["B"], Setting::Number(-1));
        assert_eq!(serde_json::to_value(&document).unwrap(), good);
        for (body, words) in [
            (
                json!({ "schema": "other/1", "version": "2", "attributes": { "A": 1 } }),
                "has the schema \"other/1\"",
            ),
            (
                json!({ "schema": SCHEMA, "version": "", "attributes": { "A": 1 } }),
                "has no version",
            ),
            (
                json!({ "schema": SCHEMA, "version": "2", "attributes": {} }),
                "has 0 attributes",
            ),
            (
                json!({ "schema": SCHEMA, "version": "2", "attributes": { "A": null } }),
                "is null",
            ),
            (
                json!({ "schema": SCHEMA, "version": "2", "attributes": { "A": 1.5 } }),
                "no whole number",
            ),
            (
                json!({ "schema": SCHEMA, "version": "2", "attributes": { "A": [1] } }),
                "a list or an object",
            ),
            (
                json!({ "schema": SCHEMA, "version": "2", "attributes": { "@odata.id": "/" } }),
                "\"@odata.id\"",
            ),
            (
                json!({ "schema": SCHEMA, "version": "2", "attributes": { "A": "x\n" } }),
                "no line",
            ),
            (
                json!({ "schema": SCHEMA, "version": "2", "attributes": { "A": 1 }, "more": 1 }),
                "unknown field",
            ),
        ] {
            let error = parse(&body).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let twice = format!("{{\"schema\":{SCHEMA:?},\"version\":\"2\",\"attributes\":{{\"A\":1,\"A\":2}}}}");
        let error = Document::parse(twice.as_bytes()).unwrap_err();
        assert!(
            crate::backend::chain(&error).contains("\"A\" stands there twice"),
            "{error}"
        );
        let long = vec![b' '; usize::try_from(DOCUMENT_BYTES_MAX).unwrap() + 1];
        assert!(matches!(Document::parse(&long), Err(DocumentError::TooLong)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_document_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _refused_or_not = Document::parse(&bytes);
        }

        #[test]
        fn what_is_written_is_read_again(names in proptest::collection::btree_map("[A-Za-z0-9_]{1,20}", any::<i64>(), 1..20)) {
            let attributes = names.into_iter().map(|(name, number)| (name, Setting::Number(number))).collect();
            let document = Document { schema: SCHEMA.to_owned(), version: "1".to_owned(), attributes };
            let bytes = serde_json::to_vec(&document).unwrap();
            prop_assert_eq!(Document::parse(&bytes).unwrap(), document);
        }
    }
}
