//! The stream engine: carries every open stream of this instance.
//!
//! A request for a stream that comes first on a plaintext HTTP/1 connection leaves the HTTP server behind:
//! `listener` parses its head, `admission` decides about it, and its socket moves to one of the `shard`s. All
//! other streams run through the server, in the `lane`. Both read the same [`Mirror`](crate::events::Mirror)
//! through the same `feed`, so they say the same. The protocol is in `docs/protocol.md`.

mod admission;
pub mod cursor;
mod feed;
pub mod filter;
mod frames;
mod group;
pub mod head;
mod lane;
mod listener;
mod pace;
mod patience;
mod quota;
mod shard;
mod socket;
mod wheel;
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    http::{StatusCode, request::Parts},
    response::Response,
};
use bytes::Bytes;

pub use self::listener::{Port, serve};
use self::{
    admission::{Admitted, Door, stream_headers},
    feed::Feed,
    group::{Groups, Signer},
    lane::Lane,
    patience::Answering,
    quota::{Permit, Quota},
    shard::{Command, Common, Handle, Join},
};
use crate::{
    auth::Authenticator, config::Config, correlation::CorrelationId, cors::AllowedOrigins, events::EventLog,
    metrics::Metrics,
};

/// Handle to the engine; clones share it. Its threads end with the last one.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    door: Door,
    common: Arc<Common>,
    shards: Vec<Handle>,
    next_shard: AtomicUsize,
    lane: Arc<Lane>,
    origins: AllowedOrigins,
    drained: tokio::sync::Notify,
}

