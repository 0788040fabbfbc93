//! Who is let in, and how often.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use firmesh_executors::{Secret, ddi::Device};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Face;

/// Requests of one device in a second, and at once after a pause: an installing SWUpdate sends a burst of feedback.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
const BURST: NonZeroU32 = NonZeroU32::new(200).expect("not zero");

/// Requests of one device that are answered at a time: a download, feedback beside it, and those of a connection that broke.
const AT_A_TIME: usize = 8;

/// Longer than any token that is in use.
const AUTHORIZATION_BYTES_MAX: usize = 4 << 10;

/// Lets devices in.
#[derive(Debug)]
pub(super) struct Gate {
    tenant: String,
    gateway_token: Option<Secret>,
    devices: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    device: Arc<Device>,
    rate: DefaultDirectRateLimiter,
    requests: Arc<Semaphore>,
}

/// A device that was let in.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) device: Arc<Device>,
    /// What the links of its resources begin with.
    pub(super) root: String,
    _request: OwnedSemaphorePermit,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turned {
    /// No device, or not this one: there is no telling.
    Away,
    /// One that speaks for all devices names one that is not here.
    Unknown,
    /// It asks too often, or too much at a time.
    Back,
}

impl Gate {
    pub(super) fn new(tenant: String, gateway_token: Option<Secret>, devices: BTreeMap<String, Arc<Device>>) -> Self {
        let place = |device| Place {
            device,
            rate: RateLimiter::direct(Quota::per_second(PER_SECOND).allow_burst(BURST)),
            requests: Arc::new(Semaphore::new(AT_A_TIME)),
        };
        Self {
            tenant,
            gateway_token,
            devices: devices.into_iter().map(|(id, device)| (id, place(device))).collect(),
        }
    }

    /// Lets in whoever shows a token of this device, or the one that speaks for all of them.
    fn enter(&self, tenant: &str, id: &str, authorization: Option<&HeaderValue>) -> Result<&Place, Turned> {
        let place = self.devices.get(id);
        let (is_target, is_gateway) = match authorization.and_then(token) {
            Some((Kind::Target, token)) => (place.is_some_and(|place| place.device.knows_token(token)), false),
            Some((Kind::Gateway, token)) => (false, self.gateway_token.as_ref().is_some_and(|own| own.is(token))),
            None => (false, false),
        };
        match place {
            _ if tenant != self.tenant => Err(Turned::Away),
            Some(place) if is_target || is_gateway => Ok(place),
            None if is_gateway => Err(Turned::Unknown),
            _ => Err(Turned::Away),
        }
    }

    fn admit(
        &self,
        tenant: &str,
        id: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Arc<Device>, OwnedSemaphorePermit), Turned> {
        let place = self.enter(tenant, id, authorization)?;
        place.device.heard();
        if place.rate.check().is_err() {
            return Err(Turned::Back);
        }
        let request = Arc::clone(&place.requests)
            .try_acquire_owned()
            .map_err(|_| Turned::Back)?;
        Ok((Arc::clone(&place.device), request))
    }
}

enum Kind {
    Target,
    Gateway,
}

fn token(header: &HeaderValue) -> Option<(Kind, &str)> {
    let text = header
        .to_str()
        .ok()
        .filter(|text| text.len() <= AUTHORIZATION_BYTES_MAX)?;
    let (scheme, token) = text.trim().split_once(' ')?;
    let kind = match scheme.to_ascii_lowercase().as_str() {
        "targettoken" => Kind::Target,
        "gatewaytoken" => Kind::Gateway,
        _ => return None,
    };
    Some((kind, token.trim()))
}

impl IntoResponse for Turned {
    fn into_response(self) -> Response {
        match self {
            Self::Away => StatusCode::UNAUTHORIZED.into_response(),
            Self::Unknown => StatusCode::NOT_FOUND.into_response(),
            Self::Back => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "5")]).into_response(),
        }
    }
}

impl FromRequestParts<Arc<Face>> for Entered {
    type Rejection = Turned;

    async fn from_request_parts(parts: &mut Parts, face: &Arc<Face>) -> Result<Self, Turned> {
        let params = RawPathParams::from_request_parts(parts, face)
            .await
            .map_err(|_| Turned::Away)?;
        let named = |wanted: &str| {
            let found = params.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| value).ok_or(Turned::Away)
        };
        let (tenant, id) = (named("tenant")?, named("controller")?);
        let authorization = parts.headers.get(header::AUTHORIZATION);
        let (device, request) = face.gate.admit(tenant, id, authorization).inspect_err(|why| {
            if *why != Turned::Back {
                // Not what was shown: it may be another's.
                tracing::warn!(controller = ?id.chars().take(100).collect::<String>(), "somebody was not let in as this device");
            }
        })?;
        Ok(Self {
            device,
            root: format!("{}/{tenant}/controller/v1/{id}", face.base_url),
            _request: request,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_with_its_kind() {
        let read = |text: &'static str| {
            let header = HeaderValue::from_static(text);
            token(&header).map(|(kind, token)| (matches!(kind, Kind::Gateway), token.to_owned()))
        };
        assert_eq!(read("TargetToken abc"), Some((false, "abc".to_owned())));
        assert_eq!(read("gatewaytoken  abc "), Some((true, "abc".to_owned())));
        for other in ["", "abc", "Bearer abc", "TargetToken", "TargetTokenabc"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
