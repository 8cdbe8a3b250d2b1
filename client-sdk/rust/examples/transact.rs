//! Makes a user, unless there is one, and activates it: what is written depends on what is read.
//!
//! Needs a server with the sample catalog, as `deploy/quickstart` starts one:
//! `cargo run -p outbox-sdk --example transact -- http://localhost:7411 user-9`

use outbox_sdk::{Client, Command, CommitError, Isolation, NewEvent, TransactError};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example speaks to whoever runs it")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().unwrap_or_else(|| "http://localhost:7411".to_owned());
    let user = arguments.next().unwrap_or_else(|| "user-9".to_owned());
    let email = format!("{user}@example.com");

    let client = Client::connect(endpoint)?;
    // Runs again from the start if somebody else changes the user meanwhile.
    let done = client.transact().isolation(Isolation::RepeatableRead).run(async |tx| {
        let found = tx.run(Command::new("find_user").param("user_id", &user)).await?;
        let is_new = found.result().rows_affected() == 0;
        if is_new {
            tx.run(Command::new("create_user").param("user_id", &user).param("email", &email)).await?;
        }
        tx.run(Command::new("activate_user").param("user_id", &user)).await?;
        tx.event(NewEvent::new("users", "user.activated").key(user.clone()));
        Ok::<_, CommitError>(is_new)
    });
    match done.await {
        Ok(done) => println!("made: {:?}; event {:?} will reach Kafka", done.value, done.committed.event_ids()?),
        Err(TransactError::Closure(error) | TransactError::Commit(error))
            if error.reason() == Some("ROW_COUNT_MISMATCH") =>
        {
            println!("{user} is active already; nothing was changed, nothing is published");
        }
        // The message tells whether anything was applied.
        Err(TransactError::Closure(error) | TransactError::Commit(error)) => return Err(error.into()),
    }
    Ok(())
}
