//! The hub: the latest entries of the log, who is subscribed, and what each is to get.
//!
//! One lock orders everything: a new subscriber is brought up to date and joins in one step, so that between
//! replay and live nothing is lost and nothing comes twice.

mod close;
mod history;

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

use self::history::{History, Replay};
use super::{
    cursor::Cursors,
    filter::Filter,
    frame,
    subscriber::{self, Sender, StreamBody},
};
use crate::{
    auth::Principal,
    config::Config,
    events::{Entry, EntryId, Event, EventLog, Feed},
    metrics::{Metrics, Refusal},
};

/// Phases over which heartbeats spread, so that they are no burst.
const PHASES: u32 = 64;
/// Events in a snapshot.
const SNAPSHOT: usize = 5;

/// Where a stream is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// With what comes from now on.
    Live,
    /// After this entry.
    After(EntryId),
    /// The client stood somewhere, but nobody can say where.
    Unknown,
}

/// What a stream is asked for.
pub(super) struct Wanted {
    pub(super) principal: Principal,
    pub(super) address: u128,
    pub(super) filter: Filter,
    pub(super) position: Position,
}

pub(super) struct Hub {
    state: Mutex<State>,
    open: watch::Sender<usize>,
    cursors: Cursors,
    metrics: Arc<Metrics>,
    retry: Duration,
    limits: Limits,
}

/// Most streams; 0 means no limit.
struct Limits {
    instance: u32,
    principal: u32,
    address: u32,
}

struct State {
    history: History,
    groups: HashMap<GroupKey, Group>,
    next: u64,
    principals: HashMap<Principal, u32>,
    addresses: HashMap<u128, u32>,
    closing: close::Closing,
}

/// Streams that see the same: what they get is matched and encoded once.
#[derive(Clone, PartialEq, Eq, Hash)]
struct GroupKey {
    principal: Principal,
    filter: Filter,
}

#[derive(Default)]
struct Group {
    canonical: String,
    members: HashMap<u64, Member>,
}

struct Member {
    sender: Sender,
    phase: u32,
    /// An entry that the client has and this instance has not read yet.
    ahead: Option<EntryId>,
}

impl Hub {
    pub(super) fn start(
        config: &Config,
        cursors: Cursors,
        events: &EventLog,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let limits = &config.limits;
        let hub = Arc::new(Self {
            state: Mutex::new(State {
                history: History::new(config.stream.event_history, config.stream.resume_window()),
                groups: HashMap::new(),
                next: 0,
                principals: HashMap::new(),
                addresses: HashMap::new(),
                closing: close::Closing::default(),
            }),
            open: watch::Sender::new(0),
            cursors,
            metrics,
            retry: Duration::from_millis(config.stream.retry_milliseconds.into()),
            limits: Limits {
                instance: limits.max_clients,
                principal: limits.max_clients_per_principal,
                address: limits.max_clients_per_address,
            },
        });
        if let Some(feed) = events.take_feed() {
            tokio::spawn(Arc::clone(&hub).follow(feed));
        }
        tokio::spawn(Arc::clone(&hub).beat(config.stream.heartbeat()));
        hub
    }

    pub(super) fn streams(&self) -> usize {
        *self.open.borrow()
    }

    pub(super) fn retry(&self) -> Duration {
        self.retry
    }

    /// Resolves when no stream is open.
    pub(super) async fn empty(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// A new stream with everything that its client has missed, or why there is none.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        wanted: Wanted,
        correlation: &str,
    ) -> Result<StreamBody<impl FnOnce() + Unpin + use<>>, Refusal> {
        let Wanted {
            principal,
            address,
            filter,
            position,
        } = wanted;
        let mut state = self.lock();
        self.admit(&state, &principal, address)?;

        let key = GroupKey {
            principal: principal.clone(),
            filter,
        };
        let canonical = key.filter.canonical();
        let replay = state.history.replay(position);
        let view = View {
            key: &key,
            canonical: &canonical,
            cursors: &self.cursors,
        };
        let first = self.beginning(&state.history, &view, &replay, correlation);

        state.next += 1;
        let id = state.next;
        let hub = Arc::clone(self);
        let ended_key = key.clone();
        let (sender, body) = subscriber::channel(first, move || hub.ended(&ended_key, id, address));
        let group = state.groups.entry(key).or_insert_with(|| Group {
            canonical,
            members: HashMap::new(),
        });
        group.members.insert(
            id,
            Member {
                sender,
                phase: rand::random_range(0..PHASES),
                ahead: replay.ahead,
            },
        );
        *state.principals.entry(principal).or_default() += 1;
        *state.addresses.entry(address).or_default() += 1;
        drop(state);
        self.open.send_modify(|open| *open += 1);
        self.metrics.streams_open.inc();
        self.metrics.streams_opened.inc();
        Ok(body)
    }

