//! A host with two slots as the `ab_slot` executor meets it: the boot environment, what lies in the slots, and power that
//! may fail between two writes.

use firmesh_executors_core::{
    ActError, BootEnv, Input, Observed, Rung, Seen, Slot, SlotContent, SlotsSeen, Staged, Step,
};
use firmesh_protocol::{health::HealthSample, ids::Sha256};

use super::{Host, HostState};

/// A host and its disk.
#[derive(Debug)]
pub(crate) struct SlottedHost {
    pub(crate) host: Host,
    pub(crate) env: BootEnv,
    /// What lies in the slots: the digest of a whole image, or nothing that starts.
    pub(crate) slots: [Option<Sha256>; 2],
    /// The slot being written, with the digest it will have.
    pub(crate) writing: Option<(Slot, Sha256)>,
    /// How often an image on trial was started since it was armed.
    pub(crate) trials: u32,
}

impl SlottedHost {
    pub(crate) fn restart(&mut self, now_ms: u64) {
        let trial = self.env.trial;
        self.env = self.host.reset(now_ms, &self.env, self.slots);
        if let HostState::Starting { slot, .. } = self.host.state
            && trial == Some(slot)
        {
            self.trials += 1;
        }
    }

    pub(crate) fn see(&self) -> Observed {
        let HostState::Up { slot, version, .. } = &self.host.state else {
            return silent("the host does not answer");
        };
        let staged = match self.env.slot(slot.other()) {
            SlotContent::Ready { version, sha256, .. } => Staged::Image {
                version: version.clone(),
                sha256: *sha256,
                armed: self.env.trial == Some(slot.other()),
            },
            SlotContent::Empty | SlotContent::Writing => Staged::Nothing,
        };
        let identity = self.host.settings.identity.clone();
        Observed::Answering(Box::new(Seen {
            vendor: identity.vendor,
            model: identity.model,
            component: identity.component,
            version: Some(version.clone()),
            ready: true,
            boot_id: Some(self.host.boots.to_string()),
            staged,
            task: None,
            slots: Some(SlotsSeen {
                running: *slot,
                saved: self.env.saved,
            }),
            image_bytes_max: None,
            resets: vec![Rung::Warm],
            health: HealthSample::default(),
            clock_off_s: None,
        }))
    }

    pub(crate) fn begin(&mut self, now_ms: u64, step: &Step) -> Option<Input> {
        let HostState::Up { slot: running, .. } = self.host.state else {
            // Looked at when the answer comes: it may be up by then.
            return (!matches!(step, Step::Observe { .. })).then(|| failed("the host does not answer", true));
        };
        match step {
            Step::Observe { .. } => None,
            Step::Stage { slot: None, .. } | Step::Activate { slot: None } => Some(failed("no slot was named", false)),
            Step::Stage {
                image,
                slot: Some(slot),
            } => {
                self.env.trial = self.env.trial.filter(|trial| trial != slot);
                *self.env.slot_mut(*slot) = SlotContent::Writing;
                self.slots[*slot as usize] = None;
                self.writing = Some((*slot, image.artifact.sha256));
                None
            }
            Step::Activate { slot: Some(slot) } => {
                let whole = matches!(self.env.slot(*slot), SlotContent::Ready { sha256, .. } if self.slots[*slot as usize] == Some(*sha256));
                if whole {
                    self.env.trial = Some(*slot);
                    self.trials = 0;
                    Some(Input::Acted)
                } else {
                    Some(failed("the slot holds no image", false))
                }
            }
            Step::Reset(_) => {
                self.restart(now_ms);
                Some(Input::Acted)
            }
            Step::Confirm => {
                (self.env.saved, self.env.trial) = (running, None);
                Some(Input::Acted)
            }
            Step::Abort { .. } => {
                self.env.trial = None;
                Some(Input::Acted)
            }
        }
    }

    pub(crate) fn finish_write(&mut self, slot: Option<Slot>, sha256: Sha256, version: &str) -> Input {
        let Some(slot) = slot.filter(|slot| self.writing == Some((*slot, sha256))) else {
            return failed("the host went away in the middle", true);
        };
        self.writing = None;
        self.slots[slot as usize] = Some(sha256);
        *self.env.slot_mut(slot) = SlotContent::Ready {
            version: version.to_owned(),
            sha256,
            length: 1 << 20,
        };
        Input::Staged { task: None }
    }
}

fn silent(why: &str) -> Observed {
    Observed::Silent { why: why.to_owned() }
}

fn failed(reason: &str, retry: bool) -> Input {
    Input::ActFailed(ActError {
        reason: reason.to_owned(),
        retry,
    })
}
