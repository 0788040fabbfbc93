//! Whom nodes are told of, and what of it again.

use data_encoding::BASE64;
use firmesh_protocol::{
    api::{Feeder, MeshLinks, RevokeRequest, SyncRequest, SyncResponse},
    ids::NodeId,
    report::NodeRecord,
    trust::Envelope,
};

use crate::fleet::{Fleet, NodeProcess, good};

async fn sync(fleet: &Fleet, node: &NodeProcess, has: u64) -> SyncResponse {
    let request = SyncRequest {
        roster_version: has,
        ..node.sync_request(&[])
    };
    good(fleet.node_post(node, "/node/v1/sync", &request).await).await
}

fn names(records: &[Envelope]) -> Vec<NodeId> {
    let record = |envelope: &Envelope| {
        let signed = serde_json::to_value(envelope).unwrap();
        let payload = BASE64.decode(signed["payload"].as_str().unwrap().as_bytes()).unwrap();
        serde_json::from_slice::<NodeRecord>(&payload).unwrap().node
    };
    let mut names: Vec<_> = records.iter().map(record).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_node_that_is_a_little_behind_is_told_what_has_changed() {
    let mut fleet = Fleet::start().await;
    let first = fleet.enrol("n1", "eu/s1/r1/n1").await;
    let told = sync(&fleet, &first, 0).await;
    assert_eq!(
        names(&told.roster.unwrap()),
        ["n1".parse().unwrap()],
        "who has none is told everything"
    );
    let has = told.roster_version;
    let again = sync(&fleet, &first, has).await;
    assert_eq!((again.roster, again.roster_changes), (None, None));

    let second = fleet.enrol("n2", "eu/s1/r2/n2").await;
    sync(&fleet, &second, 0).await;
    let third = fleet.enrol("n3", "us/s9/r1/n3").await;
    sync(&fleet, &third, 0).await;
    let revoke = RevokeRequest {
        reason: "sold".to_owned(),
    };
    fleet.post::<Option<()>>("/api/v1/nodes/n2/revoke", &revoke).await;
    let told = sync(&fleet, &first, has).await;
    assert_eq!(told.roster, None);
    let changes = told.roster_changes.unwrap();
    assert_eq!(
        (changes.since, names(&changes.records)),
        (has, vec!["n3".parse().unwrap()])
    );
    assert_eq!(changes.left, ["n2".parse().unwrap()]);

    // The answer was lost, or the node is of a release that knows no changes.
    let told = sync(&fleet, &first, has).await;
    assert_eq!(told.roster_changes, None);
    assert_eq!(
        names(&told.roster.unwrap()),
        ["n1", "n3"].map(|name| name.parse().unwrap())
    );
    let again = sync(&fleet, &first, told.roster_version).await;
    assert_eq!((again.roster, again.roster_changes), (None, None));

    // What has changed before a start is not remembered.
    fleet.restart().await;
    assert!(sync(&fleet, &first, has).await.roster.is_some());
    // A number that was never given, as after a backup was restored.
    assert!(sync(&fleet, &first, has + 100).await.roster.is_some());
}

/// Who took what from whom is said by heartbeats that were asked for it, and is no more than a list to look at.
#[tokio::test]
async fn a_node_says_who_has_fed_it_and_operators_see_the_links() {
    let fleet = Fleet::start().await;
    let nodes = [
        fleet.enrol("n1", "eu/s1/r1/n1").await,
        fleet.enrol("n2", "eu/s1/r2/n2").await,
        fleet.enrol("n3", "us/s9/r1/n3").await,
    ];
    for node in &nodes {
        assert!(fleet.sync(node, &[]).await.wants_feeders);
    }
    let fed = async |node: &NodeProcess, origin: u64, peers: u64, feeders: Vec<(&str, u64)>| {
        let feeder = |(node, bytes): (&str, u64)| Feeder {
            node: node.parse().unwrap(),
            bytes,
        };
        let mut request = SyncRequest {
            feeders: feeders.into_iter().map(feeder).collect(),
            ..node.sync_request(&[])
        };
        (request.traffic.from_origin, request.traffic.from_other_racks) = (origin, peers);
        fleet.node_post(node, "/node/v1/sync", &request).await.status()
    };
    assert_eq!(fed(&nodes[0], 1_000, 0, Vec::new()).await, 200);
    assert_eq!(fed(&nodes[1], 0, 990, vec![("n1", 900), ("nobody", 50)]).await, 200);
    assert_eq!(fed(&nodes[2], 1_010, 0, Vec::new()).await, 200);
    let many = (0..17).map(|_| ("n1", 1)).collect();
    assert_eq!(fed(&nodes[1], 0, 990, many).await, 422, "more than a node may name");
    let links: MeshLinks = fleet.get("/api/v1/mesh/links").await;
    let shown = links.links.iter().map(|link| {
        let from = link
            .from
            .as_ref()
            .map_or_else(|| "origin".to_owned(), ToString::to_string);
        (from, link.to.to_string(), link.bytes)
    });
    let link = |from: &str, to: &str, bytes| (from.to_owned(), to.to_owned(), bytes);
    let expected = [
        link("origin", "us/s9/r1", 1_010),
        link("origin", "eu/s1/r1", 1_000),
        link("eu/s1/r1", "eu/s1/r2", 900),
    ];
    assert_eq!(
        (shown.collect::<Vec<_>>(), links.unnamed_bytes),
        (expected.to_vec(), 90)
    );
    let links: MeshLinks = fleet.get("/api/v1/mesh/links?within=eu/s1/r2&by=node").await;
    assert_eq!(links.links.len(), 1);
    assert_eq!(links.links[0].from.as_ref().unwrap().to_string(), "eu/s1/r1/n1");
    for bad in ["by=hall", "within=", "with=eu"] {
        assert_eq!(fleet.status(&format!("/api/v1/mesh/links?{bad}")).await, 400, "{bad}");
    }
}
