//! `firmesh audit`: the log of what was allowed, decided and done, for people who believe nobody.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::{read_bounded, write_file};
use firmesh_protocol::{
    api::{About, AuditEntries},
    audit::{
        Checkpoint, LogCheck, LogError, LoggedEntry, NOTE_BYTES_MAX, ProofFile, UpdateProof, parse_verifier_key,
        verifier_key,
    },
    ids::{CampaignId, DeviceId},
    limits::{ROOT_BYTES_MAX, TARGETS_BYTES_MAX},
    trust::{Kind, PublicKey, Root, SignedFile},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Global,
    output::{Output, Verdict},
};

/// The schema name of an export.
const EXPORT_SCHEMA: &str = "firmesh-audit-export/1";

/// The longest line of an export: the largest document, in base64, and its entry.
const LINE_BYTES_MAX: u64 = 2 * TARGETS_BYTES_MAX;

/// The longest proof file: as many bytes as the metadata of the largest fleet, several times over.
const PROOF_BYTES_MAX: u64 = 8 * TARGETS_BYTES_MAX;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the newest checkpoint, and keeps it for later.
    Checkpoint {
        #[command(flatten)]
        trusted: Trusted,
        /// Where to keep it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Checks the whole log, an export of it, or the proof of one update.
    ///
    /// Without --file or --proof, every entry is fetched from the coordinator. Every --checkpoint that was kept earlier
    /// must agree with the log. A proof needs no network.
    Verify(Verify),
    /// Fetches the proof of one device's update, for somebody who has a checkpoint.
    Prove(Prove),
    /// Keeps the whole log in a file: a checkpoint, then one entry with its document per line.
    Export {
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace a file that is there.
        #[arg(long)]
        force: bool,
    },
}

/// Whose signature on a checkpoint counts.
#[derive(Debug, Args)]
pub(crate) struct Trusted {
    /// The log's key: a file with the coordinator's online key (hexadecimal) or a verifier key (repeat).
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Root metadata that you trust: its timestamp keys sign the log (repeat, after a rotation).
    #[arg(long, value_name = "N.root.json")]
    root: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    trusted: Trusted,
    /// An export.
    #[arg(long, value_name = "FILE", conflicts_with = "proof")]
    file: Option<PathBuf>,
    /// The proof of one update.
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    proof: Option<PathBuf>,
    /// A checkpoint that was kept (repeat).
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Prove {
    #[command(flatten)]
    trusted: Trusted,
    /// The device.
    #[arg(long)]
    device: DeviceId,
    /// The campaign.
    #[arg(long)]
    campaign: CampaignId,
    /// The checkpoint the proof is to lead to; without it the newest one, which is written to FILE.checkpoint.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Where to write the proof.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Checkpoint { trusted, out } => {
            let keys = trusted.keys_or_ask(global).await?;
            let (note, checkpoint) = newest(global, &keys).await?;
            if let Some(out) = &out {
                write_file(out, note.as_bytes())?;
            }
            show_log(output, &checkpoint, &keys, &BTreeMap::new(), trusted.is_asked())
        }
        Command::Verify(verify) => match &verify.proof {
            Some(proof) => verify_proof(&verify, proof, output),
            None => verify_log(global, &verify, output).await,
        },
        Command::Prove(prove) => self::prove(global, &prove, output).await,
        Command::Export { out, force } => export(global, &out, force, output).await,
    }
}

impl Trusted {
    fn is_asked(&self) -> bool {
        self.key.is_empty() && self.root.is_empty()
    }

    fn keys(&self) -> anyhow::Result<Vec<PublicKey>> {
        let mut keys = Vec::new();
        for path in &self.key {
            let text = String::from_utf8_lossy(&read_bounded(path, 4 << 10)?).trim().to_owned();
            let key = match text.parse() {
                Ok(key) => key,
                Err(error) => parse_verifier_key(&text)
                    .map(|(_, key)| key)
                    .map_err(|_| error)
                    .with_context(|| format!("{} holds neither a public key nor a verifier key", path.display()))?,
            };
            keys.push(key);
        }
        for path in &self.root {
            let name = path.display().to_string();
            let root: Root = SignedFile::from_bytes(&name, &self.root_bytes(path)?)?.unverified(&name)?;
            keys.extend(root.key_set(Kind::Timestamp)?.keys());
        }
        Ok(keys)
    }

