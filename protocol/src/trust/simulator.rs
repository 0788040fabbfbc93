//! A repository for tests of the client workflow: any roles, any keys, any mistake; and a client that looks at it.

use std::{collections::BTreeMap, time::Duration};

use super::{
    delegation::DelegatedRole,
    errors::RefreshError,
    keys::SecretKey,
    metadata::{
        Extra, Header, Kind, MetaFile, Role, RoleKeys, Root, SignedFile, Snapshot, Targets, Timestamp, TimestampMeta,
    },
    names::{repository_name, stored_name},
    search::{Found, Search},
    verify::{Input, Refresh, StoredMetadata, TrustedMetadata},
    verifying::KeyPolicy,
};
use crate::time::WallTime;

pub(super) const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn noon() -> WallTime {
    WallTime::from_unix_seconds(1_800_000_000)
}

pub(super) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// Metadata that is published file by file, each signed by whoever `signers` says.
#[derive(Debug, Clone)]
pub(super) struct Simulator {
    pub(super) root: Root,
    pub(super) timestamp: Timestamp,
    pub(super) snapshot: Snapshot,
    pub(super) targets: BTreeMap<String, Targets>,
    /// Numbers of the keys that sign a role.
    pub(super) signers: BTreeMap<String, Vec<u8>>,
    /// Whether files are named with length and digest, not by version alone.
    pub(super) with_digests: bool,
    /// What is served, by name.
    pub(super) served: BTreeMap<String, Vec<u8>>,
    /// What was asked for, in order.
    pub(super) asked: Vec<String>,
    next_key: u8,
}

/// The four top-level roles, in the order they have to be published.
pub(super) const ROLES: [Kind; 4] = [Kind::Root, Kind::Targets, Kind::Snapshot, Kind::Timestamp];

impl Simulator {
    /// Version 1 of everything, each role with one key of its own, published.
    pub(super) fn new() -> Self {
        let expires = noon() + 30 * DAY;
        let meta = |version| MetaFile {
            version,
            length: None,
            hashes: None,
            extra: Extra::new(),
        };
        let mut simulator = Self {
            root: Root {
                header: Header::first(Kind::Root, expires),
                consistent_snapshot: true,
                keys: BTreeMap::new(),
                roles: BTreeMap::new(),
                extra: Extra::new(),
            },
            timestamp: Timestamp {
                header: Header::first(Kind::Timestamp, expires),
                meta: TimestampMeta { snapshot: meta(1) },
                extra: Extra::new(),
            },
            snapshot: Snapshot {
                header: Header::first(Kind::Snapshot, expires),
                meta: BTreeMap::new(),
                extra: Extra::new(),
            },
            targets: BTreeMap::from([("targets".to_owned(), Targets::first(expires))]),
            signers: BTreeMap::new(),
            with_digests: false,
            served: BTreeMap::new(),
            asked: Vec::new(),
            next_key: 100,
        };
        for (at, kind) in (1..).zip(ROLES) {
            simulator.set_keys(kind, &[at], 1, &[at]);
        }
        for kind in ROLES {
            simulator.publish_as_it_is(kind.name());
        }
        simulator
    }

    /// The keys of a top-level role, its threshold, and who signs from now on.
    pub(super) fn set_keys(&mut self, kind: Kind, keys: &[u8], threshold: u64, signers: &[u8]) {
        let public = keys.iter().map(|&number| key(number).public());
        let keyids = public.clone().map(|key| key.id()).collect();
        self.root.keys.extend(public.map(|key| (key.id(), key.into())));
        let role = RoleKeys {
            keyids,
            threshold,
            extra: Extra::new(),
        };
        self.root.roles.insert(kind.name().to_owned(), role);
        self.signers.insert(kind.name().to_owned(), signers.to_vec());
    }

    /// The next version of a role.
    pub(super) fn publish(&mut self, roles: &[&str]) {
        for role in roles {
            match *role {
                "root" => self.root.header.version += 1,
                "timestamp" => self.timestamp.header.version += 1,
                "snapshot" => self.snapshot.header.version += 1,
                role => self.targets.get_mut(role).expect("a role of this name").header.version += 1,
            }
            self.publish_as_it_is(role);
        }
    }

    /// What would be served for a role now.
    pub(super) fn signed(&self, role: &str) -> Vec<u8> {
        let mut file = match role {
            "root" => SignedFile::unsigned(&self.root),
            "timestamp" => SignedFile::unsigned(&self.timestamp),
            "snapshot" => SignedFile::unsigned(&self.snapshot),
            role => SignedFile::unsigned(&self.targets[role]),
        };
        for &number in &self.signers[role] {
            file.sign(&key(number).public().id(), &key(number));
        }
        file.to_bytes()
    }

