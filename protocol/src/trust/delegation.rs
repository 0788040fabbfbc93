//! Who else may speak, and about which targets: delegated roles by path pattern, by hash prefix, or as hash bins.
//!
//! Invariants: what [`Delegations::check`] passed names every role once, no top-level role, and only names whose files
//! can be stored; a role is trusted with a target only if its delegator's patterns say so.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{
    key_set::{KeySet, KeySetError},
    keys::{Key, KeyId},
    metadata::{Extra, Kind, key_set},
    names::quoted,
    verifying::KeyPolicy,
};
use crate::{
    ids::Sha256,
    limits::{FILE_NAME_BYTES_MAX, SUCCINCT_BITS_MAX},
};

/// Why delegations cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDelegation {
    /// A delegated role with the name of a top-level one.
    #[error("the role name {role:?} belongs to a top-level role")]
    Reserved {
        /// The role.
        role: String,
    },
    /// One name for two roles.
    #[error("the role {role:?} is listed twice")]
    Duplicate {
        /// The role.
        role: String,
    },
    /// A name whose file cannot be stored everywhere.
    #[error("the role name {role:?}... is empty or longer than a file name can be")]
    NameLength {
        /// Its beginning.
        role: String,
    },
    /// Both kinds of patterns, or none.
    #[error("the role {role:?} must have either paths or path_hash_prefixes")]
    Patterns {
        /// The role.
        role: String,
    },
    /// A prefix that no digest can have.
    #[error("the role {role:?} has a path_hash_prefix that is not 1 to 64 lower-case hexadecimal digits")]
    HashPrefix {
        /// The role.
        role: String,
    },
    /// Listed roles and hash bins together.
    #[error("delegations have either roles or succinct_roles, never both")]
    RolesAndBins,
    /// More or fewer bins than the specification has.
    #[error("succinct_roles has a bit_length of {bit_length}, it must be 1 to {SUCCINCT_BITS_MAX}")]
    BitLength {
        /// The bit length.
        bit_length: u32,
    },
}

/// Who else may speak.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delegations {
    /// Every key of the delegated roles.
    pub keys: BTreeMap<KeyId, Key>,
    /// The roles, in order of precedence.
    #[serde(default)]
    pub roles: Vec<DelegatedRole>,
    /// Instead of roles: bins by the hash of a target's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succinct_roles: Option<SuccinctRoles>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A role that may speak about some targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegatedRole {
    /// Its name, and the stem of its file.
    pub name: String,
    /// Whose signatures count.
    pub keyids: Vec<KeyId>,
    /// How many are needed.
    pub threshold: u64,
    /// Whether a search for a matching target ends here.
    pub terminating: bool,
    /// The target names it may speak about, as shell patterns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Or the beginnings of the SHA-256 digests of those names, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hash_prefixes: Option<Vec<String>>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Roles that share the targets by the first bits of the hash of their names (TAP 15).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccinctRoles {
    /// Whose signatures count, for every bin.
    pub keyids: Vec<KeyId>,
    /// How many are needed.
    pub threshold: u64,
    /// How many bits choose the bin.
    pub bit_length: u32,
    /// What every bin's name begins with.
    pub name_prefix: String,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A role that a delegator trusts with one particular target.
#[derive(Debug)]
pub(super) struct Trusted<'a> {
    pub(super) role: Cow<'a, str>,
    pub(super) terminating: bool,
    keyids: &'a [KeyId],
    threshold: u64,
    keys: &'a BTreeMap<KeyId, Key>,
}

impl Trusted<'_> {
    /// The keys that this delegator gives the role. Another delegator may give it others.
    pub(super) fn key_set(&self, policy: KeyPolicy) -> Result<KeySet, KeySetError> {
        key_set(&self.role, self.keyids, self.threshold, self.keys, policy)
    }
}

