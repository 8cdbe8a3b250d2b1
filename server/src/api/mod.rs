//! The gRPC services: parse, call, map. prost types stop here.
//!
//! One file per service; `convert` maps messages, `status` errors, and two layers stand before every service:
//! `trace` continues the caller's trace, `malformed` answers what could not even be decoded.

mod call;
mod command;
mod convert;
mod event;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod held;
mod inbox;
mod malformed;
mod outbox;
mod page_token;
mod reason;
mod reflection;
mod relay;
mod replay;
mod state;
mod status;
mod trace;
mod transact;
pub mod typed;
mod waiting;

use std::{error::Error, sync::Arc};

use outbox_proto::v1::{
    command_service_server::CommandServiceServer, event_service_server::EventServiceServer,
    inbox_service_server::InboxServiceServer, outbox_service_server::OutboxServiceServer,
    relay_service_server::RelayServiceServer, state_service_server::StateServiceServer,
};
use tokio::net::TcpListener;
use tonic::{
    codec::CompressionEncoding,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::health_server::{Health, HealthServer};

pub use self::call::Limits;
use self::{
    malformed::MalformedLayer,
    trace::TraceLayer,
    typed::{Caller, Rpcs},
};
use crate::{
    catalog::Catalog,
    commit::Committer,
    config,
    store::{event::Reader, held::Holds, inbox::Claims, numbers::Gauge, state::State},
};

/// Everything the services call.
pub struct Services {
    /// Takes commits.
    pub committer: Committer,
    /// The commands there are.
    pub catalog: Arc<Catalog>,
    /// The operator's own RPCs.
    pub rpcs: Rpcs,
    /// Reads of business state.
    pub state: State,
    /// Leases on events.
    pub claims: Claims,
    /// Their limits.
    pub inbox: config::Inbox,
    /// Reads of the outbox.
    pub reader: Reader,
    /// Looks at the relays.
    pub gauge: Gauge,
    /// What becomes of the keys of held events.
    pub policies: config::Relay,
    /// Time limits of calls.
    pub limits: Limits,
    /// Limits of interactive transactions.
    pub transact: config::Transact,
    /// Most rows of a page.
    pub result_rows_max: u64,
    /// Largest request message in bytes.
    pub request_bytes_max: usize,
}

/// Serves until `shutdown` resolves, then lets calls in progress finish.
///
/// # Errors
/// When the listener fails, or a descriptor cannot be read.
pub async fn serve(
    listener: TcpListener,
    services: Services,
    health: HealthServer<impl Health>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Services {
        committer,
        catalog,
        rpcs,
        state,
        claims,
        inbox,
        reader,
        gauge,
        policies,
        limits,
        transact,
        result_rows_max,
        request_bytes_max,
    } = services;
    let typed = rpcs.routes(&Arc::new(Caller { committer: committer.clone(), limits, request_bytes_max }));
    let streams = transact::Streams::new(committer.clone(), &transact, result_rows_max);
    let outbox = OutboxServiceServer::new(outbox::Outbox::new(committer.clone(), streams, reader.clone(), limits))
        .max_decoding_message_size(request_bytes_max)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .send_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Zstd);
    let state = StateServiceServer::new(state::Reads::new(committer, state, limits))
        .send_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Zstd);
    let command = CommandServiceServer::new(command::Commands::new(catalog));
    let held = held::HeldCalls::new(Holds::new(&reader), policies);
    let event = EventServiceServer::new(event::Events::new(reader, held, limits))
        .send_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Zstd);
    let inbox = InboxServiceServer::new(inbox::Inbox::new(claims, inbox, limits));
    let relay = RelayServiceServer::new(relay::Relays::new(gauge, limits));
    // grpcurl and older tools speak v1alpha only.
    let reflection = reflection::builder(&rpcs, "grpc.reflection.v1.ServerReflection").build_v1()?;
    let reflection_alpha = reflection::builder(&rpcs, "grpc.reflection.v1alpha.ServerReflection").build_v1alpha()?;
    Server::builder()
        .layer(TraceLayer)
        .layer(MalformedLayer)
        .add_routes(typed)
        .add_service(outbox)
        .add_service(state)
        .add_service(command)
        .add_service(event)
        .add_service(inbox)
        .add_service(relay)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), shutdown)
        .await?;
    Ok(())
}
