//! One run: a trace, a world, the controller's own `decide`, and judges that look at every second.

use super::{
    random::Random,
    trace::{ACTIVE_SECONDS, CALM_SECONDS, Trace, size},
    world::{Account, World},
};
use crate::scale::{
    capacity::Load,
    decide::decide,
    decision::{Action, Decision},
    history::History,
    observation::{Instance, Lifecycle, Moment, Observation},
    policy::{Policy, Target},
};

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

/// Runs `trace` with `seed`; the seed also sets the size, the start-up times and when the controller crashes.
#[must_use]
pub fn run(trace: Trace, seed: u64) -> Run {
    let mut random = Random::new(seed ^ 0x5EED);
    let peak_instances = size(&mut random);
    simulate(trace, peak_instances, random.once_in(3), random)
}

/// Runs `trace` for a picture: a middling size, no crashes of the controller.
#[must_use]
pub fn portrait(trace: Trace) -> Run {
    simulate(trace, 8, false, Random::new(7))
}

fn simulate(trace: Trace, peak_instances: u32, crashes: bool, mut random: Random) -> Run {
    let policy = Policy {
        target: Target::Load {
            min: 1,
            max: peak_instances + peak_instances / 10 + 2,
            expected: Load::default(),
        },
        scale_in_stabilization_seconds: 60,
        ..Policy::default()
    };
    let peak = policy.model.capacity(peak_instances).clients;
    let start = policy.model.needed(Load { clients: trace.clients(0, peak), issuances_per_second: 0 });
    let most_streams = policy.model.clients_per_instance.get() * 2;
    let mut world = World::new(start, policy.drain_seconds, most_streams, Random::new(random.bits()));
    let mut history = History::default();
    let mut judge = Judge::default();
    let mut run = Run { samples: Vec::new(), violations: Vec::new(), decisions: 0, removed: 0, cancelled: 0 };
    let mut next_look = 1;

    while world.second < ACTIVE_SECONDS + CALM_SECONDS {
        let clients = trace.clients(world.second, peak);
        if world.second < ACTIVE_SECONDS {
            disturb(trace, &mut world, &mut random);
        } else {
            world.pods.iter_mut().for_each(|pod| pod.account = Account::True);
            if world.seen.rollout {
                world.advance_rollout();
            }
        }
        world.tick(clients);
        judge.watch_second(&policy, &world);
        run.removed += world.removed.len() as u64;
        if world.second < next_look {
            continue;
        }
        world.look(clients / 10);
        let now = Moment(world.second * 1000);
        let decision = decide(&policy, &world.seen, &history, now);
        judge.watch_decision(&policy, &world.seen, &decision);
        history.remember(&policy, &world.seen, &decision);
        run.decisions += 1;
        run.cancelled +=
            u64::from(decision.actions.iter().any(|action| matches!(action, Action::Cancel { .. })));
        run.samples.push(Sample {
            second: world.second,
            clients,
            capacity: policy.model.capacity(world.seen.count(Lifecycle::Ready)).clients,
            ready: world.seen.count(Lifecycle::Ready),
            desired: decision.desired,
        });
        // The controller may die anywhere between two writes; the next one knows only what is written.
        let crash =
            crashes && world.second < ACTIVE_SECONDS && !decision.actions.is_empty() && random.once_in(4);
        let done = if crash { random.index(decision.actions.len()) } else { decision.actions.len() };
        for action in decision.actions.iter().take(done) {
            world.execute(action);
        }
        if crash {
            history = History::default();
        }
        next_look = world.second + if crash { 15 } else { decision.next_look_ms.div_ceil(1000).max(1) };
    }
    judge.watch_end(&policy, &world);
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
        Trace::Rollout if world.second == 150 || world.second == 400 => world.begin_rollout(),
        Trace::Rollout if world.seen.rollout && world.second.is_multiple_of(3) => world.advance_rollout(),
        _ => {}
    }
}

/// Watches that the promises are kept.
#[derive(Default)]
struct Judge {
    violations: Vec<String>,
    last_growth: Option<Moment>,
    last_change: u64,
}

impl Judge {
    fn broken(&mut self, second: u64, what: impl std::fmt::Display) {
        self.violations.push(format!("second {second}: {what}"));
    }

    /// After each second: drained before removed, and no more reconnects than allowed.
    fn watch_second(&mut self, policy: &Policy, world: &World) {
        for removed in world.removed.iter().filter(|removed| !removed.pending) {
            let overdue = removed.mark.is_some_and(|mark| mark.deadline <= Moment(world.second * 1000));
            if removed.mark.is_none() {
                self.broken(
                    world.second,
                    format!("an instance with {} streams removed undrained", removed.streams),
                );
            } else if removed.streams > 0 && !overdue {
                self.broken(world.second, format!("{} streams cut before the deadline", removed.streams));
            }
        }
        if world.cut > 0 {
            self.broken(world.second, format!("{} streams cut by the end of their pod", world.cut));
        }
        let staying = world.seen.count(Lifecycle::Ready).max(1);
        let budget = policy.model.capacity(staying).issuances_per_second + u64::from(world.seen.replicas);
        if world.closed_on_request > budget {
            self.broken(
                world.second,
                format!("{} streams closed, {budget} allowed", world.closed_on_request),
            );
        }
    }

