//! What `outboxd dev` prints once everything runs: every address, and lines to paste.
//!
//! Invariant: each line works as pasted, on the first run and on every later one.

#![allow(clippy::print_stdout, reason = "printing is what a command line is for")]

use std::{net::SocketAddr, path::Path};

use super::{DATABASE, MAILS};
use crate::config::Config;

const IN_MEMORY: &str = "
  The broker speaks Kafka's protocol inside this process. It is for development: everything is in memory and gone
  when this stops, each partition keeps only its newest 5 MiB, and it proves nothing about a real Kafka.
  `outboxd dev --kafka HOST:PORT` uses a real one.
";

/// Prints it to standard output.
pub(super) fn print(config: &Config, listen: SocketAddr, in_memory: bool, data: &Path) {
    print!("{}", text(config, listen, in_memory, data));
}

fn text(config: &Config, listen: SocketAddr, in_memory: bool, data: &Path) -> String {
    let (database, kafka, data) = (&config.database.url, &config.kafka.bootstrap_servers, data.display());
    let mails = database.replacen(&format!("/{DATABASE}"), &format!("/{MAILS}"), 1);
    let catalog = config.catalog.dir.as_deref().unwrap_or(Path::new("")).display();
    let warning = if in_memory { IN_MEMORY } else { "" };
    format!(
        r#"
outboxd is running.

  gRPC      {listen}
  Postgres  {database}
  Kafka     {kafka}
  data      {data}
  commands  {catalog}/*.sql, their tables in schema.psql; edit them, then restart
  own RPCs  {catalog}/*.binpb, compiled out of shop.proto: shop.v1.Users/Activate and Find
{warning}
Try
  Activate a user and publish the event, both or neither. Again: the same answer, REPLAYED, and nothing applied twice.

    grpcurl -plaintext -d '{{"request_id": "activate-user-7",
      "operations": [{{"command": {{"name": "activate_user", "parameters": {{"user_id": {{"text": "user-7"}}}}}}}}],
      "events": [{{"topic": "users", "key": "dXNlci03", "type": "user.activated", "text": "{{\"id\": \"user-7\"}}"}}]}}' \
      {listen} outbox.v1.OutboxService/Commit

  The stored answer, and the stored events (`settled` once Kafka has acknowledged them):

    grpcurl -plaintext -d '{{"request_id": "activate-user-7"}}' {listen} outbox.v1.OutboxService/GetCommit
    grpcurl -plaintext -d '{{"topic": "users"}}' {listen} outbox.v1.EventService/ListEvents

  The same as an RPC of its own, which the sample's shop.proto declares; and one that only reads:

    grpcurl -plaintext -H 'x-request-id: activate-user-9' -d '{{"user_id": "user-9"}}' {listen} shop.v1.Users/Activate
    grpcurl -plaintext -d '{{"user_id": "user-9"}}' {listen} shop.v1.Users/Find

  The same from Rust, with the SDK (in a checkout of outboxd), and a consumer of the events:

    cargo run -p outbox-sdk --example commit -- http://{listen} user-8
    cargo run -p outbox-sdk --example transactional -- {kafka} '{mails}'

  The row:

    psql '{database}' -c 'select * from users'

  The whole story by itself, with a crash in it:

    outboxd demo

Ctrl-C stops all of it; the data stays in {data}.
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_is_there_for_the_broker_in_memory_only() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 7411));
        let text = |in_memory| text(&Config::default(), listen, in_memory, Path::new("/data"));
        assert!(text(true).contains("proves nothing about a real Kafka"));
        assert!(!text(false).contains("in memory"));
    }

    #[test]
    fn the_line_to_paste_holds_valid_json() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 7411));
        let text = text(&Config::default(), listen, true, Path::new("/data"));
        let body = text.split("-d '").nth(1).and_then(|rest| rest.split("' \\").next()).expect("a body");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["events"][0]["text"], r#"{"id": "user-7"}"#);
    }
}
