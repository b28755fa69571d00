//! What a decision remembers of earlier ones: how many instances the load asked for within the
//! stabilisation windows, and the rebalancing under way.
//!
//! It lives in memory. A new leader starts with none and therefore waits a whole window before it scales in,
//! which is the safe side; everything that must not be lost lies on the pods and the Deployment.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{observation::Moment, rebalance::Episode};

/// A count that the load asked for, from one look to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Span {
    from: Moment,
    to: Moment,
    instances: u32,
}

/// The memory of one cluster's decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Oldest first; equal neighbours are one span, so a constant load takes one.
    spans: VecDeque<Span>,
    /// Rebalancing since the last scale-out, until it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<Episode>,
}

/// A look later than this after the one before leaves a hole: what happened in between is not known.
const LONGEST_PAUSE_MS: u64 = 60_000;

impl History {
    /// Remembers that the load asked for `instances`, and forgets what is older than `window_ms`.
    pub fn record(&mut self, now: Moment, instances: u32, window_ms: u64) {
        if self.spans.back().is_some_and(|last| now.since(last.to) > LONGEST_PAUSE_MS) {
            self.spans.clear();
        }
        match self.spans.back_mut() {
            Some(last) if last.instances == instances => last.to = now,
            Some(last) => {
                last.to = now;
                self.spans.push_back(Span { from: now, to: now, instances });
            }
            None => self.spans.push_back(Span { from: now, to: now, instances }),
        }
        // The span that straddles the edge of the window stays: it proves that the window is covered.
        while self.spans.get(1).is_some_and(|second| now.since(second.from) >= window_ms) {
            self.spans.pop_front();
        }
    }

    /// Milliseconds up to `now` that are remembered without a hole.
    #[must_use]
    pub fn covered_ms(&self, now: Moment) -> u64 {
        match (self.spans.front(), self.spans.back()) {
            (Some(first), Some(last)) if now.since(last.to) <= LONGEST_PAUSE_MS => now.since(first.from),
            _ => 0,
        }
    }

    /// The largest count asked for within the last `window_ms`, `present` included.
    #[must_use]
    pub fn largest(&self, now: Moment, window_ms: u64, present: u32) -> u32 {
        self.within(now, window_ms).fold(present, u32::max)
    }

    /// The smallest count asked for within the last `window_ms`, `present` included.
    #[must_use]
    pub fn smallest(&self, now: Moment, window_ms: u64, present: u32) -> u32 {
        self.within(now, window_ms).fold(present, u32::min)
    }

    fn within(&self, now: Moment, window_ms: u64) -> impl Iterator<Item = u32> {
        self.spans.iter().filter(move |span| now.since(span.to) < window_ms).map(|span| span.instances)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(asked: &[(u64, u32)], window_seconds: u64) -> History {
        let mut history = History::default();
        for &(seconds, instances) in asked {
            history.record(Moment(seconds * 1000), instances, window_seconds * 1000);
        }
        history
    }

    #[test]
    fn the_largest_count_leaves_the_window_when_it_is_old_enough() {
        let history = history(&[(0, 9), (5, 4), (10, 4)], 60);
        assert_eq!(history.largest(Moment(64_000), 60_000, 4), 9, "9 held until second 5");
        assert_eq!(history.largest(Moment(65_000), 60_000, 4), 4);
        assert_eq!(history.smallest(Moment(10_000), 60_000, 6), 4);
    }

    #[test]
    fn coverage_grows_with_time_and_a_hole_starts_it_anew() {
        assert_eq!(history(&[], 60).covered_ms(Moment(5000)), 0);
        assert_eq!(history(&[(0, 2), (5, 2), (10, 2)], 60).covered_ms(Moment(12_000)), 12_000);
        assert_eq!(history(&[(0, 2), (200, 2)], 60).covered_ms(Moment(200_000)), 0);
        assert_eq!(history(&[(0, 2)], 60).covered_ms(Moment(100_000)), 0, "nobody looked since");
    }

    #[test]
    fn a_constant_load_takes_one_span_and_a_restless_one_no_more_than_its_window() {
        let constant: Vec<_> = (0..1000).map(|i| (i * 5, 3)).collect();
        assert_eq!(history(&constant, 300).spans.len(), 1);
        let restless: Vec<_> = (0..1000u32).map(|i| (u64::from(i) * 5, i % 2)).collect();
        assert!(history(&restless, 300).spans.len() <= 62);
    }
}
