//! What fills the response of a declaration.
//!
//! Invariant: every field of the response is filled by exactly one thing: one that nothing fills is most likely misspelt.

use std::{collections::BTreeSet, sync::Arc};

use outbox_proto::v1::{Assignment, TypedOperation, TypedRpc};
use prost_reflect::{FieldDescriptor, MessageDescriptor};

use super::{Declaring, From, suiting};
use crate::{
    api::typed::{
        path::Path,
        plan::{Fill, Given},
    },
    catalog::{Column, Command},
    model::value::Value,
};

impl Declaring<'_> {
    pub(super) fn response(&mut self, rpc: &TypedRpc) {
        let mut filled = Filled::default();
        for assignment in &rpc.response {
            self.assignment(assignment, &mut filled);
        }
        for (index, operation) in rpc.operations.iter().enumerate().filter(|(_, o)| !o.into.is_empty()) {
            self.rows(index, operation, &mut filled);
        }
        let response = self.rpc.response.clone();
        for field in response.fields().filter(|field| !filled.is_touched(field.name())) {
            self.same_column(&field, rpc);
        }
    }

    fn assignment(&mut self, assignment: &Assignment, filled: &mut Filled) {
        let place = format!("response[{}]", assignment.to);
        let to = self.response_path(&place, &assignment.to, filled);
        let from = self.origin(&place, &assignment.from.clone().unwrap_or_default());
        let (Some(to), Some(from)) = (to, from) else { return };
        match from {
            From::Given(Given::Field(from)) if !to.form.takes(&from.form) => {
                let description = format!("`{}` is {}, which {} cannot take", from.text, from.form, to.form);
                self.fault(place, description);
            }
            From::Given(Given::Field(from)) => self.rpc.fills.push(Fill::Request { to, from }),
            From::Given(Given::Text(text)) => match constant(&to, text) {
                Ok(value) => self.rpc.fills.push(Fill::Constant { to, value }),
                Err(description) => self.fault(place, format!("the text {description}")),
            },
            From::Column(reference) => {
                if let Some(command) = self.command(&place, reference.operation) {
                    self.column(&place, to, reference.operation, &command, &reference.column);
                }
            }
        }
    }

    /// The command of an operation; what is wrong with its name is told where it stands.
    fn command(&mut self, place: &str, operation: usize) -> Option<Arc<Command>> {
        let found = self.commands.get(operation).cloned();
        if found.is_none() {
            self.fault(place, format!("is about operation {operation}, which is not there"));
        }
        found?
    }

    fn response_path(&mut self, place: &str, text: &str, filled: &mut Filled) -> Option<Path> {
        match Path::resolve(&self.rpc.response, text) {
            Ok(path) if filled.insert(text) => Some(path),
            Ok(_) => {
                self.fault(place, "is filled by something else already");
                None
            }
            Err(description) => {
                self.fault(place, description);
                None
            }
        }
    }

    /// One column of the only row.
    fn column(&mut self, place: &str, to: Path, operation: usize, command: &Command, name: &str) {
        let Some(column) = command.columns.iter().find(|column| column.name == name) else {
            let known: Vec<&str> = command.columns.iter().map(|column| column.name.as_str()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return self.fault(place, format!("operation {operation} returns no column {name:?}, but {known}"));
        };
        self.check_column(place, &to, column);
        if command.expect.max > 1 {
            self.fault(
                place,
                format!(
                    "operation {operation} may return more rows than one; declare `-- expect: one` or `at_most_one`, or \
                     put its rows into a repeated field with `into`"
                ),
            );
        }
        self.rpc.fills.push(Fill::Column { to, operation, column: name.to_owned() });
    }

    fn check_column(&mut self, place: &str, to: &Path, column: &Column) {
        let Column { name, ty } = column;
        if !to.form.holds(ty) {
            let suiting = suiting(|ty| to.form.holds(ty));
            let description = format!(
                "column {name:?} is {ty}, which a field of type {} cannot hold, but {suiting}; cast it in the SQL, or \
                 change the field",
                to.form
            );
            self.fault(place, description);
        }
    }

    /// All rows of an operation, or its only one, as messages.
    fn rows(&mut self, operation: usize, declared: &TypedOperation, filled: &mut Filled) {
        let place = format!("operations[{operation}].into");
        let Some(to) = self.response_path(&place, &declared.into, filled) else { return };
        let Some(descriptor) = to.message() else {
            return self.fault(place, format!("`{}` is {}; rows go into messages", to.text, to.form));
        };
        let Some(command) = self.commands[operation].clone() else { return };
        if !to.is_list() && command.expect.max > 1 {
            self.fault(&place, "takes one row, and the command may return more; declare `-- expect: at_most_one`");
        }
        let mut fields = Vec::new();
        for field in descriptor.fields() {
            let Some(column) = command.columns.iter().find(|column| column.name == field.name()) else {
                self.nothing_fills(&field, &format!("operation {operation} returns no column of its name"));
                continue;
            };
            if let Some(path) = self.field_path(&descriptor, &field) {
                self.check_column(field.full_name(), &path, column);
                fields.push(path);
            }
        }
        self.rpc.fills.push(Fill::Rows { to, operation, fields });
    }

    /// The column of a field's name, of the last operation that has one and whose result goes nowhere else.
    fn same_column(&mut self, field: &FieldDescriptor, rpc: &TypedRpc) {
        let has = |command: &Command| command.columns.iter().any(|column| column.name == field.name());
        let operations = self.commands.iter().zip(&rpc.operations).enumerate().rev();
        let mut last = operations.filter(|(_, (_, declared))| declared.into.is_empty());
        let found = last.find_map(|(index, (command, _))| Some((index, command.clone().filter(|c| has(c))?)));
        let Some((operation, command)) = found else {
            // With a command that is not there, nobody knows its columns.
            if self.commands.iter().all(Option::is_some) {
                self.nothing_fills(field, "no operation returns a column of its name");
            }
            return;
        };
        let response = self.rpc.response.clone();
        if let Some(to) = self.field_path(&response, field) {
            self.column(field.full_name(), to, operation, &command, field.name());
        }
    }

    fn nothing_fills(&mut self, field: &FieldDescriptor, why: &str) {
        let description = format!("nothing fills this field of the response: {why}; name it so, or assign it");
        self.fault(field.full_name(), description);
    }

    fn field_path(&mut self, message: &MessageDescriptor, field: &FieldDescriptor) -> Option<Path> {
        let path = Path::resolve(message, field.name());
        path.map_err(|description| self.fault(field.full_name(), description)).ok()
    }
}

/// A constant for a field.
fn constant(to: &Path, text: String) -> Result<prost_reflect::Value, String> {
    let ty = to.form.notation().ok_or_else(|| format!("cannot be {}", to.form))?;
    let text = Value::Text(text).to_sql_text(&ty).map_err(|error| error.to_string())?;
    let value = Value::from_sql_text(text.as_deref(), &ty).map_err(|error| error.to_string())?;
    to.form.read(value)?.ok_or_else(|| "stands for nothing".to_owned())
}

/// What of the response is filled.
#[derive(Default)]
struct Filled(BTreeSet<String>);

impl Filled {
    /// Takes a path, unless it, a message around it or something inside it is taken.
    fn insert(&mut self, path: &str) -> bool {
        let inside = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let free = !self.0.iter().any(|taken| inside(path, taken) || inside(taken, path));
        free && self.0.insert(path.to_owned())
    }

    /// Whether the field of this name, or something inside it, is filled.
    fn is_touched(&self, name: &str) -> bool {
        self.0.iter().any(|taken| taken.split('.').next() == Some(name))
    }
}
