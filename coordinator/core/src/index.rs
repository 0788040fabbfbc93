//! What is kept counted of a campaign's attempts, so that an input costs what it touches, not what the campaign is large.
//!
//! Invariants: an attempt's [`Standing`] is a function of the attempt, of its neighbours in its unit and of which waves go
//! back; all else here is a sum of standings. So whatever changes one of these looks again at those it concerns
//! ([`Campaign::edit`], [`Campaign::look_again`], [`Campaign::index_all`]), and nothing else writes here.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::successors,
};

use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    gate::{Counts, Fate, Tally, judge},
    ids::DeviceId,
    manifest::GateRule,
    report::{AttemptState, FailureClass, PermitKind},
    time::Timestamp,
};

use crate::{
    attempts::{Attempt, AttemptRecord, Attempts, Look, Place},
    campaign::Campaign,
};

/// What an attempt takes of the caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Flight {
    /// Nothing: it is not in flight.
    #[default]
    No,
    /// A place. What an old campaign left quarantined takes one, but its caps bind nobody any more.
    Counts,
    /// A place, and the caps of its campaign bind others. What is only presumed to be quarantined may be at it still: its
    /// node was not heard of, and goes on when it is back.
    Binds,
}

impl Flight {
    pub(crate) fn of(attempt: &Attempt) -> Self {
        match (attempt.is_running(), attempt.is_quarantined()) {
            (true, _) => Self::Binds,
            (false, true) if attempt.record.presumed => Self::Binds,
            (false, true) => Self::Counts,
            (false, false) => Self::No,
        }
    }
}

/// As what the engine has counted an attempt in its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Counted {
    pub(crate) flight: Flight,
    pub(crate) goes_back: bool,
}

/// In which light a gate looks at a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Light {
    /// What is known, and what the coordinator presumes.
    Known,
    /// What signed reports show.
    Shown,
    /// What signed reports show, if whoever has said nothing is lost.
    Silent,
}

const LIGHTS: [Light; 3] = [Light::Known, Light::Shown, Light::Silent];

/// What a gate makes of an attempt in this light.
fn fate(attempt: &Attempt, attempts: &Attempts, gate: &GateRule, light: Light) -> Fate {
    let record = &attempt.record;
    // Who goes back from halfway has failed before, and that is reported.
    let went_well = record.kind == PermitKind::Rollback && record.halfway.is_none();
    let is_success = record.state.is_success() || went_well;
    let is_unreported = record.end_report.is_none() && !is_success;
    // The last report is on an attempt that another one follows.
    let earlier = record.last_failed().map(|failed| failed.failure);
    let fate_alone = match (light, attempt.fate(gate)) {
        (Light::Shown, _) if is_unreported || earlier.is_some() => Fate::Pending,
        (Light::Silent, _) if earlier.is_some() => Fate::Bad(earlier),
        (Light::Silent, Fate::Pending) if !is_success => Fate::Bad(Some(FailureClass::Unreachable)),
        (_, fate) => fate,
    };
    match attempt.own.after.filter(|_| is_unreported) {
        Some(before) => {
            let before = fate(&attempts.at(before), attempts, gate, light);
            fate_alone.unreported_after(Some(before))
        }
        None => fate_alone,
    }
}

/// What an attempt counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Standing {
    state: AttemptState,
    is_untouched: bool,
    flight: Flight,
    is_running: bool,
    /// It runs the new version or one on the way to it, and something leads back from there.
    is_updated: bool,
    /// It does, and has to go back.
    goes_back: bool,
    /// It has needed, or needs, more than one attempt.
    is_unlucky: bool,
    /// It waits for the next one.
    waits_again: bool,
    /// The permit it could have at once, as far as its campaign and its node are concerned.
    wants: Option<PermitKind>,
    fates: [Fate; LIGHTS.len()],
}

/// The devices that want one kind of permit, by rack.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    by_rack: BTreeMap<u32, BTreeSet<Place>>,
    /// Racks in which one may start perhaps: in all others nobody may, until something makes room there.
    woken: BTreeSet<u32>,
    /// Racks in which somebody waits for something outside of the rack.
    blocked: BTreeSet<u32>,
    /// When those were looked at last, by the engine's count of releases.
    seen: u64,
}

