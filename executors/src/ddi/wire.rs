//! What goes over the wire: what devices say, read with bounds and with patience, and what they are answered.
//!
//! Clients in the field send an `id` as a number or as text, control characters within text, and details without end. What
//! cannot be misunderstood is tolerated; what is kept of it is short.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::ledger::Action;

/// The longest body that is read: SWUpdate sends 48 lines of its log at once.
pub const BODY_BYTES_MAX: usize = 128 << 10;

/// The most attributes of one device, and the longest of their names and values.
const ATTRIBUTES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 512;

/// What is kept of the details of a feedback.
const MESSAGE_BYTES_MAX: usize = 400;

/// A body that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON of this shape.
    #[error("the body is not what the DDI has here: {0}")]
    Malformed(String),
    /// More or longer attributes than are kept.
    #[error(
        "a device has at most {ATTRIBUTES_MAX} attributes, with names up to {NAME_BYTES_MAX} and values up to {VALUE_BYTES_MAX} bytes"
    )]
    TooMuch,
}

/// What a device says of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feedback {
    pub(super) is_over: bool,
    /// Refused, called off or failed.
    pub(super) is_bad: bool,
    /// Steps done, and steps in all.
    pub(super) progress: Option<(u32, u32)>,
    /// Its last words.
    pub(super) message: String,
}

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigData {
    pub(super) mode: Mode,
    pub(super) data: BTreeMap<String, String>,
}

/// What becomes of the attributes that were known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    #[default]
    Merge,
    Replace,
    Remove,
}

#[derive(Deserialize)]
struct FeedbackBody {
    status: StatusBody,
}

#[derive(Deserialize)]
struct StatusBody {
    execution: Execution,
    #[serde(default)]
    result: Option<ResultBody>,
    #[serde(default)]
    details: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Execution {
    Closed,
    Proceeding,
    Canceled,
    Scheduled,
    Rejected,
    Resumed,
    Download,
    Downloaded,
}

#[derive(Deserialize)]
struct ResultBody {
    #[serde(default)]
    finished: Option<Finished>,
    #[serde(default)]
    progress: Option<ProgressBody>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Finished {
    Success,
    Failure,
    None,
}

#[derive(Deserialize)]
struct ProgressBody {
    #[serde(default)]
    cnt: Option<u32>,
    #[serde(default)]
    of: Option<u32>,
}

#[derive(Deserialize)]
struct ConfigDataBody {
    #[serde(default)]
    mode: Option<Mode>,
    data: BTreeMap<String, Value>,
}

impl Feedback {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        let FeedbackBody { status } = read(body)?;
        let (finished, progress) = status
            .result
            .map_or((None, None), |result| (result.finished, result.progress));
        let progress = progress.and_then(|progress| Some((progress.cnt?, progress.of?)));
        let (is_over, is_bad) = match status.execution {
            // hawkBit takes an end without a verdict for a good one; the version that is read back decides anyway.
            Execution::Closed => (true, finished == Some(Finished::Failure)),
            Execution::Canceled | Execution::Rejected => (true, true),
            Execution::Proceeding
            | Execution::Scheduled
            | Execution::Resumed
            | Execution::Download
            | Execution::Downloaded => (false, false),
        };
        let message = status.details.as_ref().map(last_words).unwrap_or_default();
        Ok(Self {
            is_over,
            is_bad,
            progress,
            message,
        })
    }
}

impl ConfigData {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        let ConfigDataBody { mode, data } = read(body)?;
        let mut attributes = BTreeMap::new();
        for (name, value) in data {
            let value = match value {
                Value::String(text) => text,
                Value::Null => String::new(),
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                Value::Array(_) | Value::Object(_) => {
                    return Err(BodyError::Malformed(format!(
                        "the attribute {:?} is not text",
                        cut(&name, NAME_BYTES_MAX)
                    )));
                }
            };
            if name.len() > NAME_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
                return Err(BodyError::TooMuch);
            }
            attributes.insert(name, value);
        }
        if attributes.len() > ATTRIBUTES_MAX {
            return Err(BodyError::TooMuch);
        }
        Ok(Self {
            mode: mode.unwrap_or_default(),
            data: attributes,
        })
    }

    /// The attributes after this, as far as they are not too many.
    pub(super) fn applied_to(self, known: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, BodyError> {
        let mut attributes = match self.mode {
            Mode::Replace => BTreeMap::new(),
            Mode::Merge | Mode::Remove => known.clone(),
        };
        match self.mode {
            Mode::Remove => attributes.retain(|name, _| !self.data.contains_key(name)),
            Mode::Merge | Mode::Replace => attributes.extend(self.data),
        }
        if attributes.len() > ATTRIBUTES_MAX {
            return Err(BodyError::TooMuch);
        }
        Ok(attributes)
    }
}

/// Control characters in the midst of text are what some clients send; outside of text they are blanks in any case.
fn read<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, BodyError> {
    let text: String = String::from_utf8_lossy(body)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    serde_json::from_str(&text).map_err(|error| BodyError::Malformed(error.to_string()))
}

