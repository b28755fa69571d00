//! A cluster in virtual time: pods, clients, a load balancer and a `ReplicaSet` that removes pods by the rules
//! of Kubernetes. It knows nothing of how decisions are made; it only does what they say.

use std::cmp::Reverse;

use super::random::Random;
use crate::scale::{
    decision::Action,
    observation::{Instance, Lifecycle, Mark, Moment, Observation, Observed, Reading},
};

/// Seconds after which a client whose stream closed connects again (`retry:`).
const RETRY_SECONDS: usize = 2;
/// Seconds for which the last word of a silent instance counts.
const STALE_SECONDS: u64 = 60;
/// Seconds that a terminating pod keeps its streams before it drains, and that it has beyond the drain.
const GRACE_SECONDS: u64 = 7;

/// What a pod tells about its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// The truth.
    True,
    /// This many percent of it.
    Scaled(u64),
    /// Nothing.
    Silent,
}

/// The truth about one pod; what is seen of it stands in the observation at the same index.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Open streams.
    pub streams: u64,
    /// Serves from this second on.
    pub starts: u64,
    /// Streams it closes a second while it drains; 0 = it does not drain.
    pub closes: u64,
    /// What it tells.
    pub account: Account,
    /// What it told last, and when.
    last: Option<(Reading, u64)>,
    /// It has told something else than the truth: nobody can know how many streams it closes.
    has_lied: bool,
    cost: i32,
    gone_by: u64,
    old: bool,
}

impl Pod {
    /// Streams that it tells of, if it is asked.
    #[must_use]
    pub const fn told(&self) -> u64 {
        match self.account {
            Account::True => self.streams,
            Account::Scaled(percent) => self.streams * percent / 100,
            Account::Silent => 0,
        }
    }
}

/// A removal by the `ReplicaSet`, for the judges.
#[derive(Clone, Debug)]
pub struct Removed {
    /// It never ran.
    pub pending: bool,
    /// The mark on the pod, if it had one.
    pub mark: Option<Mark>,
    /// Streams it still had, by its own account: what a liar hides nobody can know. They are not cut, for a
    /// pod drains when it is told to go.
    pub streams: u64,
}

/// The cluster.
#[derive(Debug)]
pub struct World {
    /// Seconds since the start.
    pub second: u64,
    /// What an observer sees. Loads are as old as the last [`World::look`].
    pub seen: Observation,
    /// The truth, by the same index as `seen.instances`.
    pub pods: Vec<Pod>,
    /// Streams closed in this second because somebody asked for it (drain, shed), by instances that never lied.
    pub closed_on_request: u64,
    /// Pods that the `ReplicaSet` removed in this second.
    pub removed: Vec<Removed>,
    /// Streams cut in this second because their pod's time to go was up.
    pub cut: u64,
    /// Clients between two connections, by the second in which they try again.
    waiting: [u64; RETRY_SECONDS + 1],
    drain_seconds: u64,
    most_streams: u64,
    start_seconds: (u64, u64),
    created: u64,
    random: Random,
}

impl World {
    /// A cluster of `replicas` instances that serve; each takes at most `most_streams`.
    #[must_use]
    pub fn new(replicas: u32, drain_seconds: u64, most_streams: u64, mut random: Random) -> Self {
        let slow = random.between(3, 40);
        let mut world = Self {
            second: 0,
            seen: Observation { replicas, ..Observation::default() },
            pods: Vec::new(),
            closed_on_request: 0,
            removed: Vec::new(),
            cut: 0,
            waiting: [0; RETRY_SECONDS + 1],
            drain_seconds,
            most_streams,
            start_seconds: (2, slow),
            created: 0,
            random,
        };
        for _ in 0..replicas {
            world.create(0);
        }
        world
    }

    /// Clients that are connected or about to be.
    #[must_use]
    pub fn clients(&self) -> u64 {
        self.connected() + self.waiting.iter().sum::<u64>()
    }

    fn connected(&self) -> u64 {
        self.pods.iter().map(|pod| pod.streams).sum()
    }

    /// One second passes, in which `clients` want to be connected.
    pub fn tick(&mut self, clients: u64) {
        self.second += 1;
        self.closed_on_request = 0;
        self.removed.clear();
        self.cut = 0;
        self.drain();
        self.replicate();
        self.bury();
        for (pod, seen) in self.pods.iter().zip(&mut self.seen.instances) {
            seen.pending = pod.starts > self.second;
            seen.ready = pod.starts <= self.second && pod.closes == 0 && !seen.terminating;
        }
        let returning = std::mem::take(&mut self.waiting[0]);
        self.waiting.rotate_left(1);
        let present = self.clients() + returning;
        if clients >= present {
            self.connect(returning + clients - present);
        } else {
            let leave = present - clients;
            let from_returning = leave.min(returning);
            self.disconnect(leave - from_returning);
            self.connect(returning - from_returning);
        }
    }

