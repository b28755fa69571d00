//! A thread that owns its share of the streams: it writes every event to each of them with one system call,
//! and does nothing while there is nothing to do.
//!
//! A stream that keeps up is an entry in a list: no task, no timer, no queue, no buffer. One whose socket is
//! full is *behind*: it remembers the rest of what it was being sent and its position in the mirror, and
//! reads on from there when the socket drains. So a slow client costs no memory and loses no event; it is
//! cut when it has not caught up in time.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read, Write},
    net::Shutdown,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use mio::{Events, Interest, Poll, Token, Waker, net::TcpStream};

use super::{
    feed::{Feed, Step},
    group::{Encoded, Group},
    pace::Pace,
    quota::Permit,
    wheel::{Seat, Wheel},
    wire,
};
use crate::{
    events::{Item, Mirror, Place},
    identity::Principals,
    metrics::Metrics,
};

/// How long a stream may be behind. With the look every second it is cut within 10 s.
pub(super) const SLOW_DEADLINE: Duration = Duration::from_secs(8);
const SLOW_LOOK: Duration = Duration::from_secs(1);
/// Items that are sent to everybody in one write.
const BATCH: usize = 64;
/// Bytes that a client may send on a stream, which nobody asked it to.
const MOST_INPUT: u32 = 64 * 1024;
const WAKER: Token = Token(usize::MAX);
const NOWHERE: u32 = u32::MAX;

/// A stream that moves to a shard.
pub(super) struct Join {
    pub(super) socket: std::net::TcpStream,
    pub(super) group: Arc<Group>,
    pub(super) permit: Permit,
    /// Head of the answer and beginning of the stream.
    pub(super) beginning: Bytes,
    pub(super) feed: Feed,
}

/// What a shard is told to do.
pub(super) enum Command {
    Join(Box<Join>),
    /// Close all streams over the window, and those that come at once.
    Drain(Duration),
    /// No longer.
    CancelDrain,
    /// Close this many over the window.
    Shed(usize, Duration),
    /// Close the streams of everybody else.
    Keep(Arc<Principals>),
    Stop,
}

/// What all shards share.
pub(super) struct Common {
    pub(super) mirror: Arc<Mirror>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) heartbeat: Duration,
    pub(super) retry: u32,
}

/// The way to a shard.
pub(super) struct Handle {
    inbox: Arc<Mutex<Vec<Command>>>,
    waker: Arc<Waker>,
    streams: Arc<AtomicUsize>,
}

impl Handle {
    /// Starts the thread of a shard.
    pub(super) fn start(number: usize, common: Arc<Common>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let handle = Self {
            inbox: Arc::default(),
            waker: Arc::new(Waker::new(poll.registry(), WAKER)?),
            streams: Arc::default(),
        };
        let mut shard = Shard {
            poll,
            inbox: Arc::clone(&handle.inbox),
            streams: Arc::clone(&handle.streams),
            connections: Vec::new(),
            free: Vec::new(),
            groups: HashMap::new(),
            waiting: Vec::new(),
            behind: HashSet::new(),
            wheel: Wheel::new(common.heartbeat, Instant::now()),
            next_look: Instant::now(),
            place: None,
            version: 0,
            next: 0,
            pace: None,
            draining: false,
            hand: 0,
            common,
        };
        shard.version = shard.common.mirror.version();
        (shard.next, shard.place) = shard.common.mirror.end();
        thread::Builder::new().name(format!("streams-{number}")).spawn(move || shard.run())?;
        Ok(handle)
    }

    pub(super) fn send(&self, command: Command) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.push(command);
        // Whoever put the first one in has woken the shard already.
        let first = inbox.len() == 1;
        drop(inbox);
        if first {
            self.wake();
        }
    }

    fn wake(&self) {
        // Fails only if the descriptor is gone, and with it the shard.
        let _ = self.waker.wake();
    }

    /// Wakes the shard; what the mirror calls.
    pub(super) fn alarm(&self) -> impl Fn() + Send + Sync + use<> {
        let waker: Weak<Waker> = Arc::downgrade(&self.waker);
        move || {
            if let Some(waker) = waker.upgrade() {
                let _ = waker.wake();
            }
        }
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.send(Command::Stop);
    }
}

