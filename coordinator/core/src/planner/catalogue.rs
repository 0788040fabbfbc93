//! The releases of a campaign and all there are: which one a device gets, what it goes back to, and over which versions a path
//! leads where none leads directly.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use firmesh_protocol::{
    ids::Sha256,
    limits::HOPS_MAX,
    manifest::{CampaignManifest, PlannedDevice, Release, ReleaseInfo, ReleaseRef, Reversibility},
};

use super::{PlanError, units::Candidate};
use crate::fleet::{KnownDevice, rack_of};

/// Releases by vendor, component and model, each in the order of their names.
#[derive(Debug, Default)]
struct ByKind<'a>(BTreeMap<&'a str, BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Release>>>>);

impl<'a> ByKind<'a> {
    fn of(releases: impl Iterator<Item = &'a Release>) -> Self {
        let mut releases: Vec<_> = releases.collect();
        releases.sort_by(|a, b| a.target.cmp(&b.target));
        let mut by_kind = Self::default();
        for release in releases {
            let info = &release.info;
            let of_vendor = by_kind.0.entry(&info.vendor).or_default();
            let of_component = of_vendor.entry(info.component.as_str()).or_default();
            for model in info.models.iter().collect::<BTreeSet<_>>() {
                of_component.entry(model).or_default().push(release);
            }
        }
        by_kind
    }

    fn get(&self, device: &KnownDevice) -> &[&'a Release] {
        let facts = &device.facts;
        let of_vendor = self.0.get(facts.vendor.as_str());
        let of_component = of_vendor.and_then(|of_vendor| of_vendor.get(facts.component.as_str()));
        let releases = of_component.and_then(|of_component| of_component.get(facts.model.as_str()));
        releases.map_or(&[], Vec::as_slice)
    }

    /// Two releases for the same devices, with the model.
    fn overlap(&self) -> Option<(&'a str, [&'a Release; 2])> {
        let of_components = self.0.values().flat_map(BTreeMap::values);
        let mut releases = of_components.flatten();
        releases.find_map(|(model, releases)| Some((*model, [*releases.first()?, *releases.get(1)?])))
    }
}

/// What a path may lead over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Over {
    /// What the campaign names.
    Named,
    /// Whatever is published.
    All,
}

/// Why a device has no place in a plan, as far as it alone is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// The campaign has nothing for it.
    NotCovered(String),
    /// It runs its release already.
    Current(String),
    /// It cannot be touched now, whatever it runs.
    Preflight(String),
    /// Nothing leads from what it runs to its release.
    Analysis(String),
}

impl Left {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::NotCovered(reason) | Self::Current(reason) | Self::Preflight(reason) | Self::Analysis(reason) => {
                reason
            }
        }
    }
}

/// A path from a version to a release, which stands at its end; none if there is none.
type Path<'a> = Option<Rc<Vec<&'a Release>>>;

/// The releases of one campaign, and all there are.
#[derive(Debug)]
pub(super) struct Catalogue<'a> {
    new: ByKind<'a>,
    hops: ByKind<'a>,
    previous: ByKind<'a>,
    all: ByKind<'a>,
    draft: &'a CampaignManifest,
    /// Paths that were searched for, by what they lead over, the model, the version at which they start and the release at
    /// which they end.
    paths: RefCell<BTreeMap<(Over, String, String, String), Path<'a>>>,
}

impl<'a> Catalogue<'a> {
    pub(super) fn new(
        draft: &'a CampaignManifest,
        releases: &'a [Release],
        revoked: &BTreeSet<Sha256>,
    ) -> Result<Self, PlanError> {
        let new = resolve(&draft.releases, releases)?;
        let hops = resolve(&draft.hops, releases)?;
        let previous = resolve(&draft.previous, releases)?;
        if let Some(stopped) = new
            .iter()
            .chain(&hops)
            .chain(&previous)
            .find(|release| revoked.contains(&release.artifact.sha256))
        {
            return Err(PlanError::Revoked {
                target: stopped.target.clone(),
            });
        }
        let catalogue = Self {
            new: ByKind::of(new.into_iter()),
            hops: ByKind::of(hops.into_iter()),
            previous: ByKind::of(previous.into_iter()),
            all: ByKind::of(
                releases
                    .iter()
                    .filter(|release| !revoked.contains(&release.artifact.sha256)),
            ),
            draft,
            paths: RefCell::default(),
        };
        catalogue.refuse_overlap()?;
        Ok(catalogue)
    }

