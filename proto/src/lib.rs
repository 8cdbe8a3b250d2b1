//! The wire contract of outboxd: the generated gRPC code, and the Kafka record codec and trace
//! context that server and SDK share.
//!
//! The code under `gen/` is generated from `proto/outbox/v1/*.proto` and committed, so that building needs no
//! `protoc`; `tests/generated.rs` fails when it has drifted and writes it anew when `UPDATE_GENERATED=1` is set.
//! It deliberately knows neither Kafka's client library nor the database.

pub mod record;
pub mod sequence;
pub mod structured;
pub mod trace;

/// Package `outbox.v1`: messages, client and server stubs.
#[allow(missing_docs, clippy::all, unused_qualifications, unreachable_pub)] // generated
pub mod v1 {
    include!("gen/outbox.v1.rs");

    /// The encoded `FileDescriptorSet` of the package and its imports, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptor.bin");

    /// The `domain` of every `google.rpc.ErrorInfo` the server sends.
    pub const ERROR_DOMAIN: &str = "outbox.v1";
}
