//! Values, both ways.

use outbox_proto::v1::{self, value::Kind};

use super::link;
use crate::model::{link::Element, value::Value};

/// Deepest nesting of arrays; Postgres allows six dimensions.
pub(super) const ARRAY_DEPTH_MAX: usize = 6;

/// A value, with references in it or not; `None` when it is nested too deep, or has references and other subscripts than
/// those from 1 on.
pub(super) fn element_of(message: v1::Value, depth: usize) -> Option<Element> {
    match message.kind {
        Some(Kind::Reference(reference)) => Some(Element::Reference(link::reference(reference))),
        Some(Kind::Array(array)) if array.elements.iter().any(refers) => {
            let elements = array.elements.into_iter().map(|element| element_of(element, depth + 1));
            let counts_from_one = array.lower_bounds.iter().all(|lower| *lower == 1);
            (depth < ARRAY_DEPTH_MAX && counts_from_one).then(|| elements.collect::<Option<_>>().map(Element::Array))?
        }
        kind => value_of(v1::Value { kind }, depth).map(Element::Value),
    }
}

/// Whether there is a reference in it. Messages are decoded to a limited depth only.
pub(super) fn refers(value: &v1::Value) -> bool {
    match &value.kind {
        Some(Kind::Reference(_)) => true,
        Some(Kind::Array(array)) => array.elements.iter().any(refers),
        _ => false,
    }
}

pub(super) fn value_of(message: v1::Value, depth: usize) -> Option<Value> {
    Some(match message.kind {
        None | Some(Kind::Null(_)) => Value::Null,
        Some(Kind::Bool(v)) => Value::Bool(v),
        Some(Kind::Int(v)) => Value::Int(v),
        Some(Kind::Double(v)) => Value::Double(v),
        Some(Kind::Text(v)) => Value::Text(v),
        Some(Kind::Bytes(v)) => Value::Bytes(v.into()),
        Some(Kind::Numeric(v)) => Value::Numeric(v),
        Some(Kind::Uuid(v)) => Value::Uuid(v),
        Some(Kind::Date(v)) => Value::Date(v),
        Some(Kind::Time(v)) => Value::Time(v),
        Some(Kind::Timestamp(v)) => Value::Timestamp(v),
        Some(Kind::Timestamptz(v)) => Value::Timestamptz(v),
        Some(Kind::Interval(v)) => Value::Interval(v),
        Some(Kind::Json(v)) => Value::Json(v),
        Some(Kind::Reference(_)) => return None,
        Some(Kind::Array(_)) if depth == ARRAY_DEPTH_MAX => return None,
        Some(Kind::Array(array)) => {
            let elements = array.elements.into_iter().map(|element| value_of(element, depth + 1));
            array_from(array.lower_bounds, elements.collect::<Option<_>>()?)
        }
    })
}

pub(super) fn value(value: Value) -> v1::Value {
    let kind = match value {
        Value::Null => Kind::Null(v1::Null::Unspecified.into()),
        Value::Bool(v) => Kind::Bool(v),
        Value::Int(v) => Kind::Int(v),
        Value::Double(v) => Kind::Double(v),
        Value::Text(v) => Kind::Text(v),
        Value::Bytes(v) => Kind::Bytes(v.into()),
        Value::Numeric(v) => Kind::Numeric(v),
        Value::Uuid(v) => Kind::Uuid(v),
        Value::Date(v) => Kind::Date(v),
        Value::Time(v) => Kind::Time(v),
        Value::Timestamp(v) => Kind::Timestamp(v),
        Value::Timestamptz(v) => Kind::Timestamptz(v),
        Value::Interval(v) => Kind::Interval(v),
        Value::Json(v) => Kind::Json(v),
        Value::Array(elements) => array(Vec::new(), elements),
        Value::ArrayFrom { lower_bounds, elements } => array(lower_bounds, elements),
    };
    v1::Value { kind: Some(kind) }
}

fn array(lower_bounds: Vec<i32>, elements: Vec<Value>) -> Kind {
    Kind::Array(v1::Array { elements: elements.into_iter().map(value).collect(), lower_bounds })
}

/// Bounds that say what goes without saying are none.
fn array_from(lower_bounds: Vec<i32>, elements: Vec<Value>) -> Value {
    if lower_bounds.iter().all(|lower| *lower == 1) {
        Value::Array(elements)
    } else {
        Value::ArrayFrom { lower_bounds, elements }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(elements: Vec<Kind>, lower_bounds: Vec<i32>) -> v1::Value {
        let elements = elements.into_iter().map(|kind| v1::Value { kind: Some(kind) }).collect();
        v1::Value { kind: Some(Kind::Array(v1::Array { elements, lower_bounds })) }
    }

    #[test]
    fn subscripts_are_kept_or_refused() {
        let reference = || Kind::Reference(v1::Reference::default());
        let elements = vec![Value::Int(1)];
        assert_eq!(value_of(array(vec![Kind::Int(1)], vec![1]), 0), Some(Value::Array(elements.clone())));
        let from_zero = Value::ArrayFrom { lower_bounds: vec![0], elements };
        assert_eq!(value_of(array(vec![Kind::Int(1)], vec![0]), 0), Some(from_zero.clone()));
        assert_eq!(value(from_zero), array(vec![Kind::Int(1)], vec![0]));
        assert!(matches!(element_of(array(vec![reference()], vec![1]), 0), Some(Element::Array(_))));
        assert_eq!(element_of(array(vec![reference()], vec![0]), 0), None);
    }
}