    /// Brings what is seen up to date with what the pods tell; `issuances` a second are spread evenly.
    pub fn look(&mut self, issuances: u64) {
        let ready = u64::from(self.seen.count(Lifecycle::Ready)).max(1);
        for (pod, seen) in self.pods.iter_mut().zip(&mut self.seen.instances) {
            let rate = if seen.ready { issuances / ready } else { 0 };
            let value =
                Reading { streams: pod.told(), issuances_per_second: Some(rate), draining: pod.closes > 0 };
            let reason = String::new();
            seen.load = match (pod.account, pod.last) {
                _ if pod.starts > self.second => Observed::Missing { reason },
                (Account::Silent, Some((value, at))) if self.second - at <= STALE_SECONDS => {
                    Observed::Stale { value, age_ms: (self.second - at) * 1000, reason }
                }
                (Account::Silent, _) => Observed::Missing { reason },
                (Account::True | Account::Scaled(_), _) => {
                    pod.last = Some((value, self.second));
                    pod.has_lied |= pod.account != Account::True;
                    seen.answered = true;
                    Observed::Known { value }
                }
            };
        }
    }

    /// Whether an instance that has served, and may do so still, tells nothing.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        let is_mute = |(pod, seen): (&Pod, &Instance)| {
            pod.account == Account::Silent && pod.starts <= self.second && !seen.terminating
        };
        self.pods.iter().zip(&self.seen.instances).any(is_mute)
    }

    /// The count that the cluster is on its way to: what is being drained and still counted is given up.
    #[must_use]
    pub fn committed(&self) -> u32 {
        let is_given_up = |instance: &&Instance| {
            instance.lifecycle() == Lifecycle::Draining
                && !self.seen.removing.iter().any(|removal| {
                    removal.name == instance.name
                        && Some(removal.since) == instance.mark.map(|mark| mark.since)
                })
        };
        let given_up = self.seen.instances.iter().filter(is_given_up).count();
        self.seen.replicas.saturating_sub(u32::try_from(given_up).unwrap_or(u32::MAX))
    }

    /// Does what was decided, as the API server and the pods would.
    pub fn execute(&mut self, action: &Action) {
        match action {
            Action::SetReplicas { to, removing } => {
                self.seen.replicas = *to;
                self.seen.removing.clone_from(removing);
            }
            Action::Mark { name, mark } => {
                if let Some(index) = self.position(name) {
                    self.seen.instances[index].mark = Some(*mark);
                    self.pods[index].cost = -1;
                }
            }
            Action::Drain { name } => {
                if let Some(index) = self.position(name) {
                    self.begin_drain(index);
                }
            }
            Action::Cancel { name } => {
                if let Some(index) = self.position(name) {
                    self.seen.instances[index].mark = None;
                    self.pods[index].cost = 0;
                    self.pods[index].closes = 0;
                }
            }
            Action::Shed { name, streams } => {
                if let Some(index) = self.position(name) {
                    let closed = self.pods[index].streams.min(*streams);
                    self.pods[index].streams -= closed;
                    if !self.pods[index].has_lied {
                        self.closed_on_request += closed;
                    }
                    self.waiting[RETRY_SECONDS] += closed;
                }
            }
        }
    }

    /// A pod vanishes; its clients find out at once.
    pub fn lose(&mut self, index: usize) {
        self.waiting[RETRY_SECONDS] += self.pods[index].streams;
        self.pods.swap_remove(index);
        self.seen.instances.swap_remove(index);
    }

    /// A new version: from now on every present pod is old.
    pub fn begin_rollout(&mut self) {
        self.seen.rollout = true;
        self.pods.iter_mut().for_each(|pod| pod.old = true);
    }

    /// One old pod in forty goes for a new one that serves; the rollout ends with the last. What is too much goes
    /// without a successor, the cheapest first.
    pub fn advance_rollout(&mut self) {
        let is_old =
            |world: &Self, index: usize| world.pods[index].old && !world.seen.instances[index].terminating;
        let mut old: Vec<usize> = (0..self.pods.len()).filter(|&index| is_old(self, index)).collect();
        old.sort_by_key(|&index| self.pods[index].cost);
        self.seen.rollout = !old.is_empty();
        let active = self.seen.instances.iter().filter(|instance| !instance.terminating).count();
        let mut surplus = active.saturating_sub(self.seen.replicas as usize);
        for index in old.into_iter().take(self.pods.len() / 40 + 1) {
            if surplus > 0 {
                surplus -= 1;
            } else {
                self.create(self.second);
            }
            self.terminate(index);
        }
    }

    /// Where a pod stands.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.seen.instances.iter().position(|instance| instance.name == name)
    }

    fn create(&mut self, starts: u64) {
        self.created += 1;
        self.pods.push(Pod {
            streams: 0,
            starts,
            closes: 0,
            account: Account::True,
            last: None,
            has_lied: false,
            cost: 0,
            gone_by: u64::MAX,
            old: false,
        });
        self.seen.instances.push(Instance {
            name: format!("pod-{}", self.created),
            created: Moment(self.second * 1000),
            zone: Some(["a", "b", "c"][self.random.index(3)].to_owned()),
            pending: true,
            ready: false,
            terminating: false,
            gone_by: None,
            answered: false,
            mark: None,
            load: Observed::Missing { reason: String::new() },
        });
    }

    fn begin_drain(&mut self, index: usize) {
        let pod = &mut self.pods[index];
        if pod.closes == 0 {
            pod.closes = pod.streams.div_ceil(self.drain_seconds.max(1)).max(1);
        }
    }

    fn drain(&mut self) {
        for index in 0..self.pods.len() {
            let terminating = self.seen.instances[index].terminating;
            if terminating && self.pods[index].gone_by <= self.second + self.drain_seconds + GRACE_SECONDS {
                self.begin_drain(index);
            }
            let pod = &mut self.pods[index];
            let closed = pod.closes.min(pod.streams);
            pod.streams -= closed;
            self.waiting[RETRY_SECONDS] += closed;
            if !terminating && !pod.has_lied {
                self.closed_on_request += closed;
            }
        }
    }

    /// The `ReplicaSet`: creates what is missing, removes what is too much (not started, not ready, cheapest,
    /// newest first).
    fn replicate(&mut self) {
        let active =
            |seen: &Observation| seen.instances.iter().filter(|instance| !instance.terminating).count();
        let replicas = self.seen.replicas as usize;
        while active(&self.seen) < replicas {
            let starts = self.second + self.random.between(self.start_seconds.0, self.start_seconds.1);
            self.create(starts);
        }
        let surplus = active(&self.seen).saturating_sub(replicas);
        if surplus > 0 && !self.seen.rollout {
            let mut order: Vec<usize> =
                (0..self.pods.len()).filter(|&i| !self.seen.instances[i].terminating).collect();
            order.sort_by_key(|&i| {
                let (pod, seen) = (&self.pods[i], &self.seen.instances[i]);
                (pod.starts <= self.second, seen.ready, pod.cost, Reverse(seen.created))
            });
            for index in order.into_iter().take(surplus) {
                let (pod, seen) = (&self.pods[index], &self.seen.instances[index]);
                self.removed.push(Removed {
                    pending: seen.pending,
                    mark: seen.mark,
                    streams: pod.streams.min(seen.streams()),
                });
                self.terminate(index);
            }
        }
    }

    fn terminate(&mut self, index: usize) {
        self.seen.instances[index].terminating = true;
        self.seen.instances[index].ready = false;
        // preStop sleeps 3 s, then the pod drains.
        self.pods[index].gone_by = self.second + 3 + self.drain_seconds + GRACE_SECONDS;
    }

    fn bury(&mut self) {
        let mut index = 0;
        while index < self.pods.len() {
            let done = self.pods[index].streams == 0 && self.pods[index].closes > 0;
            if self.seen.instances[index].terminating && (done || self.pods[index].gone_by <= self.second) {
                self.cut += self.pods[index].streams;
                self.lose(index);
            } else {
                index += 1;
            }
        }
    }

    /// Connects clients, each to the emptier of two instances at random; who finds no place tries again.
    fn connect(&mut self, mut clients: u64) {
        let ready: Vec<usize> =
            (0..self.pods.len()).filter(|&index| self.seen.instances[index].ready).collect();
        // In clumps, so that a second costs no more than a few steps for each instance.
        let clump = (clients / ready.len().max(1) as u64).max(1);
        while clients > 0 {
            let clump = clump.min(clients);
            clients -= clump;
            let choice = (!ready.is_empty()).then(|| {
                let (a, b) = (ready[self.random.index(ready.len())], ready[self.random.index(ready.len())]);
                if self.pods[a].streams <= self.pods[b].streams { a } else { b }
            });
            let room = choice
                .map_or(0, |index| self.most_streams.saturating_sub(self.pods[index].streams))
                .min(clump);
            if let Some(index) = choice {
                self.pods[index].streams += room;
            }
            self.waiting[RETRY_SECONDS] += clump - room;
        }
    }

    /// Clients leave of their own accord: the same share everywhere.
    fn disconnect(&mut self, mut clients: u64) {
        let connected = self.connected();
        if clients == 0 || connected == 0 {
            return;
        }
        let leaving = clients;
        for pod in &mut self.pods {
            let gone = u64::try_from(u128::from(pod.streams) * u128::from(leaving) / u128::from(connected))
                .unwrap_or(0);
            pod.streams -= gone.min(pod.streams);
            clients -= gone.min(clients);
        }
        // The rest, fewer than there are pods, one by one.
        for pod in self.pods.iter_mut().filter(|pod| pod.streams > 0) {
            if clients == 0 {
                break;
            }
            pod.streams -= 1;
            clients -= 1;
        }
    }
}
