//! Campaigns: from an operator's file to a draft, from the draft and its plan to a manifest staged for the approvers.

use std::path::PathBuf;

use firmesh_protocol::{
    ids::{CampaignId, Sha256},
    limits::{MANIFEST_BYTES_MAX, PLAN_BYTES_MAX},
    manifest::{CampaignManifest, MANIFEST_SCHEMA, ManifestError, Plan, ReleaseRef},
    rehearsal::Rehearsal,
    time::WallTime,
    trust::{PublicKey, Target},
};

use super::{
    campaign_file::{CampaignFile, RetriesFile},
    files::{ReadFileError, WriteFileError, read_bounded, write_file},
    folder::{FolderError, TrustFolder},
};

/// Why a campaign could not be drafted or staged.
#[derive(Debug, thiserror::Error)]
pub enum CampaignError {
    /// A release the release keys have not been asked to sign.
    #[error("releases.json has no {target}; run: firmesh release create")]
    UnknownRelease {
        /// The target.
        target: String,
    },
    /// The campaign has no draft here.
    #[error("there is no draft of {id} in this trust folder; run: firmesh campaign create")]
    NoDraft {
        /// The campaign.
        id: CampaignId,
    },
    /// The rules do not hold together.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The plan is not about this campaign, or not the one announced.
    #[error("the plan {problem}")]
    OtherPlan {
        /// What does not match.
        problem: String,
    },
    /// The rehearsal is not of this campaign as it is planned.
    #[error("the rehearsal {problem}")]
    OtherRehearsal {
        /// What does not match.
        problem: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteFileError),
    /// The trust folder could not be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// Fills in what an operator does not write: digests from `releases.json`, the next sequence number. Not planned yet.
pub fn draft_campaign(
    folder: &TrustFolder,
    file: CampaignFile,
    permit_keys: &[PublicKey],
) -> Result<CampaignManifest, CampaignError> {
    let pin = |target: &String| {
        let known = folder
            .repository()
            .releases()
            .targets
            .get(target)
            .and_then(Target::sha256);
        let sha256 = known.ok_or_else(|| CampaignError::UnknownRelease { target: target.clone() })?;
        Ok::<_, CampaignError>(ReleaseRef {
            target: target.clone(),
            sha256,
        })
    };
    let permit_keys = file
        .permit_keys
        .iter()
        .chain(permit_keys)
        .map(ToString::to_string)
        .collect();
    let manifest = CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        sequence: next_sequence(folder)?,
        id: file.id,
        expires: file.expires,
        releases: file.releases.iter().map(pin).collect::<Result<_, _>>()?,
        previous: file.previous.iter().map(pin).collect::<Result<_, _>>()?,
        hops: file.hops.iter().map(pin).collect::<Result<_, _>>()?,
        selector: file.selector,
        gate: file.gate.rule(&file.strategy),
        strategy: file.strategy,
        caps: file.caps,
        deadlines: file.deadlines.into(),
        constraints: file.constraints,
        priority: file.priority,
        automatic_rollback: file.automatic_rollback,
        operator_rollback: file.operator_rollback,
        retries: file.retries.map(RetriesFile::rules),
        permit_keys,
        plan_sha256: Sha256::from([0; 32]),
        rehearsal_sha256: None,
        kind: file.kind,
    };
    manifest.check()?;
    Ok(manifest)
}

/// Stores a draft; returns where.
pub fn save_draft(folder: &TrustFolder, draft: &CampaignManifest) -> Result<PathBuf, CampaignError> {
    let path = draft_path(folder, &draft.id);
    write_file(
        &path,
        &serde_json::to_vec_pretty(draft).expect("a manifest has only names, numbers and lists"),
    )?;
    Ok(path)
}

/// Reads a draft.
pub fn load_draft(folder: &TrustFolder, id: &CampaignId) -> Result<CampaignManifest, CampaignError> {
    match read_bounded(&draft_path(folder, id), MANIFEST_BYTES_MAX) {
        Ok(bytes) => Ok(CampaignManifest::from_bytes(&bytes)?),
        Err(error) if error.is_not_found() => Err(CampaignError::NoDraft { id: id.clone() }),
        Err(error) => Err(error.into()),
    }
}

