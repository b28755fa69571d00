//! Where `spec.instances` sets the count, by a person or a HorizontalPodAutoscaler.

use super::*;
use crate::scale::policy::PATIENCE_SECONDS;

fn fixed(instances: u32) -> Policy {
    Policy { target: Target::Fixed { instances }, ..Policy::default() }
}

/// A history of `asked` counts, each from its second on.
fn asked(counts: &[(u64, u32)], until: u64) -> History {
    let mut history = History::default();
    for second in (0..=until).step_by(15) {
        let (_, count) = counts.iter().rev().find(|(from, _)| *from <= second).unwrap();
        history.record(Moment(second * 1000), *count, fixed(1).window_ms());
    }
    history
}

fn at_once(policy: &Policy, world: &Observation) -> Decision {
    decide(policy, world, &History::default(), NOW)
}

#[test]
fn the_spec_counts_and_still_the_emptiest_goes_drained() {
    let world = observed(vec![ready("a", 9000), ready("b", 3)]);
    assert_eq!(at_once(&fixed(2), &world).actions, []);
    assert_eq!(at_once(&fixed(5), &world).actions, replicas(5));
    assert_eq!(at_once(&fixed(1), &world).victims, ["b"]);
    assert_eq!(at_once(&fixed(0), &world).actions, replicas(0));
}

#[rstest]
#[case::an_instance_still_goes(|world: &mut Observation| world.instances[2].terminating = true, BlockerKind::InstancesTerminating)]
#[case::an_instance_starts(|world: &mut Observation| {
    world.instances[2].ready = false;
}, BlockerKind::InstancesStarting)]
#[case::a_rollout_runs(|world: &mut Observation| world.rollout = true, BlockerKind::RolloutInProgress)]
fn a_lower_count_waits_for_what_passes(#[case] disturb: fn(&mut Observation), #[case] blocker: BlockerKind) {
    let mut world = observed(vec![ready("a", 9), ready("b", 3), ready("c", 5)]);
    disturb(&mut world);
    world.replicas -= u32::from(world.instances[2].terminating);
    let decision = at_once(&fixed(1), &world);
    assert_eq!((decision.reason, decision.actions), (Reason::ScaleInBlocked, vec![]), "{}", decision.message);
    assert_eq!(decision.blocked_by[0].kind, blocker);
    assert_eq!(at_once(&fixed(0), &world).actions, replicas(0), "nobody stays to take the clients");

    let now = Moment(PATIENCE_SECONDS * 1000);
    let soon = decide(&fixed(1), &world, &asked(&[(0, 3), (15, 1)], PATIENCE_SECONDS), now);
    assert_eq!(soon.actions, []);
    let late = decide(&fixed(1), &world, &asked(&[(0, 1)], PATIENCE_SECONDS), now);
    assert_eq!(
        (late.reason, late.actions),
        (Reason::Fixed, replicas(1)),
        "a person's word counts in the end"
    );
}

#[test]
fn only_what_was_asked_for_all_the_time_is_forced() {
    let mut world = observed((0..6).map(|i| ready(&format!("pod-{i}"), 5)).collect());
    world.rollout = true;
    let history = asked(&[(0, 4), (300, 2)], PATIENCE_SECONDS);
    let decision = decide(&fixed(2), &world, &history, Moment(PATIENCE_SECONDS * 1000));
    assert_eq!(decision.actions, replicas(4));
}

#[test]
fn what_has_never_served_is_given_up_at_once() {
    let serving = || vec![ready("a", 9), ready("b", 3)];
    let mut world = observed([serving(), vec![starting("c")]].concat());
    assert_eq!(at_once(&fixed(2), &world).actions, replicas(2), "it never answered");
    assert_eq!(at_once(&fixed(1), &world).actions, replicas(2), "first those, then the drain");
    world.instances.pop();
    assert_eq!(at_once(&fixed(2), &world).actions, replicas(2), "its pod was never made");
    world = observed([serving(), vec![Instance { answered: true, ..starting("c") }]].concat());
    assert_eq!(at_once(&fixed(2), &world).actions, [], "it served, and may do so again");
}

#[test]
fn a_drain_is_held_and_taken_back_as_with_autoscaling() {
    let later = NOW.plus_seconds(5);
    let mut world = observed(vec![ready("a", 300), draining("b", 0, later), starting("c")]);
    let held = at_once(&fixed(2), &world);
    assert_eq!((held.reason, held.actions), (Reason::Draining, vec![]), "the starting one would go instead");
    world.instances[2] = ready("c", 0);
    let removing = vec![Removal { name: "b".into(), since: Moment(900_000) }];
    assert_eq!(
        at_once(&fixed(2), &world).actions,
        [Action::SetReplicas { to: 2, removing: removing.clone() }]
    );
    world.rollout = true;
    assert_eq!(at_once(&fixed(2), &world).reason, Reason::DrainCancelled);
    world.rollout = false;
    world.instances[0].load = missing("timeout");
    world.instances[2].load = missing("timeout");
    assert_eq!(at_once(&fixed(2), &world).actions, [Action::SetReplicas { to: 2, removing }], "it is empty");
}

#[test]
fn silent_instances_are_not_chosen_and_do_not_stop_a_person_for_longer_than_a_hiccup() {
    let mut world = observed(vec![ready("a", 9), ready("b", 3), ready("c", 5)]);
    world.instances[1].load = missing("timeout");
    assert_eq!(at_once(&fixed(2), &world).victims, ["c"], "the emptiest of those that tell");
    assert_eq!(at_once(&fixed(1), &world).actions, replicas(1), "too few tell, and have not for a minute");
    world.instances[1].load = Observed::Stale {
        value: Reading { streams: 3, issuances_per_second: None, draining: false },
        age_ms: 5000,
        reason: "timeout".into(),
    };
    let hiccup = at_once(&fixed(1), &world);
    assert_eq!(
        (hiccup.reason, hiccup.blocked_by[0].kind),
        (Reason::ScaleInBlocked, BlockerKind::MetricsMissing)
    );
    assert_eq!(hiccup.actions, []);
}

#[test]
fn what_a_person_asks_is_remembered_whatever_is_known() {
    let mut world = observed(vec![ready("a", 9), ready("b", 3)]);
    world.rollout = true;
    world.instances[1].load = missing("timeout");
    let (policy, mut history) = (fixed(1), History::default());
    for second in (0..=PATIENCE_SECONDS).step_by(15) {
        let decision = decide(&policy, &world, &history, Moment(second * 1000));
        assert_eq!(decision.actions.is_empty(), second < PATIENCE_SECONDS, "at {second} s");
        history.remember(&policy, &world, &decision);
    }
}
