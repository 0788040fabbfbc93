//! `firmesh support bundle`: what somebody who helps has to see, in one file, without secrets. What cannot be had is in it as well, with
//! why: that is often what is wrong.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use tar::{Builder, Header};
use tokio::process;

use crate::{Global, VERSION, client::Client, now, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Packs versions, health, metrics, configurations without secrets, and what was logged last into one file.
    Bundle(BundleArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// Where to write it, as .tar.gz; readable by its owner only. Nothing is replaced.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The status port of a node on this machine, such as http://127.0.0.1:8653.
    #[arg(long, value_name = "URL")]
    node: Option<String>,
    /// The configuration of the coordinator on this machine.
    #[arg(long, value_name = "FILE", default_value = "/etc/firmesh/coordinator.toml")]
    coordinator_config: PathBuf,
    /// The configuration of the node on this machine.
    #[arg(long, value_name = "FILE", default_value = "/etc/firmesh/node.toml")]
    node_config: PathBuf,
    /// How many lines of each service's log.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lines: u32,
}

/// What is asked of the coordinator, and the name it gets.
const OF_COORDINATOR: [(&str, &str); 11] = [
    ("about.json", "/api/v1/about"),
    ("health.txt", "/health"),
    ("metrics.txt", "/metrics"),
    ("whoami.json", "/api/v1/auth/whoami"),
    ("nodes.json", "/api/v1/nodes?limit=1000"),
    ("campaigns.json", "/api/v1/campaigns?limit=1000"),
    (
        "quarantined.json",
        "/api/v1/devices?limit=1000&filter=state%20%3D%3D%20%22quarantined%22",
    ),
    ("brakes.json", "/api/v1/brakes"),
    ("notifications.json", "/api/v1/notifications"),
    ("operations.json", "/api/v1/operations?limit=1000"),
    ("checkpoint.txt", "/api/v1/audit/checkpoint"),
];

/// What is asked of a node.
const OF_NODE: [(&str, &str); 3] = [
    ("health.txt", "/health"),
    ("status.json", "/status"),
    ("metrics.txt", "/metrics"),
];

/// What is asked of the machine.
const OF_SYSTEM: [(&str, &str, &[&str]); 4] = [
    ("system/kernel.txt", "uname", &["-a"]),
    ("system/disks.txt", "df", &["-h"]),
    ("system/memory.txt", "free", &["-m"]),
    ("system/release.txt", "cat", &["/etc/os-release"]),
];

/// A program that hangs is part of what is wrong.
const PROGRAM_LIMIT: Duration = Duration::from_secs(30);

/// The end of what a program says: logs may be long.
const SAID_BYTES_MAX: usize = 16 << 20;

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    let Command::Bundle(args) = command;
    let (client, token) = (global.client()?, global.token()?);
    let mut bundle = Bundle::create(&args.out, token)?;
    bundle.add("version.txt", &format!("firmesh {}\n", VERSION.as_str()))?;
    for (name, path) in OF_COORDINATOR {
        let said = client.get_text(path).await.map_err(anyhow::Error::from);
        bundle.take(&format!("coordinator/{name}"), said)?;
    }
    if let Some(url) = &args.node {
        let node = Client::new(url, None, None)?;
        for (name, path) in OF_NODE {
            let said = node.get_text(path).await.map_err(anyhow::Error::from);
            bundle.take(&format!("node/{name}"), said)?;
        }
    }
    for (program, config) in [
        ("firmesh-coordinator", &args.coordinator_config),
        ("firmesh-node", &args.node_config),
    ] {
        // Not every machine has both.
        if config.exists() {
            let config = config.display().to_string();
            let said = said_by(program, &["--check-config", "--config", &config]).await;
            bundle.take(&format!("{program}/configuration.txt"), said)?;
        }
        let lines = args.lines.to_string();
        let log = [
            "--unit",
            program,
            "--lines",
            &lines,
            "--no-pager",
            "--output",
            "short-iso",
        ];
        bundle.take(&format!("{program}/log.txt"), said_by("journalctl", &log).await)?;
    }
    for (name, program, arguments) in OF_SYSTEM {
        bundle.take(name, said_by(program, arguments).await)?;
    }
    let missing = bundle.finish()?;
    let file = args.out.display();
    output.show(&json!({ "file": args.out, "missing": missing }), || {
        let mut lines = vec![format!("wrote {file}: look at it before you send it to anybody")];
        lines.extend(
            missing
                .iter()
                .map(|name| format!("  {name} could not be had: the file says why")),
        );
        lines
    })
}

/// What a program prints, errors too.
async fn said_by(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PROGRAM_LIMIT, command.output()).await;
    let output = output.with_context(|| format!("{program} has not ended within {PROGRAM_LIMIT:?}"))?;
    let output = output.with_context(|| format!("{program} cannot be started"))?;
    let said = [output.stdout, output.stderr].concat();
    let end = &said[said.len().saturating_sub(SAID_BYTES_MAX)..];
    let text = String::from_utf8_lossy(end).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "{program} ended with {}: {text}",
        output.status
    );
    Ok(text)
}

/// The file while it is written.
struct Bundle {
    archive: Builder<GzEncoder<File>>,
    token: Option<String>,
    missing: Vec<String>,
}

