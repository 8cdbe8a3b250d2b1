//! The SQL of a commit and its arguments.
//!
//! An operator's statement becomes one part of ours: it stands in `outboxd_op`, its rows are counted and gathered as
//! JSON arrays of texts. Nothing of a caller's is ever part of the SQL: callers' values are arguments only.

use std::{collections::HashMap, fmt::Write as _, sync::Arc, time::Duration};

use sqlx::{Arguments as _, AssertSqlSafe, postgres::PgArguments, postgres::types::PgInterval};

use super::{Claim, Commit, Windows};
use crate::{
    catalog::{Catalog, Command, RowExpectation},
    model::{commit::OperationResult, event::NewEvent},
    store::{Error, RowCount},
};

/// The two forms of a claim: of a request id alone, or with the mark of an event that it handles.
#[derive(Clone, Copy)]
enum Form {
    Request,
    Consume,
}

impl Form {
    const ALL: [Self; 2] = [Self::Request, Self::Consume];

    fn of(claim: &Claim) -> usize {
        (if claim.consume.is_some() { Self::Consume } else { Self::Request }) as usize
    }

    /// Request key, fingerprint, window; then namespace, consumer, source, event id, its time, and the marks' window.
    fn arguments(self) -> usize {
        match self {
            Self::Request => 3,
            Self::Consume => 9,
        }
    }

    /// The call whose first parameter is `first`.
    fn call(self, first: usize) -> String {
        let function = match self {
            Self::Request => "claim_request",
            Self::Consume => "claim_consume",
        };
        let casts = ["uuid", "bytea", "interval", "text", "text", "text", "uuid", "timestamptz", "interval"];
        let arguments = casts.iter().take(self.arguments()).zip(first..);
        let arguments: Vec<_> = arguments.map(|(cast, parameter)| format!("${parameter}::{cast}")).collect();
        format!("outbox.{function}({})", arguments.join(", "))
    }
}

/// Arguments of `finish_request` after the claim's: namespace, request id, results, and the arrays of row counts and
/// events.
const FINISH_ARGUMENTS: usize = 17;

/// Stores the events that are due later: namespace, and the arrays of due times and events.
pub(super) const SCHEDULE: &str = "select outbox.schedule_events(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text[]::jsonb[], $12, $13, $14)";

/// The statements of a catalog, composed once.
pub struct Statements {
    /// By form of claim, as `events_only` and `claim`.
    fused: HashMap<String, [Arc<str>; 2]>,
    single: HashMap<String, Arc<str>>,
    /// Of read-only commands.
    read: HashMap<String, Arc<str>>,
    events_only: [Arc<str>; 2],
    claim: [Arc<str>; 2],
    finish: Arc<str>,
    /// Rows that one operation may return.
    pub(in crate::store) rows_max: u64,
}

impl Statements {
    /// Composes the statements of every command.
    pub fn new(catalog: &Catalog, rows_max: u64) -> Self {
        let commands = || catalog.all();
        let fused = commands().filter(|c| can_fuse(c));
        Self {
            fused: fused.map(|c| (c.name.clone(), Form::ALL.map(|form| fused_sql(c, rows_max, form).into()))).collect(),
            single: commands().map(|c| (c.name.clone(), single_sql(c, rows_max).into())).collect(),
            read: commands().filter(|c| c.read_only).map(|c| (c.name.clone(), read_sql(c).into())).collect(),
            events_only: Form::ALL.map(|form| events_only_sql(form).into()),
            claim: Form::ALL.map(|form| format!("select {}", form.call(1)).into()),
            finish: finish_sql().into(),
            rows_max,
        }
    }

    pub(super) fn is_fused(&self, command: &Command) -> bool {
        self.fused.contains_key(&command.name)
    }

