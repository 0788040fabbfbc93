//! `firmesh release`: images with what they are for, signed by release keys.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use firmesh_coordinator::ceremony::{Compatibility, NewRelease, stage_release};
use firmesh_protocol::{
    api::{Deprecation, FirmwareView, Page, ReleaseView},
    ids::Component,
    manifest::{Reversibility, is_release_target},
};
use serde_json::json;

use crate::{
    Expiry, Folder, Global,
    artifact::measured,
    output::Output,
    provenance::{self, Presented},
    trust,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Adds a release to releases.json, unsigned. Offline.
    Create(Box<Create>),
    /// Takes a release back: from the version that is signed next, nobody installs it any longer. Offline.
    Remove(Remove),
    /// Signs releases.json after showing it. Offline.
    Sign(trust::Sign),
    /// Gives releases.json to the coordinator.
    Publish(Folder),
    /// Lists the releases in force.
    List,
    /// Nothing is to be planned with a release any more; or again.
    Deprecate(Deprecate),
    /// Judges where an image comes from by a policy; stages nothing. Offline.
    Check {
        /// The image.
        #[arg(long, value_name = "IMAGE")]
        file: PathBuf,
        /// Who makes the devices, as they report it.
        #[arg(long)]
        vendor: String,
        #[command(flatten)]
        presented: Presented,
    },
    /// Shows a release of the trust folder, and what is recorded of where it comes from. Offline.
    Show {
        /// The release.
        #[arg(value_name = "firmware/NAME")]
        release: String,
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    folder: Folder,
    /// The image.
    #[arg(long, value_name = "IMAGE")]
    file: PathBuf,
    /// Who makes the devices, as they report it.
    #[arg(long)]
    vendor: String,
    /// A model that may take the image, as devices report it (repeat).
    #[arg(long, required = true)]
    model: Vec<String>,
    /// The component it is for: bmc, bios, nic, host ...
    #[arg(long)]
    component: Component,
    /// The version a device reports once it runs the image.
    #[arg(long, value_name = "VERSION")]
    release_version: String,
    /// A device never goes to a lower epoch.
    #[arg(long, default_value_t = 0)]
    security_epoch: u32,
    /// A version from which it may be installed (repeat); any if absent.
    #[arg(long, value_name = "VERSION")]
    from_version: Vec<String>,
    /// What it goes with: version_scheme, min_from, requires and conflicts, as TOML.
    #[arg(long, value_name = "FILE")]
    compatibility: Option<PathBuf>,
    /// What it takes to go back.
    #[arg(long, value_enum, default_value_t = WayBack::Reflash)]
    reversibility: WayBack,
    /// The target name; made of vendor, model, component and version if absent.
    #[arg(long, value_name = "firmware/NAME")]
    name: Option<String>,
    #[command(flatten)]
    presented: Presented,
    #[command(flatten)]
    expiry: Expiry,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    folder: Folder,
    /// The release.
    #[arg(value_name = "firmware/NAME")]
    name: String,
    #[command(flatten)]
    expiry: Expiry,
}

#[derive(Debug, Args)]
pub(crate) struct Deprecate {
    /// The release.
    #[arg(value_name = "firmware/NAME")]
    release: String,
    /// Why, for whoever plans with it.
    #[arg(long, required_unless_present = "undo")]
    reason: Option<String>,
    /// It is good again.
    #[arg(long, conflicts_with = "reason")]
    undo: bool,
}

/// What it takes to go back from a release.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum WayBack {
    /// The previous image is still on the device.
    Reversible,
    /// The previous image is written again.
    Reflash,
    /// There is no way back.
    OneWay,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Create(create) => self::create(*create, output),
        Command::Remove(remove) => self::remove(&remove, output),
        Command::Deprecate(args) => deprecate(global, args, output).await,
        Command::Sign(sign) => trust::sign(&sign, &["releases.json"], output),
        Command::Publish(folder) => trust::publish(global, &folder, &["releases.json"], output).await,
        Command::Check {
            file,
            vendor,
            presented,
        } => provenance::check(&file, &vendor, &presented, output),
        Command::Show { release, folder } => provenance::show(&folder.open()?, &release, output),
        Command::List => {
            let page: Page<ReleaseView> = global.client()?.list("/api/v1/releases", &[]).await?;
            let row = |ReleaseView { release, stored }: &ReleaseView| {
                let image = if *stored { "stored" } else { "missing" };
                [
                    release.target.clone(),
                    release.info.models.join("/"),
                    release.info.version.clone(),
                    image.to_owned(),
                ]
            };
            let rows: Vec<_> = page.items.iter().map(row).collect();
            output.show(&page, || {
                Output::table(["RELEASE", "MODELS", "VERSION", "IMAGE"], &rows)
            })
        }
    }
}

fn create(create: Create, output: &Output) -> anyhow::Result<()> {
    let mut folder = create.folder.open_locked()?;
    let read = |path: PathBuf| -> anyhow::Result<Compatibility> {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    };
    let compatibility = create.compatibility.map(read).transpose()?;
    let judged = create.presented.judge(&create.file, &create.vendor, output)?;
    let artifact = measured(&create.file, output)?;
    let changed = judged
        .as_ref()
        .is_some_and(|(verdict, _)| verdict.image_sha256 != artifact.sha256);
    anyhow::ensure!(!changed, "{} changed while it was read", create.file.display());
    let provenance = judged.map(|(verdict, evidence)| provenance::keep(&folder, &verdict, &evidence));
    let new = NewRelease {
        vendor: create.vendor,
        models: create.model,
        component: create.component,
        version: create.release_version,
        security_epoch: create.security_epoch,
        from_versions: create.from_version,
        compatibility: compatibility.unwrap_or_default(),
        reversibility: match create.reversibility {
            WayBack::Reversible => Reversibility::Reversible,
            WayBack::Reflash => Reversibility::Reflash,
            WayBack::OneWay => Reversibility::OneWay,
        },
        name: create.name,
        provenance: provenance.transpose()?,
    };
    let release = stage_release(&mut folder, &artifact, new, create.expiry.after_now())?;
    output.show(&release, || {
        let head = format!(
            "staged {}: its release keys sign with: firmesh release sign",
            release.target
        );
        vec![
            head,
            format!("blake3  {}", artifact.id),
            format!("sha256  {}", artifact.sha256),
        ]
    })
}

async fn deprecate(global: &Global, args: Deprecate, output: &Output) -> anyhow::Result<()> {
    let name = args.release.strip_prefix("firmware/").unwrap_or(&args.release);
    anyhow::ensure!(
        is_release_target(&format!("firmware/{name}")),
        "{} is not the name of a release",
        args.release
    );
    let deprecation = Deprecation { reason: args.reason };
    let path = format!("/api/v1/firmware/{name}/deprecate");
    let view: FirmwareView = global.client()?.post(&path, &deprecation).await?;
    output.show(&view, || {
        vec![match &view.reason {
            Some(reason) => format!("{} is deprecated: {reason}", view.release.target),
            None => format!("{} may be planned with", view.release.target),
        }]
    })
}

fn remove(remove: &Remove, output: &Output) -> anyhow::Result<()> {
    let mut folder = remove.folder.open_locked()?;
    let known = folder.repository().releases().targets.contains_key(&remove.name);
    anyhow::ensure!(known, "releases.json has no {}", remove.name);
    folder.edit(|repository| repository.remove_release(&remove.name, remove.expiry.after_now()))?;
    output.show(&json!({ "removed": remove.name }), || {
        vec![format!(
            "removed {}: its release keys sign with: firmesh release sign",
            remove.name
        )]
    })
}
