//! The operators' routes and the OpenAPI document about them, added in one call, so that neither has what the other lacks.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    handler::Handler,
    http::{Method, header},
    routing::{MethodRouter, delete, get, options, patch, post, put},
};
use bytes::Bytes;
use firmesh_protocol::api::{Page, Problem};
use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, Content, HttpMethod, InfoBuilder, OpenApiBuilder, PathItem, Paths, Ref, RefOr, Required,
        Response, Schema,
        path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::{ObjectBuilder, Type},
    },
};

use super::{App, admission::Table, problem::PROBLEMS};
use crate::access::Permission;

type Schemas = Vec<(String, RefOr<Schema>)>;

/// Who may use a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Needs {
    /// Everybody: what comes is itself the proof of who asks.
    Nothing,
    /// Who has one of these permissions.
    OneOf(Vec<Permission>),
}

/// One method of one path. Every one says what it [`needs`](Self::needs), or that it is [`open`](Self::open); a test
/// lists those that say neither, and only administrators may use them.
pub(super) struct Op {
    method: HttpMethod,
    needs: Option<Needs>,
    router: MethodRouter<Arc<App>>,
    doc: OperationBuilder,
    schemas: Schemas,
}

impl Op {
    fn new(method: HttpMethod, router: MethodRouter<Arc<App>>, summary: &str) -> Self {
        let changes = method != HttpMethod::Get;
        let mut doc = OperationBuilder::new().summary(Some(summary));
        // No fault of ours (5xx) is an answer that is agreed upon, but for a server that goes, and a full disk.
        let problems = [400, 401, 403, 404, 429, 503].into_iter();
        for status in problems.chain([409, 413, 422, 507].into_iter().filter(|_| changes)) {
            doc = doc.response(status.to_string(), Ref::from_response_name("Problem"));
        }
        Self {
            method,
            needs: None,
            router,
            doc,
            schemas: Vec::new(),
        }
    }

    /// What one must be allowed to do; called again, either is enough.
    pub(super) fn needs(mut self, permission: Permission) -> Self {
        match &mut self.needs {
            Some(Needs::OneOf(permissions)) => permissions.push(permission),
            needs => *needs = Some(Needs::OneOf(vec![permission])),
        }
        self
    }

    /// Nobody has to say who he is.
    pub(super) fn open(mut self) -> Self {
        self.needs = Some(Needs::Nothing);
        self
    }

