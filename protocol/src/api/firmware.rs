//! Releases, their images, and the way from one to the other.

use serde::{Deserialize, Serialize};

use super::SignatureRole;
use crate::{
    ids::{Component, Sha256},
    manifest::{Artifact, OtherComponent, Release, Reversibility},
    time::WallTime,
    version::VersionScheme,
};

/// `GET /api/v1/releases`: one release with where its image lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseView {
    /// The release as signed.
    pub release: Release,
    /// Whether the origin holds the image.
    pub stored: bool,
}

/// What may be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FirmwareState {
    /// It is here, and nobody has signed for it: no device takes it.
    Draft,
    /// Release keys have signed for it: campaigns may name it.
    Approved,
    /// Signed, but an operator has said that nothing is to be planned with it any more.
    Deprecated,
    /// A signed brake forbids it, everywhere and for good.
    Revoked,
}

/// `GET /api/v1/firmware/{name}`: an image with what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FirmwareView {
    /// Its name: the target's without `firmware/`.
    pub name: String,
    /// What may be done with it.
    pub state: FirmwareState,
    /// Why it is deprecated or revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The release: as signed, or as it is to be signed.
    pub release: Release,
    /// Whether the origin holds the image.
    pub stored: bool,
    /// For people.
    pub release_notes: String,
    /// Where the image was mirrored from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// When it was drafted here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<WallTime>,
}

/// `POST /api/v1/firmware`: drafts a release of an image that is here already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFirmware {
    /// Its name; made of vendor, model, component and version, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
    pub name: Option<String>,
    /// The image, which was uploaded before.
    pub sha256: Sha256,
    /// Who makes the devices, as they report it.
    #[schema(min_length = 1, max_length = 128)]
    pub vendor: String,
    /// The models that may take it, as they report them.
    #[schema(min_items = 1, max_items = 256)]
    pub models: Vec<String>,
    /// The component it is for.
    pub component: Component,
    /// The version that a device reports once it runs it. Any scheme.
    #[schema(min_length = 1, max_length = 128)]
    pub version: String,
    /// The security floor; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_epoch: Option<u32>,
    /// The versions from which it may be installed; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_versions: Vec<String>,
    /// How its versions are written; without it none is later than another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_scheme: Option<VersionScheme>,
    /// The first version from which it may be installed; goes with `version_scheme`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128)]
    pub min_from: Option<String>,
    /// What other components of the same unit have to run before, and with, it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub requires: Vec<OtherComponent>,
    /// What no other component of the same unit may run with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub conflicts: Vec<OtherComponent>,
    /// What it takes to go back; `reflash` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reversibility: Option<Reversibility>,
    /// For people, at most 64 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub release_notes: String,
}

/// `POST /api/v1/firmware/{name}/publish`: what is still to be done, which no server can do: signing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FirmwarePublication {
    /// The firmware as it stands.
    pub firmware: FirmwareView,
    /// Whether its signatures are here.
    pub published: bool,
    /// Who has to sign, if they are not; unknown before the first ceremony.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signers: Option<SignatureRole>,
    /// The next steps, offline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<String>,
}

/// `POST /api/v1/firmware/{name}/deprecate`: nothing is to be planned with it any more, or again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Deprecation {
    /// Why; without one, the mark is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 2000)]
    pub reason: Option<String>,
}

/// `GET /api/v1/catalogue`: the versions of a component of a model, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CatalogueEntry {
    /// Who makes the devices.
    pub vendor: String,
    /// Their model.
    pub model: String,
    /// The component.
    pub component: Component,
    /// The versions.
    pub versions: Vec<CatalogueVersion>,
}

/// One version in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CatalogueVersion {
    /// The version.
    pub version: String,
    /// The firmware.
    pub firmware: String,
    /// What may be done with it.
    pub state: FirmwareState,
    /// Whether the origin holds the image.
    pub stored: bool,
}

/// `GET /api/v1/uploads/{id}`: an image on its way here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UploadView {
    /// The upload.
    pub id: String,
    /// The file's name, as the sender has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// SHA-256 that was announced.
    pub sha256: Sha256,
    /// Bytes in all.
    pub length: u64,
    /// Bytes that are here, durably.
    pub offset: u64,
    /// It is forgotten if nothing comes until then.
    pub expires: WallTime,
    /// The image, once all of it was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Artifact>,
}

/// `GET /api/v1/operations/{id}`: work that takes longer than a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OperationView {
    /// The operation. In the order of their ids operations began.
    pub id: String,
    /// What it does: `repository_sync`.
    pub kind: String,
    /// With what.
    pub subject: String,
    /// Where it stands.
    pub state: OperationState,
    /// When it began.
    pub started: WallTime,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<WallTime>,
    /// How far it is, for a person.
    pub progress: String,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<SyncResult>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// It goes on.
    Running,
    /// It is done.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// The coordinator ended before it did: ask for it again, it goes on where it was.
    Interrupted,
}

/// `POST /api/v1/repository/sync`: mirrors the images of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncCatalogue {
    /// The catalogue, http or https.
    #[schema(format = "uri", pattern = "^https?://")]
    pub url: String,
    /// Only images of this vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
}

/// What a sync has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SyncResult {
    /// Images that the catalogue lists.
    pub listed: u32,
    /// Images that were fetched.
    pub fetched: u32,
    /// Their bytes, without what was here from a sync that broke off.
    pub bytes: u64,
    /// Images that were here already.
    pub unchanged: u32,
    /// Releases that were drafted.
    pub drafted: u32,
    /// What could not be mirrored.
    pub failed: Vec<SyncFailure>,
}

/// An image that could not be mirrored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SyncFailure {
    /// The image.
    pub url: String,
    /// Why not.
    pub problem: String,
}

/// The schema name of a [`Catalogue`].
pub const CATALOGUE_SCHEMA: &str = "firmesh-catalogue/1";

/// A catalogue of images at an HTTP(S) server, which a coordinator mirrors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// [`CATALOGUE_SCHEMA`].
    pub schema: String,
    /// The images: at most 10,000.
    pub images: Vec<CatalogueImage>,
}

/// One image of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueImage {
    /// Where it is; relative to the catalogue, if not absolute.
    pub url: String,
    /// Its length in bytes.
    pub length: u64,
    /// What it is for; its digest is the one the bytes must have.
    pub firmware: NewFirmware,
}
