//! Serving, draining, stopped: the one state that readiness, the streams and the process end follow.

use std::sync::Arc;

use tokio::sync::watch;

/// Where this instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Takes streams.
    Serving,
    /// Not ready, refuses new streams, closes the open ones over the window.
    Draining,
    /// Every stream is closed and the listeners go.
    Stopped,
}

/// A drain that cannot be cancelled any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the process is about to end; its drain cannot be cancelled")]
pub struct Terminating;

/// Handle to the state; clones share it.
#[derive(Clone)]
pub struct Drain {
    phase: Arc<watch::Sender<Phase>>,
    terminating: Arc<watch::Sender<bool>>,
}

impl Drain {
    /// A state that begins at [`Phase::Serving`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            terminating: Arc::new(watch::Sender::new(false)),
        }
    }

    /// The state now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Sees every later change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Begins to drain; `false` when that had begun before.
    #[allow(clippy::must_use_candidate, reason = "a drain that had begun is as good")]
    pub fn begin(&self) -> bool {
        self.shift(Phase::Serving, Phase::Draining)
    }

    /// Begins to drain for the end of the process, which nobody can cancel.
    pub fn terminate(&self) {
        self.terminating.send_replace(true);
        self.begin();
    }

    /// Resolves once the process is about to end.
    pub async fn terminated(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.terminating.subscribe().wait_for(|terminating| *terminating).await;
    }

    /// Back to serving; `Ok(false)` when it did not drain.
    ///
    /// # Errors
    /// [`Terminating`] when the drain belongs to the end of the process.
    pub fn cancel(&self) -> Result<bool, Terminating> {
        if *self.terminating.borrow() {
            return Err(Terminating);
        }
        Ok(self.shift(Phase::Draining, Phase::Serving))
    }

    /// Every stream is closed: let the listeners go.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stopped);
    }

    /// Resolves once the state is [`Phase::Stopped`].
    pub async fn stopped(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.subscribe().wait_for(|phase| *phase == Phase::Stopped).await;
    }

    fn shift(&self, from: Phase, to: Phase) -> bool {
        self.phase.send_if_modified(|phase| {
            let shifts = *phase == from;
            if shifts {
                *phase = to;
            }
            shifts
        })
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requested_drain_can_be_cancelled_and_the_final_one_cannot() {
        let drain = Drain::new();
        assert!(drain.begin());
        assert!(!drain.begin());
        assert_eq!(drain.cancel(), Ok(true));
        assert_eq!(drain.cancel(), Ok(false));
        drain.begin();
        drain.terminate();
        assert_eq!(drain.cancel(), Err(Terminating));
        assert_eq!(drain.phase(), Phase::Draining);
    }
}
