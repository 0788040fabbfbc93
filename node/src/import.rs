//! `firmesh-node --import-vcenter`: asks a vCenter for its hosts, and prints what a node's configuration would say of them.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf, absolute},
};

use clap::Args;
use firmesh_executors::host::{ImportedHost, NotImported, VcenterAccess, VcenterConfig, import};
use firmesh_protocol::{ids::Component, limits::NODE_DEVICES_MAX};

/// Looking for hosts, instead of running.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Ask this vCenter (`https://vcenter.example`) for its hosts, print each as a host that steps aside and devices of the
    /// configuration, labelled with its cluster and its server, and exit. Nothing is changed.
    #[arg(
        long,
        value_name = "URL",
        group = "looking",
        requires = "vcenter_username",
        requires = "vcenter_password_file",
        requires = "known_by"
    )]
    pub(crate) import_vcenter: Option<String>,
    /// The account; it needs to read the inventory.
    #[arg(long, value_name = "NAME", requires = "import_vcenter")]
    vcenter_username: Option<String>,
    /// A file whose first line is its password. It is named in what is printed, the password is not.
    #[arg(long, value_name = "FILE", requires = "import_vcenter")]
    vcenter_password_file: Option<PathBuf>,
    /// The certificates, in PEM, one of which must have issued the vCenter's.
    #[arg(long, value_name = "FILE", group = "known_by", requires = "import_vcenter")]
    vcenter_ca_file: Option<PathBuf>,
    /// Instead of it, the SHA-256 of the vCenter's own certificate.
    #[arg(long, value_name = "SHA256", group = "known_by", requires = "import_vcenter")]
    vcenter_fingerprint: Option<String>,
    /// Only hosts below these paths of the inventory, such as `/DC/host/Cluster`.
    #[arg(long, value_name = "PATH", num_args = 1.., requires = "import_vcenter")]
    vcenter_below: Vec<String>,
    /// The components of a host that become devices.
    #[arg(
        long,
        value_name = "COMPONENTS",
        value_delimiter = ',',
        default_value = "bmc,bios",
        requires = "import_vcenter"
    )]
    vcenter_components: Vec<Component>,
}

impl Import {
    /// Asks, and prints what there is.
    pub(crate) fn run(self, json: bool) -> Result<(), Box<dyn std::error::Error>> {
        let (Some(url), Some(username), Some(password_file)) =
            (self.import_vcenter, self.vcenter_username, self.vcenter_password_file)
        else {
            return Err(io::Error::other("--vcenter-username and --vcenter-password-file are needed").into());
        };
        let vcenter = VcenterConfig {
            url,
            host: String::new(),
            // The configuration may lie in another folder than we are in.
            ca_file: self.vcenter_ca_file.map(absolute).transpose()?,
            fingerprint: self.vcenter_fingerprint,
            username: Some(username),
            password_file: Some(absolute(password_file)?),
            password_env: None,
            profile: None,
            at_once: 1,
            serving_min: 1,
            limit_s: 1_800,
        };
        let access = VcenterAccess::check(&vcenter, Path::new(""))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let found = runtime.block_on(import(&access, &self.vcenter_below))?;
        for host in &found.hosts {
            let written = configuration(host, &vcenter, &self.vcenter_components)?;
            match json {
                true => println!("{}", serde_json::json!({ "host": host, "configuration": written })),
                false => println!("{written}"),
            }
        }
        for not in &found.not {
            match json {
                true => println!("{}", serde_json::json!({ "not_imported": not })),
                false => print!("{}", refused(not)),
            }
        }
        let (count, not) = (found.hosts.len(), found.not.len());
        eprintln!("{count} hosts, and {not} that cannot be imported");
        if count * self.vcenter_components.len() > NODE_DEVICES_MAX {
            eprintln!(
                "a node looks after at most {NODE_DEVICES_MAX} devices: import with --vcenter-below, or give each node its own"
            );
        }
        Ok(())
    }
}

fn refused(not: &NotImported) -> String {
    format!("# {} is not imported: {}\n", shown(&not.name), shown(&not.reason))
}

