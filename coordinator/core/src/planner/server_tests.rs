//! Servers of a provisioning campaign: whole or not at all, firmware first, and told of phase by phase.

use firmesh_protocol::{
    ids::Component,
    labels::Labels,
    manifest::{Analysis, BIOS_SETTINGS, CampaignKind, PlannedServer, ProvisioningPhase, Sequence},
};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::{
    tests::now,
    unit_tests::{at_least, campaign, pin, servers},
    *,
};
use crate::check;

const COMPONENTS: [&str; 4] = ["bios-settings", "nic", "bios", "bmc"];

/// Servers of two vendors, one in each rack, and what is to be brought to all of them.
fn two_vendors(nodes_of_racks: &[usize]) -> (Inventory, CampaignManifest, Vec<Release>) {
    let mut inventory = servers(nodes_of_racks, 1, &COMPONENTS);
    let (mut draft, mut releases) = campaign(&COMPONENTS);
    for release in &mut releases.clone() {
        release.info.vendor = "Globex".to_owned();
        release.target = release.target.replace("firmware/", "firmware/globex-");
        release.artifact.sha256 = firmesh_protocol::ids::Sha256::of(release.target.as_bytes());
        releases.push(release.clone());
    }
    draft.kind = CampaignKind::Provisioning;
    draft.releases = releases.iter().map(pin).collect();
    for (id, device) in &mut inventory.devices {
        if id.as_str().starts_with("r1") {
            device.facts.vendor = "Globex".to_owned();
        }
    }
    (inventory, draft, releases)
}

fn edit(inventory: &mut Inventory, device: &str, edit: impl FnOnce(&mut KnownDevice)) {
    edit(inventory.devices.get_mut(&DeviceId::new(device).unwrap()).unwrap());
}

/// One server of everything: due, partly current, wholly current, one that fails preflight, one that nothing leads to its
/// release, and one whose BIOS goes over another release.
pub(super) fn provisioning_scene() -> Plan {
    let (mut inventory, mut draft, mut releases) = two_vendors(&[3, 3]);
    edit(&mut inventory, "r0n1s0-bmc", |bmc| {
        bmc.facts.version = Some("1.1".to_owned())
    });
    for component in COMPONENTS {
        edit(&mut inventory, &format!("r0n2s0-{component}"), |device| {
            device.facts.version = Some("1.1".to_owned());
        });
    }
    edit(&mut inventory, "r1n0s0-bios", |bios| bios.facts.version = None);
    edit(&mut inventory, "r1n1s0-nic", |nic| {
        nic.facts.version = Some("0.7".to_owned())
    });
    let at = |releases: &[Release], target: &str| releases.iter().position(|release| release.target == target).unwrap();
    let (nic, bios) = (
        at(&releases, "firmware/globex-nic.bin"),
        at(&releases, "firmware/globex-bios.bin"),
    );
    releases[nic].info.from_versions = vec!["1.0".to_owned()];
    releases[bios].info.from_versions = vec!["1.05".to_owned()];
    let mut hop = releases[bios].clone();
    hop.target = "firmware/globex-bios-1.05.bin".to_owned();
    hop.artifact.sha256 = firmesh_protocol::ids::Sha256::of(b"hop");
    (hop.info.version, hop.info.from_versions) = ("1.05".to_owned(), Vec::new());
    draft.hops = vec![pin(&hop)];
    releases.push(hop);
    planned(&inventory, &draft, &releases)
}

fn planned(inventory: &Inventory, draft: &CampaignManifest, releases: &[Release]) -> Plan {
    let plan = plan(inventory, draft, releases, now()).unwrap();
    plan.check().unwrap();
    assert_eq!(check::plan(&plan, draft, inventory, releases), Vec::<String>::new());
    plan
}

fn server<'a>(plan: &'a Plan, name: &str) -> &'a PlannedServer {
    plan.servers.iter().find(|server| server.server == name).unwrap()
}