impl Engine {
    /// Starts the shards, one for each worker thread, and begins to follow the log. To be called inside a
    /// runtime.
    ///
    /// # Panics
    /// When the system gives no thread or no descriptor to wait with: nothing can be served then.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "a handle among handles")]
    pub fn start(
        config: &Config,
        authenticator: Authenticator,
        events: EventLog,
        metrics: Arc<Metrics>,
    ) -> Self {
        let keys = authenticator.identities().keys().clone();
        let mut principals = authenticator.identities().subscribe();
        let common = Arc::new(Common {
            mirror: Arc::clone(events.mirror()),
            metrics: Arc::clone(&metrics),
            heartbeat: config.stream.heartbeat(),
            retry: config.stream.retry_milliseconds,
        });
        let count = match config.worker_threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        };
        #[expect(clippy::expect_used, reason = "documented: without a shard there is nothing to serve")]
        let shards: Vec<Handle> = (0..count)
            .map(|number| Handle::start(number, Arc::clone(&common)).expect("a thread and a poll descriptor"))
            .collect();
        for shard in &shards {
            events.mirror().on_change(shard.alarm());
        }
        let door = Door {
            authenticator,
            quota: Arc::new(Quota::new(&config.limits, metrics.streams_open.clone())),
            groups: Groups::new(Signer { keys, window: config.stream.resume_window_seconds }),
            proxies: config.auth.trusted_proxies.clone(),
            metrics,
            retry: config.stream.retry_milliseconds,
            draining: AtomicBool::new(false),
        };
        let engine = Self(Arc::new(Inner {
            door,
            common,
            shards,
            next_shard: AtomicUsize::new(0),
            lane: Arc::default(),
            origins: config.auth.allowed_origins.clone(),
            drained: tokio::sync::Notify::new(),
        }));
        events.start();
        let weak = Arc::downgrade(&engine.0);
        tokio::spawn(async move {
            while principals.changed().await.is_ok() {
                let now = Arc::clone(&principals.borrow_and_update());
                let Some(engine) = weak.upgrade() else { return };
                engine.lane.keep(&now);
                for shard in &engine.shards {
                    shard.send(Command::Keep(Arc::clone(&now)));
                }
            }
        });
        engine
    }

    /// Number of open streams.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.0.door.quota.open()
    }

    /// Refuses new streams from now on.
    pub fn refuse_streams(&self) {
        self.0.door.draining.store(true, Ordering::SeqCst);
        self.0.drained.notify_waiters();
    }

    /// Refuses new streams from now on, and closes the open ones evenly over the window.
    pub fn begin_drain(&self, window: Duration) {
        self.refuse_streams();
        self.0.lane.drain(window);
        for shard in &self.0.shards {
            shard.send(Command::Drain(window));
        }
    }

    /// Takes streams again; those that are still open stay.
    pub fn cancel_drain(&self) {
        self.0.door.draining.store(false, Ordering::SeqCst);
        self.0.lane.cancel_drain();
        for shard in &self.0.shards {
            shard.send(Command::CancelDrain);
        }
    }

    /// Closes about `count` streams evenly over the window, each with a `drain` event: they come back through
    /// the load balancer, to other instances too. New streams are taken meanwhile.
    pub fn shed(&self, count: usize, window: Duration) {
        let total = self.streams();
        if total == 0 {
            return;
        }
        let share = |streams: usize| (count.min(total) * streams).div_ceil(total);
        self.0.lane.shed(share(self.0.lane.streams()), window);
        for shard in &self.0.shards {
            shard.send(Command::Shed(share(shard.streams()), window));
        }
    }

    /// Resolves when the engine drains and no stream is open.
    pub async fn drained(&self) {
        loop {
            // Registered before the look, so that no change between the two is missed.
            let (mut began, mut emptied) = (
                std::pin::pin!(self.0.drained.notified()),
                std::pin::pin!(self.0.door.quota.empty.notified()),
            );
            began.as_mut().enable();
            emptied.as_mut().enable();
            if self.0.door.draining.load(Ordering::SeqCst) && self.streams() == 0 {
                return;
            }
            tokio::select! {
                () = began => {}
                () = emptied => {}
            }
        }
    }

    /// The answer to a stream request that the HTTP server carries.
    pub async fn respond(&self, parts: Parts) -> Response {
        let admitted = match self.0.door.admit(&parts).await {
            Ok(admitted) => admitted,
            Err(refusal) => return refusal,
        };
        let correlation = parts.extensions.get::<CorrelationId>().cloned();
        let correlation = correlation.unwrap_or_else(|| CorrelationId::of(&parts.headers));
        let (group, permit, beginning, feed) = self.begin(admitted, Vec::new(), correlation.as_str());
        let common = Arc::clone(&self.0.common);
        let answering = parts.extensions.get::<Arc<Answering>>().cloned();
        let mut response = Response::new(self.0.lane.open(common, group, permit, beginning, feed, answering));
        stream_headers(response.headers_mut());
        response
    }

    async fn admit(&self, parts: &Parts) -> Result<Admitted, Response> {
        self.0.door.admit(parts).await
    }

    fn origins(&self) -> &AllowedOrigins {
        &self.0.origins
    }

    fn count_error(&self, status: StatusCode) {
        if status.is_client_error() || status.is_server_error() {
            self.0.door.metrics.error_answered(status.as_u16());
        }
    }

    /// Moves a socket into a shard, where its stream begins with `head`.
    async fn join(&self, socket: std::net::TcpStream, admitted: Admitted, head: Vec<u8>, correlation: &str) {
        let (group, permit, beginning, feed) = self.begin(admitted, head, correlation);
        let turn = self.0.next_shard.fetch_add(1, Ordering::Relaxed);
        if let Some(shard) = self.0.shards.get(turn % self.0.shards.len().max(1))
            && shard.put(Command::Join(Box::new(Join { socket, group, permit, beginning, feed })))
        {
            // Those that are admitted at the same time come with it, so that the shard wakes once for all of them.
            tokio::task::yield_now().await;
            shard.wake();
        }
    }

    /// Appends the beginning of a stream to `out`; where it goes on.
    fn begin(
        &self,
        admitted: Admitted,
        mut out: Vec<u8>,
        correlation: &str,
    ) -> (Arc<group::Group>, Permit, Bytes, Feed) {
        let Admitted { group, permit, resume } = admitted;
        let begin = group.begin(&self.0.common.mirror);
        let (id_line, feed) = match (resume, begin.place) {
            // Its own cursor stays in force until it has been told what came after it.
            (Some(feed), _) => (Vec::new(), feed),
            (None, Some(place)) => (group.id_line(place), Feed::At(begin.position)),
            (None, None) => (Vec::new(), Feed::AtEnd),
        };
        let retry = wire::jittered(self.0.common.retry, 0.75, 1.25);
        wire::beginning(&mut out, retry, &id_line, &begin.events, correlation);
        (group, permit, out.into(), feed)
    }
}
