use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    net::TcpListener,
};

use prometheus_client::metrics::gauge::Gauge;
use socket2::SockRef;

use super::{
    super::{
        filter::Filter,
        group::{Groups, Signer},
        quota::Quota,
    },
    *,
};
use crate::{
    config::{Config, Secret},
    events::{EntryId, Epoch, Event, Keep, NewEvent},
    identity::{Principal, SigningKeys},
};

/// A shard without a thread, whose turns the test takes.
struct Turns {
    shard: Shard,
    handle: Handle,
    groups: Groups,
    quota: Arc<Quota>,
    published: u64,
}

impl Turns {
    fn new() -> Self {
        let mirror = Mirror::new(Keep { events: 100_000, bytes: 1 << 28, milliseconds: u64::MAX });
        mirror.load(Epoch(1), EntryId::default(), 0, Vec::new());
        let common = Common {
            mirror: Arc::new(mirror),
            metrics: Arc::new(Metrics::new()),
            heartbeat: Duration::from_hours(1),
            retry: 2000,
        };
        let (shard, handle) = Shard::new(Arc::new(common)).unwrap();
        let config = Config::from_flags(["--max-clients", "0"]).ok().unwrap();
        Self {
            shard,
            handle,
            groups: Groups::new(Signer { keys: SigningKeys::ephemeral(), window: 300 }),
            quota: Arc::new(Quota::new(&config.limits, Gauge::default())),
            published: 0,
        }
    }

