//! What is wrong with the operator's RPCs, and where: file, method, and the place in its declaration.

use std::{fmt, path::PathBuf};

/// Why the RPCs cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The declarations are wrong in these places; never empty.
    #[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
    Declared(Vec<Problem>),
    /// A file or the folder could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// One wrong place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The descriptor set.
    pub file: PathBuf,
    /// The method, as `shop.v1.Users/Activate`; empty: it is about the whole file.
    pub method: String,
    /// The place in the method's declaration, or a field of its messages; empty: it is about the whole method.
    pub field: String,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        for place in [&self.method, &self.field].into_iter().filter(|place| !place.is_empty()) {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)
    }
}
