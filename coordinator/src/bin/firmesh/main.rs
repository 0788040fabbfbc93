//! The operator's command line: an ordinary client of the coordinator's public API, and the offline half of the trust.
//!
//! Exit status: 0 done, 1 error, 2 wrong usage, 3 refused by a signature, a threshold or a policy, 4 a campaign ended
//! without reaching its goal.

mod access;
mod approve;
mod archive;
mod artifact;
mod audit;
mod baseline;
mod brake;
mod bundle;
mod campaign;
mod client;
mod device;
mod doctor;
mod group;
mod key;
mod login;
mod mesh;
mod node;
mod notification;
mod output;
mod provenance;
mod provision;
mod release;
mod repository;
mod rollback;
mod simulate;
mod support;
mod trust;
mod tuf;
mod upload;
mod watch;
mod window;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
    sync::LazyLock,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use firmesh_coordinator::ceremony::{Secrets, TrustFolder, load_secret};
use firmesh_protocol::time::WallTime;
use zeroize::Zeroizing;

use self::{client::Client, output::Output};

/// Version and commit, as the coordinator tells its own.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{} ({})",
        env!("CARGO_PKG_VERSION"),
        option_env!("FIRMESH_COMMIT").unwrap_or("unknown")
    )
});

/// Firmesh: signed firmware campaigns over a mesh of nodes.
#[derive(Debug, Parser)]
#[command(name = "firmesh", version = VERSION.as_str(), propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
struct Global {
    /// Answer in JSON, errors too.
    #[arg(long, global = true)]
    json: bool,
    /// Where the coordinator answers.
    #[arg(
        long,
        global = true,
        env = "FIRMESH_COORDINATOR",
        default_value = "http://127.0.0.1:8640",
        value_name = "URL"
    )]
    coordinator: String,
    /// The coordinator's CA certificate (PEM), if the system does not trust it.
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A file with the API token, readable by its owner only.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The API token itself; better kept in a file.
    #[arg(long, global = true, env = "FIRMESH_TOKEN", hide_env_values = true, hide = true)]
    token: Option<String>,
}

impl Global {
    /// What `firmesh login` has left for this coordinator, while it is good.
    fn stored_token(&self) -> anyhow::Result<Option<String>> {
        match login::store::Credentials::load()?.get(&self.coordinator) {
            Some(found) if found.expires > now() => Ok(Some(found.token.clone())),
            Some(_) => {
                Output::new(self.json).warn("the login has expired: firmesh login");
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// What this person shows the coordinator, if anything.
    fn token(&self) -> anyhow::Result<Option<String>> {
        Ok(match &self.token_file {
            Some(path) => Some(load_secret(path)?.trim().to_owned()),
            None if self.token.is_some() => self.token.clone(),
            None => self.stored_token()?,
        })
    }

    fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.coordinator, self.ca_file.as_deref(), self.token()?)
    }
}

/// Where the trust folder lies.
#[derive(Debug, Args)]
struct Folder {
    /// The trust folder: metadata under its authors' hands.
    #[arg(long, default_value = "trust", value_name = "FOLDER")]
    dir: PathBuf,
}

impl Folder {
    fn open(&self) -> anyhow::Result<TrustFolder> {
        TrustFolder::open(&self.dir).context("a trust folder is made by: firmesh trust init (or import)")
    }