    pub(super) fn get<H: Handler<T, Arc<App>>, T: 'static>(summary: &str, handler: H) -> Self {
        Self::new(HttpMethod::Get, get(handler), summary)
    }

    /// Every `POST` understands `Idempotency-Key`.
    pub(super) fn post<H: Handler<T, Arc<App>>, T: 'static>(summary: &str, handler: H) -> Self {
        let what =
            "1 to 128 printable characters: sent again with the same request within a day, it gets the same answer";
        Self::new(HttpMethod::Post, post(handler), summary).header("Idempotency-Key", false, what)
    }

    pub(super) fn put<H: Handler<T, Arc<App>>, T: 'static>(summary: &str, handler: H) -> Self {
        Self::new(HttpMethod::Put, put(handler), summary)
    }

    pub(super) fn patch<H: Handler<T, Arc<App>>, T: 'static>(summary: &str, handler: H) -> Self {
        Self::new(HttpMethod::Patch, patch(handler), summary)
    }

    pub(super) fn options<H: Handler<T, Arc<App>>, T: 'static>(summary: &str, handler: H) -> Self {
        Self::new(HttpMethod::Options, options(handler), summary)
    }

    pub(super) fn delete<H: Handler<T, Arc<App>>, T: 'static>(summary: &str, handler: H) -> Self {
        Self::new(HttpMethod::Delete, delete(handler), summary)
    }

    /// The most bytes of a body, where the usual 2 MiB do not do.
    pub(super) fn limit(mut self, bytes: usize) -> Self {
        self.router = self.router.layer(DefaultBodyLimit::max(bytes));
        self
    }

    /// The handler reads the body as it comes, and bounds it itself.
    pub(super) fn unlimited(mut self) -> Self {
        self.router = self.router.layer(DefaultBodyLimit::disable());
        self
    }

    fn parameter(mut self, place: ParameterIn, name: &str, required: bool, what: &str) -> Self {
        self.doc = self.doc.parameter(parameter(place, name, required, what));
        self
    }

    pub(super) fn query(self, name: &str, what: &str) -> Self {
        self.parameter(ParameterIn::Query, name, false, what)
    }

    pub(super) fn required_query(self, name: &str, what: &str) -> Self {
        self.parameter(ParameterIn::Query, name, true, what)
    }

    /// A number in the query.
    pub(super) fn query_number(mut self, name: &str, range: RangeInclusive<u32>, what: &str) -> Self {
        let (first, last) = (f64::from(*range.start()), f64::from(*range.end()));
        let schema = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(first))
            .maximum(Some(last));
        self.doc = self
            .doc
            .parameter(with_schema(ParameterIn::Query, name, false, what, schema));
        self
    }

    pub(super) fn header(self, name: &str, required: bool, what: &str) -> Self {
        let op = self.parameter(ParameterIn::Header, name, required, what);
        match (name, required) {
            ("If-Match", true) => op.refuses(412).refuses(428),
            ("If-Match", false) => op.refuses(412),
            _ => op,
        }
    }

    /// A problem that others do not have.
    pub(super) fn refuses(mut self, status: u16) -> Self {
        let problem = Ref::from_response_name("Problem");
        self.doc = self.doc.response(status.to_string(), problem);
        self
    }

    pub(super) fn paged(self) -> Self {
        self.query_number("limit", 1..=1_000, "rows of a page, 1 to 1000; 100 if absent")
            .query(
                "cursor",
                "where the page begins, as the `Link` header of the page before has it",
            )
    }

    pub(super) fn tagged(self) -> Self {
        self.header(
            "If-None-Match",
            false,
            "the `ETag` of what you have: 304 if it is the same",
        )
        .answer("304", "What you have is still so", None)
    }

    pub(super) fn takes<T: ToSchema>(mut self) -> Self {
        let body = RequestBodyBuilder::new()
            .content("application/json", self.json::<T>())
            .required(Some(Required::True));
        self.doc = self.doc.request_body(Some(body.build()));
        self
    }

    pub(super) fn takes_bytes(self) -> Self {
        self.takes_as("application/octet-stream")
    }

    pub(super) fn takes_as(mut self, kind: &str) -> Self {
        let body = RequestBodyBuilder::new().content(kind, any());
        self.doc = self.doc.request_body(Some(body.required(Some(Required::True)).build()));
        self
    }

    fn answer(mut self, status: &str, what: &str, content: Option<(&str, Content)>) -> Self {
        let mut response = Response::new(what);
        if let Some((kind, content)) = content {
            response.content.insert(kind.to_owned(), content.into());
        }
        self.doc = self.doc.response(status, response);
        self
    }

    pub(super) fn answers<T: ToSchema>(mut self) -> Self {
        let content = self.json::<T>();
        self.answer("200", "OK", Some(("application/json", content)))
    }

    /// A page of rows, which the document names by their own type.
    pub(super) fn answers_page<T: ToSchema>(mut self) -> Self {
        self.schemas.push((T::name().into_owned(), T::schema()));
        self.answers::<Page<T>>()
    }

    pub(super) fn made<T: ToSchema>(mut self) -> Self {
        let content = self.json::<T>();
        self.answer(
            "201",
            "Made; `Location` says where",
            Some(("application/json", content)),
        )
    }

    /// A page of rows, or the same in another form for those who ask for it.
    pub(super) fn answers_page_or<T: ToSchema>(mut self, kind: &str) -> Self {
        self.schemas.push((T::name().into_owned(), T::schema()));
        let mut response = Response::new("OK");
        let json = self.json::<Page<T>>();
        response.content.insert("application/json".to_owned(), json.into());
        response.content.insert(kind.to_owned(), any().into());
        self.doc = self.doc.response("200", response);
        self
    }

    /// What is begun or still needs others.
    pub(super) fn accepted<T: ToSchema>(mut self, what: &str) -> Self {
        let content = self.json::<T>();
        self.answer("202", what, Some(("application/json", content)))
    }

    /// Bytes, or JSON whose exact text matters.
    pub(super) fn answers_as(self, kind: &str) -> Self {
        self.answer("200", "OK", Some((kind, any())))
    }

    /// A part of it, for those who ask for a range.
    pub(super) fn part(self, kind: &str) -> Self {
        self.answer("206", "The range", Some((kind, any()))).refuses(416)
    }

    pub(super) fn empty(self) -> Self {
        self.answer("204", "Done", None)
    }

    pub(super) fn socket(self) -> Self {
        self.answer("101", "A WebSocket; each text message is an Event", None)
            .refuses(426)
    }

    fn json<T: ToSchema>(&mut self) -> Content {
        T::schemas(&mut self.schemas);
        Content::new(Some(<T as PartialSchema>::schema()))
    }
}

