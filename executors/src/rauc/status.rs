//! What RAUC says of its slots.

use std::collections::BTreeMap;

use firmesh_executors_core::Slot;
use firmesh_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};

/// `rauc status --detailed --output-format=json`, as far as it is needed.
#[derive(Debug, Clone, Deserialize)]
struct Told {
    booted: Option<String>,
    boot_primary: Option<String>,
    slots: Vec<BTreeMap<String, ToldSlot>>,
}

#[derive(Debug, Clone, Deserialize)]
struct ToldSlot {
    bootname: Option<String>,
    #[serde(default)]
    slot_status: ToldStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ToldStatus {
    bundle: ToldBundle,
    checksum: Option<ToldChecksum>,
    installed: Option<ToldInstalled>,
    status: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ToldBundle {
    version: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct ToldChecksum {
    sha256: Sha256,
}

#[derive(Debug, Clone, Deserialize)]
struct ToldInstalled {
    count: u64,
}

/// The two slots that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slots {
    /// By name: the first is A.
    pub(super) slots: [SlotTold; 2],
    /// The one that runs.
    pub(super) running: Slot,
    /// The one that a restart starts, if RAUC can tell.
    pub(super) primary: Option<Slot>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotTold {
    /// RAUC's name for it, such as `rootfs.0`.
    pub(super) name: String,
    /// The version of the bundle that was installed into it.
    pub(super) version: Option<String>,
    /// What is in it; nothing if the last installation did not end well.
    pub(super) content: Option<Content>,
    /// How often something was installed into it.
    pub(super) count: u64,
}

/// What an installation left in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    /// The digest of the slot's image, by RAUC.
    pub(super) checksum: Sha256,
    /// Which installation it was.
    pub(super) count: u64,
}

impl Slots {
    /// Reads what RAUC said; the error says what is wrong with it.
    pub(super) fn read(said: &[u8]) -> Result<Self, String> {
        let told: Told =
            serde_json::from_slice(said).map_err(|error| format!("its status has another form: {error}"))?;
        let Told {
            booted,
            boot_primary,
            slots,
        } = told;
        let mut bootable: Vec<_> = slots
            .into_iter()
            .flatten()
            .filter(|(_, slot)| slot.bootname.is_some())
            .collect();
        bootable.sort_by(|a, b| a.0.cmp(&b.0));
        let Ok([a, b]) = <[_; 2]>::try_from(bootable) else {
            return Err("it has not two slots with a bootname, but another number".to_owned());
        };
        let which = |is: &dyn Fn(&(String, ToldSlot)) -> bool| match (is(&a), is(&b)) {
            (true, false) => Some(Slot::A),
            (false, true) => Some(Slot::B),
            _ => None,
        };
        let running = which(&|slot| slot.1.bootname == booted || Some(&slot.0) == booted.as_ref());
        let running = running.ok_or_else(|| format!("it says that {booted:?} was booted, which is neither slot"))?;
        let primary = which(&|slot| Some(&slot.0) == boot_primary.as_ref());
        Ok(Self {
            running,
            primary,
            slots: [a, b].map(SlotTold::from),
        })
    }

    pub(super) fn slot(&self, slot: Slot) -> &SlotTold {
        match slot {
            Slot::A => &self.slots[0],
            Slot::B => &self.slots[1],
        }
    }
}

impl From<(String, ToldSlot)> for SlotTold {
    fn from((name, ToldSlot { slot_status, .. }): (String, ToldSlot)) -> Self {
        let count = slot_status.installed.map_or(0, |installed| installed.count);
        let is_whole = slot_status.status.as_deref() == Some("ok");
        let content = slot_status.checksum.filter(|_| is_whole).map(|checksum| Content {
            checksum: checksum.sha256,
            count,
        });
        Self {
            name,
            version: slot_status.bundle.version,
            content,
            count,
        }
    }
}

/// `VERSION_ID` of an os-release file.
pub(super) fn version_id(text: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix("VERSION_ID="))?;
    let version = line.trim().trim_matches(['"', '\'']);
    (!version.is_empty() && version.len() <= 128).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"{"compatible": "acme", "booted": "A", "boot_primary": "rootfs.1", "slots": [
        {"rootfs.1": {"class": "rootfs", "bootname": "B", "state": "inactive", "boot_status": "bad", "slot_status": {
            "bundle": {"compatible": "acme", "version": "1.1.0"}, "status": "ok", "installed": {"timestamp": "t", "count": 2},
            "checksum": {"sha256": "6aba6f2429d18cda4c953c676b5994631cab40607ec5aa5d83247b7a0f39bf06", "size": 300000}}}},
        {"data.0": {"class": "data", "bootname": null, "state": "active"}},
        {"rootfs.0": {"class": "rootfs", "bootname": "A", "state": "booted", "slot_status": {"bundle": {"compatible": null}}}}]}"#;

    #[test]
    fn the_two_slots_that_boot_are_found_and_their_contents_believed_when_whole() {
        let slots = Slots::read(SAID.as_bytes()).unwrap();
        assert_eq!((slots.running, slots.primary), (Slot::A, Some(Slot::B)));
        assert_eq!(
            (slots.slot(Slot::A).name.as_str(), &slots.slot(Slot::A).content),
            ("rootfs.0", &None)
        );
        let b = slots.slot(Slot::B);
        assert_eq!((b.version.as_deref(), b.count), (Some("1.1.0"), 2));
        assert!(b.content.is_some());
        let torn = Slots::read(SAID.replace("\"ok\"", "\"pending\"").as_bytes()).unwrap();
        assert_eq!(torn.slot(Slot::B).content, None);
        for (from, to) in [
            ("\"B\"", "null"),
            ("\"booted\": \"A\"", "\"booted\": \"C\""),
            ("\"slots\"", "\"slits\""),
            ("[", "("),
        ] {
            Slots::read(SAID.replace(from, to).as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn a_version_is_read_with_and_without_quotes() {
        for (text, version) in [
            ("NAME=x\nVERSION_ID=\"1.2\"\n", Some("1.2")),
            ("VERSION_ID=1.2", Some("1.2")),
            ("VERSION_ID=''\n", None),
            ("VERSION=1", None),
        ] {
            assert_eq!(version_id(text).as_deref(), version);
        }
    }
}
