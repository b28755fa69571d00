//! Step 6 of a reconcile: what the owned objects look like now. Needs the client, writes nothing.

use std::time::Duration;

use jiff::Timestamp;

use super::look;
use crate::{
    cache::ClusterKey,
    client::ClientError,
    context::Context,
    diagnose::{self, Trouble},
    facts::{ClaimFacts, DeploymentFacts, Facts, IngressFacts, PodFacts, StatefulSetFacts},
    kinds::Kind,
    names::{self, Component},
};

/// How long something may take to start before its events are read for a reason.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a cluster's objects look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspected {
    /// The instances.
    pub deployment: Option<DeploymentFacts>,
    /// The Redis.
    pub stateful_set: Option<StatefulSetFacts>,
    /// The route.
    pub ingress: Option<IngressFacts>,
    /// What keeps the instances from running.
    pub backend_trouble: Option<Trouble>,
    /// What keeps the Redis from running.
    pub redis_trouble: Option<Trouble>,
}

/// Looks at a cluster's objects.
pub async fn inspect(context: &Context, key: &ClusterKey, now: Timestamp) -> Result<Inspected, ClientError> {
    let reason = Reason { context, key, now };
    let deployment = look::deployment(context, key).await?;
    let stateful_set = match look::facts(context, key, Kind::StatefulSet, &names::redis(&key.name)).await? {
        Some(Facts::StatefulSet(facts)) => Some(facts),
        _ => None,
    };
    let ingress = match look::facts(context, key, Kind::Ingress, &names::ingress(&key.name)).await? {
        Some(Facts::Ingress(facts)) => Some(facts),
        _ => None,
    };
    let pods = look::pods(context, key).await?;
    let backend_trouble = match deployment.as_ref().and_then(|facts| facts.creation_failure.as_ref()) {
        Some(message) => {
            let name = format!("Deployment {}", names::backend(&key.name));
            Some(diagnose::creation_failure(&name, message))
        }
        None => reason.pod_trouble(&pods, Component::Backend).await?,
    };
    let redis_trouble = match &stateful_set {
        Some(facts) if facts.ready == 0 => reason.redis_trouble(&pods, facts).await?,
        _ => None,
    };
    Ok(Inspected { deployment, stateful_set, ingress, backend_trouble, redis_trouble })
}

/// Finds out why something does not run.
struct Reason<'a> {
    context: &'a Context,
    key: &'a ClusterKey,
    now: Timestamp,
}

impl Reason<'_> {
    /// The reason of the first pod that does not serve: its own status, or what the kubelet says when it has
    /// taken long.
    async fn pod_trouble(
        &self,
        pods: &[(String, PodFacts)],
        component: Component,
    ) -> Result<Option<Trouble>, ClientError> {
        let stuck: Vec<&(String, PodFacts)> =
            pods.iter().filter(|(_, pod)| pod.component == Some(component) && pod.is_stuck()).collect();
        if let Some(trouble) = stuck.iter().find_map(|(_, pod)| pod.trouble.clone()) {
            return Ok(Some(trouble));
        }
        let waiting = stuck.iter().find(|(_, pod)| self.is_late(pod.created));
        let Some((name, pod)) = waiting else {
            return Ok(None);
        };
        let warning = self.context.latest_warning(&self.key.namespace, &pod.uid).await?;
        Ok(warning.map(|warning| diagnose::pod_warning(name, &warning.reason, &warning.message)))
    }

    async fn redis_trouble(
        &self,
        pods: &[(String, PodFacts)],
        set: &StatefulSetFacts,
    ) -> Result<Option<Trouble>, ClientError> {
        if let Some(trouble) = self.claim_trouble().await? {
            return Ok(Some(trouble));
        }
        if let Some(trouble) = self.pod_trouble(pods, Component::Redis).await? {
            return Ok(Some(trouble));
        }
        if set.replicas > 0 || !set.observed || !self.is_late(set.created) {
            return Ok(None);
        }
        // No pod at all: only an event of the StatefulSet says why.
        let warning = self.context.latest_warning(&self.key.namespace, &set.uid).await?;
        let name = format!("StatefulSet {}", names::redis(&self.key.name));
        Ok(warning.map(|warning| diagnose::creation_failure(&name, &warning.message)))
    }

    /// Why the volume is not there.
    async fn claim_trouble(&self) -> Result<Option<Trouble>, ClientError> {
        let name = names::redis_claim(&self.key.name);
        let claim = match look::facts(self.context, self.key, Kind::PersistentVolumeClaim, &name).await? {
            Some(Facts::Claim(claim)) if !claim.bound => claim,
            _ => return Ok(None),
        };
        let Some(classes) = self.context.storage_classes().await? else {
            return self.claim_warning(&name, &claim).await;
        };
        match &claim.class {
            Some(class)
                if !class.is_empty()
                    && !classes.iter().any(|known| known.metadata.name.as_ref() == Some(class)) =>
            {
                Ok(Some(Trouble::new(
                    "StorageClassMissing",
                    format!(
                        "PersistentVolumeClaim {name} asks for StorageClass {class}, which does not exist; create it, or make a new cluster with another spec.redis.storage.storageClassName"
                    ),
                )))
            }
            None if self.is_late(claim.created) => Ok(Some(Trouble::new(
                "NoDefaultStorageClass",
                format!(
                    "PersistentVolumeClaim {name} names no StorageClass and there is no default one; mark one as default, or make a new cluster with spec.redis.storage.storageClassName or persistence: false"
                ),
            ))),
            _ => self.claim_warning(&name, &claim).await,
        }
    }

    async fn claim_warning(&self, name: &str, claim: &ClaimFacts) -> Result<Option<Trouble>, ClientError> {
        if !self.is_late(claim.created) {
            return Ok(None);
        }
        let warning = self.context.latest_warning(&self.key.namespace, &claim.uid).await?;
        Ok(warning.map(|warning| {
            let detail = diagnose::quote(&warning.message);
            Trouble::new("VolumePending", format!("PersistentVolumeClaim {name} has no volume: {detail}"))
        }))
    }

    fn is_late(&self, created: Option<Timestamp>) -> bool {
        created.is_some_and(|created| {
            let age = self.now.duration_since(created);
            age.as_secs() >= i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX)
        })
    }
}
