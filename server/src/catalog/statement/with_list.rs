//! The leading WITH of a command, split from its main statement.
//!
//! The store puts its own CTEs behind the command's, so it needs the list without the keyword.

use std::ops::Range;

use super::super::RESERVED_PREFIX;
use super::super::lexer::Kind;
use super::{Fault, Parser, Verb};

/// What stands before the main statement.
pub(super) struct With {
    pub(super) range: Range<usize>,
    pub(super) recursive: bool,
    /// Does one of the CTEs insert, update, delete or merge?
    pub(super) changes: bool,
}

impl Parser<'_> {
    /// The WITH that begins at this token, if one does, and where the statement behind it begins.
    pub(super) fn with_list(&self, start: usize) -> Result<(Option<With>, usize), Fault> {
        if !self.is_word(start, "with") {
            return Ok((None, start));
        }
        let recursive = self.is_word(start + 1, "recursive");
        let first = start + 1 + usize::from(recursive);
        let (mut at, mut changes) = (first, false);
        loop {
            let (next, cte_changes) = self.cte(at)?;
            changes |= cte_changes;
            if self.kind(next) == Some(Kind::Mark(',')) {
                at = next + 1;
                continue;
            }
            let range = self.tokens[first].start..self.tokens[next - 1].end;
            return Ok((Some(With { range, recursive, changes }), next));
        }
    }

    /// One `name [(columns)] as [[not] materialized] (statement) [search …] [cycle …]`: what comes after it, and
    /// whether the statement changes rows.
    fn cte(&self, name: usize) -> Result<(usize, bool), Fault> {
        let malformed = |at| self.fault(at, "expected `name as (…)` in the WITH list", "");
        if !matches!(self.kind(name), Some(Kind::Word | Kind::QuotedName)) {
            return Err(malformed(name));
        }
        let unquoted = self.source(name).trim_matches('"').to_lowercase();
        if unquoted.starts_with(RESERVED_PREFIX) {
            let message = format!("CTE names beginning with `{RESERVED_PREFIX}` are reserved");
            return Err(self.fault(name, message, "rename it"));
        }
        let mut at = name + 1;
        if self.kind(at) == Some(Kind::Mark('(')) {
            at = self.behind(at);
        }
        if !self.is_word(at, "as") {
            return Err(malformed(at));
        }
        at += 1;
        at += usize::from(self.is_word(at, "not"));
        at += usize::from(self.is_word(at, "materialized"));
        if self.kind(at) != Some(Kind::Mark('(')) {
            return Err(malformed(at));
        }
        let changes = self.cte_changes(at + 1)?;
        at = self.behind(at);
        for (clause, last_word) in [("search", "set"), ("cycle", "using")] {
            if self.is_word(at, clause) {
                while at < self.tokens.len() && !self.is_word(at, last_word) {
                    at += 1;
                }
                at += 2; // the word and the name behind it
            }
        }
        Ok((at.min(self.tokens.len()), changes))
    }

    /// Does the statement of a CTE, behind a WITH of its own perhaps, change rows?
    fn cte_changes(&self, start: usize) -> Result<bool, Fault> {
        let (with, statement) = self.with_list(start)?;
        let at = self.past_parentheses(statement);
        if ["values", "table", "with"].iter().any(|word| self.is_word(at, word)) {
            return Ok(false); // Postgres refuses a change in a WITH below this level
        }
        let changes = self.verb(statement)? != Verb::Select;
        Ok(changes || with.is_some_and(|with| with.changes))
    }
}
