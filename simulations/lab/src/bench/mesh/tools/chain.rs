//! A cut-through chain of standard programs: each node writes the image to its disk and passes it on while it comes. Racks follow
//! one another, so that the image enters each once. Nothing is encrypted, nothing verified but the length.

use std::{net::IpAddr, path::Path};

use anyhow::{Context as _, Result};

use super::{IMAGE, ORIGIN, Others, Prepared, installed, node_name};

const PORT: u16 = 7070;
/// What socat moves at once.
const BLOCK_BYTES: u32 = 128 << 10;

impl Others<'_> {
    /// Every node waits for the one before it, the last first: whoever is connected to already listens.
    pub(super) async fn link_up(&mut self) -> Result<Prepared> {
        let mut next = None;
        for node in self.order().into_iter().rev() {
            let ip = self.place(&node)?.ip;
            self.start_script(&node, &link(ip, next, self.topology.image_bytes()))?;
            self.listens(&node, ip, PORT).await?;
            next = Some(ip);
        }
        Ok(Prepared::Chain)
    }

    /// The origin begins to send.
    pub(super) fn feed_chain(&mut self) -> Result<()> {
        let order = self.order();
        let first = order.first().context("a chain of nobody")?;
        let script = feed(self.image, self.place(first)?.ip);
        let args = vec!["-c".into(), script.into()];
        self.processes
            .start_program(ORIGIN, &self.origin, installed("sh")?, args)
    }

    fn order(&self) -> Vec<String> {
        let racks = 1..=self.topology.racks;
        racks
            .flat_map(|rack| (1..=self.topology.nodes).map(move |number| node_name(rack, number)))
            .collect()
    }
}

/// A node's script: from the one before to the disk and to the next. A chain that breaks behind a node does not keep it from
/// writing; one that breaks before it leaves it with too little, and that is all it can know.
fn link(own: IpAddr, next: Option<IpAddr>, image_bytes: u64) -> String {
    let pass_on = next.map_or_else(
        || "> /dev/null".to_owned(),
        |next| format!("| socat -u -b {BLOCK_BYTES} - TCP:{next}:{PORT}"),
    );
    format!(
        "socat -u -b {BLOCK_BYTES} TCP-LISTEN:{PORT},bind={own} - | \
         {{ tee -p {IMAGE}; [ \"$(stat -c %s {IMAGE})\" = {image_bytes} ] && : > done; }} {pass_on}"
    )
}

fn feed(image: &Path, first: IpAddr) -> String {
    format!(
        "socat -u -b {BLOCK_BYTES} OPEN:'{}',rdonly TCP:{first}:{PORT}; exec sleep 100000",
        image.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_chain_passes_nothing_on() {
        let [own, next] = ["10.77.1.1", "10.77.1.2"].map(|ip| ip.parse().expect("an address"));
        let middle = link(own, Some(next), 7);
        assert!(middle.contains("TCP-LISTEN:7070,bind=10.77.1.1") && middle.ends_with("TCP:10.77.1.2:7070"));
        assert!(middle.contains("= 7 ] && : > done"));
        assert!(link(next, None, 7).ends_with("} > /dev/null"));
    }
}