    fn root_bytes(&self, path: &Path) -> anyhow::Result<Vec<u8>> {
        Ok(read_bounded(path, ROOT_BYTES_MAX)?)
    }

    /// The keys, or else the one the coordinator names: that shows that it is of one mind, and no more.
    async fn keys_or_ask(&self, global: &Global) -> anyhow::Result<Vec<PublicKey>> {
        if !self.is_asked() {
            return self.keys();
        }
        let about: About = global.client()?.get("/api/v1/about").await?;
        let key = about.online_key.parse();
        Ok(vec![key.context("the coordinator's online key is unusable")?])
    }
}

async fn newest(global: &Global, keys: &[PublicKey]) -> anyhow::Result<(String, Checkpoint)> {
    let note = global.client()?.get_text("/api/v1/audit/checkpoint").await?;
    let checkpoint = open(note.as_bytes(), keys, "the coordinator's checkpoint")?;
    Ok((note, checkpoint))
}

fn open(note: &[u8], keys: &[PublicKey], what: &str) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(note, None, keys).map_err(|error| refused(error.code(), &format!("{what}: {error}")))
}

fn read_checkpoint(path: &Path, keys: &[PublicKey]) -> anyhow::Result<Checkpoint> {
    let note = read_bounded(path, NOTE_BYTES_MAX as u64)?;
    open(&note, keys, &path.display().to_string())
}

fn refused(code: &str, what: &str) -> anyhow::Error {
    Verdict::Refused(format!("{code}: {what}")).into()
}

fn wrong(error: &LogError) -> anyhow::Error {
    let cause = std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    refused(error.code(), &format!("{error}{cause}"))
}

/// A log that is being checked, and what is in it.
struct Audit {
    check: LogCheck,
    kinds: BTreeMap<&'static str, u64>,
}

impl Audit {
    fn new(checkpoints: Vec<Checkpoint>) -> Self {
        Self {
            check: LogCheck::new(checkpoints),
            kinds: BTreeMap::new(),
        }
    }

    fn push(&mut self, logged: &LoggedEntry) -> anyhow::Result<()> {
        let entry = self.check.push(logged).map_err(|error| wrong(&error))?;
        *self.kinds.entry(entry.event.name()).or_default() += 1;
        Ok(())
    }

    fn finish(self) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        self.check.finish().map_err(|error| wrong(&error))?;
        Ok(self.kinds)
    }
}

async fn verify_log(global: &Global, verify: &Verify, output: &Output) -> anyhow::Result<()> {
    let keys = match &verify.file {
        Some(_) => {
            let keys = verify.trusted.keys()?;
            ensure!(!keys.is_empty(), "say whose signature counts: --key or --root");
            keys
        }
        None => verify.trusted.keys_or_ask(global).await?,
    };
    let kept = verify.checkpoint.iter().map(|path| read_checkpoint(path, &keys));
    let mut checkpoints = kept.collect::<anyhow::Result<Vec<_>>>()?;
    let (checkpoint, kinds) = match &verify.file {
        Some(path) => {
            let mut lines = Lines::open(path)?;
            let head: ExportHead = lines.next()?.context("the export is empty")?;
            ensure!(
                head.schema == EXPORT_SCHEMA,
                "{} is not an export of this version",
                path.display()
            );
            let checkpoint = open(head.checkpoint.as_bytes(), &keys, "the export's checkpoint")?;
            checkpoints.push(checkpoint.clone());
            same_log(&checkpoints)?;
            let mut audit = Audit::new(checkpoints);
            while let Some(logged) = lines.next::<LoggedEntry>()? {
                audit.push(&logged)?;
            }
            (checkpoint, audit.finish()?)
        }
        None => {
            let (_, checkpoint) = newest(global, &keys).await?;
            checkpoints.push(checkpoint.clone());
            same_log(&checkpoints)?;
            let mut audit = Audit::new(checkpoints);
            each_entry(global, checkpoint.size, |logged| audit.push(&logged)).await?;
            (checkpoint, audit.finish()?)
        }
    };
    show_log(output, &checkpoint, &keys, &kinds, verify.trusted.is_asked())
}

