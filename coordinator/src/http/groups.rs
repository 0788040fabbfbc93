//! `/api/v1/device-groups`: devices that operators have named together, by hand or by a rule.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Extension,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use firmesh_protocol::{
    api::{DeviceGroup, DeviceGroupEdit, DeviceView, MembersEdit, NewDeviceGroup},
    ids::{DeviceId, GroupId},
    limits::{PLAN_DEVICES_MAX, REASON_BYTES_MAX},
};

use super::{
    App,
    admission::Who,
    conditions::{Conditions, changed_meanwhile},
    identities::Sight,
    operators::named,
    paging::{Listing, parse_filter},
    problem::{Body, Failure},
    routes::{Op, Routes},
    stretches::Devices,
};
use crate::{
    access::Permission,
    groups::{Changed, GROUPS_MAX, Group, GroupRecord},
    world::World,
};

type Shared = State<Arc<App>>;

/// As many names as a group may have, each with its quotes and comma.
pub(super) const BODY_BYTES_MAX: usize = PLAN_DEVICES_MAX * 68;

pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "device-groups";
    routes.add(
        TAG,
        "/api/v1/device-groups",
        [
            Op::get("Lists the groups.", list)
                .needs(Permission::FleetRead)
                .paged()
                .answers_page::<DeviceGroup>(),
            Op::post("Makes a group: static (`devices`) or dynamic (`filter`).", create)
                .needs(Permission::GroupWrite)
                .limit(BODY_BYTES_MAX)
                .takes::<NewDeviceGroup>()
                .made::<DeviceGroup>(),
        ],
    );
    routes.add(
        TAG,
        "/api/v1/device-groups/{id}",
        [
            Op::get("Shows a group.", show)
                .needs(Permission::FleetRead)
                .tagged()
                .answers::<DeviceGroup>(),
            Op::put("Makes the group another one.", replace)
                .needs(Permission::GroupWrite)
                .limit(BODY_BYTES_MAX)
                .header("If-Match", true, "the `ETag` of what is replaced")
                .takes::<DeviceGroupEdit>()
                .answers::<DeviceGroup>(),
            Op::delete("Removes a group; its devices stay what they are.", remove)
                .needs(Permission::GroupWrite)
                .header("If-Match", true, "the `ETag` of what is removed")
                .empty(),
        ],
    );
    routes.add(
        TAG,
        "/api/v1/device-groups/{id}/devices",
        [
            Op::get("Lists the members as they are now.", members)
                .needs(Permission::FleetRead)
                .paged()
                .answers_page::<DeviceView>(),
            Op::post("Adds members to a static group, and removes some.", edit_members)
                .needs(Permission::GroupWrite)
                .limit(BODY_BYTES_MAX)
                .header("If-Match", false, "the `ETag` of what is changed, if only that may be")
                .takes::<MembersEdit>()
                .answers::<DeviceGroup>(),
        ],
    );
}

async fn list(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let groups = app.store.groups().await?;
    Ok(listing.page_of(groups.iter().map(Group::view), |group| group.id.to_string()))
}

async fn create(
    State(app): Shared,
    conditions: Conditions,
    Body(new): Body<NewDeviceGroup>,
) -> Result<Response, Failure> {
    let edit = DeviceGroupEdit {
        description: new.description,
        filter: new.filter,
        devices: new.devices,
    };
    let record = checked(&app, edit).await?;
    match app.store.put_group(&new.id, None, &record).await? {
        Changed::Yes(version) => {
            let place = format!("/api/v1/device-groups/{}", new.id);
            let group = Group {
                id: new.id,
                version,
                record,
            };
            let mut response = conditions.versioned(version, &group.view());
            *response.status_mut() = StatusCode::CREATED;
            // Names have no characters that a header must not have.
            let place = HeaderValue::from_str(&place).map_err(|error| Failure::bad_request(error.to_string()))?;
            response.headers_mut().insert(header::LOCATION, place);
            Ok(response)
        }
        Changed::Meanwhile => Err(Failure::new(
            StatusCode::CONFLICT,
            "exists",
            format!(
                "there is a group {} already: change it with PUT, or choose another name",
                new.id
            ),
        )),
        Changed::Full => Err(Failure::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "groups_full",
            format!("there are {GROUPS_MAX} groups, which is the most: remove some"),
        )),
    }
}

async fn show(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let group = found(&app, &named(&id)?).await?;
    Ok(conditions.versioned(group.version, &group.view()))
}