    /// Publishes events of a topic, each with a number and so many bytes more.
    fn publish(&mut self, topic: &str, count: u64, bytes: usize) {
        let filler = "x".repeat(bytes);
        let events = (self.published + 1..=self.published + count).map(|number| {
            let body = format!(r#"{{"topic":"{topic}","data":[{number},"{filler}"]}}"#);
            let id = EntryId { milliseconds: number, sequence: 0 };
            Event::new(id, Epoch(1), number, NewEvent::parse(body.as_bytes()).unwrap())
        });
        self.shard.common.mirror.append(events.collect());
        self.published += count;
    }

    /// A stream of a topic that reads on from a position; the client's end of it.
    fn join(&mut self, topic: &str, feed: Feed) -> std::net::TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(4096).unwrap();
        client.connect(&listener.local_addr().unwrap().into()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        SockRef::from(&socket).set_send_buffer_size(32 * 1024).unwrap();
        let filter = Filter::of(&format!("/?topic={topic}").parse().unwrap()).ok().unwrap().0;
        let principal = Principal::new("principal");
        let permit = self.quota.take(&principal, 1).ok().unwrap();
        let group = self.groups.join(principal, filter);
        let join = Join { socket, group, permit, beginning: Bytes::from_static(b": begins\n\n"), feed };
        self.handle.send(Command::Join(Box::new(join)));
        let client = std::net::TcpStream::from(client);
        client.set_nonblocking(true).unwrap();
        client
    }

    /// One turn; whether the next one would begin without a pause.
    fn turn(&mut self) -> bool {
        let mut events = Events::with_capacity(1024);
        self.shard.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(self.shard.turn(&events));
        self.shard.timeout() == Some(Duration::ZERO)
    }

    /// Turns until there is nothing to do; how many that were.
    fn rest(&mut self) -> usize {
        let mut turns = 1;
        while self.turn() {
            turns += 1;
            assert!(turns < 10_000, "the shard has always something to do");
        }
        turns
    }
}

/// What a client can read now.
fn read(client: &mut std::net::TcpStream) -> String {
    let (mut text, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn a_replay_of_which_nothing_is_for_the_stream_takes_many_turns_and_delays_no_live_event() {
    let mut turns = Turns::new();
    turns.publish("other", 90_000, 0);
    let mut live = turns.join("mine", Feed::At(90_000));
    turns.rest();
    read(&mut live);
    let _replaying: Vec<_> = (0..4).map(|_| turns.join("mine", Feed::At(0))).collect();
    assert!(turns.turn(), "it goes on");
    turns.publish("mine", 1, 0);
    assert!(turns.turn(), "the replays are not over");
    assert!(read(&mut live).contains("data: [90001,"), "the live event came in the next turn");
    assert!(turns.rest() > 10);
}

#[test]
fn a_burst_of_streams_is_taken_in_over_many_turns() {
    let mut turns = Turns::new();
    let mut clients: Vec<_> = (0..300).map(|_| turns.join("mine", Feed::At(0))).collect();
    assert!(turns.turn());
    assert_eq!(turns.shard.roster.len(), COMMANDS_A_TURN);
    turns.rest();
    assert_eq!(turns.handle.streams(), clients.len());
    assert!(clients.iter_mut().all(|client| read(client) == ": begins\n\n"));
}

#[test]
fn a_burst_of_events_goes_out_in_batches_of_bounded_size_and_none_is_missing() {
    let mut turns = Turns::new();
    let mut client = turns.join("mine", Feed::At(0));
    turns.rest();
    turns.publish("mine", 1000, 2000);
    assert!(turns.turn());
    assert!((20..=64).contains(&turns.shard.next), "{} events in one turn", turns.shard.next);
    let mut text = read(&mut client);
    while !text.contains("data: [1000,") {
        turns.turn();
        text.push_str(&read(&mut client));
    }
    let numbers: Vec<u32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: [")?.split(',').next()?.parse().ok())
        .collect();
    assert_eq!(numbers, (1..=1000).collect::<Vec<_>>());
}

#[test]
fn streams_of_a_principal_that_is_gone_are_closed_over_many_turns_and_take_nobody_in() {
    let mut turns = Turns::new();
    let mut clients: Vec<_> = (0..300).map(|_| turns.join("mine", Feed::At(0))).collect();
    turns.rest();
    let kept = BTreeMap::from([("other".to_owned(), vec![Secret::from("token".to_owned())])]);
    turns.handle.send(Command::Keep(Arc::new(Principals::new(&kept))));
    assert!(turns.turn());
    assert!(turns.shard.roster.len() > 100, "not all at once");
    // One that was let in before, and comes after.
    clients.push(turns.join("mine", Feed::At(0)));
    turns.rest();
    assert_eq!(turns.handle.streams(), 0);
    assert!(clients.iter_mut().all(|client| read(client).contains("principal_removed")));
}

#[test]
fn a_last_word_comes_behind_the_event_that_was_begun_or_the_stream_ends_without_it() {
    for reads in [true, false] {
        let mut turns = Turns::new();
        let mut client = turns.join("mine", Feed::At(0));
        turns.rest();
        turns.publish("mine", 100, 4000);
        turns.rest();
        assert!(turns.shard.roster.is_anyone_full());
        turns.handle.send(Command::Drain(Duration::ZERO));
        let closing = Instant::now();
        turns.turn();
        assert_eq!(turns.handle.streams(), 1, "it has a moment to read");
        let mut text = String::new();
        while turns.handle.streams() > 0 {
            assert!(closing.elapsed() < Duration::from_secs(2), "its moment is over");
            turns.turn();
            if reads {
                text.push_str(&read(&mut client));
            }
        }
        text.push_str(&read(&mut client));
        let whole = |block: &str| {
            block
                .lines()
                .filter_map(|line| line.strip_prefix("data: "))
                .all(|data| serde_json::from_str::<serde_json::Value>(data).is_ok())
        };
        let blocks: Vec<_> = text.split("\n\n").collect();
        let (rest, blocks) = blocks.split_last().unwrap();
        assert!(blocks.iter().all(|block| whole(block)), "{text}");
        assert_eq!((text.contains("event: drain"), rest.is_empty()), (reads, reads));
    }
}

#[test]
fn a_stream_that_reads_again_goes_on_where_it_was() {
    let mut turns = Turns::new();
    let mut client = turns.join("mine", Feed::At(0));
    turns.rest();
    turns.publish("mine", 200, 4000);
    turns.rest();
    let mut text = String::new();
    while !text.contains("data: [200,") {
        text.push_str(&read(&mut client));
        turns.turn();
    }
    turns.rest();
    assert!(!turns.shard.roster.is_anyone_full());
    turns.publish("mine", 1, 0);
    turns.rest();
    text.push_str(&read(&mut client));
    let numbers: Vec<u32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: [")?.split(',').next()?.parse().ok())
        .collect();
    assert_eq!(numbers, (1..=201).collect::<Vec<_>>());
}
