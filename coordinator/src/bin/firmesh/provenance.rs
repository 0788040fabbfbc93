//! Where images come from, judged by the operator's policy before anybody signs for them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Context as _;
use clap::Args;
use firmesh_coordinator::{
    ceremony::{TrustFolder, read_bounded},
    provenance::{
        Evidence, EvidenceFolder, Image, Kind, Match, Policy, SBOM_BYTES_MAX, SIGNATURE_BYTES_MAX, SbomFormat,
        SignatureFile, Verdict,
    },
};
use firmesh_protocol::{
    ids::Sha256,
    manifest::{Artifact, FileRef, Provenance, Release, ReleaseInfo},
};
use serde_json::json;

use crate::{
    client::Client,
    now,
    output::{self, Output},
};

/// More advisories than a person reads at once; `--json` has them all.
const ADVISORIES_SHOWN: usize = 50;

/// The policy that images have to meet.
#[derive(Debug, Args)]
pub(crate) struct PolicyFile {
    /// Judge where images come from by this policy (TOML); what it refuses is not signed.
    #[arg(long, env = "FIRMESH_PROVENANCE_POLICY", value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// What is presented for an image.
#[derive(Debug, Args)]
pub(crate) struct Presented {
    #[command(flatten)]
    policy: PolicyFile,
    /// A detached signature of the vendor (repeat): rsa:FILE, cms:FILE or openpgp:FILE.
    #[arg(long, value_name = "KIND:FILE")]
    signature: Vec<SignatureArg>,
    /// What is in the image: CycloneDX or SPDX, JSON.
    #[arg(long, value_name = "FILE")]
    sbom: Option<PathBuf>,
}

/// The policy that releases have to meet before they are signed.
#[derive(Debug, Args)]
pub(crate) struct BeforeSigning {
    #[command(flatten)]
    policy: PolicyFile,
    /// An image, or a folder of images, to check signatures again that are not over its SHA-256 alone (repeat).
    #[arg(long, value_name = "PATH")]
    image: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
struct SignatureArg {
    kind: Kind,
    file: PathBuf,
}

impl FromStr for SignatureArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, file) = text.split_once(':').ok_or("write rsa:FILE, cms:FILE or openpgp:FILE")?;
        let kinds = [Kind::Rsa, Kind::Cms, Kind::Openpgp];
        let kind = kinds.into_iter().find(|known| known.name() == kind);
        Ok(Self {
            kind: kind.ok_or("the kind must be rsa, cms or openpgp")?,
            file: file.into(),
        })
    }
}

impl PolicyFile {
    fn load(&self) -> anyhow::Result<Option<Policy>> {
        Ok(self.policy.as_deref().map(Policy::load).transpose()?)
    }
}

impl Presented {
    /// Judges an image. Nothing at all if there is no policy; an error if there is one and it refuses.
    pub(crate) fn judge(
        &self,
        file: &Path,
        vendor: &str,
        output: &Output,
    ) -> anyhow::Result<Option<(Verdict, Evidence)>> {
        let Some(policy) = self.policy.load()? else {
            anyhow::ensure!(
                self.signature.is_empty() && self.sbom.is_none(),
                "signatures and SBOMs are judged by a policy: name it with --policy or FIRMESH_PROVENANCE_POLICY"
            );
            return Ok(None);
        };
        let read = |argument: &SignatureArg| {
            anyhow::Ok(SignatureFile {
                kind: argument.kind,
                bytes: read_bounded(&argument.file, SIGNATURE_BYTES_MAX)?,
            })
        };
        let sbom = self.sbom.as_deref().map(|file| read_bounded(file, SBOM_BYTES_MAX));
        let evidence = Evidence {
            signatures: self.signature.iter().map(read).collect::<anyhow::Result<_>>()?,
            sbom: sbom.transpose()?,
        };
        let verdict = Verdict::of(&policy, vendor, &Image::read(file)?, &evidence, now(), None);
        refuse_if_bad(&file.display().to_string(), &verdict, *output)?;
        Ok(Some((verdict, evidence)))
    }
}

