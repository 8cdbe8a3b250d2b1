//! JSON documents with places to be filled in.
//!
//! Invariant: the document's text is copied as it stands but for the places that are named, so long numbers and the
//! order of members stay, and nothing in it is ever taken for a reference.

use std::{collections::BTreeMap, ops::Range};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    commit::OperationResult,
    link::Reference,
    value::{SqlType, Value},
};

/// A document and the values for its places.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    /// The document.
    pub json: String,
    /// The values by JSON Pointer (RFC 6901).
    pub values: BTreeMap<String, Reference>,
}

/// What is wrong with a template: the pointer it is about, if it is one, and in which way.
pub type Fault = (Option<String>, &'static str);

impl Template {
    /// Everything that is wrong with it by itself.
    pub fn faults(&self) -> Vec<Fault> {
        if Value::Json(self.json.clone()).to_sql_text(&SqlType::Json).is_err() {
            return vec![(None, "is not a JSON document, nested at most 512 deep")];
        }
        match self.places() {
            Ok(places) => {
                let inside = places.windows(2).filter(|pair| pair[1].0.start < pair[0].0.end);
                inside.map(|pair| (Some(pair[1].1.to_owned()), "lies in a place that is replaced as a whole")).collect()
            }
            Err(faults) => faults,
        }
    }

    /// The document with its places filled in.
    ///
    /// # Errors
    /// The pointer and what is missing or does not fit.
    pub fn fill(&self, results: &[OperationResult]) -> Result<String, (String, String)> {
        let places = self.places().map_err(|_| (String::new(), "is no valid template".to_owned()))?;
        let (mut filled, mut at) = (String::with_capacity(self.json.len()), 0);
        for (range, pointer) in places {
            let failed = |description: String| (pointer.to_owned(), description);
            let (text, ty) = self.values[pointer].find(results).map_err(failed)?;
            let value = Value::from_sql_text(text, &ty).map_err(|error| failed(error.to_string()))?;
            filled.push_str(&self.json[at..range.start]);
            push(&value, &mut filled);
            at = range.end;
        }
        filled.push_str(&self.json[at..]);
        Ok(filled)
    }

    /// Where each pointer points, in order.
    fn places(&self) -> Result<Vec<(Range<usize>, &str)>, Vec<Fault>> {
        let (mut places, mut faults) = (Vec::new(), Vec::new());
        for pointer in self.values.keys() {
            match find(&self.json, pointer) {
                Some(range) => places.push((range, pointer.as_str())),
                None => faults.push((Some(pointer.clone()), "points to no place of the template")),
            }
        }
        places.sort_by_key(|(range, _)| range.start);
        if faults.is_empty() { Ok(places) } else { Err(faults) }
    }
}

/// Appends a value as JSON.
fn push(value: &Value, json: &mut String) {
    match value {
        Value::Null => json.push_str("null"),
        Value::Bool(value) => json.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => json.push_str(&value.to_string()),
        Value::Double(value) if value.is_finite() => json.push_str(&format!("{value:?}")),
        Value::Double(value) => push_text(&value.to_string(), json),
        // NaN and the infinities are no JSON numbers.
        Value::Numeric(text) if text.ends_with(|last: char| last.is_ascii_digit()) => json.push_str(text),
        Value::Json(text) => json.push_str(text),
        Value::Bytes(bytes) => push_text(&STANDARD.encode(bytes), json),
        Value::Array(elements) | Value::ArrayFrom { elements, .. } => {
            json.push('[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    json.push(',');
                }
                push(element, json);
            }
            json.push(']');
        }
        Value::Text(text)
        | Value::Numeric(text)
        | Value::Uuid(text)
        | Value::Date(text)
        | Value::Time(text)
        | Value::Timestamp(text)
        | Value::Timestamptz(text)
        | Value::Interval(text) => push_text(text, json),
    }
}

fn push_text(text: &str, json: &mut String) {
    json.push_str(&serde_json::Value::from(text).to_string());
}

/// The range of what a pointer names in a valid document.
fn find(json: &str, pointer: &str) -> Option<Range<usize>> {
    let bytes = json.as_bytes();
    let mut at = blank(bytes, 0);
    if !pointer.is_empty() {
        for token in pointer.strip_prefix('/')?.split('/') {
            at = child(json, at, &token.replace("~1", "/").replace("~0", "~"))?;
        }
    }
    Some(at..end(bytes, at))
}

