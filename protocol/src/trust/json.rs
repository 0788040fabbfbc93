//! Strict JSON in, OLPC canonical JSON out: the bytes that TUF signatures and key ids are taken of.
//!
//! Invariants: a name stands once in its object, there are no floats, and two different texts never canonicalise to the
//! same bytes unless they hold the same values. Unicode is left as it is (as python-tuf does): normalising it would let
//! a byte change under a good signature.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// Reads one JSON value; a repeated name, a float, deep nesting or anything after the value is an error.
pub(super) fn parse_strict(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Strict>(bytes).map(|strict| strict.0)
}

/// The canonical form of a value from [`parse_strict`], or of one built from integers, text and lists.
pub(super) fn canonical(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend(b"null"),
        Value::Bool(value) => out.extend(value.to_string().bytes()),
        Value::Number(number) => {
            assert!(!number.is_f64(), "nothing signed has a float");
            out.extend(number.to_string().bytes());
        }
        Value::String(text) => write_text(text, out),
        Value::Array(items) => write_list(out, b'[', b']', items, write_canonical),
        Value::Object(fields) => {
            let write = |(name, value): (&String, &Value), out: &mut Vec<u8>| {
                write_text(name, out);
                out.push(b':');
                write_canonical(value, out);
            };
            // They are, unless a build keeps fields in the order of their text.
            if fields.keys().is_sorted() {
                write_list(out, b'{', b'}', fields, write);
            } else {
                write_list(out, b'{', b'}', fields.iter().collect::<BTreeMap<_, _>>(), write);
            }
        }
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|b| matches!(b, b'"' | b'\\')) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(&[b'\\', rest[at]]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn write_list<T>(
    out: &mut Vec<u8>,
    open: u8,
    close: u8,
    items: impl IntoIterator<Item = T>,
    write: impl Fn(T, &mut Vec<u8>),
) {
    out.push(open);
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(item, out);
    }
    out.push(close);
}

/// A JSON value whose reader refuses what `serde_json::Value` lets pass.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without floats and without repeated names")
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict(Number::from(value).into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict(Number::from(value).into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Strict, E> {
        Ok(Strict(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Strict(items.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        let mut fields = Map::new();
        while let Some((name, Strict(value))) = map.next_entry::<String, Strict>()? {
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format_args!("the name {name:?} is repeated")));
            }
            fields.insert(name, value);
        }
        Ok(Strict(fields.into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize as _;
    use serde_json::json;

    use super::*;

    /// The published crate, which differs from us only in normalising text that is not ASCII.
    fn oracle(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        let formatter = olpc_cjson::CanonicalFormatter::new();
        value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
            .unwrap();
        out
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "[ -~\\n\\t]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a-z_]{0,6}", inner, 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn what_json_readers_disagree_about_is_refused() {
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1.0}"#,
            r#"{"a":1e3}"#,
            r#"{"a":-0}"#,
            "{} x",
            "[99999999999999999999]",
        ] {
            assert!(parse_strict(bad.as_bytes()).is_err(), "{bad} was accepted");
        }
        assert!(parse_strict("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn canonical_json_has_its_golden_bytes() {
        let value = json!({"b": [1, -2, true, null], "a": {"\"quoted\\": "line\nbreak", "é": "e\u{301}"}, "": ""});
        assert_eq!(
            canonical(&value),
            include_bytes!("../../tests/golden/canonical.json.bin")
        );
    }

    proptest! {
        #[test]
        fn canonical_json_agrees_with_the_published_crate(value in any_value()) {
            prop_assert_eq!(canonical(&value), oracle(&value));
        }

        #[test]
        fn reading_back_gives_the_same_canonical_bytes(value in any_value()) {
            let text = serde_json::to_vec_pretty(&value).unwrap();
            prop_assert_eq!(canonical(&parse_strict(&text).unwrap()), canonical(&value));
        }

        #[test]
        fn strict_parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[{}\\],:\"a1.e-]{0,64}") {
            let _ = parse_strict(&bytes);
            let _ = parse_strict(text.as_bytes());
        }
    }
}
