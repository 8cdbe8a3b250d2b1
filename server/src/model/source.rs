//! The two sources of the relay, by name.

use std::{fmt, str::FromStr};

use serde::Serialize;

/// Where the relay's events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The table, looked into again and again. Needs only a plain role.
    Poll,
    /// The database's write-ahead log, streamed. Needs `wal_level = logical` and a role that may replicate.
    Wal,
}

/// The text names no source.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no source, expected `poll` or `wal`")]
pub struct UnknownSource(String);

impl Source {
    /// Every source.
    pub const ALL: [Self; 2] = [Self::Poll, Self::Wal];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Wal => "wal",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Source {
    type Err = UnknownSource;

    fn from_str(name: &str) -> Result<Self, UnknownSource> {
        match name {
            "poll" => Ok(Self::Poll),
            "wal" => Ok(Self::Wal),
            _ => Err(UnknownSource(name.to_owned())),
        }
    }
}
