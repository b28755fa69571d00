//! From what is asked, seen and remembered to how many instances and what to do: one pure function.
//!
//! The controller, the simulator, `plan` and `replay` all call [`decide`]; nothing else sets a count.

mod blockers;

use super::{
    capacity::Load,
    decision::{Action, Blocker, BlockerKind, Decision, Reason, Step, StepKind},
    drain::{self, Stage},
    history::History,
    message,
    observation::{Instance, Lifecycle, Moment, Observation, Removal},
    policy::{Policy, Target},
    rebalance::{self, Episode, Pass},
    text,
};

/// Milliseconds between looks while instances drain or go.
pub const BUSY_LOOK_MS: u64 = 1000;

/// Decides for one cluster at one moment.
#[must_use]
pub fn decide(policy: &Policy, observed: &Observation, history: &History, now: Moment) -> Decision {
    let expected = match policy.target {
        Target::Load { expected, .. } => expected,
        Target::Fixed { .. } => Load::default(),
    };
    let load = observed.load().max(expected);
    let needed = policy.model.needed(load);
    let stage = Stage::of(observed);
    let committed = stage.committed(observed.replicas);

    let mut steps = vec![message::need(policy, load, needed)];
    let wanted = within_bounds(policy, needed, &mut steps);
    let stable = stabilize(policy, history, now, committed, wanted, &mut steps);
    let target = limit_step(policy, committed, stable, &mut steps);

    let scene = Scene { policy, observed, history, stage: &stage, committed, wanted, target, now };
    let outcome = match (&stage, target) {
        (Stage::WrongRemoved(kept), _) => scene.serve_again(Reason::WrongInstanceRemoved, kept, committed),
        // A drain is taken back at once when the load returns, whatever the windows say: it costs nothing.
        (Stage::Draining(drained), _) if wanted > committed => scene.take_back(drained),
        (_, target) if target > committed => scene.scale_out(),
        (Stage::Draining(drained), _) => scene.go_on_draining(drained),
        (Stage::Removing(_), _) => Outcome::of(Reason::ScaleIn, committed),
        (Stage::Idle, target) if target < committed => scene.scale_in(&mut steps),
        (Stage::Idle, _) => scene.hold(),
    };
    let Outcome { reason, desired, blocked_by, actions, victims } = outcome;
    let victims = if victims.is_empty() { named(stage.instances()) } else { victims };
    let (actions, rebalance, reason) = with_rebalance(&scene, history.rebalance, reason, actions);
    let mut decision = Decision {
        at: now,
        load,
        needed,
        wanted,
        desired,
        reason,
        message: String::new(),
        blocked_by,
        steps,
        victims,
        actions,
        rebalance,
        next_look_ms: policy.interval_ms,
    };
    if matches!(decision.reason, Reason::Draining | Reason::ScaleIn) || !decision.actions.is_empty() {
        decision.next_look_ms = decision.next_look_ms.min(BUSY_LOOK_MS);
    }
    decision.message = message::tell(policy, observed, &decision);
    decision
}

impl History {
    /// Remembers a decision. While data is missing nothing lower than the present count is remembered of a load:
    /// a window full of blanks must not allow a scale-in.
    pub fn remember(&mut self, policy: &Policy, observed: &Observation, decision: &Decision) {
        let by_load = matches!(policy.target, Target::Load { .. });
        let blank = by_load && observed.unknown().next().is_some();
        let asked = if blank { decision.wanted.max(decision.desired) } else { decision.wanted };
        self.record(decision.at, asked, policy.window_ms());
        self.rebalance = decision.rebalance;
    }
}

/// What the steps lead to.
struct Outcome {
    reason: Reason,
    desired: u32,
    blocked_by: Vec<Blocker>,
    actions: Vec<Action>,
    victims: Vec<String>,
}

impl Outcome {
    const fn of(reason: Reason, desired: u32) -> Self {
        Self { reason, desired, blocked_by: Vec::new(), actions: Vec::new(), victims: Vec::new() }
    }

