//! How long a connection of the HTTP server may keep it waiting: for the rest of a request head that has begun, for
//! the next request, for a client that reads. The server itself knows one time for the first two together and
//! none over HTTP/2.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

use super::frames::{Frames, Progress};

/// How long the head of a request may take to arrive, once it has begun; the first one of a connection from its
/// beginning.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may be idle between requests; longer than the pools of common proxies keep one
/// without using it, so that it is they who close.
const IDLE: Duration = Duration::from_secs(90);

/// Why a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Nobody has asked for anything for a long time.
    Idle,
    /// A head that has begun does not end, or nobody reads the answers.
    Hopeless,
}

/// The patience with one connection.
pub(super) struct Patience(Mutex<State>);

struct State {
    /// `None` for HTTP/1.
    frames: Option<Frames>,
    /// Requests that are being answered, and those of them whose client does not read.
    answering: usize,
    given_up: usize,
    /// When the last of them ended.
    idle_since: Instant,
    /// When a head began of which the rest is still to come.
    begun: Option<Instant>,
    waker: Option<Waker>,
}

impl Patience {
    /// Patience with a connection of which these bytes have been read.
    pub(super) fn new(read: &[u8], frames: Option<Frames>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State::new(read, frames, Instant::now()))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what was read from the connection.
    pub(super) fn read(&self, bytes: &[u8]) {
        self.lock().read(bytes, Instant::now());
    }

    /// A whole head has arrived. Its request counts until what is returned is dropped.
    pub(super) fn answer(self: &Arc<Self>) -> Arc<Answering> {
        self.lock().answer();
        Arc::new(Answering { patience: Arc::clone(self), given_up: AtomicBool::new(false) })
    }

    /// Resolves when the connection is to end. Whoever awaits this polls the connection first each time: what that
    /// changes wakes nobody.
    pub(super) async fn overdue(&self) -> Overdue {
        let mut timer = std::pin::pin!(sleep_until(Instant::now() + HEAD_DEADLINE));
        std::future::poll_fn(|context| {
            loop {
                let now = Instant::now();
                let look = {
                    let mut state = self.lock();
                    state.waker.clone_from(&Some(context.waker().clone()));
                    match state.look(now) {
                        Ok(look) => look,
                        Err(overdue) => return Poll::Ready(overdue),
                    }
                };
                // A look too early is none too many; so the timer is set once in a while and not for each request.
                if look < timer.deadline() || timer.deadline() <= now {
                    timer.as_mut().reset(look);
                }
                if timer.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl State {
    fn new(read: &[u8], frames: Option<Frames>, now: Instant) -> Self {
        let mut state = Self { frames, answering: 0, given_up: 0, idle_since: now, begun: None, waker: None };
        state.read(read, now);
        state
    }

    fn read(&mut self, bytes: &[u8], now: Instant) {
        let Progress { is_amid, has_ended_one } = match &mut self.frames {
            Some(frames) => frames.read(bytes),
            // What comes while a request is answered is its body, or waits for the answer.
            None => Progress { is_amid: !bytes.is_empty() && self.answering == 0, has_ended_one: false },
        };
        self.begun = match self.begun {
            Some(begun) if is_amid && !has_ended_one => Some(begun),
            _ => is_amid.then_some(now),
        };
    }

    fn answer(&mut self) {
        self.answering += 1;
        if self.frames.is_none() {
            self.begun = None;
        }
    }

    fn answered(&mut self, given_up: bool, now: Instant) {
        self.answering -= 1;
        self.given_up -= usize::from(given_up);
        self.idle_since = now;
    }

    /// When to look again, or what the connection is to end for.
    fn look(&self, now: Instant) -> Result<Instant, Overdue> {
        if self.answering > 0 && self.given_up == self.answering {
            return Err(Overdue::Hopeless);
        }
        let (due, overdue) = match self.begun {
            Some(begun) => (begun + HEAD_DEADLINE, Overdue::Hopeless),
            None if self.answering == 0 => (self.idle_since + IDLE, Overdue::Idle),
            None => return Ok(now + IDLE),
        };
        if due <= now { Err(overdue) } else { Ok(due) }
    }
}

/// A request that is being answered.
pub(super) struct Answering {
    patience: Arc<Patience>,
    given_up: AtomicBool,
}

impl Answering {
    /// Its client does not read: if none on the connection does, the connection ends.
    pub(super) fn give_up(&self) {
        if !self.given_up.swap(true, Ordering::SeqCst) {
            let mut state = self.patience.lock();
            state.given_up += 1;
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let given_up = *self.given_up.get_mut();
        self.patience.lock().answered(given_up, Instant::now());
    }
}

/// The body of an answer; with its end the request has been answered.
pub(super) struct Answer {
    pub(super) body: Body,
    pub(super) _answering: Arc<Answering>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_head_has_its_time_from_its_first_byte_on_however_its_bytes_come() {
        let start = Instant::now();
        let mut state = State::new(b"", None, start);
        state.answer();
        state.answered(false, start);
        let begun = start + 80 * SECOND;
        assert_eq!(state.look(begun), Ok(start + IDLE), "idle");
        for second in 0..10 {
            state.read(b"x", begun + second * SECOND);
            assert_eq!(state.look(begun + second * SECOND), Ok(begun + HEAD_DEADLINE));
        }
        assert_eq!(state.look(begun + HEAD_DEADLINE), Err(Overdue::Hopeless));
        state.answer();
        assert!(state.look(begun + HEAD_DEADLINE).is_ok(), "it has arrived");
    }

    #[test]
    fn what_comes_while_a_request_is_answered_is_no_head() {
        let start = Instant::now();
        let mut state = State::new(b"GET / HTTP/1.1", None, start);
        state.answer();
        state.read(b"body", start);
        assert!(state.look(start + 3600 * SECOND).is_ok());
        state.answered(false, start + 3600 * SECOND);
        assert_eq!(state.look(start + 3689 * SECOND), Ok(start + 3690 * SECOND));
        assert_eq!(state.look(start + 3690 * SECOND), Err(Overdue::Idle));
    }

    #[test]
    fn over_http2_a_frame_has_its_time_whatever_else_goes_on() {
        let start = Instant::now();
        let mut state = State::new(b"", Some(Frames::default()), start);
        state.answer();
        assert!(state.look(start + 3600 * SECOND).is_ok());
        // A whole frame of settings, and one byte of the next.
        state.read(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0], start);
        assert_eq!(state.look(start + 9 * SECOND), Ok(start + HEAD_DEADLINE));
        assert_eq!(state.look(start + HEAD_DEADLINE), Err(Overdue::Hopeless));
        state.read(&[0, 0, 4, 0, 0, 0, 0, 0], start + 9 * SECOND);
        assert!(state.look(start + HEAD_DEADLINE).is_ok(), "it has arrived");
    }

    #[test]
    fn a_connection_of_which_nobody_reads_ends_at_once() {
        let patience = Patience::new(b"", Some(Frames::default()));
        let now = Instant::now();
        let (first, second) = (patience.answer(), patience.answer());
        first.give_up();
        first.give_up();
        assert!(patience.lock().look(now).is_ok(), "the second one reads");
        drop(first);
        assert!(patience.lock().look(now).is_ok());
        second.give_up();
        assert_eq!(patience.lock().look(now), Err(Overdue::Hopeless));
    }
}
