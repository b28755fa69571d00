//! Decisions as tables and properties.

mod fixed;

use std::num::NonZeroU32;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::scale::observation::{Mark, Observed, Reading};

const NOW: Moment = Moment(1_000_000);

fn known(streams: u64) -> Observed<Reading> {
    Observed::Known { value: Reading { streams, issuances_per_second: Some(0), draining: false } }
}

fn missing(reason: &str) -> Observed<Reading> {
    Observed::Missing { reason: reason.into() }
}

fn ready(name: &str, streams: u64) -> Instance {
    Instance::serving(name, streams, 0)
}

fn starting(name: &str) -> Instance {
    Instance { ready: false, answered: false, load: missing("not started"), ..ready(name, 0) }
}

fn draining(name: &str, streams: u64, deadline: Moment) -> Instance {
    let mut instance = ready(name, streams);
    instance.ready = false;
    instance.mark = Some(Mark { since: Moment(900_000), deadline });
    instance.load =
        Observed::Known { value: Reading { streams, issuances_per_second: Some(0), draining: true } };
    instance
}

fn observed(instances: Vec<Instance>) -> Observation {
    let replicas = instances.iter().filter(|instance| !instance.terminating).count();
    Observation { replicas: replicas.try_into().unwrap(), instances, ..Observation::default() }
}

/// A history in which the load has asked for `instances` for an hour.
fn steady(instances: u32) -> History {
    let mut history = History::default();
    for seconds in (0..=NOW.0 / 1000).step_by(5) {
        history.record(Moment(seconds * 1000), instances, 3_600_000);
    }
    history
}

fn look(observation: &Observation, history: &History) -> Decision {
    decide(&Policy::default(), observation, history, NOW)
}

fn replicas(to: u32) -> Vec<Action> {
    vec![Action::SetReplicas { to, removing: Vec::new() }]
}

#[rstest]
#[case(500, 1)]
#[case(501, 2)]
#[case(1425, 3)]
#[case(1426, 4)]
fn one_instance_scales_out_to_what_the_scaling_guide_says(#[case] clients: u64, #[case] instances: u32) {
    let decision = look(&observed(vec![ready("a", clients)]), &History::default());
    assert_eq!(decision.desired, instances);
    let actions = if instances == 1 { vec![] } else { replicas(instances) };
    assert_eq!(decision.actions, actions);
}

#[rstest]
#[case(1000, 1)]
#[case(1001, 2)]
#[case(2850, 3)]
#[case(2851, 4)]
fn issuances_count_like_clients(#[case] rate: u64, #[case] instances: u32) {
    let mut only = ready("a", 1);
    only.load =
        Observed::Known { value: Reading { streams: 1, issuances_per_second: Some(rate), draining: false } };
    assert_eq!(look(&observed(vec![only]), &History::default()).desired, instances);
}

#[test]
fn the_message_tells_the_story() {
    let world = observed(vec![ready("a", 500), ready("b", 500), ready("c", 432), starting("d")]);
    let decision = look(&world, &History::default());
    assert_eq!(decision.message, "1,432 clients need 4 instances (475 each); 3 ready, 1 starting");
    assert_eq!(decision.reason, Reason::Steady);
    assert_eq!(decision.desired, 4, "capacity on its way counts");
}

#[test]
fn terminating_instances_are_no_capacity_but_their_clients_are_load() {
    let mut going = ready("c", 400);
    going.terminating = true;
    let decision = look(&observed(vec![ready("a", 500), ready("b", 450), going]), &History::default());
    assert_eq!((decision.load.clients, decision.desired), (1350, 3));
}

#[test]
fn an_expected_load_is_a_floor_and_the_maximum_a_ceiling_that_says_so() {
    let expected = Load { clients: 1400, issuances_per_second: 0 };
    let policy = Policy { target: Target::Load { min: 1, max: 10, expected }, ..Policy::default() };
    let world = observed(vec![ready("a", 3)]);
    assert_eq!(decide(&policy, &world, &History::default(), NOW).desired, 3);

    let policy = Policy { target: Target::Load { min: 1, max: 2, expected }, ..Policy::default() };
    let decision = decide(&policy, &world, &History::default(), NOW);
    assert!(decision.limited());
    assert_eq!(decision.desired, 2);
    assert!(decision.message.contains("maxInstances allows 2: raise it to 3"), "{}", decision.message);
}