fn verb(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "get",
        HttpMethod::Put => "put",
        HttpMethod::Delete => "delete",
        HttpMethod::Patch => "patch",
        HttpMethod::Options => "options",
        _ => "post",
    }
}

fn any() -> Content {
    Content::new(None::<RefOr<Schema>>)
}

fn parameter(place: ParameterIn, name: &str, required: bool, what: &str) -> Parameter {
    with_schema(
        place,
        name,
        required,
        what,
        ObjectBuilder::new().schema_type(Type::String),
    )
}

fn with_schema(place: ParameterIn, name: &str, required: bool, what: &str, schema: ObjectBuilder) -> Parameter {
    let is_required = if required { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(is_required)
        .description(Some(what))
        .schema(Some(schema))
        .build()
}

/// Routes, with what the document says of them.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Arc<App>>,
    paths: Paths,
    schemas: Schemas,
    needs: Vec<(String, HttpMethod, Option<Needs>)>,
}

impl Routes {
    /// Adds a path. Names in braces become parameters.
    pub(super) fn add(&mut self, tag: &str, path: &str, ops: impl IntoIterator<Item = Op>) {
        let (mut methods, mut item) = (MethodRouter::new(), PathItem::default());
        let places = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let places: Vec<_> = places.map(|name| name.trim_start_matches('*')).collect();
        for op in ops {
            let id = path
                .replace("/api/v1/", "")
                .replace(['/', '-', '.'], "_")
                .replace(['{', '}', '*'], "");
            let mut doc = op.doc.tag(tag).operation_id(Some(format!("{}_{id}", verb(&op.method))));
            for name in &places {
                doc = doc.parameter(parameter(ParameterIn::Path, name, true, "which one"));
            }
            item.merge_operations(PathItem::new(op.method.clone(), doc));
            self.needs.push((path.to_owned(), op.method, op.needs));
            methods = methods.merge(op.router);
            self.schemas.extend(op.schemas);
        }
        self.paths.paths.insert(path.replace("{*", "{"), item);
        self.router = std::mem::take(&mut self.router).route(path, methods);
    }

