//! Which gates are open, and when the next wave opens.
//!
//! Where *k* waves may be open at once (one, unless the strategy says otherwise), a wave opens when the *k*-th before it has
//! passed its gate, was watched for `soak_s`, and whoever is asked about it has agreed; when the one right before it was opened
//! `soak_s` ago; and when no open gate holds. Waves open in their order, so with wave *w* all up to *w - k* have passed.
//!
//! Invariants: a gate that fails stops everything new at once, whichever of the open ones it is; what was open beside it is
//! judged by its own gate, where devices that never had their turn are missing, and does not fail before nodes would say so
//! too; a gate that has passed or failed stays so.

use std::{ops::Range, time::Duration};

use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    gate::Tally,
    manifest::Strategy,
    time::Timestamp,
};

use crate::{
    attempts::Look,
    campaign::Campaign,
    index::Light,
    webhooks::{GATE_FAILED, GATE_PASSED},
};

impl Campaign {
    /// How many waves may be open at once that have not passed.
    fn waves_at_once(&self) -> usize {
        self.manifest.strategy.waves_at_once() as usize
    }

    /// The waves that were opened last: those whose gates are open, and the one that the next wave rests on.
    pub(crate) fn in_progress(&self) -> Range<usize> {
        let opened = self.record.gates.len();
        opened.saturating_sub(self.waves_at_once())..opened
    }

    /// How long a wave is watched that has passed, and how long after another one opens the next.
    fn soak(&self) -> Duration {
        Duration::from_secs(self.manifest.gate.soak_s.into())
    }

    /// What is waited out before another wave opens, or is judged.
    pub(crate) fn waits_until(&self) -> impl Iterator<Item = Timestamp> {
        self.soaks
            .values()
            .chain(&self.paced_until)
            .chain(&self.settles_at)
            .copied()
            .chain(self.validations_end())
    }

    /// A process that comes back does not know when waves were opened: they count as opened now.
    pub(crate) fn opened_now(&mut self, now: Timestamp) {
        self.opened.extend(self.in_progress().map(|wave| (wave, now)));
        self.pace(now);
    }

    fn pace(&mut self, now: Timestamp) {
        let is_paced = self.waves_at_once() > 1 && !self.record.gates.is_empty();
        self.paced_until = is_paced.then(|| now + self.soak());
    }

    /// One step of an active campaign; false when it has to wait.
    pub(crate) fn step(&mut self, now: Timestamp) -> bool {
        if self.record.gates.is_empty() {
            return self.pools_are_ready(0) && self.open_wave(now, 0);
        }
        self.judge_open() || self.go_on(now)
    }

    /// Judges the open gates; whether one of them has passed or failed.
    fn judge_open(&mut self) -> bool {
        for wave in self.in_progress() {
            if self.record.gates[wave] == GateVerdict::Pass {
                continue;
            }
            match self.verdict(wave) {
                GateVerdict::Fail => self.fail_gate(wave),
                GateVerdict::Pass => self.pass_gate(wave),
                verdict @ (GateVerdict::Unknown | GateVerdict::Hold) => {
                    self.leave_gate(wave, verdict);
                    continue;
                }
            }
            return true;
        }
        false
    }

    fn pass_gate(&mut self, wave: usize) {
        self.record.gates[wave] = GateVerdict::Pass;
        self.decide_gate(wave, GATE_PASSED);
    }

    /// A gate is neither passed nor failed.
    fn leave_gate(&mut self, wave: usize, verdict: GateVerdict) {
        if self.record.gates[wave] == verdict {
            return;
        }
        self.record.gates[wave] = verdict;
        if verdict == GateVerdict::Hold {
            self.decide_gate(
                wave,
                "the gate holds: a person has to decide, `cancel` ends the campaign",
            );
        }
        self.is_dirty = true;
    }

