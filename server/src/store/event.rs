//! Reads of what is stored: events, what became of them, and answers of commits.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgPool, Row as _, postgres::PgPoolOptions, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{
    Error, Failure, commit,
    session::{self, Connector, timeout_class},
};
use crate::{
    config,
    model::{
        commit::Answer,
        event::{EventState, NewEvent, StoredEvent, TraceContext},
    },
};

const COLUMNS: &str = "e.id, e.namespace, e.topic, e.key, e.source, e.type, e.subject, e.data, e.content_type, \
     e.headers, e.time, e.traceparent, e.tracestate";

/// The events for which a condition holds, without copies that replays have made: those in the stream, those that are not due yet, and those that were given up
/// before they were. `condition` and `rest`, what may follow a where clause, call them `e`.
fn select(condition: &str, rest: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "(select {COLUMNS}, e.lane, e.position, outbox.event_state(e) as state, null::timestamptz as due_at
          from outbox.events e
          where not coalesce(e.headers ? 'outbox-replay-of', false) and {condition} {rest})
         union all
         (select {COLUMNS}, outbox.lane_of(e.namespace, e.topic, e.key, e.id), 0, 'scheduled', e.due_at
          from outbox.scheduled e where {condition} {rest})
         union all
         (select {COLUMNS}, e.lane, e.position, 'discarded', null
          from outbox.discarded e
          where e.position = 0 and not exists (select from outbox.events s where s.id = e.id) and {condition} {rest})"
    ))
}

/// Which events to list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Tenant.
    pub namespace: String,
    /// Only this topic.
    pub topic: Option<String>,
    /// Only this key.
    pub key: Option<Vec<u8>>,
    /// Only this type.
    pub event_type: Option<String>,
    /// Ids from this one on.
    pub from: Uuid,
    /// Ids before this one.
    pub before: Uuid,
    /// Most events to return.
    pub limit: i64,
}

/// A stored event and where it is on its way.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The event.
    pub event: StoredEvent,
    /// Where it is.
    pub state: EventState,
}

/// Reads, on connections of their own.
#[derive(Clone)]
pub struct Reader {
    pool: PgPool,
    window: Duration,
}

impl Reader {
    /// Makes a reader; connections are opened when they are first needed.
    pub fn new(connector: &Connector, config: &config::Config) -> Self {
        let statement_timeout = timeout_class(Duration::from_millis(config.grpc.deadline_max_ms));
        let set_timeout = format!("set statement_timeout = {}", statement_timeout.as_millis());
        let pool = PgPoolOptions::new()
            .max_connections(config.database.read_connections)
            .acquire_timeout(Duration::from_millis(config.database.connect_timeout_ms))
            .after_connect(move |connection, _| {
                let set_timeout = set_timeout.clone();
                Box::pin(async move {
                    session::prepare(connection).await?;
                    sqlx::raw_sql(AssertSqlSafe(set_timeout)).execute(connection).await.map(drop)
                })
            })
            .connect_lazy_with(connector.options().clone());
        let window = Duration::from_secs(u64::from(config.commit.request_window_hours) * 3_600);
        Self { pool, window }
    }

    /// Its connections, for others whose use is rare.
    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query("select 1").execute(&self.pool).await.map(drop).map_err(read)
    }

    /// One event of a namespace.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn event(&self, namespace: &str, id: Uuid) -> Result<Option<Listed>, Error> {
        let row = sqlx::query(select("e.id = $1 and e.namespace = $2", ""));
        let row = row.bind(id).bind(namespace).fetch_optional(&self.pool);
        row.await.map_err(read)?.map(|row| listed(&row).map_err(read)).transpose()
    }

    /// Events in order of their ids.
    ///
    /// # Errors
    /// When the database cannot be read, [`Error::DeadlineExceeded`] when too much had to be passed over: a narrower
    /// range of time helps.
    pub async fn events(&self, filter: &Filter) -> Result<Vec<Listed>, Error> {
        let condition = "e.id >= $1 and e.id < $2 and e.namespace = $3 and ($4::text is null or e.topic = $4)
                         and ($5::bytea is null or e.key = $5) and ($6::text is null or e.type = $6)";
        let AssertSqlSafe(candidates) = select(condition, "order by e.id limit $7");
        let rows = sqlx::query(AssertSqlSafe(candidates + " order by id limit $7"))
            .bind(filter.from)
            .bind(filter.before)
            .bind(&filter.namespace)
            .bind(&filter.topic)
            .bind(&filter.key)
            .bind(&filter.event_type)
            .bind(filter.limit)
            .fetch_all(&self.pool);
        rows.await.map_err(read)?.iter().map(|row| listed(row).map_err(read)).collect()
    }

    /// The answer a request got.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn answer(&self, request_key: Uuid) -> Result<Option<Answer>, Error> {
        let mut connection = self.pool.acquire().await.map_err(read)?;
        commit::find(&mut connection, request_key, self.window).await.map_err(Failure::into_error)
    }
}

pub(super) fn read(error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Error::Unavailable(error.into()),
        other => Failure::read(other, None).into_error(),
    }
}

/// What `outbox.event_state` says.
pub(super) fn state(name: &str) -> Result<EventState, sqlx::Error> {
    Ok(match name {
        "scheduled" => EventState::Scheduled,
        "pending" => EventState::Pending,
        "published" => EventState::Published,
        "held" => EventState::Held,
        "discarded" => EventState::Discarded,
        other => return Err(sqlx::Error::Decode(format!("`{other}` is no state of an event").into())),
    })
}

fn listed(row: &PgRow) -> Result<Listed, sqlx::Error> {
    let headers: Option<Json<BTreeMap<String, String>>> = row.try_get("headers")?;
    let parent: Option<String> = row.try_get("traceparent")?;
    let state = row.try_get("tracestate")?;
    let time: DateTime<Utc> = row.try_get("time")?;
    let event = NewEvent {
        id: row.try_get("id")?,
        topic: row.try_get("topic")?,
        key: row.try_get("key")?,
        source: row.try_get("source")?,
        event_type: row.try_get("type")?,
        subject: row.try_get("subject")?,
        data: row.try_get("data")?,
        content_type: row.try_get("content_type")?,
        headers: headers.map(|Json(headers)| headers).unwrap_or_default(),
        time,
        trace: parent.map(|parent| TraceContext { parent, state }),
        due_at: row.try_get("due_at")?,
    };
    let event = StoredEvent {
        event,
        namespace: row.try_get("namespace")?,
        lane: row.try_get("lane")?,
        position: row.try_get("position")?,
    };
    Ok(Listed { event, state: self::state(row.try_get("state")?)? })
}
