//! Inputs that are nearly right: bytes changed as bytes, and JSON changed as JSON, so that what is changed is still read.
//!
//! The same seeds and the same generator give the same inputs.

use fastrand::Rng;
use serde_json::{Map, Value};

/// Inputs grow no longer than this, whatever is repeated or spliced in.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Numbers at which readers go wrong.
const NUMBERS: [i64; 12] = [
    0,
    1,
    -1,
    127,
    255,
    256,
    65_535,
    u32::MAX as i64,
    1 << 53,
    253_402_300_800,
    i64::MAX,
    i64::MIN,
];

/// Texts at which readers go wrong.
const TEXTS: [&str; 20] = [
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/",
    "a/",
    "\0",
    "\u{feff}a",
    "\u{202e}abc",
    "é\u{301}",
    "😀",
    "0",
    "-1",
    "00",
    "1e999",
    "18446744073709551616",
    "9999-12-31T23:59:59Z",
    "2026-02-30T00:00:00Z",
    "=",
];

/// Pieces of bytes that mean something to one reader or another.
const TOKENS: [&[u8]; 22] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b",",
    b":",
    b"null",
    b"1e999",
    b"0.5",
    b"-0",
    b"\\ud800",
    b"\\u0000",
    b"\n",
    b"\n\n",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80",
    b"\x30\x84\xff\xff\xff\xff",
    b"\x30\x80",
    "\u{2014} ".as_bytes(),
];

/// An input to start from.
#[derive(Debug, Clone)]
pub(super) struct Seed {
    bytes: Vec<u8>,
    json: Option<Value>,
}

impl Seed {
    /// A good input.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let json = serde_json::from_slice(&bytes).ok();
        Self { bytes, json }
    }
}

