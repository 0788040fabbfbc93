//! The operators' API with other people's software: schemathesis reads our OpenAPI document and compares what it says
//! with what the coordinator answers; tus-py-client uploads an image; and a coordinator is killed in the middle of one.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use firmesh_protocol::{
    api::{Page, UploadView},
    ids::Sha256,
    manifest::Artifact,
};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    python::{python_with, run},
    setup::rules,
};
use serde_json::Value;

/// Kept between runs, for pip's sake.
const VENVS: &str = env!("CARGO_TARGET_TMPDIR");
const SCHEMATHESIS: [&str; 1] = ["schemathesis==4.32.5"];
const TUS_CLIENT: [&str; 1] = ["tuspy==1.1.0"];

fn small() -> Shape {
    Shape {
        racks: 1,
        nodes: 1,
        bmcs: 1,
        hosts: 0,
        ..Shape::default()
    }
}

/// A few requests for every operation, the same ones every time. `cargo demo api-fuzz` makes many more, and says which
/// checks are left out and why.
#[tokio::test]
async fn schemathesis_meets_no_answer_that_the_document_does_not_have() -> Result<()> {
    let python = python_with(Path::new(VENVS), "schemathesis", &SCHEMATHESIS)?;
    Cluster::with(small(), async |fleet| {
        fleet.approve_campaign("spring", &rules(1, (120, 20)))?;
        let token = fs::read_to_string(fleet.folder().join("coordinator/operator.token"))?;
        let document = format!("{}/api/v1/openapi.json", fleet.url());
        let header = format!("Authorization: Bearer {}", token.trim());
        let said = run(
            &python,
            [
                "-m",
                "schemathesis.cli",
                "run",
                &document,
                "--header",
                &header,
                "--phases=fuzzing",
                "--max-examples=4",
                "--seed=1",
                "--checks=all",
                "--exclude-checks=positive_data_acceptance,negative_data_rejection,missing_required_header",
                "--exclude-path-regex=^/api/(v1/(events|stream/.*|simulations|repository/sync)|firmware/repository/sync)$",
                // It can make no body of this type.
                "--exclude-operation-id=patch_uploads_id",
                "--suppress-health-check=all",
                "--generation-database=none",
                "--no-shrink",
                "--warnings=off",
                "--continue-on-failure",
                "--no-color",
                "--report=ndjson",
                "--report-ndjson-path=/dev/null",
            ],
        )?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(said.contains("generated"), "schemathesis made no requests: {said}");
        // Whoever has asked all that has broken nothing.
        let campaigns: Value = get(fleet, "/api/v1/campaigns").await?;
        ensure!(campaigns["items"][0]["id"] == "spring", "{campaigns}");
        Ok(())
    })
    .await
}

async fn get<T: serde::de::DeserializeOwned>(fleet: &Cluster, path: &str) -> Result<T> {
    firmesh_tests::setup::get(fleet.http(), &format!("{}{path}", fleet.url())).await
}

async fn tus(
    fleet: &Cluster,
    method: &str,
    path: &str,
    headers: &[(&str, String)],
    body: Vec<u8>,
) -> Result<reqwest::Response> {
    let token = fs::read_to_string(fleet.folder().join("coordinator/operator.token"))?;
    let url = format!("{}{path}", fleet.url());
    let mut request = fleet.http().request(method.parse()?, url).bearer_auth(token.trim());
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    Ok(request
        .header("tus-resumable", "1.0.0")
        .body(body)
        .send()
        .await?
        .error_for_status()?)
}

/// The coordinator dies without a word in the middle of an upload. What it had acknowledged is there, and the operator's
/// command sends the rest.
#[tokio::test]
async fn an_upload_survives_the_death_of_the_coordinator() -> Result<()> {
    let python = python_with(Path::new(VENVS), "tus-client", &TUS_CLIENT)?;
    Cluster::with(small(), async |fleet| {
        let mut image = vec![0; 8 << 20];
        getrandom::fill(&mut image).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        fs::write(fleet.folder().join("large.bin"), &image)?;
        let digest = Sha256::of(&image);
        let encoded = |text: &str| BASE64.encode(text.as_bytes());
        let announce = [
            ("upload-length", image.len().to_string()),
            ("upload-metadata", format!("sha256 {}", encoded(&digest.to_string()))),
        ];
        let begun = tus(fleet, "POST", "/api/v1/uploads", &announce, Vec::new()).await?;
        let place = begun.headers()["location"].to_str()?.to_owned();
        let half = image.len() / 2;
        let kind = "application/offset+octet-stream".to_owned();
        let first = [("upload-offset", "0".to_owned()), ("content-type", kind)];
        tus(fleet, "PATCH", &place, &first, image[..half].to_vec()).await?;
        fleet.coordinator.kill()?;
        fleet.restart_coordinator().await?;
        let stands: UploadView = get(fleet, &place).await?;
        ensure!(stands.offset == half as u64, "{stands:?}");
        let added = fleet.operator.ok(&["artifact", "add", "large.bin"])?;
        ensure!(added["sha256"] == digest.to_string(), "{added}");
        // The command went on with this upload, and put it away: another one would have left it.
        let left: Page<UploadView> = get(fleet, "/api/v1/uploads").await?;
        ensure!(left.items.is_empty(), "{left:?}");

        // Other people's client, in pieces of 300 kB.
        fs::write(fleet.folder().join("other.bin"), &image[1..])?;
        fs::write(fleet.folder().join("upload.py"), UPLOAD)?;
        let token = fs::read_to_string(fleet.folder().join("coordinator/operator.token"))?;
        let file = |name: &str| fleet.folder().join(name).display().to_string();
        let (script, path, url) = (
            file("upload.py"),
            file("other.bin"),
            format!("{}/api/v1/uploads", fleet.url()),
        );
        let digest = Sha256::of(&image[1..]).to_string();
        run(&python, [script.as_str(), &url, token.trim(), &path, &digest])?;
        let artifacts: Page<Artifact> = get(fleet, "/api/v1/artifacts").await?;
        let stored = artifacts
            .items
            .iter()
            .find(|artifact| artifact.sha256.to_string() == digest);
        stored.context("tus-py-client's image is not here")?;
        tokio::time::timeout(Duration::from_secs(30), fleet.coordinator.stop(Duration::from_secs(20))).await??;
        Ok(())
    })
    .await
}

const UPLOAD: &str = "
import sys
from tusclient import client
url, token, path, digest = sys.argv[1:]
tus = client.TusClient(url, headers={'Authorization': 'Bearer ' + token})
tus.uploader(path, chunk_size=300_000, metadata={'sha256': digest, 'filename': 'other.bin'}).upload()
";
