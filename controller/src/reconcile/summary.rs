//! Status from what was seen: conditions, phase, counts, and which of them changed. Pure.

mod board;
mod part;

use jiff::Timestamp;
use vx11_crds::{
    VX11Cluster, VX11ClusterStatus,
    spec::{LoadBalancerType, RedisType},
    status::{Phase, RedisState, RedisStatus},
};

use self::{
    board::{Board, Telling},
    part::{DISABLED, Part, backend_part, redis_part, route_part},
};
use super::{dereference::Referenced, inspect::Inspected};
use crate::{diagnose::Trouble, names, scale::report::ScalingReport};

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
    /// Why decisions cannot be recorded.
    pub unrecorded: Option<Trouble>,
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
    /// The condition, or what else changed. Events of one reason about different things stay apart by it.
    pub about: &'static str,
    /// It got worse.
    pub warning: bool,
    /// Reason of the condition.
    pub reason: String,
    /// Message of the condition.
    pub message: String,
}

/// Makes the status.
#[must_use]
pub fn summarise(findings: &Findings) -> Summary {
    let parts =
        Parts { redis: redis_part(findings), backend: backend_part(findings), route: route_part(findings) };
    let outlook = Outlook::new(findings, &parts);
    let board = write_conditions(findings, &parts, &outlook);
    let deployment = findings.inspected.deployment.clone().unwrap_or_default();
    let report = findings.scaling.cloned().unwrap_or_default();
    let status = VX11ClusterStatus {
        observed_generation: findings.cluster.metadata.generation,
        phase: Some(phase(findings, &outlook, deployment.ready)),
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
            state: match (findings.cluster.spec.redis.type_, &parts.redis) {
                (RedisType::None, _) => RedisState::Disabled,
                (RedisType::Standalone, Part::Ready { .. }) => RedisState::Ready,
                (RedisType::Standalone, _) => RedisState::Unavailable,
            },
        }),
    };
    Summary {
        settled: outlook.all_ready && outlook.degraded.is_none() && outlook.progress.is_none(),
        status,
        transitions: board.transitions,
    }
}

/// The parts of a cluster.
struct Parts {
    redis: Part,
    backend: Part,
    route: Part,
}

/// The parts taken together.
struct Outlook {
    /// What is wrong; the first thing, when there are several.
    degraded: Option<Trouble>,
    /// It is a part's own trouble, which the part's condition tells as well.
    degraded_by_part: bool,
    /// What is on its way.
    progress: Option<Trouble>,
    /// What keeps the cluster from being ready.
    obstacle: Option<Trouble>,
    all_ready: bool,
}

impl Outlook {
    fn new(findings: &Findings, parts: &Parts) -> Self {
        let all = [&parts.redis, &parts.backend, &parts.route];
        let broken = all.iter().find_map(|part| match part {
            Part::Broken(trouble) => Some(trouble.clone()),
            Part::Ready { .. } | Part::Starting(_) => None,
        });
        let starting = all.iter().find_map(|part| match part {
            Part::Starting(trouble) => Some(trouble.clone()),
            Part::Ready { .. } | Part::Broken(_) => None,
        });
        let changing = all.iter().find_map(|part| match part {
            Part::Ready { changing: true, reason, message } => Some(Trouble::new(reason, message)),
            Part::Ready { .. } | Part::Starting(_) | Part::Broken(_) => None,
        });
        let of_the_whole = findings.invalid.as_ref().or(findings.failures.first()).cloned();
        let unrecorded = findings.unrecorded.clone();
        let degraded_by_part = of_the_whole.is_none() && (broken.is_some() || unrecorded.is_none());
        let degraded = of_the_whole.or(broken);
        Self {
            degraded_by_part,
            obstacle: degraded.clone().or_else(|| starting.clone()),
            // Somebody has to do something about it, but it keeps the cluster from nothing.
            degraded: degraded.or(unrecorded),
            progress: starting.or(changing),
            all_ready: all.iter().all(|part| part.is_ready()),
        }
    }
}

fn write_conditions<'a>(findings: &Findings<'a>, parts: &Parts, outlook: &Outlook) -> Board<'a> {
    let mut board = Board::new(findings);
    let told = |trouble: &Option<Trouble>, holds: bool, otherwise: (&'static str, &'static str)| match trouble
    {
        Some(trouble) => (holds, trouble.reason, trouble.message.clone()),
        None => (!holds, otherwise.0, otherwise.1.to_owned()),
    };
    let (holds, reason, message) =
        told(&outlook.obstacle, false, ("AllReady", "everything is as the spec says"));
    board.set("Ready", (holds, reason, &message), Telling::Quiet);
    let (holds, reason, message) = told(&outlook.progress, true, ("Settled", "no change is on its way"));
    board.set("Progressing", (holds, reason, &message), Telling::Quiet);
    let (holds, reason, message) = told(&outlook.degraded, true, ("NothingWrong", "nothing is wrong"));
    let telling = if outlook.degraded_by_part { Telling::Quiet } else { Telling::Warning };
    board.set("Degraded", (holds, reason, &message), telling);

    for (type_, part) in
        [("RedisReady", &parts.redis), ("BackendReady", &parts.backend), ("LoadBalancerReady", &parts.route)]
    {
        let telling = match part {
            Part::Ready { reason: DISABLED, .. } | Part::Starting(_) => Telling::Quiet,
            Part::Ready { .. } => Telling::News,
            Part::Broken(_) => Telling::Warning,
        };
        board.set(type_, part.told(), telling);
    }
    set_paused(&mut board, findings.cluster.spec.paused);

    for condition in findings.scaling.iter().flat_map(|report| &report.conditions) {
        let telling = if condition.warning { Telling::Warning } else { Telling::Quiet };
        board.set_status(condition.type_, (condition.status, condition.reason, &condition.message), telling);
    }
    board
}

fn phase(findings: &Findings, outlook: &Outlook, ready: i32) -> Phase {
    if findings.cluster.spec.paused {
        Phase::Paused
    } else if findings.invalid.is_some() {
        Phase::Invalid
    } else if outlook.degraded.is_some() {
        Phase::Degraded
    } else if outlook.progress.is_none() {
        Phase::Ready
    } else if ready == 0 && findings.desired != Some(0) {
        Phase::Pending
    } else {
        Phase::Progressing
    }
}

fn set_paused(board: &mut Board, paused: bool) {
    let condition = if paused {
        (true, "SpecPaused", "spec.paused is true: the controller writes nothing but status")
    } else {
        (false, "SpecNotPaused", "the controller keeps the objects as the spec says")
    };
    let telling = if paused || board.was("Paused", "True") { Telling::News } else { Telling::Quiet };
    board.set("Paused", condition, telling);
}

fn endpoint(findings: &Findings) -> Option<String> {
    let spec = &findings.cluster.spec.load_balancer;
    if spec.type_ == LoadBalancerType::None {
        let name = names::backend(findings.cluster.metadata.name.as_deref()?);
        let namespace = findings.cluster.metadata.namespace.as_deref()?;
        return Some(format!("http://{name}.{namespace}.svc:{}", names::HTTP_PORT));
    }
    let scheme = if spec.tls_secret_name.is_some() { "https" } else { "http" };
    let address = findings.inspected.ingress.as_ref().and_then(|ingress| ingress.address.clone());
    let host = spec.host.clone().filter(|host| !host.starts_with("*.")).or(address)?;
    // An IPv6 address needs brackets in a URL.
    Some(if host.contains(':') { format!("{scheme}://[{host}]") } else { format!("{scheme}://{host}") })
}

#[cfg(test)]
mod tests;