/// Reads a campaign as it was planned last, here or in the folder it was brought from; or its draft, if there is no plan or
/// the draft has changed since.
pub fn load_planned(folder: &TrustFolder, id: &CampaignId) -> Result<CampaignManifest, CampaignError> {
    let staged = match read_bounded(&folder.manifest_path(id), MANIFEST_BYTES_MAX) {
        Ok(bytes) => CampaignManifest::from_bytes(&bytes)?,
        Err(error) if error.is_not_found() => return load_draft(folder, id),
        Err(error) => return Err(error.into()),
    };
    let draft = match load_draft(folder, id) {
        Err(CampaignError::NoDraft { .. }) => return Ok(staged),
        draft => draft?,
    };
    let unplanned = CampaignManifest {
        plan_sha256: draft.plan_sha256,
        rehearsal_sha256: draft.rehearsal_sha256,
        ..staged.clone()
    };
    Ok(if unplanned == draft { staged } else { draft })
}

/// Notes in a draft which rehearsal the approvers are shown; it must be of these rules and of the plan of this digest.
pub fn bind_rehearsal(
    draft: CampaignManifest,
    plan_sha256: Sha256,
    rehearsal: &Rehearsal,
) -> Result<CampaignManifest, CampaignError> {
    let other = |problem: String| Err(CampaignError::OtherRehearsal { problem });
    if rehearsal.campaign != draft.id {
        return other(format!(
            "is of the campaign {}, not of {}",
            rehearsal.campaign, draft.id
        ));
    }
    if rehearsal.plan_sha256 != plan_sha256 {
        return other(format!(
            "is of the plan {}, the plan is {plan_sha256} now: simulate again",
            rehearsal.plan_sha256
        ));
    }
    let planned = CampaignManifest { plan_sha256, ..draft };
    if rehearsal.rules_sha256 != planned.rules_sha256() {
        return other("is of other rules than the draft's: simulate again".to_owned());
    }
    Ok(CampaignManifest {
        rehearsal_sha256: Some(rehearsal.sha256()),
        ..planned
    })
}

/// Binds a draft to its plan: writes manifest and plan, and stages the manifest in `campaigns.json` for the approvers.
/// `announced` is the digest that came with the plan.
pub fn adopt_plan(
    folder: &mut TrustFolder,
    draft: CampaignManifest,
    plan_bytes: &[u8],
    announced: Sha256,
    expires: WallTime,
) -> Result<(CampaignManifest, Plan), CampaignError> {
    let other = |problem: String| CampaignError::OtherPlan { problem };
    let plan_sha256 = Sha256::of(plan_bytes);
    if plan_sha256 != announced {
        return Err(other(format!(
            "has the sha256 digest {plan_sha256}, announced was {announced}"
        )));
    }
    if plan_bytes.len() as u64 > PLAN_BYTES_MAX {
        return Err(other(format!(
            "has {} bytes, at most {PLAN_BYTES_MAX} are read",
            plan_bytes.len()
        )));
    }
    let plan = Plan::from_bytes(plan_bytes)?;
    if plan.campaign != draft.id {
        return Err(other(format!(
            "is of the campaign {}, not of {}",
            plan.campaign, draft.id
        )));
    }
    plan.check_servers(&draft)?;
    for (_, device) in plan.devices() {
        if let Some(target) = draft.unnamed(device) {
            return Err(other(format!(
                "gives {} a release that the campaign does not name: {target}",
                device.device
            )));
        }
    }
    let manifest = CampaignManifest { plan_sha256, ..draft };
    write_file(&folder.plan_path(&manifest.id), plan_bytes)?;
    folder.set_manifest(&manifest, expires)?;
    Ok((manifest, plan))
}

fn draft_path(folder: &TrustFolder, id: &CampaignId) -> PathBuf {
    folder.path().join(format!("campaigns/{id}.draft.json"))
}

/// One more than the highest sequence among the campaigns of the folder.
fn next_sequence(folder: &TrustFolder) -> Result<u64, CampaignError> {
    let mut highest = 0;
    for (id, _) in folder.campaigns() {
        match read_bounded(&folder.manifest_path(&id), MANIFEST_BYTES_MAX) {
            Ok(bytes) => highest = highest.max(CampaignManifest::from_bytes(&bytes)?.sequence),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(highest.saturating_add(1))
}
