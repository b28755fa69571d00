//! Watches that the promises of docs/scaling.md are kept, in every second and by the truth about the pods. It shares
//! nothing with `decide` but the capacity formula.

use std::collections::VecDeque;

use super::{
    setting::{self, CRASH_SECONDS},
    world::World,
};
use crate::scale::{
    decision::{Action, Decision},
    observation::{Lifecycle, Moment},
    policy::{Policy, Target},
};

/// Seconds without any action after which a cluster rests.
const REST_SECONDS: u64 = 60;

/// The judge of one run.
pub struct Judge {
    /// Promises that were broken, with the second.
    pub violations: Vec<String>,
    /// The count that the told load has asked for all the time, over as long as a scale-out may take.
    asked: Lowest,
    last_growth: Option<u64>,
    last_action: u64,
}

impl Judge {
    /// A judge of runs under this policy.
    pub fn new(policy: &Policy) -> Self {
        let Target::Load { max, .. } = policy.target else { unreachable!("runs follow the load") };
        let looks = policy.max_scale_out_step.map_or(1, |step| max.div_ceil(step.get()) + 1);
        let interval = policy.interval_ms.div_ceil(1000);
        // A window is as long as the looks that cover it: the lower need has held until the look that found it higher.
        let cover = if policy.scale_out_stabilization_seconds > 0 { interval } else { 0 };
        let window = policy.scale_out_stabilization_seconds + cover + u64::from(looks) * interval + 1;
        Self { violations: Vec::new(), asked: Lowest::new(window), last_growth: None, last_action: 0 }
    }

    fn broken(&mut self, second: u64, what: impl std::fmt::Display) {
        self.violations.push(format!("second {second}: {what}"));
    }

    /// The controller died: nothing can be expected before its successor looks.
    pub fn controller_died(&mut self, second: u64) {
        self.asked.restart(second + CRASH_SECONDS);
    }

    /// At a look: no busy loop, and none that sleeps through a change.
    pub fn watch_look(&mut self, policy: &Policy, decision: &Decision) {
        if decision.next_look_ms == 0 || decision.next_look_ms > policy.interval_ms {
            self.broken(decision.at.0 / 1000, format!("the next look is in {} ms", decision.next_look_ms));
        }
    }

    /// Before actions are carried out: bounds and steps; nothing removed blindly, in a hurry or while others move; the
    /// emptiest chosen.
    pub fn watch_actions(&mut self, policy: &Policy, world: &World, actions: &[Action]) {
        let second = world.second;
        let Target::Load { min, max, .. } = policy.target else { return };
        let replicas = world.seen.replicas;
        let mut to = replicas;
        let mut chosen = vec![false; world.pods.len()];
        for action in actions {
            self.last_action = second;
            match action {
                Action::SetReplicas { to: count, .. } => to = *count,
                Action::Mark { name, .. } => {
                    if let Some(index) = world.position(name) {
                        chosen[index] = true;
                    }
                }
                Action::Drain { .. } | Action::Cancel { .. } | Action::Shed { .. } => {}
            }
        }
        if !(min..=max).contains(&to) {
            self.broken(second, format!("{to} instances outside {min} to {max}"));
        }
        let exceeds =
            |change: u32, step: Option<std::num::NonZeroU32>| step.is_some_and(|step| change > step.get());
        if exceeds(to.saturating_sub(replicas), policy.max_scale_out_step) {
            self.broken(second, format!("{replicas} to {to} instances in one step"));
        }
        let marked = u32::try_from(chosen.iter().filter(|chosen| **chosen).count()).unwrap_or(u32::MAX);
        if exceeds(replicas.saturating_sub(to).max(marked), policy.max_scale_in_step) {
            self.broken(second, format!("{marked} drained or {replicas} to {to} instances in one step"));
        }
        if to > replicas {
            self.last_growth = Some(second);
        }
        if to < replicas || marked > 0 {
            if world.is_blind() {
                self.broken(second, "an instance removed while metrics are missing");
            }
            if world.seen.rollout {
                self.broken(second, "an instance removed during a rollout");
            }
        }
        if marked == 0 {
            return;
        }
        if world.pods.iter().any(|pod| pod.starts > second) {
            self.broken(second, "an instance drained while another one starts");
        }
        let window = policy.scale_in_stabilization_seconds;
        if self.last_growth.is_some_and(|growth| second - growth < window) {
            self.broken(second, "scaled in within the stabilization window of a scale-out");
        }
        let told = |is_chosen: bool| {
            let pods = world.pods.iter().zip(&world.seen.instances).zip(&chosen);
            pods.filter(move |((_, seen), chosen)| {
                seen.lifecycle() == Lifecycle::Ready && **chosen == is_chosen
            })
            .map(|((pod, _), _)| pod.told())
        };
        if let (Some(most), Some(least)) = (told(true).max(), told(false).min())
            && most > least
        {
            self.broken(second, format!("an instance with {most} streams chosen, one with {least} kept"));
        }
    }