    fn admit(&self, state: &State, principal: &Principal, address: u128) -> Result<(), Refusal> {
        let full =
            |limit: u32, held: usize| limit > 0 && held >= usize::try_from(limit).unwrap_or(usize::MAX);
        let held =
            |count: Option<&u32>| count.map_or(0, |count| usize::try_from(*count).unwrap_or(usize::MAX));
        if state.closing.draining() {
            Err(Refusal::Draining)
        } else if full(self.limits.instance, self.streams()) {
            Err(Refusal::Instance)
        } else if full(self.limits.principal, held(state.principals.get(principal))) {
            Err(Refusal::Principal)
        } else if full(self.limits.address, held(state.addresses.get(&address))) {
            Err(Refusal::Address)
        } else {
            Ok(())
        }
    }

    /// `retry:`, the snapshot, and what the client has missed.
    fn beginning(&self, history: &History, view: &View<'_>, replay: &Replay, correlation: &str) -> Bytes {
        let accepted = |entry: &&Entry| entry.event.as_ref().is_some_and(|event| view.accepts(event));
        let mut bytes = BytesMut::from(&*frame::retry(self.retry));
        let latest: Vec<_> = history.newest_first().filter(accepted).take(SNAPSHOT).collect();
        let latest = latest.iter().rev().filter_map(|entry| entry.event.as_deref());
        // A resumed client keeps the position that it came with until something new moves it.
        let cursor = history
            .tail()
            .filter(|_| !replay.resumed)
            .map(|tail| view.cursor(tail));
        bytes.extend_from_slice(&frame::snapshot(latest, cursor.as_deref(), correlation));
        self.missed(history, view, replay, &mut bytes);
        bytes.freeze()
    }

    /// What came after a position, with a gap wherever something is gone.
    fn missed(&self, history: &History, view: &View<'_>, replay: &Replay, bytes: &mut BytesMut) {
        for (lost_after, entry) in history.missed(replay) {
            if let Some(after) = lost_after {
                self.metrics.gaps.inc();
                bytes.extend_from_slice(&frame::gap(after, entry.map(|entry| entry.id)));
            }
            let event = entry.and_then(|entry| entry.event.as_deref());
            if let Some(event) = event.filter(|event| view.accepts(event)) {
                self.metrics.deliveries.inc();
                bytes.extend_from_slice(&view.encode(event));
            }
        }
    }

    fn ended(&self, key: &GroupKey, id: u64, address: u128) {
        let mut state = self.lock();
        state.remove(key, id);
        release(&mut state.principals, &key.principal);
        release(&mut state.addresses, &address);
        drop(state);
        self.metrics.streams_open.dec();
        self.open.send_modify(|open| *open -= 1);
    }

    async fn follow(self: Arc<Self>, mut feed: mpsc::UnboundedReceiver<Feed>) {
        while let Some(news) = feed.recv().await {
            match news {
                Feed::History(entries) => self.begin(entries),
                Feed::Entry(entry) => self.deliver(entry),
            }
        }
    }

    /// The log is reached for the first time. Who came before has missed what nobody can name, unless it
    /// came with a position.
    fn begin(&self, entries: Vec<Entry>) {
        let mut state = self.lock();
        let State { history, groups, .. } = &mut *state;
        for entry in entries {
            history.append(entry);
        }
        for (key, group) in groups {
            let view = View {
                key,
                canonical: &group.canonical,
                cursors: &self.cursors,
            };
            write(&mut group.members, &self.metrics, |member| {
                let position = member.ahead.take().map_or(Position::Unknown, Position::After);
                let replay = history.replay(position);
                member.ahead = replay.ahead;
                let mut bytes = BytesMut::new();
                self.missed(history, &view, &replay, &mut bytes);
                Some(bytes.freeze())
            });
        }
    }

