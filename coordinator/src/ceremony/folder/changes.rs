//! What a draft changes against the version that was signed before: who may sign, how many of them, until when, for what.

use std::{collections::BTreeMap, fmt};

use firmesh_protocol::trust::{
    DelegatedRole, Delegations, Header, Key, KeyId, KeyPolicy, Root, Target, Targets, VerifyingKey,
};
use serde_json::Value;

use super::{FolderError, TrustFolder, describe::plain};

/// What kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Something new.
    Added,
    /// Something gone.
    Removed,
    /// Something else than before.
    Changed,
    /// Fewer people suffice, or something to be looked at twice.
    Weaker,
    /// Not a change: what it is compared with.
    Note,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What kind.
    pub kind: ChangeKind,
    /// What, for a person.
    pub what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.kind {
            ChangeKind::Added => '+',
            ChangeKind::Removed => '-',
            ChangeKind::Changed => '~',
            ChangeKind::Weaker => '!',
            ChangeKind::Note => ' ',
        };
        write!(f, "{mark} {}", self.what)
    }
}

fn change(kind: ChangeKind, what: impl AsRef<str>) -> Change {
    Change {
        kind,
        what: plain(what.as_ref()),
    }
}

impl TrustFolder {
    /// What a file changes against the version signed before it. The first line says which that is.
    pub fn changes(&self, file: &str) -> Result<Vec<Change>, FolderError> {
        if file.ends_with(".root.json") {
            let new = self.root(file)?;
            let old = self.complete_roots()?.into_iter().rev();
            let old = old.into_iter().find(|root| root.header.version < new.header.version);
            let Some(old) = old else {
                return Ok(vec![first()]);
            };
            let mut changes = headers(&old.header, &new.header);
            roots(&mut changes, &old, &new);
            return Ok(changes);
        }
        let new = match file {
            "targets.json" => self.repository.targets(),
            "releases.json" => self.repository.releases(),
            _ => self.repository.campaigns(),
        };
        let Some(old) = self.signed_before(file, new.header.version)? else {
            return Ok(vec![first()]);
        };
        let mut changes = headers(&old.header, &new.header);
        let nothing = Delegations::default();
        delegations(
            &mut changes,
            old.delegations.as_ref().unwrap_or(&nothing),
            new.delegations.as_ref().unwrap_or(&nothing),
        );
        targets(&mut changes, &old, new);
        Ok(changes)
    }
}

fn first() -> Change {
    change(
        ChangeKind::Note,
        "no version signed before is known here: everything is new",
    )
}

/// What it is compared with, and what changes about its version and expiry.
fn headers(old: &Header, new: &Header) -> Vec<Change> {
    let what = format!("against version {}, signed before:", old.version);
    let mut changes = vec![change(ChangeKind::Note, what)];
    if new.version != old.version.saturating_add(1) {
        let what = format!("version {} -> {}: versions are left out", old.version, new.version);
        changes.push(change(ChangeKind::Weaker, what));
    }
    if old.expires != new.expires {
        let earlier = new.expires < old.expires;
        let kind = if earlier {
            ChangeKind::Weaker
        } else {
            ChangeKind::Changed
        };
        changes.push(change(kind, format!("expires {} -> {}", old.expires, new.expires)));
    }
    changes
}

fn roots(changes: &mut Vec<Change>, old: &Root, new: &Root) {
    let mut names: Vec<_> = old.roles.keys().chain(new.roles.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let role = |root: &Root| {
            root.roles
                .get(name)
                .map(|role| (named(&role.keyids, &root.keys), role.threshold))
        };
        signers(changes, name, role(old), role(new));
    }
    if old.consistent_snapshot != new.consistent_snapshot {
        let what = format!(
            "consistent snapshots {} -> {}",
            old.consistent_snapshot, new.consistent_snapshot
        );
        changes.push(change(ChangeKind::Weaker, what));
    }
    if old.extra != new.extra {
        let what = format!("fields that this version does not know: {}", text(&new.extra));
        changes.push(change(ChangeKind::Weaker, what));
    }
}

fn delegations(changes: &mut Vec<Change>, old: &Delegations, new: &Delegations) {
    let mut names: Vec<_> = old
        .roles
        .iter()
        .chain(&new.roles)
        .map(|role| role.name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        fn find<'a>(all: &'a Delegations, name: &str) -> Option<&'a DelegatedRole> {
            all.roles.iter().find(|role| role.name == name)
        }
        let (before, now) = (find(old, name), find(new, name));
        let role = |role: &DelegatedRole, all: &Delegations| (named(&role.keyids, &all.keys), role.threshold);
        signers(
            changes,
            name,
            before.map(|found| role(found, old)),
            now.map(|found| role(found, new)),
        );
        let speaks = |role: Option<&DelegatedRole>| role.map_or_else(|| "nothing".to_owned(), speaks_about);
        if speaks(before) != speaks(now) {
            let what = format!("{name} may speak about {} -> {}", speaks(before), speaks(now));
            changes.push(change(ChangeKind::Weaker, what));
        }
    }
    if old.succinct_roles != new.succinct_roles {
        changes.push(change(
            ChangeKind::Weaker,
            "roles by the hash of a target's name, which no node follows",
        ));
    }
    if old.extra != new.extra {
        let what = format!("fields that this version does not know: {}", text(&new.extra));
        changes.push(change(ChangeKind::Weaker, what));
    }
    let order = |all: &Delegations| all.roles.iter().map(|role| role.name.clone()).collect::<Vec<_>>();
    if order(old) != order(new) {
        changes.push(change(
            ChangeKind::Changed,
            format!("order of roles: {}", order(new).join(", ")),
        ));
    }
}