#[test]
fn a_lower_need_waits_for_its_window_and_then_drains_the_emptiest() {
    let world = observed(vec![ready("a", 200), ready("b", 100), ready("c", 150), ready("d", 150)]);
    let decision = look(&world, &steady(4));
    assert_eq!((decision.reason, decision.desired), (Reason::Stabilizing, 4));
    let young = look(&world, &History::default());
    assert_eq!((young.reason, young.desired), (Reason::Stabilizing, 4), "a new leader waits a whole window");

    let decision = look(&world, &steady(2));
    assert_eq!((decision.reason, decision.desired), (Reason::Draining, 2));
    assert_eq!(decision.victims, ["b", "c"]);
    let mark = drain::mark(NOW, 20);
    assert_eq!(
        decision.actions,
        [
            Action::Mark { name: "b".into(), mark },
            Action::Mark { name: "c".into(), mark },
            Action::Drain { name: "b".into() },
            Action::Drain { name: "c".into() },
        ]
    );
    assert_eq!(decision.next_look_ms, BUSY_LOOK_MS);
}

#[rstest]
#[case::a_metric_is_missing(|world: &mut Observation| world.instances[1].load = missing("timeout"), BlockerKind::MetricsMissing)]
#[case::a_metric_is_stale(|world: &mut Observation| world.instances[1].load = Observed::Stale {
    value: Reading { streams: 0, issuances_per_second: Some(0), draining: false }, age_ms: 9000, reason: "timeout".into(),
}, BlockerKind::MetricsMissing)]
#[case::an_instance_starts(|world: &mut Observation| world.instances[1] = starting("b"), BlockerKind::InstancesStarting)]
#[case::a_pod_is_not_even_created(|world: &mut Observation| { world.instances.pop(); }, BlockerKind::InstancesStarting)]
#[case::a_rollout_runs(|world: &mut Observation| world.rollout = true, BlockerKind::RolloutInProgress)]
#[case::one_still_goes(|world: &mut Observation| {
    let mut going = ready("z", 0);
    going.terminating = true;
    world.instances.push(going);
}, BlockerKind::InstancesTerminating)]
fn nothing_is_removed_while(#[case] disturb: fn(&mut Observation), #[case] blocker: BlockerKind) {
    let mut world = observed(vec![ready("a", 10), ready("b", 10), ready("c", 10), ready("d", 10)]);
    disturb(&mut world);
    let decision = look(&world, &steady(1));
    assert_eq!((decision.reason, decision.desired), (Reason::ScaleInBlocked, 4), "{}", decision.message);
    assert_eq!(decision.blocked_by[0].kind, blocker);
    assert_eq!(decision.actions, []);
}

#[test]
fn a_pod_of_a_lost_node_does_not_keep_the_others_for_good() {
    let mut going = ready("z", 0);
    (going.terminating, going.gone_by) = (true, Some(NOW));
    let world = observed(vec![ready("a", 10), ready("b", 10), going]);
    let at = |seconds| decide(&Policy::default(), &world, &steady(1), NOW.plus_seconds(seconds));
    assert_eq!(at(29).blocked_by[0].kind, BlockerKind::InstancesTerminating);
    let later = at(30);
    assert_eq!((later.reason, later.desired), (Reason::Draining, 1), "{}", later.message);
}

#[test]
fn instances_that_never_ran_are_given_up_without_touching_those_that_serve() {
    let mut stuck = starting("d");
    stuck.pending = true;
    let mut world = observed(vec![ready("a", 10), ready("b", 10), ready("c", 10), stuck]);
    let decision = look(&world, &steady(1));
    assert_eq!((decision.reason, decision.actions), (Reason::ScaleIn, replicas(3)));
    world.instances[0].load = missing("timeout");
    assert_eq!(look(&world, &steady(1)).actions, [], "not on missing data");
}

