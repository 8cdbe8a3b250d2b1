//! Telling gaps and repeats in the sequences of keys, for topics that have them.
//!
//! The server numbers the events of each key without a gap where it was asked to (`outboxd sequence start`). A watcher
//! compares each record that is read with the last of its key. Invariant: it only reports. Events are deduplicated by
//! their ids, and never dropped or held for a number: after a restore numbers are given out anew.
//!
//! It deliberately remembers no more than it was told to, and nothing beyond an assignment: a partition that comes back
//! begins anew, with whatever its keys bring first.

use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use outbox_proto::sequence::{SEQUENCE, Sequence};
use sha2::{Digest as _, Sha256};

use super::{
    RecordPlace,
    record::Record,
    stats::{Counters, add},
    worker::place,
};

/// What is not as it should be in the sequence of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Irregularity {
    /// Where the record is.
    pub place: RecordPlace,
    /// The key.
    pub key: Vec<u8>,
    /// The event's namespace.
    pub namespace: String,
    /// What the number belongs to.
    pub epoch: u64,
    /// The event's number.
    pub number: u64,
    /// In what way.
    pub kind: IrregularityKind,
}

/// In what way a sequence is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IrregularityKind {
    /// So many events before this one were not read: they are lost, discarded, held by the server, or in another
    /// partition because their number was changed.
    Gap {
        /// How many.
        missing: u64,
    },
    /// An event of this number, or a later one, was read before. Mostly harmless: delivery is at least once.
    Repeat,
    /// Numbers began anew, as they do after the server's database was restored or failed over.
    Epoch {
        /// What they belonged to before.
        before: u64,
    },
}

impl IrregularityKind {
    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gap { .. } => "gap",
            Self::Repeat => "repeat",
            Self::Epoch { .. } => "epoch",
        }
    }
}

type Report = Arc<dyn Fn(&Irregularity) + Send + Sync>;

/// Starts a watcher for each lane.
#[derive(Clone)]
pub(super) struct Watch {
    keys_max: usize,
    report: Report,
}

impl Watch {
    pub(super) fn new(keys_max: usize, report: impl Fn(&Irregularity) + Send + Sync + 'static) -> Self {
        Self { keys_max, report: Arc::new(report) }
    }

    pub(super) fn keys_max(&self) -> usize {
        self.keys_max
    }

    pub(super) fn begin(&self) -> Watcher {
        Watcher { report: Arc::clone(&self.report), last: Last::new(self.keys_max) }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("keys_max", &self.keys_max).finish_non_exhaustive()
    }
}

/// Watches one lane.
pub(super) struct Watcher {
    report: Report,
    last: Last,
}

impl Watcher {
    /// Looks at a record, in the order of its partition.
    pub(super) fn see(&mut self, record: &Record, counters: &Counters) {
        let value = record.headers().filter(|(name, _)| *name == SEQUENCE).find_map(|(_, value)| value);
        let Some(sequence) = value.and_then(|value| Sequence::parse(std::str::from_utf8(value).ok()?)) else { return };
        let key = record.key().unwrap_or_default();
        for kind in self.last.see(name(&sequence, key), sequence.epoch, sequence.number).into_iter().flatten() {
            count(counters, kind);
            let Sequence { epoch, number, namespace } = sequence;
            let (place, namespace) = (place(record), namespace.to_owned());
            match kind {
                IrregularityKind::Repeat => tracing::debug!(%place, epoch, number, "a sequence's event comes again"),
                _ => tracing::warn!(%place, epoch, number, ?kind, "a key's sequence is not as it should be"),
            }
            let found = Irregularity { place, key: key.to_vec(), namespace, epoch, number, kind };
            if catch_unwind(AssertUnwindSafe(|| (self.report)(&found))).is_err() {
                tracing::error!(place = %found.place, "what takes reports of sequences has panicked");
            }
        }
    }
}

fn count(counters: &Counters, kind: IrregularityKind) {
    match kind {
        IrregularityKind::Gap { missing } => add(&counters.missing, missing),
        IrregularityKind::Repeat => add(&counters.repeats, 1),
        IrregularityKind::Epoch { .. } => add(&counters.epochs, 1),
    }
}

/// Stands for a key of a namespace.
type Name = [u8; 16];

fn name(sequence: &Sequence<'_>, key: &[u8]) -> Name {
    let mut name = [0; 16];
    let hash = Sha256::new().chain_update(sequence.namespace).chain_update([0]).chain_update(key).finalize();
    name.copy_from_slice(&hash[..16]);
    name
}

/// The last epoch and number of each key, of about as many keys as may be remembered: those seen last.
struct Last {
    half: usize,
    young: HashMap<Name, (u64, u64)>,
    old: HashMap<Name, (u64, u64)>,
}

impl Last {
    fn new(keys_max: usize) -> Self {
        Self { half: keys_max.div_ceil(2), young: HashMap::new(), old: HashMap::new() }
    }

    /// What is wrong with this number: at most a new epoch, and a gap, a repeat besides.
    fn see(&mut self, name: Name, epoch: u64, number: u64) -> [Option<IrregularityKind>; 2] {
        let known = self.young.get(&name).or_else(|| self.old.get(&name)).copied();
        let gap = |expected: u64| (number > expected).then(|| IrregularityKind::Gap { missing: number - expected });
        let found = match known {
            None => [None, None],
            Some((before, _)) if epoch > before => [Some(IrregularityKind::Epoch { before }), gap(1)],
            Some((same, last)) if epoch == same && number > last => [gap(last + 1), None],
            Some(_) => return [Some(IrregularityKind::Repeat), None],
        };
        if self.young.len() >= self.half && !self.young.contains_key(&name) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, (epoch, number));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::{IrregularityKind as Kind, *};

    fn key(n: u8) -> Name {
        [n; 16]
    }

    #[test]
    fn gaps_repeats_and_new_epochs_are_told_apart() {
        let mut last = Last::new(10);
        let nothing = [None, None];
        assert_eq!(last.see(key(1), 5, 7), nothing, "the first of a key is where it begins");
        assert_eq!(last.see(key(1), 5, 8), nothing);
        assert_eq!(last.see(key(1), 5, 8), [Some(Kind::Repeat), None]);
        assert_eq!(last.see(key(1), 5, 2), [Some(Kind::Repeat), None]);
        assert_eq!(last.see(key(1), 5, 9), nothing, "a repeat moves nothing back");
        assert_eq!(last.see(key(1), 5, 12), [Some(Kind::Gap { missing: 2 }), None]);
        assert_eq!(last.see(key(2), 5, 1), nothing, "another key");
        assert_eq!(last.see(key(1), 6, 1), [Some(Kind::Epoch { before: 5 }), None], "numbers begin anew");
        assert_eq!(last.see(key(1), 5, 13), [Some(Kind::Repeat), None], "of the epoch that is over");
        assert_eq!(last.see(key(1), 7, 3), [Some(Kind::Epoch { before: 6 }), Some(Kind::Gap { missing: 2 })]);
    }

    #[test]
    fn no_more_keys_are_remembered_than_may_be_and_the_busy_ones_stay() {
        let mut last = Last::new(4);
        last.see(key(0), 1, 1);
        for n in 1..200 {
            assert_eq!(last.see(key(n), 1, 1), [None, None]);
            assert_eq!(last.see(key(0), 1, u64::from(n) + 1), [None, None]);
            assert!(last.young.len() + last.old.len() <= 4);
        }
        assert_eq!(last.see(key(0), 1, 300), [Some(Kind::Gap { missing: 99 }), None]);
    }
}
