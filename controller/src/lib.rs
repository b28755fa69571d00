//! The controller of VX11Clusters: it makes Kubernetes look as each cluster's spec says.
//!
//! Data flows one way: API object, what it refers to, one validated cluster, its objects, writes, status.
//! `reconcile` reads as those steps; `build` and `scale` are pure; `client` is the only way to write.

pub mod admin_ports;
pub mod api_docs;
pub mod build;
pub mod cache;
pub mod client;
pub mod cluster;
pub mod commands;
pub mod context;
pub mod diagnose;
pub mod diff;
pub mod facts;
#[cfg(test)]
mod fake_api;
pub mod fingerprint;
pub mod http;
pub mod invalid;
pub mod kinds;
pub mod leader;
pub mod names;
pub mod permissions;
pub mod quantity;
pub mod readiness;
pub mod reconcile;
pub mod run;
pub mod scale;
pub mod settings;
pub mod settled;
pub mod simulate;
pub mod telemetry;
pub mod watch;
