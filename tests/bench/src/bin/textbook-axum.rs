//! Server-Sent Events as axum's documentation shows them: `axum::serve`, a broadcast channel, `Sse` with `KeepAlive`.
//!
//! Usage: `textbook-axum PORT`. `GET /stream` opens a stream, `POST /publish` sends its body to all of them.

use std::convert::Infallible;

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
    routing::{get, post},
};
use futures::Stream;
use tokio::{
    net::TcpSocket,
    sync::broadcast::{self, Receiver, Sender, error::RecvError},
};

#[tokio::main(worker_threads = 1)]
async fn main() {
    let port: u16 =
        std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("usage: textbook-axum PORT");
    let app = Router::new()
        .route("/stream", get(stream))
        .route("/publish", post(publish))
        .with_state(broadcast::Sender::new(256));
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(([127, 0, 0, 1], port).into()).expect("a free port");
    let listener = socket.listen(4096).expect("a listening socket");
    axum::serve(listener, app).await.expect("to serve");
}

async fn publish(State(sender): State<Sender<String>>, body: String) -> StatusCode {
    let _ = sender.send(body);
    StatusCode::ACCEPTED
}

async fn stream(State(sender): State<Sender<String>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = futures::stream::unfold((sender.subscribe(), 0_u64), next);
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn next(
    (mut receiver, number): (Receiver<String>, u64),
) -> Option<(Result<Event, Infallible>, (Receiver<String>, u64))> {
    loop {
        match receiver.recv().await {
            Ok(text) => {
                let event = Event::default().id(number.to_string()).data(text);
                return Some((Ok(event), (receiver, number + 1)));
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}
