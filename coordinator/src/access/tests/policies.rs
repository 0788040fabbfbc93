//! What the policy allows: the matrix, limits, and an installation's own policies.

use std::{collections::BTreeSet, path::PathBuf};

use firmesh_protocol::api::{Grant, Limits, Role};
use proptest::prelude::*;

use super::super::{Identity, Kind, Permission, Places, Policy, PolicyError, Subject, identity::Means};

fn who(role: Role, limits: Limits) -> Identity {
    Identity {
        name: "key:1".to_owned(),
        means: Means::ApiKey,
        grants: vec![Grant { role, limits }],
        groups: BTreeSet::new(),
        device: None,
        expires: None,
    }
}

fn set(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn sites(values: &[&str]) -> Limits {
    Limits {
        sites: Some(set(values)),
        ..Limits::default()
    }
}

fn campaign(sites: &[&str]) -> Subject {
    let regions = sites.iter().map(|site| site.split('/').next().unwrap().to_owned());
    Subject {
        kind: Kind::Campaign,
        device: None,
        places: Some(Places {
            sites: set(sites),
            regions: regions.collect(),
            vendors: set(&["ACME"]),
            environments: set(&[""]),
        }),
    }
}

fn own(text: &str) -> Result<Policy, PolicyError> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("own.cedar");
    std::fs::write(&path, text).unwrap();
    Policy::load(Some(&path))
}

/// Who moves a permission, moves it here.
#[test]
fn the_matrix_is_as_people_have_agreed() {
    let policy = Policy::load(None).unwrap();
    let mark = |view: &firmesh_protocol::api::PermissionView, role| if view.roles.contains(&role) { "x" } else { "." };
    let rows = policy.matrix().into_iter().map(|view| {
        let marks: Vec<_> = Role::ALL.into_iter().map(|role| mark(&view, role)).collect();
        format!("{:<18} {}", view.permission, marks.join(" "))
    });
    let rows: Vec<_> = rows.collect();
    let expected = "\
api:read           x x x x x
fleet:read         x x x x .
audit:read         x x x x .
metrics:read       x x x x .
campaign:plan      . x x x .
campaign:draft     . x x x .
campaign:order     . x . x .
campaign:rollback  . x . x .
campaign:approve   . . x x .
group:write        . x . x .
device:register    . x . x .
device:clear       . x . x .
device:write       . x . x .
device:delete      . . . x .
identity:read      . x . x .
identity:erase     . . . x .
transcript:read    . x . x .
policy:write       . x . x .
metadata:publish   . . x x .
evidence:write     . . x x .
brake:pull         . . x x .
artifact:import    . . . x .
artifact:delete    . . . x .
artifact:export    . . . x .
release:write      . . . x .
node:enrol         . . . x .
node:revoke        . . . x .
notification:send  . x . x .
access:manage      . . . x .
firmware:download  . . . x x
update:check       . . . x x
device:report      . . . x x";
    assert_eq!(rows.join("\n"), expected, "viewer, operator, approver, admin, device");
}

#[test]
fn a_role_that_is_limited_changes_only_what_lies_wholly_within() {
    let policy = Policy::load(None).unwrap();
    let berlin = who(Role::Operator, sites(&["eu/berlin", "eu/paris"]));
    let may = |about: &Subject| policy.allows(&berlin, Permission::CampaignOrder, about);
    assert!(may(&campaign(&["eu/berlin"])));
    assert!(may(&campaign(&["eu/berlin", "eu/paris"])));
    assert!(
        !may(&campaign(&["eu/berlin", "us/dallas"])),
        "half of it is somewhere else"
    );
    assert!(!may(&Subject::default()), "everywhere");
    assert!(
        policy.allows(&berlin, Permission::FleetRead, &Subject::default()),
        "reading is not limited"
    );
    for (limits, is_allowed) in [
        (
            Limits {
                regions: Some(set(&["eu"])),
                ..Limits::default()
            },
            true,
        ),
        (
            Limits {
                regions: Some(set(&["us"])),
                ..Limits::default()
            },
            false,
        ),
        (
            Limits {
                vendors: Some(set(&["ACME"])),
                ..Limits::default()
            },
            true,
        ),
        (
            Limits {
                vendors: Some(set(&["Other"])),
                ..Limits::default()
            },
            false,
        ),
        (
            Limits {
                environments: Some(set(&["staging"])),
                ..Limits::default()
            },
            false,
        ),
        (
            Limits {
                regions: Some(set(&["eu"])),
                vendors: Some(set(&["Other"])),
                ..Limits::default()
            },
            false,
        ),
    ] {
        let limited = who(Role::Admin, limits.clone());
        let allowed = policy.allows(&limited, Permission::CampaignOrder, &campaign(&["eu/berlin"]));
        assert_eq!(allowed, is_allowed, "{limits:?}");
    }
}

/// Somebody who sees everything and runs one site does not run the others.
#[test]
fn roles_do_not_lend_each_other_their_places() {
    let policy = Policy::load(None).unwrap();
    let mut both = who(Role::Viewer, Limits::default());
    both.grants.push(Grant {
        role: Role::Operator,
        limits: sites(&["eu/berlin"]),
    });
    assert!(policy.allows(&both, Permission::CampaignOrder, &campaign(&["eu/berlin"])));
    assert!(!policy.allows(&both, Permission::CampaignOrder, &campaign(&["eu/paris"])));
}

