//! Sends an e-mail for each `user.activated` event by SMTP, under a lease that outboxd itself keeps: this consumer has no
//! database.
//!
//! Needs a server and Kafka, as `outboxd dev` starts them and prints their addresses, and something that takes mail:
//! `python3 -m pip install aiosmtpd && python3 -m aiosmtpd -n -l localhost:2525`, then
//! `cargo run -p outbox-sdk --example claim_email -- http://localhost:7411 localhost:9092 localhost:2525`

use std::time::Duration;

use outbox_sdk::{
    Client, Consumer, Effect, Event, HandlerError,
    claim::{Claim, ServerClaims},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

#[derive(Deserialize)]
struct User {
    id: String,
}

/// A mail server's address.
struct Mail(String);

impl Effect for Mail {
    async fn perform(&self, event: &Event, claim: &Claim) -> Result<Vec<u8>, HandlerError> {
        if event.event_type() != "user.activated" {
            return Ok(Vec::new());
        }
        let user: User = event.json()?;
        // The same for every attempt, so that mail systems recognise one that was sent before: an earlier holder of the
        // lease may have got that far.
        let message_id = format!("<{}@outboxd.example>", event.id());
        let receipt = self.send(&user, &message_id).await?;
        tracing::info!(user = user.id, attempt = claim.attempt(), receipt, "sent");
        // Kept with the claim: whoever claims the event later gets it.
        Ok(receipt.into_bytes())
    }
}

impl Mail {
    /// RFC 5321, section 4.1.1: one message, and the server's word that it has taken it.
    async fn send(&self, user: &User, message_id: &str) -> Result<String, HandlerError> {
        let mut connection = BufReader::new(TcpStream::connect(&self.0).await?);
        answer(&mut connection).await?;
        let sender = "welcome@outboxd.example";
        let text = format!(
            "From: {sender}\r\nTo: {}@example.com\r\nMessage-ID: {message_id}\r\nSubject: Welcome\r\n\r\nWelcome!\r\n.",
            user.id
        );
        let to = format!("RCPT TO:<{}@example.com>", user.id);
        let mut said = String::new();
        for line in ["HELO localhost", &format!("MAIL FROM:<{sender}>"), &to, "DATA", &text] {
            connection.write_all(format!("{line}\r\n").as_bytes()).await?;
            said = answer(&mut connection).await?;
        }
        connection.write_all(b"QUIT\r\n").await?;
        Ok(said)
    }
}

/// The server's answer; one that refuses is an error: for good, or to be tried again.
async fn answer(connection: &mut BufReader<TcpStream>) -> Result<String, HandlerError> {
    let mut line = String::new();
    // All but the last line of an answer have a hyphen behind the code.
    while line.as_bytes().get(3).is_none_or(|byte| *byte == b'-') {
        line.clear();
        if connection.read_line(&mut line).await? == 0 {
            return Err(HandlerError::new("the mail server has hung up"));
        }
    }
    match line.as_bytes().first() {
        Some(b'2' | b'3') => Ok(line.trim().to_owned()),
        Some(b'5') => Err(HandlerError::dead_letter(line.trim())),
        _ => Err(HandlerError::retry_after(Duration::from_secs(30), line.trim())),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "http://localhost:7411".to_owned());
    let brokers = arguments.next().unwrap_or_else(|| "localhost:9092".to_owned());
    let mail = arguments.next().unwrap_or_else(|| "localhost:2525".to_owned());

    let claims = ServerClaims::new(Client::connect(server)?);
    Consumer::builder("welcome-by-mail")
        .kafka(brokers)
        .topics(["users"])
        .claims(claims, Duration::from_secs(30))
        .effect(Mail(mail))
        .build()?
        .run(async { tokio::signal::ctrl_c().await.unwrap_or(()) })
        .await?;
    Ok(())
}