/// `firmesh release check`: the verdict, and nothing is staged.
pub(crate) fn check(file: &Path, vendor: &str, presented: &Presented, output: &Output) -> anyhow::Result<()> {
    let (verdict, _) = presented
        .judge(file, vendor, output)?
        .context("there is nothing to judge by: name a policy with --policy or FIRMESH_PROVENANCE_POLICY")?;
    output.show(&verdict, || lines(&verdict))
}

/// Stores a verdict beside the release that will name it.
pub(crate) fn keep(folder: &TrustFolder, verdict: &Verdict, evidence: &Evidence) -> anyhow::Result<Provenance> {
    Ok(EvidenceFolder::beside(folder.path()).keep(verdict, evidence)?)
}

/// Judges every release of a folder again, by the policy of whoever is about to sign.
pub(crate) fn before_signing(what: &BeforeSigning, folder: &TrustFolder, output: &Output) -> anyhow::Result<()> {
    let Some(policy) = what.policy.load()? else {
        return Ok(());
    };
    let images = images(&what.image)?;
    let evidence = EvidenceFolder::beside(folder.path());
    for release in releases(folder)? {
        let found = images.get(&release.artifact.sha256);
        let known = Image::known(&release.artifact);
        let judged = evidence.judge(&policy, &release, found.unwrap_or(&known), now(), found.is_none());
        let verdict = judged
            .map_err(|error| output::Verdict::Refused(format!("{}: {}: {error}", release.target, error.code())))?;
        refuse_if_bad(&release.target, &verdict, *output)?;
        if !output.is_json() {
            output.text(&format!("{}: the vendor's word is good\n", release.target))?;
            for line in lines(&verdict) {
                output.text(&format!("  {line}\n"))?;
            }
        }
    }
    Ok(())
}

/// `firmesh release show`: a release of the trust folder, and what is recorded of where it comes from.
pub(crate) fn show(folder: &TrustFolder, target: &str, output: &Output) -> anyhow::Result<()> {
    let release = releases(folder)?.into_iter().find(|release| release.target == target);
    let release = release.with_context(|| format!("there is no release {target} in {}", folder.path().display()))?;
    let recorded = release.info.provenance.as_ref();
    let record = recorded.map(|provenance| EvidenceFolder::beside(folder.path()).load(&release, provenance));
    let verdict = record.transpose()?.map(|(verdict, _)| verdict);
    output.show(&json!({ "release": release, "verdict": verdict }), || {
        let Artifact { id, sha256, length } = &release.artifact;
        let info = &release.info;
        let head = [
            format!(
                "{target}: {} {} {} {}",
                info.vendor,
                info.models.join("/"),
                info.component,
                info.version
            ),
            format!("blake3  {id}"),
            format!("sha256  {sha256}"),
            format!("bytes   {length}"),
        ];
        let told = verdict
            .as_ref()
            .map_or_else(|| vec!["nothing is recorded of where it comes from".to_owned()], lines);
        head.into_iter().chain(told).collect()
    })
}

/// Gives the coordinator what the releases of a folder name as evidence.
pub(crate) async fn upload(folder: &TrustFolder, client: &Client) -> anyhow::Result<()> {
    let evidence = EvidenceFolder::beside(folder.path());
    for release in releases(folder)? {
        let Some(provenance) = &release.info.provenance else {
            continue;
        };
        let (_, presented) = evidence.load(&release, provenance)?;
        let (file, target) = (provenance.verdict, &release.target);
        let verdict = evidence.get("the verdict", file, file.length, target)?;
        let signatures = presented.signatures.into_iter().map(|signature| signature.bytes);
        for bytes in signatures.chain(presented.sbom).chain([verdict]) {
            let (length, sha256) = (bytes.len() as u64, Sha256::of(&bytes));
            let stored: FileRef = client.upload("/api/v1/evidence", length, bytes.into()).await?;
            anyhow::ensure!(
                stored == FileRef { sha256, length },
                "the coordinator stored {}, sent was {sha256}",
                stored.sha256
            );
        }
    }
    Ok(())
}

