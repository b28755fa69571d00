//! One VX11 operator-backend instance: exchanges principal tokens for ephemeral tokens and serves
//! Server-Sent Events to whoever presents one. The binary in `main.rs` only wires these modules.

pub mod admin;
pub mod answer;
pub mod app;
pub mod auth;
pub mod client_address;
pub mod clock;
pub mod config;
pub mod correlation;
pub mod cors;
pub mod drain;
pub mod events;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod redis_link;
pub mod stream;
pub mod telemetry;
pub mod token;