    fn cancel(reason: Reason, desired: u32, instances: &[&Instance]) -> Self {
        let actions =
            instances.iter().map(|instance| Action::Cancel { name: instance.name.clone() }).collect();
        Self { actions, victims: named(instances), ..Self::of(reason, desired) }
    }
}

/// Everything that the last step looks at.
struct Scene<'a> {
    policy: &'a Policy,
    observed: &'a Observation,
    history: &'a History,
    stage: &'a Stage<'a>,
    /// The count that what is under way leads to.
    committed: u32,
    /// The count that the load asks for now, within bounds.
    wanted: u32,
    /// The count after stabilisation and step limit.
    target: u32,
    now: Moment,
}

impl Scene<'_> {
    const fn by_load(&self) -> bool {
        matches!(self.policy.target, Target::Load { .. })
    }

    fn scale_out(&self) -> Outcome {
        let actions = vec![Action::SetReplicas { to: self.target, removing: Vec::new() }];
        Outcome { actions, ..Outcome::of(self.change_reason(Reason::ScaleOut), self.target) }
    }

    /// As many drained instances as the load asks for serve again, the fullest first.
    fn take_back(&self, drained: &[&Instance]) -> Outcome {
        let mut fullest = drained.to_vec();
        fullest.sort_by(|a, b| b.streams().cmp(&a.streams()).then_with(|| a.name.cmp(&b.name)));
        fullest.truncate((self.wanted - self.committed) as usize);
        let kept = self.committed + u32::try_from(fullest.len()).unwrap_or(u32::MAX);
        self.serve_again(Reason::DrainCancelled, &fullest, kept)
    }

    /// These serve again, which makes `kept` instances; what the load asks for beyond that is added.
    fn serve_again(&self, reason: Reason, instances: &[&Instance], kept: u32) -> Outcome {
        let mut outcome = Outcome::cancel(reason, kept, instances);
        if self.target > kept {
            outcome.desired = self.target;
            outcome.actions.push(Action::SetReplicas { to: self.target, removing: Vec::new() });
        }
        outcome
    }

    fn go_on_draining(&self, drained: &[&Instance]) -> Outcome {
        let blockers = self.blockers();
        let finished =
            drained.iter().all(|instance| drain::is_empty(instance) || drain::is_overdue(instance, self.now));
        let overdue = drained.iter().any(|instance| drain::is_overdue(instance, self.now));
        let rollout = blockers.iter().any(|blocker| blocker.kind == BlockerKind::RolloutInProgress);
        if rollout || (overdue && !blockers.is_empty()) {
            // What was true when they were chosen no longer is: better a full cluster than a wrong one.
            let mut outcome = Outcome::cancel(Reason::DrainCancelled, self.observed.replicas, drained);
            outcome.blocked_by = blockers;
            return outcome;
        }
        if finished && blockers.is_empty() {
            let removing: Vec<Removal> = drained.iter().copied().filter_map(drain::removal).collect();
            let actions = vec![Action::SetReplicas { to: self.committed, removing }];
            return Outcome { actions, ..Outcome::of(Reason::ScaleIn, self.committed) };
        }
        let actions = drained
            .iter()
            .filter(|instance| drain::needs_telling(instance))
            .map(|instance| Action::Drain { name: instance.name.clone() })
            .collect();
        Outcome { actions, blocked_by: blockers, ..Outcome::of(Reason::Draining, self.committed) }
    }

    fn scale_in(&self, steps: &mut Vec<Step>) -> Outcome {
        if self.target == 0 {
            // Nobody stays to take the clients: each pod drains as it is told to go.
            return self.lower(0);
        }
        let blockers = self.blockers();
        let absent = self.absent();
        let only_starting = blockers.iter().all(|blocker| blocker.kind == BlockerKind::InstancesStarting);
        if absent > 0 && only_starting {
            // What has not run for a whole window is given up: Kubernetes removes such pods before any other,
            // so that no serving instance is at risk.
            let kept = self.target.max(self.committed.saturating_sub(absent));
            return Outcome { reason: Reason::ScaleIn, ..self.lower(kept) };
        }
        if !blockers.is_empty() {
            return self.wait(blockers);
        }
        let victims = drain::choose_victims(self.observed, self.committed - self.target);
        let affordable = self.affordable(&victims);
        let victims = victims.get(..affordable).unwrap_or_default();
        let desired = self.committed - u32::try_from(victims.len()).unwrap_or(0);
        let budget = self.reconnects_per_second();
        steps.push(Step {
            step: StepKind::DrainBudget,
            instances: desired,
            note: format!("{} streams may reconnect a second", text::thousands(budget)),
        });
        if victims.is_empty() {
            let detail = format!(
                "the remaining instances can take {} reconnecting clients a second, too few for any instance's streams",
                text::thousands(budget)
            );
            return self.wait(vec![Blocker { kind: BlockerKind::DrainBudget, detail }]);
        }
        let mark = drain::mark(self.now, self.policy.drain_seconds);
        let actions = (victims.iter().map(|victim| Action::Mark { name: victim.name.clone(), mark }))
            .chain(victims.iter().map(|victim| Action::Drain { name: victim.name.clone() }))
            .collect();
        Outcome { actions, victims: named(victims), ..Outcome::of(Reason::Draining, desired) }
    }

    /// Sets the count without a drain.
    fn lower(&self, to: u32) -> Outcome {
        let actions = vec![Action::SetReplicas { to, removing: Vec::new() }];
        Outcome { actions, ..Outcome::of(self.change_reason(Reason::ScaleIn), to) }
    }

    /// Nothing goes while these stand in the way, except that a person's word counts in the end.
    fn wait(&self, blocked_by: Vec<Blocker>) -> Outcome {
        if let Some(asked) = self.insisted(&blocked_by) {
            return self.lower(asked);
        }
        Outcome { blocked_by, ..Outcome::of(Reason::ScaleInBlocked, self.committed) }
    }

    fn hold(&self) -> Outcome {
        if self.wanted == self.committed || !self.by_load() {
            return Outcome::of(self.change_reason(Reason::Steady), self.committed);
        }
        if self.wanted < self.committed {
            // No window passes while a load is unknown: that is what is waited for, and not the time.
            let mut blockers = self.blockers();
            blockers.retain(|blocker| blocker.kind == BlockerKind::MetricsMissing);
            if !blockers.is_empty() {
                return self.wait(blockers);
            }
        }
        Outcome::of(Reason::Stabilizing, self.committed)
    }

    const fn change_reason(&self, by_load: Reason) -> Reason {
        if self.by_load() { by_load } else { Reason::Fixed }
    }

    /// How many of `victims`, in their order, the budget allows to drain together.
    fn affordable(&self, victims: &[&Instance]) -> usize {
        let budget = u128::from(self.reconnects_per_second()) * u128::from(self.policy.drain_seconds.max(1));
        let mut streams = 0;
        victims
            .iter()
            .take_while(|victim| {
                streams += u128::from(victim.streams());
                streams <= budget
            })
            .count()
    }

    /// Streams that may close a second so that they reconnect to the instances that stay. A client that
    /// comes back may need a new token, so what they can issue beyond their present load is the measure.
    fn reconnects_per_second(&self) -> u64 {
        let spare = self
            .policy
            .model
            .capacity(self.target)
            .issuances_per_second
            .saturating_sub(self.observed.load().issuances_per_second);
        self.policy.max_reconnects_per_second.map_or(spare, |limit| spare.min(limit.get().into()))
    }
}

