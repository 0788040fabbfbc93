//! Versions: how vendors number them, and which of two is the later one.
//!
//! Invariants: equal texts are equal under every scheme; what a scheme cannot read has no order with anything else; what it
//! can read is ordered without circles, whatever the size of its numbers. Who needs an order and gets none has to hold.
//!
//! The schemes are those of Redfish (`VersionScheme`): `sem_ver`, `dotted` (`DotIntegerNotation`) and `oem`, and `pattern`,
//! which says as data how a vendor writes its versions.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// Bytes of a pattern: as long as a version may be.
const PATTERN_BYTES_MAX: usize = 128;

/// How versions are written, and so how they are compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VersionScheme {
    /// Semantic versioning 2.0.0: `1.4.0-rc.1+build`; what follows a plus sign orders nothing.
    SemVer,
    /// Whole numbers between dots, any number of them: `7.10.30.00`. Those that are missing at the end are 0.
    Dotted,
    /// Numbers and words in any notation: `U46 v2.42`. Numbers are compared from left to right, each with the one letter
    /// that may follow it (`2.42a` is after `2.42`); where two versions have different words, neither is later.
    Oem,
    /// Text in which `{n}` stands for a number that counts, from left to right, `{=}` for text that has to be the same in
    /// both versions, and `{*}` for text that does not matter: `{=} v{n}.{n} ({*})`.
    Pattern(String),
}

impl VersionScheme {
    /// Which version is the later one; nothing if the scheme does not say.
    #[must_use]
    pub fn compare(&self, a: &str, b: &str) -> Option<Ordering> {
        if a == b {
            return Some(Ordering::Equal);
        }
        match self {
            Self::SemVer => Some(SemVer::read(a)?.cmp(&SemVer::read(b)?)),
            Self::Dotted => Some(compare_padded(&dotted(a)?, &dotted(b)?)),
            Self::Oem => compare_tokens(&tokens(a)?, &tokens(b)?),
            Self::Pattern(pattern) => {
                let fields = fields(pattern)?;
                let ((same_a, numbers_a), (same_b, numbers_b)) = (matched(&fields, a)?, matched(&fields, b)?);
                (same_a == same_b).then(|| numbers_a.cmp(&numbers_b))
            }
        }
    }

    /// Whether `version` is surely `least` or later.
    #[must_use]
    pub fn is_at_least(&self, version: &str, least: &str) -> bool {
        self.compare(version, least).is_some_and(Ordering::is_ge)
    }

    /// What is wrong with the scheme itself.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let Self::Pattern(pattern) = self else {
            return None;
        };
        if pattern.len() > PATTERN_BYTES_MAX {
            return Some(format!("is a pattern of more than {PATTERN_BYTES_MAX} bytes"));
        }
        match fields(pattern) {
            Some(fields) if fields.contains(&Field::Number) => None,
            _ => Some(format!(
                "is the pattern {pattern:?}: it needs a {{n}}, and text between any two of {{n}}, {{=}} and {{*}}"
            )),
        }
    }
}

/// A whole number of any length: its digits without leading zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number<'a>(&'a str);

impl<'a> Number<'a> {
    const ZERO: Self = Self("");

    fn read(text: &'a str) -> Option<Self> {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| Self(text.trim_start_matches('0')))
    }
}

impl Ord for Number<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0.len(), self.0).cmp(&(other.0.len(), other.0))
    }
}

impl PartialOrd for Number<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn dotted(text: &str) -> Option<Vec<Number<'_>>> {
    text.split('.').map(Number::read).collect()
}