#[test]
fn servers_of_two_vendors_are_one_plan_firmware_first_and_settings_last() {
    let (inventory, mut draft, releases) = two_vendors(&[1, 1]);
    // Even if a vendor's order says otherwise.
    draft.constraints.sequence = vec![Sequence {
        vendor: "Globex".to_owned(),
        order: [BIOS_SETTINGS, "nic"]
            .map(|name| Component::new(name).unwrap())
            .to_vec(),
    }];
    let plan = planned(&inventory, &draft, &releases);
    let order = |name: &str| {
        let components = server(&plan, name).components.iter();
        components.map(|one| one.component.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(order("r0n0/s0"), ["bmc", "bios", "nic", BIOS_SETTINGS]);
    assert_eq!(order("r1n0/s0"), ["nic", "bmc", "bios", BIOS_SETTINGS]);
    assert_eq!(plan.devices().count(), 8);
    // The same rules for devices one by one say nothing of servers.
    draft.kind = CampaignKind::Update;
    let plan = planned(&inventory, &draft, &releases);
    assert!(plan.servers.is_empty() && !String::from_utf8(plan.to_bytes()).unwrap().contains("servers"));
}

#[test]
fn one_component_that_fails_preflight_holds_its_server_and_no_other() {
    let (mut inventory, draft, releases) = two_vendors(&[2]);
    edit(&mut inventory, "r0n0s0-bios", |bios| {
        bios.held_by_operator = Some("on loan".to_owned());
    });
    let plan = planned(&inventory, &draft, &releases);
    let held = server(&plan, "r0n0/s0").held.as_ref().unwrap();
    assert_eq!(
        (held.phase, held.reason.as_str()),
        (
            ProvisioningPhase::Preflight,
            "r0n0s0-bios: held by an operator: on loan"
        )
    );
    let reason = |device: &str| {
        let held = plan.held.iter().find(|held| held.device.as_str() == device);
        held.unwrap().reason.clone()
    };
    assert_eq!(
        reason("r0n0s0-bmc"),
        "preflight: nothing of its server is touched, because of r0n0s0-bios: held by an operator: on loan"
    );
    assert_eq!(reason("r0n0s0-bios"), "held by an operator: on loan");
    assert!(server(&plan, "r0n1/s0").held.is_none());
    assert_eq!(plan.devices().count(), 4);
}

#[test]
fn a_component_that_the_campaign_has_nothing_for_holds_nobody() {
    let (mut inventory, draft, releases) = two_vendors(&[1]);
    edit(&mut inventory, "r0n0s0-nic", |nic| {
        nic.facts.model = "N9".to_owned();
        nic.facts.version = None;
    });
    let plan = planned(&inventory, &draft, &releases);
    assert_eq!(server(&plan, "r0n0/s0").components.len(), 3);
    assert_eq!(plan.devices().count(), 3);
}

#[test]
fn firmware_that_wants_new_settings_first_is_refused() {
    let (inventory, draft, mut releases) = two_vendors(&[1]);
    let bios = releases
        .iter_mut()
        .find(|release| release.target == "firmware/bios.bin")
        .unwrap();
    bios.info.requires = vec![at_least(BIOS_SETTINGS, "1.1")];
    let plan = planned(&inventory, &draft, &releases);
    let held = server(&plan, "r0n0/s0").held.as_ref().unwrap();
    assert_eq!(held.phase, ProvisioningPhase::VersionAnalysis);
    assert!(held.reason.contains("runs in a circle"), "{}", held.reason);
    assert!(plan.waves.is_empty());
}

/// Nodes ask the same of what they are to act on: see `ApprovedCampaign::assemble`.
#[test]
fn a_plan_that_breaks_a_server_is_refused_by_whoever_reads_it() {
    let (mut inventory, draft, releases) = two_vendors(&[2]);
    edit(&mut inventory, "r0n1s0-bios", |bios| bios.quarantined = true);
    let good = planned(&inventory, &draft, &releases);
    let refused = |edit: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        edit(&mut plan);
        let wrong = check::plan(&plan, &draft, &inventory, &releases);
        assert!(!wrong.is_empty());
        plan.check_servers(&draft).unwrap_err().to_string()
    };
    let why = refused(&|plan| plan.servers.clear());
    assert!(why.contains("do not name"), "{why}");
    // The settings before the last of the firmware, in the wave as in the server.
    let why = refused(&|plan| {
        let wave = &mut plan.waves[0];
        wave.swap(2, 3);
        (wave[2].after, wave[3].after) = (Some(wave[1].device.clone()), Some(wave[2].device.clone()));
        plan.servers[0].components.swap(2, 3);
    });
    assert!(why.contains("after the settings of the BIOS"), "{why}");
    let why = refused(&|plan| {
        plan.waves[0].pop();
    });
    assert!(why.contains("in no wave"), "{why}");
    let why = refused(&|plan| plan.servers[0].components[0].analysis = Analysis::Current {});
    assert!(why.contains("as current, which does not run"), "{why}");
    let why = refused(&|plan| {
        plan.servers[0].components[0].analysis = Analysis::Unfit {
            reason: "no way leads there".to_owned(),
        };
    });
    assert!(why.contains("as unfit, and its server not held"), "{why}");
    let why = refused(&|plan| plan.servers[0].held = plan.servers[1].held.clone());
    assert!(why.contains("or hold its server"), "{why}");
    let why = refused(&|plan| plan.servers[0].components[1].release = "firmware/nic.bin".to_owned());
    assert!(why.contains("something else"), "{why}");
    // Of other devices than those of its unit.
    let why = refused(&|plan| plan.servers[0].server = "r0n0/s9".to_owned());
    assert!(why.contains("in r0n0/s9, which is not its unit"), "{why}");
    let why = refused(&|plan| {
        plan.waves[0]
            .iter_mut()
            .for_each(|planned| planned.labels = Labels::default())
    });
    assert!(why.contains("which is not its unit"), "{why}");
    let why = refused(&|plan| {
        let mut other = plan.servers[0].clone();
        (other.server, other.components) = ("r0n0/s1".to_owned(), plan.servers[0].components.split_off(2));
        plan.servers.insert(1, other);
    });
    assert!(
        why.contains("in r0n0/s1, which is not its unit") || why.contains("out of its turn"),
        "{why}"
    );
    let why = refused(&|plan| plan.servers[1].node = plan.servers[0].node.clone());
    assert!(why.contains("neither a unit of its node nor its one device"), "{why}");
    let why = refused(&|plan| plan.servers[1].server = "r0n1".to_owned());
    assert!(why.contains("neither a unit of its node nor its one device"), "{why}");
    let why = refused(&|plan| plan.held.retain(|held| held.device.as_str() != "r0n1s0-nic"));
    assert!(
        why.contains("r0n1s0-nic, which the plan neither touches nor leaves out"),
        "{why}"
    );
    // What the plan cannot tell, the inventory does.
    let told = |edit: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        edit(&mut plan);
        check::plan(&plan, &draft, &inventory, &releases).join("; ")
    };
    let wrong = told(&|plan| drop(plan.servers[1].components.pop()));
    assert!(wrong.contains("told with other components than it has"), "{wrong}");
    let wrong = told(&|plan| plan.servers[1].components[0].release = "firmware/nic.bin".to_owned());
    assert!(wrong.contains("another component or release"), "{wrong}");
}

