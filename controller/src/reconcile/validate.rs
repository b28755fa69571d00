//! Step 2 of a reconcile: one complete cluster, or the one thing that is wrong with it. Pure, no client.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use thiserror::Error;
use vx11_crds::{
    VX11Cluster,
    spec::{self, LoadBalancerType, MAX_NAME_LENGTH, RedisType},
};

use super::dereference::{ClassKnowledge, Referenced, SecretState};
use crate::{
    cluster::{Backend, Defaults, Identity, Redis, Route, SecretSource, ValidatedCluster, Volume},
    facts::{Quality, SecretFacts},
    fingerprint, names, quantity,
    scale::{self, count::InstanceCount, spec::PolicyError},
};

/// Why a cluster cannot be carried out. What runs keeps running.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ValidateError {
    /// A Secret that the spec names does not exist.
    #[error(
        "Secret {namespace}/{name} does not exist; create it, or remove {field} so that one is generated"
    )]
    SecretMissing {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// Field that names it.
        field: &'static str,
    },
    /// A Secret lacks a key.
    #[error("Secret {namespace}/{name} has no key `{key}`; {remedy}")]
    SecretKeyMissing {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// The key.
        key: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A Secret has no usable content.
    #[error("Secret {namespace}/{name}: {problem}")]
    SecretValueInvalid {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// A value that the schema should have refused.
    #[error("{field}: {problem}")]
    InvalidSpec {
        /// Path of the field.
        field: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl From<PolicyError> for ValidateError {
    fn from(error: PolicyError) -> Self {
        Self::InvalidSpec { field: error.field, problem: error.problem }
    }
}

impl ValidateError {
    /// Stable reason for conditions, events and metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::SecretMissing { .. } => "SecretMissing",
            Self::SecretKeyMissing { .. } => "SecretKeyMissing",
            Self::SecretValueInvalid { .. } => "SecretValueInvalid",
            Self::InvalidSpec { .. } => "InvalidSpec",
        }
    }
}

/// Turns an API object and what it refers to into a cluster in which nothing is missing.
pub fn validate(
    cluster: &VX11Cluster,
    referenced: &Referenced,
    defaults: &Defaults,
) -> Result<ValidatedCluster, ValidateError> {
    let identity = identify(cluster)?;
    let instances = InstanceCount::new(cluster.spec.instances).ok_or_else(|| ValidateError::InvalidSpec {
        field: "spec.instances",
        problem: format!("must be 0 to {}", InstanceCount::MAX),
    })?;
    let redis = match cluster.spec.redis.type_ {
        RedisType::Standalone => Some(validate_redis(&identity, cluster, referenced, defaults)?),
        RedisType::None if instances.get() > 1 => {
            return Err(ValidateError::InvalidSpec {
                field: "spec.instances",
                problem: "must be at most 1 with spec.redis.type None, whose tokens live in one process"
                    .to_owned(),
            });
        }
        RedisType::None => None,
    };
    let scaling = scale::spec::policy(&cluster.spec)?;
    if redis.is_none() && cluster.spec.autoscaling.is_some() {
        return Err(ValidateError::InvalidSpec {
            field: "spec.autoscaling",
            problem: "needs a Redis that the instances share: set spec.redis.type to Standalone, or remove spec.autoscaling".to_owned(),
        });
    }
    Ok(ValidatedCluster {
        instances,
        scaling,
        plan: scale::spec::plan_request(&cluster.spec, None, None)?,
        paused: cluster.spec.paused,
        backend: validate_backend(&identity, cluster, referenced, defaults)?,
        redis,
        route: validate_route(cluster, referenced),
        operator_namespace: defaults.operator_namespace.clone(),
        identity,
    })
}

/// The coordinates of a cluster that the API server has accepted.
pub fn identify(cluster: &VX11Cluster) -> Result<Identity, ValidateError> {
    let metadata = &cluster.metadata;
    let (Some(name), Some(namespace), Some(uid)) = (&metadata.name, &metadata.namespace, &metadata.uid)
    else {
        return Err(ValidateError::InvalidSpec {
            field: "metadata",
            problem: "name, namespace and uid must be set, as the API server does".to_owned(),
        });
    };
    if name.len() > MAX_NAME_LENGTH {
        return Err(ValidateError::InvalidSpec {
            field: "metadata.name",
            problem: format!("must be at most {MAX_NAME_LENGTH} characters; choose a shorter name"),
        });
    }
    Ok(Identity { name: name.clone(), namespace: namespace.clone(), uid: uid.clone() })
}

fn validate_backend(
    identity: &Identity,
    cluster: &VX11Cluster,
    referenced: &Referenced,
    defaults: &Defaults,
) -> Result<Backend, ValidateError> {
    let spec = &cluster.spec.backend;
    let by_user = spec.principal_tokens.as_ref().map(|reference| reference.secret_name.clone());
    let (principals, facts) = locate(
        identity,
        by_user,
        names::principal_tokens(&identity.name),
        "spec.backend.principalTokens",
        &referenced.principals,
    )?;
    if facts.is_some_and(|facts| !facts.has_content()) {
        return Err(ValidateError::SecretValueInvalid {
            namespace: identity.namespace.clone(),
            name: principals.name().to_owned(),
            problem: "it holds no principal; add a key for each principal with its token as the value",
        });
    }
    let (signing_key, facts) =
        locate(identity, None, names::signing_key(&identity.name), "", &referenced.signing_key)?;
    for key in names::SIGNING_KEYS {
        require_key(identity, &signing_key, facts, key)?;
    }
    Ok(Backend {
        image: spec.image.clone().unwrap_or_else(|| defaults.backend_image.clone()),
        resources: resources(
            "spec.backend.resources",
            spec.resources.as_ref(),
            &[("cpu", "100m"), ("memory", "64Mi")],
            &[("memory", "256Mi")],
        )?,
        principals,
        signing_key,
        spec: spec.clone(),
    })
}

fn validate_redis(
    identity: &Identity,
    cluster: &VX11Cluster,
    referenced: &Referenced,
    defaults: &Defaults,
) -> Result<Redis, ValidateError> {
    let spec = &cluster.spec.redis;
    let by_user = spec.auth.as_ref().map(|reference| reference.secret_name.clone());
    let (auth, facts) = locate(
        identity,
        by_user,
        names::redis_auth(&identity.name),
        "spec.redis.auth",
        &referenced.redis_auth,
    )?;
    require_key(identity, &auth, facts, names::PASSWORD_KEY)?;
    let password_fingerprint = match (&auth, facts.and_then(|facts| facts.key(names::PASSWORD_KEY))) {
        (_, Some(key)) if key.quality != Quality::Text => {
            return Err(ValidateError::SecretValueInvalid {
                namespace: identity.namespace.clone(),
                name: auth.name().to_owned(),
                problem: "the value of key `password` must be one line of printable characters without blanks, quotes and backslashes; choose another password",
            });
        }
        (_, Some(key)) => key.fingerprint.clone(),
        (SecretSource::Missing(_, data), None) => data
            .expose()
            .get(names::PASSWORD_KEY)
            .map(|password| fingerprint::of_secret(password.as_bytes()))
            .unwrap_or_default(),
        (_, None) => String::new(),
    };
    let resources = resources(
        "spec.redis.resources",
        spec.resources.as_ref(),
        &[("cpu", "50m"), ("memory", "128Mi")],
        &[("memory", "256Mi")],
    )?;
    let max_memory = resources
        .limits
        .as_ref()
        .and_then(|limits| limits.get("memory"))
        .and_then(|limit| quantity::units(&limit.0))
        // The rest is for connections, the append-only buffer and the copy while it is rewritten.
        .map(|bytes| bytes / 4 * 3);
    let volume = if spec.persistence.unwrap_or(true) {
        let storage = spec.storage.as_ref();
        let size = storage.map_or("1Gi", |storage| storage.size.as_str());
        if quantity::units(size).is_none_or(|bytes| bytes == 0) {
            return Err(ValidateError::InvalidSpec {
                field: "spec.redis.storage.size",
                problem: format!("`{size}` is no size; write it like 1Gi"),
            });
        }
        Some(Volume {
            size: size.to_owned(),
            class: storage.and_then(|storage| storage.storage_class_name.clone()),
        })
    } else {
        None
    };
    Ok(Redis {
        image: spec.image.clone().unwrap_or_else(|| defaults.redis_image.clone()),
        resources,
        max_memory,
        database: spec.database,
        volume,
        auth,
        password_fingerprint,
    })
}

fn validate_route(cluster: &VX11Cluster, referenced: &Referenced) -> Option<Route> {
    let spec = &cluster.spec.load_balancer;
    match spec.type_ {
        LoadBalancerType::None => None,
        LoadBalancerType::Ingress => {
            let ingress = spec.ingress.clone().unwrap_or_default();
            Some(Route {
                host: spec.host.clone(),
                tls_secret: spec.tls_secret_name.clone(),
                stream_timeout_seconds: spec.stream_timeout_seconds,
                class_name: ingress.class_name,
                controller: match &referenced.class {
                    ClassKnowledge::Served { controller, .. } => Some(controller.clone()),
                    ClassKnowledge::Missing { .. } | ClassKnowledge::NoDefault | ClassKnowledge::Unknown => {
                        None
                    }
                },
                is_unserved: matches!(
                    referenced.class,
                    ClassKnowledge::Missing { .. } | ClassKnowledge::NoDefault
                ),
                annotations: ingress.annotations,
            })
        }
    }
}

/// Where a Secret comes from, and its facts when it exists.
fn locate<'a>(
    identity: &Identity,
    by_user: Option<String>,
    generated: String,
    field: &'static str,
    state: &'a SecretState,
) -> Result<(SecretSource, Option<&'a SecretFacts>), ValidateError> {
    match (by_user, state) {
        (Some(name), SecretState::Found(facts)) => Ok((SecretSource::Referenced(name), Some(facts))),
        (Some(name), SecretState::Missing | SecretState::Drawn(_)) => {
            Err(ValidateError::SecretMissing { namespace: identity.namespace.clone(), name, field })
        }
        (None, SecretState::Found(facts)) => Ok((SecretSource::Generated(generated), Some(facts))),
        (None, SecretState::Drawn(data)) => Ok((SecretSource::Missing(generated, data.clone()), None)),
        (None, SecretState::Missing) => Err(ValidateError::SecretMissing {
            namespace: identity.namespace.clone(),
            name: generated,
            field: "nothing, the controller generates it",
        }),
    }
}