impl Bundle {
    fn create(path: &Path, token: Option<String>) -> anyhow::Result<Self> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            archive: Builder::new(GzEncoder::new(file, Compression::default())),
            token: token.filter(|token| !token.is_empty()),
            missing: Vec::new(),
        })
    }

    /// What was said, or why nothing was.
    fn take(&mut self, name: &str, said: anyhow::Result<String>) -> anyhow::Result<()> {
        match said {
            Ok(text) => self.add(name, &text),
            Err(error) => {
                self.missing.push(name.to_owned());
                self.add(&format!("{name}.missing"), &format!("{error:#}\n"))
            }
        }
    }

    fn add(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let text = without_secrets(text, self.token.as_deref());
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(now().unix_seconds()).unwrap_or(0));
        let name = format!("firmesh-support/{name}");
        let added = self.archive.append_data(&mut header, name, text.as_bytes());
        added.context("the bundle cannot be written")
    }

    /// What could not be had.
    fn finish(self) -> anyhow::Result<Vec<String>> {
        let ended = self.archive.into_inner().and_then(GzEncoder::finish);
        let flushed = ended.and_then(|mut file| file.flush().and_then(|()| file.sync_all()));
        flushed.context("the bundle cannot be written")?;
        Ok(self.missing)
    }
}

/// What stands in place of a secret.
const REMOVED: &str = "<removed>";

/// The text without what looks like a secret. None is meant to be there: services print none. This is for what somebody wrote into an
/// address or a log by mistake.
fn without_secrets(text: &str, token: Option<&str>) -> String {
    let text = token.map_or_else(|| text.to_owned(), |token| text.replace(token, REMOVED));
    let mut kept = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let is_end = in_key && line.contains("-----END ");
        if line.contains("-----BEGIN ") && line.contains("PRIVATE KEY-----") {
            in_key = !line.contains("-----END ");
            kept.push_str(REMOVED);
            kept.push('\n');
        } else if !in_key {
            push_words(&mut kept, line);
        }
        in_key &= !is_end;
    }
    kept
}

fn push_words(kept: &mut String, line: &str) {
    let is_edge = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '(' | ')' | '=');
    let mut follows_bearer = false;
    for part in line.split_inclusive(is_edge) {
        let word = part.trim_end_matches(is_edge);
        let edge = &part[word.len()..];
        // Secrets of webhooks, API keys, and tokens: JWTs are JSON in Base64.
        let is_secret = follows_bearer || ["whsec_", "fmk_", "eyJ"].iter().any(|begin| word.starts_with(begin));
        if !word.is_empty() {
            follows_bearer = word.eq_ignore_ascii_case("bearer");
        }
        if is_secret && !word.is_empty() {
            kept.push_str(REMOVED);
        } else {
            push_address(kept, word);
        }
        kept.push_str(edge);
    }
}

/// An address may have a password in it.
fn push_address(kept: &mut String, word: &str) {
    let parts = word.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find('/').unwrap_or(rest.len());
        let at = rest[..end].rfind('@')?;
        let (user, _) = rest[..at].split_once(':')?;
        Some((scheme, user, &rest[at..]))
    });
    match parts {
        Some((scheme, user, rest)) => kept.extend([scheme, "://", user, ":", REMOVED, rest]),
        None => kept.push_str(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_does_not_leave_the_house() {
        for (text, kept) in [
            ("token t0p-secret here", "token <removed> here"),
            ("Authorization: Bearer abc.def\n", "Authorization: Bearer <removed>\n"),
            ("secrets = [\"whsec_abc\"]", "secrets = [\"<removed>\"]"),
            ("secret \"whsec_abc\" used", "secret \"<removed>\" used"),
            ("got eyJhbGciOiJFZERTQSJ9.e30.x, sent", "got <removed>, sent"),
            (
                "url postgres://firmesh:pw@db/firmesh",
                "url postgres://firmesh:<removed>@db/firmesh",
            ),
            ("url https://host:8641/a@b", "url https://host:8641/a@b"),
            (
                "a\n-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\nb\n",
                "a\n<removed>\nb\n",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nMIIB\n",
                "-----BEGIN CERTIFICATE-----\nMIIB\n",
            ),
        ] {
            assert_eq!(without_secrets(text, Some("t0p-secret")), kept, "{text}");
        }
    }

    #[test]
    fn a_bundle_has_what_was_said_and_why_the_rest_was_not_and_replaces_nothing() {
        use std::{io::Read as _, os::unix::fs::PermissionsExt as _};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("support.tar.gz");
        let mut bundle = Bundle::create(&path, Some("t0p-secret".to_owned())).unwrap();
        bundle.take("a.txt", Ok("it is t0p-secret\n".to_owned())).unwrap();
        bundle.take("b.txt", Err(anyhow::anyhow!("nobody answers"))).unwrap();
        assert_eq!(bundle.finish().unwrap(), ["b.txt"]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Bundle::create(&path, None).is_err());

        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        });
        let entry = |name: &str, text: &str| (format!("firmesh-support/{name}"), text.to_owned());
        assert_eq!(
            entries.collect::<Vec<_>>(),
            [
                entry("a.txt", "it is <removed>\n"),
                entry("b.txt.missing", "nobody answers\n")
            ]
        );
    }
}
