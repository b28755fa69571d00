//! R6, R7, R9: never a silent loss. Seeded schedules of faults against a real Redis and two instances; the
//! oracle is the log of what the publisher was told had been accepted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::Router;
use common::RedisServer;
use operator_backend::{
    app::STREAM_PATH,
    auth::Authenticator,
    clock::ClusterClock,
    config::{Config, Secret},
    events::{EventLog, NewEvent, PublishError},
    identity::Identities,
    metrics::Metrics,
    redis_link::RedisLink,
    stream::{self, Engine},
    token::Tokens,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, oneshot, watch},
    task::{JoinSet, block_in_place},
    time::{Instant, sleep, timeout},
};

const TOKEN: &str = "principal-token-of-the-faults";
const PATIENCE: Duration = Duration::from_secs(10);

/// splitmix64: the same faults for the same seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

/// One instance, in this process.
struct Instance {
    address: SocketAddr,
    events: EventLog,
    link: RedisLink,
    tasks: Vec<tokio::task::AbortHandle>,
    _engine: Engine,
    _stop: oneshot::Sender<()>,
}

impl Instance {
    async fn start(redis: u16, identities: &Identities) -> Self {
        let port = redis.to_string();
        let flags =
            ["--redis-host", "127.0.0.1", "--redis-port", &port, "--worker-threads", "1", "--heartbeat", "1"];
        let config = Config::from_flags(flags).ok().unwrap();
        let (metrics, clock) = (Arc::new(Metrics::new()), ClusterClock::new());
        let link = RedisLink::new(&config.redis, clock.clone(), Arc::clone(&metrics)).unwrap();
        let supervisor = tokio::spawn(link.clone().supervise(|| None)).abort_handle();
        let tokens =
            Tokens::new(&config.token, identities.clone(), clock, Some(link.clone()), Arc::clone(&metrics));
        let authenticator = Authenticator::new(identities.clone(), tokens, Arc::clone(&metrics), false);
        let events = EventLog::new(&config, Some(link.clone()));
        let engine = Engine::start(&config, authenticator, events.clone(), metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(stream::serve(listener, Router::new(), engine.clone(), async {
            let _ = stopped.await;
        }));
        Self {
            address,
            events,
            link,
            tasks: vec![supervisor, server.abort_handle()],
            _engine: engine,
            _stop: stop,
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Event(u64),
    Gap,
}

/// What a client has seen so far, over all its connections.
#[derive(Default)]
struct Log {
    seen: Vec<Seen>,
    last_id: Option<String>,
}

/// Follows the stream, over many connections, until `end` has been seen.
async fn follow(
    instances: watch::Receiver<Vec<SocketAddr>>,
    mut seed: Seeded,
    hops: bool,
    begun: oneshot::Sender<()>,
    end: Arc<AtomicU64>,
) -> Vec<Seen> {
    let (mut log, mut begun) = (Log::default(), Some(begun));
    loop {
        let address = {
            let addresses = instances.borrow().clone();
            addresses[usize::try_from(seed.below(addresses.len() as u64)).unwrap()]
        };
        let stay = if hops { Duration::from_millis(20 + seed.below(200)) } else { PATIENCE };
        let _ = timeout(stay, connection(address, &mut log, &mut begun, &end)).await;
        if log.seen.contains(&Seen::Event(end.load(Ordering::SeqCst))) {
            return log.seen;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn connection(
    address: SocketAddr,
    log: &mut Log,
    begun: &mut Option<oneshot::Sender<()>>,
    end: &AtomicU64,
) {
    let Ok(mut socket) = TcpStream::connect(address).await else {
        return;
    };
    let id = log.last_id.as_ref().map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
    let request = format!("GET {STREAM_PATH} HTTP/1.1\r\nHost: x\r\nX-VX11-Token: {TOKEN}\r\n{id}\r\n");
    if socket.write_all(request.as_bytes()).await.is_err() {
        return;
    }
    let (mut text, mut buffer) = (String::new(), [0; 8192]);
    let mut head = true;
    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        if head {
            let Some((status, rest)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            assert!(status.starts_with("HTTP/1.1 200"), "{status}");
            text = rest.to_owned();
            head = false;
        }
        while let Some((block, rest)) = text.split_once("\n\n") {
            let (mut name, mut data) = ("message", "");
            for line in block.lines() {
                match line.split_once(": ") {
                    Some(("event", value)) => name = value,
                    Some(("data", value)) => data = value,
                    Some(("id", value)) => log.last_id = Some(value.to_owned()),
                    _ => {}
                }
            }
            match name {
                "gap" => log.seen.push(Seen::Gap),
                "message" if !data.is_empty() => log.seen.push(Seen::Event(data.parse().unwrap())),
                "snapshot" if log.last_id.is_some() => {
                    if let Some(begun) = begun.take() {
                        let _ = begun.send(());
                    }
                }
                _ => {}
            }
            text = rest.to_owned();
        }
        if log.seen.contains(&Seen::Event(end.load(Ordering::SeqCst))) {
            return;
        }
    }
}

/// Publishes until an outcome is known, always with the same key; whether it was accepted.
async fn publish(log: &EventLog, number: u64, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let event = NewEvent::parse(format!(r#"{{"data":{number}}}"#).as_bytes()).unwrap();
        match log.publish(event, Some(&format!("key-{number}"))).await {
            Ok(_) => return true,
            Err(PublishError::Unavailable | PublishError::Unknown) => sleep(Duration::from_millis(10)).await,
        }
    }
    false
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillAndStartEmpty,
    KillAndStartFromStaleDump,
    Freeze,
    CutConnections,
    FlushAll,
    DeleteTheLog,
    ReplaceInstance,
    KillRedisAndReplaceInstance,
}

const FAULTS: [Fault; 8] = [
    Fault::KillAndStartEmpty,
    Fault::KillAndStartFromStaleDump,
    Fault::Freeze,
    Fault::CutConnections,
    Fault::FlushAll,
    Fault::DeleteTheLog,
    Fault::ReplaceInstance,
    Fault::KillRedisAndReplaceInstance,
];

struct World {
    redis: RedisServer,
    identities: Identities,
    instances: Arc<Mutex<Vec<Instance>>>,
    addresses: watch::Sender<Vec<SocketAddr>>,
}

impl World {
    async fn replace_instance(&mut self, index: usize) {
        let fresh = Instance::start(self.redis.port(), &self.identities).await;
        let mut instances = self.instances.lock().await;
        instances[index] = fresh;
        self.addresses.send_replace(instances.iter().map(|instance| instance.address).collect());
    }

    async fn cause(&mut self, fault: Fault, seed: &mut Seeded) {
        let pause = Duration::from_millis(20 + seed.below(250));
        let index = usize::try_from(seed.below(2)).unwrap();
        match fault {
            Fault::KillAndStartEmpty
            | Fault::KillAndStartFromStaleDump
            | Fault::KillRedisAndReplaceInstance => {
                if fault != Fault::KillAndStartFromStaleDump {
                    let _ = std::fs::remove_file(self.redis.directory().path().join("dump.rdb"));
                }
                block_in_place(|| self.redis.kill());
                if fault == Fault::KillRedisAndReplaceInstance {
                    self.replace_instance(index).await;
                }
                sleep(pause).await;
                block_in_place(|| self.redis.restart());
            }
            Fault::Freeze => {
                self.redis.freeze();
                sleep(pause * 3).await;
                self.redis.thaw();
            }
            Fault::CutConnections => {
                block_in_place(|| self.redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]));
            }
            Fault::FlushAll => {
                block_in_place(|| self.redis.cli(&["FLUSHALL"]));
            }
            Fault::DeleteTheLog => {
                block_in_place(|| self.redis.cli(&["DEL", "vx11:events"]));
            }
            Fault::ReplaceInstance => self.replace_instance(index).await,
        }
    }
}

/// One schedule: what each client saw, and what the publisher was told.
async fn schedule(number: u64) -> BTreeMap<Fault, usize> {
    let mut seed = Seeded(number);
    let redis = block_in_place(RedisServer::start);
    let tokens = BTreeMap::from([("principal".to_owned(), vec![Secret::from(TOKEN.to_owned())])]);
    let identities = Identities::with_principals(&tokens);
    let mut started = Vec::new();
    for _ in 0..2 {
        started.push(Instance::start(redis.port(), &identities).await);
    }
    for instance in &started {
        timeout(PATIENCE, instance.link.wait_up()).await.expect("the link came up");
        let mut changes = instance.events.mirror().subscribe();
        let read = async {
            while instance.events.mirror().place().is_none() {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, read).await.expect("the log was read");
    }
    let (addresses, watched) = watch::channel(started.iter().map(|instance| instance.address).collect());
    let instances = Arc::new(Mutex::new(started));
    let mut world = World { redis, identities, instances: Arc::clone(&instances), addresses };

    let end = Arc::new(AtomicU64::new(u64::MAX));
    let (mut clients, mut beginnings) = (JoinSet::new(), Vec::new());
    for client in 0..4 {
        let (begun, beginning) = oneshot::channel();
        let seed = Seeded(number * 31 + client);
        clients.spawn(follow(watched.clone(), seed, client >= 2, begun, Arc::clone(&end)));
        beginnings.push(beginning);
    }
    for beginning in beginnings {
        timeout(PATIENCE, beginning).await.expect("every client began").unwrap();
    }

    let stop = Arc::new(AtomicBool::new(false));
    let publisher = tokio::spawn({
        let (stop, instances) = (Arc::clone(&stop), Arc::clone(&instances));
        async move {
            let (mut accepted, mut next) = (Vec::new(), 0);
            while !stop.load(Ordering::SeqCst) {
                let log = instances.lock().await[usize::try_from(next % 2).unwrap()].events.clone();
                if publish(&log, next, Duration::from_millis(300)).await {
                    accepted.push(next);
                }
                next += 1;
                sleep(Duration::from_millis(5)).await;
            }
            (accepted, next)
        }
    });
    let mut caused = BTreeMap::new();
    for _ in 0..=seed.below(3) {
        sleep(Duration::from_millis(30 + seed.below(150))).await;
        if seed.below(3) == 0 {
            // A dump that will be stale.
            block_in_place(|| world.redis.cli(&["SAVE"]));
        }
        let fault = FAULTS[usize::try_from(seed.below(FAULTS.len() as u64)).unwrap()];
        world.cause(fault, &mut seed).await;
        *caused.entry(fault).or_default() += 1;
    }
    sleep(Duration::from_millis(50)).await;
    stop.store(true, Ordering::SeqCst);
    let (mut accepted, last) = publisher.await.unwrap();
    let log = instances.lock().await[0].events.clone();
    assert!(publish(&log, last, PATIENCE).await, "schedule {number}: the last event was accepted");
    accepted.push(last);
    end.store(last, Ordering::SeqCst);
    let logs = timeout(PATIENCE, clients.join_all()).await;
    let logs =
        logs.unwrap_or_else(|_| panic!("schedule {number}, {caused:?}: a client did not get the last event"));
    for seen in logs {
        judge(&accepted, &seen).unwrap_or_else(|wrong| {
            panic!("schedule {number}, {caused:?}: {wrong}\naccepted {accepted:?}\nseen {seen:?}")
        });
    }
    caused
}

/// Contiguous, or a gap before anything newer; nothing twice but across a gap.
fn judge(accepted: &[u64], seen: &[Seen]) -> Result<(), String> {
    let (mut expected, mut gap) = (0, false);
    let mut since_gap = std::collections::HashSet::new();
    for item in seen {
        match item {
            Seen::Gap => {
                gap = true;
                since_gap.clear();
            }
            Seen::Event(number) => {
                if !since_gap.insert(*number) {
                    return Err(format!("{number} came twice"));
                }
                // Events whose outcome the publisher never learnt may come or not.
                let Some(index) = accepted.iter().position(|accepted| accepted == number) else {
                    continue;
                };
                if index != expected && !gap {
                    return Err(format!(
                        "{number} came where {:?} was due, and no gap was told",
                        accepted.get(expected)
                    ));
                }
                (expected, gap) = (index + 1, false);
            }
        }
    }
    if expected == accepted.len() { Ok(()) } else { Err("the end is missing".to_owned()) }
}

#[test]
fn the_judge_sees_losses_and_doubles() {
    use Seen::{Event, Gap};
    assert!(judge(&[1, 2, 3], &[Event(1), Event(2), Event(3)]).is_ok());
    assert!(judge(&[1, 2, 3], &[Event(1), Gap, Event(3)]).is_ok());
    assert!(judge(&[1, 2, 3], &[Event(1), Event(9), Event(2), Event(3)]).is_ok());
    assert!(judge(&[1, 2, 3], &[Event(1), Event(3)]).is_err());
    assert!(judge(&[1, 2, 3], &[Gap, Event(1), Event(3)]).is_err());
    assert!(judge(&[1, 2], &[Event(1), Event(1), Event(2)]).is_err());
    assert!(judge(&[1, 2], &[Event(1)]).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 20)]
async fn no_client_ever_loses_an_accepted_event_silently_in_200_schedules_of_faults() {
    let count = std::env::var("VX11_FAULT_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let first = std::env::var("VX11_FAULT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let room = Arc::new(Semaphore::new(16));
    let mut schedules = JoinSet::new();
    for number in first..first + count {
        let room = Arc::clone(&room);
        schedules.spawn(async move {
            let _permit = room.acquire_owned().await.unwrap();
            schedule(number).await
        });
    }
    let mut caused: BTreeMap<Fault, usize> = BTreeMap::new();
    while let Some(outcome) = schedules.join_next().await {
        for (fault, times) in outcome.unwrap() {
            *caused.entry(fault).or_default() += times;
        }
    }
    if count >= 200 {
        assert_eq!(caused.len(), FAULTS.len(), "every kind of fault was caused: {caused:?}");
    }
    println!("{caused:?}");
}
