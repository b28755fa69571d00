//! The pages' own server: it has the pages of the tests and of examples/browser, and holds the principal token.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU16, Ordering},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, header::CONTENT_TYPE},
    response::Html,
    routing::get,
};

use crate::common::{Client, PRINCIPAL_TOKEN};

/// Remembers everything that it sees as `[name, data]` in `seen`.
const PAGE: &str = r#"<!doctype html>
<title>A page of the tests</title>
<script type="module">
  import { VX11Stream } from "/vx11-stream.js";
  window.seen = [];
  const listen = (target, data) => {
    for (const name of ["message", "snapshot", "heartbeat", "gap", "drain", "overloaded"]) {
      target.addEventListener(name, (event) => seen.push([name, data(event)]));
    }
  };
  window.plain = (url) => {
    window.source = new EventSource(url);
    listen(source, (event) => JSON.parse(event.data));
    return new Promise((resolve) => {
      source.onopen = () => resolve(true);
      source.onerror = () => resolve(false);
    });
  };
  const getToken = async () => (await fetch("/token", { method: "POST" })).text();
  window.client = (options) => {
    window.stream = new VX11Stream({ getToken, ...options });
    listen(stream, (event) => event.detail.data);
  };
</script>
"#;
const JAVASCRIPT: [(HeaderName, &str); 1] = [(CONTENT_TYPE, "text/javascript")];

pub(crate) struct Site {
    port: u16,
    issuer: Arc<Issuer>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Issuer {
    port: AtomicU16,
    issued: Mutex<Vec<String>>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let issuer = Arc::new(Issuer::default());
        let router = Router::new()
            .route("/page", get(async || Html(PAGE)))
            .route("/", get(async || Html(include_str!("../../../examples/browser/index.html"))))
            .route(
                "/vx11-stream.js",
                get(async || (JAVASCRIPT, include_str!("../../../examples/browser/vx11-stream.js"))),
            )
            .route("/token", axum::routing::post(issue))
            .with_state(Arc::clone(&issuer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, issuer, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// From now on tokens come from the backend on this port.
    pub(crate) fn issue_at(&self, port: u16) {
        self.issuer.port.store(port, Ordering::SeqCst);
    }

    /// Every token that a page has fetched.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.issuer.issued.lock().unwrap().clone()
    }
}

async fn issue(State(issuer): State<Arc<Issuer>>) -> String {
    let backend = Client::new(issuer.port.load(Ordering::SeqCst));
    let answer =
        backend.post("/operator/api/events/sse-token", &[("x-vx11-token", PRINCIPAL_TOKEN)], "").await;
    let token = answer.json()["sse_token"].as_str().unwrap().to_owned();
    issuer.issued.lock().unwrap().push(token.clone());
    token
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}
