//! Tests of the whole product on a real Kubernetes: the harness that they share.
//!
//! Everything here is test support: it panics with what did not happen, and with what to do about it.

pub mod harness;
