//! Takes one command's SQL apart: what kind of statement it is, its CTEs, its parameters.
//!
//! Only SELECT, INSERT, UPDATE, DELETE and MERGE pass, alone or behind WITH, and the same (with VALUES) inside its
//! CTEs. The check goes by the first word of each part; that nothing else can follow is Postgres's grammar, and
//! `prepare` has Postgres read the result.
//!
//! Not here: whether tables and columns exist, and what types the parameters have.

mod parameters;
mod with_list;

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::lexer::{self, Kind, Token};

/// A command's SQL, taken apart. Ranges are bytes of the command's text.
#[derive(Debug, PartialEq)]
pub(super) struct Statement {
    /// Behind WITH [RECURSIVE], before the main statement.
    pub(super) with_list: Option<Range<usize>>,
    pub(super) recursive: bool,
    pub(super) main: Range<usize>,
    pub(super) verb: Verb,
    /// Does the main statement return rows by RETURNING?
    pub(super) returning: bool,
    pub(super) read_only: bool,
    /// Every place that names a parameter, in order.
    pub(super) references: Vec<Reference>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Select,
    Insert,
    Update,
    Delete,
    Merge,
}

/// `:name` in the text, the colon included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) range: Range<usize>,
}

/// Why a command's SQL is refused, and at which byte of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) offset: usize,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

const ALLOWED: &str = "a command is one SELECT, INSERT, UPDATE, DELETE or MERGE, with CTEs if need be";

/// Takes a command's SQL apart.
pub(super) fn parse(text: &str) -> Result<Statement, Fault> {
    // On the way to Postgres it would end the text.
    if let Some(offset) = text.find('\0') {
        return Err(Fault { offset, message: "the character NUL".to_owned(), hint: "remove it" });
    }
    let mut tokens = lexer::tokens(text).map_err(|unclosed| Fault {
        offset: unclosed.start,
        message: format!("this {} is never closed", unclosed.what),
        hint: "",
    })?;
    while tokens.last().is_some_and(|token| token.kind == Kind::Mark(';')) {
        tokens.pop();
    }
    let parser = Parser { text, tokens: &tokens };
    parser.check_marks()?;
    let (with, main) = parser.with_list(0)?;
    let verb = parser.verb(main)?;
    let (first, last) = (parser.tokens[main], parser.tokens[tokens.len() - 1]);
    let changes_in_ctes = with.as_ref().is_some_and(|with| with.changes);
    Ok(Statement {
        recursive: with.as_ref().is_some_and(|with| with.recursive),
        with_list: with.map(|with| with.range),
        main: first.start..last.end,
        verb,
        returning: verb != Verb::Select && parser.has_returning(main),
        read_only: verb == Verb::Select && !changes_in_ctes && !parser.locks_rows(),
        references: parser.references()?,
    })
}

struct Parser<'a> {
    text: &'a str,
    tokens: &'a [Token],
}

impl Parser<'_> {
    fn kind(&self, index: usize) -> Option<Kind> {
        self.tokens.get(index).map(|token| token.kind)
    }

    fn source(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |token| &self.text[token.start..token.end])
    }

    fn is_word(&self, index: usize, word: &str) -> bool {
        self.kind(index) == Some(Kind::Word) && self.source(index).eq_ignore_ascii_case(word)
    }

    /// Is it this reserved word, and not a name? Behind AS or a point any word is a name.
    fn is_reserved(&self, index: usize, word: &str) -> bool {
        let named = index > 0 && (self.kind(index - 1) == Some(Kind::Mark('.')) || self.is_word(index - 1, "as"));
        self.is_word(index, word) && !named
    }

    fn fault(&self, index: usize, message: impl Into<String>, hint: &'static str) -> Fault {
        let offset = self.tokens.get(index).map_or(self.text.trim_end().len(), |token| token.start);
        Fault { offset, message: message.into(), hint }
    }

    /// Refuses a second statement, `$1`, brackets that do not match, and SELECT … INTO.
    fn check_marks(&self) -> Result<(), Fault> {
        let mut open = Vec::new();
        for (index, token) in self.tokens.iter().enumerate() {
            match token.kind {
                Kind::Mark(';') => {
                    return Err(self.fault(index + 1, "a second statement", "give it a header of its own"));
                }
                Kind::Placeholder => {
                    return Err(self.fault(index, "a parameter by number", "name it, as in `:user_id`"));
                }
                Kind::Mark(mark @ ('(' | '[')) => open.push((mark, index)),
                Kind::Mark(mark @ (')' | ']')) => {
                    let expected = if mark == ')' { '(' } else { '[' };
                    if open.pop().map(|(mark, _)| mark) != Some(expected) {
                        return Err(self.fault(index, format!("`{mark}` without its `{expected}`"), ""));
                    }
                }
                Kind::Word if self.is_reserved(index, "into") => {
                    let allowed = index > 0 && (self.is_word(index - 1, "insert") || self.is_word(index - 1, "merge"));
                    if !allowed {
                        return Err(self.fault(index, "SELECT … INTO makes a table, which is refused", ALLOWED));
                    }
                }
                _ => {}
            }
        }
        match open.pop() {
            Some((mark, index)) => Err(self.fault(index, format!("this `{mark}` is never closed"), "")),
            None => Ok(()),
        }
    }

    /// The kind of the statement that begins here, if it is allowed.
    fn verb(&self, start: usize) -> Result<Verb, Fault> {
        let at = self.past_parentheses(start);
        let verbs = [
            ("select", Verb::Select),
            ("insert", Verb::Insert),
            ("update", Verb::Update),
            ("delete", Verb::Delete),
            ("merge", Verb::Merge),
        ];
        if let Some((_, verb)) = verbs.into_iter().find(|(word, _)| self.is_word(at, word)) {
            return Ok(verb);
        }
        let message = match self.kind(at) {
            None => "the statement is missing".to_owned(),
            Some(Kind::Word) => format!("{} is refused", self.source(at).to_uppercase()),
            Some(_) => format!("a statement cannot begin with `{}`", self.source(at)),
        };
        Err(self.fault(at, message, ALLOWED))
    }

    fn past_parentheses(&self, start: usize) -> usize {
        (start..).find(|at| self.kind(*at) != Some(Kind::Mark('('))).unwrap_or(start)
    }

    /// The token behind the bracket that closes this one. `check_marks` has seen that it is there.
    fn behind(&self, open: usize) -> usize {
        let mut depth = 0;
        for index in open..self.tokens.len() {
            match self.tokens[index].kind {
                Kind::Mark('(' | '[') => depth += 1,
                Kind::Mark(')' | ']') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return index + 1;
            }
        }
        self.tokens.len()
    }

    fn has_returning(&self, main: usize) -> bool {
        let mut at = main;
        while at < self.tokens.len() {
            if self.is_reserved(at, "returning") {
                return true;
            }
            at = if self.kind(at) == Some(Kind::Mark('(')) { self.behind(at) } else { at + 1 };
        }
        false
    }

    /// FOR UPDATE, FOR NO KEY UPDATE, FOR SHARE or FOR KEY SHARE.
    fn locks_rows(&self) -> bool {
        let strengths: [&[&str]; 4] = [&["update"], &["no", "key"], &["share"], &["key", "share"]];
        (0..self.tokens.len())
            .filter(|at| self.is_reserved(*at, "for"))
            .any(|at| strengths.iter().any(|words| words.iter().zip(at + 1..).all(|(word, at)| self.is_word(at, word))))
    }
}
