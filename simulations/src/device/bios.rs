//! The settings of a server's BIOS, as its BMC has them: attributes, and those that wait for the server's next start.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The one that nobody may write.
const READ_ONLY: &str = "SystemUuid";

/// Attributes by name.
pub type Attributes = BTreeMap<String, Value>;

/// A BIOS's settings, as far as they are not the factory's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bios {
    changed: Attributes,
    pending: Attributes,
}

fn factory() -> Attributes {
    let factory = [
        ("BootMode", json!("LegacyBoot")),
        ("NumCores", json!(4)),
        ("QuietBoot", json!(true)),
        (READ_ONLY, json!("4c4c4544-0042")),
    ];
    factory.map(|(name, value)| (name.to_owned(), value)).into()
}

impl Bios {
    /// What holds.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        let mut attributes = factory();
        attributes.extend(self.changed.clone());
        attributes
    }

    /// What is to hold after the next start: all attributes, as many BMCs show it.
    #[must_use]
    pub fn after_the_next_start(&self) -> Attributes {
        let mut after = self.attributes();
        after.extend(self.pending.clone());
        after
    }

    /// Has attributes wait for the next start: all, or none if one of them cannot be written.
    pub fn write(&mut self, wanted: Attributes) -> Result<(), String> {
        let factory = factory();
        for (name, value) in &wanted {
            let is = factory.get(name).ok_or_else(|| format!("{name} is no attribute"))?;
            if name == READ_ONLY {
                return Err(format!("{name} is read-only"));
            }
            if std::mem::discriminant(is) != std::mem::discriminant(value) {
                return Err(format!("{name} cannot be {value}"));
            }
        }
        self.pending.extend(wanted);
        Ok(())
    }

    /// The server starts: what waited holds, unless the BIOS forgets it.
    pub(super) fn start(&mut self, forgets: bool) {
        let waited = std::mem::take(&mut self.pending);
        if !forgets {
            self.changed.extend(waited);
        }
    }

    /// What its attribute registry says.
    #[must_use]
    pub fn registry() -> Value {
        let choices =
            |names: &[&str]| -> Vec<Value> { names.iter().map(|name| json!({ "ValueName": name })).collect() };
        json!([
            { "AttributeName": "BootMode", "Type": "Enumeration", "Value": choices(&["Uefi", "LegacyBoot"]) },
            { "AttributeName": "NumCores", "Type": "Integer", "LowerBound": 1, "UpperBound": 64 },
            { "AttributeName": "QuietBoot", "Type": "Boolean" },
            { "AttributeName": READ_ONLY, "Type": "String", "ReadOnly": true },
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_holds_after_the_next_start() {
        let mut bios = Bios::default();
        let wanted = Attributes::from([("NumCores".to_owned(), json!(8))]);
        bios.write(wanted.clone()).unwrap();
        assert_eq!(
            (&bios.attributes()["NumCores"], &bios.after_the_next_start()["NumCores"]),
            (&json!(4), &json!(8))
        );
        bios.start(false);
        assert_eq!(bios.attributes()["NumCores"], json!(8));
        for (name, value) in [
            ("Fans", json!(1)),
            (READ_ONLY, json!("x")),
            ("NumCores", json!("eight")),
        ] {
            let both = Attributes::from([("QuietBoot".to_owned(), json!(false)), (name.to_owned(), value)]);
            bios.write(both).unwrap_err();
        }
        bios.start(false);
        assert_eq!(bios.attributes()["QuietBoot"], json!(true), "all or nothing");
    }
}
