//! Approved campaigns at this node: fetched, verified, kept on disk, and put together again after a restart.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use firmesh_node_core::approved::{ApprovedCampaign, AssembleError};
use firmesh_protocol::{
    ids::{CampaignId, Sha256},
    trust::{PolicyError, TrustedFleet},
};

use crate::{
    files::write_durably,
    uplink::{Uplink, UplinkError},
};

/// Why a campaign is not acted upon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CampaignError {
    /// The signatures do not carry it.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Its parts do not belong together.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// Its manifest or plan did not arrive.
    #[error("its manifest or plan did not arrive")]
    Uplink(#[from] UplinkError),
    /// Its manifest or plan cannot be kept or read.
    #[error("{path} cannot be read or written")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl CampaignError {
    /// Whether only another publication can mend it.
    pub(crate) fn is_lasting(&self) -> bool {
        matches!(self, Self::Policy(_) | Self::Assemble(_))
    }

    /// A stable name for machines.
    #[must_use]
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Policy(error) => error.code(),
            Self::Assemble(AssembleError::WrongPlan { .. }) => "wrong_plan",
            Self::Assemble(AssembleError::UnsignedRelease(_)) => "unsigned_release",
            Self::Assemble(AssembleError::OtherImage { .. }) => "release_changed",
            Self::Assemble(_) => "bad_plan",
            Self::Uplink(error) => error.code(),
            Self::File { .. } => "local_store",
        }
    }
}

/// Fetches, verifies and keeps one campaign.
pub(crate) async fn fetch(
    fleet: &TrustedFleet,
    uplink: &Uplink,
    folder: &Path,
    id: &CampaignId,
) -> Result<ApprovedCampaign, CampaignError> {
    // What nobody signed for is not even fetched, and what is here already is not fetched again.
    let (_, digest) = fleet.campaign_file(id)?;
    let kept = |suffix: &str, digest: Sha256| {
        let bytes = fs::read(folder.join(format!("{id}.{suffix}"))).ok()?;
        (Sha256::of(&bytes) == digest).then(|| Bytes::from(bytes))
    };
    let manifest = match kept("json", digest) {
        Some(manifest) => manifest,
        None => uplink.manifest(id).await?,
    };
    let plan_sha256 = fleet.campaign(id, &manifest)?.plan_sha256;
    let plan = match kept("plan", plan_sha256) {
        Some(plan) => plan,
        None => uplink.plan(&plan_sha256).await?,
    };
    keep(fleet, folder, id, &manifest, &plan)
}

/// Verifies one campaign, wherever it came from, and keeps it.
pub(crate) fn keep(
    fleet: &TrustedFleet,
    folder: &Path,
    id: &CampaignId,
    manifest: &[u8],
    plan: &[u8],
) -> Result<ApprovedCampaign, CampaignError> {
    let campaign = assemble(fleet, id, manifest, plan)?;
    for (suffix, bytes) in [("plan", plan), ("json", manifest)] {
        let path = folder.join(format!("{id}.{suffix}"));
        fs::create_dir_all(folder)
            .and_then(|()| write_durably(&path, bytes, 0o644))
            .map_err(|source| CampaignError::File { path, source })?;
    }
    Ok(campaign)
}

/// Every campaign kept on disk that today's metadata still carries.
pub(crate) fn load(
    fleet: &TrustedFleet,
    folder: &Path,
) -> BTreeMap<CampaignId, Result<ApprovedCampaign, CampaignError>> {
    let read = |id: &CampaignId, suffix: &str| {
        let path = folder.join(format!("{id}.{suffix}"));
        fs::read(&path)
            .map(Bytes::from)
            .map_err(|source| CampaignError::File { path, source })
    };
    fleet
        .campaigns()
        .filter(|id| folder.join(format!("{id}.json")).exists())
        .map(|id| {
            let campaign = read(&id, "json")
                .and_then(|manifest| Ok((manifest, read(&id, "plan")?)))
                .and_then(|(manifest, plan)| assemble(fleet, &id, &manifest, &plan));
            (id, campaign)
        })
        .collect()
}

fn assemble(
    fleet: &TrustedFleet,
    id: &CampaignId,
    manifest: &[u8],
    plan: &[u8],
) -> Result<ApprovedCampaign, CampaignError> {
    let verified = fleet.campaign(id, manifest)?.into_inner();
    let signed = |target: &str| fleet.release(target).ok().map(|release| release.into_inner());
    Ok(ApprovedCampaign::assemble(
        verified,
        Sha256::of(manifest),
        plan,
        signed,
    )?)
}