/// Compares as if the shorter list went on with zeros.
fn compare_padded(a: &[Number<'_>], b: &[Number<'_>]) -> Ordering {
    let places = 0..a.len().max(b.len());
    places
        .map(|place| {
            a.get(place)
                .unwrap_or(&Number::ZERO)
                .cmp(b.get(place).unwrap_or(&Number::ZERO))
        })
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// A semantic version, as far as it orders.
#[derive(Debug, PartialEq, Eq)]
struct SemVer<'a> {
    core: [Number<'a>; 3],
    pre: Vec<&'a str>,
}

impl<'a> SemVer<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let is_identifier =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_plain = |part: &str| part == "0" || !part.starts_with('0');
        let (rest, build) = text
            .split_once('+')
            .map_or((text, None), |(rest, build)| (rest, Some(build)));
        if build.is_some_and(|build| !build.split('.').all(|part| is_identifier(&part))) {
            return None;
        }
        let (core, pre) = rest
            .split_once('-')
            .map_or((rest, None), |(core, pre)| (core, Some(pre)));
        let pre: Vec<_> = pre.map(|pre| pre.split('.').collect()).unwrap_or_default();
        let is_number = |part: &str| Number::read(part).is_some();
        if !pre
            .iter()
            .all(|part| is_identifier(part) && (is_plain(part) || !is_number(part)))
        {
            return None;
        }
        let parts: Vec<_> = core.split('.').collect();
        if !parts.iter().all(|part| is_plain(part)) {
            return None;
        }
        let core = parts.into_iter().map(Number::read).collect::<Option<Vec<_>>>()?;
        Some(Self {
            core: core.try_into().ok()?,
            pre,
        })
    }
}

impl Ord for SemVer<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let identifier = |a: &str, b: &str| match (Number::read(a), Number::read(b)) {
            (Some(a), Some(b)) => a.cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => a.cmp(b),
        };
        let pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let orders = self.pre.iter().zip(&other.pre).map(|(a, b)| identifier(a, b));
                let first = orders.into_iter().find(|order| order.is_ne());
                first.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        };
        self.core.cmp(&other.core).then_with(pre)
    }
}

impl PartialOrd for SemVer<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    /// With the one letter that follows it, in lower case.
    Number(Number<'a>, Option<char>),
    /// In lower case.
    Word(String),
}

/// Numbers and words; everything else only separates them. Nothing if there is no number.
fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end_of = |text: &str, is_in: fn(char) -> bool| text.find(|c| !is_in(c)).unwrap_or(text.len());
        if first.is_ascii_digit() {
            let (digits, after) = rest.split_at(end_of(rest, |c| c.is_ascii_digit()));
            let mut next = after.chars();
            let letter = next.next().filter(char::is_ascii_alphabetic);
            let letter = letter.filter(|_| !next.next().is_some_and(char::is_alphanumeric));
            found.push(Token::Number(
                Number::read(digits)?,
                letter.map(|c| c.to_ascii_lowercase()),
            ));
            rest = &after[letter.map_or(0, char::len_utf8)..];
        } else if first.is_alphabetic() {
            let (word, after) = rest.split_at(end_of(rest, char::is_alphabetic));
            found.push(Token::Word(word.to_lowercase()));
            rest = after;
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    let has_number = found.iter().any(|token| matches!(token, Token::Number(..)));
    has_number.then_some(found)
}

/// From left to right, as if the shorter list went on with zeros; up to the first place at which the two differ in a word.
fn compare_tokens(a: &[Token<'_>], b: &[Token<'_>]) -> Option<Ordering> {
    let zero = Token::Number(Number::ZERO, None);
    for place in 0..a.len().max(b.len()) {
        match (a.get(place).unwrap_or(&zero), b.get(place).unwrap_or(&zero)) {
            (Token::Number(a, of_a), Token::Number(b, of_b)) => match (a, of_a).cmp(&(b, of_b)) {
                Ordering::Equal => {}
                order => return Some(order),
            },
            (Token::Word(a), Token::Word(b)) if a == b => {}
            _ => return None,
        }
    }
    Some(Ordering::Equal)
}

#[derive(Debug, PartialEq, Eq)]
enum Field<'a> {
    Text(&'a str),
    Number,
    Same,
    Any,
}