    fn refuse_overlap(&self) -> Result<(), PlanError> {
        match self.new.overlap() {
            None => Ok(()),
            Some((model, [first, second])) => Err(PlanError::TwoReleases {
                first: first.target.clone(),
                second: second.target.clone(),
                vendor: first.info.vendor.clone(),
                model: model.to_owned(),
                component: first.info.component.to_string(),
            }),
        }
    }

    /// The release of the campaign that is for a device.
    pub(super) fn release(&self, device: &KnownDevice) -> Option<&'a Release> {
        self.new.get(device).first().copied()
    }

    /// The device's place in the plan as far as it alone is concerned, or why it has none.
    pub(super) fn place<'b>(&'b self, device: &'b KnownDevice) -> Result<Candidate<'b>, Left> {
        let facts = &device.facts;
        let release = self.release(device).ok_or_else(|| {
            Left::NotCovered(format!(
                "no release of this campaign is for the {} of {} {}",
                facts.component, facts.vendor, facts.model
            ))
        })?;
        let info = &release.info;
        if let Some(reason) = &device.held_by_operator {
            return Err(Left::Preflight(format!("held by an operator: {reason}")));
        }
        if device.quarantined {
            let reason = "quarantined: a person has to look at it and clear it first";
            return Err(Left::Preflight(reason.to_owned()));
        }
        if !device.node_reachable {
            return Err(Left::Preflight(format!(
                "deferred: its node {} has not been heard of lately",
                device.node
            )));
        }
        let Some(from) = &facts.version else {
            let reason = format!("deferred: it does not answer its node {}", device.node);
            return Err(Left::Preflight(reason));
        };
        if *from == info.version {
            return Err(Left::Current(format!("current: it runs {from} already")));
        }
        let rules = &self.draft.constraints;
        if !rules.executors.is_empty() && !rules.executors.contains(&facts.executor) {
            return Err(Left::Preflight(format!(
                "its executor {} is not one of those the campaign allows: {}",
                facts.executor,
                brief_list(&rules.executors)
            )));
        }
        let hops = match info.may_follow(from) {
            true => Vec::new(),
            false => self.hops(device, release, from).map_err(Left::Analysis)?,
        };
        let mut way = hops.iter().copied().chain([release]);
        if let Some(door) = way.find(|step| step.info.reversibility == Reversibility::OneWay && !rules.one_way_accepted)
        {
            return Err(Left::Analysis(format!(
                "{} is one-way: say `one_way_accepted` in the campaign if there may be no way back",
                door.target
            )));
        }
        let floor = floor(self.all.get(device), from);
        if let Some(floor) = floor.filter(|floor| *floor > info.security_epoch) {
            return Err(Left::Analysis(format!(
                "it runs {from} of security epoch {floor}; {} has the lower epoch {}",
                info.version, info.security_epoch
            )));
        }
        Ok(Candidate {
            device,
            planned: PlannedDevice {
                device: facts.device.clone(),
                node: device.node.clone(),
                rack: rack_of(&device.path),
                release: release.target.clone(),
                from_version: from.clone(),
                hops: hops.iter().map(|hop| hop.target.clone()).collect(),
                previous: self
                    .way_back(release, &hops, device, from)
                    .map(|release| release.target.clone()),
                labels: facts.labels.clone(),
                after: None,
            },
            release,
            hops,
        })
    }

    /// What the device goes over where its release may not be installed directly: the shortest way over what the campaign
    /// names. Its installs have to fit a window together.
    fn hops(&self, device: &KnownDevice, release: &'a Release, from: &str) -> Result<Vec<&'a Release>, String> {
        let path = self.path(Over::Named, device, release, from);
        let path = path.ok_or_else(|| self.detour(device, release, from))?;
        let hops = path[..path.len() - 1].to_vec();
        let versions: Vec<_> = hops.iter().map(|hop| hop.info.version.as_str()).collect();
        let over = versions.join(", ");
        if hops.len() > HOPS_MAX {
            return Err(format!(
                "its way to {} leads over {over}: {HOPS_MAX} releases at most, bring it part of the way first",
                release.info.version
            ));
        }
        let steps = u32::try_from(path.len()).unwrap_or(u32::MAX);
        let takes = self.draft.worst_case_of(steps).as_secs();
        let windows = &self.draft.constraints.windows;
        if !windows.is_empty() && windows.iter().all(|window| u64::from(window.duration_s) < takes) {
            return Err(format!(
                "its way to {} leads over {over}: {steps} times deadlines.attempt_s is {takes} s, and no window lasts that long",
                release.info.version
            ));
        }
        Ok(hops)
    }

    /// What the device can go back to: nothing if the hardware or the security epoch forbids it, wherever on its way.
    fn way_back(&self, release: &Release, hops: &[&Release], device: &KnownDevice, from: &str) -> Option<&Release> {
        let mut way = hops.iter().copied().chain([release]);
        if way.any(|step| step.info.reversibility == Reversibility::OneWay) {
            return None;
        }
        let fits = |previous: &&&Release| {
            previous.info.version == from && previous.info.security_epoch >= release.info.security_epoch
        };
        self.previous.get(device).iter().find(fits).copied()
    }

    /// Why a device cannot go to a release directly, and how it could get there.
    fn detour(&self, device: &KnownDevice, release: &'a Release, from: &str) -> String {
        let info = &release.info;
        let refused = format!("it runs {from}, from which {} may not be installed", info.version);
        let steps = self.path(Over::All, device, release, from);
        let Some(steps) = steps.filter(|steps| steps.len() > 1) else {
            return format!(
                "{refused} (allowed: {}), and no published releases lead there step by step",
                allowed(info)
            );
        };
        let shown = steps
            .iter()
            .map(|step| format!(" -> {} ({})", step.info.version, step.target));
        format!(
            "{refused} directly; the shortest allowed path is {from}{}: name {} under `hops` in the campaign",
            shown.collect::<String>(),
            steps[..steps.len() - 1]
                .iter()
                .map(|step| step.target.as_str())
                .collect::<Vec<_>>()
                .join(" and ")
        )
    }

    fn path(&self, over: Over, device: &KnownDevice, to: &'a Release, from: &str) -> Path<'a> {
        let all = self.all.get(device);
        let find = || match over {
            Over::All => shortest(all, all, to, from),
            Over::Named => {
                let named = self.hops.get(device).iter().copied();
                let steps: Vec<_> = named.filter(|hop| hop.target != to.target).chain([to]).collect();
                shortest(&steps, all, to, from)
            }
        };
        // The release says for which vendor and component.
        let key = (over, device.facts.model.clone(), from.to_owned(), to.target.clone());
        let mut paths = self.paths.borrow_mut();
        paths.entry(key).or_insert_with(|| find().map(Rc::new)).clone()
    }
}

/// The shortest way over these releases of all that are known, breadth first; of two of one length, that over the names that
/// come first.
fn shortest<'a>(steps: &[&'a Release], known: &[&'a Release], to: &'a Release, from: &str) -> Option<Vec<&'a Release>> {
    let mut came_by: BTreeMap<&str, (usize, &'a Release)> = BTreeMap::new();
    // Where the search has been: a version, and the place of the one before it.
    let mut reached: Vec<(&str, Option<(usize, &'a Release)>)> = vec![(from, None)];
    let mut next = VecDeque::from([0]);
    while let Some(at) = next.pop_front() {
        let version = reached[at].0;
        let floor = floor(known, version).unwrap_or_default();
        for step in steps {
            let info = &step.info;
            let is_new = info.version != from && !came_by.contains_key(info.version.as_str());
            if !is_new || info.security_epoch < floor || !info.may_follow(version) {
                continue;
            }
            if info.version == to.info.version && step.target != to.target {
                continue;
            }
            came_by.insert(&info.version, (at, step));
            reached.push((&info.version, Some((at, step))));
            if step.target == to.target {
                let mut path = Vec::new();
                let mut place = reached.len() - 1;
                while let Some((before, step)) = reached[place].1 {
                    path.push(step);
                    place = before;
                }
                path.reverse();
                return Some(path);
            }
            next.push_back(reached.len() - 1);
        }
    }
    None
}

/// The highest security epoch of the releases that show a version.
fn floor(releases: &[&Release], version: &str) -> Option<u32> {
    let running = releases.iter().filter(|known| known.info.version == version);
    running.map(|known| known.info.security_epoch).max()
}

fn resolve<'a>(wanted: &[ReleaseRef], releases: &'a [Release]) -> Result<Vec<&'a Release>, PlanError> {
    let find = |want: &ReleaseRef| {
        releases
            .iter()
            .find(|release| release.target == want.target && release.artifact.sha256 == want.sha256)
            .ok_or_else(|| PlanError::UnknownRelease {
                target: want.target.clone(),
                sha256: want.sha256,
            })
    };
    wanted.iter().map(find).collect()
}

fn allowed(info: &ReleaseInfo) -> String {
    let least = info.min_from.iter().map(|least| format!("{least} or later"));
    let listed = (!info.from_versions.is_empty()).then(|| brief_list(&info.from_versions));
    listed.into_iter().chain(least).collect::<Vec<_>>().join("; ")
}

fn brief_list(versions: &[String]) -> String {
    let shown = versions.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if versions.len() > 5 {
        format!("{shown} and {} more", versions.len() - 5)
    } else {
        shown
    }
}