fn same_log(checkpoints: &[Checkpoint]) -> anyhow::Result<()> {
    let other = checkpoints.windows(2).find(|pair| pair[0].origin != pair[1].origin);
    other.map_or(Ok(()), |pair| {
        let what = format!(
            "the checkpoints are of two logs, {} and {}",
            pair[0].origin, pair[1].origin
        );
        Err(refused("audit_origin", &what))
    })
}

/// Fetches the first `size` entries, page by page.
async fn each_entry(
    global: &Global,
    size: u64,
    mut take: impl FnMut(LoggedEntry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let client = global.client()?;
    let mut at = 0;
    while at < size {
        let count = (size - at).min(1_000);
        let page: AuditEntries = client
            .get(&format!("/api/v1/audit/entries?from={at}&count={count}"))
            .await?;
        let got = page.items.len() as u64;
        if got == 0 || got > count {
            return Err(wrong(&LogError::Truncated { found: at, size }));
        }
        page.items.into_iter().try_for_each(&mut take)?;
        at += got;
    }
    Ok(())
}

fn show_log(
    output: &Output,
    checkpoint: &Checkpoint,
    keys: &[PublicKey],
    kinds: &BTreeMap<&'static str, u64>,
    is_asked: bool,
) -> anyhow::Result<()> {
    let Checkpoint { origin, size, root, at } = checkpoint;
    let verifier_keys: Vec<_> = keys.iter().map(|key| verifier_key(origin, key)).collect();
    let answer = json!({
        "origin": origin, "size": size, "root": root, "at": at, "keys": verifier_keys, "entries": kinds,
        "key_is_the_coordinators_word": is_asked,
    });
    output.show(&answer, || {
        let mut lines = vec![
            format!("log    {origin}"),
            format!("size   {size} entries, the last one of {at}"),
            format!("root   {root}"),
        ];
        lines.extend(kinds.iter().map(|(kind, count)| format!("       {count} {kind}")));
        if !kinds.is_empty() {
            lines.push("every entry and document is the one that was signed for".to_owned());
        }
        if is_asked {
            lines.push("the key is the coordinator's word: say --root or --key to check against your own".to_owned());
        }
        lines
    })
}

/// The first line of an export.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportHead {
    schema: String,
    checkpoint: String,
}

async fn export(global: &Global, out: &Path, force: bool, output: &Output) -> anyhow::Result<()> {
    ensure!(
        force || !out.exists(),
        "{} exists already; choose another name or say --force",
        out.display()
    );
    let note = global.client()?.get_text("/api/v1/audit/checkpoint").await?;
    let checkpoint = Checkpoint::read_stored(&note).context("the coordinator's checkpoint cannot be read")?;
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    let failed = || format!("{} cannot be written", out.display());
    let beside = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    let mut file = std::io::BufWriter::new(beside);
    let head = ExportHead {
        schema: EXPORT_SCHEMA.to_owned(),
        checkpoint: note,
    };
    let mut line = |value: &serde_json::Value| -> anyhow::Result<()> {
        serde_json::to_writer(&mut file, value).with_context(failed)?;
        file.write_all(b"\n").with_context(failed)
    };
    line(&serde_json::to_value(&head)?)?;
    each_entry(global, checkpoint.size, |logged| line(&serde_json::to_value(&logged)?)).await?;
    let file = file
        .into_inner()
        .map_err(|error| error.into_error())
        .with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist(out).map_err(|error| error.error).with_context(failed)?;
    let answer = json!({ "file": out, "size": checkpoint.size, "root": checkpoint.root });
    output.show(&answer, || {
        let check = format!(
            "check it: firmesh audit verify --file {} --root N.root.json",
            out.display()
        );
        vec![format!("{} entries in {}", checkpoint.size, out.display()), check]
    })
}

/// The lines of an export, each bounded.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
}

impl Lines {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            number: 0,
        })
    }

    fn next<T: serde::de::DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let (mut line, place) = (Vec::new(), format!("{} line {}", self.path.display(), self.number + 1));
        let mut bounded = (&mut self.reader).take(LINE_BYTES_MAX);
        bounded
            .read_until(b'\n', &mut line)
            .with_context(|| format!("cannot read {place}"))?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        // The first line is the head: entry n stands in line n + 2.
        let entry = self.number.checked_sub(2).map(|index| format!(" (entry {index})"));
        let unreadable = |why: String| {
            let entry = entry.unwrap_or_default();
            refused("audit_entry_changed", &format!("{place}{entry} cannot be read: {why}"))
        };
        if line.pop() != Some(b'\n') {
            return Err(unreadable("it does not end".to_owned()));
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| unreadable(error.to_string()))
    }
}

