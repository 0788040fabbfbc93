//! A/B slots as the boot environment describes them, and the boot loader's rule.
//!
//! Invariants of the rule: a trial is started at most once; without confirmation the next boot starts the saved slot.

use std::{fmt, str::FromStr};

use firmesh_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};

use crate::{
    env_block::{EnvBlock, EnvBlockError},
    uboot_env::UbootEnvError,
};

/// One of two places for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// Slot A.
    A,
    /// Slot B.
    B,
}

impl Slot {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The slot's name: `a` or `b`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Slot {
    type Err = BootEnvError;
    fn from_str(text: &str) -> Result<Self, BootEnvError> {
        match text {
            "a" => Ok(Self::A),
            "b" => Ok(Self::B),
            _ => Err(BootEnvError::Value {
                name: "slot",
                value: text.chars().take(80).collect(),
            }),
        }
    }
}

/// What the environment says lies in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotContent {
    /// Nothing.
    #[default]
    Empty,
    /// A write began and did not end.
    Writing,
    /// A complete image, read back after it was written.
    Ready {
        /// Its version.
        version: String,
        /// Its digest.
        sha256: Sha256,
        /// Its length in bytes.
        length: u64,
    },
}

/// The variables of the boot environment that concern slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEnv {
    /// `saved_slot`: what a plain boot starts.
    pub saved: Slot,
    /// `try_slot`: what the next boot starts once.
    pub trial: Option<Slot>,
    /// `slot_a_*`.
    pub a: SlotContent,
    /// `slot_b_*`.
    pub b: SlotContent,
}

/// Why a boot environment makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootEnvError {
    /// Not a block, or too full.
    #[error("the boot environment block is bad")]
    Block(#[from] EnvBlockError),
    /// Not a U-Boot environment, or too full.
    #[error("the U-Boot environment is bad")]
    Uboot(#[from] UbootEnvError),
    /// A variable is missing.
    #[error("the boot environment has no {0}")]
    Missing(String),
    /// A variable has a value it cannot have.
    #[error("the boot environment has {value:?} for {name}")]
    Value {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
    },
}

/// What keeps the variables. Each boot loader has its own way to start something once.
pub trait BootVariables {
    /// A variable; an empty one counts as absent.
    fn get(&self, name: &str) -> Option<&str>;
    /// Sets a variable, or removes it.
    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), BootEnvError>;
    /// What the next boot starts once.
    fn trial(&self) -> Result<Option<Slot>, BootEnvError>;
    /// Has the next boot start something once, or nothing but what is saved.
    fn set_trial(&mut self, trial: Option<Slot>) -> Result<(), BootEnvError>;
}

/// GRUB's script takes `try_slot` and clears it.
impl BootVariables for EnvBlock {
    fn get(&self, name: &str) -> Option<&str> {
        self.get(name)
    }

    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), BootEnvError> {
        Ok(self.set(name, value)?)
    }

    fn trial(&self) -> Result<Option<Slot>, BootEnvError> {
        self.get("try_slot").map(str::parse).transpose()
    }

    fn set_trial(&mut self, trial: Option<Slot>) -> Result<(), BootEnvError> {
        Ok(self.set("try_slot", trial.map(Slot::as_str))?)
    }
}

impl BootEnv {
    /// The environment of a device that has only ever run `saved`.
    #[must_use]
    pub fn new(saved: Slot, content: SlotContent) -> Self {
        let mut env = Self {
            saved,
            trial: None,
            a: SlotContent::Empty,
            b: SlotContent::Empty,
        };
        *env.slot_mut(saved) = content;
        env
    }

    /// Reads the slots' variables.
    pub fn from_block(block: &impl BootVariables) -> Result<Self, BootEnvError> {
        let saved = block
            .get("saved_slot")
            .ok_or_else(|| BootEnvError::Missing("saved_slot".to_owned()))?;
        let content = |slot: Slot| slot_content(block, slot);
        Ok(Self {
            saved: saved.parse()?,
            trial: block.trial()?,
            a: content(Slot::A)?,
            b: content(Slot::B)?,
        })
    }

    /// Writes the slots' variables and leaves all others alone.
    pub fn write_to(&self, block: &mut impl BootVariables) -> Result<(), BootEnvError> {
        block.set("saved_slot", Some(self.saved.as_str()))?;
        block.set_trial(self.trial)?;
        for slot in [Slot::A, Slot::B] {
            let (state, version, sha256, length) = match self.slot(slot) {
                SlotContent::Empty => ("empty", None, None, None),
                SlotContent::Writing => ("writing", None, None, None),
                SlotContent::Ready {
                    version,
                    sha256,
                    length,
                } => (
                    "ready",
                    Some(version.clone()),
                    Some(sha256.to_string()),
                    Some(length.to_string()),
                ),
            };
            block.set(&format!("slot_{slot}_state"), Some(state))?;
            block.set(&format!("slot_{slot}_version"), version.as_deref())?;
            block.set(&format!("slot_{slot}_sha256"), sha256.as_deref())?;
            block.set(&format!("slot_{slot}_length"), length.as_deref())?;
        }
        Ok(())
    }

