//! The places where a command names a parameter: `:name`, the colon right before the name.
//!
//! Not here: what the parameters mean. A colon inside a subscript is the hard case: `items[first:last]` is a slice.

use super::super::lexer::Kind;
use super::{Fault, Parser, Reference};

/// Words in a subscript after which a colon begins a parameter, not the second half of a slice.
const EXPRESSION_WORDS: [&str; 12] =
    ["and", "or", "not", "when", "then", "else", "case", "in", "is", "like", "ilike", "between"];

impl Parser<'_> {
    pub(super) fn references(&self) -> Result<Vec<Reference>, Fault> {
        let mut references = Vec::new();
        let mut open = Vec::new();
        for (index, token) in self.tokens.iter().enumerate() {
            match token.kind {
                Kind::Mark(mark @ ('(' | '[')) => open.push(mark),
                Kind::Mark(')' | ']') => drop(open.pop()),
                _ => {}
            }
            let in_subscript = open.last() == Some(&'[');
            let adjacent = self.tokens.get(index + 1).filter(|next| next.kind == Kind::Word && next.start == token.end);
            let Some(word) = adjacent.filter(|_| token.kind == Kind::Mark(':')) else { continue };
            if in_subscript && self.ends_operand(index) {
                continue;
            }
            let name = self.source(index + 1);
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                return Err(self.fault(index, "bad parameter name", "use letters, digits and _"));
            }
            references.push(Reference { name: name.to_owned(), range: token.start..word.end });
        }
        Ok(references)
    }

    /// Does an operand end right before this token? Then a colon here divides a slice, as in `items[first:last]`.
    fn ends_operand(&self, index: usize) -> bool {
        let Some(before) = index.checked_sub(1) else { return false };
        match self.tokens[before].kind {
            Kind::Word => !EXPRESSION_WORDS.iter().any(|word| self.is_word(before, word)),
            Kind::QuotedName | Kind::String | Kind::Number | Kind::Mark(')' | ']') => true,
            _ => false,
        }
    }
}
