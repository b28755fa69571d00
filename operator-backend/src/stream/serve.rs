//! The public listener.

use std::{pin::pin, time::Duration};

use axum::{Router, extract::ConnectInfo};
use hyper::service::{Service, service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use super::Engine;

/// How long a connection may stay without a request: longer than the proxies in front keep theirs, so that none
/// sends a request into a connection that is being closed.
const IDLE_DEADLINE: Duration = Duration::from_secs(620);
/// Most bytes of a request head.
const LARGEST_HEAD: usize = 16 * 1024;
/// What the kernel may hold for a client that does not read.
const SEND_BUFFER: usize = 64 * 1024;
/// How long written bytes may stay unacknowledged before the client counts as gone.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failure to accept: out of file descriptors, for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves the public port until `shutdown` resolves; then ends once every request has its answer.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    _engine: Engine,
    shutdown: impl Future<Output = ()>,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_DEADLINE)
        .max_buf_size(LARGEST_HEAD)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(16 * 1024)
        .keep_alive_interval(Some(USER_TIMEOUT));
    let routes = TowerToHyperService::new(router);
    let graceful = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tune(&socket);
        let routes = routes.clone();
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            routes.call(request)
        });
        let connection = server
            .serve_connection(TokioIo::new(socket), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // How a client's connection ends is the client's business.
            let _ = connection.await;
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Bounds what a client that does not read, or is gone, can cost.
fn tune(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    // A socket that refuses an option was closed by its client in the meantime.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
}
