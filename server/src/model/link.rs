//! What in a request follows from the results of its earlier operations.
//!
//! Kept beside the request, by index: most requests have none, and run without looking.

use std::collections::BTreeMap;

use super::{
    commit::OperationResult,
    template::Template,
    value::{SqlType, Value},
};

/// Everything that links the parts of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Links {
    /// By index of the operation.
    pub operations: BTreeMap<usize, OperationLinks>,
    /// By index of the event.
    pub events: BTreeMap<usize, EventLinks>,
}

/// What of an operation follows from earlier ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperationLinks {
    /// Whether it runs.
    pub only_if: Option<Condition>,
    /// Its parameters, by name.
    pub parameters: BTreeMap<String, Reference>,
    /// Its parameters that are arrays with such values among their elements, by name.
    pub arrays: BTreeMap<String, Vec<Element>>,
    /// The JSON of the document that it puts or merges.
    pub document: Option<Template>,
}

/// An element of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Element {
    /// What the caller wrote.
    Value(Value),
    /// What an earlier operation returned.
    Reference(Reference),
    /// An array within it.
    Array(Vec<Element>),
}

/// What of an event follows from operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventLinks {
    /// Whether it is stored.
    pub only_if: Option<Condition>,
    /// Its key.
    pub key: Option<Reference>,
    /// Its payload.
    pub data: Option<Template>,
}

/// A value of an earlier operation's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The operation's index.
    pub operation: usize,
    /// The column's name.
    pub column: String,
    /// The row's index.
    pub row: usize,
}

/// Holds if an earlier operation affected so many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The operation's index.
    pub operation: usize,
    /// At least so many.
    pub rows_min: i64,
    /// At most so many.
    pub rows_max: i64,
}

impl Links {
    /// Whether nothing is linked.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.events.is_empty()
    }
}

impl Condition {
    /// Whether it holds after these operations; one that was skipped has affected no row.
    pub fn holds(&self, results: &[OperationResult]) -> bool {
        let rows = results.get(self.operation).map_or(0, |result| result.rows_affected);
        (self.rows_min..=self.rows_max).contains(&rows)
    }
}

impl Element {
    /// Every reference in it.
    pub fn references(&self) -> Vec<&Reference> {
        match self {
            Self::Value(_) => Vec::new(),
            Self::Reference(reference) => vec![reference],
            Self::Array(elements) => elements.iter().flat_map(Self::references).collect(),
        }
    }

    /// The value that it stands for.
    ///
    /// # Errors
    /// As [`Reference::find`].
    pub fn value(&self, results: &[OperationResult]) -> Result<Value, String> {
        match self {
            Self::Value(value) => Ok(value.clone()),
            Self::Reference(reference) => reference.value(results),
            Self::Array(elements) => {
                elements.iter().map(|element| element.value(results)).collect::<Result<_, _>>().map(Value::Array)
            }
        }
    }
}

impl Reference {
    /// The text it stands for and its type; no text is NULL.
    ///
    /// # Errors
    /// What is missing, as the end of a sentence that begins with the reference's field.
    pub fn find<'a>(&self, results: &'a [OperationResult]) -> Result<(Option<&'a str>, SqlType), String> {
        let Self { operation, column, row } = self;
        let result = results.get(*operation).filter(|result| !result.skipped);
        let result = result.ok_or_else(|| format!("refers to operation {operation}, which was skipped"))?;
        let index = result.columns.iter().position(|(name, _)| name == column);
        let index = index.ok_or_else(|| format!("refers to column {column:?}, which operation {operation} lacks"))?;
        let texts = result.rows.get(*row);
        let texts = texts.ok_or_else(|| format!("refers to row {row} of operation {operation}, which is not there"))?;
        Ok((texts.get(index).and_then(Option::as_deref), SqlType::from_name(&result.columns[index].1)))
    }

    /// The text of a parameter of this type.
    ///
    /// # Errors
    /// As [`Reference::find`], and when the value does not fit.
    pub fn parameter(&self, results: &[OperationResult], ty: &SqlType) -> Result<Option<String>, String> {
        self.value(results)?.to_sql_text(ty).map_err(|error| error.to_string())
    }

    /// Its text as a caller would have written it.
    fn value(&self, results: &[OperationResult]) -> Result<Value, String> {
        let (text, _) = self.find(results)?;
        Ok(text.map_or(Value::Null, |text| Value::Text(text.to_owned())))
    }

    /// The bytes of a key; none for NULL.
    ///
    /// # Errors
    /// As [`Reference::find`].
    pub fn key(&self, results: &[OperationResult]) -> Result<Option<Vec<u8>>, String> {
        let (text, ty) = self.find(results)?;
        match Value::from_sql_text(text, &ty).map_err(|error| error.to_string())? {
            Value::Bytes(bytes) => Ok(Some(bytes)),
            _ => Ok(text.map(|text| text.as_bytes().to_vec())),
        }
    }
}
