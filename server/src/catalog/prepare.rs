//! Has Postgres read a command, and writes the form that the store runs.
//!
//! Twice: first with bare `$n`, so that Postgres infers each parameter's type from where it stands; then as it will
//! run, with every parameter bound as text and cast to that type, inside the statement that collects its rows. What
//! passes here is what runs.
//!
//! Not here: executing anything. Preparing changes no data.

use std::ops::Range;

use sqlx::postgres::{PgDatabaseError, PgErrorPosition};
use sqlx::{AssertSqlSafe, Column as _, Either, Executor, PgConnection, SqlSafeStr, Statement as _, TypeInfo as _};

use super::bind::NAMESPACE;
use super::error::Problem;
use super::file::{Declared, Source};
use super::rewrite::Sql;
use super::statement::{self, Statement, Verb};
use super::types::{Resolved, Types};
use super::{Column, Command, Parameter};

const TYPE_HINT: &str = "write its type out, as in `:name::uuid`";

/// SQLSTATE `indeterminate_datatype` and `ambiguous_parameter`.
const UNCLEAR_TYPE: [&str; 2] = ["42P18", "42P08"];

/// The classes of SQLSTATE that tell of the connection or the server, whatever was asked.
const DATABASE_CLASSES: [&str; 7] = ["08", "25", "40", "53", "55", "57", "58"];

/// Prepares one command. The inner error is the operator's, the outer the database's.
pub(super) async fn prepare(
    source: &Source,
    declared: Declared,
    conn: &mut PgConnection,
    types: &mut Types,
) -> Result<Result<Command, Box<Problem>>, sqlx::Error> {
    let body = &source.text[declared.body.clone()];
    let statement = match statement::parse(body) {
        Ok(statement) => statement,
        Err(fault) => {
            let offset = declared.body.start + fault.offset;
            return Ok(Err(Box::new(source.problem(offset, fault.message, fault.hint))));
        }
    };
    let draft = Draft { source, names: parameter_names(&statement), declared, statement };
    draft.prepare(conn, types).await
}

/// Every parameter once, by first use; the namespace before all others.
fn parameter_names(statement: &Statement) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for reference in &statement.references {
        if !names.contains(&reference.name) {
            names.push(reference.name.clone());
        }
    }
    names.sort_by_key(|name| name != NAMESPACE);
    names
}

/// A command that is not checked yet.
struct Draft<'a> {
    source: &'a Source,
    declared: Declared,
    statement: Statement,
    /// The parameters: `$n` is `names[n - 1]`.
    names: Vec<String>,
}