struct Connection {
    socket: TcpStream,
    group: Arc<Group>,
    /// Place in the group's list of those that keep up.
    place: u32,
    seat: Seat,
    input: u32,
    behind: Option<Box<Behind>>,
    _permit: Permit,
}

struct Behind {
    unsent: Bytes,
    feed: Feed,
    /// Since when the socket has been too full.
    since: Option<Instant>,
    /// Whether it is in the list of those that wait for the mirror.
    queued: bool,
}

#[derive(Default)]
struct Members {
    group: Option<Arc<Group>>,
    live: Vec<u32>,
    /// All, those behind too.
    count: usize,
    heartbeat: Option<(u64, Bytes)>,
}

struct Shard {
    common: Arc<Common>,
    poll: Poll,
    inbox: Arc<Mutex<Vec<Command>>>,
    streams: Arc<AtomicUsize>,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    groups: HashMap<usize, Members>,
    /// Streams that can go on only when the mirror changes.
    waiting: Vec<u32>,
    /// Streams whose socket is too full.
    behind: HashSet<u32>,
    wheel: Wheel,
    next_look: Instant,
    /// Position that everybody who keeps up has reached, and the same as a place.
    next: u64,
    place: Option<Place>,
    /// Version of the mirror that this was.
    version: u64,
    pace: Option<Pace>,
    draining: bool,
    /// Where the search for the next stream to close goes on.
    hand: usize,
}

