//! One stream of a shard: its socket, and what it is still to be sent while it does not simply keep up.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use mio::net::TcpStream;

use super::{
    super::{
        feed::{Feed, Step},
        group::Group,
        quota::Permit,
        wheel::Seat,
    },
    Common, LAST_WORD, SLOW_DEADLINE,
};

/// Chunks that one stream is sent in a row before it is another's turn.
const STEPS_IN_A_ROW: usize = 4;
/// Bytes that a client may send on a stream, which nobody asked it to.
const MOST_INPUT: u32 = 64 * 1024;
pub(super) const NOWHERE: u32 = u32::MAX;

pub(super) struct Connection {
    pub(super) socket: TcpStream,
    pub(super) group: Arc<Group>,
    /// Place in the group's list of those that keep up.
    pub(super) place: u32,
    pub(super) seat: Seat,
    /// `None` for one that keeps up.
    pub(super) behind: Option<Box<Behind>>,
    input: u32,
    _permit: Permit,
}

/// What is left to say to a stream that does not keep up.
pub(super) struct Behind {
    pub(super) queue: Queue,
    /// What was begun and must be ended before anything else: the socket may be in the middle of an event.
    unsent: Bytes,
    then: Then,
    /// When its socket was first too full and since then never empty enough: until when it must catch up.
    deadline: Option<Instant>,
}

/// What a stream behind waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Its turn.
    Ready,
    /// Room in its socket.
    Full,
    /// A change of the mirror.
    Mirror,
}

/// What follows on what is unsent.
enum Then {
    ReadOn(Feed),
    Close,
}

/// What became of a turn.
pub(super) enum Outcome {
    /// It keeps up from now on.
    KeepsUp,
    /// It waits for this.
    Waits(Queue),
    /// It is over: everything was said, or nobody listens.
    Over,
}

impl Connection {
    /// A stream that has not been told its beginning yet.
    pub(super) fn new(
        socket: TcpStream,
        group: Arc<Group>,
        permit: Permit,
        beginning: Bytes,
        feed: Feed,
    ) -> Self {
        let behind =
            Behind { queue: Queue::Ready, unsent: beginning, then: Then::ReadOn(feed), deadline: None };
        let (seat, behind) = (Seat::default(), Some(Box::new(behind)));
        Self { socket, group, place: NOWHERE, seat, behind, input: 0, _permit: permit }
    }

    /// What it waits for; `None` for one that keeps up.
    pub(super) fn queue(&self) -> Option<Queue> {
        self.behind.as_ref().map(|behind| behind.queue)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.behind.as_ref().is_some_and(|behind| matches!(behind.then, Then::Close))
    }

    /// Whether it should have caught up by now.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.behind.as_ref().and_then(|behind| behind.deadline).is_some_and(|deadline| deadline <= now)
    }

    /// Notes that a write left `unsent` over (or that it reads on by itself, if that is empty).
    pub(super) fn fall_behind(&mut self, unsent: Bytes, feed: Feed) -> Queue {
        let (queue, deadline) = if unsent.is_empty() {
            (Queue::Ready, None)
        } else {
            (Queue::Full, Some(Instant::now() + SLOW_DEADLINE))
        };
        self.behind = Some(Box::new(Behind { queue, unsent, then: Then::ReadOn(feed), deadline }));
        queue
    }

    /// Sends up to a few chunks of what it is behind by; each takes one from `steps`. No stream goes beyond the
    /// position `limit`, which those that keep up have reached.
    pub(super) fn catch_up(&mut self, common: &Common, limit: u64, steps: &mut usize) -> Outcome {
        let Some(behind) = &mut self.behind else { return Outcome::KeepsUp };
        for _ in 0..STEPS_IN_A_ROW {
            if *steps == 0 {
                break;
            }
            *steps -= 1;
            match write(&self.socket, &behind.unsent) {
                Ok(written) if written == behind.unsent.len() => behind.unsent = Bytes::new(),
                Ok(written) => {
                    behind.unsent = behind.unsent.slice(written..);
                    behind.deadline.get_or_insert_with(|| Instant::now() + SLOW_DEADLINE);
                    return Outcome::Waits(Queue::Full);
                }
                Err(_) => return Outcome::Over,
            }
            let Then::ReadOn(feed) = &mut behind.then else {
                return Outcome::Over;
            };
            match feed.step(&self.group, &common.mirror, limit, &common.metrics) {
                Step::Send(bytes) => behind.unsent = bytes,
                Step::Reached => return Outcome::KeepsUp,
                Step::Wait => {
                    behind.deadline = None;
                    return Outcome::Waits(Queue::Mirror);
                }
            }
        }
        Outcome::Waits(Queue::Ready)
    }

    /// Where a stream that may be told something in between reads on: one that keeps up does so at `next`, one
    /// that waits for the mirror where it was. The others hear that the line is alive anyway, or hear nothing.
    pub(super) fn is_quiet(&self, next: u64) -> Option<Feed> {
        match self.behind.as_deref() {
            None => Some(Feed::At(next)),
            Some(Behind { queue: Queue::Mirror, then: Then::ReadOn(feed), .. }) => Some(*feed),
            Some(_) => None,
        }
    }

    /// Says something in between, to a stream that reads on at `feed`.
    pub(super) fn say(&mut self, text: &Bytes, feed: Feed) -> Outcome {
        match write(&self.socket, text) {
            Ok(written) if written == text.len() => self.queue().map_or(Outcome::KeepsUp, Outcome::Waits),
            Ok(written) => Outcome::Waits(self.fall_behind(text.slice(written..), feed)),
            Err(_) => Outcome::Over,
        }
    }

    /// Says the last word, behind what was begun, and closes; later, and for a moment only, if the socket is too
    /// full now.
    pub(super) fn close(&mut self, last: &Bytes, now: Instant) -> Outcome {
        let mut unsent = self.behind.take().map(|behind| behind.unsent).unwrap_or_default();
        unsent = if unsent.is_empty() { last.clone() } else { [&*unsent, &**last].concat().into() };
        match write(&self.socket, &unsent) {
            Ok(written) if written < unsent.len() => {
                unsent = unsent.slice(written..);
                let deadline = Some(now + LAST_WORD);
                let behind = Behind { queue: Queue::Full, unsent, then: Then::Close, deadline };
                self.behind = Some(Box::new(behind));
                Outcome::Waits(Queue::Full)
            }
            _ => Outcome::Over,
        }
    }

    /// Reads what the client sends, which means nothing; whether it is still there.
    pub(super) fn is_there(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(read @ 1..) => {
                    self.input = self.input.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
                    if self.input > MOST_INPUT {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return false,
            }
        }
    }

    /// Tells the client that nothing follows; what it was sent before still reaches it.
    pub(super) fn end(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

/// Writes until everything is written or the socket is full; how much that was. Only a full socket tells when it
/// has room again, so a short write is tried once more.
pub(super) fn write(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match (&mut &*socket).write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
