//! A `VX11Cluster` after validation: nothing in it can be missing, and it is all that builders see.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::apis::meta::v1::OwnerReference};
use vx11_crds::spec::BackendSpec;

use crate::scale::{count::InstanceCount, plan::Request, policy::Policy};

/// One cluster, complete and consistent.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// Who it is.
    pub identity: Identity,
    /// Instances that `spec.instances` asks for.
    pub instances: InstanceCount,
    /// The instances.
    pub backend: Backend,
    /// The Redis, unless tokens live in one process's memory.
    pub redis: Option<Redis>,
    /// The route, unless there is none.
    pub route: Option<Route>,
    /// Who sets the count of instances, and how.
    pub scaling: Policy,
    /// What the decision tree plans for.
    pub plan: Request,
    /// Only look, write nothing.
    pub paused: bool,
    /// Namespace of the controller, whose pods may reach the admin port.
    pub operator_namespace: String,
}

/// What a spec may leave to the controller.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Image of operator-backend.
    pub backend_image: String,
    /// Image of Redis.
    pub redis_image: String,
    /// Namespace the controller runs in.
    pub operator_namespace: String,
}

/// The coordinates of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the VX11Cluster.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid; a cluster deleted and created again has another one.
    pub uid: String,
}

impl Identity {
    /// The owner reference that lets Kubernetes collect the children.
    ///
    /// `blockOwnerDeletion` stays off: it would need the right to set finalizers, and children that outlive
    /// their cluster by a moment hurt nobody.
    #[must_use]
    pub fn owner_reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: "vx11.io/v1alpha1".to_owned(),
            kind: "VX11Cluster".to_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(false),
        }
    }
}

/// The instances.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Image, given or the controller's default.
    pub image: String,
    /// CPU and memory, given or default.
    pub resources: ResourceRequirements,
    /// Secret with the principals.
    pub principals: SecretSource,
    /// Secret with signing keys and control token.
    pub signing_key: SecretSource,
    /// Everything else, as the spec says it.
    pub spec: BackendSpec,
}

/// The Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct Redis {
    /// Image, given or the controller's default.
    pub image: String,
    /// CPU and memory, given or default.
    pub resources: ResourceRequirements,
    /// Bytes of data it may hold; `None` without a memory limit.
    pub max_memory: Option<u64>,
    /// Database of the tokens and events.
    pub database: i32,
    /// Its volume; `None` keeps the data in memory only.
    pub volume: Option<Volume>,
    /// Secret with the password.
    pub auth: SecretSource,
    /// Changes when the password does, and tells nothing of it.
    pub password_fingerprint: String,
}

/// The volume of the Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Size as a quantity.
    pub size: String,
    /// StorageClass; `None` is the default one.
    pub class: Option<String>,
}

/// The route in front of the instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Host name; `None` matches every host.
    pub host: Option<String>,
    /// TLS Secret for the host.
    pub tls_secret: Option<String>,
    /// Seconds a stream may stay open.
    pub stream_timeout_seconds: i32,
    /// IngressClass; `None` is the default one.
    pub class_name: Option<String>,
    /// `spec.controller` of the class, when it is known.
    pub controller: Option<String>,
    /// Nobody serves it: no class has the name, or none is the default.
    pub is_unserved: bool,
    /// Annotations of the user; they win.
    pub annotations: BTreeMap<String, String>,
}

/// Where a Secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// The user made it; the controller only reads it.
    Referenced(String),
    /// The controller made it, and only keeps its labels.
    Generated(String),
    /// The controller is about to make it with these contents.
    Missing(String, GeneratedData),
}

impl SecretSource {
    /// Name of the Secret.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Referenced(name) | Self::Generated(name) | Self::Missing(name, _) => name,
        }
    }
}

/// Fresh contents of a Secret. It has no readable `Debug`, so that it cannot leak into a log.
#[derive(Clone, PartialEq, Eq)]
pub struct GeneratedData(BTreeMap<String, String>);

impl GeneratedData {
    /// Takes keys and their text values.
    #[must_use]
    pub fn new(values: BTreeMap<String, String>) -> Self {
        Self(values)
    }

    /// The contents, for the one request that creates the Secret.
    #[must_use]
    pub fn expose(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl std::fmt::Debug for GeneratedData {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}
