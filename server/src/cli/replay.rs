//! `outboxd replay`: has events published again, by way of the database.

use std::error::Error;

use chrono::{DateTime, Utc};
use clap::Args;
use uuid::Uuid;

use crate::{
    config::Config,
    model::commit::uuid_floor,
    store::{
        event::Reader,
        replay::{
            EVENTS_MAX, Filter, IDS_MAX, Outcome, RATE_DEFAULT, RATE_MAX, RUNNING_MAX, Replays, Request, Selection,
        },
        session::Connector,
    },
};

/// Publishes events again that were published before: these ids, or all of a range of time for which the rest holds.
/// Running servers copy them into the stream at the given rate; they carry their first ids and the header
/// `outbox-replay`. The same --request-id again shows how far it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboxd replay --topic users --from 2026-03-01T08:00:00Z --before 2026-03-01T09:00:00Z --dry-run
  outboxd replay --topic users --from 2026-03-01T08:00:00Z --before 2026-03-01T09:00:00Z \\
      --request-id ticket-4711 --reason 'the mailer lost them' --by anna --rate 50
  outboxd replay --id 019c0000-0000-7000-8000-000000000000 --request-id ticket-4712 --reason 'asked for' --by anna
  outboxd replay cancel ticket-4711")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    cancel: Option<Command>,
    #[command(flatten)]
    replay: Option<Replay>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Ends a replay that runs; what it has copied is published
    Cancel {
        /// The name it was asked for by
        request_id: String,
        /// Tenant
        #[arg(long, default_value = "default")]
        namespace: String,
    },
}

#[derive(Debug, Args)]
struct Replay {
    /// One event; may be repeated
    #[arg(long = "id", value_name = "UUID", conflicts_with = "from")]
    ids: Vec<Uuid>,
    /// Events created from this time on, as 2026-03-01T08:00:00Z
    #[arg(long, value_name = "TIME", requires = "before", required_unless_present = "ids")]
    from: Option<DateTime<Utc>>,
    /// Events created before this time
    #[arg(long, value_name = "TIME", requires = "from")]
    before: Option<DateTime<Utc>>,
    /// Only this topic
    #[arg(long)]
    topic: Option<String>,
    /// Only this key, as text
    #[arg(long)]
    key: Option<String>,
    /// Only this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only this source
    #[arg(long)]
    source: Option<String>,
    /// Tenant
    #[arg(long, default_value = "default")]
    namespace: String,
    /// A name for this replay: asked for again, it goes on, or is done already
    #[arg(long, value_name = "NAME", required_unless_present = "dry_run")]
    request_id: Option<String>,
    /// Why
    #[arg(long, required_unless_present = "dry_run")]
    reason: Option<String>,
    /// Who asks
    #[arg(long, value_name = "NAME", required_unless_present = "dry_run")]
    by: Option<String>,
    /// Events per second at most
    #[arg(long, value_name = "EVENTS", default_value_t = RATE_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    rate: u32,
    /// Only counts the events
    #[arg(long)]
    dry_run: bool,
}

impl Arguments {
    pub(super) async fn run(&self, config: &Config) -> Result<(), Box<dyn Error + Send + Sync>> {
        let replays = Replays::new(&Reader::new(&Connector::new(&config.database)?, config));
        match (&self.cancel, &self.replay) {
            (Some(Command::Cancel { request_id, namespace }), _) => {
                let cancelled = replays.cancel(namespace, request_id).await?;
                let replay = cancelled.ok_or_else(|| format!("there is no replay {request_id:?} in {namespace:?}"))?;
                println!("replay {} is {}: {} of {} events", request_id, replay.state, replay.replayed, replay.matched);
                Ok(())
            }
            (None, Some(replay)) => replay.run(&replays).await,
            (None, None) => Err("expected --id, or --from and --before; see outboxd replay --help".into()),
        }
    }
}

impl Replay {
    async fn run(&self, replays: &Replays) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.ids.len() > IDS_MAX {
            return Err(format!("{} ids are given; at most {IDS_MAX} are allowed", self.ids.len()).into());
        }
        let request = self.request();
        match replays.request(&request).await? {
            Outcome::Counted(events) => println!("{events} events would be published again"),
            Outcome::Taken(replay) => {
                println!(
                    "replay {} is {}: {} of {} events",
                    replay.replay, replay.state, replay.replayed, replay.matched
                );
            }
            Outcome::Reused => return Err("this request id was used for another replay; choose a new one".into()),
            Outcome::Missing(id) => {
                return Err(
                    format!("no event {id} is stored in this namespace; events are kept for a limited time").into()
                );
            }
            Outcome::Unpublished(id) => {
                return Err(format!("event {id} is not published: there is nothing to replay").into());
            }
            Outcome::TooLarge => {
                return Err(format!("more than {EVENTS_MAX} events match; choose a narrower range of time").into());
            }
            Outcome::TooMany => return Err(format!("{RUNNING_MAX} replays run already; wait, or cancel one").into()),
        }
        if let (Some(from), Some(kept_from)) = (self.from, replays.kept_from().await?)
            && from < kept_from
        {
            println!("events from before {kept_from} are not kept any more: none of them is replayed");
        }
        Ok(())
    }

    fn request(&self) -> Request {
        let selection = match (self.from, self.before) {
            (Some(from), Some(before)) => Selection::Filter(Filter {
                from: uuid_floor(from),
                before: uuid_floor(before),
                topic: self.topic.clone(),
                key: self.key.clone().map(String::into_bytes),
                event_type: self.event_type.clone(),
                source: self.source.clone(),
            }),
            _ => Selection::of_ids(self.ids.clone()),
        };
        Request {
            namespace: self.namespace.clone(),
            request_id: self.request_id.clone().unwrap_or_default(),
            selection,
            events_per_second: self.rate,
            reason: self.reason.clone().unwrap_or_default(),
            requested_by: self.by.clone().unwrap_or_default(),
            dry_run: self.dry_run,
        }
    }
}
