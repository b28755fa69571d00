//! A decision: how many instances, why, what stands in the way, and what to do now. Plain values.

use serde::{Deserialize, Serialize};

use super::{
    capacity::Load,
    observation::{Mark, Moment, Removal},
    rebalance::Episode,
};

/// Why the count is what it is: stable names for status, events and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The instances there are, or are on their way, are the right number.
    Steady,
    /// `spec.instances` says so.
    Fixed,
    /// More instances are needed.
    ScaleOut,
    /// A change waits until it has been asked for long enough.
    Stabilizing,
    /// Fewer would do, but something stands in the way.
    ScaleInBlocked,
    /// The chosen instances are being drained.
    Draining,
    /// Drained instances are being removed.
    ScaleIn,
    /// The load came back, or something else changed: drained instances serve again.
    DrainCancelled,
    /// Kubernetes removed another instance than the drained one.
    WrongInstanceRemoved,
    /// The streams are being levelled after a scale-out.
    Rebalancing,
}

impl Reason {
    /// The name as it stands in status and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "Steady",
            Self::Fixed => "Fixed",
            Self::ScaleOut => "ScaleOut",
            Self::Stabilizing => "Stabilizing",
            Self::ScaleInBlocked => "ScaleInBlocked",
            Self::Draining => "Draining",
            Self::ScaleIn => "ScaleIn",
            Self::DrainCancelled => "DrainCancelled",
            Self::WrongInstanceRemoved => "WrongInstanceRemoved",
            Self::Rebalancing => "Rebalancing",
        }
    }
}

/// The steps from load to count, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepKind {
    /// The capacity formula.
    Need,
    /// `minInstances` and `maxInstances`.
    Bounds,
    /// The stabilisation windows.
    Stabilization,
    /// `maxScaleOutStep` and `maxScaleInStep`.
    StepLimit,
    /// How many streams may reconnect a second.
    DrainBudget,
}

/// The count after one step, and what the step did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which step.
    pub step: StepKind,
    /// The count that left it.
    pub instances: u32,
    /// What it saw.
    pub note: String,
}

/// What keeps instances from being removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockerKind {
    /// Instances do not report their load.
    MetricsMissing,
    /// Instances do not serve yet; Kubernetes would remove them first.
    InstancesStarting,
    /// Pods are being replaced.
    RolloutInProgress,
    /// Instances are still on their way out.
    InstancesTerminating,
    /// The remaining instances cannot take reconnecting clients.
    DrainBudget,
}

impl BlockerKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MetricsMissing,
        Self::InstancesStarting,
        Self::RolloutInProgress,
        Self::InstancesTerminating,
        Self::DrainBudget,
    ];

    /// The name as it stands in status and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MetricsMissing => "MetricsMissing",
            Self::InstancesStarting => "InstancesStarting",
            Self::RolloutInProgress => "RolloutInProgress",
            Self::InstancesTerminating => "InstancesTerminating",
            Self::DrainBudget => "DrainBudget",
        }
    }
}

/// One thing in the way of a scale-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Its stable name.
    pub kind: BlockerKind,
    /// The same in words, with the instances concerned.
    pub detail: String,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.detail)
    }
}

/// One thing to do now. Each can be done again without harm, since whoever leads next may have to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "camelCase")]
pub enum Action {
    /// Write the Deployment's `replicas`, and beside it which instances are to go.
    SetReplicas {
        /// The count.
        to: u32,
        /// The drained instances that a lower count is to remove.
        removing: Vec<Removal>,
    },
    /// Write mark and deletion cost on a pod.
    Mark {
        /// The pod.
        name: String,
        /// The mark.
        mark: Mark,
    },
    /// Tell an instance to take no new streams and to close the open ones.
    Drain {
        /// The pod.
        name: String,
    },
    /// Tell an instance to serve again, then take mark and deletion cost off its pod.
    Cancel {
        /// The pod.
        name: String,
    },
    /// Tell an instance to close some streams so that they reconnect elsewhere.
    Shed {
        /// The pod.
        name: String,
        /// How many.
        streams: u64,
    },
}

/// What was decided, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// When.
    pub at: Moment,
    /// The load decided for: the observed one, or the expected one where that is larger.
    pub load: Load,
    /// What the load asks for, without bounds.
    pub needed: u32,
    /// What it asks for within the bounds; this is what the stabilisation windows remember.
    pub wanted: u32,
    /// The count that the cluster is on its way to.
    pub desired: u32,
    /// Why.
    pub reason: Reason,
    /// The same in a person's words.
    pub message: String,
    /// What keeps instances from being removed.
    pub blocked_by: Vec<Blocker>,
    /// Each step from load to count.
    pub steps: Vec<Step>,
    /// The instances that are being drained or removed.
    pub victims: Vec<String>,
    /// What to do now, in this order.
    pub actions: Vec<Action>,
    /// The rebalancing to go on with.
    pub rebalance: Option<Episode>,
    /// Milliseconds until the next look.
    pub next_look_ms: u64,
}

impl Decision {
    /// Whether this decision tells another story than `earlier`: only then it is worth an entry in the
    /// journal and an event.
    #[must_use]
    pub fn differs_from(&self, earlier: &Self) -> bool {
        let kinds =
            |decision: &Self| decision.blocked_by.iter().map(|blocker| blocker.kind).collect::<Vec<_>>();
        self.desired != earlier.desired
            || self.reason != earlier.reason
            || self.victims != earlier.victims
            || kinds(self) != kinds(earlier)
            || self.limited() != earlier.limited()
    }

    /// The Deployment's `replicas` from now on: what an action says, or what it is.
    #[must_use]
    pub fn replicas(&self, present: u32) -> u32 {
        let set = self.actions.iter().find_map(|action| match action {
            Action::SetReplicas { to, .. } => Some(*to),
            _ => None,
        });
        set.unwrap_or(present)
    }

    /// The drained instances that a lower `replicas` is to remove.
    #[must_use]
    pub fn removing(&self) -> &[Removal] {
        let set = self.actions.iter().find_map(|action| match action {
            Action::SetReplicas { removing, .. } => Some(removing.as_slice()),
            _ => None,
        });
        set.unwrap_or_default()
    }

    /// More instances are needed than the spec allows.
    #[must_use]
    pub fn limited(&self) -> bool {
        self.needed > self.wanted && self.reason != Reason::Fixed
    }
}