fn last_words(details: &Value) -> String {
    let all: Vec<&str> = match details {
        Value::String(text) => vec![text],
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut kept = Vec::new();
    let mut room = MESSAGE_BYTES_MAX;
    for line in all.iter().rev().map(|line| line.trim()).filter(|line| !line.is_empty()) {
        let line = cut(line, room);
        room = room.saturating_sub(line.len() + 2);
        kept.push(line);
        if room == 0 {
            break;
        }
    }
    kept.reverse();
    kept.join("; ").replace(char::is_control, " ")
}

fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The answer to a device that asks whether there is something: `links` by name, and when to ask again.
pub(super) fn controller_base(poll_s: u64, links: &[(&str, String)]) -> Value {
    let links: serde_json::Map<_, _> = links
        .iter()
        .map(|(name, href)| ((*name).to_owned(), json!({ "href": href })))
        .collect();
    let sleep = format!("{:02}:{:02}:{:02}", poll_s / 3600, poll_s / 60 % 60, poll_s % 60);
    json!({ "config": { "polling": { "sleep": sleep } }, "_links": links })
}

/// What is to be installed, and where it is.
pub(super) fn deployment(action: &Action, file_name: &str, href: &str) -> Value {
    // Clients take a link by the name that fits their configuration, and none of the other.
    let link = if href.starts_with("https:") {
        "download"
    } else {
        "download-http"
    };
    json!({
        "id": action.id.to_string(),
        "deployment": {
            "download": "forced",
            "update": "forced",
            "chunks": [{
                // Zephyr's client takes no other.
                "part": "bApp",
                "version": action.version,
                "name": action.name,
                "artifacts": [{
                    "filename": file_name,
                    "hashes": { "sha1": action.sha1, "md5": action.md5, "sha256": action.sha256.to_string() },
                    "size": action.length,
                    "_links": { link: { "href": href } },
                }],
            }],
        },
    })
}

/// What is not to be installed any more.
pub(super) fn cancellation(action: &Action) -> Value {
    let id = action.id.to_string();
    json!({ "id": id, "cancelAction": { "stopId": id } })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// SWUpdate 2022.12 word for word: the id is a number, there is a tab in a detail.
    #[test]
    fn what_clients_send_is_understood() {
        let body = b"{ \"id\": 7, \"time\": \"20260101T000000\", \"status\": { \"result\": { \"progress\": { \"cnt\" : 1, \"of\" : 1 },\
            \"finished\": \"none\" }, \"execution\": \"proceeding\", \"details\" : [ \"All\tChunks\", \"Installed.\" ] } }";
        let said = Feedback::parse(body).unwrap();
        let message = "All Chunks; Installed.".to_owned();
        assert_eq!(
            said,
            Feedback {
                is_over: false,
                is_bad: false,
                progress: Some((1, 1)),
                message
            }
        );
        let closed = |finished: &str| {
            let body = format!(
                r#"{{"id":"7","status":{{"execution":"closed","result":{{"finished":"{finished}"}},"details":null}}}}"#
            );
            Feedback::parse(body.as_bytes()).map(|said| (said.is_over, said.is_bad))
        };
        assert_eq!(closed("success"), Ok((true, false)));
        assert_eq!(closed("none"), Ok((true, false)));
        assert_eq!(closed("failure"), Ok((true, true)));
        assert!(closed("perhaps").is_err());
        let rejected = Feedback::parse(br#"{"status":{"execution":"rejected","details":"no room"}}"#).unwrap();
        assert!(rejected.is_over && rejected.is_bad && rejected.message == "no room");
        for bad in [
            "",
            "{}",
            "[]",
            "{\"status\":{}}",
            "{\"status\":{\"execution\":\"dance\"}}",
            "{\"status\":{\"execution\":\"closed\",\"result\":{\"progress\":{\"cnt\":-1}}}}",
        ] {
            assert!(Feedback::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn attributes_are_merged_replaced_and_removed_within_bounds() {
        let known = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let after = |body: &str| {
            let data = ConfigData::parse(body.as_bytes())?.applied_to(&known)?;
            Ok::<_, BodyError>(data.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>())
        };
        assert_eq!(after(r#"{"data":{"b":3,"c":true}}"#).unwrap(), ["a=1", "b=3", "c=true"]);
        assert_eq!(after(r#"{"mode":"replace","data":{"c":"x"}}"#).unwrap(), ["c=x"]);
        assert_eq!(after(r#"{"mode":"remove","data":{"a":""}}"#).unwrap(), ["b=2"]);
        assert!(after(r#"{"data":{"a":{}}}"#).is_err());
        assert!(after(r#"{"mode":"shuffle","data":{}}"#).is_err());
        let many: BTreeMap<_, _> = (0..63).map(|i| (format!("n{i}"), "")).collect();
        assert_eq!(
            after(&json!({ "data": many }).to_string()),
            Err(BodyError::TooMuch),
            "with those known"
        );
        let long = json!({ "data": { "a": "x".repeat(513) } }).to_string();
        assert_eq!(after(&long), Err(BodyError::TooMuch));
    }

    #[test]
    fn a_day_is_told_as_hours() {
        let sleep = |poll_s| controller_base(poll_s, &[])["config"]["polling"]["sleep"].clone();
        assert_eq!(sleep(5), "00:00:05");
        assert_eq!(sleep(3_725), "01:02:05");
        assert_eq!(sleep(86_399), "23:59:59");
    }

    proptest! {
        #[test]
        fn no_body_is_too_odd(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            Feedback::parse(&body).ok();
            ConfigData::parse(&body).ok();
        }

        #[test]
        fn what_is_kept_of_details_is_short(lines in proptest::collection::vec(".{0,300}", 0..20)) {
            let body = json!({ "status": { "execution": "proceeding", "details": lines } }).to_string();
            let said = Feedback::parse(body.as_bytes()).unwrap();
            prop_assert!(said.message.len() <= MESSAGE_BYTES_MAX && !said.message.contains(char::is_control));
        }
    }
}
