//! The text of the stream's own events: everything that is not a published event.

use std::{fmt::Write as _, io::Write as _, sync::Arc};

use bytes::Bytes;
use serde_json::json;

use crate::events::{Event, Gap};

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// First bytes of a stream: when to come back, and the latest events.
pub(super) fn beginning(out: &mut Vec<u8>, retry: u32, id_line: &[u8], events: &str, correlation: &str) {
    let _ = write!(out, "retry: {retry}\n\n");
    out.extend_from_slice(id_line);
    // A correlation id is visible ASCII; JSON needs it quoted nevertheless.
    let correlation = json!(correlation);
    let _ = write!(
        out,
        "event: snapshot\ndata: {{\"type\":\"snapshot\",\"events\":{events},\"timestamp\":\"{}\",\"correlation_id\":{correlation}}}\n\n",
        now()
    );
}

/// The events of a snapshot as a JSON array.
pub(super) fn snapshot_events(events: &[Arc<Event>]) -> String {
    let mut out = String::from("[");
    for event in events {
        if out.len() > 1 {
            out.push(',');
        }
        let _ = write!(out, "{{\"id\":\"{}\"", event.id);
        let fields = [
            ("event", event.name()),
            ("topic", event.topic.as_deref()),
            ("severity", event.severity.as_deref()),
            ("module", event.module.as_deref()),
        ];
        for (name, value) in fields {
            // Such names need no escapes.
            if let Some(value) = value {
                let _ = write!(out, ",\"{name}\":\"{value}\"");
            }
        }
        let timestamp = i64::try_from(event.id.milliseconds)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let _ = write!(
            out,
            ",\"timestamp\":\"{:.3}\",\"data\":{}}}",
            timestamp.unwrap_or_default(),
            event.data()
        );
    }
    out.push(']');
    out
}

pub(super) fn heartbeat(out: &mut Vec<u8>) {
    let _ = write!(out, "event: heartbeat\ndata: {{\"type\":\"heartbeat\",\"timestamp\":\"{}\"}}\n\n", now());
}

pub(super) fn gap(out: &mut Vec<u8>, gap: &Gap) {
    let id = |id: Option<crate::events::EntryId>| id.map(|id| id.to_string());
    let data = json!({
        "type": "gap",
        "reason": gap.reason.as_str(),
        "after": id(gap.after),
        "before": id(gap.before),
        "timestamp": now(),
    });
    let _ = write!(out, "event: gap\ndata: {data}\n\n");
}

/// The last event of a stream that is closed on purpose, with its own time to come back.
pub(super) fn drain(retry: u32) -> Bytes {
    let data = json!({ "type": "drain", "retry_ms": retry, "timestamp": now() });
    format!("retry: {retry}\nevent: drain\ndata: {data}\n\n").into()
}

/// The only event of a softly refused stream.
pub(super) fn overloaded(retry: u32, reason: &str) -> String {
    let data = json!({ "type": "overloaded", "reason": reason, "retry_ms": retry, "timestamp": now() });
    format!("retry: {retry}\n\nevent: overloaded\ndata: {data}\n\n")
}

/// The last event of a stream that cannot go on.
pub(super) fn error(detail: &str) -> Bytes {
    let data = json!({ "type": "error", "detail": detail, "timestamp": now() });
    format!("event: error\ndata: {data}\n\n").into()
}

/// A time to come back around `retry`: so that those who leave together do not come back together.
pub(super) fn jittered(retry: u32, from: f64, to: f64) -> u32 {
    let jittered = f64::from(retry) * rand::random_range(from..to);
    // Bounded by 300,000 ms times a small factor.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let milliseconds = jittered as u32;
    milliseconds.max(1)
}