impl Delegations {
    /// Whether every role can be followed.
    pub fn check(&self) -> Result<(), BadDelegation> {
        let mut names = std::collections::BTreeSet::new();
        for role in &self.roles {
            let name = || role.name.clone();
            check_name(&role.name)?;
            if !names.insert(role.name.as_str()) {
                return Err(BadDelegation::Duplicate { role: name() });
            }
            if role.paths.is_some() == role.path_hash_prefixes.is_some() {
                return Err(BadDelegation::Patterns { role: name() });
            }
            let is_prefix = |text: &String| {
                (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            };
            if !role.path_hash_prefixes.iter().flatten().all(is_prefix) {
                return Err(BadDelegation::HashPrefix { role: name() });
            }
        }
        let Some(bins) = &self.succinct_roles else {
            return Ok(());
        };
        if !self.roles.is_empty() {
            return Err(BadDelegation::RolesAndBins);
        }
        if !(1..=SUCCINCT_BITS_MAX).contains(&bins.bit_length) {
            let bit_length = bins.bit_length;
            return Err(BadDelegation::BitLength { bit_length });
        }
        check_name(&bins.bin(u32::MAX))
    }

    /// The roles to ask about a target, in order of precedence.
    pub(super) fn trusted_with<'a>(&'a self, target: &str) -> Vec<Trusted<'a>> {
        let digest = Sha256::of(target.as_bytes());
        if let Some(bins) = &self.succinct_roles {
            let first = u32::from_be_bytes(digest.as_bytes()[..4].try_into().expect("a digest has 32 bytes"));
            return vec![Trusted {
                role: bins.bin(first).into(),
                terminating: true,
                keyids: &bins.keyids,
                threshold: bins.threshold,
                keys: &self.keys,
            }];
        }
        let digest = digest.to_string();
        let trusted = |role: &&DelegatedRole| {
            let by_path = role.paths.iter().flatten().any(|pattern| matches(pattern, target));
            let by_hash = |prefix: &String| digest.starts_with(prefix.as_str());
            by_path || role.path_hash_prefixes.iter().flatten().any(by_hash)
        };
        let roles = self.roles.iter().filter(trusted);
        roles
            .map(|role| Trusted {
                role: role.name.as_str().into(),
                terminating: role.terminating,
                keyids: &role.keyids,
                threshold: role.threshold,
                keys: &self.keys,
            })
            .collect()
    }
}

impl SuccinctRoles {
    /// The name of the bin for digests that begin with these 32 bits.
    fn bin(&self, first_bits: u32) -> String {
        let number = u64::from(first_bits) >> (32 - self.bit_length.clamp(1, SUCCINCT_BITS_MAX));
        let digits = self.bit_length.div_ceil(4) as usize;
        format!("{}-{number:0digits$x}", self.name_prefix)
    }
}

fn check_name(role: &str) -> Result<(), BadDelegation> {
    let top_level = [Kind::Root, Kind::Timestamp, Kind::Snapshot, Kind::Targets];
    if top_level.iter().any(|kind| kind.name() == role) {
        return Err(BadDelegation::Reserved { role: role.to_owned() });
    }
    if role.is_empty() || quoted(role).len() > FILE_NAME_BYTES_MAX {
        let role = role.chars().take(40).collect();
        return Err(BadDelegation::NameLength { role });
    }
    Ok(())
}

/// Whether a target name matches a shell pattern: `*` is any text and `?` any character, both within one segment of the
/// path; every other character is itself. Time is at most the product of the lengths.
fn matches(pattern: &str, target: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), target.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (Some(pattern), Some(name)) if segment_matches(pattern, name) => (),
            (None, None) => return true,
            _ => return false,
        }
    }
}

