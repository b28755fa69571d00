//! A real operator-backend process. When it ends, everything it ever wrote and its metrics are searched for tokens
//! and cursors.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    ops::Deref,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Client, Directory, RedisServer, leaked, signal};

pub(crate) const PRINCIPAL_TOKEN: &str = "principal-token-of-the-tests-5f1d2c";
pub(crate) const SIGNING_KEY: &str = "signing-key-of-the-tests-0123456789";

pub(super) type Lines = Arc<Mutex<Vec<String>>>;

pub(crate) struct Backend {
    process: Child,
    client: Client,
    admin: Client,
    port: u16,
    admin_port: u16,
    lines: Lines,
    readers: Vec<JoinHandle<()>>,
    secrets: Mutex<Vec<String>>,
    _keys: Directory,
}

/// The public port's client is the common case.
impl Deref for Backend {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Backend {
    /// An instance alone in memory.
    pub(crate) fn alone(flags: &[&str]) -> Self {
        Self::start(flags)
    }

    /// An instance that uses this Redis and shares the tests' signing key with others.
    pub(crate) fn with_redis(redis: &RedisServer, flags: &[&str]) -> Self {
        let host = redis.host().to_string();
        let mut all = vec!["--redis-host", &host];
        all.extend(flags);
        Self::with_redis_port(redis.port(), &all)
    }

    /// As [`Self::with_redis`], through whatever listens on that port.
    pub(crate) fn with_redis_port(port: u16, flags: &[&str]) -> Self {
        let port = port.to_string();
        let mut all = vec!["--redis-host", "127.0.0.1", "--redis-port", &port];
        all.extend(flags);
        Self::start(&all)
    }

    fn start(flags: &[&str]) -> Self {
        let keys = Directory::new();
        keys.write("current", SIGNING_KEY);
        let mut command = Command::new(env!("CARGO_BIN_EXE_operator-backend"));
        command.env_clear().env("VX11_PRINCIPAL_TOKEN", PRINCIPAL_TOKEN).args([
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--log",
            "trace",
        ]);
        if !flags.contains(&"--signing-keys-dir") {
            command.arg("--signing-keys-dir").arg(keys.path());
        }
        let mut process = command.args(flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Lines::default();
        let readers = vec![
            follow(process.stdout.take().unwrap(), Arc::clone(&lines)),
            follow(process.stderr.take().unwrap(), Arc::clone(&lines)),
        ];
        let (port, admin_port) = ports(&lines);
        Self {
            process,
            client: Client::new(port),
            admin: Client::new(admin_port),
            port,
            admin_port,
            lines,
            readers,
            secrets: Mutex::new(vec![PRINCIPAL_TOKEN.to_owned(), SIGNING_KEY.to_owned()]),
            _keys: keys,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn admin(&self) -> &Client {
        &self.admin
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Adds a text that must not be found in anything this process writes.
    pub(crate) fn keep_secret(&self, secret: &str) {
        self.secrets.lock().unwrap().push(secret.to_owned());
    }

    /// A new ephemeral token for the tests' principal.
    pub(crate) async fn token(&self) -> String {
        let answer =
            self.client.get("/operator/api/events/sse-token", &[("x-vx11-token", PRINCIPAL_TOKEN)]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let token = answer.json()["sse_token"].as_str().unwrap().to_owned();
        self.keep_secret(&token);
        token
    }

    /// The status with which a stream with this token begins.
    pub(crate) async fn redeem(&self, token: &str) -> u16 {
        self.keep_secret(token);
        self.client.stream(&format!("/operator/api/events/stream?token={token}"), &[]).await.status
    }

    /// Value of a metric without labels, or with exactly these labels in the name.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.admin.get("/metrics", &[]).await;
        let value = text.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Everything written so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for the process to end by itself.
    pub(crate) fn ended(&mut self, within: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < within, "the process did not end within {within:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn follow(from: impl Read + Send + 'static, to: Lines) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            to.lock().unwrap().push(line);
        }
    })
}

/// The ports that the process says it listens on.
fn ports(lines: &Lines) -> (u16, u16) {
    let begun = Instant::now();
    loop {
        let log = lines.lock().unwrap().clone();
        let serving = log
            .iter()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find(|line| line["message"] == "serving");
        if let Some(line) = serving {
            let port =
                |field: &str| line[field].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
            return (port("listen"), port("admin_listen"));
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "the backend did not begin to serve: {log:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Backend {
    /// What a scrape finds now; nothing when the process does not answer any more.
    fn last_metrics(&mut self) -> String {
        let mut text = String::new();
        if !matches!(self.process.try_wait(), Ok(None)) {
            return text;
        }
        if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.admin_port)) {
            let _ = socket.set_read_timeout(Some(Duration::from_secs(2)));
            let _ = socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let _ = socket.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let metrics = self.last_metrics();
        self.kill();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            for line in self.log() {
                eprintln!("[{}] {line}", self.port);
            }
            return;
        }
        let log = self.log().join("\n") + &metrics;
        if let Some(secret) = leaked(&log) {
            panic!("{secret} is in the output of the backend:\n{log}");
        }
        for secret in self.secrets.lock().unwrap().iter() {
            assert!(!log.contains(secret.as_str()), "a secret is in the output of the backend:\n{log}");
        }
    }
}
