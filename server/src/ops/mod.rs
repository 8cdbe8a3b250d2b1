//! What operators look at.

pub mod health;
pub mod metrics;
pub mod names;
