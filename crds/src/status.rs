//! `VX11Cluster.status`: what the controller reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the controller reports about a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VX11ClusterStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The cluster in one word. Scripts should read conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// Ready, Progressing, Degraded, RedisReady, BackendReady, LoadBalancerReady, Paused, ScalingActive,
    /// ScalingLimited, Draining. Every condition carries the generation it was seen at, a stable reason and a message that says what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// Label selector of the instances' pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// Instances that exist.
    #[serde(default)]
    pub instances: i32,

    /// Instances that serve.
    #[serde(default)]
    pub ready_instances: i32,

    /// Instances that the cluster should have.
    #[serde(default)]
    pub desired_instances: i32,

    /// The load that the instances report. Figures here refresh at most every 15 seconds, and only when they
    /// changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadStatus>,

    /// What the serving instances carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityStatus>,

    /// How full the serving instances are, by clients or issuances, whichever is more; above 100 they are
    /// overloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<i32>,

    /// Why the count is what it is. `vx11-controller why NAMESPACE/NAME` prints the decisions before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingStatus>,

    /// What the decision tree recommends for the load: one instance, or how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<String>,

    /// Estimated dollars an hour for the instances, at 0.05 an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_cost_per_hour: Option<String>,

    /// Base URL where clients connect, once the route has an address or a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// The Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisStatus>,
}

/// A cluster in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The first instance does not serve yet.
    Pending,
    /// A change is on its way.
    Progressing,
    /// Everything is as the spec says.
    Ready,
    /// It serves, but less than the spec says, or a part is broken.
    Degraded,
    /// The spec cannot be carried out; what ran keeps running.
    Invalid,
    /// `spec.paused` is true.
    Paused,
}

/// The Redis of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisStatus {
    /// Its state in one word.
    pub state: RedisState,
}

/// State of the Redis in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RedisState {
    /// It answers.
    Ready,
    /// It does not answer; tokens are signed instead and streams stay open.
    Unavailable,
    /// `spec.redis.type` is None.
    Disabled,
}

/// The load that the instances report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadStatus {
    /// Open streams.
    pub clients: i64,

    /// Tokens issued a second.
    pub issuances_per_second: i64,

    /// Instances that reported. What the others carry is not in the figures, and while one is missing no
    /// instance is removed.
    pub reporting: i32,
}

/// What a number of instances carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CapacityStatus {
    /// Open streams.
    pub clients: i64,

    /// Tokens issued a second.
    pub issuances_per_second: i64,
}

/// Why the count is what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingStatus {
    /// The count that the cluster is on its way to.
    pub desired: i32,

    /// Steady, Fixed, ScaleOut, Stabilizing, ScaleInBlocked, Draining, ScaleIn, DrainCancelled,
    /// WrongInstanceRemoved or Rebalancing.
    pub reason: String,

    /// The same in a person's words.
    pub message: String,

    /// When the count last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<Time>,

    /// What keeps instances from being removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<String>,
}