/// Where the child of this name or index begins, in the object or array that begins here.
fn child(json: &str, start: usize, name: &str) -> Option<usize> {
    let bytes = json.as_bytes();
    let is_object = match bytes.get(start)? {
        b'{' => true,
        b'[' => false,
        _ => return None,
    };
    let mut at = blank(bytes, start + 1);
    for index in 0.. {
        if matches!(bytes.get(at)?, b'}' | b']') {
            return None;
        }
        let mut found = !is_object && index.to_string() == name;
        if is_object {
            let key = at..end(bytes, at);
            found = serde_json::from_str::<String>(&json[key.clone()]).is_ok_and(|key| key == name);
            at = blank(bytes, blank(bytes, key.end) + 1);
        }
        if found {
            return Some(at);
        }
        at = blank(bytes, end(bytes, at));
        at = if bytes.get(at) == Some(&b',') { blank(bytes, at + 1) } else { at };
    }
    None
}

/// Behind the blanks that begin here.
fn blank(bytes: &[u8], start: usize) -> usize {
    (start..bytes.len()).find(|at| !bytes[*at].is_ascii_whitespace()).unwrap_or(bytes.len())
}

/// Behind the value that begins here.
fn end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, &byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => continue,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => return at,
            _ if depth == 0 && byte.is_ascii_whitespace() => return at,
            _ => continue,
        }
        if depth == 0 && !in_string && matches!(byte, b'"' | b'}' | b']') {
            return at + 1;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_finds_its_place() {
        let json = r#" {"a": [1, {"b\u0063": "x,]}\"y"}, -2.5e3 ], "": null, "a/b": {"~": true}, "z" : [ ] } "#;
        for (pointer, expected) in [
            ("/a/0", Some("1")),
            ("/a/1/bc", Some(r#""x,]}\"y""#)),
            ("/a/1", Some(r#"{"b\u0063": "x,]}\"y"}"#)),
            ("/a/2", Some("-2.5e3")),
            ("/", Some("null")),
            ("/a~1b/~0", Some("true")),
            ("/z", Some("[ ]")),
            ("/a/3", None),
            ("/a/01", None),
            ("/a/-", None),
            ("/z/0", None),
            ("/none", None),
            ("/a/0/x", None),
            ("a", None),
        ] {
            assert_eq!(find(json, pointer).map(|range| &json[range]), expected, "{pointer}");
        }
        assert_eq!(find(json, "").map(|range| &json[range]), Some(json.trim()));
    }

    #[test]
    fn every_type_has_its_json_form() {
        let columns = ["int8", "numeric", "numeric", "float8", "bool", "text", "jsonb", "bytea", "int4[]", "uuid"];
        let texts = [
            "9007199254740993",
            "1.50",
            "NaN",
            "Infinity",
            "true",
            "a\"b\\",
            r#"{"k": 1}"#,
            "\\x00ff",
            "{1,NULL}",
            "7f2c1f5e-3c1d-4e5a-9b77-0123456789ab",
        ];
        let result = OperationResult {
            rows_affected: 1,
            columns: columns.iter().enumerate().map(|(n, ty)| (n.to_string(), (*ty).to_owned())).collect(),
            rows: vec![texts.iter().map(|text| Some((*text).to_owned())).collect()],
            skipped: false,
        };
        let values =
            (0..columns.len()).map(|n| (format!("/{n}"), Reference { operation: 0, column: n.to_string(), row: 0 }));
        let template = Template { json: "[0,0,0,0,0,0,0,0,0,0, 1.0]".into(), values: values.collect() };
        assert_eq!(template.faults(), []);
        assert_eq!(
            template.fill(&[result]).expect("it can be filled"),
            r#"[9007199254740993,1.50,"NaN","inf",true,"a\"b\\",{"k": 1},"AP8=",[1,null],"7f2c1f5e-3c1d-4e5a-9b77-0123456789ab", 1.0]"#
        );
    }

    #[test]
    fn places_do_not_overlap() {
        let reference = || Reference { operation: 0, column: "c".into(), row: 0 };
        let values = ["/a", "/a/b", "/c"].map(|pointer| (pointer.to_owned(), reference())).into();
        let template = Template { json: r#"{"a": {"b": 1}, "c": 2}"#.into(), values };
        assert_eq!(template.faults(), [(Some("/a/b".to_owned()), "lies in a place that is replaced as a whole")]);
    }
}
