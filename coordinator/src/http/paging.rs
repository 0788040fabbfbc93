//! Lists in pages: `?limit=` and an opaque `?cursor=`, which the `Link` header of the page before gives.
//!
//! Invariants: a list is in the order of its ids, so that a page begins after the last id of the one before whatever came
//! or went in between; nothing is kept between two pages; a cursor is good for the list that gave it only.

use std::{ops::Bound, str::FromStr, sync::Arc};

use axum::{
    Json,
    extract::{FromRequestParts, Query},
    http::{StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use data_encoding::BASE64URL_NOPAD;
use firmesh_coordinator_core::{Field, Filter};
use firmesh_protocol::api::Page;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{App, problem::Failure};

/// Rows of a page if nobody says how many.
pub(super) const LIMIT_DEFAULT: u32 = 100;

/// The most rows of a page.
pub(super) const LIMIT_MAX: u32 = 1_000;

/// What a list was asked for.
#[derive(Debug)]
pub(super) struct Listing {
    limit: usize,
    after: Option<String>,
    path: String,
    /// The query without its cursor.
    query: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WithFilter {
    limit: Option<u32>,
    cursor: Option<String>,
    filter: Option<String>,
}

impl FromRequestParts<Arc<App>> for Listing {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Failure> {
        let Plain { limit, cursor } = query(&parts.uri)?;
        Self::new(&parts.uri, limit, cursor.as_deref())
    }
}

/// A list whose handler reads the rest of the query itself.
#[derive(Debug)]
pub(super) struct Plainly(pub(super) Listing);

#[derive(Deserialize)]
struct Beside {
    limit: Option<u32>,
    cursor: Option<String>,
}

impl FromRequestParts<Arc<App>> for Plainly {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Failure> {
        let Beside { limit, cursor } = query(&parts.uri)?;
        Ok(Self(Listing::new(&parts.uri, limit, cursor.as_deref())?))
    }
}

/// A list that knows filters, and looks up what identifies devices itself.
#[derive(Debug)]
pub(super) struct Filtered(pub(super) Listing, pub(super) Option<Filter>);

impl FromRequestParts<Arc<App>> for Filtered {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Failure> {
        let WithFilter { limit, cursor, filter } = query(&parts.uri)?;
        let filter = filter.map(|text| parse_any_filter(&text)).transpose()?;
        Ok(Self(Listing::new(&parts.uri, limit, cursor.as_deref())?, filter))
    }
}

/// A filter from outside. It may be kept, and then would show to anybody what identifies a device.
pub(super) fn parse_filter(text: &str) -> Result<Filter, Failure> {
    let filter = parse_any_filter(text)?;
    if filter.looks_at(&Field::is_of_identity) {
        let detail =
            "what identifies devices to people is looked up by `GET /api/v1/devices?filter=` only: name the devices";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "bad_filter", detail));
    }
    Ok(filter)
}

fn parse_any_filter(text: &str) -> Result<Filter, Failure> {
    let parsed = text.parse();
    parsed.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, "bad_filter", crate::telemetry::chain(&error)))
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Failure> {
    let Query(query) = Query::try_from_uri(uri).map_err(|error| Failure::bad_request(error.body_text()))?;
    Ok(query)
}

impl Listing {
    fn new(uri: &Uri, limit: Option<u32>, cursor: Option<&str>) -> Result<Self, Failure> {
        let limit = limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Failure::bad_request(format!(
                "limit is {limit}, it must be 1 to {LIMIT_MAX}"
            )));
        }
        let path = uri.path().to_owned();
        let after = cursor.map(|cursor| read_cursor(&path, cursor).ok_or_else(bad_cursor));
        let parts = uri.query().unwrap_or_default().split('&');
        let kept: Vec<_> = parts
            .filter(|part| !part.is_empty() && part.split('=').next() != Some("cursor"))
            .collect();
        Ok(Self {
            limit: limit as usize,
            after: after.transpose()?,
            path,
            query: kept.join("&"),
        })
    }

    /// Rows to look up: one more than are shown tells whether there is more.
    pub(super) fn wanted(&self) -> usize {
        self.limit + 1
    }

    /// The id after which the page begins.
    pub(super) fn after<K: FromStr>(&self) -> Result<Option<K>, Failure> {
        let parse = |id: &String| id.parse().map_err(|_| bad_cursor());
        self.after.as_ref().map(parse).transpose()
    }

    /// The same as the beginning of a range.
    pub(super) fn first<K: FromStr>(&self) -> Result<Bound<K>, Failure> {
        Ok(self.after()?.map_or(Bound::Unbounded, Bound::Excluded))
    }

    /// The answer: at most [`Self::wanted`] rows in the order of their ids.
    pub(super) fn page<T: Serialize>(self, items: Vec<T>, id: impl Fn(&T) -> String) -> Response {
        self.page_as(items, id, |item| item)
    }

    /// The same of rows that do not show their ids.
    pub(super) fn page_as<R, T: Serialize>(
        self,
        mut rows: Vec<R>,
        id: impl Fn(&R) -> String,
        show: impl Fn(R) -> T,
    ) -> Response {
        let is_last = rows.len() <= self.limit;
        rows.truncate(self.limit);
        let last = rows.last().filter(|_| !is_last).map(id);
        let items = rows.into_iter().map(show).collect();
        let page = Json(Page { items });
        let Some(last) = last else {
            return page.into_response();
        };
        let cursor = BASE64URL_NOPAD.encode(format!("{}\n{last}", self.path).as_bytes());
        let and = if self.query.is_empty() { "" } else { "&" };
        // A reference to the same path holds behind a proxy with a prefix as well.
        let link = format!("<?{}{and}cursor={cursor}>; rel=\"next\"", self.query);
        ([(header::LINK, link)], page).into_response()
    }

    /// A whole list in the order of its ids, of which one page is shown.
    pub(super) fn page_of<T: Serialize>(
        self,
        items: impl IntoIterator<Item = T>,
        id: impl Fn(&T) -> String,
    ) -> Response {
        let is_after = |item: &T| self.after.as_ref().is_none_or(|after| id(item) > *after);
        let items = items.into_iter().filter(is_after).take(self.wanted()).collect();
        self.page(items, id)
    }
}

fn read_cursor(path: &str, cursor: &str) -> Option<String> {
    let text = String::from_utf8(BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?).ok()?;
    let (of, last) = text.split_once('\n')?;
    (of == path).then(|| last.to_owned())
}

pub(super) fn bad_cursor() -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "bad_cursor",
        "this cursor is not one that this list gave: begin without one",
    )
}
