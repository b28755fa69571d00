//! Streams that the HTTP server carries: those on reused connections and over HTTP/2. The same feed, the same
//! bytes and the same endings as in a shard, at the price of a task and the server's buffers for each.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::Frame;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    feed::{Feed, Step},
    group::Group,
    patience::Answering,
    quota::Permit,
    shard::{Common, LAST_WORD, SLOW_DEADLINE},
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

/// The streams in the lane.
#[derive(Default)]
pub(super) struct Lane {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By number: what each belongs to, and the way to end it.
    streams: HashMap<u64, (Arc<Group>, watch::Sender<Ending>)>,
    next: u64,
    draining: bool,
    /// The principals that are left, as soon as there has been a change.
    kept: Option<Arc<Principals>>,
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
        answering: Option<Arc<Answering>>,
    ) -> Body {
        let (number, endings) = self.lock().insert(Arc::clone(&group));
        let (sender, receiver) = mpsc::channel(1);
        let is_cut = Arc::new(AtomicBool::new(false));
        let body = Received { receiver, is_cut: Arc::clone(&is_cut) };
        let stream = Stream { common, group, feed, sender, behind: None, is_cut, answering };
        let lane = Arc::clone(self);
        tokio::spawn(async move {
            stream.run(beginning, endings).await;
            lane.lock().streams.remove(&number);
            drop(permit);
        });
        Body::new(body)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn streams(&self) -> usize {
        self.lock().streams.len()
    }

    /// Closes all streams over the window, and those that come at once.
    pub(super) fn drain(&self, window: Duration) {
        let mut state = self.lock();
        state.draining = true;
        state.shed(usize::MAX, window);
    }

    /// Closes up to `count` streams evenly over the window.
    pub(super) fn shed(&self, count: usize, window: Duration) {
        self.lock().shed(count, window);
    }

    pub(super) fn cancel_drain(&self) {
        let mut state = self.lock();
        state.draining = false;
        for (_, endings) in state.streams.values() {
            endings.send_if_modified(|ending| {
                let drains = matches!(ending, Ending::Drain(_));
                if drains {
                    *ending = Ending::Never;
                }
                drains
            });
        }
    }

    /// Closes the streams of everybody else, those too that are on their way.
    pub(super) fn keep(&self, principals: &Arc<Principals>) {
        let mut state = self.lock();
        for (group, endings) in state.streams.values() {
            if principals.named(group.principal.name()).is_none() {
                endings.send_replace(Ending::Revoked);
            }
        }
        state.kept = Some(Arc::clone(principals));
    }
}

impl State {
    fn insert(&mut self, group: Arc<Group>) -> (u64, watch::Receiver<Ending>) {
        let is_kept = |kept: &Arc<Principals>| kept.named(group.principal.name()).is_some();
        let ending = if !self.kept.as_ref().is_none_or(is_kept) {
            Ending::Revoked
        } else if self.draining {
            Ending::Drain(Instant::now())
        } else {
            Ending::Never
        };
        let (sender, endings) = watch::channel(ending);
        self.next += 1;
        self.streams.insert(self.next, (group, sender));
        (self.next, endings)
    }

    fn shed(&self, count: usize, window: Duration) {
        let count = u32::try_from(count.min(self.streams.len())).unwrap_or(u32::MAX);
        let now = Instant::now();
        for (number, (_, endings)) in (1..=count).zip(self.streams.values()) {
            endings.send_replace(Ending::Drain(now + window.mul_f64(f64::from(number) / f64::from(count))));
        }
    }
}

struct Stream {
    common: Arc<Common>,
    group: Arc<Group>,
    feed: Feed,
    sender: mpsc::Sender<Bytes>,
    /// Since when the server has taken less than there is.
    behind: Option<Instant>,
    is_cut: Arc<AtomicBool>,
    answering: Option<Arc<Answering>>,
}

impl Stream {
    async fn run(mut self, beginning: Bytes, endings: watch::Receiver<Ending>) {
        let common = Arc::clone(&self.common);
        // Whatever the stream is waiting for when its end comes, it has handed over whole events only.
        let last = tokio::select! {
            biased;
            () = self.follow(beginning) => return,
            last = last_word(&common, endings) => last,
        };
        if timeout(LAST_WORD, self.sender.send(last)).await.is_err() {
            self.give_up();
        }
    }

    /// Sends what there is until the client has gone, or does not read.
    async fn follow(&mut self, beginning: Bytes) {
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
                Step::Send(bytes) if bytes.is_empty() => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Step::Send(bytes) => {
                    if !self.send(bytes).await {
                        return;
                    }
                    continue;
                }
                Step::Reached => place,
                Step::Wait => None,
            };
            self.behind = None;
            tokio::select! {
                alive = changes.changed() => if alive.is_err() { return },
                () = self.sender.closed() => return,
                () = sleep_until(beat) => {
                    beat += interval;
                    if !self.send(self.group.heartbeat(place)).await {
                        return;
                    }
                }
            }
        }
    }

    /// `false` when the client has gone, or has not caught up in time.
    async fn send(&mut self, bytes: Bytes) -> bool {
        let bytes = match self.sender.try_send(bytes) {
            Ok(()) => return true,
            Err(TrySendError::Closed(_)) => return false,
            Err(TrySendError::Full(bytes)) => bytes,
        };
        let since = *self.behind.get_or_insert_with(Instant::now);
        if let Ok(outcome) = timeout_at(since + SLOW_DEADLINE, self.sender.send(bytes)).await {
            return outcome.is_ok();
        }
        self.common.metrics.slow_clients_cut.inc();
        self.give_up();
        false
    }

    /// The client does not read what it was sent: nothing more will reach it.
    fn give_up(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        if let Some(answering) = &self.answering {
            answering.give_up();
        }
    }
}

/// Resolves when a stream is to end, with what it is told then.
async fn last_word(common: &Common, mut endings: watch::Receiver<Ending>) -> Bytes {
    loop {
        let ending = *endings.borrow_and_update();
        let changed = match ending {
            Ending::Revoked => return wire::error("principal_removed"),
            Ending::Drain(moment) => tokio::select! {
                () = sleep_until(moment) => {
                    common.metrics.drain_closed.inc();
                    return wire::drain(wire::jittered(common.retry, 0.5, 1.5));
                }
                changed = endings.changed() => changed,
            },
            Ending::Never => endings.changed().await,
        };
        if changed.is_err() {
            // Its sender lives as long as the stream is listed, which is as long as it runs.
            std::future::pending::<()>().await;
        }
    }
}

/// What the task sends, as a body.
struct Received {
    receiver: mpsc::Receiver<Bytes>,
    is_cut: Arc<AtomicBool>,
}

/// The stream of a client that does not read does not end as if it were complete.
#[derive(Debug, thiserror::Error)]
#[error("the client does not read")]
struct Cut;

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.receiver.poll_recv(context).map(|bytes| match bytes {
            Some(bytes) => Some(Ok(Frame::data(bytes))),
            None => self.is_cut.load(Ordering::SeqCst).then_some(Err(Cut)),
        })
    }
}
