//! Updates that go over other releases, because theirs may not be installed directly: which step is next, and whether all that
//! are left are allowed.
//!
//! Invariants: the steps are those of the approved plan, in its order; where a device stands among them is what was read back
//! from it, and nobody's word; none is taken before the device runs what the one before it leads to.

use std::time::Duration;

use firmesh_executors_core::{Goal, Outcome};
use firmesh_protocol::{
    brake::Braked,
    manifest::{PlannedDevice, Release, WayStep},
    report::PermitKind,
};

use super::{Admission, Facts, Hold, check_brake, check_image, neighbours::Starter};
use crate::approved::ApprovedCampaign;

/// What is left of the way of a device, the next step first. Never empty.
pub(super) fn left<'a>(
    campaign: &'a ApprovedCampaign,
    planned: &PlannedDevice,
    facts: &Facts<'_>,
) -> Result<Vec<&'a Release>, Hold> {
    let mut steps: Vec<_> = planned.way().map(|target| &campaign.releases[target]).collect();
    if steps.len() == 1 {
        return Ok(steps);
    }
    let version = version(facts).ok_or(Hold::PlaceUnknown)?;
    // A device that is begun again goes on where it stopped. One that has arrived is for the attempt to leave alone.
    let done = steps.iter().position(|step| step.info.version == version);
    let done = match done {
        Some(at) => (at + 1).min(steps.len() - 1),
        None if version == planned.from_version => 0,
        None => {
            let versions = steps.iter().map(|step| step.info.version.as_str());
            let way: Vec<_> = [planned.from_version.as_str()].into_iter().chain(versions).collect();
            return Err(Hold::OffItsWay {
                found: version.to_owned(),
                way: way.join(" -> "),
            });
        }
    };
    Ok(steps.split_off(done))
}

/// What was last read back. Of a device that has fallen silent since, the attempt finds out by itself.
fn version<'a>(facts: &Facts<'a>) -> Option<&'a str> {
    facts.device.version.as_deref().or(facts.last_version)
}

/// Whether the steps follow one another: each may be installed from where the one before leads, and no security epoch is
/// lower than one before it, or than what the device has run.
pub(super) fn check(steps: &[&Release], planned: &PlannedDevice, facts: &Facts<'_>) -> Result<(), Hold> {
    let mut floor = facts.security_epoch;
    let mut from = version(facts).filter(|_| !planned.hops.is_empty());
    for step in steps {
        let (info, target) = (&step.info, &step.target);
        if let Some(from) = from.filter(|from| *from != info.version && !info.may_follow(from)) {
            return Err(Hold::NoStep {
                target: target.clone(),
                from: from.to_owned(),
            });
        }
        if info.security_epoch < floor {
            return Err(Hold::BelowSecurityFloor {
                target: target.clone(),
                epoch: info.security_epoch,
                floor,
            });
        }
        floor = info.security_epoch;
        from = from.map(|_| info.version.as_str());
    }
    Ok(())
}

/// Which step of its way a device is at that has so many left; nothing if there is only the one.
pub(super) fn step(planned: &PlannedDevice, left: usize, facts: &Facts<'_>) -> Option<WayStep> {
    let of = planned.steps();
    let left = u32::try_from(left).unwrap_or(u32::MAX);
    (of > 1).then(|| WayStep {
        number: of.saturating_sub(left).saturating_add(1),
        of,
        from: version(facts).unwrap_or_default().to_owned(),
    })
}

/// What comes after a step that has ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The next step.
    Step(Box<Admission>),
    /// Something stands in its way that passes with time, and there is time.
    Wait(Hold),
    /// Nothing: the update ends where it is, and so.
    End(Hold, Outcome),
}

/// What comes after a step that has ended well, by what is known of its campaign and its device now. `left` is of the step's own
/// time: what is waited for after it counts as the step's, so that all of them together take no longer than the window and the
/// campaign's patience were reckoned by.
#[must_use]
pub fn next(done: &Goal, known: Option<(&ApprovedCampaign, &Facts<'_>)>, left: Duration) -> Next {
    let may_go_on = match known {
        None => Err(Hold::NotKnown),
        Some((campaign, _)) if campaign.manifest_sha256 != done.manifest_sha256 => {
            Err(Hold::OtherManifest(campaign.manifest_sha256))
        }
        Some((campaign, facts)) => go_on(campaign, &done.image, facts),
    };
    let limit_s = done.deadlines.attempt_s;
    let (hold, why) = match may_go_on {
        Ok(admission) if !left.is_zero() => return Next::Step(Box::new(admission)),
        Ok(_) => (Hold::StepTooLong { limit_s }, None),
        Err(hold) if hold.passes_with_time() && !left.is_zero() => return Next::Wait(hold),
        Err(hold) if hold.passes_with_time() => {
            let why = format!("{}; {hold}", Hold::StepTooLong { limit_s });
            (hold, Some(why))
        }
        Err(hold) => (hold, None),
    };
    let outcome = done.given_up(&why.unwrap_or_else(|| hold.to_string()));
    Next::End(hold, outcome)
}

/// Whether a device whose last step ended well takes the next one. Permit, window and caps were looked at before the first: it
/// has its place until it has arrived. Whatever may have changed since is looked at again; and it runs what it was brought to.
pub(super) fn go_on(campaign: &ApprovedCampaign, done: &Release, facts: &Facts<'_>) -> Result<Admission, Hold> {
    let device = &facts.device.device;
    let (wave, planned) = campaign
        .planned(device)
        .filter(|(_, planned)| planned.node == *facts.node)
        .ok_or(Hold::NotPlanned(0))?;
    let edition = Braked::Campaign {
        id: campaign.manifest.id.clone(),
        manifest_sha256: campaign.manifest_sha256,
    };
    check_brake(edition, facts)?;
    let steps = left(campaign, planned, facts)?;
    let next = steps[0];
    let comes_after = planned
        .way()
        .zip(planned.way().skip(1))
        .any(|(before, after)| (before, after) == (&done.target, &next.target));
    if !comes_after {
        return Err(Hold::OffItsWay {
            found: version(facts).unwrap_or_default().to_owned(),
            way: format!("{} -> {}", done.info.version, next.info.version),
        });
    }
    check_image(next, facts)?;
    check(&steps[..1], planned, facts)?;
    let previous = planned.previous.as_ref().map(|target| &campaign.releases[target]);
    for needed in [Some(next), previous].into_iter().flatten() {
        if !facts.complete.contains(&needed.artifact.id) {
            return Err(Hold::NotPossessed(needed.artifact.id));
        }
    }
    let starter = Starter {
        campaign,
        planned,
        release: next,
        kind: PermitKind::Update,
        facts,
    };
    starter.check_components()?;
    Ok(Admission {
        wave,
        release: next.clone(),
        step: step(planned, steps.len(), facts),
        previous: previous.cloned(),
    })
}
