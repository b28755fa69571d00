//! The streams of a shard and where each is listed: by number, by group, by heartbeat, by what it waits for.
//! Every change keeps the lists in step.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use mio::net::TcpStream;

use super::{
    super::{group::Group, wheel::Wheel},
    connection::{Connection, NOWHERE, Outcome, Queue},
};

pub(super) struct Roster {
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    groups: HashMap<usize, Members>,
    pub(super) wheel: Wheel,
    /// Streams whose turn it is. May name one that is there no more, or waits for something else by now.
    ready: VecDeque<u32>,
    /// Streams that can go on only when the mirror changes.
    mirror: HashSet<u32>,
    /// Streams whose socket is too full.
    full: HashSet<u32>,
}

/// The streams of one group.
pub(super) struct Members {
    pub(super) group: Arc<Group>,
    /// Those that keep up.
    live: Vec<u32>,
    /// All, those behind too.
    count: usize,
    /// The latest heartbeat, and what it is the heartbeat of.
    pub(super) heartbeat: Option<(u64, Bytes)>,
}

/// What tells groups apart; a group outlives its members, so its address is its own.
fn key(group: &Arc<Group>) -> usize {
    Arc::as_ptr(group).addr()
}

impl Roster {
    pub(super) fn new(wheel: Wheel) -> Self {
        Self {
            connections: Vec::new(),
            free: Vec::new(),
            groups: HashMap::new(),
            wheel,
            ready: VecDeque::new(),
            mirror: HashSet::new(),
            full: HashSet::new(),
        }
    }

    /// Number of streams.
    pub(super) fn len(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    /// One more than the largest number that a stream has.
    pub(super) fn numbers(&self) -> usize {
        self.connections.len()
    }

    /// The number that the next stream gets; `None` when they are all used up.
    pub(super) fn next_number(&self) -> Option<u32> {
        self.free.last().copied().or_else(|| u32::try_from(self.connections.len()).ok())
    }

    pub(super) fn get(&self, number: u32) -> Option<&Connection> {
        self.connections.get(number as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Connection> {
        self.connections.get_mut(number as usize)?.as_mut()
    }

    /// Lists a stream, which is ready, under the next number.
    pub(super) fn insert(&mut self, number: u32, mut connection: Connection) {
        connection.seat = self.wheel.sit(number);
        self.groups
            .entry(key(&connection.group))
            .or_insert_with(|| Members {
                group: Arc::clone(&connection.group),
                live: Vec::new(),
                count: 0,
                heartbeat: None,
            })
            .count += 1;
        if self.free.pop().is_some() {
            if let Some(slot) = self.connections.get_mut(number as usize) {
                *slot = Some(connection);
            }
        } else {
            self.connections.push(Some(connection));
        }
        self.ready.push_back(number);
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<Connection> {
        self.leave_live(number);
        let connection = self.connections.get_mut(number as usize)?.take()?;
        self.free.push(number);
        self.mirror.remove(&number);
        self.full.remove(&number);
        if let Some(moved) = self.wheel.leave(connection.seat)
            && let Some(moved) = self.get_mut(moved)
        {
            moved.seat = connection.seat;
        }
        let group = key(&connection.group);
        if let Some(members) = self.groups.get_mut(&group) {
            members.count -= 1;
            if members.count == 0 {
                self.groups.remove(&group);
            }
        }
        Some(connection)
    }

    /// Lists a stream by what became of it, unless it is over.
    pub(super) fn settle(&mut self, number: u32, outcome: &Outcome) {
        match outcome {
            Outcome::KeepsUp => self.enter_live(number),
            Outcome::Waits(queue) => self.wait(number, *queue),
            Outcome::Over => {}
        }
    }

    fn enter_live(&mut self, number: u32) {
        self.mirror.remove(&number);
        self.full.remove(&number);
        let Some(connection) = self.connections.get_mut(number as usize).and_then(Option::as_mut) else {
            return;
        };
        connection.behind = None;
        if connection.place == NOWHERE
            && let Some(members) = self.groups.get_mut(&key(&connection.group))
        {
            connection.place = u32::try_from(members.live.len()).unwrap_or(NOWHERE);
            members.live.push(number);
        }
    }

    fn leave_live(&mut self, number: u32) {
        let Some(connection) = self.connections.get_mut(number as usize).and_then(Option::as_mut) else {
            return;
        };
        let place = std::mem::replace(&mut connection.place, NOWHERE);
        let Some(members) = self.groups.get_mut(&key(&connection.group)) else {
            return;
        };
        if place as usize >= members.live.len() {
            return;
        }
        members.live.swap_remove(place as usize);
        if let Some(moved) = members.live.get(place as usize).copied()
            && let Some(moved) = self.get_mut(moved)
        {
            moved.place = place;
        }
    }

    fn wait(&mut self, number: u32, queue: Queue) {
        self.leave_live(number);
        if let Some(behind) = self.get_mut(number).and_then(|connection| connection.behind.as_mut()) {
            behind.queue = queue;
        }
        if queue != Queue::Mirror {
            self.mirror.remove(&number);
        }
        if queue != Queue::Full {
            self.full.remove(&number);
        }
        match queue {
            Queue::Ready => self.ready.push_back(number),
            Queue::Mirror => drop(self.mirror.insert(number)),
            Queue::Full => drop(self.full.insert(number)),
        }
    }

    /// A socket has room: its stream's turn comes, if it waited for that.
    pub(super) fn has_room(&mut self, number: u32) {
        if self.get(number).is_some_and(|connection| connection.queue() == Some(Queue::Full)) {
            self.wait(number, Queue::Ready);
        }
    }

    /// The mirror has changed: the turn of all that waited for it comes.
    pub(super) fn mirror_changed(&mut self) {
        for number in std::mem::take(&mut self.mirror) {
            self.wait(number, Queue::Ready);
        }
    }

    /// The next stream whose turn it is.
    pub(super) fn next_ready(&mut self) -> Option<u32> {
        while let Some(number) = self.ready.pop_front() {
            if self.get(number).is_some_and(|connection| connection.queue() == Some(Queue::Ready)) {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn is_anyone_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn is_anyone_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Up to `most` of the streams that should have caught up by now.
    pub(super) fn late(&self, now: Instant, most: usize) -> Vec<u32> {
        let is_late = |number: &u32| self.get(*number).is_some_and(|connection| connection.is_late(now));
        self.full.iter().copied().filter(is_late).take(most).collect()
    }

    /// The groups that have streams which keep up.
    pub(super) fn live_groups(&self) -> impl Iterator<Item = &Members> {
        self.groups.values().filter(|members| !members.live.is_empty())
    }

    /// The streams of a group that keep up.
    pub(super) fn live<'a>(&'a self, members: &'a Members) -> impl Iterator<Item = (u32, &'a TcpStream)> {
        members.live.iter().filter_map(|number| Some((*number, &self.get(*number)?.socket)))
    }

    /// The numbers of all streams that keep up.
    pub(super) fn all_live(&self) -> Vec<u32> {
        self.groups.values().flat_map(|members| members.live.iter().copied()).collect()
    }

    pub(super) fn members(&mut self, group: &Arc<Group>) -> Option<&mut Members> {
        self.groups.get_mut(&key(group))
    }
}

impl Members {
    pub(super) fn live_count(&self) -> u64 {
        self.live.len() as u64
    }
}
