//! How many instances, and which go. Pure: looking and acting are steps of a reconcile (`reconcile::scale`).

pub mod capacity;
pub mod count;
pub mod decide;
pub mod decision;
pub mod drain;
pub mod figures;
pub mod history;
pub mod journal;
pub mod marks;
pub mod memory;
mod message;
pub mod observation;
pub mod plan;
pub mod policy;
pub mod reading;
pub mod rebalance;
pub mod report;
pub mod spec;
pub mod text;
