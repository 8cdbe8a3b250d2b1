//! Rules between and beyond the types of the values.

use std::net::SocketAddr;

use super::Config;

impl Config {
    /// Everything that does not hold, each with its key, its value and what would be right.
    pub(super) fn verify(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.grpc.listen.parse::<SocketAddr>().is_err() {
            faults
                .push(format!("`grpc.listen` is `{}`: expected address:port, such as 0.0.0.0:7411", self.grpc.listen));
        }
        if !self.metrics.listen.is_empty() && self.metrics.listen.parse::<SocketAddr>().is_err() {
            let listen = &self.metrics.listen;
            faults.push(format!(
                "`metrics.listen` is `{listen}`: expected address:port, such as 127.0.0.1:9464, or nothing"
            ));
        }
        if self.database.url.parse::<sqlx::postgres::PgConnectOptions>().is_err() {
            // The value may hold a password.
            faults.push("`database.url` cannot be read: expected postgres://user:password@host:port/database".into());
        }
        if self.kafka.bootstrap_servers.is_empty() {
            faults.push("`kafka.bootstrap_servers` is empty: expected host:port, several separated by commas".into());
        }
        if !(0.0..=1.0).contains(&self.telemetry.sample_ratio) {
            faults.push(format!("`telemetry.sample_ratio` is {}: expected 0 to 1", self.telemetry.sample_ratio));
        }
        if let Err(error) = self.telemetry.log.parse::<tracing_subscriber::filter::Targets>() {
            faults.push(format!("`telemetry.log` is `{}`: {error}", self.telemetry.log));
        }
        if self.catalog.dir.as_ref().is_some_and(|dir| !dir.is_dir()) {
            let dir = self.catalog.dir.as_deref().unwrap_or("".as_ref());
            faults.push(format!("`catalog.dir` is `{}`, which is not a folder", dir.display()));
        }
        for (key, value, min, max) in self.ranges() {
            if !(min..=max).contains(&value) {
                faults.push(format!("`{key}` is {value}: expected {min} to {max}"));
            }
        }
        faults
    }

