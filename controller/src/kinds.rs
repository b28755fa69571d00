//! The kinds that the controller owns or reads, as one closed set: cache keys, metric labels, API paths.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kube::api::ApiResource;

/// A kind of object that belongs to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Configuration of the Redis.
    ConfigMap,
    /// The instances.
    Deployment,
    /// The route.
    Ingress,
    /// Who may talk to the pods.
    NetworkPolicy,
    /// The volume of the Redis; made by the StatefulSet controller, only ever grown here.
    PersistentVolumeClaim,
    /// A pod; made by others, only read here.
    Pod,
    /// How many instances an eviction may take.
    PodDisruptionBudget,
    /// Generated credentials; created once.
    Secret,
    /// Name in DNS.
    Service,
    /// Identity of the instances.
    ServiceAccount,
    /// The Redis.
    StatefulSet,
}

impl Kind {
    /// Every kind, in the order of their names.
    pub const ALL: [Self; 11] = [
        Self::ConfigMap,
        Self::Deployment,
        Self::Ingress,
        Self::NetworkPolicy,
        Self::PersistentVolumeClaim,
        Self::Pod,
        Self::PodDisruptionBudget,
        Self::Secret,
        Self::Service,
        Self::ServiceAccount,
        Self::StatefulSet,
    ];

    /// The kind's name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Deployment => "Deployment",
            Self::Ingress => "Ingress",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::Pod => "Pod",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
            Self::StatefulSet => "StatefulSet",
        }
    }

    /// Where the kind lives in the API.
    #[must_use]
    pub fn resource(self) -> ApiResource {
        match self {
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::Ingress => ApiResource::erase::<Ingress>(&()),
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::PersistentVolumeClaim => ApiResource::erase::<PersistentVolumeClaim>(&()),
            Self::Pod => ApiResource::erase::<Pod>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::Secret => ApiResource::erase::<Secret>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
        }
    }

    /// Whether an object of this kind is removed when the spec no longer asks for it. Data and credentials
    /// never are: they go with the cluster, by owner reference, or stay.
    #[must_use]
    pub const fn is_removable(self) -> bool {
        match self {
            Self::ConfigMap
            | Self::Ingress
            | Self::NetworkPolicy
            | Self::PodDisruptionBudget
            | Self::Service
            | Self::StatefulSet => true,
            // Every cluster has exactly one Deployment and one ServiceAccount.
            Self::Deployment
            | Self::PersistentVolumeClaim
            | Self::Pod
            | Self::Secret
            | Self::ServiceAccount => false,
        }
    }
}
