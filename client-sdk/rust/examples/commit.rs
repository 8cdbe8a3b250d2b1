//! Activates a user and publishes `user.activated`, in one transaction.
//!
//! Needs a server with the sample catalog, as `deploy/quickstart` starts one:
//! `cargo run -p outbox-sdk --example commit -- http://localhost:7420 user-7`

use outbox_sdk::{Client, Command, CommitError, NewEvent};
use serde_json::json;

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to whoever runs it")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().unwrap_or_else(|| "http://localhost:7420".to_owned());
    let user = arguments.next().unwrap_or_else(|| "user-7".to_owned());

    let client = Client::connect(endpoint)?;
    let event = NewEvent::new("users", "user.activated").key(user.clone()).json(&json!({"id": user}))?;
    let sent = client.commit().command(Command::new("activate_user").param("user_id", &user)).event(event).send().await;
    match sent {
        Ok(committed) => {
            let row = committed.result(0)?.row(0)?;
            println!(
                "{} <{}> is {}",
                row.get::<String>("id")?,
                row.get::<String>("email")?,
                row.get::<String>("status")?
            );
            println!("event {:?} will reach Kafka", committed.event_ids()?);
        }
        Err(CommitError::Refused(refusal)) if refusal.reason() == Some("ROW_COUNT_MISMATCH") => {
            println!("{user} does not exist or is active already; nothing was changed, nothing is published");
        }
        // When the outcome is unknown, the message names the request id to send again.
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
