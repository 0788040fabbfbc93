//! An image to the origin in parts (tus 1.0): what broke off goes on where it stands, in the next run too.

use std::{io::SeekFrom, path::Path, time::Duration};

use anyhow::Context as _;
use data_encoding::BASE64;
use firmesh_protocol::{api::UploadView, manifest::Artifact};
use futures_util::TryStreamExt as _;
use indicatif::ProgressBar;
use reqwest::{Method, header};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::client::{Client, RequestError};

const UPLOADS: &str = "/api/v1/uploads";

/// What is sent in one request: after each the coordinator has it for good.
const PART_BYTES: u64 = 64 << 20;

/// How often a part is tried that does not get through: with pauses of one second to a minute, some minutes.
const TRIES_MAX: u32 = 8;

/// Sends an image, or what is left of it.
pub(crate) async fn send(
    client: &Client,
    file: &Path,
    artifact: &Artifact,
    bar: &ProgressBar,
) -> anyhow::Result<Artifact> {
    let place = begun(client, file, artifact).await?;
    let mut tries = 0;
    loop {
        let sent = match client.get::<UploadView>(&place).await {
            Ok(UploadView {
                artifact: Some(stored), ..
            }) => {
                let forget = |request: reqwest::RequestBuilder| request.header("tus-resumable", "1.0.0");
                client.send(Method::DELETE, &place, forget).await?;
                return Ok(stored);
            }
            Ok(upload) => {
                bar.set_position(upload.offset);
                part(client, file, &place, &upload, bar).await?
            }
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => tries = 0,
            Err(error) if is_worth_a_try(&error) && tries < TRIES_MAX => {
                tries += 1;
                tokio::time::sleep(Duration::from_secs(1 << (tries - 1).min(6))).await;
            }
            Err(error) => {
                return Err(error).context("the upload broke off: the same command goes on where it stands");
            }
        }
    }
}

/// Where to send it: to an upload of the same image that broke off, or to a new one.
async fn begun(client: &Client, file: &Path, artifact: &Artifact) -> anyhow::Result<String> {
    let uploads = client.list::<UploadView>(UPLOADS, &[]).await?;
    let is_it = |upload: &&UploadView| {
        upload.sha256 == artifact.sha256 && upload.length == artifact.length && upload.artifact.is_none()
    };
    if let Some(upload) = uploads.items.iter().find(is_it) {
        return Ok(format!("{UPLOADS}/{}", upload.id));
    }
    let encoded = |text: &str| BASE64.encode(text.as_bytes());
    let name = file
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let metadata = format!(
        "filename {},sha256 {}",
        encoded(&name),
        encoded(&artifact.sha256.to_string())
    );
    let begin = |request: reqwest::RequestBuilder| {
        let request = request
            .header("tus-resumable", "1.0.0")
            .header("upload-metadata", metadata);
        request.header("upload-length", artifact.length)
    };
    let upload: UploadView = client.ask(Method::POST, UPLOADS, begin).await?;
    Ok(format!("{UPLOADS}/{}", upload.id))
}

/// The next part. The file's own errors are final.
async fn part(
    client: &Client,
    file: &Path,
    place: &str,
    upload: &UploadView,
    bar: &ProgressBar,
) -> anyhow::Result<Result<(), RequestError>> {
    let length = PART_BYTES.min(upload.length - upload.offset);
    let unreadable = || format!("cannot read {}", file.display());
    let mut open = tokio::fs::File::open(file).await.with_context(unreadable)?;
    open.seek(SeekFrom::Start(upload.offset))
        .await
        .with_context(unreadable)?;
    let sent = bar.clone();
    let stream = ReaderStream::with_capacity(open.take(length), 1 << 18);
    let stream = stream.inspect_ok(move |chunk| sent.inc(chunk.len() as u64));
    let append = |request: reqwest::RequestBuilder| {
        request
            .header("tus-resumable", "1.0.0")
            .header("upload-offset", upload.offset)
            .header(header::CONTENT_TYPE, "application/offset+octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .body(reqwest::Body::wrap_stream(stream))
    };
    Ok(client.send(Method::PATCH, place, append).await.map(drop))
}

/// Nobody there, a coordinator that goes, or somebody else who appends.
fn is_worth_a_try(error: &RequestError) -> bool {
    match error {
        RequestError::Unreachable { .. } => true,
        RequestError::Problem(problem) => matches!(problem.status, 409 | 429 | 503),
        _ => false,
    }
}
