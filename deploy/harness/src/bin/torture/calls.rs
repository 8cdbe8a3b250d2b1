//! The callers: each commits and, whatever happens, tries the same request again until it is acknowledged.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use outbox_harness::{commits, zipf::Zipf};
use outbox_proto::v1::{CommitRequest, CommitResponse, outbox_service_client::OutboxServiceClient, value::Kind};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tonic::{Request, transport::Channel};

use crate::{Place, Run};

/// Makes commits until enough have been started.
pub(crate) async fn call(run: Arc<Run>, caller: usize) {
    let mut random = StdRng::seed_from_u64(run.seed.wrapping_add(1 + caller as u64));
    let zipf = Zipf::new(run.options.keys);
    let mut clients: Vec<_> = run.servers.iter().map(|s| OutboxServiceClient::new(s.channel())).collect();
    let mut server = caller;
    loop {
        while run.started.load(Ordering::Relaxed) >= run.allowed.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if run.started.fetch_add(1, Ordering::Relaxed) >= run.options.commits {
            return;
        }
        server = (server + 1) % clients.len();
        let key = zipf.draw(&mut random);
        let mut request = commits::count_and_emit(&run.topic, key as i64, &format!("{{\"key\": {key}}}"));
        let event = request.events[0].clone();
        request.events = vec![event; random.random_range(1..=run.options.events_max.get())];
        loop {
            run.waiting[server].fetch_add(1, Ordering::Relaxed);
            let answer = attempt(&mut clients[server], request.clone()).await;
            run.waiting[server].fetch_sub(1, Ordering::Relaxed);
            match answer {
                Ok(answer) => {
                    acknowledge(&run, key, &answer);
                    break;
                }
                Err(status) if retryable(status.code()) => {
                    run.retries.fetch_add(1, Ordering::Relaxed);
                    server = (server + 1) % clients.len();
                    tokio::time::sleep(Duration::from_millis(random.random_range(5..50))).await;
                }
                Err(status) => panic!("a commit was refused: {status:?}"),
            }
        }
    }
}

fn retryable(code: tonic::Code) -> bool {
    use tonic::Code;
    // A killed server shows as UNAVAILABLE, or UNKNOWN / CANCELLED when the connection broke in mid-answer.
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::ResourceExhausted
    )
}

async fn attempt(
    client: &mut OutboxServiceClient<Channel>,
    request: CommitRequest,
) -> Result<CommitResponse, tonic::Status> {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(10));
    Ok(client.commit(request).await?.into_inner())
}

fn acknowledge(run: &Run, key: usize, answer: &CommitResponse) {
    let Some(Kind::Int(commit)) = answer.results[0].rows[0].values[0].kind else { panic!("no number in {answer:?}") };
    let mut acknowledged = run.acknowledged.lock().expect("no holder panics");
    for (index, id) in answer.event_ids.iter().enumerate() {
        let id = id.parse().expect("an event id");
        let last = index + 1 == answer.event_ids.len();
        let earlier = acknowledged.insert(id, Place { key, commit, index, last });
        assert!(earlier.is_none(), "event {id} was acknowledged twice");
    }
}