#[test]
fn what_is_waited_for_is_the_load_that_is_unknown_and_not_the_window_that_it_holds_up() {
    let mut world = observed(vec![ready("a", 10), ready("b", 10)]);
    assert_eq!(look(&world, &steady(2)).reason, Reason::Stabilizing);
    world.instances[1].load = missing("timeout");
    let decision = look(&world, &steady(2));
    assert_eq!((decision.reason, decision.desired), (Reason::ScaleInBlocked, 2));
    let blockers: Vec<_> = decision.blocked_by.iter().map(|blocker| blocker.kind).collect();
    assert_eq!(blockers, [BlockerKind::MetricsMissing]);
}

#[test]
fn a_missing_metric_never_counts_as_zero_but_lets_a_scale_out_pass() {
    let mut world = observed(vec![ready("a", 900), ready("b", 0)]);
    world.instances[1].load = missing("timeout");
    assert_eq!(look(&world, &History::default()).desired, 2);
    world.instances[0].load = known(1426);
    assert_eq!(look(&world, &History::default()).desired, 4);

    let mut history = steady(2);
    let decision = look(&world, &history);
    for seconds in (1000..=2000).step_by(5) {
        let at = Moment(seconds * 1000);
        history.remember(
            &Policy::default(),
            &world,
            &Decision { at, wanted: 1, desired: 4, ..decision.clone() },
        );
    }
    assert_eq!(
        history.largest(Moment(2_000_000), 300_000, 1),
        4,
        "blanks are remembered as the present count"
    );
}

#[test]
fn replicas_are_lowered_when_all_are_empty_or_the_deadline_has_passed() {
    let later = NOW.plus_seconds(5);
    let world = observed(vec![ready("a", 300), draining("b", 0, later), draining("c", 4, later)]);
    let waiting = look(&world, &steady(1));
    assert_eq!((waiting.reason, waiting.actions.len()), (Reason::Draining, 0));

    let empty = observed(vec![ready("a", 300), draining("b", 0, later), draining("c", 0, later)]);
    let removing = ["b", "c"].map(|name| Removal { name: name.into(), since: Moment(900_000) }).to_vec();
    let lowered = look(&empty, &steady(1));
    assert_eq!((lowered.reason, lowered.desired), (Reason::ScaleIn, 1));
    assert_eq!(lowered.actions, [Action::SetReplicas { to: 1, removing: removing.clone() }]);

    let overdue = observed(vec![ready("a", 300), draining("b", 0, NOW), draining("c", 4, NOW)]);
    assert_eq!(look(&overdue, &steady(1)).actions, [Action::SetReplicas { to: 1, removing }]);
}

#[test]
fn a_drain_that_was_not_heard_is_told_again() {
    let mut world = observed(vec![ready("a", 300), draining("b", 4, NOW.plus_seconds(5))]);
    world.instances[1].load = known(4);
    assert_eq!(look(&world, &steady(1)).actions, [Action::Drain { name: "b".into() }]);
}

#[test]
fn a_load_that_returns_takes_back_as_many_as_it_needs_fullest_first() {
    let later = NOW.plus_seconds(5);
    let world = observed(vec![ready("a", 600), draining("b", 10, later), draining("c", 40, later)]);
    let decision = look(&world, &steady(1));
    assert_eq!((decision.reason, decision.desired), (Reason::DrainCancelled, 2));
    assert_eq!(decision.actions, [Action::Cancel { name: "c".into() }]);

    let flood = observed(vec![ready("a", 3000), draining("b", 10, later), draining("c", 40, later)]);
    let decision = look(&flood, &steady(1));
    assert_eq!(decision.desired, 7);
    assert_eq!(
        decision.actions,
        [
            Action::Cancel { name: "c".into() },
            Action::Cancel { name: "b".into() },
            Action::SetReplicas { to: 7, removing: vec![] }
        ]
    );
}

#[test]
fn a_drain_is_taken_back_when_a_rollout_begins_or_a_metric_stays_away_until_the_deadline() {
    let mut world = observed(vec![ready("a", 300), ready("x", 0), draining("b", 0, NOW.plus_seconds(5))]);
    world.instances[1].load = missing("timeout");
    let held = look(&world, &steady(1));
    assert_eq!(
        (held.reason, held.actions.len()),
        (Reason::Draining, 0),
        "held, not lowered, on missing data"
    );
    assert_eq!(held.blocked_by[0].kind, BlockerKind::MetricsMissing);
    world.instances[2].mark = Some(Mark { since: Moment(0), deadline: NOW });
    let decision = look(&world, &steady(1));
    assert_eq!(decision.reason, Reason::DrainCancelled);
    assert_eq!((decision.desired, decision.actions), (3, vec![Action::Cancel { name: "b".into() }]));

    let mut world = observed(vec![ready("a", 300), draining("b", 0, NOW.plus_seconds(5))]);
    world.rollout = true;
    assert_eq!(look(&world, &steady(1)).reason, Reason::DrainCancelled);
}