/// Makes an input from one of the seeds, with parts of the others.
pub(super) fn mutated(seeds: &[Seed], rng: &mut Rng) -> Vec<u8> {
    let (seed, other) = (&seeds[rng.usize(..seeds.len())], &seeds[rng.usize(..seeds.len())]);
    let mut bytes = match &seed.json {
        Some(json) if rng.u8(..) < 160 => {
            let mut json = json.clone();
            for _ in 0..=rng.u8(..3) {
                change(&mut json, other.json.as_ref(), rng);
            }
            serde_json::to_vec(&json).expect("a JSON value always encodes")
        }
        _ => seed.bytes.clone(),
    };
    if seed.json.is_none() || rng.u8(..) < 100 {
        for _ in 0..=rng.u8(..4) {
            scramble(&mut bytes, &other.bytes, rng);
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// Changes bytes without regard to what they say.
fn scramble(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.usize(..=bytes.len());
    let length = (1 << rng.u32(..10)).min(bytes.len() - at);
    let end = at + rng.usize(..=length);
    match rng.u8(..10) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 if bytes.len() < INPUT_BYTES_MAX => bytes.extend_from_within(at..end),
        3 => drop(bytes.splice(at..at, TOKENS[rng.usize(..TOKENS.len())].iter().copied())),
        4 => drop(bytes.splice(
            at..at,
            std::iter::repeat_with(|| rng.u8(..)).take(8).collect::<Vec<_>>(),
        )),
        5 if !other.is_empty() => {
            let from = rng.usize(..other.len());
            let to = from + rng.usize(..=other.len() - from);
            drop(bytes.splice(at..end, other[from..to].iter().copied()));
        }
        6 => {
            let number = NUMBERS[rng.usize(..NUMBERS.len())].to_le_bytes();
            for (byte, with) in bytes[at..end].iter_mut().zip(number) {
                *byte = with;
            }
        }
        7 => {
            let Some(byte) = bytes.get_mut(at) else { return };
            *byte = byte.wrapping_add(if rng.bool() { 1 } else { 255 });
        }
        8 => {
            let Some(byte) = bytes.get_mut(at) else { return };
            *byte = rng.u8(..);
        }
        _ => {
            let Some(byte) = bytes.get_mut(at) else { return };
            *byte ^= 1 << rng.u8(..8);
        }
    }
}

/// Changes one place of a JSON value.
fn change(value: &mut Value, other: Option<&Value>, rng: &mut Rng) {
    match value {
        // Down, most of the time.
        Value::Array(items) if !items.is_empty() && rng.u8(..) < 210 => {
            let at = rng.usize(..items.len());
            match rng.u8(..12) {
                0 => drop(items.remove(at)),
                1 => {
                    let copies = 1 << rng.u32(..8);
                    let item = items[at].clone();
                    items.extend(std::iter::repeat_n(item, copies));
                }
                2 => items.swap(0, at),
                _ => change(&mut items[at], other, rng),
            }
        }
        Value::Object(fields) if !fields.is_empty() && rng.u8(..) < 230 => change_field(fields, other, rng),
        Value::String(text) if rng.u8(..) < 180 => change_text(text, rng),
        Value::Number(number) if rng.u8(..) < 180 => {
            let step = NUMBERS[rng.usize(..NUMBERS.len())];
            let changed = match number.as_i64() {
                Some(known) if rng.bool() => known.wrapping_add(if rng.bool() { 1 } else { -1 }),
                Some(known) if rng.bool() => known.wrapping_add(step),
                _ => step,
            };
            *value = changed.into();
        }
        _ => *value = foreign(other, rng),
    }
}

fn change_field(fields: &mut Map<String, Value>, other: Option<&Value>, rng: &mut Rng) {
    let at = rng.usize(..fields.len());
    let Some(name) = fields.keys().nth(at).cloned() else {
        return;
    };
    match rng.u8(..14) {
        0 => drop(fields.remove(&name)),
        1 => {
            let mut renamed = name.clone();
            change_text(&mut renamed, rng);
            if let Some(field) = fields.remove(&name) {
                fields.insert(renamed, field);
            }
        }
        2 => drop(fields.insert(TEXTS[rng.usize(..TEXTS.len())].to_owned(), foreign(other, rng))),
        _ => change(&mut fields[&name], other, rng),
    }
}

fn change_text(text: &mut String, rng: &mut Rng) {
    let mut places = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    let at = rng.usize(..=text.chars().count());
    let at = places.nth(at).unwrap_or_default();
    match rng.u8(..8) {
        0 => *text = TEXTS[rng.usize(..TEXTS.len())].to_owned(),
        1 => text.insert_str(at, TEXTS[rng.usize(..TEXTS.len())]),
        2 => text.truncate(at),
        3 => *text = text.repeat(1 << rng.u32(..6)),
        4 => *text = text.to_uppercase(),
        5 if at < text.len() => drop(text.remove(at)),
        _ => {
            if at < text.len() {
                text.remove(at);
            }
            text.insert(at, char::from(rng.u8(b' '..=b'~')));
        }
    }
    if text.len() > INPUT_BYTES_MAX {
        text.clear();
    }
}

/// A value that does not belong here: a part of another seed, or one of those that readers trip over.
fn foreign(other: Option<&Value>, rng: &mut Rng) -> Value {
    match rng.u8(..8) {
        0 => Value::Null,
        1 => Value::Bool(rng.bool()),
        2 => NUMBERS[rng.usize(..NUMBERS.len())].into(),
        3 => u64::MAX.into(),
        4 => TEXTS[rng.usize(..TEXTS.len())].into(),
        5 => {
            let deep = rng.usize(..200);
            (0..deep).fold(Value::Null, |inside, _| Value::Array(vec![inside]))
        }
        _ => other.map_or(Value::Null, |other| part_of(other, rng)),
    }
}

fn part_of(value: &Value, rng: &mut Rng) -> Value {
    let inside = match value {
        Value::Array(items) if !items.is_empty() => items.get(rng.usize(..items.len())),
        Value::Object(fields) if !fields.is_empty() => fields.values().nth(rng.usize(..fields.len())),
        _ => None,
    };
    match inside {
        Some(inside) if rng.u8(..) < 200 => part_of(inside, rng),
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_generator_makes_the_same_inputs_and_most_of_them_are_new() {
        let seeds = [
            Seed::new(br#"{"a":[1,"x"],"b":{"c":null}}"#.to_vec()),
            Seed::new(vec![7; 40]),
        ];
        let run = || {
            let mut rng = Rng::with_seed(3);
            (0..2_000).map(|_| mutated(&seeds, &mut rng)).collect::<Vec<_>>()
        };
        let inputs = run();
        assert_eq!(inputs, run());
        let known: std::collections::BTreeSet<_> = inputs.iter().collect();
        assert!(known.len() > 1_000, "only {} of 2000 are different", known.len());
        let still_json = inputs
            .iter()
            .filter(|input| serde_json::from_slice::<Value>(input).is_ok());
        assert!(still_json.count() > 300);
        assert!(inputs.iter().all(|input| input.len() <= INPUT_BYTES_MAX));
    }
}
