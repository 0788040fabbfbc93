//! `firmesh key`: keys of people, made and shown offline.

use std::path::PathBuf;

use clap::Subcommand;
use firmesh_coordinator::ceremony::{generate_key, load_public_key, load_secret_key, write_key};
use firmesh_protocol::trust::PublicKey;
use serde_json::json;

use crate::output::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes an ed25519 key: FILE (PKCS#8 PEM, mode 0600) and FILE.pub.
    Generate {
        /// Where to write the secret.
        file: PathBuf,
        /// Replace a key that is there. It is gone then.
        #[arg(long)]
        force: bool,
    },
    /// Shows the public half and the key id of a key file, secret or public.
    Show {
        /// The key file.
        file: PathBuf,
    },
}

pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Generate { file, force } => {
            let key = generate_key()?;
            let public_file = write_key(&file, &key, force)?;
            show(
                output,
                key.public(),
                format!("wrote {} (secret) and {}", file.display(), public_file.display()),
            )
        }
        Command::Show { file } => {
            let key = match load_public_key(&file) {
                Ok(key) => key,
                Err(_) => load_secret_key(&file)?.public(),
            };
            show(output, key, file.display().to_string())
        }
    }
}

fn show(output: &Output, key: PublicKey, what: String) -> anyhow::Result<()> {
    output.show(&json!({ "public_key": key, "key_id": key.id() }), || {
        vec![what, format!("public key  {key}"), format!("key id      {}", key.id())]
    })
}
