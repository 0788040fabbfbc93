//! A fleet's metadata in the hands of people (the real command line), published by whoever holds the online keys, and
//! forged by whoever stole keys.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    time::WallTime,
    trust::{
        Header, Input, Kind, MetaFile, Refresh, Repository, Role, Root, SecretKey, SignedFile, Snapshot,
        StoredMetadata, Targets, Timestamp, TimestampMeta, TrustedFleet,
    },
};
use firmesh_tests::operator::{Operator, THRESHOLD};
use tempfile::TempDir;

pub(super) const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn now() -> Result<WallTime> {
    let seconds = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    Ok(WallTime::from_unix_seconds(i64::try_from(seconds)?))
}

/// Files by the name that clients fetch them by.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What a client that begins with `store` makes of a repository: fine, or the name of the refusal.
pub(super) fn refresh(store: &mut StoredMetadata, files: &Files) -> Result<Result<TrustedFleet, String>> {
    let answer = |name: &str, _| {
        files
            .get(name)
            .map_or(Input::NotFound, |bytes| Input::Fetched(bytes.clone()))
    };
    let metadata = match Refresh::new(store.clone(), now()?)?.run(store, answer) {
        Ok(metadata) => metadata,
        Err(error) => return Ok(Err(error.code().to_owned())),
    };
    Ok(TrustedFleet::new(metadata).map_err(|error| error.code().to_owned()))
}

/// Signers of snapshot and timestamp, one key each.
#[derive(Debug)]
pub(super) struct Online {
    pub(super) snapshot: SecretKey,
    pub(super) timestamp: SecretKey,
}

/// People with a trust folder, and the metadata they have published so far.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) people: Operator,
    pub(super) files: Files,
    stored: StoredMetadata,
    folder: TempDir,
}

