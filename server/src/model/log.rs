//! Places in the database's write-ahead log.

use std::{fmt, str::FromStr};

/// A byte position in the log. Its text form is Postgres's own, `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

/// A place between two events of the log: every commit whose record begins below `lsn` lies before it, and so do the
/// first `index` events of the one that begins there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Where a commit's record begins, or where one ended.
    pub lsn: Lsn,
    /// Events of that commit.
    pub index: u64,
}

/// The text is not that of a position.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a position in the log, expected `16/B374D848`")]
pub struct NotAnLsn(String);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(text: &str) -> Result<Self, NotAnLsn> {
        let number = |part: &str| u32::from_str_radix(part, 16).ok().map(u64::from);
        let parts = text.split_once('/').and_then(|(high, low)| Some((number(high)?, number(low)?)));
        parts.map(|(high, low)| Self(high << 32 | low)).ok_or_else(|| NotAnLsn(text.to_owned()))
    }
}

impl LogPosition {
    /// The place before a commit that begins here, or after one that ended here.
    pub fn at(lsn: Lsn) -> Self {
        Self { lsn, index: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_as_postgres_writes_it() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().expect("it is one").to_string(), text);
        }
        for text in ["", "16", "16/", "16/100000000", "x/1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_place_within_a_commit_is_before_its_end() {
        let within = LogPosition { lsn: Lsn(100), index: 7 };
        assert!(LogPosition::at(Lsn(100)) < within && within < LogPosition::at(Lsn(140)));
    }
}
