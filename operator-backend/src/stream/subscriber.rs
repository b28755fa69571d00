//! One stream: a bounded queue between the hub and the connection that writes it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// Frames that may wait for a client that does not read.
const MOST_FRAMES: usize = 1024;
/// Bytes that may wait; with the socket's own buffer a slow client stays far below 256 KiB.
const MOST_BYTES: usize = 64 * 1024;

/// The hub's end.
pub(super) struct Sender {
    frames: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

/// The connection's end: the body of the answer. Calls `ended` once when it is dropped.
pub(super) struct StreamBody<F: FnOnce()> {
    frames: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
    ended: Option<F>,
}

/// The client does not read as fast as it is written to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooSlow;

/// A stream that begins with `first`; it ends, after what is queued, when the sender is dropped.
pub(super) fn channel<F: FnOnce()>(first: Bytes, ended: F) -> (Sender, StreamBody<F>) {
    let (sender, frames) = mpsc::channel(MOST_FRAMES);
    let waiting = Arc::new(AtomicUsize::new(0));
    let sender = Sender {
        frames: sender,
        waiting: Arc::clone(&waiting),
    };
    // A replay may be larger than what may wait later on: it is the answer to this one request.
    sender.put(first);
    (
        sender,
        StreamBody {
            frames,
            waiting,
            ended: Some(ended),
        },
    )
}

impl Sender {
    /// Queues bytes.
    ///
    /// # Errors
    /// [`TooSlow`] when too much waits already; the stream is to be cut then.
    pub(super) fn send(&self, bytes: Bytes) -> Result<(), TooSlow> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting > 0 && waiting + bytes.len() > MOST_BYTES {
            return Err(TooSlow);
        }
        if self.put(bytes) { Ok(()) } else { Err(TooSlow) }
    }

    fn put(&self, bytes: Bytes) -> bool {
        self.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        // A closed channel is a client that has gone: its body tells the hub by itself.
        !matches!(
            self.frames.try_send(bytes),
            Err(mpsc::error::TrySendError::Full(_))
        )
    }
}

impl<F: FnOnce() + Unpin> Body for StreamBody<F> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.frames.poll_recv(context).map(|bytes| {
            let bytes = bytes?;
            self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
            Some(Ok(Frame::data(bytes)))
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl<F: FnOnce()> Drop for StreamBody<F> {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn a_client_that_does_not_read_is_too_slow_before_it_costs_much() {
        let (sender, _body) = channel(Bytes::new(), || ());
        let frame = Bytes::from(vec![b'x'; 1024]);
        let taken = (0..).take_while(|_| sender.send(frame.clone()).is_ok()).count();
        assert_eq!(taken, MOST_BYTES / 1024);
    }

    #[tokio::test]
    async fn what_is_queued_is_delivered_before_the_end() {
        let (sender, mut body) = channel(Bytes::from_static(b"a"), || ());
        sender.send(Bytes::from_static(b"b")).unwrap();
        drop(sender);
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            text.extend_from_slice(frame.unwrap().data_ref().unwrap());
        }
        assert_eq!(text, b"ab");
    }
}
