//! Published events: their shape, the log that all instances share, and this instance's mirror of it.
//!
//! An event is published in one round trip and read back by one blocking reader on every instance, which
//! appends it to the [`Mirror`]. Streams only ever read the mirror, so a slow or dead Redis never reaches
//! them, and replay and live delivery are one mechanism: a stream is a position in the mirror.

mod entry_id;
mod event;
mod memory;
mod mirror;
mod redis;

use std::sync::Arc;

pub use self::{
    entry_id::EntryId,
    event::{Event, InvalidEvent, NewEvent},
    mirror::{Epoch, Gap, GapReason, Item, Keep, Latest, Mirror, Place, Resolved},
};
use self::{memory::MemoryLog, redis::RedisLog};
use crate::{config::Config, redis_link::RedisLink};
pub(crate) use event::is_name;

/// Milliseconds beyond the resume window that an event is kept: a cursor is signed when its event is delivered
/// or a heartbeat is due, and ends on a whole second.
const DELIVERY_MILLISECONDS: u64 = 5000;

/// Why an event was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nothing was published.
    #[error("the event log is not available")]
    Unavailable,
    /// It may have been published: only a retry with the same idempotency key is safe.
    #[error("the event log did not answer in time")]
    Unknown,
}

/// The log of events. Cheap to clone.
#[derive(Clone)]
pub struct EventLog {
    backend: Backend,
    mirror: Arc<Mirror>,
}

#[derive(Clone)]
enum Backend {
    Memory(Arc<MemoryLog>),
    Redis(Arc<RedisLog>),
}

impl EventLog {
    /// A log in the Redis that `link` leads to, or of this process alone.
    #[must_use]
    pub fn new(config: &Config, link: Option<RedisLink>) -> Self {
        let keep = Keep {
            events: config.stream.event_history as usize,
            bytes: config.stream.event_bytes as usize,
            milliseconds: u64::from(config.stream.resume_window_seconds) * 1000 + DELIVERY_MILLISECONDS,
        };
        let mirror = Arc::new(Mirror::new(keep));
        let backend = match link {
            Some(link) => Backend::Redis(Arc::new(RedisLog::new(link, keep))),
            None => Backend::Memory(Arc::new(MemoryLog::new(&mirror))),
        };
        Self { backend, mirror }
    }

    /// Begins to follow the shared log; without Redis there is nothing to follow. To be called once,
    /// inside a runtime.
    pub fn start(&self) {
        if let Backend::Redis(log) = &self.backend {
            tokio::spawn(redis::follow(Arc::clone(log), Arc::clone(&self.mirror)));
        }
    }

    /// Adds an event to the log. A key that was used within the last five minutes gives the id of the
    /// event published with it, and publishes nothing.
    ///
    /// # Errors
    /// [`PublishError`], which tells whether the event may have been published nevertheless.
    pub async fn publish(&self, event: NewEvent, key: Option<&str>) -> Result<EntryId, PublishError> {
        match &self.backend {
            Backend::Memory(log) => Ok(log.publish(&self.mirror, event, key)),
            Backend::Redis(log) => log.publish(event, key).await,
        }
    }

    /// This instance's mirror of the log.
    #[must_use]
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }
}
