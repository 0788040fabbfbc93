//! How often one may ask: a bucket for each identity, one for those who read without one, and one for those who are not who
//! they say, on the `governor` crate.

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
    state::{InMemoryState, NotKeyed, keyed::HashMapStateStore},
};

use super::{App, admission::Who, problem::Failure};

type Limiter = RateLimiter<String, HashMapStateStore<String>, DefaultClock, StateInformationMiddleware>;

/// Buckets are looked through for full ones when there are so many. There are never more than identities that were proven.
const BUCKETS_MAX: usize = 10_000;

/// Wrong proofs a second, of everybody together.
const STRANGERS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
const STRANGERS_BURST: NonZeroU32 = NonZeroU32::new(200).expect("not zero");

/// The buckets.
#[derive(Debug)]
pub(crate) struct Rates {
    identities: Limiter,
    strangers: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
    burst: NonZeroU32,
}

impl Rates {
    pub(crate) fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let strangers = Quota::per_second(STRANGERS_PER_SECOND).allow_burst(STRANGERS_BURST);
        Self {
            identities: RateLimiter::hashmap_with_clock(quota, DefaultClock::default()).with_middleware(),
            strangers: RateLimiter::direct(strangers),
            burst,
        }
    }

    /// Whether a request of his that goes no further is one too many.
    pub(super) fn takes(&self, who: &str) -> bool {
        self.identities.check_key(&who.to_owned()).is_ok()
    }

    /// Whether another wrong proof is answered properly.
    pub(super) fn hears_stranger(&self) -> bool {
        self.strangers.check().is_ok()
    }
}

pub(super) fn too_many() -> Failure {
    let detail = "more requests than operators.requests_per_second allows: wait as `Retry-After` says";
    Failure::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail)
}

/// Behind the check of who asks.
pub(super) async fn limit(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    request: Request,
    next: Next,
) -> Response {
    let buckets = &app.rates.identities;
    if buckets.len() > BUCKETS_MAX {
        buckets.retain_recent();
    }
    let (mut response, left, wait) = match buckets.check_key(&who.name) {
        Ok(state) => (
            next.run(request).await,
            state.remaining_burst_capacity(),
            Duration::ZERO,
        ),
        Err(until) => {
            let wait = until.wait_time_from(DefaultClock::default().now());
            (too_many().into_response(), 0, wait.max(Duration::from_millis(1)))
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
