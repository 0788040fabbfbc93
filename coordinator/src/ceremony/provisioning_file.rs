//! A campaign of the type `provisioning` as an operator writes it: short. What is left out is filled in before the file is read as
//! any other, so that the manifest says everything.

use toml::{Table, Value};

/// The type's name in a file.
const TYPE: &str = "provisioning";

/// What a file does not say. All servers are in one wave: a server that fails stops itself, its batch goes on, and the caps say how
/// many components are in flight.
const DEFAULTS: &str = r#"
strategy = { kind = "direct" }
caps = { per_rack = 2, total = 20 }
deadlines = { attempt = "PT1H", back = "PT10M" }
"#;

/// Whether a file is of this type.
pub(super) fn is_provisioning(file: &Table) -> bool {
    file.get("type").and_then(Value::as_str) == Some(TYPE)
}

/// Says of a file without a type that it is of this one.
pub(super) fn claim(file: &mut Table) {
    file.entry("type").or_insert_with(|| Value::String(TYPE.to_owned()));
}

/// Fills in what a file leaves out. A gate that names no shares lets the batch go on whatever became of its servers.
pub(super) fn fill_in(file: &mut Table) -> Result<(), toml::de::Error> {
    for (key, value) in toml::from_str::<Table>(DEFAULTS)? {
        file.entry(key).or_insert(value);
    }
    let gate = file.entry("gate").or_insert_with(|| Value::Table(Table::new()));
    let Value::Table(gate) = gate else { return Ok(()) };
    if !gate.contains_key("advance") && !gate.contains_key("rollback") {
        gate.insert("advance".to_owned(), Value::Integer(0));
        gate.insert("rollback".to_owned(), Value::Integer(0));
    }
    gate.entry("sample_min").or_insert(Value::Integer(1));
    Ok(())
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::manifest::{CampaignKind, Strategy};

    use crate::ceremony::CampaignFile;

    const SHORT: &str =
        "id = \"hall-3\"\nexpires = \"2027-02-01T00:00:00Z\"\nbaseline = \"q3\"\nfilter = 'path under \"eu/fra1\"'\n";

    #[test]
    fn four_lines_are_a_campaign_and_the_rest_is_written_out() {
        let file = CampaignFile::provisioning_from_toml(SHORT).unwrap();
        assert_eq!(
            (file.kind, file.strategy.clone()),
            (CampaignKind::Provisioning, Strategy::Direct {})
        );
        assert_eq!(
            (file.baseline.as_ref().unwrap().as_str(), file.filter.as_deref()),
            ("q3", Some("path under \"eu/fra1\""))
        );
        let gate = file.gate.rule(&file.strategy);
        assert_eq!((gate.advance.get(), gate.rollback.get(), gate.sample_min), (0, 0, 1));
        let named = CampaignFile::from_toml(&format!("type = \"provisioning\"\n{SHORT}")).unwrap();
        assert_eq!(named.caps, file.caps);
        // Without its type it is a campaign like others, which says more.
        CampaignFile::from_toml(SHORT).unwrap_err();
    }

    #[test]
    fn what_a_file_says_stays() {
        let more = "gate = { advance = 9000 }\ncaps = { per_rack = 7, total = 8 }\nstrategy = { kind = \"rolling\", batch = 5 }\n";
        let file = CampaignFile::provisioning_from_toml(&format!("{SHORT}{more}")).unwrap();
        let gate = file.gate.rule(&file.strategy);
        assert_eq!(
            (gate.advance.get(), gate.rollback.get(), file.caps.per_rack),
            (9_000, 9_000, 7)
        );
        let other = CampaignFile::provisioning_from_toml(&format!("type = \"update\"\n{SHORT}")).unwrap_err();
        assert!(other.to_string().contains("provisioning"), "{other}");
        let wrong = CampaignFile::provisioning_from_toml(&format!("{SHORT}hurry = true\n")).unwrap_err();
        assert!(wrong.to_string().contains("hurry"), "{wrong}");
    }
}
