//! Groups of devices.

use serde::{Deserialize, Serialize};

use crate::ids::{DeviceId, GroupId};

/// `POST /api/v1/device-groups`: a group of devices with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDeviceGroup {
    /// The group.
    pub id: GroupId,
    /// What it is for, for a person.
    #[serde(default)]
    pub description: String,
    /// A dynamic group: the devices for which this filter holds whenever somebody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// A static group: these devices. Not together with `filter`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
}

/// `PUT /api/v1/device-groups/{id}`: what the group is from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceGroupEdit {
    /// What it is for, for a person.
    #[serde(default)]
    pub description: String,
    /// As in [`NewDeviceGroup`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// As in [`NewDeviceGroup`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
}

/// `POST /api/v1/device-groups/{id}/devices`: members of a static group that come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MembersEdit {
    /// Who comes. Members already are no mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<DeviceId>,
    /// Who goes. Strangers are no mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<DeviceId>,
}

/// `GET /api/v1/device-groups/{id}`: a group. Its members are at `/api/v1/device-groups/{id}/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeviceGroup {
    /// The group.
    pub id: GroupId,
    /// What it is for, for a person.
    pub description: String,
    /// The rule of a dynamic group, as the coordinator prints it; absent for a static one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// How many members a static group has; absent for a dynamic one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
    /// Another one with every change: the number in the `ETag`.
    pub version: u64,
}
