use proptest::prelude::*;

use super::*;
use crate::host::vcenter::client::Properties;

const INSTANCE: &str = "1b2c";

/// An inventory as a vCenter would tell it: `kind id name parent`, one a line.
fn places(lines: &[(&str, &str, &str, &str)]) -> Places {
    let place = |(kind, id, name, parent): &(&str, &str, &str, &str)| {
        let kind_of_parent = match parent.split('-').next() {
            Some("datacenter") => "Datacenter",
            _ => "Folder",
        };
        let name = (*name).to_owned();
        let parent = Ref::new(kind_of_parent, parent);
        (Ref::new(kind, id), Place { name, parent })
    };
    Places {
        instance: INSTANCE.to_owned(),
        root: Ref::new("Folder", "group-d1"),
        known: lines.iter().map(place).collect(),
    }
}

/// A datacenter in a folder, with a cluster, another cluster of the same name deeper down, and a host on its own.
fn usual() -> Places {
    places(&[
        ("Folder", "group-d2", "EU", "group-d1"),
        ("Datacenter", "datacenter-3", "Fra 1", "group-d2"),
        ("Folder", "group-h4", "host", "datacenter-3"),
        ("ClusterComputeResource", "domain-c5", "Prod", "group-h4"),
        ("Folder", "group-h6", "old%2fnew", "group-h4"),
        ("ClusterComputeResource", "domain-c7", "Prod", "group-h6"),
        ("ComputeResource", "domain-s8", "lonely.example", "group-h4"),
    ])
}

fn told(objects: &str) -> Vec<Properties> {
    Properties::told(&Element::parse(&format!("<returnval>{objects}</returnval>")).unwrap()).unwrap()
}

fn host(number: u32, name: &str, parent: &str, more: &str) -> String {
    let kind = if parent.starts_with("domain-s") {
        "ComputeResource"
    } else {
        "ClusterComputeResource"
    };
    format!(
        "<objects><obj type=\"HostSystem\">host-{number}</obj><propSet><name>name</name><val>{name}</val></propSet>\
         <propSet><name>parent</name><val type=\"{kind}\">{parent}</val></propSet>{more}</objects>"
    )
}

fn sorted(objects: &str, below: &[&str]) -> Sorted {
    let hosts = told(objects);
    let listed: Vec<Ref> = hosts.iter().map(|host| host.object.clone()).collect();
    let below: Vec<String> = below.iter().map(|path| (*path).to_owned()).collect();
    sort_out(&listed, &hosts, &usual(), &below)
}

#[test]
fn a_host_is_known_by_its_path_and_its_hardware() {
    let more = "<propSet><name>hardware.systemInfo</name><val><vendor>Dell Inc.</vendor><model>R750</model><uuid>4c4c</uuid>\
        <otherIdentifyingInfo><identifierValue>none</identifierValue><identifierType><key>AssetTag</key></identifierType></otherIdentifyingInfo>\
        <otherIdentifyingInfo><identifierValue> 7XK2 </identifierValue><identifierType><key>ServiceTag</key></identifierType></otherIdentifyingInfo>\
        </val></propSet>\
        <propSet><name>hardware.biosInfo</name><val><biosVersion>2.1.8</biosVersion><releaseDate>2025-03-01T00:00:00Z</releaseDate></val></propSet>\
        <propSet><name>summary.config.product</name><val><version>8.0.3</version><build>24022510</build></val></propSet>\
        <propSet><name>runtime.connectionState</name><val>connected</val></propSet>\
        <propSet><name>runtime.inMaintenanceMode</name><val>false</val></propSet>\
        <propSet><name>config.ipmi.bmcIpAddress</name><val>10.1.9.7</val></propSet>";
    let found = sorted(&host(11, "ESX-17.example", "domain-c5", more), &[]);
    let [(object, found)] = &found.hosts[..] else {
        panic!("{found:?}")
    };
    assert_eq!(*object, Ref::new("HostSystem", "host-11"));
    let some = |text: &str| Some(text.to_owned());
    let expected = ImportedHost {
        id: DeviceId::new("esx-17.example").unwrap(),
        name: "ESX-17.example".to_owned(),
        path: "/EU/Fra 1/host/Prod/ESX-17.example".to_owned(),
        datacenter: some("Fra 1"),
        cluster: some("Prod"),
        cluster_label: found.cluster_label.clone(),
        vendor: some("Dell Inc."),
        model: some("R750"),
        serial: some("7XK2"),
        uuid: some("4c4c"),
        bios_version: some("2.1.8"),
        bios_released: some("2025-03-01"),
        esxi_version: some("8.0.3"),
        esxi_build: some("24022510"),
        connection: some("connected"),
        in_maintenance: Some(false),
        bmc_address: Some([10, 1, 9, 7].into()),
        untold: None,
    };
    assert_eq!(*found, expected);
    let label = found.cluster_label.as_ref().unwrap().as_str();
    assert!(
        label.starts_with("Prod-") && label.len() == "Prod-".len() + 8,
        "{label}"
    );
}