impl Ready {
    fn insert(&mut self, rack: u32, place: Place) {
        self.by_rack.entry(rack).or_default().insert(place);
        self.woken.insert(rack);
    }

    fn remove(&mut self, rack: u32, place: Place) {
        if let Some(places) = self.by_rack.get_mut(&rack) {
            places.remove(&place);
            if places.is_empty() {
                self.by_rack.remove(&rack);
            }
        }
    }

    fn wake(&mut self, rack: u32) {
        if self.by_rack.contains_key(&rack) {
            self.woken.insert(rack);
        }
    }

    fn wake_all(&mut self) {
        self.woken.extend(self.by_rack.keys());
    }

    /// The first who waits in each rack where one may start perhaps, of those before `end`.
    pub(crate) fn candidates(&mut self, releases: u64, end: Place) -> BTreeSet<(Place, u32)> {
        if self.seen != releases {
            self.woken.append(&mut self.blocked);
            self.seen = releases;
        }
        let by_rack = &self.by_rack;
        let first = |rack: &u32| Some((by_rack.get(rack)?.range(..end).next().copied()?, *rack));
        let candidates: BTreeSet<_> = self.woken.iter().filter_map(first).collect();
        if candidates.len() < self.woken.len() {
            self.woken = candidates.iter().map(|(_, rack)| *rack).collect();
        }
        candidates
    }

    /// Who comes next in the rack. If nobody does, the rack is left alone until it is woken.
    pub(crate) fn next(&mut self, rack: u32, place: Place, end: Place) -> Option<Place> {
        let next = self.by_rack.get(&rack)?.range(place + 1..end.max(place + 1)).next();
        if next.is_none() {
            self.woken.remove(&rack);
        }
        next.copied()
    }

    /// Nobody can start in the rack until something makes room there.
    pub(crate) fn is_full(&mut self, rack: u32) {
        self.woken.remove(&rack);
    }

    /// Somebody of the rack waits for something outside.
    pub(crate) fn is_blocked(&mut self, rack: u32) {
        self.blocked.insert(rack);
    }

    /// Whether nobody can start, as far as is known without a look.
    pub(crate) fn rests(&self, releases: u64) -> bool {
        self.woken.is_empty() && (self.blocked.is_empty() || self.seen == releases)
    }
}

/// What is counted of a wave.
#[derive(Debug, Default)]
struct Wave {
    states: BTreeMap<AttemptState, u32>,
    /// Devices that have needed more than one attempt.
    unlucky: usize,
    counts: [Counts; LIGHTS.len()],
    /// Verdicts that took a look at every device, until one changes.
    verdicts: [Option<GateVerdict>; LIGHTS.len()],
}

/// What is counted of a campaign.
#[derive(Debug, Default)]
pub(crate) struct Index {
    waves: Vec<Wave>,
    untouched: usize,
    running: BTreeSet<Place>,
    quarantined: BTreeSet<Place>,
    updated: BTreeSet<Place>,
    going_back: BTreeSet<Place>,
    waiting_again: BTreeSet<Place>,
    updates: Ready,
    rollbacks: Ready,
    /// Permitted, not started, and the permit is over.
    pub(crate) lapsed: BTreeSet<Place>,
    /// When something has to happen to a running attempt that nobody speaks of: not before.
    dues: BTreeSet<(Timestamp, Place)>,
    /// Attempts that the engine may have counted as what they are no more.
    recount: BTreeSet<Place>,
    /// Whether anything has changed since the campaign was moved on.
    pub(crate) is_changed: bool,
    /// Attempts that ended badly, and others of their unit come after them.
    ended_badly: BTreeSet<Place>,
}

impl Index {
    pub(crate) fn ready(&mut self, kind: PermitKind) -> &mut Ready {
        match kind {
            PermitKind::Update => &mut self.updates,
            PermitKind::Rollback => &mut self.rollbacks,
        }
    }

    /// Room was made in a rack.
    pub(crate) fn wake(&mut self, rack: u32) {
        self.updates.wake(rack);
        self.rollbacks.wake(rack);
    }

    fn wake_all(&mut self) {
        self.updates.wake_all();
        self.rollbacks.wake_all();
    }

