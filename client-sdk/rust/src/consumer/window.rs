//! Which offset of a partition may be committed while its records are settled in any order.
//!
//! Invariant: the offset never passes a record that is not settled. Offsets of a partition need not be consecutive:
//! what counts is the order in which they were read.

use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Window {
    /// Read and not passed yet: offset, and whether it is settled.
    records: VecDeque<(i64, bool)>,
}

impl Window {
    /// How many records are held up by the oldest that is not settled, itself included.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// A record was read, after all others in here.
    pub(super) fn read(&mut self, offset: i64) {
        self.records.push_back((offset, false));
    }

    /// A record is settled. Returns the offset to commit, if that has moved.
    pub(super) fn settle(&mut self, offset: i64) -> Option<i64> {
        // Mostly it is the oldest.
        let at = match self.records.front() {
            Some((oldest, _)) if *oldest == offset => 0,
            _ => self.records.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?,
        };
        self.records[at].1 = true;
        let mut next = None;
        while let Some((offset, true)) = self.records.front() {
            next = Some(offset + 1);
            self.records.pop_front();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_5_the_offset_waits_for_the_oldest_record_that_is_not_settled() {
        let mut window = Window::default();
        for offset in [3, 4, 7, 9] {
            window.read(offset);
        }
        assert_eq!(window.settle(4), None);
        assert_eq!(window.settle(9), None);
        assert_eq!(window.settle(3), Some(5));
        assert_eq!(window.settle(3), None, "again: nothing moves");
        assert_eq!(window.settle(7), Some(10));
    }
}
