//! A real cluster for tests: the way in, namespaces that come and go, requests, streams, and waiting.

mod http;
mod instance;
mod kubernetes;
mod stream;
mod wait;

pub use self::{
    http::{Answer, Route},
    instance::Instance,
    kubernetes::{Sandbox, kubectl, operator_installed, sandbox, state_directory, tool},
    stream::{EventStream, Follower, Received},
    wait::{eventually, holds},
};

/// Where tokens are issued.
pub const TOKEN: &str = "/operator/api/events/sse-token";
/// Where streams are opened.
pub const STREAM: &str = "/operator/api/events/stream";
/// Where events are published.
pub const EVENTS: &str = "/operator/api/events";
