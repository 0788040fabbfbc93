//! What comes from outside the fleet: vendors' signatures, bills of materials, advisories, other people's trust bundles.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use firmesh_coordinator::{
    ceremony::TrustBundle,
    provenance::{Advisories, Evidence, Image, Kind, POLICY_SCHEMA, Policy, Sbom, SignatureFile, Verdict},
};
use firmesh_protocol::{time::WallTime, trust::Repository};

use super::targets::{Target, said};

/// What OpenSSL and GnuPG signed for the coordinator's own tests.
fn golden(file: &str) -> PathBuf {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../coordinator/tests/golden/provenance"
    ))
    .join(file)
}

fn golden_bytes(file: &str) -> Result<Vec<u8>> {
    let path = golden(file);
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Every target of a foreign format.
pub(super) fn all(repository: &Repository) -> Result<Vec<Target>> {
    let sboms = vec![golden_bytes("cyclonedx.json")?, golden_bytes("spdx.json")?];
    let listed = Arc::new(Sbom::from_bytes(&sboms[0])?);
    Ok(vec![
        signature("signature-rsa", Kind::Rsa, "rsa.pub", &["rsa.sig"])?,
        signature(
            "signature-cms",
            Kind::Cms,
            "ca.pem",
            &["rsa.cms.der", "rsa.cms.pem", "leaf-p256.cms.der", "p384-sha384.cms.der"],
        )?,
        signature(
            "signature-openpgp",
            Kind::Openpgp,
            "pgp.asc",
            &["pgp-rsa.asc", "pgp-rsa.sig", "pgp-ed25519.sig", "pgp-p256.sig"],
        )?,
        Target::new("sbom", "CycloneDX and SPDX, from a vendor", sboms, |input| {
            Sbom::from_bytes(input).map_err(said).map(drop)
        }),
        Target::new(
            "advisories",
            "OSV advisories, from a public database",
            vec![golden_bytes("osv.json")?],
            move |input| {
                let mut advisories = Advisories::default();
                advisories.add(input).map_err(said)?;
                drop(advisories.matches(&listed));
                Ok(())
            },
        ),
        bundle(repository)?,
    ])
}

fn signature(name: &'static str, kind: Kind, key: &str, signatures: &[&str]) -> Result<Target> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("policy.toml");
    let key = golden(key).display().to_string();
    let (schema, kind_name) = (POLICY_SCHEMA, kind.name());
    fs::write(
        &path,
        format!(
            "schema = {schema:?}\n[[vendor]]\nname = \"Acme\"\n[[vendor.signer]]\nname = \"first\"\n\
             kind = {kind_name:?}\nfile = {key:?}\n"
        ),
    )?;
    let policy = Policy::load(&path)?;
    let image = Image::read(&golden("image.bin"))?;
    // The golden certificates are valid then.
    let at = WallTime::from_unix_seconds(1_795_348_800);
    let seeds = signatures
        .iter()
        .map(|file| golden_bytes(file))
        .collect::<Result<_>>()?;
    Ok(Target::new(
        name,
        "a vendor's detached signature",
        seeds,
        move |input| {
            let evidence = Evidence {
                signatures: vec![SignatureFile {
                    kind,
                    bytes: input.to_vec(),
                }],
                sbom: None,
            };
            let verdict = Verdict::of(&policy, "Acme", &image, &evidence, at, None);
            if verdict.accepted {
                Ok(())
            } else {
                Err(verdict.refusal())
            }
        },
    ))
}

fn bundle(repository: &Repository) -> Result<Target> {
    let text = |bytes| String::from_utf8(bytes).context("metadata is text");
    let metadata = repository
        .files()
        .into_iter()
        .map(|(name, bytes)| Ok((name, text(bytes)?)))
        .collect::<Result<BTreeMap<String, String>>>()?;
    let seed = serde_json::to_vec(&serde_json::json!({"schema": "firmesh.trust-bundle/1", "metadata": metadata}))?;
    let about = "what people pass each other in a ceremony";
    Ok(Target::new("trust-bundle", about, vec![seed], |input| {
        let bundle = TrustBundle::from_bytes(input, Path::new("the input")).map_err(said)?;
        bundle.check().map_err(said)
    }))
}
