//! The admin port of an instance, as its client: one short connection for each request, with a deadline and
//! a bound on what is read. Nothing that an instance answers can do more than fail.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::scale::reading::MAX_ANSWER_BYTES;

/// From connect to the last byte.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// Why an instance gave no usable answer.
#[derive(Debug, Error)]
pub enum AdminError {
    /// It took too long.
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Slow,
    /// It cannot be reached.
    #[error("cannot connect: {0}")]
    Unreachable(#[from] std::io::Error),
    /// The connection or the protocol broke.
    #[error("broken answer: {0}")]
    Broken(#[from] hyper::Error),
    /// The answer is larger than any genuine one, or breaks off.
    #[error("unusable answer: {0}")]
    Unusable(String),
    /// It refused.
    #[error("it answers {0}")]
    Refused(StatusCode),
    /// The request could not be made.
    #[error("cannot ask: {0}")]
    Request(#[from] hyper::http::Error),
}

/// The control token of a cluster's instances. It has no `Debug`, so that it cannot leak.
#[derive(Clone)]
pub struct ControlToken(String);

impl ControlToken {
    /// Takes the value of the Secret's key; line breaks at the end are no part of it.
    #[must_use]
    pub fn new(value: &str) -> Self {
        Self(value.trim_end().to_owned())
    }
}

/// Asks an instance for its load.
pub async fn get_load(instance: SocketAddr) -> Result<Bytes, AdminError> {
    ask(instance, Method::GET, "/load", None).await
}

/// Tells an instance to drain. Harmless when it already does.
pub async fn begin_drain(instance: SocketAddr, token: &ControlToken) -> Result<(), AdminError> {
    ask(instance, Method::POST, "/drain", Some(token)).await.map(drop)
}

/// Tells an instance to serve again. Harmless when it already does.
pub async fn cancel_drain(instance: SocketAddr, token: &ControlToken) -> Result<(), AdminError> {
    ask(instance, Method::DELETE, "/drain", Some(token)).await.map(drop)
}

/// Tells an instance to close `streams` of its streams so that they reconnect elsewhere.
pub async fn shed(instance: SocketAddr, streams: u64, token: &ControlToken) -> Result<(), AdminError> {
    ask(instance, Method::POST, &format!("/shed?count={streams}"), Some(token)).await.map(drop)
}

async fn ask(
    instance: SocketAddr,
    method: Method,
    path: &str,
    token: Option<&ControlToken>,
) -> Result<Bytes, AdminError> {
    tokio::time::timeout(DEADLINE, exchange(instance, method, path, token))
        .await
        .map_err(|_| AdminError::Slow)?
}

async fn exchange(
    instance: SocketAddr,
    method: Method,
    path: &str,
    token: Option<&ControlToken>,
) -> Result<Bytes, AdminError> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, instance.to_string())
        .header(header::CONNECTION, "close");
    if let Some(ControlToken(token)) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new())?;

    let socket = TcpStream::connect(instance).await?;
    let (mut sender, connection) =
        http1::Builder::new().max_headers(32).handshake(TokioIo::new(socket)).await?;
    // Connection and answer advance together in this task: when the deadline drops it, both are gone.
    let answer = async move {
        let answer = sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(AdminError::Refused(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| AdminError::Unusable(error.to_string()))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection ends first when its last bytes came with the end: the answer is complete then.
        _ = &mut connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rstest::rstest;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// An instance that answers every connection with these bytes and keeps it open when asked to.
    async fn instance(answer: Vec<u8>, hold: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut open_sockets = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _ = socket.read(&mut head).await;
                let _ = socket.write_all(&answer).await;
                if hold {
                    open_sockets.push(socket);
                }
            }
        });
        address
    }

    fn http(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_end_whether_or_not_the_connection_closes() {
        for hold in [false, true] {
            let address = instance(http("{\"streams\":1}"), hold).await;
            assert_eq!(get_load(address).await.unwrap(), "{\"streams\":1}");
        }
    }

    #[rstest]
    #[case::endless(http(&"x".repeat(100_000)), "length limit exceeded")]
    #[case::cut(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{".to_vec(), "unusable answer")]
    #[case::no_http(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), "broken answer")]
    #[case::nothing(Vec::new(), "broken answer")]
    #[case::refusal(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_vec(), "it answers 403")]
    #[tokio::test]
    async fn a_useless_answer_is_an_error_with_its_reason(#[case] answer: Vec<u8>, #[case] reason: &str) {
        let error = get_load(instance(answer, false).await).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[tokio::test]
    async fn a_slow_instance_costs_no_more_than_the_deadline() {
        let began = Instant::now();
        let address = instance(b"HTTP/1.1 200 OK\r\n".to_vec(), true).await;
        assert_eq!(get_load(address).await.unwrap_err().to_string(), "no answer within 1 s");
        assert!(began.elapsed() < DEADLINE * 2);
    }

    #[tokio::test]
    async fn an_absent_instance_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(get_load(address).await.unwrap_err().to_string().starts_with("cannot connect"));
    }
}
