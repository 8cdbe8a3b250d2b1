//! The results of a call's operations as its response.
//!
//! Invariant: built from the message and the answer alone, so that a retry, which gets the stored answer, gets an equal
//! response. NULL, a row that is not there and an operation that was skipped leave a field unset.

use prost_reflect::{DynamicMessage, Value as Field};

use super::{
    path::Path,
    plan::{Fill, Rpc},
};
use crate::model::{
    commit::OperationResult,
    value::{SqlType, Value},
};

/// A result that the response cannot hold.
#[derive(Debug)]
pub(super) struct Unrepresentable {
    /// The operation that it is a result of.
    pub(super) operation: usize,
    /// Why not.
    pub(super) description: String,
}

impl Rpc {
    /// The response.
    ///
    /// # Errors
    /// The first result that it cannot hold.
    pub(super) fn response(
        &self,
        request: &DynamicMessage,
        results: &[OperationResult],
    ) -> Result<DynamicMessage, Unrepresentable> {
        let mut response = DynamicMessage::new(self.response.clone());
        for fill in &self.fills {
            let filled = match fill {
                Fill::Constant { to, value } => to.set(&mut response, value.clone()),
                Fill::Request { to, from } => match from.get(request) {
                    Some(value) => to.set(&mut response, value.into_owned()),
                    None => Ok(()),
                },
                Fill::Column { to, operation, column } => {
                    first_row(results, *operation).map_or(Ok(()), |row| row.column(column, to, &mut response))
                }
                Fill::Rows { to, operation, fields } => rows(results, *operation, to, fields, &mut response),
            };
            filled.map_err(|description| Unrepresentable { operation: operation(fill), description })?;
        }
        Ok(response)
    }
}

fn operation(fill: &Fill) -> usize {
    match fill {
        Fill::Constant { .. } | Fill::Request { .. } => 0,
        Fill::Column { operation, .. } | Fill::Rows { operation, .. } => *operation,
    }
}

/// A row and what its columns are.
struct Row<'a> {
    result: &'a OperationResult,
    texts: &'a [Option<String>],
}

impl Row<'_> {
    /// Puts a column's value into a message. The column's type is the one that was stored with the answer.
    fn column(&self, name: &str, to: &Path, message: &mut DynamicMessage) -> Result<(), String> {
        let index = self.result.columns.iter().position(|(column, _)| column == name);
        let index = index.ok_or_else(|| format!("column {name:?} is not in the stored answer"))?;
        let failed = |description: String| format!("column {name:?} {description}");
        let ty = SqlType::from_name(&self.result.columns[index].1);
        let value = Value::from_sql_text(self.texts.get(index).and_then(Option::as_deref), &ty);
        let value = value.map_err(|error| failed(error.to_string()))?;
        match to.form.read(value).map_err(failed)? {
            Some(field) => to.set(message, field),
            None => Ok(()),
        }
    }
}

fn first_row(results: &[OperationResult], operation: usize) -> Option<Row<'_>> {
    let result = results.get(operation)?;
    Some(Row { result, texts: result.rows.first()? })
}

fn rows(
    results: &[OperationResult],
    operation: usize,
    to: &Path,
    fields: &[Path],
    response: &mut DynamicMessage,
) -> Result<(), String> {
    let (Some(result), Some(descriptor)) = (results.get(operation), to.message()) else { return Ok(()) };
    let messages = result.rows.iter().map(|texts| {
        let (row, mut message) = (Row { result, texts }, DynamicMessage::new(descriptor.clone()));
        for field in fields {
            row.column(&field.text, field, &mut message)?;
        }
        Ok(Field::Message(message))
    });
    let mut messages = messages.collect::<Result<Vec<_>, String>>()?;
    match to.is_list() {
        true => to.set(response, Field::List(messages)),
        false if messages.is_empty() => Ok(()),
        false => to.set(response, messages.swap_remove(0)),
    }
}
