//! Status from what was seen: conditions, phase, counts, and which of them changed. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use vx11_crds::{
    VX11Cluster, VX11ClusterStatus,
    spec::{LoadBalancerType, RedisType},
    status::{Phase, RedisState, RedisStatus},
};

use super::{
    dereference::{ClassKnowledge, Referenced},
    inspect::Inspected,
};
use crate::{
    diagnose::Trouble,
    names,
    scale::report::{News, ScalingReport},
};

/// Seconds that a route may take to get an address before somebody is told.
const ADDRESS_PATIENCE_SECONDS: i64 = 30;

/// Everything that status is made of.
#[derive(Clone, Debug)]
pub struct Findings<'a> {
    /// The cluster, for its spec and generation.
    pub cluster: &'a VX11Cluster,
    /// The status before.
    pub previous: &'a VX11ClusterStatus,
    /// Instances that there should be; `None` when the spec cannot be carried out.
    pub desired: Option<i32>,
    /// What the spec refers to.
    pub referenced: &'a Referenced,
    /// Why the spec cannot be carried out.
    pub invalid: Option<Trouble>,
    /// Objects that could not be written.
    pub failures: Vec<Trouble>,
    /// The objects as they are.
    pub inspected: &'a Inspected,
    /// Load and count; `None` when the spec cannot be carried out.
    pub scaling: Option<&'a ScalingReport>,
    /// A decision worth an event.
    pub scaling_news: Option<News>,
    /// The clock.
    pub now: Timestamp,
}

/// The new status and what is worth an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The status; equal to the previous one when nothing changed.
    pub status: VX11ClusterStatus,
    /// Conditions that changed in a way that a person wants to know of.
    pub transitions: Vec<Transition>,
    /// Nothing is on its way and nothing is wrong.
    pub settled: bool,
}

/// A condition that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// It got worse.
    pub warning: bool,
    /// Reason of the condition.
    pub reason: String,
    /// Message of the condition.
    pub message: String,
}

/// State of one part of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
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
        Self::Ready {
            reason,
            message: message.into(),
            changing: false,
        }
    }

    const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    fn told(&self) -> (bool, &'static str, &str) {
        match self {
            Self::Ready { reason, message, .. } => (true, reason, message),
            Self::Starting(trouble) | Self::Broken(trouble) => (false, trouble.reason, &trouble.message),
        }
    }
}

