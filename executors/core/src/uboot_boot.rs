//! A trial as U-Boot's boot counter has it (`CONFIG_BOOTCOUNT_ENV`): while `upgrade_available` is 1, each start counts `bootcount` up
//! and saves it, and one beyond `bootlimit` runs `altbootcmd` instead of `bootcmd`.
//!
//! Invariants: an environment in which nothing would take an unconfirmed trial back is refused; a trial is started at most
//! `bootlimit` times; without confirmation the start after those is the saved slot's.

use crate::{
    boot::{BootEnvError, BootVariables, Slot},
    uboot_env::UbootEnv,
};

/// What U-Boot starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UbootStart {
    /// The slot.
    pub slot: Slot,
    /// Whether it is on trial.
    pub is_trial: bool,
}

impl BootVariables for UbootEnv {
    fn get(&self, name: &str) -> Option<&str> {
        self.get(name)
    }

    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), BootEnvError> {
        Ok(self.set(name, value)?)
    }

    fn trial(&self) -> Result<Option<Slot>, BootEnvError> {
        let counter = Counter::of(self)?;
        Ok(counter.trial.filter(|_| counter.count < counter.limit))
    }

    fn set_trial(&mut self, trial: Option<Slot>) -> Result<(), BootEnvError> {
        // One that is armed keeps its count; one that has been started as often as it may be is over.
        if trial.is_some() && trial == self.trial()? {
            return Ok(());
        }
        self.set("try_slot", trial.map(Slot::as_str))?;
        self.set("upgrade_available", Some(if trial.is_some() { "1" } else { "0" }))?;
        Ok(self.set("bootcount", Some("0"))?)
    }
}

impl UbootEnv {
    /// What U-Boot does at a start, with the two commands that this executor's README has: it counts, and the environment that it
    /// leaves behind is saved before anything is started.
    pub fn start(&mut self) -> Result<UbootStart, BootEnvError> {
        let counter = Counter::of(self)?;
        let saved = self
            .get("saved_slot")
            .ok_or_else(|| BootEnvError::Missing("saved_slot".to_owned()))?;
        let saved = UbootStart {
            slot: saved.parse()?,
            is_trial: false,
        };
        let Some(slot) = counter.trial else { return Ok(saved) };
        let count = counter.count.saturating_add(1);
        if count > counter.limit {
            self.set_trial(None)?;
            return Ok(saved);
        }
        self.set("bootcount", Some(&count.to_string()))?;
        Ok(UbootStart { slot, is_trial: true })
    }
}

/// The counter's variables.
struct Counter {
    /// What is tried, if anything is.
    trial: Option<Slot>,
    /// How often it has been started.
    count: u32,
    limit: u32,
}

impl Counter {
    fn of(env: &UbootEnv) -> Result<Self, BootEnvError> {
        let number = |name: &'static str, text: &str| {
            text.parse::<u32>().map_err(|_no_number| BootEnvError::Value {
                name,
                value: text.chars().take(80).collect(),
            })
        };
        let needed = |name: &str| env.get(name).ok_or_else(|| BootEnvError::Missing(name.to_owned()));
        let limit = number("bootlimit", needed("bootlimit")?)?;
        if limit == 0 {
            let (name, value) = ("bootlimit", "0 (which is: no limit)".to_owned());
            return Err(BootEnvError::Value { name, value });
        }
        needed("altbootcmd")?;
        let trial = match env.get("upgrade_available") {
            None | Some("0") => None,
            Some("1") => Some(needed("try_slot")?.parse()?),
            Some(other) => {
                let (name, value) = ("upgrade_available", other.chars().take(80).collect());
                return Err(BootEnvError::Value { name, value });
            }
        };
        let count = env.get("bootcount").map_or(Ok(0), |text| number("bootcount", text))?;
        Ok(Self { trial, count, limit })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::boot::{BootEnv, SlotContent};

    /// A board that runs slot A.
    fn board(limit: u32) -> UbootEnv {
        let mut env = UbootEnv::empty(1024, true).unwrap();
        env.set("bootlimit", Some(&limit.to_string())).unwrap();
        env.set("altbootcmd", Some("run saved")).unwrap();
        env.set("board", Some("r1")).unwrap();
        BootEnv::new(Slot::A, SlotContent::Empty).write_to(&mut env).unwrap();
        env
    }

