//! Errors as RFC 9457 has them, and JSON bodies whose mistakes become such errors.

use axum::{
    Extension, Json,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use firmesh_coordinator_core::{InputError, PlanError};
use firmesh_protocol::api::Problem;
use serde::de::DeserializeOwned;
use tracing::error;

use crate::{
    approval::ApprovalError,
    brakes::BrakeActionError,
    enrolment::EnrolError,
    origin::{ImportError, SliceError},
    publish::PublicationError,
    rollback::RollbackError,
    runtime::{ActionError, PublishActionError},
    store::StoreError,
    sync::SyncError,
    telemetry::chain,
    vetting::VettingError,
};

/// The problems of the operators' face by code, with what they mean. Publications and brakes that are refused have the
/// codes of the verifier and of the provenance policy (`provenance_...`) as well.
pub(crate) const PROBLEMS: &[(&str, &str)] = &[
    (
        "answer_not_kept",
        "the request was carried out before, its answer was not kept",
    ),
    ("archive_running", "one run of the archive at a time"),
    ("artifact_damaged", "an image or an archive cannot be read"),
    ("artifact_missing", "a release's image was not imported"),
    ("bad_body", "the body is not what is expected"),
    ("bad_cursor", "the cursor is not one that this list gave"),
    ("bad_draft", "the campaign's draft does not hold together"),
    (
        "bad_filter",
        "the filter is not in the filter language; the detail names the column",
    ),
    ("bad_idempotency_key", "the Idempotency-Key is no key"),
    ("bad_publication", "the publication does not hold together"),
    ("bad_request", "a name or parameter is not what is expected"),
    ("bad_revocation", "the node cannot be revoked so"),
    ("bad_upload", "the image is empty, or broke off"),
    ("braked", "a signed brake forbids it"),
    ("brakes_full", "no more brakes are kept"),
    ("bucket", "the bucket in which images lie refused, or cannot be reached"),
    ("busy", "one rehearsal, or one test of a destination, at a time"),
    (
        "campaign_signed",
        "what was signed is changed by signing another edition",
    ),
    ("campaign_started", "a campaign that has started is changed no more"),
    (
        "cannot_be_planned",
        "the campaign cannot be planned against this inventory",
    ),
    ("cannot_be_rehearsed", "the campaign cannot be rehearsed"),
    ("changed_meanwhile", "somebody else changed it since it was read"),
    ("changed_version", "another file has this version already"),
    (
        "deprecated_release",
        "nothing is to be planned with that release any more",
    ),
    (
        "directory_silent",
        "the directory or the identity provider cannot be reached",
    ),
    ("disk", "the coordinator's disk refused"),
    ("dynamic_group", "members of a dynamic group follow from its rule"),
    ("encoding", "the answer could not be written"),
    ("erased", "the device was erased, and its name is never given again"),
    ("exists", "the name is taken"),
    (
        "forbidden",
        "the policy does not allow it; the detail names the permission, and who has it",
    ),
    ("foreign_origin", "a page of another origin asked for a stream"),
    ("groups_full", "no more groups are kept"),
    ("hash_mismatch", "the bytes are not the ones that were announced"),
    (
        "hook_not_configured",
        "the strategy has webhooks move traffic that the coordinator does not know",
    ),
    ("idempotency", "a request with a key came to no end"),
    ("idempotency_full", "no more answers are kept for keys"),
    ("idempotency_key_reused", "the key belongs to another request"),
    ("if_match_required", "the change must name what it changes"),
    ("in_flight", "the device is being updated"),
    ("incomplete_repository", "the published repository lacks a file"),
    ("key_revoked", "the API key was revoked"),
    ("keys_full", "no more API keys are kept"),
    (
        "no_client_secret",
        "the coordinator cannot read its own secret at the identity provider",
    ),
    ("no_randomness", "the machine has no randomness"),
    ("no_such_method", "the method is not for this path"),
    (
        "nobody_leads",
        "of several coordinators none leads at the moment, or another one by now",
    ),
    (
        "not_a_source",
        "the coordinator's configuration names no such source of images",
    ),
    ("not_delivered", "the receiver did not take the test"),
    ("not_found", "there is no such thing"),
    ("not_settled", "the destination has not come that far yet"),
    ("nothing_published", "nothing was published yet"),
    ("nothing_to_approve", "the campaign asks nobody, or not about this"),
    ("nothing_to_close", "nothing of it is open"),
    ("nothing_to_replay", "no event is kept from there on"),
    ("nothing_to_roll_back", "no device of the campaign can go back so"),
    ("older_version", "a newer version is in force"),
    ("online_key_missing", "the root does not name this coordinator"),
    ("other_device", "the device is not what is said of it"),
    ("other_image", "what was signed is not what was drafted"),
    ("out_of_range", "the image has no such bytes"),
    (
        "permit_key_missing",
        "the campaign does not name this coordinator's permit key",
    ),
    ("plan_missing", "the campaign's plan is not kept here"),
    ("planner", "the planner failed"),
    ("provenance", "the provenance check failed"),
    ("provenance_policy", "the provenance policy cannot be used"),
    ("provenance_refused", "the provenance policy refuses the release"),
    ("provenance_unvetted", "the release was not judged by the policy"),
    ("records_full", "no more of these are kept"),
    ("rehearsal", "the rehearsal failed"),
    ("request_running", "the first request with this key is not over"),
    ("revoked", "the node was revoked"),
    (
        "rollback_not_approved",
        "the approvers have neither ordered it nor left it to operators",
    ),
    ("stopping", "the coordinator is stopping"),
    ("store", "the database refused"),
    ("sync_running", "one repository sync at a time"),
    ("too_large", "more than is taken"),
    ("too_many_requests", "more requests than the settings allow"),
    (
        "unauthorised",
        "a proof of who asks is needed, or the one that was sent is not good",
    ),
    ("unknown_device", "no node has told of such a device"),
    ("unknown_release", "there is no such published release"),
    ("unsigned_manifest", "a manifest's signature is missing"),
    ("unsupported_model", "no published release is for such a device"),
    ("upload_busy", "another request appends to the upload"),
    ("uploads_full", "no more uploads are kept"),
    ("wrong_offset", "the upload stands elsewhere"),
    ("wrong_state", "not in the state that it is in"),
];

/// A problem on its way out.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Problem);

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self(Problem {
            kind: format!("urn:firmesh:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            refused: false,
            request_id: None,
        })
    }

    pub(crate) fn refused(mut self) -> Self {
        self.0.refused = true;
        self
    }

    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} here"))
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            error!(kind = self.0.kind, detail = self.0.detail, "request failed");
        }
        // The outermost layer adds the request's id.
        let problem = Extension(self.0.clone());
        let kind = [(CONTENT_TYPE, "application/problem+json")];
        (status, problem, kind, Json(self.0)).into_response()
    }
}

