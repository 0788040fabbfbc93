//! What is known of one device that asks for its updates, as a function of what it said and what was offered to it.
//!
//! Invariants: a number names one action for ever; there is at most one open action; an action that its device may have
//! seen ends by the device's own word, or by the version it says it runs, and never by ours alone.

use std::collections::BTreeMap;

use firmesh_protocol::ids::{ArtifactId, Sha256};
use serde::{Deserialize, Serialize};

use super::wire::{BodyError, ConfigData, Feedback};

/// The schema this version writes. Readers refuse any other.
const SCHEMA: &str = "firmesh-ddi/1";
/// Attributes and one action; anything larger is not ours.
const LEDGER_BYTES_MAX: usize = 256 << 10;

/// What survives a crash of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ledger {
    schema: String,
    /// The number of the last action.
    last_action: u32,
    /// What the device says of itself.
    pub(super) attributes: BTreeMap<String, String>,
    /// Whether it has to say so again before it is believed.
    pub(super) is_stale: bool,
    /// The version of the last action that it closed with success.
    pub(super) confirmed: Option<String>,
    /// How many actions it has closed: it has started anew, or given up, each time.
    pub(super) closed: u32,
    /// The last action.
    pub(super) action: Option<Action>,
}

/// An update that is, or was, offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Action {
    /// Its number.
    pub(super) id: u32,
    /// The image.
    pub(super) artifact: ArtifactId,
    /// Its length in bytes.
    pub(super) length: u64,
    /// Its SHA-256.
    pub(super) sha256: Sha256,
    /// Its SHA-1, in hexadecimal digits: what hawkBit's clients compare.
    pub(super) sha1: String,
    /// Its MD5, in hexadecimal digits.
    pub(super) md5: String,
    /// What the device is to run then.
    pub(super) version: String,
    /// What the image is called.
    pub(super) name: String,
    /// Where it stands.
    pub(super) state: ActionState,
    /// Whether the device may know of it.
    pub(super) was_seen: bool,
    /// Whether the device has asked for the image to its end.
    pub(super) was_fetched: bool,
    /// Steps done, and steps in all, by the device's word.
    pub(super) progress: Option<(u32, u32)>,
    /// The device's last words on it.
    pub(super) message: String,
}

/// Where an action stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ActionState {
    /// Offered, and not over.
    Open,
    /// Withdrawn; the device may not know yet.
    Cancelling,
    /// The device closed it with success, or runs its version.
    Done,
    /// The device closed it with a failure, or refused it.
    Failed,
    /// Withdrawn, and the device knows.
    Cancelled,
}

impl ActionState {
    /// Whether nothing comes of it any more.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// What a device asks for or says of an action that it cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// There is no action of this number.
    #[error("there is no action of this number")]
    Unknown,
    /// It is over.
    #[error("the action is over")]
    Over,
}

/// The image of a new action.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) artifact: ArtifactId,
    pub(super) length: u64,
    pub(super) sha256: Sha256,
    pub(super) sha1: String,
    pub(super) md5: String,
    pub(super) version: String,
    pub(super) name: String,
}

/// Why stored bytes are not a ledger.
#[derive(Debug, thiserror::Error)]
pub(super) enum LedgerError {
    #[error("it has {0} bytes, at most {LEDGER_BYTES_MAX} are read")]
    TooLong(usize),
    #[error("it does not have the expected form")]
    Malformed(#[source] serde_json::Error),
    #[error("it has another schema than {SCHEMA:?}, which this version reads")]
    Schema,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            last_action: 0,
            attributes: BTreeMap::new(),
            is_stale: true,
            confirmed: None,
            closed: 0,
            action: None,
        }
    }
}

impl Ledger {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a ledger has only names, numbers and text")
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, LedgerError> {
        if bytes.len() > LEDGER_BYTES_MAX {
            return Err(LedgerError::TooLong(bytes.len()));
        }
        let ledger: Self = serde_json::from_slice(bytes).map_err(LedgerError::Malformed)?;
        if ledger.schema != SCHEMA {
            return Err(LedgerError::Schema);
        }
        Ok(ledger)
    }

    /// The action that is not over.
    pub(super) fn open(&self) -> Option<&Action> {
        self.action.as_ref().filter(|action| !action.state.is_over())
    }

