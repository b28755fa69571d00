//! A thread that owns its share of the streams: it writes every event to each of them with one system call,
//! and does nothing while there is nothing to do.
//!
//! A stream that keeps up is an entry in a list: no task, no timer, no queue, no buffer. One whose socket is
//! full is *behind*: it remembers the rest of what it was being sent and its position in the mirror, and
//! reads on from there when the socket drains. So a slow client costs no memory and loses no event; it is
//! cut when it has not caught up in time.
//!
//! The thread goes round: what is new for those that keep up, sockets, commands, those behind, time. Each turn
//! does a bounded part of each, so that no burst of one makes the others wait; what is left over comes in the next
//! turn, which then begins without a pause.

mod closing;
mod connection;
mod roster;

use std::{
    collections::VecDeque,
    io,
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

use self::{
    closing::Closing,
    connection::{Connection, Outcome, write},
    roster::Roster,
};
use super::{
    feed::Feed,
    group::{Encoded, Group},
    pace::Pace,
    quota::Permit,
    wheel::Wheel,
};
use crate::{
    events::{Item, Mirror, Place},
    identity::Principals,
    metrics::Metrics,
};

/// How long a stream may be behind once its socket is full. With the look every quarter of a second it is cut within
/// 10 s.
pub(super) const SLOW_DEADLINE: Duration = Duration::from_secs(8);
/// How long a stream that is being closed may take to fetch its last word. Below what a drain may take beyond its
/// window, so that a client that does not read delays no end.
pub(super) const LAST_WORD: Duration = Duration::from_millis(500);
/// Items that are sent to everybody in one write, and their bytes, but for one event.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;
/// Commands that one turn obeys.
const COMMANDS_A_TURN: usize = 64;
/// Chunks that one turn sends to those behind, all together: some milliseconds' work.
const STEPS_A_TURN: usize = 64;
/// Heartbeats that one turn sends, about: as many as a slot of the wheel has at 100,000 streams.
const BEATS_A_TURN: usize = 400;
const WAKER: Token = Token(usize::MAX);

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
        let (shard, handle) = Shard::new(common)?;
        thread::Builder::new().name(format!("streams-{number}")).spawn(move || shard.run())?;
        Ok(handle)
    }

    pub(super) fn send(&self, command: Command) {
        let _ = self.put(command);
        self.wake();
    }

    /// Adds a command to those that the shard finds when it wakes; whether it is the first one, so that nobody else
    /// is about to wake the shard.
    #[must_use]
    pub(super) fn put(&self, command: Command) -> bool {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.push(command);
        inbox.len() == 1
    }

    pub(super) fn wake(&self) {
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

struct Shard {
    common: Arc<Common>,
    poll: Poll,
    inbox: Arc<Mutex<Vec<Command>>>,
    /// Taken from the inbox, not yet obeyed.
    commands: VecDeque<Command>,
    streams: Arc<AtomicUsize>,
    roster: Roster,
    /// Position that everybody who keeps up has reached, and the same as a place.
    next: u64,
    place: Option<Place>,
    /// Version of the mirror that this was.
    version: u64,
    /// Whether the mirror had more than one batch.
    is_more: bool,
    closing: Closing,
}

impl Shard {
    fn new(common: Arc<Common>) -> io::Result<(Self, Handle)> {
        let poll = Poll::new()?;
        let handle = Handle {
            inbox: Arc::default(),
            waker: Arc::new(Waker::new(poll.registry(), WAKER)?),
            streams: Arc::default(),
        };
        // In this order: what changes in between is looked at once more.
        let version = common.mirror.version();
        let (next, place) = common.mirror.end();
        let shard = Self {
            poll,
            inbox: Arc::clone(&handle.inbox),
            commands: VecDeque::new(),
            streams: Arc::clone(&handle.streams),
            roster: Roster::new(Wheel::new(common.heartbeat, Instant::now())),
            next,
            place,
            version,
            is_more: false,
            closing: Closing::default(),
            common,
        };
        Ok((shard, handle))
    }

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
            if !self.turn(&events) {
                return;
            }
        }
    }

    /// A bounded part of everything there is to do; whether to go on.
    fn turn(&mut self, events: &Events) -> bool {
        // First what is live: new streams and slow ones wait for nobody.
        self.advance();
        // Before any number is given to another stream.
        self.look_at_sockets(events);
        if !self.obey() {
            return false;
        }
        self.serve_ready();
        let now = Instant::now();
        self.beat(now);
        self.close_due(now);
        true
    }

    /// How long there is nothing to do but for the sockets and the waker.
    fn timeout(&self) -> Option<Duration> {
        if self.is_more || !self.commands.is_empty() || self.roster.is_anyone_ready() {
            return Some(Duration::ZERO);
        }
        let now = Instant::now();
        let closing = self.closing.next_due(self.roster.numbers(), self.roster.is_anyone_full(), now);
        let next = [self.roster.wheel.next_due(), closing].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    fn look_at_sockets(&mut self, events: &Events) {
        for event in events {
            let Ok(number) = u32::try_from(event.token().0) else {
                continue;
            };
            if (event.is_readable() || event.is_read_closed() || event.is_error())
                && self.roster.get_mut(number).is_some_and(|connection| !connection.is_there())
            {
                self.remove(number);
            } else if event.is_writable() {
                self.roster.has_room(number);
            }
        }
    }

    // -- Commands

    /// Whether to go on.
    fn obey(&mut self) -> bool {
        self.commands.extend(std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner)));
        for _ in 0..COMMANDS_A_TURN {
            match self.commands.pop_front() {
                None => break,
                Some(Command::Join(join)) => self.join(*join),
                Some(Command::Drain(window)) => {
                    self.closing.draining = true;
                    self.closing.pace = Some(Pace::new(Instant::now(), window, self.roster.len()));
                }
                Some(Command::CancelDrain) => (self.closing.draining, self.closing.pace) = (false, None),
                Some(Command::Shed(count, window)) if !self.closing.draining => {
                    let count = count.min(self.roster.len());
                    self.closing.pace = Some(Pace::new(Instant::now(), window, count));
                }
                Some(Command::Shed(..)) => {}
                Some(Command::Keep(principals)) => self.closing.keep(principals),
                Some(Command::Stop) => return false,
            }
        }
        true
    }

    fn join(&mut self, join: Join) {
        let Join { socket, group, permit, beginning, feed } = join;
        let mut socket = TcpStream::from_std(socket);
        let Some(number) = self.roster.next_number() else { return };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut socket, Token(number as usize), interest).is_err() {
            return;
        }
        self.roster.insert(number, Connection::new(socket, group, permit, beginning, feed));
        self.streams.store(self.roster.len(), Ordering::Relaxed);
        if let Some(last) = self.unwelcome(number) {
            self.close(number, &last, Instant::now());
        }
    }

    // -- Sending

    /// Sends everybody who keeps up the next of what the mirror has gained.
    fn advance(&mut self) {
        let version = self.common.mirror.version();
        if version == self.version && !self.is_more {
            return;
        }
        self.version = version;
        let (begin, mut items) = self.common.mirror.read(self.next, BATCH);
        let (end, place) = self.common.mirror.end();
        if begin > self.next {
            // The mirror has dropped what this shard never saw: all streams go through their feeds.
            for number in self.roster.all_live() {
                self.lag(number, Bytes::new(), Feed::At(self.next));
            }
            (self.next, self.place) = (end, place);
        } else if let Some(last) = bounded(&mut items) {
            self.place = match last {
                Item::Event(event) => Some(Place { epoch: event.epoch, id: event.id }),
                Item::Gap(gap) => gap.place,
            };
            let positions = begin..begin + items.len() as u64;
            self.next = positions.end;
            self.deliver(&positions, &items);
            self.observe(&items);
        } else if end == self.next {
            self.place = place;
        }
        self.is_more = self.next < end;
        self.roster.mirror_changed();
    }

    fn deliver(&mut self, positions: &Range<u64>, items: &[Item]) {
        let (mut lagging, mut broken) = (Vec::new(), Vec::new());
        for members in self.roster.live_groups() {
            let Encoded { bytes, events, gaps } = members.group.encode(positions, items);
            if bytes.is_empty() {
                continue;
            }
            for (number, socket) in self.roster.live(members) {
                match write(socket, &bytes) {
                    Ok(written) if written == bytes.len() => {}
                    Ok(written) => lagging.push((number, bytes.slice(written..))),
                    Err(_) => broken.push(number),
                }
            }
            let streams = members.live_count();
            self.common.metrics.deliveries.inc_by(streams * u64::from(events));
            self.common.metrics.gaps.inc_by(streams * u64::from(gaps));
        }
        for (number, unsent) in lagging {
            self.lag(number, unsent, Feed::At(positions.end));
        }
        for number in broken {
            self.remove(number);
        }
    }

    fn observe(&self, items: &[Item]) {
        if self.roster.len() == 0 {
            return;
        }
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for item in items {
            if let Item::Event(event) = item {
                let lag = unix.saturating_sub(Duration::from_millis(event.id.milliseconds));
                self.common.metrics.delivery_lag.observe(lag.as_secs_f64());
            }
        }
    }

    /// A stream that kept up does so no more.
    fn lag(&mut self, number: u32, unsent: Bytes, feed: Feed) {
        if let Some(connection) = self.roster.get_mut(number) {
            let outcome = Outcome::Waits(connection.fall_behind(unsent, feed));
            self.settle(number, &outcome);
        }
    }

    /// Sends those behind whose turn it is what they are behind by.
    fn serve_ready(&mut self) {
        let mut steps = STEPS_A_TURN;
        while steps > 0
            && let Some(number) = self.roster.next_ready()
        {
            if let Some(connection) = self.roster.get_mut(number) {
                let outcome = connection.catch_up(&self.common, self.next, &mut steps);
                self.settle(number, &outcome);
            }
        }
    }

    fn beat(&mut self, now: Instant) {
        let mut due = Vec::new();
        self.roster.wheel.turn(now, BEATS_A_TURN, |number| due.push(number));
        for number in due {
            let next = self.next;
            let Some((group, feed)) = self
                .roster
                .get(number)
                .and_then(|connection| Some((Arc::clone(&connection.group), connection.is_quiet(next)?)))
            else {
                continue;
            };
            let text = self.heartbeat(&group, feed);
            if let Some(connection) = self.roster.get_mut(number) {
                let outcome = connection.say(&text, feed);
                self.settle(number, &outcome);
            }
        }
    }

    /// The heartbeat of a stream; those that keep up share one text for each second.
    fn heartbeat(&mut self, group: &Arc<Group>, feed: Feed) -> Bytes {
        let (next, place) = (self.next, self.place);
        let Some(members) = self.roster.members(group).filter(|_| feed == Feed::At(next)) else {
            // It has not been told what came before this place.
            return group.heartbeat(None);
        };
        let moment = u64::from(super::cursor::now()) << 32 ^ next;
        match &members.heartbeat {
            Some((of, text)) if *of == moment => text.clone(),
            _ => {
                let text = group.heartbeat(place);
                members.heartbeat = Some((moment, text.clone()));
                text
            }
        }
    }

    // -- Leaving

    /// Lists a stream by what became of it, or ends it.
    fn settle(&mut self, number: u32, outcome: &Outcome) {
        if matches!(outcome, Outcome::Over) {
            if let Some(connection) = self.remove(number) {
                connection.end();
            }
        } else {
            self.roster.settle(number, outcome);
        }
    }

    fn remove(&mut self, number: u32) -> Option<Connection> {
        let mut connection = self.roster.remove(number)?;
        let _ = self.poll.registry().deregister(&mut connection.socket);
        self.streams.store(self.roster.len(), Ordering::Relaxed);
        Some(connection)
    }
}

/// Shortens a batch to what one turn sends to everybody; its last item.
fn bounded(items: &mut Vec<Item>) -> Option<&Item> {
    let mut bytes = 0;
    let fitting = items.iter().take_while(|item| {
        let fits = bytes < BATCH_BYTES;
        if let Item::Event(event) = item {
            bytes += event.text().len();
        }
        fits
    });
    let fitting = fitting.count();
    items.truncate(fitting);
    items.last()
}

#[cfg(test)]
mod tests;