/// A host and its devices, in a node's configuration.
fn configuration(host: &ImportedHost, vcenter: &VcenterConfig, components: &[Component]) -> io::Result<String> {
    let mut text = String::new();
    written(&mut text, host, vcenter, components).map_err(io::Error::other)?;
    Ok(text)
}

fn written(
    text: &mut String,
    host: &ImportedHost,
    vcenter: &VcenterConfig,
    components: &[Component],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let or = |said: &Option<String>, else_: &str| said.as_deref().map_or_else(|| else_.to_owned(), shown);
    writeln!(
        text,
        "# {}: {} {}, serial {}, UUID {}",
        shown(&host.name),
        or(&host.vendor, "of unknown make"),
        or(&host.model, "of unknown model"),
        or(&host.serial, "unknown"),
        or(&host.uuid, "unknown"),
    )?;
    writeln!(
        text,
        "# BIOS {} of {}, ESXi {} build {}",
        or(&host.bios_version, "unknown"),
        or(&host.bios_released, "an unknown date"),
        or(&host.esxi_version, "unknown"),
        or(&host.esxi_build, "unknown"),
    )?;
    let in_a_cluster = match &host.cluster {
        Some(cluster) => format!("in cluster {}", shown(cluster)),
        None => "in no cluster".to_owned(),
    };
    let mode = match host.in_maintenance {
        Some(true) => "in maintenance mode",
        Some(false) => "in service",
        None => "in maintenance mode or not, nobody knows",
    };
    writeln!(
        text,
        "# {in_a_cluster} of datacenter {}; {}, {mode}",
        or(&host.datacenter, "unknown"),
        or(&host.connection, "connected or not, nobody knows"),
    )?;
    if let Some(untold) = &host.untold {
        writeln!(text, "# vCenter does not tell {}", shown(untold))?;
    }
    let id = quoted(host.id.as_str());
    let mut fields = vec![("url", vcenter.url.clone())];
    for (field, path) in [("ca_file", &vcenter.ca_file), ("password_file", &vcenter.password_file)] {
        if let Some(path) = path {
            let path = path.to_str().ok_or_else(|| format!("{} is not text", path.display()))?;
            fields.push((field, path.to_owned()));
        }
    }
    let more = [("fingerprint", &vcenter.fingerprint), ("username", &vcenter.username)];
    fields.extend(
        more.into_iter()
            .filter_map(|(field, value)| Some((field, value.clone()?))),
    );
    fields.push(("host", host.path.clone()));
    write!(text, "[[host]]\nname = {id}\nprepare = {{ kind = \"vcenter\"")?;
    for (field, value) in fields {
        write!(text, ", {field} = {}", quoted(&value))?;
    }
    writeln!(text, " }}")?;
    let cluster = host.cluster_label.as_ref();
    let cluster = cluster.map_or_else(String::new, |label| format!("cluster = {}, ", quoted(label.as_str())));
    for component in components {
        let device = quoted(&format!("{}-{component}", host.id));
        writeln!(
            text,
            "\n[[device]]\nid = {device}\ncomponent = {}\nhost = {id}\nlabels = {{ {cluster}unit = {id} }}",
            quoted(component.as_str())
        )?;
        let (url, more) = match host.bmc_address {
            Some(std::net::IpAddr::V6(address)) => (format!("https://[{address}]"), "its BMC's ca_file"),
            Some(address) => (format!("https://{address}"), "its BMC's ca_file"),
            None => (String::new(), "its BMC's url and ca_file"),
        };
        writeln!(
            text,
            "# to add: {more}; username and password_file, or a profile of credentials_file that fits\n\
             executor = {{ kind = \"redfish\", url = {} }}",
            quoted(&url)
        )?;
    }
    Ok(())
}

/// A text of a stranger's, as a string of TOML on one line. What could be taken for something else is told by its number.
fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text, &['"', '\\']))
}

/// The same as a part of a comment.
fn shown(text: &str) -> String {
    escaped(text, &[])
}

