//! Approval of a wave: an approver's signed word, after a wave has passed its gate, that the next one may open or that the
//! campaign is to end.
//!
//! Invariants: where the manifest asks for it, no node starts a device of the next wave without it, so a coordinator cannot
//! leave the question out; one approver is enough, because all of them have signed for the campaign before and this can
//! only hold it up; an approval is for one wave of one edition.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{CampaignId, Sha256},
    limits::{REASON_BYTES_MAX, WAVES_MAX},
    time::WallTime,
    trust::{Envelope, EnvelopeError, KeySet, KeySetError},
};

/// DSSE payload type of a [`WaveApproval`].
pub const WAVE_APPROVAL_TYPE: &str = "application/vnd.firmesh.wave-approval.v1+json";

/// After which waves a person is asked, and what follows if he says no.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// The waves, counted from 0; after every one if empty. Nobody is asked after the last wave.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub after: BTreeSet<u32>,
    /// What a no does.
    #[serde(default)]
    pub refused: Refused,
}

/// What a no does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// The campaign ends, and what runs the new version keeps it.
    #[default]
    Cancel,
    /// The campaign ends, and all its devices go back.
    RollBack,
}

impl ApprovalRule {
    /// Whether a person is asked between this wave and the next.
    #[must_use]
    pub fn asks_after(&self, wave: u32) -> bool {
        self.after.is_empty() || self.after.contains(&wave)
    }

    /// Whether these approvals, verified for this edition, have one that lets the wave after `wave` open.
    #[must_use]
    pub fn is_met<'a>(&self, wave: u32, approvals: impl IntoIterator<Item = &'a WaveApproval>) -> bool {
        !self.asks_after(wave) || approvals.into_iter().any(|said| said.wave == wave && said.approved)
    }

    /// Whether these approvals, verified for this edition, have a no that sends the campaign's devices back.
    #[must_use]
    pub fn sends_back<'a>(&self, approvals: impl IntoIterator<Item = &'a WaveApproval>) -> bool {
        let is_no = |said: &'a WaveApproval| !said.approved && self.asks_after(said.wave);
        self.refused == Refused::RollBack && approvals.into_iter().any(is_no)
    }

    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let beyond = self.after.iter().find(|wave| **wave as usize >= WAVES_MAX);
        beyond.map(|wave| format!("names the wave {wave}, a campaign has at most {WAVES_MAX}"))
    }
}

/// A signed yes or no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaveApproval {
    /// The campaign.
    pub campaign: CampaignId,
    /// SHA-256 of the manifest's bytes.
    pub manifest_sha256: Sha256,
    /// The wave that was looked at, counted from 0: what is approved is that the next one opens.
    pub wave: u32,
    /// Yes or no.
    pub approved: bool,
    /// Why, for a person.
    pub reason: String,
    /// When it was signed, by that person's clock.
    pub issued: WallTime,
}

/// `POST /api/v1/campaigns/{id}/approval`: an approver says yes or no after a wave.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WaveApprovalRequest {
    /// A [`WaveApproval`] in a DSSE envelope, signed by one of the campaign's approvers.
    #[schema(value_type = Object)]
    pub approval: Envelope,
}

/// `GET /api/v1/campaigns/{id}/approvals`: one question between two waves, and the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WaveApprovalView {
    /// The wave that has passed.
    pub wave: u32,
    /// Yes or no; nobody has answered yet if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<bool>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The keys that signed, in hexadecimal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// Digest of the signed answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub document: Option<Sha256>,
}

/// Why an approval does not count.
#[derive(Debug, thiserror::Error)]
pub enum WaveApprovalError {
    /// No approver signed it.
    #[error("the approval is not signed by an approver of campaigns")]
    Envelope(#[from] EnvelopeError),
    /// The approvers' keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// It is about something else.
    #[error("the approval is for campaign {campaign} with the manifest {manifest_sha256}")]
    Foreign {
        /// The campaign that it names.
        campaign: CampaignId,
        /// The edition that it names.
        manifest_sha256: Sha256,
    },
    /// A reason that is no reason.
    #[error("the approval's reason must have 1 to {REASON_BYTES_MAX} bytes")]
    Reason,
}

impl WaveApprovalError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Envelope(error) => error.code(),
            Self::Keys(error) => error.code(),
            Self::Foreign { .. } => "foreign_approval",
            Self::Reason => "bad_approval",
        }
    }
}

impl WaveApproval {
    /// What an envelope claims to say: for a person who is about to sign it, never to be acted on.
    #[must_use]
    pub fn claimed_by(envelope: &Envelope) -> Option<Self> {
        serde_json::from_slice(envelope.unverified_payload()).ok()
    }

