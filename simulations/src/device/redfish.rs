//! A BMC as the `redfish` executor meets it: looks become facts, steps become requests. What the wire does to them in
//! between is met where the model is served over HTTPS.

use firmesh_executors_core::{ActError, Input, Observed, Rung, Seen, Staged, Step, TaskSeen, TaskState};
use firmesh_protocol::{health::HealthSample, ids::Sha256};

use super::{
    Bmc, BmcTask, ResetTarget, Strength, TaskPhase,
    faulty::{Request, Told, Trouble},
};

/// What a look at the BMC shows, at its newest update task if none is named.
#[must_use]
pub fn look(bmc: &Bmc, now_ms: u64, task: Option<&str>) -> Observed {
    if let Some(trouble) = bmc.trouble(now_ms) {
        return Observed::Silent { why: words(trouble) };
    }
    let target = bmc.starts_with();
    let mut resets = match target {
        ResetTarget::Manager => vec![Rung::Bmc],
        ResetTarget::System => vec![Rung::Warm, Rung::Cold],
    };
    resets.extend(bmc.may_lose_its_input_power().then_some(Rung::Ac));
    let identity = bmc.settings.identity.clone();
    Observed::Answering(Box::new(Seen {
        vendor: identity.vendor,
        model: identity.model,
        component: identity.component,
        version: bmc.told_version(now_ms),
        ready: bmc.told_ready(now_ms),
        boot_id: Some(bmc.told_reset_ms(target).to_string()),
        staged: Staged::Hidden,
        task: see_task(bmc, now_ms, task),
        slots: None,
        image_bytes_max: None,
        resets,
        health: HealthSample::default(),
        clock_off_s: Some(bmc.clock_off_s()),
    }))
}

fn see_task(bmc: &Bmc, now_ms: u64, name: Option<&str>) -> Option<TaskSeen> {
    let shown = |id: u32, task: &BmcTask| told(bmc, now_ms, id, task);
    if let Some(name) = name {
        let gone = TaskSeen {
            name: Some(name.to_owned()),
            state: TaskState::Gone,
            percent: None,
            message: String::new(),
        };
        let found = name.parse().ok().and_then(|id| Some((id, bmc.task(id)?)));
        return Some(found.and_then(|(id, task)| shown(id, task)).unwrap_or(gone));
    }
    if let Some(at_work) = bmc.told_foreign_task() {
        return Some(TaskSeen {
            name: Some("another".to_owned()),
            state: if at_work {
                TaskState::Active
            } else {
                TaskState::AwaitsReset
            },
            percent: None,
            message: "Lifecycle Controller in use.".to_owned(),
        });
    }
    if !bmc.tells_of_tasks() {
        return None;
    }
    bmc.tasks().filter_map(|(id, task)| shown(id, task)).last()
}

fn told(bmc: &Bmc, now_ms: u64, id: u32, task: &BmcTask) -> Option<TaskSeen> {
    let stuck = "The Job was in running state and made no progress for the allocated time.";
    let (state, message) = match (bmc.told_task(task, now_ms), &task.phase) {
        (Told::NotFound, _) => return None,
        (Told::Running, _) => (TaskState::Active, ""),
        (Told::Critical, _) => (TaskState::Failed, stuck),
        (Told::AsItIs, TaskPhase::Receiving | TaskPhase::Flashing { .. }) => (TaskState::Active, ""),
        (Told::AsItIs, TaskPhase::Waiting { .. }) => (TaskState::AwaitsReset, ""),
        (Told::AsItIs, TaskPhase::Completed) => (TaskState::Completed, ""),
        (Told::AsItIs, TaskPhase::Exception { reason }) => (TaskState::Failed, reason.as_str()),
    };
    Some(TaskSeen {
        name: Some(id.to_string()),
        state,
        percent: u8::try_from(bmc.percent(task, now_ms)).ok(),
        message: message.to_owned(),
    })
}

/// Carries out a step that is no look.
pub fn act(bmc: &mut Bmc, now_ms: u64, step: &Step) -> Input {
    bmc.advance(now_ms);
    if let Some(trouble) = bmc.trouble(now_ms) {
        return failed(&words(trouble), trouble.status >= 500);
    }
    match step {
        Step::Stage { image, .. } => stage(bmc, now_ms, image.artifact.sha256, image.artifact.length),
        Step::Reset(rung) => reset(bmc, now_ms, *rung),
        Step::Abort { task } => abort(bmc, now_ms, task.as_deref()),
        Step::Observe { .. } | Step::Activate { .. } | Step::Confirm => failed("a Redfish device has no slots", false),
    }
}

fn stage(bmc: &mut Bmc, now_ms: u64, sha256: Sha256, length: u64) -> Input {
    let request = bmc.request();
    match request {
        Request::Refused(trouble) => return failed(&words(trouble), trouble.status >= 500),
        Request::Breaks => {
            bmc.note_broken_request();
            return failed("the connection was reset", true);
        }
        Request::Told | Request::Lost | Request::CarriedOutAnd(_) => {}
    }
    let id = match bmc.begin_update(now_ms) {
        Ok(id) => id,
        Err(busy) => return failed(&busy.to_string(), true),
    };
    bmc.image_arrived(now_ms, id, sha256, length);
    bmc.advance(now_ms);
    match request {
        Request::Lost => failed("no answer", true),
        Request::CarriedOutAnd(trouble) => failed(&words(trouble), true),
        _ => Input::Staged {
            task: bmc.tells_of_tasks().then(|| id.to_string()),
        },
    }
}

fn reset(bmc: &mut Bmc, now_ms: u64, rung: Rung) -> Input {
    let (target, strength) = match rung {
        Rung::Bmc => (ResetTarget::Manager, Strength::Warm),
        Rung::Warm => (ResetTarget::System, Strength::Warm),
        Rung::Cold => (ResetTarget::System, Strength::Cold),
        Rung::Ac => (ResetTarget::System, Strength::Ac),
    };
    match bmc.restart(now_ms, target, strength) {
        Err(refused) => failed(&refused.to_string(), false),
        Ok(()) if bmc.goes_before_it_answers() => failed("the connection was closed before the answer", true),
        Ok(()) => Input::Acted,
    }
}

fn abort(bmc: &mut Bmc, now_ms: u64, task: Option<&str>) -> Input {
    let found = task.and_then(|task| task.parse().ok());
    match found.and_then(|id| Some((id, bmc.task(id)?.phase.clone()))) {
        None => failed("no such task", false),
        // As most BMCs: what is being written cannot be called back.
        Some((_, TaskPhase::Flashing { .. })) => failed("the image is being written", false),
        Some((id, _)) => {
            bmc.update_failed(now_ms, id, "cancelled".to_owned());
            Input::Acted
        }
    }
}

fn words(trouble: Trouble) -> String {
    match trouble.status {
        401 => format!("it {}", trouble.words),
        status => format!("it answered {status} {}", trouble.words),
    }
}

fn failed(reason: &str, retry: bool) -> Input {
    Input::ActFailed(ActError {
        reason: reason.to_owned(),
        retry,
    })
}
