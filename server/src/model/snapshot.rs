//! A Postgres snapshot: which transactions it sees.
//!
//! Its text form is Postgres's own, `xmin:xmax:xip,xip,…`, and goes back unchanged. Subtransactions do not appear in
//! it; the outbox stores the top-level transaction with each event.

use std::sync::Arc;

/// A `pg_snapshot`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    text: Arc<str>,
    xmin: u64,
    xmax: u64,
    running: Arc<[u64]>,
}

/// The text is not that of a `pg_snapshot`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a Postgres snapshot, expected `xmin:xmax:xip,…`")]
pub struct NotASnapshot(String);

impl Snapshot {
    /// Reads Postgres's text form.
    ///
    /// # Errors
    /// [`NotASnapshot`] when it is none.
    pub fn parse(text: &str) -> Result<Self, NotASnapshot> {
        let wrong = || NotASnapshot(text.to_owned());
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or_else(wrong);
        let (xmin, xmax, running) = (part()?, part()?, part()?);
        let number = |t: &str| t.parse::<u64>().map_err(|_| wrong());
        let running: Result<Arc<[u64]>, _> = running.split(',').filter(|t| !t.is_empty()).map(number).collect();
        Ok(Self { text: text.into(), xmin: number(xmin)?, xmax: number(xmax)?, running: running? })
    }

    /// Postgres's text form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first transaction id that it does not know. Transactions with this id or a later one may have been running
    /// already when it was taken: it is one more than the newest *completed* one.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Whether the transaction had ended when the snapshot was taken.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }

    /// The transactions that were running for this snapshot and that `later` sees.
    pub fn ended_by<'a>(&'a self, later: &'a Snapshot) -> impl Iterator<Item = u64> + 'a {
        self.running.iter().copied().filter(|xid| later.sees(*xid))
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || self.text == other.text
    }
}

impl Eq for Snapshot {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let snapshot = Snapshot::parse("10:15:10,12").expect("it is one");
        let seen: Vec<u64> = (8..17).filter(|x| snapshot.sees(*x)).collect();
        assert_eq!(seen, [8, 9, 11, 13, 14]);
        assert_eq!((snapshot.as_str(), snapshot.xmax()), ("10:15:10,12", 15));
    }

    #[test]
    fn what_ended_between_two_snapshots_is_told() {
        let (earlier, later) =
            (Snapshot::parse("10:15:10,12").expect("one"), Snapshot::parse("10:20:10").expect("one"));
        assert_eq!(earlier.ended_by(&later).collect::<Vec<_>>(), [12]);
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "1:2", "a:2:", "1:2:x"] {
            assert!(Snapshot::parse(text).is_err(), "{text}");
        }
    }
}
