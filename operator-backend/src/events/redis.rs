//! The log in Redis: publishing in one round trip, and the one reader of this instance.
//!
//! The stream `vx11:events` holds the events, the hash `vx11:events:state` the epoch (see `publish.lua`).
//! The reader blocks in XREAD on a connection of its own and resumes by id after any disconnect; pub/sub
//! would drop what it cannot deliver.

use std::{sync::Arc, time::Duration};

use redis::{
    Cmd, FromRedisValue, RedisError,
    aio::MultiplexedConnection,
    streams::{StreamId, StreamRangeReply, StreamReadReply},
};

use super::{EntryId, Epoch, Event, Keep, Mirror, NewEvent, PublishError};
use crate::redis_link::{LinkError, RedisLink};

const STREAM: &str = "vx11:events";
const STATE: &str = "vx11:events:state";
const SCRIPT: &str = include_str!("publish.lua");
/// How long an idempotency key is remembered, seconds.
const KEY_LIFE: u32 = 300;
/// How long a publisher waits before the outcome counts as unknown.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(1);
/// How long one XREAD blocks. Between two the epoch is looked at: a log that was flushed and has got
/// nothing since would not be noticed otherwise.
const BLOCK: Duration = Duration::from_secs(1);
/// A reader that hears nothing for this long connects again.
const SILENCE: Duration = Duration::from_millis(1800);
/// Pause between attempts to connect: fan-out resumes well within 1 s of Redis' return.
const PAUSE: Duration = Duration::from_millis(150);
/// Events that one command reads at most.
const PAGE: usize = 500;

pub(super) struct RedisLog {
    link: RedisLink,
    keep: Keep,
    hash: String,
}

/// What the script says of the log.
struct Head {
    epoch: Epoch,
    base: EntryId,
    number: u64,
    last: EntryId,
}

impl RedisLog {
    pub(super) fn new(link: RedisLink, keep: Keep) -> Self {
        Self { link, keep, hash: redis::Script::new(SCRIPT).get_hash().to_owned() }
    }

    pub(super) async fn publish(&self, event: NewEvent, key: Option<&str>) -> Result<EntryId, PublishError> {
        let outcome = match self.try_publish("EVALSHA", &self.hash, &event, key).await {
            Err(LinkError::Answer(text)) if text.contains("NOSCRIPT") => {
                self.try_publish("EVAL", SCRIPT, &event, key).await
            }
            outcome => outcome,
        };
        match outcome {
            Ok(id) => id.parse().map_err(|_| PublishError::Unknown),
            Err(error @ (LinkError::Down | LinkError::Answer(_))) => {
                tracing::debug!(%error, "cannot publish");
                Err(PublishError::Unavailable)
            }
            Err(LinkError::Deadline | LinkError::Connection) => Err(PublishError::Unknown),
        }
    }

    async fn try_publish(
        &self,
        eval: &str,
        script: &str,
        event: &NewEvent,
        key: Option<&str>,
    ) -> Result<String, LinkError> {
        let NewEvent { name, topic, severity, module, data } = event;
        let idempotency = key.map(|key| format!("vx11:idempotency:{key}"));
        let mut command = self.script(eval, script, idempotency.as_deref());
        command.arg(KEY_LIFE);
        for (field, value) in [("event", name), ("topic", topic), ("severity", severity), ("module", module)]
        {
            if let Some(value) = value {
                command.arg(field).arg(&**value);
            }
        }
        command.arg("data").arg(&**data);
        self.link.query(&command, PUBLISH_DEADLINE).await
    }

    fn script(&self, eval: &str, script: &str, idempotency: Option<&str>) -> Cmd {
        let mut command = redis::cmd(eval);
        command.arg(script).arg(2 + usize::from(idempotency.is_some())).arg(STATE).arg(STREAM);
        if let Some(key) = idempotency {
            command.arg(key);
        }
        let candidate = Epoch(rand::random());
        let Keep { events, bytes, milliseconds } = self.keep;
        command.arg(format!("{:08x}", candidate.0)).arg(events).arg(bytes).arg(milliseconds);
        command
    }
}

/// Follows the log until the process ends.
pub(super) async fn follow(log: Arc<RedisLog>, mirror: Arc<Mirror>) {
    loop {
        if let Err(error) = follow_once(&log, &mirror).await {
            // The link tells people about outages; this is the reader's own view of the same.
            tracing::debug!(%error, "the event reader connects again");
        }
        mirror.follow(false);
        tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
    }
}

async fn follow_once(log: &RedisLog, mirror: &Mirror) -> Result<(), RedisError> {
    let mut reader = Reader { log, mirror, connection: log.link.connect_dedicated(SILENCE).await? };
    loop {
        let from = reader.synchronise().await?;
        mirror.follow(true);
        reader.read_epoch(from).await?;
    }
}

struct Reader<'a> {
    log: &'a RedisLog,
    mirror: &'a Mirror,
    connection: MultiplexedConnection,
}

