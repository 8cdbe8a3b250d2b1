//! Settling: takes the publisher's reports, and writes down how far each lane has come.

use std::time::Instant;

use super::{Session, within};
use crate::relay::{
    Error, Status,
    publisher::{Fault, Publisher, Report},
    source::{Source, Unwritten},
};

impl<P: Publisher, S: Source> Session<'_, P, S> {
    /// Takes reports, settles pages and writes the progress of lanes that had events in them.
    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        let mut reports = std::mem::take(&mut self.reports);
        self.publisher.take(&mut reports);
        let mut faults = Vec::new();
        for report in reports.drain(..) {
            self.take_report(report, &mut faults);
        }
        self.reports = reports;
        if !faults.is_empty() {
            self.recover(faults, None).await;
        }
        for page in self.window.settle() {
            self.source.settle(&page);
            for lane in page.lanes.iter().filter(|lane| page.has_events_of(**lane)) {
                self.lanes.passed(*lane);
            }
        }
        self.spans.forget_before(self.window.first_token());
        self.write(Unwritten::Events).await
    }

    /// Acknowledged events are done; the others are collected, none is passed.
    pub(super) fn take_report(&mut self, report: Report, faults: &mut Vec<(usize, Fault)>) {
        let Report { token, outcome } = report;
        match outcome {
            Ok(place) => {
                self.last_movement = Instant::now();
                self.care.acknowledged(token);
                self.spans.acknowledged(token, place);
                self.window.acknowledge(token);
            }
            Err(fault) => faults.push((token, fault)),
        }
    }

    /// Writes the progress of lanes that are ahead of the table by at least this much. A lane that another relay has
    /// claimed is dropped.
    pub(super) async fn write(&mut self, at_least: Unwritten) -> Result<(), Error> {
        let patience = self.patience();
        let writing = self.source.write(&mut self.control, &self.lanes, at_least);
        for lane in within(patience, writing).await? {
            tracing::warn!(lane, epoch = self.lanes.epoch(lane), "another relay has the lane, it is dropped");
            self.lanes.remove(lane);
            self.source.lost(lane);
            self.window.forget(lane);
        }
        self.source.committed();
        if at_least == Unwritten::Events {
            self.status.send_modify(|s: &mut Status| s.last_settled = Some(Instant::now()));
        }
        Ok(())
    }
}
