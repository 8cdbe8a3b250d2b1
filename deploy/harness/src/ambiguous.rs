//! Commits over a link to the database that is cut again and again, before, during and after the message that commits.
//!
//! Every request is sent until it is answered, then once more. What is checked here: the second answer is the first,
//! replayed. That each was applied once, the caller checks in the database.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use outbox_proto::v1::{
    CommitRequest, CommitResponse, Disposition, NewEvent, Operation, new_event::Payload,
    outbox_service_client::OutboxServiceClient,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tonic::{Code, transport::Channel};
use uuid::Uuid;

use crate::proxy::{Cut, Proxy, contains};

/// What the requests' ids begin with, so that the proxy knows their messages.
const MARK: &str = "ambiguous-";
/// Attempts of one request; far more than a run of bad luck.
const ATTEMPTS_MAX: usize = 200;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Requests.
    pub requests: usize,
    /// Callers at once.
    pub callers: usize,
    /// How many of a hundred committing messages lose their link.
    pub cut_percent: u32,
    /// What the random choices follow from.
    pub seed: u64,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Report {
    /// Links cut before, during and after the message.
    pub cuts: [usize; 3],
    /// Answers that were the first one, replayed to the first answered attempt: its commit's answer was lost.
    pub settled_by_replay: usize,
    /// Attempts that failed and were repeated.
    pub retried: usize,
}

/// Sends the requests that `operations` makes, by number.
///
/// # Panics
/// When an answer is not what it must be.
pub async fn run(
    plan: Plan,
    proxy: &Proxy,
    channel: Channel,
    operations: impl Fn(usize) -> Vec<Operation> + Send + Sync + 'static,
) -> Report {
    let cuts: Arc<[AtomicUsize; 3]> = Arc::default();
    let (counted, mut random) = (Arc::clone(&cuts), StdRng::seed_from_u64(plan.seed));
    proxy.judge(move |message| {
        let commits = contains(message, MARK) || contains(message, "COMMIT");
        if !commits || random.random_range(0..100) >= plan.cut_percent {
            return None;
        }
        let which = random.random_range(0..3);
        counted[which].fetch_add(1, Ordering::Relaxed);
        Some([Cut::Before, Cut::During, Cut::After][which])
    });
    let (next, operations) = (Arc::new(AtomicUsize::new(0)), Arc::new(operations));
    let callers = (0..plan.callers).map(|_| {
        let (next, operations, channel) = (Arc::clone(&next), Arc::clone(&operations), channel.clone());
        tokio::spawn(async move {
            let (mut replays, mut retried) = (0, 0);
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= plan.requests {
                    return (replays, retried);
                }
                let request = request(n, operations(n));
                let (first, failures) = answered(&channel, &request).await;
                let (again, more) = answered(&channel, &request).await;
                replays += usize::from(first.disposition() == Disposition::Replayed);
                retried += failures + more;
                let first = CommitResponse { disposition: Disposition::Replayed.into(), ..first };
                assert_eq!(again, first, "the second answer of request {n}");
            }
        })
    });
    let mut report = Report::default();
    for caller in callers.collect::<Vec<_>>() {
        let (replays, retried) = caller.await.expect("every answer is right");
        report.settled_by_replay += replays;
        report.retried += retried;
    }
    proxy.judge(|_| None);
    report.cuts = [0, 1, 2].map(|which| cuts[which].load(Ordering::Relaxed));
    report
}

fn request(n: usize, operations: Vec<Operation>) -> CommitRequest {
    let event = NewEvent {
        topic: "ambiguous".into(),
        key: Some(n.to_string().into_bytes().into()),
        r#type: "counted".into(),
        payload: Some(Payload::Text(n.to_string())),
        ..NewEvent::default()
    };
    let request_id = format!("{MARK}{}", Uuid::now_v7());
    CommitRequest { request_id, operations, events: vec![event], ..CommitRequest::default() }
}

/// Sends a request until it is answered; also how many attempts failed.
async fn answered(channel: &Channel, request: &CommitRequest) -> (CommitResponse, usize) {
    for failures in 0..ATTEMPTS_MAX {
        match OutboxServiceClient::new(channel.clone()).commit(request.clone()).await {
            Ok(answer) => return (answer.into_inner(), failures),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
    }
    panic!("{ATTEMPTS_MAX} attempts have failed");
}
