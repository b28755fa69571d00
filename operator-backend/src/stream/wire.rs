//! The text of the stream's own events: everything that is not a published event.

use std::{fmt::Write as _, io::Write as _, sync::Arc};

use bytes::Bytes;
use serde_json::json;

use crate::events::{Event, Gap};

/// Largest `snapshot` event, bytes: a new stream waits with it in memory until its client reads.
#[cfg(test)]
const LARGEST_SNAPSHOT: usize = 64 * 1024;
/// Of that for its events: a cursor, a correlation id and the rest need less than a kibibyte.
const SNAPSHOT_EVENTS: usize = 63 * 1024;

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

/// The `events` of a snapshot, oldest first, and `omitted` if there are some that it has no room for: as many of the
/// latest as fit.
pub(super) fn snapshot_events(events: &[Arc<Event>]) -> String {
    let (mut fitting, mut bytes) = (Vec::new(), 0);
    for event in events.iter().rev() {
        let text = snapshot_event(event);
        bytes += text.len() + 1;
        if bytes > SNAPSHOT_EVENTS {
            break;
        }
        fitting.push(text);
    }
    let omitted = events.len() - fitting.len();
    fitting.reverse();
    let mut out = format!("[{}]", fitting.join(","));
    if omitted > 0 {
        let _ = write!(out, ",\"omitted\":{omitted}");
    }
    out
}

fn snapshot_event(event: &Event) -> String {
    let mut out = format!("{{\"id\":\"{}\"", event.id);
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
    let timestamp =
        i64::try_from(event.id.milliseconds).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let _ =
        write!(out, ",\"timestamp\":\"{:.3}\",\"data\":{}}}", timestamp.unwrap_or_default(), event.data());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{EntryId, Epoch, NewEvent};
    use rstest::rstest;

    fn event(number: u64, bytes: usize) -> Arc<Event> {
        let body = format!(
            r#"{{"event":"{0}","topic":"{0}","severity":"{0}","module":"{0}","data":"{1}"}}"#,
            "n".repeat(128),
            "x".repeat(bytes)
        );
        let new = NewEvent::parse(body.as_bytes()).unwrap();
        let id = EntryId { milliseconds: 1_763_900_000_000 + number, sequence: u64::MAX };
        Arc::new(Event::new(id, Epoch(1), number, new))
    }

    #[rstest]
    #[case::small(&[100; 5], 5)]
    #[case::three_fit(&[20_000; 5], 3)]
    #[case::the_latest_is_too_large(&[10, 10, 10, 10, 64_000], 0)]
    #[case::an_older_one_is_too_large(&[10, 10, 64_000, 10, 10], 2)]
    fn a_snapshot_holds_as_many_of_the_latest_events_as_fit(#[case] sizes: &[usize], #[case] fitting: usize) {
        let events: Vec<_> = (0..).zip(sizes).map(|(number, size)| event(number, *size)).collect();
        let mut out = Vec::new();
        let id_line = [b'x'; crate::stream::cursor::LONGEST + 5];
        beginning(&mut out, 300_000, &id_line, &snapshot_events(&events), &"c".repeat(128));
        assert!(out.len() <= LARGEST_SNAPSHOT, "{} bytes", out.len());
        let text = String::from_utf8(out).unwrap();
        let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        let ids: Vec<_> =
            data["events"].as_array().unwrap().iter().map(|event| event["id"].clone()).collect();
        let latest: Vec<_> =
            events.iter().skip(5 - fitting).map(|event| json!(event.id.to_string())).collect();
        assert_eq!(ids, latest);
        let omitted = (fitting < 5).then(|| json!(5 - fitting));
        assert_eq!(data.get("omitted"), omitted.as_ref());
    }
}
