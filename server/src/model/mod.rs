//! The domain's own types, free of gRPC, SQL and Kafka.

pub mod claim;
pub mod commit;
pub mod delivery;
pub mod document;
pub mod event;
pub mod link;
pub mod log;
pub mod progress;
pub mod snapshot;
pub mod source;
pub mod template;
pub mod transact;
pub mod value;
