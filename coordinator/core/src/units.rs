//! Devices that are parts of one unit: they go forwards one after the other, and back in reverse order.

use firmesh_protocol::{
    gate::Fate,
    report::{AttemptState, PermitKind},
};

use crate::{
    attempts::{Attempt, AttemptRecord, Look},
    campaign::Campaign,
};

impl Campaign {
    /// Those that come after a device in its unit, in their order.
    pub(crate) fn later_in_unit(&self, attempt: &Attempt) -> impl Iterator<Item = Look<'_>> {
        let after = |attempt: &Attempt| attempt.own.next.map(|next| self.attempts.at(next));
        // A checked plan has no circles; should there be one, it is left.
        std::iter::successors(after(attempt), move |next| after(next)).take(self.attempts.len())
    }

    /// Whether it is the device's turn in its unit: forwards when the one before it runs its new version and is not known
    /// to be unwell, backwards when all those after it that can go back have.
    pub(crate) fn is_turn(&self, attempt: &Attempt, kind: PermitKind) -> bool {
        match kind {
            PermitKind::Update => {
                let before = attempt.own.after.map(|before| self.attempts.at(before));
                before.is_none_or(|before| before.record.state.is_success() && !self.ended_badly(&before))
            }
            PermitKind::Rollback => {
                let mut later = self.later_in_unit(attempt);
                later.all(|next| !next.is_running() && !self.must_go_back(&next))
            }
        }
    }

    /// Whether an attempt has ended, and those that come after it in its unit have no turn any more.
    pub(crate) fn ended_badly(&self, attempt: &Attempt) -> bool {
        let state = attempt.record.state;
        let is_bad = || matches!(attempt.fate(&self.manifest.gate), Fate::Bad(_));
        state.is_terminal() && (!state.is_success() || is_bad())
    }

    /// Stops devices whose turn in their unit will never come, one after the other.
    pub(crate) fn cancel_out_of_turn(&mut self) {
        for place in self.index.take_ended_badly() {
            if !self.ended_badly(&self.attempts.at(place)) {
                continue;
            }
            let mut before = place;
            while let Some(next) = self.attempts.at(before).own.next
                && self.attempts.at(next).is_untouched()
            {
                let AttemptRecord { device, state, .. } = &self.attempts.at(before).record;
                let reason = match state {
                    state if state.is_success() => {
                        format!("{device}, which comes before it in its unit, is not well on its new version")
                    }
                    state => format!("{device}, which comes before it in its unit, ended as {state}"),
                };
                let out_of_turn = self.attempts.device(next).clone();
                self.presume(&[out_of_turn], AttemptState::Cancelled, &reason);
                before = next;
            }
        }
    }
}
