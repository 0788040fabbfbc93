//! How often one may ask: a bucket for operators and one for those who only read, on the `governor` crate.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};

use super::{App, operators::Identity, problem::Failure};

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// The buckets.
#[derive(Debug)]
pub(crate) struct Rates {
    operators: Limiter,
    readers: Limiter,
    burst: NonZeroU32,
}

impl Rates {
    pub(crate) fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let limiter = || {
            let quota = Quota::per_second(per_second).allow_burst(burst);
            RateLimiter::direct(quota).with_middleware()
        };
        Self {
            operators: limiter(),
            readers: limiter(),
            burst,
        }
    }
}

/// Behind the check of who asks.
pub(super) async fn limit(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    request: Request,
    next: Next,
) -> Response {
    let limiter = match identity {
        Identity::Operator => &app.rates.operators,
        Identity::Reader => &app.rates.readers,
    };
    let (mut response, left, wait) = match limiter.check() {
        Ok(state) => (
            next.run(request).await,
            state.remaining_burst_capacity(),
            Duration::ZERO,
        ),
        Err(until) => {
            let wait = until.wait_time_from(DefaultClock::default().now());
            let detail = "more requests than operators.requests_per_second allows: wait as `Retry-After` says";
            let failure = Failure::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail);
            (failure.into_response(), 0, wait.max(Duration::from_millis(1)))
        }
    };
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: u64| headers.insert(name, HeaderValue::from(value));
    set(HeaderName::from_static("ratelimit-limit"), app.rates.burst.get().into());
    set(HeaderName::from_static("ratelimit-remaining"), left.into());
    set(HeaderName::from_static("ratelimit-reset"), seconds);
    if seconds > 0 {
        set(RETRY_AFTER, seconds);
    }
    response
}
