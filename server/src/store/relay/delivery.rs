//! Where settled batches went: appended in the statement that settles them, never changed.

use sqlx::{Postgres, postgres::PgArguments, query::Query};

use crate::model::delivery::Batch;

/// For batches that were not held.
pub(super) const NOT_HELD: &str = "null";

/// The part of a statement that appends batches: its arguments are the first five. `held` is SQL that tells since when and
/// why its events were held.
pub(super) fn insert(held: &str) -> String {
    format!(
        "delivered as (
            insert into outbox.deliveries (positions, events, topics, places, held)
            select int8range(low, high, '[]'), events, string_to_array(topics, ','), places, {held}
            from unnest($1::bigint[], $2::bigint[], $3::integer[], $4::text[], $5::bytea[])
                as d (low, high, events, topics, places))"
    )
}

/// Batches as that part's arguments.
#[derive(Default)]
pub struct Columns {
    low: Vec<i64>,
    high: Vec<i64>,
    events: Vec<i32>,
    topics: Vec<String>,
    places: Vec<Vec<u8>>,
}

impl FromIterator<Batch> for Columns {
    fn from_iter<I: IntoIterator<Item = Batch>>(batches: I) -> Self {
        let mut columns = Self::default();
        for batch in batches {
            columns.low.push(batch.positions.0);
            columns.high.push(batch.positions.1);
            columns.events.push(batch.events);
            // A topic's name has no comma.
            columns.topics.push(batch.topics.join(","));
            columns.places.push(batch.places);
        }
        columns
    }
}

impl Columns {
    pub(super) fn bind<'q>(&'q self, query: Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments> {
        query.bind(&self.low).bind(&self.high).bind(&self.events).bind(&self.topics).bind(&self.places)
    }
}
