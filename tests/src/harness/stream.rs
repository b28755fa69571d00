//! Streams as a client sees them: one connection, or a follower that reconnects as an EventSource does.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use hyper::Method;
use tokio::task::JoinHandle;

use super::{
    STREAM,
    http::{Body, Route},
};

/// One event as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Its name, `message` without one.
    pub name: String,
    /// Its cursor, if it had one.
    pub id: Option<String>,
    /// Its data.
    pub data: String,
    /// A `retry:` that came with it, milliseconds.
    pub retry: Option<u64>,
}

/// One connection of a stream.
pub struct EventStream {
    body: Body,
    text: String,
}

impl EventStream {
    /// Opens a stream.
    ///
    /// # Errors
    /// The refusal or failure, in words.
    pub async fn open(route: &Route, query: &str, headers: &[(&str, &str)]) -> Result<Self, String> {
        let answer = route.send(Method::GET, &format!("{STREAM}{query}"), headers, "").await?;
        if answer.status() != 200 {
            return Err(format!("the stream was refused with {}", answer.status()));
        }
        Ok(Self { body: answer.into_body(), text: String::new() })
    }

    /// The next event; `None` at the end of the stream or when nothing comes `within` that time.
    pub async fn next(&mut self, within: Duration) -> Option<Received> {
        tokio::time::timeout(within, self.read()).await.ok().flatten()
    }

    /// The next event of this name; panics when there is none `within` that time.
    pub async fn until(&mut self, name: &str, within: Duration) -> Received {
        let search = async {
            while let Some(event) = self.read().await {
                if event.name == name {
                    return event;
                }
            }
            panic!("the stream ended before an event {name}")
        };
        tokio::time::timeout(within, search)
            .await
            .unwrap_or_else(|_| panic!("no event {name} within {within:?}"))
    }

    async fn read(&mut self) -> Option<Received> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let event = parse(&self.text[..end]);
                self.text.drain(..end + 2);
                if event != Received::default() {
                    return Some(event);
                }
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.text.push_str(&String::from_utf8_lossy(data));
            }
        }
    }
}

fn parse(block: &str) -> Received {
    let mut event = Received::default();
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("event", name)) => name.clone_into(&mut event.name),
            Some(("id", id)) => event.id = Some(id.to_owned()),
            Some(("data", data)) => event.data.push_str(data),
            Some(("retry", retry)) => event.retry = retry.parse().ok(),
            _ => {}
        }
    }
    if event.name.is_empty() && !event.data.is_empty() {
        "message".clone_into(&mut event.name);
    }
    event
}

#[derive(Default)]
struct Log {
    messages: Vec<String>,
    gaps: u32,
    connected: Vec<Instant>,
    refusals: Vec<String>,
    last: Option<Instant>,
    longest_silence: Duration,
    longest_silence_beyond_retry: Duration,
}

/// A client that reconnects after every end with its last cursor, as browsers do.
pub struct Follower {
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Begins to follow with this token; resolves once the first snapshot is there.
    pub async fn start(route: Route, token: String) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let (shared, ready) = (Arc::clone(&log), Arc::clone(&log));
        let task = tokio::spawn(follow(route, token, shared));
        super::eventually("a follower gets its snapshot", Duration::from_secs(15), async || {
            ready.lock().unwrap().last.map(|_| ())
        })
        .await;
        Self { log, task }
    }

    /// Data of every unnamed event so far, in order of arrival.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        self.log.lock().unwrap().messages.clone()
    }

    /// Gaps that it was told of.
    #[must_use]
    pub fn gaps(&self) -> u32 {
        self.log.lock().unwrap().gaps
    }

    /// When each of its connections was made.
    #[must_use]
    pub fn connected(&self) -> Vec<Instant> {
        self.log.lock().unwrap().connected.clone()
    }

    /// Connections that it has made.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.log.lock().unwrap().connected.len()
    }

    /// Attempts that were refused or failed, in words.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        self.log.lock().unwrap().refusals.clone()
    }

    /// Counts silence from what comes next.
    pub fn forget_silence(&self) {
        let mut log = self.log.lock().unwrap();
        (log.last, log.longest_silence, log.longest_silence_beyond_retry) = Default::default();
    }

    /// Longest time between two things on the stream, reconnects included.
    #[must_use]
    pub fn longest_silence(&self) -> Duration {
        self.log.lock().unwrap().longest_silence
    }

    /// Longest time between two things on the stream beyond the `retry:` that held then.
    #[must_use]
    pub fn longest_silence_beyond_retry(&self) -> Duration {
        self.log.lock().unwrap().longest_silence_beyond_retry
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(route: Route, token: String, log: Arc<Mutex<Log>>) {
    let (mut cursor, mut retry) = (None::<String>, Duration::from_millis(500));
    loop {
        let headers: Vec<(&str, &str)> =
            cursor.iter().map(|cursor| ("last-event-id", cursor.as_str())).collect();
        match EventStream::open(&route, &format!("?token={token}"), &headers).await {
            Ok(mut stream) => {
                log.lock().unwrap().connected.push(Instant::now());
                while let Some(event) = stream.read().await {
                    let mut log = log.lock().unwrap();
                    let now = Instant::now();
                    if let Some(last) = log.last.replace(now) {
                        let silence = now - last;
                        log.longest_silence = log.longest_silence.max(silence);
                        log.longest_silence_beyond_retry =
                            log.longest_silence_beyond_retry.max(silence.saturating_sub(retry));
                    }
                    if let Some(milliseconds) = event.retry {
                        retry = Duration::from_millis(milliseconds);
                    }
                    match event.name.as_str() {
                        "message" => log.messages.push(event.data),
                        "gap" => log.gaps += 1,
                        _ => {}
                    }
                    cursor = event.id.or(cursor);
                }
            }
            Err(error) => log.lock().unwrap().refusals.push(error),
        }
        tokio::time::sleep(retry).await;
    }
}
