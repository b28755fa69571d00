//! Pure builders: a validated cluster in, Kubernetes objects out, the same bytes for the same input.
//!
//! No builder is `async`, reads a clock or draws a random number; maps are `BTreeMap`s.

pub mod backend;
pub mod credentials;
pub mod disruption;
pub mod load_balancer;
pub mod metadata;
pub mod network_policy;
mod placement;
pub mod redis;

#[cfg(test)]
pub(crate) mod fixture;