    /// How many attempts run, and how many left their device quarantined.
    pub(crate) fn running_and_quarantined(&self) -> (usize, usize) {
        (self.running.len(), self.quarantined.len())
    }

    pub(crate) fn take_recount(&mut self) -> BTreeSet<Place> {
        std::mem::take(&mut self.recount)
    }

    pub(crate) fn take_ended_badly(&mut self) -> BTreeSet<Place> {
        std::mem::take(&mut self.ended_badly)
    }

    pub(crate) fn first_due(&self) -> Option<(Timestamp, Place)> {
        self.dues.first().copied()
    }

    fn wave(&mut self, wave: u32) -> &mut Wave {
        &mut self.waves[wave as usize]
    }

    fn take_out(&mut self, place: Place, wave: u32, rack: u32, old: &Standing) {
        self.untouched -= usize::from(old.is_untouched);
        for set in [
            &mut self.running,
            &mut self.quarantined,
            &mut self.updated,
            &mut self.going_back,
            &mut self.waiting_again,
        ] {
            set.remove(&place);
        }
        if let Some(kind) = old.wants {
            self.ready(kind).remove(rack, place);
        }
        let counted = self.wave(wave);
        counted.unlucky -= usize::from(old.is_unlucky);
        if let Some(count) = counted.states.get_mut(&old.state) {
            *count -= 1;
            if *count == 0 {
                counted.states.remove(&old.state);
            }
        }
    }

    fn put_in(&mut self, place: Place, wave: u32, rack: u32, new: &Standing) {
        self.untouched += usize::from(new.is_untouched);
        let sets = [
            (&mut self.running, new.is_running),
            (&mut self.quarantined, new.flight != Flight::No && !new.is_running),
            (&mut self.updated, new.is_updated),
            (&mut self.going_back, new.goes_back),
            (&mut self.waiting_again, new.waits_again),
        ];
        for (set, _) in sets.into_iter().filter(|(_, is_in)| *is_in) {
            set.insert(place);
        }
        if let Some(kind) = new.wants {
            self.ready(kind).insert(rack, place);
        }
        let counted = self.wave(wave);
        counted.unlucky += usize::from(new.is_unlucky);
        *counted.states.entry(new.state).or_default() += 1;
    }

    fn count_fates(&mut self, wave: u32, old: Option<&Standing>, new: &Standing) {
        let wave = self.wave(wave);
        for (at, fate) in new.fates.iter().enumerate() {
            let before = old.map(|old| old.fates[at]);
            if before != Some(*fate) {
                before.into_iter().for_each(|before| wave.counts[at].remove(before));
                wave.counts[at].add(*fate);
                wave.verdicts[at] = None;
            }
        }
    }
}

impl Campaign {
    /// Changes an attempt, and all that is counted of it.
    pub(crate) fn edit(&mut self, device: &DeviceId, edit: impl FnOnce(&mut Attempt)) {
        let Some(place) = self.attempts.place(device) else {
            return;
        };
        let times = |attempt: &Attempt| {
            let since = (attempt.permitted_at, attempt.awaited_since, attempt.started_at);
            (attempt.is_running().then_some(since), attempt.pauses_until)
        };
        let (before, after) = self.attempts.change(place, |attempt| {
            let before = times(attempt);
            edit(attempt);
            (before, times(attempt))
        });
        if before != after {
            self.index.lapsed.remove(&place);
            self.await_until(place, self.first_look_at(&self.attempts.at(place)));
        }
        self.dirty.insert(device.clone());
        self.servers.touch(place);
        self.look_again_with_neighbours(place);
    }

    /// Looks again at an attempt of which a fact has changed, and at those of its unit to whom that matters.
    pub(crate) fn look_again_with_neighbours(&mut self, place: Place) {
        self.look_again(place);
        if self.has_units {
            let attempt = self.attempts.at(place);
            let earlier = successors(attempt.own.after, |place| self.attempts.at(*place).own.after);
            let later = successors(attempt.own.next, |place| self.attempts.at(*place).own.next);
            // A checked plan has no circles; should there be one, it is left.
            let most = self.attempts.len();
            let concerned: Vec<_> = earlier.take(most).chain(later.take(most)).collect();
            concerned.into_iter().for_each(|place| self.look_again(place));
        }
    }

