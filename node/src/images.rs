//! Images for the devices of this node: over HTTPS for BMCs that pull, as a stream for executors that push or write.
//!
//! Only artifacts that are complete here are served, each by its BLAKE3 root, with ranges.

use std::{
    collections::BTreeSet,
    io::{self, SeekFrom},
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use axum_server::tls_rustls::RustlsConfig;
use firmesh_executors::{ImageError, ImageReader, ImageSource};
use firmesh_protocol::ids::ArtifactId;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::{io::ReaderStream, sync::CancellationToken};

use crate::{
    places::{CONNECTIONS_MAX, Places},
    store::ChunkStore,
};

/// The complete artifacts of a node.
#[derive(Debug, Clone)]
pub struct Images {
    store: Arc<dyn ChunkStore>,
    complete: Arc<RwLock<BTreeSet<(ArtifactId, u64)>>>,
    base_url: String,
}

/// Read at once from the store while an image is served.
const READ_BYTES: usize = 256 << 10;

/// The image server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the image server cannot listen on {listen}; is another node running there?")]
pub struct ListenError {
    listen: SocketAddr,
    source: io::Error,
}

impl Images {
    /// Opens the listener. URLs name `advertise_host`, or the address itself.
    pub fn listen(
        store: Arc<dyn ChunkStore>,
        listen: SocketAddr,
        advertise_host: Option<&str>,
    ) -> Result<(Self, std::net::TcpListener), ListenError> {
        let failed = |source| ListenError { listen, source };
        let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let base_url = match advertise_host {
            Some(host) => format!("https://{host}:{}/images", addr.port()),
            None => format!("https://{addr}/images"),
        };
        let complete = Arc::default();
        Ok((
            Self {
                store,
                complete,
                base_url,
            },
            listener,
        ))
    }

    /// What every image's URL begins with.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Serves until `cancel`.
    pub async fn serve(self, listener: std::net::TcpListener, tls: rustls::ServerConfig, cancel: CancellationToken) {
        let handle = axum_server::Handle::new();
        let router = Router::new().route("/images/{artifact}", get(image)).with_state(self);
        let stopping = handle.clone();
        let stop = async move {
            cancel.cancelled().await;
            stopping.graceful_shutdown(Some(Duration::from_millis(500)));
        };
        let server = match axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(Arc::new(tls))) {
            Ok(server) => server
                .map(|acceptor| Places::before(acceptor, CONNECTIONS_MAX))
                .handle(handle)
                .serve(router.into_make_service()),
            Err(error) => return tracing::error!(%error, "the image server did not start"),
        };
        let (served, ()) = tokio::join!(server, stop);
        if let Err(error) = served {
            tracing::error!(%error, "the image server stopped");
        }
    }

    /// Notes an artifact that is complete and verified here.
    pub fn add(&self, artifact: ArtifactId, length: u64) {
        let mut complete = self.complete.write().unwrap_or_else(PoisonError::into_inner);
        complete.insert((artifact, length));
    }

    /// Notes that an artifact is not whole any more.
    pub fn remove(&self, artifact: ArtifactId) {
        let mut complete = self.complete.write().unwrap_or_else(PoisonError::into_inner);
        complete.retain(|(id, _)| *id != artifact);
    }

    /// The answer to a request for an image, or for a range of it, and whether that goes to the image's end; nothing if it
    /// is not complete here.
    pub(crate) async fn answer(&self, artifact: ArtifactId, range: Option<&HeaderValue>) -> Option<(Response, bool)> {
        let length = self.length_of(artifact)?;
        let range = match range.map(|value| byte_range(value.to_str().unwrap_or_default(), length)) {
            Some(None) => {
                let content_range = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
                return Some((
                    (StatusCode::RANGE_NOT_SATISFIABLE, content_range).into_response(),
                    false,
                ));
            }
            Some(Some(range)) => Some(range),
            None => None,
        };
        let (start, end) = range.unwrap_or((0, length));
        let mut reader = self.store.reader(artifact);
        if let Err(error) = reader.seek(SeekFrom::Start(start)).await {
            tracing::warn!(%artifact, %error, "an image could not be read");
            return Some((StatusCode::INTERNAL_SERVER_ERROR.into_response(), false));
        }
        let body = Body::from_stream(ReaderStream::with_capacity(reader.take(end - start), READ_BYTES));
        let mut response = Response::new(body);
        let fields = response.headers_mut();
        fields.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        fields.insert(header::CONTENT_LENGTH, (end - start).into());
        if range.is_some() {
            let value = format!("bytes {start}-{}/{length}", end - 1);
            if let Ok(value) = value.parse() {
                fields.insert(header::CONTENT_RANGE, value);
            }
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Some((response, end == length))
    }

    fn length_of(&self, artifact: ArtifactId) -> Option<u64> {
        let complete = self.complete.read().unwrap_or_else(PoisonError::into_inner);
        complete
            .range((artifact, 0)..=(artifact, u64::MAX))
            .next()
            .map(|(_, length)| *length)
    }
}

impl ImageSource for Images {
    fn open(&self, artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        async move {
            if self.length_of(artifact).is_none() {
                let source = "it is not complete here".into();
                return Err(ImageError {
                    artifact,
                    retry: true,
                    source,
                });
            }
            let reader: ImageReader = Box::pin(self.store.reader(artifact));
            Ok(reader)
        }
        .boxed()
    }

    fn url(&self, artifact: ArtifactId) -> String {
        format!("{}/{artifact}", self.base_url)
    }
}

async fn image(State(images): State<Images>, Path(artifact): Path<String>, headers: HeaderMap) -> Response {
    let answer = match artifact.parse() {
        Ok(id) => images.answer(id, headers.get(header::RANGE)).await,
        Err(_) => None,
    };
    match answer {
        Some((response, _)) => response,
        None => (StatusCode::NOT_FOUND, "no such image is complete at this node\n").into_response(),
    }
}

/// One range of the forms `bytes=a-b`, `bytes=a-`, `bytes=-n`, as start and end (exclusive).
fn byte_range(value: &str, length: u64) -> Option<(u64, u64)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (first.parse::<u64>().ok(), last.parse::<u64>().ok()) {
        (Some(start), Some(last)) => (start, last.saturating_add(1).min(length)),
        (Some(start), None) if last.is_empty() => (start, length),
        (None, Some(suffix)) if first.is_empty() => (length.saturating_sub(suffix), length),
        _ => return None,
    };
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::byte_range;

    #[test]
    fn ranges_are_read_as_http_means_them() {
        assert_eq!(byte_range("bytes=0-9", 100), Some((0, 10)));
        assert_eq!(byte_range("bytes=90-", 100), Some((90, 100)));
        assert_eq!(byte_range("bytes=-10", 100), Some((90, 100)));
        assert_eq!(byte_range("bytes=50-900", 100), Some((50, 100)));
        for bad in [
            "bytes=100-",
            "bytes=9-2",
            "bytes=-0",
            "bytes=a-b",
            "items=0-9",
            "bytes=0-1,5-6",
            "bytes=-",
            "",
        ] {
            assert_eq!(byte_range(bad, 100), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_range_lies_within_the_file(value in "(bytes=)?[0-9, -]{0,24}|.{0,24}", length in 0_u64..1 << 40) {
            if let Some((start, end)) = byte_range(&value, length) {
                prop_assert!(start < end && end <= length, "{value:?} of {length} is {start}..{end}");
            }
        }
    }
}