proptest! {
    /// Whatever servers are like, each is brought up whole or not touched, and the checker agrees with every word.
    #[test]
    fn every_server_is_whole_or_held(
        states in prop::collection::vec(0_u8..12, 24),
        settings_first in any::<bool>(),
        needs in prop::option::of((0_usize..4, 0_usize..4)),
    ) {
        let (mut inventory, mut draft, mut releases) = two_vendors(&[3, 3]);
        if settings_first {
            draft.constraints.sequence = vec![Sequence {
                vendor: "Acme".to_owned(),
                order: vec![Component::new(BIOS_SETTINGS).unwrap()],
            }];
        }
        if let Some((from, to)) = needs.filter(|(from, to)| from != to) {
            releases[from].info.requires = vec![at_least(COMPONENTS[to], "1.1")];
        }
        for (device, state) in inventory.devices.values_mut().zip(&states) {
            match state {
                0 => device.facts.version = Some("1.1".to_owned()),
                1 => device.facts.version = None,
                2 => device.quarantined = true,
                3 => device.held_by_operator = Some("on loan".to_owned()),
                4 => device.facts.model = "R9".to_owned(),
                5 => device.facts.labels = Labels::default(),
                _ => {}
            }
        }
        let plan = plan(&inventory, &draft, &releases, now()).unwrap();
        prop_assert!(plan.check().is_ok());
        prop_assert_eq!(check::plan(&plan, &draft, &inventory, &releases), Vec::<String>::new());
        let read = Plan::from_bytes(&plan.to_bytes()).unwrap();
        prop_assert!(read.check_servers(&draft).is_ok());
        prop_assert_eq!(read, plan);
    }
}
