//! What the demo tells: steps with what was seen and what was checked, for people or as JSON.
//!
//! Invariant: the outcome is good only if every check that was made held and the story got to its end.

#![allow(clippy::print_stdout, reason = "printing is what a command line is for")]

use std::time::Instant;

use serde_json::{Map, Value, json};

/// Collects and prints.
pub(super) struct Report {
    json: bool,
    start: Instant,
    steps: usize,
    step: Option<Step>,
    checks: usize,
    failed: Vec<String>,
}

struct Step {
    name: &'static str,
    title: String,
    start: Instant,
    saw: Map<String, Value>,
    checks: Vec<Value>,
}

impl Report {
    /// For people, or with `json` one JSON object per step.
    pub(super) fn new(json: bool) -> Self {
        Self { json, start: Instant::now(), steps: 0, step: None, checks: 0, failed: Vec::new() }
    }

    /// Begins a step, which ends the one before.
    pub(super) fn step(&mut self, name: &'static str, title: impl Into<String>) {
        self.end_step();
        self.steps += 1;
        let title = title.into();
        if !self.json {
            println!("\n{:2}. {title}", self.steps);
        }
        self.step = Some(Step { name, title, start: Instant::now(), saw: Map::new(), checks: Vec::new() });
    }

    /// Something that the step saw.
    pub(super) fn saw(&mut self, what: &str, value: impl Into<Value>) {
        let value = value.into();
        if !self.json {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            println!("      {:<18} {text}", what.replace('_', " "));
        }
        if let Some(step) = &mut self.step {
            step.saw.insert(what.to_owned(), value);
        }
    }

    /// Something that must hold.
    pub(super) fn check(&mut self, claim: &str, holds: bool) {
        self.checks += 1;
        if !self.json {
            println!("    {} {claim}", if holds { '✓' } else { '✗' });
        }
        if !holds {
            self.failed.push(claim.to_owned());
        }
        if let Some(step) = &mut self.step {
            step.checks.push(json!({"claim": claim, "holds": holds}));
        }
    }

    /// Prints the summary. Returns what did not hold.
    pub(super) fn finish(mut self, trace_id: Option<String>) -> Vec<String> {
        self.end_step();
        let seconds = self.start.elapsed().as_secs_f64();
        if self.json {
            let (held, ms) = (self.checks - self.failed.len(), millis(self.start));
            let ok = self.failed.is_empty();
            let (checks, failed) = (self.checks, &self.failed);
            println!(
                "{}",
                json!({"step": "summary", "ok": ok, "ms": ms, "checks": checks, "held": held, "failed": failed, "trace_id": trace_id})
            );
        } else {
            println!();
            if let Some(trace_id) = trace_id {
                println!("Trace id: {trace_id}");
            }
            match self.failed.len() {
                0 => println!("All {} checks held, in {seconds:.1} s.", self.checks),
                failed => println!("{failed} of {} checks FAILED, in {seconds:.1} s:", self.checks),
            }
            for claim in &self.failed {
                println!("  ✗ {claim}");
            }
        }
        self.failed
    }

    fn end_step(&mut self) {
        let Some(step) = self.step.take() else { return };
        let ms = millis(step.start);
        if self.json {
            let ok = step.checks.iter().all(|check| check["holds"] == true);
            let Step { name, title, saw, checks, .. } = step;
            println!("{}", json!({"step": name, "title": title, "ok": ok, "ms": ms, "saw": saw, "checks": checks}));
        } else {
            println!("      {ms} ms");
        }
    }
}

fn millis(start: Instant) -> u64 {
    start.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_check_that_fails_is_what_the_demo_fails_with() {
        let mut report = Report::new(true);
        report.step("first", "A step");
        report.check("this holds", true);
        report.check("this does not", false);
        report.step("second", "Another");
        report.check("this holds too", true);
        assert_eq!(report.finish(None), ["this does not"]);
    }
}