/// The releases of a folder, as far as they are releases.
fn releases(folder: &TrustFolder) -> anyhow::Result<Vec<Release>> {
    let targets = folder.repository().releases().targets.iter();
    let release = |(name, target): (&String, &firmesh_protocol::trust::Target)| {
        let info: ReleaseInfo = serde_json::from_value(target.custom.clone().unwrap_or_default())
            .with_context(|| format!("{name} is not a usable release"))?;
        let sha256 = target.sha256().with_context(|| format!("{name} has no SHA-256"))?;
        Ok(Release {
            target: name.clone(),
            artifact: Artifact {
                id: info.blake3,
                sha256,
                length: target.length,
            },
            info,
        })
    };
    targets.map(release).collect()
}

fn images(paths: &[PathBuf]) -> anyhow::Result<BTreeMap<Sha256, Image>> {
    let mut images = BTreeMap::new();
    for path in paths {
        let mut files = vec![path.clone()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
            files = entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()
                .with_context(|| format!("cannot read {}", path.display()))?;
            files.retain(|file| file.is_file());
        }
        for file in files {
            let image = Image::read(&file)?;
            images.insert(image.sha256(), image);
        }
    }
    Ok(images)
}

/// Exit status 3 with every reason, the whole verdict before it for machines.
fn refuse_if_bad(what: &str, verdict: &Verdict, output: Output) -> anyhow::Result<()> {
    if verdict.accepted {
        return Ok(());
    }
    if output.is_json() {
        output.show(verdict, Vec::new)?;
    }
    Err(output::Verdict::Refused(format!("{what}: {}", verdict.refusal())).into())
}

fn lines(verdict: &Verdict) -> Vec<String> {
    let mut lines = vec![format!(
        "{} by the policy {} at {}",
        if verdict.accepted { "accepted" } else { "refused" },
        &verdict.policy_sha256.to_string()[..16],
        verdict.checked_at
    )];
    for told in &verdict.signatures {
        lines.push(match &told.signed_by {
            None => format!("{} signature: no signer of the policy", told.kind),
            Some(signed) => {
                let subject = signed
                    .subject
                    .as_ref()
                    .map_or_else(String::new, |subject| format!(" ({subject})"));
                let at = signed.signed_at.map_or_else(String::new, |at| format!(", {at}"));
                let (signer, algorithm, fingerprint) = (&signed.signer, &signed.algorithm, &signed.fingerprint);
                format!(
                    "{} signature: {signer}{subject}, {algorithm}, key {fingerprint}{at}",
                    told.kind
                )
            }
        });
    }
    if let Some(sbom) = &verdict.sbom {
        let format = match sbom.format {
            Some(SbomFormat::CycloneDx) => "CycloneDX",
            Some(SbomFormat::Spdx) => "SPDX",
            None => "unreadable",
        };
        let version = sbom.spec_version.as_deref().unwrap_or_default();
        lines.push(format!(
            "SBOM: {format} {version}, {} components, sha256 {}",
            sbom.components, sbom.sha256
        ));
        lines.push(format!("advisories: {} match", verdict.advisories.len()));
        let told = |found: &Match| {
            let version = found.version.as_deref().unwrap_or("of unknown version");
            let severity = format!("{:?}", found.severity).to_lowercase();
            let aliases = found
                .aliases
                .iter()
                .map(|alias| format!(" {alias}"))
                .collect::<String>();
            format!("  {}{aliases} ({severity}): {} {version}", found.id, found.component)
        };
        lines.extend(verdict.advisories.iter().take(ADVISORIES_SHOWN).map(told));
    }
    let mark = |blocks| if blocks { "REFUSED" } else { "noted" };
    lines.extend(
        verdict
            .findings
            .iter()
            .map(|found| format!("{}: {}: {}", mark(found.blocks), found.code, found.detail)),
    );
    lines
}
