//! `spec.loadBalancer`: the route in front of the instances.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The route in front of the instances.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.type == 'Ingress' || !has(self.ingress)")
        .message("spec.loadBalancer.ingress needs type Ingress: remove the section, or set spec.loadBalancer.type to Ingress"),
    validation = Rule::new("self.type == 'Ingress' || (!has(self.host) && !has(self.tlsSecretName))")
        .message("spec.loadBalancer.host and tlsSecretName need a route: remove them, or set spec.loadBalancer.type to Ingress"),
    validation = Rule::new("!has(self.tlsSecretName) || has(self.host)")
        .message("spec.loadBalancer.tlsSecretName needs spec.loadBalancer.host: the certificate is chosen by host name")
)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSpec {
    /// `Ingress`: an Ingress of `ingress.className`. `None`: only the Service `NAME-backend`, port 8001.
    #[serde(rename = "type", default)]
    pub type_: LoadBalancerType,

    /// Host name of the route. Absent: every host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub host: Option<String>,

    /// TLS Secret (`tls.crt`, `tls.key`) in the cluster's namespace for `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tls_secret_name: Option<String>,

    /// Seconds a stream may stay open through the route, where the route can be told so.
    #[serde(default = "one_hour")]
    #[schemars(range(min = 60, max = 604_800))]
    pub stream_timeout_seconds: i32,

    /// Settings of the Ingress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressSpec>,
}

/// What kind of route a cluster has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LoadBalancerType {
    /// A networking.k8s.io/v1 Ingress.
    #[default]
    Ingress,
    /// No route: only the Service.
    None,
}

/// Settings of the Ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressSpec {
    /// IngressClass. Absent: the default one of the Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,

    /// Annotations to add. They win over those that the controller sets for the class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
}

impl Default for LoadBalancerSpec {
    fn default() -> Self {
        Self {
            type_: LoadBalancerType::default(),
            host: None,
            tls_secret_name: None,
            stream_timeout_seconds: one_hour(),
            ingress: None,
        }
    }
}

const fn one_hour() -> i32 {
    3600
}