    /// In each second: as many instances as the load asks for, drained before removed, no stream cut, and no more
    /// reconnects than allowed.
    pub fn watch_second(&mut self, policy: &Policy, world: &World) {
        let second = world.second;
        let told: u64 = world.pods.iter().map(super::world::Pod::told).sum();
        let committed = world.committed();
        self.asked.push(second, setting::needed(policy, told));
        if let Some(asked) = self.asked.lowest(second)
            && committed < asked
        {
            self.broken(second, format!("{committed} instances to be, the load has asked for {asked}"));
        }
        for removed in world.removed.iter().filter(|removed| !removed.pending) {
            let is_overdue = removed.mark.is_some_and(|mark| mark.deadline <= Moment(second * 1000));
            if removed.mark.is_none() {
                self.broken(
                    second,
                    format!("an instance with {} streams removed undrained", removed.streams),
                );
            } else if removed.streams > 0 && !is_overdue {
                self.broken(second, format!("{} streams cut before the deadline", removed.streams));
            }
        }
        if world.cut > 0 {
            self.broken(second, format!("{} streams cut by the end of their pod", world.cut));
        }
        let staying = world.seen.count(Lifecycle::Ready).max(1);
        let carried = policy.model.capacity(staying).issuances_per_second;
        let budget = policy.max_reconnects_per_second.map_or(carried, |most| carried.min(most.get().into()));
        // Each instance that drains rounds up.
        let draining = world.pods.iter().filter(|pod| pod.closes > 0).count() as u64;
        if world.closed_on_request > budget + draining {
            self.broken(second, format!("{} streams closed, {budget} allowed", world.closed_on_request));
        }
    }

    /// Whether as many instances serve as the load needs, every client is connected, and nothing happens.
    pub fn is_at_rest(&self, policy: &Policy, world: &World) -> bool {
        let needed = setting::needed(policy, world.clients());
        world.seen.replicas == needed
            && world.pods.len() == needed as usize
            && world.seen.count(Lifecycle::Ready) == needed
            && world.second - self.last_action >= REST_SECONDS
    }

    /// After the calm: the cluster rests.
    pub fn watch_end(&mut self, policy: &Policy, world: &World) {
        if !self.is_at_rest(policy, world) {
            let what = format!(
                "not at rest under a constant load: {} instances, {} of them serve, {} needed; last action in second {}",
                world.seen.replicas,
                world.seen.count(Lifecycle::Ready),
                setting::needed(policy, world.clients()),
                self.last_action
            );
            self.broken(world.second, what);
        }
    }
}

/// The lowest of the values of the last `window` seconds.
struct Lowest {
    window: u64,
    since: u64,
    /// Second and value, both rising: what is older and larger than another can never be the lowest again.
    rising: VecDeque<(u64, u32)>,
}

impl Lowest {
    const fn new(window: u64) -> Self {
        Self { window, since: 0, rising: VecDeque::new() }
    }

    fn restart(&mut self, second: u64) {
        self.since = second;
        self.rising.clear();
    }

    fn push(&mut self, second: u64, value: u32) {
        while self.rising.back().is_some_and(|(_, last)| *last >= value) {
            self.rising.pop_back();
        }
        self.rising.push_back((second, value));
        while self.rising.front().is_some_and(|(at, _)| at + self.window < second) {
            self.rising.pop_front();
        }
    }

    /// `None` before a whole window has passed.
    fn lowest(&self, second: u64) -> Option<u32> {
        let (_, lowest) = self.rising.front()?;
        (second >= self.since + self.window).then_some(*lowest)
    }
}
