//! `firmesh-node`: the process on every rack.

mod discover;
mod import;

use std::{
    ffi::OsString,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use discover::Discovery;
use firmesh_executors::{ImageError, ImageReader, ImageSource, build, redfish::Transcript, replay};
use firmesh_node::{
    config::{Settings, profile_of, sealing},
    launch::{launch, stay_with_launcher},
    run_until_signal,
    status::{clear_at, doctor_at},
    telemetry,
};
use firmesh_protocol::ids::{ArtifactId, DeviceId};
use futures_util::{FutureExt as _, future::BoxFuture};
use import::Import;

/// Caches and shares verified firmware images with its peers, and updates the devices it looks after.
#[derive(Debug, Parser)]
#[command(name = "firmesh-node", version = firmesh_node::VERSION)]
struct Args {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        env = "FIRMESH_NODE_CONFIG",
        required_unless_present_any = ["discover", "import_vcenter", "launch"]
    )]
    config: Option<PathBuf>,
    /// Check the configuration, print it with secrets redacted, and exit.
    #[arg(long)]
    check_config: bool,
    /// Say that a person has looked at a quarantined device, so that the running node gives its places under the caps up.
    /// `firmesh device clear` says the same to the coordinator.
    #[arg(long, value_name = "DEVICE")]
    clear: Option<DeviceId>,
    /// Say what a device supports and what would be done with it, changing nothing, and exit. The running node answers; if none
    /// runs, the device is looked at from here.
    #[arg(long, value_name = "DEVICE")]
    doctor: Option<DeviceId>,
    /// With `--doctor`: look at the device of this transcript, which answers in its place.
    #[arg(long, value_name = "FILE", requires = "doctor")]
    transcript: Option<PathBuf>,
    /// Say which profile of credentials a device has, without what it keeps, and exit.
    #[arg(long, value_name = "DEVICE")]
    credentials: Option<DeviceId>,
    /// Seal the secret on standard input for this profile of this node, print it, and exit.
    #[arg(long, value_name = "PROFILE")]
    seal: Option<String>,
    /// Start the node's program out of the slots in this folder, or this one if there are none, with the arguments after `--`; go back to
    /// the one before if a new one is not confirmed. What the node installs as its own update (executor `node-self`) is started so.
    #[arg(long, value_name = "DIR")]
    launch: Option<PathBuf>,
    /// With `--launch`: the arguments of the node.
    #[arg(last = true, value_name = "ARGS", requires = "launch")]
    args: Vec<OsString>,
    #[command(flatten)]
    discovery: Discovery,
    #[command(flatten)]
    import: Import,
    /// With `--discover` or `--import-vcenter`: print one JSON object for each that is found.
    #[arg(long, requires = "looking")]
    json: bool,
    /// Log JSON, one object a line.
    #[arg(long, env = "FIRMESH_LOG_JSON")]
    log_json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::init(args.log_json);
    if !args.discovery.discover.is_empty() {
        return match args.discovery.run(args.json) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&*error),
        };
    }
    if args.import.import_vcenter.is_some() {
        return match args.import.run(args.json) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&*error),
        };
    }
    if let Some(dir) = &args.launch {
        return match launch(dir, &args.args) {
            Ok(status) => ExitCode::from(status),
            Err(error) => fail(&error),
        };
    }
    let Some(config) = args.config.clone() else {
        return fail(&io::Error::other("--config is missing"));
    };
    if let Some(asked) = asked_of_credentials(&args, &config) {
        return match asked {
            Ok(answer) => {
                println!("{answer}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&*error),
        };
    }
    let settings = match Settings::load(&config) {
        Ok(settings) => settings,
        Err(error) => return fail(&error),
    };
    if args.check_config {
        println!("{settings:#?}");
        return ExitCode::SUCCESS;
    }
    if let Some(device) = args.clear {
        return match clear(&settings, &device) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    if let Some(device) = args.doctor {
        return match doctor(&settings, &device, args.transcript.as_deref()) {
            Ok(found) => {
                println!("{found}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&*error),
        };
    }
    if let Err(problem) = stay_with_launcher() {
        return fail(&io::Error::other(problem));
    }
    match run_until_signal(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

type Asked = Result<String, Box<dyn std::error::Error>>;

fn asked_of_credentials(args: &Args, config: &Path) -> Option<Asked> {
    let device = args.credentials.as_ref().map(|device| credentials(config, device));
    device.or_else(|| args.seal.as_ref().map(|profile| seal(config, profile)))
}

fn credentials(config: &Path, device: &DeviceId) -> Asked {
    Ok(match profile_of(config, device)? {
        Some(found) => format!(
            "profile: {}\nfor: {}\nusername: {}\nsecret: {}",
            found.profile,
            found.scope,
            found.username.as_deref().unwrap_or("none"),
            found.source
        ),
        None => format!("{device} has no profile: its configuration names credentials of its own, or it needs none"),
    })
}

fn seal(config: &Path, profile: &str) -> Asked {
    /// Longer than any secret that is read back.
    const SECRET_BYTES_MAX: u64 = 4 << 10;
    let sealing = sealing(config)?;
    let mut text = String::new();
    io::stdin().lock().take(SECRET_BYTES_MAX).read_to_string(&mut text)?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(secret) => Ok(sealing.seal(profile, secret)?),
        None => Err("standard input has no secret: its first line is sealed".into()),
    }
}

fn clear(settings: &Settings, device: &DeviceId) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(clear_at(&settings.state_dir, device))
}

/// What a device supports, as JSON.
fn doctor(settings: &Settings, device: &DeviceId, transcript: Option<&Path>) -> Asked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let examination = runtime.block_on(async {
        if let Some(file) = transcript {
            let transcript = Transcript::read(file)?;
            if transcript.device() != device {
                return Err(format!("the transcript is of {}, not of {device}", transcript.device()).into());
            }
            return Ok(replay(&transcript, Arc::new(NoImages))?.examine().await);
        }
        if let Some(answered) = doctor_at(&settings.state_dir, device).await? {
            return Ok(answered);
        }
        let known = settings.devices.iter().find(|known| known.device == *device);
        let known = known.ok_or_else(|| format!("the configuration has no device {device}"))?;
        let backend = build(known, Arc::new(NoImages))?;
        let examination = backend.examine().await;
        backend.close().await;
        Ok::<_, Box<dyn std::error::Error>>(examination)
    })?;
    Ok(serde_json::to_string_pretty(&examination)?)
}

/// Whoever only looks has no images.
#[derive(Debug)]
struct NoImages;

impl ImageSource for NoImages {
    fn open(&self, artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        let source = io::Error::other("nothing is installed by a look").into();
        let retry = false;
        async move {
            Err(ImageError {
                artifact,
                retry,
                source,
            })
        }
        .boxed()
    }

    fn url(&self, artifact: ArtifactId) -> String {
        format!("https://no-image/{artifact}")
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("firmesh-node: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}
