//! Cuts SQL into tokens exactly as Postgres does, with `standard_conforming_strings` on.
//!
//! Exactness is the point: a quote or comment seen in another place than Postgres sees it would hide a parameter, or
//! find one in a string. The rules are those of Postgres's `scan.l`: nested comments, dollar quotes, `E''` strings
//! with continuation, operators that end where a comment begins.
//!
//! Not here: keywords. A `Word` is any name without quotes.

/// A piece of SQL; blanks and comments are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Its first byte, and the one after its last.
    pub(super) start: usize,
    pub(super) end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    QuotedName,
    String,
    Number,
    /// `$1`
    Placeholder,
    Operator,
    /// Any of `( ) [ ] , ; . :` or a character without a meaning.
    Mark(char),
    /// `::`
    Cast,
    /// `:=`
    Assign,
}

/// A quote or comment that is never closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unclosed {
    pub(super) start: usize,
    pub(super) what: &'static str,
}

/// All tokens of a text.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Unclosed> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank()?;
        let start = lexer.at;
        let Some(kind) = lexer.next()? else { return Ok(tokens) };
        tokens.push(Token { kind, start, end: lexer.at });
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|character| !wanted(character)).unwrap_or(rest.len());
    }

    fn skip_blank(&mut self) -> Result<(), Unclosed> {
        loop {
            self.take_while(is_blank);
            if self.rest().starts_with("--") {
                self.take_while(|character| !matches!(character, '\n' | '\r'));
            } else if self.rest().starts_with("/*") {
                self.block_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    fn block_comment(&mut self) -> Result<(), Unclosed> {
        let start = self.at;
        let mut depth = 0;
        loop {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else {
                let character = self.peek().ok_or(Unclosed { start, what: "comment" })?;
                self.at += character.len_utf8();
            }
        }
    }

    fn next(&mut self) -> Result<Option<Kind>, Unclosed> {
        let Some(first) = self.peek() else { return Ok(None) };
        let mut after = self.rest()[first.len_utf8()..].chars();
        let (second, third) = (after.next(), after.next());
        let prefixed = second == Some('\'');
        Ok(Some(match first {
            '\'' => self.string(0, false)?,
            'e' | 'E' if prefixed => self.string(1, true)?,
            'b' | 'B' | 'x' | 'X' | 'n' | 'N' if prefixed => self.string(1, false)?,
            'u' | 'U' if second == Some('&') && third == Some('\'') => self.string(2, false)?,
            'u' | 'U' if second == Some('&') && third == Some('"') => self.quoted_name(2)?,
            '"' => self.quoted_name(0)?,
            first if is_name_start(first) => {
                self.take_while(|character| is_name_start(character) || matches!(character, '0'..='9' | '$'));
                Kind::Word
            }
            '0'..='9' => self.number(),
            '.' if second.is_some_and(|digit| digit.is_ascii_digit()) => self.number(),
            '$' => self.dollar()?,
            ':' => self.colon(second),
            first if is_operator(first) => self.operator(),
            other => {
                self.at += other.len_utf8();
                Kind::Mark(other)
            }
        }))
    }

    /// A string after a prefix of so many bytes.
    fn string(&mut self, prefix: usize, escapes: bool) -> Result<Kind, Unclosed> {
        let start = self.at;
        self.at += prefix + 1;
        let unclosed = Unclosed { start, what: "string" };
        loop {
            let character = self.peek().ok_or(unclosed)?;
            self.at += character.len_utf8();
            match character {
                '\\' if escapes => {
                    let escaped = self.peek().ok_or(unclosed)?;
                    self.at += escaped.len_utf8();
                }
                '\'' if self.rest().starts_with('\'') => self.at += 1,
                // A string goes on, by the same rules, behind a line break.
                '\'' => match self.continuation() {
                    Some(at) => self.at = at,
                    None => return Ok(Kind::String),
                },
                _ => {}
            }
        }
    }

    /// Past the quote that continues a string which ended here.
    fn continuation(&self) -> Option<usize> {
        let mut ahead = Lexer { text: self.text, at: self.at };
        let mut line_break = false;
        loop {
            let start = ahead.at;
            ahead.take_while(is_blank);
            line_break |= self.text[start..ahead.at].contains(['\n', '\r']);
            if ahead.rest().starts_with("--") {
                ahead.take_while(|character| !matches!(character, '\n' | '\r'));
            } else {
                return (line_break && ahead.peek() == Some('\'')).then_some(ahead.at + 1);
            }
        }
    }

    fn quoted_name(&mut self, prefix: usize) -> Result<Kind, Unclosed> {
        let start = self.at;
        self.at += prefix + 1;
        loop {
            let end = self.rest().find('"').ok_or(Unclosed { start, what: "quoted name" })?;
            self.at += end + 1;
            if !self.rest().starts_with('"') {
                return Ok(Kind::QuotedName);
            }
            self.at += 1;
        }
    }

    fn number(&mut self) -> Kind {
        self.take_while(|character| character.is_ascii_alphanumeric() || matches!(character, '.' | '_'));
        Kind::Number
    }

    fn dollar(&mut self) -> Result<Kind, Unclosed> {
        let start = self.at;
        self.at += 1;
        if self.peek().is_some_and(|digit| digit.is_ascii_digit()) {
            self.take_while(|character| character.is_ascii_digit());
            return Ok(Kind::Placeholder);
        }
        self.take_while(|character| is_name_start(character) || character.is_ascii_digit());
        if self.peek() != Some('$') {
            self.at = start + 1;
            return Ok(Kind::Mark('$'));
        }
        self.at += 1;
        let tag = &self.text[start..self.at];
        let end = self.rest().find(tag).ok_or(Unclosed { start, what: "dollar-quoted string" })?;
        self.at += end + tag.len();
        Ok(Kind::String)
    }

    fn colon(&mut self, second: Option<char>) -> Kind {
        let (kind, length) = match second {
            Some(':') => (Kind::Cast, 2),
            Some('=') => (Kind::Assign, 2),
            _ => (Kind::Mark(':'), 1),
        };
        self.at += length;
        kind
    }

    fn operator(&mut self) -> Kind {
        let start = self.at;
        self.take_while(is_operator);
        let operator = &self.text[start..self.at];
        let comment = [operator.find("--"), operator.find("/*")].into_iter().flatten().min();
        // No comment can begin here: blanks and comments were skipped before.
        self.at = comment.map_or(self.at, |length| start + length);
        Kind::Operator
    }
}

fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

fn is_name_start(character: char) -> bool {
    character.is_ascii_alphabetic() || character == '_' || !character.is_ascii()
}

fn is_operator(character: char) -> bool {
    "~!@#^&|`?+-*/%<>=".contains(character)
}

#[cfg(test)]
mod tests;