impl Draft<'_> {
    async fn prepare(
        self,
        conn: &mut PgConnection,
        types: &mut Types,
    ) -> Result<Result<Command, Box<Problem>>, sqlx::Error> {
        if self.declared.read_only && !self.statement.read_only {
            let hint = "declare it `access: read_write`, or make it a plain SELECT";
            return Ok(Err(self.at(self.statement.main.start, "a read_only command changes or locks rows", hint)));
        }
        let whole = self.statement.with_list.as_ref().map_or(self.statement.main.start, |_| 0);
        let mut inferring = Sql::default();
        self.render(whole..self.statement.main.end, &[], &mut inferring);
        let prepared = match conn.prepare(AssertSqlSafe(inferring.text.clone()).into_sql_str()).await {
            Ok(prepared) => prepared,
            Err(error) => return self.problem(error, &inferring).map(Err),
        };
        let parameters = match prepared.parameters() {
            Some(Either::Left(infos)) => infos.to_vec(),
            _ => Vec::new(),
        };
        let mut resolved = Vec::with_capacity(parameters.len());
        for info in &parameters {
            resolved.push(types.resolve(oid(info)?, conn).await?);
        }
        let mut columns: Vec<Column> = Vec::new();
        for column in prepared.columns() {
            let name = column.name().to_owned();
            if columns.iter().any(|known| known.name == name) {
                let message = format!("two columns are named `{name}`");
                return Ok(Err(self.at(self.statement.main.start, message, "give one of them an alias with AS")));
            }
            let ty = types.resolve(oid(column.type_info())?, conn).await?.ty;
            columns.push(Column { name, ty });
        }
        if resolved.len() != self.names.len() {
            let message = format!("Postgres sees {} parameters where {} are named", resolved.len(), self.names.len());
            return Ok(Err(self.at(self.statement.main.start, message, "")));
        }
        self.finish(resolved, columns, conn).await
    }

    /// Writes the final form and has Postgres read it too.
    async fn finish(
        self,
        resolved: Vec<Resolved>,
        columns: Vec<Column>,
        conn: &mut PgConnection,
    ) -> Result<Result<Command, Box<Problem>>, sqlx::Error> {
        let command = self.command(&resolved, columns);
        let mut running = Sql::default();
        if command.with_list.is_some() || command.wrappable {
            running.push(if command.recursive { "with recursive " } else { "with " }, 0);
        }
        if let Some(with_list) = &self.statement.with_list {
            self.render(with_list.clone(), &resolved, &mut running);
        }
        if command.wrappable {
            let comma = if command.with_list.is_some() { ", " } else { "" };
            running.push(&format!("{comma}outboxd_op as ("), self.statement.main.start);
        } else {
            running.push("\n", self.statement.main.start);
        }
        self.render(self.statement.main.clone(), &resolved, &mut running);
        if command.wrappable {
            let rows = command.row_expression();
            let rest = format!("{}) select count(*), json_agg({rows}) from outboxd_op as op", self.added_returning());
            running.push(&rest, self.statement.main.start);
        }
        match conn.prepare(AssertSqlSafe(running.text.clone()).into_sql_str()).await {
            Ok(_) => Ok(Ok(command)),
            Err(error) => self.problem(error, &running).map(Err),
        }
    }

    fn command(&self, resolved: &[Resolved], columns: Vec<Column>) -> Command {
        let render = |range: Range<usize>| {
            let mut sql = Sql::default();
            self.render(range, resolved, &mut sql);
            sql.text
        };
        let parameters = self.names.iter().zip(resolved).filter(|(name, _)| *name != NAMESPACE);
        Command {
            name: self.declared.name.clone(),
            description: self.declared.description.clone(),
            parameters: parameters
                .map(|(name, resolved)| Parameter { name: name.clone(), ty: resolved.ty.clone() })
                .collect(),
            namespace_position: self.names.iter().position(|name| name == NAMESPACE).map(|index| index + 1),
            columns,
            expect: self.declared.expect,
            read_only: self.declared.read_only,
            with_list: self.statement.with_list.clone().map(render),
            recursive: self.statement.recursive,
            main: render(self.statement.main.clone()) + self.added_returning(),
            parameter_count: self.names.len(),
            wrappable: self.statement.verb != Verb::Merge || self.statement.returning,
        }
    }

    /// A change in a CTE yields rows to count only if it returns something.
    fn added_returning(&self) -> &'static str {
        match self.statement.verb {
            Verb::Insert | Verb::Update | Verb::Delete if !self.statement.returning => "\nreturning 1 as changed",
            _ => "",
        }
    }

    /// Appends a part of the command with its parameters as `$n`, cast from text if their types are given.
    fn render(&self, range: Range<usize>, types: &[Resolved], sql: &mut Sql) {
        let body = &self.source.text[self.declared.body.clone()];
        let mut at = range.start;
        let inside = |place: &Range<usize>| range.start <= place.start && place.end <= range.end;
        for reference in self.statement.references.iter().filter(|reference| inside(&reference.range)) {
            sql.push_source(&body[at..reference.range.start], at);
            at = reference.range.end;
            let index = self.names.iter().position(|name| *name == reference.name).unwrap_or_default();
            let parameter = match types.get(index) {
                // In parentheses, since a subscript may follow.
                Some(resolved) => format!("(${}::text::{})", index + 1, resolved.cast),
                None => format!("${}", index + 1),
            };
            sql.push(&parameter, reference.range.start);
        }
        sql.push_source(&body[at..range.end], at);
    }

    fn at(&self, offset: usize, message: impl Into<String>, hint: impl Into<String>) -> Box<Problem> {
        Box::new(self.source.problem(self.declared.body.start + offset, message, hint))
    }

    /// What Postgres found wrong, at its place in the file; an error that is not about the statement stays one.
    fn problem(&self, error: sqlx::Error, sql: &Sql) -> Result<Box<Problem>, sqlx::Error> {
        let about_statement =
            |error: &PgDatabaseError| !DATABASE_CLASSES.iter().any(|class| error.code().starts_with(class));
        let Some(postgres) = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
            .filter(|error| about_statement(error))
        else {
            return Err(error);
        };
        let offset = match postgres.position() {
            Some(PgErrorPosition::Original(position)) => sql.source_offset(position.saturating_sub(1)),
            _ => self.named_in(postgres.message()).unwrap_or(self.statement.main.start),
        };
        let mut message = self.with_names(postgres.message());
        if let Some(detail) = postgres.detail() {
            message = format!("{message} ({})", self.with_names(detail));
        }
        let unclear_type = UNCLEAR_TYPE.contains(&postgres.code()) || postgres.message().contains("type unknown");
        let hint = if unclear_type { TYPE_HINT } else { postgres.hint().unwrap_or("") };
        Ok(self.at(offset, message, hint))
    }

    /// The first use of a parameter that the message names as `$n`.
    fn named_in(&self, message: &str) -> Option<usize> {
        let digits = message.split_once('$')?.1;
        let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
        let name = self.names.get(digits[..end].parse::<usize>().ok()?.checked_sub(1)?)?;
        self.statement.references.iter().find(|reference| reference.name == *name).map(|found| found.range.start)
    }

    /// Postgres says `$2` where the operator wrote `:user_id`.
    fn with_names(&self, message: &str) -> String {
        let numbered = self.names.iter().enumerate().rev();
        numbered.fold(message.to_owned(), |message, (index, name)| {
            message.replace(&format!("${}", index + 1), &format!(":{name}"))
        })
    }
}

fn oid(info: &sqlx::postgres::PgTypeInfo) -> Result<u32, sqlx::Error> {
    let unknown = || sqlx::Error::TypeNotFound { type_name: info.name().to_owned() };
    info.oid().map(|oid| oid.0).ok_or_else(unknown)
}
