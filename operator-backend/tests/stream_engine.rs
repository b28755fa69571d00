//! The stream engine over real sockets: what a stream says, resume, filters, limits, heads, last words.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::time::{Duration, Instant};

use common::{
    Backend, Directory, EventStream, RedisServer, eventually,
    streams::{AUTH, Carrier, PUBLISH, SOON, STREAM, data, id, open_streams, publish, raw},
};
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How a connection over HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[rstest]
#[tokio::test]
async fn a_stream_says_the_same_whoever_carries_it(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let backend = Backend::alone(&["--heartbeat", "1"]);
    for number in 0..7 {
        publish(&backend, &number.to_string()).await;
    }
    let mut stream = carrier.open(&backend, STREAM, &[AUTH, ("x-correlation-id", "mine")]).await;
    assert_eq!(stream.headers["x-correlation-id"], "mine");
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert_eq!(stream.headers["cache-control"], "no-store, no-transform");
    assert!(stream.headers.contains_key("date"));
    assert_eq!(stream.headers.contains_key("connection"), carrier == Carrier::Engine, "which path this is");
    assert!(stream.next(SOON).await.unwrap().starts_with("retry: "));
    let snapshot = stream.next(SOON).await.unwrap();
    let data: serde_json::Value = serde_json::from_str(data(&snapshot)).unwrap();
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
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let redis = RedisServer::start();
    let (a, b) = (Backend::with_redis(&redis, &[]), Backend::with_redis(&redis, &[]));
    let mut stream = carrier.open(&a, STREAM, &[AUTH]).await;
    stream.until("event: snapshot", SOON).await;
    publish(&a, "1").await;
    let seen = id(&stream.until("data: 1", SOON).await);
    drop(stream);
    for number in 2..300 {
        publish(if number % 2 == 0 { &a } else { &b }, &number.to_string()).await;
    }
    let mut stream = carrier.open(&b, STREAM, &[AUTH, ("last-event-id", &seen)]).await;
    stream.until("event: snapshot", SOON).await;
    publish(&a, "300").await;
    for number in 2..=300 {
        let event = stream.next(SOON).await.unwrap();
        assert!(event.ends_with(&format!("data: {number}")), "{number} was due, not {event}");
    }
}

