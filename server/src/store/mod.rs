//! SQL: the only place besides `catalog` that knows it.

pub mod migrate;
pub mod relay;
