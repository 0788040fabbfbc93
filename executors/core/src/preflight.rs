//! What must hold before the first write.

use firmesh_protocol::report::PermitKind;

use crate::{goal::Goal, observed::Seen};

/// Checks that the image is meant for this device as it is now; the error is the reason for refusing, for a person.
pub(crate) fn check(goal: &Goal, seen: &Seen) -> Result<(), String> {
    let (info, artifact) = (&goal.image.info, &goal.image.artifact);
    if seen.vendor != info.vendor {
        return Err(format!(
            "refused before any write: wrong vendor: the image is for {:?}, the device is from {:?}",
            info.vendor, seen.vendor
        ));
    }
    if !info.models.contains(&seen.model) {
        let models = info.models.join(", ");
        return Err(format!(
            "refused before any write: wrong model: the image is for {models}, the device is a {}",
            seen.model
        ));
    }
    if seen.component != info.component {
        return Err(format!(
            "refused before any write: wrong component: the image is for {}, the device has {}",
            info.component, seen.component
        ));
    }
    let Some(version) = &seen.version else {
        return Err(format!(
            "refused before any write: the device does not report a version of {}",
            seen.component
        ));
    };
    if let Some(max) = seen.image_bytes_max.filter(|&max| artifact.length > max) {
        return Err(format!(
            "refused before any write: the image has {} bytes, the device takes {max}",
            artifact.length
        ));
    }
    if goal.kind == PermitKind::Update && version != &info.version {
        if !info.may_follow(version) {
            let least = info.min_from.iter().map(|least| format!("{least} or later"));
            let from = info
                .from_versions
                .iter()
                .cloned()
                .chain(least)
                .collect::<Vec<_>>()
                .join(", ");
            return Err(format!(
                "refused before any write: {} installs only from {from}, the device runs {version}",
                info.version
            ));
        }
        if info.security_epoch < goal.security_epoch_min {
            return Err(format!(
                "refused before any write: the image has security epoch {}, the device has reached {}",
                info.security_epoch, goal.security_epoch_min
            ));
        }
    }
    Ok(())
}
