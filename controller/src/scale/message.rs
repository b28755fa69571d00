//! A decision in a person's words.

use std::fmt::Write;

use super::{
    capacity::Load,
    decision::{Decision, Reason, Step, StepKind},
    observation::{Lifecycle, Observation},
    policy::{Policy, Target},
    text::{counted, names, thousands},
};

/// The first step: what the formula makes of the load.
pub(super) fn need(policy: &Policy, load: Load, needed: u32) -> Step {
    Step { step: StepKind::Need, instances: needed, note: cause(policy, load, needed) }
}

/// The whole story in one sentence or two.
pub(super) fn tell(policy: &Policy, observed: &Observation, decision: &Decision) -> String {
    let asks = match policy.target {
        Target::Load { max, .. } if decision.needed > max => format!(
            "{}, maxInstances allows {max}: raise it to {}",
            cause(policy, decision.load, decision.needed),
            decision.needed
        ),
        Target::Load { min, .. } if decision.needed < min => {
            format!("{}, minInstances keeps {min}", cause(policy, decision.load, decision.needed))
        }
        Target::Load { .. } => cause(policy, decision.load, decision.needed),
        Target::Fixed { instances } => {
            format!("spec.instances asks for {}", counted(instances.into(), "instance"))
        }
    };
    match consequence(decision) {
        Some(consequence) => format!("{asks}; {}; {consequence}", census(observed)),
        None => format!("{asks}; {}", census(observed)),
    }
}

/// What is done about it, if anything.
fn consequence(decision: &Decision) -> Option<String> {
    let victims = names(decision.victims.iter().map(String::as_str));
    let desired = decision.desired;
    Some(match decision.reason {
        Reason::Steady | Reason::Fixed => return None,
        Reason::ScaleOut => format!("scaling out to {desired}"),
        Reason::Stabilizing => {
            let waits = decision.steps.iter().find(|step| step.step == StepKind::Stabilization);
            let note = waits.map_or("", |step| step.note.as_str());
            format!(
                "a change to {} waits for the stabilization window ({note})",
                counted(decision.wanted.into(), "instance")
            )
        }
        Reason::ScaleInBlocked => {
            let blockers: Vec<&str> =
                decision.blocked_by.iter().map(|blocker| blocker.detail.as_str()).collect();
            format!("scaling in waits: {}", blockers.join("; "))
        }
        Reason::Draining => format!("draining {victims} to scale in to {desired}"),
        Reason::ScaleIn if victims.is_empty() => {
            format!("giving up instances that have not started, to scale in to {desired}")
        }
        Reason::ScaleIn => format!("removing {victims}, drained, to scale in to {desired}"),
        Reason::DrainCancelled => {
            let why =
                decision.blocked_by.first().map_or("the load came back", |blocker| blocker.detail.as_str());
            format!("{victims} serve again: {why}")
        }
        Reason::WrongInstanceRemoved => {
            format!("another instance was removed instead of {victims}, which serve again")
        }
        Reason::Rebalancing => "levelling streams after the scale-out".to_owned(),
    })
}

/// `1,432 clients need 4 instances (475 each)`, by whichever load asks for more.
fn cause(policy: &Policy, load: Load, needed: u32) -> String {
    let model = &policy.model;
    let for_clients = model.needed(Load { issuances_per_second: 0, ..load });
    let each = model.usable_each(needed);
    let (subject, number, each) = if for_clients >= needed {
        (counted(load.clients, "client"), load.clients, each.clients)
    } else {
        let rate = load.issuances_per_second;
        (format!("{} issuances a second", thousands(rate)), rate, each.issuances_per_second)
    };
    let verb = if number == 1 { "needs" } else { "need" };
    format!("{subject} {verb} {} ({} each)", counted(needed.into(), "instance"), thousands(each))
}

/// `3 ready, 1 starting`: what there is, each kind apart.
fn census(observed: &Observation) -> String {
    let mut text = format!("{} ready", observed.count(Lifecycle::Ready));
    let pods = observed.count(Lifecycle::Starting);
    let exist = observed.count(Lifecycle::Ready) + observed.count(Lifecycle::Draining) + pods;
    let starting = pods + observed.replicas.saturating_sub(exist);
    let others = [
        (starting, "starting"),
        (observed.count(Lifecycle::Draining), "draining"),
        (observed.count(Lifecycle::Terminating), "terminating"),
    ];
    for (count, kind) in others.into_iter().filter(|(count, _)| *count > 0) {
        let _ = write!(text, ", {count} {kind}");
    }
    text
}
