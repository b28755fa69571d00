//! The public port: looks at the first request of each connection, keeps the streams and hands everything
//! else, with the bytes read so far, to the HTTP server.

use std::{
    convert::Infallible,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, unix::AsyncFd},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};

use super::{
    Engine,
    admission::stream_headers,
    frames::Frames,
    head::{self, Head},
    patience::{Answer, HEAD_DEADLINE, Overdue, Patience},
    socket,
};
use crate::{
    answer::ErrorAnswer,
    app::STREAM_PATH,
    correlation::{CORRELATION_HEADER, CorrelationId},
};

/// How long a refused client may take to fetch its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// The public port. A socket that it accepts is not waited for before that is needed: most requests for a stream have
/// come with their connection, and their sockets move on at once.
pub struct Port(AsyncFd<mio::net::TcpListener>);

impl Port {
    /// To be called inside a runtime.
    ///
    /// # Errors
    /// When the system gives no way to wait for it.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        if let Err(error) = socket::prepare(&listener) {
            // Works without, at a higher price for slow and vanished peers.
            tracing::warn!(%error, "public port: cannot set the options of its socket");
        }
        let listener = mio::net::TcpListener::from_std(listener.into_std()?);
        #[expect(unsafe_code, reason = "tokio has no other way to wait for a listener that is not its own")]
        // SAFETY: the listener owns the descriptor that it reports, never reports another, and moves into the AsyncFd,
        // which deregisters it before it drops it.
        let listener = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?;
        Ok(Self(listener))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().local_addr()
    }

    async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        let (socket, peer) = self.0.async_io(Interest::READABLE, mio::net::TcpListener::accept).await?;
        Ok((socket.into(), peer))
    }
}

/// Serves the public port until `shutdown` resolves; then open requests get their answers.
pub async fn serve(port: Port, router: Router, engine: Engine, shutdown: impl Future<Output = ()>) {
    let mut shutdown = pin!(shutdown);
    let (stop, stopped) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            accepted = port.accept() => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((socket, peer)) => {
                let connection = Connection {
                    engine: engine.clone(),
                    router: router.clone(),
                    peer,
                    stopped: stopped.clone(),
                };
                tokio::spawn(connection.serve(socket));
            }
            Err(error) => {
                // Out of descriptors, most likely: the pause lets some come free.
                tracing::warn!(%error, "public port: cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop((port, stopped));
    stop.send_replace(true);
    // Resolves when every connection has dropped its receiver.
    stop.closed().await;
}

/// One that nobody waits for.
type Socket = std::net::TcpStream;

struct Connection {
    engine: Engine,
    router: Router,
    peer: SocketAddr,
    stopped: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(mut self, mut socket: Socket) {
        let mut bytes = Vec::new();
        let mut head = read_some(|buffer| socket.read(buffer), &mut bytes);
        if is_to_come(&head, &bytes) {
            let Ok(waiting) = TcpStream::from_std(socket) else { return };
            let waited = tokio::select! {
                waited = timeout(HEAD_DEADLINE, read_head(&waiting, &mut bytes)) => waited,
                _ = self.stopped.changed() => return,
            };
            let Ok(back) = waiting.into_std() else { return };
            socket = back;
            match waited {
                Ok(waited) => head = waited,
                Err(_) => return self.refuse(socket, StatusCode::REQUEST_TIMEOUT, "request_timeout").await,
            }
        }
        // What no stream needs is on the heap, so that the task of a stream is small.
        match head {
            Ok(Head::Request(parts, length)) => {
                let is_stream = parts.method == Method::GET && parts.uri.path() == STREAM_PATH;
                // More bytes behind the head are another request, which only the server can answer.
                if is_stream && length == bytes.len() {
                    self.stream(socket, *parts).await;
                } else {
                    Box::pin(self.hand_over(socket, bytes)).await;
                }
            }
            Ok(Head::Other) => Box::pin(self.hand_over(socket, bytes)).await,
            Ok(Head::Partial) => {
                self.refuse(socket, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "request_head_too_large")
                    .await;
            }
            Err(_) => {}
        }
    }

    async fn stream(self, socket: Socket, mut parts: Parts) {
        let correlation = CorrelationId::of(&parts.headers);
        parts.extensions.insert(ConnectInfo(self.peer));
        let outcome = self.engine.admit(&parts).await;
        let origins = self.engine.origins();
        let mut response = match &outcome {
            Ok(_) => {
                let mut response = Response::new(Body::empty());
                stream_headers(response.headers_mut());
                response
            }
            Err(_) => Response::new(Body::empty()),
        };
        let admitted = match outcome {
            Ok(admitted) => Some(admitted),
            Err(refusal) => {
                response = refusal;
                None
            }
        };
        origins.mark(origins.allow(&parts.headers), response.headers_mut());
        response.headers_mut().insert(CORRELATION_HEADER, correlation.header().clone());
        tracing::debug!(
            correlation_id = correlation.as_str(),
            route = STREAM_PATH,
            status = response.status().as_u16(),
            "answered"
        );
        match admitted {
            Some(admitted) => {
                let head = render(&response, None);
                self.engine.join(socket, admitted, head, correlation.as_str()).await;
            }
            None => Box::pin(self.answer(socket, response)).await,
        }
    }

    async fn refuse(&self, socket: Socket, status: StatusCode, detail: &'static str) {
        let mut response = ErrorAnswer::new(status, detail).into_response();
        let correlation = CorrelationId::of(&axum::http::HeaderMap::new());
        response.headers_mut().insert(CORRELATION_HEADER, correlation.header().clone());
        Box::pin(self.answer(socket, response)).await;
    }

    /// Writes a whole answer and closes.
    async fn answer(&self, socket: Socket, response: Response) {
        self.engine.count_error(response.status());
        let Ok(mut socket) = TcpStream::from_std(socket) else { return };
        let (parts, body) = response.into_parts();
        let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
            return;
        };
        let mut bytes = render(&Response::from_parts(parts, Body::empty()), Some(body.len()));
        bytes.extend_from_slice(&body);
        let exchange = async {
            socket.write_all(&bytes).await?;
            socket.shutdown().await?;
            // A close with unread input would reset the connection and lose the answer.
            let mut rest = [0; 1024];
            for _ in 0..64 {
                if socket.read(&mut rest).await? == 0 {
                    break;
                }
            }
            Ok::<(), io::Error>(())
        };
        let _ = timeout(ANSWER_DEADLINE, exchange).await;
    }

    async fn hand_over(self, socket: Socket, read: Vec<u8>) {
        let Ok(socket) = TcpStream::from_std(socket) else { return };
        let Self { router, peer, mut stopped, .. } = self;
        let frames = read.strip_prefix(head::PREFACE);
        let patience = Patience::new(frames.unwrap_or(&read), frames.map(|_| Frames::default()));
        let service = {
            let patience = Arc::clone(&patience);
            service_fn(move |mut request: hyper::Request<Incoming>| {
                let answering = patience.answer();
                request.extensions_mut().insert(ConnectInfo(peer));
                request.extensions_mut().insert(Arc::clone(&answering));
                let router = TowerToHyperService::new(router.clone());
                async move {
                    let response = router.call(request.map(Body::new)).await?;
                    Ok::<_, Infallible>(response.map(|body| Answer { body, _answering: answering }))
                }
            })
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .header_read_timeout(None)
            .max_buf_size(head::LARGEST)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(256)
            .max_header_list_size(16 * 1024)
            .keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10));
        let io = TokioIo::new(Rewound { read: read.into(), socket, patience: Arc::clone(&patience) });
        let mut connection = pin!(builder.serve_connection(io, service));
        // The connection comes first: what it does decides how long there is patience with it. A peer that
        // misbehaves or goes away is no event worth a line.
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            overdue = patience.overdue() => match overdue {
                Overdue::Hopeless => return,
                Overdue::Idle => connection.as_mut().graceful_shutdown(),
            },
            _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
        }
        let _ = timeout(ANSWER_DEADLINE, connection).await;
    }
}

