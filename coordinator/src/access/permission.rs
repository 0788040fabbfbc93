//! What one may be allowed to do. Every route names one of these; the policy says who has it.

/// A permission, named `noun:verb` everywhere: in policies, in the API's document, in problems and in the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Permission {
    /// See this face's own description, and who one is.
    ApiRead,
    /// See the fleet, its campaigns, releases and metadata.
    FleetRead,
    /// See the audit log.
    AuditRead,
    /// See counters and gauges.
    MetricsRead,
    /// Plan and rehearse campaigns.
    CampaignPlan,
    /// Start, pause, resume and cancel campaigns.
    CampaignOrder,
    /// Have devices go back to the version before.
    CampaignRollback,
    /// Say yes or no where a campaign waits for a person.
    CampaignApprove,
    /// Make, change and remove groups of devices.
    GroupWrite,
    /// Tell of devices before a node does.
    DeviceRegister,
    /// Say that a quarantined device was looked at.
    DeviceClear,
    /// Change what people say of a device: labels, pins.
    DeviceWrite,
    /// Forget a device.
    DeviceDelete,
    /// Change windows, baselines and policies.
    PolicyWrite,
    /// Publish signed metadata.
    MetadataPublish,
    /// Keep evidence: vendor signatures, SBOMs, verdicts.
    EvidenceWrite,
    /// Stop a campaign or an image for good.
    BrakePull,
    /// Bring images in.
    ArtifactImport,
    /// Remove images.
    ArtifactDelete,
    /// Take images out, as a person.
    ArtifactExport,
    /// Change what releases are.
    ReleaseWrite,
    /// Allow nodes to enrol.
    NodeEnrol,
    /// Take nodes out of the fleet.
    NodeRevoke,
    /// Tell people something again, or as a test.
    NotificationSend,
    /// Make, rotate and revoke API keys.
    AccessManage,
    /// Download the image of one's own update, as a device.
    FirmwareDownload,
    /// Ask for one's own update, as a device.
    UpdateCheck,
    /// Tell of oneself, as a device.
    DeviceReport,
}

impl Permission {
    /// All of them.
    pub(crate) const ALL: [Self; 28] = [
        Self::ApiRead,
        Self::FleetRead,
        Self::AuditRead,
        Self::MetricsRead,
        Self::CampaignPlan,
        Self::CampaignOrder,
        Self::CampaignRollback,
        Self::CampaignApprove,
        Self::GroupWrite,
        Self::DeviceRegister,
        Self::DeviceClear,
        Self::DeviceWrite,
        Self::DeviceDelete,
        Self::PolicyWrite,
        Self::MetadataPublish,
        Self::EvidenceWrite,
        Self::BrakePull,
        Self::ArtifactImport,
        Self::ArtifactDelete,
        Self::ArtifactExport,
        Self::ReleaseWrite,
        Self::NodeEnrol,
        Self::NodeRevoke,
        Self::NotificationSend,
        Self::AccessManage,
        Self::FirmwareDownload,
        Self::UpdateCheck,
        Self::DeviceReport,
    ];

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ApiRead => "api:read",
            Self::FleetRead => "fleet:read",
            Self::AuditRead => "audit:read",
            Self::MetricsRead => "metrics:read",
            Self::CampaignPlan => "campaign:plan",
            Self::CampaignOrder => "campaign:order",
            Self::CampaignRollback => "campaign:rollback",
            Self::CampaignApprove => "campaign:approve",
            Self::GroupWrite => "group:write",
            Self::DeviceRegister => "device:register",
            Self::DeviceClear => "device:clear",
            Self::DeviceWrite => "device:write",
            Self::DeviceDelete => "device:delete",
            Self::PolicyWrite => "policy:write",
            Self::MetadataPublish => "metadata:publish",
            Self::EvidenceWrite => "evidence:write",
            Self::BrakePull => "brake:pull",
            Self::ArtifactImport => "artifact:import",
            Self::ArtifactDelete => "artifact:delete",
            Self::ArtifactExport => "artifact:export",
            Self::ReleaseWrite => "release:write",
            Self::NodeEnrol => "node:enrol",
            Self::NodeRevoke => "node:revoke",
            Self::NotificationSend => "notification:send",
            Self::AccessManage => "access:manage",
            Self::FirmwareDownload => "firmware:download",
            Self::UpdateCheck => "update:check",
            Self::DeviceReport => "device:report",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn permissions_have_each_a_name_of_its_own_made_of_a_noun_and_a_verb() {
        let names: BTreeSet<_> = Permission::ALL.iter().map(|permission| permission.name()).collect();
        assert_eq!(names.len(), Permission::ALL.len());
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase());
        for name in names {
            let (noun, verb) = name.split_once(':').unwrap();
            assert!(is_plain(noun) && is_plain(verb), "{name}");
        }
    }
}