async fn prove(global: &Global, prove: &Prove, output: &Output) -> anyhow::Result<()> {
    let keys = prove.trusted.keys_or_ask(global).await?;
    let (note, checkpoint) = match &prove.checkpoint {
        Some(path) => (None, read_checkpoint(path, &keys)?),
        None => {
            let (note, checkpoint) = newest(global, &keys).await?;
            (Some(note), checkpoint)
        }
    };
    let (device, campaign, size) = (&prove.device, &prove.campaign, checkpoint.size);
    let path = format!("/api/v1/audit/proof/update?device={device}&campaign={campaign}&size={size}");
    let text = global.client()?.get_text(&path).await?;
    // A proof that does not verify is worth nothing to whoever is to get it.
    let proof = read_proof(text.as_bytes(), &checkpoint, &prove.trusted)?;
    write_file(&prove.out, text.as_bytes())?;
    let kept = prove.out.with_added_extension("checkpoint");
    if let Some(note) = note {
        write_file(&kept, note.as_bytes())?;
    }
    show_proof(output, &proof, &prove.trusted)
}

fn verify_proof(verify: &Verify, proof: &Path, output: &Output) -> anyhow::Result<()> {
    let keys = verify.trusted.keys()?;
    ensure!(!keys.is_empty(), "say whose signature counts: --key or --root");
    let [checkpoint] = &verify.checkpoint[..] else {
        anyhow::bail!("a proof is checked against one --checkpoint");
    };
    let checkpoint = read_checkpoint(checkpoint, &keys)?;
    let proof = read_proof(&read_bounded(proof, PROOF_BYTES_MAX)?, &checkpoint, &verify.trusted)?;
    show_proof(output, &proof, &verify.trusted)
}

fn read_proof(bytes: &[u8], checkpoint: &Checkpoint, trusted: &Trusted) -> anyhow::Result<UpdateProof> {
    let roots = trusted.root.iter().map(|path| trusted.root_bytes(path));
    let roots = roots.collect::<anyhow::Result<Vec<_>>>()?;
    let verified = ProofFile::from_bytes(bytes).and_then(|file| match &roots[..] {
        [] => file.verify(checkpoint, None),
        // Of several roots, the first that the log knows of.
        roots => {
            let mut tried = roots.iter().map(|root| file.verify(checkpoint, Some(root)));
            let first = tried.next().expect("there is a root");
            tried.fold(first, |found, next| found.or(next))
        }
    });
    verified.map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            text += &format!(": {source}");
            cause = source.source();
        }
        refused(error.code(), &text)
    })
}

fn show_proof(output: &Output, proof: &UpdateProof, trusted: &Trusted) -> anyhow::Result<()> {
    output.show(proof, || {
        let UpdateProof {
            device,
            campaign,
            node,
            wave,
            release,
            ..
        } = proof;
        let mut lines = vec![
            format!("{device} in campaign {campaign}, wave {wave}, at node {node}"),
            format!("release   {release}, image sha256 {}", proof.image_sha256),
            format!(
                "approved  {}, manifest sha256 {}",
                proof.approved_at, proof.manifest_sha256
            ),
        ];
        for (kind, sequence, issued) in &proof.permits {
            lines.push(format!("permit    {sequence} ({kind:?}) issued {issued}").to_lowercase());
        }
        for (wave, verdict) in &proof.gates {
            lines.push(format!("gate      wave {wave}: {verdict:?}").to_lowercase());
        }
        for report in &proof.results {
            let version = report.version.as_deref().unwrap_or("unknown");
            lines.push(format!(
                "result    {} at {}, running version {version}",
                report.state, report.at
            ));
        }
        if proof.results.is_empty() {
            lines.push("result    none yet".to_owned());
        }
        if trusted.root.is_empty() {
            let root = proof.root_sha256;
            lines.push(format!(
                "the approvals rest on the root with sha256 {root}: say --root to check them against yours"
            ));
        }
        lines
    })
}