/// Whether a head is to be waited for.
fn is_to_come(head: &io::Result<Head>, bytes: &[u8]) -> bool {
    matches!(head, Ok(Head::Partial)) && bytes.len() < head::LARGEST
}

/// Reads until the first request's head is whole, is none, or is too large.
async fn read_head(socket: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<Head> {
    loop {
        socket.readable().await?;
        let head = read_some(|buffer| socket.try_read(buffer), bytes);
        if !is_to_come(&head, bytes) {
            return head;
        }
    }
}

/// Appends what has come, and looks at it. The buffer is on the stack of this call, not in the task: most heads come
/// whole, and what is kept of them is exactly as large.
fn read_some(read: impl FnOnce(&mut [u8]) -> io::Result<usize>, bytes: &mut Vec<u8>) -> io::Result<Head> {
    let mut buffer = [0; 4096];
    match read(&mut buffer) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(read) => bytes.extend_from_slice(buffer.get(..read).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(error),
    }
    Ok(head::parse(bytes))
}

/// The head of an answer, after which the connection closes.
fn render(response: &Response, length: Option<usize>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let status = response.status();
    // Writing to memory cannot fail.
    let _ = write!(out, "HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("-"));
    let mut header = |name: &str, value: &HeaderValue| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    };
    for (name, value) in response.headers() {
        header(name.as_str(), value);
    }
    if let Some(length) = length {
        header(header::CONTENT_LENGTH.as_str(), &HeaderValue::from(length));
    }
    out.extend_from_slice(b"connection: close\r\ndate: ");
    date(&mut out);
    out.extend_from_slice(b"\r\n\r\n");
    out
}

/// Appends the date of an answer, which is made once a second.
fn date(out: &mut Vec<u8>) {
    static LATEST: Mutex<(i64, String)> = Mutex::new((0, String::new()));
    let now = Timestamp::now();
    let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
    if latest.0 != now.as_second() {
        *latest = (now.as_second(), now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    }
    out.extend_from_slice(latest.1.as_bytes());
}

/// A socket of which some bytes have been read already, and which tells what is read.
struct Rewound {
    read: Bytes,
    socket: TcpStream,
    patience: Arc<Patience>,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            let before = buffer.filled().len();
            let outcome = Pin::new(&mut self.socket).poll_read(context, buffer);
            if let Some(read @ [_, ..]) = buffer.filled().get(before..) {
                self.patience.read(read);
            }
            return outcome;
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(self.read.get(..count).unwrap_or_default());
        self.read.advance(count);
        if self.read.is_empty() {
            // Frees the head.
            self.read = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
