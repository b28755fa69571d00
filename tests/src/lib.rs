//! Tests of the whole product on a real Kubernetes: the harness that they share.
//!
//! Everything here is test support: it panics with what did not happen, and with what to do about it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod harness;
