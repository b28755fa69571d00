//! What status says about load and count. Pure.
//!
//! Figures move all the time; status must not. So they are taken over at most every 15 seconds, or with a
//! decision that tells another story; and what is equal is not written.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use vx11_crds::status::{CapacityStatus, LoadStatus, ScalingStatus, VX11ClusterStatus};

use super::{
    capacity::Load,
    decision::{Action, BlockerKind, Decision, Reason},
    observation::{Instance, Lifecycle, Moment, Observation, Observed},
    plan::{self, Request},
    policy::{Policy, Target},
    text,
};

/// Least time between two refreshes of figures.
const REFRESH_MS: u64 = 15_000;
/// An instance may miss a look or two before a person is told.
const PATIENCE_MS: u64 = 10_000;

/// The scaling part of a status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScalingReport {
    /// Observed load.
    pub load: Option<LoadStatus>,
    /// Capacity of the serving instances.
    pub capacity: Option<CapacityStatus>,
    /// How full they are.
    pub utilization_percent: Option<i32>,
    /// The decision.
    pub scaling: Option<ScalingStatus>,
    /// Verdict of the decision tree.
    pub recommendation: Option<String>,
    /// Dollars an hour.
    pub estimated_cost_per_hour: Option<String>,
    /// ScalingActive, ScalingLimited, Draining.
    pub conditions: Vec<ScalingCondition>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalingCondition {
    /// Its type.
    pub type_: &'static str,
    /// `None` is Unknown.
    pub status: Option<bool>,
    /// Its stable reason.
    pub reason: &'static str,
    /// What it says.
    pub message: String,
    /// A person should be told when it becomes so.
    pub warning: bool,
}

/// A change of the count that is worth an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Reason of the event.
    pub reason: &'static str,
    /// Its text.
    pub message: String,
    /// Something is in the way, or went wrong.
    pub warning: bool,
}

/// Everything that a report is made of.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What was asked.
    pub policy: &'a Policy,
    /// What was seen.
    pub observed: &'a Observation,
    /// What was decided.
    pub decision: &'a Decision,
    /// What to plan for, apart from the load.
    pub request: &'a Request,
    /// The status before.
    pub previous: &'a VX11ClusterStatus,
    /// Milliseconds since figures were last taken over; `None` when they never were.
    pub figures_age_ms: Option<u64>,
    /// The decision tells another story than the one before.
    pub is_news: bool,
    /// Nothing of it is carried out.
    pub paused: bool,
}

/// Makes the report; the second value says whether the figures are fresh.
#[must_use]
pub fn report(subject: &Subject) -> (ScalingReport, bool) {
    let fresh = subject.is_news || subject.figures_age_ms.is_none_or(|age| age >= REFRESH_MS);
    let conditions = conditions(subject);
    if !fresh {
        let previous = subject.previous;
        let report = ScalingReport {
            load: previous.load.clone(),
            capacity: previous.capacity.clone(),
            utilization_percent: previous.utilization_percent,
            scaling: previous.scaling.clone(),
            recommendation: previous.recommendation.clone(),
            estimated_cost_per_hour: previous.estimated_cost_per_hour.clone(),
            conditions,
        };
        return (report, false);
    }
    let Subject { policy, observed, decision, .. } = subject;
    let load = observed.load();
    let serving = observed.count(Lifecycle::Ready);
    let capacity = policy.model.capacity(serving);
    let verdict = plan::plan(&Request { load: load.max(subject.request.load), ..*subject.request });
    let report = ScalingReport {
        load: Some(LoadStatus {
            clients: signed(load.clients),
            issuances_per_second: signed(load.issuances_per_second),
            reporting: count(observed.reporting()),
        }),
        capacity: Some(CapacityStatus {
            clients: signed(capacity.clients),
            issuances_per_second: signed(capacity.issuances_per_second),
        }),
        utilization_percent: Some(utilization(policy, load, serving)),
        scaling: Some(ScalingStatus {
            desired: count(decision.desired),
            reason: decision.reason.as_str().to_owned(),
            message: if subject.paused && !decision.actions.is_empty() {
                format!("{}; paused, so that nothing of it is done", decision.message)
            } else {
                decision.message.clone()
            },
            last_scale_time: last_scale_time(subject),
            blocked_by: decision.blocked_by.iter().map(ToString::to_string).collect(),
        }),
        recommendation: Some(verdict.recommendation),
        estimated_cost_per_hour: Some(plan::cost_per_hour(replicas(subject), subject.request.cost)),
        conditions,
    };
    (report, true)
}