fn within_bounds(policy: &Policy, needed: u32, steps: &mut Vec<Step>) -> u32 {
    let (wanted, note) = match policy.target {
        Target::Load { min, max, .. } => {
            (needed.min(max).max(min), format!("minInstances {min}, maxInstances {max}"))
        }
        Target::Fixed { instances } => (instances, format!("spec.instances {instances}")),
    };
    steps.push(Step { step: StepKind::Bounds, instances: wanted, note });
    wanted
}

fn stabilize(
    policy: &Policy,
    history: &History,
    now: Moment,
    committed: u32,
    wanted: u32,
    steps: &mut Vec<Step>,
) -> u32 {
    if let Target::Fixed { .. } = policy.target {
        return wanted;
    }
    let covered = history.covered_ms(now);
    let (seconds, stable) = if wanted > committed {
        let seconds = policy.scale_out_stabilization_seconds;
        let lowest = history.smallest(now, seconds.saturating_mul(1000), wanted);
        (seconds, if covered >= seconds.saturating_mul(1000) { lowest.max(committed) } else { committed })
    } else {
        let seconds = policy.scale_in_window_seconds();
        let highest = history.largest(now, seconds.saturating_mul(1000), wanted);
        (seconds, if covered >= seconds.saturating_mul(1000) { highest.min(committed) } else { committed })
    };
    let note = match (wanted.cmp(&committed), covered >= seconds.saturating_mul(1000)) {
        (std::cmp::Ordering::Equal, _) => "nothing to change".to_owned(),
        (_, false) => format!("looked for {} of {seconds} s", covered / 1000),
        (std::cmp::Ordering::Greater, true) => format!("fewest asked for in {seconds} s"),
        (std::cmp::Ordering::Less, true) => format!("most asked for in {seconds} s"),
    };
    steps.push(Step { step: StepKind::Stabilization, instances: stable, note });
    stable
}

