//! A catalog file, cut into commands by their headers.
//!
//! ```sql
//! -- name: activate_user
//! -- expect: one
//! -- access: read_write
//! -- Any further comment line up to the statement describes the command.
//! update users set status = 'active' where id = :user_id
//! ```
//! A line that begins with `-- name:` starts a command, wherever it stands: headers are found by line, before the SQL
//! is read, so one unclosed quote spoils one command and not the rest of the file.
//!
//! Not here: anything about the SQL between two headers.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::RowExpectation;
use super::error::{Error, Place, Problem};

const NAME_CHARS_MAX: usize = 128;
const NAME_HINT: &str = "a name has up to 128 of a-z, 0-9 and _, in parts joined by dots, each beginning with a letter";
const ACCESS_HINT: &str = "write read_only or read_write";
const EXPECT_HINT: &str = "write one, at_most_one, at_least_one, any, or a number of rows";

/// A file's text.
pub(super) struct Source {
    path: PathBuf,
    pub(super) text: String,
}

/// A command as it stands in its file.
#[derive(Debug, PartialEq)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) expect: RowExpectation,
    pub(super) read_only: bool,
    /// Where its header begins.
    pub(super) offset: usize,
    /// Where its SQL is, comments around it included.
    pub(super) body: Range<usize>,
}

/// Reads all `*.sql` files of a folder, in the order of their names.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Source>, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "sql") && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| std::fs::read_to_string(&path).map_err(failed(&path)).map(|text| Source::new(path, text)))
        .collect()
}

impl Source {
    pub(super) fn new(path: PathBuf, text: String) -> Self {
        // Editors on Windows put a byte order mark first, which Postgres would take for a name.
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        Self { path, text }
    }

    /// Line and column of a byte of the text.
    pub(super) fn place(&self, offset: usize) -> Place {
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Place { path: self.path.clone(), line, column: before[line_start..].chars().count() + 1 }
    }

    pub(super) fn problem(&self, offset: usize, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem { place: self.place(offset), message: message.into(), hint: hint.into() }
    }

    /// The commands with a valid header; what is wrong with the others goes to `problems`.
    pub(super) fn commands(&self, problems: &mut Vec<Problem>) -> Vec<Declared> {
        let mut commands = Vec::new();
        // The command being read; none before the first header and inside one that is wrong.
        let mut open: Option<Header> = None;
        let mut before_first = true;
        let mut offset = 0;
        for line in self.text.split_inclusive('\n') {
            let start = offset;
            offset += line.len();
            let at = start + (line.len() - line.trim_start().len());
            let parsed = Line::of(line.trim());
            if let Line::Key { key: Key::Name, value } = parsed {
                commands.extend(open.take().and_then(|header| self.close(header, start, problems)));
                before_first = false;
                match check_name(value) {
                    Ok(()) => open = Some(Header::new(value, at)),
                    Err(message) => problems.push(self.problem(at, message, NAME_HINT)),
                }
            } else if let Some(header) = &mut open {
                if let Err((message, hint)) = header.read(parsed, start) {
                    problems.push(self.problem(at, message, hint));
                }
            } else if before_first && parsed == Line::Sql {
                before_first = false;
                let message = "SQL before the first command";
                problems.push(self.problem(at, message, "begin the command with `-- name: its_name`"));
            }
        }
        commands.extend(open.and_then(|header| self.close(header, self.text.len(), problems)));
        commands
    }

    fn close(&self, header: Header, end: usize, problems: &mut Vec<Problem>) -> Option<Declared> {
        let Header { name, description, expect, access, offset, body_start } = header;
        let Some(start) = body_start else {
            let message = format!("command `{name}` has no statement");
            problems.push(self.problem(offset, message, "write it below the header"));
            return None;
        };
        let expect = expect.unwrap_or(RowExpectation::ANY);
        let read_only = access == Some(Access::ReadOnly);
        Some(Declared { name, description: description.join("\n"), expect, read_only, offset, body: start..end })
    }
}