    pub(super) fn fused(&self, command: &Command, claim: &Claim) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.fused[&command.name][Form::of(claim)]))
    }

    pub(in crate::store) fn single(&self, command: &Command) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.single[&command.name]))
    }

    pub(super) fn read(&self, command: &Command) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.read[&command.name]))
    }

    pub(super) fn events_only(&self, claim: &Claim) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.events_only[Form::of(claim)]))
    }

    pub(super) fn claim(&self, claim: &Claim) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.claim[Form::of(claim)]))
    }

    pub(super) fn finish(&self) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.finish))
    }

    /// Holds a result against what its command expects, and the limit on rows.
    pub(in crate::store) fn check(
        &self,
        command: &Command,
        operation: usize,
        result: &OperationResult,
    ) -> Result<(), Error> {
        let rows = result.rows_affected;
        if !command.expect.met_by(rows) {
            let RowExpectation { min, max } = command.expect;
            return Err(Error::RowCount(RowCount { operation, rows, min, max }));
        }
        if rows > self.rows_max(command) {
            return Err(Error::TooManyRows { operation, max: self.rows_max });
        }
        Ok(())
    }

    /// The most rows an operation may affect: as its command expects, and as many as it may return.
    fn rows_max(&self, command: &Command) -> i64 {
        let limit =
            if command.columns.is_empty() { i64::MAX } else { i64::try_from(self.rows_max).unwrap_or(i64::MAX) };
        command.expect.max.min(limit)
    }
}

/// Whether a command can share a statement with claim and end. One with CTEs cannot: those that change data may run
/// after the rest of the statement, when the slots of the keys are locked already.
fn can_fuse(command: &Command) -> bool {
    command.wrappable && command.with_list.is_none()
}

/// Counts the rows of `outboxd_op` and gathers them, up to one more than allowed.
fn gathered(command: &Command, rows_max: u64) -> String {
    if command.columns.is_empty() {
        return "select count(*) as n, '[]'::json as rows from outboxd_op as op".into();
    }
    let row = command.row_expression();
    let limit = rows_max.saturating_add(1);
    format!(
        "select count(*) as n, coalesce(json_agg({row}), '[]') as rows from (select * from outboxd_op limit {limit}) as op"
    )
}

/// One operation by itself: `n` and `rows`; or the bare statement, of a command that cannot be part of another.
fn single_sql(command: &Command, rows_max: u64) -> String {
    let recursive = if command.recursive { "recursive " } else { "" };
    let list = command.with_list.as_ref().map(|list| format!("{list}\n, ")).unwrap_or_default();
    let main = &command.main;
    if command.wrappable {
        return format!("with {recursive}{list}outboxd_op as (\n{main}\n)\n{}", gathered(command, rows_max));
    }
    match &command.with_list {
        Some(list) => format!("with {recursive}{list}\n{main}"),
        None => main.clone(),
    }
}

/// Opens a read of a command's rows, each a JSON array of texts.
fn read_sql(command: &Command) -> String {
    let (row, direct) = (command.row_expression(), command.direct());
    format!("declare outboxd_read no scroll cursor for select {row} as row from (\n{direct}\n) as op")
}

/// Claim, operation, events and answer in one statement. The end takes the request key from the claim's row, so that
/// nothing runs before the claim, and the operation's rows, so that it runs after the operation: the slots are
/// locked last.
fn fused_sql(command: &Command, rows_max: u64, form: Form) -> String {
    let first = command.parameter_count + 1;
    let (main, gathered) = (&command.main, gathered(command, rows_max));
    let results = format!(
        "(select json_build_array(json_build_object('rows_affected', n, 'columns', ${}::text::json, 'rows', rows)) \
         from outboxd_answer)",
        first + form.arguments() + 2
    );
    format!(
        "with outboxd_claim as materialized (select {claim} as claimed),\noutboxd_op as (\n{main}\n),\n\
         outboxd_answer as ({gathered})\nselect f.results, f.committed_at from outboxd_claim, lateral {finish} as f",
        claim = form.call(first),
        finish = finish_call(&format!("case when claimed then ${first} end"), first, &results, form),
    )
}

fn events_only_sql(form: Form) -> String {
    let results = format!("${}::text::json", 1 + form.arguments() + 2);
    format!(
        "with outboxd_claim as materialized (select {claim} as claimed)\n\
         select f.results, f.committed_at from outboxd_claim, lateral {finish} as f",
        claim = form.call(1),
        finish = finish_call("case when claimed then $1 end", 1, &results, form),
    )
}

fn finish_sql() -> String {
    format!("select f.results, f.committed_at from {} as f", finish_call("$1", 1, "$6::text::json", Form::Request))
}

/// `first` is the claim's first parameter; the end uses its key and fingerprint again.
fn finish_call(key: &str, first: usize, results: &str, form: Form) -> String {
    let namespace = first + form.arguments();
    let mut call = format!("outbox.finish_request({key}, ${namespace}, ${}, ${}, {results}", namespace + 1, first + 1,);
    for parameter in namespace + 3..namespace + FINISH_ARGUMENTS {
        // Headers travel as texts: there is no array of jsonb on the client's side.
        let cast = if parameter == namespace + 13 { "::text[]::jsonb[]" } else { "" };
        // Writing to a string does not fail.
        let _ = write!(call, ", ${parameter}{cast}");
    }
    call + ")"
}

