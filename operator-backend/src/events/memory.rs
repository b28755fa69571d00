//! The log of an instance that runs alone: the mirror is all there is.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{EntryId, Epoch, Event, Mirror, NewEvent};

/// How long an idempotency key is remembered.
const KEY_LIFE: Duration = Duration::from_mins(5);
/// Keys that are remembered at most; the oldest go first.
const MOST_KEYS: usize = 100_000;

pub(super) struct MemoryLog {
    epoch: Epoch,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: EntryId,
    number: u64,
    keys: HashMap<Box<str>, EntryId>,
    expiry: VecDeque<(Instant, Box<str>)>,
}

impl MemoryLog {
    pub(super) fn new(mirror: &Mirror) -> Self {
        // A process that starts again must not take cursors of the one before for its own.
        let epoch = Epoch(rand::random());
        mirror.load(epoch, EntryId::default(), 0, Vec::new());
        Self { epoch, state: Mutex::default() }
    }

    pub(super) fn publish(&self, mirror: &Mirror, event: NewEvent, key: Option<&str>) -> EntryId {
        // Held until the mirror has the event, so that the order of ids is the order of the mirror.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        state.forget(Instant::now());
        if let Some(id) = key.and_then(|key| state.keys.get(key)) {
            return *id;
        }
        let id = next(state.last, milliseconds_now());
        state.last = id;
        state.number += 1;
        if let Some(key) = key {
            state.keys.insert(key.into(), id);
            state.expiry.push_back((Instant::now() + KEY_LIFE, key.into()));
        }
        mirror.append(vec![Event::new(id, self.epoch, state.number, event)]);
        id
    }
}

impl State {
    fn forget(&mut self, now: Instant) {
        while let Some((moment, _)) = self.expiry.front()
            && (*moment <= now || self.keys.len() > MOST_KEYS)
        {
            if let Some((_, key)) = self.expiry.pop_front() {
                self.keys.remove(&key);
            }
        }
    }
}

/// Ids never go back, even when the clock does.
fn next(last: EntryId, now: u64) -> EntryId {
    if now > last.milliseconds {
        EntryId { milliseconds: now, sequence: 0 }
    } else {
        EntryId { sequence: last.sequence + 1, ..last }
    }
}

fn milliseconds_now() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(unix.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::Keep, *};

    fn event() -> NewEvent {
        NewEvent::parse(br#"{"data":1}"#).unwrap()
    }

    #[test]
    fn ids_rise_even_when_the_clock_goes_back() {
        let last = EntryId { milliseconds: 10, sequence: 3 };
        assert!(next(last, 9) > last && next(last, 10) > last && next(last, 11) > last);
    }

    #[test]
    fn a_key_publishes_once_until_it_expires() {
        let mirror = Mirror::new(Keep { events: 10, bytes: 1 << 20, milliseconds: 60_000 });
        let log = MemoryLog::new(&mirror);
        let first = log.publish(&mirror, event(), Some("k"));
        assert_eq!(log.publish(&mirror, event(), Some("k")), first);
        assert_ne!(log.publish(&mirror, event(), None), first);
        log.state.lock().unwrap().forget(Instant::now() + KEY_LIFE);
        assert_ne!(log.publish(&mirror, event(), Some("k")), first);
    }
}