#[test]
fn the_wrong_pod_gone_is_reported_and_the_drained_one_serves_again() {
    let mut world = observed(vec![ready("a", 300), draining("b", 0, NOW.plus_seconds(5))]);
    world.removing = vec![Removal { name: "b".into(), since: Moment(900_000) }];
    let decision = look(&world, &steady(1));
    assert_eq!((decision.reason, decision.desired), (Reason::WrongInstanceRemoved, 2));
    assert_eq!(decision.actions, [Action::Cancel { name: "b".into() }]);
    assert!(decision.message.contains("another instance was removed instead of b"), "{}", decision.message);
}

#[test]
fn the_budget_decides_how_many_drain_together() {
    let world = observed((0..6).map(|i| ready(&format!("pod-{i}"), 50)).collect());
    let narrow = Policy { max_reconnects_per_second: NonZeroU32::new(5), ..Policy::default() };
    let decision = decide(&narrow, &world, &steady(1), NOW);
    assert_eq!(
        (decision.desired, decision.victims.len()),
        (4, 2),
        "5 a second over 20 s are two times 50 streams"
    );

    let none = Policy { max_reconnects_per_second: NonZeroU32::new(1), ..narrow };
    let decision = decide(&none, &world, &steady(1), NOW);
    assert_eq!(
        (decision.reason, decision.blocked_by[0].kind),
        (Reason::ScaleInBlocked, BlockerKind::DrainBudget)
    );
}

#[test]
fn steps_are_limited_in_both_directions() {
    let policy = Policy {
        max_scale_out_step: NonZeroU32::new(2),
        max_scale_in_step: NonZeroU32::new(1),
        ..Policy::default()
    };
    let out = decide(&policy, &observed(vec![ready("a", 4000)]), &History::default(), NOW);
    assert_eq!(out.desired, 3);
    let world = observed(vec![ready("a", 1), ready("b", 1), ready("c", 1), ready("d", 1)]);
    let decision = decide(&policy, &world, &steady(1), NOW);
    assert_eq!((decision.desired, decision.victims), (3, vec!["a".to_owned()]));
    let kinds: Vec<_> = decision.steps.iter().map(|step| (step.step, step.instances)).collect();
    assert_eq!(
        kinds,
        [
            (StepKind::Need, 1),
            (StepKind::Bounds, 1),
            (StepKind::Stabilization, 1),
            (StepKind::StepLimit, 3),
            (StepKind::DrainBudget, 3)
        ]
    );
}

#[test]
fn scale_out_waits_for_its_window_too_where_one_is_set() {
    let policy = Policy { scale_out_stabilization_seconds: 30, ..Policy::default() };
    let world = observed(vec![ready("a", 900)]);
    assert_eq!(decide(&policy, &world, &steady(1), NOW).reason, Reason::Stabilizing);
    assert_eq!(decide(&policy, &world, &steady(2), NOW).desired, 2);
}

#[test]
fn streams_are_levelled_once_the_new_instances_serve() {
    let policy = Policy::default();
    let mut history = History::default();
    let full = observed(vec![ready("a", 960)]);
    let out = decide(&policy, &full, &history, NOW);
    history.remember(&policy, &full, &out);
    let mut world = observed(vec![ready("a", 960), starting("b"), starting("c")]);
    assert_eq!(decide(&policy, &world, &history, NOW).actions, [], "not before they serve");
    world.instances[1] = ready("b", 0);
    world.instances[2] = ready("c", 0);
    let decision = decide(&policy, &world, &history, NOW);
    assert_eq!(decision.reason, Reason::Rebalancing);
    assert_eq!(decision.actions, [Action::Shed { name: "a".into(), streams: 96 }]);
    let off = Policy { rebalance: false, ..policy };
    assert_eq!(decide(&off, &world, &history, NOW).actions, []);
}

