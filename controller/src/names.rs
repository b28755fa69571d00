//! Names, labels, annotations and ports that several files share. Nothing here reads or decides.

use std::collections::BTreeMap;

/// Field manager of every owned object.
pub const OBJECT_MANAGER: &str = "vx11-controller";
/// Field manager of the Deployment's `replicas`, so that the count has exactly one owner.
pub const SCALE_MANAGER: &str = "vx11-controller/scale";
/// Field manager of `VX11Cluster.status`.
pub const STATUS_MANAGER: &str = "vx11-controller/status";

/// Label that tells whose object it is; watches are limited to it.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] on everything owned.
pub const MANAGED_BY_VALUE: &str = "vx11-controller";
/// Label with the cluster's name.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Label with the part of the cluster, see [`Component`].
pub const COMPONENT: &str = "app.kubernetes.io/component";
const NAME: &str = "app.kubernetes.io/name";
const PART_OF: &str = "app.kubernetes.io/part-of";

/// Annotation with the fingerprint of what was last applied: a change of it is a change of the wish, a
/// difference without one is drift.
pub const APPLIED: &str = "vx11.io/applied";
/// Pod annotation: fingerprint of the Redis password. A new one rolls the pods.
pub const REDIS_PASSWORD_FINGERPRINT: &str = "vx11.io/redis-password";
/// Pod annotation: fingerprint of the Redis configuration. A new one rolls the pod.
pub const REDIS_CONFIG_FINGERPRINT: &str = "vx11.io/redis-config";

/// Pod annotation: being drained to be removed, since when and until when.
pub const DRAIN: &str = "vx11.io/drain";
/// Deployment annotation: the drained pods that the present `replicas` was lowered for.
pub const REMOVING: &str = "vx11.io/removing";

/// Deployment annotation: the count that the scale field manager wrote, whoever has written `replicas` since.
pub const COUNT: &str = "vx11.io/instances";

/// Label of namespaces whose pods may scrape the admin port.
pub const MONITORING_NAMESPACE: &str = "vx11.io/monitoring";
/// `app.kubernetes.io/name` of the controller's own pods, which the chart sets.
pub const CONTROLLER_APP_NAME: &str = "vx11-operator";

/// Public port of an instance.
pub const HTTP_PORT: i32 = 8001;
/// Admin port of an instance: metrics, probes, load, drain.
pub const ADMIN_PORT: i32 = 9090;
/// Port of the Redis.
pub const REDIS_PORT: i32 = 6379;

/// Container of an instance; others in its pod are none of ours.
pub const BACKEND_CONTAINER: &str = "backend";
/// Its variable with the most streams that it accepts; 0 is no limit.
pub const MAX_CLIENTS_VARIABLE: &str = "VX11_MAX_CLIENTS";

/// Key of the password in a Redis auth Secret.
pub const PASSWORD_KEY: &str = "password";
/// Keys of the signing-key Secret that must exist.
pub const SIGNING_KEYS: [&str; 2] = ["current", CONTROL_TOKEN_KEY];
/// Key of the token that lets the controller drain instances.
pub const CONTROL_TOKEN_KEY: &str = "control-token";
/// Key of the generated principal.
pub const PRINCIPAL_KEY: &str = "principal";

/// A part of a cluster, as its label says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The instances of operator-backend.
    Backend,
    /// The Redis.
    Redis,
    /// The route.
    LoadBalancer,
}

impl Component {
    /// Value of the component label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Redis => "redis",
            Self::LoadBalancer => "load-balancer",
        }
    }
}

/// Labels of an owned object.
#[must_use]
pub fn labels(cluster: &str, component: Component) -> BTreeMap<String, String> {
    let mut labels = selector(cluster, component);
    labels.insert(NAME.to_owned(), "vx11".to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGED_BY_VALUE.to_owned());
    labels.insert(PART_OF.to_owned(), "vx11".to_owned());
    labels
}

/// Labels that select the pods of a component; a part of [`labels`] that never changes.
#[must_use]
pub fn selector(cluster: &str, component: Component) -> BTreeMap<String, String> {
    BTreeMap::from([
        (INSTANCE.to_owned(), cluster.to_owned()),
        (COMPONENT.to_owned(), component.as_str().to_owned()),
    ])
}

/// The selector of the instances' pods as text, for the scale subresource.
#[must_use]
pub fn backend_selector_text(cluster: &str) -> String {
    let pairs: Vec<String> =
        selector(cluster, Component::Backend).iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// Deployment, Service, ServiceAccount, PodDisruptionBudget and NetworkPolicy of the instances.
#[must_use]
pub fn backend(cluster: &str) -> String {
    format!("{cluster}-backend")
}

/// StatefulSet, Service, ConfigMap and NetworkPolicy of the Redis.
#[must_use]
pub fn redis(cluster: &str) -> String {
    format!("{cluster}-redis")
}

/// Generated Secret with the Redis password.
#[must_use]
pub fn redis_auth(cluster: &str) -> String {
    format!("{cluster}-redis-auth")
}

/// Generated Secret with the signing keys and the control token.
#[must_use]
pub fn signing_key(cluster: &str) -> String {
    format!("{cluster}-signing-key")
}

/// Generated Secret with the principal tokens.
#[must_use]
pub fn principal_tokens(cluster: &str) -> String {
    format!("{cluster}-principal-tokens")
}

/// ConfigMap with the journal of scaling decisions.
#[must_use]
pub fn scaling(cluster: &str) -> String {
    format!("{cluster}-scaling")
}

/// The Ingress.
#[must_use]
pub fn ingress(cluster: &str) -> String {
    cluster.to_owned()
}

/// Name of the volume claim template of the Redis.
pub const REDIS_VOLUME: &str = "data";

/// PersistentVolumeClaim of the Redis, as the StatefulSet controller names it.
#[must_use]
pub fn redis_claim(cluster: &str) -> String {
    format!("{REDIS_VOLUME}-{}-0", redis(cluster))
}
