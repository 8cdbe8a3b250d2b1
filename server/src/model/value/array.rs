//! Postgres's array notation: `{1,NULL,"a \"b\""}`, nested for more dimensions.
//!
//! What it writes is rectangular and at most six levels deep, as Postgres requires; every element that is not NULL is
//! quoted, so no element can be mistaken for syntax. What it reads may carry explicit bounds (`[0:1]={1,2}`).
//!
//! Not here: lower bounds as a value (a `Value::Array` has none), and the elements' own notation.

use super::{SqlType, Value, ValueError};

/// Postgres's MAXDIM.
const DIMENSIONS_MAX: usize = 6;

/// Writes an array literal.
pub(super) fn to_literal(elements: &[Value], element: &SqlType) -> Result<String, ValueError> {
    let mut literal = String::new();
    write_list(elements, element, 1, &mut literal)?;
    Ok(literal)
}

/// Reads an array literal; its elements come back as texts and NULLs. None if it is malformed.
pub(super) fn from_literal(text: &str, element: &SqlType) -> Option<Vec<Value>> {
    let mut reader = Reader { rest: without_bounds(text), delimiter: element.delimiter() };
    reader.space();
    let list = reader.list(1)?;
    reader.space();
    reader.rest.is_empty().then_some(list)
}

/// Appends one list and returns its dimensions.
fn write_list(
    elements: &[Value],
    element: &SqlType,
    depth: usize,
    literal: &mut String,
) -> Result<Vec<usize>, ValueError> {
    let shape = |reason| ValueError::Shape { ty: SqlType::Array(Box::new(element.clone())), reason };
    if depth > DIMENSIONS_MAX {
        return Err(shape("an array has at most 6 dimensions"));
    }
    if depth > 1 && elements.is_empty() {
        return Err(shape("only the outermost array may be empty"));
    }
    let mut dimensions: Option<Vec<usize>> = None;
    literal.push('{');
    for (index, value) in elements.iter().enumerate() {
        if index > 0 {
            literal.push(element.delimiter());
        }
        let inner = match value {
            Value::Array(inner) => write_list(inner, element, depth + 1, literal),
            value => value.to_sql_text(element).map(|text| {
                write_element(text.as_deref(), literal);
                Vec::new()
            }),
        };
        let inner = inner.map_err(|source| ValueError::Element { number: index + 1, source: Box::new(source) })?;
        if dimensions.get_or_insert_with(|| inner.clone()) != &inner {
            return Err(shape("all parts of one dimension must have the same length"));
        }
    }
    literal.push('}');
    let mut dimensions = dimensions.unwrap_or_default();
    dimensions.insert(0, elements.len());
    Ok(dimensions)
}

fn write_element(text: Option<&str>, literal: &mut String) {
    let Some(text) = text else {
        literal.push_str("NULL");
        return;
    };
    literal.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            literal.push('\\');
        }
        literal.push(character);
    }
    literal.push('"');
}

/// Drops `[0:1][-2:3]=`, if the text begins so.
fn without_bounds(text: &str) -> &str {
    match text.split_once('=') {
        Some((bounds, rest))
            if bounds.starts_with('[')
                && bounds.chars().all(|character| matches!(character, '[' | ']' | ':' | '-' | '+' | '0'..='9')) =>
        {
            rest
        }
        _ => text,
    }
}

struct Reader<'a> {
    rest: &'a str,
    delimiter: char,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches(|character: char| character.is_ascii_whitespace());
    }

    fn next_is(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn list(&mut self, depth: usize) -> Option<Vec<Value>> {
        if depth > DIMENSIONS_MAX || !self.next_is('{') {
            return None;
        }
        let mut elements = Vec::new();
        self.space();
        if self.next_is('}') {
            return Some(elements);
        }
        loop {
            self.space();
            elements.push(match self.rest.chars().next()? {
                '{' => Value::Array(self.list(depth + 1)?),
                '"' => Value::Text(self.quoted()?),
                _ => self.bare()?,
            });
            self.space();
            if self.next_is('}') {
                return Some(elements);
            }
            if !self.next_is(self.delimiter) {
                return None;
            }
        }
    }

    fn quoted(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut characters = self.rest[1..].chars();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => text.push(characters.next()?),
                character => text.push(character),
            }
        }
        self.rest = characters.as_str();
        Some(text)
    }

    fn bare(&mut self) -> Option<Value> {
        let mut text = String::new();
        let mut escaped = false;
        // Trailing blanks do not count, unless escaped.
        let mut kept = 0;
        let mut characters = self.rest.chars();
        loop {
            let before = characters.as_str();
            match characters.next()? {
                character if character == self.delimiter || character == '}' => {
                    self.rest = before;
                    break;
                }
                '{' | '"' => return None,
                '\\' => {
                    escaped = true;
                    text.push(characters.next()?);
                    kept = text.len();
                }
                character => {
                    text.push(character);
                    if !character.is_ascii_whitespace() {
                        kept = text.len();
                    }
                }
            }
        }
        text.truncate(kept);
        match text.as_str() {
            "" => None,
            text if !escaped && text.eq_ignore_ascii_case("null") => Some(Value::Null),
            _ => Some(Value::Text(text)),
        }
    }
}
