//! A host with two slots: a boot loader that follows the environment, and a system that comes up, or does not.

use firmesh_executors_core::{BootEnv, Slot, SlotContent, boot};
use firmesh_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};

use super::{Catalogue, EventKind, EventLog, Identity, Misbehaviour};

/// What a host is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSettings {
    /// What it is.
    pub identity: Identity,
    /// The images that boot on it.
    pub catalogue: Catalogue,
    /// How long a restart takes, in milliseconds.
    pub boot_ms: u64,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What it is made of.
    pub settings: HostSettings,
    /// How it misbehaves.
    pub misbehaviour: Option<Misbehaviour>,
    /// What it is doing.
    pub state: HostState,
    /// Starts so far.
    pub boots: u64,
    /// What happened.
    pub log: EventLog,
}

/// What a host is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It runs.
    Up {
        /// From this slot.
        slot: Slot,
        /// The image in it.
        sha256: Sha256,
        /// The image's version.
        version: String,
    },
    /// It is starting.
    Starting {
        /// From this slot.
        slot: Slot,
        /// The image in it.
        sha256: Sha256,
        /// When it will be up.
        up_at: u64,
    },
    /// Neither slot starts, or the start never ends.
    Dead,
}

impl Host {
    /// A host that is switched off, to be started with [`reset`](Self::reset).
    #[must_use]
    pub fn new(settings: HostSettings) -> Self {
        Self {
            settings,
            misbehaviour: None,
            state: HostState::Dead,
            boots: 0,
            log: EventLog::default(),
        }
    }

    /// Restarts: the boot loader reads the environment and the slots' digests, and leaves an environment behind.
    pub fn reset(&mut self, now_ms: u64, env: &BootEnv, digests: [Option<Sha256>; 2]) -> BootEnv {
        // Whoever looks at the environment now and then may have missed it.
        self.note_env(now_ms, env);
        self.log.add(
            now_ms,
            EventKind::Reset {
                target: "system".to_owned(),
            },
        );
        self.boots += 1;
        let on_trial = env.trial.is_some();
        let bootable = digests.map(|digest| self.bootable(digest));
        let known = |slot: Slot| bootable[slot as usize];
        let mut outcome = boot(env, |slot| known(slot).is_some());
        let mut takes = self.settings.boot_ms;
        if let Some(slot) = outcome.slot.filter(|&slot| self.hangs(on_trial, known(slot))) {
            self.log.add(now_ms, EventKind::BootFailed { slot });
            // The watchdog restarts it; the environment no longer has a trial.
            outcome = boot(&outcome.env, |other| other != slot && known(other).is_some());
            takes *= 2;
        }
        if let Some(Misbehaviour::SlowBoot { ms }) = self.misbehaviour {
            takes += ms;
        }
        let dies = on_trial && self.misbehaviour == Some(Misbehaviour::NeverBack);
        self.state = match outcome.slot.and_then(|slot| Some((slot, known(slot)?))) {
            Some((slot, sha256)) if !dies => HostState::Starting {
                slot,
                sha256,
                up_at: now_ms + takes,
            },
            _ => HostState::Dead,
        };
        if self.state == HostState::Dead {
            self.log.add(now_ms, EventKind::Died);
        }
        outcome.env
    }

    /// Lets time pass. Whether the host came up just now.
    pub fn advance(&mut self, now_ms: u64) -> bool {
        match self.state {
            HostState::Starting { slot, sha256, up_at } if now_ms >= up_at => {
                let version = self
                    .settings
                    .catalogue
                    .get(&sha256)
                    .map_or_else(String::new, |f| f.version.clone());
                self.log.add(
                    now_ms,
                    EventKind::Booted {
                        version: version.clone(),
                        slot: Some(slot),
                    },
                );
                self.state = HostState::Up { slot, sha256, version };
                true
            }
            _ => false,
        }
    }

    /// Notes that somebody has begun to write a slot. Whether that was news.
    pub fn note_env(&mut self, now_ms: u64, env: &BootEnv) -> bool {
        let writing = [&env.a, &env.b].contains(&&SlotContent::Writing);
        let news = (writing || env.trial.is_some()) && !self.log.in_flight();
        if news {
            self.log.add(now_ms, EventKind::UpdateBegun);
        }
        news
    }

    fn bootable(&self, digest: Option<Sha256>) -> Option<Sha256> {
        let model = &self.settings.identity.model;
        digest.filter(|digest| {
            self.settings
                .catalogue
                .get(digest)
                .is_some_and(|firmware| firmware.model == *model)
        })
    }

    fn hangs(&self, on_trial: bool, image: Option<Sha256>) -> bool {
        match self.misbehaviour {
            Some(Misbehaviour::FailUpdate) => on_trial,
            Some(Misbehaviour::FailBoot { sha256 }) => image == Some(sha256),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::ids::Component;

    use super::*;
    use crate::device::Firmware;

    #[test]
    fn a_trial_runs_once_and_is_forgotten_without_confirmation() {
        let mut host = host(None);
        let env = host.reset(0, &env(Some(Slot::B)), [old(), new()]);
        assert!(!host.advance(999) && host.advance(1_000));
        assert_eq!(version(&host), "2");
        host.reset(2_000, &env, [old(), new()]);
        host.advance(3_000);
        assert_eq!(version(&host), "1");
    }

    #[test]
    fn a_half_written_slot_or_a_trial_that_hangs_leaves_the_old_image_running() {
        for (misbehaviour, digests) in [
            (None, [old(), Some(Sha256::of(b"torn"))]),
            (None, [old(), None]),
            (Some(Misbehaviour::FailUpdate), [old(), new()]),
            (
                Some(Misbehaviour::FailBoot {
                    sha256: Sha256::of(b"new"),
                }),
                [old(), new()],
            ),
        ] {
            let mut host = host(misbehaviour);
            host.reset(0, &env(Some(Slot::B)), digests);
            host.advance(2_000);
            assert_eq!(version(&host), "1", "{misbehaviour:?}");
        }
    }

    #[test]
    fn a_host_that_never_comes_back_stays_in_flight() {
        let mut host = host(Some(Misbehaviour::NeverBack));
        let env = env(Some(Slot::B));
        assert!(host.note_env(0, &env) && !host.note_env(1, &env));
        host.reset(2, &env, [old(), new()]);
        assert!(!host.advance(1 << 40) && host.log.in_flight());
        assert_eq!(host.state, HostState::Dead);
    }

    fn old() -> Option<Sha256> {
        Some(Sha256::of(b"old"))
    }

    fn new() -> Option<Sha256> {
        Some(Sha256::of(b"new"))
    }

    fn version(host: &Host) -> &str {
        match &host.state {
            HostState::Up { version, .. } => version,
            other => panic!("the host is {other:?}"),
        }
    }

    fn env(trial: Option<Slot>) -> BootEnv {
        BootEnv {
            saved: Slot::A,
            trial,
            a: SlotContent::Empty,
            b: SlotContent::Empty,
        }
    }

    fn host(misbehaviour: Option<Misbehaviour>) -> Host {
        let firmware = |version: &str| Firmware {
            version: version.to_owned(),
            model: "H1".to_owned(),
        };
        let settings = HostSettings {
            identity: Identity {
                vendor: "Acme".to_owned(),
                model: "H1".to_owned(),
                component: Component::new("host").unwrap(),
            },
            catalogue: [(Sha256::of(b"old"), firmware("1")), (Sha256::of(b"new"), firmware("2"))].into(),
            boot_ms: 1_000,
        };
        Host {
            misbehaviour,
            ..Host::new(settings)
        }
    }
}