/// What to tell about a decision that differs from the one before.
#[must_use]
pub fn news(observed: &Observation, decision: &Decision) -> Option<News> {
    let changes = decision.replicas(observed.replicas) != observed.replicas;
    let (reason, warning) = match decision.reason {
        Reason::Fixed if changes => ("Scaled", false),
        Reason::Steady | Reason::Fixed | Reason::Stabilizing | Reason::Rebalancing => return None,
        Reason::ScaleInBlocked => {
            let blind = decision.blocked_by.iter().any(|blocker| blocker.kind == BlockerKind::MetricsMissing);
            (decision.reason.as_str(), blind)
        }
        Reason::WrongInstanceRemoved => (decision.reason.as_str(), true),
        Reason::ScaleOut | Reason::Draining | Reason::ScaleIn | Reason::DrainCancelled => {
            (decision.reason.as_str(), false)
        }
    };
    Some(News { reason, message: decision.message.clone(), warning })
}

fn conditions(subject: &Subject) -> Vec<ScalingCondition> {
    let Subject { policy, observed, decision, .. } = subject;
    let silent: Vec<(&Instance, &str)> = observed
        .instances
        .iter()
        .filter(|instance| instance.may_hold_streams() && is_silent(&instance.load))
        .filter_map(|instance| instance.load.reason().map(|reason| (instance, reason)))
        .collect();
    let by_load = matches!(policy.target, Target::Load { .. });
    let active = match (by_load, silent.first()) {
        (false, _) => (Some(false), "NotConfigured", "spec.instances sets the count".to_owned()),
        (true, None) => (Some(true), "LoadKnown", "the load sets the count".to_owned()),
        (true, Some((_, reason))) => {
            let names = text::names(silent.iter().map(|(instance, _)| instance.name.as_str()));
            let message =
                format!("the load of {names} is not known ({reason}): nothing is removed until it is");
            (None, "MetricsMissing", message)
        }
    };
    let limited = match policy.target {
        Target::Load { max, .. } if decision.limited() => {
            let each = policy.model.usable_each(decision.needed).clients;
            let message = format!(
                "the load needs {} ({} clients each), maxInstances allows {max}: raise spec.autoscaling.maxInstances to {}",
                text::counted(decision.needed.into(), "instance"),
                text::thousands(each),
                decision.needed
            );
            (Some(true), "MaxInstances", message)
        }
        _ => {
            (Some(false), "WithinBounds", "the load needs no more instances than the spec allows".to_owned())
        }
    };
    let draining = observed.count(Lifecycle::Draining) > 0
        || decision.actions.iter().any(|action| matches!(action, Action::Mark { .. }));
    let draining = if draining {
        let names = text::names(decision.victims.iter().map(String::as_str));
        (Some(true), "ScaleIn", format!("{names} drained to be removed"))
    } else {
        (Some(false), "NothingDrains", "no instance is being drained".to_owned())
    };
    [("ScalingActive", active), ("ScalingLimited", limited), ("Draining", draining)]
        .map(|(type_, (status, reason, message))| {
            let is_bad = status.is_none() || (type_ == "ScalingLimited" && status == Some(true));
            let warning = is_bad && !subject.paused;
            ScalingCondition { type_, status, reason, message, warning }
        })
        .to_vec()
}

fn is_silent<T>(load: &Observed<T>) -> bool {
    match load {
        Observed::Known { .. } => false,
        Observed::Stale { age_ms, .. } => *age_ms >= PATIENCE_MS,
        Observed::Missing { .. } => true,
    }
}

/// The Deployment's `replicas` after this look.
fn replicas(subject: &Subject) -> u32 {
    let present = subject.observed.replicas;
    if subject.paused { present } else { subject.decision.replicas(present) }
}

fn last_scale_time(subject: &Subject) -> Option<Time> {
    if replicas(subject) != subject.observed.replicas {
        return timestamp(subject.decision.at).map(Time);
    }
    subject.previous.scaling.as_ref().and_then(|scaling| scaling.last_scale_time.clone())
}