impl Fleet {
    /// The ceremony: two of three of each group, separate keys for root and targets, for snapshot and timestamp.
    pub(super) fn found() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let people = Operator::offline(folder.path());
        for number in 1..=3 {
            people.ok(&["key", "generate", "--unencrypted", &format!("keys/targets-{number}")])?;
        }
        for key in ["snapshot-1", "timestamp-1", "spare-1", "spare-2"] {
            people.ok(&["key", "generate", "--unencrypted", &format!("keys/{key}")])?;
        }
        let snapshot = fs::read_to_string(folder.path().join("keys/snapshot-1.pub"))?;
        people.hold_ceremony(snapshot.trim())?;
        let fleet = Self {
            people,
            files: Files::new(),
            stored: StoredMetadata::new(),
            folder,
        };
        fleet.change("timestamp", &["keys/timestamp-1"], &["online"])?;
        let (new, old) = (["targets-1", "targets-2", "targets-3"], ["root-1", "root-2", "root-3"]);
        let path = |name: &str| format!("keys/{name}");
        let (new, old) = (new.map(path), old.map(path));
        fleet.change(
            "targets",
            &new.each_ref().map(String::as_str),
            &old.each_ref().map(String::as_str),
        )?;
        for group in ["root", "targets", "release", "approver"] {
            fleet.sign(group, 1..=THRESHOLD)?;
        }
        Ok(fleet)
    }

    pub(super) fn secret(&self, name: &str) -> Result<SecretKey> {
        let path = self.folder.path().join("keys").join(name);
        Ok(SecretKey::from_pem(&fs::read_to_string(path)?)?)
    }

    pub(super) fn online(&self) -> Result<Online> {
        Ok(Online {
            snapshot: self.secret("snapshot-1")?,
            timestamp: self.secret("timestamp-1")?,
        })
    }

    /// Gives a role other keys.
    pub(super) fn change(&self, role: &str, add: &[&str], remove: &[&str]) -> Result<()> {
        let mut words = vec!["trust".to_owned(), "signers".to_owned(), role.to_owned()];
        words.extend(add.iter().flat_map(|key| ["--add".to_owned(), format!("{key}.pub")]));
        words.extend(
            remove
                .iter()
                .flat_map(|key| ["--remove".to_owned(), format!("{key}.pub")]),
        );
        self.people.ok(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(())
    }

    pub(super) fn sign(&self, group: &str, numbers: impl IntoIterator<Item = u32>) -> Result<()> {
        for number in numbers {
            self.people
                .ok(&["trust", "sign", "--key", &format!("keys/{group}-{number}")])?;
        }
        Ok(())
    }

    /// Whoever holds the online keys publishes what people have signed, as the coordinator does.
    pub(super) fn publish(&mut self, online: &Online) -> Result<()> {
        let mut files = Files::new();
        for entry in fs::read_dir(self.folder.path().join("trust"))? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "json") {
                files.insert(
                    entry.file_name().to_string_lossy().into_owned(),
                    fs::read(entry.path())?,
                );
            }
        }
        let keys = [&online.snapshot, &online.timestamp];
        let published = Repository::from_files(&files)?.publish(&self.stored, now()?, now()? + DAY, &keys)?;
        self.files.extend(published.files);
        self.stored = published.stored;
        Ok(())
    }

    /// The root that nodes pin.
    pub(super) fn pinned(&self) -> Result<StoredMetadata> {
        let root = self.files.get("1.root.json").context("a first root")?;
        Ok([("root.json".to_owned(), root.clone())].into())
    }

    /// A new root, changed and signed by a thief.
    pub(super) fn forge_root(&self, thieves: &[&SecretKey], change: impl FnOnce(&mut Root)) -> Result<Files> {
        let newest = (1..)
            .take_while(|version| self.files.contains_key(&format!("{version}.root.json")))
            .last();
        let name = format!("{}.root.json", newest.context("a root")?);
        let mut root: Root = SignedFile::from_bytes(&name, &self.files[&name])?.unverified(&name)?;
        root.header.version += 1;
        change(&mut root);
        let mut files = self.files.clone();
        files.insert(format!("{}.root.json", root.header.version), signed(&root, thieves));
        Ok(files)
    }

    /// New targets of a role, changed and signed by a thief who also holds the online keys.
    pub(super) fn forge_targets(
        &self,
        role: &str,
        thieves: &[&SecretKey],
        online: &Online,
        change: impl FnOnce(&mut Targets),
    ) -> Result<Files> {
        let file = format!("{role}.json");
        let (mut snapshot, timestamp) = self.newest_snapshot()?;
        let version = snapshot.meta.get(&file).context("the snapshot names it")?.version;
        let name = format!("{version}.{file}");
        let mut targets: Targets = SignedFile::from_bytes(&name, &self.files[&name])?.unverified(&name)?;
        targets.header.version += 1;
        change(&mut targets);
        let bytes = signed(&targets, thieves);
        snapshot
            .meta
            .insert(file.clone(), MetaFile::of(targets.header.version, &bytes));
        let mut files = self.forge_snapshot(snapshot, timestamp, 1, online)?;
        files.insert(format!("{}.{file}", targets.header.version), bytes);
        Ok(files)
    }

    /// Snapshot and timestamp `ahead` versions further on, signed with whatever online keys a thief has.
    pub(super) fn forge_online(&self, ahead: u64, online: &Online) -> Result<Files> {
        let (snapshot, timestamp) = self.newest_snapshot()?;
        self.forge_snapshot(snapshot, timestamp, ahead, online)
    }

    fn forge_snapshot(&self, mut snapshot: Snapshot, version: u64, ahead: u64, online: &Online) -> Result<Files> {
        snapshot.header.version = version + ahead;
        let bytes = signed(&snapshot, &[&online.snapshot]);
        let timestamp = Timestamp {
            header: Header {
                version: version + ahead,
                ..Header::first(Kind::Timestamp, now()? + DAY)
            },
            meta: TimestampMeta {
                snapshot: MetaFile::of(snapshot.header.version, &bytes),
            },
            extra: BTreeMap::new(),
        };
        let mut files = self.files.clone();
        files.insert(format!("{}.snapshot.json", snapshot.header.version), bytes);
        files.insert("timestamp.json".to_owned(), signed(&timestamp, &[&online.timestamp]));
        Ok(files)
    }

    fn newest_snapshot(&self) -> Result<(Snapshot, u64)> {
        let timestamp: Timestamp =
            SignedFile::from_bytes("timestamp.json", &self.files["timestamp.json"])?.unverified("timestamp.json")?;
        let name = format!("{}.snapshot.json", timestamp.meta.snapshot.version);
        let snapshot = SignedFile::from_bytes(&name, &self.files[&name])?.unverified(&name)?;
        Ok((snapshot, timestamp.header.version))
    }
}

fn signed<T: Role>(content: &T, keys: &[&SecretKey]) -> Vec<u8> {
    let mut file = SignedFile::unsigned(content);
    for key in keys {
        file.sign(&key.public().id(), key);
    }
    file.to_bytes()
}

/// That a refresh was refused, and by which name.
pub(super) fn refused(what: &str, outcome: Result<TrustedFleet, String>, name: &str) -> Result<()> {
    match outcome {
        Err(found) => {
            ensure!(found == name, "{what}: refused as {found}, expected {name}");
            Ok(())
        }
        Ok(_) => anyhow::bail!("{what}: accepted, expected {name}"),
    }
}

/// That a refresh was fine.
pub(super) fn accepted(what: &str, outcome: Result<TrustedFleet, String>) -> Result<TrustedFleet> {
    outcome.map_err(|name| anyhow::anyhow!("{what}: refused as {name}"))
}
