//! The scaling step of a reconcile: look, decide, act, remember. What must outlive this process lies on the
//! pods, the Deployment and the journal; what is kept here only makes a new leader wait.

mod act;
mod admin;
pub mod observe;

use std::time::Duration;

use serde_json::json;
use vx11_crds::VX11ClusterStatus;

use self::{
    act::act,
    observe::{Sight, observe},
};
use crate::{
    cache::ClusterKey,
    client::{ClientError, Manager},
    cluster::{InstanceCount, ValidatedCluster},
    context::Context,
    kinds::Kind,
    names,
    scale::{
        decide::decide,
        decision::{Count, Decision},
        journal::{Entry, JOURNAL_KEY, Journal},
        memory::Memory,
        observation::{Moment, Removal},
        policy::{Policy, Target},
        report::{News, ScalingReport, Subject, news, report},
    },
};

/// What the scaling comes to for the rest of the reconcile.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// The Deployment's `replicas`.
    pub replicas: u32,
    /// The drained instances that a lower count is to remove.
    pub removing: Vec<Removal>,
    /// The count that the cluster is on its way to.
    pub desired: u32,
    /// For status.
    pub report: ScalingReport,
    /// For an event.
    pub news: Option<News>,
    /// When to look again.
    pub next_look: Duration,
}

impl Scaled {
    /// The count as it is applied.
    #[must_use]
    pub fn count(&self) -> Count {
        let instances = i32::try_from(self.replicas).ok().and_then(InstanceCount::new);
        Count {
            // What was decided is within the schema's bounds; what a hand wrote beyond them is cut there.
            instances: instances.unwrap_or(InstanceCount::LARGEST),
            removing: self.removing.clone(),
        }
    }

    /// The count that the cluster is on its way to.
    #[must_use]
    pub fn desired(&self) -> i32 {
        i32::try_from(self.desired).unwrap_or(InstanceCount::MAX)
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
    let policy = &cluster.scaling;
    let mut sight = observe(context, key, &mut memory.counters, now).await?;
    if !sight.exists {
        sight.observation.replicas = starting_count(policy, cluster);
    }
    let decision = decide(policy, &sight.observation, &memory.history, now);
    let is_news = memory.last.as_ref().is_none_or(|last| decision.differs_from(last));
    let tells = is_news.then(|| news(&sight.observation, &decision)).flatten();
    if !cluster.paused {
        act(context, key, &sight, &decision).await?;
        // A new leader does not tell again what the last entry of the journal says.
        let written = write_journal(context, key, cluster, &sight, &decision, memory).await?;
        if !written && memory.last.is_none() {
            tracing::debug!(namespace = key.namespace, cluster = key.name, "going on from the journal");
        }
    }
    if is_news {
        context.metrics.decided(decision.reason);
        tracing::info!(
            namespace = key.namespace,
            cluster = key.name,
            reason = decision.reason.as_str(),
            desired = decision.desired,
            message = decision.message,
            "decided"
        );
    }
    let subject = Subject {
        policy,
        observed: &sight.observation,
        decision: &decision,
        request: &cluster.plan,
        previous,
        figures_age_ms: memory.figures_at.map(|at| now.since(at)),
        is_news,
    };
    let (report, fresh) = report(&subject);
    if fresh {
        memory.figures_at = Some(now);
    }
    memory.history.remember(policy, &sight.observation, &decision);
    let removing = decision.removing().to_vec();
    let scaled = Scaled {
        replicas: decision.replicas(sight.observation.replicas),
        removing,
        desired: decision.desired,
        report,
        news: tells,
        next_look: Duration::from_millis(decision.next_look_ms),
    };
    memory.last = Some(decision);
    Ok(scaled)
}

/// The count of a cluster whose Deployment is yet to be made: `spec.instances`, within the bounds.
fn starting_count(policy: &Policy, cluster: &ValidatedCluster) -> u32 {
    let instances = u32::try_from(cluster.instances.get()).unwrap_or(0);
    match policy.target {
        Target::Load { min, max, .. } => instances.min(max).max(min),
        Target::Fixed { .. } => instances,
    }
}

/// Adds a decision to the journal if it tells something new; whether it did.
async fn write_journal(
    context: &Context,
    key: &ClusterKey,
    cluster: &ValidatedCluster,
    sight: &Sight,
    decision: &Decision,
    memory: &mut Memory,
) -> Result<bool, ClientError> {
    let by_person = matches!(cluster.scaling.target, Target::Fixed { .. });
    if by_person && decision.actions.is_empty() {
        return Ok(false);
    }
    let name = names::scaling(&key.name);
    let journal = match &mut memory.journal {
        Some(journal) => journal,
        None => memory.journal.insert(read_journal(context, key, &name).await?),
    };
    if !journal.is_news(decision) {
        return Ok(false);
    }
    journal.record(Entry {
        policy: cluster.scaling,
        observed: sight.observation.clone(),
        history: memory.history.clone(),
        decision: decision.clone(),
    });
    let Ok(text) = journal.to_json() else {
        return Ok(false);
    };
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            // Without the label of owned objects: nobody watches it, nobody corrects it, and it goes with
            // the cluster.
            "labels": names::selector(&key.name, names::Component::Backend),
            "ownerReferences": [cluster.identity.owner_reference()],
        },
        "data": {JOURNAL_KEY: text},
    });
    context.client.apply(Kind::ConfigMap, &key.namespace, &name, Manager::Scale, &body).await?;
    Ok(true)
}

/// The journal so far. One that does not parse is somebody's else or of another version: it begins anew.
async fn read_journal(context: &Context, key: &ClusterKey, name: &str) -> Result<Journal, ClientError> {
    let map = context.client.get(Kind::ConfigMap, &key.namespace, name).await?;
    let text = map.as_ref().and_then(|map| map.data.pointer(&format!("/data/{JOURNAL_KEY}"))?.as_str());
    Ok(text.and_then(|text| Journal::parse(text).ok()).unwrap_or_default())
}
