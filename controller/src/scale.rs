//! How many instances, and which go: look, decide, act.
//!
//! `capacity`, `decide` and all they use are pure; `observe`, `act` and `step` need the client.

pub mod act;
pub mod admin;
pub mod capacity;
pub mod decide;
pub mod decision;
pub mod drain;
pub mod history;
pub mod journal;
pub mod marks;
pub mod memory;
mod message;
pub mod observation;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod reading;
pub mod rebalance;
pub mod report;
pub mod spec;
pub mod step;
pub mod text;
