//! This instance's copy of the end of the log, gaps included, and the answer to "what follows this cursor?".
//!
//! Items have positions that only rise. A stream is a position; to read on is to read the items from there.
//! Items of one *epoch* (one incarnation of the log, which begins whenever what was acknowledged before may
//! be lost) form a segment, in which ids rise and numbers have no holes; where anything is missing lies a
//! [`Gap`]. So whoever reads from any position on learns of every loss before anything newer.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use tokio::sync::watch;

use super::{EntryId, Event};

/// Items that are kept however old they are: what a quiet log shows to a new stream, and where its idle
/// streams resume.
const KEPT_ANYWAY: usize = 100;

/// How much of the log is kept for resuming clients, in Redis and by each instance.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Most events.
    pub events: usize,
    /// Most bytes of events.
    pub bytes: usize,
    /// Age from which on they go, milliseconds.
    pub milliseconds: u64,
}

/// One incarnation of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u32);

/// A place in the log that outlives this process: what a cursor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The incarnation that the id belongs to.
    pub epoch: Epoch,
    /// The last event before the place.
    pub id: EntryId,
}

/// Why events are, or may be, missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// They are older than what is kept.
    Trimmed,
    /// The log began anew: Redis restarted, failed over or was flushed, and may have lost its latest events.
    Restarted,
    /// The event of the cursor is not in the log any more.
    Lost,
    /// The cursor is not one of this log, this principal and these filters.
    UnknownCursor,
    /// The log could not be read when the stream began.
    Unavailable,
}

impl GapReason {
    /// As the `gap` event tells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Restarted => "restarted",
            Self::Lost => "lost",
            Self::UnknownCursor => "unknown_cursor",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Something may be missing between two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// The last event before the gap, as far as it is known.
    pub after: Option<EntryId>,
    /// The first event behind it, if there is one yet.
    pub before: Option<EntryId>,
    /// Where to resume behind the gap.
    pub place: Option<Place>,
}

/// What lies at a position.
#[derive(Clone, Debug)]
pub enum Item {
    /// An event.
    Event(Arc<Event>),
    /// A hole.
    Gap(Gap),
}

/// What a cursor comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Read on from this position: nothing is missing.
    At(u64),
    /// Tell the gap, then read on from the position.
    Lost(Gap, u64),
    /// Not known yet: the cursor is ahead of this mirror.
    Pending,
}

/// The end of the mirror: where a new stream begins, and the events it begins with.
pub struct Latest {
    /// Position of the next item.
    pub position: u64,
    /// The same as a place; `None` while the log was never read.
    pub place: Option<Place>,
    /// The latest events that were asked for, oldest first.
    pub events: Vec<Arc<Event>>,
}

struct Segment {
    epoch: Epoch,
    /// Position of its first item; the gap before it belongs to the segment before.
    start: u64,
    /// The last event before its first item that is known to be of this epoch (or its beginning), so that
    /// nothing is missing between the two.
    floor: Option<EntryId>,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// Position of the first item kept.
    first: u64,
    /// The last one is the current epoch; none = the log was never read.
    segments: VecDeque<Segment>,
    bytes: usize,
    /// The last event of the current epoch and its number.
    tail: EntryId,
    number: u64,
    /// Whether the log is being followed now: if not, unknown cursors may still turn out to be known.
    following: bool,
}

type Listener = Box<dyn Fn() + Send + Sync>;

/// See the module.
pub struct Mirror {
    state: RwLock<State>,
    keep: Keep,
    changed: watch::Sender<u64>,
    listeners: Mutex<Vec<Listener>>,
}

impl Mirror {
    /// An empty mirror that will keep this much.
    #[must_use]
    pub fn new(keep: Keep) -> Self {
        Self { state: RwLock::default(), keep, changed: watch::Sender::new(0), listeners: Mutex::default() }
    }

    /// Calls back after every change; the callback must be quick.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }

    /// Sees every change as a new value.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Number of changes so far.
    #[must_use]
    pub fn version(&self) -> u64 {
        *self.changed.borrow()
    }