    fn fail_gate(&mut self, wave: usize) {
        self.record.gates[wave] = GateVerdict::Fail;
        self.decide_gate(wave, GATE_FAILED);
        self.cancel_untouched(&format!(
            "the gate of wave {wave} failed before it was this device's turn"
        ));
        let reason = format!("the gate of wave {wave} failed");
        if self.manifest.automatic_rollback {
            self.enter(
                CampaignState::RollingBack,
                format!("{reason}: its devices are going back"),
            );
        } else {
            self.enter(
                CampaignState::Failed,
                format!("{reason}; the manifest asks for no automatic rollback"),
            );
        }
    }

    /// After what time nodes take those of a wave for lost of whom nobody has said anything.
    fn patience(&self, wave: usize) -> Duration {
        let steps = |attempt: Look<'_>| attempt.stand.course.steps().map_or(1, |(steps, _)| steps);
        let steps = self.attempts.of_wave(wave).map(steps).max();
        self.manifest.worst_case_of(steps.unwrap_or(1))
    }

    /// Judges the waves that were open when another one failed. Nothing more of them starts, so who has not had his turn is
    /// missing; those that pass without him keep what they run, and those that fail go back as well. Nodes take who is missing
    /// for lost when the wave's time is over: before that they would not follow, and permits that nobody follows only keep
    /// places from those who go back already.
    pub(crate) fn judge_beside(&mut self, now: Timestamp) {
        self.settles_at = None;
        let in_progress = self.in_progress();
        let gates = &self.record.gates[in_progress.clone()];
        if self.record.resumable || !self.manifest.automatic_rollback || !gates.contains(&GateVerdict::Fail) {
            return;
        }
        for wave in in_progress {
            if matches!(self.record.gates[wave], GateVerdict::Pass | GateVerdict::Fail) {
                continue;
            }
            match self.verdict(wave) {
                GateVerdict::Pass => self.pass_gate(wave),
                GateVerdict::Fail => {
                    let settles_at = self
                        .opened
                        .get(&wave)
                        .map_or(now, |opened| *opened + self.patience(wave));
                    if now < settles_at && self.judged(wave, Light::Shown) != GateVerdict::Fail {
                        self.settles_at = self.settles_at.into_iter().chain([settles_at]).min();
                        continue;
                    }
                    self.record.gates[wave] = GateVerdict::Fail;
                    self.decide_gate(wave, GATE_FAILED);
                }
                verdict @ (GateVerdict::Unknown | GateVerdict::Hold) => self.leave_gate(wave, verdict),
            }
        }
    }

    fn decide_gate(&mut self, wave: usize, finding: &str) {
        let gate = &self.manifest.gate;
        let attempts = self.attempts.of_wave(wave);
        let fates = attempts.map(|attempt| self.fate(&attempt, Light::Known));
        let mut evidence = Tally::of(gate, fates).evidence();
        evidence.extend(self.bad_devices(|attempt| attempt.stand.wave as usize == wave));
        self.decide(format!("wave {wave}"), finding.to_owned(), evidence);
    }

    fn open_wave(&mut self, now: Timestamp, wave: usize) -> bool {
        if wave >= self.attempts.waves() {
            self.end_when_all_have_ended();
            return false;
        }
        self.record.gates.push(GateVerdict::Unknown);
        self.wake_all();
        let in_progress = self.in_progress();
        self.soaks.retain(|soaking, _| in_progress.contains(soaking));
        self.opened.retain(|open, _| in_progress.contains(open));
        self.opened.insert(wave, now);
        self.pace(now);
        let devices = self.attempts.of_wave(wave).len();
        self.decide(
            format!("wave {wave}"),
            "opened".to_owned(),
            vec![format!("{devices} devices")],
        );
        true
    }

