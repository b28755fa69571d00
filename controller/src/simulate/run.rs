//! One run: a trace, a world, the controller's own `decide`, and a judge that looks at every second.

use super::{
    judge::Judge,
    random::Random,
    setting::{self, CRASH_SECONDS},
    trace::{ACTIVE_SECONDS, CALM_SECONDS, Trace, size},
    world::{Account, World},
};
use crate::scale::{
    capacity::Load,
    decide::decide,
    decision::{Action, Decision},
    history::History,
    observation::{Lifecycle, Moment, Observation},
    policy::{Policy, Target},
};

/// What decides: the controller's function, or in a test one with a fault.
pub type Decide = fn(&Policy, &Observation, &History, Moment) -> Decision;

/// Seconds after the active part in which every run must come to rest.
const MOST_CALM_SECONDS: u64 = 3000;

/// What is kept of each look, for a picture.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Seconds since the start.
    pub second: u64,
    /// Clients that want to be connected.
    pub clients: u64,
    /// What the serving instances carry.
    pub capacity: u64,
    /// Serving instances.
    pub ready: u32,
    /// Instances that there should be.
    pub desired: u32,
}

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// One for each look.
    pub samples: Vec<Sample>,
    /// Promises that were broken, with the second.
    pub violations: Vec<String>,
    /// Decisions made.
    pub decisions: u64,
    /// Instances drained and removed.
    pub removed: u64,
    /// Drains taken back.
    pub cancelled: u64,
}

/// Runs `trace` with `seed`, which also sets the size, the policy, the start-up times and when the controller crashes,
/// until it rests.
#[must_use]
pub fn run(trace: Trace, seed: u64) -> Run {
    run_by(decide, trace, seed)
}

/// The same with another function that decides.
pub(super) fn run_by(decide: Decide, trace: Trace, seed: u64) -> Run {
    let mut random = Random::new(seed ^ 0x5EED);
    let peak_instances = size(&mut random);
    let policy = setting::policy(peak_instances, &mut random);
    let plot = Plot { decide, trace, policy, peak_instances, crashes: random.once_in(3), to_rest: true };
    simulate(&plot, random)
}

/// Runs `trace` for a picture: a middling size, an everyday policy, no crashes of the controller.
#[must_use]
pub fn portrait(trace: Trace) -> Run {
    let policy = Policy {
        target: Target::Load { min: 1, max: 10, expected: Load::default() },
        scale_in_stabilization_seconds: 60,
        ..Policy::default()
    };
    let plot = Plot { decide, trace, policy, peak_instances: 8, crashes: false, to_rest: false };
    simulate(&plot, Random::new(7))
}

/// What a run is about.
struct Plot {
    decide: Decide,
    trace: Trace,
    policy: Policy,
    peak_instances: u32,
    crashes: bool,
    /// It ends when the cluster rests, and not at a fixed second.
    to_rest: bool,
}

fn simulate(plot: &Plot, mut random: Random) -> Run {
    let Plot { trace, policy, .. } = plot;
    let peak = policy.model.usable(plot.peak_instances).clients;
    let start = setting::needed(policy, trace.clients(0, peak));
    let most_streams = policy.model.clients_per_instance.get() * 2;
    let mut world = World::new(start, policy.drain_seconds, most_streams, Random::new(random.bits()));
    let mut history = History::default();
    let mut judge = Judge::new(policy);
    let mut run = Run { samples: Vec::new(), violations: Vec::new(), decisions: 0, removed: 0, cancelled: 0 };
    let mut next_look = 1;

    loop {
        let clients = trace.clients(world.second, peak);
        if world.second < ACTIVE_SECONDS {
            disturb(*trace, &mut world, &mut random);
        } else {
            world.pods.iter_mut().for_each(|pod| pod.account = Account::True);
            if world.seen.rollout {
                world.advance_rollout();
            }
        }
        world.tick(clients);
        run.removed += world.removed.len() as u64;
        if world.second >= next_look {
            world.look(clients / 10);
            let now = Moment(world.second * 1000);
            let decision = (plot.decide)(policy, &world.seen, &history, now);
            history.remember(policy, &world.seen, &decision);
            run.decisions += 1;
            run.samples.push(Sample {
                second: world.second,
                clients,
                capacity: policy.model.capacity(world.seen.count(Lifecycle::Ready)).clients,
                ready: world.seen.count(Lifecycle::Ready),
                desired: decision.desired,
            });
            // The controller may die anywhere between two writes; the next one knows only what is written.
            let crash = plot.crashes
                && world.second < ACTIVE_SECONDS
                && !decision.actions.is_empty()
                && random.once_in(4);
            let done = if crash { random.index(decision.actions.len()) } else { decision.actions.len() };
            let actions = decision.actions.get(..done).unwrap_or_default();
            judge.watch_look(policy, &decision);
            judge.watch_actions(policy, &world, actions);
            run.cancelled += u64::from(actions.iter().any(|action| matches!(action, Action::Cancel { .. })));
            for action in actions {
                world.execute(action);
            }
            if crash {
                history = History::default();
                judge.controller_died(world.second);
            }
            let pause = if crash { CRASH_SECONDS } else { decision.next_look_ms.div_ceil(1000).max(1) };
            next_look = world.second + pause;
        }
        judge.watch_second(policy, &world);
        let calm = world.second.saturating_sub(ACTIVE_SECONDS);
        let is_over = if plot.to_rest {
            calm > 0 && (judge.is_at_rest(policy, &world) || calm >= MOST_CALM_SECONDS)
        } else {
            calm >= CALM_SECONDS
        };
        // A broken run may never come to an end, and one broken promise is enough.
        if is_over || judge.violations.len() > 100 {
            break;
        }
    }
    judge.watch_end(policy, &world);
    run.violations = judge.violations;
    run
}

/// What goes wrong in this second.
fn disturb(trace: Trace, world: &mut World, random: &mut Random) {
    match trace {
        Trace::NodeLoss if world.second % 97 == 50 => {
            let lost = world.pods.len().div_ceil(4);
            for _ in 0..lost {
                let index = random.index(world.pods.len());
                world.lose(index);
            }
        }
        Trace::LyingMetrics | Trace::MissingMetrics if random.once_in(20) && !world.pods.is_empty() => {
            let index = random.index(world.pods.len());
            world.pods[index].account = match (trace, world.pods[index].account) {
                (Trace::MissingMetrics, Account::True) => Account::Silent,
                (Trace::LyingMetrics, Account::True) => Account::Scaled([0, 50, 300][random.index(3)]),
                _ => Account::True,
            };
        }
        // Under a growing load and under a falling one.
        Trace::Rollout if [120, 240, 540].contains(&world.second) => world.begin_rollout(),
        // With pauses, in which new instances are waited for.
        Trace::Rollout if world.seen.rollout && world.second.is_multiple_of(3) && world.second % 30 >= 12 => {
            world.advance_rollout();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
