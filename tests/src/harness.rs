//! A real cluster for tests: the way in, namespaces that come and go, requests, streams, and waiting.

mod audit;
mod http;
mod instance;
mod kubernetes;
mod owned;
mod secrets;
mod stream;
mod tools;
mod wait;

pub use self::{
    audit::{Asked, Audit, OPERATOR},
    http::{Answer, Route},
    instance::Instance,
    kubernetes::{Sandbox, sandbox},
    owned::owned,
    stream::{EventStream, Follower, Received},
    tools::{install_operator, is_left_out, kubectl, operator_installed, state_directory, tool},
    wait::{eventually, holds},
};

/// Where tokens are issued.
pub const TOKEN: &str = "/operator/api/events/sse-token";
/// Where streams are opened.
pub const STREAM: &str = "/operator/api/events/stream";
/// Where events are published.
pub const EVENTS: &str = "/operator/api/events";
