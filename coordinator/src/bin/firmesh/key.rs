//! `firmesh key`: keys of people, made, shown and locked offline.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::{
    KeyRef, Secrets, generate_key, is_encrypted_file, unlock_secret_key, write_encrypted_key, write_key,
    write_public_key,
};
use firmesh_protocol::trust::PublicKey;
use serde_json::json;

use crate::{Unlock, output::Output};

const REFERENCES: &str = "A key is named by PATH or file:PATH, env:NAME (a variable that holds PKCS#8 PEM), or \
    pkcs11:token=LABEL;object=NAME?module-path=/path/to/module.so (RFC 7512; the module may also stand in \
    FIRMESH_PKCS11_MODULE). A public key is also its 64 hexadecimal digits.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes an ed25519 key: FILE (PKCS#8 PEM, mode 0600) and FILE.pub, or a key inside a token.
    #[command(after_help = REFERENCES)]
    Generate(Generate),
    /// Shows the public half and the key id of a key.
    #[command(after_help = REFERENCES)]
    Show(Show),
    /// Encrypts a key file under a passphrase, or under another one.
    Passphrase(Passphrase),
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Where the secret is to be: a file, or pkcs11:...
    #[arg(value_name = "FILE|pkcs11:...")]
    key: KeyRef,
    /// Leave the file unencrypted: whoever can read it, can sign.
    #[arg(long)]
    unencrypted: bool,
    /// Where to write the public half of a key in a token.
    #[arg(long, value_name = "FILE.pub")]
    public: Option<PathBuf>,
    /// Replace a key file that is there. It is gone then.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    unlock: Unlock,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The key, secret or public.
    key: KeyRef,
    /// Write the public half to this file too.
    #[arg(long, value_name = "FILE.pub")]
    public: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlock,
}

#[derive(Debug, Args)]
pub(crate) struct Passphrase {
    /// The key file.
    file: PathBuf,
    /// A file with the new passphrase, readable by its owner only; asked for if absent.
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlock,
}

pub(crate) fn run(command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Generate(generate) => self::generate(&generate, output),
        Command::Show(show) => {
            let key = show.key.public(&show.unlock.secrets()?)?;
            if let Some(file) = &show.public {
                write_public_key(file, &key, false)?;
            }
            tell(output, key, show.key.to_string())
        }
        Command::Passphrase(passphrase) => self::passphrase(&passphrase, output),
    }
}

fn generate(generate: &Generate, output: &Output) -> anyhow::Result<()> {
    let secrets = generate.unlock.secrets()?;
    let KeyRef::File(file) = &generate.key else {
        let key = generate.key.generate_in_token(&secrets)?;
        if let Some(file) = &generate.public {
            write_public_key(file, &key, generate.force)?;
        }
        return tell(output, key, format!("made in {}", generate.key));
    };
    let key = generate_key()?;
    let public_file = if generate.unencrypted {
        output.warn(&format!(
            "{} is not encrypted: whoever can read it, can sign",
            file.display()
        ));
        write_key(file, &key, generate.force)?
    } else {
        let passphrase = secrets.new_passphrase(&file.display().to_string()).map_err(|error| {
            anyhow::Error::from(error).context("a new key is encrypted, unless you say --unencrypted")
        })?;
        write_encrypted_key(file, &key, &passphrase, generate.force)?
    };
    let how = if generate.unencrypted {
        "secret"
    } else {
        "secret, encrypted"
    };
    tell(
        output,
        key.public(),
        format!("wrote {} ({how}) and {}", file.display(), public_file.display()),
    )
}

fn passphrase(args: &Passphrase, output: &Output) -> anyhow::Result<()> {
    let secrets = args.unlock.secrets()?;
    let key = unlock_secret_key(&args.file, &secrets)?;
    let new = match &args.new_passphrase_file {
        Some(file) => Unlock {
            passphrase_file: Some(file.clone()),
            pin_file: None,
        }
        .secrets()?,
        // What opened the old one does not lock the new one, unless there was no old one.
        None if is_encrypted_file(&args.file) == Some(true) => Secrets {
            passphrase: None,
            ..secrets
        },
        None => secrets,
    };
    let passphrase = new.new_passphrase(&args.file.display().to_string())?;
    write_encrypted_key(&args.file, &key, &passphrase, true)?;
    tell(output, key.public(), format!("{} is encrypted", args.file.display()))
}

fn tell(output: &Output, key: PublicKey, what: String) -> anyhow::Result<()> {
    output.show(&json!({ "public_key": key, "key_id": key.id() }), || {
        vec![what, format!("public key  {key}"), format!("key id      {}", key.id())]
    })
}