pub(crate) async fn no_such_route(request: Request) -> Failure {
    Failure::not_found(format!("{} {}", request.method(), request.uri().path()))
}

pub(crate) async fn no_such_method(request: Request) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "no_such_method",
        format!(
            "{} is not for {}: see /api/v1/openapi.json",
            request.method(),
            request.uri().path()
        ),
    )
}

/// A JSON body. What is wrong with it is said by line and column.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection: BytesRejection| {
                let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                    "too_large"
                } else {
                    "bad_body"
                };
                Failure::new(
                    rejection.status(),
                    code,
                    format!("the body cannot be read: {}", rejection.body_text()),
                )
            })?;
        let malformed = |error| {
            Failure::new(
                StatusCode::BAD_REQUEST,
                "bad_body",
                format!("the body is not what is expected here: {error}"),
            )
        };
        serde_json::from_slice(&bytes).map(Self).map_err(malformed)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let detail = chain(&error);
        match error {
            StoreError::Deposed => Self::new(StatusCode::SERVICE_UNAVAILABLE, "nobody_leads", detail),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store", detail),
        }
    }
}

impl From<ActionError> for Failure {
    fn from(error: ActionError) -> Self {
        let detail = chain(&error);
        match error {
            ActionError::Refused(InputError::UnknownCampaign(_)) => {
                Self::new(StatusCode::NOT_FOUND, "not_found", detail)
            }
            ActionError::Refused(InputError::NothingToRollBack(_)) => {
                Self::new(StatusCode::CONFLICT, "nothing_to_roll_back", detail).refused()
            }
            ActionError::Refused(InputError::NothingToClose(_)) => {
                Self::new(StatusCode::CONFLICT, "nothing_to_close", detail).refused()
            }
            ActionError::Refused(InputError::NothingToApprove(_)) => {
                Self::new(StatusCode::CONFLICT, "nothing_to_approve", detail).refused()
            }
            ActionError::Refused(_) | ActionError::Archived(_) | ActionError::AtWork(_) => {
                Self::new(StatusCode::CONFLICT, "wrong_state", detail).refused()
            }
            ActionError::Store(failure) => failure.into(),
            ActionError::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", detail),
        }
    }
}

