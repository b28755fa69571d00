//! Planned closes: a drain of all streams, or of a share of them, evenly spread over a window.

use std::{sync::Arc, time::Duration};

use rand::seq::SliceRandom;
use tokio::{sync::watch, time::Instant};

use super::{GroupKey, Hub};
use crate::{auth::Principals, stream::frame};

/// Shortest time between two looks at what is due.
const STEP: Duration = Duration::from_millis(20);

/// The drain under way, if there is one.
#[derive(Default)]
pub(super) struct Closing {
    draining: bool,
    /// Which drain: one that was cancelled closes nothing more.
    turn: u64,
}

impl Closing {
    pub(super) fn draining(&self) -> bool {
        self.draining
    }
}

impl Hub {
    /// Refuses new streams and closes the open ones evenly over `window`.
    pub(in crate::stream) fn begin_drain(self: Arc<Self>, window: Duration) {
        let turn = {
            let mut state = self.lock();
            state.closing.draining = true;
            state.closing.turn += 1;
            state.closing.turn
        };
        let streams = self.shuffled();
        tokio::spawn(self.close_evenly(streams, window, Some(turn)));
    }

    /// Takes new streams again; those that are still open stay.
    pub(in crate::stream) fn cancel_drain(&self) {
        let mut state = self.lock();
        state.closing.draining = false;
        state.closing.turn += 1;
    }

    /// Closes `count` streams evenly over `window`.
    pub(in crate::stream) fn shed(self: Arc<Self>, count: usize, window: Duration) {
        let mut streams = self.shuffled();
        streams.truncate(count);
        tokio::spawn(self.close_evenly(streams, window, None));
    }

    /// Ends the streams of principals that are no longer configured.
    pub(in crate::stream) async fn close_revoked(
        self: Arc<Self>,
        mut principals: watch::Receiver<Arc<Principals>>,
    ) {
        while principals.changed().await.is_ok() {
            let known = Arc::clone(&principals.borrow_and_update());
            let bytes = frame::error("principal_revoked");
            self.lock().groups.retain(|key, group| {
                let stays = known.named(key.principal.name()).is_some();
                if !stays {
                    for member in group.members.values() {
                        // A client too slow for its last event is cut all the same.
                        let _ = member.sender.send(bytes.clone());
                    }
                }
                stays
            });
        }
    }

    fn shuffled(&self) -> Vec<(GroupKey, u64)> {
        let state = self.lock();
        let mut streams: Vec<_> = state
            .groups
            .iter()
            .flat_map(|(key, group)| group.members.keys().map(|id| (key.clone(), *id)))
            .collect();
        streams.shuffle(&mut rand::rng());
        streams
    }

    async fn close_evenly(
        self: Arc<Self>,
        streams: Vec<(GroupKey, u64)>,
        window: Duration,
        turn: Option<u64>,
    ) {
        let (count, begun) = (streams.len(), Instant::now());
        for (index, (key, id)) in streams.into_iter().enumerate() {
            // The last one closes as the window ends.
            let share = f64::from(u32::try_from(index + 1).unwrap_or(u32::MAX))
                / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
            let due = window.mul_f64(share);
            // Those due within a step go together, so that no timer is set for each.
            if due.saturating_sub(begun.elapsed()) > STEP {
                tokio::time::sleep_until(begun + due).await;
            }
            if !self.close_one(&key, id, turn) {
                return;
            }
        }
    }

    /// `false` when the drain that this belongs to is over.
    fn close_one(&self, key: &GroupKey, id: u64, turn: Option<u64>) -> bool {
        let mut state = self.lock();
        if turn.is_some_and(|turn| state.closing.turn != turn) {
            return false;
        }
        let member = state
            .groups
            .get_mut(key)
            .and_then(|group| group.members.remove(&id));
        if let Some(member) = member {
            // Spread, so that the clients of one moment do not all come back in one other.
            let retry = self.retry.mul_f64(rand::random_range(0.5..1.5));
            let reason = if turn.is_some() { "draining" } else { "rebalancing" };
            let _ = member.sender.send(frame::drain(retry, reason));
            self.metrics.drain_closed.inc();
        }
        true
    }
}
