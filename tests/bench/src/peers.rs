//! The servers that are measured: ours, the floor below it, and its peers, each on processors of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::load::Subscribers;

/// Processor of the servers; the load has the other one.
pub const SERVER: &str = "0";
/// Processor of the load, of Redis and of everything else.
pub const LOAD: &str = "1";
const PRINCIPAL: &str = "principal-of-the-benchmark";
/// Length of the cursors that ours signs for this principal, so that the floor sends events of the same size.
const CURSOR: &str = "75";

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing but waiting and writing.
    Floor,
    /// Ours with Redis.
    Ours,
    /// Ours without.
    OursAlone,
    /// Ours with Redis and two workers, on both processors.
    OursTwice,
    /// nginx with nchan.
    Nchan,
    /// axum as its documentation shows it.
    Axum,
    /// FastAPI as its documentation shows it.
    FastApi,
}

/// A server that runs.
pub struct Server {
    /// What it is.
    pub kind: Kind,
    process: Child,
    port: u16,
    admin: u16,
    redis: Option<Redis>,
    directory: PathBuf,
}

impl Kind {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor (epoll and write)",
            Self::Ours => "operator-backend with Redis",
            Self::OursAlone => "operator-backend in memory",
            Self::OursTwice => "operator-backend with Redis, two workers",
            Self::Nchan => "nginx with nchan",
            Self::Axum => "textbook axum",
            Self::FastApi => "FastAPI, uvloop, sse-starlette",
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursAlone | Self::OursTwice)
    }
}

impl Server {
    /// Starts one and waits until it answers.
    pub fn start(kind: Kind) -> Self {
        Self::with(kind, &[])
    }

    /// As [`Self::start`], with further flags for ours.
    pub fn with(kind: Kind, flags: &[&str]) -> Self {
        let redis = matches!(kind, Kind::Ours | Kind::OursTwice | Kind::FastApi).then(Redis::start);
        Self::beside(kind, flags, redis)
    }

    /// One more of ours, with the Redis on this port, which another one has.
    pub fn another(redis: u16, flags: &[&str]) -> Self {
        let port = redis.to_string();
        let mut all = vec!["--redis-host", "127.0.0.1", "--redis-port", &port];
        all.extend(flags);
        Self::beside(Kind::OursAlone, &all, None)
    }

    fn beside(kind: Kind, flags: &[&str], redis: Option<Redis>) -> Self {
        let (port, admin) = (free_port(), free_port());
        let directory = std::env::temp_dir().join(format!("vx11-bench-{}-{port}", std::process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory");
        let cpus = if kind == Kind::OursTwice { "0,1" } else { SERVER };
        let mut command = Command::new("taskset");
        command.args(["-c", cpus]);
        match kind {
            Kind::Floor => drop(command.arg(beside("floor")).args([&port.to_string(), CURSOR])),
            Kind::Axum => drop(command.arg(beside("textbook-axum")).arg(port.to_string())),
            Kind::Nchan => drop(command.args(["nginx", "-c"]).arg(nchan(&directory, port))),
            Kind::FastApi => {
                let python = PathBuf::from(std::env::var_os("VX11_BENCH_PYTHON").expect("VX11_BENCH_PYTHON"));
                command.arg(python).args([
                    "-m",
                    "uvicorn",
                    "fastapi_peer:app",
                    "--loop",
                    "uvloop",
                    "--http",
                    "httptools",
                ]);
                command.args(["--no-access-log", "--log-level", "warning", "--backlog", "4096", "--app-dir"]);
                command
                    .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers"))
                    .args(["--port", &port.to_string()]);
            }
            _ => ours(&mut command, kind, (port, admin), flags),
        }
        if let Some(redis) = &redis {
            command.env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", redis.port.to_string());
        }
        command.env("VX11_PRINCIPAL_TOKEN", PRINCIPAL);
        let process = command.stdout(Stdio::null()).spawn().expect("taskset, from util-linux");
        let server = Self { kind, process, port, admin, redis, directory };
        server.wait();
        server
    }

    fn wait(&self) {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{} does not answer", self.kind.name());
            std::thread::sleep(Duration::from_millis(20));
        }
        // Until start-up work is done.
        std::thread::sleep(Duration::from_millis(500));
    }

    /// The public port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The admin port of one of ours.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.admin))
    }

