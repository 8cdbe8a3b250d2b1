//! An RPC as it is run: its declaration with every name looked up.
//!
//! Invariant: a plan fits its messages and its commands; what a call can still get wrong is values.

use prost_reflect::{MessageDescriptor, Value as Field};

use super::path::Path;
use crate::model::{
    link::{Links, Reference},
    value::SqlType,
};

/// An RPC.
#[derive(Debug)]
pub(super) struct Rpc {
    /// As `shop.v1.Users/Activate`.
    pub(super) name: String,
    pub(super) request: MessageDescriptor,
    pub(super) response: MessageDescriptor,
    /// Whether it runs its one command outside any commit.
    pub(super) read_only: bool,
    /// Otherwise metadata carries the request id.
    pub(super) request_id: Option<Path>,
    /// Otherwise metadata may carry the namespace.
    pub(super) namespace: Option<Path>,
    pub(super) operations: Vec<Call>,
    pub(super) events: Vec<Event>,
    /// What of each request follows from results, but for payloads.
    pub(super) links: Links,
    pub(super) fills: Vec<Fill>,
}

/// A command that is run.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) command: String,
    /// Those that are no links.
    pub(super) parameters: Vec<Parameter>,
}

#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) ty: SqlType,
    pub(super) from: Given,
}

/// A value that is known before anything runs.
#[derive(Clone, Debug)]
pub(super) enum Given {
    Field(Path),
    Text(String),
}

/// An event that is stored.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) topic: String,
    pub(super) event_type: String,
    pub(super) source: Option<String>,
    pub(super) key: Option<Given>,
    pub(super) subject: Option<Given>,
    pub(super) payload: Payload,
}

#[derive(Debug)]
pub(super) enum Payload {
    /// The request as JSON.
    Json,
    /// The request as it is.
    Protobuf,
    /// A JSON object of its own.
    Object(Vec<Member>),
    Tombstone,
}

/// A member of a JSON object, inside of those that are named before it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) names: Vec<String>,
    pub(super) from: MemberOrigin,
}

#[derive(Debug)]
pub(super) enum MemberOrigin {
    Given(Given),
    Column(Reference),
}

/// Something that is put into the response.
#[derive(Debug)]
pub(super) enum Fill {
    /// A constant.
    Constant { to: Path, value: Field },
    /// A field of the request.
    Request { to: Path, from: Path },
    /// A column of an operation's first row.
    Column { to: Path, operation: usize, column: String },
    /// An operation's rows as messages, each column as the field of its name.
    Rows { to: Path, operation: usize, fields: Vec<Path> },
}