    /// The action of this number, if it is not over.
    pub(super) fn open_action(&self, id: u32) -> Result<&Action, ActionError> {
        match &self.action {
            Some(action) if action.id == id && action.state.is_over() => Err(ActionError::Over),
            Some(action) if action.id == id => Ok(action),
            // It was one once.
            _ if (1..=self.last_action).contains(&id) => Err(ActionError::Over),
            _ => Err(ActionError::Unknown),
        }
    }

    fn open_mut(&mut self, id: u32) -> Result<&mut Action, ActionError> {
        self.open_action(id)?;
        Ok(self.action.as_mut().expect("it was just found"))
    }

    /// Offers an image: its action's number, or that of the open action that stands in the way.
    pub(super) fn offer(&mut self, offer: Offer) -> Result<u32, u32> {
        match self.open() {
            Some(open) if open.artifact == offer.artifact && open.state == ActionState::Open => return Ok(open.id),
            Some(open) => return Err(open.id),
            None => {}
        }
        // Clients read numbers as signed: two thousand million updates of one device are enough.
        self.last_action = (self.last_action % (i32::MAX as u32 - 1)) + 1;
        self.action = Some(Action {
            id: self.last_action,
            artifact: offer.artifact,
            length: offer.length,
            sha256: offer.sha256,
            sha1: offer.sha1,
            md5: offer.md5,
            version: offer.version,
            name: offer.name,
            state: ActionState::Open,
            was_seen: false,
            was_fetched: false,
            progress: None,
            message: String::new(),
        });
        Ok(self.last_action)
    }

    /// The device is about to be told of an action.
    pub(super) fn seen(&mut self, id: u32) -> Result<&Action, ActionError> {
        let action = self.open_mut(id)?;
        action.was_seen = true;
        Ok(action)
    }

    /// The device is about to be given the end of the image.
    pub(super) fn fetched(&mut self, id: u32) -> Result<(), ActionError> {
        let action = self.open_mut(id)?;
        (action.was_seen, action.was_fetched) = (true, true);
        Ok(())
    }

    /// The device says how an action goes, or how it went.
    pub(super) fn feedback(&mut self, id: u32, said: Feedback) -> Result<(), ActionError> {
        let action = self.open_mut(id)?;
        action.was_seen = true;
        action.progress = said.progress.or(action.progress);
        if !said.message.is_empty() {
            action.message = said.message;
        }
        if said.is_over {
            let state = if said.is_bad {
                ActionState::Failed
            } else {
                ActionState::Done
            };
            self.close(state);
        }
        Ok(())
    }

    /// The device says what it makes of a withdrawal.
    pub(super) fn cancel_feedback(&mut self, id: u32, said: &Feedback) -> Result<(), ActionError> {
        let action = self.open_mut(id)?;
        if action.state != ActionState::Cancelling {
            return Err(ActionError::Unknown);
        }
        match (said.is_over, said.is_bad) {
            (true, false) => self.close(ActionState::Cancelled),
            // It goes on installing.
            (true, true) => action.state = ActionState::Open,
            (false, _) => {}
        }
        Ok(())
    }

    /// Withdraws the open action: at once if the device cannot know of it. Whether there was one.
    pub(super) fn withdraw(&mut self) -> bool {
        let Some(action) = self.action.as_mut().filter(|action| !action.state.is_over()) else {
            return false;
        };
        action.state = if action.was_seen {
            ActionState::Cancelling
        } else {
            ActionState::Cancelled
        };
        true
    }

    /// The device says what it is. `version` is the attribute that names what it runs.
    pub(super) fn config_data(&mut self, said: ConfigData, version: &str) -> Result<(), BodyError> {
        self.attributes = said.applied_to(&self.attributes)?;
        self.is_stale = false;
        let runs = self.attributes.get(version);
        let arrived = self
            .open()
            .is_some_and(|action| action.was_fetched && Some(&action.version) == runs);
        if arrived {
            // Some clients never close an action whose end they did not live to see.
            self.close(ActionState::Done);
            self.is_stale = false;
        }
        Ok(())
    }