    /// The port of its Redis.
    pub fn redis_port(&self) -> u16 {
        self.redis.as_ref().expect("a server with Redis").port
    }

    /// Processor time so far.
    pub fn cpu(&self) -> Duration {
        crate::process::cpu(self.process.id())
    }

    /// Memory now, bytes.
    pub fn memory(&self) -> u64 {
        crate::process::memory(self.process.id())
    }

    /// Path and query of a stream, with a new token where tokens are.
    pub fn stream_path(&self) -> String {
        if self.kind.is_ours() {
            format!("/operator/api/events/stream?token={}", self.token())
        } else {
            "/stream".to_owned()
        }
    }

    /// A new ephemeral token.
    pub fn token(&self) -> String {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).expect("a server");
        write!(
            socket,
            "GET /operator/api/events/sse-token HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{}\r\n\r\n",
            principal_header()
        )
        .expect("a request");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("an answer");
        let token = text.split("\"sse_token\":\"").nth(1).and_then(|rest| rest.split('"').next());
        token.unwrap_or_else(|| panic!("no token: {text}")).to_owned()
    }

    /// Options of a generator of subscribers to these servers.
    pub fn subscribers(servers: &[&Self], source: u8) -> Subscribers {
        Subscribers::start(LOAD, &Self::options(servers, source))
    }

    fn options(servers: &[&Self], source: u8) -> Vec<String> {
        let targets: Vec<String> =
            servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        let mut options = vec![format!("--targets={}", targets.join(",")), format!("--source={source}")];
        if servers.iter().all(|server| server.kind.is_ours()) {
            options.push("--publish-path=/operator/api/events".to_owned());
            options.push(format!("--publish-header={}", principal_header()));
            options.push("--wrapped".to_owned());
        }
        options
    }
}

/// The header line with the principal token.
pub fn principal_header() -> String {
    format!("X-VX11-Token: {PRINCIPAL}")
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's worker goes with its master on SIGTERM only; the others need not be asked.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A redis-server of its own.
pub struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    fn start() -> Self {
        let port = free_port();
        let process = Command::new("taskset")
            .args([
                "-c",
                LOAD,
                "redis-server",
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--port",
                &port.to_string(),
            ])
            .stdout(Stdio::null())
            .spawn()
            .expect("taskset, from util-linux");
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, port }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ours(command: &mut Command, kind: Kind, (port, admin): (u16, u16), flags: &[&str]) {
    let workers = if kind == Kind::OursTwice { "2" } else { "1" };
    command.arg(beside("operator-backend")).args([
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--admin-listen",
        &format!("127.0.0.1:{admin}"),
        "--worker-threads",
        workers,
        "--max-clients",
        "0",
        "--drain",
        "0",
        "--log",
        "warn",
    ]);
    command.args(flags);
}

/// A program that Cargo built together with this one.
fn beside(name: &str) -> PathBuf {
    std::env::current_exe().expect("the path of this program").with_file_name(name)
}

fn nchan(directory: &std::path::Path, port: u16) -> PathBuf {
    let text = include_str!("../peers/nchan.conf")
        .replace("DIRECTORY", &directory.to_string_lossy())
        .replace("PORT", &port.to_string());
    let path = directory.join("nginx.conf");
    fs::write(&path, text).expect("a file");
    path
}

/// A port that nobody listens on, below those that the kernel gives to connections.
fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let drawn = NEXT.fetch_add(1, Ordering::Relaxed);
        let port =
            10_000 + (u16::try_from(std::process::id() % 20_000).expect("below 20,000") + drawn * 7) % 20_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
