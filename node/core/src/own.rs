//! A node that updates itself: when it counts as working, and when it may restart.

use firmesh_protocol::report::AttemptState;

/// What a node has heard since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// Whether the coordinator has answered.
    pub coordinator: bool,
    /// Whether the coordinator was asked, and nobody was there.
    pub coordinator_away: bool,
    /// Members of the mesh that are connected: both sides have shown their certificates.
    pub peers: usize,
    /// Whether an attempt on the node itself is under way.
    pub updates_itself: bool,
}

/// Whether a node that was started works, as far as it can tell; if not, what is missing.
///
/// Stores, journal and attempts have been opened before anybody asks. That is not enough to keep a new version: one that reaches
/// nobody could never be updated again. The coordinator's answer shows everything it takes. While the coordinator is away one member of
/// the mesh is enough, for metadata, permits and images come that way too. A node that hears nobody does not count as working, also where the
/// coordinator is away and there is no other node: to go back costs another try, to stay might cost a way to the rack.
pub fn works(heard: Heard) -> Result<(), &'static str> {
    match heard {
        Heard { coordinator: true, .. } => Ok(()),
        Heard {
            coordinator_away: true,
            peers: 1..,
            ..
        } => Ok(()),
        Heard {
            coordinator_away: true, ..
        } => Err("since its start it has reached neither the coordinator nor another node"),
        Heard { .. } => Err("since its start the coordinator has not answered as it should"),
    }
}

/// Whether an attempt on another device stands so that a restart of the node should wait: it may be in the midst of an act, or its device
/// may be fetching its image from the node. One whose device has come up and is watched goes on after a restart as if nothing had been.
#[must_use]
pub fn holds_restart_up(state: Option<AttemptState>) -> bool {
    state != Some(AttemptState::Validating)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_works_that_hears_the_coordinator_or_in_its_absence_a_peer() {
        let heard = |coordinator, coordinator_away, peers| {
            works(Heard {
                coordinator,
                coordinator_away,
                peers,
                updates_itself: true,
            })
        };
        assert!(heard(true, false, 0).is_ok());
        assert!(heard(true, true, 0).is_ok());
        assert!(heard(false, true, 1).is_ok());
        // A coordinator that is there and whose answers cannot be used is what a bad version looks like.
        assert!(heard(false, false, 5).is_err());
        assert!(heard(false, true, 0).is_err());
        assert!(heard(false, false, 0).is_err());
    }

    #[test]
    fn a_restart_waits_for_installs_and_not_for_what_is_watched() {
        for state in [AttemptState::Installing, AttemptState::Staged, AttemptState::Rebooting] {
            assert!(holds_restart_up(Some(state)), "{state}");
        }
        assert!(!holds_restart_up(Some(AttemptState::Validating)));
        assert!(holds_restart_up(None));
    }
}