/// The parts of a pattern; nothing if two fields stand side by side, so that it would be unclear where one ends.
fn fields(pattern: &str) -> Option<Vec<Field<'_>>> {
    let mut found = Vec::new();
    let mut rest = pattern;
    while !rest.is_empty() {
        let field = [("{n}", Field::Number), ("{=}", Field::Same), ("{*}", Field::Any)];
        let field = field.into_iter().find(|(written, _)| rest.starts_with(written));
        if let Some((written, field)) = field {
            if found.last().is_some_and(|last| !matches!(last, Field::Text(_))) {
                return None;
            }
            found.push(field);
            rest = &rest[written.len()..];
        } else {
            let starts = ["{n}", "{=}", "{*}"].iter().filter_map(|written| rest.find(written));
            let (text, after) = rest.split_at(starts.min().unwrap_or(rest.len()));
            found.push(Field::Text(text));
            rest = after;
        }
    }
    Some(found)
}

/// What a version has where the pattern says that it has to be the same, and its numbers. A field ends where the text after
/// it comes first.
fn matched<'a>(fields: &[Field<'_>], version: &'a str) -> Option<(Vec<&'a str>, Vec<Number<'a>>)> {
    let (mut same, mut numbers, mut rest) = (Vec::new(), Vec::new(), version);
    for (at, field) in fields.iter().enumerate() {
        if let Field::Text(text) = field {
            rest = rest.strip_prefix(text)?;
            continue;
        }
        let end = match fields.get(at + 1) {
            Some(Field::Text(text)) => rest.find(text)?,
            _ => rest.len(),
        };
        let (value, after) = rest.split_at(end);
        match field {
            Field::Number => numbers.push(Number::read(value)?),
            Field::Same => same.push(value),
            Field::Any | Field::Text(_) => {}
        }
        rest = after;
    }
    rest.is_empty().then_some((same, numbers))
}

#[cfg(test)]
mod tests {
    use Ordering::{Equal, Greater, Less};
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> VersionScheme {
        VersionScheme::Pattern(text.to_owned())
    }

    #[test]
    fn versions_are_ordered_as_their_vendors_count() {
        let huge = format!("1.{}.0", "9".repeat(60));
        let cases = [
            (VersionScheme::SemVer, "1.9.0", "1.10.0", Some(Less)),
            (VersionScheme::SemVer, "1.0.0-rc.2", "1.0.0-rc.10", Some(Less)),
            (VersionScheme::SemVer, "1.0.0-alpha", "1.0.0-alpha.1", Some(Less)),
            (VersionScheme::SemVer, "1.0.0-1", "1.0.0-a", Some(Less)),
            (VersionScheme::SemVer, "1.0.0", "1.0.0-rc.1", Some(Greater)),
            (VersionScheme::SemVer, "1.0.0+a", "1.0.0+b", Some(Equal)),
            (VersionScheme::SemVer, "1.0.0", &huge, Some(Less)),
            (VersionScheme::SemVer, "1.0", "1.0.0", None),
            (VersionScheme::SemVer, "1.01.0", "1.1.0", None),
            (VersionScheme::SemVer, "1.0.0-01", "1.0.0-1", None),
            (VersionScheme::SemVer, "nonsense", "nonsense", Some(Equal)),
            (VersionScheme::Dotted, "7.10.30.00", "7.9.99.99", Some(Greater)),
            (VersionScheme::Dotted, "7.10", "7.10.0.00", Some(Equal)),
            (VersionScheme::Dotted, "007.1", "7.2", Some(Less)),
            (VersionScheme::Dotted, "7.x", "7.1", None),
            (VersionScheme::Dotted, "7..1", "7.1", None),
            (VersionScheme::Oem, "U46 v2.42", "U46 v2.5", Some(Greater)),
            (VersionScheme::Oem, "U46 v2.42", "U46  V2.42", Some(Equal)),
            (VersionScheme::Oem, "A12", "A9", Some(Greater)),
            (VersionScheme::Oem, "2.42a", "2.42", Some(Greater)),
            (VersionScheme::Oem, "2.42b", "2.42A", Some(Greater)),
            (VersionScheme::Oem, "2.42", "2.42 beta", None),
            (VersionScheme::Oem, "P46 v2.42", "U46 v2.50", None),
            (VersionScheme::Oem, "gold", "silver", None),
            (
                pattern("{=} v{n}.{n} ({*})"),
                "U46 v2.42 (07/01/2021)",
                "U46 v2.44 (01/01/2020)",
                Some(Less),
            ),
            (
                pattern("{=} v{n}.{n} ({*})"),
                "U46 v2.42 (07/01/2021)",
                "U47 v2.44 (01/01/2020)",
                None,
            ),
            (
                pattern("{=} v{n}.{n} ({*})"),
                "U46 v2.42 (a)",
                "U46 v2.42 (b)",
                Some(Equal),
            ),
            (pattern("{=} v{n}.{n} ({*})"), "U46 v2.42", "U46 v2.44 (b)", None),
        ];
        for (scheme, a, b, order) in cases {
            assert_eq!(scheme.compare(a, b), order, "{scheme:?}: {a} and {b}");
            assert_eq!(
                scheme.compare(b, a),
                order.map(Ordering::reverse),
                "{scheme:?}: {b} and {a}"
            );
        }
        assert!(VersionScheme::Dotted.is_at_least("2.0", "1.9"));
        assert!(!VersionScheme::Dotted.is_at_least("unknown", "1.9"));
    }