#[rstest]
#[tokio::test]
async fn a_cursor_opens_the_stream_again_when_the_token_has_expired(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let backend = Backend::alone(&["--token-ttl", "1", "--resume-window", "4", "--heartbeat", "300"]);
    let token = backend.token().await;
    let path = format!("{STREAM}?token={token}&topic=a");
    let mut stream = carrier.open(&backend, &path, &[]).await;
    let cursor = id(&stream.until("event: snapshot", SOON).await);
    drop(stream);
    eventually("the token expires", SOON, async || backend.redeem(&token).await == 403).await;
    let resumed = carrier.open(&backend, &path, &[("last-event-id", &cursor)]).await;
    assert_eq!(resumed.status, 200);
    let in_query = carrier.open(&backend, &format!("{path}&lastEventId={cursor}"), &[]).await;
    assert_eq!(in_query.status, 200);
    let other_topic = format!("{STREAM}?token={token}&topic=b");
    assert_eq!(carrier.open(&backend, &other_topic, &[("last-event-id", &cursor)]).await.status, 403);
    let forged = format!("{}A", &cursor[..cursor.len() - 1]);
    let forged = if forged == cursor { format!("{}Q", &cursor[..cursor.len() - 1]) } else { forged };
    assert_eq!(carrier.open(&backend, &path, &[("last-event-id", &forged)]).await.status, 403);
    eventually("the cursor expires", 2 * SOON, async || {
        carrier.open(&backend, &path, &[("last-event-id", &cursor)]).await.status == 403
    })
    .await;
    // With another credential an expired cursor still says where to resume.
    let mut stream =
        carrier.open(&backend, &format!("{STREAM}?topic=a"), &[AUTH, ("last-event-id", &cursor)]).await;
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
async fn filters_let_through_what_matches_every_field(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let backend = Backend::alone(&[]);
    let mut stream = carrier.open(&backend, &format!("{STREAM}?topic=a,b&severity=high"), &[AUTH]).await;
    stream.until("event: snapshot", SOON).await;
    for (topic, severity, number) in [("a", "low", 1), ("c", "high", 2), ("a", "high", 3), ("b", "high", 4)] {
        let body = format!(r#"{{"topic":"{topic}","severity":"{severity}","data":{number}}}"#);
        assert_eq!(backend.post(PUBLISH, &[AUTH], body).await.status, 202);
    }
    assert!(stream.next(SOON).await.unwrap().ends_with("data: 3"));
    assert!(stream.next(SOON).await.unwrap().ends_with("data: 4"));
    let impossible = carrier.open(&backend, &format!("{STREAM}?topic=a%20b"), &[AUTH]).await;
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
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let backend = Backend::alone(&[flag, "1"]);
    let first = carrier.open(&backend, STREAM, &[AUTH]).await;
    assert_eq!(first.status, 200);
    let browser =
        [AUTH, ("accept", "text/event-stream"), ("cache-control", "no-cache"), ("sec-fetch-mode", "cors")];
    let mut refused = carrier.open(&backend, STREAM, &browser).await;
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

#[rstest]
#[tokio::test]
async fn a_refused_stream_uses_up_no_single_use_token(
    #[values("--max-clients", "--max-clients-per-principal", "--max-clients-per-address")] limit: &str,
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let redis = RedisServer::start();
    for backend in [
        Backend::alone(&[limit, "1", "--single-use-tokens"]),
        Backend::with_redis(&redis, &[limit, "1", "--single-use-tokens"]),
    ] {
        let token = backend.token().await;
        let path = format!("{STREAM}?token={token}");
        let first = carrier.begun(&backend).await;
        for _ in 0..3 {
            assert_eq!(carrier.open(&backend, &path, &[]).await.status, 503);
        }
        drop(first);
        eventually("the first stream has gone", SOON, async || open_streams(&backend).await == 0).await;
        let second = carrier.open(&backend, &path, &[]).await;
        assert_eq!(second.status, 200, "the token still opens a stream");
        drop(second);
        eventually("the second stream has gone", SOON, async || open_streams(&backend).await == 0).await;
        assert_eq!(carrier.open(&backend, &path, &[]).await.status, 403, "one stream");
    }
}

#[rstest]
#[tokio::test]
async fn head_opens_no_stream_and_uses_up_no_token(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
    #[values("HEAD", "POST", "DELETE")] method: &str,
) {
    let backend = Backend::alone(&["--single-use-tokens"]);
    let path = format!("{STREAM}?token={}", backend.token().await);
    let answer = carrier.client(&backend).await.request(method, &path, &[], "").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")));
    assert!(backend.metric("vx11_sse_streams_opened_total").await < 0.5);
    assert_eq!(carrier.open(&backend, &path, &[]).await.status, 200);
}

#[rstest]
#[tokio::test]
async fn a_snapshot_of_large_events_holds_as_many_of_the_latest_as_fit_into_64_kib(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let backend = Backend::alone(&[]);
    let filler = "x".repeat(30_000);
    for number in 0..5 {
        publish(&backend, &format!("[{number},\"{filler}\"]")).await;
    }
    let mut stream = carrier.open(&backend, STREAM, &[AUTH]).await;
    let snapshot = stream.until("event: snapshot", SOON).await;
    assert!(snapshot.len() <= 64 * 1024, "{} bytes", snapshot.len());
    let data: serde_json::Value = serde_json::from_str(data(&snapshot)).unwrap();
    let numbers: Vec<_> =
        data["events"].as_array().unwrap().iter().map(|event| event["data"][0].clone()).collect();
    assert_eq!((numbers, &data["omitted"]), (vec![3.into(), 4.into()], &3.into()));
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

/// An HTTP/2 frame of stream 1.
fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
    let [.., a, b, c] = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream], content].concat()
}

/// Every way to begin the head of a later request and never to end it. None may stay.
#[rstest]
#[case::half_a_head(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), b"GET /hea")]
#[case::header_by_header(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\r\n")]
#[case::half_a_frame([PREFACE, &frame(4, 0, 0, b"")].concat(), b"\0\0\x40\x01\x05\0\0\0\x01\x82")]
#[case::headers_that_go_on([PREFACE, &frame(4, 0, 0, b"")].concat(), b"\0\0\x01\x01\x01\0\0\0\x01\x82\0\0\0\x09\0\0\0\0\x01")]
#[tokio::test]
async fn a_later_head_that_never_ends_is_given_up_after_10_s(#[case] first: Vec<u8>, #[case] later: &[u8]) {
    let backend = Backend::alone(&[]);
    let mut socket = TcpStream::connect(("127.0.0.1", backend.port())).await.unwrap();
    socket.write_all(&first).await.unwrap();
    let mut buffer = [0; 4096];
    assert!(timeout(SOON, socket.read(&mut buffer)).await.expect("an answer").unwrap() > 0);
    // The connection may be idle for longer than a head may take.
    let idle =
        timeout(Duration::from_secs(11), async { while socket.read(&mut buffer).await.unwrap() > 0 {} });
    assert!(idle.await.is_err(), "an idle connection was closed");
    let begun = Instant::now();
    let (mut from, mut to) = socket.into_split();
    let trickle = async {
        for byte in later {
            let _ = to.write_all(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        std::future::pending::<()>().await;
    };
    let closed = async { while from.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
    tokio::select! {
        () = trickle => {}
        () = closed => {}
        () = tokio::time::sleep(Duration::from_secs(13)) => panic!("it is still open"),
    }
    assert!(begun.elapsed() > Duration::from_secs(9), "closed after {:?}", begun.elapsed());
}

/// The HTTP server's own answers, which no route sees: bare, as docs/protocol.md says.
#[rstest]
#[case::no_http(false, "hello\r\n\r\n".to_owned(), "400")]
#[case::a_later_one_that_is_none(true, "GET / HTTP/9.9\r\n\r\n".to_owned(), "400")]
#[case::a_later_one_that_is_too_large(true, format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(40_000)), "431")]
#[case::too_many_fields(true, format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(101)), "431")]
#[tokio::test]
async fn what_cannot_be_read_as_a_request_gets_a_bare_answer(
    #[case] is_later: bool,
    #[case] head: String,
    #[case] status: &str,
) {
    let backend = Backend::alone(&[]);
    let mut socket = TcpStream::connect(("127.0.0.1", backend.port())).await.unwrap();
    if is_later {
        socket.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut buffer = [0; 4096];
        let read = timeout(SOON, socket.read(&mut buffer)).await.expect("an answer").unwrap();
        assert!(buffer[..read].ends_with(b"}"));
    }
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The connection may be reset behind the answer: not all of the head was read.
    let _ = timeout(SOON, socket.read_to_end(&mut answer)).await.expect("the connection ends");
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("x-correlation-id"), "{answer}");
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
async fn a_cancelled_drain_leaves_the_rest_open(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let backend = Backend::alone(&["--drain", "60"]);
    let mut streams = Vec::new();
    for _ in 0..10 {
        let stream = carrier.begun(&backend).await;
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
async fn streams_of_a_principal_that_is_removed_end_and_say_why(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let directory = Directory::new();
    directory.write("team-a", "token-of-team-a");
    let backend = Backend::alone(&["--principal-tokens-dir", directory.path().to_str().unwrap()]);
    let mut other = carrier.open(&backend, STREAM, &[AUTH]).await;
    let mut stream = carrier.open(&backend, STREAM, &[("x-vx11-token", "token-of-team-a")]).await;
    stream.until("event: snapshot", SOON).await;
    std::fs::remove_file(directory.path().join("team-a")).unwrap();
    let last = stream.until("event: error", SOON).await;
    assert!(last.contains("principal_removed"), "{last}");
    assert_eq!(stream.next(SOON).await, None);
    publish(&backend, "\"others go on\"").await;
    other.until("others go on", SOON).await;
}

/// Numbers of the events that are left on a stream, and its last block. Every block must be whole.
async fn to_the_end(mut stream: EventStream) -> (Vec<u64>, String) {
    let (mut numbers, mut last) = (Vec::new(), String::new());
    while let Some(block) = stream.next(SOON).await {
        let data: serde_json::Value = serde_json::from_str(data(&block)).expect("whole data");
        numbers.extend(data[0].as_u64());
        last = block;
    }
    assert!(stream.rest().is_empty(), "half an event at the end: {:.80}", stream.rest());
    (numbers, last)
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Drained,
    Revoked,
}

/// A client that is behind when its stream is closed: the last word comes behind the event that was begun.
#[rstest]
#[tokio::test]
async fn the_last_word_comes_behind_what_was_begun(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
    #[values(Ending::Drained, Ending::Revoked)] ending: Ending,
) {
    let directory = Directory::new();
    directory.write("team-a", "token-of-team-a");
    let flags = ["--drain", "0", "--principal-tokens-dir", directory.path().to_str().unwrap()];
    let backend = Backend::alone(&flags);
    let mut stream = carrier.open(&backend, STREAM, &[("x-vx11-token", "token-of-team-a")]).await;
    stream.until("event: snapshot", SOON).await;
    let filler = "x".repeat(60_000);
    // More than all buffers on the way.
    for number in 0..200 {
        publish(&backend, &format!("[{number},\"{filler}\"]")).await;
    }
    let last = match ending {
        Ending::Drained => {
            assert_eq!(backend.admin().post("/drain", &[], "").await.status, 202);
            "event: drain"
        }
        Ending::Revoked => {
            std::fs::remove_file(directory.path().join("team-a")).unwrap();
            "principal_removed"
        }
    };
    let (numbers, word) = to_the_end(stream).await;
    assert!(word.contains(last), "{word:.200}");
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
}
