//! `EventService.WaitPublished`: looks until every event is published, held or discarded, or the time is over.
//!
//! The looks grow rarer, and so many calls wait at most: waiting must not crowd out other reads.

use std::{collections::HashMap, time::Duration};

use outbox_proto::v1::{WaitPublishedRequest, WaitPublishedResponse, WaitedEvent};
use tokio::{sync::Semaphore, time::Instant};
use tonic::Status;
use uuid::Uuid;

use super::{call, convert, event, status};
use crate::{
    commit::Violation,
    model::event::EventState,
    store::{event::Reader, history::Whereabouts},
};

const IDS_MAX: usize = 100;
const WAITING_MAX: usize = 256;
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Kept of a call's deadline, so that what is known by then is answered in time.
const MARGIN: Duration = Duration::from_millis(50);

pub(super) struct Waiting {
    reader: Reader,
    permits: Semaphore,
}

impl Waiting {
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader, permits: Semaphore::new(WAITING_MAX) }
    }

    pub(super) async fn wait(
        &self,
        request: WaitPublishedRequest,
        deadline: Instant,
    ) -> Result<WaitPublishedResponse, Status> {
        let (ids, timeout) = check(&request).map_err(status::invalid)?;
        let namespace = call::namespace(request.namespace);
        let until = timeout.map_or(deadline, |timeout| deadline.min(Instant::now() + timeout)) - MARGIN;
        let _permit = self.permits.try_acquire().map_err(|_| status::too_many_waiting(WAITING_MAX))?;
        let mut pause = PAUSE_MIN;
        loop {
            let found = call::within(deadline, self.reader.whereabouts(&namespace, &ids)).await?;
            let found: HashMap<Uuid, Whereabouts> = found.into_iter().map(|found| (found.id, found)).collect();
            if let Some(missing) = ids.iter().find(|id| !found.contains_key(id)) {
                return Err(status::event_not_found(&missing.to_string()));
            }
            let pending =
                found.values().any(|found| matches!(found.state, EventState::Scheduled | EventState::Pending));
            if !pending || Instant::now() + pause > until {
                return Ok(WaitPublishedResponse { events: ids.iter().map(|id| waited(&found[id])).collect() });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn waited(found: &Whereabouts) -> WaitedEvent {
    WaitedEvent {
        id: found.id.to_string(),
        state: convert::state(found.state).into(),
        place: found.place.clone().map(convert::place),
        reason: found.reason.clone().unwrap_or_default(),
    }
}

fn check(request: &WaitPublishedRequest) -> Result<(Vec<Uuid>, Option<Duration>), Vec<Violation>> {
    let mut faults = Vec::new();
    if !(1..=IDS_MAX).contains(&request.ids.len()) {
        let description = format!("has {} ids; expected 1 to {IDS_MAX}", request.ids.len());
        faults.push(Violation { field: "ids".into(), description });
    }
    let mut ids = Vec::new();
    for (index, id) in request.ids.iter().enumerate().take(IDS_MAX) {
        match Uuid::try_parse(id) {
            Ok(id) => ids.push(id),
            Err(_) => faults.push(event::not_a_uuid(&format!("ids[{index}]"), id)),
        }
    }
    let timeout = request.timeout.map(Duration::try_from);
    if matches!(timeout, Some(Err(_))) {
        faults.push(Violation { field: "timeout".into(), description: "is negative or out of range".into() });
    }
    if faults.is_empty() { Ok((ids, timeout.and_then(Result::ok))) } else { Err(faults) }
}
