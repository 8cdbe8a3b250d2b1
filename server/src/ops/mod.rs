//! What operators look at.

pub mod health;
pub mod http;
pub mod metrics;
pub mod names;
pub mod readiness;
