//! What one may be allowed to do. Every route names one of these; the policy says who has it.

/// One line each: the variant, its name everywhere (policies, the API's document, problems, the audit log), and what it is.
macro_rules! permissions {
    ($($variant:ident = $name:literal, $what:literal;)*) => {
        /// A permission, named `noun:verb`. A new one stands in `access.cedarschema` as well.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Permission {
            $(#[doc = $what] $variant,)*
        }

        impl Permission {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What it allows, for a person.
            pub(crate) const fn what(self) -> &'static str {
                match self {
                    $(Self::$variant => $what,)*
                }
            }
        }
    };
}

permissions! {
    ApiRead = "api:read", "See this face's own description, and who one is.";
    FleetRead = "fleet:read", "See the fleet, its campaigns, releases and metadata.";
    AuditRead = "audit:read", "See the audit log.";
    MetricsRead = "metrics:read", "See counters and gauges.";
    CampaignPlan = "campaign:plan", "Plan and rehearse campaigns.";
    CampaignDraft = "campaign:draft", "Draft campaigns for their approvers, and take drafts back.";
    CampaignOrder = "campaign:order", "Start, pause, resume and cancel campaigns.";
    CampaignRollback = "campaign:rollback", "Have devices go back to the version before.";
    CampaignApprove = "campaign:approve", "Say yes or no where a campaign waits for a person.";
    GroupWrite = "group:write", "Make, change and remove groups of devices.";
    DeviceRegister = "device:register", "Tell of devices before a node does.";
    DeviceClear = "device:clear", "Say that a quarantined device was looked at.";
    DeviceWrite = "device:write", "Change what people say of a device: labels, pins.";
    DeviceDelete = "device:delete", "Forget a device.";
    IdentityRead = "identity:read", "See whose a device is: serial numbers, host names, addresses, owners.";
    IdentityErase = "identity:erase", "Destroy for good what says whose a device is.";
    TranscriptRead = "transcript:read", "See what was said to a device in its last attempts.";
    PolicyWrite = "policy:write", "Change windows, baselines and policies.";
    MetadataPublish = "metadata:publish", "Publish signed metadata.";
    EvidenceWrite = "evidence:write", "Keep evidence: vendor signatures, SBOMs, verdicts.";
    BrakePull = "brake:pull", "Stop a campaign or an image for good.";
    ArtifactImport = "artifact:import", "Bring images in.";
    ArtifactDelete = "artifact:delete", "Remove images.";
    ArtifactExport = "artifact:export", "Take images out, as a person.";
    ReleaseWrite = "release:write", "Change what releases are.";
    NodeEnrol = "node:enrol", "Allow nodes to enrol.";
    NodeRevoke = "node:revoke", "Take nodes out of the fleet.";
    NotificationSend = "notification:send", "Tell people something again, or as a test.";
    AccessManage = "access:manage", "Make, rotate and revoke API keys.";
    FirmwareDownload = "firmware:download", "Download the image of one's own update, as a device.";
    UpdateCheck = "update:check", "Ask for one's own update, as a device.";
    DeviceReport = "device:report", "Tell of oneself, as a device.";
}

impl Permission {
    /// Whether it is to look only: what is looked at does not matter then, and nothing is logged.
    pub(crate) const fn is_to_read(self) -> bool {
        matches!(
            self,
            Self::ApiRead | Self::FleetRead | Self::AuditRead | Self::MetricsRead
        )
    }

    /// Whether its use is an entry of the audit log. Plans and rehearsals change nothing; what devices tell, and what
    /// is given out, is written down where it happens.
    pub(crate) const fn is_logged(self) -> bool {
        !self.is_to_read()
            && !matches!(
                self,
                Self::CampaignPlan
                    | Self::ArtifactExport
                    | Self::FirmwareDownload
                    | Self::UpdateCheck
                    | Self::DeviceReport
            )
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