/// A command whose end has not been seen.
struct Header {
    name: String,
    description: Vec<String>,
    expect: Option<RowExpectation>,
    access: Option<Access>,
    offset: usize,
    body_start: Option<usize>,
}

impl Header {
    fn new(name: &str, offset: usize) -> Self {
        Self { name: name.to_owned(), description: Vec::new(), expect: None, access: None, offset, body_start: None }
    }

    fn read(&mut self, line: Line<'_>, start: usize) -> Result<(), (String, &'static str)> {
        match line {
            Line::Key { key: Key::Expect, .. } if self.body_start.is_some() => {
                Err(("`expect` inside a statement".to_owned(), "move it up, below `-- name:`"))
            }
            Line::Key { key: Key::Expect, .. } if self.expect.is_some() => {
                Err(("a second `expect`".to_owned(), "keep one"))
            }
            Line::Key { key: Key::Expect, value } => {
                let expect = parse_expect(value).ok_or_else(|| (format!("bad expectation `{value}`"), EXPECT_HINT))?;
                self.expect = Some(expect);
                Ok(())
            }
            Line::Key { key: Key::Access, .. } if self.body_start.is_some() => {
                Err(("`access` inside a statement".to_owned(), "move it up, below `-- name:`"))
            }
            Line::Key { key: Key::Access, .. } if self.access.is_some() => {
                Err(("a second `access`".to_owned(), "keep one"))
            }
            Line::Key { key: Key::Access, value } => {
                let access = parse_access(value).ok_or_else(|| (format!("bad access `{value}`"), ACCESS_HINT))?;
                self.access = Some(access);
                Ok(())
            }
            Line::Comment(text) if self.body_start.is_none() => {
                self.description.push(text.to_owned());
                Ok(())
            }
            Line::Sql => {
                self.body_start.get_or_insert(start);
                Ok(())
            }
            Line::Key { .. } | Line::Comment(_) | Line::Blank => Ok(()),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Key {
    Name,
    Expect,
    Access,
}

/// Whether a command may be run by a query.
#[derive(Clone, Copy, PartialEq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Clone, Copy, PartialEq)]
enum Line<'a> {
    Blank,
    Key { key: Key, value: &'a str },
    Comment(&'a str),
    Sql,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let Some(comment) = line.strip_prefix("--") else {
            return if line.is_empty() { Self::Blank } else { Self::Sql };
        };
        let comment = comment.trim();
        let Some((key, value)) = comment.split_once(':') else { return Self::Comment(comment) };
        let value = value.trim();
        match key.trim() {
            key if key.eq_ignore_ascii_case("name") => Self::Key { key: Key::Name, value },
            key if key.eq_ignore_ascii_case("expect") => Self::Key { key: Key::Expect, value },
            key if key.eq_ignore_ascii_case("access") => Self::Key { key: Key::Access, value },
            _ => Self::Comment(comment),
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let part_fits = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_lowercase())
            && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    };
    match name {
        "" => Err("a command without a name".to_owned()),
        name if name.len() > NAME_CHARS_MAX || !name.split('.').all(part_fits) => {
            Err(format!("bad command name `{name}`"))
        }
        _ => Ok(()),
    }
}

fn parse_access(text: &str) -> Option<Access> {
    match text {
        "read_only" => Some(Access::ReadOnly),
        "read_write" => Some(Access::ReadWrite),
        _ => None,
    }
}

fn parse_expect(text: &str) -> Option<RowExpectation> {
    Some(match text {
        "one" => RowExpectation { min: 1, max: 1 },
        "at_most_one" => RowExpectation { min: 0, max: 1 },
        "at_least_one" => RowExpectation { min: 1, max: i64::MAX },
        "any" => RowExpectation::ANY,
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            let rows = number.parse().ok()?;
            RowExpectation { min: rows, max: rows }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
