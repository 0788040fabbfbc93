//! Whom nodes are told of, and what of it again.

use data_encoding::BASE64;
use firmesh_protocol::{
    api::{RevokeRequest, SyncRequest, SyncResponse},
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
