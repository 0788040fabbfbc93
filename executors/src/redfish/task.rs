//! What a BMC tells of an update under way: by a task, by a task's monitor, or by the update service itself.

use firmesh_executors_core::{TaskSeen, TaskState};
use reqwest::StatusCode;
use serde_json::Value;

use super::{
    client::{Answer, ClientError},
    dialect::{Dialect, TaskWords},
    wire::{Message, short},
};

/// The messages of a task that are looked at: the last ones.
const MESSAGES_MAX: usize = 64;

/// What a task or its monitor has answered; an error is what it could not be asked for.
pub(super) fn of_answer(dialect: &Dialect, answer: Result<Answer, ClientError>) -> Result<TaskSeen, ClientError> {
    let answer = match answer {
        Err(error) if error.is_status(&[404, 410]) => return Ok(told(TaskState::Gone)),
        // A monitor answers as the update itself would have: this one was refused.
        Err(ClientError::Refused { status, words, .. })
            if matches!(status, 400 | 405 | 406 | 409 | 412..=415 | 422) =>
        {
            return Ok(TaskSeen {
                name: None,
                state: TaskState::Failed,
                percent: None,
                message: format!("{status} {words}"),
            });
        }
        other => other?,
    };
    if answer.status == StatusCode::NO_CONTENT {
        return Ok(told(TaskState::Completed));
    }
    let is_under_way = answer.status == StatusCode::ACCEPTED;
    if answer.body.is_empty() {
        let state = if is_under_way {
            TaskState::Active
        } else {
            TaskState::Completed
        };
        return Ok(told(state));
    }
    let body: Value = answer.json("read the update task")?;
    if let Some(seen) = of_body(dialect, &dialect.task, &body) {
        return Ok(seen);
    }
    let kind = body.get("@odata.type").and_then(Value::as_str).unwrap_or_default();
    let is_task = kind.starts_with("#Task.") || kind.starts_with("#Job.");
    // What has no state is no task: a monitor whose operation is over shows what came of it.
    let state = if is_under_way || is_task || !body.is_object() {
        TaskState::Active
    } else {
        TaskState::Completed
    };
    Ok(told(state))
}

/// What a resource tells in these words; nothing if it names no state, or one in which there is no update.
pub(super) fn of_body(dialect: &Dialect, words: &TaskWords, body: &Value) -> Option<TaskSeen> {
    let text = |pointers: &[String]| {
        let mut texts = pointers.iter().filter_map(|pointer| body.pointer(pointer)?.as_str());
        texts.find(|text| !text.is_empty()).map(short)
    };
    let state = text(&words.state)?;
    if words.idle.contains(&state) {
        return None;
    }
    let messages = messages(body);
    let ids: Vec<String> = messages
        .iter()
        .filter_map(|message| message.message_id.clone())
        .collect();
    let result = body.pointer("/Oem").map(ids_within).unwrap_or_default();
    let is_critical = body.get("TaskStatus").and_then(Value::as_str) == Some("Critical");
    let has_failed = words.failed.contains(&state) || (words.completed.contains(&state) && is_critical);
    let state = if has_failed && !dialect.needs_reset(&ids) && !dialect.needs_reset(&result) {
        TaskState::Failed
    } else if has_failed || words.completed.contains(&state) {
        TaskState::Completed
    } else if words.awaits_reset.contains(&state) || (state == "Pending" && waits_for_reset(&ids)) {
        TaskState::AwaitsReset
    } else {
        // `New`, `Starting`, `Pending`, `Interrupted` ... and whatever a vendor invents: only time ends those.
        TaskState::Active
    };
    let percents = words
        .percent
        .iter()
        .filter_map(|pointer| body.pointer(pointer)?.as_u64());
    let percent = percents
        .map(|percent| u8::try_from(percent.min(100)).unwrap_or(100))
        .next();
    let said = messages.iter().rev().find_map(Message::text);
    Some(TaskSeen {
        name: None,
        state,
        percent,
        message: said.or_else(|| text(&words.message)).unwrap_or_default(),
    })
}

fn messages(body: &Value) -> Vec<Message> {
    let list = body.get("Messages").and_then(Value::as_array);
    let list = list.map(Vec::as_slice).unwrap_or_default();
    let last = &list[list.len().saturating_sub(MESSAGES_MAX)..];
    last.iter()
        .filter_map(|message| serde_json::from_value(message.clone()).ok())
        .collect()
}

/// The ids of messages that makers put among their own properties, at most two levels down.
fn ids_within(oem: &Value) -> Vec<String> {
    let makers = oem.as_object().into_iter().flat_map(|oem| oem.values());
    let results = makers.flat_map(|maker| maker.as_object().into_iter().flat_map(|maker| maker.values()));
    let ids = results.filter_map(|result| result.get("MessageId")?.as_str());
    ids.take(MESSAGES_MAX).map(short).collect()
}

/// A task whose update is over may be told of by nothing but its state.
pub(super) fn told(state: TaskState) -> TaskSeen {
    TaskSeen {
        name: None,
        state,
        percent: None,
        message: String::new(),
    }
}

/// Whether a task that has not begun says that a restart is what it waits for.
fn waits_for_reset(ids: &[String]) -> bool {
    ids.iter().any(|id| id.ends_with(".ResetRequired"))
}

/// Whether a task in a list is an update.
pub(super) fn is_update(words: &TaskWords, body: &Value) -> bool {
    let mut kinds = words.kind.iter().filter_map(|pointer| body.pointer(pointer)?.as_str());
    kinds.any(|kind| {
        let kind = kind.to_lowercase();
        kind.contains("update") || kind.contains("firmware")
    })
}
