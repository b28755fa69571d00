//! Streams that the HTTP server carries: those on reused connections and over HTTP/2. The same feed, the same
//! bytes and the same endings as in a shard, at the price of a task and the server's buffers for each.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::Frame;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    feed::{Feed, Step},
    group::Group,
    quota::Permit,
    shard::{Common, SLOW_DEADLINE},
    wire,
};
use crate::identity::Principals;

/// How and when a stream is to end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Never,
    /// Closed on purpose, at this time.
    Drain(Instant),
    /// Its principal is not configured any more.
    Revoked,
}

/// The open streams by number: what each belongs to, and the way to end it.
type Open = HashMap<u64, (Arc<Group>, watch::Sender<Ending>)>;

/// The streams in the lane.
#[derive(Default)]
pub(super) struct Lane {
    streams: Mutex<Open>,
    next: AtomicU64,
    draining: AtomicBool,
}

impl Lane {
    /// The body of a new stream.
    pub(super) fn open(
        self: &Arc<Self>,
        common: Arc<Common>,
        group: Arc<Group>,
        permit: Permit,
        beginning: Bytes,
        feed: Feed,
    ) -> Body {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ending = watch::Sender::new(Ending::Never);
        let endings = ending.subscribe();
        self.lock().insert(number, (Arc::clone(&group), ending));
        if self.draining.load(Ordering::SeqCst) {
            self.end(number, Ending::Drain(Instant::now()));
        }
        let (sender, receiver) = mpsc::channel(1);
        let stream = Stream { common, group, feed, sender, endings };
        let lane = Arc::clone(self);
        tokio::spawn(async move {
            stream.run(beginning).await;
            lane.lock().remove(&number);
            drop(permit);
        });
        Body::new(Received(receiver))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, number: u64, ending: Ending) {
        if let Some((_, endings)) = self.lock().get(&number) {
            endings.send_replace(ending);
        }
    }

    pub(super) fn streams(&self) -> usize {
        self.lock().len()
    }

    /// Closes all streams over the window, and those that come at once.
    pub(super) fn drain(&self, window: Duration) {
        self.draining.store(true, Ordering::SeqCst);
        self.shed(usize::MAX, window);
    }

    /// Closes up to `count` streams evenly over the window.
    pub(super) fn shed(&self, count: usize, window: Duration) {
        let streams = self.lock();
        let count = u32::try_from(count.min(streams.len())).unwrap_or(u32::MAX);
        let now = Instant::now();
        for (number, (_, endings)) in (1..=count).zip(streams.values()) {
            endings.send_replace(Ending::Drain(now + window.mul_f64(f64::from(number) / f64::from(count))));
        }
    }

    pub(super) fn cancel_drain(&self) {
        self.draining.store(false, Ordering::SeqCst);
        for (_, endings) in self.lock().values() {
            endings.send_if_modified(|ending| {
                let drains = matches!(ending, Ending::Drain(_));
                if drains {
                    *ending = Ending::Never;
                }
                drains
            });
        }
    }

    pub(super) fn keep(&self, principals: &Principals) {
        for (group, endings) in self.lock().values() {
            if principals.named(group.principal.name()).is_none() {
                endings.send_replace(Ending::Revoked);
            }
        }
    }
}

struct Stream {
    common: Arc<Common>,
    group: Arc<Group>,
    feed: Feed,
    sender: mpsc::Sender<Bytes>,
    endings: watch::Receiver<Ending>,
}

impl Stream {
    async fn run(mut self, beginning: Bytes) {
        let interval = self.common.heartbeat;
        let mut beat = Instant::now() + interval.mul_f64(rand::random_range(0.0..1.0));
        let mut changes = self.common.mirror.subscribe();
        if !self.send(beginning).await {
            return;
        }
        loop {
            changes.mark_unchanged();
            let (limit, place) = self.common.mirror.end();
            let place = match self.feed.step(&self.group, &self.common.mirror, limit, &self.common.metrics) {
                Step::Send(bytes) => {
                    if !self.send(bytes).await {
                        return;
                    }
                    continue;
                }
                Step::Reached => place,
                Step::Wait => None,
            };
            let until = *self.endings.borrow_and_update();
            let end = match until {
                Ending::Revoked => {
                    self.send(wire::error("principal_removed")).await;
                    return;
                }
                Ending::Drain(moment) => Some(moment),
                Ending::Never => None,
            };
            tokio::select! {
                alive = changes.changed() => if alive.is_err() { return },
                alive = self.endings.changed() => if alive.is_err() { return },
                () = self.sender.closed() => return,
                () = sleep_until(end.unwrap_or(beat)), if end.is_some_and(|end| end <= beat) => {
                    self.common.metrics.drain_closed.inc();
                    self.send(wire::drain(wire::jittered(self.common.retry, 0.5, 1.5))).await;
                    return;
                }
                () = sleep_until(beat) => {
                    beat += interval;
                    if !self.send(self.group.heartbeat(place)).await {
                        return;
                    }
                }
            }
        }
    }

    /// `false` when the client has gone, or does not read.
    async fn send(&self, bytes: Bytes) -> bool {
        if let Ok(outcome) = timeout(SLOW_DEADLINE, self.sender.send(bytes)).await {
            return outcome.is_ok();
        }
        self.common.metrics.slow_clients_cut.inc();
        false
    }
}

/// What the task sends, as a body.
struct Received(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
