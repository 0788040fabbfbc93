//! What a store gives up when it needs room: unpinned artifacts, the one whose need lies longest back first.
//!
//! Invariants: a pinned artifact is never chosen; what is chosen is enough, and no part of it could have stayed; where even
//! giving up everything unpinned is not enough for a newcomer, nothing is given up for it.

use firmesh_protocol::{ids::ArtifactId, time::WallTime};

/// The most artifacts a store keeps: peers and the coordinator take word of few more from one node.
pub const ARTIFACTS_MAX: usize = 200;

/// One artifact in the store, whole or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Bytes it takes on the disk once it is whole, records included.
    pub bytes_whole: u64,
    /// Bytes it takes now.
    pub bytes_now: u64,
    /// When it was needed last.
    pub last_needed: WallTime,
    /// Whether it must stay.
    pub pinned: bool,
}

/// An artifact that is to be begun, or gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes it takes on the disk once it is whole, records included.
    pub bytes_whole: u64,
    /// Bytes it takes now.
    pub bytes_now: u64,
}

/// How much may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The most bytes of all artifacts together, once they are whole.
    pub quota_bytes: Option<u64>,
    /// Bytes of the disk that stay free.
    pub reserve_bytes: u64,
    /// Bytes of the disk that are free.
    pub free_bytes: u64,
}

/// A bound that cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The quota.
    #[error(
        "{needed} bytes do not fit into store.quota_bytes = {quota} beside {pinned} bytes that are pinned; raise it, take \
         pins out of store.pin, or end campaigns"
    )]
    Quota {
        /// Bytes that were wanted.
        needed: u64,
        /// The quota.
        quota: u64,
        /// Bytes that must stay.
        pinned: u64,
    },
    /// The disk.
    #[error(
        "{needed} bytes do not fit on the disk beside the {reserve} that store.reserve_bytes keeps free; make room on it, or \
         give the store a larger one"
    )]
    Disk {
        /// Bytes that were wanted.
        needed: u64,
        /// Bytes that stay free.
        reserve: u64,
    },
    /// The number of artifacts.
    #[error(
        "{ARTIFACTS_MAX} artifacts are pinned, as many as a store keeps; take pins out of store.pin, or end campaigns"
    )]
    Artifacts,
}

/// Which artifacts to give up so that `wanted`, or with `None` what is there, keeps within `bounds`. `kept` is everything but
/// `wanted`.
pub fn give_up(kept: &[Kept], bounds: Bounds, wanted: Option<Wanted>) -> Result<Vec<ArtifactId>, Full> {
    let mut order: Vec<_> = kept.iter().filter(|kept| !kept.pinned).collect();
    order.sort_by_key(|kept| (kept.last_needed, kept.artifact));
    let mut sums = Sums::of(kept, wanted);
    let mut chosen = Vec::new();
    let mut candidates = order.into_iter();
    while let Err(full) = sums.check(bounds, wanted) {
        let Some(next) = candidates.next() else {
            return if wanted.is_some() { Err(full) } else { Ok(ids(&chosen)) };
        };
        sums.leave(next);
        chosen.push(next);
    }
    // The oldest may have been too small to matter: what can stay beside the others stays, latest need first.
    for at in (0..chosen.len()).rev() {
        sums.stay(chosen[at]);
        match sums.check(bounds, wanted) {
            Ok(()) => {
                chosen.remove(at);
            }
            Err(_) => sums.leave(chosen[at]),
        }
    }
    Ok(ids(&chosen))
}

fn ids(chosen: &[&Kept]) -> Vec<ArtifactId> {
    chosen.iter().map(|kept| kept.artifact).collect()
}

/// What is used while some stay and some leave.
#[derive(Debug, Clone, Copy)]
struct Sums {
    artifacts: usize,
    whole: u128,
    now: u128,
    /// Bytes on the disk before anything left.
    now_before: u128,
    pinned: u64,
}

