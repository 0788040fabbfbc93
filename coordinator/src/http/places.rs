//! `/api/v1/sites` and `/api/v1/regions`: places with what stands there.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{Path, State},
    response::Response,
};
use firmesh_protocol::{api::PlaceView, ids::TopologyPath};

use super::{
    App,
    conditions::Conditions,
    operators::named,
    paging::Listing,
    problem::Failure,
    routes::{Op, Routes},
    stretches::by_status,
};
use crate::access::Permission;

type Shared = State<Arc<App>>;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "places";
    routes.add(TAG, "/api/v1/regions", [
        Op::get("Lists the regions: the first level of the topology.", regions).needs(Permission::FleetRead).paged().answers_page::<PlaceView>(),
    ]);
    routes.add(TAG, "/api/v1/sites", [
        Op::get("Lists the sites: the second level of the topology.", sites).needs(Permission::FleetRead).paged().answers_page::<PlaceView>(),
    ]);
    routes.add(TAG, "/api/v1/sites/{*path}", [
        Op::get("Shows any place of the topology, such as `eu/fra1` or `eu/fra1/r1`.", place).needs(Permission::FleetRead)
            .tagged()
            .answers::<PlaceView>(),
    ]);
}

async fn regions(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    level(&app, listing, 1).await
}

async fn sites(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    level(&app, listing, 2).await
}

async fn level(app: &App, listing: Listing, levels: usize) -> Result<Response, Failure> {
    let places = counted(app, move |path| path.prefix(levels)).await?;
    Ok(listing.page_of(places, |view| view.path.to_string()))
}

async fn place(State(app): Shared, Path(path): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let wanted: TopologyPath = named(&path)?;
    let levels = wanted.depth();
    let places = counted(&app, move |path| path.prefix(levels)).await?;
    let found = places.into_iter().find(|view| view.path == wanted);
    let found = found.ok_or_else(|| Failure::not_found(format!("place {wanted}")))?;
    Ok(conditions.answer(&found))
}

/// Places in the order of their names, with what stands there.
async fn counted(
    app: &App,
    place: impl Fn(&TopologyPath) -> TopologyPath + Clone + Send + 'static,
) -> Result<Vec<PlaceView>, Failure> {
    let (silent_after, wall) = (app.settings.silent_after, app.clock.wall());
    let nodes = app.coordinator.read(move |world| {
        let is_heard = |seen| seen + silent_after >= wall;
        let node =
            |node: &crate::world::NodeState| (node.stored.path.clone(), node.stored.last_seen.is_some_and(is_heard));
        world.nodes.values().map(node).collect::<Vec<_>>()
    });
    let mut places: BTreeMap<String, PlaceView> = BTreeMap::new();
    fn entry(places: &mut BTreeMap<String, PlaceView>, path: TopologyPath) -> &mut PlaceView {
        places.entry(path.to_string()).or_insert_with(|| PlaceView {
            path,
            nodes: 0,
            nodes_silent: 0,
            devices: 0,
            statuses: BTreeMap::new(),
            versions: BTreeMap::new(),
        })
    }
    for (path, is_heard) in nodes.await? {
        let found = entry(&mut places, place(&path));
        found.nodes += 1;
        found.nodes_silent += u32::from(!is_heard);
    }
    for (kind, count) in by_status(app, place).await?.iter() {
        let found = entry(&mut places, kind.place.clone());
        found.devices += count;
        *found.statuses.entry(kind.other).or_default() += count;
        let name = format!("{} {} {}", kind.vendor, kind.model, kind.component);
        let versions = found.versions.entry(name).or_default();
        *versions.entry(kind.version.unwrap_or_default().to_owned()).or_default() += count;
    }
    Ok(places.into_values().collect())
}
