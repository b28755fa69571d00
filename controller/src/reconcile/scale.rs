//! The scaling step of a reconcile: look, decide, act. What must outlive this process lies on the pods and the
//! Deployment; what is kept here only makes a new leader wait.

mod act;
pub mod observe;

use std::time::Duration;

use vx11_crds::VX11ClusterStatus;

use self::{act::act, observe::observe};
use super::apply::Failure;
use crate::{
    cache::ClusterKey,
    client::ClientError,
    cluster::ValidatedCluster,
    context::Context,
    scale::{
        count::{Count, InstanceCount},
        decide::decide,
        figures::Figures,
        journal::Entry,
        memory::Memory,
        observation::Moment,
        policy::{Policy, Target},
        report::{ScalingReport, Subject, report},
    },
};

/// What the scaling comes to for the rest of the reconcile.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// What was decided, with everything that went into it.
    pub entry: Entry,
    /// For status.
    pub report: ScalingReport,
    /// A pod could not be written, so that the rest of what was decided waits for the next look.
    pub failure: Option<Failure>,
    /// Status has the figures of this very look, not those of one before.
    is_shown: bool,
}

impl Scaled {
    /// The count as it is applied.
    #[must_use]
    pub fn count(&self) -> Count {
        let Entry { observed, decision, .. } = &self.entry;
        let instances = i32::try_from(decision.replicas(observed.replicas)).ok().and_then(InstanceCount::new);
        Count {
            // What was decided is within the schema's bounds; what a hand wrote beyond them is cut there.
            instances: instances.unwrap_or(InstanceCount::LARGEST),
            removing: decision.removing().to_vec(),
        }
    }

    /// The count that the cluster is on its way to.
    #[must_use]
    pub fn desired(&self) -> i32 {
        i32::try_from(self.entry.decision.desired).unwrap_or(InstanceCount::MAX)
    }

    /// When to look again; `None` when status says that nobody runs, and only news can bring anything.
    #[must_use]
    pub fn next_look(&self) -> Option<Duration> {
        let Entry { observed, decision, .. } = &self.entry;
        let is_idle = self.is_shown && observed.instances.is_empty() && !self.entry.is_recorded();
        (!is_idle).then(|| Duration::from_millis(decision.next_look_ms))
    }
}

/// Looks at the instances, decides how many there should be and carries out all but the count itself, which
/// is applied with the Deployment. A paused cluster is only looked at.
pub async fn scale(
    context: &Context,
    key: &ClusterKey,
    cluster: &ValidatedCluster,
    previous: &VX11ClusterStatus,
    now: Moment,
) -> Result<Scaled, ClientError> {
    let mut memory = context.memories.take(key, &cluster.identity);
    let scaled = scale_with(context, key, cluster, previous, now, &mut memory).await;
    context.memories.put(key, memory);
    scaled
}

async fn scale_with(
    context: &Context,
    key: &ClusterKey,
    cluster: &ValidatedCluster,
    previous: &VX11ClusterStatus,
    now: Moment,
    memory: &mut Memory,
) -> Result<Scaled, ClientError> {
    let policy = cluster.scaling;
    let mut sight = observe(context, key, &mut memory.counters, now).await?;
    if !sight.exists {
        sight.observation.replicas = starting_count(&policy, cluster);
    }
    let decision = decide(&policy, &sight.observation, &memory.history, now);
    let failure = if cluster.paused { None } else { act(context, key, &sight, &decision).await? };
    let (report, is_shown) = report(&Subject {
        policy: &policy,
        observed: &sight.observation,
        decision: &decision,
        request: &cluster.plan,
        previous,
        figures_age_ms: memory.figures_at.map(|at| now.since(at)),
        is_news: memory.last.as_ref().is_none_or(|last| decision.differs_from(last)),
        paused: cluster.paused,
    });
    if is_shown {
        memory.figures_at = Some(now);
    }
    let history = memory.history.clone();
    memory.history.remember(&policy, &sight.observation, &decision);
    memory.last = Some(decision.clone());
    let entry = Entry { policy, observed: sight.observation, history, decision };
    context.metrics.set_figures(key, Figures::of(&entry));
    Ok(Scaled { entry, report, failure, is_shown })
}

/// The count of a cluster whose Deployment is yet to be made: `spec.instances`, within the bounds.
fn starting_count(policy: &Policy, cluster: &ValidatedCluster) -> u32 {
    let instances = u32::try_from(cluster.instances.get()).unwrap_or(0);
    match policy.target {
        Target::Load { min, max, .. } => instances.min(max).max(min),
        Target::Fixed { .. } => instances,
    }
}
