//! What the controller makes for a cluster, by kind and name.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, Resource, api::DynamicObject, core::ApiResource};

use super::Sandbox;

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

/// Every object that a cluster `simple` of two instances or more with a Redis and an Ingress owns.
#[must_use]
pub fn owned() -> Vec<(ApiResource, &'static str)> {
    vec![
        (resource::<Secret>(), "simple-redis-auth"),
        (resource::<Secret>(), "simple-signing-key"),
        (resource::<Secret>(), "simple-principal-tokens"),
        (resource::<ConfigMap>(), "simple-redis"),
        (resource::<Service>(), "simple-redis"),
        (resource::<StatefulSet>(), "simple-redis"),
        (resource::<NetworkPolicy>(), "simple-redis"),
        (resource::<ServiceAccount>(), "simple-backend"),
        (resource::<Deployment>(), "simple-backend"),
        (resource::<Service>(), "simple-backend"),
        (resource::<PodDisruptionBudget>(), "simple-backend"),
        (resource::<NetworkPolicy>(), "simple-backend"),
        (resource::<Ingress>(), "simple"),
    ]
}

impl Sandbox {
    /// The API for a kind of [`owned`] in this namespace.
    #[must_use]
    pub fn objects(&self, kind: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, kind)
    }
}
