//! Server reflection: what is served, and the descriptors of all its messages, the operator's included.
//!
//! Invariant: a service is listed only if it is served; an operator's descriptor sets may hold others.

use outbox_proto::v1::FILE_DESCRIPTOR_SET;
use prost_reflect::DescriptorPool;
use tonic_reflection::server::Builder;

use super::typed::Rpcs;

/// The services in other crates' descriptors.
const HEALTH: &str = "grpc.health.v1.Health";

/// A builder that lists everything, and itself under the name of its version.
pub(super) fn builder<'a>(rpcs: &'a Rpcs, own: &str) -> Builder<'a> {
    let sets = Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that tools can show the details of errors.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
    let sets = rpcs.descriptors().fold(sets, Builder::register_encoded_file_descriptor_set);
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the server's own descriptors are whole");
    let ours = pool.services().map(|service| service.full_name().to_owned());
    let names = ours.chain([HEALTH.to_owned(), own.to_owned()]).chain(rpcs.services().map(str::to_owned));
    names.fold(sets, Builder::with_service_name)
}
