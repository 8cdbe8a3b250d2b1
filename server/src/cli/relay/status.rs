//! `outboxd relay status`: looks at the relays of all processes, by way of the database.

use std::{error::Error, time::Duration};

use clap::{Args, ValueEnum};

use crate::{
    config::Config,
    store::{
        event::Reader,
        numbers::{Gauge, Numbers, source},
        session::Connector,
    },
};

/// Between two readings that give a rate.
const BETWEEN: Duration = Duration::from_millis(1_050);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  outboxd relay status\n  outboxd relay status --output json | jq .unsettled")]
pub(in crate::cli) struct Status {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON object
    Json,
}

impl Status {
    pub(super) async fn run(&self, config: &Config) -> Result<(), Box<dyn Error + Send + Sync>> {
        let gauge = Gauge::new(&Reader::new(&Connector::new(&config.database)?, config), config);
        gauge.read().await?;
        tokio::time::sleep(BETWEEN).await;
        let numbers = gauge.read().await?;
        match self.output {
            Output::Text => print!("{}", text(&numbers)),
            Output::Json => println!("{}", serde_json::to_string_pretty(&numbers)?),
        }
        Ok(())
    }
}

fn text(numbers: &Numbers) -> String {
    let Numbers { paused, source, unsettled, scheduled, held, inbox, instances, lanes } = numbers;
    let mut lines = Vec::new();
    if let Some(paused) = paused {
        lines.push(format!("PAUSED since {}: {}", paused.paused_at.format("%F %T UTC"), paused.reason));
    }
    lines.extend(of_source(source));
    let lag = unsettled.lag_ms.map_or("none".into(), |ms| format!("{:.3} s", ms as f64 / 1_000.0));
    lines.push(format!("lag        {lag}"));
    let about = if unsettled.is_exact { "" } else { "about " };
    lines.push(format!("unsettled  {about}{} events", unsettled.events));
    lines.push(format!("scheduled  {scheduled} events"));
    lines.push(format!("held       {} failed, {} parked, in {} holds", held.failed, held.parked, held.holds));
    let claims = format!("{} claims leased, {} run out", inbox.leased, inbox.run_out);
    let remembered = format!("about {} claims and {} marks remembered", inbox.claims_estimate, inbox.marks_estimate);
    lines.push(format!("inbox      {claims}; {remembered}"));
    let rate: f64 = lanes.iter().filter_map(|lane| lane.events_per_second).sum();
    lines.push(format!("rate       {rate:.1} events/s"));
    for instance in instances {
        let lease = instance.lease_until.format("%T UTC");
        lines.push(format!(
            "relay      {} on {}: {} lanes, lease until {lease}",
            instance.instance, instance.host, instance.lanes
        ));
    }
    let without_owner = lanes.iter().filter(|lane| lane.owner.is_none()).count();
    if without_owner > 0 {
        lines.push(format!("WITHOUT OWNER: {without_owner} of {} lanes", lanes.len()));
    }
    lines.push(format!("{:>4}  {:<36}  {:>6}  {:>12}  {:>9}", "lane", "owner", "epoch", "settled", "events/s"));
    for lane in lanes {
        let owner = lane.owner.map_or("-".into(), |owner| owner.to_string());
        let rate = lane.events_per_second.unwrap_or_default();
        lines.push(format!("{:>4}  {owner:<36}  {:>6}  {:>12}  {rate:>9.1}", lane.lane, lane.epoch, lane.settled));
    }
    lines.join("\n") + "\n"
}

fn of_source(source: &source::State) -> Vec<String> {
    let source::State { in_force, desired, owner, epoch, slot, note, .. } = source;
    let desired = if desired == in_force { String::new() } else { format!(", `{desired}` is asked for") };
    let owner = owner.map_or("nobody".into(), |owner| owner.to_string());
    let mut lines = vec![format!("source     {in_force}{desired}; directed by {owner}, epoch {epoch}")];
    if let Some(note) = note {
        lines.push(format!("NOTE       {note}"));
    }
    if let Some(slot) = slot {
        let retained = source.retained_log_bytes.map_or("unknown".into(), |bytes| bytes.to_string());
        let max = source.retained_log_bytes_max.map(|max| format!(" of {max}")).unwrap_or_default();
        lines.push(format!("slot       {slot}, {retained}{max} bytes of log retained"));
    }
    lines
}
