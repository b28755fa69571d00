//! Publishing an event: reads and checks the request, hands it to the log, tells what came of it.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;
use tokio::time::timeout;

use super::App;
use crate::{
    answer::{ErrorAnswer, json},
    events::{NewEvent, PublishError},
};

/// Largest body of a publish request, bytes.
const LARGEST_BODY: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Longest idempotency key, bytes.
const LONGEST_KEY: usize = 128;

/// `POST /operator/api/events`
pub(super) async fn publish(State(app): State<Arc<App>>, request: Request) -> Result<Response, ErrorAnswer> {
    app.authenticator.authorise_principal(request.headers())?;
    let key = idempotency_key(request.headers())?;
    let body = read(request).await?;
    let event = NewEvent::parse(&body)
        .map_err(|invalid| ErrorAnswer::new(StatusCode::UNPROCESSABLE_ENTITY, invalid.to_string()))?;
    match app.events.publish(event, key.as_deref()).await {
        Ok(id) => {
            app.metrics.events_published.inc();
            Ok(json(StatusCode::ACCEPTED, &json!({ "id": id.to_string() })))
        }
        Err(error) => {
            app.metrics.publish_errors.inc();
            Err(match error {
                // Nothing was published: trying again is safe.
                PublishError::Unavailable => {
                    ErrorAnswer::new(StatusCode::SERVICE_UNAVAILABLE, "event_log_unavailable").retry_after(1)
                }
                // It may have been: trying again is safe with the same Idempotency-Key only.
                PublishError::Unknown => {
                    ErrorAnswer::new(StatusCode::GATEWAY_TIMEOUT, "outcome_unknown").retry_after(1)
                }
            })
        }
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ErrorAnswer> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if (1..=LONGEST_KEY).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(ErrorAnswer::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Idempotency-Key: must be 1 to 128 visible ASCII characters",
        )),
    }
}

async fn read(request: Request<Body>) -> Result<Vec<u8>, ErrorAnswer> {
    let too_large = || ErrorAnswer::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large");
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced
        .and_then(|length| length.parse::<u64>().ok())
        .is_some_and(|length| length > LARGEST_BODY as u64)
    {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), LARGEST_BODY);
    match timeout(BODY_DEADLINE, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ErrorAnswer::new(StatusCode::BAD_REQUEST, "incomplete_body")),
        Err(_) => Err(ErrorAnswer::new(StatusCode::REQUEST_TIMEOUT, "request_timeout")),
    }
}
