//! What the integration tests share: real backends, a real Redis, a proxy that breaks the lines between
//! them, a browser, and a client. Whatever a test starts ends with it.
#![allow(dead_code, unused_imports, reason = "every test binary compiles this and uses its part of it")]

mod backend;
mod browser;
mod failure;
mod http;
pub(crate) mod load;
mod namespace;
mod proxy;
mod redis_server;
mod secrets;
pub(crate) mod streams;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

pub(crate) use backend::{Backend, PRINCIPAL_TOKEN, SIGNING_KEY};
pub(crate) use browser::{Browser, Tab};
pub(crate) use failure::Failure;
pub(crate) use http::{Answer, Client, EventStream};
pub(crate) use namespace::Namespace;
pub(crate) use proxy::Proxy;
pub(crate) use redis_server::RedisServer;
pub(crate) use secrets::leaked;

/// A directory of its own for each caller, removed with it.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vx11-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Asks until the answer is yes; panics with what did not happen once `within` is over.
pub(crate) async fn eventually(what: &str, within: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < within, "within {within:?} this did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A port that nobody listens on, and that no connection is given: the kernel draws those from 32768 on, so that
/// a server which starts a moment later, or comes back after a fault, finds its port still free.
pub(crate) fn free_port() -> u16 {
    const PORTS: std::ops::Range<u32> = 10_000..32_768;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let drawn = std::process::id().wrapping_mul(101).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + drawn % (PORTS.end - PORTS.start)).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal to a process that a test started.
pub(crate) fn signal(process: u32, name: &str) {
    let status =
        std::process::Command::new("sh").args(["-c", &format!("kill -s {name} {process}")]).status().unwrap();
    assert!(status.success(), "cannot send {name} to {process}");
}