fn escaped(text: &str, more: &[char]) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            c if more.contains(&c) => escaped.extend(['\\', c]),
            c if c.is_alphanumeric() || c == ' ' || c.is_ascii_graphic() => escaped.push(c),
            c if u32::from(c) <= 0xffff => escaped.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => escaped.push_str(&format!("\\U{:08X}", u32::from(c))),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use firmesh_node::config::Config;
    use firmesh_protocol::ids::{DeviceId, LabelValue};
    use proptest::prelude::*;

    use super::*;

    const NODE: &str = "node = \"n1\"\npath = \"eu/s1/r1/n1\"\nstate_dir = \"state\"\nroot_file = \"root.json\"\n\
                        [coordinator]\nurl = \"https://localhost:8641/\"\nca_file = \"ca.pem\"\n\n";

    fn host(text: &str) -> ImportedHost {
        let some = || Some(text.to_owned());
        ImportedHost {
            id: DeviceId::new("esx-17.example").unwrap(),
            name: text.to_owned(),
            path: format!("/DC/host/{text}/esx-17.example"),
            datacenter: some(),
            cluster: some(),
            cluster_label: Some(LabelValue::new("Prod-0a1b2c3d").unwrap()),
            vendor: some(),
            model: some(),
            serial: some(),
            uuid: some(),
            bios_version: some(),
            bios_released: some(),
            esxi_version: some(),
            esxi_build: some(),
            connection: some(),
            in_maintenance: Some(false),
            bmc_address: None,
            untold: some(),
        }
    }

    fn vcenter() -> VcenterConfig {
        toml::from_str(
            "url = \"https://vc.example\"\nhost = \"\"\nfingerprint = \"12\"\nusername = \"firmesh\"\npassword_file = \"/etc/firmesh/vcenter\"",
        )
        .unwrap()
    }

    fn read(host: &ImportedHost) -> Config {
        let components = ["bmc", "bios"].map(|component| Component::new(component).unwrap());
        let text = configuration(host, &vcenter(), &components).unwrap();
        toml::from_str(&format!("{NODE}{text}\n{text}")).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn a_host_is_written_with_its_devices_and_its_fault_domain() {
        let host = ImportedHost {
            bmc_address: Some([10, 1, 9, 7].into()),
            ..host("Prod A")
        };
        let config = read(&host);
        assert_eq!(config.hosts[0].name, "esx-17.example");
        let ids: Vec<_> = config.devices[..2].iter().map(|device| device.id.as_str()).collect();
        assert_eq!(ids, ["esx-17.example-bmc", "esx-17.example-bios"]);
        for device in &config.devices[..2] {
            assert_eq!(device.host.as_deref(), Some("esx-17.example"));
            assert_eq!(device.labels.unit().unwrap().as_str(), "esx-17.example");
            assert_eq!(device.labels.get("cluster").unwrap().as_str(), "Prod-0a1b2c3d");
        }
        let text = configuration(&host, &vcenter(), &[]).unwrap();
        assert!(
            text.contains("# Prod A: Prod A Prod A, serial Prod A, UUID Prod A"),
            "{text}"
        );
        assert!(text.contains("password_file = \"/etc/firmesh/vcenter\""), "{text}");
    }

    #[test]
    fn what_a_stranger_says_ends_neither_a_line_nor_a_string() {
        let text = "a\n[[device]]\u{202e}\"\\ \u{1f600}";
        assert_eq!(shown(text), "a\\u000A[[device]]\\u202E\"\\ \\U0001F600");
        assert_eq!(quoted("Köln \"1\""), "\"Köln \\\"1\\\"\"");
        let not = NotImported {
            name: text.to_owned(),
            reason: text.to_owned(),
        };
        assert_eq!(refused(&not).lines().count(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_written_and_read_as_it_is(text in any::<String>()) {
            let config = read(&host(&text));
            prop_assert_eq!((config.hosts.len(), config.devices.len()), (2, 4));
            let path = match &config.hosts[0].prepare {
                firmesh_executors::host::PreparationConfig::Vcenter(vcenter) => vcenter.host.clone(),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(path, format!("/DC/host/{}/esx-17.example", text));
        }
    }
}
