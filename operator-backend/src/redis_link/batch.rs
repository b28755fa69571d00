//! A socket that gathers what several requests write and sends it as one.
//!
//! The pipeline's task is woken by the first command and would send it alone: one system call and one
//! wake-up of Redis for each command, the dearest part of it. So a flush first lets every task that is ready
//! run, and then writes what all of them have added. With a single request nothing else is ready and
//! nothing waits.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What may be gathered before a write must wait for the socket, bytes: some 500 commands.
const MOST_GATHERED: usize = 64 * 1024;

pub(super) struct Batched<S> {
    socket: S,
    gathered: BytesMut,
    others_had_their_turn: bool,
}

impl<S> Batched<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, gathered: BytesMut::new(), others_had_their_turn: false }
    }
}

impl<S: AsyncWrite + Unpin> Batched<S> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gathered.has_remaining() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(context, &self.gathered))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(sent);
        }
        self.others_had_their_turn = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= MOST_GATHERED {
            ready!(self.poll_send(context))?;
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Pin::new(&mut self.socket).poll_flush(context);
        }
        if !self.others_had_their_turn {
            // A task that wakes itself goes to the back of the queue.
            self.others_had_their_turn = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Counts writes.
    struct Counting(tokio::io::DuplexStream, usize);

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    #[tokio::test]
    async fn many_writes_become_one_and_arrive_whole() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut socket = Batched::new(Counting(near, 0));
        for part in ["one ", "two ", "three"] {
            socket.write_all(part.as_bytes()).await.unwrap();
        }
        assert_eq!(socket.socket.1, 0);
        socket.flush().await.unwrap();
        assert_eq!(socket.socket.1, 1);
        let mut text = [0; 13];
        far.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"one two three");
    }

    #[tokio::test]
    async fn more_than_the_room_arrives_whole_too() {
        let (near, mut far) = tokio::io::duplex(1000);
        let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            let mut socket = Batched::new(near);
            for part in sent.chunks(777) {
                socket.write_all(part).await.unwrap();
            }
            socket.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        writer.await.unwrap();
        assert!(received == expected);
    }
}
