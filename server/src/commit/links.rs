//! The links of a request held against the catalog, before anything runs: that each refers to an earlier operation, to
//! a column it returns, to a row it may return, and to a type that suits.
//!
//! Deliberately not here: what only a result can tell, which the store finds while it runs.

use super::Violation;
use crate::{
    model::{
        link::{Condition, Element, EventLinks, Links, OperationLinks, Reference},
        template::Template,
        value::SqlType,
    },
    store::commit::{Linked, Operation, Source},
};

/// Everything that is wrong.
pub(super) fn check(links: &Links, operations: &[Operation]) -> Vec<Violation> {
    let mut faults = Faults { operations, found: Vec::new() };
    for (index, OperationLinks { only_if, .. }) in &links.operations {
        faults.condition(format!("operations[{index}].only_if"), only_if.as_ref(), *index);
    }
    for (index, operation) in operations.iter().enumerate() {
        for linked in &operation.linked {
            faults.linked(format!("operations[{index}].{}", linked.field), linked, index);
        }
    }
    for (index, EventLinks { only_if, key, data }) in &links.events {
        faults.condition(format!("events[{index}].only_if"), only_if.as_ref(), operations.len());
        if let Some(key) = key {
            faults.reference(format!("events[{index}].key_from"), key, operations.len(), None);
        }
        if let Some(template) = data {
            let field = format!("events[{index}].json");
            faults.template(&field, &format!("{field}.template"), template, operations.len());
        }
    }
    faults.found
}

struct Faults<'a> {
    operations: &'a [Operation],
    found: Vec<Violation>,
}

impl Faults<'_> {
    fn add(&mut self, field: String, description: String) {
        self.found.push(Violation { field, description });
    }

    /// `before` is the first operation that has not run when this is looked at.
    fn condition(&mut self, field: String, condition: Option<&Condition>, before: usize) {
        let Some(Condition { operation, rows_min, rows_max }) = condition else { return };
        if *operation >= before {
            self.add(field, format!("is about operation {operation}, which is no earlier one"));
        } else if rows_min > rows_max {
            self.add(field, format!("can never hold: {rows_min} to {rows_max} rows"));
        }
    }

    fn linked(&mut self, field: String, linked: &Linked, before: usize) {
        match (&linked.source, &linked.ty) {
            (Source::Value(reference), ty) => self.reference(field, reference, before, Some(ty)),
            (Source::Array(elements), SqlType::Array(ty)) => {
                for reference in elements.iter().flat_map(Element::references) {
                    self.reference(field.clone(), reference, before, Some(ty));
                }
            }
            (Source::Array(_), ty) => self.add(field, format!("is an array, which cannot become {ty}")),
            (Source::Document(template, _), _) => self.template(&field, &field, template, before),
        }
    }

    /// `whole` is the field of the template's own JSON.
    fn template(&mut self, field: &str, whole: &str, template: &Template, before: usize) {
        for (pointer, reference) in &template.values {
            self.reference(format!("{field}.values[{pointer}]"), reference, before, None);
        }
        for (pointer, description) in template.faults() {
            let field = pointer.map_or(whole.to_owned(), |pointer| format!("{field}.values[{pointer}]"));
            self.add(field, description.into());
        }
    }

    fn reference(&mut self, field: String, reference: &Reference, before: usize, ty: Option<&SqlType>) {
        let Reference { operation, column, row } = reference;
        let Some(earlier) = self.operations.get(*operation).filter(|_| *operation < before) else {
            return self.add(field, format!("refers to operation {operation}, which is no earlier one"));
        };
        let command = &earlier.command;
        let Some(found) = command.columns.iter().find(|known| known.name == *column) else {
            let known: Vec<_> = command.columns.iter().map(|column| column.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let description = format!("refers to column {column:?}; operation {operation} returns {known}");
            return self.add(field, description);
        };
        let rows_max = command.expect.max;
        if i64::try_from(*row).is_ok_and(|row| row >= rows_max) {
            return self.add(field, format!("refers to row {row}; operation {operation} returns at most {rows_max}"));
        }
        if let Some(ty) = ty.filter(|ty| !suits(&found.ty, ty)) {
            self.add(field, format!("refers to column {column:?} of type {}, which cannot become {ty}", found.ty));
        }
    }
}

/// Whether a value of one type may be one of another, by its text.
fn suits(from: &SqlType, to: &SqlType) -> bool {
    use SqlType as T;
    let text = |ty: &T| matches!(ty, T::Text | T::Varchar | T::Bpchar | T::Other(_));
    let number = |ty: &T| matches!(ty, T::Int2 | T::Int4 | T::Int8 | T::Float4 | T::Float8 | T::Numeric);
    let json = |ty: &T| matches!(ty, T::Json | T::Jsonb);
    from == to || text(from) || text(to) || (number(from) && number(to)) || (json(from) && json(to))
}