    pub(super) fn publish_as_it_is(&mut self, role: &str) {
        let bytes = self.signed(role);
        let named = |header: &Header| MetaFile {
            length: self.with_digests.then_some(bytes.len() as u64),
            hashes: self
                .with_digests
                .then(|| MetaFile::of(1, &bytes).hashes.expect("a digest")),
            version: header.version,
            extra: Extra::new(),
        };
        let (version, consistent) = match role {
            "root" => (self.root.header.version, true),
            "timestamp" => (self.timestamp.header.version, false),
            "snapshot" => {
                self.timestamp.meta.snapshot = named(&self.snapshot.header);
                (self.snapshot.header.version, self.root.consistent_snapshot)
            }
            role => {
                let header = &self.targets[role].header;
                self.snapshot.meta.insert(format!("{role}.json"), named(header));
                (header.version, self.root.consistent_snapshot)
            }
        };
        self.served.insert(repository_name(role, version, consistent), bytes);
    }

    /// Lets `from` trust `to` with some targets; a key is made for it if nobody signs for it yet.
    pub(super) fn delegate(&mut self, from: &str, to: &str, terminating: bool, paths: &[&str]) {
        let signers = self.signers.entry(to.to_owned()).or_insert_with(|| {
            self.next_key += 1;
            vec![self.next_key]
        });
        let public = key(signers[0]).public();
        self.delegate_to_key(from, to, terminating, paths, public);
    }

    pub(super) fn delegate_to_key(
        &mut self,
        from: &str,
        to: &str,
        terminating: bool,
        paths: &[&str],
        public: super::keys::PublicKey,
    ) {
        let role = DelegatedRole {
            name: to.to_owned(),
            keyids: vec![public.id()],
            threshold: 1,
            terminating,
            paths: Some(paths.iter().map(|&path| path.to_owned()).collect()),
            path_hash_prefixes: None,
            extra: Extra::new(),
        };
        let expires = noon() + 30 * DAY;
        self.targets
            .entry(to.to_owned())
            .or_insert_with(|| Targets::first(expires));
        let delegator = self
            .targets
            .entry(from.to_owned())
            .or_insert_with(|| Targets::first(expires));
        let delegations = delegator.delegations.get_or_insert_default();
        delegations.keys.insert(public.id(), public.into());
        delegations.roles.push(role);
    }

    /// Publishes all targets roles as they are, then a snapshot and a timestamp.
    pub(super) fn publish_targets(&mut self) {
        let roles: Vec<_> = self.targets.keys().cloned().collect();
        roles.iter().for_each(|role| self.publish_as_it_is(role));
        self.publish(&["snapshot", "timestamp"]);
    }

    /// Answers one question.
    pub(super) fn answer(&mut self, name: &str) -> Input {
        self.asked.push(name.to_owned());
        self.served
            .get(name)
            .map_or(Input::NotFound, |bytes| Input::Fetched(bytes.clone()))
    }
}

/// A client that pinned a root.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) store: StoredMetadata,
    pub(super) policy: KeyPolicy,
}

impl Client {
    /// Pins version 1 of the root.
    pub(super) fn of(simulator: &Simulator) -> Self {
        let pinned = simulator.served["1.root.json"].clone();
        Self {
            store: StoredMetadata::from([("root.json".to_owned(), pinned)]),
            policy: KeyPolicy::Standard,
        }
    }

    pub(super) fn refresh_at(&mut self, from: &mut Simulator, now: WallTime) -> Result<TrustedMetadata, RefreshError> {
        let refresh = Refresh::top_level(self.store.clone(), now, self.policy)?;
        refresh.run(&mut self.store, |name, _| from.answer(name))
    }

    pub(super) fn refresh(&mut self, from: &mut Simulator) -> Result<TrustedMetadata, RefreshError> {
        self.refresh_at(from, noon())
    }

    /// A refresh that is refused: why, by its stable name.
    pub(super) fn refused(&mut self, from: &mut Simulator) -> &'static str {
        self.refresh(from).expect_err("the refresh is refused").code()
    }

    /// A search after a refresh.
    pub(super) fn search(&mut self, from: &mut Simulator, target: &str) -> Result<Option<Found>, RefreshError> {
        let trusted = self.refresh(from)?;
        let search = Search::new(&trusted, &self.store, target);
        search.run(&mut self.store, |name, _| from.answer(name))
    }

    /// The version of a role that is stored; 0 if none is.
    pub(super) fn version(&self, role: &str) -> u64 {
        let Some(bytes) = self.store.get(&stored_name(role)) else {
            return 0;
        };
        let file = SignedFile::from_bytes(role, bytes).expect("what is stored is readable");
        match role {
            "root" => file.unverified::<Root>(role).map(|root| root.header.version),
            "timestamp" => file
                .unverified::<Timestamp>(role)
                .map(|timestamp| timestamp.header.version),
            "snapshot" => file
                .unverified::<Snapshot>(role)
                .map(|snapshot| snapshot.header.version),
            _ => file.unverified::<Targets>(role).map(|targets| targets.header().version),
        }
        .expect("what is stored is readable")
    }

    /// The stored versions of root, timestamp, snapshot and targets.
    pub(super) fn versions(&self) -> [u64; 4] {
        ["root", "timestamp", "snapshot", "targets"].map(|role| self.version(role))
    }
}
