//! The operator's commands: named SQL statements out of `*.sql` files, checked before the server takes a call.
//!
//! Invariant: a command in a `Catalog` was prepared by Postgres in the form that runs, its parameters and columns
//! have known types, and it is one SELECT, INSERT, UPDATE, DELETE or MERGE. Callers name it; they never send SQL.
//!
//! The way of a file: `file` cuts it into commands, `lexer` and `statement` take each apart, `prepare` asks Postgres
//! what it means and writes the form that the store runs.
//!
//! Not here: running commands (`store`) and checking their row expectation against what they did.

mod bind;
mod document;
mod error;
mod file;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod lexer;
mod prepare;
mod rewrite;
mod statement;
mod types;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sqlx::{Connection as _, PgConnection};

pub use bind::ParameterError;
pub(crate) use bind::nearest;
pub use error::{Error, Place, Problem};

use crate::model::{document::Verb, value::SqlType};

/// CTE names that begin so are the store's own; a command may not use them.
pub const RESERVED_PREFIX: &str = "outboxd_";

/// All commands, by name.
#[derive(Debug)]
pub struct Catalog {
    commands: BTreeMap<String, Arc<Command>>,
    documents: [Arc<Command>; 4],
}

impl Catalog {
    /// A catalog without commands.
    pub fn empty() -> Self {
        Self::of(BTreeMap::new())
    }

    fn of(commands: BTreeMap<String, Arc<Command>>) -> Self {
        Self { commands, documents: document::commands().map(Arc::new) }
    }

    /// Reads every `*.sql` file in `dir` (not in folders below it), by name, and prepares each command on `conn`.
    /// The connection must not be inside a transaction, which the first wrong statement would abort.
    ///
    /// # Errors
    /// With every wrong place in all files, or with the first failure to read a file or reach the database.
    pub async fn load(dir: &Path, conn: &mut PgConnection) -> Result<Self, Error> {
        let sources = file::read_all(dir)?;
        // A statement cached before a schema change would have the old types.
        conn.clear_cached_statements().await?;
        let mut problems = Vec::new();
        let mut first_places = BTreeMap::new();
        let mut commands = BTreeMap::new();
        let mut types = types::Types::default();
        for source in &sources {
            for declared in source.commands(&mut problems) {
                let place = source.place(declared.offset);
                if let Some(first) = first_places.get(&declared.name) {
                    let message = format!("command `{}` is already declared at {first}", declared.name);
                    problems.push(source.problem(declared.offset, message, "give one of them another name"));
                    continue;
                }
                first_places.insert(declared.name.clone(), place);
                match prepare::prepare(source, declared, conn, &mut types).await? {
                    Ok(command) => drop(commands.insert(command.name.clone(), Arc::new(command))),
                    Err(problem) => problems.push(*problem),
                }
            }
        }
        if problems.is_empty() { Ok(Self::of(commands)) } else { Err(Error::Files(problems)) }
    }

    /// The command of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Command>> {
        self.commands.get(name)
    }

    /// The server's own command that does this to a document.
    pub fn document(&self, verb: &Verb) -> &Arc<Command> {
        &self.documents[document::index(verb)]
    }

    /// Every command, the server's own too.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Command>> {
        self.commands.values().chain(&self.documents)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.commands.keys().map(String::as_str)
    }

    /// The known name that an unknown one most likely stands for.
    pub fn suggest(&self, unknown: &str) -> Option<&str> {
        nearest(unknown, self.names())
    }
}

/// A prepared command.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Its name, unique in the catalog.
    pub name: String,
    /// The comment lines of its header.
    pub description: String,
    /// The caller's parameters, in the order of their `$n`.
    pub parameters: Vec<Parameter>,
    /// Which `$n` is `:namespace`, counted from 1: always the first, if the command uses it. The caller's parameters
    /// follow it.
    pub namespace_position: Option<usize>,
    /// The columns of its rows. None if it returns no rows.
    pub columns: Vec<Column>,
    /// How many rows it must return or change.
    pub expect: RowExpectation,
    /// Is it declared read-only? Then it is a plain SELECT that neither changes nor locks rows.
    pub read_only: bool,
    /// Its own CTEs, without the keyword WITH.
    pub with_list: Option<String>,
    /// Do they stand behind WITH RECURSIVE?
    pub recursive: bool,
    /// Its main statement, with parameters `$1` to `$parameter_count`, each bound as text and cast to its type. It
    /// yields one row for each row it returns or changes, so it can stand in a CTE if `wrappable`.
    pub main: String,
    /// How many parameters the statement binds, `:namespace` included.
    pub parameter_count: usize,
    /// May `main` stand in a CTE? Not so a MERGE without RETURNING: it runs by itself, as [`Command::direct`], and
    /// its command tag tells the number of rows.
    pub wrappable: bool,
}

impl Command {
    /// An SQL expression that makes a JSON array of texts of one row, over the alias `op`.
    pub fn row_expression(&self) -> String {
        let texts: Vec<String> = self.columns.iter().map(Column::text_expression).collect();
        format!("pg_catalog.to_json(array[{}]::text[])", texts.join(", "))
    }

    /// The whole statement, to be run by itself.
    pub fn direct(&self) -> String {
        let recursive = if self.recursive { "recursive " } else { "" };
        match &self.with_list {
            Some(with_list) => format!("with {recursive}{with_list}\n{}", self.main),
            None => self.main.clone(),
        }
    }
}

/// A parameter that the caller gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name, without the colon.
    pub name: String,
    /// Its SQL type; for a domain, the type it is over.
    pub ty: SqlType,
}

/// A column of the rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its name, unique in the command.
    pub name: String,
    /// Its SQL type; for a domain, the type it is over.
    pub ty: SqlType,
}

impl Column {
    /// Its text in the type's own notation. The cast to text cuts blanks off a `char(n)` and adds a mask to an
    /// `inet`, so these two go through their output functions.
    fn text_expression(&self) -> String {
        let column = format!("op.\"{}\"", self.name.replace('"', "\"\""));
        match &self.ty {
            SqlType::Bpchar => format!("pg_catalog.textin(pg_catalog.bpcharout({column}))"),
            SqlType::Other(name) if name == "inet" => format!("pg_catalog.textin(pg_catalog.inet_out({column}))"),
            _ => format!("{column}::text"),
        }
    }
}

/// How many rows a command must return or change; another number fails the whole commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowExpectation {
    /// At least so many.
    pub min: i64,
    /// At most so many; `i64::MAX` for no bound.
    pub max: i64,
}

impl RowExpectation {
    /// Any number.
    pub const ANY: Self = Self { min: 0, max: i64::MAX };

    /// Does this number meet it?
    pub fn met_by(self, rows: i64) -> bool {
        (self.min..=self.max).contains(&rows)
    }
}