/// Everything about a delegation but its keys.
fn speaks_about(role: &DelegatedRole) -> String {
    let mut said = vec![role.paths.clone().unwrap_or_default().join(", ")];
    if let Some(prefixes) = &role.path_hash_prefixes {
        said.push(format!("names that hash to {}", prefixes.join(", ")));
    }
    if !role.terminating {
        said.push("unless somebody else does".to_owned());
    }
    if !role.extra.is_empty() {
        said.push(format!(
            "with fields that this version does not know: {}",
            text(&role.extra)
        ));
    }
    said.join(" ")
}

type Named = (BTreeMap<KeyId, String>, u64);

/// The keys of a role by id, each as a person compares it.
fn named(ids: &[KeyId], keys: &BTreeMap<KeyId, Key>) -> BTreeMap<KeyId, String> {
    let name = |id: &KeyId| match keys.get(id).map(|key| (key, key.verifying(KeyPolicy::default()))) {
        Some((_, Ok(Some(VerifyingKey::Ed25519(key))))) => key.to_string(),
        Some((key, _)) => format!("{id} of the kind {}, which never counts", key.keytype),
        None => format!("{id}, which is not listed and never counts"),
    };
    ids.iter().map(|id| (id.clone(), name(id))).collect()
}

fn signers(changes: &mut Vec<Change>, role: &str, old: Option<Named>, new: Option<Named>) {
    let gone = new.is_none();
    let (old_keys, old_threshold) = old.unwrap_or_default();
    let (new_keys, new_threshold) = new.unwrap_or_default();
    let missing_from = |a: &BTreeMap<KeyId, String>, b: &BTreeMap<KeyId, String>| {
        a.values()
            .filter(|key| !b.values().any(|known| known == *key))
            .cloned()
            .collect::<Vec<_>>()
    };
    for key in missing_from(&new_keys, &old_keys) {
        changes.push(change(ChangeKind::Added, format!("{role}: key {key}")));
    }
    for key in missing_from(&old_keys, &new_keys) {
        changes.push(change(ChangeKind::Removed, format!("{role}: key {key}")));
    }
    if gone {
        changes.push(change(ChangeKind::Removed, format!("{role}: the whole role")));
    } else if old_threshold != new_threshold {
        let kind = if new_threshold < old_threshold {
            ChangeKind::Weaker
        } else {
            ChangeKind::Changed
        };
        changes.push(change(
            kind,
            format!("{role}: threshold {old_threshold} -> {new_threshold}"),
        ));
    }
}

fn targets(changes: &mut Vec<Change>, old: &Targets, new: &Targets) {
    for (name, target) in &new.targets {
        match old.targets.get(name) {
            None => changes.push(change(ChangeKind::Added, format!("{name} {}", digest(target)))),
            Some(before) if before == target => {}
            Some(before) => {
                let same_bytes = (digest(before), before.length) == (digest(target), target.length);
                let what = if same_bytes {
                    format!("{name}: {} -> {}", custom(before), custom(target))
                } else {
                    format!("{name}: {} -> {}", digest(before), digest(target))
                };
                changes.push(change(ChangeKind::Changed, what));
            }
        }
    }
    for (name, target) in &old.targets {
        if !new.targets.contains_key(name) {
            changes.push(change(ChangeKind::Removed, format!("{name} {}", digest(target))));
        }
    }
    if old.extra != new.extra {
        let what = format!("fields that this version does not know: {}", text(&new.extra));
        changes.push(change(ChangeKind::Weaker, what));
    }
}

fn digest(target: &Target) -> String {
    match target.sha256() {
        Some(digest) => format!("sha256 {digest}"),
        None => "without a sha256 digest".to_owned(),
    }
}

fn custom(target: &Target) -> String {
    target
        .custom
        .as_ref()
        .map_or_else(|| "nothing".to_owned(), Value::to_string)
}

fn text(fields: &BTreeMap<String, Value>) -> String {
    let names: Vec<_> = fields.keys().map(String::as_str).collect();
    if names.is_empty() {
        "none any longer".to_owned()
    } else {
        names.join(", ")
    }
}