    /// What a slot holds.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> &SlotContent {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }

    /// What a slot holds, to be changed.
    pub fn slot_mut(&mut self, slot: Slot) -> &mut SlotContent {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }
}

fn slot_content(block: &impl BootVariables, slot: Slot) -> Result<SlotContent, BootEnvError> {
    let variable = |what: &str| {
        let name = format!("slot_{slot}_{what}");
        block.get(&name).map(str::to_owned).ok_or(BootEnvError::Missing(name))
    };
    let bad = |name, value: String| BootEnvError::Value { name, value };
    match block.get(&format!("slot_{slot}_state")) {
        None | Some("empty") => Ok(SlotContent::Empty),
        Some("writing") => Ok(SlotContent::Writing),
        Some("ready") => {
            let (sha256, length) = (variable("sha256")?, variable("length")?);
            Ok(SlotContent::Ready {
                version: variable("version")?,
                sha256: sha256.parse().map_err(|_not_a_digest| bad("a slot's sha256", sha256))?,
                length: length.parse().map_err(|_not_a_number| bad("a slot's length", length))?,
            })
        }
        Some(other) => Err(bad("a slot's state", other.to_owned())),
    }
}

/// What the boot loader does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The slot it starts; `None` if neither can be.
    pub slot: Option<Slot>,
    /// The environment it leaves behind, written before anything is started.
    pub env: BootEnv,
}

/// The boot loader's rule: a trial once, then the saved slot, and the other one only if that is broken.
pub fn boot(env: &BootEnv, bootable: impl Fn(Slot) -> bool) -> Boot {
    let order = [env.trial, Some(env.saved), Some(env.saved.other())];
    let slot = order.into_iter().flatten().find(|&slot| bootable(slot));
    Boot {
        slot,
        env: BootEnv {
            trial: None,
            ..env.clone()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ready(version: &str) -> SlotContent {
        SlotContent::Ready {
            version: version.to_owned(),
            sha256: Sha256::of(version.as_bytes()),
            length: 7,
        }
    }

    #[test]
    fn an_unconfirmed_trial_lasts_one_boot() {
        let env = BootEnv {
            saved: Slot::A,
            trial: Some(Slot::B),
            a: ready("1"),
            b: ready("2"),
        };
        let first = boot(&env, |_| true);
        assert_eq!(first.slot, Some(Slot::B));
        assert_eq!(boot(&first.env, |_| true).slot, Some(Slot::A));
    }

    #[test]
    fn a_broken_slot_is_never_started() {
        let env = BootEnv {
            saved: Slot::A,
            trial: Some(Slot::B),
            a: ready("1"),
            b: SlotContent::Writing,
        };
        assert_eq!(boot(&env, |slot| slot == Slot::A).slot, Some(Slot::A));
        assert_eq!(boot(&env, |slot| slot == Slot::B).slot, Some(Slot::B));
        assert_eq!(boot(&env, |_| false).slot, None);
    }

    #[test]
    fn foreign_variables_survive_and_nonsense_is_refused() {
        let mut block = EnvBlock::default();
        block.set("timeout", Some("5")).unwrap();
        assert_eq!(
            BootEnv::from_block(&block),
            Err(BootEnvError::Missing("saved_slot".to_owned()))
        );
        BootEnv::new(Slot::A, ready("1")).write_to(&mut block).unwrap();
        assert_eq!(block.get("timeout"), Some("5"));
        for (name, value) in [
            ("saved_slot", "c"),
            ("slot_a_sha256", "xyz"),
            ("slot_a_length", "-1"),
            ("slot_b_state", "?"),
        ] {
            let mut bad = block.clone();
            bad.set(name, Some(value)).unwrap();
            assert!(BootEnv::from_block(&bad).is_err(), "{name}={value} was accepted");
        }
    }

    fn content() -> impl Strategy<Value = SlotContent> {
        prop_oneof![
            Just(SlotContent::Empty),
            Just(SlotContent::Writing),
            ("[!-~]{1,40}", any::<[u8; 32]>(), any::<u64>()).prop_map(|(version, digest, length)| SlotContent::Ready {
                version,
                sha256: digest.into(),
                length
            }),
        ]
    }

    proptest! {
        #[test]
        fn an_environment_survives_its_own_block(
            a in content(), b in content(), saved_a: bool, trial in proptest::option::of(any::<bool>())
        ) {
            let slot = |a: bool| if a { Slot::A } else { Slot::B };
            let env = BootEnv { saved: slot(saved_a), trial: trial.map(slot), a, b };
            let mut block = EnvBlock::default();
            env.write_to(&mut block).unwrap();
            let read = EnvBlock::from_bytes(&block.to_bytes().unwrap()).unwrap();
            prop_assert_eq!(BootEnv::from_block(&read).unwrap(), env);
        }
    }
}
