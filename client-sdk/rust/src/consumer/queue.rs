//! The records of one partition that wait to be handled, and which of them may be handled now.
//!
//! Records with one key are a line: only the first of it may be handled, and the next when that has ended. Invariant:
//! of one line at most one batch is out at a time, in the order of the partition.
//!
//! It deliberately neither runs handlers nor bounds memory: the lane's bound does.

use std::collections::{HashMap, VecDeque};

/// Names a line. Two keys may share one: they are then in order with each other, too.
pub(super) type Line = u64;

#[derive(Debug)]
pub(super) struct Queue<R> {
    lines: HashMap<Line, VecDeque<R>>,
    /// Lines with records of which none is out, the one that waits longest first.
    ready: VecDeque<Line>,
}

impl<R> Default for Queue<R> {
    fn default() -> Self {
        Self { lines: HashMap::new(), ready: VecDeque::new() }
    }
}

impl<R> Queue<R> {
    /// Queues records of one line, at least one.
    pub(super) fn push(&mut self, line: Line, records: impl IntoIterator<Item = R>) {
        let waiting = self.lines.entry(line).or_insert_with(|| {
            self.ready.push_back(line);
            VecDeque::new()
        });
        waiting.extend(records);
    }

    /// Takes up to `max` records of the line that waits longest. The line is out until `done`.
    pub(super) fn take(&mut self, max: usize) -> Option<(Line, Vec<R>)> {
        let line = self.ready.pop_front()?;
        let waiting = self.lines.get_mut(&line)?;
        Some((line, waiting.drain(..max.min(waiting.len())).collect()))
    }

    /// What was taken of this line is settled.
    pub(super) fn done(&mut self, line: Line) {
        if self.lines.get(&line).is_some_and(|waiting| !waiting.is_empty()) {
            self.ready.push_back(line);
        } else {
            self.lines.remove(&line);
        }
    }

    /// How many lines have something to take.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_handled_in_order_and_others_beside_it() {
        let mut queue = Queue::default();
        for (line, record) in [(1, "a1"), (1, "a2"), (2, "b1"), (1, "a3")] {
            queue.push(line, [record]);
        }
        assert_eq!(queue.take(1), Some((1, vec!["a1"])));
        assert_eq!(queue.take(1), Some((2, vec!["b1"])));
        assert_eq!(queue.take(1), None, "a2 waits for a1");
        queue.push(2, ["b2"]);
        assert_eq!(queue.take(1), None, "b2 waits for b1");
        queue.done(1);
        assert_eq!(queue.take(9), Some((1, vec!["a2", "a3"])));
        queue.done(1);
        queue.done(2);
        assert_eq!(queue.take(1), Some((2, vec!["b2"])));
        queue.done(2);
        assert!(queue.ready() == 0 && queue.lines.is_empty(), "nothing is kept of lines that are done");
    }
}
