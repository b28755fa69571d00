//! PodDisruptionBudget of the instances.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::metadata;
use crate::{
    cluster::ValidatedCluster,
    names::{self, Component},
    scale::count::InstanceCount,
};

/// One instance at a time may be evicted; none of this for a single instance, whose budget would block
/// every node drain for good. Instances that do not serve may always be evicted.
#[must_use]
pub fn build_disruption_budget(
    cluster: &ValidatedCluster,
    instances: InstanceCount,
) -> Option<PodDisruptionBudget> {
    (instances.get() >= 2).then(|| PodDisruptionBudget {
        metadata: metadata::owned(
            &cluster.identity,
            Component::Backend,
            names::backend(&cluster.identity.name),
        ),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            min_available: None,
            selector: Some(metadata::selector(&cluster.identity, Component::Backend)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        }),
        status: None,
    })
}
