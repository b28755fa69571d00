//! Step 4 of a reconcile: every object of a cluster, built and not yet applied. Pure, no client.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};

use crate::{
    build::{
        backend,
        credentials::{Credential, build_credential},
        disruption, load_balancer, network_policy, redis,
    },
    cluster::{Identity, ValidatedCluster, Volume},
    names::Component,
    scale::count::Count,
};

/// Every object of a cluster, as it should be.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Whose objects these are.
    pub identity: Identity,
    /// Generated Secrets.
    pub credentials: Vec<Credential>,
    /// The Redis, unless there is none.
    pub redis: Option<PreparedRedis>,
    /// Identity of the instances.
    pub backend_account: ServiceAccount,
    /// The instances, without their count.
    pub backend_deployment: Deployment,
    /// The count of instances.
    pub count: Count,
    /// Name of the instances in DNS.
    pub backend_service: Service,
    /// Who may talk to the instances.
    pub backend_policy: NetworkPolicy,
    /// How many instances an eviction may take.
    pub backend_budget: Option<PodDisruptionBudget>,
    /// The route, unless there is none.
    pub ingress: Option<PreparedIngress>,
}

/// The Ingress of the route.
#[derive(Clone, Debug)]
pub struct PreparedIngress {
    /// The Ingress itself.
    pub ingress: Ingress,
    /// Nobody would serve it: one that exists stays as it is.
    pub is_unserved: bool,
}

/// The objects of the Redis.
#[derive(Clone, Debug)]
pub struct PreparedRedis {
    /// Configuration and probes.
    pub config_map: ConfigMap,
    /// Name in DNS.
    pub service: Service,
    /// Who may talk to it.
    pub policy: NetworkPolicy,
    /// The Redis itself.
    pub stateful_set: StatefulSet,
    /// Its volume, which grows apart from the StatefulSet.
    pub volume: Option<Volume>,
}

/// Builds every object of a cluster with this many instances.
#[must_use]
pub fn build(cluster: &ValidatedCluster, count: Count) -> Prepared {
    let identity = &cluster.identity;
    let mut credentials = vec![
        build_credential(identity, Component::Backend, &cluster.backend.principals),
        build_credential(identity, Component::Backend, &cluster.backend.signing_key),
    ];
    if let Some(redis) = &cluster.redis {
        credentials.push(build_credential(identity, Component::Redis, &redis.auth));
    }
    Prepared {
        identity: identity.clone(),
        credentials: credentials.into_iter().flatten().collect(),
        redis: cluster.redis.as_ref().map(|redis| PreparedRedis {
            config_map: redis::build_config_map(cluster, redis),
            service: redis::build_service(cluster),
            policy: network_policy::build_redis_policy(cluster),
            stateful_set: redis::build_stateful_set(cluster, redis),
            volume: redis.volume.clone(),
        }),
        backend_account: backend::build_service_account(cluster),
        backend_deployment: backend::build_deployment(cluster),
        backend_budget: disruption::build_disruption_budget(cluster, count.instances),
        count,
        backend_service: backend::build_service(cluster),
        backend_policy: network_policy::build_backend_policy(cluster),
        ingress: cluster.route.as_ref().map(|route| PreparedIngress {
            ingress: load_balancer::ingress::build_ingress(cluster, route),
            is_unserved: route.is_unserved,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::fixture::{memory_cluster, simple_cluster},
        scale::count::InstanceCount,
    };

    fn count(instances: i32) -> Count {
        Count { instances: InstanceCount::new(instances).unwrap(), removing: Vec::new() }
    }

    #[test]
    fn the_same_cluster_builds_the_same_bytes() {
        let render = || format!("{:?}", build(&simple_cluster(), count(3)));
        assert_eq!(render(), render());
    }

    #[test]
    fn a_budget_comes_with_the_second_instance() {
        let budget = |instances| build(&simple_cluster(), count(instances)).backend_budget;
        assert!(budget(0).is_none());
        assert!(budget(1).is_none());
        insta::assert_yaml_snapshot!("disruption-budget", budget(2));
    }

    #[test]
    fn the_network_policies_of_a_simple_cluster() {
        let prepared = build(&simple_cluster(), count(3));
        insta::assert_yaml_snapshot!("backend-policy", prepared.backend_policy);
        insta::assert_yaml_snapshot!("redis-policy", prepared.redis.unwrap().policy);
    }

    #[test]
    fn without_redis_and_route_only_the_instances_are_built() {
        let prepared = build(&memory_cluster(), count(1));
        assert!(prepared.redis.is_none());
        assert!(prepared.ingress.is_none());
        let names: Vec<_> = prepared
            .credentials
            .into_iter()
            .filter_map(|credential| credential.secret.metadata.name)
            .collect();
        assert_eq!(names, ["simple-cluster-principal-tokens", "simple-cluster-signing-key"]);
    }

    #[test]
    fn a_generated_secret_is_applied_without_its_contents() {
        let prepared = build(&simple_cluster(), count(3));
        for credential in prepared.credentials {
            assert_eq!(credential.secret.data, None);
            assert_eq!(credential.secret.string_data, None);
        }
    }
}