    fn deliver(&self, entry: Entry) {
        let mut state = self.lock();
        let State { history, groups, .. } = &mut *state;
        let lost = history
            .lost_before(&entry)
            .map(|after| frame::gap(after, Some(entry.id)));
        if lost.is_some() {
            self.metrics.gaps.inc();
        }
        let mut deliveries = 0_u64;
        for (key, group) in groups {
            let view = View {
                key,
                canonical: &group.canonical,
                cursors: &self.cursors,
            };
            let event = entry.event.as_deref().filter(|event| view.accepts(event));
            let event = event.map(|event| view.encode(event));
            write(&mut group.members, &self.metrics, |member| {
                let lost = match member.ahead {
                    None => lost.clone(),
                    // The client has it already; at its very position the stream and the client meet.
                    Some(ahead) if entry.id <= ahead => {
                        member.ahead = member.ahead.filter(|ahead| *ahead != entry.id);
                        return None;
                    }
                    Some(ahead) => {
                        member.ahead = None;
                        (entry.prior != ahead).then(|| frame::gap(Some(ahead), Some(entry.id)))
                    }
                };
                deliveries += u64::from(event.is_some());
                match (lost, event.clone()) {
                    (Some(gap), Some(event)) => Some([gap, event].concat().into()),
                    (gap, event) => gap.or(event),
                }
            });
        }
        let lag = since(entry.id);
        history.append(entry);
        drop(state);
        self.metrics.deliveries.inc_by(deliveries);
        if deliveries > 0 {
            self.metrics.delivery_lag.observe(lag.as_secs_f64());
        }
    }

    /// Heartbeats, each stream in its own phase.
    async fn beat(self: Arc<Self>, interval: Duration) {
        let mut ticks = tokio::time::interval(interval / PHASES);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut phase = 0;
        loop {
            ticks.tick().await;
            phase = (phase + 1) % PHASES;
            let mut state = self.lock();
            let State { history, groups, .. } = &mut *state;
            for (key, group) in groups {
                let view = View {
                    key,
                    canonical: &group.canonical,
                    cursors: &self.cursors,
                };
                let mut encoded: Option<Bytes> = None;
                write(&mut group.members, &self.metrics, |member| {
                    if member.phase != phase {
                        return None;
                    }
                    // A client that is ahead of this instance keeps its own position.
                    if member.ahead.is_some() {
                        return Some(frame::heartbeat(None));
                    }
                    let fresh = || frame::heartbeat(history.tail().map(|tail| view.cursor(tail)).as_deref());
                    Some(encoded.get_or_insert_with(fresh).clone())
                });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the streams of one group see.
struct View<'a> {
    key: &'a GroupKey,
    canonical: &'a str,
    cursors: &'a Cursors,
}

impl View<'_> {
    fn accepts(&self, event: &Event) -> bool {
        self.key.filter.accepts(&event.content)
    }

    fn cursor(&self, entry: EntryId) -> String {
        self.cursors.sign(&self.key.principal, self.canonical, entry)
    }

    fn encode(&self, event: &Event) -> Bytes {
        frame::event(event, &self.cursor(event.id))
    }
}

/// Queues what `bytes` gives for each stream; cuts those that do not read.
fn write(
    members: &mut HashMap<u64, Member>,
    metrics: &Metrics,
    mut bytes: impl FnMut(&mut Member) -> Option<Bytes>,
) {
    members.retain(|_, member| {
        let sent = bytes(member).is_none_or(|bytes| member.sender.send(bytes).is_ok());
        if !sent {
            metrics.slow_clients_cut.inc();
        }
        sent
    });
}

impl State {
    /// Forgets a member, and its group with the last one.
    fn remove(&mut self, key: &GroupKey, id: u64) {
        if let Some(group) = self.groups.get_mut(key) {
            group.members.remove(&id);
            if group.members.is_empty() {
                self.groups.remove(key);
            }
        }
    }
}

fn release<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Time since an entry was written, by this host's clock.
fn since(entry: EntryId) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(entry.milliseconds))
}
