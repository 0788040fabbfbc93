//! Whether a host of a cluster may step aside now: a function of what the cluster's controller says.

use crate::step::ActError;

/// A host's place in its cluster, as the controller tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSeen {
    /// The cluster's name.
    pub name: String,
    /// Whether running machines are moved off a host without anybody's help (DRS, fully automated).
    pub moves_machines: bool,
    /// All of its other hosts.
    pub others: Vec<OtherHost>,
}

/// Another host of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherHost {
    /// Its name.
    pub name: String,
    /// Whether the controller reaches it.
    pub connected: bool,
    /// Whether it has stepped aside.
    pub aside: bool,
}

/// What is asked of a cluster before a host of it steps aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterLimits {
    /// Hosts of a cluster that may be aside at once, whoever had them step aside.
    pub at_once: u32,
    /// Other hosts that must be connected and in service.
    pub serving_min: u32,
}

impl ClusterSeen {
    /// Whether too many others are aside for this host to be so as well. Asked before it steps aside and once more after:
    /// of two that begin at the same moment, at most one goes on.
    pub fn has_place(&self, limits: ClusterLimits) -> Result<(), ActError> {
        let aside: Vec<&str> = self.names(|other| other.aside);
        if aside.len() < limits.at_once as usize {
            return Ok(());
        }
        let (cluster, most, names) = (&self.name, limits.at_once, aside.join(", "));
        Err(wait(format!(
            "in cluster {cluster}, {names} are aside, and at most {most} may be at once"
        )))
    }

    /// Whether this host, on which so many machines run, may step aside.
    pub fn may_step_aside(&self, machines_on: usize, limits: ClusterLimits) -> Result<(), ActError> {
        let cluster = &self.name;
        self.has_place(limits)?;
        let serving = self.names(|other| other.connected && !other.aside).len();
        let needed = limits.serving_min as usize;
        if self.others.len() < needed {
            return Err(refuse(format!(
                "cluster {cluster} has {} other hosts, and {needed} have to serve meanwhile (serving_min)",
                self.others.len()
            )));
        }
        if serving < needed {
            return Err(wait(format!(
                "in cluster {cluster}, {serving} other hosts are connected and in service, and {needed} have to be (serving_min)"
            )));
        }
        if machines_on > 0 && !self.moves_machines {
            return Err(refuse(format!(
                "{machines_on} machines run on it, and cluster {cluster} does not move them by itself: DRS is not on and fully automated"
            )));
        }
        Ok(())
    }

    fn names(&self, which: impl Fn(&OtherHost) -> bool) -> Vec<&str> {
        let found = self.others.iter().filter(|other| which(other));
        found.map(|other| other.name.as_str()).collect()
    }
}

/// Whether a host in no cluster may step aside: its machines have nowhere to go.
pub fn may_step_aside_alone(machines_on: usize) -> Result<(), ActError> {
    match machines_on {
        0 => Ok(()),
        on => Err(refuse(format!(
            "{on} machines run on it, and it is in no cluster that could take them"
        ))),
    }
}

fn wait(reason: String) -> ActError {
    ActError { reason, retry: true }
}

fn refuse(reason: String) -> ActError {
    ActError { reason, retry: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ClusterLimits = ClusterLimits {
        at_once: 1,
        serving_min: 1,
    };

    fn cluster(moves_machines: bool, others: &[(bool, bool)]) -> ClusterSeen {
        let other = |(at, (connected, aside)): (usize, &(bool, bool))| OtherHost {
            name: format!("h{at}"),
            connected: *connected,
            aside: *aside,
        };
        ClusterSeen {
            name: "c".to_owned(),
            moves_machines,
            others: others.iter().enumerate().map(other).collect(),
        }
    }

    fn verdict(seen: &ClusterSeen, machines_on: usize, limits: ClusterLimits) -> Result<(), (bool, String)> {
        let verdict = seen.may_step_aside(machines_on, limits);
        verdict.map_err(|error| (error.retry, error.reason))
    }

    #[test]
    fn one_host_of_a_cluster_at_a_time_while_another_serves() {
        assert_eq!(verdict(&cluster(true, &[(true, false)]), 3, LIMITS), Ok(()));
        let (again, why) = verdict(&cluster(true, &[(true, true), (true, false)]), 0, LIMITS).unwrap_err();
        assert!(again && why.contains("h0 are aside, and at most 1"), "{why}");
        let two = ClusterLimits { at_once: 2, ..LIMITS };
        assert_eq!(verdict(&cluster(true, &[(true, true), (true, false)]), 1, two), Ok(()));
        let (again, why) = verdict(&cluster(true, &[(true, true), (false, false)]), 1, two).unwrap_err();
        assert!(again && why.contains("0 other hosts are connected"), "{why}");
    }

    #[test]
    fn what_waiting_cannot_mend_is_refused() {
        let (again, why) = verdict(&cluster(false, &[(true, false)]), 2, LIMITS).unwrap_err();
        assert!(
            !again && why.contains("2 machines run on it") && why.contains("DRS"),
            "{why}"
        );
        assert_eq!(verdict(&cluster(false, &[(true, false)]), 0, LIMITS), Ok(()));
        let (again, why) = verdict(&cluster(true, &[]), 0, LIMITS).unwrap_err();
        assert!(!again && why.contains("serving_min"), "{why}");
        assert!(may_step_aside_alone(0).is_ok());
        assert!(!may_step_aside_alone(1).unwrap_err().retry);
    }
}
