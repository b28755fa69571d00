//! Answers that every route shares: JSON, and errors as `{"detail": ...}`.

use std::borrow::Cow;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::auth::Denied;

/// An error as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorAnswer {
    status: StatusCode,
    detail: Cow<'static, str>,
    retry_after: Option<u64>,
}

impl ErrorAnswer {
    /// An error with a detail for programs (`auth_required`) or people (`severity: must be ...`).
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into(), retry_after: None }
    }

    /// Tells after how many seconds another try makes sense.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl From<Denied> for ErrorAnswer {
    fn from(denied: Denied) -> Self {
        Self::new(denied.status(), denied.detail())
    }
}

impl IntoResponse for ErrorAnswer {
    fn into_response(self) -> Response {
        let mut response = json(self.status, &serde_json::json!({ "detail": self.detail }));
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"vx11\""));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON answer. What it says is of this moment and for this client: no cache may keep it.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(body) => json_text(status, body),
        // Our own types always serialise; should one not, the client learns that it is our fault.
        Err(_) => json_text(StatusCode::INTERNAL_SERVER_ERROR, r#"{"detail":"internal_error"}"#.to_owned()),
    }
}

/// A JSON answer whose text is ready.
pub fn json_text(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