    /// The router, which serves the document as well, and what each route needs.
    pub(super) fn finish(mut self) -> (Router<Arc<App>>, Table) {
        let document: Arc<OnceLock<Bytes>> = Arc::default();
        let served = Arc::clone(&document);
        let serve = move || {
            let bytes = served.get().cloned().unwrap_or_default();
            async move { ([(header::CONTENT_TYPE, "application/json")], bytes) }
        };
        let op = Op::get("This document.", serve)
            .needs(Permission::ApiRead)
            .answers_as("application/json");
        self.add("about", "/api/v1/openapi.json", [op]);
        let text = self.document().to_string();
        document.get_or_init(|| text.into());
        let rows = self.needs.into_iter().map(|(path, method, needs)| {
            // Who forgets it, has it used by administrators only; a test says so as well.
            let needs = needs.unwrap_or_else(|| Needs::OneOf(vec![Permission::AccessManage]));
            let method = match method {
                HttpMethod::Get => Method::GET,
                HttpMethod::Put => Method::PUT,
                HttpMethod::Delete => Method::DELETE,
                HttpMethod::Patch => Method::PATCH,
                HttpMethod::Options => Method::OPTIONS,
                HttpMethod::Head => Method::HEAD,
                HttpMethod::Trace => Method::TRACE,
                HttpMethod::Post => Method::POST,
            };
            ((method, path), needs)
        });
        (self.router, rows.collect())
    }

    fn document(&self) -> serde_json::Value {
        let mut schemas = self.schemas.clone();
        Problem::schemas(&mut schemas);
        let mut components = ComponentsBuilder::new().schema("Problem", Problem::schema());
        let mut known = BTreeSet::new();
        for (name, schema) in schemas {
            if known.insert(name.clone()) {
                components = components.schema(name, schema);
            }
        }
        let mut problem = Response::new("What went wrong, where, and what to do (RFC 9457)");
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        problem
            .content
            .insert("application/problem+json".to_owned(), content.into());
        let info = InfoBuilder::new()
            .title("Firmesh coordinator")
            .version(crate::version());
        let document = OpenApiBuilder::new()
            .info(info.description(Some(ABOUT)).build())
            .paths(self.paths.clone())
            .components(Some(components.response("Problem", problem).build()))
            .build();
        let mut document = serde_json::to_value(document).expect("the document has only text, lists and maps");
        document["x-problem-types"] = PROBLEMS
            .iter()
            .map(|(code, what)| (format!("urn:firmesh:problem:{code}"), json!(what)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        document["x-permissions"] = Permission::ALL
            .iter()
            .map(|permission| (permission.name().to_owned(), json!(permission.what())))
            .collect::<serde_json::Map<_, _>>()
            .into();
        for (path, method, needs) in &self.needs {
            let permissions = match needs {
                Some(Needs::OneOf(permissions)) => permissions.as_slice(),
                Some(Needs::Nothing) => &[],
                None => &[Permission::AccessManage],
            };
            let place = &mut document["paths"][path.replace("{*", "{")][verb(method)];
            place["x-permission"] = permissions.iter().map(|permission| permission.name()).collect();
            if permissions.is_empty() {
                place["security"] = json!([]);
                continue;
            }
            let is_read = permissions.iter().any(|permission| permission.is_to_read()) && *method == HttpMethod::Get;
            place["security"] = match is_read {
                true => json!([{}, { "bearer": [] }]),
                false => json!([{ "bearer": [] }]),
            };
            for status in ["401", "403"] {
                place["responses"][status] = json!({ "$ref": "#/components/responses/Problem" });
            }
        }
        document["components"]["securitySchemes"] = json!({ "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, a token of this coordinator or of its identity provider (both JWT), or the operator token",
        } });
        document
    }
}

const ABOUT: &str = "Every operation needs one of the permissions under `x-permission` (`GET /api/v1/auth/permissions` says \
    who has them); reading may be open on the coordinator's own machine. \
    Errors are problems (RFC 9457) whose types stand under `x-problem-types`; signatures that are refused have the codes of \
    the verifier as well.";

#[cfg(test)]
mod tests {
    /// Who adds a route says who may use it.
    #[test]
    fn every_route_says_what_it_needs() {
        let routes = super::super::operators::routes();
        let silent = routes.needs.iter().filter(|(_, _, needs)| needs.is_none());
        let silent: Vec<_> = silent
            .map(|(path, method, _)| format!("{} {path}", super::verb(method)))
            .collect();
        assert!(silent.is_empty(), "add `.needs(Permission::...)` to: {silent:#?}");
    }