    /// The same for a change: nobody else changes the folder until this process is done.
    fn open_locked(&self) -> anyhow::Result<TrustFolder> {
        TrustFolder::open_locked(&self.dir).context("a trust folder is made by: firmesh trust init (or import)")
    }
}

/// What opens locked keys. Passphrases and PINs are never arguments: every user of a machine can read those.
#[derive(Debug, Args)]
struct Unlock {
    /// A file with the passphrase of encrypted keys, readable by its owner only. Or FIRMESH_PASSPHRASE; or asked for.
    #[arg(long, value_name = "FILE", env = "FIRMESH_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    /// A file with the PIN of the token, readable by its owner only. Or FIRMESH_PIN; or asked for.
    #[arg(long, value_name = "FILE", env = "FIRMESH_PIN_FILE")]
    pin_file: Option<PathBuf>,
}

impl Unlock {
    fn secrets(&self) -> anyhow::Result<Secrets> {
        let secret = |file: &Option<PathBuf>, variable| match file {
            Some(path) => {
                let text = Zeroizing::new(load_secret(path)?);
                let line = text.trim_end_matches(['\r', '\n']).to_owned();
                anyhow::Ok(Some(Zeroizing::new(line)))
            }
            None => Ok(std::env::var(variable).ok().map(Zeroizing::new)),
        };
        let prompt = |question: &str| rpassword::prompt_password(question);
        Ok(Secrets {
            passphrase: secret(&self.passphrase_file, "FIRMESH_PASSPHRASE")?,
            pin: secret(&self.pin_file, "FIRMESH_PIN")?,
            prompt: io::stdin().is_terminal().then_some(prompt),
        })
    }
}

/// How long new metadata is believed.
#[derive(Debug, Args)]
struct Expiry {
    /// The changed metadata expires after this many days.
    #[arg(long, default_value_t = 90, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    expires_days: u32,
}

impl Expiry {
    fn after_now(&self) -> WallTime {
        now() + std::time::Duration::from_secs(u64::from(self.expires_days) * 86_400)
    }
}

fn now() -> WallTime {
    WallTime::from_unix_seconds(jiff::Timestamp::now().as_second())
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keys of people: made and shown offline.
    #[command(subcommand)]
    Key(key::Command),
    /// Who may sign what: the ceremony, and its metadata.
    #[command(subcommand)]
    Trust(trust::Command),
    /// Images as bytes.
    #[command(subcommand)]
    Artifact(artifact::Command),
    /// Images with what they are for, signed by release keys.
    #[command(subcommand)]
    Release(release::Command),
    /// Who gets which release under which rules, signed by approvers.
    #[command(subcommand)]
    Campaign(campaign::Command),
    /// Drafts and plans a campaign that brings servers up: firmware first, the BIOS's settings last.
    #[command(after_help = provision::EXAMPLE)]
    Provision(provision::Provision),
    /// Stops a campaign or an image everywhere, for good.
    #[command(subcommand)]
    Brake(brake::Command),
    /// A campaign with its images in one file, for sites that no network reaches.
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Logs in, for the commands that follow.
    Login(login::Login),
    /// Who may do what: yourself, and API keys.
    #[command(subcommand)]
    Access(access::Command),
    /// What is updated.
    #[command(subcommand)]
    Device(device::Command),
    /// Devices with a common name, by hand or by a rule.
    #[command(subcommand)]
    Group(group::Command),
    /// Which release each device is to run, who is behind, and the way back.
    #[command(subcommand)]
    Baseline(baseline::Command),
    /// Campaigns that ended long ago.
    #[command(subcommand)]
    Archive(archive::Command),
    /// Images of others, mirrored.
    #[command(subcommand)]
    Repository(repository::Command),
    /// The Firmesh processes beside the devices.
    #[command(subcommand)]
    Node(node::Command),
    /// How images move from node to node.
    #[command(subcommand)]
    Mesh(mesh::Command),
    /// Who is told what happens.
    #[command(subcommand)]
    Notification(notification::Command),
    /// When devices may start.
    #[command(subcommand)]
    Window(window::Command),
    /// A plain TUF client: verifies and downloads from this or any other TUF repository.
    Tuf(tuf::Tuf),
    /// What was allowed, decided and done: a log that anybody can check.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Looks for what would stand in the way.
    Doctor(doctor::Doctor),
    /// What somebody who helps has to see.
    #[command(subcommand)]
    Support(support::Command),
    /// Prints the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes a manual page of every command into a folder.
    #[command(hide = true)]
    Man {
        /// The folder, which is there.
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let output = Output::new(global.json);
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(&global, command, &output)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.fail(&error),
    }
}

async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Key(command) => key::run(command, output),
        Command::Trust(command) => trust::run(global, command, output).await,
        Command::Artifact(command) => artifact::run(global, command, output).await,
        Command::Release(command) => release::run(global, command, output).await,
        Command::Campaign(command) => campaign::run(global, command, output).await,
        Command::Provision(args) => provision::run(global, &args, output).await,
        Command::Brake(command) => brake::run(global, command, output).await,
        Command::Bundle(command) => bundle::run(global, command, output).await,
        Command::Login(login) => login::run(global, login, output).await,
        Command::Access(command) => access::run(global, command, output).await,
        Command::Device(command) => device::run(global, command, output).await,
        Command::Archive(command) => archive::run(global, command, output).await,
        Command::Group(command) => group::run(global, command, output).await,
        Command::Baseline(command) => baseline::run(global, command, output).await,
        Command::Repository(command) => repository::run(global, command, output).await,
        Command::Node(command) => node::run(global, command, output).await,
        Command::Mesh(command) => mesh::run(global, command, output).await,
        Command::Notification(command) => notification::run(global, command, output).await,
        Command::Window(command) => window::run(command, output),
        Command::Tuf(tuf) => tuf::run(global, tuf, output).await,
        Command::Audit(command) => audit::run(global, command, output).await,
        Command::Doctor(doctor) => doctor::run(global, &doctor, output).await,
        Command::Support(command) => support::run(global, command, output).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "firmesh", &mut script);
            output.text(&String::from_utf8_lossy(&script))
        }
        Command::Man { folder } => clap_mangen::generate_to(Cli::command(), &folder)
            .with_context(|| format!("manual pages cannot be written to {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_handbook_parses() {
        for line in [
            "key generate root-1",
            "key show root-1.pub --json",
            "trust init --root-key a --release-key b --approver-key c --online-key d --threshold 1",
            "trust sign --key root-1 --dry-run",
            "trust publish --dir trust",
            "trust sign --key pkcs11:token=safe;object=root-1?module-path=/m.so --pin-file pin --digest 00 --yes",
            "trust signers root targets --add root-4.pub --remove root-1.pub --threshold 3",
            "trust renew root targets --within-days 30 --expires-days 365",
            "trust export round.json",
            "trust import round.json",
            "trust doctor --within-days 30 --without root-1.pub --certificate ca.crt --secret-key keys --strict --json",
            "key generate pkcs11:token=safe;object=root-1",
            "key passphrase root-1",
            "release remove firmware/a",
            "campaign remove spring",
            "artifact add image.bin",
            "repository sync https://vendor.example/catalogue.json --vendor Acme",
            "artifact verify image.bin --release firmware/a.bin",
            "release create --file i --vendor v --model m --component bmc --release-version 1.1",
            "release check --file i --vendor v --policy p --signature rsa:s --sbom b",
            "release show firmware/a.bin",
            "campaign create --file campaign.toml --permit-key coordinator.pub",
            "campaign simulate spring --fault brick=2% --fault silent --assume install=600s --html spring.html --out spring.rehearsal.json",
            "campaign watch spring --json",
            "provision --file servers.toml --permit-key coordinator.pub --json",
            "login",
            "login --username alice --password-file p",
            "login --api-key-file robot.key --json",
            "login --browser",
            "login --forget",
            "access whoami",
            "access permissions --json",
            "access key create robot --role operator --site eu/berlin --site eu/paris --days 30 -o robot.key",
            "access key create bmc-1 --role device --device bmc-1",
            "access key list",
            "access key rotate --grace-seconds 60 -o robot.key",
            "access key rotate 0123456789abcdef01234567",
            "access key revoke 0123456789abcdef01234567",
            "device clear d1",
            "device doctor d1 --node http://127.0.0.1:8653 --json",
            "device list --filter vendor==\"Acme\"",
            "campaign plan spring --group racks-1",
            "group create racks-1 --description trial --device d1 --device d2",
            "group set racks-1 --filter model==\"R1\"",
            "group add racks-1 d3 d4",
            "group drop racks-1 d3",
            "group devices racks-1 --json",
            "group delete racks-1",
            "node enrol n1 --path eu/s1/r1/n1 --out ticket.json",
            "node revoke n1 --reason stolen",
            "brake campaign spring --key approver-1 --reason wrong",
            "brake release firmware/a.bin --key release-1 --reason bad --out a.brake --offline",
            "brake send a.brake --node http://127.0.0.1:8650",
            "brake list",
            "bundle export --campaign spring --root 1.root.json -o spring.bundle",
            "bundle import spring.bundle --node http://127.0.0.1:8653 --metadata-only --patience 5",
            "notification list --json",
            "window preview --file spring.toml --count 20 --zone Europe/Berlin --at 2027-01-31T12:00:00Z",
            "window preview --file spring.toml --device d1 --rack eu/ber/r1 --model R1 --json",
            "notification test tickets",
            "notification replay tickets --since 2026-01-31T12:00:00Z",
            "notification replay tickets --since-number 17",
            "tuf --metadata-dir m init root.json",
            "tuf --metadata-url u --metadata-dir m --target-name a --target-name b --target-dir t --target-base-url v download",
            "tuf refresh --metadata-dir m --metadata-url u --ed25519-only",
            "audit verify --root 1.root.json --checkpoint old.checkpoint",
            "audit verify --proof d1.proof --checkpoint d1.proof.checkpoint --key online.pub",
            "audit prove --device d1 --campaign spring --out d1.proof",
            "audit export --out log.jsonl",
            "audit checkpoint --out now.checkpoint",
            "support bundle --out support.tar.gz --node http://127.0.0.1:8653 --lines 100",
            "completions bash",
            "man pages",
            "doctor",
        ] {
            let words = std::iter::once("firmesh").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
