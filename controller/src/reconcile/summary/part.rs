//! The parts of a cluster, each ready, starting or broken, with the reason and the remedy. Pure.

use vx11_crds::spec::{LoadBalancerType, RedisType};

use super::Findings;
use crate::{diagnose::Trouble, names, reconcile::dereference::ClassKnowledge};

/// Seconds that a route may take to get an address before somebody is told.
const ADDRESS_PATIENCE_SECONDS: i64 = 30;

/// Reason of a part that the spec does not ask for.
pub(super) const DISABLED: &str = "Disabled";

/// State of one part of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It does what it should.
    Ready {
        reason: &'static str,
        message: String,
        /// A change is on its way while it serves.
        changing: bool,
    },
    /// It will, by itself.
    Starting(Trouble),
    /// It will not without help, or it did and does no more.
    Broken(Trouble),
}

impl Part {
    fn ready(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Ready { reason, message: message.into(), changing: false }
    }

    pub(super) const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    pub(super) fn told(&self) -> (bool, &'static str, &str) {
        match self {
            Self::Ready { reason, message, .. } => (true, reason, message),
            Self::Starting(trouble) | Self::Broken(trouble) => (false, trouble.reason, &trouble.message),
        }
    }
}

/// The Redis.
pub(super) fn redis_part(findings: &Findings) -> Part {
    if findings.cluster.spec.redis.type_ == RedisType::None {
        return Part::ready(DISABLED, "spec.redis.type is None: tokens live in the instance's memory");
    }
    let Some(set) = &findings.inspected.stateful_set else {
        return Part::Starting(Trouble::new(
            "RedisStarting",
            "the StatefulSet of the Redis is not there yet",
        ));
    };
    if set.ready > 0 {
        let ready = Part::ready("RedisServes", "the Redis answers");
        return if set.updating || !set.observed {
            Part::Ready {
                reason: "RedisUpdating",
                message: "the Redis answers and is about to restart with a change".to_owned(),
                changing: true,
            }
        } else {
            ready
        };
    }
    if let Some(trouble) = &findings.inspected.redis_trouble {
        return Part::Broken(trouble.clone());
    }
    if set.updating || !set.observed {
        return Part::Starting(Trouble::new("RedisUpdating", "the Redis restarts with a change"));
    }
    if was_ready_or(findings, "RedisReady", "RedisUnavailable") {
        return Part::Broken(Trouble::new(
            "RedisUnavailable",
            format!(
                "the Redis does not answer; instances issue signed tokens and keep their streams; see kubectl describe pod {}-0",
                names::redis(findings.cluster.metadata.name.as_deref().unwrap_or_default())
            ),
        ));
    }
    Part::Starting(Trouble::new("RedisStarting", "the Redis starts"))
}

/// The instances.
pub(super) fn backend_part(findings: &Findings) -> Part {
    let Some(deployment) = &findings.inspected.deployment else {
        return Part::Starting(Trouble::new(
            "InstancesStarting",
            "the Deployment of the instances is not there yet",
        ));
    };
    let desired = findings.desired.unwrap_or(deployment.desired);
    let count = format!("{} of {desired} instances serve", deployment.ready);
    let rolled_out = deployment.observed
        && deployment.desired == desired
        && deployment.updated >= desired
        && deployment.replicas <= deployment.updated;
    let trouble = findings.inspected.backend_trouble.as_ref();
    if deployment.ready >= desired && (trouble.is_none() || rolled_out) {
        let (reason, message) = match (desired, rolled_out) {
            (0, true) => ("Stopped", "spec.instances is 0: no instance runs".to_owned()),
            (_, true) => ("InstancesServe", count),
            (_, false) if deployment.updated >= deployment.replicas && deployment.replicas > desired => {
                ("ScalingIn", format!("{} instances serve, on the way to {desired}", deployment.ready))
            }
            (_, false) => (
                "RollingOut",
                format!("{count}; {} of {desired} run the latest template", deployment.updated),
            ),
        };
        return Part::Ready { reason, message, changing: !rolled_out };
    }
    if let Some(trouble) = trouble {
        return Part::Broken(Trouble::new(trouble.reason, format!("{count}: {}", trouble.message)));
    }
    if deployment.stuck {
        return Part::Broken(Trouble::new(
            "RolloutStuck",
            format!(
                "{count}, and no progress within 10 minutes; see kubectl describe deployment {}",
                names::backend(findings.cluster.metadata.name.as_deref().unwrap_or_default())
            ),
        ));
    }
    // Fewer than before without anybody having asked for it.
    let same_wish = findings.previous.desired_instances == desired
        && findings.previous.observed_generation == findings.cluster.metadata.generation;
    if rolled_out && same_wish && was_ready_or(findings, "BackendReady", "InstancesLost") {
        return Part::Broken(Trouble::new(
            "InstancesLost",
            format!("{count}; the missing ones are being replaced"),
        ));
    }
    Part::Starting(Trouble::new("InstancesStarting", count))
}

