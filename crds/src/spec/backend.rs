//! `spec.backend`: the operator-backend instances.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity;

/// The operator-backend instances: image, tokens, streams, pods.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.stream.resumeWindowSeconds >= self.stream.drainSeconds")
    .message("spec.backend.stream.resumeWindowSeconds must be at least drainSeconds: a client closed late in a drain resumes after it; raise resumeWindowSeconds or lower drainSeconds"))]
#[serde(rename_all = "camelCase")]
pub struct BackendSpec {
    /// Image of operator-backend. Default: the release that belongs to the running controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// When the kubelet pulls the images of this cluster.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// Secrets with registry credentials, in the cluster's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalSecretReference>,

    /// CPU and memory of one instance. Default: requests 100m and 64Mi, memory limit 256Mi (500 streams need
    /// about 12 MiB).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Seconds an ephemeral token is valid.
    #[serde(default = "defaults::token_ttl_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub token_ttl_seconds: i32,

    /// Let a token open one stream only. Off, it may be used again within its lifetime, as EventSource needs
    /// when it reconnects to the same URL.
    #[serde(default)]
    pub single_use_tokens: bool,

    /// Where the principal tokens come from. Absent, the controller generates one principal in the Secret
    /// `NAME-principal-tokens`, once, and never overwrites it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_tokens: Option<PrincipalTokensSpec>,

    /// The event streams.
    #[serde(default)]
    pub stream: StreamSpec,

    /// Limits per principal and per client address. All are off (0) by default.
    #[serde(default)]
    pub limits: BackendLimits,

    /// CIDRs of proxies whose X-Forwarded-For is believed when a client address is needed. Empty: the
    /// connection's own address counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 2, max = 64)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("spec.backend.trustedProxies takes CIDRs such as 10.0.0.0/8 or fd00::/8; write a single address as ADDRESS/32 or ADDRESS/128"))]
    pub trusted_proxies: Vec<String>,

    /// Origins that browsers may call from, such as `https://app.example.com`; `*` allows every origin.
    /// Empty: same-origin only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(o, o == '*' || o.matches('^https?://[^/ ]+$'))")
        .message("spec.backend.allowedOrigins takes origins without a path, such as https://app.example.com, or '*'; remove the path and the trailing slash"))]
    pub allowed_origins: Vec<String>,

    /// Accept a principal token in the stream's `token` query parameter. URLs end up in logs and histories:
    /// leave it off unless an old client needs it.
    #[serde(default)]
    pub accept_principal_token_in_query: bool,

    /// Additions to the pods of the instances.
    #[serde(default)]
    pub pod: PodOverrides,
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Before every container start.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The value of `imagePullPolicy` in a container.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// A Secret in the cluster's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalSecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// CPU and memory of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceRequirements {
    /// What the scheduler sets aside, such as `cpu: 100m` and `memory: 64Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantity::resource_map")]
    pub requests: BTreeMap<String, Quantity>,

    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantity::resource_map")]
    pub limits: BTreeMap<String, Quantity>,
}

/// Where the principal tokens come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrincipalTokensSpec {
    /// Secret in the cluster's namespace. Every key is one principal; its value holds one token a line, so
    /// that an old and a new token overlap during a rotation. Changes are picked up without a restart.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// The event streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamSpec {
    /// Seconds between heartbeats. Proxies cut silent connections at 30 s or more.
    #[serde(default = "defaults::heartbeat_seconds")]
    #[schemars(range(min = 1, max = 300))]
    pub heartbeat_seconds: i32,

    /// Milliseconds a client waits before it reconnects (`retry:`). Planned closes spread around it.
    #[serde(default = "defaults::retry_milliseconds")]
    #[schemars(range(min = 100, max = 60000))]
    pub retry_milliseconds: i32,

    /// Streams one instance accepts before it refuses new ones; 0 means no limit.
    #[serde(default = "defaults::max_clients_per_instance")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_clients_per_instance: i32,

    /// Seconds during which a disconnected client can resume without losing an event. Redis and the
    /// instances keep the events of this window, up to 100,000 of them and 32 MiB (half of `maxmemory`, if
    /// that is less); whoever missed more is told with a gap.
    #[serde(default = "defaults::resume_window_seconds")]
    #[schemars(range(min = 1, max = 86400))]
    pub resume_window_seconds: i32,

    /// Seconds over which an instance that stops spreads the closing of its streams.
    #[serde(default = "defaults::drain_seconds")]
    #[schemars(range(min = 0, max = 600))]
    pub drain_seconds: i32,
}

/// Limits per principal and per client address; 0 turns one off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendLimits {
    /// Streams one principal may hold on one instance.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub clients_per_principal: i32,

    /// Streams one client address may hold on one instance.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub clients_per_address: i32,

    /// Tokens a second one principal may obtain from one instance.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub issuances_per_second_per_principal: i32,

    /// Tokens a second one client address may obtain from one instance.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub issuances_per_second_per_address: i32,
}

/// Additions to the pods of the instances. What the controller itself needs cannot be overridden.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodOverrides {
    /// Labels to add. `app.kubernetes.io/…` belongs to the controller.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('app.kubernetes.io/'))")
        .message("spec.backend.pod.labels: keys under app.kubernetes.io/ select the pods and belong to the controller; choose another prefix"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations to add. `vx11.io/…` belongs to the controller.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('vx11.io/'))")
        .message("spec.backend.pod.annotations: keys under vx11.io/ belong to the controller; choose another prefix"))]
    pub annotations: BTreeMap<String, String>,

    /// Labels a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,

    /// Scheduling affinity. Default: other zones are preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// How the pods spread. Default: over nodes, as far as possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,

    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

impl Default for BackendSpec {
    fn default() -> Self {
        Self {
            image: None,
            image_pull_policy: ImagePullPolicy::default(),
            image_pull_secrets: Vec::new(),
            resources: None,
            token_ttl_seconds: defaults::token_ttl_seconds(),
            single_use_tokens: false,
            principal_tokens: None,
            stream: StreamSpec::default(),
            limits: BackendLimits::default(),
            trusted_proxies: Vec::new(),
            allowed_origins: Vec::new(),
            accept_principal_token_in_query: false,
            pod: PodOverrides::default(),
        }
    }
}

impl Default for StreamSpec {
    fn default() -> Self {
        Self {
            heartbeat_seconds: defaults::heartbeat_seconds(),
            retry_milliseconds: defaults::retry_milliseconds(),
            max_clients_per_instance: defaults::max_clients_per_instance(),
            resume_window_seconds: defaults::resume_window_seconds(),
            drain_seconds: defaults::drain_seconds(),
        }
    }
}

/// Defaults that the wire contract and the design fix.
mod defaults {
    pub(super) const fn token_ttl_seconds() -> i32 {
        60
    }
    pub(super) const fn heartbeat_seconds() -> i32 {
        15
    }
    pub(super) const fn retry_milliseconds() -> i32 {
        2000
    }
    pub(super) const fn max_clients_per_instance() -> i32 {
        1000
    }
    pub(super) const fn resume_window_seconds() -> i32 {
        300
    }
    pub(super) const fn drain_seconds() -> i32 {
        20
    }
}