/// A Secret that exists must have the key; one that is about to be made will.
fn require_key(
    identity: &Identity,
    source: &SecretSource,
    facts: Option<&SecretFacts>,
    key: &'static str,
) -> Result<(), ValidateError> {
    let Some(facts) = facts else { return Ok(()) };
    if facts.key(key).is_some_and(|key| key.quality != Quality::Empty) {
        return Ok(());
    }
    Err(ValidateError::SecretKeyMissing {
        namespace: identity.namespace.clone(),
        name: source.name().to_owned(),
        key,
        remedy: match source {
            SecretSource::Referenced(_) => "add the key with a value",
            SecretSource::Generated(_) | SecretSource::Missing(..) => {
                "restore the key, or delete the Secret so that a new one is generated"
            }
        },
    })
}

/// The user's resources, or the default ones. A request above its limit is the schema's blind spot.
fn resources(
    field: &'static str,
    given: Option<&spec::ResourceRequirements>,
    requests: &[(&str, &str)],
    limits: &[(&str, &str)],
) -> Result<ResourceRequirements, ValidateError> {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        pairs.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
    };
    let (requests, limits) = match given {
        Some(given) => (given.requests.clone(), given.limits.clone()),
        None => (map(requests), map(limits)),
    };
    for (name, amount) in requests.iter().chain(&limits) {
        if quantity::billionths(&amount.0).is_none_or(|amount| amount < 0) {
            return Err(ValidateError::InvalidSpec {
                field,
                problem: format!("`{}` is no amount of {name}; write it like 500m or 256Mi", amount.0),
            });
        }
    }
    for (name, limit) in &limits {
        if let Some(request) = requests.get(name)
            && quantity::billionths(&request.0) > quantity::billionths(&limit.0)
        {
            return Err(ValidateError::InvalidSpec {
                field,
                problem: format!(
                    "the request of {} {name} is above its limit {}; lower it or raise the limit",
                    request.0, limit.0
                ),
            });
        }
    }
    Ok(ResourceRequirements {
        requests: (!requests.is_empty()).then_some(requests),
        limits: (!limits.is_empty()).then_some(limits),
        claims: None,
    })
}

#[cfg(test)]
mod tests;
