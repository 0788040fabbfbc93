//! Bundles: what somebody carries to a site in a pocket.

use std::io::{self, Cursor};

use anyhow::Result;
use firmesh_protocol::{
    chunk::{HashTree, PIECE_BYTES_MIN, PieceLayout, decode, encode},
    ids::{CampaignId, Sha256},
    manifest::Artifact,
    site_bundle::{Bundle, Head, write_artifact, write_head},
};

use super::targets::{Target, said};

/// A bundle is whole or refused; of a whole one every piece is there, and verifies or does not.
pub(super) fn site_bundle() -> Result<Target> {
    let image: Vec<u8> = (0..PIECE_BYTES_MIN + 20_000).map(|at| (at / 7) as u8).collect();
    let tree = HashTree::build(&image[..], image.len() as u64)?;
    let layout = PieceLayout::new(tree.length);
    let head = Head {
        fleet_ca_sha256: Sha256::of(b"a fleet"),
        campaign: CampaignId::new("spring")?,
        metadata: [("timestamp.json".to_owned(), "{}".to_owned())].into(),
        manifest: "{}".to_owned(),
        plan: "{}".to_owned(),
        artifacts: vec![Artifact {
            id: tree.root,
            length: tree.length,
            sha256: Sha256::of(&image),
        }],
    };
    let mut whole = Cursor::new(Vec::new());
    write_head(&mut whole, &head)?;
    write_artifact(&mut whole, layout, |piece| {
        encode(&image[..], &tree, &layout.bytes(piece)).map_err(io::Error::other)
    })?;
    let mut empty = Vec::new();
    let artifacts = Vec::new();
    write_head(&mut empty, &Head { artifacts, ..head })?;
    let feed = |input: &[u8]| {
        let mut bundle = Bundle::open(Cursor::new(input)).map_err(said)?;
        let mut refused = Ok(());
        for Artifact { id, length, .. } in bundle.head().artifacts.clone() {
            let layout = PieceLayout::new(length);
            for piece in 0..layout.pieces() {
                let encoded = bundle.piece(id, piece).expect("what is in memory can be read");
                let encoded = encoded.expect("a whole bundle has every piece of what it names");
                let decoded = decode(&encoded, id, length, &layout.bytes(piece))
                    .map(drop)
                    .map_err(said);
                refused = refused.and(decoded);
            }
        }
        refused
    };
    Ok(Target::new(
        "site_bundle",
        "a bundle that was carried to a site",
        vec![whole.into_inner(), empty],
        feed,
    ))
}