async fn replace(
    State(app): Shared,
    Path(id): Path<String>,
    conditions: Conditions,
    Body(edit): Body<DeviceGroupEdit>,
) -> Result<Response, Failure> {
    let group = found(&app, &named(&id)?).await?;
    conditions.require_match(group.version)?;
    let record = checked(&app, edit).await?;
    put(&app, &conditions, group, record).await
}

async fn remove(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<StatusCode, Failure> {
    let group = found(&app, &named(&id)?).await?;
    conditions.require_match(group.version)?;
    match app.store.remove_group(&group.id, group.version).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(changed_meanwhile("group")),
    }
}

async fn edit_members(
    State(app): Shared,
    Path(id): Path<String>,
    conditions: Conditions,
    Body(edit): Body<MembersEdit>,
) -> Result<Response, Failure> {
    let group = found(&app, &named(&id)?).await?;
    conditions.check_match(group.version)?;
    if let Some(filter) = &group.record.filter {
        return Err(Failure::new(
            StatusCode::CONFLICT,
            "dynamic_group",
            format!("the members of {id} are those for which {filter} holds: change the rule with PUT"),
        ));
    }
    let added: BTreeSet<_> = edit.add.into_iter().collect();
    check_known(&app, &added).await?;
    let mut record = group.record.clone();
    record.devices.extend(added);
    for device in &edit.remove {
        record.devices.remove(device);
    }
    check_count(record.devices.len())?;
    put(&app, &conditions, group, record).await
}

async fn members(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    listing: Listing,
) -> Result<Response, Failure> {
    let Group { record, .. } = found(&app, &named(&id)?).await?;
    let filter = record.filter.as_deref().map(parse_filter).transpose()?;
    let (after, wanted) = (listing.after::<DeviceId>()?, listing.wanted());
    let views = match filter {
        Some(filter) => Devices::of(&app, Some(Arc::new(filter)), after).take(wanted).await?,
        None => {
            let look = move |world: &World| world.devices_among(&record.devices, after.as_ref(), wanted);
            app.coordinator.read(look).await?
        }
    };
    let views = super::devices::dressed(&app, views, &Sight::of(&app, &who)).await?;
    Ok(listing.page(views, |view: &DeviceView| view.facts.device.to_string()))
}

async fn put(app: &App, conditions: &Conditions, group: Group, record: GroupRecord) -> Result<Response, Failure> {
    match app.store.put_group(&group.id, Some(group.version), &record).await? {
        Changed::Yes(version) => {
            let group = Group {
                version,
                record,
                ..group
            };
            Ok(conditions.versioned(version, &group.view()))
        }
        Changed::Meanwhile | Changed::Full => Err(changed_meanwhile("group")),
    }
}

async fn found(app: &App, id: &GroupId) -> Result<Group, Failure> {
    let group = app.store.group(id).await?;
    group.ok_or_else(|| Failure::not_found(format!("device group {id}")))
}

/// A group's content from outside.
async fn checked(app: &App, edit: DeviceGroupEdit) -> Result<GroupRecord, Failure> {
    let DeviceGroupEdit {
        description,
        filter,
        devices,
    } = edit;
    if description.len() > REASON_BYTES_MAX {
        return Err(Failure::bad_request(format!(
            "the description has {} bytes, at most {REASON_BYTES_MAX} are kept",
            description.len()
        )));
    }
    if filter.is_some() && !devices.is_empty() {
        return Err(Failure::bad_request(
            "a group has a `filter` or `devices`, not both: one is dynamic, the other static",
        ));
    }
    // Kept as we print it, so that what is shown is what is understood.
    let filter = match filter {
        Some(text) => {
            let printed = parse_filter(&text)?.to_string();
            parse_filter(&printed)?;
            Some(printed)
        }
        None => None,
    };
    let devices: BTreeSet<_> = devices.into_iter().collect();
    check_count(devices.len())?;
    check_known(app, &devices).await?;
    Ok(GroupRecord {
        description,
        filter,
        devices,
    })
}

fn check_count(count: usize) -> Result<(), Failure> {
    if count > PLAN_DEVICES_MAX {
        return Err(Failure::bad_request(format!(
            "the group would have {count} devices, at most {PLAN_DEVICES_MAX} are planned for in one campaign"
        )));
    }
    Ok(())
}

async fn check_known(app: &App, devices: &BTreeSet<DeviceId>) -> Result<(), Failure> {
    let devices = devices.clone();
    let stranger = app
        .coordinator
        .read(move |world| devices.into_iter().find(|device| !world.devices.contains(device)))
        .await?;
    match stranger {
        None => Ok(()),
        Some(device) => Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unknown_device",
            format!("no node has told of a device {device}: check the name (`firmesh device list`)"),
        )),
    }
}
