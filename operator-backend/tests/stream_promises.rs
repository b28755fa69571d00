//! What streams go through unharmed: R5, R7, R8, R9, R11 and R12, each failure caused for real and on every way that
//! carries a stream.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::{
    collections::HashSet,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use common::{
    Backend, EventStream, Failure, Namespace, PRINCIPAL_TOKEN, RedisServer, eventually,
    streams::{AUTH, CARRIERS, Carrier, PUBLISH, SOON, STREAM, id, open_streams, publish, with_stall},
};
use futures::future::join_all;
use rstest::rstest;
use tokio::{sync::Mutex, time::sleep_until};

const SECOND: Duration = Duration::from_secs(1);

/// The tests that measure time run one at a time.
static QUIET: Mutex<()> = Mutex::const_new(());

/// A stream of each carrier, which has begun.
async fn one_of_each(backend: &Backend) -> Vec<EventStream> {
    join_all(CARRIERS.map(|carrier| carrier.begun(backend))).await
}

/// R5: whatever happens to Redis, no stream is closed and heartbeats go on, and what is published afterwards
/// arrives on the same streams.
#[rstest]
#[case::killed(Failure::Killed)]
#[case::stopped(Failure::Stopped)]
#[case::paused(Failure::Paused)]
#[case::unreachable(Failure::Unreachable)]
#[case::out_of_memory(Failure::OutOfMemory)]
#[tokio::test]
async fn r5_a_failure_of_redis_closes_no_stream_and_heartbeats_go_on(#[case] failure: Failure) {
    let mut redis = failure.redis();
    let backend = Backend::with_redis(&redis, &["--heartbeat", "1"]);
    let mut streams = one_of_each(&backend).await;
    publish(&backend, "\"before\"").await;
    for stream in &mut streams {
        stream.until("before", SOON).await;
    }
    let opened = backend.metric("vx11_sse_streams_opened_total").await;

    failure.begin(&mut redis);
    // Longer than the failure of itself lasts, and than anybody waits for an answer of Redis.
    let beating = streams.iter_mut().map(async |stream| {
        for _ in 0..4 {
            stream.until("event: heartbeat", Duration::from_millis(2500)).await;
        }
    });
    join_all(beating).await;
    assert_eq!(open_streams(&backend).await, CARRIERS.len());
    // A stream that begins now waits for the log, and hears that the line is alive.
    let mut late = Carrier::Engine.begun(&backend).await;
    late.until("event: heartbeat", Duration::from_millis(2500)).await;
    failure.end(&mut redis);

    eventually("publishing works again", SOON, async || {
        backend.post(PUBLISH, &[AUTH], r#"{"data":"after"}"#).await.status == 202
    })
    .await;
    for stream in streams.iter_mut().chain([&mut late]) {
        stream.until("after", SOON).await;
    }
    assert_eq!(open_streams(&backend).await, CARRIERS.len() + 1);
    let again = backend.metric("vx11_sse_streams_opened_total").await - opened;
    assert!((again - 1.0).abs() < 0.5, "{again} streams were opened, one of them by this test");
}

/// R8: what is published on one instance reaches the streams of another within 1 s of Redis' return. Measured again
/// when the machine was too busy to tell.
#[rstest]
#[case::killed(Failure::Killed)]
#[case::stopped(Failure::Stopped)]
#[case::paused(Failure::Paused)]
#[case::unreachable(Failure::Unreachable)]
#[case::out_of_memory(Failure::OutOfMemory)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_fan_out_resumes_within_1_s_of_redis(#[case] failure: Failure) {
    let _quiet = QUIET.lock().await;
    for _ in 0..3 {
        let (back, stall) = with_stall(resume(failure)).await;
        println!("{failure:?}: back after {back:?}, the machine stalled for {stall:?}");
        if back <= SECOND {
            return;
        }
        assert!(stall > Duration::from_millis(50), "{failure:?}: fan-out resumed after {back:?} only");
    }
    panic!("{failure:?}: three times the machine was too busy, and the promise was not kept either");
}

