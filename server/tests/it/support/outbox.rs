//! What the relay's tests share: an outbox with events in it, relays that run on it, and what came out in Kafka.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use outbox_harness::{eventually, kafka, postgres::Database};
use outbox_server::{
    config,
    model::source::Source,
    relay::{Error, Relay, Status, kafka::Kafka, publisher::Publisher},
    store::{self, held::Holds, relay::stream::Stream},
};
use rdkafka::message::{Message as _, OwnedMessage};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longer than anything here takes, on a slow machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A database with the outbox's schema, and a topic.
pub(crate) struct Outbox {
    pub(crate) url: String,
    pub(crate) topic: String,
    _database: Option<Database>,
}

impl Outbox {
    pub(crate) async fn fresh(name: &str, partitions: i32) -> Self {
        let database = Database::fresh().await;
        let (url, topic) = (database.url.clone(), kafka::fresh_topic(name, partitions).await);
        Self::migrated(url, topic, Some(database)).await
    }

    /// In a cluster of the test's own.
    pub(crate) async fn at(url: String, topic: String) -> Self {
        Self::migrated(url, topic, None).await
    }

    async fn migrated(url: String, topic: String, database: Option<Database>) -> Self {
        // `RUST_LOG` shows what the relay says; only the first test of a run sets it up.
        let log = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        let _ = log.with_test_writer().try_init();
        let outbox = Self { url, topic, _database: database };
        store::migrate::run(&mut outbox.connect().await).await.expect("the schema can be made");
        outbox
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the database can be reached")
    }

    /// Stores `count` events, spread over `keys` keys, each in a transaction of its own if `single`.
    pub(crate) async fn emit(&self, count: usize, keys: usize) {
        let statement = format!(
            "select count(outbox.emit('{}', 'test.counted', to_jsonb(n), 'key-' || n % {keys})) from generate_series(1, {count}) n",
            self.topic
        );
        sqlx::query(AssertSqlSafe(statement)).execute(&mut self.connect().await).await.expect("events can be stored");
    }

    /// Stores one event, and returns its id.
    pub(crate) async fn emit_to(&self, topic: &str, key: Option<&str>, data: &str) -> Uuid {
        sqlx::query_scalar("select outbox.emit_bytes($1, 'test', convert_to($3, 'UTF8'), convert_to($2, 'UTF8'))")
            .bind(topic)
            .bind(key)
            .bind(data)
            .fetch_one(&mut self.connect().await)
            .await
            .expect("the event is stored")
    }

    /// Held events in order of position: id and state.
    pub(crate) async fn held(&self) -> Vec<(Uuid, String)> {
        sqlx::query_as("select id, state from outbox.held_events order by position")
            .fetch_all(&mut self.connect().await)
            .await
            .expect("held events can be read")
    }

    /// Waits until exactly these are held, in these states.
    pub(crate) async fn until_held(&self, expected: &[(Uuid, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(id, state)| (*id, (*state).to_owned())).collect();
        let found = async || (self.held().await == expected).then_some(());
        eventually(&format!("these are held: {expected:?}"), PATIENCE, found).await;
    }

    /// The operators' access.
    pub(crate) fn operator(&self) -> Holds {
        let config = config::Config { database: self.database_config(), ..config::Config::default() };
        let connector = store::session::Connector::new(&config.database).expect("the URL is right");
        Holds::new(&store::event::Reader::new(&connector, &config))
    }

    /// As many keys of a topic as asked for, no two in one lane: what stops one of them stops none of the others.
    pub(crate) async fn keys_in_different_lanes(&self, topic: &str, count: usize) -> Vec<String> {
        sqlx::query_scalar(
            "select distinct on (outbox.slot_of('default', $1, convert_to(key, 'UTF8')) % 64) key
             from (select 'key-' || n as key from generate_series(1, 200) n) as keys limit $2",
        )
        .bind(topic)
        .bind(i64::try_from(count).expect("few"))
        .fetch_all(&mut self.connect().await)
        .await
        .expect("keys can be chosen")
    }

    /// Every stored event in order of position: id and key.
    pub(crate) async fn stored(&self) -> Vec<(Uuid, Option<Vec<u8>>)> {
        sqlx::query_as("select id, key from outbox.events where topic = $1 order by position")
            .bind(&self.topic)
            .fetch_all(&mut self.connect().await)
            .await
            .expect("events can be read")
    }

    /// How many stored events no progress has passed.
    pub(crate) async fn unsettled(&self) -> i64 {
        sqlx::query_scalar("select count(*) from outbox.events e where not outbox.is_settled(e)")
            .fetch_one(&mut self.connect().await)
            .await
            .expect("events can be counted")
    }

    /// Waits until progress has passed every event.
    pub(crate) async fn all_settled(&self) {
        let settled = async || (self.unsettled().await == 0).then_some(());
        eventually("every event is settled", PATIENCE, settled).await;
    }

    /// What the topic holds now.
    pub(crate) async fn published(&self) -> Published {
        let topic = self.topic.clone();
        let records = tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("it can be read");
        Published(records)
    }

    /// Asserts that Kafka holds exactly the stored events, once repeats are dropped, each key's in order of position.
    /// Returns how many repeats there are.
    pub(crate) async fn assert_all_published_in_order(&self) -> usize {
        let (stored, published) = (self.stored().await, self.published().await);
        let mut expected: BTreeMap<Option<Vec<u8>>, Vec<Uuid>> = BTreeMap::new();
        for (id, key) in &stored {
            expected.entry(key.clone()).or_default().push(*id);
        }
        let found = published.by_key();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "the same keys");
        for (key, ids) in &expected {
            assert_eq!(&found[key], ids, "the events of key {key:?} in order");
        }
        published.0.len() - stored.len()
    }

