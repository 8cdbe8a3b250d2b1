//! The option `(outbox.v1.rpc)` out of a method's descriptor.
//!
//! Invariant: an option is understood whole or not at all: a field that this server does not know may change what the
//! others mean.

use std::sync::LazyLock;

use outbox_proto::v1::{self, TypedRpc};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage as _, Value as Field,
};

/// What of `google.protobuf.MethodOptions` matters here. Read from its bytes, so that it does not matter whether the
/// operator's descriptors hold our file, and which version of it.
#[derive(Clone, PartialEq, prost::Message)]
struct Options {
    #[prost(int32, optional, tag = "34")]
    idempotency_level: Option<i32>,
    /// Each statement in the source may be one more occurrence; together they are one message.
    #[prost(bytes = "vec", repeated, tag = "57411")]
    rpc: Vec<Vec<u8>>,
}

const NO_SIDE_EFFECTS: i32 = 1;
/// The option as this server knows it.
static KNOWN: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    let own = DescriptorPool::decode(v1::FILE_DESCRIPTOR_SET).expect("the server's own descriptors are whole");
    own.get_message_by_name("outbox.v1.TypedRpc").expect("the option is one of the server's own messages")
});

/// A method's declaration.
pub(super) struct Declaration {
    pub(super) rpc: TypedRpc,
    pub(super) read_only: bool,
}

/// The declaration of a method; none if it has no such option.
///
/// # Errors
/// When it cannot be understood.
pub(super) fn read(method: &MethodDescriptor) -> Result<Option<Declaration>, String> {
    let bytes = method.options().encode_to_vec();
    let options = Options::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
    if options.rpc.is_empty() {
        return Ok(None);
    }
    let bytes = options.rpc.concat();
    let whole = DynamicMessage::decode(KNOWN.clone(), bytes.as_slice()).map_err(|error| error.to_string())?;
    if let Some(place) = unknown(&whole) {
        return Err(format!(
            "the option (outbox.v1.rpc) has a field that this server does not know ({place}); it was written for a newer one"
        ));
    }
    let rpc = TypedRpc::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
    Ok(Some(Declaration { rpc, read_only: options.idempotency_level == Some(NO_SIDE_EFFECTS) }))
}

/// A field that the message's type lacks, here or further in.
fn unknown(message: &DynamicMessage) -> Option<String> {
    if let Some(field) = message.unknown_fields().next() {
        return Some(format!("number {} of {}", field.number(), message.descriptor().full_name()));
    }
    message.fields().find_map(|(_, value)| match value {
        Field::Message(inner) => unknown(inner),
        Field::List(elements) => elements.iter().filter_map(Field::as_message).find_map(unknown),
        _ => None,
    })
}
