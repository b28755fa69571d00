//! One instance of a cluster, reached by itself.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Route, tools::command};

/// One instance.
#[derive(Clone)]
pub struct Instance {
    /// Name of its pod.
    pub name: String,
    client: kube::Client,
    namespace: String,
    forward: Arc<Mutex<Option<Forward>>>,
}

impl Instance {
    pub(super) fn new(client: &kube::Client, namespace: &str, name: String) -> Self {
        Self { name, client: client.clone(), namespace: namespace.to_owned(), forward: Arc::default() }
    }

    /// The public port, through the API server.
    #[must_use]
    pub fn public(&self) -> Route {
        let (namespace, name) = (&self.namespace, &self.name);
        let base = format!("/api/v1/namespaces/{namespace}/pods/{name}:8001/proxy");
        Route::Pod { client: self.client.clone(), base }
    }

    /// The admin port, forwarded as long as this value lives: the instance's NetworkPolicy shuts out the API
    /// server's own way.
    #[must_use]
    pub fn admin(&self) -> Route {
        let mut forward = self.forward.lock().unwrap_or_else(PoisonError::into_inner);
        let forward = forward.get_or_insert_with(|| Forward::start(&self.namespace, &self.name, 9090));
        Route::Http { base: format!("http://127.0.0.1:{}", forward.port), host: "localhost".to_owned() }
    }
}

/// A port of a pod, brought to this machine by kubectl.
struct Forward {
    kubectl: Child,
    port: u16,
}

impl Forward {
    fn start(namespace: &str, pod: &str, port: u16) -> Self {
        let mut kubectl = command("kubectl")
            .args(["-n", namespace, "port-forward", &format!("pod/{pod}"), &format!(":{port}")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("kubectl: {error}"));
        // "Forwarding from 127.0.0.1:34567 -> 9090" is its first line.
        let mut line = String::new();
        // What it says of each connection stays in the pipe; without one it would end.
        BufReader::new(kubectl.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let port = line.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let port = port.unwrap_or_else(|| panic!("no port-forward to {pod}: {line:?}"));
        Self { kubectl, port }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
