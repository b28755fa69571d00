//! The admin ports of the instances, as their client: a connection to each that is kept from one look to the next, a
//! deadline for each request and a bound on what is read. Nothing that an instance answers can do more than fail.

use std::{error::Error, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use thiserror::Error;

use crate::scale::reading::MAX_ANSWER_BYTES;

/// From connect to the last byte.
pub const DEADLINE: Duration = Duration::from_secs(1);
/// How long a connection is kept for the next request: longer than from one look to the next where the load decides,
/// shorter than the instance keeps it, so that no request meets a connection that is just being closed.
const KEPT: Duration = Duration::from_secs(10);

/// Why an instance gave no usable answer.
#[derive(Debug, Error)]
pub enum AdminError {
    /// It took too long.
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Slow,
    /// It cannot be reached.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The connection or the protocol broke.
    #[error("broken answer: {0}")]
    Broken(String),
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

/// The way to the admin ports.
pub struct AdminPorts(Client<HttpConnector, Empty<Bytes>>);

impl Default for AdminPorts {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .pool_max_idle_per_host(1)
            .http1_max_headers(32)
            .build(connector);
        Self(client)
    }
}

impl AdminPorts {
    /// Asks an instance for its load.
    pub async fn get_load(&self, instance: SocketAddr) -> Result<Bytes, AdminError> {
        self.ask(instance, Method::GET, "/load", None).await
    }

    /// Tells an instance to drain. Harmless when it already does.
    pub async fn begin_drain(&self, instance: SocketAddr, token: &ControlToken) -> Result<(), AdminError> {
        self.ask(instance, Method::POST, "/drain", Some(token)).await.map(drop)
    }

    /// Tells an instance to serve again. Harmless when it already does.
    pub async fn cancel_drain(&self, instance: SocketAddr, token: &ControlToken) -> Result<(), AdminError> {
        self.ask(instance, Method::DELETE, "/drain", Some(token)).await.map(drop)
    }

    /// Tells an instance to close `streams` of its streams so that they reconnect elsewhere.
    pub async fn shed(
        &self,
        instance: SocketAddr,
        streams: u64,
        token: &ControlToken,
    ) -> Result<(), AdminError> {
        self.ask(instance, Method::POST, &format!("/shed?count={streams}"), Some(token)).await.map(drop)
    }

    async fn ask(
        &self,
        instance: SocketAddr,
        method: Method,
        path: &str,
        token: Option<&ControlToken>,
    ) -> Result<Bytes, AdminError> {
        let mut request = Request::builder().method(method).uri(format!("http://{instance}{path}"));
        if let Some(ControlToken(token)) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new())?;
        // What the deadline drops takes its connection with it.
        tokio::time::timeout(DEADLINE, self.exchange(request)).await.map_err(|_| AdminError::Slow)?
    }

    async fn exchange(&self, request: Request<Empty<Bytes>>) -> Result<Bytes, AdminError> {
        let answer = self.0.request(request).await.map_err(|error| {
            let reason = innermost(&error);
            if error.is_connect() { AdminError::Unreachable(reason) } else { AdminError::Broken(reason) }
        })?;
        if !answer.status().is_success() {
            return Err(AdminError::Refused(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| AdminError::Unusable(error.to_string()))
    }
}

/// What an error comes from: the errors around it say only where it was met.
fn innermost(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
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

    async fn get_load(instance: SocketAddr) -> Result<Bytes, AdminError> {
        AdminPorts::default().get_load(instance).await
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
    async fn a_connection_is_kept_until_the_instance_closes_it() {
        let (ports, listener) = (AdminPorts::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut accepted = Vec::new();
            for requests in [3, 1] {
                let (mut socket, peer) = listener.accept().await.unwrap();
                accepted.push(peer);
                for _ in 0..requests {
                    let mut head = [0; 1024];
                    assert_ne!(socket.read(&mut head).await.unwrap(), 0);
                    socket.write_all(&http("{}")).await.unwrap();
                }
            }
            accepted.len()
        });
        for _ in 0..3 {
            assert_eq!(ports.get_load(address).await.unwrap(), "{}");
        }
        // The end of the first connection is here before the next request: both sides are in this thread.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(ports.get_load(address).await.unwrap(), "{}");
        assert_eq!(serving.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn an_absent_instance_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(get_load(address).await.unwrap_err().to_string().starts_with("cannot connect"));
    }
}
