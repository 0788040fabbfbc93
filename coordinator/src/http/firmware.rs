//! `/api/v1/firmware/{name}/download`: an image leaves only to a device whose update it is, or to who may take images out
//! (`artifact:export`), and every time is an entry of the audit log, written before the first byte.

use std::{ops::Range, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use data_encoding::BASE64;
use firmesh_protocol::{api::FirmwareView, audit::Event};

use super::{
    App,
    admission::{Who, may_take_image},
    catalogue::found,
    problem::Failure,
    routes::{Op, Routes},
};
use crate::access::Permission;

type Shared = State<Arc<App>>;

pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "firmware";
    let download = Op::get("The image, or a range of its bytes; logged for auditors.", download)
        .needs(Permission::FirmwareDownload)
        .needs(Permission::ArtifactExport);
    let download = download.header("Range", false, "one range, such as `bytes=0-1048575`");
    routes.add(
        TAG,
        "/api/v1/firmware/{name}/download",
        [download
            .answers_as("application/octet-stream")
            .part("application/octet-stream")],
    );
}

async fn download(
    State(app): Shared,
    Path(name): Path<String>,
    Extension(who): Extension<Who>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let FirmwareView { release, stored, .. } = found(&app, &name).await?.0;
    if !stored {
        return Err(Failure::not_found(format!("image of {}", release.target)));
    }
    may_take_image(&app, &who, &release.target).await?;
    let artifact = release.artifact;
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Some(range) = range_of(asked, artifact.length) else {
        let failure = Failure::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "out_of_range",
            format!("the image has {} bytes", artifact.length),
        );
        let all = [(header::CONTENT_RANGE, format!("bytes */{}", artifact.length))];
        return Ok((all, failure).into_response());
    };
    let is_part = asked.is_some() && range != (0..artifact.length);
    let image = app.origin.read(&artifact, range.clone()).await?;
    let length = range.end - range.start;
    let export = Event::Export {
        target: release.target,
        artifact: artifact.id,
        first: range.start,
        length,
        by: Some(who.name.clone()),
    };
    // Of what is only asked about, no byte leaves.
    if method != Method::HEAD {
        app.store.log_event(export, app.clock.wall()).await?;
    }
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"{}\"", artifact.sha256)),
        (
            header::HeaderName::from_static("repr-digest"),
            format!("sha-256=:{}:", BASE64.encode(artifact.sha256.as_bytes())),
        ),
    ];
    let body = Body::from_stream(image);
    if !is_part {
        return Ok((headers, body).into_response());
    }
    let place = format!("bytes {}-{}/{}", range.start, range.end - 1, artifact.length);
    let part = [(header::CONTENT_RANGE, place)];
    Ok((StatusCode::PARTIAL_CONTENT, headers, part, body).into_response())
}

/// The bytes that are asked for; `None` if the image has none of them. What is not one range of bytes is not understood,
/// and asks for all, as RFC 9110 has it.
fn range_of(asked: Option<&str>, length: u64) -> Option<Range<u64>> {
    let understood = || {
        let (first, last) = asked?.strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| text.parse::<u64>().ok())?
        };
        match (first, last) {
            ("", last) => Some(length.saturating_sub(number(last)?)..length),
            (first, "") => Some(number(first)?..length),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then(|| first..last.saturating_add(1).min(length))
            }
        }
    };
    let range = understood().unwrap_or(0..length);
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_understood_and_anything_else_asks_for_all() {
        for (asked, expected) in [
            (None, Some(0..100)),
            (Some("bytes=0-9"), Some(0..10)),
            (Some("bytes=90-"), Some(90..100)),
            (Some("bytes=-10"), Some(90..100)),
            (Some("bytes=-1000"), Some(0..100)),
            (Some("bytes=50-1000"), Some(50..100)),
            (Some("bytes=100-"), None),
            (Some("bytes=-0"), None),
            (Some("bytes=200-300"), None),
            (Some("bytes=9-0"), Some(0..100)),
            (Some("bytes=0-1,4-5"), Some(0..100)),
            (Some("bytes=+1-5"), Some(0..100)),
            (Some("lines=0-1"), Some(0..100)),
            (Some("bytes=0-18446744073709551615"), Some(0..100)),
            (Some("bytes=99999999999999999999-"), Some(0..100)),
        ] {
            assert_eq!(range_of(asked, 100), expected, "{asked:?}");
        }
    }
}
