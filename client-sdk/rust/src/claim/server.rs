//! Claims that the server keeps, for consumers that have no database of their own.
//!
//! Invariant: all attempts of a claim carry one token, so that a claim whose answer was lost is not in its own way.
//! The server's clock counts, and the server forgets: what is older than its window it answers with `TooOld`.
//!
//! It deliberately remembers nothing here: every call asks the server.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use outbox_proto::v1::{self, claim_response::Outcome, inbox_service_client::InboxServiceClient};
use uuid::Uuid;

use super::{Claim, Claimed, Claims, Hold, Scope, give_back};
use crate::{
    Client, CommitError,
    client::{Connection, call::Call, timestamp},
    inbox::{EventKey, InboxError},
};

/// Of those that are made for several events.
const CALLS_AT_ONCE: usize = 32;

type Rpc = InboxServiceClient<Connection>;

/// Claims in the server's inbox, in the namespace of a [`Client`].
///
/// The server has limits of its own: by default leases of up to an hour, results of up to 64 KiB, and events of up to a
/// week ago. It keeps the claim of a key without a time for so long from its first claim on. Consumers' names have at
/// most 128 bytes there. What breaks a limit stops a consumer.
///
/// ```no_run
/// # fn build(effect: impl outbox_sdk::Effect) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use outbox_sdk::{Client, Consumer, claim::ServerClaims};
///
/// let claims = ServerClaims::new(Client::connect("http://localhost:7411")?);
/// let consumer = Consumer::builder("mailer").topics(["users"]).claims(claims, Duration::from_secs(30));
/// let consumer = consumer.effect(effect).build()?;
/// # let _ = consumer;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ServerClaims {
    client: Client,
    rpc: Rpc,
}

impl ServerClaims {
    /// The claims of the server that this client calls, with the client's namespace and deadline.
    pub fn new(client: Client) -> Self {
        let rpc = InboxServiceClient::new(client.connection());
        Self { client, rpc }
    }

    fn call<'a>(&self, method: &'static str, token: &'a str) -> Call<'a> {
        Call { method, request_id: token, deadline: self.client.deadline() }
    }

    fn lease(&self, claim: &Claim) -> v1::Lease {
        let (consumer, source) = match &claim.scope {
            Scope::Names { consumer, source } => (consumer.clone(), source.clone()),
            // Another kind of store's: the server refuses it.
            Scope::Number(_) => (String::new(), String::new()),
        };
        v1::Lease {
            namespace: self.client.namespace().to_owned(),
            consumer,
            source,
            event_id: claim.event_id.to_string(),
            token: claim.token.to_string(),
        }
    }
}

impl Claims for ServerClaims {
    async fn claim(&self, consumer: &str, key: &EventKey<'_>, lease: Duration) -> Result<Claimed, InboxError> {
        let token = Uuid::now_v7();
        let (name, event_id) = (token.to_string(), key.id());
        let request = v1::ClaimRequest {
            namespace: self.client.namespace().to_owned(),
            consumer: consumer.to_owned(),
            source: key.source().to_owned(),
            event_id: event_id.to_string(),
            event_time: key.time().map(timestamp),
            content_hash: key
                .content()
                .map(|content| content.number().to_be_bytes().to_vec())
                .unwrap_or_default()
                .into(),
            lease: message(lease),
            token: name.clone(),
        };
        let call = self.call("outbox.v1.InboxService/Claim", &name);
        let send = |mut rpc: Rpc, request| async move { rpc.claim(request).await };
        let answer = self.client.call(&self.rpc, call, request, send).await.map_err(failed)?;
        Ok(match answer.outcome {
            Some(Outcome::Granted(granted)) => {
                let scope = Scope::Names { consumer: consumer.to_owned(), source: key.source().to_owned() };
                Claimed::Yours(Claim { scope, event_id, token, attempt: granted.attempt.unsigned_abs() })
            }
            Some(Outcome::Completed(completed)) => Claimed::Done(completed.result.to_vec()),
            Some(Outcome::Held(held)) => {
                Claimed::Held { left: held.left.and_then(|left| left.try_into().ok()).unwrap_or_default() }
            }
            Some(Outcome::Conflict(_)) => Claimed::Conflict,
            Some(Outcome::TooOld(_)) => Claimed::TooOld,
            // A newer server's word: as long as this SDK does not know it, nobody handles the event here.
            None => Claimed::Held { left: lease },
        })
    }