impl From<RollbackError> for Failure {
    fn from(error: RollbackError) -> Self {
        let detail = chain(&error);
        match error {
            RollbackError::Action(error) => error.into(),
            RollbackError::Order(refused) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, refused.code(), detail).refused()
            }
            RollbackError::NeedsApprovers(_) => {
                Self::new(StatusCode::FORBIDDEN, "rollback_not_approved", detail).refused()
            }
            RollbackError::Braked(_) => Self::new(StatusCode::CONFLICT, "braked", detail).refused(),
            RollbackError::SaidTwice | RollbackError::Request(_) => {
                Self::new(StatusCode::BAD_REQUEST, "bad_body", detail)
            }
            RollbackError::NothingPublished => Self::new(StatusCode::CONFLICT, "nothing_published", detail),
            RollbackError::Policy(_) | RollbackError::Manifest(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store", detail)
            }
        }
    }
}

impl From<ApprovalError> for Failure {
    fn from(error: ApprovalError) -> Self {
        let detail = chain(&error);
        match error {
            ApprovalError::Action(error) => error.into(),
            ApprovalError::Approval(refused) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, refused.code(), detail).refused()
            }
            ApprovalError::Braked(_) => Self::new(StatusCode::CONFLICT, "braked", detail).refused(),
            ApprovalError::NothingPublished => Self::new(StatusCode::CONFLICT, "nothing_published", detail),
            ApprovalError::Policy(_) | ApprovalError::Manifest(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store", detail)
            }
        }
    }
}

impl From<PublishActionError> for Failure {
    fn from(error: PublishActionError) -> Self {
        let detail = chain(&error);
        match error {
            PublishActionError::Action(error) => error.into(),
            PublishActionError::Refused(refused) if refused.is_refusal() => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, publication_code(&refused), detail).refused()
            }
            PublishActionError::Refused(_) => Self::new(StatusCode::BAD_REQUEST, "bad_publication", detail),
        }
    }
}

fn publication_code(error: &PublicationError) -> &'static str {
    match error {
        PublicationError::Refused(error) => error.code(),
        PublicationError::Refresh(error) => error.code(),
        PublicationError::Policy(error) => error.code(),
        PublicationError::Older { .. } => "older_version",
        PublicationError::Changed { .. } => "changed_version",
        PublicationError::NotOnline(_) => "online_key_missing",
        PublicationError::NoArtifact { .. } => "artifact_missing",
        PublicationError::NoPlan { .. } => "plan_missing",
        PublicationError::NotPermitted { .. } => "permit_key_missing",
        PublicationError::Started(_) => "campaign_started",
        PublicationError::Braked(_) => "braked",
        PublicationError::Unsigned { .. } => "unsigned_manifest",
        PublicationError::Unvetted { .. } => "provenance_unvetted",
        PublicationError::Repository(_) => "incomplete_repository",
        _ => "bad_publication",
    }
}

