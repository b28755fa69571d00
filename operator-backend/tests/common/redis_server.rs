//! A redis-server of its own on a free port, which tests kill, stop and starve.

use std::{
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Directory, free_port, namespace::Namespace, signal};

pub(crate) struct RedisServer {
    process: Child,
    port: u16,
    settings: Vec<String>,
    directory: Directory,
    /// Where it runs, if not beside the test.
    namespace: Option<Namespace>,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// Starts Redis with further settings, as `--name value` pairs.
    pub(crate) fn with(settings: &[&str]) -> Self {
        Self::begin(settings, None)
    }

    /// Starts Redis behind a line of its own, whose packets can be dropped.
    pub(crate) fn behind_a_line() -> Self {
        Self::begin(&["--protected-mode", "no"], Some(Namespace::new()))
    }

    fn begin(settings: &[&str], namespace: Option<Namespace>) -> Self {
        let (port, directory) = (free_port(), Directory::new());
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let process = spawn(port, &directory, &settings, namespace.as_ref());
        let server = Self { process, port, settings, directory, namespace };
        server.wait();
        server
    }

    pub(crate) fn host(&self) -> Ipv4Addr {
        self.namespace.as_ref().map_or(Ipv4Addr::LOCALHOST, Namespace::address)
    }

    /// The line it is behind.
    pub(crate) fn line(&self) -> &Namespace {
        self.namespace.as_ref().unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Runs a command with redis-cli in database 1 and returns what it prints.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("redis-cli");
        let password = self.settings.iter().position(|setting| setting == "--requirepass");
        if let Some(password) = password.and_then(|at| self.settings.get(at + 1)) {
            command.args(["--no-auth-warning", "-a", password]);
        }
        command
            .args(["-h", &self.host().to_string(), "-p", &self.port.to_string(), "-n", "1"])
            .args(arguments);
        command
    }

    /// SIGKILL, as a node that dies.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again on the same port with what its directory holds.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.port, &self.directory, &self.settings, self.namespace.as_ref());
        self.wait();
    }

    /// As [`Self::restart`], with further settings.
    pub(crate) fn restart_with(&mut self, settings: &[&str]) {
        self.settings.extend(settings.iter().map(|setting| (*setting).to_owned()));
        self.restart();
    }

    pub(crate) fn freeze(&self) {
        signal(self.process.id(), "STOP");
    }

    pub(crate) fn thaw(&self) {
        signal(self.process.id(), "CONT");
    }

    fn wait(&self) {
        let begun = Instant::now();
        while self.cli(&["PING"]) != "PONG" {
            assert!(begun.elapsed() < Duration::from_secs(10), "redis-server did not answer within 10 s");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn spawn(port: u16, directory: &Directory, settings: &[String], namespace: Option<&Namespace>) -> Child {
    let command = namespace.map(|namespace| namespace.command("redis-server"));
    let address = namespace.map_or(Ipv4Addr::LOCALHOST, Namespace::address);
    command
        .unwrap_or_else(|| Command::new("redis-server"))
        .args(["--port", &port.to_string(), "--bind", &address.to_string(), "--save", ""])
        .arg("--dir")
        .arg(directory.path())
        .args(settings)
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start redis-server ({error}): apt-get install redis-server"))
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