    /// Asks for a source, as `outboxd relay switch` does.
    pub(crate) async fn desire(&self, source: Source) {
        store::relay::stream::desire(&mut self.connect().await, source).await.expect("it can be asked for");
    }

    /// The row that says which source is in force.
    pub(crate) async fn stream(&self) -> Stream {
        store::relay::stream::read(&mut self.connect().await).await.expect("it can be read")
    }

    /// Waits until a source is in force.
    pub(crate) async fn in_force(&self, source: Source) {
        let what = format!("`{source}` is in force");
        eventually(&what, PATIENCE, async || (self.stream().await.source == source).then_some(())).await;
    }

    /// Asks for a source and waits until it is in force.
    pub(crate) async fn switch(&self, source: Source) {
        self.desire(source).await;
        self.in_force(source).await;
    }

    /// Stores `count` events over `keys` keys in as many transactions, one after another.
    pub(crate) async fn emit_singly(&self, count: usize, keys: usize) {
        let mut connection = self.connect().await;
        for n in 0..count {
            sqlx::query("select outbox.emit($1, 'test.single', to_jsonb($2), 'key-' || $3)")
                .bind(&self.topic)
                .bind(i64::try_from(n).expect("few"))
                .bind(i64::try_from(n % keys).expect("few"))
                .execute(&mut connection)
                .await
                .expect("an event can be stored");
        }
    }

    pub(crate) fn relay_config() -> config::Relay {
        config::Relay { lease_ttl_ms: 1_500, held_retry_ms: 300, ..config::Relay::default() }
    }

    pub(crate) fn database_config(&self) -> config::Database {
        config::Database { url: self.url.clone(), ..config::Database::default() }
    }

    /// A relay to Kafka, running.
    pub(crate) fn relay(&self) -> Running {
        self.relay_with(Self::relay_config())
    }

    pub(crate) fn relay_with(&self, relay: config::Relay) -> Running {
        Running::start(Relay::new(relay, &kafka_config(), &self.database_config()).expect("the configuration is right"))
    }
}

pub(crate) fn kafka_config() -> config::Kafka {
    config::Kafka { bootstrap_servers: kafka::bootstrap_servers(), ..config::Kafka::default() }
}

/// The real publisher, to be wrapped.
pub(crate) fn publisher() -> Kafka {
    let relay = Relay::new(config::Relay::default(), &kafka_config(), &config::Database::default());
    relay.expect("the configuration is right").into_publisher()
}

/// A relay that runs.
pub(crate) struct Running {
    task: JoinHandle<Result<(), Error>>,
    shutdown: CancellationToken,
    pub(crate) status: watch::Receiver<Status>,
}

impl Running {
    pub(crate) fn start<P: Publisher>(relay: Relay<P>) -> Self {
        let (shutdown, status) = (CancellationToken::new(), relay.status());
        let task = tokio::spawn(relay.run(shutdown.clone(), PATIENCE));
        Self { task, shutdown, status }
    }

    /// As SIGTERM does.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("the relay does not panic").expect("the relay ends well");
    }

    /// As SIGKILL does: nothing is settled, written or given back.
    pub(crate) async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.expect_err("it is cut off").is_cancelled());
    }

    /// Whether it has ended, or died.
    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(self) -> Error {
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("it ends");
        ended.expect("the relay does not panic").expect_err("it ends with an error")
    }

    /// Waits for a state.
    pub(crate) async fn until(&mut self, what: &str, state: impl FnMut(&Status) -> bool) {
        let seen = tokio::time::timeout(PATIENCE, self.status.wait_for(state)).await;
        seen.unwrap_or_else(|_| panic!("waited in vain for: {what}")).expect("the relay runs");
    }
}

/// Records of a topic, partition by partition.
pub(crate) struct Published(pub(crate) Vec<OwnedMessage>);

impl Published {
    /// The ids of each key's events in the order of the log, without repeats.
    pub(crate) fn by_key(&self) -> BTreeMap<Option<Vec<u8>>, Vec<Uuid>> {
        let (mut seen, mut by_key) = (HashSet::new(), BTreeMap::<_, Vec<_>>::new());
        for record in &self.0 {
            let id = id(record);
            if seen.insert(id) {
                by_key.entry(record.key().map(<[u8]>::to_vec)).or_default().push(id);
            }
        }
        by_key
    }

    /// How often each id appears.
    pub(crate) fn counts(&self) -> HashMap<Uuid, usize> {
        let mut counts = HashMap::new();
        for record in &self.0 {
            *counts.entry(id(record)).or_default() += 1;
        }
        counts
    }
}

fn id(record: &OwnedMessage) -> Uuid {
    kafka::header(record, "ce_id").expect("the record has an id").parse().expect("it is a UUID")
}

/// A record's key.
pub(crate) fn key(text: &str) -> Option<Vec<u8>> {
    Some(text.as_bytes().to_vec())
}