    fn look_again(&mut self, place: Place) {
        let attempt = self.attempts.at(place);
        let (old, new) = (attempt.standing, self.standing(&attempt));
        if old == Some(new) {
            return;
        }
        let (wave, rack) = (attempt.stand.wave, attempt.stand.rack_number);
        let counted = |standing: &Standing| (standing.flight, standing.goes_back);
        let is_news = old.as_ref().map_or((Flight::No, false), counted) != counted(&new);
        if attempt.own.next.is_some() && self.ended_badly(&attempt) {
            self.index.ended_badly.insert(place);
        }
        if let Some(old) = &old {
            self.index.take_out(place, wave, rack, old);
        }
        self.index.put_in(place, wave, rack, &new);
        self.index.count_fates(wave, old.as_ref(), &new);
        if is_news {
            self.index.recount.insert(place);
        }
        drop(attempt);
        self.attempts.change(place, |attempt| attempt.standing = Some(new));
        self.index.is_changed = true;
    }

    fn standing(&self, attempt: &Attempt) -> Standing {
        let record = &attempt.record;
        let is_untouched = attempt.is_untouched();
        let goes_back = self.must_go_back(attempt);
        let wants = [
            (
                PermitKind::Update,
                is_untouched && attempt.is_proven && attempt.pauses_until.is_none(),
            ),
            // What a device goes back to was proven before it went forward.
            (PermitKind::Rollback, goes_back),
        ];
        let wants = wants
            .into_iter()
            .find(|(kind, is_wanted)| *is_wanted && self.is_turn(attempt, *kind));
        Standing {
            state: record.state,
            is_untouched,
            flight: Flight::of(attempt),
            is_running: attempt.is_running(),
            is_updated: runs_new(attempt) && attempt.stand.course.can_go_back(),
            goes_back,
            is_unlucky: record.retry.is_some(),
            waits_again: is_untouched && record.last_failed().is_some(),
            wants: wants.map(|(kind, _)| kind),
            fates: LIGHTS.map(|light| self.fate(attempt, light)),
        }
    }

    /// Counts everything anew, after more than single attempts have changed.
    pub(crate) fn index_all(&mut self) {
        self.index = Index::default();
        let waves = self.attempts.waves().max(self.record.gates.len());
        self.index.waves.resize_with(waves, Wave::default);
        self.attempts.change_all(|attempt| {
            attempt.standing = None;
            attempt.counted = Counted::default();
            attempt.due = None;
        });
        for place in 0..self.attempts.end_of_first_waves(usize::MAX) {
            self.look_again(place);
            self.await_until(place, self.first_look_at(&self.attempts.at(place)));
        }
    }

    /// Which waves go back has changed.
    pub(crate) fn look_at_updated(&mut self) {
        for place in self.index.updated.clone() {
            self.look_again_with_neighbours(place);
        }
    }

    /// A wave was opened, or the campaign is in another state.
    pub(crate) fn wake_all(&mut self) {
        self.index.wake_all();
        self.index.is_changed = true;
        self.index.recount.extend(&self.index.going_back);
    }

    /// When a running attempt is to be looked at, however lively its node is; or one that is left alone for a while.
    fn first_look_at(&self, attempt: &Attempt) -> Option<Timestamp> {
        match (attempt.is_running(), attempt.started_at) {
            (true, Some(started)) => Some(started + self.limit(attempt)),
            (true, None) => {
                Some((attempt.awaited_since + self.limit(attempt)).min(attempt.permitted_at + self.permit_ttl))
            }
            (false, _) => attempt.pauses_until,
        }
    }

    /// A device was left alone for long enough.
    pub(crate) fn end_pause(&mut self, place: Place) {
        self.attempts.change(place, |attempt| attempt.pauses_until = None);
        self.await_until(place, None);
        self.look_again(place);
    }

    /// How many devices of a wave have needed more than one attempt.
    pub(crate) fn unlucky(&self, wave: u32) -> usize {
        self.index.waves[wave as usize].unlucky
    }

