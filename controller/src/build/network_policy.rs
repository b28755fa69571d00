//! NetworkPolicies: who may talk to the instances and to the Redis.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::metadata;
use crate::{
    cluster::ValidatedCluster,
    names::{self, Component},
};

/// Label that Kubernetes itself puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The instances: the public port for everyone; the admin port for the controller, which reads load and
/// drains, and for monitoring namespaces. Where they call to is not restricted.
#[must_use]
pub fn build_backend_policy(cluster: &ValidatedCluster) -> NetworkPolicy {
    let controller = NetworkPolicyPeer {
        namespace_selector: Some(labels_are(NAMESPACE_NAME, &cluster.operator_namespace)),
        pod_selector: Some(labels_are("app.kubernetes.io/name", names::CONTROLLER_APP_NAME)),
        ip_block: None,
    };
    let monitoring = NetworkPolicyPeer {
        namespace_selector: Some(labels_are(names::MONITORING_NAMESPACE, "true")),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicy {
        metadata: metadata::owned(
            &cluster.identity,
            Component::Backend,
            names::backend(&cluster.identity.name),
        ),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(metadata::selector(&cluster.identity, Component::Backend)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { from: None, ports: Some(vec![port("http")]) },
                NetworkPolicyIngressRule {
                    from: Some(vec![controller, monitoring]),
                    ports: Some(vec![port("admin")]),
                },
            ]),
            egress: None,
        }),
    }
}

/// The Redis: reachable from this cluster's instances only, and calling nobody.
#[must_use]
pub fn build_redis_policy(cluster: &ValidatedCluster) -> NetworkPolicy {
    let backend = NetworkPolicyPeer {
        pod_selector: Some(metadata::selector(&cluster.identity, Component::Backend)),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicy {
        metadata: metadata::owned(&cluster.identity, Component::Redis, names::redis(&cluster.identity.name)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(metadata::selector(&cluster.identity, Component::Redis)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(vec![backend]),
                ports: Some(vec![port("redis")]),
            }]),
            egress: None,
        }),
    }
}

fn labels_are(key: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
        match_expressions: None,
    }
}

/// A port by its name in the pod, so that the number is said once.
fn port(name: &str) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    }
}
