//! Opens streams and checks them: every client, every number, exactly once. One thread, one epoll. Published events
//! carry a number and the monotonic time at which they were due, so that a late publisher counts as latency too.

use std::{
    io::{BufRead, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as Blocking},
    time::{Duration, Instant},
};

use clap::Args;
use memchr::{memmem, memrchr};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::latency::{Latency, Samples};

const PUBLISHER: Token = Token(usize::MAX);
/// Requests on their way at a time while connecting: a burst, but none that overflows a listen queue.
const IN_FLIGHT: usize = 500;
/// Ports that each source address uses. They are chosen here: the kernel's own search for a free one costs more than
/// the connection when many are taken.
const PORTS: std::ops::Range<u16> = 20_000..60_000;
/// When something that was to come is given up.
const PATIENCE: Duration = Duration::from_mins(2);
/// So that an event has about 150 bytes on the wire, as in the guide's messages.
const PADDING: &str = "a message of the size that a dashboard sends its browsers";

/// Where to connect and to publish.
#[derive(Args, Clone)]
pub struct Options {
    /// Servers, in turn.
    #[arg(long, value_delimiter = ',')]
    targets: Vec<SocketAddr>,
    /// Header lines of stream requests.
    #[arg(long)]
    header: Vec<String>,
    /// Third number of the source addresses, 127.0.N.1 and on.
    #[arg(long, default_value_t = 1)]
    source: u8,
    /// Path to publish to.
    #[arg(long, default_value = "/publish")]
    publish_path: String,
    /// Header lines of publish requests.
    #[arg(long)]
    publish_header: Vec<String>,
    /// Whether the body of a publish request has the event in its member `data`.
    #[arg(long)]
    wrapped: bool,
}

/// What a generator is told to do, one JSON line each; each is answered by a [`Report`].
#[derive(Serialize, Deserialize)]
pub enum Command {
    /// Open streams.
    Connect {
        /// How many.
        clients: usize,
        /// Path and query.
        path: String,
        /// Number of the next event.
        next: u64,
    },
    /// Open streams that are never read.
    Stall {
        /// How many.
        clients: usize,
        /// Path and query.
        path: String,
    },
    /// Open and close streams.
    Churn {
        /// How many.
        connections: usize,
        /// Path and query.
        path: String,
    },
    /// Publish events and wait until every stream has each.
    Publish {
        /// How many.
        events: u64,
        /// How many a second; 0 = the next as soon as every stream has the last.
        rate: f64,
        /// Bytes that each event is filled up with.
        filling: usize,
    },
    /// Wait until every stream has these events, which another generator publishes.
    Await {
        /// How many.
        events: u64,
    },
    /// Read what comes for a second.
    Settle,
    /// Close all streams.
    Close,
}

/// What came of a command.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How long it took.
    pub seconds: f64,
    /// Streams that are open.
    pub open: usize,
    /// Events that arrived.
    pub delivered: u64,
    /// Events that did not.
    pub missing: u64,
    /// Events that arrived more than once.
    pub doubled: u64,
    /// Streams that ended, and requests that were refused.
    pub broken: u64,
    /// Processor time of this generator.
    pub cpu_seconds: f64,
    /// From due to received.
    pub latency: Latency,
}

struct Client {
    socket: TcpStream,
    open: bool,
    first: u64,
    expected: u64,
    partial: Vec<u8>,
}

struct Generator {
    options: Options,
    poll: Poll,
    clients: Vec<Option<Client>>,
    publisher: Option<Blocking>,
    begun: Instant,
    next: u64,
    /// The event that is waited for, and how many streams do not have it.
    end: u64,
    behind: usize,
    opened: usize,
    delivered: u64,
    doubled: u64,
    missing: u64,
    broken: u64,
    samples: Samples,
    number: memmem::Finder<'static>,
    buffer: Vec<u8>,
}

/// Does what standard input says.
pub fn run(options: Options) {
    let mut generator = Generator {
        options,
        poll: Poll::new().expect("a poll descriptor"),
        clients: Vec::new(),
        publisher: None,
        begun: Instant::now(),
        next: 0,
        end: 0,
        behind: 0,
        opened: 0,
        delivered: 0,
        doubled: 0,
        missing: 0,
        broken: 0,
        samples: Samples::default(),
        number: memmem::Finder::new(b"\"n\":"),
        buffer: vec![0; 256 * 1024],
    };
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let report = generator.obey(serde_json::from_str(&line).expect("a command"));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&report).expect("JSON")).expect("a reader");
        out.flush().expect("a reader");
    }
}