fn segment_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // After the last `*`, and how much of the name it has taken: only the last one ever needs to take more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((after, taken)) = star else { return false };
                star = Some((after, taken + 1));
                (p, n) = (after, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Read as metadata would be.
    fn delegations(json: serde_json::Value) -> Delegations {
        serde_json::from_value(json).unwrap()
    }

    fn role(name: &str, patterns: serde_json::Value) -> serde_json::Value {
        let mut role = json!({"name": name, "keyids": [], "threshold": 1, "terminating": false});
        role.as_object_mut()
            .unwrap()
            .extend(patterns.as_object().unwrap().clone());
        role
    }

    #[test]
    fn patterns_match_as_the_specification_shows() {
        for (pattern, target, expected) in [
            ("targets/*.tgz", "targets/foo.tgz", true),
            ("targets/*.tgz", "targets/foo.txt", false),
            ("foo-version-?.tgz", "foo-version-2.tgz", true),
            ("foo-version-?.tgz", "foo-version-alpha.tgz", false),
            ("*.tgz", "foo.tgz", true),
            ("*.tgz", "targets/foo.tgz", false),
            ("foo.tgz", "foo.tgz", true),
            ("foo.tgz", "foo.tgz2", false),
            ("*", "", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("[ab]", "a", false),
            ("[ab]", "[ab]", true),
            ("README.md", "readme.md", false),
            ("?", "é", true),
        ] {
            assert_eq!(matches(pattern, target), expected, "{pattern} {target}");
        }
    }

    #[test]
    fn hash_prefixes_and_bins_choose_by_the_sha256_of_the_name() {
        let name = "firmware/a.bin";
        let digest = Sha256::of(name.as_bytes()).to_string();
        let listed = delegations(json!({"keys": {}, "roles": [
            role("other", json!({"path_hash_prefixes": ["0"]})),
            role("mine", json!({"path_hash_prefixes": ["ffff", &digest[..3]]})),
        ]}));
        listed.check().unwrap();
        let asked = |delegations: &Delegations| -> Vec<_> {
            let trusted = delegations.trusted_with(name);
            trusted
                .iter()
                .map(|found| (found.role.to_string(), found.terminating))
                .collect()
        };
        assert!(!digest.starts_with('0'), "choose another name");
        assert_eq!(asked(&listed), [("mine".to_owned(), false)]);
        for (bit_length, digits) in [(4, 1), (8, 2), (32, 8)] {
            let bins = json!({"keyids": [], "threshold": 1, "bit_length": bit_length, "name_prefix": "bin"});
            let bins = delegations(json!({"keys": {}, "succinct_roles": bins}));
            bins.check().unwrap();
            assert_eq!(asked(&bins), [(format!("bin-{}", &digest[..digits]), true)]);
        }
        let odd = json!({"keyids": [], "threshold": 1, "bit_length": 5, "name_prefix": "bin"});
        let number = u8::from_str_radix(&digest[..2], 16).unwrap() >> 3;
        let odd = delegations(json!({"keys": {}, "succinct_roles": odd}));
        assert_eq!(asked(&odd), [(format!("bin-{number:02x}"), true)]);
    }

    #[test]
    fn delegations_that_cannot_be_followed_are_refused_by_name() {
        let refused = |roles: serde_json::Value| delegations(json!({"keys": {}, "roles": roles})).check().unwrap_err();
        let any = json!({"paths": ["*"]});
        for name in ["root", "timestamp", "snapshot", "targets"] {
            assert!(matches!(
                refused(json!([role(name, any.clone())])),
                BadDelegation::Reserved { .. }
            ));
        }
        for name in [String::new(), "é".repeat(60)] {
            assert!(matches!(
                refused(json!([role(&name, any.clone())])),
                BadDelegation::NameLength { .. }
            ));
        }
        let twice = json!([role("a", any.clone()), role("a", any.clone())]);
        assert!(matches!(refused(twice), BadDelegation::Duplicate { .. }));
        for patterns in [json!({}), json!({"paths": [], "path_hash_prefixes": []})] {
            assert!(matches!(
                refused(json!([role("a", patterns)])),
                BadDelegation::Patterns { .. }
            ));
        }
        for prefix in ["", "AB", "xy"] {
            let patterns = json!({"path_hash_prefixes": [prefix]});
            assert!(matches!(
                refused(json!([role("a", patterns)])),
                BadDelegation::HashPrefix { .. }
            ));
        }
        for bit_length in [0, 33] {
            let bins = json!({"keyids": [], "threshold": 1, "bit_length": bit_length, "name_prefix": "bin"});
            let both = json!({"keys": {}, "roles": [role("a", any.clone())], "succinct_roles": bins});
            assert_eq!(delegations(both).check(), Err(BadDelegation::RolesAndBins));
            let error = delegations(json!({"keys": {}, "succinct_roles": bins})).check();
            assert_eq!(error, Err(BadDelegation::BitLength { bit_length }));
        }
    }

    /// The obvious way, exponential in the stars.
    fn oracle(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) if oracle(rest, name) => true,
            (Some(('*', _)), Some((&c, after))) => c != '/' && oracle(pattern, after),
            (Some(('?', rest)), Some((&c, after))) => c != '/' && oracle(rest, after),
            (Some((p, rest)), Some((n, after))) => p == n && oracle(rest, after),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_obvious_way(pattern in "[ab/*?]{0,8}", name in "[ab/]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &name), oracle(&chars(&pattern), &chars(&name)));
        }
    }
}
