//! The judge sees a broken promise: decisions with one fault each are caught.

use std::num::NonZeroU64;

use rstest::rstest;

use super::*;
use crate::{
    scale::{
        drain,
        observation::{Instance, Observed, Reading},
    },
    simulate::trace_of,
};

/// Seeds after which a fault must have been seen.
const SEEDS: u64 = 200;

fn by(policy: Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    decide(&policy, observed, history, now)
}

/// Takes silence for an empty instance.
fn blind(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut observed = observed.clone();
    for instance in observed.instances.iter_mut().filter(|instance| instance.load.known().is_none()) {
        let value = Reading { streams: 0, issuances_per_second: Some(0), draining: false };
        instance.load = Observed::Known { value };
    }
    by(*policy, &observed, history, now)
}

/// Lowers the count without a drain.
fn undrained(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut decision = decide(policy, observed, history, now);
    if decision.actions.iter().any(|action| matches!(action, Action::Mark { .. })) {
        decision.actions = vec![Action::SetReplicas { to: decision.desired, removing: Vec::new() }];
    }
    decision
}

/// Lowers the count while streams are left.
fn hasty(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut decision = decide(policy, observed, history, now);
    let removing: Vec<_> = observed.at(Lifecycle::Draining).filter_map(drain::removal).collect();
    if !removing.is_empty() && decision.desired < observed.replicas {
        decision.actions = vec![Action::SetReplicas { to: decision.desired, removing }];
    }
    decision
}

/// Drains the fullest.
fn choosy(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut decision = decide(policy, observed, history, now);
    let mut fullest: Vec<&Instance> = observed.at(Lifecycle::Ready).collect();
    fullest.sort_by_key(|instance| std::cmp::Reverse(instance.streams()));
    let names = fullest.iter().map(|instance| instance.name.clone());
    let marks = decision.actions.iter_mut().filter_map(|action| match action {
        Action::Mark { name, .. } => Some(name),
        _ => None,
    });
    marks.zip(names).for_each(|(mark, name)| *mark = name);
    decision
}

/// Removes as soon as the load falls.
fn impatient(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    by(Policy { scale_in_stabilization_seconds: 0, ..*policy }, observed, history, now)
}

/// Believes that an instance carries twice its clients.
fn stingy(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut policy = *policy;
    policy.model.clients_per_instance =
        policy.model.clients_per_instance.saturating_mul(NonZeroU64::new(2).unwrap());
    by(policy, observed, history, now)
}

/// Never takes a drain back.
fn stubborn(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut decision = decide(policy, observed, history, now);
    decision.actions.retain(|action| !matches!(action, Action::Cancel { .. }));
    decision
}

/// Knows no budget of reconnects.
fn reckless(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    by(Policy { max_reconnects_per_second: None, drain_seconds: 1000, ..*policy }, observed, history, now)
}

/// Knows no step limits.
fn leaping(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    by(Policy { max_scale_out_step: None, max_scale_in_step: None, ..*policy }, observed, history, now)
}

/// Knows no maximum.
fn boundless(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let Target::Load { min, max, expected } = policy.target else { unreachable!() };
    by(Policy { target: Target::Load { min, max: max * 2, expected }, ..*policy }, observed, history, now)
}

/// Does not see that pods are being replaced.
fn heedless(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    by(*policy, &Observation { rollout: false, ..observed.clone() }, history, now)
}

/// Does not see that instances start.
fn eager(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut observed = observed.clone();
    let starting = observed.count(Lifecycle::Starting);
    observed.instances.retain(|instance| instance.lifecycle() != Lifecycle::Starting);
    observed.replicas -= starting.min(observed.replicas);
    let mut decision = decide(policy, &observed, history, now);
    for action in &mut decision.actions {
        if let Action::SetReplicas { to, .. } = action {
            *to += starting;
        }
    }
    decision
}

/// Cannot leave things alone.
fn restless(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut decision = decide(policy, observed, history, now);
    let first = observed.at(Lifecycle::Ready).next();
    decision.actions.extend(first.map(|first| Action::Shed { name: first.name.clone(), streams: 1 }));
    decision
}

/// Levels everything at once.
fn levelling(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let mut decision = decide(policy, observed, history, now);
    for action in &mut decision.actions {
        if let Action::Shed { streams, .. } = action {
            *streams *= 100;
        }
    }
    decision
}

/// Looks again at once.
fn busy(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    Decision { next_look_ms: 0, ..decide(policy, observed, history, now) }
}

#[rstest]
#[case::blind(blind, "while metrics are missing")]
#[case::undrained(undrained, "removed undrained")]
#[case::hasty(hasty, "before the deadline")]
#[case::choosy(choosy, "streams chosen")]
#[case::impatient(impatient, "within the stabilization window")]
#[case::stingy(stingy, "the load has asked for")]
#[case::stubborn(stubborn, "the load has asked for")]
#[case::reckless(reckless, "streams closed")]
#[case::leaping(leaping, "in one step")]
#[case::boundless(boundless, "instances outside")]
#[case::heedless(heedless, "during a rollout")]
#[case::eager(eager, "while another one starts")]
#[case::restless(restless, "not at rest")]
#[case::levelling(levelling, "streams closed")]
#[case::busy(busy, "the next look is in 0 ms")]
fn a_decision_with_a_fault_is_caught(#[case] broken: Decide, #[case] promise: &str) {
    let caught = (0..SEEDS).any(|seed| {
        let run = run_by(broken, trace_of(seed), seed);
        run.violations.iter().any(|violation| violation.contains(promise))
    });
    assert!(caught, "{SEEDS} runs, and nobody has seen that {promise}");
}
