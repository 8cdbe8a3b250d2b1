//! `RelayService`: how the relays of all processes are, and pausing them.

use chrono::TimeDelta;
use outbox_proto::v1::{
    GetRelayRequest, GetRelayResponse, HeldCounts, Lane, PauseRequest, PauseResponse, Paused, RelayInstance,
    RelaySource, ResumeRequest, ResumeResponse, Source, relay_service_server::RelayService,
};
use tonic::{Request, Response, Status};

use super::{
    call::{self, Limits},
    convert, held, status,
};
use crate::{
    model,
    store::numbers::{self, Gauge, Numbers},
};

pub(super) struct Relays {
    gauge: Gauge,
    limits: Limits,
}

impl Relays {
    pub(super) fn new(gauge: Gauge, limits: Limits) -> Self {
        Self { gauge, limits }
    }
}

#[tonic::async_trait]
impl RelayService for Relays {
    async fn get_relay(&self, request: Request<GetRelayRequest>) -> Result<Response<GetRelayResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        call::within(deadline, self.gauge.read()).await.map(|numbers| Response::new(answer(numbers)))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let PauseRequest { reason } = request.into_inner();
        let mut faults = Vec::new();
        held::check_reason(&reason, &mut faults);
        if !faults.is_empty() {
            return Err(status::invalid(faults));
        }
        call::within(deadline, self.gauge.pause(&reason)).await?;
        tracing::warn!(reason, "every relay is to pause");
        Ok(Response::new(PauseResponse {}))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        call::within(deadline, self.gauge.resume()).await?;
        tracing::info!("every relay is to go on");
        Ok(Response::new(ResumeResponse {}))
    }
}

fn answer(numbers: Numbers) -> GetRelayResponse {
    let Numbers { paused, source, unsettled, scheduled, held, inbox: _, instances, lanes } = numbers;
    GetRelayResponse {
        paused: paused.map(|p| Paused { reason: p.reason, since: Some(convert::timestamp(p.paused_at)) }),
        lag: unsettled.lag_ms.and_then(|ms| TimeDelta::milliseconds(ms).to_std().ok()?.try_into().ok()),
        unsettled: unsettled.events,
        unsettled_is_exact: unsettled.is_exact,
        scheduled,
        held: Some(HeldCounts { failed: held.failed, parked: held.parked, holds: held.holds }),
        instances: instances
            .into_iter()
            .map(|instance| RelayInstance {
                id: instance.instance.to_string(),
                host: instance.host,
                started_at: Some(convert::timestamp(instance.started_at)),
                lease_until: Some(convert::timestamp(instance.lease_until)),
                lanes: i32::try_from(instance.lanes).unwrap_or(i32::MAX),
            })
            .collect(),
        lanes: lanes
            .into_iter()
            .map(|lane| Lane {
                lane: lane.lane.into(),
                owner: lane.owner.map(|owner| owner.to_string()).unwrap_or_default(),
                epoch: lane.epoch,
                settled: lane.settled,
                events_per_second: lane.events_per_second,
                updated_at: Some(convert::timestamp(lane.updated_at)),
                claims_without_progress: lane.claims,
            })
            .collect(),
        source: Some(relay_source(source)),
    }
}

fn relay_source(state: numbers::source::State) -> RelaySource {
    RelaySource {
        in_force: source(state.in_force).into(),
        desired: source(state.desired).into(),
        owner: state.owner.map(|owner| owner.to_string()).unwrap_or_default(),
        epoch: state.epoch,
        slot: state.slot.unwrap_or_default(),
        note: state.note.unwrap_or_default(),
        retained_log_bytes: state.retained_log_bytes,
        retained_log_bytes_max: state.retained_log_bytes_max.and_then(|max| max.try_into().ok()),
    }
}

fn source(source: model::source::Source) -> Source {
    match source {
        model::source::Source::Poll => Source::Poll,
        model::source::Source::Wal => Source::Wal,
    }
}
