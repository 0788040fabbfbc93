use std::collections::BTreeMap;

use firmesh_protocol::{
    manifest::{PlannedDevice, Release},
    report::AttemptState,
};
use proptest::prelude::*;

use super::*;
use crate::{
    attempts::Names,
    plan,
    planner::{
        tests::now,
        unit_tests::{campaign as drafted, labels, servers},
    },
};

const AT_A_NODE: usize = 100;
const COMPONENTS: [&str; 2] = ["bmc", "bios"];

/// A running campaign for so many servers of two components each: what one is planned as, over and over.
fn campaign(count: usize) -> Campaign {
    let (mut manifest, releases) = drafted(&COMPONENTS);
    manifest.kind = CampaignKind::Provisioning;
    let mut whole = plan(&servers(&[1], 1, &COMPONENTS), &manifest, &releases, now()).unwrap();
    let (wave, server) = (whole.waves[0].clone(), whole.servers[0].clone());
    assert_eq!((wave.len(), server.components.len()), (2, 2));
    let node = |number: usize| NodeId::new(format!("n{:04}", number / AT_A_NODE)).unwrap();
    let name = |id: &DeviceId, number: usize| DeviceId::new(format!("s{number:05}-{id}")).unwrap();
    let device = |number: usize, one: &PlannedDevice| PlannedDevice {
        device: name(&one.device, number),
        after: one.after.as_ref().map(|after| name(after, number)),
        node: node(number),
        labels: labels(&[("unit", &format!("s{number:05}"))]),
        ..one.clone()
    };
    let all = (0..count).flat_map(|number| wave.iter().map(move |one| device(number, one)));
    whole.waves[0] = all.collect();
    let one = |number: usize| {
        let mut server = server.clone();
        (server.server, server.node) = (format!("{}/s{number:05}", node(number)), node(number));
        for component in &mut server.components {
            component.device = name(&component.device, number);
        }
        server
    };
    whole.servers = (0..count).map(one).collect();
    whole.check_servers(&manifest).unwrap();
    let image = |release: Release| (release.target, release.artifact);
    let images: BTreeMap<_, _> = releases.into_iter().map(image).collect();
    let (begin, ttl) = (Timestamp::after_start(Duration::ZERO), Duration::from_secs(60));
    let mut campaign = Campaign::new(
        manifest,
        whole,
        images,
        begin + Duration::from_secs(86_400),
        ttl,
        &mut Names::default(),
    );
    campaign.index_all();
    campaign.record.state = CampaignState::Active;
    campaign
}

fn devices(campaign: &Campaign) -> Vec<DeviceId> {
    let planned = campaign.servers.planned.iter().flat_map(|server| &server.components);
    planned.map(|one| one.device.clone()).collect()
}

fn ends(campaign: &mut Campaign, device: &DeviceId, state: AttemptState, kind: PermitKind) {
    campaign.edit(device, |attempt| {
        attempt.record.state = state;
        attempt.record.kind = kind;
    });
}

/// What a walk over all servers finds, after each change.
#[derive(Default)]
struct Walk {
    awaited: BTreeMap<u32, Timestamp>,
    validated: BTreeSet<u32>,
}

impl Walk {
    fn go(&mut self, campaign: &Campaign, now: Timestamp) {
        let awaited: BTreeSet<u32> = campaign
            .servers
            .numbered()
            .filter(|(number, server)| {
                let has_arrived = |one: &PlannedComponent| {
                    let attempt = campaign.attempts.get(&one.device).unwrap();
                    campaign.has_arrived(&attempt)
                };
                !self.validated.contains(number) && server.due().all(has_arrived)
            })
            .map(|(number, _)| number)
            .collect();
        self.awaited.retain(|number, _| awaited.contains(number));
        for number in awaited {
            self.awaited.entry(number).or_insert(now);
        }
        let within = campaign.validated_within();
        self.validate(|since| now >= since + within);
    }

    fn validate(&mut self, is_done: impl Fn(Timestamp) -> bool) {
        let done = self.awaited.extract_if(.., |_, since| is_done(*since));
        self.validated.extend(done.map(|(number, _)| number));
    }
}

proptest! {
    /// Whatever ends in whatever order: what is looked at is what a walk over all of them would have found.
    #[test]
    fn a_look_at_what_has_changed_finds_what_a_walk_would(
        steps in prop::collection::vec((0_usize..24, 0_usize..7, 0_u64..60, any::<bool>()), 1..200),
    ) {
        use AttemptState::{Failed, Installing, Pending, Quarantined, RolledBack, Success};
        let mut campaign = campaign(12);
        let (all, mut walk, mut now) = (devices(&campaign), Walk::default(), Timestamp::after_start(Duration::ZERO));
        let node = campaign.servers.planned[0].node.clone();
        let fine: BTreeMap<_, _> = all.iter().map(|device| (device.clone(), Some("1.1".to_owned()))).collect();
        for (device, what, seconds, is_read) in steps {
            now = now + Duration::from_secs(seconds);
            // Most end well, so that whole servers do.
            let state = [Success, Success, Success, Failed, Installing, Quarantined, Pending][what];
            let kind = if what == 2 && seconds > 50 { PermitKind::Rollback } else { PermitKind::Update };
            let state = if kind == PermitKind::Rollback { RolledBack } else { state };
            ends(&mut campaign, &all[device], state, kind);
            if is_read && seconds > 40 {
                campaign.read(now, &node, &fine);
                walk.validate(|since| now >= since + READ_AFTER);
            }
            campaign.look_at_servers(now);
            walk.go(&campaign, now);
            let found: BTreeMap<_, _> = (0..12).filter_map(|n| Some((n, campaign.servers.awaited.get(n)?.since))).collect();
            prop_assert_eq!(&found, &walk.awaited);
            prop_assert!(campaign.record.validated.keys().eq(&walk.validated));
            prop_assert_eq!(campaign.in_validation(), walk.awaited.len());
            prop_assert!(campaign.servers.awaited.at(&node).eq(walk.awaited.keys().copied()));
            let first = walk.awaited.values().min().map(|since| *since + campaign.validated_within());
            prop_assert_eq!(campaign.validations_end(), first);
        }
    }
}

/// Every report went over all servers: with ten thousand of them that was a hundred million looks.
#[test]
fn a_report_costs_a_look_at_its_server_however_many_there_are() {
    let count = 10_000;
    let mut campaign = campaign(count);
    let now = Timestamp::after_start(Duration::ZERO);
    campaign.look_at_servers(now);
    assert_eq!(campaign.servers.looks, count);
    let all = devices(&campaign);
    for device in &all {
        ends(&mut campaign, device, AttemptState::Success, PermitKind::Update);
        campaign.look_at_servers(now);
    }
    assert_eq!(campaign.servers.looks, count + all.len());
    assert_eq!(campaign.in_validation(), count);
    let node = campaign.servers.planned[count - 1].node.clone();
    assert_eq!(campaign.servers.awaited.at(&node).count(), AT_A_NODE);
    campaign.look_at_servers(now + campaign.validated_within());
    assert_eq!((campaign.in_validation(), campaign.record.validated.len()), (0, count));
    assert_eq!(campaign.servers.looks, count + all.len());
}