    fn read_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|version| *version += 1);
        for listener in &*self.listeners.lock().unwrap_or_else(PoisonError::into_inner) {
            listener();
        }
        outcome
    }

    /// Begins with what the log holds: its epoch, the last id and number given in it, and its latest
    /// events, oldest first, possibly of earlier epochs too.
    pub fn load(&self, epoch: Epoch, last: EntryId, number: u64, events: Vec<Event>) {
        self.change(|state| {
            for event in events {
                state.push(event);
            }
            if state.epoch() != Some(epoch) {
                // Events without a last id are events that somebody deleted: nothing is known of them.
                state.begin(epoch, last, number == 0 || last != EntryId::default());
            }
            state.tail = state.tail.max(last);
            // With no event of this epoch at hand, the next one follows directly on what was given last.
            state.number = state.number.max(number);
            state.following = true;
            state.trim(self.keep);
        });
    }

    /// Appends what the log gained, in its order.
    pub fn append(&self, events: Vec<Event>) {
        self.change(|state| {
            for event in events {
                state.push(event);
            }
            state.trim(self.keep);
        });
    }

    /// A new epoch has begun after `base`.
    pub fn begin(&self, epoch: Epoch, base: EntryId) {
        self.change(|state| {
            if state.epoch() != Some(epoch) {
                state.begin(epoch, base, true);
            }
            state.trim(self.keep);
        });
    }

    /// Notes whether the log is being followed now.
    pub fn follow(&self, following: bool) {
        if self.read_state(|state| state.following != following) {
            self.change(|state| state.following = following);
        }
    }

    /// The place behind the last item; `None` while the log was never read.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.read_state(State::place)
    }

    /// Position of the next item, and the same as a place.
    #[must_use]
    pub fn end(&self) -> (u64, Option<Place>) {
        self.read_state(|state| (state.end(), state.place()))
    }

    /// The end, with the latest `count` events that `select` wants, in one consistent view.
    pub fn latest(&self, count: usize, mut select: impl FnMut(&Event) -> bool) -> Latest {
        self.read_state(|state| {
            let events = state.items.iter().rev().filter_map(|item| match item {
                Item::Event(event) if select(event) => Some(Arc::clone(event)),
                _ => None,
            });
            let mut events: Vec<_> = events.take(count).collect();
            events.reverse();
            Latest { position: state.end(), place: state.place(), events }
        })
    }

    /// Up to `most` items from a position on. The position that is returned is where they begin: later
    /// than the one asked for, if those in between are not kept any more.
    #[must_use]
    pub fn read(&self, from: u64, most: usize) -> (u64, Vec<Item>) {
        self.read_state(|state| {
            let begin = from.max(state.first).min(state.end());
            let skip = usize::try_from(begin - state.first).unwrap_or(usize::MAX);
            (begin, state.items.range(skip.min(state.items.len())..).take(most).cloned().collect())
        })
    }

    /// What a stream that has seen everything up to `place` has to be told next.
    #[must_use]
    pub fn resolve(&self, place: Place) -> Resolved {
        self.read_state(|state| state.resolve(place))
    }
}

impl State {
    fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    fn epoch(&self) -> Option<Epoch> {
        self.segments.back().map(|segment| segment.epoch)
    }

    fn place(&self) -> Option<Place> {
        Some(Place { epoch: self.epoch()?, id: self.tail })
    }

    /// Begins a segment; with a gap before it unless it is the first thing known of the log.
    fn begin(&mut self, epoch: Epoch, base: EntryId, exact: bool) {
        if !self.segments.is_empty() {
            self.items.push_back(Item::Gap(Gap {
                reason: GapReason::Restarted,
                after: Some(self.tail),
                before: None,
                place: exact.then_some(Place { epoch, id: base }),
            }));
        }
        let start = self.end();
        self.segments.push_back(Segment { epoch, start, floor: exact.then_some(base) });
        (self.tail, self.number) = (base, 0);
    }