/// Caps count by the label: two clusters that are one would let two hosts of one go, one that is two as well.
#[test]
fn a_cluster_is_one_fault_domain_whatever_else_there_is() {
    let of = |objects: &str| {
        let found = sorted(objects, &[]);
        assert_eq!(found.not.len(), 1, "{found:?}");
        found
            .hosts
            .into_iter()
            .map(|(_, host)| host.cluster_label)
            .collect::<Vec<_>>()
    };
    let all = sorted(
        &[
            host(1, "a", "domain-c5", ""),
            host(2, "b", "domain-c5", ""),
            host(3, "c", "domain-c7", ""),
        ]
        .concat(),
        &[],
    );
    let labels: Vec<_> = all
        .hosts
        .iter()
        .map(|(_, host)| host.cluster_label.clone().unwrap())
        .collect();
    assert!(labels[0] == labels[1] && labels[0] != labels[2], "{labels:?}");
    let gone = "<objects><obj type=\"HostSystem\">host-9</obj></objects>".to_owned();
    assert_eq!(of(&(gone + &host(3, "c", "domain-c7", ""))), [Some(labels[2].clone())]);
    // The other vCenter has a cluster of this name and number, too.
    let elsewhere = mark("other", &Ref::new("ClusterComputeResource", "domain-c5"));
    assert!(!labels[0].as_str().ends_with(&elsewhere));
    let lonely = sorted(&host(4, "lonely.example", "domain-s8", ""), &[]);
    assert_eq!(lonely.hosts[0].1.cluster_label, None);
    assert_eq!(lonely.hosts[0].1.path, "/EU/Fra 1/host/lonely.example/lonely.example");
}

#[test]
fn what_cannot_be_imported_is_named_with_the_reason() {
    let hidden = "<objects><obj type=\"HostSystem\">host-2</obj><missingSet><path>name</path><fault>\
                  <fault xsi:type=\"NoPermission\"/></fault></missingSet></objects>";
    let long = "a".repeat(5_000);
    let all = [
        hidden.to_owned(),
        host(3, "nowhere", "domain-c99", ""),
        host(4, "twice.example", "domain-c5", ""),
        host(5, "Twice.example", "domain-c7", ""),
        host(6, &long, "domain-c5", ""),
        host(7, "fine", "domain-c5", ""),
    ];
    let hosts = told(&all.concat());
    let mut listed: Vec<Ref> = hosts.iter().map(|host| host.object.clone()).collect();
    listed.push(Ref::new("HostSystem", "host-1"));
    let sorted = sort_out(&listed, &hosts, &usual(), &[]);
    assert_eq!(sorted.hosts.len(), 1, "{sorted:?}");
    let reason = |name: &str| {
        let found = sorted.not.iter().find(|not| not.name.contains(name));
        found.unwrap_or_else(|| panic!("{name}: {sorted:?}")).reason.as_str()
    };
    assert!(reason("host-1").contains("tells nothing of it"));
    assert!(reason("host-2").contains("does not tell its name: name of host-2 (NoPermission)"));
    assert!(reason("nowhere").contains("does not tell where it is"));
    assert!(reason("twice").contains("the same name") && reason("Twice").contains("the same name"));
    assert!(reason("aaaa").contains("longer than 4096 bytes"));
    assert_eq!(sorted.not.len(), 6);
    assert!(sorted.not.iter().all(|not| not.name.len() < 200), "{:?}", sorted.not);
}

#[test]
fn only_what_is_below_is_imported() {
    let all = [
        host(1, "a", "domain-c5", ""),
        host(2, "b", "domain-c7", ""),
        host(3, "lonely.example", "domain-s8", ""),
    ];
    let count = |below: &[&str]| sorted(&all.concat(), below).hosts.len();
    assert_eq!((count(&[]), count(&["/"]), count(&["/EU/Fra 1/host"])), (3, 3, 3));
    assert_eq!(
        (count(&["/EU/Fra 1/host/Prod"]), count(&["/EU/Fra 1/host/Pro"])),
        (1, 0)
    );
    assert_eq!(count(&["/EU/Fra 1/host/old%2fnew/", "/EU/Fra 1/host/Prod/a"]), 2);
    let twins = [host(4, "twice", "domain-c5", ""), host(5, "Twice", "domain-c7", "")];
    let found = sorted(&twins.concat(), &["/EU/Fra 1/host/Prod"]);
    assert_eq!((found.hosts.len(), found.not.len()), (0, 1), "{found:?}");
}

#[test]
fn an_inventory_that_runs_in_a_circle_has_no_way_up() {
    let circle = places(&[
        ("Folder", "group-a", "a", "group-b"),
        ("Folder", "group-b", "b", "group-a"),
    ]);
    let host = told(&host(1, "h", "group-a", "").replace("ClusterComputeResource", "Folder"));
    assert_eq!(circle.way(&host[0]), None);
}

proptest! {
    #[test]
    fn any_name_becomes_one_of_ours(text in "\\PC{0,200}", number: u32) {
        let object = Ref::new("HostSystem", &format!("host-{number}"));
        let mark = mark(INSTANCE, &object);
        for name in [called(&text, &mark, HOST_NAME_BYTES_MAX), marked(&text, &mark, HOST_NAME_BYTES_MAX)] {
            prop_assert!(name.len() <= HOST_NAME_BYTES_MAX && DeviceId::new(name.as_str()).is_ok(), "{}", name);
            prop_assert!(name == text || name.ends_with(&mark), "{}", name);
        }
    }
}