/// To the second, as Kubernetes writes times.
fn timestamp(moment: Moment) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(moment.0 / 1000).ok()?).ok()
}

fn utilization(policy: &Policy, load: Load, serving: u32) -> i32 {
    i32::try_from(policy.model.utilization_percent(load, serving)).unwrap_or(i32::MAX)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{decide::decide, history::History, observation::Reading, spec},
        *,
    };

    fn observed(streams: &[u64]) -> Observation {
        let instances = streams
            .iter()
            .enumerate()
            .map(|(index, &streams)| Instance::serving(format!("simple-backend-{index}"), streams, 4));
        Observation {
            replicas: streams.len().try_into().unwrap(),
            instances: instances.collect(),
            ..Observation::default()
        }
    }

    fn made(
        observed: &Observation,
        previous: &VX11ClusterStatus,
        age: Option<u64>,
        is_news: bool,
    ) -> (ScalingReport, bool) {
        let spec = serde_json::from_value(serde_json::json!({"autoscaling": {"maxInstances": 3}})).unwrap();
        let policy = spec::policy(&spec).unwrap();
        let request = spec::plan_request(&spec, None, None).unwrap();
        let decision = decide(&policy, observed, &History::default(), Moment(60_000));
        report(&Subject {
            policy: &policy,
            observed,
            decision: &decision,
            request: &request,
            previous,
            figures_age_ms: age,
            is_news,
            paused: false,
        })
    }

    fn condition<'a>(report: &'a ScalingReport, type_: &str) -> &'a ScalingCondition {
        report.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
    }

    #[test]
    fn the_figures_are_those_of_the_serving_instances() {
        let (report, fresh) = made(&observed(&[400, 300]), &VX11ClusterStatus::default(), None, false);
        assert!(fresh);
        assert_eq!(report.load, Some(LoadStatus { clients: 700, issuances_per_second: 8, reporting: 2 }));
        assert_eq!(report.capacity, Some(CapacityStatus { clients: 950, issuances_per_second: 1900 }));
        assert_eq!(report.utilization_percent, Some(74));
        assert_eq!(report.estimated_cost_per_hour.as_deref(), Some("0.10"));
        assert!(report.recommendation.unwrap().starts_with("Vertical: one instance with twice"));
    }

    #[test]
    fn figures_wait_fifteen_seconds_unless_the_story_changes() {
        let previous = VX11ClusterStatus::default();
        let world = observed(&[400]);
        assert_eq!(made(&world, &previous, Some(14_999), false).0.load, None, "the previous status had none");
        assert!(made(&world, &previous, Some(15_000), false).0.load.is_some());
        assert!(made(&world, &previous, Some(0), true).0.load.is_some());
    }

    #[test]
    fn a_silent_instance_makes_the_scaling_unknown_and_is_named() {
        let mut world = observed(&[400, 300]);
        let value = Reading { streams: 300, issuances_per_second: Some(1), draining: false };
        world.instances[1].load =
            Observed::Stale { value, age_ms: 5000, reason: "no answer within 1 s".into() };
        let status = VX11ClusterStatus::default();
        assert_eq!(
            condition(&made(&world, &status, None, false).0, "ScalingActive").status,
            Some(true),
            "once is nothing"
        );
        world.instances[1].load =
            Observed::Stale { value, age_ms: 10_000, reason: "no answer within 1 s".into() };
        let (report, _) = made(&world, &status, None, false);
        let active = condition(&report, "ScalingActive");
        assert_eq!((active.status, active.reason), (None, "MetricsMissing"));
        assert!(
            active.message.contains("simple-backend-1 is not known (no answer within 1 s)"),
            "{}",
            active.message
        );
    }

    #[test]
    fn a_load_beyond_the_maximum_says_what_it_would_take() {
        let (report, _) = made(&observed(&[900, 900, 900]), &VX11ClusterStatus::default(), None, false);
        let limited = condition(&report, "ScalingLimited");
        assert_eq!(limited.status, Some(true));
        assert!(
            limited.message.contains("needs 6 instances (475 clients each), maxInstances allows 3"),
            "{}",
            limited.message
        );
    }
}
