//! References, conditions and templates.

use std::collections::HashMap;

use outbox_proto::v1;

use crate::model::{
    link::{Condition, Reference},
    template::Template,
};

pub(super) fn reference(reference: v1::Reference) -> Reference {
    Reference { operation: index(reference.operation), column: reference.column, row: index(reference.row) }
}

pub(in crate::api) fn condition(condition: v1::Condition) -> Condition {
    Condition {
        operation: index(condition.operation),
        rows_min: condition.rows_min.unwrap_or(1),
        rows_max: condition.rows_max.unwrap_or(i64::MAX),
    }
}

/// The JSON of a document, if there are values to be put into it.
pub(super) fn document(json: &str, values: HashMap<String, v1::Reference>) -> Option<Template> {
    (!values.is_empty()).then(|| template(v1::JsonTemplate { template: json.to_owned(), values }))
}

pub(super) fn template(template: v1::JsonTemplate) -> Template {
    let values = template.values.into_iter().map(|(pointer, value)| (pointer, reference(value)));
    Template { json: template.template, values: values.collect() }
}

fn index(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
