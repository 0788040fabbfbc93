//! Templates of mails and bodies: small Jinja templates that see a message's facts and nothing else. Bounded in steps and in
//! output; tried with every kind of notice when the configuration is read.

use std::io;

use firmesh_protocol::time::WallTime;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};

use super::notice::{Message, Notice};

/// Steps of one rendering: thousands of lines.
const STEPS_MAX: u64 = 100_000;

/// The longest text that a template makes.
const OUTPUT_BYTES_MAX: usize = 256 << 10;

/// What becomes of values on their way into the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// They stand as they are.
    None,
    /// They are encoded as JSON, quotes and all.
    Json,
}

/// Why a template gives no text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("the template cannot be used")]
    Template(#[from] minijinja::Error),
    #[error("the template makes more than {OUTPUT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the template does not make UTF-8")]
    NotText,
    #[error(
        "for an event {kind:?} the template does not make JSON; values bring their own quotes, write {{{{ summary }}}} without"
    )]
    NotJson {
        kind: &'static str,
        source: serde_json::Error,
    },
}

/// The text of a message.
pub(crate) fn render(source: &str, escape: Escape, message: &Message) -> Result<String, TemplateError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(STEPS_MAX));
    environment.set_auto_escape_callback(move |_| match escape {
        Escape::None => AutoEscape::None,
        Escape::Json => AutoEscape::Json,
    });
    let template = environment.template_from_named_str("template", source)?;
    let mut output = Bounded(Vec::new());
    let facts = minijinja::Value::from(minijinja::value::Serde(message.facts()));
    match template.render_captured_to(facts, &mut output) {
        Ok(_) => String::from_utf8(output.0).map_err(|_| TemplateError::NotText),
        Err(_) if output.0.len() >= OUTPUT_BYTES_MAX => Err(TemplateError::TooLong),
        Err(error) => Err(error.into()),
    }
}

/// Tries a template with every kind of notice.
pub(crate) fn check(source: &str, escape: Escape) -> Result<(), String> {
    for notice in Notice::samples() {
        let message = Message {
            id: "sample".to_owned(),
            number: 1,
            at: WallTime::from_unix_seconds(0),
            source: "firmesh".to_owned(),
            notice,
        };
        let tried = render(source, escape, &message).and_then(|text| match escape {
            Escape::None => Ok(()),
            Escape::Json => serde_json::from_str::<serde_json::Value>(&text)
                .map(drop)
                .map_err(|source| TemplateError::NotJson {
                    kind: message.notice.kind.as_str(),
                    source,
                }),
        });
        tried.map_err(|error| crate::telemetry::chain(&error))?;
    }
    Ok(())
}

/// Takes so much and no more; what would go beyond fills it.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(OUTPUT_BYTES_MAX - self.0.len());
        self.0.extend_from_slice(&bytes[..taken]);
        match taken == bytes.len() {
            true => Ok(taken),
            false => Err(io::Error::other("the text is too long")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::notice::NoticeKind;

    fn message(reason: &str) -> Message {
        Message {
            id: "m1".to_owned(),
            number: 7,
            at: WallTime::from_unix_seconds(0),
            source: "urn:firmesh:f".to_owned(),
            notice: Notice::new(NoticeKind::PublicationRefused, reason),
        }
    }

    #[test]
    fn what_a_json_body_inserts_cannot_break_out_of_it() {
        let hostile = "\", \"admin\": true, \"x\": \"\n\u{0}</script>";
        let source = r#"{ "text": {{ reason }}, "campaign": {{ campaign }}, "urgency": {{ 1 if severity == "critical" else 3 }} }"#;
        let text = render(source, Escape::Json, &message(hostile)).unwrap();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["text"], hostile);
        assert_eq!(
            (&read["campaign"], &read["urgency"]),
            (&serde_json::Value::Null, &3.into())
        );
        assert_eq!(read.as_object().unwrap().len(), 3);
    }

    #[test]
    fn a_slip_in_a_template_is_found_before_anything_happens() {
        assert_eq!(check("{{ summary }} {{ reason }}", Escape::None), Ok(()));
        assert_eq!(check("{\"a\": {{ summary }}}", Escape::Json), Ok(()));
        for (source, escape, said) in [
            ("{{ sumary }}", Escape::None, "undefined"),
            ("{{ summary", Escape::None, "syntax"),
            ("{% include \"secret\" %}", Escape::None, "template"),
            ("{\"a\": \"{{ summary }}\"}", Escape::Json, "bring their own quotes"),
            ("{% for i in range(100000) %}x{% endfor %}", Escape::None, "fuel"),
            (
                "{% for i in range(1000) %}{{ summary * 1000 }}{% endfor %}",
                Escape::None,
                "",
            ),
        ] {
            let problem = check(source, escape).unwrap_err();
            assert!(problem.contains(said), "{source}: {problem}");
        }
    }

    #[test]
    fn a_text_without_end_is_cut_off() {
        let long = "{% for i in range(9000) %}".to_owned() + &"x".repeat(1_000) + "{% endfor %}";
        assert!(matches!(
            render(&long, Escape::None, &message("")),
            Err(TemplateError::TooLong)
        ));
    }
}
