//! What has to happen to an attempt that nobody speaks of: permits lapse, attempts take too long, nodes are not heard of.

use std::{collections::BTreeSet, time::Duration};

use firmesh_protocol::{
    api::CampaignState,
    ids::{CampaignId, DeviceId},
    report::AttemptState,
    time::Timestamp,
};

use crate::{attempts::Attempt, campaign::Campaign, caps::may_be_permitted_again, engine::Engine};

/// How far two clocks may differ before a lapsed permit is taken for surely lapsed at the node.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

impl Engine {
    /// When something has to happen to a running attempt that nobody speaks of.
    pub(crate) fn dues(&self, campaign: &Campaign, attempt: &Attempt) -> [Option<Timestamp>; 2] {
        if let Some(until) = attempt.pauses_until {
            return [Some(until), None];
        }
        let lapses = attempt.permitted_at + self.settings.permit_ttl;
        match attempt.started_at {
            Some(started) => [Some(started + campaign.limit(attempt)), None],
            None => [Some(self.last_sign_of(attempt) + campaign.limit(attempt)), Some(lapses)],
        }
    }

    pub(crate) fn last_sign_of(&self, attempt: &Attempt) -> Timestamp {
        let heard = self.heard.get(&attempt.stand.seat.node).copied().unwrap_or_default();
        heard.max(attempt.awaited_since)
    }

    /// When the first running attempt is to be looked at. What nodes have said meanwhile has put many off.
    pub(crate) fn find_next_due(&mut self) -> Option<Timestamp> {
        loop {
            let due = |(id, campaign): (_, &Campaign)| Some((campaign.index.first_due()?, id));
            let ((at, place), id) = self.campaigns.iter().filter_map(due).min()?;
            let (id, campaign) = (id.clone(), &self.campaigns[id]);
            let attempt = campaign.attempts.at(place);
            let is_due = |at: &Timestamp| *at > self.now;
            let really = self.dues(campaign, &attempt).into_iter().flatten().filter(is_due).min();
            if really == Some(at) {
                return really;
            }
            if let Some(campaign) = self.campaigns.get_mut(&id) {
                campaign.await_until(place, really);
            }
        }
    }

    /// Looks at the attempts that are due: answers those that nobody will say the end of, and remembers whose permit is over.
    pub(crate) fn look_at_dues(&mut self) -> BTreeSet<(CampaignId, DeviceId)> {
        let now = self.now;
        let mut silent = BTreeSet::new();
        let is_due = |campaign: &Campaign| campaign.index.first_due().is_some_and(|(at, _)| at <= now);
        let due = self.campaigns.iter().filter(|(_, campaign)| is_due(campaign));
        for id in due.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            while let Some(campaign) = self.campaigns.get(&id)
                && let Some((_, place)) = campaign.index.first_due().filter(|(at, _)| *at <= now)
            {
                let attempt = campaign.attempts.at(place);
                if attempt.pauses_until.is_some() {
                    if let Some(campaign) = self.campaigns.get_mut(&id) {
                        campaign.end_pause(place);
                    }
                    continue;
                }
                let [silent_at, lapses] = self.dues(campaign, &attempt);
                let [is_silent, has_lapsed] = [silent_at, lapses].map(|at| at.is_some_and(|at| at <= now));
                let next = [silent_at, lapses].into_iter().flatten().filter(|at| *at > now).min();
                if is_silent {
                    silent.insert((id.clone(), attempt.record.device.clone()));
                }
                if let Some(campaign) = self.campaigns.get_mut(&id) {
                    if has_lapsed {
                        campaign.index.lapsed.insert(place);
                    }
                    campaign.await_until(place, next);
                }
            }
        }
        silent
    }

    /// Ends attempts whose end nobody will report. A device that may have been touched is quarantined, and so keeps its
    /// place under the caps; one whose node is alive and let the permit lapse was not touched. Such a one gives its place up
    /// if another campaign waits to take the device back, or its own to take others back.
    pub(crate) fn end_overdue_attempts(&mut self) {
        let silent = self.look_at_dues();
        let (mut lapsed, mut returned) = (Vec::new(), Vec::new());
        for (id, campaign) in &self.campaigns {
            for place in &campaign.index.lapsed {
                let attempt = campaign.attempts.at(*place);
                let lapses = attempt.permitted_at + self.settings.permit_ttl + CLOCK_SLACK;
                let spoke_since = self
                    .heard
                    .get(&attempt.stand.seat.node)
                    .is_some_and(|heard| *heard > lapses);
                let device = (id.clone(), attempt.record.device.clone());
                if !spoke_since || silent.contains(&device) {
                    continue;
                }
                if !may_be_permitted_again(campaign, &attempt, self.now) {
                    lapsed.push(device);
                } else if self.load.is_taken_back(&attempt) || is_held(campaign) {
                    returned.push(device);
                }
            }
        }
        let mut end = |(id, device): (CampaignId, DeviceId), state, reason: &str| {
            if let Some(campaign) = self.campaigns.get_mut(&id) {
                campaign.presume(&[device], state, reason);
            }
        };
        for each in silent {
            end(
                each,
                AttemptState::Quarantined,
                "its deadline passed and its node has not reported how it ended",
            );
        }
        for each in lapsed {
            end(each, AttemptState::Cancelled, "its permit lapsed before it started");
        }
        for (id, device) in returned {
            if let Some(campaign) = self.campaigns.get_mut(&id) {
                campaign.edit(&device, |attempt| {
                    attempt.record.permit = None;
                    attempt.record.state = AttemptState::Pending;
                    attempt.record.reason = "its permit lapsed before it started, and it may not start now".to_owned();
                });
            }
        }
    }
}

/// Whether nothing new starts until somebody resumes the campaign: its lapsed permits keep no place from others.
fn is_held(campaign: &Campaign) -> bool {
    campaign.record.state == CampaignState::Paused || campaign.record.resumable
}