    #[test]
    fn a_pattern_needs_a_number_and_clear_ends() {
        assert_eq!(pattern("{=} v{n}.{n}").problem(), None);
        for wrong in ["v1", "{n}{n}", "{=}{n}", "{*}"] {
            assert!(pattern(wrong).problem().is_some(), "{wrong}");
        }
        assert!(pattern(&format!("{{n}}{}", "x".repeat(200))).problem().is_some());
        assert_eq!(VersionScheme::Oem.problem(), None);
    }

    fn schemes() -> impl Strategy<Value = VersionScheme> {
        prop_oneof![
            Just(VersionScheme::SemVer),
            Just(VersionScheme::Dotted),
            Just(VersionScheme::Oem),
            Just(pattern("{n}.{=}.{n}")),
        ]
    }

    fn versions() -> impl Strategy<Value = String> {
        prop_oneof![
            "[0-9]{1,2}(\\.[0-9]{1,2}){0,3}[ab]?",
            "[0-2]\\.[0-2]\\.[0-2](-[a0-2](\\.[a0-2])?)?",
            "[UP]4 v[0-9]{1,30}\\.[0-3]{0,2}[ab]{0,2}",
            "[0-2a.\\- é]{0,6}",
        ]
    }

    proptest! {
        #[test]
        fn no_scheme_runs_in_circles(scheme in schemes(), a in versions(), b in versions(), c in versions()) {
            let (ab, bc, ac) = (scheme.compare(&a, &b), scheme.compare(&b, &c), scheme.compare(&a, &c));
            prop_assert_eq!(ab, scheme.compare(&b, &a).map(Ordering::reverse));
            prop_assert_eq!(scheme.compare(&a, &a), Some(Equal));
            if let (Some(first), Some(second)) = (ab, bc) && (first == second || second == Equal || first == Equal) {
                let whole = if first == Equal { second } else { first };
                prop_assert_eq!(ac, Some(whole), "{:?}: {} {} {}", scheme, a, b, c);
            }
        }

        #[test]
        fn dotted_versions_are_all_comparable(a in "[0-9]{1,40}(\\.[0-9]{1,3}){0,5}", b in "[0-9]{1,40}(\\.[0-9]{1,3}){0,5}") {
            prop_assert!(VersionScheme::Dotted.compare(&a, &b).is_some());
        }

        #[test]
        fn whatever_a_device_says_is_read_without_harm(scheme in schemes(), a in ".{0,40}", b in ".{0,40}") {
            let _ = scheme.compare(&a, &b);
        }
    }
}
