//! What we publish is TUF to others as well: python-tuf, which shares no code with us, follows our ceremony's metadata
//! and downloads every release and campaign.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::ids::Sha256;
use firmesh_tests::{
    cluster::{Cluster, Shape},
    python::{PYTHON_TUF, python_with, run},
    setup::rules,
};
use serde_json::Value;

/// Kept between runs, for pip's sake.
const VENVS: &str = env!("CARGO_TARGET_TMPDIR");

#[tokio::test]
async fn python_tuf_downloads_every_release_and_campaign_that_we_published() -> Result<()> {
    let python = python_with(Path::new(VENVS), "python-tuf", &PYTHON_TUF)?;
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 1,
        hosts: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        fleet.approve_campaign("spring", &rules(1, (120, 20)))?;
        fleet.approve_campaign("summer", &rules(1, (120, 20)))?;
        let expected = published(fleet)?;
        ensure!(expected.len() == 6, "four releases and two campaigns: {expected:?}");

        let (url, folder) = (fleet.url().to_owned(), fleet.folder().to_owned());
        let (metadata, targets) = (format!("{url}/api/v1/metadata"), format!("{url}/api/v1/targets"));
        let script = folder.join("second_opinion.py");
        fs::write(&script, include_str!("second_opinion.py"))?;
        let root = folder.join("trust/1.root.json").display().to_string();
        let work = folder.join("python-tuf").display().to_string();
        let script = script.display().to_string();
        let names = expected.keys().map(String::as_str);
        let args = [&*script, &root, &metadata, &targets, &work].into_iter().chain(names);
        let said = run(&python, args)?;
        let theirs: Value = serde_json::from_slice(&said.stdout).context("python-tuf's answer is JSON")?;
        for (name, digest) in &expected {
            let path = theirs["targets"][name]
                .as_str()
                .with_context(|| format!("no {name} in {theirs}"))?;
            ensure!(
                Sha256::of(&fs::read(path)?) == *digest,
                "python-tuf stored other bytes for {name}"
            );
        }

        // Our own client, over the same repository, ends with the same versions and the same bytes.
        let ours = folder.join("ours");
        let dir = |name: &str| ours.join(name).display().to_string();
        let (trusted, downloaded) = (dir("metadata"), dir("targets"));
        fleet.operator.ok(&["tuf", "--metadata-dir", &trusted, "init", &root])?;
        let mut download = vec![
            "tuf",
            "download",
            "--metadata-dir",
            &trusted,
            "--metadata-url",
            &metadata,
        ];
        download.extend([
            "--ed25519-only",
            "--target-base-url",
            &targets,
            "--target-dir",
            &downloaded,
        ]);
        download.extend(expected.keys().flat_map(|name| ["--target-name", name]));
        let answer = fleet.operator.ok(&download)?;
        for (role, version) in answer["trusted"].as_object().context("versions by role")? {
            ensure!(theirs["versions"][role] == *version, "{role}: {answer} is not {theirs}");
        }
        for (name, target) in expected
            .keys()
            .zip(answer["targets"].as_array().context("targets in order")?)
        {
            let path = target["path"].as_str().context("a path")?;
            ensure!(
                target["name"] == **name && Sha256::of(&fs::read(path)?) == expected[name],
                "{target}"
            );
        }
        Ok(())
    })
    .await
}

/// Every signed target by name, from the files that people signed.
fn published(fleet: &Cluster) -> Result<BTreeMap<String, Sha256>> {
    let mut targets = BTreeMap::new();
    for file in ["releases.json", "campaigns.json"] {
        let signed: Value = serde_json::from_slice(&fs::read(fleet.folder().join("trust").join(file))?)?;
        for (name, target) in signed["signed"]["targets"].as_object().context("targets by name")? {
            let digest = target["hashes"]["sha256"].as_str().context("a SHA-256 digest")?;
            targets.insert(name.clone(), digest.parse()?);
        }
    }
    Ok(targets)
}
