//! What is known about a cluster's instances at one moment: plain values that `observe` fills and `decide`
//! reads. Whatever is not known says so and why; nothing here turns it into a zero.

use serde::{Deserialize, Serialize};

use super::capacity::Load;

/// Milliseconds since the Unix epoch (in a simulation: since its start).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment `seconds` later; saturates.
    #[must_use]
    pub const fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to this moment; 0 if it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<jiff::Timestamp> for Moment {
    /// Times before the epoch, which no running clock shows, become the epoch.
    fn from(timestamp: jiff::Timestamp) -> Self {
        Self(u64::try_from(timestamp.as_millisecond()).unwrap_or(0))
    }
}

/// A value from outside, with how it came to be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Observed<T> {
    /// Read in this look.
    Known {
        /// What was read.
        value: T,
    },
    /// Not read in this look; the last good one is still young enough to hint at the size of the load.
    #[serde(rename_all = "camelCase")]
    Stale {
        /// What was read last.
        value: T,
        /// Its age in milliseconds.
        age_ms: u64,
        /// Why there is nothing newer.
        reason: String,
    },
    /// Nothing usable.
    Missing {
        /// Why.
        reason: String,
    },
}

impl<T> Observed<T> {
    /// The value if it was read in this look.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known { value } => Some(value),
            Self::Stale { .. } | Self::Missing { .. } => None,
        }
    }

    /// The newest value there is, however old.
    pub const fn latest(&self) -> Option<&T> {
        match self {
            Self::Known { value } | Self::Stale { value, .. } => Some(value),
            Self::Missing { .. } => None,
        }
    }

    /// Why the value is not known, if it is not.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Known { .. } => None,
            Self::Stale { reason, .. } | Self::Missing { reason } => Some(reason),
        }
    }
}

/// One instance's account of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// Open streams.
    pub streams: u64,
    /// Tokens issued a second since the look before; absent until an instance has been seen twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuances_per_second: Option<u64>,
    /// It drains: no new streams, the open ones close over the drain window.
    pub draining: bool,
}

/// The record on a pod that it is being drained to be removed. It lives on the pod, so that whichever
/// controller leads next finishes or takes back what another began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// When it was chosen; with the pod's name this identifies the removal.
    pub since: Moment,
    /// When it is removed even if streams are left.
    pub deadline: Moment,
}

/// One instance as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own; every combination occurs")]
pub struct Instance {
    /// Name of the pod.
    pub name: String,
    /// When the pod was created.
    pub created: Moment,
    /// Zone of its node, where nodes have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// It has never run: Kubernetes still looks for a node, or starts its container.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// It is in the Service.
    pub ready: bool,
    /// It has been told to go.
    pub terminating: bool,
    /// When its time to go is up, where it has been told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_by: Option<Moment>,
    /// Its process has answered before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answered: bool,
    /// It is being drained to be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// Its own account.
    pub load: Observed<Reading>,
}

/// Where an instance stands in its life. Capacity on its way counts, capacity on its way out never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Exists, does not serve (yet, or no longer).
    Starting,
    /// Serves.
    Ready,
    /// Being drained to be removed; can still be taken back.
    Draining,
    /// Told to go.
    Terminating,
}

#[cfg(test)]
impl Instance {
    /// One that serves and reports.
    pub fn serving(name: impl Into<String>, streams: u64, issuances_per_second: u64) -> Self {
        let reading = Reading { streams, issuances_per_second: Some(issuances_per_second), draining: false };
        Self {
            name: name.into(),
            created: Moment(0),
            zone: None,
            pending: false,
            ready: true,
            terminating: false,
            gone_by: None,
            answered: true,
            mark: None,
            load: Observed::Known { value: reading },
        }
    }
}

impl Instance {
    /// Where it stands.
    #[must_use]
    pub const fn lifecycle(&self) -> Lifecycle {
        if self.terminating {
            Lifecycle::Terminating
        } else if self.mark.is_some() {
            Lifecycle::Draining
        } else if self.ready {
            Lifecycle::Ready
        } else {
            Lifecycle::Starting
        }
    }

