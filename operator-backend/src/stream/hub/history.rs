//! The latest entries of the log, as far as clients may resume: what came after a position, and what is gone.

use std::{collections::VecDeque, time::Duration};

use super::{Position, SNAPSHOT};
use crate::events::{Entry, EntryId};

pub(super) struct History {
    /// Ascending ids.
    entries: VecDeque<Entry>,
    most: usize,
    window_milliseconds: u64,
}

/// How a stream is brought up to date.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Replay {
    /// Index of the first entry that the client has not seen.
    from: usize,
    /// Entries after this position are gone; `Some(None)` where nobody knows the position.
    gap: Option<Option<EntryId>>,
    /// The client came with a position.
    pub(super) resumed: bool,
    /// Its position lies behind everything that has been read here so far.
    pub(super) ahead: Option<EntryId>,
}

impl History {
    pub(super) fn new(most: u32, window: Duration) -> Self {
        Self {
            entries: VecDeque::new(),
            most: usize::try_from(most).unwrap_or(usize::MAX).max(SNAPSHOT),
            window_milliseconds: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The newest entry.
    pub(super) fn tail(&self) -> Option<EntryId> {
        self.entries.back().map(|entry| entry.id)
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev()
    }

    /// After which entry something is lost before `entry`, which is about to be appended.
    pub(super) fn lost_before(&self, entry: &Entry) -> Option<Option<EntryId>> {
        lost_between(self.entries.back(), entry)
    }

    pub(super) fn append(&mut self, entry: Entry) {
        // A log that went back in time: what is kept here is no longer a part of it.
        if self.tail().is_some_and(|tail| entry.id <= tail) {
            self.entries.clear();
        }
        let oldest = entry.id.milliseconds.saturating_sub(self.window_milliseconds);
        self.entries.push_back(entry);
        let old = |front: &Entry| front.id.milliseconds < oldest;
        while self.entries.len() > self.most
            || self.entries.len() > SNAPSHOT && self.entries.front().is_some_and(old)
        {
            self.entries.pop_front();
        }
    }

    pub(super) fn replay(&self, position: Position) -> Replay {
        let live = Replay {
            from: self.entries.len(),
            gap: None,
            resumed: false,
            ahead: None,
        };
        let after = match position {
            Position::Live => return live,
            Position::Unknown => {
                return Replay {
                    gap: Some(None),
                    ..live
                };
            }
            Position::After(after) => after,
        };
        let live = Replay {
            resumed: true,
            ..live
        };
        if self.tail().is_none_or(|tail| after > tail) {
            return Replay {
                ahead: Some(after),
                ..live
            };
        }
        let from = self.entries.partition_point(|entry| entry.id <= after);
        let at = from.checked_sub(1).and_then(|index| self.entries.get(index));
        let first = self.entries.get(from);
        let contiguous = at.is_some_and(|entry| entry.id == after)
            || from == 0 && first.is_some_and(|entry| entry.prior == after && entry.event.is_some());
        Replay {
            from,
            gap: (!contiguous).then_some(Some(after)),
            ..live
        }
    }

    /// The entries that a client has missed, in order, each with the position after which something before it
    /// is gone, if so. Without an entry to show it at, a gap stands alone.
    pub(super) fn missed<'a>(
        &'a self,
        replay: &Replay,
    ) -> impl Iterator<Item = (Option<Option<EntryId>>, Option<&'a Entry>)> + use<'a> {
        let from = replay.from;
        let gap = replay.gap;
        let alone = (from >= self.entries.len()).then_some(gap).flatten();
        let entries = self
            .entries
            .iter()
            .enumerate()
            .skip(from)
            .map(move |(index, entry)| {
                if index == from && gap.is_some() {
                    return (gap, Some(entry));
                }
                let before = index.checked_sub(1).and_then(|before| self.entries.get(before));
                (lost_between(before, entry), Some(entry))
            });
        alone.map(|gap| (Some(gap), None)).into_iter().chain(entries)
    }
}

/// The position after which something is lost before `entry`: a marker of the log itself, or a broken chain.
fn lost_between(before: Option<&Entry>, entry: &Entry) -> Option<Option<EntryId>> {
    let broken = before.is_some_and(|before| before.id != entry.prior);
    let marked = before.is_some() && entry.event.is_none();
    (broken || marked).then(|| before.map(|before| before.id))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::events::{Event, NewEvent};

    fn id(milliseconds: u64) -> EntryId {
        EntryId {
            milliseconds,
            sequence: 0,
        }
    }

    fn entry(at: u64, prior: u64) -> Entry {
        let event = Event {
            id: id(at),
            content: NewEvent::default(),
        };
        Entry {
            id: id(at),
            prior: id(prior),
            event: Some(Arc::new(event)),
        }
    }

    fn marker(at: u64, prior: u64) -> Entry {
        Entry {
            event: None,
            ..entry(at, prior)
        }
    }

    fn history(entries: &[Entry]) -> History {
        let mut history = History::new(100, Duration::from_secs(300));
        entries.iter().cloned().for_each(|entry| history.append(entry));
        history
    }

    /// What a client at `position` is shown: entries, and gaps as the position after which they are.
    fn shown(history: &History, position: Position) -> Vec<Result<u64, Option<u64>>> {
        let mut shown = Vec::new();
        for (gap, entry) in history.missed(&history.replay(position)) {
            shown.extend(gap.map(|after| Err(after.map(|after| after.milliseconds))));
            shown.extend(entry.map(|entry| Ok(entry.id.milliseconds)));
        }
        shown
    }

    #[test]
    fn a_known_position_is_followed_without_a_gap() {
        let history = history(&[marker(1, 0), entry(2, 1), entry(3, 2), entry(4, 3)]);
        assert_eq!(shown(&history, Position::After(id(2))), [Ok(3), Ok(4)]);
        assert_eq!(shown(&history, Position::After(id(1))), [Ok(2), Ok(3), Ok(4)]);
        assert_eq!(shown(&history, Position::After(id(4))), []);
        assert_eq!(shown(&history, Position::Live), []);
    }

    #[test]
    fn a_position_just_before_the_oldest_entry_is_no_gap_and_an_older_one_is() {
        let history = history(&[entry(6, 5), entry(7, 6)]);
        assert_eq!(shown(&history, Position::After(id(5))), [Ok(6), Ok(7)]);
        assert_eq!(
            shown(&history, Position::After(id(4))),
            [Err(Some(4)), Ok(6), Ok(7)]
        );
    }

    #[test]
    fn a_position_that_the_log_lost_is_a_gap_even_between_newer_ids() {
        let history = history(&[entry(2, 1), entry(9, 2)]);
        assert_eq!(shown(&history, Position::After(id(5))), [Err(Some(5)), Ok(9)]);
        assert_eq!(shown(&history, Position::Unknown), [Err(None)]);
    }

    #[test]
    fn a_marker_and_a_broken_chain_are_gaps_where_they_are() {
        let history = history(&[entry(2, 1), marker(3, 2), entry(4, 3), entry(9, 8)]);
        assert_eq!(
            shown(&history, Position::After(id(2))),
            [Err(Some(2)), Ok(3), Ok(4), Err(Some(4)), Ok(9)]
        );
    }

    #[test]
    fn a_client_may_be_ahead_of_the_reader() {
        let replay = history(&[entry(2, 1)]).replay(Position::After(id(3)));
        assert_eq!((replay.ahead, replay.gap), (Some(id(3)), None));
    }

    #[test]
    fn entries_leave_with_the_window_but_a_snapshot_stays() {
        let mut history = History::new(100, Duration::from_millis(10));
        (1..=50).for_each(|at| history.append(entry(at, at - 1)));
        assert_eq!(history.entries.len(), 11);
        history.append(entry(1000, 50));
        assert_eq!(history.entries.len(), SNAPSHOT);
    }
}