    /// The devices of a wave that wait for another attempt.
    pub(crate) fn waiting_again(&self, wave: u32) -> Vec<DeviceId> {
        let end = self.attempts.end_of_first_waves(wave as usize + 1);
        let waiting = self
            .index
            .waiting_again
            .range(self.attempts.end_of_first_waves(wave as usize)..end);
        waiting.map(|place| self.attempts.device(*place).clone()).collect()
    }

    /// When the attempt is to be looked at next.
    pub(crate) fn await_until(&mut self, place: Place, due: Option<Timestamp>) {
        let before = self.attempts.at(place).due;
        if before != due {
            before.map(|at| self.index.dues.remove(&(at, place)));
            due.map(|at| self.index.dues.insert((at, place)));
            self.attempts.change(place, |attempt| attempt.due = due);
        }
    }

    /// As what the engine is to count an attempt.
    pub(crate) fn counts_as(&self, attempt: &Attempt) -> Counted {
        let is_going = self.record.state == CampaignState::RollingBack;
        attempt.standing.map_or_else(Counted::default, |standing| Counted {
            flight: standing.flight,
            goes_back: standing.goes_back && is_going,
        })
    }

    /// Attempts that are running, in the order of the plan.
    pub(crate) fn running(&self) -> impl Iterator<Item = Look<'_>> {
        self.index.running.iter().map(|place| self.attempts.at(*place))
    }

    /// Attempts that are quarantined, in the order of the plan.
    pub(crate) fn quarantined(&self) -> impl Iterator<Item = Look<'_>> {
        self.index.quarantined.iter().map(|place| self.attempts.at(*place))
    }

    /// Attempts that have to go back, in the order of the plan.
    pub(crate) fn going_back(&self) -> impl Iterator<Item = Look<'_>> {
        self.index.going_back.iter().map(|place| self.attempts.at(*place))
    }

    /// The engine has forgotten as what it has counted whom.
    pub(crate) fn count_anew(&mut self) {
        let Index {
            running,
            quarantined,
            going_back,
            recount,
            ..
        } = &mut self.index;
        for place in running.iter().chain(&*quarantined).chain(&*going_back) {
            self.attempts
                .change(*place, |attempt| attempt.counted = Counted::default());
            recount.insert(*place);
        }
    }

    /// How many attempts were not touched, and may be yet.
    pub(crate) fn untouched(&self) -> usize {
        self.index.untouched
    }

    /// How many attempts of a wave are in which state.
    pub(crate) fn states_of(&self, wave: usize) -> &BTreeMap<AttemptState, u32> {
        &self.index.waves[wave].states
    }

    /// How many attempts are in which state.
    pub(crate) fn states(&self) -> BTreeMap<AttemptState, u32> {
        let mut states = BTreeMap::new();
        for (state, count) in self.index.waves.iter().flat_map(|wave| &wave.states) {
            *states.entry(*state).or_default() += count;
        }
        states
    }

    /// Whether every attempt of a wave has ended.
    pub(crate) fn has_ended(&self, wave: usize) -> bool {
        self.states_of(wave).keys().all(|state| state.is_terminal())
    }

    /// The verdict of a wave's gate in this light.
    pub(crate) fn judged(&mut self, wave: usize, light: Light) -> GateVerdict {
        let rule = &self.manifest.gate;
        let counted = &mut self.index.waves[wave];
        let at = light as usize;
        if let Some(tally) = Tally::of_counts(rule, &counted.counts[at]) {
            return tally.verdict();
        }
        let attempts = &self.attempts;
        let fates = attempts
            .of_wave(wave)
            .map(|attempt| fate(&attempt, attempts, rule, light));
        *counted.verdicts[at].get_or_insert_with(|| judge(rule, fates))
    }

    /// What a gate makes of an attempt in this light.
    pub(crate) fn fate(&self, attempt: &Attempt, light: Light) -> Fate {
        fate(attempt, &self.attempts, &self.manifest.gate, light)
    }
}

/// Whether a device runs the new version, or one on the way to it, where its update has ended.
pub(crate) fn runs_new(attempt: &Attempt) -> bool {
    let AttemptRecord { kind, state, .. } = attempt.record;
    kind == PermitKind::Update && (state == AttemptState::Success || attempt.is_halfway())
}
