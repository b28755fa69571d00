//! A small API server in this process, for faults that a real one cannot be made to have: a conflict at
//! will, an answer that never comes, a version that moves without a change. Everything else is tested
//! against a real one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use k8s_openapi::ByteString;
use kube::{Client, Config};
use serde_json::{Value, json};

/// What happens to a request instead of being served.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is refused with this code and message.
    Refuse(u16, &'static str),
    /// It is never answered.
    Hang,
    /// Somebody else removes the object just before it is served.
    Remove,
}

/// One request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
}

#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    version: u64,
    seen: Vec<Seen>,
    /// Method and end of the path, how often, and what happens.
    faults: Vec<(Method, &'static str, usize, Fault)>,
    bumps_versions: bool,
}

/// The server's handle; it ends with the test's runtime.
#[derive(Clone)]
pub struct FakeApi {
    server: Arc<Mutex<Server>>,
    pub client: Client,
}

impl FakeApi {
    pub async fn start() -> Self {
        let server = Arc::new(Mutex::new(Server::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        let config = Config::new(format!("http://{address}").parse().unwrap());
        Self { server, client: Client::try_from(config).unwrap() }
    }

    /// The next `times` requests of this method to a path with this end meet a fault.
    pub fn fail(&self, method: Method, path_end: &'static str, times: usize, fault: Fault) {
        self.server.lock().unwrap().faults.push((method, path_end, times, fault));
    }

    /// Every write moves the version, even one that changes nothing (kubernetes/kubernetes#119304).
    pub fn bump_versions(&self) {
        self.server.lock().unwrap().bumps_versions = true;
    }

    /// Requests since the last call.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.server.lock().unwrap().seen)
    }

    /// Writes since the last call of [`Self::take_seen`].
    pub fn take_writes(&self) -> Vec<Seen> {
        let mut seen = self.take_seen();
        seen.retain(|request| request.method != "GET");
        seen
    }

    pub fn object(&self, path_end: &str) -> Option<Value> {
        let server = self.server.lock().unwrap();
        let found = server.objects.iter().find(|(path, _)| path.ends_with(path_end));
        found.map(|(_, object)| object.clone())
    }

    /// Every object under a path.
    pub fn objects(&self, path_start: &str) -> Vec<Value> {
        let server = self.server.lock().unwrap();
        server
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(path_start))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Removes an object, as somebody else.
    pub fn remove(&self, path: &str) -> Option<Value> {
        self.server.lock().unwrap().objects.remove(path)
    }

    /// Puts an object there or changes it, as somebody else.
    pub fn merge(&self, path: &str, change: &Value) {
        let mut server = self.server.lock().unwrap();
        server.write(path, change);
    }
}

impl Server {
    fn write(&mut self, path: &str, change: &Value) -> Value {
        let mut object = self.objects.get(path).cloned().unwrap_or_else(|| {
            json!({"metadata": {"uid": format!("uid-{}", self.version), "creationTimestamp": "2026-01-01T00:00:00Z"}})
        });
        merge(&mut object, change);
        // What is written as text is stored as bytes.
        if let Some(text) = object.as_object_mut().and_then(|object| object.remove("stringData")) {
            let text: BTreeMap<String, String> = serde_json::from_value(text).unwrap();
            let bytes: BTreeMap<String, ByteString> =
                text.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect();
            merge(&mut object["data"], &serde_json::to_value(bytes).unwrap());
        }
        self.replace(path, &object)
    }

    /// Whether a write is meant for another object than the one that is there, if any is.
    fn is_another(&self, path: &str, change: &Value) -> bool {
        let metadata = |object: &Value, field: &str| object["metadata"].get(field).cloned();
        let present = |field| self.objects.get(path).and_then(|object| metadata(object, field));
        ["uid", "resourceVersion"]
            .iter()
            .any(|field| metadata(change, field).is_some_and(|meant| Some(meant) != present(field)))
    }

    fn replace(&mut self, path: &str, object: &Value) -> Value {
        let mut object = object.clone();
        if self.bumps_versions || self.objects.get(path) != Some(&object) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn fault(&mut self, method: &Method, path: &str) -> Option<Fault> {
        let hit = self.faults.iter_mut().find(|(fault_method, end, times, _)| {
            *times > 0 && fault_method == method && path.ends_with(end)
        })?;
        hit.2 -= 1;
        Some(hit.3.clone())
    }
}

/// Maps merge, everything else is replaced.
fn merge(target: &mut Value, change: &Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (key, value) in change {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (target, change) => *target = change.clone(),
    }
}

/// An object after the operations of a JSON patch; of those, what the controller uses.
fn edited(object: &Value, operations: &[Value]) -> Value {
    let mut object = object.clone();
    for operation in operations {
        let target = object.pointer_mut(operation["path"].as_str().unwrap()).unwrap();
        match operation["op"].as_str().unwrap() {
            "test" => assert_eq!(*target, operation["value"]),
            "replace" => *target = operation["value"].clone(),
            other => panic!("{other} is not served"),
        }
    }
    object
}

fn refusal(code: u16, message: &str) -> Response {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "Forbidden",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
    });
    (StatusCode::from_u16(code).unwrap(), status.to_string()).into_response()
}

async fn serve(State(server): State<Arc<Mutex<Server>>>, request: Request) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body: Bytes = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let fault = {
        let mut server = server.lock().unwrap();
        server.seen.push(Seen { method: method.to_string(), path: path.clone(), query });
        server.fault(&method, &path)
    };
    match fault {
        Some(Fault::Refuse(code, message)) => return refusal(code, message),
        Some(Fault::Hang) => std::future::pending::<()>().await,
        Some(Fault::Remove) => drop(server.lock().unwrap().objects.remove(&path)),
        None => {}
    }
    let mut server = server.lock().unwrap();
    match method {
        Method::GET => match server.objects.get(&path) {
            Some(object) => object.to_string().into_response(),
            None => refusal(404, "not found"),
        },
        Method::POST => {
            let object: Value = serde_json::from_slice(&body).unwrap();
            let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
            if server.objects.contains_key(&path) {
                return refusal(409, "already exists");
            }
            server.write(&path, &object).to_string().into_response()
        }
        Method::PATCH => {
            let change: Value = serde_json::from_slice(&body).unwrap();
            let change = match change {
                Value::Array(operations) => edited(&server.objects[&path], &operations),
                change => change,
            };
            let path = path.trim_end_matches("/status");
            if server.is_another(path, &change) {
                return refusal(409, "the object has been modified");
            }
            server.write(path, &change).to_string().into_response()
        }
        Method::PUT => {
            let object: Value = serde_json::from_slice(&body).unwrap();
            match server.objects.get(&path).cloned() {
                None => refusal(404, "not found"),
                Some(live) => {
                    let version = &object["metadata"]["resourceVersion"];
                    if !version.is_null() && *version != live["metadata"]["resourceVersion"] {
                        return refusal(409, "the object has been modified");
                    }
                    server.replace(&path, &object).to_string().into_response()
                }
            }
        }
        Method::DELETE => match server.objects.remove(&path) {
            Some(object) => object.to_string().into_response(),
            None => refusal(404, "not found"),
        },
        _ => refusal(405, "not served"),
    }
}
