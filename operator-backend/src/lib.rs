//! One VX11 operator-backend instance: exchanges principal tokens for ephemeral tokens and serves
//! Server-Sent Events to whoever presents one. The binary in `main.rs` only wires these modules.

pub mod client_address;
pub mod config;
pub mod cors;
pub mod metrics;