    /// After each decision: never below need, nothing removed blindly, the emptiest chosen, no flapping.
    fn watch_decision(&mut self, policy: &Policy, seen: &Observation, decision: &Decision) {
        let second = decision.at.0 / 1000;
        let Target::Load { min, max, .. } = policy.target else {
            return;
        };
        let wanted = policy.model.needed(seen.load()).clamp(min, max);
        if decision.desired < wanted {
            self.broken(second, format!("{} instances decided, the load needs {wanted}", decision.desired));
        }
        let chosen: Vec<&str> = decision
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::Mark { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let lowers = decision
            .actions
            .iter()
            .any(|action| matches!(action, Action::SetReplicas { to, .. } if *to < seen.replicas));
        let grows = decision
            .actions
            .iter()
            .any(|action| matches!(action, Action::SetReplicas { to, .. } if *to > seen.replicas));
        if (lowers || !chosen.is_empty()) && seen.unknown().next().is_some() {
            self.broken(second, "an instance removed while metrics are missing");
        }
        if !chosen.is_empty() {
            self.watch_choice(second, seen, &chosen);
            let window = policy.scale_in_stabilization_seconds * 1000;
            if self.last_growth.is_some_and(|growth| decision.at.since(growth) < window) {
                self.broken(second, "scaled in within the stabilization window of a scale-out");
            }
        }
        if grows {
            self.last_growth = Some(decision.at);
        }
        if grows || lowers || !chosen.is_empty() {
            self.last_change = second;
        }
    }

    fn watch_choice(&mut self, second: u64, seen: &Observation, chosen: &[&str]) {
        let is_chosen = |instance: &&Instance| chosen.contains(&instance.name.as_str());
        let most = seen.at(Lifecycle::Ready).filter(is_chosen).map(Instance::streams).max();
        let least =
            seen.at(Lifecycle::Ready).filter(|instance| !is_chosen(instance)).map(Instance::streams).min();
        if let (Some(most), Some(least)) = (most, least)
            && most > least
        {
            self.broken(second, format!("an instance with {most} streams chosen, one with {least} kept"));
        }
    }

    /// After the calm: as many instances as the load needs, all serving, every client connected, at rest.
    fn watch_end(&mut self, policy: &Policy, world: &World) {
        let Target::Load { min, max, .. } = policy.target else {
            return;
        };
        let load = Load { clients: world.clients(), issuances_per_second: 0 };
        let needed = policy.model.needed(load).clamp(min, max);
        if world.seen.replicas != needed {
            self.broken(
                world.second,
                format!("at rest with {} instances, {needed} needed", world.seen.replicas),
            );
        }
        if world.seen.count(Lifecycle::Ready) != needed {
            self.broken(world.second, format!("{} of {needed} serve", world.seen.count(Lifecycle::Ready)));
        }
        if world.second - self.last_change < 60 {
            self.broken(world.second, "still changing under a constant load");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::{observation::Observed, policy::Policy};

    fn judged(seen: &Observation, forge: impl Fn(&mut Decision)) -> Vec<String> {
        let mut decision = decide(&Policy::default(), seen, &History::default(), Moment(1000));
        forge(&mut decision);
        let mut judge = Judge::default();
        judge.watch_decision(&Policy::default(), seen, &decision);
        judge.violations
    }

    fn mark(name: &str) -> Action {
        Action::Mark { name: name.into(), mark: crate::scale::drain::mark(Moment(1000), 20) }
    }

    #[test]
    fn the_judges_see_a_broken_promise() {
        let mut seen = Observation {
            replicas: 2,
            instances: vec![Instance::serving("a", 400, 0), Instance::serving("b", 10, 0)],
            ..Observation::default()
        };
        assert_eq!(judged(&seen, |_| {}), Vec::<String>::new());
        assert!(judged(&seen, |decision| decision.desired = 0)[0].contains("the load needs 1"));
        assert!(
            judged(&seen, |decision| decision.actions = vec![mark("a")])[0].contains("400 streams chosen")
        );
        seen.instances[0].load = Observed::Missing { reason: "timeout".into() };
        assert!(
            judged(&seen, |decision| decision.actions = vec![mark("b")])[0].contains("metrics are missing")
        );
    }

    #[test]
    fn the_judges_see_an_undrained_removal_and_a_wrong_rest() {
        let policy = Policy::default();
        let mut world = World::new(3, 20, 1000, Random::new(1));
        for _ in 0..50 {
            world.tick(1400);
        }
        let mut judge = Judge::default();
        judge.watch_end(&policy, &world);
        assert_eq!(judge.violations, ["second 50: still changing under a constant load"]);
        world.execute(&Action::SetReplicas { to: 2, removing: Vec::new() });
        world.tick(1400);
        judge.watch_second(&policy, &world);
        assert!(judge.violations[1].contains("removed undrained"), "{:?}", judge.violations);
        judge.watch_end(&policy, &world);
        assert!(judge.violations[2].contains("at rest with 2 instances, 3 needed"), "{:?}", judge.violations);
    }
}