impl From<VettingError> for Failure {
    fn from(error: VettingError) -> Self {
        let detail = chain(&error);
        match error {
            VettingError::Refused { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "provenance_refused", detail).refused()
            }
            VettingError::Evidence { source, .. } => {
                let code = format!("provenance_{}", source.code());
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, &code, detail).refused()
            }
            VettingError::Policy(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "provenance_policy", detail),
            VettingError::Image { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "artifact_damaged", detail),
            VettingError::Write { .. } => Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk", detail),
            VettingError::Bucket(..) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "bucket", detail),
            VettingError::Stopped(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "provenance", detail),
        }
    }
}

impl From<EnrolError> for Failure {
    fn from(error: EnrolError) -> Self {
        let detail = chain(&error);
        match error {
            EnrolError::BadToken(_) => Self::new(StatusCode::FORBIDDEN, "bad_token", detail).refused(),
            EnrolError::Issue(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_csr", detail).refused(),
            EnrolError::Action(error) => error.into(),
            EnrolError::Revoked(_) => Self::new(StatusCode::FORBIDDEN, "revoked", detail).refused(),
            EnrolError::NotCurrent(_) => Self::new(StatusCode::FORBIDDEN, "certificate_not_current", detail).refused(),
            EnrolError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
            EnrolError::BadRevocation(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_revocation", detail),
            EnrolError::NoRandomness(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "no_randomness", detail),
        }
    }
}

impl From<BrakeActionError> for Failure {
    fn from(error: BrakeActionError) -> Self {
        let detail = chain(&error);
        match error {
            BrakeActionError::Refused(error) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.code(), detail).refused()
            }
            BrakeActionError::NothingPublished => Self::new(StatusCode::CONFLICT, "nothing_published", detail),
            BrakeActionError::Full => Self::new(StatusCode::INSUFFICIENT_STORAGE, "brakes_full", detail),
            BrakeActionError::Action(error) => error.into(),
        }
    }
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        let detail = chain(&error);
        match error {
            SyncError::Action(error) => error.into(),
            SyncError::NotStored => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store", detail),
            SyncError::Revoked(_) => Self::new(StatusCode::FORBIDDEN, "revoked", detail).refused(),
            SyncError::NotCurrent(_) => Self::new(StatusCode::FORBIDDEN, "certificate_not_current", detail).refused(),
            SyncError::Envelope { .. } | SyncError::NotItself { .. } | SyncError::Key(_) => {
                Self::new(StatusCode::FORBIDDEN, "bad_signature", detail).refused()
            }
            SyncError::TooMuch { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "too_much", detail),
        }
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        let detail = chain(&error);
        let (status, code) = match &error {
            ImportError::Empty | ImportError::Broken(_) => (StatusCode::BAD_REQUEST, "bad_upload"),
            ImportError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            ImportError::WrongDigest { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "hash_mismatch"),
            ImportError::Disk { .. } => (StatusCode::INSUFFICIENT_STORAGE, "disk"),
            ImportError::Bucket(_) => (StatusCode::INTERNAL_SERVER_ERROR, "bucket"),
        };
        let failure = Self::new(status, code, detail);
        if code == "hash_mismatch" {
            failure.refused()
        } else {
            failure
        }
    }
}

impl From<SliceError> for Failure {
    fn from(error: SliceError) -> Self {
        use firmesh_protocol::chunk::EncodeError;
        let detail = chain(&error);
        match error {
            SliceError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
            SliceError::Encode(EncodeError::OutOfRange { .. }) => {
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "out_of_range", detail)
            }
            SliceError::Disk { .. } | SliceError::Encode(_) | SliceError::Group(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "artifact_damaged", detail)
            }
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let detail = chain(&error);
        match error {
            PlanError::Draft(_) => Self::new(StatusCode::BAD_REQUEST, "bad_draft", detail),
            _ => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "cannot_be_planned", detail).refused(),
        }
    }
}
