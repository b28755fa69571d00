//! Requests to the product, through the Ingress or through the API server's way to one pod.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// Body of an answer, whichever way it came.
pub(super) type Body = UnsyncBoxBody<Bytes, String>;

/// Longest time for an answer's head.
const PATIENCE: Duration = Duration::from_secs(15);

/// A way in: where requests go and what each of them carries.
#[derive(Clone)]
pub enum Route {
    /// The Ingress, or a port that is forwarded.
    Http {
        /// Its base URL.
        base: String,
        /// Value of the `Host` header.
        host: String,
    },
    /// One pod, through the API server.
    Pod {
        /// The client to the API server.
        client: kube::Client,
        /// Path of the pod's proxy.
        base: String,
    },
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body as text.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Route {
    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// What went wrong on the way; an answer of any status is no error.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer, String> {
        let (head, body) = self.send(method, path, headers, body).await?.into_parts();
        let read = tokio::time::timeout(PATIENCE, body.collect()).await;
        let bytes = read.map_err(|_| format!("{path}: the body did not end"))??.to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if path == super::TOKEN
            && let Ok(answer) = serde_json::from_str::<serde_json::Value>(&text)
            && let Some(token) = answer["sse_token"].as_str()
        {
            super::secrets::issued(token);
        }
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, text })
    }

    /// `GET`, panicking when there is no answer.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request(Method::GET, path, headers, "")
            .await
            .unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// `POST`, panicking when there is no answer.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.request(Method::POST, path, headers, body)
            .await
            .unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// Sends a request; the body of the answer is still to be read.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Response<Body>, String> {
        let (base, host) = match self {
            Self::Http { base, host } => (base, Some(host.as_str())),
            Self::Pod { base, .. } => (base, None),
        };
        let mut all: BTreeMap<&str, &str> = headers.iter().copied().collect();
        all.extend(host.map(|host| ("host", host)));
        let mut request = Request::builder().method(method).uri(format!("{base}{path}"));
        for (name, value) in all {
            request = request.header(name, value);
        }
        let body = Bytes::from(body.to_owned());
        let answer = async {
            match self {
                Self::Http { .. } => {
                    let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
                    let client: Client<HttpConnector, Full<Bytes>> =
                        Client::builder(TokioExecutor::new()).build_http();
                    let answer = client.request(request).await.map_err(|error| format!("{error:?}"))?;
                    Ok(answer.map(|body| body.map_err(|error| error.to_string()).boxed_unsync()))
                }
                Self::Pod { client, .. } => {
                    let body = kube::client::Body::from(Vec::from(body));
                    let request = request.body(body).map_err(|error| error.to_string())?;
                    let answer = client.send(request).await.map_err(|error| error.to_string())?;
                    Ok(answer.map(|body| body.map_err(|error| error.to_string()).boxed_unsync()))
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .map_err(|_| format!("{path}: no answer within {PATIENCE:?}"))?
    }
}