/// Makes the status.
#[must_use]
pub fn summarise(findings: &Findings) -> Summary {
    let redis = redis_part(findings);
    let backend = backend_part(findings);
    let route = route_part(findings);
    let parts = [&redis, &backend, &route];

    let first_broken = parts.iter().find_map(|part| match part {
        Part::Broken(trouble) => Some(trouble),
        Part::Ready { .. } | Part::Starting(_) => None,
    });
    let first_starting = parts.iter().find_map(|part| match part {
        Part::Starting(trouble) => Some(trouble),
        Part::Ready { .. } | Part::Broken(_) => None,
    });
    let changing = parts.iter().find_map(|part| match part {
        Part::Ready {
            changing: true,
            reason,
            message,
        } => Some(Trouble::new(reason, message)),
        _ => None,
    });
    let degraded = findings
        .invalid
        .as_ref()
        .or(findings.failures.first())
        .or(first_broken);
    let paused = findings.cluster.spec.paused;
    let all_ready = parts.iter().all(|part| part.is_ready());

    let mut board = Board::new(findings);
    let ready = match (degraded, first_starting) {
        (Some(trouble), _) if findings.invalid.is_some() || !findings.failures.is_empty() || !all_ready => {
            (false, trouble.reason, trouble.message.as_str())
        }
        (_, Some(trouble)) => (false, trouble.reason, trouble.message.as_str()),
        _ => (true, "AllReady", "everything is as the spec says"),
    };
    board.set("Ready", ready, Telling::Quiet);
    let progressing = match first_starting.or(changing.as_ref()) {
        Some(trouble) => (true, trouble.reason, trouble.message.as_str()),
        None => (false, "Settled", "no change is on its way"),
    };
    board.set("Progressing", progressing, Telling::Quiet);
    match degraded {
        Some(trouble) => board.set(
            "Degraded",
            (true, trouble.reason, &trouble.message),
            if first_broken == Some(trouble) {
                // The part's own condition tells it.
                Telling::Quiet
            } else {
                Telling::Warning
            },
        ),
        None => board.set(
            "Degraded",
            (false, "NothingWrong", "nothing is wrong"),
            Telling::Quiet,
        ),
    }
    for (type_, part) in [
        ("RedisReady", &redis),
        ("BackendReady", &backend),
        ("LoadBalancerReady", &route),
    ] {
        let telling = match part {
            Part::Ready { .. } => Telling::News,
            Part::Starting(_) => Telling::Quiet,
            Part::Broken(_) => Telling::Warning,
        };
        board.set(type_, part.told(), telling);
    }
    let pause = if paused {
        (
            true,
            "SpecPaused",
            "spec.paused is true: the controller writes nothing but status",
        )
    } else {
        (
            false,
            "SpecNotPaused",
            "the controller keeps the objects as the spec says",
        )
    };
    let tell_pause = if paused || board.was("Paused", "True") {
        Telling::News
    } else {
        Telling::Quiet
    };
    board.set("Paused", pause, tell_pause);

    for condition in findings.scaling.iter().flat_map(|report| &report.conditions) {
        let telling = if condition.warning {
            Telling::Warning
        } else {
            Telling::Quiet
        };
        board.set_status(
            condition.type_,
            (condition.status, condition.reason, &condition.message),
            telling,
        );
    }
    board
        .transitions
        .extend(findings.scaling_news.clone().map(|news| Transition {
            warning: news.warning,
            reason: news.reason.to_owned(),
            message: news.message,
        }));

    let deployment = findings.inspected.deployment.clone().unwrap_or_default();
    let report = findings.scaling.cloned().unwrap_or_default();
    let is_changing = first_starting.is_some() || changing.is_some();
    let phase = if paused {
        Phase::Paused
    } else if findings.invalid.is_some() {
        Phase::Invalid
    } else if degraded.is_some() {
        Phase::Degraded
    } else if !is_changing {
        Phase::Ready
    } else if deployment.ready == 0 && findings.desired != Some(0) {
        Phase::Pending
    } else {
        Phase::Progressing
    };
    let status = VX11ClusterStatus {
        observed_generation: findings.cluster.metadata.generation,
        phase: Some(phase),
        conditions: board.conditions,
        selector: Some(names::backend_selector_text(
            findings.cluster.metadata.name.as_deref().unwrap_or_default(),
        )),
        instances: deployment.replicas,
        ready_instances: deployment.ready,
        desired_instances: findings.desired.unwrap_or(findings.cluster.spec.instances),
        load: report.load,
        capacity: report.capacity,
        utilization_percent: report.utilization_percent,
        scaling: report.scaling,
        recommendation: report.recommendation,
        estimated_cost_per_hour: report.estimated_cost_per_hour,
        endpoint: endpoint(findings),
        redis: Some(RedisStatus {
            state: match (findings.cluster.spec.redis.type_, &redis) {
                (RedisType::None, _) => RedisState::Disabled,
                (RedisType::Standalone, Part::Ready { .. }) => RedisState::Ready,
                (RedisType::Standalone, _) => RedisState::Unavailable,
            },
        }),
    };
    Summary {
        settled: all_ready && degraded.is_none() && !is_changing,
        status,
        transitions: board.transitions,
    }
}

