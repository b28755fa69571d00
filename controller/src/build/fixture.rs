//! Fixture clusters for tests. Never named after the product, so that a swapped name or label shows.

use vx11_crds::VX11Cluster;

use crate::{
    cluster::{Defaults, ValidatedCluster},
    facts::SecretFacts,
    reconcile::{
        dereference::{ClassKnowledge, Referenced, SecretState},
        validate::validate,
    },
};

/// Defaults of the tests.
pub fn defaults() -> Defaults {
    Defaults {
        backend_image: "example.com/backend:1".to_owned(),
        redis_image: "example.com/redis:7".to_owned(),
        operator_namespace: "simple-operator".to_owned(),
    }
}

/// The API object of a manifest's spec.
pub fn object(spec: &str) -> VX11Cluster {
    let mut cluster = VX11Cluster::new("simple-cluster", serde_yaml::from_str(spec).unwrap());
    cluster.metadata.namespace = Some("simple-namespace".to_owned());
    cluster.metadata.uid = Some("simple-uid".to_owned());
    cluster.metadata.generation = Some(3);
    cluster
}

/// Everything that a cluster refers to exists.
pub fn referenced() -> Referenced {
    Referenced {
        redis_auth: SecretState::Found(SecretFacts::of(&[("password", "correct-horse")])),
        principals: SecretState::Found(SecretFacts::of(&[("principal", "battery-staple")])),
        signing_key: SecretState::Found(SecretFacts::of(&[
            ("current", "signing-key-1"),
            ("control-token", "control-token-1"),
        ])),
        tls_secret_exists: None,
        class: ClassKnowledge::Served {
            name: "simple-class".to_owned(),
            controller: "projectcontour.io/ingress-controller".to_owned(),
        },
    }
}

/// Three instances, a Redis with a volume, an Ingress.
pub fn simple_cluster() -> ValidatedCluster {
    validate(&object("instances: 3"), &referenced(), &defaults()).unwrap()
}

/// One instance without a Redis.
pub fn memory_cluster() -> ValidatedCluster {
    let object = object("{redis: {type: None}, loadBalancer: {type: None}}");
    validate(&object, &referenced(), &defaults()).unwrap()
}