/// The columns of a command as an answer stores them.
pub(in crate::store) fn columns(command: &Command) -> Vec<(String, String)> {
    command.columns.iter().map(|column| (column.name.clone(), column.ty.to_string())).collect()
}

/// The arguments of a statement, in the order its composer numbered them.
#[derive(Default)]
pub(in crate::store) struct Arguments(PgArguments);

impl Arguments {
    pub(in crate::store) fn texts(&mut self, texts: &[Option<String>]) {
        for text in texts {
            self.add(text.as_deref());
        }
    }

    pub(super) fn claim(&mut self, claim: &Claim, windows: Windows) {
        self.request(claim, windows.request);
        if let Some(consume) = &claim.consume {
            self.add(claim.namespace.as_str());
            self.add(consume.consumer.as_str());
            self.add(consume.source.as_str());
            self.add(consume.event_id);
            self.add(consume.event_time);
            self.add(interval(windows.consume));
        }
    }

    fn request(&mut self, claim: &Claim, window: Duration) {
        self.add(claim.request_key);
        self.add(claim.fingerprint.as_slice());
        self.add(interval(window));
    }

    /// The rest of an end. `results` are those of the operations run so far; `None` when the same statement runs the
    /// only one, or there is none: then its columns, or an empty list, stand in their place.
    pub(super) fn finish(&mut self, commit: &Commit, statements: &Statements, results: Option<&[OperationResult]>) {
        if results.is_some() {
            // Its key and fingerprint are needed again; its window is bound so that the numbering stays the same.
            self.request(&commit.claim, Duration::ZERO);
        }
        self.add(commit.claim.namespace.as_str());
        self.add(commit.request_id.as_str());
        self.add(match (results, commit.operations.first()) {
            (Some(results), _) => json(results),
            (None, Some(operation)) => json(&columns(&operation.command)),
            (None, None) => "[]".into(),
        });
        // Nothing is expected of an operation that has not run.
        let skipped = |index: usize| results.and_then(|results| results.get(index)).is_some_and(|r| r.skipped);
        let commands = || commit.operations.iter().map(|operation| &*operation.command).enumerate();
        self.add(commands().map(|(n, c)| if skipped(n) { 0 } else { c.expect.min }).collect::<Vec<_>>());
        self.add(commands().map(|(_, c)| statements.rows_max(c)).collect::<Vec<_>>());
        self.events(&commit.events_of(false));
    }

    /// Of events that are due later.
    pub(super) fn schedule(&mut self, commit: &Commit) {
        let events = commit.events_of(true);
        self.add(commit.claim.namespace.as_str());
        self.add(events.iter().map(|event| event.due_at).collect::<Vec<_>>());
        self.events(&events);
    }

    fn events(&mut self, events: &[&NewEvent]) {
        fn column<'a, T>(events: &[&'a NewEvent], part: impl Fn(&'a NewEvent) -> T) -> Vec<T> {
            events.iter().map(|event| part(event)).collect()
        }
        self.add(column(events, |e| e.id));
        self.add(column(events, |e| e.topic.as_str()));
        self.add(column(events, |e| e.key.as_deref()));
        self.add(column(events, |e| e.source.as_str()));
        self.add(column(events, |e| e.event_type.as_str()));
        self.add(column(events, |e| e.subject.as_deref()));
        self.add(column(events, |e| e.data.as_deref()));
        self.add(column(events, |e| e.content_type.as_deref()));
        self.add(column(events, |e| (!e.headers.is_empty()).then(|| json(&e.headers))));
        self.add(column(events, |e| e.time));
        self.add(column(events, |e| e.trace.as_ref().map(|t| t.parent.as_str())));
        self.add(column(events, |e| e.trace.as_ref().and_then(|t| t.state.as_deref())));
    }

    fn add<'t, T: sqlx::Encode<'t, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(&mut self, value: T) {
        // Fails only for values beyond the protocol's 2 GiB; the limits on a request lie far below.
        self.0.add(value).expect("an argument within the request's limits can be encoded");
    }

    pub(in crate::store) fn into_inner(self) -> PgArguments {
        self.0
    }
}

fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("lists and maps of texts have a JSON form")
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}
