//! Bytes of the stream: every event, encoded once for all who get it.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::events::{EntryId, Event};

/// The first line of every stream.
pub(super) fn retry(retry: Duration) -> Bytes {
    format!("retry: {}\n\n", retry.as_millis()).into()
}

/// A published event. Without a name it has no `event:` line, so that `EventSource.onmessage` sees it.
pub(super) fn event(event: &Event, cursor: &str) -> Bytes {
    let name = event.content.name.as_deref();
    let mut text =
        String::with_capacity(event.content.data.len() + cursor.len() + 32 + name.map_or(0, str::len));
    if let Some(name) = name {
        text.push_str("event: ");
        text.push_str(name);
        text.push('\n');
    }
    finish(text, Some(cursor), &event.content.data)
}

/// The latest events, at the beginning of a stream.
pub(super) fn snapshot<'a>(
    events: impl Iterator<Item = &'a Event>,
    cursor: Option<&str>,
    correlation: &str,
) -> Bytes {
    #[derive(Serialize)]
    struct Snapshot<'a, L> {
        r#type: &'a str,
        events: Vec<L>,
        timestamp: String,
        correlation_id: &'a str,
    }
    let events = events.filter_map(Event::listed).collect();
    let snapshot = Snapshot {
        r#type: "snapshot",
        events,
        timestamp: now(),
        correlation_id: correlation,
    };
    own("snapshot", None, cursor, &snapshot)
}

/// Proof of life; its cursor keeps the client's position within the resume window.
pub(super) fn heartbeat(cursor: Option<&str>) -> Bytes {
    own(
        "heartbeat",
        None,
        cursor,
        &json!({ "type": "heartbeat", "timestamp": now() }),
    )
}

/// Something between what the client has and what follows is gone.
pub(super) fn gap(after: Option<EntryId>, before: Option<EntryId>) -> Bytes {
    let name = |id: Option<EntryId>| id.map(|id| id.to_string());
    own(
        "gap",
        None,
        None,
        &json!({ "type": "gap", "after": name(after), "before": name(before), "timestamp": now() }),
    )
}

/// The last event before a planned close.
pub(super) fn drain(retry: Duration, reason: &'static str) -> Bytes {
    own(
        "drain",
        Some(retry),
        None,
        &json!({ "type": "drain", "reason": reason, "timestamp": now() }),
    )
}

/// The only event of a refused stream.
pub(super) fn overloaded(retry: Duration, reason: &'static str) -> Bytes {
    own(
        "overloaded",
        Some(retry),
        None,
        &json!({ "type": "overloaded", "reason": reason, "timestamp": now() }),
    )
}

/// The last event of a stream that ends for good.
pub(super) fn error(detail: &'static str) -> Bytes {
    own(
        "error",
        None,
        None,
        &json!({ "type": "error", "detail": detail, "timestamp": now() }),
    )
}

fn own(name: &str, retry: Option<Duration>, cursor: Option<&str>, data: &impl Serialize) -> Bytes {
    let mut text = format!("event: {name}\n");
    if let Some(retry) = retry {
        text.push_str(&format!("retry: {}\n", retry.as_millis()));
    }
    // Our own types always serialise.
    finish(text, cursor, &serde_json::to_string(data).unwrap_or_default())
}

fn finish(mut text: String, cursor: Option<&str>, data: &str) -> Bytes {
    if let Some(cursor) = cursor {
        text.push_str("id: ");
        text.push_str(cursor);
        text.push('\n');
    }
    text.push_str("data: ");
    text.push_str(data);
    text.push_str("\n\n");
    text.into()
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::NewEvent;

    fn published(name: Option<&str>) -> Event {
        let content = NewEvent {
            name: name.map(str::to_owned),
            data: "{\"a\":1}".to_owned(),
            ..NewEvent::default()
        };
        Event {
            id: EntryId::default(),
            content,
        }
    }

    #[test]
    fn an_event_without_a_name_has_no_event_line() {
        assert_eq!(event(&published(None), "c"), "id: c\ndata: {\"a\":1}\n\n");
        assert_eq!(
            event(&published(Some("n")), "c"),
            "event: n\nid: c\ndata: {\"a\":1}\n\n"
        );
    }

    #[test]
    fn a_drain_event_carries_its_own_retry() {
        let text = drain(Duration::from_millis(1500), "terminating");
        assert!(
            text.starts_with(b"event: drain\nretry: 1500\ndata: {"),
            "{text:?}"
        );
    }
}
