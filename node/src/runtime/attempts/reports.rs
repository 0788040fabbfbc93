//! What is said of attempts: signed, kept and sent with the next sync, and said again to a coordinator that does not know it.

use firmesh_executors::{JournalError, News, Report};
use firmesh_node_core::install::Hold;
use firmesh_protocol::{
    ids::DeviceId,
    limits::REASON_BYTES_MAX,
    report::{AttemptReport, AttemptState, FailureClass, Permit, PermitKind, REPORT_TYPE},
    trust::Envelope,
};

use super::Runtime;
use crate::status::AttemptStatus;

impl Runtime {
    /// A new permit for what was started here before it came, and is not started again: whoever issued it does not know how
    /// that ended (its database is a copy from before), and would issue it for ever.
    pub(in crate::runtime) fn tell_again(&mut self, permit: &Permit) -> Result<(), JournalError> {
        for device in &permit.devices {
            let key = (permit.campaign.clone(), device.clone(), permit.kind);
            let Some(known) = self.devices.devices.get(device) else {
                continue;
            };
            let goes_on = known.running.as_ref().is_some_and(|goal| goal.campaign == key.0);
            if goes_on || !self.devices.standings.contains_key(&key) || self.may_start_again(device, permit) {
                continue;
            }
            // One that ended before outcomes were kept is a person's to judge.
            let Some(outcome) = self.journal.outcome(&key.0, device, permit.kind)? else {
                continue;
            };
            let news = News {
                device: device.clone(),
                campaign: permit.campaign.clone(),
                manifest_sha256: permit.manifest_sha256,
                wave: permit.wave,
                kind: permit.kind,
                permit_sequence: permit.sequence,
                report: outcome.into(),
            };
            let tries = self
                .devices
                .tries_in(&key.0)
                .get(device)
                .filter(|_| key.2 == PermitKind::Update);
            let attempt = tries.map_or(1, |tries| tries.ended);
            self.report_attempt(news, attempt)?;
        }
        Ok(())
    }

    pub(super) fn report_hold(&mut self, device: &DeviceId, permit: &Permit, hold: &Hold) -> Result<(), JournalError> {
        let state = hold.state();
        // What no sound coordinator permits is told by its name; the rest is a matter of time.
        if matches!(state, None | Some(AttemptState::Failed)) || matches!(hold, Hold::CapFull { .. }) {
            self.refuse(hold.code(), format!("{device}: {hold}"));
        }
        let Some(state) = state else { return Ok(()) };
        if state.is_terminal() {
            // Its place under the caps is given to others once this is heard: it must not start on this permit after all.
            let named = (permit.campaign.clone(), device.clone(), permit.kind, permit.sequence);
            if !self.devices.declined.contains(&named) {
                self.journal
                    .keep_declined(&permit.campaign, device, permit.kind, permit.sequence)?;
                self.devices.declined.insert(named);
            }
        }
        // No standing is kept: the device was not started, and the same refusal is told once per start of the node.
        let version = self
            .devices
            .devices
            .get(device)
            .and_then(|device| device.facts.as_ref())
            .and_then(|f| f.version.clone());
        self.report(News {
            device: device.clone(),
            campaign: permit.campaign.clone(),
            manifest_sha256: permit.manifest_sha256,
            wave: permit.wave,
            kind: permit.kind,
            permit_sequence: permit.sequence,
            report: Report {
                reason: hold.to_string(),
                failure: (state == AttemptState::Failed).then_some(FailureClass::Preflight),
                ..Report::on_the_way(state, version)
            },
        })
    }

    /// Signs news, keeps it, and sends it with the next sync. The same news twice is said once, but for an end that the
    /// coordinator does not seem to know: it permits the device again.
    pub(in crate::runtime) fn report(&mut self, news: News) -> Result<(), JournalError> {
        let tries = self.devices.tries_in(&news.campaign).get(&news.device);
        let attempt = match tries.filter(|_| news.kind == PermitKind::Update) {
            Some(tries) if news.permit_sequence <= tries.permit => tries.ended,
            Some(tries) => tries.ended.saturating_add(1),
            None => 1,
        };
        self.report_attempt(news, attempt)
    }

    fn report_attempt(&mut self, news: News, attempt: u32) -> Result<(), JournalError> {
        self.traces.told(&news);
        let key = (news.campaign.clone(), news.device.clone(), news.kind);
        let Report {
            state,
            mut reason,
            version,
            failure,
            health,
        } = news.report;
        if reason.len() > REASON_BYTES_MAX {
            let end = (0..=REASON_BYTES_MAX)
                .rev()
                .find(|at| reason.is_char_boundary(*at))
                .unwrap_or(0);
            reason.truncate(end);
        }
        let told = AttemptStatus {
            device: news.device.clone(),
            campaign: news.campaign.clone(),
            kind: news.kind,
            state,
            reason: reason.clone(),
            version: version.clone(),
        };
        let same = self.devices.told.get(&key).is_some_and(|(old, permit)| {
            let is_asked_again = told.state.is_terminal() && news.permit_sequence > *permit;
            old.state == told.state && old.reason == told.reason && !is_asked_again
        });
        if same {
            return Ok(());
        }
        let sequence = self.journal.next("reports")?;
        let report = AttemptReport {
            campaign: news.campaign,
            manifest_sha256: news.manifest_sha256,
            wave: news.wave,
            kind: news.kind,
            permit_sequence: news.permit_sequence,
            attempt,
            device: news.device,
            node: self.settings.node.clone(),
            sequence,
            state,
            reason,
            version,
            failure,
            health,
            at: self.fleet.now(),
        };
        let payload = serde_json::to_vec(&report).expect("a report has only names, numbers and text");
        let envelope = Envelope::sign(REPORT_TYPE, payload, [&self.identity.key.secret()]);
        self.journal.keep_report(sequence, &envelope)?;
        self.devices.told.insert(key, (told, news.permit_sequence));
        self.fleet.sync_soon();
        Ok(())
    }
}
