//! Sends one request over and over on kept connections: at a rate, whether or not earlier ones were answered, or as
//! fast as they are. Latency counts from when a request was due.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use clap::Args;
use memchr::memmem;
use mio::{Events, Interest, Poll, Token, net::TcpStream, unix::SourceFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};

use super::latency::{Latency, Samples};

/// What to send.
#[derive(Args)]
pub struct Options {
    /// The server.
    #[arg(long)]
    target: SocketAddr,
    /// Path and query.
    #[arg(long)]
    path: String,
    /// Header lines.
    #[arg(long)]
    header: Vec<String>,
    /// Connections that are kept.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Requests a second; 0 = as fast as they are answered.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The status that is right.
    #[arg(long, default_value_t = 200)]
    status: u16,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Answers with the right status.
    pub answered: u64,
    /// Answers with another one, and connections that broke.
    pub wrong: u64,
    /// Answers a second.
    pub per_second: f64,
    /// From due to answered.
    pub latency: Latency,
}

struct Connection {
    socket: TcpStream,
    due: Option<Instant>,
    partial: Vec<u8>,
}

/// When the next request is due, to the microsecond: epoll itself waits whole milliseconds, and to ask it again and
/// again instead would keep the processor from Redis, which shares it.
struct Alarm(OwnedFd);

impl Alarm {
    const TOKEN: Token = Token(usize::MAX);

    fn new(poll: &Poll) -> Self {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).expect("a timer");
        poll.registry()
            .register(&mut SourceFd(&timer.as_raw_fd()), Self::TOKEN, Interest::READABLE)
            .expect("a registration");
        Self(timer)
    }

    fn ring_in(&self, pause: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let pause = Timespec::try_from(pause).expect("a pause below an age");
        let once = Itimerspec { it_interval: zero, it_value: pause };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).expect("a timer");
    }
}

/// Sends them and prints the report.
pub fn run(options: &Options) {
    let mut poll = Poll::new().expect("a poll descriptor");
    let mut connections: Vec<Connection> = (0..options.connections)
        .map(|number| {
            let mut socket = std::net::TcpStream::connect(options.target).expect("a server");
            socket.set_nodelay(true).expect("an option");
            used(&mut socket);
            socket.set_nonblocking(true).expect("an option");
            let mut socket = TcpStream::from_std(socket);
            poll.registry().register(&mut socket, Token(number), Interest::READABLE).expect("a registration");
            Connection { socket, due: None, partial: Vec::new() }
        })
        .collect();
    let mut request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n", options.path, options.target);
    for header in &options.header {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    let right = format!("HTTP/1.1 {}", options.status);

    let alarm = Alarm::new(&poll);
    let mut samples = if options.rate > 0 { Samples::watched() } else { Samples::default() };
    let mut wrong = 0;
    let mut idle: VecDeque<usize> = (0..connections.len()).collect();
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    let length = Duration::from_secs_f64(options.seconds);
    let begun = Instant::now();
    let mut sent = 0_u32;
    loop {
        let now = Instant::now();
        let over = now.duration_since(begun) >= length;
        if over
            && (idle.len() == connections.len()
                || now.duration_since(begun) > length * 2 + Duration::from_secs(5))
        {
            break;
        }
        let mut pause = Duration::from_millis(20);
        while !over && !idle.is_empty() {
            let due = match options.rate {
                0 => now,
                rate => begun + Duration::from_secs(1) * sent / rate,
            };
            if due > now {
                pause = due - now;
                break;
            }
            let Some(number) = idle.pop_front() else { break };
            let connection = &mut connections[number];
            connection.socket.write_all(request.as_bytes()).expect("room for a request");
            connection.due = Some(due);
            sent += 1;
        }
        alarm.ring_in(pause);
        let _ = poll.poll(&mut events, None);
        for event in events.iter().filter(|event| event.token() != Alarm::TOKEN) {
            let number = event.token().0;
            let connection = &mut connections[number];
            match connection.socket.read(&mut buffer) {
                Ok(read @ 1..) => connection.partial.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                _ => panic!("a connection broke"),
            }
            if !is_whole(&connection.partial) {
                continue;
            }
            let due = connection.due.take().expect("one request for each answer");
            if connection.partial.starts_with(right.as_bytes()) {
                let now = Instant::now();
                samples.add(now, now.duration_since(due));
            } else {
                wrong += 1;
            }
            connection.partial.clear();
            idle.push_back(number);
        }
    }
    let answered = samples.count();
    let report = Report {
        answered: answered as u64,
        wrong: wrong + (connections.len() - idle.len()) as u64,
        per_second: answered as f64 / begun.elapsed().as_secs_f64(),
        latency: samples.end(),
    };
    println!("{}", serde_json::to_string(&report).expect("JSON"));
}

/// Asks something else first, so that what is measured comes on a connection that is in use.
fn used(socket: &mut std::net::TcpStream) {
    socket.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("room for a request");
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    while !is_whole(&answer) {
        let read = socket.read(&mut buffer).expect("an answer");
        assert!(read > 0, "the server closed a connection after its first answer");
        answer.extend_from_slice(&buffer[..read]);
    }
}

/// Whether an answer with a `Content-Length` is all there.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = memmem::find(answer, b"\r\n\r\n") else { return false };
    let head = &answer[..end];
    let length = memmem::find(head, b"ontent-length: ").or_else(|| memmem::find(head, b"ontent-Length: "));
    let length = length.map_or(0, |at| {
        let digits = head[at + 15..].iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
    });
    answer.len() >= end + 4 + length
}