fn redis_part(findings: &Findings) -> Part {
    if findings.cluster.spec.redis.type_ == RedisType::None {
        return Part::ready(
            "Disabled",
            "spec.redis.type is None: tokens live in the instance's memory",
        );
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

fn backend_part(findings: &Findings) -> Part {
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
            (_, false) if deployment.updated >= deployment.replicas && deployment.replicas > desired => (
                "ScalingIn",
                format!("{} instances serve, on the way to {desired}", deployment.ready),
            ),
            (_, false) => (
                "RollingOut",
                format!(
                    "{count}; {} of {desired} run the latest template",
                    deployment.updated
                ),
            ),
        };
        return Part::Ready {
            reason,
            message,
            changing: !rolled_out,
        };
    }
    if let Some(trouble) = trouble {
        return Part::Broken(Trouble::new(
            trouble.reason,
            format!("{count}: {}", trouble.message),
        ));
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

fn route_part(findings: &Findings) -> Part {
    let spec = &findings.cluster.spec.load_balancer;
    if spec.type_ == LoadBalancerType::None {
        return Part::ready(
            "Disabled",
            "spec.loadBalancer.type is None: clients use the Service",
        );
    }
    match &findings.referenced.class {
        ClassKnowledge::Missing { name } => {
            return Part::Broken(Trouble::new(
                "IngressClassMissing",
                format!(
                    "no IngressClass is named {name}, so that nobody serves the Ingress; install its controller, or correct spec.loadBalancer.ingress.className"
                ),
            ));
        }
        ClassKnowledge::NoDefault => {
            return Part::Broken(Trouble::new(
                "NoDefaultIngressClass",
                "no IngressClass is the default one, so that nobody serves the Ingress; set spec.loadBalancer.ingress.className, or spec.loadBalancer.type to None",
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
    if let Some(address) = &ingress.address {
        return Part::ready("RouteServes", format!("the route is served at {address}"));
    }
    let age = ingress
        .created
        .map_or(0, |created| findings.now.duration_since(created).as_secs());
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

fn endpoint(findings: &Findings) -> Option<String> {
    let spec = &findings.cluster.spec.load_balancer;
    if spec.type_ == LoadBalancerType::None {
        let name = names::backend(findings.cluster.metadata.name.as_deref()?);
        let namespace = findings.cluster.metadata.namespace.as_deref()?;
        return Some(format!("http://{name}.{namespace}.svc:{}", names::HTTP_PORT));
    }
    let scheme = if spec.tls_secret_name.is_some() {
        "https"
    } else {
        "http"
    };
    let address = findings
        .inspected
        .ingress
        .as_ref()
        .and_then(|ingress| ingress.address.clone());
    let host = spec
        .host
        .clone()
        .filter(|host| !host.starts_with("*."))
        .or(address)?;
    // An IPv6 address needs brackets in a URL.
    Some(if host.contains(':') {
        format!("{scheme}://[{host}]")
    } else {
        format!("{scheme}://{host}")
    })
}

/// Whether a change of a condition is told by an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Telling {
    Quiet,
    News,
    Warning,
}

/// The conditions as they are being written, against the ones before.
struct Board<'a> {
    previous: &'a [Condition],
    generation: Option<i64>,
    now: Timestamp,
    conditions: Vec<Condition>,
    transitions: Vec<Transition>,
}

impl<'a> Board<'a> {
    fn new(findings: &Findings<'a>) -> Self {
        Self {
            previous: &findings.previous.conditions,
            generation: findings.cluster.metadata.generation,
            now: findings.now,
            conditions: Vec::new(),
            transitions: Vec::new(),
        }
    }

    fn was(&self, type_: &str, status: &str) -> bool {
        self.previous
            .iter()
            .any(|condition| condition.type_ == type_ && condition.status == status)
    }

    fn set(&mut self, type_: &str, (holds, reason, message): (bool, &str, &str), telling: Telling) {
        self.set_status(type_, (Some(holds), reason, message), telling);
    }

    fn set_status(
        &mut self,
        type_: &str,
        (holds, reason, message): (Option<bool>, &str, &str),
        telling: Telling,
    ) {
        let status = match holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let before = self.previous.iter().find(|condition| condition.type_ == type_);
        let since = before.filter(|condition| condition.status == status).map_or_else(
            || Time(self.now),
            |condition| condition.last_transition_time.clone(),
        );
        let changed = before.is_none_or(|before| before.status != status || before.reason != reason);
        if changed && telling != Telling::Quiet {
            self.transitions.push(Transition {
                warning: telling == Telling::Warning,
                reason: reason.to_owned(),
                message: message.to_owned(),
            });
        }
        self.conditions.push(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: self.generation,
            last_transition_time: since,
        });
    }
}

#[cfg(test)]
mod tests;
