//! Database connections, all set up alike: values come and go in one text form, whatever the server's defaults.

use std::time::Duration;

use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, PgConnection, postgres::PgConnectOptions};

use super::Error;
use crate::config;

/// The text forms that `model::value` reads and writes.
const SETTINGS: &str = "set datestyle = 'ISO, YMD'; set intervalstyle = 'iso_8601'; set bytea_output = 'hex'; \
     set timezone = 'UTC'; set extra_float_digits = 1; set client_encoding = 'UTF8'; \
     set standard_conforming_strings = on";

/// The steps to which a statement timeout is rounded up, as a ratio: callers' deadlines differ from call to call, and
/// setting each one exactly would cost a round trip per commit.
const TIMEOUT_STEP: f64 = 1.25;

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Connector {
    options: PgConnectOptions,
    timeout: Duration,
    /// Further settings of its sessions.
    settings: String,
}

impl Connector {
    /// Reads the connection URL.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(config: &config::Database) -> Result<Self, Error> {
        let options: PgConnectOptions = config.url.parse().map_err(Error::Url)?;
        Ok(Self {
            options: options.application_name("outboxd").disable_statement_logging(),
            timeout: Duration::from_millis(config.connect_timeout_ms),
            settings: String::new(),
        })
    }

    /// One whose connections cannot write.
    #[must_use]
    pub fn read_only(&self) -> Self {
        self.with("set default_transaction_read_only = on".into())
    }

    /// One whose connections begin with these statements.
    pub(super) fn with(&self, settings: String) -> Self {
        Self { settings, ..self.clone() }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database cannot be reached in time or refuses.
    pub async fn connect(&self) -> Result<PgConnection, Error> {
        let opened = tokio::time::timeout(self.timeout, async {
            let mut connection = self.options.connect().await?;
            prepare(&mut connection).await?;
            if !self.settings.is_empty() {
                connection.execute(AssertSqlSafe(self.settings.clone())).await?;
            }
            Ok::<_, sqlx::Error>(connection)
        });
        match opened.await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Error::Unavailable(error.into())),
            Err(_) => Err(Error::Unavailable(format!("no connection within {:?}", self.timeout).into())),
        }
    }

    /// The options, for a pool.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }
}

/// Sets up a connection that was opened elsewhere, such as in a pool.
pub async fn prepare(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute(SETTINGS).await.map(drop)
}

/// The statement timeout for a remaining time: at least that long, and at most a quarter longer.
pub fn timeout_class(remaining: Duration) -> Duration {
    let millis = remaining.as_secs_f64().max(0.001) * 1_000.0;
    let steps = (millis.ln() / TIMEOUT_STEP.ln()).ceil();
    Duration::from_secs_f64(TIMEOUT_STEP.powf(steps).ceil() / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_rounded_up_by_a_quarter_at_most() {
        for millis in [1, 2, 7, 99, 100, 1_234, 30_000, 3_600_000] {
            let (remaining, class) = (Duration::from_millis(millis), timeout_class(Duration::from_millis(millis)));
            assert!(class >= remaining, "{class:?} < {remaining:?}");
            assert!(class <= remaining.mul_f64(1.26) + Duration::from_millis(1), "{class:?} for {remaining:?}");
        }
        assert_eq!(timeout_class(Duration::from_millis(9_990)), timeout_class(Duration::from_millis(9_950)));
    }
}