    /// What `Routes` adds is in the document. This finds who adds a route beside it.
    #[test]
    fn no_route_of_the_operators_goes_past_the_document() {
        for (file, text, allowed) in [
            ("access.rs", include_str!("access.rs"), 0),
            ("audit.rs", include_str!("audit.rs"), 0),
            ("campaigns.rs", include_str!("campaigns.rs"), 0),
            ("baselines.rs", include_str!("baselines.rs"), 0),
            ("catalogue.rs", include_str!("catalogue.rs"), 0),
            ("devices.rs", include_str!("devices.rs"), 0),
            ("drafts.rs", include_str!("drafts.rs"), 0),
            ("evidence.rs", include_str!("evidence.rs"), 0),
            ("facade.rs", include_str!("facade.rs"), 0),
            ("links.rs", include_str!("links.rs"), 0),
            ("places.rs", include_str!("places.rs"), 0),
            ("repository.rs", include_str!("repository.rs"), 0),
            ("uploads.rs", include_str!("uploads.rs"), 0),
            ("reports.rs", include_str!("reports.rs"), 0),
            ("firmware.rs", include_str!("firmware.rs"), 0),
            ("groups.rs", include_str!("groups.rs"), 0),
            ("identities.rs", include_str!("identities.rs"), 0),
            ("notifications.rs", include_str!("notifications.rs"), 0),
            ("simulations.rs", include_str!("simulations.rs"), 0),
            ("stream.rs", include_str!("stream.rs"), 0),
            ("targets.rs", include_str!("targets.rs"), 0),
            ("transcripts.rs", include_str!("transcripts.rs"), 0),
            ("dashboard.rs", include_str!("dashboard.rs"), 0),
            // `/health`.
            ("operators.rs", include_str!("operators.rs"), 1),
        ] {
            assert_eq!(text.matches(".route(").count(), allowed, "{file}");
        }
    }

    /// A problem that a client can meet is listed in the document.
    #[test]
    fn every_problem_that_is_named_here_is_listed() {
        let listed: Vec<_> = super::PROBLEMS.iter().map(|(code, _)| *code).collect();
        assert!(listed.is_sorted_by(|a, b| a < b), "in order, and each once");
        let sources = [
            include_str!("access.rs"),
            include_str!("admission.rs"),
            include_str!("baselines.rs"),
            include_str!("catalogue.rs"),
            include_str!("conditions.rs"),
            include_str!("devices.rs"),
            include_str!("drafts.rs"),
            include_str!("evidence.rs"),
            include_str!("facade.rs"),
            include_str!("reports.rs"),
            include_str!("repository.rs"),
            include_str!("uploads.rs"),
            include_str!("firmware.rs"),
            include_str!("groups.rs"),
            include_str!("idempotency.rs"),
            include_str!("identities.rs"),
            include_str!("notifications.rs"),
            include_str!("operators.rs"),
            include_str!("paging.rs"),
            include_str!("problem.rs"),
            include_str!("rates.rs"),
            include_str!("simulations.rs"),
            include_str!("stream.rs"),
            include_str!("transcripts.rs"),
        ];
        // Those of the nodes' face.
        let of_nodes = [
            "bad_csr",
            "bad_signature",
            "bad_token",
            "certificate_not_current",
            "no_certificate",
            "no_turn",
            "too_much",
        ];
        let mut found = 0;
        for part in sources.iter().flat_map(|text| text.split("StatusCode::").skip(1)) {
            let Some(code) = part
                .split_once(',')
                .and_then(|(_, rest)| rest.trim_start().strip_prefix('"'))
            else {
                continue;
            };
            let code = code.split('"').next().unwrap_or_default();
            assert!(
                listed.contains(&code) || of_nodes.contains(&code),
                "{code} is not listed"
            );
            found += 1;
        }
        assert!(found > 40, "{found}");
    }
}