    /// Opens an approval for this edition of a campaign. `approvers` are those who sign campaigns; one of them is enough.
    pub fn open(
        envelope: &Envelope,
        approvers: &KeySet,
        campaign: &CampaignId,
        manifest_sha256: Sha256,
    ) -> Result<Self, WaveApprovalError> {
        let any_one = KeySet::of(approvers.role(), 1, approvers.keys().copied())?;
        let said = envelope.open::<Self>(&any_one, WAVE_APPROVAL_TYPE)?.into_inner();
        if (&said.campaign, said.manifest_sha256) != (campaign, manifest_sha256) {
            return Err(WaveApprovalError::Foreign {
                campaign: said.campaign,
                manifest_sha256: said.manifest_sha256,
            });
        }
        match said.reason.len() {
            1..=REASON_BYTES_MAX => Ok(said),
            _ => Err(WaveApprovalError::Reason),
        }
    }

    /// Which of the approvers have signed an envelope.
    pub fn signers(envelope: &Envelope, approvers: &KeySet) -> Result<Vec<String>, KeySetError> {
        let mut signers = Vec::new();
        for key in approvers.keys() {
            let alone = KeySet::of(approvers.role(), 1, [*key])?;
            if envelope.open::<Self>(&alone, WAVE_APPROVAL_TYPE).is_ok() {
                signers.push(key.to_string());
            }
        }
        Ok(signers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::SecretKey;

    fn approval() -> WaveApproval {
        WaveApproval {
            campaign: CampaignId::new("spring").unwrap(),
            manifest_sha256: Sha256::of(b"manifest"),
            wave: 1,
            approved: true,
            reason: "looked at the graphs".to_owned(),
            issued: WallTime::from_unix_seconds(1),
        }
    }

    fn signed(said: &WaveApproval, keys: &[&SecretKey]) -> Envelope {
        let payload = serde_json::to_vec(said).unwrap();
        Envelope::sign(WAVE_APPROVAL_TYPE, payload, keys.iter().copied())
    }

    #[test]
    fn one_approver_is_enough_and_somebody_else_is_not() {
        let keys = [1, 2, 3].map(|seed| SecretKey::from_seed(&[seed; 32]));
        let approvers = KeySet::of("campaigns", 2, keys[..2].iter().map(SecretKey::public)).unwrap();
        let open = |said: &WaveApproval, key: &SecretKey| {
            let (id, sha256) = (CampaignId::new("spring").unwrap(), Sha256::of(b"manifest"));
            WaveApproval::open(&signed(said, &[key]), &approvers, &id, sha256)
        };
        assert_eq!(open(&approval(), &keys[1]).unwrap(), approval());
        let refused = |said: WaveApproval, key: &SecretKey| open(&said, key).unwrap_err().code();
        assert_eq!(refused(approval(), &keys[2]), "signature_threshold");
        let other = WaveApproval {
            manifest_sha256: Sha256::of(b"another edition"),
            ..approval()
        };
        assert_eq!(refused(other, &keys[0]), "foreign_approval");
        let silent = WaveApproval {
            reason: String::new(),
            ..approval()
        };
        assert_eq!(refused(silent, &keys[0]), "bad_approval");
        let signers = WaveApproval::signers(&signed(&approval(), &[&keys[2], &keys[1]]), &approvers).unwrap();
        assert_eq!(signers, [keys[1].public().to_string()]);
    }

    #[test]
    fn a_rule_asks_after_the_waves_it_names_and_takes_no_answer_about_another() {
        let every = ApprovalRule::default();
        let named = ApprovalRule {
            after: [1].into(),
            refused: Refused::RollBack,
        };
        assert!(every.asks_after(0) && every.asks_after(7) && named.asks_after(1) && !named.asks_after(0));
        let yes = approval();
        let no = WaveApproval {
            approved: false,
            ..approval()
        };
        assert!(named.is_met(1, [&yes]) && named.is_met(0, []));
        assert!(!named.is_met(1, []) && !named.is_met(1, [&no]));
        assert!(!every.is_met(0, [&yes]), "it was said of wave 1");
        assert!(named.sends_back([&no]));
        assert!(!named.sends_back([&yes]) && !every.sends_back([&no]));
        let elsewhere = WaveApproval { wave: 0, ..no };
        assert!(!named.sends_back([&elsewhere]), "nobody is asked there");
        let endless = ApprovalRule {
            after: [WAVES_MAX as u32].into(),
            ..named
        };
        assert!(endless.problem().is_some());
    }
}
