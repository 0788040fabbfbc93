//! What the faults of the catalogue do to the words on the wire: status codes, missing fields, connections that break.

use std::sync::atomic::Ordering::Relaxed;

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use firmesh_simulations::device::{
    Bmc,
    faulty::{Fault, Trouble},
};
use serde_json::{Value, json};

use super::{
    bmc::{ROOT, Server, problem},
    now_ms,
};

/// The task of an update that somebody else has begun.
pub(super) const ANOTHER: &str = "another";
/// The largest answer that is rewritten: ours are all small.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// One answer in so many is an error, where answers are errors at times.
const ERROR_EVERY: u64 = 7;

/// Stands before every answer of a BMC.
pub(super) async fn misbehave(State(server): Server, request: Request, next: Next) -> Response {
    let (trouble, fault) = server.with(|bmc| (bmc.trouble(now_ms()), bmc.fault()));
    let nth = server.answered.fetch_add(1, Relaxed);
    if let Some(trouble) = trouble {
        let in_html = matches!(fault, Some(Fault::HtmlErrorPages | Fault::GatewayTimeouts));
        return if in_html {
            html(trouble)
        } else {
            trouble_answer(trouble)
        };
    }
    let is_get = request.method() == Method::GET;
    let path = request.uri().path().to_owned();
    match fault {
        Some(Fault::ServerErrorsAtTimes) if is_get && nth % ERROR_EVERY == ERROR_EVERY - 1 => {
            return problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The request failed due to an internal service error.",
            );
        }
        Some(Fault::IfMatchRefused)
            if path.contains("/Actions/") && request.headers().contains_key(header::IF_MATCH) =>
        {
            return problem(
                StatusCode::PRECONDITION_FAILED,
                "The ETag supplied did not match the ETag required to change this resource.",
            );
        }
        Some(Fault::LocationElsewhere) if path.ends_with("/TaskMonitor") => {
            let id = path
                .trim_end_matches("/TaskMonitor")
                .rsplit('/')
                .next()
                .unwrap_or_default();
            return monitor(&server, id);
        }
        _ => {}
    }
    let answer = next.run(request).await;
    match fault {
        Some(Fault::NoLocation) if answer.status() == StatusCode::ACCEPTED => without_location(answer),
        Some(Fault::LocationElsewhere) if answer.status() == StatusCode::ACCEPTED => located_elsewhere(answer),
        Some(Fault::NullsForListsAndNumbers) if is_get => rewritten(answer, nulls).await,
        Some(Fault::PushUriOnly) if path == format!("{ROOT}/UpdateService") => rewritten(answer, push_uri_only).await,
        _ => answer,
    }
}

/// Ends the connection before the answer is whole.
pub(super) fn broken_off() -> Response {
    let nothing = futures_util::stream::once(async { Err::<Vec<u8>, _>(std::io::Error::other("the BMC went away")) });
    Response::new(Body::from_stream(nothing))
}

pub(super) fn trouble_answer(trouble: Trouble) -> Response {
    let status = StatusCode::from_u16(trouble.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = problem(status, trouble.words);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        answer
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

fn html(trouble: Trouble) -> Response {
    let status = StatusCode::from_u16(trouble.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let words = trouble.words;
    let page =
        format!("<!DOCTYPE HTML>\n<html><head><title>{words}</title></head><body><h1>{words}</h1></body></html>\n");
    (status, [(header::CONTENT_TYPE, "text/html")], page).into_response()
}

/// The name of the component's entry in the inventory; none where there is none.
pub(super) fn inventory_id(bmc: &Bmc, now_ms: u64) -> Option<String> {
    let component = bmc.settings.identity.component.to_string();
    match bmc.fault() {
        Some(Fault::InventoryRenamed) if bmc.has_started_an_image() => Some(format!("FW_{component}_0")),
        Some(Fault::VersionGone | Fault::VersionMissingForAMinute) if bmc.told_version(now_ms).is_none() => None,
        _ => Some(component),
    }
}

pub(super) fn another_task(at_work: bool) -> Value {
    json!({
        "@odata.id": format!("{ROOT}/TaskService/Tasks/{ANOTHER}"),
        "Id": ANOTHER,
        "Name": "Firmware update",
        "TaskState": if at_work { "Running" } else { "UserIntervention" },
        "Messages": [{ "Message": if at_work { "Lifecycle Controller in use." } else { "Task successfully scheduled." } }],
        "Payload": { "TargetUri": format!("{ROOT}/UpdateService") },
    })
}

pub(super) fn answers_without_a_body(bmc: &Bmc) -> bool {
    bmc.fault() == Some(Fault::TaskAnswersWithoutABody)
}

/// Why a request to pull is refused, if it is.
pub(super) fn refuses_simple_update(bmc: &Bmc, body: &Value) -> Option<&'static str> {
    match bmc.fault()? {
        Fault::TransferProtocolRequired if body.get("TransferProtocol").is_none() => {
            Some("The property TransferProtocol is a required property and must be included in the request.")
        }
        Fault::HttpsPullRefused => {
            Some("The value HTTPS for the property TransferProtocol is not in the list of acceptable values.")
        }
        Fault::ApplyTimeRefused if body.get("@Redfish.OperationApplyTime").is_some() => {
            Some("The property @Redfish.OperationApplyTime is not in the list of valid properties.")
        }
        _ => None,
    }
}

fn monitor(server: &super::bmc::BmcServer, id: &str) -> Response {
    server.with(|bmc| match id.parse().ok().and_then(|id| bmc.task(id)) {
        None => problem(StatusCode::NOT_FOUND, "no such monitor"),
        Some(task) if task.is_active() => StatusCode::ACCEPTED.into_response(),
        Some(_) => StatusCode::NO_CONTENT.into_response(),
    })
}

fn without_location(mut answer: Response) -> Response {
    answer.headers_mut().remove(header::LOCATION);
    answer
}

/// The monitor stands beside the task, and the answer's body is empty.
fn located_elsewhere(answer: Response) -> Response {
    let location = answer
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok());
    let id = location
        .and_then(|location| location.rsplit('/').next())
        .unwrap_or_default();
    let location = format!("{ROOT}/TaskService/{id}/TaskMonitor");
    (StatusCode::ACCEPTED, [(header::LOCATION, location)]).into_response()
}

async fn rewritten(answer: Response, change: impl FnOnce(&mut Value)) -> Response {
    let (mut head, body) = answer.into_parts();
    let Ok(bytes) = to_bytes(body, ANSWER_BYTES_MAX).await else {
        return broken_off();
    };
    let Ok(mut value) = serde_json::from_slice(&bytes) else {
        return (head, bytes).into_response();
    };
    change(&mut value);
    head.headers.remove(header::CONTENT_LENGTH);
    (head, value.to_string()).into_response()
}

fn push_uri_only(service: &mut Value) {
    if let Some(service) = service.as_object_mut() {
        service.remove("Actions");
        service.remove("MultipartHttpPushUri");
        service.insert("HttpPushUri".to_owned(), format!("{ROOT}/UpdateService/update").into());
    }
}

/// What has no value is there all the same.
fn nulls(resource: &mut Value) {
    let Some(resource) = resource.as_object_mut() else {
        return;
    };
    for (name, value) in resource.iter_mut() {
        let is_empty = value.as_array().is_some_and(Vec::is_empty);
        if is_empty || matches!(name.as_str(), "PercentComplete" | "Messages" | "MaxImageSizeBytes") {
            *value = Value::Null;
        }
    }
}
