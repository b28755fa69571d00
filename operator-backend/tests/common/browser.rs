//! A headless Chromium of its own, driven by chromedriver: `WebDriver` is JSON over HTTP, which the tests'
//! own client speaks.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Client, Directory,
    backend::{Lines, follow},
};

/// Starting a browser may take this long on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// Those that chromedriver can drive; Debian's first.
const PROGRAMS: [&str; 2] = ["chromium", "google-chrome"];

pub(crate) struct Browser {
    driver: Child,
    port: u16,
    client: Client,
    session: String,
    process: Option<u64>,
    _profile: Directory,
}

/// A tab of a browser, in front for as long as something is asked of it.
pub(crate) struct Tab<'a> {
    browser: &'a Browser,
    handle: String,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let profile = Directory::new();
        let directory = profile.path().to_owned();
        let mut driver =
            Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).spawn().unwrap_or_else(
                |error| panic!("cannot start chromedriver ({error}): run tests/prerequisites.sh"),
            );
        let lines = Lines::default();
        follow(driver.stdout.take().unwrap(), lines.clone());
        let port = port(&lines);
        let client = Client::new(port).patient(PATIENCE);
        let mut browser =
            Self { driver, port, client, session: String::new(), process: None, _profile: profile };
        let flags = [
            "--headless",
            // With it, root cannot start it.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-crash-reporter",
            // Nothing but the tests' pages is asked for.
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ];
        let mut flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        flags.push(format!("--user-data-dir={}", directory.display()));
        let options = json!({ "binary": program(), "args": flags });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let session = browser.command("POST", "", &wanted).await;
        browser.session = format!("/{}", session["sessionId"].as_str().unwrap());
        browser.process = session["capabilities"]["goog:processID"].as_u64();
        browser
    }

    /// A new tab with this page, loaded.
    pub(crate) async fn open(&self, url: &str) -> Tab<'_> {
        let tab = self.command("POST", "/window/new", &json!({ "type": "tab" })).await;
        let tab = Tab { browser: self, handle: tab["handle"].as_str().unwrap().to_owned() };
        tab.command("POST", "/url", &json!({ "url": url })).await;
        tab
    }

    async fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let path = format!("/session{}{path}", self.session);
        let answer = self.client.request(method, &path, &[], body.to_string()).await;
        assert_eq!(answer.status, 200, "{method} {path} {body}: {}", answer.text());
        answer.json()["value"].take()
    }
}

impl Tab<'_> {
    /// What this script returns; a promise is waited for.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// Closes the tab, as its user does.
    pub(crate) async fn close(self) {
        self.command("DELETE", "/window", &json!({})).await;
    }

    async fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.browser.command("POST", "/window", &json!({ "handle": self.handle })).await;
        self.browser.command(method, path, body).await
    }
}

/// The port that chromedriver says it listens on.
fn port(lines: &Lines) -> u16 {
    let begun = Instant::now();
    loop {
        let log = lines.lock().unwrap().clone();
        let port = log.iter().find_map(|line| line.split_once("successfully on port ")?.1.strip_suffix('.'));
        if let Some(port) = port {
            return port.parse().unwrap();
        }
        assert!(begun.elapsed() < PATIENCE, "chromedriver did not begin to serve: {log:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn program() -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|directory| PROGRAMS.map(|program| directory.join(program)))
        .find(|program| Path::exists(program));
    found.unwrap_or_else(|| panic!("none of {PROGRAMS:?} is installed: run tests/prerequisites.sh"))
}

impl Browser {
    /// Lets chromedriver end the browser, and waits for it: a browser that is killed leaves children behind, which go
    /// on writing to the profile.
    fn end(&self) -> std::io::Result<()> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.set_read_timeout(Some(PATIENCE / 4))?;
        write!(socket, "DELETE /session{} HTTP/1.1\r\nHost: localhost\r\n\r\n", self.session)?;
        socket.read_exact(&mut [0])
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if self.end().is_err()
            && let Some(process) = self.process
        {
            let _ = Command::new("kill").args(["-s", "KILL", &process.to_string()]).status();
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