impl Generator {
    fn obey(&mut self, command: Command) -> Report {
        let (begun, cpu) = (Instant::now(), crate::process::cpu(std::process::id()));
        (self.delivered, self.doubled, self.missing, self.broken) = (0, 0, 0, 0);
        self.samples = match command {
            Command::Publish { rate, .. } if rate > 0.0 => Samples::watched(),
            _ => Samples::default(),
        };
        match command {
            Command::Connect { clients, path, next } => {
                self.next = next;
                self.connect(clients, &path);
            }
            Command::Stall { clients, path } => self.stall(clients, &path),
            Command::Churn { connections, path } => self.churn(connections, &path),
            Command::Publish { events, rate, filling } => self.publish(events, rate, filling),
            Command::Await { events } => self.wait_for(events),
            Command::Settle => {
                while begun.elapsed() < Duration::from_secs(1) {
                    self.receive(Duration::from_millis(200));
                }
            }
            Command::Close => {
                self.clients.clear();
                self.opened = 0;
            }
        }
        Report {
            seconds: begun.elapsed().as_secs_f64(),
            open: self.opened,
            delivered: self.delivered,
            missing: self.missing,
            doubled: self.doubled,
            broken: self.broken,
            cpu_seconds: crate::process::cpu(std::process::id()).saturating_sub(cpu).as_secs_f64(),
            latency: self.samples.end(),
        }
    }