#[test]
fn a_device_speaks_for_itself_only() {
    let policy = Policy::load(None).unwrap();
    let device = Identity {
        device: Some("bmc-1".parse().unwrap()),
        ..who(Role::Device, Limits::default())
    };
    let about = |device: Option<&str>| Subject {
        kind: Kind::Device,
        device: device.map(str::to_owned),
        places: None,
    };
    for permission in [Permission::DeviceReport, Permission::UpdateCheck] {
        assert!(policy.allows(&device, permission, &about(Some("bmc-1"))));
        assert!(!policy.allows(&device, permission, &about(Some("bmc-2"))));
        assert!(!policy.allows(&device, permission, &about(None)));
    }
    assert!(policy.allows(&device, Permission::FirmwareDownload, &about(None)));
    assert!(!policy.allows(&device, Permission::FleetRead, &about(None)));
    let nameless = who(Role::Device, Limits::default());
    assert!(!policy.allows(&nameless, Permission::DeviceReport, &about(Some("bmc-1"))));
}

#[test]
fn an_installation_allows_more_and_forbids_by_policies_of_its_own() {
    let policy = own(r#"
        permit (principal, action == Action::"artifact:export", resource)
        when { principal.groups.contains("firmware-lab") };
        forbid (principal == Principal::"key:1", action == Action::"brake:pull", resource);
        "#)
    .unwrap();
    let everywhere = Subject::default();
    let mut viewer = who(Role::Viewer, Limits::default());
    assert!(!policy.allows(&viewer, Permission::ArtifactExport, &everywhere));
    viewer.groups.insert("firmware-lab".to_owned());
    assert!(policy.allows(&viewer, Permission::ArtifactExport, &everywhere));
    viewer.grants.clear();
    assert!(
        policy.allows(&viewer, Permission::ArtifactExport, &everywhere),
        "a group is enough"
    );
    let mut admin = who(Role::Admin, Limits::default());
    assert!(!policy.allows(&admin, Permission::BrakePull, &everywhere));
    admin.name = "key:2".to_owned();
    assert!(policy.allows(&admin, Permission::BrakePull, &everywhere));
}

#[test]
fn a_policy_that_speaks_of_what_there_is_not_is_refused_with_its_line() {
    for (text, said) in [
        (
            "\npermit (principal, action == Action::\"campaign:fly\", resource);",
            "line 2",
        ),
        (
            "permit (principal, action, resource)\nwhen { principal.shoe_size > 3 };",
            "line 2",
        ),
        (
            "permit (principal in Role::\"viewer\", action == Action::\"fleet:read\", resource) when { principal.sites.contains(\"x\") };",
            "sites",
        ),
        ("permit (principal, action, resource);\nallow me", "line 2"),
        ("permit (principal == User::\"x\", action, resource);", "User"),
    ] {
        let refused = own(text).map(drop).unwrap_err().to_string();
        assert!(
            refused.contains(said) && refused.contains("own.cedar"),
            "{text}: {refused}"
        );
    }
    assert!(Policy::load(Some("/nowhere/own.cedar".as_ref())).is_err());
}

fn any_sites() -> impl Strategy<Value = BTreeSet<String>> {
    let site = (0..2_u8, 0..3_u8).prop_map(|(region, site)| format!("r{region}/s{site}"));
    proptest::collection::btree_set(site, 1..4)
}

fn any_permission() -> impl Strategy<Value = Permission> {
    proptest::sample::select(Permission::ALL)
}

fn about(sites: &BTreeSet<String>) -> Subject {
    let sites: Vec<_> = sites.iter().map(String::as_str).collect();
    campaign(&sites)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A higher role never loses what a lower one has, wherever it is limited to.
    #[test]
    fn higher_roles_may_do_what_lower_ones_may(limits in proptest::option::of(any_sites()), touched in any_sites(), permission in any_permission()) {
        let policy = Policy::load(None).unwrap();
        let limits = Limits { sites: limits, ..Limits::default() };
        let may = |role| policy.allows(&who(role, limits.clone()), permission, &about(&touched));
        for (lower, higher) in [
            (Role::Viewer, Role::Operator),
            (Role::Viewer, Role::Approver),
            (Role::Operator, Role::Admin),
            (Role::Approver, Role::Admin),
        ] {
            prop_assert!(!may(lower) || may(higher), "{lower} {higher} {permission:?}");
        }
    }

    /// Nobody who is limited to sites changes anything that lies beyond, whatever else he may see.
    #[test]
    fn nobody_reaches_beyond_his_sites(roles in proptest::collection::vec((0..5_usize, any_sites()), 1..4), touched in any_sites(), permission in any_permission()) {
        let policy = Policy::load(None).unwrap();
        let mut limited = who(Role::Viewer, Limits::default());
        limited.grants.extend(roles.iter().map(|(role, sites)| Grant {
            role: Role::ALL[*role],
            limits: Limits { sites: Some(sites.clone()), ..Limits::default() },
        }));
        let is_within = roles.iter().any(|(_, sites)| touched.is_subset(sites));
        let is_change = !permission.is_to_read() && !matches!(
            permission,
            Permission::CampaignPlan
                | Permission::CampaignDraft
                | Permission::FirmwareDownload
                | Permission::UpdateCheck
                | Permission::DeviceReport
        );
        if is_change && !is_within {
            prop_assert!(!policy.allows(&limited, permission, &about(&touched)), "{limited:?} {permission:?}");
        }
    }

    /// More limits never allow more.
    #[test]
    fn limits_only_take_away(role in 0..5_usize, limits in any_sites(), touched in any_sites(), permission in any_permission()) {
        let policy = Policy::load(None).unwrap();
        let role = Role::ALL[role];
        let limits = Limits { sites: Some(limits), ..Limits::default() };
        let limited = policy.allows(&who(role, limits), permission, &about(&touched));
        let free = policy.allows(&who(role, Limits::default()), permission, &about(&touched));
        prop_assert!(!limited || free);
    }
}
