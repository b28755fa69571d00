//! A decision in numbers, for gauges. Pure.

use super::{capacity::Load, decision::BlockerKind, journal::Entry, observation::Lifecycle};

/// What the gauges of a cluster show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Observed load.
    pub load: Load,
    /// What the serving instances carry.
    pub capacity: Load,
    /// How full they are.
    pub utilization_percent: u64,
    /// Instances that the load asks for, without bounds.
    pub needed: u32,
    /// Instances that the cluster is on its way to.
    pub desired: u32,
    /// The load needs more instances than the spec allows.
    pub limited: bool,
    /// Instances that may hold streams and did not tell in this look.
    pub silent: u32,
    /// Instances by where they stand.
    pub instances: [(&'static str, u32); 4],
    /// What keeps instances from being removed.
    pub blocked_by: Vec<BlockerKind>,
}

impl Figures {
    /// The numbers of a decision.
    #[must_use]
    pub fn of(Entry { policy, observed, decision, .. }: &Entry) -> Self {
        let load = observed.load();
        let ready = observed.count(Lifecycle::Ready);
        let silent = observed
            .instances
            .iter()
            .filter(|instance| instance.may_hold_streams() && instance.load.known().is_none());
        Self {
            load,
            capacity: policy.model.capacity(ready),
            utilization_percent: policy.model.utilization_percent(load, ready),
            needed: decision.needed,
            desired: decision.desired,
            limited: decision.limited(),
            silent: u32::try_from(silent.count()).unwrap_or(u32::MAX),
            instances: [
                ("starting", observed.count(Lifecycle::Starting)),
                ("ready", ready),
                ("draining", observed.count(Lifecycle::Draining)),
                ("terminating", observed.count(Lifecycle::Terminating)),
            ],
            blocked_by: decision.blocked_by.iter().map(|blocker| blocker.kind).collect(),
        }
    }
}