    /// It serves, or did so and has fallen silent: what it holds then is not known, however long that lasts.
    #[must_use]
    pub const fn may_hold_streams(&self) -> bool {
        match (self.lifecycle(), &self.load) {
            (Lifecycle::Ready | Lifecycle::Draining, _) | (Lifecycle::Starting, Observed::Stale { .. }) => {
                true
            }
            (Lifecycle::Starting, Observed::Missing { .. }) => self.answered,
            (Lifecycle::Starting, Observed::Known { .. }) | (Lifecycle::Terminating, _) => false,
        }
    }

    /// Its streams, as far as known.
    #[must_use]
    pub fn streams(&self) -> u64 {
        self.load.latest().map_or(0, |reading| reading.streams)
    }
}

/// One removal that `replicas` was lowered for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// Name of the pod that is to go.
    pub name: String,
    /// When it was chosen.
    pub since: Moment,
}

/// Everything that a decision looks at, apart from policy, history and clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observation {
    /// `spec.replicas` of the Deployment, as it was decided last.
    pub replicas: u32,
    /// The removals that the present `replicas` were lowered for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removing: Vec<Removal>,
    /// Pods of the Deployment are being replaced.
    pub rollout: bool,
    /// Its pods, in the order of their names.
    pub instances: Vec<Instance>,
}

impl Observation {
    /// The instances that stand at `lifecycle`.
    pub fn at(&self, lifecycle: Lifecycle) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(move |instance| instance.lifecycle() == lifecycle)
    }

    /// How many stand at `lifecycle`.
    #[must_use]
    pub fn count(&self, lifecycle: Lifecycle) -> u32 {
        u32::try_from(self.at(lifecycle).count()).unwrap_or(u32::MAX)
    }

    /// The load as far as it is known. Clients of draining and terminating instances count: they come back
    /// to the others.
    #[must_use]
    pub fn load(&self) -> Load {
        let mut sum = Load::default();
        for reading in self.instances.iter().filter_map(|instance| instance.load.latest()) {
            sum.clients = sum.clients.saturating_add(reading.streams);
            sum.issuances_per_second =
                sum.issuances_per_second.saturating_add(reading.issuances_per_second.unwrap_or(0));
        }
        sum
    }

    /// How many instances gave an account of themselves in this look.
    #[must_use]
    pub fn reporting(&self) -> u32 {
        let known = self.instances.iter().filter(|instance| instance.load.known().is_some());
        u32::try_from(known.count()).unwrap_or(u32::MAX)
    }

    /// Instances that serve or are being drained and whose load is not fully known, with the reason.
    /// Those that do not serve and have never answered carry nothing yet and terminating ones are no longer asked.
    pub fn unknown(&self) -> impl Iterator<Item = (&Instance, &str)> {
        self.instances.iter().filter(|instance| instance.may_hold_streams()).filter_map(|instance| {
            match instance.load.known() {
                Some(Reading { issuances_per_second: Some(_), .. }) => None,
                Some(_) => Some((instance, "its issuance rate needs a second look")),
                None => instance.load.reason().map(|reason| (instance, reason)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_that_fell_silent_stays_unknown_and_one_that_never_spoke_does_not() {
        let silent = Observed::Missing { reason: "no answer within 1 s".into() };
        let instances = vec![Instance { ready: false, load: silent, ..Instance::serving("a", 0, 0) }];
        let mut world = Observation { instances, ..Observation::default() };
        assert_eq!(world.unknown().count(), 1, "it is not ready, but may hold its streams");
        world.instances[0].answered = false;
        assert_eq!(world.unknown().count(), 0, "it has yet to start");
        world.instances[0] = Instance { ready: false, ..Instance::serving("a", 0, 0) };
        assert_eq!(world.unknown().count(), 0, "it answers");
    }
}
