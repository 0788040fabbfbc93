//! The BIOS's settings as an emulated BMC shows them: the `Bios` of its system, the settings that wait for a start beside it, and the
//! registry that says what they may be.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use firmesh_simulations::device::{Attributes, Bios};
use serde_json::{Value, json};

use super::bmc::{BmcServer, ROOT, Server, members, problem};

/// The registry's name.
const REGISTRY: &str = "BiosAttributeRegistry.v1_0_0";

pub(super) fn routes() -> Router<Arc<BmcServer>> {
    let (bios, registries) = (format!("{ROOT}/Systems/1/Bios"), format!("{ROOT}/Registries"));
    Router::new()
        .route(&bios, get(current))
        .route(&format!("{bios}/Settings"), get(pending).patch(write))
        .route(&registries, get(async || members("Registries", [REGISTRY])))
        .route(&format!("{registries}/{REGISTRY}"), get(registry_file))
        .route(&format!("{registries}/{REGISTRY}.json"), get(registry))
}

async fn current(State(server): Server) -> Json<Value> {
    let attributes = server.with(|bmc| bmc.bios.attributes());
    Json(json!({
        "@odata.id": format!("{ROOT}/Systems/1/Bios"),
        "AttributeRegistry": REGISTRY,
        "Attributes": attributes,
        "@Redfish.Settings": {
            "SettingsObject": { "@odata.id": format!("{ROOT}/Systems/1/Bios/Settings") },
            "SupportedApplyTimes": ["OnReset"],
        },
    }))
}

async fn pending(State(server): Server) -> Json<Value> {
    let attributes = server.with(|bmc| bmc.bios.after_the_next_start());
    Json(json!({ "@odata.id": format!("{ROOT}/Systems/1/Bios/Settings"), "Attributes": attributes }))
}

async fn write(State(server): Server, Json(body): Json<Value>) -> Response {
    let Ok(attributes) = serde_json::from_value::<Attributes>(body["Attributes"].clone()) else {
        return problem(StatusCode::BAD_REQUEST, "Attributes are missing");
    };
    match server.with(|bmc| bmc.bios.write(attributes)) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => problem(StatusCode::BAD_REQUEST, &refused),
    }
}

async fn registry_file() -> Json<Value> {
    let uri = format!("{ROOT}/Registries/{REGISTRY}.json");
    Json(json!({ "Registry": REGISTRY, "Location": [{ "Language": "en", "Uri": uri }] }))
}

async fn registry() -> Json<Value> {
    Json(json!({ "RegistryEntries": { "Attributes": Bios::registry() } }))
}
