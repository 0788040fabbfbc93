//! Credentials by profile: what lies on the disk is sealed, and nobody is shown what it keeps.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Shape},
    setup::{OLD, rules},
    wait::{Seen, until},
};

use super::{ENDS_WITHIN, NODE};

/// What the emulated BMCs take, and nobody must find anywhere.
const PASSWORD: &str = "e2e-password";

/// What `firmesh-node` says when it is asked about a configuration.
fn node_says(config: &Path, args: &[&str], stdin: &str) -> Result<String> {
    let mut child = Command::new(Program::Node.path()?)
        .arg("--config")
        .arg(config)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Closed when it is dropped.
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(stdin.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

#[tokio::test]
async fn a_bmc_is_updated_with_a_sealed_password_of_its_rack_and_nothing_shows_it() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let folder = fleet.node(NODE)?.folder().to_owned();
        fleet.node(NODE)?.process.stop(ENDS_WITHIN).await?;
        fs::remove_file(folder.join("bmc-password"))?;
        let (config, key) = (folder.join("node.toml"), folder.join("credentials.key"));
        fs::write(&key, "7e".repeat(32))?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        let written = fs::read_to_string(&config)?;
        let without = written.replace(" username = \"admin\", password_file = \"bmc-password\",", "");
        ensure!(without != written, "the configuration names no password: {written}");
        let with_profiles = format!("credentials_file = \"profiles.toml\"\n{without}");
        // A store that was opened without a key takes none later on: this one begins anew.
        fs::remove_dir_all(folder.join("state/store"))?;
        let with_key = with_profiles.replacen("[mesh]", "[store]\nkey_file = \"credentials.key\"\n[mesh]", 1);
        fs::write(&config, with_key)?;

        let sealed = node_says(&config, &["--seal", "rack"], &format!("{PASSWORD}\n"))?;
        let profiles = format!(
            "[[profile]]\nname = \"all\"\nusername = \"nobody\"\nsecret = {{ env = \"FIRMESH_NO_SUCH_VARIABLE\" }}\n\
             [[profile]]\nname = \"rack\"\nrack = \"eu/hall-1/rack-1\"\nusername = \"admin\"\nsecret = {{ sealed = {:?} }}\n",
            sealed.trim()
        );
        fs::write(folder.join("profiles.toml"), &profiles)?;
        let device = format!("{NODE}-bmc1");
        let said = node_says(&config, &["--credentials", &device], "")?;
        ensure!(
            said == "profile: rack\nfor: rack eu/hall-1/rack-1\nusername: admin\nsecret: sealed\n",
            "{said}"
        );
        let checked = node_says(&config, &["--check-config"], "")?;
        ensure!(!checked.contains(PASSWORD) && !checked.contains(sealed.trim()), "{checked}");

        // In another profile it is of no use.
        fs::write(folder.join("profiles.toml"), profiles.replace("name = \"rack\"", "name = \"row\""))?;
        let error = node_says(&config, &["--check-config"], "").expect_err("it was sealed for another profile");
        ensure!(format!("{error:#}").contains("the secret of profile row cannot be had"), "{error:#}");
        fs::write(folder.join("profiles.toml"), profiles)?;

        let node = fleet.node(NODE)?;
        node.restart().await?;
        until("the BMC to be read", ENDS_WITHIN, async || {
            let devices = node.status().await?["devices"].clone();
            Ok(Seen::when(devices[0]["version"] == OLD, || devices.to_string()))
        })
        .await?;
        fleet.start_campaign("spring", &rules(1, (120, 20)))?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        for file in super::files_below(&folder)? {
            let bytes = fs::read(&file)?;
            let shows = bytes.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes());
            ensure!(!shows, "{} shows the password", file.display());
        }
        Ok(())
    })
    .await
}