    /// Opens the next wave if it may open; false when it has to wait.
    fn go_on(&mut self, now: Timestamp) -> bool {
        self.paced_until = self.paced_until.filter(|until| now < *until);
        let (next, planned) = (self.record.gates.len(), self.attempts.waves());
        let rests_on = next.checked_sub(self.waves_at_once());
        let mut waits = None;
        // Each is watched and asked about from the moment that it has passed, whatever the others do.
        for wave in self.in_progress() {
            if self.record.gates[wave] == GateVerdict::Pass && wave + self.waves_at_once() < planned {
                let found = self.waits_after(now, wave);
                waits = found.filter(|_| rests_on == Some(wave)).or(waits);
            }
        }
        let gates = &self.record.gates;
        let is_in_the_way = |wave: &usize| match gates[*wave] {
            GateVerdict::Pass => false,
            GateVerdict::Hold => true,
            GateVerdict::Unknown | GateVerdict::Fail => next == planned || rests_on == Some(*wave),
        };
        if let Some(wave) = self.in_progress().find(is_in_the_way) {
            let reason = self.stands(wave);
            self.enter(CampaignState::Active, reason);
            return false;
        }
        if next == planned {
            self.end_when_all_have_ended();
            return false;
        }
        if let Some(reason) = waits.or_else(|| self.paced_until.map(|_| self.opens_when())) {
            self.enter(CampaignState::Active, reason);
            return false;
        }
        let number = u32::try_from(next).expect("a checked plan has at most WAVES_MAX waves");
        self.pools_are_ready(number) && self.open_wave(now, next)
    }

    /// What a wave that has passed waits for before it lets the one open that rests on it.
    fn waits_after(&mut self, now: Timestamp, wave: usize) -> Option<String> {
        // A pool serves again when it is updated wholly.
        if matches!(self.manifest.strategy, Strategy::BlueGreen { .. }) && !self.has_ended(wave) {
            return Some(format!(
                "wave {wave} passed, the last devices of its pool are on their way"
            ));
        }
        let soak = self.soak();
        let until = *self.soaks.entry(wave).or_insert(now + soak);
        // Who was asked was asked after the soak; a restart begins no other one.
        if now < until && !self.has_asked(wave) {
            return Some(match self.waves_at_once() {
                1 => format!("wave {wave} passed and is watched for {} s", soak.as_secs()),
                _ => self.opens_when(),
            });
        }
        let number = u32::try_from(wave).expect("a checked plan has at most WAVES_MAX waves");
        self.waits_for_webhooks(number)
            .or_else(|| self.waits_for_approver(number))
    }

    /// When the next wave opens, where several are open at once.
    fn opens_when(&self) -> String {
        let (next, soak) = (self.record.gates.len(), self.manifest.gate.soak_s);
        let passed = next.checked_sub(self.waves_at_once());
        let passed = passed.map_or_else(String::new, |wave| format!(" and wave {wave} had passed"));
        format!(
            "wave {next} opens {soak} s after wave {} was opened{passed}",
            next.saturating_sub(1)
        )
    }

    /// How a wave stands that has not passed.
    fn stands(&self, wave: usize) -> String {
        let waits = if self.record.gates[wave] == GateVerdict::Hold {
            "holds"
        } else if self.has_ended(wave) {
            "holds: what its gate requires to know of the health of some devices is not known"
        } else {
            "is running"
        };
        format!("wave {wave} {waits}")
    }

    /// Every wave has passed.
    fn end_when_all_have_ended(&mut self) {
        if (0..self.record.gates.len()).all(|wave| self.has_ended(wave)) {
            match self.in_validation() {
                0 => self.finish(),
                servers => self.enter(
                    CampaignState::Active,
                    format!("every gate has passed, {servers} servers are read once more: their final validation"),
                ),
            }
        } else {
            self.enter(
                CampaignState::Active,
                "every gate has passed, the last devices are on their way",
            );
        }
    }

    /// The gate's verdict. What the coordinator presumes may fail a wave and never pass it: nodes go by signed reports
    /// alone, and would not follow.
    fn verdict(&mut self, wave: usize) -> GateVerdict {
        let known = self.judged(wave, Light::Known);
        if known != GateVerdict::Pass {
            return known;
        }
        match self.judged(wave, Light::Shown) {
            GateVerdict::Pass => GateVerdict::Pass,
            _ if self.has_ended(wave) => GateVerdict::Hold,
            _ => GateVerdict::Unknown,
        }
    }
}
