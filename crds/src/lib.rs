//! The Kubernetes API of VX11: the `VX11Cluster` kind, its spec and its status.
//!
//! Field documentation here is the text of `kubectl explain` and of `docs/api.md`. This crate knows no
//! controller code and no `kube::runtime`, so that every other crate and tool can use the types.

mod definition;
pub mod quantity;
pub mod spec;
pub mod status;

pub use definition::custom_resource_definition;
pub use spec::{VX11Cluster, VX11ClusterSpec};
pub use status::VX11ClusterStatus;