impl Sums {
    fn of(kept: &[Kept], wanted: Option<Wanted>) -> Self {
        let wanted_now = wanted.map_or(0, |wanted| u128::from(wanted.bytes_now));
        let mut sums = Self {
            artifacts: usize::from(wanted.is_some()),
            whole: wanted.map_or(0, |wanted| u128::from(wanted.bytes_whole.max(wanted.bytes_now))),
            now: wanted_now,
            now_before: wanted_now,
            pinned: 0,
        };
        for one in kept {
            sums.stay(one);
            sums.now_before += u128::from(one.bytes_now);
            if one.pinned {
                sums.pinned = sums.pinned.saturating_add(one.bytes_whole);
            }
        }
        sums
    }

    fn stay(&mut self, kept: &Kept) {
        self.artifacts += 1;
        self.whole += u128::from(kept.bytes_whole.max(kept.bytes_now));
        self.now += u128::from(kept.bytes_now);
    }

    fn leave(&mut self, kept: &Kept) {
        self.artifacts -= 1;
        self.whole -= u128::from(kept.bytes_whole.max(kept.bytes_now));
        self.now -= u128::from(kept.bytes_now);
    }

    fn check(&self, bounds: Bounds, wanted: Option<Wanted>) -> Result<(), Full> {
        let needed = wanted.map_or(0, |wanted| wanted.bytes_whole);
        if let Some(quota) = bounds.quota_bytes
            && self.whole > u128::from(quota)
        {
            let pinned = self.pinned;
            return Err(Full::Quota { needed, quota, pinned });
        }
        // What leaves becomes free; what stays grows until it is whole.
        let free = u128::from(bounds.free_bytes) + (self.now_before - self.now);
        let to_come = self.whole - self.now;
        if free < to_come + u128::from(bounds.reserve_bytes) {
            let reserve = bounds.reserve_bytes;
            return Err(Full::Disk { needed, reserve });
        }
        if self.artifacts > ARTIFACTS_MAX {
            return Err(Full::Artifacts);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(name: u8, bytes: u64, needed: i64, pinned: bool) -> Kept {
        Kept {
            artifact: ArtifactId::of(&[name]),
            bytes_whole: bytes,
            bytes_now: bytes,
            last_needed: WallTime::from_unix_seconds(needed),
            pinned,
        }
    }

    fn quota(quota: u64) -> Bounds {
        Bounds {
            quota_bytes: Some(quota),
            reserve_bytes: 0,
            free_bytes: 1 << 40,
        }
    }

    fn wanted(bytes: u64) -> Option<Wanted> {
        Some(Wanted {
            bytes_whole: bytes,
            bytes_now: 0,
        })
    }

    #[test]
    fn the_oldest_need_goes_first_and_what_is_pinned_stays() {
        let store = [kept(1, 40, 300, false), kept(2, 40, 100, true), kept(3, 40, 200, false)];
        assert_eq!(give_up(&store, quota(200), wanted(40)), Ok(vec![]));
        assert_eq!(give_up(&store, quota(120), wanted(40)), Ok(vec![store[2].artifact]));
        assert_eq!(
            give_up(&store, quota(80), wanted(40)),
            Ok(vec![store[2].artifact, store[0].artifact])
        );
        let full = give_up(&store, quota(79), wanted(40)).unwrap_err();
        assert!(
            matches!(
                full,
                Full::Quota {
                    needed: 40,
                    quota: 79,
                    pinned: 40
                }
            ),
            "{full:?}"
        );
        // The quota was lowered below what is pinned: the rest goes all the same.
        assert_eq!(
            give_up(&store, quota(10), None),
            Ok(vec![store[2].artifact, store[0].artifact])
        );
    }

    #[test]
    fn a_small_old_one_stays_if_a_larger_one_has_to_go_anyway() {
        let store = [kept(1, 1, 100, false), kept(2, 100, 200, false)];
        assert_eq!(give_up(&store, quota(101), wanted(90)), Ok(vec![store[1].artifact]));
    }

    #[test]
    fn a_disk_that_others_fill_is_given_back_to_the_reserve() {
        let store = [kept(1, 40, 100, false), kept(2, 40, 200, false)];
        let bounds = |free_bytes| Bounds {
            quota_bytes: None,
            reserve_bytes: 50,
            free_bytes,
        };
        assert_eq!(give_up(&store, bounds(50), None), Ok(vec![]));
        assert_eq!(give_up(&store, bounds(30), None), Ok(vec![store[0].artifact]));
        assert_eq!(give_up(&store, bounds(50), wanted(41)).map(|gone| gone.len()), Ok(2));
        assert_eq!(
            give_up(&store, bounds(50), wanted(81)),
            Err(Full::Disk {
                needed: 81,
                reserve: 50
            })
        );
    }

    prop_compose! {
        fn some_kept()(whole in 0_u64..100, share in 0_u64..=100, needed in 0_i64..6, pinned in any::<bool>()) -> Kept {
            Kept {
                artifact: ArtifactId::of(b""),
                bytes_whole: whole,
                bytes_now: whole * share / 100,
                last_needed: WallTime::from_unix_seconds(needed),
                pinned,
            }
        }
    }

    proptest! {
        #[test]
        fn never_a_pinned_one_never_too_little_never_more_than_needed(
            store in prop::collection::vec(some_kept(), 0..12),
            quota in prop::option::of(0_u64..600),
            reserve_bytes in 0_u64..100,
            free_bytes in 0_u64..400,
            want in prop::option::of((0_u64..200, 0_u64..=100)),
        ) {
            let store: Vec<_> = store
                .into_iter()
                .enumerate()
                .map(|(at, kept)| Kept { artifact: ArtifactId::of(&[at as u8]), ..kept })
                .collect();
            let bounds = Bounds { quota_bytes: quota, reserve_bytes, free_bytes };
            let want = want.map(|(bytes_whole, share)| Wanted { bytes_whole, bytes_now: bytes_whole * share / 100 });
            // Told again in the plainest way: what the disk looks like once some have gone and the rest is whole.
            let fits = |gone: &[ArtifactId]| {
                let stay: Vec<_> = store.iter().filter(|kept| !gone.contains(&kept.artifact)).collect();
                let whole: u64 = stay.iter().map(|kept| kept.bytes_whole).sum::<u64>() + want.map_or(0, |w| w.bytes_whole);
                let to_come: u64 = stay.iter().map(|kept| kept.bytes_whole - kept.bytes_now).sum::<u64>()
                    + want.map_or(0, |w| w.bytes_whole - w.bytes_now);
                let freed: u64 = store.iter().filter(|kept| gone.contains(&kept.artifact)).map(|kept| kept.bytes_now).sum();
                quota.is_none_or(|quota| whole <= quota) && free_bytes + freed >= to_come + reserve_bytes
            };
            let unpinned: Vec<_> = store.iter().filter(|kept| !kept.pinned).map(|kept| kept.artifact).collect();
            match give_up(&store, bounds, want) {
                Ok(gone) => {
                    prop_assert!(gone.iter().all(|id| unpinned.contains(id)), "a pinned one was chosen");
                    if fits(&gone) {
                        for left_out in &gone {
                            let fewer: Vec<_> = gone.iter().filter(|id| *id != left_out).copied().collect();
                            prop_assert!(!fits(&fewer), "{left_out} could have stayed");
                        }
                    } else {
                        prop_assert!(want.is_none() && gone.len() == unpinned.len(), "too little was chosen");
                    }
                }
                Err(_) => prop_assert!(want.is_some() && !fits(&unpinned), "there was room"),
            }
        }

        #[test]
        fn of_equal_ones_exactly_those_go_whose_need_lies_longest_back(
            needs in prop::collection::vec((0_i64..6, any::<bool>()), 0..12),
            quota_of in 0_u64..14,
        ) {
            let store: Vec<_> =
                needs.iter().enumerate().map(|(at, (needed, pinned))| kept(at as u8, 10, *needed, *pinned)).collect();
            let mut order: Vec<_> = store.iter().filter(|kept| !kept.pinned).collect();
            order.sort_by_key(|kept| (kept.last_needed, kept.artifact));
            if let Ok(gone) = give_up(&store, quota(quota_of * 10), wanted(10)) {
                let oldest: Vec<_> = order.iter().take(gone.len()).map(|kept| kept.artifact).collect();
                prop_assert_eq!(gone, oldest);
            }
        }
    }
}
