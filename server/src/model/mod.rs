//! The domain's own types, free of gRPC, SQL and Kafka.

pub mod commit;
pub mod document;
pub mod event;
pub mod link;
pub mod progress;
pub mod snapshot;
pub mod template;
pub mod transact;
pub mod value;
