//! Answers each `user.activated` event with a commit: a first order is placed and `order.placed` published, once per event.
//!
//! The commit carries the event as `consume`: outboxd marks it as handled in the same transaction as the order and the new
//! event. So this consumer needs neither a database nor leases of its own, and a consumer in any language can do the same.
//!
//! Needs a server with the sample catalog, and Kafka, as `outboxd dev` starts them and prints their addresses:
//! `cargo run -p outbox-sdk --example consume_commit -- http://localhost:7411 localhost:9092`

use std::time::Duration;

use outbox_sdk::{
    Client, Command, CommitError, Consumer, Disposition, Effect, Event, HandlerError, NewEvent, Numeric,
    claim::{Claim, MemoryClaims},
};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct User {
    id: String,
}

struct FirstOrder(Client);

impl Effect for FirstOrder {
    async fn perform(&self, event: &Event, _: &Claim) -> Result<Vec<u8>, HandlerError> {
        if event.event_type() != "user.activated" {
            return Ok(Vec::new());
        }
        let user: User = event.json()?;
        // Named after the event: whichever attempt applies, it is this order.
        let order = event.id();
        let place = Command::new("place_order").param("order_id", order).param("user_id", &user.id);
        let place = place.param("total", Numeric("0.00".into()));
        let placed = NewEvent::new("orders", "order.placed").key(user.id.clone());
        let placed = placed.json(&json!({"id": order, "user": user.id}))?;
        let commit = self.0.commit().consume("first-order", event).command(place).event(placed);
        match commit.send().await {
            Ok(committed) => {
                let again = committed.disposition() == Disposition::Duplicate;
                tracing::info!(user = user.id, %order, again, "a first order");
                Ok(Vec::new())
            }
            // Such a user does not exist, or the event is too old: no further attempt will help.
            Err(CommitError::Refused(refusal)) if refusal.retry_after().is_none() => {
                Err(HandlerError::dead_letter(refusal.to_string()))
            }
            // Also when the outcome is unknown: the mark tells the next attempt.
            Err(error) => Err(error.into()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "http://localhost:7411".to_owned());
    let brokers = arguments.next().unwrap_or_else(|| "localhost:9092".to_owned());

    // Leases in memory do: it is the server's mark that keeps an event from being handled twice.
    Consumer::builder("first-order")
        .kafka(brokers)
        .topics(["users"])
        .claims(MemoryClaims::new(10_000), Duration::from_secs(30))
        .effect(FirstOrder(Client::connect(server)?))
        .build()?
        .run(async { tokio::signal::ctrl_c().await.unwrap_or(()) })
        .await?;
    Ok(())
}
