//! The node that attacks are mounted against: a real process with one A/B host behind it, which must come through unchanged.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use firmesh_protocol::ids::Sha256;
use firmesh_tests::{
    cluster::Node,
    rogue::Rogue,
    setup::{ab_slot_toml, client, node_toml},
    wait::{Seen, until},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::refusals::{Forger, NODE, WITHIN, image, key};

/// A real node with one A/B host behind it.
pub(crate) struct Victim {
    pub(crate) node: Node,
    pub(crate) host: PathBuf,
    before: Vec<(String, Vec<u8>)>,
    known_before: Vec<(String, Vec<u8>)>,
    _folder: TempDir,
}

impl Victim {
    pub(crate) async fn start(rogue: &Rogue, forger: &Forger) -> Result<Self> {
        Self::start_with(rogue, forger, |config| config).await
    }

    /// The same with changes to its configuration.
    pub(crate) async fn start_with(
        rogue: &Rogue,
        forger: &Forger,
        configured: impl FnOnce(String) -> String,
    ) -> Result<Self> {
        *rogue.wares() = Default::default();
        let folder = tempfile::Builder::new().prefix("firmesh-e2e-").tempdir()?;
        let (root, host) = (folder.path(), folder.path().join("host"));
        fs::create_dir_all(root.join("trust"))?;
        fs::write(root.join("trust/1.root.json"), &forger.files["1.root.json"].1)?;
        fs::write(root.join("fleet-ca.pem"), &rogue.ca_pem)?;
        fs::write(root.join("token"), "any")?;
        write_node_key(root)?;
        write_host(&host)?;
        write_host(&folder.path().join("host2"))?;
        let config = format!(
            "{}[[device]]\nid = \"d1\"\ncomponent = \"host\"\nexecutor = {{ {} }}\n",
            node_toml("n1", 1, &rogue.url, root),
            ab_slot_toml(&host)?
        );
        fs::write(root.join("node.toml"), configured(config))?;
        let node = Node::start(root, &client()?)?;
        node.listening().await?;
        until("the device to be read", WITHIN, async || {
            let devices = rogue.wares().devices.clone();
            let known = devices.iter().any(|facts| facts.version.as_deref() == Some("1.0.0"));
            Ok(Seen::when(known, || format!("{devices:?}")))
        })
        .await?;
        let before = contents(&host)?;
        let known_before = contents(&root.join("state/metadata"))?;
        Ok(Self {
            node,
            host,
            before,
            known_before,
            _folder: folder,
        })
    }

    pub(crate) async fn refusals(&self) -> Result<Vec<Value>> {
        Ok(self.node.status().await?["refusals"]
            .as_array()
            .cloned()
            .unwrap_or_default())
    }

    pub(crate) async fn refuses(&self, code: &str) -> Result<()> {
        until(&format!("a refusal named {code}"), WITHIN, async || {
            let refusals = self.refusals().await?;
            let named = refusals.iter().any(|refusal| refusal["code"] == code);
            Ok(Seen::when(named, || format!("{refusals:?}")))
        })
        .await
    }

    /// The host beside the first one runs what it did, from the slot it did, and its other slot is empty.
    pub(crate) fn second_host_is_untouched(&self) -> Result<()> {
        ensure!(
            contents(&self.node.folder().join("host2"))? == self.before,
            "the other host was touched"
        );
        Ok(())
    }

    /// The image arrives and is written.
    pub(crate) async fn writes_its_device(&self) -> Result<()> {
        until("the image to be written", WITHIN, async || {
            let status = self.node.status().await?;
            let slot = fs::read(self.host.join("slot_b"))?;
            Ok(Seen::when(slot.starts_with(&image()), || format!("{status:#}")))
        })
        .await
    }

    /// The whole image is here, and still no byte of the device has changed.
    pub(crate) async fn holds_its_device(&self) -> Result<()> {
        until("the image to be complete", WITHIN, async || {
            let status = self.node.status().await?;
            let held = &status["holdings"][0];
            let whole = held["pieces"].is_u64() && held["pieces"] == held["pieces_total"];
            Ok(Seen::when(whole, || status.to_string()))
        })
        .await?;
        ensure!(contents(&self.host)? == self.before, "the device was touched");
        Ok(())
    }

    /// No byte of what was trusted before has changed.
    pub(crate) fn trusts_what_it_did(&self) -> Result<()> {
        let known = contents(&self.node.folder().join("state/metadata"))?;
        ensure!(known == self.known_before, "stored metadata changed: {known:?}");
        Ok(())
    }

    /// Nothing was fetched, no campaign taken up, and no byte of the device changed.
    pub(crate) async fn is_untouched(&self, rogue: &Rogue) -> Result<()> {
        let status = self.node.status().await?;
        ensure!(status["campaigns"] == json!([]), "a campaign was taken up: {status}");
        ensure!(status["attempts"] == json!([]), "an attempt was begun: {status}");
        let read_back = &status["devices"][0]["version"]; // nothing yet, shortly after a start
        ensure!(read_back.is_null() || read_back == "1.0.0", "another version: {status}");
        ensure!(rogue.wares().slices_asked == 0, "a part of an image was fetched");
        ensure!(contents(&self.host)? == self.before, "the device was touched");
        Ok(())
    }
}

/// The key that the plan names for the node.
fn write_node_key(root: &Path) -> Result<()> {
    let state = root.join("state");
    fs::create_dir_all(&state)?;
    let file = state.join("node.key");
    fs::write(&file, key(NODE).to_pem().as_bytes())?;
    Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?)
}

/// An A/B host that runs 1.0.0 from slot A, as files.
fn write_host(host: &Path) -> Result<()> {
    fs::create_dir_all(host)?;
    let old = b"the old image";
    fs::write(host.join("slot_a"), old)?;
    fs::write(host.join("slot_b"), b"")?;
    let sha256 = Sha256::of(old);
    let mut env = format!(
        "# GRUB Environment Block\nsaved_slot=a\nslot_a_length={}\nslot_a_sha256={sha256}\nslot_a_state=ready\n\
         slot_a_version=1.0.0\nslot_b_state=empty\n",
        old.len()
    );
    env.push_str(&"#".repeat(1024 - env.len()));
    fs::write(host.join("grubenv"), env)?;
    let status = json!({
        "slot": "a", "boot_id": "1", "version": "1.0.0", "model": "R1", "vendor": "Acme", "sha256": sha256,
    });
    fs::write(host.join("status.json"), status.to_string())?;
    Ok(())
}

fn contents(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((
            entry.file_name().to_string_lossy().into_owned(),
            fs::read(entry.path())?,
        ));
    }
    files.sort();
    Ok(files)
}