impl Shard {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    // Cannot happen with a valid descriptor; without it there is nothing to serve.
                    tracing::error!(%error, "a shard cannot wait for its streams");
                    return;
                }
                _ => {}
            }
            // First what is live: new streams and slow ones wait for nobody.
            self.advance();
            for event in &events {
                let Ok(token) = u32::try_from(event.token().0) else {
                    continue;
                };
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.read(token);
                }
                if event.is_writable() {
                    self.pump(token);
                }
            }
            if !self.obey() {
                return;
            }
            self.look_at_time();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let look = (!self.behind.is_empty()).then_some(self.next_look);
        let pace = self.pace.as_ref().and_then(Pace::next_due);
        let next = [self.wheel.next_due(), look, pace].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn obey(&mut self) -> bool {
        let commands = std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        for command in commands {
            match command {
                Command::Join(join) => self.join(*join),
                Command::Drain(window) => {
                    self.draining = true;
                    self.pace = Some(Pace::new(Instant::now(), window, self.streams()));
                }
                Command::CancelDrain => (self.draining, self.pace) = (false, None),
                Command::Shed(count, window) if !self.draining => {
                    self.pace = Some(Pace::new(Instant::now(), window, count.min(self.streams())));
                }
                Command::Shed(..) => {}
                Command::Keep(principals) => self.keep(&principals),
                Command::Stop => return false,
            }
        }
        true
    }

    fn streams(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    // -- Joining and leaving

    fn join(&mut self, join: Join) {
        let Join { socket, group, permit, beginning, feed } = join;
        let mut socket = TcpStream::from_std(socket);
        let token = self.free.last().copied().or_else(|| u32::try_from(self.connections.len()).ok());
        let Some(token) = token else { return };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut socket, Token(token as usize), interest).is_err() {
            return;
        }
        let members = self.groups.entry(key(&group)).or_default();
        members.group.get_or_insert_with(|| Arc::clone(&group));
        members.count += 1;
        let connection = Connection {
            socket,
            group,
            place: NOWHERE,
            seat: self.wheel.sit(token),
            input: 0,
            behind: Some(Box::new(Behind { unsent: beginning, feed, since: None, queued: false })),
            _permit: permit,
        };
        if self.free.pop().is_some() {
            if let Some(slot) = self.connections.get_mut(token as usize) {
                *slot = Some(connection);
            }
        } else {
            self.connections.push(Some(connection));
        }
        self.streams.store(self.streams(), Ordering::Relaxed);
        self.pump(token);
        if self.draining {
            self.close(token, Some(&self.farewell()));
        }
    }

    fn connection(&mut self, token: u32) -> Option<&mut Connection> {
        self.connections.get_mut(token as usize)?.as_mut()
    }

    fn remove(&mut self, token: u32) -> Option<Connection> {
        let mut connection = self.connections.get_mut(token as usize)?.take()?;
        self.free.push(token);
        self.behind.remove(&token);
        self.leave_live(&mut connection);
        if let Some(moved) = self.wheel.leave(connection.seat)
            && let Some(moved) = self.connection(moved)
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
        let _ = self.poll.registry().deregister(&mut connection.socket);
        self.streams.store(self.streams(), Ordering::Relaxed);
        Some(connection)
    }

    /// Closes a stream, with a last word if its socket takes it.
    fn close(&mut self, token: u32, last: Option<&[u8]>) {
        let Some(connection) = self.remove(token) else {
            return;
        };
        if let Some(last) = last
            && connection.behind.is_none()
        {
            let _ = (&connection.socket).write(last);
        }
        let _ = connection.socket.shutdown(Shutdown::Write);
    }

    fn leave_live(&mut self, connection: &mut Connection) {
        let place = std::mem::replace(&mut connection.place, NOWHERE);
        let Some(members) = self.groups.get_mut(&key(&connection.group)) else {
            return;
        };
        if place == NOWHERE || place as usize >= members.live.len() {
            return;
        }
        members.live.swap_remove(place as usize);
        if let Some(moved) = members.live.get(place as usize).copied()
            && let Some(moved) = self.connection(moved)
        {
            moved.place = place;
        }
    }

    fn enter_live(&mut self, token: u32) {
        self.behind.remove(&token);
        let Some(connection) = self.connections.get_mut(token as usize).and_then(Option::as_mut) else {
            return;
        };
        connection.behind = None;
        let Some(members) = self.groups.get_mut(&key(&connection.group)) else {
            return;
        };
        connection.place = u32::try_from(members.live.len()).unwrap_or(NOWHERE);
        members.live.push(token);
    }

    fn fall_behind(&mut self, token: u32, unsent: Bytes, feed: Feed) {
        let Some(mut connection) = self.connections.get_mut(token as usize).and_then(Option::take) else {
            return;
        };
        self.leave_live(&mut connection);
        connection.behind =
            Some(Box::new(Behind { unsent, feed, since: Some(Instant::now()), queued: false }));
        if let Some(slot) = self.connections.get_mut(token as usize) {
            *slot = Some(connection);
        }
        if self.behind.is_empty() {
            self.next_look = Instant::now() + SLOW_LOOK;
        }
        self.behind.insert(token);
    }

    // -- Sending

    /// Sends everybody who keeps up what the mirror has gained.
    fn advance(&mut self) {
        let version = self.common.mirror.version();
        if version == self.version {
            return;
        }
        self.version = version;
        loop {
            let (begin, items) = self.common.mirror.read(self.next, BATCH);
            let place = self.common.mirror.end();
            if begin > self.next {
                // The mirror has dropped what this shard never saw: all streams go through their feeds.
                self.everybody_behind();
                (self.next, self.place) = place;
                break;
            }
            let Some(last) = items.last() else {
                if place.0 == self.next {
                    self.place = place.1;
                }
                break;
            };
            let positions = begin..begin + items.len() as u64;
            self.place = match last {
                Item::Event(event) => Some(Place { epoch: event.epoch, id: event.id }),
                Item::Gap(gap) => gap.place,
            };
            self.next = positions.end;
            self.deliver(&positions, &items);
            self.observe(&items);
        }
        for token in std::mem::take(&mut self.waiting) {
            if let Some(behind) = self.connection(token).and_then(|connection| connection.behind.as_mut()) {
                behind.queued = false;
                self.pump(token);
            }
        }
    }

    fn deliver(&mut self, positions: &Range<u64>, items: &[Item]) {
        let (mut lagging, mut broken) = (Vec::new(), Vec::new());
        for members in self.groups.values() {
            let Some(group) = &members.group else { continue };
            if members.live.is_empty() {
                continue;
            }
            let Encoded { bytes, events, gaps } = group.encode(positions, items);
            if bytes.is_empty() {
                continue;
            }
            for token in &members.live {
                let Some(Some(connection)) = self.connections.get(*token as usize) else {
                    continue;
                };
                match write(&connection.socket, &bytes) {
                    Ok(written) if written == bytes.len() => {}
                    Ok(written) => lagging.push((*token, bytes.slice(written..))),
                    Err(_) => broken.push(*token),
                }
            }
            let streams = members.live.len() as u64;
            self.common.metrics.deliveries.inc_by(streams * u64::from(events));
            self.common.metrics.gaps.inc_by(streams * u64::from(gaps));
        }
        for (token, unsent) in lagging {
            self.fall_behind(token, unsent, Feed::At(positions.end));
        }
        for token in broken {
            self.remove(token);
        }
    }

    fn observe(&self, items: &[Item]) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for item in items {
            if let Item::Event(event) = item
                && self.streams() > 0
            {
                let lag = unix.saturating_sub(Duration::from_millis(event.id.milliseconds));
                self.common.metrics.delivery_lag.observe(lag.as_secs_f64());
            }
        }
    }

    fn everybody_behind(&mut self) {
        let feed = Feed::At(self.next);
        let live: Vec<u32> = self.groups.values().flat_map(|members| members.live.iter().copied()).collect();
        for token in live {
            self.fall_behind(token, Bytes::new(), feed);
            self.waiting.push(token);
        }
    }

    /// Sends a stream that is behind as much as its socket takes.
    fn pump(&mut self, token: u32) {
        let (limit, mut full) = (self.next, false);
        let Some(connection) = self.connections.get_mut(token as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(behind) = &mut connection.behind else {
            return;
        };
        loop {
            if !behind.unsent.is_empty() {
                match write(&connection.socket, &behind.unsent) {
                    Ok(written) if written == behind.unsent.len() => behind.unsent = Bytes::new(),
                    Ok(written) => {
                        behind.unsent = behind.unsent.slice(written..);
                        full = true;
                        break;
                    }
                    Err(_) => {
                        self.remove(token);
                        return;
                    }
                }
            }
            match behind.feed.step(&connection.group, &self.common.mirror, limit, &self.common.metrics) {
                Step::Send(bytes) => behind.unsent = bytes,
                Step::Reached => {
                    self.enter_live(token);
                    return;
                }
                Step::Wait => break,
            }
        }
        if full {
            behind.since.get_or_insert_with(Instant::now);
            if self.behind.is_empty() {
                self.next_look = Instant::now() + SLOW_LOOK;
            }
            self.behind.insert(token);
        } else {
            behind.since = None;
            self.behind.remove(&token);
            if !std::mem::replace(&mut behind.queued, true) {
                self.waiting.push(token);
            }
        }
    }

    /// Reads what a client sends, which means nothing, until it closes.
    fn read(&mut self, token: u32) {
        let mut buffer = [0; 4096];
        loop {
            let Some(connection) = self.connection(token) else {
                return;
            };
            match (&connection.socket).read(&mut buffer) {
                Ok(read @ 1..) => {
                    connection.input =
                        connection.input.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
                    if connection.input > MOST_INPUT {
                        self.remove(token);
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    self.remove(token);
                    return;
                }
            }
        }
    }

    // -- Time

    fn look_at_time(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        self.wheel.turn(now, |token| due.push(token));
        for token in due {
            self.heartbeat(token);
        }
        if !self.behind.is_empty() && self.next_look <= now {
            self.next_look = now + SLOW_LOOK;
            self.cut_slow(now);
        }
        self.close_due(now);
    }

    fn heartbeat(&mut self, token: u32) {
        let Some(Some(connection)) = self.connections.get(token as usize) else {
            return;
        };
        if let Some(behind) = &connection.behind {
            // One that waits for the log hears that the line is alive; one that is too full hears nothing.
            if behind.unsent.is_empty() {
                let beat = connection.group.heartbeat(None);
                self.say(token, &beat);
            }
            return;
        }
        let Some(members) = self.groups.get_mut(&key(&connection.group)) else {
            return;
        };
        // One text for all of the same second.
        let second = u64::from(super::cursor::now()) << 32 ^ self.next;
        let beat = match &members.heartbeat {
            Some((of, beat)) if *of == second => beat.clone(),
            _ => {
                let beat = connection.group.heartbeat(self.place);
                members.heartbeat = Some((second, beat.clone()));
                beat
            }
        };
        self.say(token, &beat);
    }

    fn say(&mut self, token: u32, text: &Bytes) {
        let next = self.next;
        let Some(Some(connection)) = self.connections.get_mut(token as usize) else {
            return;
        };
        match write(&connection.socket, text) {
            Ok(written) if written == text.len() => {}
            Ok(written) => {
                let feed = connection.behind.as_ref().map_or(Feed::At(next), |behind| behind.feed);
                self.fall_behind(token, text.slice(written..), feed);
            }
            Err(_) => drop(self.remove(token)),
        }
    }

    fn cut_slow(&mut self, now: Instant) {
        let too_long = |token: &&u32| {
            let connection = self.connections.get(**token as usize).and_then(Option::as_ref);
            let since = connection.and_then(|connection| connection.behind.as_ref()?.since);
            since.is_none_or(|since| now.duration_since(since) >= SLOW_DEADLINE)
        };
        let cut: Vec<u32> = self.behind.iter().filter(too_long).copied().collect();
        for token in cut {
            if self.remove(token).is_some() {
                self.common.metrics.slow_clients_cut.inc();
            } else {
                self.behind.remove(&token);
            }
        }
    }

    fn farewell(&self) -> Bytes {
        wire::drain(wire::jittered(self.common.retry, 0.5, 1.5))
    }

    fn close_due(&mut self, now: Instant) {
        let Some(pace) = &mut self.pace else { return };
        let due = pace.due(now);
        let done = pace.next_due().is_none();
        if done && !self.draining {
            self.pace = None;
        }
        for _ in 0..due {
            if let Some(token) = self.next_in_turn() {
                self.close(token, Some(&self.farewell()));
                self.common.metrics.drain_closed.inc();
            }
        }
    }

    fn next_in_turn(&mut self) -> Option<u32> {
        for _ in 0..self.connections.len() {
            self.hand = (self.hand + 1) % self.connections.len();
            if self.connections.get(self.hand).is_some_and(Option::is_some) {
                return u32::try_from(self.hand).ok();
            }
        }
        None
    }

    fn keep(&mut self, principals: &Principals) {
        let gone: Vec<u32> = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, slot)| {
                slot.as_ref()
                    .is_some_and(|connection| principals.named(connection.group.principal.name()).is_none())
            })
            .filter_map(|(token, _)| u32::try_from(token).ok())
            .collect();
        let last = wire::error("principal_removed");
        for token in gone {
            self.close(token, Some(&last));
        }
    }
}

/// What tells groups apart; a group outlives its members, so its address is its own.
fn key(group: &Arc<Group>) -> usize {
    Arc::as_ptr(group).addr()
}

/// Writes until everything is written or the socket is full; how much that was.
fn write(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match (&mut &*socket).write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
