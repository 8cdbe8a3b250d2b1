//! Postgres's array notation: `{1,NULL,"a \"b\""}`, nested for more dimensions.
//!
//! What it writes is rectangular and at most six levels deep, as Postgres requires; every element that is not NULL is
//! quoted, so no element can be mistaken for syntax. Subscripts that do not begin at 1 stand before (`[0:1]={1,2}`).
//!
//! Not here: the elements' own notation.

use super::{SqlType, Value, ValueError};

/// Postgres's MAXDIM.
const DIMENSIONS_MAX: usize = 6;

/// An array literal that was read.
pub(super) struct Literal {
    /// The first subscript of each dimension; empty when all are 1.
    pub(super) lower_bounds: Vec<i32>,
    /// Texts and NULLs.
    pub(super) elements: Vec<Value>,
}

/// Writes an array literal. Without lower bounds its subscripts begin at 1.
pub(super) fn to_literal(lower_bounds: &[i32], elements: &[Value], element: &SqlType) -> Result<String, ValueError> {
    let mut literal = String::new();
    let dimensions = write_list(elements, element, 1, &mut literal)?;
    if lower_bounds.is_empty() {
        return Ok(literal);
    }
    if elements.is_empty() || lower_bounds.len() != dimensions.len() {
        return Err(shape(element, "it must have one lower bound for each dimension, and none when it is empty"));
    }
    let bounds = lower_bounds.iter().zip(&dimensions).map(|(lower, length)| {
        // As Postgres has it, the subscript after the last one must be a number, too.
        let end = i32::try_from(*length).ok().and_then(|length| lower.checked_add(length));
        end.map(|end| format!("[{lower}:{}]", end - 1))
    });
    let bounds: Option<String> = bounds.collect();
    Ok(bounds.ok_or_else(|| shape(element, "its subscripts must fit an int4"))? + "=" + &literal)
}

/// Reads an array literal. None if it is malformed.
pub(super) fn from_literal(text: &str, element: &SqlType) -> Option<Literal> {
    let (bounds, list) = split_bounds(text);
    let mut reader = Reader { rest: list, delimiter: element.delimiter() };
    reader.space();
    let elements = reader.list(1)?;
    reader.space();
    let mut lower_bounds = lower_bounds(bounds, &elements)?;
    if lower_bounds.iter().all(|lower| *lower == 1) {
        lower_bounds.clear();
    }
    reader.rest.is_empty().then_some(Literal { lower_bounds, elements })
}

fn shape(element: &SqlType, reason: &'static str) -> ValueError {
    ValueError::Shape { ty: SqlType::Array(Box::new(element.clone())), reason }
}

/// Appends one list and returns its dimensions.
fn write_list(
    elements: &[Value],
    element: &SqlType,
    depth: usize,
    literal: &mut String,
) -> Result<Vec<usize>, ValueError> {
    if depth > DIMENSIONS_MAX {
        return Err(shape(element, "an array has at most 6 dimensions"));
    }
    if depth > 1 && elements.is_empty() {
        return Err(shape(element, "only the outermost array may be empty"));
    }
    let mut dimensions: Option<Vec<usize>> = None;
    literal.push('{');
    for (index, value) in elements.iter().enumerate() {
        if index > 0 {
            literal.push(element.delimiter());
        }
        let inner = match value {
            Value::Array(inner) => write_list(inner, element, depth + 1, literal),
            Value::ArrayFrom { .. } => Err(shape(element, "only the outermost array may have lower bounds")),
            value => value.to_sql_text(element).map(|text| {
                write_element(text.as_deref(), literal);
                Vec::new()
            }),
        };
        let inner = inner.map_err(|source| ValueError::Element { number: index + 1, source: Box::new(source) })?;
        if dimensions.get_or_insert_with(|| inner.clone()) != &inner {
            return Err(shape(element, "all parts of one dimension must have the same length"));
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

/// Takes `[0:1][-2:3]` and `=` off, if the text begins so.
fn split_bounds(text: &str) -> (&str, &str) {
    match text.split_once('=') {
        Some((bounds, list)) if bounds.starts_with('[') => (bounds, list),
        _ => ("", text),
    }
}

/// The lower ends of `[0:1][-2:3]`, if these are the bounds of such elements; a single number is an upper end.
fn lower_bounds(bounds: &str, elements: &[Value]) -> Option<Vec<i32>> {
    if bounds.is_empty() {
        return Some(Vec::new());
    }
    let mut dimension = Some(elements);
    let lower = bounds.strip_prefix('[')?.strip_suffix(']')?.split("][").map(|range| {
        let (lower, upper) = range.split_once(':').unwrap_or(("1", range));
        let (lower, upper): (i32, i32) = (lower.parse().ok()?, upper.parse().ok()?);
        let list = dimension.take()?;
        if let Some(Value::Array(inner)) = list.first() {
            dimension = Some(inner);
        }
        (i64::try_from(list.len()) == Ok(i64::from(upper) - i64::from(lower) + 1)).then_some(lower)
    });
    let lower = lower.collect::<Option<_>>()?;
    dimension.is_none().then_some(lower)
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