/// What the instances and Kubernetes make of an action before the next look. The load stays as it is.
fn carry_out(world: &mut Observation, action: &Action) {
    match action {
        Action::SetReplicas { to, removing } => {
            let gone = |instance: &Instance| removing.iter().any(|removal| removal.name == instance.name);
            world.instances.retain(|instance| !gone(instance));
            for index in world.instances.len()..*to as usize {
                world.instances.push(ready(&format!("new-{index}"), 0));
            }
            world.replicas = *to;
        }
        Action::Mark { name, mark } => {
            let marked = world.instances.iter_mut().find(|instance| instance.name == *name).unwrap();
            marked.mark = Some(*mark);
        }
        Action::Drain { name } => {
            let drained = world.instances.iter_mut().find(|instance| instance.name == *name).unwrap();
            let streams = drained.streams();
            *drained = Instance { mark: drained.mark, ..draining(name, 0, NOW) };
            let heir = world.instances.iter_mut().find(|instance| instance.ready).unwrap();
            heir.load = known(heir.streams() + streams);
        }
        Action::Cancel { .. } | Action::Shed { .. } => panic!("nothing comes back: {action:?}"),
    }
}

proptest! {
    #[test]
    fn a_constant_load_changes_nothing_once_it_has_what_it_needs(
        streams in prop::collection::vec(0..2000u64, 1..40), hours in 1..4u64,
    ) {
        let policy = Policy { rebalance: false, ..Policy::default() };
        let mut history = History::default();
        let mut world = observed(streams.iter().enumerate().map(|(i, s)| ready(&format!("pod-{i}"), *s)).collect());
        let load = world.load();
        let needed = policy.model.needed(load).min(10);
        let changes = streams.len() != needed as usize;
        let (mut second, mut changed) = (0, 0);
        // Out at once, in after the window, one drain after the other: each look may do its part.
        while second < 900 + hours * 3600 {
            let now = NOW.plus_seconds(second);
            let next = decide(&policy, &world, &history, now);
            history.remember(&policy, &world, &next);
            prop_assert!(next.desired >= needed, "{:?}", next);
            if !next.actions.is_empty() {
                prop_assert!(changes, "nothing had to change: {:?}", next);
                changed = second;
            }
            next.actions.iter().for_each(|action| carry_out(&mut world, action));
            prop_assert_eq!(world.load(), load);
            second += if second < 900 { next.next_look_ms / 1000 } else { 60 };
        }
        prop_assert_eq!(world.replicas, needed);
        prop_assert!(changed < 900, "still changing after {} s", changed);
        prop_assert_eq!(changed > 0, streams.len() > needed as usize, "only what is too much takes time");
    }

    #[test]
    fn whatever_is_seen_the_count_stays_within_bounds_and_known_load_is_covered(
        pods in prop::collection::vec((0..1200u64, any::<bool>(), any::<bool>(), 0..3u8), 0..30),
        replicas in 0..30u32, min in 1..5u32, span in 0..30u32, held in 0..12u32,
    ) {
        let policy = Policy {
            target: Target::Load { min, max: min + span, expected: Load::default() },
            ..Policy::default()
        };
        let instances = pods.iter().enumerate().map(|(i, (streams, ready_now, terminating, state))| {
            let name = format!("pod-{i}");
            let mut instance = match state { 0 => draining(&name, *streams, NOW.plus_seconds(9)), _ => ready(&name, *streams) };
            instance.ready &= *ready_now;
            instance.terminating = *terminating;
            if *state == 1 { instance.load = missing("timeout"); }
            instance
        }).collect();
        let world = Observation { replicas, instances, ..Observation::default() };
        let decision = decide(&policy, &world, &steady(held), NOW);
        let lowers = decision.actions.iter().any(|action| match action {
            Action::SetReplicas { to, .. } => *to < replicas,
            Action::Mark { .. } => true,
            _ => false,
        });
        prop_assert!(!lowers || world.unknown().next().is_none(), "removes on missing data: {:?}", decision);
        prop_assert!(decision.desired >= decision.wanted, "below need: {:?}", decision);
        for action in &decision.actions {
            if let Action::SetReplicas { to, .. } = action {
                prop_assert!((min..=min + span).contains(to) || *to >= decision.wanted);
            }
        }
    }
}