    fn push(&mut self, event: Event) {
        if self.epoch() == Some(event.epoch) {
            if event.number != self.number + 1 {
                self.items.push_back(Item::Gap(Gap {
                    reason: GapReason::Trimmed,
                    after: Some(self.tail),
                    before: Some(event.id),
                    place: None,
                }));
            }
        } else {
            // The first number of an epoch is 1: only then is its beginning at hand.
            let first = event.number == 1;
            let before = EntryId { sequence: event.id.sequence.saturating_sub(1), ..event.id };
            self.begin(event.epoch, if first { EntryId::default() } else { before }, first);
        }
        (self.tail, self.number) = (event.id, event.number);
        self.bytes += event.weight();
        self.items.push_back(Item::Event(Arc::new(event)));
    }

    /// Whether the first item has to go.
    fn is_over(&self, keep: Keep) -> bool {
        let is_old = || match self.items.front() {
            Some(Item::Event(event)) => {
                event.id.milliseconds.saturating_add(keep.milliseconds) < self.tail.milliseconds
            }
            _ => true,
        };
        let count = self.items.len();
        count > keep.events || (self.bytes > keep.bytes && count > 1) || (count > KEPT_ANYWAY && is_old())
    }

    fn trim(&mut self, keep: Keep) {
        while self.is_over(keep) {
            let Some(item) = self.items.pop_front() else {
                return;
            };
            self.first += 1;
            if let Some(segment) = self.segments.front_mut() {
                match &item {
                    Item::Event(event) => {
                        self.bytes -= event.weight();
                        segment.floor = Some(event.id);
                    }
                    // What follows a hole follows nothing.
                    Item::Gap(Gap { place: None, .. }) => segment.floor = None,
                    Item::Gap(_) => {}
                }
                segment.start = self.first;
            }
            while self.segments.get(1).is_some_and(|next| next.start <= self.first) {
                self.segments.pop_front();
            }
        }
    }

    fn index(&self, position: u64) -> usize {
        usize::try_from(position.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.items.len())
    }

    fn resolve(&self, place: Place) -> Resolved {
        let Some(current) = self.epoch() else {
            return Resolved::Pending;
        };
        let found = self.segments.iter().enumerate().rev().find(|(_, segment)| segment.epoch == place.epoch);
        let Some((number, segment)) = found else {
            // Perhaps an epoch that other instances have seen begin and this one has not.
            return if self.following { self.lost(place, GapReason::Restarted) } else { Resolved::Pending };
        };
        if segment.floor == Some(place.id) {
            return Resolved::At(segment.start);
        }
        let end = self.segments.get(number + 1).map_or(self.end(), |next| next.start);
        let range = self.items.range(self.index(segment.start)..self.index(end));
        let mut behind = None;
        // From the back: who resumes was here a moment ago.
        for (back, item) in range.rev().enumerate() {
            if let Item::Event(event) = item {
                if event.id == place.id {
                    return Resolved::At(end - back as u64);
                }
                if event.id < place.id {
                    behind = Some(event.id);
                    break;
                }
            }
        }
        if place.epoch == current && place.id > self.tail {
            return Resolved::Pending;
        }
        if behind.is_none() && segment.floor == Some(EntryId::default()) {
            // Before the first event of an epoch that is here from its beginning.
            return Resolved::At(segment.start);
        }
        let older = behind.is_none() && segment.floor.is_none_or(|floor| place.id < floor);
        self.lost(place, if older { GapReason::Trimmed } else { GapReason::Lost })
    }

    /// The gap of a cursor that cannot be resumed after, and what there is that is newer.
    fn lost(&self, place: Place, reason: GapReason) -> Resolved {
        let newer = self.items.iter().position(|item| match item {
            Item::Event(event) => event.id > place.id,
            Item::Gap(_) => false,
        });
        let position = self.first + newer.unwrap_or(self.items.len()) as u64;
        let before = newer.and_then(|index| self.items.get(index)).and_then(|item| match item {
            Item::Event(event) => Some(event.id),
            Item::Gap(_) => None,
        });
        let behind = if newer.is_none() { self.place() } else { None };
        Resolved::Lost(Gap { reason, after: Some(place.id), before, place: behind }, position)
    }
}

#[cfg(test)]
mod tests;
