//! Images in a bucket of an independent S3 server: two coordinators that share nothing but the database and the bucket run a
//! campaign, the second goes on where the first is killed, and what has rotted in the bucket is not served.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, CollectedImages, Page},
    ids::Sha256,
    manifest::Artifact,
};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::{NEW, get, rules},
    wait::{Seen, until},
};

const WITHIN: Duration = Duration::from_secs(240);

/// Sent in more than one part.
const IMAGE_BYTES: usize = 36 << 20;

#[tokio::test]
async fn a_campaign_runs_from_a_bucket_and_its_next_leader_has_never_seen_the_image() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 2,
        bmcs: 1,
        image_bytes: IMAGE_BYTES,
        coordinators: 2,
        bucket: true,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let page: Page<Artifact> = get(fleet.http(), &format!("{}/api/v1/artifacts", fleet.url())).await?;
        let image = page.items.iter().find(|artifact| artifact.length == IMAGE_BYTES as u64);
        let image = image.context("the image is stored")?.clone();
        let (object, replicas) = (
            format!("artifacts/{}.bin", image.id),
            fleet.replicas.as_mut().context("there are several")?,
        );
        let s3 = replicas.s3.as_ref().context("there is a bucket")?;
        let bytes = s3.object(&object).await?;
        ensure!(Sha256::of(&bytes) == image.sha256, "the object is not the image");
        let objects = s3.objects().await?;
        for ending in ["bin", "tree", "recipe"] {
            let name = format!("artifacts/{}.{ending}", image.id);
            ensure!(objects.contains(&name), "{name} is not among {objects:?}");
        }
        // The first leader took it in. No file of it lies with anybody, and the next leader has none of its own.
        let first = replicas.leader(|_| true).await?;
        replicas.members[first].process.kill()?;
        let next = replicas.leader(|at| at != first).await?;
        for member in &replicas.members {
            let staged = fs::read_dir(member.folder.join("coordinator/artifacts"))?.count();
            ensure!(staged == 0, "{staged} files are left in {}", member.folder.display());
        }

        fleet.start_campaign("spring", &rules(1, (120, 20)))?;
        let view = fleet.campaign_ends("spring", WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(
            fleet.running(NEW).await? == fleet.device_count(),
            "{:?}",
            fleet.versions().await?
        );

        let replicas = fleet.replicas.as_ref().context("there are several")?;
        let blocks = fs::read_dir(replicas.members[next].folder.join("coordinator/blocks"))?.count();
        ensure!(blocks > 0, "the image was not served out of the bucket");
        replicas_collect(fleet).await?;

        // Any TUF client may take it out; what it gets is what lies in the bucket, and it checks that.
        let release = format!(
            "{}/api/v1/targets/firmware/{}.acme-r1-bmc-{NEW}",
            fleet.url(),
            image.sha256
        );
        let served = fleet
            .http()
            .get(&release)
            .bearer_auth(fs::read_to_string(replicas.token_file())?.trim());
        let served = served.send().await?.error_for_status()?.bytes().await?;
        ensure!(served[..] == bytes[..], "a TUF client got other bytes");
        Ok(())
    })
    .await
}

/// Nothing that a campaign needs is collected; an image that nobody names is, in the bucket too.
async fn replicas_collect(fleet: &Cluster) -> Result<()> {
    let spare = fleet.folder().join("spare.bin");
    fs::write(&spare, vec![7; 1 << 20])?;
    fleet.operator.ok(&["artifact", "add", "spare.bin"])?;
    let s3 = fleet.replicas.as_ref().and_then(|replicas| replicas.s3.as_ref());
    let s3 = s3.context("there is a bucket")?;
    let before = s3.objects().await?;
    let collect = ["artifact", "collect", "--older-than", "0"];
    let told = fleet.operator.ok(&[&collect[..], &["--dry-run"]].concat())?;
    let told: CollectedImages = serde_json::from_value(told)?;
    ensure!(told.images.len() == 1 && told.images[0].length == 1 << 20, "{told:?}");
    ensure!(s3.objects().await? == before, "a dry run removed something");
    fleet.operator.ok(&collect)?;
    until("the image to be gone", WITHIN, async || {
        let objects = s3.objects().await?;
        let is_there = objects.iter().any(|name| name.contains(&told.images[0].id.to_string()));
        Ok(Seen::when(
            !is_there && objects.len() as u64 == before.len() as u64 - told.files,
            || format!("{objects:?}"),
        ))
    })
    .await?;
    Ok(())
}
