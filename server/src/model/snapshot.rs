//! A Postgres snapshot: which transactions it sees.
//!
//! Its text form is Postgres's own, `xmin:xmax:xip,xip,…`, and goes back unchanged, unless Postgres would not take it back.
//! Subtransactions do not appear in it; the outbox stores the top-level transaction with each event.

use std::{collections::BTreeSet, sync::Arc};

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
        let (xmin, xmax, running) = (number(xmin)?, number(xmax)?, running?);
        // A slot's snapshot may end before it begins: its xmin follows what is running, its xmax the commits that were
        // decoded. Postgres sees by it everything below xmin, and writes it, but does not read it.
        if xmax < xmin {
            return Ok(Self { text: format!("{xmin}:{xmin}:").into(), xmin, xmax: xmin, running: Arc::default() });
        }
        Ok(Self { text: text.into(), xmin, xmax, running })
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

    /// Whether it sees everything that `other` sees. Snapshots of one cluster need not: one that was exported with a slot
    /// sees a commit as soon as its record is in the log, one of a session only once the committer has said so.
    pub fn covers(&self, other: &Snapshot) -> bool {
        let beyond = self.xmax..other.xmax.max(self.xmax);
        !self.running.iter().copied().chain(beyond).any(|xid| other.sees(xid))
    }

    /// A snapshot that sees what this one sees, and these transactions.
    #[must_use]
    pub fn including(&self, xids: impl IntoIterator<Item = u64>) -> Self {
        let more: BTreeSet<u64> = xids.into_iter().filter(|xid| !self.sees(*xid)).collect();
        let Some(last) = more.last() else { return self.clone() };
        let xmax = self.xmax.max(last + 1);
        let running = self.running.iter().copied().chain(self.xmax..xmax);
        let running: Arc<[u64]> = running.filter(|xid| !more.contains(xid)).collect();
        let xmin = running.first().copied().unwrap_or(xmax);
        let list: Vec<String> = running.iter().map(u64::to_string).collect();
        Self { text: format!("{xmin}:{xmax}:{}", list.join(",")).into(), xmin, xmax, running }
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
    fn a_snapshot_that_ends_before_it_begins_is_read_as_postgres_sees_by_it() {
        let exported = Snapshot::parse("3105:3059:").expect("a slot has exported it");
        assert_eq!(exported.as_str(), "3105:3105:");
        assert!(exported.sees(3_104) && !exported.sees(3_105));
        let behind = Snapshot::parse("3070:3070:").expect("it is one");
        assert!(!behind.covers(&exported), "3070 to 3104 are missing");
        assert!(exported.covers(&behind));
    }

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
    fn a_snapshot_covers_another_when_it_sees_all_that_the_other_sees() {
        let snapshot = |text| Snapshot::parse(text).expect("it is one");
        let later = snapshot("12:20:12");
        assert!(later.covers(&snapshot("10:15:10,12")) && later.covers(&later));
        assert!(!later.covers(&snapshot("13:15:")), "12 is still running for it");
        assert!(!later.covers(&snapshot("12:22:12,20")), "it does not know 21");
        assert!(later.covers(&snapshot("12:22:12,20,21")), "what the other does not see does not count");
    }

    #[test]
    fn a_snapshot_that_includes_transactions_sees_these_besides() {
        let snapshot = Snapshot::parse("10:15:10,12").expect("it is one");
        let wider = snapshot.including([12, 17, 9]);
        let seen: Vec<u64> = (8..20).filter(|x| wider.sees(*x)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 14, 17]);
        assert_eq!(wider.as_str(), "10:18:10,15,16");
        assert_eq!(snapshot.including([9, 11]).as_str(), "10:15:10,12");
        assert_eq!(Snapshot::parse("5:5:").expect("it is one").including([5]).as_str(), "6:6:");
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "1:2", "a:2:", "1:2:x"] {
            assert!(Snapshot::parse(text).is_err(), "{text}");
        }
    }
}