async fn resume(failure: Failure) -> Duration {
    let mut redis = failure.redis();
    let (a, b) = (Backend::with_redis(&redis, &[]), Backend::with_redis(&redis, &[]));
    let mut streams = one_of_each(&b).await;
    publish(&a, "\"before\"").await;
    for stream in &mut streams {
        stream.until("before", SOON).await;
    }
    failure.begin(&mut redis);
    sleep_until(tokio::time::Instant::now() + Failure::LENGTH).await;
    failure.end(&mut redis);
    let returned = Instant::now();
    eventually("publishing works again", SOON, async || {
        a.post(PUBLISH, &[AUTH], r#"{"data":"after"}"#).await.status == 202
    })
    .await;
    for stream in &mut streams {
        // Only one that may have lost what it had acknowledged makes a gap.
        loop {
            let block = stream.next(SOON).await.expect("the stream goes on");
            assert!(failure == Failure::Killed || !block.contains("event: gap"), "{failure:?}: {block}");
            if block.contains("after") {
                break;
            }
        }
    }
    returned.elapsed()
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

#[rstest]
#[tokio::test]
async fn r9_clients_of_a_killed_instance_resume_on_another_without_loss(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let redis = RedisServer::start();
    let (mut a, b) = (Backend::with_redis(&redis, &[]), Backend::with_redis(&redis, &[]));
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = carrier.open(&a, STREAM, &[AUTH]).await;
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
        let mut stream = carrier.open(&b, STREAM, &[AUTH, ("last-event-id", &cursor)]).await;
        stream.until("event: snapshot", SOON).await;
        for number in seen + 1..=20 {
            assert!(stream.next(SOON).await.unwrap().ends_with(&format!("data: {number}")));
        }
    }
}

/// Clients of a namespace, which end with this.
struct Clients(Vec<Child>);

impl Drop for Clients {
    fn drop(&mut self) {
        for client in &mut self.0 {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// R11: peers behind a line that drops every packet, without goodbye, are gone within 30 s, whether events are
/// written to them or heartbeats only.
#[rstest]
#[tokio::test]
async fn r11_vanished_peers_are_gone_within_30_s(#[values(false, true)] busy: bool) {
    let namespace = Namespace::new();
    let address = namespace.near_address();
    let backend = Backend::alone(&["--listen", "0.0.0.0:0"]);
    let base = format!("http://{address}:{}", backend.port());
    let curl = |arguments: &[&str]| {
        let mut command = namespace.command("curl");
        command.args(["-sN", "-H", &format!("X-VX11-Token: {PRINCIPAL_TOKEN}")]).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let (health, stream) = (format!("{base}/health"), format!("{base}{STREAM}"));
    eventually("the line is up", SOON, async || curl(&["-m", "1", &health]).status().unwrap().success())
        .await;
    let mut clients = Clients(Vec::new());
    for arguments in [vec![&*stream], vec![&*health, &*stream], vec!["--http2-prior-knowledge", &*stream]] {
        for _ in 0..3 {
            clients.0.push(curl(&arguments).spawn().unwrap());
        }
    }
    eventually("all are streaming", SOON, async || open_streams(&backend).await == 9).await;
    namespace.drop_packets();
    let vanished = Instant::now();
    eventually("all are gone", Duration::from_secs(30), async || {
        if busy {
            publish(&backend, "1").await;
        }
        open_streams(&backend).await == 0
    })
    .await;
    println!("busy: {busy}, gone after {:?}", vanished.elapsed());
}

/// R12: a tenth of the streams in each tenth of the window, each told so with its own time to come back.
#[rstest]
#[tokio::test]
async fn r12_a_drain_is_flat_and_in_time_and_everyone_gets_a_drain_event(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let _quiet = QUIET.lock().await;
    for _ in 0..3 {
        let (tenths, stall) = with_stall(drain(carrier)).await;
        println!("{carrier:?}: {tenths:?}, the machine stalled for {stall:?}");
        // Ten are due in each tenth; two more or less for the shards' own beginnings.
        if tenths.iter().all(|count| (7..=13).contains(count)) {
            return;
        }
        assert!(stall > Duration::from_millis(20), "{carrier:?}: {tenths:?}");
    }
    panic!("{carrier:?}: three times the machine was too busy, and the promise was not kept either");
}

/// How many of 100 streams were closed in each tenth of the window, and of the same time after it.
async fn drain(carrier: Carrier) -> [u32; 10] {
    const WINDOW: Duration = Duration::from_secs(2);
    let backend = Backend::alone(&["--drain", "2", "--max-clients", "0"]);
    let streams = join_all((0..100).map(|_| carrier.begun(&backend))).await;
    let begun = Instant::now();
    assert_eq!(backend.admin().post("/drain", &[], "").await.status, 202);
    let closings = streams.into_iter().map(async |mut stream| {
        let last = stream.until("event: drain", SOON).await;
        let closed = begun.elapsed();
        let retry: u32 = last.lines().next().unwrap().strip_prefix("retry: ").unwrap().parse().unwrap();
        assert!((1000..=3000).contains(&retry), "{retry}");
        assert_eq!(stream.next(SOON).await, None, "the stream ends");
        (closed, retry)
    });
    let closings = join_all(closings).await;
    let retries: HashSet<u32> = closings.iter().map(|(_, retry)| *retry).collect();
    assert!(retries.len() > 50, "each has its own time to come back");
    let mut tenths = [0; 10];
    for (closed, _) in closings {
        assert!(closed < WINDOW + Duration::from_millis(500), "{closed:?}");
        tenths[usize::try_from(closed.as_millis() * 10 / WINDOW.as_millis()).unwrap().min(9)] += 1;
    }
    tenths
}

/// R12: clients that do not read delay the end of nobody else's stream, nor that of the process.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_drain_is_in_time_with_clients_that_do_not_read(
    #[values(Carrier::Engine, Carrier::Reused, Carrier::Http2)] carrier: Carrier,
) {
    let mut backend = Backend::alone(&["--drain", "1"]);
    let mut reader = carrier.begun(&backend).await;
    let stalled = join_all((0..10).map(|_| carrier.begun(&backend))).await;
    let filler = "x".repeat(60_000);
    for number in 0..200 {
        publish(&backend, &format!("[{number},\"{filler}\"]")).await;
        reader.until(&format!("[{number},"), SOON).await;
    }
    let begun = Instant::now();
    backend.signal("TERM");
    reader.until("event: drain", SOON).await;
    assert_eq!(backend.ended(SOON).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    let log = backend.log().join("\n");
    assert!(!log.contains("ending with streams still open"), "{log}");
    drop(stalled);
}
