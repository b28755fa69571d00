//! An event: how a publish request describes it, and how it lies in the log, ready to be sent.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{EntryId, Epoch};

/// Longest event name, topic, severity or module, bytes.
const LONGEST_NAME: usize = 128;
/// Event names that only the stream itself may use; see `docs/protocol.md`.
const RESERVED: [&str; 6] = ["snapshot", "heartbeat", "gap", "drain", "overloaded", "error"];

/// What is wrong with a publish request; begins with the field's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// Not JSON, not an object, a field twice.
    #[error("body: {0}")]
    Body(Cow<'static, str>),
    /// A field that holds something else than it may.
    #[error("{0}: {1}")]
    Field(&'static str, &'static str),
}

/// A validated event on its way into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    pub(super) name: Option<Box<str>>,
    pub(super) topic: Option<Box<str>>,
    pub(super) severity: Option<Box<str>>,
    pub(super) module: Option<Box<str>>,
    /// JSON on one line.
    pub(super) data: Box<str>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    topic: Option<&'a RawValue>,
    #[serde(borrow, default)]
    severity: Option<&'a RawValue>,
    #[serde(borrow, default)]
    module: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

/// `null` is data too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl NewEvent {
    /// The event that the body of a publish request describes. Fields it does not know are ignored.
    ///
    /// # Errors
    /// [`InvalidEvent`], whose text begins with the name of the field.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidEvent> {
        let wrong = |text: &'static str| InvalidEvent::Body(text.into());
        let text = std::str::from_utf8(body).map_err(|_| wrong("must be UTF-8"))?;
        if !text.trim_start().starts_with('{') {
            return Err(wrong("must be a JSON object"));
        }
        let fields: Fields<'_> =
            serde_json::from_str(text).map_err(|error| InvalidEvent::Body(error.to_string().into()))?;
        let event = Self {
            name: name("event", fields.event)?,
            topic: name("topic", fields.topic)?,
            severity: name("severity", fields.severity)?,
            module: name("module", fields.module)?,
            data: one_line(fields.data.ok_or(InvalidEvent::Field("data", "is missing"))?.get()),
        };
        match event.name.as_deref() {
            Some(name) if RESERVED.contains(&name) => {
                Err(InvalidEvent::Field("event", "this name is reserved for the stream itself"))
            }
            _ => Ok(event),
        }
    }
}

/// Whether a text may be an event's name, topic, severity or module.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b))
}

fn name(field: &'static str, value: Option<&RawValue>) -> Result<Option<Box<str>>, InvalidEvent> {
    let Some(value) = value else { return Ok(None) };
    let text: Box<str> =
        serde_json::from_str(value.get()).map_err(|_| InvalidEvent::Field(field, "must be text"))?;
    if is_name(&text) {
        Ok(Some(text))
    } else {
        Err(InvalidEvent::Field(field, "must be 1 to 128 characters of A-Z a-z 0-9 . _ : / -"))
    }
}

/// JSON without line breaks: in valid JSON they are never inside a string.
fn one_line(json: &str) -> Box<str> {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ").into() } else { json.into() }
}

/// An event as it lies in the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// Its id in the log.
    pub id: EntryId,
    /// The incarnation of the log that it was published in.
    pub epoch: Epoch,
    /// Its number in that epoch, from 1 without holes: how a missing one is noticed.
    pub number: u64,
    /// What `topic=` selects.
    pub topic: Option<Box<str>>,
    /// What `severity=` selects.
    pub severity: Option<Box<str>>,
    /// What `module=` selects.
    pub module: Option<Box<str>>,
    /// `event:` line if it has a name, `data:` line, empty line: what follows `id:` on a stream.
    text: Box<str>,
    name_length: usize,
}

impl Event {
    /// The event that `new` became in the log.
    #[must_use]
    pub fn new(id: EntryId, epoch: Epoch, number: u64, new: NewEvent) -> Self {
        let NewEvent { name, topic, severity, module, data } = new;
        let text = match &name {
            Some(name) => format!("event: {name}\ndata: {data}\n\n"),
            None => format!("data: {data}\n\n"),
        };
        let name_length = name.map_or(0, |name| name.len());
        Self { id, epoch, number, topic, severity, module, text: text.into(), name_length }
    }

    /// What follows the `id:` line on a stream, with the empty line that ends the event.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The published data, JSON on one line.
    #[must_use]
    pub fn data(&self) -> &str {
        let line = match self.name_length {
            0 => Some(&*self.text),
            length => self.text.get("event: \n".len() + length..),
        };
        line.and_then(|line| line.strip_prefix("data: ")).map_or("null", |line| line.trim_end_matches('\n'))
    }

    /// The event's name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        let start = "event: ".len();
        (self.name_length > 0).then(|| self.text.get(start..start + self.name_length)).flatten()
    }

    /// Roughly what it occupies in memory, bytes.
    pub(super) fn weight(&self) -> usize {
        let optional = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len() + 16);
        size_of::<Self>()
            + 32
            + self.text.len()
            + [&self.topic, &self.severity, &self.module].map(optional).iter().sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case(r#"{"data":1}"#, None, "1")]
    #[case(r#"{"data":null,"event":null}"#, None, "null")]
    #[case(
        "{\"data\":{\n  \"a\": \"x\\ny\"\r\n}, \"event\":\"news\"}",
        Some("news"),
        "{   \"a\": \"x\\ny\"  }"
    )]
    #[case(r#"{"data":12345678901234567890.123456789,"unknown":[]}"#, None, "12345678901234567890.123456789")]
    fn what_was_published_is_what_is_sent(
        #[case] body: &str,
        #[case] name: Option<&str>,
        #[case] data: &str,
    ) {
        let event = Event::new(EntryId::default(), Epoch(1), 1, NewEvent::parse(body.as_bytes()).unwrap());
        assert_eq!(event.name(), name);
        assert_eq!(event.data(), data);
        assert!(event.text().ends_with("\n\n"));
    }

    #[rstest]
    #[case("[1]", "body")]
    #[case(r#"["a","b","c","d",{}]"#, "body")]
    #[case("{", "body")]
    #[case(r#"{"data":1,"data":2}"#, "body")]
    #[case("{}", "data")]
    #[case(r#"{"data":1,"event":7}"#, "event")]
    #[case(r#"{"data":1,"event":"gap"}"#, "event")]
    #[case(r#"{"data":1,"event":"a\nb"}"#, "event")]
    #[case(r#"{"data":1,"topic":""}"#, "topic")]
    #[case(r#"{"data":1,"severity":"a,b"}"#, "severity")]
    #[case(r#"{"data":1,"module":{}}"#, "module")]
    fn what_is_wrong_is_named(#[case] body: &str, #[case] field: &str) {
        let error = NewEvent::parse(body.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    }

    proptest! {
        #[test]
        fn any_body_is_parsed_or_refused(body: Vec<u8>) {
            let _ = NewEvent::parse(&body);
        }

        #[test]
        fn an_event_never_breaks_out_of_its_lines(text in "\\PC*", name in "[a-z]{1,8}x", pretty: bool) {
            let value = serde_json::json!({"event": name, "data": {"a": text, "b\n": [1, 2]}});
            let body = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let new = NewEvent::parse(body.unwrap().as_bytes()).unwrap();
            let event = Event::new(EntryId::default(), Epoch(1), 1, new);
            prop_assert_eq!(event.text().matches('\n').count(), 3);
            let data: serde_json::Value = serde_json::from_str(event.data()).unwrap();
            prop_assert_eq!(&data, &value["data"]);
        }
    }
}
