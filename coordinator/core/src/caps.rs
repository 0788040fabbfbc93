//! Who may start now, and the permits for them.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    api::CampaignState,
    ids::DeviceId,
    report::{AttemptState, PermitKind},
    time::Timestamp,
};

use crate::{
    attempts::{Attempt, Place},
    campaign::Campaign,
    index::Flight,
    input::PermitOrder,
    load::{Load, Room},
};

/// The most devices that one input starts. What follows from an input is one change of the database, and whoever asks for
/// something meanwhile waits for it: a start of a hundred thousand devices is many small changes, with others in between.
pub const STARTS_MAX: usize = 1_024;

/// Who may start.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    /// By wave and by which attempt it is, in the order of the plan.
    pub(crate) devices: BTreeMap<(u32, u32), Vec<DeviceId>>,
    pub(crate) count: usize,
    /// There may be more: as many as were asked for have been chosen.
    pub(crate) is_cut_short: bool,
}

pub(crate) fn may_be_permitted(campaign: &Campaign, kind: PermitKind, now: Timestamp) -> bool {
    match kind {
        PermitKind::Update => campaign.record.state == CampaignState::Active && now < campaign.expires_at,
        PermitKind::Rollback => campaign.record.state == CampaignState::RollingBack,
    }
}

pub(crate) fn may_be_permitted_again(campaign: &Campaign, attempt: &Attempt, now: Timestamp) -> bool {
    let kind = attempt.record.kind;
    // A node that speaks and does not take a way back up for so long does not look after the device any more, or will not.
    if kind == PermitKind::Rollback && attempt.awaited_since + campaign.limit(attempt) <= now {
        return false;
    }
    // It has not been begun again, and will not be any more.
    if kind == PermitKind::Update && attempt.record.attempt() > 1 && campaign.budget_is_spent(attempt.stand.wave) {
        return false;
    }
    let is_held = match campaign.record.state {
        CampaignState::Paused => true,
        CampaignState::RollingBack => campaign.record.resumable,
        _ => false,
    };
    let is_paused = is_held && now < campaign.expires_at;
    let is_wanted = kind == PermitKind::Update || attempt.record.ordered_back || campaign.goes_back(attempt.stand.wave);
    let goes_on = is_paused && kind == PermitKind::Update && !attempt.record.ordered_back;
    goes_on || (is_wanted && may_be_permitted(campaign, kind, now))
}

/// The devices that may start now and those whose permit lapsed unused: in the order of the plan, as far as there is room,
/// and no more than `most`. They are counted in the load.
pub(crate) fn choose(
    campaign: &mut Campaign,
    kind: PermitKind,
    load: &mut Load,
    most: usize,
    now: Timestamp,
) -> Chosen {
    let mut chosen = Chosen::default();
    if campaign.index.lapsed.is_empty() && campaign.index.ready(kind).rests(load.releases()) {
        return chosen;
    }
    let end = campaign.attempts.end_of_first_waves(campaign.record.gates.len());
    let mut waiting = campaign.index.ready(kind).candidates(load.releases(), end);
    let mut lapsed = campaign.index.lapsed.clone();
    loop {
        let is_new = match (waiting.first(), lapsed.first()) {
            (None, None) => break,
            (Some((waiting, _)), Some(lapsed)) => waiting < lapsed,
            (waiting, _) => waiting.is_some(),
        };
        if chosen.count == most {
            chosen.is_cut_short = true;
            break;
        }
        let picked = match is_new {
            true => start_first(campaign, kind, load, end, &mut waiting),
            false => lapsed
                .pop_first()
                .filter(|place| may_start_again(campaign, *place, kind, load, now)),
        };
        if let Some(place) = picked {
            let attempt = campaign.attempts.at(place);
            let device = attempt.record.device.clone();
            let number = match kind {
                PermitKind::Update => attempt.record.attempt(),
                PermitKind::Rollback => 1,
            };
            chosen
                .devices
                .entry((attempt.stand.wave, number))
                .or_default()
                .push(device);
            chosen.count += 1;
        }
    }
    chosen
}

/// Looks at the first of those who wait, and starts it if there is room.
fn start_first(
    campaign: &mut Campaign,
    kind: PermitKind,
    load: &mut Load,
    end: Place,
    waiting: &mut BTreeSet<(Place, u32)>,
) -> Option<Place> {
    let (place, rack) = waiting.pop_first()?;
    let attempt = campaign.attempts.at(place);
    let is_taken_back = kind == PermitKind::Update && load.is_taken_back(&attempt);
    let room = match load.room(&attempt, campaign) {
        Room::Yes if is_taken_back => Room::NotForIt,
        room => room,
    };
    match room {
        Room::TotalFull => {
            waiting.clear();
            return None;
        }
        Room::RackFull => {
            campaign.index.ready(kind).is_full(rack);
            return None;
        }
        Room::NotForIt => campaign.index.ready(kind).is_blocked(rack),
        Room::Yes => {
            load.add(&attempt, campaign, Flight::Binds);
            let counted = |attempt: &mut Attempt| attempt.counted.flight = Flight::Binds;
            campaign.attempts.change(place, counted);
        }
    }
    let next = campaign.index.ready(kind).next(rack, place, end);
    waiting.extend(next.map(|next| (next, rack)));
    (room == Room::Yes).then_some(place)
}

fn may_start_again(campaign: &Campaign, place: Place, kind: PermitKind, load: &Load, now: Timestamp) -> bool {
    let attempt = campaign.attempts.at(place);
    attempt.record.kind == kind
        && (attempt.is_proven || kind == PermitKind::Rollback)
        && may_be_permitted_again(campaign, &attempt, now)
        && !load.is_taken_back(&attempt)
        && load.is_within(&attempt, campaign)
}

pub(crate) fn permit(
    campaign: &mut Campaign,
    kind: PermitKind,
    (wave, attempt): (u32, u32),
    devices: &[DeviceId],
    now: Timestamp,
) -> PermitOrder {
    campaign.record.last_permit += 1;
    campaign.is_dirty = true;
    let sequence = campaign.record.last_permit;
    for device in devices {
        campaign.edit(device, |attempt| {
            if attempt.record.kind != kind || attempt.record.permit.is_none() {
                attempt.awaited_since = now;
            }
            if attempt.record.kind != kind {
                attempt.record.kind = kind;
                attempt.record.state = AttemptState::Pending;
                attempt.record.reason = "on its way back to the previous version".to_owned();
            }
            attempt.record.permit = Some(sequence);
            attempt.permitted_at = now;
            attempt.started_at = None;
        });
    }
    PermitOrder {
        campaign: campaign.record.id.clone(),
        kind,
        wave,
        attempt,
        sequence,
        devices: devices.to_vec(),
    }
}
