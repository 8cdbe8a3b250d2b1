//! What operators look at.

pub mod health;