impl Reader<'_> {
    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        command.query_async(&mut self.connection).await
    }

    async fn head(&mut self) -> Result<Head, RedisError> {
        let command = self.log.script("EVALSHA", &self.log.hash, None);
        let outcome: Result<(String, String, u64, String), _> = self.ask(&command).await;
        let (epoch, base, number, last) = match outcome {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                let command = self.log.script("EVAL", SCRIPT, None);
                self.ask(&command).await?
            }
            outcome => outcome?,
        };
        let id = |text: &str| text.parse().map_err(|_| broken("an id"));
        let epoch = u32::from_str_radix(&epoch, 16).map(Epoch).map_err(|_| broken("the epoch"))?;
        Ok(Head { epoch, base: id(&base)?, number, last: id(&last)? })
    }

    /// Brings the mirror to the epoch of the log; returns after which id to read on.
    async fn synchronise(&mut self) -> Result<EntryId, RedisError> {
        let head = self.head().await?;
        let Some(place) = self.mirror.place() else {
            return self.load(&head).await;
        };
        if place.epoch == head.epoch {
            return Ok(place.id);
        }
        // What was published before the epoch began and this reader has not seen yet.
        let mut from = place.id;
        while from < head.base {
            let mut command = redis::cmd("XRANGE");
            command.arg(STREAM).arg(format!("({from}")).arg(head.base.to_string()).arg("COUNT").arg(PAGE);
            let page: StreamRangeReply = self.ask(&command).await?;
            let Some(last) = page.ids.last() else { break };
            from = parse_id(last)?;
            self.mirror.append(page.ids.iter().filter_map(parse).collect());
        }
        self.mirror.begin(head.epoch, head.base);
        Ok(head.base)
    }

    /// Fills the empty mirror with the end of the log.
    async fn load(&mut self, head: &Head) -> Result<EntryId, RedisError> {
        let (mut events, mut bytes, mut end) = (Vec::new(), 0, "+".to_owned());
        while events.len() < self.log.keep.events && bytes < self.log.keep.bytes {
            let mut command = redis::cmd("XREVRANGE");
            command.arg(STREAM).arg(&end).arg("-").arg("COUNT").arg(PAGE);
            let page: StreamRangeReply = self.ask(&command).await?;
            let Some(last) = page.ids.last() else { break };
            end = format!("({}", last.id);
            for event in page.ids.iter().filter_map(parse) {
                bytes += event.weight();
                events.push(event);
            }
        }
        events.reverse();
        // Events may have come since the head was read, even a new epoch: then the newest tells.
        let newest = events.last().map_or(head.last, |event| event.id.max(head.last));
        if let Some(event) = events.last()
            && event.epoch != head.epoch
            && event.id > head.last
        {
            return Err(broken("an epoch that began just now"));
        }
        self.mirror.load(head.epoch, head.last, head.number, events);
        Ok(newest)
    }

    /// Reads on until the log is of another epoch than the mirror.
    async fn read_epoch(&mut self, mut from: EntryId) -> Result<(), RedisError> {
        loop {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(PAGE).arg("BLOCK").arg(BLOCK.as_millis().to_string());
            command.arg("STREAMS").arg(STREAM).arg(from.to_string());
            let reply: Option<StreamReadReply> = self.ask(&command).await?;
            let current = self.mirror.place().map(|place| place.epoch);
            let Some(page) = reply.and_then(|reply| reply.keys.into_iter().next()) else {
                if Some(self.head().await?.epoch) != current {
                    return Ok(());
                }
                continue;
            };
            let mut events = Vec::with_capacity(page.ids.len());
            let mut another = false;
            for entry in &page.ids {
                let event = parse(entry);
                another = event.as_ref().is_some_and(|event| Some(event.epoch) != current);
                if another {
                    break;
                }
                from = parse_id(entry)?;
                events.extend(event);
            }
            if !events.is_empty() {
                self.mirror.append(events);
            }
            if another {
                return Ok(());
            }
        }
    }
}

fn broken(what: &'static str) -> RedisError {
    RedisError::from((
        redis::ErrorKind::UnexpectedReturnType,
        "the event log in Redis is damaged",
        what.to_owned(),
    ))
}

fn parse_id(entry: &StreamId) -> Result<EntryId, RedisError> {
    entry.id.parse().map_err(|_| broken("an id"))
}

/// The event of an entry; `None` for what somebody else has written there.
fn parse(entry: &StreamId) -> Option<Event> {
    let text = |field: &str| entry.get::<String>(field);
    let boxed = |field: &str| text(field).map(String::into_boxed_str);
    let epoch = u32::from_str_radix(&text("epoch")?, 16).map(Epoch).ok()?;
    let new = NewEvent {
        name: boxed("event"),
        topic: boxed("topic"),
        severity: boxed("severity"),
        module: boxed("module"),
        data: boxed("data")?,
    };
    Some(Event::new(parse_id(entry).ok()?, epoch, entry.get("number")?, new))
}