    fn request(&self, path: &str, target: SocketAddr) -> String {
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: {target}\r\naccept: text/event-stream\r\n");
        for header in &self.options.header {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request + "\r\n"
    }

    /// A connection with its request on the way.
    fn dial(&self, number: usize, path: &str, receive_buffer: Option<usize>) -> TcpStream {
        let target = self.options.targets[number % self.options.targets.len()];
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let host = u8::try_from(number / PORTS.len() % 200).expect("below 200") + 1;
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, self.options.source, host));
        let port = PORTS.start + u16::try_from(number % PORTS.len()).expect("a port");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&SocketAddr::new(source, port).into()).expect("a free port");
        // Closed by reset: no connection is left waiting on this machine.
        socket.set_linger(Some(Duration::ZERO)).expect("an option");
        socket.set_tcp_nodelay(true).expect("an option");
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).expect("an option");
        }
        socket.connect(&target.into()).expect("a server");
        let mut socket: Blocking = socket.into();
        socket.write_all(self.request(path, target).as_bytes()).expect("a request");
        socket.set_nonblocking(true).expect("an option");
        TcpStream::from_std(socket)
    }

    fn register(&mut self, mut socket: TcpStream, slot: usize) {
        self.poll.registry().register(&mut socket, Token(slot), Interest::READABLE).expect("a registration");
        let client =
            Client { socket, open: false, first: self.next, expected: self.next, partial: Vec::new() };
        if slot < self.clients.len() {
            self.clients[slot] = Some(client);
        } else {
            self.clients.push(Some(client));
        }
    }

    fn connect(&mut self, count: usize, path: &str) {
        let begun = Instant::now();
        let before = self.clients.len();
        for number in 0..count {
            let slot = self.clients.len();
            let socket = self.dial(slot, path, None);
            self.register(socket, slot);
            while number + 1 - (self.opened + self.lost() - before) >= IN_FLIGHT && begun.elapsed() < PATIENCE
            {
                self.receive(Duration::from_millis(100));
            }
        }
        while self.opened + self.lost() - before < count && begun.elapsed() < PATIENCE {
            self.receive(Duration::from_millis(100));
        }
    }

    fn lost(&self) -> usize {
        usize::try_from(self.broken).unwrap_or(usize::MAX)
    }

    fn stall(&mut self, count: usize, path: &str) {
        for _ in 0..count {
            // Small, as behind a slow line: what the kernel takes for the client is not the server's merit.
            let socket = self.dial(self.clients.len(), path, Some(4096));
            self.clients.push(Some(Client {
                socket,
                open: true,
                first: u64::MAX,
                expected: u64::MAX,
                partial: Vec::new(),
            }));
        }
    }

    /// Opens streams and closes each as soon as it has begun, a few hundred at a time.
    fn churn(&mut self, count: usize, path: &str) {
        let (mut dialled, mut done) = (0, 0);
        let mut free: Vec<usize> = (0..256).collect();
        self.clients.clear();
        self.clients.resize_with(256, || None);
        self.opened = 0;
        let mut events = Events::with_capacity(1024);
        let begun = Instant::now();
        while done < count && begun.elapsed() < PATIENCE * 5 {
            while dialled < count
                && let Some(slot) = free.pop()
            {
                let socket = self.dial(dialled, path, None);
                self.register(socket, slot);
                dialled += 1;
            }
            let _ = self.poll.poll(&mut events, Some(Duration::from_millis(100)));
            for event in &events {
                let Some(slot) = self.clients.get_mut(event.token().0) else { continue };
                let Some(client) = slot.as_mut() else { continue };
                match client.socket.read(&mut self.buffer) {
                    Ok(read) if self.buffer[..read].starts_with(b"HTTP/1.1 200") => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    _ => self.broken += 1,
                }
                *slot = None;
                free.push(event.token().0);
                done += 1;
            }
        }
        self.missing = (count - done) as u64;
        self.clients.clear();
    }

    fn publish(&mut self, events: u64, rate: f64, filling: usize) {
        let begun = Instant::now();
        let first = self.next;
        for number in 0..events {
            if rate > 0.0 {
                let due = begun + Duration::from_secs_f64(number as f64 / rate);
                while let Some(left) =
                    due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
                {
                    self.receive(left);
                }
                self.send(due, filling);
            } else {
                self.send(Instant::now(), filling);
                self.wait_until(first + number + 1);
            }
        }
        self.wait_until(first + events);
        self.account(first + events);
    }

    fn wait_for(&mut self, events: u64) {
        let end = self.next + events;
        self.next = end;
        self.wait_until(end);
        self.account(end);
    }

    /// Until every stream has every event before `end`.
    fn wait_until(&mut self, end: u64) {
        let begun = Instant::now();
        self.end = end;
        self.behind = self.clients.iter().flatten().filter(|client| client.expected < end).count();
        while self.behind > 0 && begun.elapsed() < PATIENCE {
            self.receive(Duration::from_millis(100));
        }
    }

    fn account(&mut self, end: u64) {
        for client in self.clients.iter().flatten().filter(|client| client.first != u64::MAX) {
            self.missing += end.saturating_sub(client.expected);
        }
    }

    /// Publishes the next event over a connection that is kept.
    fn send(&mut self, due: Instant, filling: usize) {
        let target = self.options.targets[0];
        let publisher = self.publisher.get_or_insert_with(|| {
            let socket = Blocking::connect(target).expect("a server");
            socket.set_nodelay(true).expect("an option");
            socket.set_nonblocking(true).expect("an option");
            let mut watched = TcpStream::from_std(socket.try_clone().expect("a descriptor"));
            self.poll
                .registry()
                .register(&mut watched, PUBLISHER, Interest::READABLE)
                .expect("a registration");
            std::mem::forget(watched);
            socket
        });
        let time = due.saturating_duration_since(self.begun).as_nanos();
        let filling = "f".repeat(filling);
        let event = format!("{{\"text\":\"{PADDING}{filling}\",\"n\":{},\"t\":{time}}}", self.next);
        self.next += 1;
        let body = if self.options.wrapped { format!("{{\"data\":{event}}}") } else { event };
        let mut request = format!(
            "POST {} HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            self.options.publish_path,
            body.len()
        );
        for header in &self.options.publish_header {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.push_str(&body);
        publisher.write_all(request.as_bytes()).expect("a publisher's connection");
    }

    /// Takes what has come, after waiting for at most `patience`.
    fn receive(&mut self, patience: Duration) {
        let mut events = Events::with_capacity(1024);
        let _ = self.poll.poll(&mut events, Some(patience));
        for event in &events {
            if event.token() == PUBLISHER {
                self.answered();
            } else {
                self.read(event.token().0);
            }
        }
    }

    fn answered(&mut self) {
        let Some(publisher) = &mut self.publisher else { return };
        while let Ok(read @ 1..) = publisher.read(&mut self.buffer) {
            let text = &self.buffer[..read];
            let bad = memmem::find_iter(text, b"HTTP/1.1 ")
                .any(|at| text.get(at + 9..at + 10).is_none_or(|digit| digit != b"2"));
            assert!(!bad, "an event was refused: {}", String::from_utf8_lossy(text));
        }
    }

    fn read(&mut self, slot: usize) {
        let Some(client) = self.clients.get_mut(slot).and_then(Option::as_mut) else { return };
        loop {
            let read = match client.socket.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            };
            let now = Instant::now();
            let mut text = &self.buffer[..read];
            if !client.open {
                if !text.starts_with(b"HTTP/1.1 200") {
                    break;
                }
                client.open = true;
                self.opened += 1;
            }
            let joined;
            if !client.partial.is_empty() {
                client.partial.extend_from_slice(text);
                joined = std::mem::take(&mut client.partial);
                text = &joined;
            }
            let before = client.expected;
            let whole = memrchr(b'\n', text).map_or(0, |at| at + 1);
            for at in self.number.find_iter(&text[..whole]) {
                let (number, rest) = digits(&text[at + 4..]);
                let (time, _) = digits(rest.get(5..).unwrap_or_default());
                if number >= client.expected {
                    self.missing += number - client.expected;
                    client.expected = number + 1;
                    self.delivered += 1;
                    let late = now.duration_since(self.begun).saturating_sub(Duration::from_nanos(time));
                    self.samples.add(now, late);
                } else if number >= client.first {
                    self.doubled += 1;
                }
            }
            if before < self.end && client.expected >= self.end {
                self.behind -= 1;
            }
            if whole < text.len() {
                client.partial = text[whole..].to_vec();
            }
            // A short read has emptied the socket; the next arrival is a new event of epoll's.
            if read < self.buffer.len() {
                return;
            }
        }
        if client.open {
            self.opened -= 1;
        }
        if client.expected < self.end {
            self.behind -= 1;
        }
        self.broken += 1;
        self.clients[slot] = None;
    }
}

/// The number that a text begins with, and the rest.
fn digits(text: &[u8]) -> (u64, &[u8]) {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = text[..length].iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    (number, &text[length..])
}
