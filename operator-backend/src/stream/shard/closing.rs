//! Streams that the shard closes: evenly over a window, because their principal is gone, because they do not read.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    super::{pace::Pace, wire},
    Shard,
};
use crate::identity::Principals;

/// Streams that one turn closes at most, and those that it looks at for that.
const CLOSED_A_TURN: usize = 128;
const LOOKED_AT_A_TURN: usize = 1024;
/// How often those are looked for whose socket has been full for too long.
const SLOW_LOOK: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(super) struct Closing {
    /// The streams that are closed over a window, and whether all that come are closed too.
    pub(super) pace: Option<Pace>,
    pub(super) draining: bool,
    /// Where the search for the next one goes on.
    hand: usize,
    /// The principals that are left, as soon as there has been a change, and the stream up to which it was
    /// looked whether it is one of theirs.
    kept: Option<(Arc<Principals>, usize)>,
    next_look: Option<Instant>,
}

impl Closing {
    pub(super) fn keep(&mut self, principals: Arc<Principals>) {
        self.kept = Some((principals, 0));
    }

    /// When there is something to do again.
    pub(super) fn next_due(&self, numbers: usize, is_anyone_full: bool, now: Instant) -> Option<Instant> {
        let kept = self.kept.as_ref().is_some_and(|(_, looked_at)| *looked_at < numbers).then_some(now);
        let look = is_anyone_full.then_some(self.next_look.unwrap_or(now));
        [kept, look, self.pace.as_ref().and_then(Pace::next_due)].into_iter().flatten().min()
    }
}

impl Shard {
    /// Closes whom it is time to close.
    pub(super) fn close_due(&mut self, now: Instant) {
        self.close_paced(now);
        self.close_revoked(now);
        self.cut_late(now);
    }

    /// What a stream that has just come is told, if it may not stay.
    pub(super) fn unwelcome(&self, number: u32) -> Option<Bytes> {
        if self.closing.draining {
            return Some(self.farewell());
        }
        let (kept, _) = self.closing.kept.as_ref()?;
        let principal = &self.roster.get(number)?.group.principal;
        kept.named(principal.name()).is_none().then(revoked)
    }

    fn farewell(&self) -> Bytes {
        wire::drain(wire::jittered(self.common.retry, 0.5, 1.5))
    }

    fn close_paced(&mut self, now: Instant) {
        let Some(pace) = &mut self.closing.pace else { return };
        let due = pace.due(now, CLOSED_A_TURN);
        if pace.next_due().is_none() && !self.closing.draining {
            self.closing.pace = None;
        }
        for _ in 0..due {
            if let Some(number) = self.next_in_turn() {
                self.close(number, &self.farewell(), now);
                self.common.metrics.drain_closed.inc();
            }
        }
    }

    fn next_in_turn(&mut self) -> Option<u32> {
        let numbers = self.roster.numbers();
        for _ in 0..numbers {
            self.closing.hand = (self.closing.hand + 1) % numbers;
            let number = u32::try_from(self.closing.hand).ok()?;
            if self.roster.get(number).is_some_and(|connection| !connection.is_closing()) {
                return Some(number);
            }
        }
        None
    }

    fn close_revoked(&mut self, now: Instant) {
        let Some((kept, looked_at)) = &mut self.closing.kept else { return };
        let from = *looked_at;
        let to = self.roster.numbers().min(from.saturating_add(LOOKED_AT_A_TURN));
        let (mut gone, mut looked) = (Vec::new(), from);
        while looked < to && gone.len() < CLOSED_A_TURN {
            if let Ok(number) = u32::try_from(looked)
                && let Some(connection) = self.roster.get(number)
                && !connection.is_closing()
                && kept.named(connection.group.principal.name()).is_none()
            {
                gone.push(number);
            }
            looked += 1;
        }
        *looked_at = looked;
        for number in gone {
            self.close(number, &revoked(), now);
        }
    }

    fn cut_late(&mut self, now: Instant) {
        if !self.roster.is_anyone_full() {
            self.closing.next_look = None;
            return;
        }
        if *self.closing.next_look.get_or_insert(now + SLOW_LOOK) > now {
            return;
        }
        let late = self.roster.late(now, CLOSED_A_TURN);
        // As many as one turn may close: there may be more.
        self.closing.next_look = (late.len() < CLOSED_A_TURN).then_some(now + SLOW_LOOK).or(Some(now));
        for number in late {
            if let Some(connection) = self.remove(number)
                && !connection.is_closing()
            {
                self.common.metrics.slow_clients_cut.inc();
            }
        }
    }

    /// Closes a stream with a last word.
    pub(super) fn close(&mut self, number: u32, last: &Bytes, now: Instant) {
        if let Some(connection) = self.roster.get_mut(number) {
            let outcome = connection.close(last, now);
            self.settle(number, &outcome);
        }
    }
}

fn revoked() -> Bytes {
    wire::error("principal_removed")
}
