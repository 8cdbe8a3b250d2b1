//! `InboxService`: leases on events. What a call comes to is data; errors are for what is not valid.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use outbox_proto::v1::{
    self, ClaimRequest, ClaimResponse, CompleteRequest, CompleteResponse, ExtendRequest, ExtendResponse, Hold,
    ReleaseRequest, ReleaseResponse,
    claim_response::{Completed, Conflict, Granted, Held, Outcome, TooOld},
    inbox_service_server::InboxService,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    call::{self, Limits},
    convert, status,
};
use crate::{
    commit::{ATTRIBUTE_BYTES_MAX, CONSUMER_BYTES_MAX, NAMESPACE_BYTES_MAX, Violation},
    config,
    model::claim::{Change, ClaimDraft, Claimed, Delivery, Lease},
    store::inbox::Claims,
};

const CONTENT_HASH_BYTES_MAX: usize = 32;
/// How far an event's time may lie ahead of this server's clock.
const AHEAD_MAX: TimeDelta = TimeDelta::minutes(10);

pub(super) struct Inbox {
    claims: Claims,
    config: config::Inbox,
    limits: Limits,
}

impl Inbox {
    pub(super) fn new(claims: Claims, config: config::Inbox, limits: Limits) -> Self {
        Self { claims, config, limits }
    }

    async fn change(&self, lease: Lease, change: Change, deadline: Instant) -> Result<i32, Status> {
        let kept = self.claims.change(&lease, &change, deadline).await.map_err(|error| status::store(&error))?;
        Ok(if kept { Hold::Kept } else { Hold::Lost }.into())
    }

    fn draft(&self, request: ClaimRequest) -> Result<ClaimDraft, Vec<Violation>> {
        let mut faults = Faults::default();
        let ClaimRequest { namespace, consumer, source, event_id, event_time, content_hash, lease, token } = request;
        let event_time = event_time.map(|time| faults.event_time(convert::time(time)));
        faults.check("content_hash", content_hash.len() <= CONTENT_HASH_BYTES_MAX, || {
            format!("has {} bytes; at most {CONTENT_HASH_BYTES_MAX} are allowed", content_hash.len())
        });
        let lease = faults.duration("lease", lease, self.config.lease_max_ms);
        let token = if token.is_empty() { Uuid::now_v7() } else { faults.uuid("token", &token) };
        let delivery = faults.delivery(namespace, consumer, source, &event_id);
        let content_hash = (!content_hash.is_empty()).then(|| content_hash.to_vec());
        faults.none(ClaimDraft { delivery, event_time: event_time.flatten(), content_hash, lease, token })
    }
}

#[tonic::async_trait]
impl InboxService for Inbox {
    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let draft = self.draft(request.into_inner()).map_err(status::invalid)?;
        let claimed = self.claims.claim(&draft, deadline).await.map_err(|error| status::store(&error))?;
        let outcome = match claimed {
            Claimed::Granted { attempt } => {
                let lease = Lease { delivery: draft.delivery, token: draft.token };
                Outcome::Granted(Granted { lease: Some(message(lease)), attempt })
            }
            Claimed::Completed { result, completed_at } => {
                let completed_at = Some(convert::timestamp(completed_at));
                Outcome::Completed(Completed { result: result.into(), completed_at })
            }
            Claimed::Held { left } => Outcome::Held(Held { left: prost_types::Duration::try_from(left).ok() }),
            Claimed::Conflict => Outcome::Conflict(Conflict {}),
            Claimed::TooOld => {
                let window_hours = i32::try_from(self.config.window_hours).unwrap_or(i32::MAX);
                Outcome::TooOld(TooOld { window_hours })
            }
        };
        Ok(Response::new(ClaimResponse { outcome: Some(outcome) }))
    }

    async fn extend(&self, request: Request<ExtendRequest>) -> Result<Response<ExtendResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let ExtendRequest { lease, duration } = request.into_inner();
        let mut faults = Faults::default();
        let lease = faults.lease(lease);
        let duration = faults.duration("duration", duration, self.config.lease_max_ms);
        let (lease, duration) = faults.none((lease, duration)).map_err(status::invalid)?;
        let hold = self.change(lease, Change::Extend(duration), deadline).await?;
        Ok(Response::new(ExtendResponse { hold }))
    }

    async fn complete(&self, request: Request<CompleteRequest>) -> Result<Response<CompleteResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let CompleteRequest { lease, result } = request.into_inner();
        let mut faults = Faults::default();
        let lease = faults.lease(lease);
        let max = self.config.result_bytes_max;
        faults.check("result", result.len() <= max, || {
            format!("has {} bytes; at most {max} are allowed (inbox.result_bytes_max)", result.len())
        });
        let lease = faults.none(lease).map_err(status::invalid)?;
        let hold = self.change(lease, Change::Complete(result.to_vec()), deadline).await?;
        Ok(Response::new(CompleteResponse { hold }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let mut faults = Faults::default();
        let lease = faults.lease(request.into_inner().lease);
        let lease = faults.none(lease).map_err(status::invalid)?;
        let hold = self.change(lease, Change::Extend(Duration::ZERO), deadline).await?;
        Ok(Response::new(ReleaseResponse { hold }))
    }
}

