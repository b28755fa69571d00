//! The way of an instance out of the cluster: chosen, marked, drained, removed, verified. Pure: it says how
//! far a removal is from what stands on the pods and the Deployment, so that any leader can go on.
//!
//! ```text
//! serving -> marked -> (empty or deadline) -> replicas lowered -> gone
//!               '-> cancelled: serving again     '-> another pod went: cancelled, reported
//! ```

use std::{cmp::Reverse, collections::BTreeMap};

use super::observation::{Instance, Lifecycle, Mark, Moment, Observation, Removal};

/// Beyond the drain window: for the instance's delay before its first closing, for clients that do not go and for
/// a look that comes late.
pub const DEADLINE_SLACK_SECONDS: u64 = 15;

/// Beyond a pod's grace period: for the kubelet to kill what is left of it and to say so.
const LOST_SLACK_SECONDS: u64 = 30;

/// How far a removal is.
#[derive(Debug)]
pub enum Stage<'a> {
    /// Nothing is being removed.
    Idle,
    /// These drain; `replicas` still counts them.
    Draining(Vec<&'a Instance>),
    /// `replicas` no longer counts these; Kubernetes has yet to remove them.
    Removing(Vec<&'a Instance>),
    /// `replicas` was lowered for these, but Kubernetes removed others.
    WrongRemoved(Vec<&'a Instance>),
}

impl<'a> Stage<'a> {
    /// Reads the stage off the world.
    #[must_use]
    pub fn of(observed: &'a Observation) -> Self {
        let drained: Vec<&Instance> = observed.at(Lifecycle::Draining).collect();
        if drained.is_empty() {
            return Self::Idle;
        }
        let lowered: Vec<&Instance> =
            drained.iter().copied().filter(|instance| lowered_for(observed, instance)).collect();
        if lowered.is_empty() {
            return Self::Draining(drained);
        }
        let active = observed.instances.iter().filter(|instance| !instance.terminating).count();
        if u32::try_from(active).unwrap_or(u32::MAX) > observed.replicas {
            Self::Removing(lowered)
        } else {
            Self::WrongRemoved(lowered)
        }
    }

    /// The instances on their way out.
    #[must_use]
    pub fn instances(&self) -> &[&'a Instance] {
        match self {
            Self::Idle => &[],
            Self::Draining(instances) | Self::Removing(instances) | Self::WrongRemoved(instances) => {
                instances
            }
        }
    }

    /// The count that `replicas` comes to when the stage has run its course.
    #[must_use]
    pub fn committed(&self, replicas: u32) -> u32 {
        match self {
            Self::Draining(instances) => {
                replicas.saturating_sub(u32::try_from(instances.len()).unwrap_or(u32::MAX))
            }
            Self::Idle | Self::Removing(_) | Self::WrongRemoved(_) => replicas,
        }
    }
}

fn lowered_for(observed: &Observation, instance: &Instance) -> bool {
    instance.mark.is_some_and(|mark| {
        observed.removing.iter().any(|removal| removal.name == instance.name && removal.since == mark.since)
    })
}

/// The `count` serving instances that lose the least: fewest streams, then newest, then from the zone that
/// has most, then by name. Instances whose load is not known are never chosen.
#[must_use]
pub fn choose_victims(observed: &Observation, count: u32) -> Vec<&Instance> {
    let mut zones: BTreeMap<Option<&str>, u32> = BTreeMap::new();
    for instance in observed.at(Lifecycle::Ready) {
        *zones.entry(instance.zone.as_deref()).or_default() += 1;
    }
    let mut candidates: Vec<&Instance> =
        observed.at(Lifecycle::Ready).filter(|instance| instance.load.known().is_some()).collect();
    candidates.sort_by_key(|instance| (instance.streams(), Reverse(instance.created)));
    let mut victims = Vec::new();
    while victims.len() < count as usize {
        // Among those equal to the first, the one from the fullest zone.
        let Some(first) = candidates.first() else { break };
        let rank = (first.streams(), first.created);
        let equals = candidates.iter().take_while(|instance| (instance.streams(), instance.created) == rank);
        let best = equals
            .enumerate()
            .min_by_key(|(_, instance)| {
                (Reverse(zones.get(&instance.zone.as_deref()).copied().unwrap_or(0)), &instance.name)
            })
            .map_or(0, |(index, _)| index);
        let victim = candidates.remove(best);
        if let Some(zone) = zones.get_mut(&victim.zone.as_deref()) {
            *zone = zone.saturating_sub(1);
        }
        victims.push(victim);
    }
    victims
}

/// The mark of an instance chosen now.
#[must_use]
pub const fn mark(now: Moment, drain_seconds: u64) -> Mark {
    Mark { since: now, deadline: now.plus_seconds(drain_seconds.saturating_add(DEADLINE_SLACK_SECONDS)) }
}

/// The removal that a marked instance stands for.
#[must_use]
pub fn removal(instance: &Instance) -> Option<Removal> {
    instance.mark.map(|mark| Removal { name: instance.name.clone(), since: mark.since })
}

/// It has no stream left and takes no new one: it says so itself, and it is out of the Service, which also
/// makes it the first that Kubernetes removes.
#[must_use]
pub fn is_empty(instance: &Instance) -> bool {
    !instance.ready && instance.load.known().is_some_and(|reading| reading.draining && reading.streams == 0)
}

/// Its time is up.
#[must_use]
pub fn is_overdue(instance: &Instance, now: Moment) -> bool {
    instance.mark.is_none_or(|mark| now >= mark.deadline)
}

/// It was told to go, and is there long after its time was up: its node does not answer, and holds no stream that
/// anybody could wait for.
#[must_use]
pub fn is_lost(instance: &Instance, now: Moment) -> bool {
    instance.terminating && instance.gone_by.is_some_and(|by| now >= by.plus_seconds(LOST_SLACK_SECONDS))
}

/// It answers, but does not drain: its process was restarted, or never heard of it.
#[must_use]
pub fn needs_telling(instance: &Instance) -> bool {
    instance.load.known().is_some_and(|reading| !reading.draining)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::observation::Observed, *};

    fn instance(name: &str, streams: u64, created: u64, zone: &str) -> Instance {
        Instance {
            created: Moment(created),
            zone: (!zone.is_empty()).then(|| zone.into()),
            ..Instance::serving(name, streams, 0)
        }
    }

    fn observed(instances: Vec<Instance>) -> Observation {
        Observation { replicas: instances.len().try_into().unwrap(), instances, ..Observation::default() }
    }

    fn chosen(observation: &Observation, count: u32) -> Vec<&str> {
        choose_victims(observation, count).iter().map(|victim| victim.name.as_str()).collect()
    }

    #[test]
    fn the_emptiest_goes_first_then_the_newest_then_the_fullest_zone() {
        let fewest =
            observed(vec![instance("a", 9, 0, ""), instance("b", 3, 0, ""), instance("c", 5, 0, "")]);
        assert_eq!(chosen(&fewest, 2), ["b", "c"]);
        let newest =
            observed(vec![instance("a", 3, 1, ""), instance("b", 3, 7, ""), instance("c", 3, 5, "")]);
        assert_eq!(chosen(&newest, 2), ["b", "c"]);
        let zones = observed(vec![
            instance("a", 3, 1, "x"),
            instance("b", 3, 1, "y"),
            instance("c", 3, 1, "y"),
            instance("d", 3, 1, "z"),
        ]);
        assert_eq!(chosen(&zones, 2), ["b", "a"], "y loses one, then the zones are even");
    }

    #[test]
    fn an_instance_with_unknown_load_is_never_chosen() {
        let mut unknown = instance("a", 0, 0, "");
        unknown.load = Observed::Missing { reason: "timeout".into() };
        assert_eq!(chosen(&observed(vec![unknown, instance("b", 9, 0, "")]), 2), ["b"]);
    }

    #[test]
    fn the_stage_is_read_off_the_pods_and_the_deployment() {
        let mark = mark(Moment(5000), 20);
        let mut drained = instance("b", 0, 0, "");
        drained.mark = Some(mark);
        let mut world = observed(vec![instance("a", 9, 0, ""), drained, instance("c", 9, 0, "")]);
        assert!(matches!(Stage::of(&world), Stage::Draining(_)));
        assert_eq!(Stage::of(&world).committed(3), 2);

        world.replicas = 2;
        world.removing = vec![Removal { name: "b".into(), since: mark.since }];
        assert!(matches!(Stage::of(&world), Stage::Removing(_)), "three pods, two wanted");

        world.instances[1].terminating = true;
        assert!(matches!(Stage::of(&world), Stage::Idle), "the right one goes");

        world.instances[1].terminating = false;
        world.instances[2].terminating = true;
        assert!(matches!(Stage::of(&world), Stage::WrongRemoved(_)), "another one goes");

        // A later drain of the same pod is not taken for the earlier removal.
        world.instances[1].mark = Some(super::mark(Moment(90_000), 20));
        assert!(matches!(Stage::of(&world), Stage::Draining(_)));
    }

    proptest! {
        #[test]
        fn no_survivor_has_fewer_streams_than_a_victim(
            loads in prop::collection::vec((0..50u64, 0..5u64, 0..4usize), 1..50), count in 0..50u32,
        ) {
            let zones = ["", "x", "y", "z"];
            let world = observed(loads.iter().enumerate()
                .map(|(i, (streams, created, zone))| instance(&format!("pod-{i}"), *streams, *created, zones[*zone]))
                .collect());
            let victims = chosen(&world, count);
            prop_assert_eq!(victims.len(), loads.len().min(count as usize));
            let most = world.instances.iter().filter(|i| victims.contains(&i.name.as_str())).map(Instance::streams).max();
            let least = world.instances.iter().filter(|i| !victims.contains(&i.name.as_str())).map(Instance::streams).min();
            if let (Some(most), Some(least)) = (most, least) {
                prop_assert!(most <= least);
            }
        }
    }
}