    fn close(&mut self, state: ActionState) {
        let Some(action) = &mut self.action else { return };
        action.state = state;
        self.closed = self.closed.saturating_add(1);
        // What it said before is about what it ran before.
        self.is_stale = true;
        if state == ActionState::Done {
            self.confirmed = Some(action.version.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn offer(text: &str) -> Offer {
        Offer {
            artifact: ArtifactId::of(text.as_bytes()),
            length: text.len() as u64,
            sha256: Sha256::of(text.as_bytes()),
            sha1: String::new(),
            md5: String::new(),
            version: text.to_owned(),
            name: text.to_owned(),
        }
    }

    fn said(execution: &str, finished: &str) -> Feedback {
        let body = json!({ "status": { "execution": execution, "result": { "finished": finished } } });
        Feedback::parse(body.to_string().as_bytes()).unwrap()
    }

    fn runs(version: &str) -> ConfigData {
        let body = json!({ "data": { "version": version } });
        ConfigData::parse(body.to_string().as_bytes()).unwrap()
    }

    fn state(ledger: &Ledger) -> ActionState {
        ledger.action.as_ref().unwrap().state
    }

    #[test]
    fn an_update_is_closed_by_the_device_and_its_word_asked_for_anew() {
        let mut ledger = Ledger::default();
        ledger.config_data(runs("1"), "version").unwrap();
        assert!(!ledger.is_stale);
        assert_eq!(ledger.offer(offer("2")), Ok(1));
        assert_eq!(ledger.offer(offer("2")), Ok(1), "staged again after a crash");
        assert_eq!(ledger.offer(offer("3")), Err(1), "one at a time");
        ledger.seen(1).unwrap();
        ledger.feedback(1, said("proceeding", "none")).unwrap();
        assert_eq!(state(&ledger), ActionState::Open);
        ledger.feedback(1, said("closed", "success")).unwrap();
        assert_eq!((state(&ledger), ledger.is_stale), (ActionState::Done, true));
        assert_eq!(ledger.feedback(1, said("closed", "failure")), Err(ActionError::Over));
        assert_eq!(ledger.feedback(2, said("closed", "success")), Err(ActionError::Unknown));
        ledger.config_data(runs("2"), "version").unwrap();
        assert!(!ledger.is_stale);
        assert_eq!(ledger.offer(offer("3")), Ok(2), "numbers are not used twice");
        assert_eq!(ledger.feedback(1, said("closed", "success")), Err(ActionError::Over));
    }

    #[test]
    fn a_device_that_runs_the_version_is_not_offered_it_any_more() {
        let mut ledger = Ledger::default();
        ledger.offer(offer("2")).unwrap();
        ledger.config_data(runs("2"), "version").unwrap();
        assert_eq!(state(&ledger), ActionState::Open, "it has not even fetched it");
        ledger.fetched(1).unwrap();
        ledger.config_data(runs("1"), "version").unwrap();
        assert_eq!(state(&ledger), ActionState::Open);
        ledger.config_data(runs("2"), "version").unwrap();
        assert_eq!((state(&ledger), ledger.is_stale), (ActionState::Done, false));
        assert_eq!(ledger.confirmed.as_deref(), Some("2"));
    }

    #[test]
    fn what_a_device_may_know_of_is_withdrawn_with_its_consent_only() {
        let mut ledger = Ledger::default();
        assert!(!ledger.withdraw());
        ledger.offer(offer("2")).unwrap();
        assert_eq!(
            ledger.cancel_feedback(1, &said("closed", "success")),
            Err(ActionError::Unknown)
        );
        assert!(ledger.withdraw());
        assert_eq!(state(&ledger), ActionState::Cancelled, "nobody knew of it");
        ledger.offer(offer("2")).unwrap();
        ledger.seen(2).unwrap();
        ledger.withdraw();
        assert_eq!(state(&ledger), ActionState::Cancelling);
        assert_eq!(ledger.offer(offer("2")), Err(2));
        ledger.cancel_feedback(2, &said("rejected", "none")).unwrap();
        assert_eq!(state(&ledger), ActionState::Open, "it goes on");
        ledger.withdraw();
        ledger.cancel_feedback(2, &said("proceeding", "none")).unwrap();
        assert_eq!(state(&ledger), ActionState::Cancelling);
        ledger.cancel_feedback(2, &said("closed", "success")).unwrap();
        assert_eq!(state(&ledger), ActionState::Cancelled);
        ledger.offer(offer("3")).unwrap();
        ledger.seen(3).unwrap();
        ledger.withdraw();
        ledger.feedback(3, said("closed", "success")).unwrap();
        assert_eq!(
            state(&ledger),
            ActionState::Done,
            "it had installed before it heard of it"
        );
    }

    #[test]
    fn a_ledger_comes_back_as_it_was_and_others_are_refused() {
        let mut ledger = Ledger::default();
        ledger.config_data(runs("1"), "version").unwrap();
        ledger.offer(offer("2")).unwrap();
        ledger.feedback(1, said("proceeding", "none")).unwrap();
        assert_eq!(Ledger::from_bytes(&ledger.to_bytes()).unwrap(), ledger);
        let other = String::from_utf8(ledger.to_bytes())
            .unwrap()
            .replace(SCHEMA, "firmesh-ddi/9");
        assert!(matches!(Ledger::from_bytes(other.as_bytes()), Err(LedgerError::Schema)));
        assert!(Ledger::from_bytes(b"{}").is_err());
        assert!(Ledger::from_bytes(&vec![b' '; LEDGER_BYTES_MAX + 1]).is_err());
    }

    #[derive(Debug, Clone)]
    enum Happens {
        Offer(u8),
        Seen(u32),
        Fetched(u32),
        Feedback(u32, &'static str, &'static str),
        CancelFeedback(u32, &'static str),
        Withdraw,
        Says(u8),
        Crash,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        let id = || 0_u32..6;
        let execution = || prop::sample::select(vec!["closed", "proceeding", "canceled", "rejected", "scheduled"]);
        prop_oneof![
            (0..3_u8).prop_map(Happens::Offer),
            id().prop_map(Happens::Seen),
            id().prop_map(Happens::Fetched),
            (
                id(),
                execution(),
                prop::sample::select(vec!["success", "failure", "none"])
            )
                .prop_map(|(id, execution, finished)| Happens::Feedback(id, execution, finished)),
            (id(), execution()).prop_map(|(id, execution)| Happens::CancelFeedback(id, execution)),
            Just(Happens::Withdraw),
            (0..3_u8).prop_map(Happens::Says),
            Just(Happens::Crash),
        ]
    }

    proptest! {
        /// Whatever devices say in whatever order: numbers rise, what is over stays over, and nothing that was seen is
        /// dropped without the device's word.
        #[test]
        fn an_action_ends_once_and_by_the_devices_word(story in prop::collection::vec(happens(), 0..40)) {
            let mut ledger = Ledger::default();
            for event in story {
                let before = ledger.clone();
                let by_device = matches!(event, Happens::Feedback(..) | Happens::CancelFeedback(..) | Happens::Says(_));
                match event {
                    Happens::Offer(which) => { ledger.offer(offer(&which.to_string())).ok(); }
                    Happens::Seen(id) => { ledger.seen(id).ok(); }
                    Happens::Fetched(id) => { ledger.fetched(id).ok(); }
                    Happens::Feedback(id, execution, finished) => { ledger.feedback(id, said(execution, finished)).ok(); }
                    Happens::CancelFeedback(id, execution) => { ledger.cancel_feedback(id, &said(execution, "success")).ok(); }
                    Happens::Withdraw => { ledger.withdraw(); }
                    Happens::Says(version) => ledger.config_data(runs(&version.to_string()), "version").unwrap(),
                    Happens::Crash => ledger = Ledger::from_bytes(&ledger.to_bytes()).unwrap(),
                }
                prop_assert!(ledger.last_action >= before.last_action && ledger.closed >= before.closed);
                if let (Some(was), Some(is)) = (&before.action, &ledger.action) {
                    if was.id == is.id {
                        prop_assert!(!was.state.is_over() || is == was, "{was:?} became {is:?}");
                        let ended = !was.state.is_over() && is.state.is_over();
                        prop_assert!(!ended || by_device || !was.was_seen, "{was:?} became {is:?}");
                    } else {
                        prop_assert!(was.state.is_over() && is.id == was.id + 1);
                    }
                }
            }
        }
    }
}
