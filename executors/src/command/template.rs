//! Text with placeholders, as arguments and environments have it.
//!
//! Invariant: a value replaces its placeholder as it is: it is never split, quoted or looked at again.

use std::collections::BTreeMap;

/// `-p {programmer}`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Name(String),
}

/// What placeholders stand for, by name.
pub(crate) type Values = BTreeMap<String, String>;

impl Template {
    /// Takes a text apart: `{name}` is a placeholder, `{{` and `}}` are braces. The error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                plain.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                plain.push('}');
                rest = after;
            } else {
                let (name, after) = from
                    .strip_prefix('{')
                    .and_then(|inner| inner.split_once('}'))
                    .filter(|(name, _)| is_name(name))
                    .ok_or_else(|| {
                        format!("{text:?} has a brace that is no placeholder; write {{{{ or }}}} for a brace")
                    })?;
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Name(name.to_owned()));
                rest = after;
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// The placeholders in it.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Name(name) => Some(name.as_str()),
        })
    }

    /// The text with every placeholder replaced; the error is a placeholder nobody has a value for.
    pub(crate) fn fill(&self, values: &Values) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.0 {
            text.push_str(match part {
                Part::Text(plain) => plain,
                Part::Name(name) => values.get(name).ok_or_else(|| name.clone())?,
            });
        }
        Ok(text)
    }
}

/// Whether this can name a placeholder.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let values = [("a", "1 2"), ("b", "{a}; rm")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        Template::parse(text)?.fill(&values.into_iter().collect())
    }

    #[test]
    fn placeholders_are_replaced_once_and_braces_can_be_written() {
        assert_eq!(filled("-x={a}").unwrap(), "-x=1 2");
        assert_eq!(filled("{b}{a}").unwrap(), "{a}; rm1 2");
        assert_eq!(filled("{{a}} }}{{").unwrap(), "{a} }{");
        assert_eq!(filled("").unwrap(), "");
        assert_eq!(filled("{c}").unwrap_err(), "c");
        for wrong in ["{", "}", "{a", "a}", "{}", "{A}", "{a b}", "{a{b}}"] {
            assert!(filled(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_written_and_no_text_panics(text: String) {
            drop(Template::parse(&text));
            let escaped = text.replace('{', "{{").replace('}', "}}");
            prop_assert_eq!(Template::parse(&escaped).unwrap().fill(&Values::new()).unwrap(), text);
        }
    }
}