fn message(lease: Lease) -> v1::Lease {
    let Lease { delivery: Delivery { namespace, consumer, source, event_id }, token } = lease;
    v1::Lease { namespace, consumer, source, event_id: event_id.to_string(), token: token.to_string() }
}

/// The faults of a request. What reads a field gives something in its place when it is at fault.
#[derive(Default)]
struct Faults {
    found: Vec<Violation>,
    /// Prefix of the fields being checked.
    prefix: &'static str,
}

impl Faults {
    /// What was read, when nothing is at fault.
    fn none<T>(self, read: T) -> Result<T, Vec<Violation>> {
        if self.found.is_empty() { Ok(read) } else { Err(self.found) }
    }

    fn check(&mut self, field: &str, holds: bool, description: impl FnOnce() -> String) {
        if !holds {
            self.found.push(Violation { field: format!("{}{field}", self.prefix), description: description() });
        }
    }

    fn lease(&mut self, lease: Option<v1::Lease>) -> Lease {
        self.check("lease", lease.is_some(), || "is required: the one that Claim has granted".into());
        let Some(v1::Lease { namespace, consumer, source, event_id, token }) = lease else {
            return Lease { delivery: no_delivery(), token: Uuid::nil() };
        };
        self.prefix = "lease.";
        let delivery = self.delivery(namespace, consumer, source, &event_id);
        let token = self.uuid("token", &token);
        self.prefix = "";
        Lease { delivery, token }
    }

    fn delivery(&mut self, namespace: String, consumer: String, source: String, event_id: &str) -> Delivery {
        let namespace = call::namespace(namespace);
        let fields = [
            ("namespace", &namespace, NAMESPACE_BYTES_MAX),
            ("consumer", &consumer, CONSUMER_BYTES_MAX),
            ("source", &source, ATTRIBUTE_BYTES_MAX),
        ];
        for (field, text, max) in fields {
            let fits = (1..=max).contains(&text.len()) && !text.contains('\0');
            self.check(field, fits, || format!("has {} bytes; expected 1 to {max}, none of them NUL", text.len()));
        }
        let event_id = self.uuid("event_id", event_id);
        Delivery { namespace, consumer, source, event_id }
    }

    fn uuid(&mut self, field: &str, text: &str) -> Uuid {
        let uuid = Uuid::try_parse(text).ok();
        self.check(field, uuid.is_some(), || format!("`{text}` is not a UUID"));
        uuid.unwrap_or_default()
    }

    fn duration(&mut self, field: &str, given: Option<prost_types::Duration>, max_ms: u64) -> Duration {
        let duration = given.and_then(|given| Duration::try_from(given).ok()).unwrap_or_default();
        let fits = (1..=u128::from(max_ms)).contains(&duration.as_millis());
        self.check(field, fits, || format!("is required, from 1 ms up to {max_ms} ms (inbox.lease_max_ms)"));
        duration
    }

    fn event_time(&mut self, time: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        let now = Utc::now();
        self.check("event_time", time.is_some_and(|time| time - now <= AHEAD_MAX), || {
            let ahead = AHEAD_MAX.num_seconds();
            format!("is no valid timestamp, or more than {ahead} s ahead of the server's time {now}")
        });
        time
    }
}

fn no_delivery() -> Delivery {
    let nothing = String::new;
    Delivery { namespace: nothing(), consumer: nothing(), source: nothing(), event_id: Uuid::nil() }
}