    async fn extend(&self, claim: &Claim, lease: Duration) -> Result<Hold, InboxError> {
        let token = claim.token.to_string();
        let call = self.call("outbox.v1.InboxService/Extend", &token);
        let request = v1::ExtendRequest { lease: Some(self.lease(claim)), duration: message(lease) };
        let send = |mut rpc: Rpc, request| async move { rpc.extend(request).await };
        Ok(hold(self.client.call(&self.rpc, call, request, send).await.map_err(failed)?.hold()))
    }

    async fn complete(&self, claim: &Claim, result: &[u8]) -> Result<Hold, InboxError> {
        let token = claim.token.to_string();
        let call = self.call("outbox.v1.InboxService/Complete", &token);
        let request = v1::CompleteRequest { lease: Some(self.lease(claim)), result: result.to_vec().into() };
        let send = |mut rpc: Rpc, request| async move { rpc.complete(request).await };
        Ok(hold(self.client.call(&self.rpc, call, request, send).await.map_err(failed)?.hold()))
    }

    async fn release(&self, claim: &Claim) -> Result<Hold, InboxError> {
        let token = claim.token.to_string();
        let call = self.call("outbox.v1.InboxService/Release", &token);
        let request = v1::ReleaseRequest { lease: Some(self.lease(claim)) };
        let send = |mut rpc: Rpc, request| async move { rpc.release(request).await };
        Ok(hold(self.client.call(&self.rpc, call, request, send).await.map_err(failed)?.hold()))
    }

    /// Some at once, what is given twice afterwards. The first that fails is the last but for those that are under way.
    async fn claim_all(
        &self,
        consumer: &str,
        keys: &[EventKey<'_>],
        lease: Duration,
    ) -> Result<Vec<Claimed>, InboxError> {
        let mut known = HashSet::new();
        let (first, again): (Vec<usize>, Vec<usize>) =
            (0..keys.len()).partition(|at| known.insert((keys[*at].source(), keys[*at].id())));
        let mut claimed: Vec<Option<Claimed>> = vec![None; keys.len()];
        for places in first.chunks(CALLS_AT_ONCE).chain(again.chunks(CALLS_AT_ONCE)) {
            let answers = join_all(places.iter().map(|at| self.claim(consumer, &keys[*at], lease))).await;
            let mut failed = None;
            for (at, answer) in places.iter().zip(answers) {
                match answer {
                    Ok(answer) => claimed[*at] = Some(answer),
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                give_back(self, claimed.into_iter().flatten().collect()).await;
                return Err(error);
            }
        }
        Ok(claimed.into_iter().flatten().collect())
    }

    async fn extend_all(&self, claims: &[Claim], lease: Duration) -> Result<Vec<Hold>, InboxError> {
        some_at_once(claims, |claim| self.extend(claim, lease)).await
    }

    async fn complete_all(&self, claims: &[Claim]) -> Result<Vec<Hold>, InboxError> {
        some_at_once(claims, |claim| self.complete(claim, b"")).await
    }

    async fn release_all(&self, claims: &[Claim]) -> Result<Vec<Hold>, InboxError> {
        some_at_once(claims, |claim| self.release(claim)).await
    }

    /// Nothing: the server forgets by itself, behind its own window.
    async fn expire(&self, _: &str, _: Duration, _: i64) -> Result<u64, InboxError> {
        Ok(0)
    }
}

/// Does this with each, some at once, unless none of those gets through.
async fn some_at_once<'c, F: Future<Output = Result<Hold, InboxError>>>(
    claims: &'c [Claim],
    call: impl Fn(&'c Claim) -> F,
) -> Result<Vec<Hold>, InboxError> {
    let mut holds = Vec::with_capacity(claims.len());
    for some in claims.chunks(CALLS_AT_ONCE) {
        let some = join_all(some.iter().map(&call)).await;
        let is_away = some.iter().all(Result::is_err);
        holds.extend(some);
        if is_away {
            break;
        }
    }
    holds.into_iter().collect()
}

fn message(duration: Duration) -> Option<prost_types::Duration> {
    // One that does not fit is refused by the server as missing.
    prost_types::Duration::try_from(duration).ok()
}

fn hold(hold: v1::Hold) -> Hold {
    if hold == v1::Hold::Kept { Hold::Kept } else { Hold::Lost }
}

fn failed(error: CommitError) -> InboxError {
    InboxError::Server(Box::new(error.into_failure()))
}
