//! Alerts: PagerDuty's Events API v2 and Opsgenie's Alert API. A notice opens or closes the alert of what it is about; one that
//! does neither is not sent.

use firmesh_protocol::time::WallTime;
use reqwest::{Client, StatusCode, Url, header};
use serde_json::{Map, Value, json};

use super::{SendError, below, exchange, hidden, judge, post};
use crate::notify::{
    config::Http,
    course::Outcome,
    notice::{Alert, Message, NoticeKind, Severity},
    secret::Secret,
};

/// PagerDuty takes so much of a summary.
const PAGERDUTY_SUMMARY_MAX: usize = 1_024;
/// And so long a key.
const PAGERDUTY_KEY_MAX: usize = 255;
/// Opsgenie takes so much of a message.
const OPSGENIE_MESSAGE_MAX: usize = 130;
/// And so long an alias.
const OPSGENIE_ALIAS_MAX: usize = 512;

pub(super) async fn pagerduty(
    client: &Client,
    http: &Http,
    routing_key: &Secret,
    message: &Message,
    now: WallTime,
) -> Result<Outcome, SendError> {
    let key = routing_key.read()?;
    let mut outcome = Outcome::Delivered;
    for alert in alerts(message) {
        let body = match alert {
            Alert::Trigger(about) => json!({
                "routing_key": key.as_str(),
                "event_action": "trigger",
                "dedup_key": dedup(message, &about, PAGERDUTY_KEY_MAX),
                "client": "Firmesh",
                "payload": {
                    "summary": shortened(&message.notice.summary(), PAGERDUTY_SUMMARY_MAX),
                    "source": message.source,
                    "severity": message.notice.kind.severity(),
                    "timestamp": message.at,
                    "component": message.notice.subject(),
                    "class": message.notice.kind.as_str(),
                    "custom_details": message.facts(),
                },
            }),
            Alert::Resolve(about) => json!({
                "routing_key": key.as_str(),
                "event_action": "resolve",
                "dedup_key": dedup(message, &about, PAGERDUTY_KEY_MAX),
            }),
        };
        outcome = exchange(post(client, http.url.clone(), &body), now).await;
        if outcome != Outcome::Delivered {
            break;
        }
    }
    Ok(outcome)
}

pub(super) async fn opsgenie(
    client: &Client,
    http: &Http,
    api_key: &Secret,
    message: &Message,
    now: WallTime,
) -> Result<Outcome, SendError> {
    let authorization = hidden(&format!("GenieKey {}", api_key.read()?.as_str()))?;
    let mut outcome = Outcome::Delivered;
    for alert in alerts(message) {
        let (url, body, is_close) = match alert {
            Alert::Trigger(about) => (http.url.clone(), opsgenie_alert(message, &about), false),
            Alert::Resolve(about) => {
                let note = json!({ "source": "Firmesh", "note": message.notice.summary() });
                (
                    closing(&http.url, &dedup(message, &about, OPSGENIE_ALIAS_MAX)),
                    note,
                    true,
                )
            }
        };
        let request = post(client, url, &body).header(header::AUTHORIZATION, authorization.clone());
        outcome = match request.send().await {
            // There is no such alert, so it is closed.
            Ok(answer) if is_close && answer.status() == StatusCode::NOT_FOUND => Outcome::Delivered,
            Ok(answer) => judge(answer, now).await,
            Err(error) => Outcome::failed(crate::telemetry::chain(&error.without_url())),
        };
        if outcome != Outcome::Delivered {
            break;
        }
    }
    Ok(outcome)
}

fn opsgenie_alert(message: &Message, about: &str) -> Value {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let facts = message.facts();
    let details: Map<_, _> = facts
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), text(value).into()))
        .collect();
    let priority = match message.notice.kind.severity() {
        Severity::Critical => "P1",
        Severity::Error => "P2",
        Severity::Warning => "P3",
        Severity::Info => "P5",
    };
    json!({
        "message": shortened(&message.notice.summary(), OPSGENIE_MESSAGE_MAX),
        "alias": dedup(message, about, OPSGENIE_ALIAS_MAX),
        "description": message.notice.reason,
        "priority": priority,
        "source": "Firmesh",
        "entity": message.notice.subject(),
        "tags": [message.notice.kind.as_str()],
        "details": details,
    })
}

fn closing(url: &Url, alias: &str) -> Url {
    let mut url = below(url, &[alias, "close"]);
    url.query_pairs_mut().append_pair("identifierType", "alias");
    url
}

/// A test opens an alert and closes it, so that nobody has to tidy up.
fn alerts(message: &Message) -> Vec<Alert> {
    let alert = message.notice.alert();
    match (message.notice.kind, alert) {
        (NoticeKind::Test, Some(Alert::Trigger(about))) => vec![Alert::Trigger(about.clone()), Alert::Resolve(about)],
        (_, alert) => alert.into_iter().collect(),
    }
}

/// The alert's key: two fleets with campaigns of the same name have two alerts.
fn dedup(message: &Message, about: &str, most: usize) -> String {
    shortened(&format!("{}:{about}", message.source), most)
}

fn shortened(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