/// The route.
pub(super) fn route_part(findings: &Findings) -> Part {
    let spec = &findings.cluster.spec.load_balancer;
    if spec.type_ == LoadBalancerType::None {
        return Part::ready(DISABLED, "spec.loadBalancer.type is None: clients use the Service");
    }
    let address = findings.inspected.ingress.as_ref().and_then(|ingress| ingress.address.as_ref());
    // The apply leaves an Ingress alone that nobody would serve as the spec wants it.
    let so = match address {
        Some(address) => format!("the Ingress stays as it was, at {address}"),
        None => "nobody serves the Ingress".to_owned(),
    };
    match &findings.referenced.class {
        ClassKnowledge::Missing { name } => {
            return Part::Broken(Trouble::new(
                "IngressClassMissing",
                format!(
                    "no IngressClass is named {name}, so that {so}; install its controller, or correct spec.loadBalancer.ingress.className"
                ),
            ));
        }
        ClassKnowledge::NoDefault => {
            return Part::Broken(Trouble::new(
                "NoDefaultIngressClass",
                format!(
                    "no IngressClass is the default one, so that {so}; set spec.loadBalancer.ingress.className, or spec.loadBalancer.type to None"
                ),
            ));
        }
        ClassKnowledge::Served { .. } | ClassKnowledge::Unknown => {}
    }
    if findings.referenced.tls_secret_exists == Some(false) {
        let name = spec.tls_secret_name.as_deref().unwrap_or_default();
        return Part::Broken(Trouble::new(
            "TlsSecretMissing",
            format!("Secret {name} with the certificate does not exist; create it with tls.crt and tls.key"),
        ));
    }
    let Some(ingress) = &findings.inspected.ingress else {
        return Part::Starting(Trouble::new("RouteStarting", "the Ingress is not there yet"));
    };
    if let Some(address) = address {
        return Part::ready("RouteServes", format!("the route is served at {address}"));
    }
    let age = ingress.created.map_or(0, |created| findings.now.duration_since(created).as_secs());
    if age < ADDRESS_PATIENCE_SECONDS {
        return Part::Starting(Trouble::new("RouteStarting", "the Ingress has no address yet"));
    }
    let class = match &findings.referenced.class {
        ClassKnowledge::Served { name, .. } => format!("IngressClass {name}"),
        _ => "its class".to_owned(),
    };
    Part::Broken(Trouble::new(
        "NoAddress",
        format!(
            "Ingress {} has no address after {ADDRESS_PATIENCE_SECONDS} s: nobody serves {class}; check that its controller runs and publishes an address",
            names::ingress(findings.cluster.metadata.name.as_deref().unwrap_or_default())
        ),
    ))
}

/// Whether a condition was true, or already false for this reason: it had been reached and was lost.
fn was_ready_or(findings: &Findings, type_: &str, lost: &str) -> bool {
    findings
        .previous
        .conditions
        .iter()
        .any(|condition| condition.type_ == type_ && (condition.status == "True" || condition.reason == lost))
}