    /// Key, value, least and most of every number.
    fn ranges(&self) -> [(&'static str, u64, u64, u64); 38] {
        let (grpc, database, commit, transact) = (&self.grpc, &self.database, &self.commit, &self.transact);
        let (inbox, relay) = (&self.inbox, &self.relay);
        let day_ms = 86_400_000;
        [
            ("grpc.request_bytes_max", grpc.request_bytes_max as u64, 1 << 10, 1 << 30),
            ("grpc.deadline_max_ms", grpc.deadline_max_ms, 1, day_ms),
            ("grpc.drain_ms", grpc.drain_ms, 0, day_ms),
            ("database.commit_connections", database.commit_connections.into(), 1, 1_000),
            ("database.query_connections", database.query_connections.into(), 1, 1_000),
            ("database.read_connections", database.read_connections.into(), 1, 1_000),
            ("database.connect_timeout_ms", database.connect_timeout_ms, 1, day_ms),
            ("commit.request_window_hours", commit.request_window_hours.into(), 1, 24 * 366),
            ("commit.consume_window_hours", commit.consume_window_hours.into(), 1, commit.request_window_hours.into()),
            ("commit.queue_max", commit.queue_max as u64, 1, 1 << 20),
            ("commit.conflict_retries_max", commit.conflict_retries_max.into(), 0, 100),
            ("commit.operations_max", commit.operations_max as u64, 1, 10_000),
            ("commit.events_max", commit.events_max as u64, 1, 100_000),
            ("commit.event_bytes_max", commit.event_bytes_max as u64, 1, 256 << 20),
            ("commit.document_bytes_max", commit.document_bytes_max as u64, 1, 128 << 20),
            ("commit.result_rows_max", commit.result_rows_max, 1, 1 << 20),
            ("commit.event_id_clock_window_ms", commit.event_id_clock_window_ms, 1, day_ms),
            // As far as the table takes them.
            ("commit.deliver_after_max_hours", commit.deliver_after_max_hours.into(), 0, 24 * 366 - 1),
            ("transact.connections", transact.connections.into(), 1, 1_000),
            ("transact.queue_max", transact.queue_max as u64, 0, 1 << 20),
            ("transact.idle_ms", transact.idle_ms, 1, day_ms),
            ("transact.total_ms", transact.total_ms, 1, day_ms),
            ("transact.steps_max", transact.steps_max as u64, 1, 1 << 20),
            ("transact.events_bytes_max", transact.events_bytes_max as u64, 1, 256 << 20),
            ("inbox.connections", inbox.connections.into(), 1, 1_000),
            ("inbox.queue_max", inbox.queue_max as u64, 1, 1 << 20),
            ("inbox.window_hours", inbox.window_hours.into(), 1, 24 * 366),
            // Far below the window: what was claimed just in time can still be completed.
            ("inbox.lease_max_ms", inbox.lease_max_ms, 1, day_ms),
            ("inbox.result_bytes_max", inbox.result_bytes_max as u64, 0, 64 << 20),
            ("relay.lease_ttl_ms", relay.lease_ttl_ms, 1_000, day_ms),
            ("relay.poll_interval_max_ms", relay.poll_interval_max_ms, 1, 60_000),
            ("relay.in_flight_events_max", relay.in_flight_events_max as u64, 1, 1 << 20),
            ("relay.in_flight_bytes_max", relay.in_flight_bytes_max as u64, 1 << 20, 1 << 31),
            ("relay.retained_log_bytes_max", relay.retained_log_bytes_max, 1 << 20, 1 << 50),
            ("relay.held_retry_ms", relay.held_retry_ms, 10, day_ms),
            ("relay.attempts_max", relay.attempts_max.into(), 1, 1_000),
            // Partitions are made for yesterday on.
            ("retention.events_hours", self.retention.events_hours.into(), 48, 24 * 366 * 10),
            ("commit.default_source (length)", commit.default_source.len() as u64, 1, 1_024),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::config::{Config, Error, Layers, REFERENCE};

    fn flags(flags: &[(&str, &str)]) -> Layers {
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Layers { file: None, flags }
    }

    fn faults(layers: &Layers) -> Vec<String> {
        match layers.load() {
            Err(Error::Faults(faults)) => faults,
            other => panic!("expected faults, got {other:?}"),
        }
    }

    #[test]
    fn the_reference_file_states_every_default() {
        let stated: toml::Table = toml::from_str(REFERENCE).expect("the reference is TOML");
        let defaults = toml::Table::try_from(Config::default()).expect("the defaults have a TOML form");
        assert_eq!(stated, defaults);
    }

    #[test]
    fn the_defaults_hold() {
        assert_eq!(Layers::default().load().expect("the defaults hold"), Config::default());
    }

    #[test]
    fn an_unknown_key_is_refused_with_a_suggestion() {
        let found = faults(&flags(&[("database.commit_conections", "3")]));
        assert!(found[0].contains("unknown key `database.commit_conections`"), "{found:?}");
        assert!(found[0].contains("did you mean `commit_connections`?"), "{found:?}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let path = std::env::temp_dir().join(format!("outboxd-config-{}.toml", uuid::Uuid::now_v7()));
        fs::write(&path, "[relay]\nlease_ttl_ms = 7000\npoll_interval_max_ms = 9\n").expect("a file can be written");
        let mut layers = flags(&[("relay.lease_ttl_ms", "8000")]);
        layers.file = Some(path.clone());
        let config = layers.load();
        fs::remove_file(&path).expect("the file is there");
        let relay = config.expect("the configuration holds").relay;
        assert_eq!((relay.lease_ttl_ms, relay.poll_interval_max_ms), (8_000, 9));
    }

    #[test]
    fn every_fault_is_told() {
        let layers =
            flags(&[("grpc.listen", "nowhere"), ("relay.lease_ttl_ms", "1"), ("telemetry.sample_ratio", "2.0")]);
        assert_eq!(faults(&layers).len(), 3);
        let missing = Layers { file: Some("/does/not/exist.toml".into()), flags: vec![] };
        assert!(matches!(missing.load(), Err(Error::NoFile(_))));
    }
}