fn limit_step(policy: &Policy, committed: u32, stable: u32, steps: &mut Vec<Step>) -> u32 {
    let limit = if stable > committed { policy.max_scale_out_step } else { policy.max_scale_in_step };
    let Some(limit) = limit.filter(|_| matches!(policy.target, Target::Load { .. })) else {
        return stable;
    };
    let target = stable.clamp(committed.saturating_sub(limit.get()), committed.saturating_add(limit.get()));
    steps.push(Step {
        step: StepKind::StepLimit,
        instances: target,
        note: format!("at most {limit} at once"),
    });
    target
}

/// Levels the streams once a scale-out has come to rest, and only while nothing else moves.
fn with_rebalance(
    scene: &Scene<'_>,
    episode: Option<Episode>,
    reason: Reason,
    mut actions: Vec<Action>,
) -> (Vec<Action>, Option<Episode>, Reason) {
    if !scene.policy.rebalance {
        return (actions, None, reason);
    }
    let grows = actions
        .iter()
        .any(|action| matches!(action, Action::SetReplicas { to, .. } if *to > scene.observed.replicas));
    if grows {
        return (actions, Some(Episode::default()), reason);
    }
    let Some(episode) = episode else {
        return (actions, None, reason);
    };
    let at_rest =
        matches!(reason, Reason::Steady | Reason::Fixed | Reason::Stabilizing) && actions.is_empty();
    if !at_rest || !scene.blockers().is_empty() {
        return (actions, Some(episode), reason);
    }
    let budget = scene.reconnects_per_second();
    match rebalance::plan_pass(episode, scene.observed.at(Lifecycle::Ready), budget, scene.now) {
        Pass::Done => (actions, None, reason),
        Pass::Wait => (actions, Some(episode), Reason::Rebalancing),
        Pass::Shed(shares) => {
            actions.extend(
                shares.into_iter().map(|share| Action::Shed { name: share.name, streams: share.streams }),
            );
            let next = Episode { passes: episode.passes + 1, last: scene.now };
            (actions, Some(next), Reason::Rebalancing)
        }
    }
}

fn named(instances: &[&Instance]) -> Vec<String> {
    instances.iter().map(|instance| instance.name.clone()).collect()
}

#[cfg(test)]
mod tests;
