//! Settling: takes the publisher's reports, and writes down how far each lane has come.

use std::{collections::BTreeSet, time::Instant};

use super::{Session, within};
use crate::{
    model::delivery,
    relay::{
        Error, Status,
        publisher::{Fault, Publisher, Report},
        source::{Source, Unwritten},
        window::Finished,
    },
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
            self.recover(faults, None).await?;
        }
        let (pages, delivered) = self.window.settle();
        let mut passed = BTreeSet::new();
        for page in pages {
            match page {
                Finished::Read(page) => {
                    // A lane without events has none that could end the process.
                    let is_all = self.source.settle(&page);
                    passed.extend(page.lanes.iter().filter(|lane| is_all || page.events_of(**lane) > 0));
                }
                Finished::Drained(drained) => self.end_drain(drained).await?,
            }
        }
        self.spans.forget_before(self.window.first_token());
        self.write(Unwritten::Events, delivered).await?;
        let passed = self.attempts.first_passes(passed.into_iter());
        self.passed(passed).await
    }

    /// Acknowledged events are done; the others are collected, none is passed.
    pub(super) fn take_report(&mut self, report: Report, faults: &mut Vec<(usize, Fault)>) {
        let Report { token, outcome } = report;
        match outcome {
            Ok(place) => {
                self.last_movement = Instant::now();
                self.care.acknowledged(token);
                self.spans.acknowledged(token, place);
                self.window.acknowledge(token, place);
            }
            Err(fault) => faults.push((token, fault)),
        }
    }

    /// Writes the progress of lanes that are ahead of the table by at least this much, with where events went. A lane
    /// that another relay has claimed is dropped.
    pub(super) async fn write(&mut self, at_least: Unwritten, delivered: Option<delivery::Batch>) -> Result<(), Error> {
        let patience = self.patience();
        let writing = self.source.write(&mut self.control, &self.lanes, at_least, delivered);
        for lane in within(patience, writing).await? {
            self.drop_lane(lane);
        }
        self.source.committed();
        if at_least == Unwritten::Events {
            self.status.send_modify(|s: &mut Status| s.last_settled = Some(Instant::now()));
        }
        Ok(())
    }

    /// Another relay has claimed a lane.
    pub(super) fn drop_lane(&mut self, lane: i16) {
        tracing::warn!(lane, epoch = self.lanes.epoch(lane), "another relay has the lane, it is dropped");
        self.lanes.remove(lane);
        self.source.lost(lane);
        self.window.forget(lane);
    }
}