    fn change(env: &mut UbootEnv, change: impl FnOnce(&mut BootEnv)) {
        let mut slots = BootEnv::from_block(env).unwrap();
        change(&mut slots);
        slots.write_to(env).unwrap();
        assert_eq!(BootEnv::from_block(env).unwrap(), slots);
    }

    #[test]
    fn a_trial_is_started_as_often_as_the_limit_says_and_then_the_saved_slot() {
        for limit in [1, 3] {
            let mut env = board(limit);
            change(&mut env, |slots| slots.trial = Some(Slot::B));
            for start in 1..=limit {
                let trial = BootEnv::from_block(&env).unwrap().trial;
                assert_eq!(trial, Some(Slot::B), "before start {start} of {limit}");
                let (slot, is_trial) = (Slot::B, true);
                assert_eq!(env.start().unwrap(), UbootStart { slot, is_trial });
            }
            assert_eq!(BootEnv::from_block(&env).unwrap().trial, None);
            assert_eq!(
                env.get("upgrade_available"),
                Some("1"),
                "only U-Boot, or who confirms, ends it"
            );
            for _ in 0..3 {
                let (slot, is_trial) = (Slot::A, false);
                assert_eq!(env.start().unwrap(), UbootStart { slot, is_trial });
                assert_eq!(env.get("upgrade_available"), Some("0"));
            }
            assert_eq!(env.get("board"), Some("r1"));
        }
    }

    #[test]
    fn what_was_confirmed_is_started_ever_after() {
        let mut env = board(1);
        change(&mut env, |slots| slots.trial = Some(Slot::B));
        env.start().unwrap();
        change(&mut env, |slots| (slots.saved, slots.trial) = (Slot::B, None));
        for name in ["upgrade_available", "bootcount"] {
            assert_eq!(env.get(name), Some("0"), "{name}");
        }
        for _ in 0..3 {
            assert_eq!(env.start().unwrap().slot, Slot::B);
        }
    }

    /// Whoever only writes down what lies in a slot must not give a trial its starts back.
    #[test]
    fn a_change_of_something_else_leaves_the_count_alone() {
        let mut env = board(3);
        change(&mut env, |slots| slots.trial = Some(Slot::B));
        env.start().unwrap();
        change(&mut env, |slots| slots.a = SlotContent::Writing);
        assert_eq!(env.get("bootcount"), Some("1"));
    }

    #[test]
    fn an_environment_in_which_nothing_would_fall_back_is_refused_by_name() {
        for (name, value, words) in [
            ("bootlimit", None, "has no bootlimit"),
            ("bootlimit", Some("0"), "no limit"),
            ("bootlimit", Some("many"), "\"many\" for bootlimit"),
            ("altbootcmd", None, "has no altbootcmd"),
            ("upgrade_available", Some("yes"), "\"yes\" for upgrade_available"),
            ("upgrade_available", Some("1"), "has no try_slot"),
            ("bootcount", Some("-1"), "\"-1\" for bootcount"),
            ("saved_slot", None, "has no saved_slot"),
        ] {
            let mut env = board(1);
            env.set(name, value).unwrap();
            let error = BootEnv::from_block(&env).unwrap_err().to_string();
            assert!(error.contains(words), "{name} {value:?}: {error}");
        }
    }

    proptest! {
        /// Starts, trials and confirmations in any order: what runs without having been confirmed has been armed, and is over
        /// after its starts.
        #[test]
        fn nothing_is_started_more_often_than_it_may_be(limit in 1..4_u32, steps in proptest::collection::vec(0..4_u8, 1..40)) {
            let mut env = board(limit);
            let (mut running, mut left) = (Slot::A, None);
            for step in steps {
                let slots = BootEnv::from_block(&env).unwrap();
                match step {
                    0 if running == slots.saved => {
                        change(&mut env, |slots| slots.trial = Some(running.other()));
                        left = left.or(Some(limit));
                    }
                    1 => {
                        change(&mut env, |slots| (slots.saved, slots.trial) = (running, None));
                        left = None;
                    }
                    _ => {
                        let start = env.start().unwrap();
                        running = start.slot;
                        if start.is_trial {
                            let starts = left.as_mut().expect("it was armed");
                            prop_assert!(*starts > 0);
                            *starts -= 1;
                        } else {
                            prop_assert_eq!(start.slot, slots.saved);
                            left = None;
                        }
                    }
                }
            }
        }
    }
}
