//! Closing by force: an operator ends what nobody reports the end of, one attempt or a whole campaign.
//!
//! Invariants: whatever may have been touched is quarantined, and so keeps its place under the caps until a person has looked
//! at it; what a node says of it later is still heard, and counts; nothing is left that waits for anybody.

use std::collections::BTreeSet;

use firmesh_protocol::{
    api::CampaignState,
    ids::{CampaignId, DeviceId},
    report::AttemptState,
};

use crate::{attempts::Attempt, campaign::Campaign, input::InputError};

/// What is closed, and why.
#[derive(Debug, Clone)]
pub struct Closing {
    /// The campaign.
    pub campaign: CampaignId,
    /// One attempt of it; all of it if absent.
    pub device: Option<DeviceId>,
    /// Why.
    pub reason: String,
}

impl Campaign {
    /// Closes one attempt, or everything.
    pub(crate) fn close(&mut self, closing: Closing) -> Result<(), InputError> {
        let Closing { device, reason, .. } = closing;
        let by = format!("closed by an operator: {reason}");
        let Some(device) = device else {
            return self.close_all(&by);
        };
        let attempt = self
            .attempts
            .get(&device)
            .ok_or_else(|| InputError::NothingToClose(format!("{device} is not planned in this campaign")))?;
        let state = match (attempt.is_running(), attempt.record.state) {
            (true, _) => AttemptState::Quarantined,
            (false, state) if state.is_terminal() => {
                return Err(InputError::NothingToClose(format!(
                    "the attempt of {device} has ended as {state}"
                )));
            }
            (false, _) => AttemptState::Cancelled,
        };
        self.presume(std::slice::from_ref(&device), state, &by);
        // One that waited for another attempt ends as what it was.
        let state = self.attempts.known(&device).record.state;
        self.decide(format!("device {device}"), format!("ended as {state}"), vec![by]);
        Ok(())
    }

    fn close_all(&mut self, by: &str) -> Result<(), InputError> {
        let running = self.select(Attempt::is_running);
        let was_over = self.record.state.is_terminal();
        if was_over && running.is_empty() {
            return Err(InputError::NothingToClose(
                "the campaign is over and nothing of it is in flight".to_owned(),
            ));
        }
        self.presume(&running, AttemptState::Quarantined, by);
        self.cancel_untouched(by);
        self.record.resumable = false;
        let quarantined: BTreeSet<_> = running.iter().take(20).map(|id| self.line(id)).collect();
        let finding = format!("{by}; {} devices in flight are quarantined", running.len());
        self.decide(
            format!("campaign {}", self.record.id),
            finding.clone(),
            quarantined.into_iter().collect(),
        );
        if !was_over {
            self.enter(CampaignState::Cancelled, finding);
        }
        Ok(())
    }
}
