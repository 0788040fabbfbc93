//! `firmesh-node --discover`: looks for Redfish services on given addresses, and prints what a node's configuration would
//! say of them.

use std::{fs, io, num::NonZeroU32, path::PathBuf};

use clap::Args;
use firmesh_executors::redfish::search::{Addresses, Found, Search, discover};

/// Looking for devices, instead of running.
#[derive(Debug, Args)]
pub(crate) struct Discovery {
    /// Look for Redfish services on these addresses (`10.1.9.7`, `10.1.9.0/24` or `10.1.9.10-10.1.9.40`; several), print them
    /// and exit. Nobody's credentials are sent.
    #[arg(long, value_name = "ADDRESSES", num_args = 1.., group = "looking")]
    pub(crate) discover: Vec<Addresses>,
    /// The port of the services that are looked for.
    #[arg(long, value_name = "PORT", default_value_t = 443, requires = "discover")]
    discover_port: u16,
    /// How many addresses are asked a second.
    #[arg(long, value_name = "ADDRESSES", default_value = "20", requires = "discover")]
    discover_rate: NonZeroU32,
    /// Keep the certificates that were shown in this folder.
    #[arg(long, value_name = "FOLDER", requires = "discover")]
    certificates: Option<PathBuf>,
}

impl Discovery {
    /// Looks, and prints what is found as soon as it is.
    pub(crate) fn run(self, json: bool) -> Result<(), Box<dyn std::error::Error>> {
        let search = Search {
            addresses: self.discover,
            port: self.discover_port,
            per_second: self.discover_rate,
        };
        if let Some(folder) = &self.certificates {
            fs::create_dir_all(folder)?;
        }
        let (mut count, mut failed) = (0_usize, None);
        let tell = |found: Found| {
            count += 1;
            let kept = self.certificates.as_ref().map(|folder| {
                let file = folder.join(format!("{}.pem", name(&found)));
                fs::write(file, found.certificate_pem())
            });
            match kept.transpose() {
                Ok(_) if json => println!("{}", serde_json::json!(found)),
                Ok(_) => println!("{}", device(&found)),
                Err(error) => failed = Some(error),
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = runtime.block_on(discover(&search, tell))?;
        eprintln!("{count} Redfish services on {asked} addresses");
        match failed {
            Some(error) => {
                Err(io::Error::new(error.kind(), format!("a certificate could not be kept: {error}")).into())
            }
            None => Ok(()),
        }
    }
}

fn name(found: &Found) -> String {
    let address = found.address.to_string().replace(['.', ':'], "-");
    format!("bmc-{}", address.trim_matches('-'))
}

/// A device of a node's configuration.
fn device(found: &Found) -> String {
    let said = [found.vendor.as_deref(), found.product.as_deref()];
    let said: Vec<_> = said.into_iter().flatten().collect();
    format!(
        "# {}, Redfish {}{}\n# certificate: SHA-256 {}\n[[device]]\nid = \"{}\"\ncomponent = \"bmc\"\nexecutor = {{ kind = \"redfish\", url = \"{}\" }}\n",
        if said.is_empty() {
            "a service that does not say what it is".to_owned()
        } else {
            said.join(" ")
        },
        found.redfish,
        found
            .uuid
            .as_ref()
            .map_or_else(String::new, |uuid| format!(", UUID {uuid}")),
        found.certificate_sha256,
        name(found),
        found.url,
    )
}
