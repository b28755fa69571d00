//! `VX11Cluster.spec`: what a user asks for. One file per section.

mod autoscaling;
mod backend;
mod load_balancer;
mod redis;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use autoscaling::AutoscalingSpec;
pub use backend::{
    BackendLimits, BackendSpec, ImagePullPolicy, LocalSecretReference, PodOverrides, PrincipalTokensSpec,
    ResourceRequirements, StreamSpec,
};
pub use load_balancer::{IngressSpec, LoadBalancerSpec, LoadBalancerType};
pub use redis::{RedisAuthSpec, RedisSpec, RedisStorageSpec, RedisType};

/// Longest cluster name: `NAME-redis` must leave room for a StatefulSet's `-<hash>` label within 63 characters.
pub const MAX_NAME_LENGTH: usize = 40;

/// A running, load-balanced VX11 cluster: a Redis, a Deployment of operator-backend instances and a route
/// in front of them.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vx11.io",
    version = "v1alpha1",
    kind = "VX11Cluster",
    plural = "vx11clusters",
    singular = "vx11cluster",
    shortname = "vx11",
    category = "all",
    namespaced,
    status = "crate::status::VX11ClusterStatus",
    derive = "PartialEq",
    doc = "A running, load-balanced VX11 cluster: a Redis, a Deployment of operator-backend instances and a route in front of them.",
    scale(
        spec_replicas_path = ".spec.instances",
        status_replicas_path = ".status.instances",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredInstances", description = "Instances that the cluster should have"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyInstances", description = "Instances that serve"),
    printcolumn(name = "Clients", type_ = "integer", json_path = ".status.load.clients", description = "Open streams"),
    printcolumn(name = "Capacity", type_ = "integer", json_path = ".status.capacity.clients", description = "Streams that the serving instances carry"),
    printcolumn(name = "Util%", type_ = "integer", json_path = ".status.utilizationPercent", description = "How full the serving instances are"),
    printcolumn(name = "Redis", type_ = "string", json_path = ".status.redis.state", description = "State of the Redis"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase", description = "The cluster in one word"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since creation"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", description = "Where clients connect", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is or is not ready", priority = 1),
    printcolumn(name = "Scaling", type_ = "string", json_path = ".status.scaling.reason", description = "Why the count is what it is", priority = 1),
    printcolumn(name = "Cost", type_ = "string", json_path = ".status.estimatedCostPerHour", description = "Estimated dollars an hour", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be at most 40 lower-case letters, digits and '-', starting with a letter: every Service, StatefulSet and label is named after it; choose a shorter or simpler name")
)]
#[x_kube(
    validation = Rule::new("!has(self.redis) || self.redis.type != 'None' || self.instances <= 1")
        .message("spec.redis.type None keeps tokens in one process's memory: set spec.instances to 1, or spec.redis.type to Standalone"),
    validation = Rule::new("!has(self.autoscaling) || !has(self.redis) || self.redis.type != 'None'")
        .message("spec.autoscaling needs a Redis that the instances share: set spec.redis.type to Standalone, or remove spec.autoscaling"),
    validation = Rule::new("!has(self.autoscaling) || self.backend.stream.maxClientsPerInstance == 0 || self.autoscaling.clientsPerInstance <= self.backend.stream.maxClientsPerInstance")
        .message("spec.autoscaling.clientsPerInstance must not be above spec.backend.stream.maxClientsPerInstance, at which an instance refuses clients: lower the first or raise the second")
)]
#[serde(rename_all = "camelCase")]
pub struct VX11ClusterSpec {
    /// How many operator-backend instances run. 0 stops the cluster and keeps its data. This is the path of
    /// the scale subresource: `kubectl scale vx11/NAME --replicas=5` and a HorizontalPodAutoscaler write it.
    /// With `autoscaling` it is only the starting count.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub instances: i32,

    /// Let the load set the count. Absent, `instances` sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingSpec>,

    /// The operator-backend instances: image, tokens, streams, pods.
    #[serde(default)]
    pub backend: BackendSpec,

    /// The Redis that holds ephemeral tokens and the event stream.
    #[serde(default)]
    pub redis: RedisSpec,

    /// The route in front of the instances.
    #[serde(default)]
    pub load_balancer: LoadBalancerSpec,

    /// Observe and report, write nothing. Children are neither created, corrected nor removed until it is
    /// false again; status is still kept.
    #[serde(default)]
    pub paused: bool,
}

const fn one() -> i32 {
    1
}
