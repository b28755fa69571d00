//! R6, R7, R9: never a silent loss. Seeded schedules of faults against a real Redis and two instances; the
//! oracle is the log of what the publisher was told had been accepted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

#[path = "../common/mod.rs"]
mod common;
mod follower;
mod instance;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{Proxy, RedisServer};
use follower::{Follower, Manner, Seen};
use instance::{Instance, Logged};
use operator_backend::{
    config::Secret,
    events::{EventLog, NewEvent, PublishError},
    identity::Identities,
};
use tokio::{
    sync::{Mutex, Semaphore, oneshot, watch},
    task::{JoinSet, block_in_place},
    time::{Instant, sleep, timeout},
};

const TOKEN: &str = "principal-token-of-the-faults";
const PATIENCE: Duration = Duration::from_secs(20);

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
    Pause,
    Unreachable,
    OutOfMemory,
    CutConnections,
    FlushAll,
    DeleteTheLog,
    ReplaceInstance,
    KillRedisAndReplaceInstance,
}

const FAULTS: [Fault; 11] = [
    Fault::KillAndStartEmpty,
    Fault::KillAndStartFromStaleDump,
    Fault::Freeze,
    Fault::Pause,
    Fault::Unreachable,
    Fault::OutOfMemory,
    Fault::CutConnections,
    Fault::FlushAll,
    Fault::DeleteTheLog,
    Fault::ReplaceInstance,
    Fault::KillRedisAndReplaceInstance,
];

impl Fault {
    /// Whether Redis keeps all it had: then nobody is told a gap.
    fn loses_nothing(self) -> bool {
        matches!(
            self,
            Self::Freeze | Self::Pause | Self::Unreachable | Self::CutConnections | Self::ReplaceInstance
        )
    }
}

struct World {
    redis: RedisServer,
    /// Between Redis and the instances.
    line: Proxy,
    identities: Identities,
    instances: Arc<Mutex<Vec<Instance>>>,
    addresses: watch::Sender<Vec<SocketAddr>>,
}

impl World {
    async fn replace_instance(&mut self, index: usize) {
        let fresh = Instance::start(self.line.port(), &self.identities).await;
        let mut instances = self.instances.lock().await;
        instances[index] = fresh;
        self.addresses.send_replace(instances.iter().map(|instance| instance.address).collect());
    }

    async fn cause(&mut self, fault: Fault, seed: &mut Seeded) {
        let pause = Duration::from_millis(20 + seed.below(250));
        // Now and then longer than a publisher and the reader of the log wait for an answer.
        let outage = if seed.below(4) == 0 { Duration::from_secs(2) + pause } else { pause * 3 };
        let index = usize::try_from(seed.below(2)).unwrap();
        match fault {
            Fault::KillAndStartEmpty
            | Fault::KillAndStartFromStaleDump
            | Fault::KillRedisAndReplaceInstance => {
                if fault == Fault::KillAndStartFromStaleDump {
                    self.ask(&["SAVE"]);
                    // What is published from now on is not in the dump.
                    sleep(pause).await;
                } else {
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
                sleep(outage).await;
                self.redis.thaw();
            }
            Fault::Pause => {
                self.ask(&["CLIENT", "PAUSE", &outage.as_millis().to_string(), "ALL"]);
                sleep(outage).await;
            }
            Fault::Unreachable => {
                self.line.go_silent();
                sleep(outage).await;
                self.line.heal();
            }
            Fault::OutOfMemory => {
                self.ask(&["CONFIG", "SET", "maxmemory", "1"]);
                sleep(pause).await;
                self.ask(&["CONFIG", "SET", "maxmemory", "0"]);
            }
            Fault::CutConnections => self.ask(&["CLIENT", "KILL", "TYPE", "normal"]),
            Fault::FlushAll => self.ask(&["FLUSHALL"]),
            Fault::DeleteTheLog => self.ask(&["DEL", "vx11:events"]),
            Fault::ReplaceInstance => self.replace_instance(index).await,
        }
    }

    fn ask(&self, command: &[&str]) {
        block_in_place(|| self.redis.cli(command));
    }
}

/// One schedule: what each client saw, and what the publisher was told.
async fn schedule(number: u64) -> BTreeMap<Fault, usize> {
    let mut seed = Seeded(number);
    let redis = block_in_place(RedisServer::start);
    let line = Proxy::to(redis.port()).await;
    let tokens = BTreeMap::from([("principal".to_owned(), vec![Secret::from(TOKEN.to_owned())])]);
    let identities = Identities::with_principals(&tokens);
    let mut started = Vec::new();
    for _ in 0..2 {
        started.push(Instance::start(line.port(), &identities).await);
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
    let mut world = World { redis, line, identities, instances: Arc::clone(&instances), addresses };

    let end = Arc::new(AtomicU64::new(u64::MAX));
    let (mut clients, mut beginnings) = (JoinSet::new(), Vec::new());
    for client in 0..4 {
        let (begun, beginning) = oneshot::channel();
        let manner = Manner {
            hops: client >= 2,
            reuses_connection: client % 2 == 1,
            by_cursor_alone: number % 2 == 1,
        };
        let follower = Follower {
            manner,
            instances: watched.clone(),
            seed: Seeded(number * 31 + client),
            begun: Some(begun),
            end: Arc::clone(&end),
            seen: Vec::new(),
            last_id: None,
        };
        clients.spawn(follower.run());
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
    let lossless = caused.keys().all(|fault| fault.loses_nothing());
    for seen in logs {
        let gap = lossless && seen.contains(&Seen::Gap);
        let verdict = judge(&accepted, &seen);
        let verdict = if gap { Err("a gap was told though nothing was lost".to_owned()) } else { verdict };
        verdict.unwrap_or_else(|wrong| {
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
async fn r6_no_client_ever_loses_an_accepted_event_silently_in_200_schedules_of_faults() {
    Logged::begin();
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
    Logged::judge(TOKEN);
}
