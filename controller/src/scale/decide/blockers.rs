//! What makes it unsafe to remove an instance, and how long a person's word waits for it.

use super::{
    super::{
        decision::{Blocker, BlockerKind},
        drain::{self, Stage},
        observation::{Instance, Lifecycle},
        policy::PATIENCE_SECONDS,
        text,
    },
    Scene,
};

impl Scene<'_> {
    /// What makes it unsafe to remove an instance now.
    pub(super) fn blockers(&self) -> Vec<Blocker> {
        let mut blockers: Vec<Blocker> = self.metrics_missing().into_iter().collect();
        let mut add = |kind, detail| blockers.push(Blocker { kind, detail });
        if self.observed.rollout {
            add(BlockerKind::RolloutInProgress, "pods are being replaced by a newer version".to_owned());
        }
        let (ready, draining) =
            (self.observed.count(Lifecycle::Ready), self.observed.count(Lifecycle::Draining));
        if let Some(absent) =
            self.observed.replicas.checked_sub(ready + draining).filter(|absent| *absent > 0)
        {
            let starting = self.observed.at(Lifecycle::Starting);
            let names = text::names(starting.map(|instance| instance.name.as_str()));
            let names = if names.is_empty() { text::counted(absent.into(), "instance") } else { names };
            add(BlockerKind::InstancesStarting, format!("{names} not ready yet"));
        }
        let going: Vec<&Instance> = self
            .observed
            .at(Lifecycle::Terminating)
            .filter(|instance| !drain::is_lost(instance, self.now))
            .collect();
        let surplus = matches!(self.stage, Stage::Idle) && ready > self.observed.replicas;
        if surplus || !going.is_empty() {
            let names = text::names(going.iter().map(|instance| instance.name.as_str()));
            let names = if names.is_empty() { "surplus instances".to_owned() } else { names };
            add(BlockerKind::InstancesTerminating, format!("{names} still on the way out"));
        }
        blockers
    }

    /// Where the load sets the count, all of it must be known. Where a person does, it is enough to know the streams of
    /// more instances than are to go: they are chosen from those, once.
    fn metrics_missing(&self) -> Option<Blocker> {
        let unknown: Vec<(&Instance, &str)> = self
            .observed
            .unknown()
            .filter(|(instance, _)| self.by_load() || instance.load.known().is_none())
            .collect();
        let (_, reason) = unknown.first()?;
        let known = self.observed.at(Lifecycle::Ready).filter(|instance| instance.load.known().is_some());
        let known = u32::try_from(known.count()).unwrap_or(u32::MAX);
        let suffices =
            known > self.committed.saturating_sub(self.target) || !matches!(self.stage, Stage::Idle);
        if !self.by_load() && suffices {
            return None;
        }
        let names = text::names(unknown.iter().map(|(instance, _)| instance.name.as_str()));
        let detail = format!("the load of {names} is not known ({reason})");
        Some(Blocker { kind: BlockerKind::MetricsMissing, detail })
    }

    /// Instances that can be given up without touching one that serves: they have never run. Where a person sets the
    /// count, also those that never answered and pods that were never made.
    pub(super) fn absent(&self) -> u32 {
        let gives_up = |instance: &&Instance| {
            let mute = instance.load.known().is_none() && !instance.may_hold_streams();
            instance.pending || (mute && !self.by_load())
        };
        let starting = self.observed.at(Lifecycle::Starting).filter(gives_up).count();
        let exist = self.observed.instances.iter().filter(|instance| !instance.terminating).count();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let unmade = if self.by_load() { 0 } else { self.observed.replicas.saturating_sub(count(exist)) };
        count(starting).saturating_add(unmade)
    }

    /// The count that a person has asked for long enough: through the whole patience, or where nothing but silence is
    /// in the way, and has been for longer than a hiccup.
    pub(super) fn insisted(&self, blockers: &[Blocker]) -> Option<u32> {
        if self.by_load() {
            return None;
        }
        let blind = blockers.iter().all(|blocker| blocker.kind == BlockerKind::MetricsMissing)
            && self.observed.unknown().any(|(instance, _)| instance.load.latest().is_none());
        if blind {
            return Some(self.target);
        }
        let patience = PATIENCE_SECONDS * 1000;
        let asked = self.history.largest(self.now, patience, self.target);
        (self.history.covered_ms(self.now) >= patience && asked < self.committed).then_some(asked)
    }
}
