//! A small HTTP client: pooled connections, JSON, event streams read line by line.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, body::Incoming};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;

/// No answer takes longer than this unless something hangs.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Client {
    pool: legacy::Client<HttpConnector, Full<Bytes>>,
    base: String,
    patience: Duration,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Client {
    /// A client of `http://127.0.0.1:port` over HTTP/1.1.
    pub(crate) fn new(port: u16) -> Self {
        Self::with(port, |_| {})
    }

    /// The same over HTTP/2, which gives each stream the window that browsers and proxies begin with.
    pub(crate) fn http2(port: u16) -> Self {
        Self::with(port, |builder| {
            builder.http2_only(true).http2_initial_stream_window_size(65_535);
        })
    }

    fn with(port: u16, set: impl FnOnce(&mut legacy::Builder)) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        // Shorter than the servers' patience with an idle connection, which they would close under a request.
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(2))
            .pool_max_idle_per_host(512);
        set(&mut builder);
        let base = format!("http://127.0.0.1:{port}");
        Self { pool: builder.build(connector), base, patience: PATIENCE }
    }

    /// The same client, for a server that may take this long.
    pub(crate) fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> hyper::Response<Incoming> {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        let patience = self.patience;
        let answer = timeout(patience, self.pool.request(request)).await;
        answer
            .unwrap_or_else(|_| panic!("{method} {path}: no answer within {patience:?}"))
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let (head, body) = self.send(method, path, headers, body.into()).await.into_parts();
        let patience = self.patience;
        let body = timeout(patience, body.collect()).await;
        let body = body.unwrap_or_else(|_| panic!("{method} {path}: no end of the body within {patience:?}"));
        Answer { status: head.status.as_u16(), headers: head.headers, body: body.unwrap().to_bytes() }
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request("GET", path, headers, "").await
    }

    /// The answer, `None` if none comes.
    pub(crate) async fn try_get(&self, path: &str, headers: &[(&str, &str)]) -> Option<Answer> {
        let mut request = Request::builder().uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let (head, body) = timeout(self.patience, self.pool.request(request)).await.ok()?.ok()?.into_parts();
        let body = timeout(self.patience, body.collect()).await.ok()?.ok()?.to_bytes();
        Some(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.request("POST", path, headers, body).await
    }

    /// Opens a stream; it closes when the value is dropped.
    pub(crate) async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> EventStream {
        let (head, body) = self.send("GET", path, headers, Bytes::new()).await.into_parts();
        EventStream { status: head.status.as_u16(), headers: head.headers, body, text: String::new() }
    }
}

pub(crate) struct EventStream {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    text: String,
}

impl EventStream {
    /// The next block of the stream (an event, a `retry:`), without its empty line; `None` at the end.
    pub(crate) async fn next(&mut self, within: Duration) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.into();
                return Some(block);
            }
            let frame = timeout(within, self.body.frame()).await;
            let frame = frame.unwrap_or_else(|_| panic!("nothing on the stream within {within:?}"))?;
            let Ok(frame) = frame else { return None };
            if let Some(data) = frame.data_ref() {
                self.text.push_str(std::str::from_utf8(data).unwrap());
            }
        }
    }

    /// What has come of a block that is not whole.
    pub(crate) fn rest(&self) -> &str {
        &self.text
    }

    /// Reads until a block contains `what`.
    pub(crate) async fn until(&mut self, what: &str, within: Duration) -> String {
        let search = async {
            while let Some(block) = self.next(within).await {
                if block.contains(what) {
                    return block;
                }
            }
            panic!("the stream ended before {what:?}")
        };
        timeout(within, search)
            .await
            .unwrap_or_else(|_| panic!("within {within:?} the stream had no {what:?}"))
    }
}
