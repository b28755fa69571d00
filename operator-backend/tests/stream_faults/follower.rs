//! A client that follows the stream over many connections and writes down what it sees.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use operator_backend::app::STREAM_PATH;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    time::{sleep, timeout},
};

use crate::{PATIENCE, Seeded, TOKEN};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Seen {
    Event(u64),
    Gap,
}

/// How a client comes back.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// Changes the instance every moment, or stays until it is cut off.
    pub(crate) hops: bool,
    /// Asks for something else first, so that the stream runs in the lane.
    pub(crate) reuses_connection: bool,
    /// Shows its cursor alone, as a browser whose token has expired.
    pub(crate) by_cursor_alone: bool,
}

pub(crate) struct Follower {
    pub(crate) manner: Manner,
    pub(crate) instances: watch::Receiver<Vec<SocketAddr>>,
    pub(crate) seed: Seeded,
    /// Told when it has its first cursor.
    pub(crate) begun: Option<oneshot::Sender<()>>,
    /// The last event there will be.
    pub(crate) end: Arc<AtomicU64>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) last_id: Option<String>,
}

impl Follower {
    /// Follows until the end has been seen.
    pub(crate) async fn run(mut self) -> Vec<Seen> {
        loop {
            let address = {
                let addresses = self.instances.borrow().clone();
                addresses[usize::try_from(self.seed.below(addresses.len() as u64)).unwrap()]
            };
            let stay =
                if self.manner.hops { Duration::from_millis(20 + self.seed.below(200)) } else { PATIENCE };
            let _ = timeout(stay, self.connect(address)).await;
            if self.is_at_the_end() {
                return self.seen;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn is_at_the_end(&self) -> bool {
        self.seen.contains(&Seen::Event(self.end.load(Ordering::SeqCst)))
    }

    async fn connect(&mut self, address: SocketAddr) -> Option<()> {
        let mut socket = TcpStream::connect(address).await.ok()?;
        if self.manner.reuses_connection {
            socket.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.ok()?;
            let mut text = String::new();
            while !text.ends_with('}') {
                read(&mut socket, &mut text).await?;
            }
        }
        let token = match &self.last_id {
            Some(_) if self.manner.by_cursor_alone => String::new(),
            _ => format!("X-VX11-Token: {TOKEN}\r\n"),
        };
        let id = self.last_id.as_ref().map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!("GET {STREAM_PATH} HTTP/1.1\r\nHost: x\r\n{token}{id}\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;

        let mut raw = String::new();
        while !raw.contains("\r\n\r\n") {
            read(&mut socket, &mut raw).await?;
        }
        let (head, rest) = raw.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let (mut raw, mut text) = (rest.to_owned(), String::new());
        loop {
            if is_chunked {
                unchunk(&mut raw, &mut text);
            } else {
                text.push_str(&std::mem::take(&mut raw));
            }
            while let Some((block, rest)) = text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.note(&block);
                text = rest;
            }
            if self.is_at_the_end() {
                return Some(());
            }
            read(&mut socket, &mut raw).await?;
        }
    }

    fn note(&mut self, block: &str) {
        let (mut name, mut data) = ("message", "");
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("event", value)) => name = value,
                Some(("data", value)) => data = value,
                Some(("id", value)) => self.last_id = Some(value.to_owned()),
                _ => {}
            }
        }
        match name {
            "gap" => self.seen.push(Seen::Gap),
            "message" if !data.is_empty() => self.seen.push(Seen::Event(data.parse().unwrap())),
            "snapshot" if self.last_id.is_some() => {
                if let Some(begun) = self.begun.take() {
                    let _ = begun.send(());
                }
            }
            _ => {}
        }
    }
}

async fn read(socket: &mut TcpStream, to: &mut String) -> Option<()> {
    let mut buffer = [0; 8192];
    match socket.read(&mut buffer).await {
        Ok(read @ 1..) => {
            to.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            Some(())
        }
        _ => None,
    }
}

/// Moves every whole chunk of an HTTP/1.1 body.
fn unchunk(raw: &mut String, text: &mut String) {
    while let Some((size, rest)) = raw.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        let Some(chunk) = rest.get(..size).filter(|_| rest.len() >= size + 2) else { return };
        text.push_str(chunk);
        *raw = rest[size + 2..].to_owned();
    }
}
