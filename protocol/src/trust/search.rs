//! The search for a target's metadata (section 5.6.7 of the specification) as a core: pre-order, depth first.
//!
//! Invariants: a role speaks for a target only with the keys and patterns of the delegator that the search came from,
//! also when its file is already stored; a terminating delegation ends what was still to be asked; every role is asked
//! once, and no more than a bounded number of roles.

use std::collections::{BTreeSet, VecDeque};

use super::{
    checks::{check_targets, snapshot_meta},
    errors::RefreshError,
    key_set::KeySet,
    metadata::{Kind, Target, Targets},
    names::{repository_name, stored_name},
    verify::{Input, Output, StoredMetadata, TrustedMetadata},
};
use crate::limits::ROLES_VISITED_MAX;

/// A target, and the role that vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The role.
    pub role: String,
    /// What it says about the target.
    pub target: Target,
}

/// A search for one target. Driven like a [`Refresh`](super::Refresh), after one has succeeded.
#[derive(Debug)]
pub struct Search<'a> {
    trusted: &'a TrustedMetadata,
    name: String,
    outputs: VecDeque<Output>,
    visited: BTreeSet<String>,
    /// Roles still to ask, the next one last, each with the keys its delegator gave it.
    left: Vec<(String, KeySet)>,
    awaited: Option<Awaited>,
    outcome: Option<Result<Option<Found>, RefreshError>>,
    stored: StoredMetadata,
}

#[derive(Debug)]
struct Awaited {
    role: String,
    keys: KeySet,
    bytes_max: u64,
}

impl<'a> Search<'a> {
    /// Searches for the target `name`; files of delegated roles that are `stored` and current are not fetched again.
    #[must_use]
    pub fn new(trusted: &'a TrustedMetadata, stored: &StoredMetadata, name: &str) -> Self {
        let mut search = Self {
            trusted,
            name: name.to_owned(),
            outputs: VecDeque::new(),
            visited: BTreeSet::new(),
            left: Vec::new(),
            awaited: None,
            outcome: None,
            stored: stored.clone(),
        };
        if let Err(error) = search
            .look(Kind::Targets.name(), &trusted.targets)
            .and_then(|()| search.next())
        {
            search.outcome = Some(Err(error));
        }
        search
    }

    /// The next thing to do. `None` when nothing is left, or while a fetch is unanswered.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes the answer to the fetch that came last. An answer nobody asked for is ignored.
    pub fn handle(&mut self, input: Input) {
        let Some(awaited) = self.awaited.take() else { return };
        if let Err(error) = self.answer(awaited, input) {
            self.outcome = Some(Err(error));
        }
    }

    /// Drives the search to its end over a store in memory. `fetch` answers for the repository.
    pub fn run(
        mut self,
        store: &mut StoredMetadata,
        mut fetch: impl FnMut(&str, u64) -> Input,
    ) -> Result<Option<Found>, RefreshError> {
        while let Some(output) = self.poll() {
            match output {
                Output::Fetch { name, bytes_max } => self.handle(fetch(&name, bytes_max)),
                Output::Persist { name, bytes } => _ = store.insert(name, bytes),
                Output::Remove { name } => _ = store.remove(&name),
            }
        }
        self.finish()
    }

    /// The outcome, once [`Self::poll`] has no more to do: `None` if nobody who may speaks for the target.
    pub fn finish(self) -> Result<Option<Found>, RefreshError> {
        self.outcome.unwrap_or(Err(RefreshError::Unfinished))
    }

    fn answer(&mut self, awaited: Awaited, input: Input) -> Result<(), RefreshError> {
        let Awaited { role, keys, bytes_max } = awaited;
        let file = || self.repository_name(&role);
        let bytes = match input {
            Input::Fetched(bytes) => bytes,
            Input::NotFound => return Err(RefreshError::NotFound { file: file()? }),
            Input::Failed(reason) => return Err(RefreshError::Fetch { file: file()?, reason }),
        };
        let length = bytes.len() as u64;
        if length > bytes_max {
            let file = file()?;
            return Err(RefreshError::TooLarge {
                file,
                length,
                bytes_max,
            });
        }
        let targets = self.check(&role, &keys, &bytes)?;
        let name = stored_name(&role);
        self.outputs.push_back(Output::Persist { name, bytes });
        self.look(&role, &targets)?;
        self.next()
    }

    /// Whether a role speaks for the target, and if not, whom it trusts with it.
    fn look(&mut self, role: &str, targets: &Targets) -> Result<(), RefreshError> {
        self.visited.insert(role.to_owned());
        if let Some(target) = targets.targets.get(&self.name) {
            let (role, target) = (role.to_owned(), target.clone());
            self.outcome = Some(Ok(Some(Found { role, target })));
            return Ok(());
        }
        let mut children = Vec::new();
        let mut terminates = false;
        for trusted in targets
            .delegations
            .iter()
            .flat_map(|delegations| delegations.trusted_with(&self.name))
        {
            children.push((trusted.role.to_string(), trusted.key_set(self.trusted.policy)?));
            terminates = trusted.terminating;
            if terminates {
                break;
            }
        }
        if terminates {
            self.left.clear();
        }
        self.left.extend(children.into_iter().rev());
        Ok(())
    }

    /// Asks the next role, from the store if it is there.
    fn next(&mut self) -> Result<(), RefreshError> {
        while self.outcome.is_none() {
            let Some((role, keys)) = self.left.pop() else {
                self.outcome = Some(Ok(None));
                break;
            };
            if self.visited.contains(&role) {
                continue;
            }
            // The top-level targets are visited too, and do not count.
            if self.visited.len() > ROLES_VISITED_MAX {
                return Err(RefreshError::TooManyRoles {
                    target: self.name.clone(),
                });
            }
            let stored = self.stored.get(&stored_name(&role));
            match stored.and_then(|bytes| self.check(&role, &keys, bytes).ok()) {
                Some(targets) => self.look(&role, &targets)?,
                None => return self.fetch(role, keys),
            }
        }
        Ok(())
    }

    fn fetch(&mut self, role: String, keys: KeySet) -> Result<(), RefreshError> {
        let name = self.repository_name(&role)?;
        let length = snapshot_meta(&self.trusted.snapshot, &role)?.length;
        let bytes_max = length.unwrap_or_else(|| Kind::Targets.bytes_max());
        self.outputs.push_back(Output::Fetch { name, bytes_max });
        self.awaited = Some(Awaited { role, keys, bytes_max });
        Ok(())
    }

    fn check(&self, role: &str, keys: &KeySet, bytes: &[u8]) -> Result<Targets, RefreshError> {
        check_targets(&self.trusted.snapshot, role, keys, bytes, self.trusted.now)
    }

    fn repository_name(&self, role: &str) -> Result<String, RefreshError> {
        let version = snapshot_meta(&self.trusted.snapshot, role)?.version;
        Ok(repository_name(role, version, self.trusted.root.consistent_snapshot))
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
