//! The stream engine over real sockets: resume, limits, slow and vanished clients, drain, Redis outages.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Backend, Client, Directory, EventStream, PRINCIPAL_TOKEN, RedisServer, eventually};
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

const STREAM: &str = "/operator/api/events/stream";
const PUBLISH: &str = "/operator/api/events";
const AUTH: (&str, &str) = ("x-vx11-token", PRINCIPAL_TOKEN);
const SOON: Duration = Duration::from_secs(5);

async fn publish(backend: &Backend, data: &str) {
    let answer = backend.post(PUBLISH, &[AUTH], format!(r#"{{"data":{data}}}"#)).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
}

fn id(block: &str) -> String {
    let line = block.lines().find_map(|line| line.strip_prefix("id: "));
    line.unwrap_or_else(|| panic!("no id in {block}")).to_owned()
}

/// A stream that the HTTP server carries: the second request of its connection.
async fn over_http_server(backend: &Backend, path: &str, headers: &[(&str, &str)]) -> EventStream {
    let client = Client::new(backend.port());
    assert_eq!(client.get("/health", &[]).await.status, 200);
    client.stream(path, headers).await
}

async fn open(backend: &Backend, reused: bool, path: &str, headers: &[(&str, &str)]) -> EventStream {
    if reused {
        over_http_server(backend, path, headers).await
    } else {
        Client::new(backend.port()).stream(path, headers).await
    }
}

#[rstest]
#[tokio::test]
async fn a_stream_says_the_same_whoever_carries_it(#[values(false, true)] reused: bool) {
    let backend = Backend::alone(&["--heartbeat", "1"]);
    for number in 0..7 {
        publish(&backend, &number.to_string()).await;
    }
    let mut stream = open(&backend, reused, STREAM, &[AUTH, ("x-correlation-id", "mine")]).await;
    assert_eq!(stream.headers["x-correlation-id"], "mine");
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert_eq!(stream.headers["cache-control"], "no-store, no-transform");
    assert!(stream.headers.contains_key("date"));
    assert_eq!(stream.headers.contains_key("connection"), !reused, "which path this is");
    assert!(stream.next(SOON).await.unwrap().starts_with("retry: "));
    let snapshot = stream.next(SOON).await.unwrap();
    let data = snapshot.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    let latest: Vec<_> =
        data["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
    assert_eq!(latest, [2, 3, 4, 5, 6]);
    assert_eq!(data["correlation_id"], "mine");
    let before = id(&snapshot);
    publish(&backend, "7").await;
    let event = stream.until("data: 7", SOON).await;
    assert!(!event.contains("event:"), "{event}");
    assert!(id(&event) > before);
    let beat = stream.until("event: heartbeat", SOON).await;
    assert!(beat.contains(r#""type":"heartbeat""#) && !id(&beat).is_empty(), "{beat}");
    eventually("the stream is counted", SOON, async || backend.metric("vx11_sse_streams_open").await > 0.5)
        .await;
    drop(stream);
    eventually("its end is counted", SOON, async || backend.metric("vx11_sse_streams_open").await < 0.5)
        .await;
}

#[rstest]
#[tokio::test]
async fn a_cursor_resumes_on_another_instance_with_nothing_lost_and_nothing_twice(
    #[values(false, true)] reused: bool,
) {
    let redis = RedisServer::start();
    let (a, b) = (Backend::with_redis(&redis, &[]), Backend::with_redis(&redis, &[]));
    let mut stream = open(&a, reused, STREAM, &[AUTH]).await;
    stream.until("event: snapshot", SOON).await;
    publish(&a, "1").await;
    let seen = id(&stream.until("data: 1", SOON).await);
    drop(stream);
    for number in 2..300 {
        publish(if number % 2 == 0 { &a } else { &b }, &number.to_string()).await;
    }
    let mut stream = open(&b, reused, STREAM, &[AUTH, ("last-event-id", &seen)]).await;
    stream.until("event: snapshot", SOON).await;
    publish(&a, "300").await;
    for number in 2..=300 {
        let event = stream.next(SOON).await.unwrap();
        assert!(event.ends_with(&format!("data: {number}")), "{number} was due, not {event}");
    }
}

#[rstest]
#[tokio::test]
async fn a_cursor_opens_the_stream_again_when_the_token_has_expired(#[values(false, true)] reused: bool) {
    let backend = Backend::alone(&["--token-ttl", "1", "--resume-window", "4", "--heartbeat", "300"]);
    let token = backend.token().await;
    let path = format!("{STREAM}?token={token}&topic=a");
    let mut stream = open(&backend, reused, &path, &[]).await;
    let cursor = id(&stream.until("event: snapshot", SOON).await);
    drop(stream);
    eventually("the token expires", SOON, async || backend.redeem(&token).await == 403).await;
    let resumed = open(&backend, reused, &path, &[("last-event-id", &cursor)]).await;
    assert_eq!(resumed.status, 200);
    let in_query = open(&backend, reused, &format!("{path}&lastEventId={cursor}"), &[]).await;
    assert_eq!(in_query.status, 200);
    let other_topic = format!("{STREAM}?token={token}&topic=b");
    assert_eq!(open(&backend, reused, &other_topic, &[("last-event-id", &cursor)]).await.status, 403);
    let forged = format!("{}A", &cursor[..cursor.len() - 1]);
    let forged = if forged == cursor { format!("{}Q", &cursor[..cursor.len() - 1]) } else { forged };
    assert_eq!(open(&backend, reused, &path, &[("last-event-id", &forged)]).await.status, 403);
    eventually("the cursor expires", 2 * SOON, async || {
        open(&backend, reused, &path, &[("last-event-id", &cursor)]).await.status == 403
    })
    .await;
    // With another credential an expired cursor still says where to resume.
    let mut stream =
        open(&backend, reused, &format!("{STREAM}?topic=a"), &[AUTH, ("last-event-id", &cursor)]).await;
    stream.until("event: snapshot", SOON).await;
    let answer = backend.post(PUBLISH, &[AUTH], r#"{"topic":"a","data":"after"}"#).await;
    assert_eq!(answer.status, 202);
    assert!(stream.next(SOON).await.unwrap().ends_with(r#"data: "after""#), "no gap before it");
}

#[tokio::test]
async fn an_unknown_cursor_is_told_as_a_gap() {
    let backend = Backend::alone(&[]);
    for cursor in ["rubbish", "1.AAAAAA.AAAAAA.AAAAAA.1-0.AAAAAA.AAAAAAAAAAAAAAAAAAAAAA"] {
        let mut stream = backend.stream(STREAM, &[AUTH, ("last-event-id", cursor)]).await;
        let gap = stream.until("event: gap", SOON).await;
        assert!(gap.contains(r#""reason":"unknown_cursor""#), "{gap}");
    }
}

#[tokio::test]
async fn a_cursor_of_what_is_trimmed_gets_a_gap_and_then_all_there_is() {
    let backend = Backend::alone(&["--event-history", "5"]);
    let mut stream = backend.stream(STREAM, &[AUTH]).await;
    let cursor = id(&stream.until("event: snapshot", SOON).await);
    drop(stream);
    for number in 0..8 {
        publish(&backend, &number.to_string()).await;
    }
    let mut stream = backend.stream(STREAM, &[AUTH, ("last-event-id", &cursor)]).await;
    stream.until("event: snapshot", SOON).await;
    let gap = stream.next(SOON).await.unwrap();
    assert!(gap.contains(r#""reason":"trimmed""#), "{gap}");
    for number in 3..8 {
        assert!(stream.next(SOON).await.unwrap().ends_with(&format!("data: {number}")));
    }
}

#[rstest]
#[tokio::test]
async fn filters_let_through_what_matches_every_field(#[values(false, true)] reused: bool) {
    let backend = Backend::alone(&[]);
    let mut stream = open(&backend, reused, &format!("{STREAM}?topic=a,b&severity=high"), &[AUTH]).await;
    stream.until("event: snapshot", SOON).await;
    for (topic, severity, number) in [("a", "low", 1), ("c", "high", 2), ("a", "high", 3), ("b", "high", 4)] {
        let body = format!(r#"{{"topic":"{topic}","severity":"{severity}","data":{number}}}"#);
        assert_eq!(backend.post(PUBLISH, &[AUTH], body).await.status, 202);
    }
    assert!(stream.next(SOON).await.unwrap().ends_with("data: 3"));
    assert!(stream.next(SOON).await.unwrap().ends_with("data: 4"));
    let impossible = open(&backend, reused, &format!("{STREAM}?topic=a%20b"), &[AUTH]).await;
    assert_eq!(impossible.status, 422);
}

#[rstest]
#[case::instance("--max-clients", "instance_full")]
#[case::principal("--max-clients-per-principal", "principal_full")]
#[case::address("--max-clients-per-address", "address_full")]
#[tokio::test]
async fn a_full_instance_refuses_browsers_softly_and_others_with_503(
    #[case] flag: &'static str,
    #[case] reason: &str,
    #[values(false, true)] reused: bool,
) {
    let backend = Backend::alone(&[flag, "1"]);
    let first = open(&backend, reused, STREAM, &[AUTH]).await;
    assert_eq!(first.status, 200);
    let browser =
        [AUTH, ("accept", "text/event-stream"), ("cache-control", "no-cache"), ("sec-fetch-mode", "cors")];
    let mut refused = open(&backend, reused, STREAM, &browser).await;
    assert_eq!(
        (refused.status, refused.headers["content-type"].to_str().unwrap()),
        (200, "text/event-stream")
    );
    let retry: u32 = refused.next(SOON).await.unwrap().strip_prefix("retry: ").unwrap().parse().unwrap();
    assert!((2000..=6000).contains(&retry), "{retry}");
    let overloaded = refused.next(SOON).await.unwrap();
    assert!(overloaded.contains("event: overloaded") && overloaded.contains(reason), "{overloaded}");
    assert_eq!(refused.next(SOON).await, None);

    let answer = backend.get(STREAM, &[AUTH]).await;
    assert_eq!((answer.status, answer.detail().as_str()), (503, reason));
    assert!((2..=6).contains(&answer.header("retry-after").unwrap().parse::<u32>().unwrap()));
    drop(first);
    eventually("there is room again", SOON, async || backend.stream(STREAM, &[AUTH]).await.status == 200)
        .await;
}

#[tokio::test]
async fn a_full_instance_uses_up_no_single_use_token() {
    let backend = Backend::alone(&["--max-clients", "1", "--single-use-tokens"]);
    let token = backend.token().await;
    let first = backend.stream(STREAM, &[AUTH]).await;
    assert_eq!(backend.redeem(&token).await, 503);
    drop(first);
    eventually("the token still opens a stream", SOON, async || backend.redeem(&token).await == 200).await;
}

async fn raw(port: u16, receive_buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(size) = receive_buffer {
        socket.set_recv_buffer_size(size).unwrap();
    }
    let mut socket = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let request = format!("GET {STREAM} HTTP/1.1\r\nHost: x\r\nX-VX11-Token: {PRINCIPAL_TOKEN}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// Resident memory of a process, KiB.
fn resident(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn r10_clients_that_stop_reading_are_cut_within_10_s_and_cost_no_memory() {
    let backend = Backend::alone(&["--max-clients", "0"]);
    let mut reader = backend.stream(STREAM, &[AUTH]).await;
    reader.until("event: snapshot", SOON).await;
    let mut stalled = Vec::new();
    for _ in 0..50 {
        stalled.push(raw(backend.port(), Some(4096)).await);
    }
    eventually("all are streaming", SOON, async || backend.metric("vx11_sse_streams_open").await > 50.5)
        .await;
    let before = resident(backend.process_id());
    let begun = Instant::now();
    let filler = "x".repeat(8000);
    for number in 0..100 {
        publish(&backend, &format!("[{number},\"{filler}\"]")).await;
        reader.until(&format!("[{number},"), SOON).await;
    }
    eventually("the stalled are cut", Duration::from_secs(12), async || {
        backend.metric("vx11_sse_slow_clients_cut_total").await > 49.5
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    // The mirror keeps the 800 KiB of events; a queue for each would have kept 40 MiB.
    let grown = resident(backend.process_id()).saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more");
    publish(&backend, "\"last\"").await;
    reader.until("last", SOON).await;
    assert!((backend.metric("vx11_sse_streams_open").await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_client_that_was_slow_and_reads_again_in_time_loses_nothing() {
    let backend = Backend::alone(&[]);
    let mut socket = raw(backend.port(), Some(4096)).await;
    let filler = "x".repeat(8000);
    eventually("it streams", SOON, async || backend.metric("vx11_sse_streams_open").await > 0.5).await;
    for number in 0..100 {
        publish(&backend, &format!("[{number},\"{filler}\"]")).await;
    }
    let (mut text, mut buffer) = (String::new(), vec![0; 64 * 1024]);
    while !text.contains("data: [99,") {
        let read = timeout(SOON, socket.read(&mut buffer)).await.expect("more").unwrap();
        assert!(read > 0, "cut");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    let numbers: Vec<u32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: [")?.split(',').next()?.parse().ok())
        .collect();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_head_that_never_ends_or_is_too_large_gets_its_answer() {
    let backend = Backend::alone(&[]);
    let mut slow = TcpStream::connect(("127.0.0.1", backend.port())).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let mut large = TcpStream::connect(("127.0.0.1", backend.port())).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "a".repeat(17_000));
    large.write_all(head.as_bytes()).await.unwrap();
    for (mut socket, status) in [(large, "431"), (slow, "408")] {
        let mut answer = String::new();
        timeout(Duration::from_secs(12), socket.read_to_string(&mut answer))
            .await
            .expect("an answer")
            .unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[tokio::test]
async fn a_request_behind_the_first_one_is_answered_too() {
    let backend = Backend::alone(&[]);
    let mut socket = TcpStream::connect(("127.0.0.1", backend.port())).await.unwrap();
    let two = "GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /operator/api/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    socket.write_all(two.as_bytes()).await.unwrap();
    let mut answers = String::new();
    timeout(SOON, socket.read_to_string(&mut answers)).await.expect("both answers").unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

#[rstest]
#[tokio::test]
async fn r12_a_drain_is_flat_and_in_time_and_everyone_gets_a_drain_event(
    #[values(false, true)] reused: bool,
) {
    let backend = Backend::alone(&["--drain", "2", "--max-clients", "0"]);
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = open(&backend, reused, STREAM, &[AUTH]).await;
        stream.until("event: snapshot", SOON).await;
        streams.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(backend.admin().post("/drain", &[], "").await.status, 202);
    let closings = streams.into_iter().map(async |mut stream| {
        let last = stream.until("event: drain", SOON).await;
        let retry: u32 = last.lines().next().unwrap().strip_prefix("retry: ").unwrap().parse().unwrap();
        assert_eq!(stream.next(SOON).await, None, "the stream ends");
        (begun.elapsed(), retry)
    });
    let closings = futures::future::join_all(closings).await;
    let mut tenths = [0; 10];
    for (moment, retry) in &closings {
        assert!((1000..=3000).contains(retry), "{retry}");
        tenths[usize::try_from(moment.as_millis() / 200).unwrap().min(9)] += 1;
        assert!(*moment < Duration::from_millis(2500), "{moment:?}");
    }
    // Ten are due in each tenth; two more or less for the shards' own beginnings, more for a busy machine.
    assert!(tenths.iter().all(|count| (3..=22).contains(count)), "{tenths:?}");
    let retries: std::collections::HashSet<u32> = closings.iter().map(|(_, retry)| *retry).collect();
    assert!(retries.len() > 50, "each has its own time to come back");
}

#[rstest]
#[tokio::test]
async fn a_cancelled_drain_leaves_the_rest_open(#[values(false, true)] reused: bool) {
    let backend = Backend::alone(&["--drain", "60"]);
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = open(&backend, reused, STREAM, &[AUTH]).await;
        stream.until("event: snapshot", SOON).await;
        streams.push(stream);
    }
    assert_eq!(backend.admin().post("/drain", &[], "").await.status, 202);
    eventually("new streams are refused", SOON, async || backend.get(STREAM, &[AUTH]).await.status == 503)
        .await;
    assert_eq!(backend.admin().request("DELETE", "/drain", &[], "").await.status, 200);
    eventually("new streams are taken", SOON, async || backend.stream(STREAM, &[AUTH]).await.status == 200)
        .await;
    publish(&backend, "\"still here\"").await;
    for stream in &mut streams {
        stream.until("still here", SOON).await;
    }
}

#[rstest]
#[tokio::test]
async fn streams_of_a_principal_that_is_removed_end_and_say_why(#[values(false, true)] reused: bool) {
    let directory = Directory::new();
    directory.write("team-a", "token-of-team-a");
    let backend = Backend::alone(&["--principal-tokens-dir", directory.path().to_str().unwrap()]);
    let mut other = open(&backend, reused, STREAM, &[AUTH]).await;
    let mut stream = open(&backend, reused, STREAM, &[("x-vx11-token", "token-of-team-a")]).await;
    stream.until("event: snapshot", SOON).await;
    std::fs::remove_file(directory.path().join("team-a")).unwrap();
    let last = stream.until("event: error", SOON).await;
    assert!(last.contains("principal_removed"), "{last}");
    assert_eq!(stream.next(SOON).await, None);
    publish(&backend, "\"others go on\"").await;
    other.until("others go on", SOON).await;
}

#[tokio::test]
async fn r5_r8_a_redis_that_dies_closes_no_stream_and_fan_out_resumes_within_1_s() {
    let mut redis = RedisServer::start();
    let (a, b) = (
        Backend::with_redis(&redis, &["--heartbeat", "1"]),
        Backend::with_redis(&redis, &["--heartbeat", "1"]),
    );
    let (mut direct, mut reused) =
        (a.stream(STREAM, &[AUTH]).await, over_http_server(&b, STREAM, &[AUTH]).await);
    for stream in [&mut direct, &mut reused] {
        stream.until("event: snapshot", SOON).await;
    }
    redis.kill();
    for stream in [&mut direct, &mut reused] {
        for _ in 0..3 {
            stream.until("event: heartbeat", Duration::from_millis(2500)).await;
        }
    }
    let outcome = a.post(PUBLISH, &[AUTH], r#"{"data":1}"#).await;
    assert!(matches!(outcome.status, 503 | 504), "{}", outcome.text());
    // A stream that begins now waits for the log, and is told that it does not know what it missed.
    let mut late = a.stream(STREAM, &[AUTH]).await;
    late.until("event: snapshot", SOON).await;
    redis.restart();
    let returned = Instant::now();
    eventually("publishing works again", Duration::from_secs(1), async || {
        a.post(PUBLISH, &[AUTH], r#"{"data":"again"}"#).await.status == 202
    })
    .await;
    for stream in [&mut direct, &mut reused, &mut late] {
        let gap = stream.until("event: ", SOON).await;
        let gap = if gap.contains("heartbeat") { stream.until("event: gap", SOON).await } else { gap };
        assert!(gap.contains(r#""reason":"restarted""#), "{gap}");
        stream.until("again", SOON).await;
    }
    assert!(returned.elapsed() < Duration::from_secs(1), "{:?}", returned.elapsed());
}

#[tokio::test]
async fn r7_a_publisher_that_retries_with_its_key_through_a_frozen_redis_publishes_once() {
    let redis = RedisServer::start();
    let backend = Backend::with_redis(&redis, &[]);
    let mut stream = backend.stream(STREAM, &[AUTH]).await;
    stream.until("event: snapshot", SOON).await;
    redis.freeze();
    let try_once = async || {
        let headers = [AUTH, ("idempotency-key", "the-key")];
        backend.post(PUBLISH, &headers, r#"{"data":"once"}"#).await.status
    };
    let first = try_once().await;
    assert!(matches!(first, 503 | 504), "{first}");
    redis.thaw();
    eventually("a retry is accepted", SOON, async || try_once().await == 202).await;
    publish(&backend, "\"end\"").await;
    let mut blocks = Vec::new();
    loop {
        let block = stream.next(SOON).await.unwrap();
        let end = block.contains("\"end\"");
        blocks.push(block);
        if end {
            break;
        }
    }
    assert_eq!(blocks.iter().filter(|block| block.contains("once")).count(), 1, "{blocks:#?}");
}

#[tokio::test]
async fn r9_clients_of_a_killed_instance_resume_on_another_without_loss() {
    let redis = RedisServer::start();
    let (mut a, b) = (Backend::with_redis(&redis, &[]), Backend::with_redis(&redis, &[]));
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = a.stream(STREAM, &[AUTH]).await;
        let cursor = id(&stream.until("event: snapshot", SOON).await);
        streams.push((stream, cursor, 0));
    }
    for number in 1..=20 {
        publish(&b, &number.to_string()).await;
        if number == 10 {
            a.kill();
        }
    }
    for (mut stream, mut cursor, mut seen) in streams {
        while let Some(block) = stream.next(SOON).await {
            if let Some(number) = block.lines().find_map(|line| line.strip_prefix("data: ")?.parse().ok()) {
                assert_eq!(number, seen + 1);
                (seen, cursor) = (number, id(&block));
            }
        }
        let mut stream = b.stream(STREAM, &[AUTH, ("last-event-id", &cursor)]).await;
        stream.until("event: snapshot", SOON).await;
        for number in seen + 1..=20 {
            assert!(stream.next(SOON).await.unwrap().ends_with(&format!("data: {number}")));
        }
    }
}

/// A namespace whose line to this host can be cut, as when a laptop closes: nobody says goodbye.
struct Elsewhere(String);

fn run(command: &str) {
    let status = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command} (needs root and iproute2)");
}

impl Elsewhere {
    fn new() -> Self {
        let name = format!("vx11s{}", std::process::id());
        let elsewhere = Self(name.clone());
        run(&format!(
            "ip netns add {name} && ip link add {name}a type veth peer name {name}b netns {name} && \
             ip addr add 198.18.77.1/30 dev {name}a && ip link set {name}a up && \
             ip -n {name} addr add 198.18.77.2/30 dev {name}b && ip -n {name} link set {name}b up && \
             ip -n {name} link set lo up"
        ));
        elsewhere
    }

    fn cut(&self) {
        run(&format!("ip -n {0} link set {0}b down", self.0));
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let name = &self.0;
        let removal = format!("ip link del {name}a; ip netns del {name}");
        let _ = std::process::Command::new("sh").args(["-c", &removal]).status();
    }
}

#[tokio::test]
async fn r11_vanished_peers_are_gone_within_30_s() {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        eprintln!("skipped: only root may make a network namespace");
        return;
    }
    let elsewhere = Elsewhere::new();
    let backend = Backend::alone(&["--listen", "198.18.77.1:0"]);
    let health = format!("http://198.18.77.1:{}/health", backend.port());
    let probe = ["netns", "exec", &elsewhere.0, "curl", "-s", "-m", "1", "-o", "/dev/null", &health];
    eventually("the line is up", SOON, async || {
        let status = std::process::Command::new("ip").args(probe).status();
        status.unwrap().success()
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let client = std::process::Command::new("ip")
            .args(["netns", "exec", &elsewhere.0, "curl", "-sN", "-o", "/dev/null"])
            .arg(format!("http://198.18.77.1:{}{STREAM}", backend.port()))
            .args(["-H", &format!("X-VX11-Token: {PRINCIPAL_TOKEN}")])
            .spawn()
            .unwrap();
        clients.push(client);
    }
    let open = async || backend.metric("vx11_sse_streams_open").await;
    eventually("all are streaming", SOON, async || open().await > 4.5).await;
    elsewhere.cut();
    eventually("all are gone", Duration::from_secs(30), async || open().await < 0.5).await;
    for mut client in clients {
        let _ = client.kill();
        let _ = client.wait();
    }
}

#[tokio::test]
async fn r13_memory_returns_after_many_connections() {
    let backend = Backend::alone(&["--max-clients", "0"]);
    let port = backend.port();
    let cycle = async |count: usize| {
        for _ in 0..count / 100 {
            let closings = (0..100).map(async |_| {
                let mut socket = raw(port, None).await;
                let mut buffer = [0; 1024];
                let _ = timeout(SOON, socket.read(&mut buffer)).await.expect("a beginning").unwrap();
            });
            futures::future::join_all(closings).await;
        }
        eventually("all are closed", SOON, async || backend.metric("vx11_sse_streams_open").await < 0.5)
            .await;
    };
    cycle(3000).await;
    let plateau = resident(backend.process_id());
    cycle(12_000).await;
    let after = resident(backend.process_id());
    assert!(after <= plateau + plateau / 10, "{plateau} KiB, then {after} KiB");
}
