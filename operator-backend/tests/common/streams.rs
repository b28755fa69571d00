//! Streams as the tests open and read them, on each of the ways that carry one.

use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{Backend, Client, EventStream, PRINCIPAL_TOKEN};
use std::time::Duration;

pub(crate) const STREAM: &str = "/operator/api/events/stream";
pub(crate) const PUBLISH: &str = "/operator/api/events";
pub(crate) const AUTH: (&str, &str) = ("x-vx11-token", PRINCIPAL_TOKEN);
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Who carries a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The engine: the first request of a connection over HTTP/1.1.
    Engine,
    /// The HTTP server: the second request of its connection.
    Reused,
    /// The HTTP server: over HTTP/2.
    Http2,
}

pub(crate) const CARRIERS: [Carrier; 3] = [Carrier::Engine, Carrier::Reused, Carrier::Http2];

impl Carrier {
    /// A client on a connection of its own, whose next request this one carries.
    pub(crate) async fn client(self, backend: &Backend) -> Client {
        match self {
            Self::Engine => Client::new(backend.port()),
            Self::Reused => {
                let client = Client::new(backend.port());
                assert_eq!(client.get("/health", &[]).await.status, 200);
                client
            }
            Self::Http2 => Client::http2(backend.port()),
        }
    }

    pub(crate) async fn open(self, backend: &Backend, path: &str, headers: &[(&str, &str)]) -> EventStream {
        self.client(backend).await.stream(path, headers).await
    }

    /// A stream that has begun.
    pub(crate) async fn begun(self, backend: &Backend) -> EventStream {
        let mut stream = self.open(backend, STREAM, &[AUTH]).await;
        stream.until("event: snapshot", SOON).await;
        stream
    }
}

pub(crate) async fn publish(backend: &Backend, data: &str) {
    let answer = backend.post(PUBLISH, &[AUTH], format!(r#"{{"data":{data}}}"#)).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
}

/// The `id:` of an event.
pub(crate) fn id(block: &str) -> String {
    let line = block.lines().find_map(|line| line.strip_prefix("id: "));
    line.unwrap_or_else(|| panic!("no id in {block}")).to_owned()
}

/// The data of an event.
pub(crate) fn data(block: &str) -> &str {
    block.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_else(|| panic!("no data in {block}"))
}

/// A socket on which a stream was asked for, with a receive buffer that is soon full.
pub(crate) async fn raw(port: u16, receive_buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(size) = receive_buffer {
        socket.set_recv_buffer_size(size).unwrap();
    }
    let mut socket = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let request = format!("GET {STREAM} HTTP/1.1\r\nHost: x\r\nX-VX11-Token: {PRINCIPAL_TOKEN}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// Number of open streams, as the backend counts them.
pub(crate) async fn open_streams(backend: &Backend) -> usize {
    let text = backend.admin().get("/load", &[]).await.json()["streams"].as_u64().unwrap();
    usize::try_from(text).unwrap()
}

/// The longest that this process was kept from running while `what` ran: what the machine stalls is not the
/// backend's.
pub(crate) async fn with_stall<T>(what: impl Future<Output = T>) -> (T, Duration) {
    const TICK: Duration = Duration::from_millis(5);
    let mut what = std::pin::pin!(what);
    let mut worst = Duration::ZERO;
    loop {
        let begun = std::time::Instant::now();
        match timeout(TICK, what.as_mut()).await {
            Ok(outcome) => return (outcome, worst),
            Err(_) => worst = worst.max(begun.elapsed().saturating_sub(TICK)),
        }
    }
}
